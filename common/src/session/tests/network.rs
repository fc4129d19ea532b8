//! Messages that only network devices know: SEND_RARP and NET_SET_MTU.

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use super::*;
use crate::session::{P_NET_MTU, P_RARP};
use crate::testing::Error;
use crate::testing::wire::VERSION;

#[test]
fn a_guest_that_moved_here_is_announced_by_its_address() {
    let bed = Bed::new(1);
    let mut front = bed.front(everything());
    let macs = [[0x52, 0x54, 0, 0x12, 0x34, 0x56], [0xff; 6]];
    for mac in macs {
        front.send_rarp(mac).unwrap();
    }
    assert_eq!(bed.echo.announced(), macs);
}

#[test]
fn an_mtu_that_does_not_do_is_refused_with_its_number() {
    let bed = Bed::new(1);
    let mut front = bed.front(everything());
    front.set_mtu(1500).unwrap();
    for bad in [9001, 65_536, u64::MAX] {
        let refused = front.set_mtu(bad);
        assert!(matches!(refused, Err(Error::Refused { code: 1, .. })));
        eventually("the reason", || {
            let noted = bed.server.status().last_error.unwrap_or_default();
            noted.contains(&format!("MTU of {bad} bytes"))
        });
    }
    assert_eq!(
        bed.echo.mtus(),
        [1500, 9001],
        "more than 16 bits never get there"
    );
    // The same without NEED_REPLY: nobody would learn of it.
    let raw = front.raw();
    let payload = 9001u64.to_ne_bytes();
    raw.send(Request::NET_SET_MTU.into(), VERSION, &payload, &[])
        .unwrap();
    assert!(raw.closes_within(SOON).unwrap());
    assert!(bed.end().contains("MTU of 9001"));
}

#[test]
fn what_was_not_negotiated_ends_the_session() {
    let bed = Bed::new(1);
    for request in [Request::SEND_RARP, Request::NET_SET_MTU] {
        let mut wanted = everything();
        wanted.protocol = Protocol::REPLY_ACK;
        let front = bed.front(wanted);
        let (raw, payload) = (front.raw(), 1500u64.to_ne_bytes());
        raw.send(request.into(), VERSION, &payload, &[]).unwrap();
        assert!(raw.closes_within(SOON).unwrap());
        assert!(bed.end().contains("was not negotiated"));
    }
    assert!(bed.echo.mtus().is_empty() && bed.echo.announced().is_empty());
}

#[test]
fn payloads_of_another_length_reach_no_device() {
    let bed = Bed::new(1);
    for request in [Request::SEND_RARP, Request::NET_SET_MTU] {
        let mut front = bed.front(everything());
        for len in [0, 6, 7] {
            let said = front.tell(request, &vec![1; len], &[]);
            assert!(matches!(said, Err(Error::Refused { .. })), "{len}");
        }
        assert!(bed.noted().contains("malformed"));
        // What is longer than any message of ours is not even read.
        let said = front.tell(request, &[1; 9], &[]);
        assert!(matches!(said, Err(Error::Closed)), "{said:?}");
        assert!(bed.end().contains("malformed"));
    }
    assert!(bed.echo.mtus().is_empty() && bed.echo.announced().is_empty());
}

#[test]
fn both_are_offered_where_the_device_has_them() {
    let bed = Bed::new(1);
    let protocol = bed.front(everything()).protocol().bits();
    assert_eq!(protocol & (P_RARP | P_NET_MTU), P_RARP | P_NET_MTU);
    assert_eq!((P_RARP, P_NET_MTU), (1 << 2, 1 << 4));
}
