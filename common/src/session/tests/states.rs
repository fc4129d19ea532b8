//! Ring states (vhost-user, "Ring states"): started by a kick fd, stopped by GET_VRING_BASE,
//! enabled apart from that; whatever the order in which a front-end says things.

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use super::*;

/// All orders of `items`.
fn orders(items: &[Request]) -> Vec<Vec<Request>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (i, first) in items.iter().enumerate() {
        let rest = [&items[..i], &items[i + 1..]].concat();
        for mut order in orders(&rest) {
            order.insert(0, *first);
            all.push(order);
        }
    }
    all
}

#[test]
fn a_vring_runs_whatever_the_order_of_its_messages() {
    let bed = Bed::new(1);
    let messages = [
        Request::SET_VRING_NUM,
        Request::SET_VRING_BASE,
        Request::SET_VRING_ADDR,
        Request::SET_VRING_CALL,
        Request::SET_VRING_KICK,
        Request::SET_VRING_ENABLE,
    ];
    for order in orders(&messages) {
        let mut guest = Guest::new(bed.front(everything()), &[(0, 1 << 20)]);
        guest.share();
        guest.queue(8);
        for message in &order {
            let said = guest.say(0, *message);
            assert!(said.is_ok(), "{message:?} of {order:?}: {said:?}");
        }
        guest.offer(0, b"run");
        assert!(guest.drivers[0].wait(SOON).unwrap(), "{order:?}");
        guest.settle(0);
    }
}

#[test]
fn memory_may_come_last() {
    let bed = Bed::new(2);
    let mut guest = Guest::new(bed.front(everything()), &[(0, 1 << 20)]);
    for queue in [1, 0] {
        guest.queue(8);
        guest.queue(8);
        guest.start(queue);
    }
    guest.offer(1, b"before there was memory");
    guest.share();
    guest.settle(1);
    guest.echo(0, b"and the other");
}

#[test]
fn any_number_of_vrings_in_any_order() {
    let bed = Bed::new(5);
    let mut guest = bed.guest(0);
    (0..5).for_each(|_| guest.queue(8));
    for (n, queue) in [3u32, 0, 4].into_iter().enumerate() {
        guest.start(queue);
        guest.echo(queue as usize, b"mine");
        eventually("the vring to show", || {
            let vrings = bed.server.status().vrings;
            vrings.iter().filter(|v| v.3).count() == n + 1
        });
    }
    assert_eq!(guest.front.queues(), 5);
}

#[test]
fn a_disabled_vring_keeps_what_it_has() {
    let bed = Bed::new(2);
    let mut guest = bed.guest(2);
    guest.front.enable(0, false).unwrap();
    guest.offer(0, b"not yet");
    guest.echo(1, b"the other one runs");
    assert_eq!(guest.reap(0), 0);
    assert!(bed.echo.take_seen().iter().all(|seen| seen.0 == 1));
    guest.front.enable(0, true).unwrap();
    guest.settle(0);
}

#[test]
fn a_stop_drains_and_answers_where_to_go_on() {
    let bed = Bed::new(1);
    let mut guest = bed.guest(1);
    for n in 0..5u8 {
        guest.echo(0, &[n; 32]);
    }
    bed.echo.conduct(crate::testing::echo::Conduct::Hold);
    for n in 0..3u8 {
        guest.offer(0, &[n; 16]);
    }
    eventually("three in flight", || bed.echo.seen() == 8);
    assert_eq!(guest.front.stop_queue(0).unwrap(), 8);
    assert_eq!(
        guest.reap(0),
        3,
        "what was in flight is done when the answer is here"
    );
    bed.echo.conduct(crate::testing::echo::Conduct::Answer);
    guest.offer(0, b"while it stands still");
    assert_eq!(bed.echo.seen(), 8);
    assert_eq!(guest.front.stop_queue(0).unwrap(), 8, "twice is once");
    guest.say(0, Request::SET_VRING_BASE).unwrap();
    guest.say(0, Request::SET_VRING_KICK).unwrap();
    guest.settle(0);
    assert_eq!(guest.front.stop_queue(0).unwrap(), 9);
}

#[test]
fn a_fresh_vring_stops_where_it_was_told_to_start() {
    let bed = Bed::new(1);
    let mut front = bed.front(everything());
    front.set_vring(Request::SET_VRING_BASE, 0, 0xfffe).unwrap();
    assert_eq!(front.stop_queue(0).unwrap(), 0xfffe);
}

#[test]
fn indices_wrap_at_65536() {
    let bed = Bed::new(1);
    let mut guest = bed.guest(0);
    guest.queue(16);
    // A ring that has run for long: all three indices stand just below the wrap.
    guest.drivers[0].age(0xfff9);
    guest.start(0);
    for n in 0..20u8 {
        guest.echo(0, &[n; 8]);
    }
    assert_eq!(guest.front.stop_queue(0).unwrap(), 13);
}

#[test]
fn call_kick_and_err_may_be_replaced_while_running() {
    let bed = Bed::new(1);
    let mut guest = bed.guest(1);
    guest.echo(0, b"first fds");
    for _ in 0..3 {
        guest.drivers[0].renew_events().unwrap();
        for what in [
            Request::SET_VRING_ERR,
            Request::SET_VRING_CALL,
            Request::SET_VRING_KICK,
        ] {
            guest.say(0, what).unwrap();
        }
        guest.echo(0, b"new fds");
    }
    // The err fd in use is the new one.
    guest.drivers[0].poke_head(999);
    guest.drivers[0].publish().unwrap();
    assert!(guest.drivers[0].events().broken(SOON).unwrap());
}

#[test]
fn without_fds_both_sides_poll() {
    let bed = Bed::new(1);
    let mut guest = bed.guest(0);
    guest.queue(8);
    for what in [
        Request::SET_VRING_NUM,
        Request::SET_VRING_BASE,
        Request::SET_VRING_ADDR,
    ] {
        guest.say(0, what).unwrap();
    }
    for what in [
        Request::SET_VRING_ERR,
        Request::SET_VRING_CALL,
        Request::SET_VRING_KICK,
    ] {
        guest.front.set_vring_fd(what, 0, None).unwrap();
    }
    guest.front.enable(0, true).unwrap();
    guest.offer(0, b"nobody was told");
    eventually("the answer, by polling", || guest.reap(0) == 1);
}

#[test]
fn without_protocol_features_vrings_are_enabled_from_the_start() {
    let bed = Bed::new(1);
    let mut guest = Guest::new(bed.front(everything()), &[(0, 1 << 20)]);
    // Taken back: this front-end knows nothing of SET_VRING_ENABLE.
    let features = feature::VERSION_1.to_ne_bytes();
    guest
        .front
        .tell(Request::SET_FEATURES, &features, &[])
        .unwrap();
    guest.share();
    guest.queue(8);
    let messages = [
        Request::SET_VRING_NUM,
        Request::SET_VRING_BASE,
        Request::SET_VRING_ADDR,
        Request::SET_VRING_CALL,
        Request::SET_VRING_KICK,
    ];
    // The driver above believes in EVENT_IDX; this one does not.
    guest.drivers[0] = SplitDriver::new(&guest.memory, 8, feature::VERSION_1).unwrap();
    for what in messages {
        guest.say(0, what).unwrap();
    }
    guest.echo(0, b"no enable was needed");
}

#[test]
fn a_vring_may_be_enabled_before_features_are_set() {
    let bed = Bed::new(1);
    let mut guest = Guest::new(bed.front(everything()), &[(0, 1 << 20)]);
    let all = guest.front.features().to_ne_bytes();
    // As if none had been set yet.
    let none = 0u64.to_ne_bytes();
    guest.front.tell(Request::SET_FEATURES, &none, &[]).unwrap();
    guest.front.enable(0, true).unwrap();
    guest.front.tell(Request::SET_FEATURES, &all, &[]).unwrap();
    guest.share();
    guest.queue(8);
    for what in [
        Request::SET_VRING_NUM,
        Request::SET_VRING_BASE,
        Request::SET_VRING_ADDR,
        Request::SET_VRING_CALL,
        Request::SET_VRING_KICK,
    ] {
        guest.say(0, what).unwrap();
    }
    guest.echo(0, b"enabled long ago");
    let refused = guest.front.enable(7, true);
    assert!(refused.is_err(), "the device has no vring 7");
}

#[test]
fn features_may_be_set_again_while_running() {
    let bed = Bed::new(1);
    let mut guest = bed.guest(1);
    for log in [feature::LOG_ALL, 0, feature::LOG_ALL, 0] {
        let features = everything().features | log;
        guest.front.set_features(features).unwrap();
        assert_eq!(bed.echo.negotiated_features(), features | feature::PROTOCOL);
        guest.echo(0, b"still here");
    }
}

#[test]
fn a_reset_stops_and_disables_every_vring_and_keeps_memory() {
    type Reset = (&'static str, fn(&mut Guest));
    let resets: [Reset; 3] = [
        ("RESET_DEVICE", |g| g.front.reset().unwrap()),
        ("RESET_OWNER", |g| {
            g.front.tell(Request::RESET_OWNER, &[], &[]).unwrap();
        }),
        ("SET_STATUS 0", |g| g.front.set_status(0).unwrap()),
    ];
    let bed = Bed::new(2);
    for (name, reset) in resets {
        let mut guest = bed.guest(2);
        guest.front.set_status(15).unwrap();
        assert_eq!(guest.front.status().unwrap(), 15);
        guest.echo(0, b"before");
        guest.echo(1, b"before");
        reset(&mut guest);
        assert_eq!(guest.front.status().unwrap(), 0, "{name}");
        let status = bed.server.status();
        assert!(
            status.vrings.iter().all(|v| !v.1 && !v.2 && !v.3),
            "{name}: {status:?}"
        );
        assert_eq!(status.regions, 1, "{name} keeps memory");
        // The driver starts over with fresh rings at other addresses.
        for queue in 0..2 {
            guest.drivers[queue] =
                SplitDriver::new(&guest.memory, 32, guest.front.features()).unwrap();
            guest.start(u32::try_from(queue).unwrap());
            guest.echo(queue, b"after");
        }
    }
}

#[test]
fn a_vring_that_runs_keeps_its_size() {
    let bed = Bed::new(1);
    let mut guest = bed.guest(1);
    let num = Request::SET_VRING_NUM;
    assert!(guest.front.set_vring(num, 0, 16).is_ok(), "the same again");
    assert!(guest.front.set_vring(num, 0, 8).is_err());
    guest.echo(0, b"undisturbed");
    guest.front.stop_queue(0).unwrap();
    guest.front.set_vring(num, 0, 8).unwrap();
}

#[test]
fn configuration_space_is_read_and_written_where_it_is() {
    let bed = Bed::new(1);
    let mut front = bed.front(everything());
    let plain = front.config(0, 64).unwrap();
    assert_eq!(plain, (0..64).collect::<Vec<u8>>());
    assert_eq!(front.config(0x100, 8).unwrap(), &plain[..8]);
    assert_eq!(front.config(60, 4).unwrap(), &plain[60..]);
    assert!(front.config(60, 8).is_err(), "beyond the end");
    front.set_config(2, &[7; 4]).unwrap();
    assert_eq!(front.config(0, 8).unwrap(), [0, 1, 7, 7, 7, 7, 6, 7]);
    assert!(front.set_config(40, &[1]).is_err(), "not writable");
    assert!(bed.server.status().connected, "refused, and told so");
}

#[test]
fn the_backend_channel_carries_config_changes() {
    let bed = Bed::new(1);
    let mut front = bed.front(everything());
    assert!(!bed.server.config_changed(), "no channel yet");
    let channel = front.backend_channel(SOON).unwrap();
    assert!(bed.server.config_changed());
    let message = channel.recv().unwrap();
    assert_eq!(
        (message.request, message.flags, message.payload.len()),
        (2, 1, 0)
    );
    // A front-end that never reads does not stop us.
    while bed.server.config_changed() {}
    assert_eq!(front.config(0, 1).unwrap(), [0]);
    drop(channel);
    assert!(!bed.server.config_changed());
}

#[test]
fn a_refusal_is_answered_where_asked_for_and_ends_the_session_where_not() {
    let bed = Bed::new(1);
    let mut guest = bed.guest(1);
    let refused = guest.front.set_vring(Request::SET_VRING_NUM, 0, 3);
    assert!(matches!(
        refused,
        Err(crate::testing::Error::Refused { code: 1, .. })
    ));
    guest.echo(0, b"the session goes on");
    let seen = bed.noted();
    assert!(seen.contains("queue size 3"), "{seen}");
    // The same without NEED_REPLY: nobody would learn of it.
    let payload = [0u32.to_ne_bytes(), 3u32.to_ne_bytes()].concat();
    let raw = guest.front.raw();
    raw.send(Request::SET_VRING_NUM.into(), 1, &payload, &[])
        .unwrap();
    assert!(raw.closes_within(SOON).unwrap());
    assert!(bed.end().contains("queue size 3"));
}

#[test]
fn a_question_that_cannot_be_answered_ends_the_session() {
    // These have answers of their own, which know no failure: silence would hang the front-end.
    let bed = Bed::new(1);
    let mut front = bed.front(everything());
    assert!(front.stop_queue(7).is_err());
    assert!(bed.end().contains("vring 7"));
    let mut front = bed.front(everything());
    assert!(front.get_inflight(300, 16).is_err());
    assert!(bed.end().contains("in-flight table"));
    let mut front = bed.front(everything());
    let pipe = rustix::pipe::pipe().unwrap();
    assert!(
        front
            .set_log(std::os::fd::AsFd::as_fd(&pipe.0), 4096, 0)
            .is_err()
    );
    assert!(bed.end().contains("not a regular file"));
}

#[test]
fn a_driver_that_begins_anew_is_told_to_the_device() {
    let bed = Bed::new(1);
    let mut wanted = everything();
    let mut front = bed.front(wanted);
    let features = front.features();
    let before = bed.echo.resets();
    front.set_status(0).unwrap();
    front.reset().unwrap();
    assert_eq!(bed.echo.resets(), before + 2);
    // The same features are nothing new where resets are seen,
    front.set_features(features).unwrap();
    assert_eq!(bed.echo.resets(), before + 2);
    drop(front);
    // and all that is seen of a new driver where they are not, unless its rings run.
    wanted.protocol.remove(Protocol::STATUS);
    let front = bed.front(wanted);
    let before = bed.echo.resets();
    let mut guest = Guest::new(front, &[(0, 1 << 20)]);
    guest.share();
    guest.front.set_features(features).unwrap();
    assert_eq!(bed.echo.resets(), before + 1);
    guest.queue(16);
    guest.start(0);
    guest.front.set_features(features).unwrap();
    guest.echo(0, b"works");
    assert_eq!(bed.echo.resets(), before + 1);
}
