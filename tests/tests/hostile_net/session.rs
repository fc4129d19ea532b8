//! What goes for any device's sessions, by this list's numbers.

use anyhow::Result;

use crate::socket;

#[test]
fn m02_a_thousand_fds() -> Result<()> {
    socket::a_thousand_fds()
}

#[test]
fn m11_messages_in_any_order() -> Result<()> {
    socket::messages_in_any_order()
}

#[test]
fn m14_two_front_ends_at_once() -> Result<()> {
    socket::two_front_ends_at_once()
}
