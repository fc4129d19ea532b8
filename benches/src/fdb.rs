//! What the forwarding database costs: hashing, lookups, and learning what is known.
//!
//! In bursts of 64, as a worker does it: hash all, touch all, then look up or learn all. Addresses
//! come in random order, as from many stations; the table has the default capacity unless more is
//! needed.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vswitch::fdb::{Ageing, Capacity, Fdb, Hash, HashKey, Learned, PortNo};
use vswitch::mac::Mac;
use vswitch::vlan::Vid;

/// Frames of a burst.
const BURST: usize = 64;
/// Fewest addresses between two looks at the clock.
const ROUND: usize = 256 * BURST;

/// Nanoseconds for one address.
#[derive(Debug, Clone, Copy)]
pub struct Costs {
    /// Hashing.
    pub hash: f64,
    /// Hashing, touching, looking up.
    pub lookup: f64,
    /// Hashing, touching, learning what is known and was seen this second.
    pub learn: f64,
    /// Both for each frame: learn the source, look up the destination.
    pub frame: f64,
}

/// A table that knows some addresses.
#[derive(Debug)]
pub struct Bench {
    fdb: Fdb,
    frames: Vec<(Vid, Mac)>,
}

impl Bench {
    /// A table with `stations` addresses at 16 ports.
    ///
    /// # Errors
    /// Without random numbers, or if the table has no room for that many.
    pub fn new(stations: u64) -> Result<Bench> {
        let wanted = stations * 5 / 4;
        let capacity = Capacity::default().get().max(u32::try_from(wanted)?);
        let capacity = Capacity::try_from(i64::from(capacity))?;
        let fdb = Fdb::new(HashKey::random()?, capacity, Ageing::default());
        let vid = Vid::new(10).context("a VLAN id")?;
        let address = |number| (vid, Mac::from_u64(0x5254_0000_0000 | number));
        for number in 0..stations {
            let (vid, mac) = address(number);
            let learned = fdb.learn(fdb.hash(vid, mac), port(mac), 0, u32::MAX);
            ensure!(learned == Learned::New, "{mac}: {learned:?}");
        }
        let mut state = 1_u64;
        let round = ROUND.max(usize::try_from(2 * stations)?.next_multiple_of(BURST));
        let frames = (0..round).map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            address((state >> 33) % stations)
        });
        Ok(Bench {
            frames: frames.collect(),
            fdb,
        })
    }

    /// Measures for `time` each.
    #[must_use]
    pub fn run(&self, time: Duration) -> Costs {
        let fdb = &self.fdb;
        let bursts = || self.frames.chunks_exact(BURST);
        let mut hashes = [Hash::default(); BURST];
        let hash = |burst: &[(Vid, Mac)], hashes: &mut [Hash; BURST]| {
            for (hash, (vid, mac)) in hashes.iter_mut().zip(burst) {
                *hash = fdb.hash(*vid, *mac);
            }
        };
        let touch = |hashes: &[Hash; BURST]| hashes.iter().for_each(|hash| fdb.touch(*hash));
        let hashing = self.per_address(time, || {
            for burst in bursts() {
                hash(burst, &mut hashes);
                black_box(&hashes);
            }
        });
        let lookup = self.per_address(time, || {
            for burst in bursts() {
                hash(burst, &mut hashes);
                touch(&hashes);
                for hash in &hashes {
                    black_box(fdb.lookup(*hash));
                }
            }
        });
        let learn = self.per_address(time, || {
            for burst in bursts() {
                hash(burst, &mut hashes);
                touch(&hashes);
                for (hash, (_, mac)) in hashes.iter().zip(burst) {
                    black_box(fdb.learn(*hash, port(*mac), 0, u32::MAX));
                }
            }
        });
        let mut sources = [Hash::default(); BURST];
        let frame = self.per_address(time, || {
            for (burst, from) in bursts().zip(bursts().rev()) {
                hash(burst, &mut hashes);
                hash(from, &mut sources);
                touch(&hashes);
                touch(&sources);
                for (hash, (_, mac)) in sources.iter().zip(from) {
                    black_box(fdb.learn(*hash, port(*mac), 0, u32::MAX));
                }
                for hash in &hashes {
                    black_box(fdb.lookup(*hash));
                }
            }
        });
        Costs {
            hash: hashing,
            lookup,
            learn,
            frame,
        }
    }

    /// Nanoseconds of `round` for each address, over at least `time`.
    fn per_address(&self, time: Duration, mut round: impl FnMut()) -> f64 {
        round();
        let start = Instant::now();
        let mut rounds = 0_u32;
        while start.elapsed() < time {
            round();
            rounds += 1;
        }
        let addresses = f64::from(rounds) * self.frames.len() as f64;
        start.elapsed().as_secs_f64() * 1e9 / addresses
    }
}

/// The port of a station.
fn port(mac: Mac) -> PortNo {
    PortNo(u16::from(mac.0[5] & 15))
}
