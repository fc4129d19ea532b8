//! Learning what is not yet known: new addresses, moves, and making room.
//!
//! Everything here is bounded: two buckets of the address, the other bucket of each of the eight
//! entries in them, and those of the four entries in each of these: 42 in all, in a table that
//! is between three quarters and 15/16 full, and two in one that is fuller. Only the holder of the
//! lock writes words; that a reader may meanwhile find an entry in both of its buckets, or miss one
//! that changes from second to first under its eyes, costs at most one flooded frame.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::bucket::{Meta, Move, PORTS, WAYS, Word};
use super::{Fdb, Hash, Learned, PortNo};

/// Where an entry stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat {
    pub(super) bucket: usize,
    pub(super) way: usize,
}

/// Proof that the lock is held.
pub(super) type Locked<'a> = MutexGuard<'a, ()>;

impl Fdb {
    /// [`Fdb::learn`], for an address that is not in its first bucket with this port.
    #[inline(never)]
    pub(super) fn learn_elsewhere(
        &self,
        hash: Hash,
        port: PortNo,
        now_s: u32,
        limit: u32,
    ) -> Learned {
        let (second, want) = self.second(hash);
        if let Some(way) = second.exact(want.with_port(port)) {
            second.refresh(way, now_s);
            return Learned::Known;
        }
        if usize::from(port.0) >= PORTS {
            return Learned::Full;
        }
        // What needs no change needs no lock: a flood must not keep others from learning.
        if let Some(seat) = self.find(hash) {
            let at = self.word(seat).port();
            let meta = self.meta(seat);
            if meta.is_static() {
                return Learned::Static;
            }
            if meta.is_held(now_s) {
                return Learned::Flapping { at };
            }
        }
        if self.count(port) >= limit {
            return Learned::LimitReached;
        }
        match self.try_lock() {
            Some(locked) => self.change(&locked, hash, port, now_s, limit),
            None => Learned::Busy,
        }
    }

    /// Moves or inserts. What was seen before the lock may have changed.
    fn change(
        &self,
        locked: &Locked<'_>,
        hash: Hash,
        port: PortNo,
        now_s: u32,
        limit: u32,
    ) -> Learned {
        let known = self.find(hash);
        if known.is_some_and(|seat| self.word(seat).port() == port) {
            return Learned::Known;
        }
        if self.count(port) >= limit {
            return Learned::LimitReached;
        }
        match known {
            Some(seat) => self.relearn(locked, seat, port, now_s),
            None => self.insert(locked, hash, port, now_s),
        }
    }

    /// Moves an entry that is at another port, if it may move.
    fn relearn(&self, locked: &Locked<'_>, seat: Seat, port: PortNo, now_s: u32) -> Learned {
        let (from, meta) = (self.word(seat).port(), self.meta(seat));
        if meta.is_static() {
            return Learned::Static;
        }
        match meta.wish(from, now_s) {
            Move::Allowed(meta) => {
                self.set_port(locked, seat, port, meta);
                bump(&self.tally.moved);
                Learned::Moved { from }
            }
            Move::Home(meta, home) => {
                self.set_port(locked, seat, home, meta);
                bump(&self.tally.held);
                if home == port {
                    Learned::Moved { from }
                } else {
                    Learned::Flapping { at: home }
                }
            }
            Move::Held => Learned::Flapping { at: from },
        }
    }

    /// Gives a dynamic entry to another port, in one store.
    fn set_port(&self, _: &Locked<'_>, seat: Seat, port: PortNo, meta: Meta) {
        let word = self.word(seat);
        self.tell(word.port(), u32::MAX);
        self.tell(port, 1);
        self.buckets[seat.bucket].put(seat.way, word.with_port(port), meta);
    }

    fn insert(&self, locked: &Locked<'_>, hash: Hash, port: PortNo, now_s: u32) -> Learned {
        let room = self.room(locked, hash).or_else(|| {
            let seat = self.displaceable(hash, Some(port), now_s)?;
            self.displace(locked, seat);
            Some(seat)
        });
        let Some(seat) = room else {
            bump(&self.tally.refused);
            return Learned::Full;
        };
        let word = self.word_at(hash, seat).with_port(port);
        self.fill(locked, seat, word, Meta::new(now_s));
        bump(&self.tally.learned);
        Learned::New
    }

    /// Enters a static entry, in place of whatever is known of the address; false if eight other
    /// static entries are where it has to be.
    pub(super) fn insert_static(&self, locked: &Locked<'_>, hash: Hash, port: PortNo) -> bool {
        if let Some(seat) = self.find(hash) {
            self.clear(locked, seat);
        }
        let room = self.room(locked, hash).or_else(|| {
            let seat = self.displaceable(hash, None, 0)?;
            self.displace(locked, seat);
            Some(seat)
        });
        let Some(seat) = room else {
            return false;
        };
        let word = self.word_at(hash, seat).with_port(port);
        self.fill(locked, seat, word, Meta::fixed());
        true
    }

    /// A free seat for `hash`, perhaps made by moving one or two entries to their other buckets.
    fn room(&self, locked: &Locked<'_>, hash: Hash) -> Option<Seat> {
        let buckets = self.buckets_of(hash);
        for bucket in buckets {
            if let Some(way) = self.buckets[bucket].empty() {
                return Some(Seat { bucket, way });
            }
        }
        // A flood into a full table is not worth the search.
        if self.total.load(Relaxed) as usize > self.capacity() / 16 * 15 {
            return None;
        }
        let near = seats(buckets).find(|seat| self.shift(locked, *seat));
        near.or_else(|| {
            seats(buckets).find(|seat| {
                let bucket = self.other_bucket(*seat).0;
                let mut ways = (0..WAYS).map(|way| Seat { bucket, way });
                ways.any(|next| self.shift(locked, next)) && self.shift(locked, *seat)
            })
        })
    }

    /// Moves an entry to its other bucket, if there is room; whether there was.
    fn shift(&self, locked: &Locked<'_>, seat: Seat) -> bool {
        let (bucket, there) = self.other_bucket(seat);
        let Some(way) = self.buckets[bucket].empty() else {
            return false;
        };
        // First there, then not here: most readers find it throughout.
        self.fill(locked, Seat { bucket, way }, there, self.meta(seat));
        self.clear(locked, seat);
        true
    }

    /// The other bucket of an entry, and its word there.
    fn other_bucket(&self, seat: Seat) -> (usize, Word) {
        let word = self.word(seat);
        let hash = self.hash_of(seat.bucket, word);
        let there = if word.is_second() {
            hash
        } else {
            hash.turned()
        };
        let (bucket, rest) = there.split(self.bits);
        let moved = Word::new(rest, !word.is_second());
        (bucket, moved.with_port(word.port()))
    }

    /// The entry that has to go so that `port` gets an address more, or a static entry its place:
    /// one that is too old, or else the oldest of the port with most addresses.
    fn displaceable(&self, hash: Hash, port: Option<PortNo>, now_s: u32) -> Option<Seat> {
        let mine = port.map_or(0, |port| self.count(port));
        let ageing_s = self.ageing_s.load(Relaxed);
        let rank = |seat: &Seat| {
            let (at, meta) = (self.word(*seat).port(), self.meta(*seat));
            let age = meta.age_s(now_s);
            let old = port.is_some() && age >= ageing_s;
            let own = port == Some(at);
            let count = self.count(at);
            let may = !meta.is_static() && (old || own || count > mine);
            may.then_some((old, count, own, age))
        };
        let ranked = seats(self.buckets_of(hash)).filter_map(|seat| Some((rank(&seat)?, seat)));
        ranked.max_by_key(|(rank, _)| *rank).map(|(_, seat)| seat)
    }

    fn displace(&self, locked: &Locked<'_>, seat: Seat) {
        self.clear(locked, seat);
        bump(&self.tally.displaced);
    }

    /// Writes an entry to a free seat, and counts it.
    fn fill(&self, _: &Locked<'_>, seat: Seat, word: Word, meta: Meta) {
        add(&self.total, 1);
        if meta.is_static() {
            add(&self.statics, 1);
        } else {
            self.tell(word.port(), 1);
        }
        self.buckets[seat.bucket].put(seat.way, word, meta);
    }

    /// Takes an entry out, and counts that.
    pub(super) fn clear(&self, _: &Locked<'_>, seat: Seat) {
        let (word, meta) = (self.word(seat), self.meta(seat));
        if word == Word::EMPTY {
            return;
        }
        add(&self.total, u32::MAX);
        if meta.is_static() {
            add(&self.statics, u32::MAX);
        } else {
            self.tell(word.port(), u32::MAX);
        }
        self.buckets[seat.bucket].put(seat.way, Word::EMPTY, meta);
    }

    /// Adds to a port's number of addresses, modulo 2^32.
    fn tell(&self, port: PortNo, what: u32) {
        if let Some(count) = self.counts.get(usize::from(port.0)) {
            add(count, what);
        }
    }

    /// Where the address is.
    pub(super) fn find(&self, hash: Hash) -> Option<Seat> {
        let [first, second] = self.buckets_of(hash);
        let here = |(bucket, second): (usize, bool)| {
            let (_, want) = if second {
                self.second(hash)
            } else {
                self.first(hash)
            };
            let way = self.buckets[bucket].find(want)?;
            Some(Seat { bucket, way })
        };
        here((first, false)).or_else(|| here((second, true)))
    }

    fn buckets_of(&self, hash: Hash) -> [usize; 2] {
        [hash, hash.turned()].map(|hash| hash.split(self.bits).0)
    }

    /// The word of `hash` for a seat in one of its buckets.
    fn word_at(&self, hash: Hash, seat: Seat) -> Word {
        if self.buckets_of(hash)[0] == seat.bucket {
            self.first(hash).1
        } else {
            self.second(hash).1
        }
    }

    pub(super) fn word(&self, seat: Seat) -> Word {
        self.buckets[seat.bucket].word(seat.way)
    }

    pub(super) fn meta(&self, seat: Seat) -> Meta {
        self.buckets[seat.bucket].meta(seat.way)
    }
}

/// The eight seats of two buckets.
fn seats(buckets: [usize; 2]) -> impl Iterator<Item = Seat> {
    let ways = |bucket| (0..WAYS).map(move |way| Seat { bucket, way });
    buckets.into_iter().flat_map(ways)
}

/// Counts. The lock is held, so nobody else writes.
pub(super) fn bump(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

/// Adds, modulo 2^32. The lock is held, so nobody else writes.
fn add(counter: &AtomicU32, what: u32) {
    counter.store(counter.load(Relaxed).wrapping_add(what), Relaxed);
}
