//! What changes too often to be told to the manager, in memory that outlives the process.
//!
//! A page of shared memory a session, kept with its record: whether a message is being handled,
//! how often a process crashed over it, and for each vring three words for its device. A word is a
//! plain store into the page, which a killed process leaves as it was.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use std::sync::atomic::compiler_fence;

use super::KeepError;
use crate::mem::{Mapping, View};

/// Offsets in the first line, 64-bit words.
const STAGE: usize = 0;
const STRIKES: usize = 8;
const RESTORING: usize = 16;
/// Offset in a vring's line: its device is at work on it.
const BUSY: usize = 8;
/// Offset in a vring's line: what failed.
const FAILED: usize = 16;
/// One line of cache for the head and for each vring: they belong to different threads.
const LINE: usize = 64;
/// Set in a vring's word once its device wrote one; the index is below.
const SET: u64 = 1 << 32;

/// A session's page.
#[derive(Debug, Clone)]
pub struct Journal {
    view: View,
    file: Arc<OwnedFd>,
    vrings: u16,
}

impl Journal {
    fn bytes(vrings: u16) -> usize {
        LINE * (usize::from(vrings) + 1)
    }

    /// A fresh one for a device with `vrings` vrings.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn create(vrings: u16) -> Result<Journal, KeepError> {
        let (mapping, file) = Mapping::memfd("towpath-journal", Self::bytes(vrings) as u64)?;
        Self::over(mapping, file, vrings)
    }

    /// A predecessor's.
    ///
    /// # Errors
    /// If it is too small for `vrings`.
    pub fn adopt(file: OwnedFd, vrings: u16) -> Result<Journal, KeepError> {
        let mapping = Mapping::of_file(file.as_fd(), 0, Self::bytes(vrings) as u64)?;
        Self::over(mapping, file, vrings)
    }

    fn over(mapping: Mapping, file: OwnedFd, vrings: u16) -> Result<Journal, KeepError> {
        let len = Self::bytes(vrings) as u64;
        let view = View::new(&Arc::new(mapping), 0, len, 8);
        let view = view.ok_or_else(|| KeepError::Unfit("a journal too small".to_owned()))?;
        let file = Arc::new(file);
        Ok(Journal { view, file, vrings })
    }

    /// The memory it is in.
    #[must_use]
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// A message is being handled, from before it is received until it is answered.
    pub fn set_handling(&self, handling: bool) {
        self.view.store_u64(STAGE, handling.into(), Release);
    }

    /// Whether the process died while it handled a message: nobody knows how much of that the
    /// front-end has seen.
    #[must_use]
    pub fn was_handling(&self) -> bool {
        self.view.load_u64(STAGE, Relaxed) != 0
    }

    /// A successor takes the session; `crashed`: its predecessor did not end by anybody's wish. If
    /// it was at work for this session then, that is a strike. Gives the strikes so far.
    #[must_use]
    pub fn begin(&self, crashed: bool) -> u64 {
        let busy = |vring: u16| {
            let at = LINE * (usize::from(vring) + 1) + BUSY;
            self.view.load_u64(at, Relaxed) != 0
        };
        let at_work = (0..self.vrings).any(busy) || self.view.load_u64(RESTORING, Relaxed) != 0;
        let strikes = self.view.load_u64(STRIKES, Relaxed);
        let strikes = strikes.saturating_add(u64::from(crashed && at_work));
        self.view.store_u64(STRIKES, strikes, Release);
        for vring in 0..self.vrings {
            let at = LINE * (usize::from(vring) + 1) + BUSY;
            self.view.store_u64(at, 0, Release);
        }
        self.view.store_u64(RESTORING, 0, Release);
        strikes
    }

    /// It is being restored: a crash now may be its doing.
    pub fn restore(&self) {
        self.view.store_u64(RESTORING, 1, Release);
    }

    /// It is restored, or held.
    pub fn settle(&self) {
        self.view.store_u64(RESTORING, 0, Release);
    }

    /// What devices said to have failed ([`Cell::fail`]), of all vrings.
    #[must_use]
    pub fn failed(&self) -> u64 {
        let lines = (0..self.vrings).map(|vring| LINE * (usize::from(vring) + 1));
        lines.fold(0, |all, at| all | self.view.load_u64(at + FAILED, Relaxed))
    }

    /// What failed is in the session's record, or repaired.
    pub fn forget_failed(&self) {
        for vring in 0..self.vrings {
            let at = LINE * (usize::from(vring) + 1) + FAILED;
            self.view.store_u64(at, 0, Release);
        }
    }

    /// Strikes are forgotten.
    pub fn forgive(&self) {
        self.view.store_u64(STRIKES, 0, Release);
    }

    /// The word of a vring.
    #[must_use]
    pub fn cell(&self, vring: u16) -> Option<Cell> {
        let at = LINE * (usize::from(vring) + 1);
        let view = self.view.clone();
        (vring < self.vrings).then_some(Cell { view, at })
    }
}

/// The word of one vring: the avail index up to which its device has begun to act.
///
/// A device that carries out a burst in many places writes it before the first of them can be seen
/// by anybody. What a predecessor's word covers and its used ring does not may have been done; a
/// device that must not do anything twice gives it up.
#[derive(Debug, Clone)]
pub struct Cell {
    view: View,
    at: usize,
}

impl Cell {
    /// The device is at work on the vring, or is done for now.
    #[inline]
    pub fn set_busy(&self, busy: bool) {
        self.view.store_u64(self.at + BUSY, busy.into(), Release);
    }

    /// This failed, and stays so for a successor, although the record does not say it yet: bits of
    /// [`super::Settings::failed`]. To be called before anybody is told.
    pub fn fail(&self, bits: u64) {
        self.view.store_u64(self.at + FAILED, bits, Release);
        compiler_fence(SeqCst);
    }

    /// Up to here.
    #[inline]
    pub fn begin(&self, next_avail: u16) {
        self.view
            .store_u64(self.at, SET | u64::from(next_avail), Release);
        // A kill stops the processor between two instructions: that the compiler keeps their order
        // is enough.
        compiler_fence(SeqCst);
    }

    /// What was written last, by whoever.
    #[must_use]
    pub fn begun(&self) -> Option<u16> {
        let word = self.view.load_u64(self.at, Relaxed);
        let [a, b, ..] = word.to_le_bytes();
        (word & SET != 0).then_some(u16::from_le_bytes([a, b]))
    }

    /// Nothing was begun.
    pub fn clear(&self) {
        self.view.store_u64(self.at, 0, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_reads_what_was_written_last() {
        let journal = Journal::create(2).unwrap();
        assert!(!journal.was_handling());
        journal.set_handling(true);
        let cell = journal.cell(1).unwrap();
        assert_eq!(cell.begun(), None);
        cell.begin(u16::MAX);
        let file = journal.file().try_clone().unwrap();
        let next = Journal::adopt(file, 2).unwrap();
        assert!(next.was_handling());
        assert_eq!(next.cell(1).unwrap().begun(), Some(u16::MAX));
        assert_eq!(next.cell(0).unwrap().begun(), None);
        assert!(next.cell(2).is_none());
        next.cell(1).unwrap().clear();
        assert_eq!(cell.begun(), None);
    }

    #[test]
    fn what_failed_is_known_before_the_record_says_so() {
        let journal = Journal::create(3).unwrap();
        journal.cell(0).unwrap().fail(1);
        journal.cell(2).unwrap().fail(4);
        let file = journal.file().try_clone().unwrap();
        let next = Journal::adopt(file, 3).unwrap();
        assert_eq!(next.failed(), 5);
        assert_eq!(next.begin(true), 0, "no strike");
        next.forget_failed();
        assert_eq!(journal.failed(), 0);
    }

    #[test]
    fn only_a_crash_at_work_is_a_strike() {
        let journal = Journal::create(2).unwrap();
        let cell = journal.cell(1).unwrap();
        assert_eq!(journal.begin(true), 0, "nothing was done for it");
        assert_eq!(journal.begin(true), 0, "nor when it waited for its turn");
        journal.restore();
        assert_eq!(journal.begin(false), 0, "killed while it was restored");
        journal.restore();
        assert_eq!(journal.begin(true), 1, "crashed while it was restored");
        journal.settle();
        cell.set_busy(true);
        assert_eq!(journal.begin(false), 1, "killed at work");
        journal.settle();
        cell.set_busy(true);
        assert_eq!(journal.begin(true), 2, "crashed at work");
        journal.settle();
        cell.set_busy(true);
        cell.set_busy(false);
        assert_eq!(journal.begin(true), 2, "crashed over another one");
        journal.forgive();
        journal.settle();
        assert_eq!(journal.begin(true), 0);
    }

    #[test]
    fn one_too_small_is_refused() {
        let file = Journal::create(1).unwrap().file().try_clone().unwrap();
        assert!(Journal::adopt(file, 4000).is_err());
    }
}
