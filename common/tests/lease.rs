//! Leases as the standard library's threads see them. Apart from `lease.rs`, which the model test
//! builds with other threads than these.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use towpath_common::lease::Lease;

#[test]
fn one_holder_at_a_time() {
    let lease = Lease::new(1);
    let mut held = lease.hold();
    assert!(lease.try_hold().is_none());
    *held += 1;
    drop(held);
    assert_eq!(lease.try_hold().as_deref(), Some(&2));
    assert_eq!(*lease.lock(), 2);
    assert_eq!(lease.contended(), 0, "nobody had to wait");
}

#[test]
fn nothing_is_lost_between_workers_and_a_session() {
    const ROUNDS: u64 = 20_000;
    let (lease, lost) = (Lease::new(Some(0u64)), AtomicU64::new(0));
    let total = thread::scope(|threads| {
        let worker = || {
            for _ in 0..ROUNDS {
                match &mut *lease.hold() {
                    Some(count) => *count += 1,
                    None => _ = lost.fetch_add(1, Relaxed),
                }
            }
        };
        let workers = [threads.spawn(worker), threads.spawn(worker)];
        let mut total = 0;
        while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
            total += lease.lock().take().unwrap_or(0);
            *lease.lock() = Some(0);
        }
        total
    });
    let rest = lease.lock().take().unwrap_or(0);
    assert_eq!(total + rest + lost.into_inner(), 2 * ROUNDS);
}

#[test]
fn a_worker_that_has_to_wait_is_counted_and_served() {
    let (lease, together) = (Lease::new(0), Barrier::new(2));
    thread::scope(|threads| {
        let mut held = lease.hold();
        threads.spawn(|| {
            together.wait();
            *lease.hold() += 1;
        });
        together.wait();
        while lease.contended() == 0 {
            thread::yield_now();
        }
        *held = 41;
    });
    assert_eq!((*lease.hold(), lease.contended()), (42, 1));
}

#[test]
fn what_a_panic_left_behind_is_handed_on() {
    let lease = Lease::new(0);
    thread::scope(|threads| {
        let died = threads.spawn(|| {
            let mut held = lease.hold();
            *held = 7;
            panic!("in the middle of a burst");
        });
        assert!(died.join().is_err());
    });
    assert_eq!(lease.try_hold().as_deref(), Some(&7));
    *lease.hold() += 1;
    assert_eq!(*lease.lock(), 8);
}

#[test]
fn neighbours_in_a_table_share_no_cache_lines() {
    assert_eq!(align_of::<Lease<u8>>(), 128);
    assert_eq!(size_of::<Lease<u8>>() % 128, 0);
}
