//! H18 and H19: sessions that ask for what is not there, and for too much of what is.

use anyhow::{Result, ensure};
use towpath_common::testing::Error;
use vhost::vhost_user::message::FrontendReq as Request;

use crate::harness::Scene;
use crate::socket;

#[test]
fn h18_configuration_space_at_its_extremes() -> Result<()> {
    let scene = Scene::new()?;
    let numbers = [
        0,
        1,
        59,
        60,
        61,
        255,
        256,
        257,
        512,
        4084,
        4096,
        1 << 31,
        u32::MAX,
    ];
    for offset in numbers {
        for len in numbers {
            let mut frontend = scene.frontend()?;
            let room = usize::try_from(len.min(4084))?;
            let head = [offset.to_ne_bytes(), len.to_ne_bytes(), [0; 4]].concat();
            let payload = [&head[..], &vec![0; room]].concat();
            // An answer, an empty one, or the end: all but silence.
            let answer = frontend.ask(Request::GET_CONFIG, &payload, &[]);
            ensure!(
                !matches!(answer, Err(Error::Timeout(_))),
                "GET_CONFIG {offset}+{len}"
            );
            let written = [&head[..], &vec![2; room]].concat();
            let answer = frontend.tell(Request::SET_CONFIG, &written, &[]);
            if answer.is_ok() {
                ensure!(len == 0, "SET_CONFIG {offset}+{len} was taken");
            }
            ensure!(
                !matches!(answer, Err(Error::Timeout(_))),
                "SET_CONFIG {offset}+{len}"
            );
        }
    }
    scene.victim()?.works()?;
    scene.finish()
}

#[test]
fn h19_a_thousand_fds() -> Result<()> {
    socket::a_thousand_fds()
}

#[test]
fn h19_messages_in_any_order() -> Result<()> {
    socket::messages_in_any_order()
}

#[test]
fn h19_two_front_ends_at_once() -> Result<()> {
    socket::two_front_ends_at_once()
}
