//! What becomes of a request that the storage failed: told, held and tried again, or taken as the
//! end of the disk.
//!
//! | `on_error` | a request that failed | the disk |
//! |---|---|---|
//! | `report` | the guest is told | goes on |
//! | `hold` | stays in flight, is tried again every [`RETRY`] | goes on; what works, works |
//! | `fail` | the guest is told | fails every request, until an operator clears it |
//!
//! Two things no policy changes. An fsync that failed is never tried again, and every later FLUSH
//! fails until an operator clears the disk: the pages it was about are marked clean and lost, and a
//! second fsync would lie. And a request that could never be done (bad memory) is told at once.
//!
//! A hold ends with the ring: a front-end that stops its ring (reset, pause, migration, memory
//! hot-plug) must get it back drained, so what is held is tried once more and then told.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rustix::io::Errno;

use crate::config::OnError;
use crate::engine::Verb;

/// How long a held request waits between two tries.
pub const RETRY: Duration = Duration::from_millis(250);

/// What to do about one failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Tell the guest.
    Report,
    /// Try again later.
    Hold,
}

/// The policy of one disk and what it has led to; all workers share it (relaxed: it guards no other
/// data).
#[derive(Debug, Default)]
pub struct Policy {
    mode: AtomicU8,
    failed: AtomicBool,
    held: AtomicU32,
    holds: AtomicU64,
}

impl Policy {
    /// What is done about failures.
    #[must_use]
    pub fn mode(&self) -> OnError {
        match self.mode.load(Relaxed) {
            1 => OnError::Hold,
            2 => OnError::Fail,
            _ => OnError::Report,
        }
    }

    /// Do this about failures from now on. What is held is tried once more.
    pub fn set_mode(&self, mode: OnError) {
        self.mode.store(mode as u8, Relaxed);
    }

    /// True if every request fails, by [`OnError::Fail`].
    #[inline]
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    /// As if a request had failed, by [`OnError::Fail`].
    pub(crate) fn fail(&self) {
        self.failed.store(true, Relaxed);
    }

    /// An operator says that the storage is good again.
    pub fn clear(&self) {
        self.failed.store(false, Relaxed);
    }

    /// Requests held now.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.held.load(Relaxed)
    }

    /// Times a request was held, each try counted.
    #[must_use]
    pub fn holds(&self) -> u64 {
        self.holds.load(Relaxed)
    }

    /// What to do about `errno` from `verb`.
    #[cold]
    #[must_use]
    pub fn judge(&self, verb: Verb, errno: Errno) -> Verdict {
        match self.mode() {
            OnError::Fail => {
                self.failed.store(true, Relaxed);
                Verdict::Report
            }
            OnError::Hold if verb != Verb::Sync && is_of_storage(errno) => Verdict::Hold,
            OnError::Report | OnError::Hold => Verdict::Report,
        }
    }

    pub(crate) fn hold(&self) {
        self.held.fetch_add(1, Relaxed);
        self.holds.fetch_add(1, Relaxed);
    }

    pub(crate) fn release(&self) {
        self.held.fetch_sub(1, Relaxed);
    }
}

/// False for what is wrong with the request and stays wrong.
fn is_of_storage(errno: Errno) -> bool {
    !matches!(errno, Errno::FAULT | Errno::INVAL | Errno::OPNOTSUPP)
}

#[cfg(test)]
mod tests;
