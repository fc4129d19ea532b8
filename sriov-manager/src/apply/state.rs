//! What outlives a process: the lock, the journal, leases, and PFs on which a write is stuck.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::address::PciAddr;
use crate::attribute::Key;
use crate::inventory::{Known, Lacks};

/// Another text with every start of the host.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// What drivers were found to lack.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Lacking {
    /// The [`BOOT`] in which they did.
    boot: String,
    of: BTreeMap<PciAddr, Lacks>,
}

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot {action} {}: {source}; run as root, or name another directory as state",
    path.display()
)]
pub struct StateError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl StateError {
    pub(crate) fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self {
            action,
            path,
            source,
        }
    }
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("process {holder} is changing this host's VFs right now; try again when it is done")]
    Taken {
        /// Who has it, or had it when its child, stuck in a write, inherited it.
        holder: String,
    },
    /// It cannot be made.
    #[error(transparent)]
    State(#[from] StateError),
}

/// The right to change this host's VFs.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// A descriptor that keeps the lock for as long as any copy of it is open.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }
}

/// A process, told apart from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it was started, in ticks since the machine was (`/proc/PID/stat`, field 22).
    pub start: u64,
}

impl Process {
    /// The process that has this number now.
    pub fn now(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is a name in parentheses, and may contain anything.
        let (_, rest) = stat.rsplit_once(')')?;
        let start = rest.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, start })
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Self::now(self.pid) == Some(self)
    }
}

/// The state directory.
#[derive(Clone, Debug)]
pub struct State {
    dir: PathBuf,
}

impl State {
    /// Uses `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| StateError::new("make", dir, error))?;
        let dir = dir.to_owned();
        Ok(Self { dir })
    }

    /// Uses `dir` as it is, for reading: what is missing is empty.
    pub fn look(dir: &Path) -> Self {
        let dir = dir.to_owned();
        Self { dir }
    }

    /// Where the journal is.
    pub fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }

    /// Takes the lock, without waiting.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn lock(&self) -> Result<Lock, LockError> {
        let path = self.dir.join("lock");
        let system = |action| move |error| StateError::new(action, &self.dir.join("lock"), error);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(system("open"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _nobody_knows = file.read_to_string(&mut holder);
                let holder = holder.trim().to_owned();
                return Err(LockError::Taken { holder });
            }
            Err(error) => return Err(system("lock")(error.into()).into()),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| write!(file, "{}", std::process::id()));
        written.map_err(system("write"))?;
        Ok(Lock(file))
    }

    /// What a scan has to be told.
    ///
    /// # Errors
    /// When something there cannot be read.
    pub fn known(&self) -> Result<Known, StateError> {
        let wedged: BTreeMap<PciAddr, Process> = self.load("wedged.json")?;
        let leases: BTreeMap<PciAddr, crate::lease::Lease> = self.load("leases.json")?;
        let stuck = wedged.into_iter().filter(|(_, process)| process.is_alive());
        Ok(Known {
            wedged: stuck
                .map(|(address, process)| (address, process.pid))
                .collect(),
            leases: leases
                .into_iter()
                .map(|(address, lease)| (address, lease.owner.as_str().to_owned()))
                .collect(),
            lacks: self.lacks()?.of,
        })
    }

    /// What drivers lack, as far as it was found since the host was started.
    fn lacks(&self) -> Result<Lacking, StateError> {
        let boot = fs::read_to_string(BOOT).unwrap_or_default();
        let lacking: Lacking = self.load("lacks.json")?;
        if lacking.boot == boot {
            return Ok(lacking);
        }
        let of = BTreeMap::new();
        Ok(Lacking { boot, of })
    }

    /// Remembers that `driver`, which has `pf`, lacks an attribute: until the host is started
    /// again, with what may be another kernel.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remember_lack(&self, pf: PciAddr, driver: &str, key: Key) -> Result<(), StateError> {
        let mut lacking = self.lacks()?;
        let own = lacking.of.entry(pf).or_default();
        if own.driver != driver {
            driver.clone_into(&mut own.driver);
            own.keys.clear();
        }
        own.keys.insert(key);
        self.save("lacks.json", &lacking)
    }

    /// Remembers that `writer` is stuck in a write to `pf`, until it ends.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remember_wedged(&self, pf: PciAddr, writer: u32) -> Result<(), StateError> {
        let mut wedged: BTreeMap<PciAddr, Process> = self.load("wedged.json")?;
        wedged.retain(|_, process| process.is_alive());
        wedged.extend(Process::now(writer).map(|process| (pf, process)));
        self.save("wedged.json", &wedged)
    }

    /// Reads `name`; what is not there is empty.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn load<T: DeserializeOwned + Default>(&self, name: &str) -> Result<T, StateError> {
        let path = self.dir.join(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| StateError::new("understand", &path, error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
            Err(error) => Err(StateError::new("read", &path, error)),
        }
    }

    /// Writes `name`, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let path = self.dir.join(name);
        let new = self.dir.join(format!("{name}.new"));
        let write = || -> io::Result<()> {
            let bytes = serde_json::to_vec_pretty(value)?;
            let mut file = File::create(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(|error| StateError::new("write", &path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_lock() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let lock = state.lock().unwrap();
        let error = state.lock().unwrap_err().to_string();
        let expected = format!("process {} is changing", std::process::id());
        assert!(error.starts_with(&expected), "{error}");
        let copy = lock.share().unwrap();
        drop(lock);
        assert!(state.lock().is_err(), "the copy has it");
        drop(copy);
        state.lock().unwrap();
    }

    #[test]
    fn a_process_is_told_from_a_later_one() {
        let own = Process::now(std::process::id()).unwrap();
        assert!(own.is_alive());
        let other = Process {
            start: own.start + 1,
            ..own
        };
        assert!(!other.is_alive());
    }

    #[test]
    fn a_stuck_writer_is_known_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let pf = PciAddr::new(0, 1, 0, 0);
        state.remember_wedged(pf, std::process::id()).unwrap();
        assert_eq!(
            state.known().unwrap().wedged.get(&pf),
            Some(&std::process::id())
        );
        let ended = Process {
            pid: std::process::id(),
            start: 0,
        };
        state
            .save("wedged.json", &BTreeMap::from([(pf, ended)]))
            .unwrap();
        assert!(state.known().unwrap().wedged.is_empty());
    }

    #[test]
    fn what_is_not_understood_is_not_taken_for_empty() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        fs::write(dir.path().join("leases.json"), "{").unwrap();
        assert!(state.known().is_err());
    }
}
