//! A guest's memory as an engine takes it: as it is, or registered with io_uring beforehand.
//!
//! Registering lets the kernel skip looking up and pinning pages for each operation: 4 to 6 % of a
//! cached read, 16 % with four segments. It costs what it saves elsewhere: every page of the guest
//! is made resident and pinned for as long as it runs, which takes seconds per GiB of fresh memory
//! and defeats overcommit and ballooning. Hence the policy.

use std::sync::Arc;

use towpath_common::mem::Mem;

use super::uring_donor::Donor;
use crate::config::GuestMemory;

/// Most guest memory that [`GuestMemory::Auto`] registers, in bytes: 1 GiB, three seconds at most.
const AUTO_LIMIT: u64 = 1 << 30;

/// A guest's memory map, prepared for I/O off the worker. A clone is the same registration.
#[derive(Debug, Clone)]
pub struct Guest {
    mem: Arc<Mem>,
    donor: Option<Arc<Donor>>,
}

impl Guest {
    /// Memory that the kernel pins for each operation anew.
    #[must_use]
    pub fn plain(mem: Arc<Mem>) -> Guest {
        Guest { mem, donor: None }
    }

    /// Memory prepared as `policy` has it. May take seconds: not for a worker's thread. Where
    /// limits refuse registration, the memory is plain and a log line says why.
    #[must_use]
    pub fn prepare(mem: Arc<Mem>, policy: GuestMemory) -> Guest {
        let size: u64 = mem.regions().iter().map(|r| r.spec().len).sum();
        let wanted = match policy {
            GuestMemory::Auto => size <= AUTO_LIMIT,
            GuestMemory::Registered => true,
            GuestMemory::Plain => false,
        };
        let donor = if wanted { Donor::new(&mem) } else { Ok(None) };
        let donor = donor.unwrap_or_else(|error| {
            tracing::info!(%error, size, "guest memory is not registered with io_uring; raise \
                LimitMEMLOCK or grant CAP_IPC_LOCK, or say guest-memory=plain");
            None
        });
        Guest {
            mem,
            donor: donor.map(Arc::new),
        }
    }

    /// The memory map.
    #[must_use]
    pub fn mem(&self) -> &Arc<Mem> {
        &self.mem
    }

    /// True if it is registered.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.donor.is_some()
    }

    pub(super) fn donor(&self) -> Option<&Donor> {
        self.donor.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Tells the second run of this program that it has no right to pin memory.
    const LIMITED: &str = "VBLK_TEST_LIMITED";

    /// Not a test by itself: what the one below runs under a limit.
    #[test]
    fn child() {
        if std::env::var_os(LIMITED).is_none() {
            return;
        }
        towpath_common::logging::init("vblk", None, &[]).unwrap();
        let mem = crate::testing::map(&[1 << 20]);
        let guest = Guest::prepare(Arc::clone(&mem), GuestMemory::Registered);
        assert!(!guest.is_registered() && Arc::ptr_eq(guest.mem(), &mem));
    }

    #[test]
    fn where_limits_refuse_memory_is_plain_and_a_log_line_says_so() {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]);
        command.args(["prlimit", "--memlock=65536:65536"]);
        command.arg(std::env::current_exe().unwrap());
        command.args(["--exact", "engine::guest::tests::child", "--nocapture"]);
        command.env(LIMITED, "1").env_remove("JOURNAL_STREAM");
        let ran = command.output();
        let Ok(ran) = ran.inspect_err(|e| println!("skipped: no setpriv: {e}")) else {
            return;
        };
        let log = String::from_utf8_lossy(&ran.stderr);
        if log.contains("setpriv:") {
            println!("skipped: not root: {log}");
            return;
        }
        assert!(ran.status.success(), "{log}");
        assert!(log.contains("is not registered with io_uring"), "{log}");
    }
}
