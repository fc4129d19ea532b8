//! What a daemon writes down again and again for its successor: counters, addresses.
//!
//! One memfd, kept once, with two places. A version is written to the place that does not count,
//! then the word that says which one counts: a process killed in between leaves the version before.
//! Nobody is told of a new version, so writing one is two system calls and no more.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{KeepError, Keeper, Kept, Place};

/// The kind of a ledger's document.
const LEDGER: &str = "ledger";
/// Which place counts, and the lengths of both: three 64-bit words.
const HEAD: usize = 24;
/// Where the first place begins.
const FIRST: u64 = 4096;
/// Room for one version; what is not written takes no memory.
const ROOM: u64 = 64 << 20;

/// A ledger, for one writer.
#[derive(Debug)]
pub struct Ledger {
    file: File,
    /// The place that counts, and its bytes; 0 bytes: nothing was written.
    active: u64,
    lengths: [u64; 2],
    /// Holds on to it: what is kept stays while the process lives.
    _place: Place,
}

impl Ledger {
    /// The ledger `name`, and what a predecessor wrote last. `None` if nobody keeps it.
    ///
    /// # Errors
    /// If it cannot be made or kept.
    pub fn open(keeper: &Keeper, name: &str) -> Result<Option<(Ledger, Vec<u8>)>, KeepError> {
        if !keeper.keeps() {
            return Ok(None);
        }
        if let Some((place, mut kept)) = keeper.claim(LEDGER, name) {
            let file = File::from(kept.need("ledger")?);
            let mut ledger = Ledger::over(file, place);
            let last = ledger.read()?;
            return Ok(Some((ledger, last)));
        }
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = rustix::fs::memfd_create("towpath-ledger", flags);
        let file = File::from(file.map_err(std::io::Error::from)?);
        file.set_len(FIRST + 2 * ROOM)?;
        let mut place = keeper.place();
        let mut kept = Kept::new(LEDGER, name, &())?;
        kept.keep("ledger", &file)?;
        place.put(&kept)?;
        Ok(Some((Ledger::over(file, place), Vec::new())))
    }

    fn over(file: File, place: Place) -> Ledger {
        Ledger {
            file,
            active: 0,
            lengths: [0; 2],
            _place: place,
        }
    }

    fn at(place: u64) -> u64 {
        FIRST + place * ROOM
    }

    fn read(&mut self) -> Result<Vec<u8>, KeepError> {
        let mut head = [0; HEAD];
        self.file.read_exact_at(&mut head, 0)?;
        let [active, first, second] = [0, 8, 16].map(|at| {
            let mut word = [0; 8];
            word.copy_from_slice(head.get(at..at + 8).unwrap_or(&[0; 8]));
            u64::from_ne_bytes(word)
        });
        self.active = active & 1;
        self.lengths = [first, second];
        let length = if self.active == 0 { first } else { second };
        if length > ROOM {
            return Err(KeepError::Unfit(format!("a ledger of {length} bytes")));
        }
        let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
        self.file.read_exact_at(&mut text, Self::at(self.active))?;
        Ok(text)
    }

    /// Write a new version; it counts once this returns.
    ///
    /// # Errors
    /// [`KeepError::Unfit`] if it is too long; if there is no memory.
    pub fn write(&mut self, text: &[u8]) -> Result<(), KeepError> {
        let length = text.len() as u64;
        if length > ROOM {
            return Err(KeepError::Unfit(format!("a ledger of {length} bytes")));
        }
        let next = 1 - self.active;
        self.file.write_all_at(text, Self::at(next))?;
        if let Some(slot) = self.lengths.get_mut(usize::from(next == 1)) {
            *slot = length;
        }
        let [first, second] = self.lengths;
        // The lengths first: the one that is not active says nothing.
        let lengths = [first, second].map(u64::to_ne_bytes).concat();
        self.file.write_all_at(&lengths, 8)?;
        self.file.write_all_at(&next.to_ne_bytes(), 0)?;
        self.active = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_reads_the_last_whole_version() {
        let keeper = Keeper::here(Vec::new());
        let (mut ledger, last) = Ledger::open(&keeper, "n").unwrap().unwrap();
        assert_eq!(last, b"");
        for text in ["one", "twenty-two", "3", ""] {
            ledger.write(text.as_bytes()).unwrap();
            let next = Keeper::here(keeper.shelf());
            let (_, last) = Ledger::open(&next, "n").unwrap().unwrap();
            assert_eq!(last, text.as_bytes());
        }
        ledger.write(b"whole").unwrap();
        // Killed while it wrote the next one: before the word that counts.
        let next = Ledger::at(1 - ledger.active);
        ledger.file.write_all_at(b"half", next).unwrap();
        let successor = Keeper::here(keeper.shelf());
        let (mut ledger, last) = Ledger::open(&successor, "n").unwrap().unwrap();
        assert_eq!(last, b"whole");
        ledger.write(b"goes on").unwrap();
        assert_eq!(ledger.read().unwrap(), b"goes on");
    }

    #[test]
    fn where_nobody_keeps_there_is_none() {
        assert!(Ledger::open(&Keeper::nobody(), "n").unwrap().is_none());
    }

    #[test]
    fn one_too_long_is_refused_and_the_last_one_counts() {
        let keeper = Keeper::here(Vec::new());
        let (mut ledger, _) = Ledger::open(&keeper, "n").unwrap().unwrap();
        ledger.write(b"short").unwrap();
        let long = vec![0; usize::try_from(ROOM).unwrap() + 1];
        assert!(matches!(ledger.write(&long), Err(KeepError::Unfit(_))));
        assert_eq!(ledger.read().unwrap(), b"short");
    }
}
