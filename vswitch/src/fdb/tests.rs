//! The table against a map, and against those who flood it, collide in it or contend for it.

#![expect(
    clippy::cast_possible_truncation,
    reason = "small numbers, known to the test"
)]

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;

const NO_LIMIT: u32 = u32::MAX;
/// A key that is known, so that failures repeat.
const KEY: HashKey = HashKey::from_words([
    0x9e37_79b9_7f4a_7c15,
    0xbf58_476d_1ce4_e5b9,
    0x94d0_49bb_1331_11eb,
    0x2545_f491_4f6c_dd1d,
    0xd6e8_feb8_6659_fd93,
    0xa076_1d64_78bd_642f,
]);

fn table(capacity: u32) -> Fdb {
    Fdb::new(KEY, Capacity(capacity), Ageing::default())
}

fn vid(vid: u16) -> Vid {
    Vid::new(vid).unwrap()
}

fn mac(number: u64) -> Mac {
    Mac::from_u64(0x5254_0000_0000 | number)
}

/// A station of VLAN 1.
fn hash(fdb: &Fdb, number: u64) -> Hash {
    fdb.hash(vid(1), mac(number))
}

fn learn(fdb: &Fdb, number: u64, port: u16, now_s: u32) -> Learned {
    fdb.learn(hash(fdb, number), PortNo(port), now_s, NO_LIMIT)
}

fn port(fdb: &Fdb, number: u64) -> Option<u16> {
    fdb.lookup(hash(fdb, number)).map(|port| port.0)
}

/// What must always hold: the counts are those of the entries, and each is found where it says.
fn check(fdb: &Fdb) {
    let entries = fdb.snapshot(0);
    let mut counts: HashMap<PortNo, u32> = HashMap::new();
    for entry in &entries {
        let found = fdb.lookup(fdb.hash(entry.vid, entry.mac));
        assert_eq!(found, Some(entry.port), "{entry:?}");
        if !entry.is_static {
            *counts.entry(entry.port).or_default() += 1;
        }
    }
    for (port, count) in counts {
        assert_eq!(fdb.count(port), count, "{port:?}");
    }
    let statics = entries.iter().filter(|entry| entry.is_static).count();
    assert_eq!(fdb.statics() as usize, statics);
    assert_eq!(fdb.len(), entries.len());
}

/// Addresses that share both buckets, as one who knew the secret would choose them.
fn colliding(fdb: &Fdb, count: usize) -> Vec<(Vid, Mac)> {
    let high = 1 << (30 - fdb.bits);
    let all = (0..high * high).filter_map(|n| {
        let (left, right) = ((n / high) << fdb.bits, (n % high) << fdb.bits | 1);
        let hash = Hash::join(left, usize::try_from(right).unwrap(), 30);
        KEY.key(hash).filter(|(_, mac)| !mac.is_multicast())
    });
    all.take(count).collect()
}

#[test]
fn an_address_is_found_where_it_was_learned_and_in_no_other_vlan() {
    let fdb = table(2048);
    assert_eq!(port(&fdb, 7), None);
    assert_eq!(learn(&fdb, 7, 3, 0), Learned::New);
    assert_eq!(learn(&fdb, 7, 3, 0), Learned::Known);
    assert_eq!(port(&fdb, 7), Some(3));
    assert_eq!(port(&fdb, 8), None);
    assert_eq!(fdb.lookup(fdb.hash(vid(2), mac(7))), None);
    assert_eq!(learn(&fdb, 9, 0, 0), Learned::New);
    assert_eq!(port(&fdb, 9), Some(0));
    let last = u16::try_from(PORTS).unwrap() - 1;
    assert_eq!(learn(&fdb, 10, last, 0), Learned::New);
    assert_eq!(port(&fdb, 10), Some(last));
    for none in [last + 1, PortNo::NONE.0] {
        assert_eq!(learn(&fdb, 11, none, 0), Learned::Full);
        assert_eq!(port(&fdb, 11), None);
    }
    assert_eq!((fdb.len(), fdb.capacity()), (3, 2048));
    check(&fdb);
}

#[test]
fn a_bucket_is_one_cache_line() {
    assert_eq!(size_of::<Bucket>(), 64);
    assert_eq!(align_of::<Bucket>(), 64);
    assert_eq!(table(100_000).capacity(), 131_072);
    assert_eq!(table(2049).capacity(), 4096);
}

#[test]
fn a_limit_holds_for_new_addresses_and_for_those_that_move_in() {
    let fdb = table(2048);
    let learn = |number, port, limit| fdb.learn(hash(&fdb, number), PortNo(port), 0, limit);
    assert_eq!(learn(1, 5, 0), Learned::LimitReached);
    assert_eq!(learn(1, 5, 2), Learned::New);
    assert_eq!(learn(2, 5, 2), Learned::New);
    assert_eq!(learn(3, 5, 2), Learned::LimitReached);
    assert_eq!(learn(1, 5, 2), Learned::Known);
    assert_eq!(learn(3, 6, 2), Learned::New);
    assert_eq!(learn(3, 5, 2), Learned::LimitReached);
    assert_eq!(port(&fdb, 3), Some(6));
    assert_eq!((fdb.count(PortNo(5)), fdb.count(PortNo(6))), (2, 1));
    // One that leaves makes room.
    assert_eq!(learn(1, 6, 2), Learned::Moved { from: PortNo(5) });
    assert_eq!(learn(4, 5, 2), Learned::New);
    check(&fdb);
}

#[test]
fn an_address_moves_but_not_more_often_than_it_may() {
    let fdb = table(2048);
    learn(&fdb, 1, 1, 100);
    for (to, from) in [(2, 1), (1, 2), (2, 1), (3, 2)] {
        let from = PortNo(from);
        assert_eq!(learn(&fdb, 1, to, 100), Learned::Moved { from });
        assert_eq!(port(&fdb, 1), Some(to));
    }
    // Once more, and it is back where it was, and stays.
    let held = Learned::Flapping { at: PortNo(1) };
    assert_eq!(learn(&fdb, 1, 4, 100), held);
    assert_eq!(port(&fdb, 1), Some(1));
    assert!(fdb.get(vid(1), mac(1), 105).unwrap().is_held);
    for now in [100, 101, 100 + HOLD_S - 1] {
        assert_eq!(learn(&fdb, 1, 2, now), held);
        assert_eq!(learn(&fdb, 1, 1, now), Learned::Known);
    }
    let from = PortNo(1);
    assert_eq!(learn(&fdb, 1, 2, 100 + HOLD_S), Learned::Moved { from });
    // Slowly it may move for ever.
    for now in 200..300 {
        let (from, to) = (2 - now % 2, 1 + now % 2);
        let (from, to) = (from as u16, to as u16);
        learn(&fdb, 1, from, now);
        let from = PortNo(from);
        assert_eq!(learn(&fdb, 1, to, now), Learned::Moved { from });
    }
    let counters = fdb.counters();
    assert_eq!((counters.learned, counters.held), (1, 1));
    check(&fdb);
}

#[test]
fn an_address_may_be_held_by_sending_it_home() {
    let fdb = table(2048);
    learn(&fdb, 1, 1, 7);
    for to in [2, 3, 2, 3] {
        learn(&fdb, 1, to, 7);
    }
    let moved = Learned::Moved { from: PortNo(3) };
    assert_eq!(learn(&fdb, 1, 1, 7), moved);
    let held = Learned::Flapping { at: PortNo(1) };
    assert_eq!(learn(&fdb, 1, 3, 7), held);
}

#[test]
fn nothing_goes_home_to_a_port_that_was_flushed() {
    let fdb = table(2048);
    learn(&fdb, 1, 1, 7);
    for to in [2, 3, 2, 3] {
        learn(&fdb, 1, to, 7);
    }
    let port_1 = Filter {
        port: Some(PortNo(1)),
        ..Filter::default()
    };
    assert_eq!(fdb.flush(&port_1), 0);
    let held = Learned::Flapping { at: PortNo(3) };
    assert_eq!(learn(&fdb, 1, 2, 7), held);
    assert_eq!(port(&fdb, 1), Some(3));
    check(&fdb);
}

#[test]
fn what_is_not_seen_is_forgotten_and_what_is_seen_is_not() {
    let fdb = table(2048);
    let start = u32::MAX - 100;
    let at = |seconds: u32| start.wrapping_add(seconds);
    learn(&fdb, 1, 1, at(0));
    learn(&fdb, 2, 1, at(0));
    assert_eq!(learn(&fdb, 2, 1, at(200)), Learned::Known);
    let all = fdb.buckets();
    assert_eq!(fdb.age(at(299), all), 0);
    // In steps, each bucket once.
    let steps = all.div_ceil(100);
    let aged: usize = (0..steps).map(|_| fdb.age(at(300), 100)).sum();
    assert_eq!(aged, 1);
    assert_eq!((port(&fdb, 1), port(&fdb, 2)), (None, Some(1)));
    assert_eq!(fdb.get(vid(1), mac(2), at(260)).unwrap().age_s, 60);
    // A clock a little behind is no reason to forget.
    assert_eq!(fdb.age(at(150), usize::MAX), 0);
    fdb.set_ageing(Ageing(10));
    assert_eq!(fdb.age(at(211), usize::MAX), 1);
    assert_eq!(fdb.counters().aged, 2);
    assert!(fdb.is_empty());
    check(&fdb);
}

#[test]
fn a_static_entry_stays_and_wins() {
    let fdb = table(2048);
    learn(&fdb, 1, 4, 0);
    fdb.set_static(vid(1), mac(1), PortNo(9)).unwrap();
    assert_eq!(port(&fdb, 1), Some(9));
    assert_eq!(learn(&fdb, 1, 4, 0), Learned::Static);
    assert_eq!(learn(&fdb, 1, 9, 0), Learned::Known);
    assert_eq!(fdb.age(100_000, usize::MAX), 0);
    assert_eq!(fdb.flush(&Filter::default()), 0);
    fdb.set_static(vid(1), mac(1), PortNo(8)).unwrap();
    assert_eq!((port(&fdb, 1), fdb.statics(), fdb.len()), (Some(8), 1, 1));
    check(&fdb);
    assert!(fdb.forget(vid(1), mac(1)));
    assert!(!fdb.forget(vid(1), mac(1)));
    assert!(fdb.is_empty());

    for bad in [Mac::BROADCAST, Mac::default(), Mac([1, 0, 0x5e, 0, 0, 1])] {
        let error = fdb.set_static(vid(1), bad, PortNo(1)).unwrap_err();
        assert_eq!(error, StaticError::Group(bad));
    }
    let error = fdb.set_static(vid(1), mac(1), PortNo::NONE).unwrap_err();
    assert_eq!(error, StaticError::Port(PortNo::NONE));
}

#[test]
fn static_entries_that_collide_are_refused_when_there_is_no_room() {
    let fdb = table(2048);
    let same = colliding(&fdb, 10);
    for (vid, mac) in &same[8..] {
        fdb.learn(fdb.hash(*vid, *mac), PortNo(1), 0, NO_LIMIT);
    }
    for (vid, mac) in &same[..8] {
        fdb.set_static(*vid, *mac, PortNo(2)).unwrap();
    }
    let (vid, mac) = same[9];
    let error = fdb.set_static(vid, mac, PortNo(2)).unwrap_err();
    assert_eq!(error, StaticError::Full(mac));
    let full = fdb.learn(fdb.hash(vid, mac), PortNo(1), 0, NO_LIMIT);
    assert_eq!(full, Learned::Full);
    assert_eq!((fdb.statics(), fdb.len()), (8, 8));
    check(&fdb);
}

#[test]
fn a_flush_takes_what_matches() {
    let fdb = table(2048);
    let fill = || {
        for number in 0..40 {
            let vid = vid(1 + (number % 2) as u16);
            let port = PortNo((number % 4) as u16);
            fdb.learn(fdb.hash(vid, mac(number / 2)), port, 0, NO_LIMIT);
        }
        fdb.set_static(vid(1), mac(100), PortNo(0)).unwrap();
    };
    let everything = Filter::default();
    let cases = [
        (everything, 40),
        (
            Filter {
                statics: true,
                ..everything
            },
            41,
        ),
        (
            Filter {
                port: Some(PortNo(3)),
                ..everything
            },
            10,
        ),
        (
            Filter {
                vid: Some(vid(2)),
                ..everything
            },
            20,
        ),
        (
            Filter {
                mac: Some(mac(5)),
                ..everything
            },
            2,
        ),
        (
            Filter {
                vid: Some(vid(1)),
                mac: Some(mac(100)),
                statics: true,
                ..everything
            },
            1,
        ),
    ];
    for (filter, expected) in cases {
        fill();
        assert_eq!(fdb.len(), 41);
        assert_eq!(fdb.flush(&filter), expected, "{filter:?}");
        assert_eq!(fdb.len(), 41 - expected);
        check(&fdb);
    }
}

#[test]
fn a_table_is_nearly_full_before_anything_is_displaced() {
    for capacity in [2048, 65_536] {
        let fdb = table(capacity);
        let mut number = 0;
        while fdb.counters().displaced == 0 {
            learn(&fdb, number, (number % 8) as u16, 0);
            number += 1;
        }
        let filled = fdb.len() * 100 / fdb.capacity();
        assert!(filled >= 85, "{filled} % of {capacity}");
    }
}

/// L1: 2^24 source addresses from one port.
#[test]
fn a_flood_of_addresses_displaces_none_but_its_own() {
    let fdb = table(16_384);
    let others = 2000;
    for number in 0..others {
        assert_eq!(learn(&fdb, number, (number % 7) as u16, 0), Learned::New);
    }
    for number in 0..1 << 24 {
        learn(&fdb, 1 << 32 | number, 99, 1);
    }
    for number in 0..others {
        assert_eq!(port(&fdb, number), Some((number % 7) as u16));
    }
    assert!(fdb.count(PortNo(99)) as usize > fdb.capacity() * 8 / 10);
    // A table full of the flood still learns others.
    for number in others..2 * others {
        assert_eq!(learn(&fdb, number, 7, 1), Learned::New);
    }
    assert_eq!(u64::from(fdb.count(PortNo(7))), others);
    check(&fdb);
}

/// L6: addresses chosen to collide, by one who knows the key.
#[test]
fn colliding_addresses_displace_each_other_and_nobody_else() {
    let fdb = table(65_536);
    let same = colliding(&fdb, 2000);
    let buckets: HashSet<_> = same
        .iter()
        .map(|(vid, mac)| fdb.hash(*vid, *mac))
        .map(|hash| (hash.split(fdb.bits).0, hash.turned().split(fdb.bits).0))
        .collect();
    assert_eq!(buckets.len(), 1);
    let learn = |(vid, mac): (Vid, Mac), port, now_s| {
        fdb.learn(fdb.hash(vid, mac), PortNo(port), now_s, NO_LIMIT)
    };
    let find = |(vid, mac): (Vid, Mac)| fdb.lookup(fdb.hash(vid, mac));
    let (victims, attack) = same.split_at(2);
    assert_eq!(learn(victims[0], 1, 0), Learned::New);
    for (second, address) in (0..).zip(attack) {
        assert_eq!(learn(*address, 66, second / 100), Learned::New);
        assert_eq!(find(*address), Some(PortNo(66)));
    }
    assert_eq!(find(victims[0]), Some(PortNo(1)));
    assert!(fdb.count(PortNo(66)) <= 8);
    // The victim's port has fewer, so it gets a place from the attacker.
    assert_eq!(learn(victims[1], 1, 20), Learned::New);
    assert_eq!(find(victims[0]), Some(PortNo(1)));
    assert_eq!(find(victims[1]), Some(PortNo(1)));
    check(&fdb);
}

#[test]
fn the_permutation_can_be_undone_and_spreads_neighbours() {
    let mut firsts = HashSet::new();
    let mut seconds = HashSet::new();
    for number in 0..4096 {
        let hash = KEY.hash(vid(1), mac(number));
        assert_eq!(KEY.key(hash), Some((vid(1), mac(number))));
        firsts.insert(hash.split(12).0);
        seconds.insert(hash.turned().split(12).0);
    }
    // 4096 balls into 4096 bins: 63 % of them, give or take 1 %.
    for bins in [firsts.len(), seconds.len()] {
        assert!((2300..2900).contains(&bins), "{bins}");
    }
    let a = HashKey::random().unwrap().hash(vid(1), mac(1));
    let b = HashKey::random().unwrap().hash(vid(1), mac(1));
    assert_ne!(a, b);
    assert_eq!(format!("{KEY:?}"), "HashKey");
}

/// A worker that finds another one writing goes on.
#[test]
fn learning_does_not_wait() {
    let fdb = table(2048);
    learn(&fdb, 1, 1, 0);
    let guard = fdb.lock.lock().unwrap();
    assert_eq!(learn(&fdb, 2, 1, 0), Learned::Busy);
    assert_eq!(learn(&fdb, 1, 2, 0), Learned::Busy);
    assert_eq!(learn(&fdb, 1, 1, 5), Learned::Known);
    assert_eq!(port(&fdb, 1), Some(1));
    assert_eq!(fdb.age(1000, usize::MAX), 0);
    drop(guard);
    assert_eq!(learn(&fdb, 2, 1, 0), Learned::New);
}

/// Writers replace, move and flush without end in a table far too small; each address is only ever
/// at two ports of its own, and no reader sees it at a third.
#[test]
fn no_reader_ever_sees_a_port_that_the_address_never_had() {
    let fdb = table(2048);
    let stop = AtomicBool::new(false);
    let ports = |number: u64| [(number % 1000) as u16, (number % 1000) as u16 + 1000];
    let keys = 6000;
    std::thread::scope(|scope| {
        for seed in 0..2_u64 {
            let (fdb, stop) = (&fdb, &stop);
            scope.spawn(move || {
                let mut number = seed;
                while !stop.load(Relaxed) {
                    number = number.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    let key = (number >> 33) % keys;
                    if let Some(found) = port(fdb, key) {
                        assert!(ports(key).contains(&found), "{key} at {found}");
                    }
                }
            });
        }
        let writers: Vec<_> = (0..2_u64)
            .map(|seed| {
                let fdb = &fdb;
                scope.spawn(move || {
                    let mut number = seed + 77;
                    for turn in 0..150_000_u32 {
                        number = number.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                        let key = (number >> 33) % keys;
                        learn(fdb, key, ports(key)[(number >> 63) as usize], turn / 20);
                        if turn % 5000 == 0 {
                            fdb.flush(&Filter::default());
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        stop.store(true, Relaxed);
    });
    assert!(fdb.counters().displaced > 1000);
    check(&fdb);
}

/// What a model does with the same calls.
#[derive(Debug, Clone)]
enum Step {
    Learn { number: u64, port: u16 },
    Static { number: u64, port: u16 },
    Forget { number: u64 },
    Flush { port: u16 },
    Wait { seconds: u32 },
}

fn any_step() -> impl Strategy<Value = Step> {
    let (number, port) = (0_u64..60, 0_u16..5);
    let both = (number.clone(), port.clone());
    prop_oneof![
        20 => both.clone().prop_map(|(number, port)| Step::Learn { number, port }),
        1 => both.prop_map(|(number, port)| Step::Static { number, port }),
        1 => number.prop_map(|number| Step::Forget { number }),
        1 => port.prop_map(|port| Step::Flush { port }),
        6 => (1_u32..150).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

/// One address, as the map has it: port, when seen, static.
type Model = HashMap<u64, (u16, u32, bool)>;

const LIMIT: u32 = 12;

fn apply(fdb: &Fdb, model: &mut Model, now: &mut u32, step: &Step) {
    match *step {
        Step::Learn { number, port } => {
            let count = |model: &Model| {
                let here = model
                    .values()
                    .filter(|(at, _, fixed)| *at == port && !fixed);
                u32::try_from(here.count()).unwrap()
            };
            let expected = match model.get(&number) {
                Some((at, ..)) if *at == port => Learned::Known,
                Some((_, _, true)) => Learned::Static,
                _ if count(model) >= LIMIT => Learned::LimitReached,
                Some((from, ..)) => Learned::Moved {
                    from: PortNo(*from),
                },
                None => Learned::New,
            };
            let learned = fdb.learn(hash(fdb, number), PortNo(port), *now, LIMIT);
            assert_eq!(learned, expected);
            if matches!(
                learned,
                Learned::Known | Learned::New | Learned::Moved { .. }
            ) {
                let fixed = model.get(&number).is_some_and(|(.., fixed)| *fixed);
                model.insert(number, (port, *now, fixed));
            }
            // Moves within a second have a test of their own.
            *now += 1;
        }
        Step::Static { number, port } => {
            fdb.set_static(vid(1), mac(number), PortNo(port)).unwrap();
            model.insert(number, (port, *now, true));
        }
        Step::Forget { number } => {
            let known = fdb.forget(vid(1), mac(number));
            assert_eq!(known, model.remove(&number).is_some());
        }
        Step::Flush { port } => {
            let filter = Filter {
                port: Some(PortNo(port)),
                ..Filter::default()
            };
            let before = model.len();
            model.retain(|_, (at, _, fixed)| *at != port || *fixed);
            assert_eq!(fdb.flush(&filter), before - model.len());
        }
        Step::Wait { seconds } => {
            *now += seconds;
            let before = model.len();
            model.retain(|_, (_, seen, fixed)| *fixed || *now - *seen < 300);
            assert_eq!(fdb.age(*now, fdb.buckets()), before - model.len());
        }
    }
}

proptest! {
    #[test]
    fn the_table_does_what_a_map_does(steps in proptest::collection::vec(any_step(), 1..120)) {
        let fdb = table(2048);
        let (mut model, mut now) = (Model::new(), 0);
        for step in &steps {
            apply(&fdb, &mut model, &mut now, step);
            for number in 0..60 {
                let expected = model.get(&number).map(|(port, ..)| *port);
                prop_assert_eq!(port(&fdb, number), expected);
            }
        }
        let entries = fdb.snapshot(now);
        prop_assert_eq!(entries.len(), model.len());
        for entry in entries {
            let (port, seen, fixed) = model[&(entry.mac.to_u64() & 0xffff_ffff)];
            prop_assert_eq!((entry.port.0, entry.is_static), (port, fixed));
            prop_assert_eq!(entry.age_s, if fixed { 0 } else { now - seen });
        }
        check(&fdb);
    }

    /// With too many addresses for the table and any order of ports, what is found is right.
    #[test]
    fn a_full_table_forgets_but_never_lies(seed in any::<u64>(), ports in 1_u64..20) {
        let fdb = table(2048);
        let mut truth = HashMap::new();
        for n in 0..4000_u64 {
            let number = (n ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 51;
            let at = (number % ports) as u16;
            if learn(&fdb, number, at, 0) != Learned::Full {
                truth.insert(number, at);
            }
        }
        for number in 0..1 << 13 {
            if let Some(found) = port(&fdb, number) {
                prop_assert_eq!(Some(&found), truth.get(&number));
            }
        }
        check(&fdb);
    }
}
