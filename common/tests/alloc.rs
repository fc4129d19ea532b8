//! The hot path takes nothing from the heap, however a guest lays its chains out: counted by an
//! allocator under this test's process (its own thread's, so the harness does not matter).
//!
//! Measured is the device's side alone: pop, look at segments, copy, put, publish, arm, disarm.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;

use allocation_counter::measure;
use towpath_common::chain::{BURST, Burst};
use towpath_common::lease::Lease;
use towpath_common::ring::Ring;
use towpath_common::testing::{Driver, Form, GuestMemory, Segment, SplitDriver, direct, feature};

fn ring_of(memory: &GuestMemory, driver: &SplitDriver, features: u64) -> Ring {
    let mem = direct::mem(memory).unwrap();
    direct::ring(driver, memory, &mem, features).unwrap()
}

/// A visit; how many chains there were.
fn visit(ring: &mut Ring, burst: &mut Burst, bytes: &mut [u8]) -> usize {
    ring.disarm();
    let popped = ring.pop(burst, BURST);
    let mem = Arc::clone(ring.mem());
    for chain in burst.iter() {
        let _ = chain.read(&mem, bytes);
        for segment in chain.writable {
            assert!(mem.write(*segment, bytes));
        }
        ring.put(chain.id, 8);
    }
    let _ = (ring.publish(), ring.arm());
    popped
}

#[test]
fn a_ring_takes_nothing_from_the_heap() {
    for extra in [0, feature::EVENT_IDX, feature::IN_ORDER] {
        let features = extra | feature::VERSION_1 | feature::INDIRECT_DESC;
        let memory = GuestMemory::new(1 << 20).unwrap();
        let mut driver = SplitDriver::new(&memory, 64, features).unwrap();
        let ring = Lease::new(ring_of(&memory, &driver, features));
        let (mut burst, mut bytes, mut done) = (Burst::new(), [0; 8], Vec::new());
        for round in 0..100 {
            for long in [1u64, 3, 8] {
                let gpa = memory.alloc(64, 64).unwrap();
                let parts = (0..long).map(|part| Segment::readable(gpa + part, 1));
                let segments: Vec<_> = parts.chain([Segment::writable(gpa + 16, 8)]).collect();
                let token = driver.chain(&segments, Form::Indirect).unwrap();
                driver.post(token);
            }
            driver.publish().unwrap();
            let mut popped = 0;
            let heap = measure(|| popped = visit(&mut ring.hold(), &mut burst, &mut bytes));
            assert_eq!(popped, 3);
            assert_eq!(heap.count_total, 0, "round {round}: {heap:?}");
            done.clear();
            driver.reap(&mut done).unwrap();
            done.iter().for_each(|done| driver.free(done.token));
        }
        // And a guest that breaks its ring gets nothing either.
        driver.poke_head(999);
        driver.publish().unwrap();
        let heap = measure(|| _ = visit(&mut ring.hold(), &mut burst, &mut bytes));
        assert!(ring.hold().broken().is_some());
        assert_eq!(heap.count_total, 0, "{heap:?}");
    }
}

/// The counter counts.
#[test]
fn what_is_taken_from_the_heap_is_seen() {
    let heap = measure(|| drop(std::hint::black_box(Box::new([0u8; 64]))));
    assert_eq!(heap.count_total, 1);
}
