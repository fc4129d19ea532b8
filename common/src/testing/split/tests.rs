//! The split driver against the device side of this crate, and against devices that lie.

use std::time::Duration;

use super::*;
use crate::chain::Burst;
use crate::ring::Ring;
use crate::testing::direct;

const SIZE: u16 = 8;
const NOW: Duration = Duration::ZERO;

struct Pair {
    memory: GuestMemory,
    driver: SplitDriver,
    ring: Ring,
    burst: Burst,
    done: Vec<Completion>,
}

fn ring_of(memory: &GuestMemory, driver: &SplitDriver, features: u64) -> Ring {
    let mem = direct::mem(memory).unwrap();
    direct::ring(driver, memory, &mem, features).unwrap()
}

impl Pair {
    fn new(features: u64) -> Self {
        let features = features | feature::VERSION_1 | feature::INDIRECT_DESC;
        let memory = GuestMemory::new(1 << 20).unwrap();
        let driver = SplitDriver::new(&memory, SIZE, features).unwrap();
        let ring = ring_of(&memory, &driver, features);
        Self {
            memory,
            driver,
            ring,
            burst: Burst::new(),
            done: Vec::new(),
        }
    }

    fn chain(&mut self, form: Form) -> Token {
        let gpa = self.memory.alloc(64, 64).unwrap();
        let segments = [Segment::readable(gpa, 16), Segment::writable(gpa + 16, 8)];
        self.driver.chain(&segments, form).unwrap()
    }

    /// The device takes everything and gives it back; how many, and whether it would call.
    fn serve(&mut self) -> (usize, bool) {
        let count = self.ring.pop(&mut self.burst, SIZE.into());
        for chain in self.burst.iter() {
            assert_eq!((chain.readable_len, chain.writable_len), (16, 8));
            self.ring.put(chain.id, 8);
        }
        (count, self.ring.publish())
    }

    fn reap(&mut self) -> Vec<Token> {
        self.done.clear();
        self.driver.reap(&mut self.done).unwrap();
        self.done.iter().map(|done| done.token).collect()
    }
}

#[test]
fn chains_of_both_forms_come_back_over_many_wraps() {
    for features in [0, feature::EVENT_IDX, feature::IN_ORDER] {
        let mut pair = Pair::new(features);
        let direct = if features == feature::IN_ORDER {
            Form::Indirect
        } else {
            Form::Direct
        };
        let tokens = [
            pair.chain(direct),
            pair.chain(Form::Indirect),
            pair.chain(direct),
        ];
        for round in 0..70_000 {
            let some = &tokens[..1 + round % 3];
            for token in some {
                pair.driver.post(*token);
            }
            pair.driver.publish().unwrap();
            assert_eq!(pair.driver.in_flight() as usize, some.len());
            assert_eq!(pair.serve().0, some.len());
            assert_eq!(pair.reap(), some);
            assert!(pair.done.iter().all(|done| done.written == 8));
        }
        assert_eq!(pair.ring.broken(), None);
    }
}

#[test]
fn an_in_order_device_may_report_the_last_of_a_batch_alone() {
    let mut pair = Pair::new(feature::IN_ORDER);
    let tokens: Vec<Token> = (0..SIZE).map(|_| pair.chain(Form::Indirect)).collect();
    // Offered out of token order: heads follow the ring all the same.
    let offered: Vec<Token> = tokens.iter().rev().copied().collect();
    for token in &offered {
        pair.driver.post(*token);
    }
    pair.driver.publish().unwrap();
    let used = pair.driver.places()[2];
    let third = [2u32.to_le_bytes(), 8u32.to_le_bytes()].concat();
    pair.memory.write(used + 4, &third).unwrap();
    pair.memory.write(used + 2, &3u16.to_le_bytes()).unwrap();
    assert_eq!(pair.reap(), offered[..3]);
    assert_eq!(
        pair.done.iter().map(|d| d.written).collect::<Vec<_>>(),
        [0, 0, 8]
    );
    assert_eq!(pair.driver.in_flight(), 5);
}

#[test]
fn kicks_and_calls_happen_only_when_asked_for() {
    for features in [0, feature::EVENT_IDX] {
        let mut pair = Pair::new(features);
        let token = pair.chain(Form::Direct);
        assert!(!pair.ring.arm());
        pair.driver.post(token);
        assert!(pair.driver.publish().unwrap(), "an armed device is kicked");
        assert!(!pair.driver.publish().unwrap(), "nothing new, no kick");
        pair.ring.disarm();
        assert_eq!(pair.serve(), (1, false), "a polling driver is not called");
        assert_eq!(pair.reap(), [token]);
        pair.driver.post(token);
        assert!(
            !pair.driver.publish().unwrap(),
            "a polling device is not kicked"
        );
        assert!(!pair.driver.arm());
        assert_eq!(pair.serve(), (1, true), "an armed driver is called");
        assert!(pair.driver.arm(), "what came back meanwhile is seen");
        assert!(pair.driver.wait(NOW).unwrap());
        assert_eq!(pair.reap(), [token]);
        assert!(!pair.driver.wait(NOW).unwrap());
    }
}

#[test]
fn a_chain_can_point_elsewhere_and_give_its_descriptors_back() {
    let mut pair = Pair::new(0);
    let gpa = pair.memory.alloc(64, 64).unwrap();
    let segments = [Segment::readable(gpa, 16), Segment::writable(gpa + 16, 8)];
    for form in [Form::Direct, Form::Indirect] {
        let token = pair.chain(form);
        pair.driver.point(token, &segments).unwrap();
        pair.driver.post(token);
        pair.driver.publish().unwrap();
        pair.serve();
        assert_eq!(pair.reap(), [token]);
        let wider = [segments[0], segments[0], segments[1]];
        assert_eq!(
            pair.driver.point(token, &wider).is_err(),
            form == Form::Direct
        );
        pair.driver.free(token);
    }
    for _ in 0..SIZE / 2 {
        pair.chain(Form::Direct);
    }
    assert!(
        pair.driver.chain(&segments, Form::Direct).is_err(),
        "the ring is full"
    );
    assert!(pair.driver.chain(&[], Form::Direct).is_err());
}

#[test]
fn a_device_that_lies_is_an_error() {
    let lie = |id: u32, idx: u16| {
        let mut pair = Pair::new(0);
        let token = pair.chain(Form::Direct);
        pair.driver.post(token);
        pair.driver.publish().unwrap();
        let used = pair.driver.places()[2];
        pair.memory.write(used + 4, &id.to_le_bytes()).unwrap();
        pair.memory.write(used + 2, &idx.to_le_bytes()).unwrap();
        pair.driver.reap(&mut Vec::new())
    };
    assert_eq!(lie(0, 1).unwrap(), 1);
    assert!(
        matches!(lie(1, 1), Err(Error::Device(_))),
        "a head not on offer"
    );
    assert!(
        matches!(lie(9999, 1), Err(Error::Device(_))),
        "a head outside the ring"
    );
    assert!(
        matches!(lie(0, 2), Err(Error::Device(_))),
        "more than was offered"
    );
    assert!(matches!(lie(0, 0xffff), Err(Error::Device(_))), "backwards");
}

#[test]
fn pokes_break_the_rules() {
    let mut pair = Pair::new(0);
    pair.driver.poke_head(SIZE);
    pair.driver.publish().unwrap();
    assert_eq!(pair.serve().0, 0);
    assert!(pair.ring.broken().is_some(), "a head outside the ring");
    let mut pair = Pair::new(0);
    pair.driver.poke_avail_idx(SIZE + 1);
    assert_eq!(pair.serve().0, 0);
    assert!(pair.ring.broken().is_some(), "an index that jumps");
    let mut pair = Pair::new(0);
    pair.driver.poke_desc(
        0,
        Desc {
            addr: 0,
            len: 1,
            flags: NEXT,
            next: 0,
        },
    );
    pair.driver.poke_head(0);
    pair.driver.publish().unwrap();
    assert_eq!(pair.serve().0, 0);
    assert!(pair.ring.broken().is_some(), "a chain that bites its tail");
}
