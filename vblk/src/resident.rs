//! Reads from locked pages of the page cache, without a system call.
//!
//! A buffered read costs the kernel as much in bookkeeping as in copying. Where a file's pages are
//! locked in memory and nobody else can take them away ([`Pages`]), a worker copies them to the
//! guest itself. What it must never do is touch a page that is not there: it would wait for
//! storage, and all its disks with it. So this is a table of chunks that may be touched (hot), and
//! a gate.
//!
//! ```text
//!   worker, read:      readers += 1 │ gate open and chunks hot? copy │ readers -= 1  else io_uring
//!   worker, discard:   gate += 1 │ chunks cold │ readers = 0? do it, else later… │ gate -= 1
//!   keeper, promote:   readers += 1 │ gate open? lock pages, chunk hot │ readers -= 1
//!   keeper, close:     gate += 1 │ wait for readers = 0 │ all cold, unlock, lease given up
//! ```
//!
//! Each side writes its own count and then reads the other's, both in one total order (`SeqCst`),
//! so of a reader and whoever shuts the gate at least one sees the other: no page goes while it is
//! read, and no worker waits (a discard is tried again in a later step). The gate is shut when a
//! disk is opened; the [`Keeper`](crate::keeper::Keeper) opens it once it has the lease.
//!
//! Writes, and reads of anything cold, go through the kernel to the very same pages.

use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::Duration;

use towpath_common::mem::{Mem, Pages};

use crate::request::Data;

/// Bytes of a chunk: a huge page, so that one entry of the page table can map it.
pub(crate) const CHUNK: u64 = 2 << 20;

/// Longest read that is copied: what is longer would hold up the worker's other disks.
const LONGEST: u64 = 1 << 20;

/// Chunks promoted in one turn, so that a lease asked back is seen soon.
const TURN: usize = 64;

/// Pause between two looks at readers who copy right now.
const MOMENT: Duration = Duration::from_micros(20);

/// The pages of a disk that may be read by copying.
#[derive(Debug)]
pub struct Resident {
    window: Pages,
    size: u64,
    /// Most bytes to lock.
    limit: AtomicU64,
    /// One bit for each chunk: its pages are locked.
    hot: Box<[AtomicU64]>,
    /// One bit for each chunk: it was read while cold.
    wanted: Box<[AtomicU64]>,
    /// A bit of `wanted` was set.
    asked: AtomicBool,
    /// Something was copied.
    used: AtomicBool,
    /// Reasons why nothing may be copied: no lease, deallocations in flight.
    gate: AtomicU32,
    /// Whoever relies on pages staying where they are.
    readers: AtomicU32,
}

/// A bit in a table: index of its word, and itself.
fn bit(chunk: u64) -> (usize, u64) {
    (
        usize::try_from(chunk / 64).unwrap_or(usize::MAX),
        1 << (chunk % 64),
    )
}

fn chunks(offset: u64, len: u64) -> std::ops::RangeInclusive<u64> {
    let last = offset.saturating_add(len.saturating_sub(1));
    offset / CHUNK..=last / CHUNK
}

impl Resident {
    /// Over `window`, of `size` bytes, of which nothing may be locked yet.
    pub(crate) fn new(window: Pages, size: u64) -> Resident {
        let words = size.div_ceil(CHUNK).div_ceil(64);
        let table = || (0..words).map(|_| AtomicU64::new(0)).collect();
        Resident {
            window,
            size,
            limit: AtomicU64::new(0),
            hot: table(),
            wanted: table(),
            asked: AtomicBool::new(false),
            used: AtomicBool::new(false),
            gate: AtomicU32::new(1),
            readers: AtomicU32::new(0),
        }
    }

    /// Copy `data.len()` bytes at `offset` to `data`; false if that cannot be done without waiting,
    /// and then any of `data` may have been written.
    #[inline]
    pub(crate) fn read(&self, offset: u64, data: &Data<'_>, mem: &Mem) -> bool {
        if data.len() > LONGEST {
            return false;
        }
        self.readers.fetch_add(1, SeqCst);
        let ready = self.gate.load(SeqCst) == 0 && self.is_hot(offset, data.len());
        // SIGBUS is taken by this thread while it copies: the mark is set before the look at it.
        let copied = ready && self.copy(offset, data, mem) && !self.window.poisoned();
        self.readers.fetch_sub(1, Release);
        if !copied {
            self.want(offset, data.len());
        } else if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
        copied
    }

    #[inline]
    fn is_hot(&self, offset: u64, len: u64) -> bool {
        chunks(offset, len).all(|chunk| {
            let (word, bit) = bit(chunk);
            let word = self.hot.get(word);
            word.is_some_and(|w| w.load(SeqCst) & bit != 0)
        })
    }

    #[inline]
    fn copy(&self, mut offset: u64, data: &Data<'_>, mem: &Mem) -> bool {
        if let Some(only) = data.single() {
            return self.window.copy(offset, mem, only);
        }
        data.iter().all(|segment| {
            let at = offset;
            offset += u64::from(segment.len());
            self.window.copy(at, mem, segment)
        })
    }

    /// Remember that chunks were read while cold; a shared word is written only if it changes.
    #[inline]
    fn want(&self, offset: u64, len: u64) {
        for chunk in chunks(offset, len) {
            let (word, bit) = bit(chunk);
            if let Some(word) = self.wanted.get(word)
                && word.load(Relaxed) & bit == 0
            {
                word.fetch_or(bit, Relaxed);
                self.asked.store(true, Release);
            }
        }
    }

    /// Something will be taken out of the file: shut the gate. Undone by [`Resident::end_change`].
    pub(crate) fn begin_change(&self) {
        self.gate.fetch_add(1, SeqCst);
    }

    /// Between the two: false if `offset .. offset + len` must not be taken out yet; ask again.
    pub(crate) fn may_change(&self, offset: u64, len: u64) -> bool {
        for chunk in chunks(offset, len) {
            let (word, bit) = bit(chunk);
            if let Some(word) = self.hot.get(word) {
                word.fetch_and(!bit, SeqCst);
            }
        }
        self.readers.load(SeqCst) == 0
    }

    /// The change is done.
    pub(crate) fn end_change(&self) {
        self.gate.fetch_sub(1, SeqCst);
    }

    /// Lock at most `limit` bytes from now on.
    pub(crate) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Relaxed);
    }

    /// Bytes that are locked.
    pub(crate) fn locked(&self) -> u64 {
        let hot = |w: &AtomicU64| u64::from(w.load(Relaxed).count_ones());
        self.hot.iter().map(hot).sum::<u64>() * CHUNK
    }

    /// True if something cold was read.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(Relaxed)
    }

    /// True if something was copied since the last call.
    pub(crate) fn take_used(&self) -> bool {
        self.used.swap(false, Relaxed)
    }

    /// Take the lease and open the gate; for one keeper, that has not opened it already.
    pub(crate) fn open(&self) -> bool {
        let may = self.limit.load(Relaxed) >= CHUNK && !self.window.poisoned();
        let leased = may && self.window.lease();
        if leased {
            self.gate.fetch_sub(1, SeqCst);
        }
        leased
    }

    /// True while the gate may stay open.
    pub(crate) fn is_safe(&self) -> bool {
        let within = self.locked() <= self.limit.load(Relaxed);
        within && self.window.leased() && !self.window.poisoned()
    }

    /// True for ever once a page was lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.window.poisoned()
    }

    /// Shut the gate that [`Resident::open`] opened, wait for those who copy, let everything go.
    pub(crate) fn close(&self) {
        self.gate.fetch_add(1, SeqCst);
        while self.readers.load(SeqCst) > 0 {
            std::thread::sleep(MOMENT);
        }
        for word in &self.hot {
            word.store(0, SeqCst);
        }
        // What is wanted is what is read from now on.
        for word in &self.wanted {
            word.store(0, Relaxed);
        }
        self.asked.store(false, Relaxed);
        self.window.unlock();
        self.window.give_up();
    }

    /// Make chunks hot that were read while cold and are in the page cache; for the keeper, while
    /// the gate is open. Some of them: call it often.
    ///
    /// # Errors
    /// What mlock said: no more can be locked.
    pub(crate) fn promote(&self) -> std::io::Result<()> {
        let mut left = TURN;
        let mut room = self.limit.load(Relaxed).saturating_sub(self.locked()) / CHUNK;
        for (at, (wanted, hot)) in self.wanted.iter().zip(&self.hot).enumerate() {
            let mut bits = wanted.swap(0, Relaxed);
            while bits != 0 {
                let bit = bits & bits.wrapping_neg();
                if left == 0 {
                    wanted.fetch_or(bits, Relaxed);
                    return Ok(());
                }
                bits ^= bit;
                let chunk = at as u64 * 64 + u64::from(bit.trailing_zeros());
                if room == 0 || hot.load(Relaxed) & bit != 0 || !self.is_cached(chunk) {
                    continue; // a chunk that is read on is wanted again
                }
                (left, room) = (left - 1, room - 1);
                self.promote_one(chunk, hot, bit)?;
            }
        }
        Ok(())
    }

    fn is_cached(&self, chunk: u64) -> bool {
        let at = chunk * CHUNK;
        self.window.is_resident(at, CHUNK.min(self.size - at))
    }

    fn promote_one(&self, chunk: u64, hot: &AtomicU64, bit: u64) -> std::io::Result<()> {
        self.readers.fetch_add(1, SeqCst);
        let mut locked = Ok(());
        if self.gate.load(SeqCst) == 0 {
            locked = self.window.lock(chunk * CHUNK, CHUNK);
            if locked.is_ok() {
                hot.fetch_or(bit, SeqCst);
            }
        }
        self.readers.fetch_sub(1, Release);
        locked
    }
}

#[cfg(test)]
mod tests;
