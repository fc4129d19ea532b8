//! The filtering database (IEEE 802.1Q, 8.8): behind which port a station of a VLAN is.
//!
//! One table for the process. Workers look up and learn without waiting: an entry is one atomic
//! word (`bucket`), so a lookup reads at most two cache lines and cannot see half an entry.
//! An address that is known, at the right port and was seen this second costs no write, and a
//! write a second otherwise. What changes the table's shape (new addresses, moves, ageing) holds a
//! lock that nobody waits for: a worker that does not get it leaves learning to the next frame.
//!
//! **Bounded by construction.** All memory is taken at the start. An address has two buckets of
//! four entries, chosen by a secret permutation (`hash`); no lookup goes beyond them, and a new
//! address looks into 40 more at most, to make room by moving others to their other bucket. So a
//! guest that finds colliding addresses gains nothing: lookups cost the same, and once its buckets
//! are full it displaces itself, as follows.
//!
//! **Fair.** When there is no room, the port with most entries in the whole table gives up its
//! oldest of the eight; if the newcomer's port has as many, it displaces its own or is not learned.
//! A port that floods addresses never displaces those of a port that has fewer, and what is
//! displaced is flooded, not lost. Limits for each port are the caller's parameter.
//!
//! **Moves.** An address may move [`MOVES_PER_S`] times in a second. One more, and it goes back to
//! the port that had it at the second's beginning and stays for [`HOLD_S`]: two ports that
//! contend for an address do not make the table flap. Who is right cannot be known here; the
//! source guard and static entries say it.

mod bucket;
mod hash;
mod upkeep;
mod write;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Mutex, MutexGuard, TryLockError};

use towpath_common::ranged;

use bucket::{Bucket, PORTS, WAYS, Word};
pub use hash::{Hash, HashKey, Hashes};
pub use upkeep::{Entry, Filter, StaticError};

pub use crate::table::PortNo;

use crate::mac::Mac;
use crate::vlan::Vid;

/// How often an address may move in a second.
pub const MOVES_PER_S: u32 = 4;
/// How long an address that moved too often stays where it is, in seconds.
pub const HOLD_S: u32 = 10;

ranged! {
    /// How many addresses the table has room for; rounded up to a power of two. 16 bytes each.
    /// The first address is displaced for lack of room when about 87 % are taken.
    Capacity(u32), "FDB capacity", 2_048..=1_048_576
}

impl Default for Capacity {
    /// 1 MiB: 16 000 addresses fill a quarter of it, so that each stands in its first bucket.
    fn default() -> Capacity {
        Capacity(65_536)
    }
}

ranged! {
    /// Seconds until an address that is not seen is forgotten (802.1Q, table 8-6).
    Ageing(u32), "FDB ageing", 10..=1_000_000
}

impl Default for Ageing {
    /// As 802.1Q recommends.
    fn default() -> Ageing {
        Ageing(300)
    }
}

/// What became of learning an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learned {
    /// It was known at this port.
    Known,
    /// It is new, and known from now on.
    New,
    /// It was at another port.
    Moved {
        /// That port.
        from: PortNo,
    },
    /// It is new here, and the port has as many addresses as it may.
    LimitReached,
    /// A static entry says that it is at another port.
    Static,
    /// It moved too often and stays at another port for now.
    Flapping {
        /// That port.
        at: PortNo,
    },
    /// Somebody else is writing: not learned now.
    Busy,
    /// Not learned: there is no room, and others have fewer addresses than this port.
    Full,
}

/// Defines the table's counters.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What happened to the table since it was made.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Names and values.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }

            /// As [`Counters::named`] gave them, by `value`.
            #[must_use]
            pub fn from_named(value: impl Fn(&str) -> u64) -> Counters {
                Counters { $($name: value(stringify!($name)),)* }
            }
        }

        /// [`Counters`], as they are written by whoever holds the lock.
        #[derive(Debug, Default)]
        struct Tally {
            $($name: AtomicU64,)*
        }

        impl Tally {
            fn read(&self) -> Counters {
                Counters { $($name: self.$name.load(Relaxed),)* }
            }

            fn set(&self, counters: &Counters) {
                $(self.$name.store(counters.$name, Relaxed);)*
            }
        }
    };
}

counters! {
    /// Addresses learned.
    learned,
    /// Addresses that moved to another port.
    moved,
    /// Addresses held at a port because they moved too often.
    held,
    /// Addresses displaced to make room for another.
    displaced,
    /// Addresses not learned because there was no room that the port had a right to.
    refused,
    /// Addresses forgotten because they were not seen.
    aged,
    /// Addresses forgotten on request.
    flushed,
}

/// The table. Shared by all workers; every method takes `&self`.
///
/// Times are seconds since some moment the same for all callers; they may wrap.
#[derive(Debug)]
pub struct Fdb {
    key: HashKey,
    /// A power of two of them, 2^`bits`.
    buckets: Box<[Bucket]>,
    bits: u32,
    ageing_s: AtomicU32,
    /// Dynamic entries by port. Written under the lock.
    counts: Box<[AtomicU32]>,
    statics: AtomicU32,
    /// All entries. Written under the lock.
    total: AtomicU32,
    tally: Tally,
    /// The bucket that [`Fdb::age`] looks at next.
    hand: AtomicUsize,
    /// Who holds it may write words. Workers try, nobody waits in the kernel.
    lock: Mutex<()>,
}

impl Fdb {
    /// An empty table.
    #[must_use]
    pub fn new(key: HashKey, capacity: Capacity, ageing: Ageing) -> Fdb {
        let buckets = (capacity.get() as usize).div_ceil(WAYS).next_power_of_two();
        let zeroes = |n: usize| (0..n).map(|_| AtomicU32::new(0)).collect();
        Fdb {
            key,
            buckets: (0..buckets).map(|_| Bucket::default()).collect(),
            bits: buckets.trailing_zeros(),
            ageing_s: AtomicU32::new(ageing.get()),
            counts: zeroes(PORTS),
            statics: AtomicU32::new(0),
            total: AtomicU32::new(0),
            tally: Tally::default(),
            hand: AtomicUsize::new(0),
            lock: Mutex::new(()),
        }
    }

    /// Where `mac` in `vid` is kept: what lookups and learning take.
    #[inline]
    #[must_use]
    pub fn hash(&self, vid: Vid, mac: Mac) -> Hash {
        self.key.hash(vid, mac)
    }

    /// Reads the bucket where `hash` most likely is. Done for a whole burst, before the lookups,
    /// the memory's latency is paid once and not for each frame.
    #[inline]
    pub fn touch(&self, hash: Hash) {
        self.buckets[hash.split(self.bits).0].touch();
    }

    /// The port behind which the address is, if that is known.
    #[inline]
    #[must_use]
    pub fn lookup(&self, hash: Hash) -> Option<PortNo> {
        let (bucket, want) = self.first(hash);
        let mut port = bucket.port(want);
        if port == PortNo::NONE {
            let (bucket, want) = self.second(hash);
            port = bucket.port(want);
        }
        (port != PortNo::NONE).then_some(port)
    }

    /// Notes that the address was seen at `port`, which may have `limit` addresses.
    #[inline]
    pub fn learn(&self, hash: Hash, port: PortNo, now_s: u32, limit: u32) -> Learned {
        let (bucket, want) = self.first(hash);
        if let Some(way) = bucket.exact(want.with_port(port)) {
            bucket.refresh(way, now_s);
            return Learned::Known;
        }
        self.learn_elsewhere(hash, port, now_s, limit)
    }

    /// Addresses learned at `port`, static ones not among them.
    #[must_use]
    pub fn count(&self, port: PortNo) -> u32 {
        let count = self.counts.get(usize::from(port.0));
        count.map_or(0, |count| count.load(Relaxed))
    }

    /// Static entries.
    #[must_use]
    pub fn statics(&self) -> u32 {
        self.statics.load(Relaxed)
    }

    /// All entries, static ones among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.total.load(Relaxed) as usize
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.buckets.len() * WAYS
    }

    /// What happened since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.tally.read()
    }

    /// Count on from here; before anybody learns.
    pub fn set_counters(&self, counters: Counters) {
        self.tally.set(&counters);
    }

    /// The first bucket of `hash`, and the word it would have there.
    #[inline]
    fn first(&self, hash: Hash) -> (&Bucket, Word) {
        let (index, rest) = hash.split(self.bits);
        (&self.buckets[index], Word::new(rest, false))
    }

    /// The second one.
    #[inline]
    fn second(&self, hash: Hash) -> (&Bucket, Word) {
        let (index, rest) = hash.turned().split(self.bits);
        (&self.buckets[index], Word::new(rest, true))
    }

    /// The hash of an entry in the bucket `index`.
    fn hash_of(&self, index: usize, word: Word) -> Hash {
        let hash = Hash::join(word.rest(), index, self.bits);
        if word.is_second() {
            hash.turned()
        } else {
            hash
        }
    }

    /// The lock, if it is free.
    fn try_lock(&self) -> Option<MutexGuard<'_, ()>> {
        match self.lock.try_lock() {
            Ok(guard) => Some(guard),
            // Each write leaves the table whole, so a panic in between spoils nothing.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The lock, for control threads: by trying again, so that no worker ever has to wake anybody.
    fn spin_lock(&self) -> MutexGuard<'_, ()> {
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests;
