//! The split ring against `virtio-queue` as its oracle: on what an honest driver offers, both must
//! give the same buffers, write the same used ring and agree on notifications; on arbitrary bytes
//! ours never panics, is bounded, and accepts no chain that the oracle reads otherwise.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::fd::AsFd;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use towpath_common::chain::{BURST, Burst, Chain};
use towpath_common::mem::{Mem, Region, RegionSpec};
use towpath_common::ring::{F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, Ring, Setup};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SIZE: u16 = 16;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Indirect tables, 0x100 apart; the second crosses from one region into the next.
const TABLES: u64 = 0x7e80;
/// Two regions that adjoin, and one apart.
const REGIONS: [(u64, u64); 3] = [(0, 0x8000), (0x8000, 0x8000), (0x10_0000, 0x8000)];
const UVA: u64 = 1 << 40;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The same guest memory twice: one for us, one for the oracle.
struct Twins {
    ours: Arc<Mem>,
    oracle: GuestMemoryMmap,
}

impl Twins {
    fn new() -> Twins {
        let map = |(gpa, len): (u64, u64)| {
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            let file = rustix::fs::memfd_create("ring", flags).unwrap();
            rustix::fs::ftruncate(file.as_fd(), len).unwrap();
            let spec = RegionSpec {
                gpa,
                len,
                // Other distances than the guest's, so that neither can pass for the other.
                uva: UVA + gpa * 3,
                offset: 0,
            };
            Region::map(spec, file).unwrap()
        };
        let oracle = REGIONS.map(|(gpa, len)| (GuestAddress(gpa), usize::try_from(len).unwrap()));
        Twins {
            ours: Arc::new(Mem::new(REGIONS.map(map).into()).unwrap()),
            oracle: GuestMemoryMmap::from_ranges(&oracle).unwrap(),
        }
    }

    fn write(&self, gpa: u64, bytes: &[u8]) {
        self.oracle.write_slice(bytes, GuestAddress(gpa)).unwrap();
        let (mut at, mut rest, mut hint) = (gpa, bytes, 0);
        while !rest.is_empty() {
            let len = u32::try_from(rest.len()).unwrap();
            let seg = self.ours.lookup(at, len, &mut hint).unwrap();
            let (now, later) = rest.split_at(seg.len() as usize);
            assert!(self.ours.write(seg, now));
            (at, rest) = (at + now.len() as u64, later);
        }
    }

    fn word(&self, gpa: u64, value: u16) {
        self.write(gpa, &value.to_le_bytes());
    }

    /// Both sides' bytes.
    fn read(&self, gpa: u64, len: u32) -> [Vec<u8>; 2] {
        let mut sides = [vec![0; len as usize], vec![0; len as usize]];
        let seg = self.ours.lookup(gpa, len, &mut 0).unwrap();
        assert!(self.ours.read(seg, &mut sides[0]));
        let at = GuestAddress(gpa);
        self.oracle.read_slice(&mut sides[1], at).unwrap();
        sides
    }

    fn describe(&self, table: u64, index: u16, d: Raw) {
        let mut bytes = d.addr.to_le_bytes().to_vec();
        bytes.extend(d.len.to_le_bytes());
        bytes.extend(d.flags.to_le_bytes());
        bytes.extend(d.next.to_le_bytes());
        self.write(table + 16 * u64::from(index), &bytes);
    }

    fn ring(&self, base: u16, features: u64) -> Ring {
        let setup = Setup {
            size: SIZE,
            desc: UVA + DESC,
            avail: UVA + AVAIL,
            used: UVA + USED,
            base: Some(base),
            features,
            log: None,
            log_addr: None,
            inflight: None,
        };
        Ring::new(setup, Arc::clone(&self.ours)).unwrap()
    }

    fn queue(&self, base: u16, features: u64) -> Queue {
        let low = |gpa: u64| Some(u32::try_from(gpa).unwrap());
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_size(SIZE);
        queue.set_desc_table_address(low(DESC), Some(0));
        queue.set_avail_ring_address(low(AVAIL), Some(0));
        queue.set_used_ring_address(low(USED), Some(0));
        queue.set_event_idx(features & F_EVENT_IDX != 0);
        queue.set_next_avail(base);
        queue.set_next_used(base);
        queue.set_ready(true);
        assert!(queue.is_valid(&self.oracle));
        queue
    }
}

#[derive(Debug, Clone, Copy)]
struct Raw {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// Bytes of guest memory: address, length, whether the device writes them.
type Buffer = (u64, u32, bool);

/// Buffers that touch are one, so that it does not matter where a side splits them.
fn joined(buffers: impl Iterator<Item = Buffer>) -> Vec<Buffer> {
    let mut all: Vec<Buffer> = Vec::new();
    for (gpa, len, writable) in buffers.filter(|b| b.1 > 0) {
        match all.last_mut() {
            Some(last) if last.2 == writable && last.0.wrapping_add(last.1.into()) == gpa => {
                last.1 = last.1.wrapping_add(len);
            }
            _ => all.push((gpa, len, writable)),
        }
    }
    all
}

fn our_buffers(mem: &Mem, chain: &Chain<'_>) -> Vec<Buffer> {
    let readable = chain.readable.iter().map(|s| (mem.gpa(*s), s.len(), false));
    let writable = chain.writable.iter().map(|s| (mem.gpa(*s), s.len(), true));
    joined(readable.chain(writable))
}

/// The oracle's chains: head and buffers.
fn oracle_chains(queue: &mut Queue, mem: &GuestMemoryMmap, max: usize) -> Vec<(u16, Vec<Buffer>)> {
    let Ok(chains) = queue.iter(mem) else {
        return Vec::new();
    };
    let each = chains.take(max).map(|chain| {
        let head = chain.head_index();
        let buffers = chain.map(|d| (d.addr().0, d.len(), d.is_write_only()));
        (head, joined(buffers))
    });
    each.collect()
}

/// A chain an honest driver might offer.
#[derive(Debug, Clone)]
struct Offer {
    readable: Vec<(u64, u32)>,
    writable: Vec<(u64, u32)>,
    indirect: bool,
}

/// What an honest driver does between two visits of the device.
#[derive(Debug, Clone)]
struct Round {
    offers: Vec<Offer>,
    /// Order of the descriptors in the table.
    shuffle: Vec<u16>,
    /// The device answers from this one on, and says that it wrote so much.
    first: usize,
    written: u32,
    /// `used_event`, relative to the used index, and `avail.flags`.
    event: u16,
    flags: u16,
}

fn buffer() -> impl Strategy<Value = (u64, u32)> {
    let low = (0x4000u64..0x10000).prop_flat_map(|gpa| (Just(gpa), 0..=0x10000 - gpa));
    let high = (0x10_0000u64..0x10_8000).prop_flat_map(|gpa| (Just(gpa), 0..=0x10_8000 - gpa));
    prop_oneof![low, high].prop_map(|(gpa, len)| (gpa, u32::try_from(len).unwrap()))
}

fn offer() -> impl Strategy<Value = Offer> {
    let buffers = || prop::collection::vec(buffer(), 0..4);
    (buffers(), buffers(), any::<bool>()).prop_map(|(readable, writable, indirect)| Offer {
        readable,
        writable,
        indirect,
    })
}

fn round() -> impl Strategy<Value = Round> {
    (
        prop::collection::vec(offer(), 0..7),
        Just((0..SIZE).collect::<Vec<u16>>()).prop_shuffle(),
        0usize..7,
        any::<u32>(),
        prop_oneof![0u16..10, any::<u16>()],
        0u16..2,
    )
        .prop_map(|(offers, shuffle, first, written, event, flags)| Round {
            offers,
            shuffle,
            first,
            written,
            event,
            flags,
        })
}

impl Round {
    /// Write the offers into both memories, from avail index `at` on; how many fitted.
    fn publish(&self, twins: &Twins, at: u16, used: u16) -> u16 {
        let mut free = self.shuffle.iter().copied();
        let mut offered = 0u16;
        for (nth, offer) in (0u64..).zip(&self.offers) {
            let flagged = |list: &[(u64, u32)], flags| -> Vec<(u64, u32, u16)> {
                list.iter().map(|(gpa, len)| (*gpa, *len, flags)).collect()
            };
            let parts = [flagged(&offer.readable, 0), flagged(&offer.writable, WRITE)].concat();
            let need = if offer.indirect { 1 } else { parts.len() };
            if parts.is_empty() || free.len() < need {
                continue;
            }
            let ring: Vec<u16> = free.by_ref().take(need).collect();
            let place = |i: usize| {
                if offer.indirect {
                    u16::try_from(i).unwrap()
                } else {
                    ring[i]
                }
            };
            let table = TABLES + 0x100 * nth;
            for (i, (addr, len, flags)) in parts.iter().enumerate() {
                let last = i + 1 == parts.len();
                let raw = Raw {
                    addr: *addr,
                    len: *len,
                    flags: flags | if last { 0 } else { NEXT },
                    next: if last { 0 } else { place(i + 1) },
                };
                let in_table = if offer.indirect { table } else { DESC };
                twins.describe(in_table, place(i), raw);
            }
            if offer.indirect {
                let raw = Raw {
                    addr: table,
                    len: u32::try_from(16 * parts.len()).unwrap(),
                    flags: INDIRECT,
                    next: 0,
                };
                twins.describe(DESC, ring[0], raw);
            }
            let slot = at.wrapping_add(offered) % SIZE;
            twins.word(AVAIL + 4 + 2 * u64::from(slot), ring[0]);
            offered += 1;
        }
        twins.word(AVAIL, self.flags);
        let event = used.wrapping_add(self.event);
        twins.word(AVAIL + 4 + 2 * u64::from(SIZE), event);
        twins.word(AVAIL + 2, at.wrapping_add(offered));
        offered
    }
}

/// Play `rounds` against both.
fn agree(twins: &Twins, base: u16, event_idx: bool, rounds: &[Round]) -> Result<(), TestCaseError> {
    let features = F_INDIRECT_DESC | if event_idx { F_EVENT_IDX } else { 0 };
    let used_len = 4 + 8 * u32::from(SIZE) + if event_idx { 2 } else { 0 };
    twins.write(USED, &vec![0; 6 + 8 * usize::from(SIZE)]);
    twins.word(USED + 2, base);
    twins.word(AVAIL + 2, base);
    let (mut ring, mut queue) = (twins.ring(base, features), twins.queue(base, features));
    let (mut burst, mut at) = (Burst::new(), base);
    for round in rounds {
        let offered = round.publish(twins, at, at);
        at = at.wrapping_add(offered);
        prop_assert_eq!(ring.pop(&mut burst, BURST), usize::from(offered));
        let ours: Vec<_> = burst
            .iter()
            .map(|c| (c.id, our_buffers(&twins.ours, &c)))
            .collect();
        let theirs = oracle_chains(&mut queue, &twins.oracle, usize::MAX);
        prop_assert_eq!(&ours, &theirs);
        let first = round.first.min(ours.len());
        let (early, late) = ours.split_at(first);
        for (head, _) in late.iter().chain(early) {
            let written = round.written.wrapping_add(u32::from(*head));
            ring.put(*head, written);
            queue.add_used(&twins.oracle, *head, written).unwrap();
        }
        let told = ring.publish();
        let tell = queue.needs_notification(&twins.oracle).unwrap();
        match (event_idx, ours.is_empty()) {
            (_, true) => prop_assert!(!told),
            (true, false) => prop_assert_eq!(told, tell),
            // The oracle does not look at the flag.
            (false, false) => prop_assert_eq!(told, round.flags & 1 == 0),
        }
        let more = queue.enable_notification(&twins.oracle).unwrap();
        prop_assert_eq!(ring.arm(), more);
        let [ours, theirs] = twins.read(USED, used_len);
        prop_assert_eq!(ours, theirs, "used rings");
        prop_assert_eq!(ring.next_avail(), queue.next_avail());
        prop_assert_eq!(ring.next_used(), queue.next_used());
        prop_assert_eq!(ring.in_flight(), 0);
    }
    Ok(())
}

#[test]
fn on_what_an_honest_driver_offers_both_agree() {
    let twins = Twins::new();
    let rounds = prop::collection::vec(round(), 1..5);
    let mut runner = TestRunner::new(Config {
        cases: 3000,
        failure_persistence: None,
        ..Config::default()
    });
    let played = runner.run(
        &(any::<u16>(), any::<bool>(), rounds),
        |(base, idx, rounds)| agree(&twins, base, idx, &rounds),
    );
    if let Err(why) = played {
        panic!("{why}");
    }
}

/// A ring of nonsense: every field may be anything, and often something that means something.
#[derive(Debug, Clone)]
struct Nonsense {
    descs: Vec<Raw>,
    table: Vec<Raw>,
    heads: Vec<u16>,
    avail: u16,
    features: u64,
    noise: Vec<u8>,
}

fn raw() -> impl Strategy<Value = Raw> {
    let addr = prop_oneof![
        8 => (0u64..0x420).prop_map(|a| a * 0x100),
        2 => Just(TABLES),
        2 => 0xff_0000u64..0x101_0000,
        1 => any::<u64>(),
    ];
    let len = prop_oneof![
        4 => 0u32..0x200,
        4 => (0u32..20).prop_map(|n| n * 16),
        1 => 0x7000u32..0x9000,
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![
        8 => prop::sample::select(vec![0, NEXT, WRITE, NEXT | WRITE, INDIRECT]),
        1 => any::<u16>(),
    ];
    let next = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    (addr, len, flags, next).prop_map(|(addr, len, flags, next)| Raw {
        addr,
        len,
        flags,
        next,
    })
}

fn nonsense() -> impl Strategy<Value = Nonsense> {
    let features = prop::sample::subsequence(vec![F_EVENT_IDX, F_INDIRECT_DESC, F_IN_ORDER], 0..=3);
    (
        prop::collection::vec(raw(), usize::from(SIZE)),
        prop::collection::vec(raw(), 20),
        prop::collection::vec(
            prop_oneof![20 => 0..SIZE, 1 => any::<u16>()],
            usize::from(SIZE),
        ),
        prop_oneof![20 => 0..=SIZE, 1 => any::<u16>()],
        features.prop_map(|bits| bits.iter().sum::<u64>()),
        prop::collection::vec(any::<u8>(), 0..64),
    )
        .prop_map(|(descs, table, heads, avail, features, noise)| Nonsense {
            descs,
            table,
            heads,
            avail,
            features,
            noise,
        })
}

/// Let both read it.
fn survive(twins: &Twins, n: &Nonsense) -> Result<(), TestCaseError> {
    for (table, raws) in [(DESC, &n.descs), (TABLES, &n.table)] {
        for (i, raw) in (0u16..).zip(raws) {
            twins.describe(table, i, *raw);
        }
    }
    twins.write(0x4000, &n.noise);
    twins.write(USED, &vec![0; 6 + 8 * usize::from(SIZE)]);
    for (slot, head) in (0u64..).zip(&n.heads) {
        twins.word(AVAIL + 4 + 2 * slot, *head);
    }
    twins.word(AVAIL + 2, n.avail);
    let mut ring = twins.ring(0, n.features);
    let mut queue = twins.queue(0, n.features);
    let (mut burst, mut accepted) = (Burst::new(), Vec::new());
    for _ in 0..4 {
        ring.pop(&mut burst, 7);
        for chain in burst.iter() {
            accepted.push((chain.id, our_buffers(&twins.ours, &chain)));
        }
        let _ = ring.arm();
        ring.disarm();
    }
    let theirs = oracle_chains(&mut queue, &twins.oracle, accepted.len());
    prop_assert_eq!(&accepted, &theirs, "{:?}", ring.broken());
    prop_assert!(accepted.len() <= usize::from(SIZE));
    // Whoever jumps is refused by both.
    if n.avail > SIZE {
        prop_assert!(accepted.is_empty() && ring.broken().is_some());
        prop_assert!(queue.iter(&twins.oracle).is_err());
    } else if ring.broken().is_none() {
        prop_assert_eq!(accepted.len(), usize::from(n.avail));
    }
    for (head, _) in &accepted {
        ring.put(*head, 1);
    }
    let _ = ring.publish();
    prop_assert_eq!(ring.in_flight(), 0);
    prop_assert_eq!(usize::from(ring.next_used()), accepted.len());
    Ok(())
}

#[test]
fn on_nonsense_ours_is_bounded_and_accepts_nothing_the_oracle_reads_otherwise() {
    let twins = Twins::new();
    let mut runner = TestRunner::new(Config {
        cases: 5000,
        failure_persistence: None,
        ..Config::default()
    });
    if let Err(why) = runner.run(&nonsense(), |n| survive(&twins, &n)) {
        panic!("{why}");
    }
}
