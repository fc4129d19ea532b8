//! Ageing, flushing, static entries and listings: what is not done for each frame.

use std::sync::atomic::Ordering::Relaxed;

use super::bucket::{PORTS, WAYS, Word};
use super::write::{Locked, Seat, bump};
use super::{Ageing, Fdb, PortNo};
use crate::mac::Mac;
use crate::vlan::Vid;

/// Buckets looked at in one go by whoever can wait, so that workers get the lock in between.
const STRIDE: usize = 256;

/// An entry, for listings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The VLAN.
    pub vid: Vid,
    /// The address.
    pub mac: Mac,
    /// The port it is at.
    pub port: PortNo,
    /// Whether it was entered by the operator: it does not age, move or give way.
    pub is_static: bool,
    /// Seconds since it was seen; 0 for static entries.
    pub age_s: u32,
    /// Whether it is held at its port because it moved too often.
    pub is_held: bool,
}

/// Which entries to forget: those that match all that is given. Everything, by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filter {
    /// At this port.
    pub port: Option<PortNo>,
    /// In this VLAN.
    pub vid: Option<Vid>,
    /// With this address.
    pub mac: Option<Mac>,
    /// Static entries as well.
    pub statics: bool,
}

/// A static entry that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StaticError {
    /// Not the address of one station.
    #[error("{0} is not the address of a station; static entries are for unicast addresses")]
    Group(Mac),
    /// Its place is taken by others.
    #[error("there is no room for {0}: too many static entries; raise the FDB's capacity")]
    Full(Mac),
    /// No port.
    #[error("port number {} is too large for the FDB", .0.0)]
    Port(PortNo),
}

impl Fdb {
    /// Forgets what was not seen for long, in the next `buckets` buckets; gives how many entries.
    ///
    /// For a worker or a timer, now and then. Does nothing while somebody else is writing.
    pub fn age(&self, now_s: u32, buckets: usize) -> usize {
        let Some(locked) = self.try_lock() else {
            return 0;
        };
        let start = self.hand.load(Relaxed);
        let buckets = buckets.min(self.buckets.len());
        let ageing_s = self.ageing_s.load(Relaxed);
        let mut forgotten = 0;
        for bucket in (start..start + buckets).map(|at| at % self.buckets.len()) {
            for way in 0..WAYS {
                let seat = Seat { bucket, way };
                let meta = self.meta(seat);
                let old = !meta.is_static() && meta.age_s(now_s) >= ageing_s;
                if old && self.word(seat) != Word::EMPTY {
                    self.clear(&locked, seat);
                    bump(&self.tally.aged);
                    forgotten += 1;
                }
            }
        }
        self.hand
            .store((start + buckets) % self.buckets.len(), Relaxed);
        forgotten
    }

    /// How many buckets there are: `age` with that many visits everything once.
    #[must_use]
    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// Changes when addresses are forgotten.
    pub fn set_ageing(&self, ageing: Ageing) {
        self.ageing_s.store(ageing.get(), Relaxed);
    }

    /// Enters a static entry, in place of whatever was known of the address. For control threads.
    ///
    /// # Errors
    /// [`StaticError`]; the table is then as it was.
    pub fn set_static(&self, vid: Vid, mac: Mac, port: PortNo) -> Result<(), StaticError> {
        if mac.is_multicast() || mac.is_zero() {
            return Err(StaticError::Group(mac));
        }
        if usize::from(port.0) >= PORTS {
            return Err(StaticError::Port(port));
        }
        let locked = self.spin_lock();
        let entered = self.insert_static(&locked, self.hash(vid, mac), port);
        entered.then_some(()).ok_or(StaticError::Full(mac))
    }

    /// Forgets one address, static or not; whether it was known. For control threads.
    pub fn forget(&self, vid: Vid, mac: Mac) -> bool {
        let locked = self.spin_lock();
        let seat = self.find(self.hash(vid, mac));
        if let Some(seat) = seat {
            self.clear(&locked, seat);
            bump(&self.tally.flushed);
        }
        seat.is_some()
    }

    /// Forgets all entries that match; gives how many. For control threads.
    ///
    /// An address that is seen meanwhile may be learned again behind the sweep. A port that is
    /// taken out is therefore flushed after the workers have let go of it.
    pub fn flush(&self, filter: &Filter) -> usize {
        let mut flushed = 0;
        for start in (0..self.buckets.len()).step_by(STRIDE) {
            let locked = self.spin_lock();
            for bucket in start..(start + STRIDE).min(self.buckets.len()) {
                for way in 0..WAYS {
                    let seat = Seat { bucket, way };
                    if self.matches(seat, filter) {
                        self.clear(&locked, seat);
                        bump(&self.tally.flushed);
                        flushed += 1;
                    } else if let Some(port) = filter.port {
                        self.forget_home(&locked, seat, port);
                    }
                }
            }
        }
        flushed
    }

    /// No entry goes back to a port that was flushed: its number may be another port's by then.
    fn forget_home(&self, _: &Locked<'_>, seat: Seat, port: PortNo) {
        let meta = self.meta(seat);
        let without = meta.without_home(port);
        if without != meta {
            self.buckets[seat.bucket].put(seat.way, self.word(seat), without);
        }
    }

    fn matches(&self, seat: Seat, filter: &Filter) -> bool {
        let Some(entry) = self.entry(seat, 0) else {
            return false;
        };
        filter.port.is_none_or(|port| port == entry.port)
            && filter.vid.is_none_or(|vid| vid == entry.vid)
            && filter.mac.is_none_or(|mac| mac == entry.mac)
            && (filter.statics || !entry.is_static)
    }

    /// All entries, by VLAN and address. Takes no lock: an entry that changes its bucket meanwhile
    /// may be missing.
    #[must_use]
    pub fn snapshot(&self, now_s: u32) -> Vec<Entry> {
        let seats = (0..self.buckets.len())
            .flat_map(|bucket| (0..WAYS).map(move |way| Seat { bucket, way }));
        let mut entries: Vec<Entry> = seats.filter_map(|seat| self.entry(seat, now_s)).collect();
        entries.sort_by_key(|entry| (entry.vid, entry.mac));
        entries.dedup_by_key(|entry| (entry.vid, entry.mac));
        entries
    }

    /// What is known of one address.
    #[must_use]
    pub fn get(&self, vid: Vid, mac: Mac, now_s: u32) -> Option<Entry> {
        self.entry(self.find(self.hash(vid, mac))?, now_s)
    }

    fn entry(&self, seat: Seat, now_s: u32) -> Option<Entry> {
        let (word, meta) = (self.word(seat), self.meta(seat));
        if word == Word::EMPTY {
            return None;
        }
        let (vid, mac) = self.key.key(self.hash_of(seat.bucket, word))?;
        let is_static = meta.is_static();
        Some(Entry {
            vid,
            mac,
            port: word.port(),
            is_static,
            age_s: if is_static { 0 } else { meta.age_s(now_s) },
            is_held: !is_static && meta.is_held(now_s),
        })
    }
}
