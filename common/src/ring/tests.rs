//! Tests of the split ring: what a driver sees, and what a hostile driver gets.

use super::inflight::InflightTable;
use super::*;
use crate::mem::{Region, RegionSpec, Segment};

const SIZE: u16 = 8;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const DATA: u64 = 0x4000;
const UVA: u64 = 0x7000_0000_0000;
const WRITE: u16 = 2;
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;

/// A driver that pokes bytes.
struct Driver {
    mem: Arc<Mem>,
    avail: u16,
}

impl Driver {
    fn new() -> Driver {
        let spec = RegionSpec {
            gpa: 0,
            len: 0x8000,
            uva: UVA,
            offset: 0,
        };
        let (_, fd) = crate::mem::Mapping::memfd("t", 0x8000).unwrap();
        let second = RegionSpec {
            gpa: 0x8000,
            len: 0x1000,
            uva: UVA + 0x10_0000,
            offset: 0,
        };
        let (_, fd2) = crate::mem::Mapping::memfd("t", 0x1000).unwrap();
        let regions = vec![
            Region::map(spec, fd).unwrap(),
            Region::map(second, fd2).unwrap(),
        ];
        Driver {
            mem: Arc::new(Mem::new(regions).unwrap()),
            avail: 0,
        }
    }

    fn seg(&self, gpa: u64, len: u32) -> Segment {
        self.mem.lookup(gpa, len, &mut 0).unwrap()
    }

    fn poke(&self, gpa: u64, bytes: &[u8]) {
        assert!(
            self.mem
                .write(self.seg(gpa, u32::try_from(bytes.len()).unwrap()), bytes)
        );
    }

    fn peek16(&self, gpa: u64) -> u16 {
        let mut b = [0; 2];
        assert!(self.mem.read(self.seg(gpa, 2), &mut b));
        u16::from_le_bytes(b)
    }

    fn desc_at(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        self.poke(at, &addr.to_le_bytes());
        self.poke(at + 8, &len.to_le_bytes());
        self.poke(at + 12, &flags.to_le_bytes());
        self.poke(at + 14, &next.to_le_bytes());
    }

    fn desc(&self, i: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.desc_at(DESC + 16 * u64::from(i), addr, len, flags, next);
    }

    fn offer(&mut self, head: u16) {
        self.poke(
            AVAIL + 4 + 2 * u64::from(self.avail % SIZE),
            &head.to_le_bytes(),
        );
        self.avail = self.avail.wrapping_add(1);
        self.poke(AVAIL + 2, &self.avail.to_le_bytes());
    }

    fn setup(&self, features: u64) -> Setup {
        Setup {
            size: SIZE,
            desc: UVA + DESC,
            avail: UVA + AVAIL,
            used: UVA + USED,
            base: Some(0),
            features,
            log: None,
            log_addr: None,
            inflight: None,
        }
    }

    fn ring(&self, features: u64) -> Ring {
        Ring::new(self.setup(features), Arc::clone(&self.mem)).unwrap()
    }

    fn pop_broken(&self) -> Violation {
        let mut ring = self.ring(F_INDIRECT_DESC);
        let mut burst = Burst::new();
        assert_eq!(ring.pop(&mut burst, 64), 0);
        assert_eq!(
            ring.pop(&mut burst, 64),
            0,
            "a broken ring is not read again"
        );
        assert!(!ring.arm());
        ring.broken().unwrap()
    }
}

#[test]
fn a_chain_comes_out_whole_and_goes_back_used() {
    let mut d = Driver::new();
    d.desc(0, DATA, 16, NEXT, 1);
    d.desc(1, DATA + 0x100, 512, NEXT | WRITE, 2);
    d.desc(2, DATA + 0x400, 1, WRITE, 0);
    d.offer(0);
    let mut ring = d.ring(0);
    let mut burst = Burst::new();
    assert_eq!(ring.pop(&mut burst, 64), 1);
    let c = burst.get(0).unwrap();
    assert_eq!((c.id, c.readable.len(), c.writable.len()), (0, 1, 2));
    assert_eq!((c.readable_len, c.writable_len), (16, 513));
    assert_eq!(ring.in_flight(), 1);
    ring.put(0, 513);
    assert_eq!(d.peek16(USED + 2), 0, "staged, not yet visible");
    assert!(ring.publish());
    assert_eq!(d.peek16(USED + 2), 1);
    assert_eq!((d.peek16(USED + 4), d.peek16(USED + 8)), (0, 513));
    assert_eq!(ring.in_flight(), 0);
    assert!(!ring.publish(), "nothing new, nothing to tell");
}

#[test]
fn empty_descriptors_count_against_a_chains_length() {
    let size = 512u16;
    let d = Driver::new();
    for i in 0..size {
        let flags = if i + 1 < size { NEXT } else { 0 };
        d.desc(i, DATA, 0, flags, i + 1);
    }
    d.poke(0x7000 + 2, &1u16.to_le_bytes());
    let mut setup = d.setup(0);
    (setup.size, setup.avail, setup.used) = (size, UVA + 0x7000, UVA + 0x5000);
    let mut ring = Ring::new(setup, Arc::clone(&d.mem)).unwrap();
    assert_eq!(ring.pop(&mut Burst::new(), 64), 0);
    assert_eq!(ring.broken(), Some(Violation::TooLong));
}

#[test]
fn a_buffer_over_two_adjoining_regions_becomes_two_segments() {
    let mut d = Driver::new();
    d.desc(0, 0x7f00, 0x200, WRITE, 0);
    d.offer(0);
    let mut ring = d.ring(0);
    let mut burst = Burst::new();
    assert_eq!(ring.pop(&mut burst, 64), 1);
    let c = burst.get(0).unwrap();
    assert_eq!((c.writable.len(), c.writable_len), (2, 0x200));
}

#[test]
fn indirect_tables_may_cross_regions_and_follow_direct_descriptors() {
    let mut d = Driver::new();
    d.desc(0, DATA, 16, NEXT, 1);
    d.desc(1, 0x7ff0, 32, INDIRECT, 0);
    d.desc_at(0x7ff0, DATA + 64, 8, NEXT, 1);
    d.desc_at(0x8000, DATA + 128, 8, WRITE, 0);
    d.offer(0);
    let mut ring = d.ring(F_INDIRECT_DESC);
    let mut burst = Burst::new();
    assert_eq!(ring.pop(&mut burst, 64), 1);
    let c = burst.get(0).unwrap();
    assert_eq!((c.readable_len, c.writable_len), (24, 8));
}

#[test]
fn every_violation_latches_the_ring_and_names_itself() {
    type Case = (&'static str, fn(&mut Driver));
    let cases: [Case; 14] = [
        ("avail_jump", |d| d.poke(AVAIL + 2, &9u16.to_le_bytes())),
        ("avail_jump", |d| {
            d.poke(AVAIL + 2, &0xffffu16.to_le_bytes())
        }),
        ("bad_head", |d| d.offer(SIZE)),
        ("bad_next", |d| {
            d.desc(0, DATA, 1, NEXT, SIZE);
            d.offer(0);
        }),
        ("loop", |d| {
            d.desc(0, DATA, 1, NEXT, 0);
            d.offer(0);
        }),
        ("loop", |d| {
            d.desc(0, DATA, 0, NEXT, 1);
            d.desc(1, DATA, 0, NEXT, 0);
            d.offer(0);
        }),
        ("readable_after_writable", |d| {
            d.desc(0, DATA, 1, NEXT | WRITE, 1);
            d.desc(1, DATA, 1, 0, 0);
            d.offer(0);
        }),
        ("bad_address", |d| {
            d.desc(0, 0x8f00, 0x101, 0, 0);
            d.offer(0);
        }),
        ("bad_address", |d| {
            d.desc(0, u64::MAX, u32::MAX, 0, 0);
            d.offer(0);
        }),
        ("bad_indirect", |d| {
            d.desc(0, DATA, 17, INDIRECT, 0);
            d.offer(0);
        }),
        ("bad_indirect", |d| {
            d.desc(0, DATA, 0, INDIRECT, 0);
            d.offer(0);
        }),
        ("bad_indirect", |d| {
            d.desc_at(DATA, DATA, 16, INDIRECT, 0);
            d.desc(0, DATA, 16, INDIRECT, 0);
            d.offer(0);
        }),
        ("bad_indirect", |d| {
            d.desc(0, DATA, 16, INDIRECT | NEXT, 1);
            d.offer(0);
        }),
        ("bad_indirect", |d| {
            d.desc(0, DATA, u32::MAX - 15, INDIRECT, 0);
            d.offer(0);
        }),
    ];
    for (i, (name, spoil)) in cases.into_iter().enumerate() {
        let mut d = Driver::new();
        spoil(&mut d);
        assert_eq!(d.pop_broken().name(), name, "case {i}");
    }
}

#[test]
fn indirect_loops_and_endless_tables_end() {
    let mut d = Driver::new();
    d.desc_at(DATA, DATA, 1, NEXT, 0);
    d.desc(0, DATA, 16 * 4, INDIRECT, 0);
    d.offer(0);
    assert_eq!(d.pop_broken(), Violation::Loop);
    let mut d = Driver::new();
    for i in 0..512u16 {
        d.desc_at(DATA + 16 * u64::from(i), DATA, 1, NEXT, i + 1);
    }
    d.desc(0, DATA, 16 * 512, INDIRECT, 0);
    d.offer(0);
    assert_eq!(d.pop_broken(), Violation::TooLong);
}

#[test]
fn a_head_in_flight_is_not_handed_out_twice() {
    let mut d = Driver::new();
    d.desc(3, DATA, 16, 0, 0);
    d.offer(3);
    d.offer(3);
    let mut ring = d.ring(0);
    let mut burst = Burst::new();
    assert_eq!(ring.pop(&mut burst, 64), 1, "the first is good");
    assert_eq!(ring.broken(), Some(Violation::HeadInFlight(3)));
    ring.put(3, 0);
    assert!(ring.publish(), "work in flight completes on a broken ring");
}

#[test]
fn event_idx_notifies_only_when_the_event_is_passed() {
    let mut d = Driver::new();
    let mut ring = d.ring(F_EVENT_IDX);
    let mut burst = Burst::new();
    for (event, expect) in [(0u16, true), (5, false), (2, true)] {
        d.poke(AVAIL + 4 + 2 * u64::from(SIZE), &event.to_le_bytes());
        d.desc(0, DATA, 1, 0, 0);
        d.offer(0);
        assert_eq!(ring.pop(&mut burst, 64), 1);
        ring.put(0, 0);
        assert_eq!(ring.publish(), expect, "event {event}");
    }
    assert!(!ring.arm());
    assert_eq!(
        d.peek16(USED + 4 + 8 * u64::from(SIZE)),
        3,
        "kick me from here"
    );
    d.offer(0);
    assert!(ring.arm(), "work that came before arming is seen");
}

#[test]
fn in_order_completions_are_put_back_into_order() {
    let mut d = Driver::new();
    for i in [4u16, 1, 6] {
        d.desc(i, DATA, 1, 0, 0);
        d.offer(i);
    }
    let mut ring = d.ring(F_IN_ORDER);
    let mut burst = Burst::new();
    assert_eq!(ring.pop(&mut burst, 64), 3);
    ring.put(6, 0);
    ring.put(1, 0);
    assert!(!ring.publish());
    assert_eq!(d.peek16(USED + 2), 0);
    ring.put(4, 0);
    assert!(ring.publish());
    let used: Vec<u16> = (0..3).map(|i| d.peek16(USED + 4 + 8 * i)).collect();
    assert_eq!(used, [4, 1, 6]);
}

#[test]
fn a_successor_gets_exactly_the_heads_in_flight_in_their_order() {
    let mut d = Driver::new();
    let table = InflightTable::create(1, SIZE).unwrap();
    for i in 0..4 {
        d.desc(i, DATA, 1, 0, 0);
        d.offer(i);
    }
    let mut burst = Burst::new();
    let setup = |d: &Driver| Setup {
        inflight: table.queue(0),
        ..d.setup(0)
    };
    let mut first = Ring::new(setup(&d), Arc::clone(&d.mem)).unwrap();
    assert_eq!(first.pop(&mut burst, 64), 4);
    first.put(2, 0);
    assert!(first.publish());
    first.put(0, 0); // staged and never published: still in flight
    drop(first);
    let mut second = Ring::new(setup(&d), Arc::clone(&d.mem)).unwrap();
    assert_eq!(second.next_avail(), 4);
    assert_eq!(second.pop(&mut burst, 64), 3);
    let heads: Vec<u16> = burst.iter().map(|c| c.id).collect();
    assert_eq!(heads, [0, 1, 3]);
    d.offer(2);
    assert_eq!(second.pop(&mut burst, 64), 1, "then the ring goes on");
}

/// QEMU takes the used index when the connection breaks; what drains after that is beyond it.
#[test]
fn a_base_from_before_the_predecessor_drained_is_not_believed() {
    let mut d = Driver::new();
    let table = InflightTable::create(1, SIZE).unwrap();
    for i in 0..4 {
        d.desc(i, DATA, 1, 0, 0);
        d.offer(i);
    }
    let mut burst = Burst::new();
    let setup = |d: &Driver, base| Setup {
        base: Some(base),
        inflight: table.queue(0),
        ..d.setup(0)
    };
    let mut first = Ring::new(setup(&d, 0), Arc::clone(&d.mem)).unwrap();
    assert_eq!(first.pop(&mut burst, 64), 4);
    first.put(0, 0);
    assert!(first.publish());
    let broken_at = d.peek16(USED + 2);
    (1..4).for_each(|head| first.put(head, 0));
    assert!(first.publish());
    let mut second = Ring::new(setup(&d, broken_at), Arc::clone(&d.mem)).unwrap();
    assert_eq!(second.pop(&mut burst, 64), 0, "done already");
}

#[test]
fn a_batch_published_and_not_yet_cleared_is_not_done_again() {
    let mut d = Driver::new();
    let table = InflightTable::create(1, SIZE).unwrap();
    for i in 0..3 {
        d.desc(i, DATA, 1, 0, 0);
        d.offer(i);
    }
    let mut burst = Burst::new();
    let setup = Setup {
        inflight: table.queue(0),
        ..d.setup(0)
    };
    let mut ring = Ring::new(setup.clone(), Arc::clone(&d.mem)).unwrap();
    assert_eq!(ring.pop(&mut burst, 64), 3);
    ring.put(1, 0);
    ring.put(2, 0);
    drop(ring);
    d.poke(USED + 2, &2u16.to_le_bytes()); // what publish writes first
    let setup = Setup {
        inflight: table.queue(0),
        ..setup
    };
    let mut ring = Ring::new(setup, Arc::clone(&d.mem)).unwrap();
    assert_eq!(ring.pop(&mut burst, 64), 1);
    assert_eq!(burst.get(0).unwrap().id, 0);
}

#[test]
fn sizes_and_addresses_are_checked_at_start() {
    let d = Driver::new();
    for size in [0, 3, 200] {
        let r = Ring::new(Setup { size, ..d.setup(0) }, Arc::clone(&d.mem));
        assert!(matches!(r, Err(RingError::BadSize(_))), "{size}");
    }
    let r = Ring::new(
        Setup {
            used: UVA + USED + 2,
            ..d.setup(0)
        },
        Arc::clone(&d.mem),
    );
    assert!(matches!(r, Err(RingError::BadPart { part: "used", .. })));
    let r = Ring::new(
        Setup {
            desc: 0,
            ..d.setup(0)
        },
        Arc::clone(&d.mem),
    );
    assert!(matches!(
        r,
        Err(RingError::BadPart {
            part: "descriptor",
            ..
        })
    ));
    let r = Ring::new(d.setup(F_RING_PACKED), Arc::clone(&d.mem));
    assert!(matches!(r, Err(RingError::Packed)));
}

/// A queue as a driver and a table see it, after any sequence of visits that give chains back.
#[test]
fn chains_given_back_are_popped_again_in_order_as_if_nothing_had_been() {
    for features in [0, F_IN_ORDER, F_EVENT_IDX, F_IN_ORDER | F_EVENT_IDX] {
        let mut d = Driver::new();
        for i in 0..SIZE {
            d.desc(i, DATA, 16, 0, 0);
        }
        let table = InflightTable::create(1, SIZE).unwrap();
        let setup = Setup {
            inflight: table.queue(0),
            ..d.setup(features)
        };
        let mut ring = Ring::new(setup, Arc::clone(&d.mem)).unwrap();
        let mut burst = Burst::new();
        // What is on offer, oldest first; what the device holds; what it used.
        let (mut offered, mut held) = (std::collections::VecDeque::new(), Vec::new());
        let mut free: Vec<u16> = (0..SIZE).collect();
        let (mut used, mut seed) = (0u16, 12345u32);
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            usize::try_from(seed >> 16).unwrap() % below
        };
        for round in 0..20_000 {
            while !free.is_empty() && random(3) > 0 {
                let head = free.swap_remove(random(free.len()));
                d.offer(head);
                offered.push_back(head);
            }
            let max = 1 + random(usize::from(SIZE));
            let count = ring.pop(&mut burst, max);
            assert_eq!(count, max.min(offered.len()), "round {round}");
            let ids: Vec<u16> = burst.iter().map(|chain| chain.id).collect();
            let expected: Vec<u16> = offered.iter().copied().take(count).collect();
            assert_eq!(ids, expected);
            let back = random(count + 1);
            ring.unpop(&burst, back);
            held.extend(offered.drain(..count - back));
            assert_eq!(usize::from(ring.in_flight()), held.len());
            while !held.is_empty() && random(4) > 0 {
                // In any order; the ring sees to it if there must be one.
                let at = random(held.len());
                let at = if features & F_IN_ORDER != 0 { 0 } else { at };
                let head = held.remove(at);
                ring.put(head, 7);
                let slot = USED + 4 + 8 * u64::from(used % SIZE);
                assert_eq!(d.peek16(slot), head);
                used = used.wrapping_add(1);
                free.push(head);
            }
            let _ = ring.publish();
            assert_eq!(d.peek16(USED + 2), used);
            let next = d.avail.wrapping_sub(u16::try_from(offered.len()).unwrap());
            assert_eq!(ring.next_avail(), next);
        }
        // A successor gets what is held, in the order it was popped, and then what is on offer.
        drop(ring);
        let setup = Setup {
            inflight: table.queue(0),
            ..d.setup(features)
        };
        let mut ring = Ring::new(setup, Arc::clone(&d.mem)).unwrap();
        for expected in [held, offered.into()] {
            let mut got = Vec::new();
            while got.len() < expected.len() {
                assert!(ring.pop(&mut burst, 3) > 0);
                got.extend(burst.iter().map(|chain| chain.id));
            }
            assert_eq!(got, expected);
        }
    }
}

#[test]
fn heads_of_a_predecessor_can_be_given_back_too() {
    for features in [0, F_IN_ORDER] {
        let mut d = Driver::new();
        let table = InflightTable::create(1, SIZE).unwrap();
        for i in 0..6 {
            d.desc(i, DATA, 1, 0, 0);
            d.offer(i);
        }
        let setup = |d: &Driver| Setup {
            inflight: table.queue(0),
            ..d.setup(features)
        };
        let mut burst = Burst::new();
        let mut first = Ring::new(setup(&d), Arc::clone(&d.mem)).unwrap();
        assert_eq!(first.pop(&mut burst, 4), 4);
        drop(first);
        let mut second = Ring::new(setup(&d), Arc::clone(&d.mem)).unwrap();
        assert_eq!(second.pop(&mut burst, 3), 3);
        second.unpop(&burst, 2);
        second.put(0, 0);
        assert!(second.publish());
        drop(second);
        // Two given back, one never touched: all three are still in flight for a third.
        let mut third = Ring::new(setup(&d), Arc::clone(&d.mem)).unwrap();
        assert_eq!(third.pop(&mut burst, 64), 3);
        let ids = |burst: &Burst| burst.iter().map(|c| c.id).collect::<Vec<_>>();
        assert_eq!(ids(&burst), [1, 2, 3]);
        third.unpop(&burst, 3);
        assert_eq!(third.pop(&mut burst, 64), 3);
        assert_eq!(ids(&burst), [1, 2, 3], "as often as one likes");
        assert_eq!(third.pop(&mut burst, 64), 2);
        assert_eq!(ids(&burst), [4, 5]);
        third.unpop(&burst, 2);
        assert_eq!(third.next_avail(), 4);
    }
}

#[test]
fn what_is_given_back_after_a_violation_stays_given_back() {
    let mut d = Driver::new();
    d.desc(0, DATA, 1, 0, 0);
    d.offer(0);
    d.offer(SIZE);
    let mut ring = d.ring(0);
    let mut burst = Burst::new();
    assert_eq!(ring.pop(&mut burst, 64), 1);
    assert_eq!(ring.broken(), Some(Violation::BadHead(SIZE)));
    ring.unpop(&burst, 1);
    assert_eq!((ring.in_flight(), ring.next_avail()), (0, 0));
    assert_eq!(ring.pop(&mut burst, 64), 0);
    assert!(!ring.publish());
}
