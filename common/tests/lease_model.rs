//! The lease under loom: every order in which two workers and a session can meet at one.
//!
//! What the model shows, and what not, is said in `lease.rs`, which is built here with loom's
//! locks, atomics and threads. Guest memory is a loom cell: touching it from two threads that are
//! not ordered by the lease fails the model, whether or not anything went wrong in that run.

#![expect(clippy::unwrap_used, reason = "a model that cannot go on has failed")]

use std::sync::Mutex;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread::{self, JoinHandle};

use lease::Lease;

#[path = "../src/lease.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "a whole file of another crate, of which the model needs a part"
)]
mod lease;

/// Loom's side of `common/src/sync.rs`.
mod sync {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
    pub(crate) use loom::sync::{Mutex, MutexGuard};
    pub(crate) use loom::thread::yield_now;
    pub(crate) use std::sync::TryLockError;

    pub(crate) const SPINS: u32 = 1;

    pub(crate) fn nap() {
        yield_now();
    }
}

/// A frame: its ingress queue, and its number there.
type Frame = (usize, usize);

/// The guest memory that a ring stands on, with the frames that were written into it.
struct Memory {
    /// Tells loom who touches it.
    touched: UnsafeCell<()>,
    /// What stands in it; not loom's, since it adds no order of its own.
    frames: Mutex<Vec<Frame>>,
}

impl Memory {
    fn new() -> Arc<Memory> {
        Arc::new(Memory {
            touched: UnsafeCell::new(()),
            frames: Mutex::new(Vec::new()),
        })
    }

    fn write(&self, frame: Frame) {
        self.touched.with_mut(|_| ());
        self.frames.lock().unwrap().push(frame);
    }

    /// What the driver finds in it, if nobody else touches it any more.
    fn read(&self) -> Vec<Frame> {
        self.touched.with(|_| ());
        self.frames.lock().unwrap().clone()
    }
}

/// A receive ring with room for so many frames.
struct Ring {
    memory: Arc<Memory>,
    room: usize,
}

impl Ring {
    fn new(room: usize) -> Ring {
        let memory = Memory::new();
        Ring { memory, room }
    }
}

type Egress = Arc<Lease<Option<Ring>>>;

/// A worker's step for a burst with one egress: gives what could not be sent.
fn forward(egress: &Egress, burst: impl Iterator<Item = Frame>) -> Vec<Frame> {
    let mut discarded = Vec::new();
    let mut held = egress.hold();
    for frame in burst {
        match &mut *held {
            Some(ring) if ring.room > 0 => {
                ring.room -= 1;
                ring.memory.write(frame);
            }
            _ => discarded.push(frame),
        }
    }
    discarded
}

/// A worker whose ingress queue brings `bursts`, each of so many frames for one egress; gives what
/// it discarded.
fn worker(queue: usize, bursts: Vec<(Egress, usize)>) -> JoinHandle<Vec<Frame>> {
    thread::spawn(move || {
        let mut next = 0;
        let mut discarded = Vec::new();
        for (egress, len) in bursts {
            let burst = (next..next + len).map(|number| (queue, number));
            next += len;
            discarded.extend(forward(&egress, burst));
        }
        discarded
    })
}

/// Each of `sent` frames of each queue is in exactly one of `places`.
fn assert_each_once(sent: [usize; 2], places: &[&[Frame]]) {
    let mut all = places.concat();
    all.sort_unstable();
    let frames = |queue: usize| (0..sent[queue]).map(move |number| (queue, number));
    assert_eq!(all, frames(0).chain(frames(1)).collect::<Vec<_>>());
}

/// Each queue's frames stand in `place` in their order.
fn assert_in_order(place: &[Frame]) {
    for queue in 0..2 {
        let numbers = place.iter().filter(|f| f.0 == queue).map(|f| f.1);
        assert!(numbers.is_sorted(), "{place:?}");
    }
}

#[test]
fn no_frame_is_lost_doubled_or_overtaken_while_a_ring_is_exchanged() {
    loom::model(|| {
        let (first, second) = (Ring::new(2), Ring::new(9));
        let later = Arc::clone(&second.memory);
        let egress: Egress = Arc::new(Lease::new(Some(first)));
        // A second burst for the second worker passes as well, but takes minutes.
        let workers = [(0, vec![1, 2]), (1, vec![2])].map(|(queue, lens)| {
            let bursts = lens.into_iter().map(|len| (Arc::clone(&egress), len));
            worker(queue, bursts.collect())
        });
        // The session: detach, unmap, attach. The guard must not live on to the second line.
        let old = egress.lock().take().unwrap();
        let at_detach = old.memory.read();
        *egress.lock() = Some(second);
        let [a, b] = workers.map(|worker| worker.join().unwrap());
        let (old, new) = (old.memory.read(), later.read());
        assert_eq!(old, at_detach, "written to after it was detached");
        assert_each_once([3, 2], &[&old, &new, &a, &b]);
        assert_in_order(&[old, new].concat());
        assert!(a.is_sorted() && b.is_sorted());
    });
}

#[test]
fn two_egresses_in_opposite_order_do_not_deadlock() {
    loom::model(|| {
        let rings = [Ring::new(9), Ring::new(1)];
        let [a, b] = [&rings[0], &rings[1]].map(|ring| Arc::clone(&ring.memory));
        let [x, y] = rings.map(|ring| Arc::new(Lease::new(Some(ring))));
        let there = worker(0, vec![(Arc::clone(&x), 1), (Arc::clone(&y), 1)]);
        let back = worker(1, vec![(Arc::clone(&y), 1), (Arc::clone(&x), 1)]);
        let discarded = [there, back].map(|worker| worker.join().unwrap()).concat();
        assert_each_once([2, 2], &[&a.read(), &b.read(), &discarded]);
        assert_eq!(discarded.len(), 1, "the second ring holds one frame of two");
    });
}

/// The model can fail: a session that reads memory without detaching it meets a worker there.
#[test]
#[should_panic = "Causality violation"]
fn memory_that_was_not_detached_is_caught() {
    loom::model(|| {
        let ring = Ring::new(9);
        let memory = Arc::clone(&ring.memory);
        let egress: Egress = Arc::new(Lease::new(Some(ring)));
        let worker = worker(0, vec![(egress, 1)]);
        memory.read();
        worker.join().unwrap();
    });
}
