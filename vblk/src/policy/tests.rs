//! Every verb, every errno, every policy; through a whole request.

use super::*;
use crate::disk::Disk;
use crate::engine::faulty::{Fault, Faulty};
use crate::engine::memory::Memory;
use crate::request::Status;
use crate::testing::{Bench, DISCARD, End, FLUSH, IN, Laid, OUT, WRITE_ZEROES};

const ERRNOS: [Errno; 4] = [Errno::IO, Errno::NOSPC, Errno::TIMEDOUT, Errno::NODEV];

/// A request whose first operation is `verb`.
fn request<E: crate::engine::Engine>(bench: &mut Bench<E>, verb: Verb) -> Laid {
    let data = bench.ram.place(4096, 4096, 0);
    match verb {
        Verb::Read => bench.ram.request(IN, 8, &[data]),
        Verb::Write => bench.ram.request(OUT, 8, &[data]),
        Verb::Sync => bench.ram.request(FLUSH, 0, &[]),
        Verb::Punch => bench.ram.ranges(WRITE_ZEROES, &[(8, 8, 1)]),
        Verb::Zero => bench.ram.ranges(WRITE_ZEROES, &[(8, 8, 0)]),
        Verb::Discard => bench.ram.ranges(DISCARD, &[(8, 8, 0)]),
    }
}

fn bench(verb: Verb, faults: &[Errno]) -> Bench<Faulty<Memory>> {
    let disk = Disk::ram(1 << 20);
    let disk = if verb == Verb::Discard {
        disk.like_a_device()
    } else {
        disk
    };
    let engine = faults.iter().fold(Faulty::new(Memory::new()), |e, errno| {
        e.script(verb, Fault::Fail(*errno))
    });
    Bench::new(engine, disk, 16)
}

const VERBS: [Verb; 6] = [
    Verb::Read,
    Verb::Write,
    Verb::Sync,
    Verb::Punch,
    Verb::Zero,
    Verb::Discard,
];

/// An unsupported fallocate is done by other means, and is no failure.
fn is_fallback(verb: Verb, errno: Errno) -> bool {
    errno == Errno::NODEV && matches!(verb, Verb::Punch | Verb::Zero | Verb::Discard)
}

/// Steps until the request ended or is held.
fn settle(bench: &mut Bench<Faulty<Memory>>) -> Option<End> {
    let mut end = None;
    for _ in 0..20 {
        bench.io.submit();
        bench.io.reap(|f| end = Some(f.into()));
    }
    end
}

#[test]
fn reported_failures_reach_the_guest_and_the_disk_goes_on() {
    for verb in VERBS {
        for errno in ERRNOS.into_iter().filter(|e| !is_fallback(verb, *e)) {
            let mut bench = bench(verb, &[errno]);
            let laid = request(&mut bench, verb);
            let end = bench.run(&laid);
            assert_eq!(end.status, Status::IoErr, "{verb:?} {errno:?}");
            assert_eq!(end.errno, Some(errno.raw_os_error()));
            let again = request(&mut bench, Verb::Write);
            assert_eq!(bench.run(&again).status, Status::Ok);
            assert_eq!(bench.target.policy().held(), 0);
        }
    }
}

#[test]
fn held_failures_are_tried_until_the_storage_does_it() {
    for verb in VERBS.into_iter().filter(|verb| *verb != Verb::Sync) {
        for errno in ERRNOS.into_iter().filter(|e| !is_fallback(verb, *e)) {
            let mut bench = bench(verb, &[errno, errno, errno]);
            bench.target.policy().set_mode(OnError::Hold);
            let laid = request(&mut bench, verb);
            assert!(bench.start(&laid).unwrap().is_none());
            for tries in 1..=3 {
                assert!(settle(&mut bench).is_none(), "{verb:?} {errno:?}");
                assert!(bench.io.is_holding());
                assert!(
                    !bench.io.restless(),
                    "a held request does not keep the worker awake"
                );
                let policy = bench.target.policy();
                assert_eq!((policy.held(), policy.holds()), (1, tries));
                bench.io.retry();
            }
            let end = settle(&mut bench).unwrap();
            assert_eq!(end.status, Status::Ok, "{verb:?} {errno:?}");
            assert!(!bench.io.is_holding());
            assert_eq!(bench.target.policy().held(), 0);
        }
    }
}

#[test]
fn others_go_on_while_one_is_held() {
    let mut bench = bench(Verb::Write, &[Errno::NOSPC]);
    bench.target.policy().set_mode(OnError::Hold);
    let held = request(&mut bench, Verb::Write);
    assert!(bench.start(&held).unwrap().is_none());
    assert!(settle(&mut bench).is_none());
    let laid = request(&mut bench, Verb::Read);
    assert!(bench.start(&laid).unwrap().is_none());
    assert_eq!(settle(&mut bench).unwrap().status, Status::Ok);
    // The operator gives up.
    bench.target.policy().set_mode(OnError::Report);
    bench.io.retry();
    assert_eq!(settle(&mut bench).unwrap().status, Status::Ok);
}

#[test]
fn a_changed_policy_ends_a_hold_with_the_failure() {
    let mut bench = bench(Verb::Read, &[Errno::IO, Errno::IO]);
    bench.target.policy().set_mode(OnError::Hold);
    let laid = request(&mut bench, Verb::Read);
    assert!(bench.start(&laid).unwrap().is_none());
    assert!(settle(&mut bench).is_none());
    bench.target.policy().set_mode(OnError::Report);
    bench.io.retry();
    assert_eq!(
        settle(&mut bench).unwrap().errno,
        Some(Errno::IO.raw_os_error())
    );
    assert_eq!(bench.target.policy().held(), 0);
}

#[test]
fn a_ring_that_is_taken_back_ends_its_holds() {
    let mut bench = bench(Verb::Read, &[Errno::IO, Errno::IO]);
    bench.target.policy().set_mode(OnError::Hold);
    let laid = request(&mut bench, Verb::Read);
    assert!(bench.start(&laid).unwrap().is_none());
    assert!(settle(&mut bench).is_none());
    bench.io.end_holds(99);
    assert!(settle(&mut bench).is_none(), "another queue's");
    bench.io.end_holds(3); // the bench's queue
    assert_eq!(settle(&mut bench).unwrap().status, Status::IoErr);
    assert!(!bench.io.is_holding());
}

#[test]
fn fail_takes_the_first_failure_as_the_end_of_the_disk() {
    for verb in VERBS {
        let mut bench = bench(verb, &[Errno::IO]);
        bench.target.policy().set_mode(OnError::Fail);
        let before = request(&mut bench, Verb::Zero);
        if verb != Verb::Zero {
            assert_eq!(bench.run(&before).status, Status::Ok);
        }
        let laid = request(&mut bench, verb);
        assert_eq!(bench.run(&laid).status, Status::IoErr);
        assert!(bench.target.policy().has_failed());
        for verb in VERBS.into_iter().filter(|v| *v != Verb::Discard) {
            let laid = request(&mut bench, verb);
            assert_eq!(
                bench.run(&laid).errno,
                Some(Errno::IO.raw_os_error()),
                "{verb:?}"
            );
        }
        bench.target.clear_failures();
        let laid = request(&mut bench, Verb::Read);
        assert_eq!(bench.run(&laid).status, Status::Ok);
    }
}

#[test]
fn a_failed_fsync_stays_failed_under_every_policy_until_an_operator_clears_it() {
    for mode in [OnError::Report, OnError::Hold, OnError::Fail] {
        let mut bench = bench(Verb::Sync, &[Errno::IO]);
        bench.target.policy().set_mode(mode);
        for _ in 0..3 {
            let laid = request(&mut bench, Verb::Sync);
            assert_eq!(bench.run(&laid).status, Status::IoErr, "{mode:?}");
        }
        bench.target.clear_failures();
        let laid = request(&mut bench, Verb::Sync);
        assert_eq!(bench.run(&laid).status, Status::Ok, "{mode:?}");
    }
}

#[test]
fn what_can_never_be_done_is_not_held() {
    for errno in [Errno::FAULT, Errno::INVAL] {
        let mut bench = bench(Verb::Read, &[errno]);
        bench.target.policy().set_mode(OnError::Hold);
        let laid = request(&mut bench, Verb::Read);
        assert_eq!(bench.run(&laid).status, Status::IoErr);
    }
}

#[test]
fn interruptions_are_no_failures_under_any_policy() {
    for mode in [OnError::Report, OnError::Hold, OnError::Fail] {
        for verb in VERBS {
            let mut bench = bench(verb, &[Errno::AGAIN, Errno::INTR]);
            bench.target.policy().set_mode(mode);
            let laid = request(&mut bench, verb);
            assert_eq!(bench.run(&laid).status, Status::Ok, "{verb:?} {mode:?}");
            let policy = bench.target.policy();
            assert_eq!((policy.holds(), policy.has_failed()), (0, false));
        }
    }
}

#[test]
fn a_request_of_ranges_is_held_at_the_range_that_failed() {
    for verb in [Verb::Punch, Verb::Zero, Verb::Discard] {
        let mut bench = bench(verb, &[]);
        let engine = bench.io.engine_mut();
        engine.expect(verb, Fault::None);
        for fault in [Errno::NOSPC, Errno::INTR, Errno::TIMEDOUT] {
            engine.expect(verb, Fault::Fail(fault));
        }
        bench.target.policy().set_mode(OnError::Hold);
        let (kind, flags) = match verb {
            Verb::Discard => (DISCARD, 0),
            Verb::Punch => (WRITE_ZEROES, 1),
            _ => (WRITE_ZEROES, 0),
        };
        let laid = bench.ram.ranges(kind, &[(8, 8, flags), (32, 8, flags)]);
        assert!(bench.start(&laid).unwrap().is_none());
        // ENOSPC; then, tried again, interrupted, and ETIMEDOUT.
        for holds in 1..=2 {
            assert!(settle(&mut bench).is_none(), "{verb:?}");
            assert_eq!(bench.target.policy().holds(), holds);
            bench.io.retry();
        }
        let end = settle(&mut bench).unwrap();
        assert_eq!((end.status, end.bytes), (Status::Ok, 8192), "{verb:?}");
        let offsets: Vec<_> = bench.io.engine().seen.iter().map(|s| s.offset).collect();
        assert_eq!(offsets, [4096, 16384, 16384, 16384, 16384], "{verb:?}");
    }
}
