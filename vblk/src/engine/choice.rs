//! Which engine workers have: io_uring, or threads where the host forbids it.
//!
//! A host says no in several ways: `kernel.io_uring_disabled` and container runtimes' seccomp
//! profiles with EPERM, gVisor and old kernels with ENOSYS. So it is tried: a ring is made as
//! workers make theirs, once, when the daemon starts.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::threads::Threads;
use super::uring::Uring;
use super::{Completions, DiskId, Engine, Guest, MemId, Op, Token};
use crate::config::{EngineChoice, GuestMemory};
use crate::disk::Disk;

/// An engine for files and devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// [`Uring`].
    #[default]
    IoUring,
    /// [`Threads`].
    Threads,
}

/// What was asked for is not to be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "io_uring cannot be used here ({0}); allow it (sysctl kernel.io_uring_disabled=0, the \
     container's seccomp profile), or say engine = \"auto\" or \"threads\""
)]
pub struct ChoiceError(#[source] io::Error);

impl Kind {
    /// What to use where `wanted` is asked for; said in the log where it is not io_uring.
    ///
    /// # Errors
    /// [`ChoiceError`] if io_uring is insisted on and is not to be had.
    pub fn choose(wanted: EngineChoice) -> Result<Kind, ChoiceError> {
        Kind::judge(wanted, || Uring::new(1).map(drop))
    }

    fn judge(
        wanted: EngineChoice,
        probe: impl FnOnce() -> io::Result<()>,
    ) -> Result<Kind, ChoiceError> {
        match wanted {
            EngineChoice::Threads => Ok(Kind::Threads),
            EngineChoice::IoUring => probe().map(|()| Kind::IoUring).map_err(ChoiceError),
            EngineChoice::Auto => Ok(match probe() {
                Ok(()) => Kind::IoUring,
                Err(error) => {
                    tracing::warn!(%error, "io_uring cannot be used here: disks are served by \
                        threads, which is slower, and without NBD and mirrors");
                    Kind::Threads
                }
            }),
        }
    }

    /// How guest memory is prepared for it, where `wanted` is configured.
    #[must_use]
    pub fn memory(self, wanted: GuestMemory) -> GuestMemory {
        match self {
            Kind::IoUring => wanted,
            Kind::Threads => GuestMemory::Plain,
        }
    }

    /// What it is called in the configuration, logs and the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::IoUring => "io_uring",
            Kind::Threads => "threads",
        }
    }
}

/// Either engine, for those whose choice costs nothing: a worker's type has it.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one a backup, where it stays"
)]
pub enum Choice {
    /// io_uring.
    Uring(Uring),
    /// Threads.
    Threads(Threads),
}

impl Choice {
    /// io_uring, or threads where it cannot be had.
    ///
    /// # Errors
    /// As [`Threads::new`].
    pub fn new(capacity: u32) -> io::Result<Choice> {
        match Uring::new(capacity) {
            Ok(ring) => Ok(Choice::Uring(ring)),
            Err(_) => Threads::new(capacity).map(Choice::Threads),
        }
    }

    fn inner(&mut self) -> &mut dyn Engine {
        match self {
            Choice::Uring(ring) => ring,
            Choice::Threads(threads) => threads,
        }
    }
}

impl AsFd for Choice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Choice::Uring(ring) => ring.as_fd(),
            Choice::Threads(threads) => threads.as_fd(),
        }
    }
}

impl Engine for Choice {
    fn push(&mut self, token: Token, op: &Op<'_>) -> Result<(), Errno> {
        self.inner().push(token, op)
    }

    fn submit(&mut self) -> usize {
        self.inner().submit()
    }

    fn reap(&mut self, done: &mut Completions) {
        self.inner().reap(done);
    }

    fn arm(&mut self) -> bool {
        self.inner().arm()
    }

    fn disarm(&mut self) {
        self.inner().disarm();
    }

    fn is_patient(&self) -> bool {
        match self {
            Choice::Uring(ring) => ring.is_patient(),
            Choice::Threads(threads) => threads.is_patient(),
        }
    }

    fn set_disk(&mut self, id: DiskId, disk: Option<&Disk>) -> io::Result<()> {
        self.inner().set_disk(id, disk)
    }

    fn set_file(&mut self, id: DiskId, file: BorrowedFd<'_>) -> io::Result<()> {
        self.inner().set_file(id, file)
    }

    fn set_memory(&mut self, id: MemId, guest: Option<&Guest>) -> io::Result<()> {
        self.inner().set_memory(id, guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::contract;

    contract::contract!(|capacity| Choice::new(capacity).unwrap());

    fn forbidden() -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }

    #[test]
    fn io_uring_is_used_where_it_can_be_and_threads_where_it_cannot() {
        let judge = |wanted| Kind::judge(wanted, forbidden).ok();
        assert_eq!(judge(EngineChoice::Auto), Some(Kind::Threads));
        assert_eq!(judge(EngineChoice::IoUring), None);
        assert_eq!(judge(EngineChoice::Threads), Some(Kind::Threads));
        let judge = |wanted| Kind::judge(wanted, || Ok(())).unwrap();
        assert_eq!(judge(EngineChoice::Auto), Kind::IoUring);
        assert_eq!(judge(EngineChoice::IoUring), Kind::IoUring);
        let error = Kind::judge(EngineChoice::IoUring, forbidden).unwrap_err();
        assert!(error.to_string().contains("kernel.io_uring_disabled=0"));
    }

    #[test]
    fn names_are_those_of_the_api() {
        for kind in [Kind::IoUring, Kind::Threads] {
            let json = serde_json::to_value(kind).unwrap();
            assert_eq!(json, kind.name());
            let wanted: EngineChoice = serde_json::from_value(json).unwrap();
            assert_eq!(format!("{wanted:?}"), format!("{kind:?}"));
        }
    }
}
