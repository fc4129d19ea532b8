//! Dirty logging (vhost-user, "Migration"): with VHOST_F_LOG_ALL every page the back-end writes is
//! marked, buffers by the device and used rings by the ring.

use std::os::fd::{AsFd, OwnedFd};

use super::*;
use crate::mem::{DirtyLog, LOG_PAGE, Mapping};

const MEMORY: u64 = 4 << 20;

/// A log for `MEMORY`, and our view of it.
fn log() -> (DirtyLog, OwnedFd, u64) {
    let size = MEMORY / LOG_PAGE / 8;
    let (mapping, file) = Mapping::memfd("log", size).unwrap();
    (DirtyLog::new(mapping, MEMORY).unwrap(), file, size)
}

fn marked(log: &DirtyLog) -> Vec<u64> {
    let pages = 0..MEMORY / LOG_PAGE;
    pages
        .filter(|page| log.is_marked(page * LOG_PAGE))
        .collect()
}

fn set_logging(guest: &mut Guest, on: bool) {
    let bit = if on { feature::LOG_ALL } else { 0 };
    guest
        .front
        .set_features(everything().features | bit)
        .unwrap();
    let Guest { front, inside } = guest;
    let setup = inside.drivers[0].setup();
    let used = on.then_some(setup.used);
    front
        .set_vring_addr_log(0, &inside.memory, &setup, used)
        .unwrap();
}

/// The pages of the answer to the next round trip; one at least belongs to it alone.
fn echo_pages(guest: &mut Guest) -> Vec<u64> {
    let token = guest.offer(0, &[3; 8192]);
    let gpa = guest.pending[0][&token].gpa;
    guest.settle(0);
    (gpa / LOG_PAGE..=(gpa + 8191) / LOG_PAGE).collect()
}

#[test]
fn exactly_the_pages_written_are_marked_while_the_log_is_on() {
    let bed = Bed::new(1);
    let mut guest = bed.guest(1);
    let (first, file, size) = log();
    guest.echo(0, b"before migration");
    guest.front.set_log(file.as_fd(), size, 0).unwrap();
    guest.echo(0, b"a log, but logging is off");
    assert_eq!(marked(&first), [0u64; 0]);

    set_logging(&mut guest, true);
    let pages = echo_pages(&mut guest);
    let used = guest.drivers[0].places()[2] / LOG_PAGE;
    assert_eq!(marked(&first), [&[used], &pages[..]].concat());

    set_logging(&mut guest, false);
    let before = marked(&first);
    echo_pages(&mut guest);
    assert_eq!(marked(&first), before);

    // A new log, as after hot-plug: the old one is not touched any more.
    set_logging(&mut guest, true);
    let (second, file, size) = log();
    guest.front.set_log(file.as_fd(), size, 0).unwrap();
    let pages = echo_pages(&mut guest);
    assert_eq!(marked(&second), [&[used], &pages[..]].concat());
    assert_eq!(marked(&first), before);
}

#[test]
fn a_used_ring_is_marked_only_where_the_front_end_asked() {
    let bed = Bed::new(1);
    let mut guest = bed.guest(1);
    let (log, file, size) = log();
    guest.front.set_log(file.as_fd(), size, 0).unwrap();
    let features = everything().features | feature::LOG_ALL;
    guest.front.set_features(features).unwrap();
    let pages = echo_pages(&mut guest);
    assert_eq!(marked(&log), pages);
}

#[test]
fn a_used_ring_logged_far_outside_the_log_is_harmless() {
    let bed = Bed::new(1);
    let mut guest = bed.guest(1);
    let (log, file, size) = log();
    guest.front.set_log(file.as_fd(), size, 0).unwrap();
    let features = everything().features | feature::LOG_ALL;
    guest.front.set_features(features).unwrap();
    for wild in [MEMORY, 1 << 63, u64::MAX] {
        let Guest { front, inside } = &mut guest;
        let setup = inside.drivers[0].setup();
        front
            .set_vring_addr_log(0, &inside.memory, &setup, Some(wild))
            .unwrap();
        guest.echo(0, b"nobody is hurt");
    }
    assert!(marked(&log).len() < 4);
}

#[test]
fn a_log_that_does_not_cover_memory_is_refused_with_its_size() {
    let bed = Bed::new(1);
    let refusals = [
        ("too small", 64, 0, "has 64 bytes"),
        ("past its file", 4096, 1, "has 128 bytes"),
        ("wrapping", u64::MAX, 4096, "message 6"),
        ("empty", 0, 0, "message 6"),
    ];
    for (what, size, offset, reason) in refusals {
        let mut guest = bed.guest(1);
        guest.echo(0, b"all is well");
        let (_, file, _) = log();
        assert!(
            guest.front.set_log(file.as_fd(), size, offset).is_err(),
            "{what}"
        );
        let why = bed.end();
        assert!(why.contains(reason), "{what}: {why}");
    }
}
