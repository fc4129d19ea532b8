//! Who holds what outlives the process: the service manager's file-descriptor store.
//!
//! The contract is sd_notify(3)'s and sd_listen_fds(3)'s, whoever is the manager, systemd or
//! `serve --keep` ([`super::supervise`]): `FDSTORE=1` with a descriptor and its `FDNAME`,
//! `FDSTOREREMOVE=1` with the name; and at the next start all that is held comes back by
//! `LISTEN_FDS` and `LISTEN_FDNAMES`. A manager that keeps says so by `FDSTORE`, how many at most,
//! in the environment (systemd since 254; units for older ones set it themselves).
//!
//! A message to the manager is safe with it as soon as it is sent, since a manager reads its
//! messages before it looks who died. Each thing kept is one descriptor ([`super::parcel`]); a new
//! version of it is stored under a new name before the old one is removed, so a process that dies
//! in between leaves two, of which the later counts.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tracing::{error, warn};

use super::crash::Crash;
use super::standby::Wait;
use super::{KeepError, Kept, Muster, SESSION, pass};

/// Longest wait for a manager that does not read.
const PATIENCE: Duration = Duration::from_secs(5);
/// How names of ours begin; then the serial number.
const PREFIX: &str = "towpath-";
/// The kind of the word that tells a crash.
const CRASH: &str = "crash";
/// The name of a listening control socket (socket activation).
const CONTROL: &str = "control";

/// Keeps things beyond the process, or does not, if nobody offers to.
#[derive(Debug, Clone)]
pub struct Keeper(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shelf: Shelf,
    /// Names never come twice.
    serial: AtomicU64,
    /// Descriptors that the manager keeps.
    stored: AtomicUsize,
    /// What came back and was not claimed yet, by kind and name.
    left: Mutex<BTreeMap<(String, String), (Place, Kept)>>,
    /// Sessions that were claimed and are not back yet.
    muster: Muster,
    /// Held while one of them is restored that is under suspicion.
    turn: Mutex<()>,
    /// The control socket that the manager listens on for us.
    control: Mutex<Option<OwnedFd>>,
    /// Times the manager could not be told.
    failures: AtomicU64,
    /// The process before this one crashed.
    crashed: AtomicBool,
    /// How long this process waited for it to end, in nanoseconds.
    waited: AtomicU64,
}

#[derive(Debug)]
enum Shelf {
    None,
    /// The path of the manager's socket, and how many descriptors it keeps.
    Manager(PathBuf, usize),
    /// In this process, for tests.
    Here(Mutex<BTreeMap<String, OwnedFd>>),
}

impl Keeper {
    /// The manager that started this process, if it keeps things, and what it kept. Later calls
    /// know of nothing that was kept. A process that is to follow another one waits here until that
    /// one has ended; none if it is not needed after all.
    #[must_use]
    pub fn inherit() -> Option<Keeper> {
        let mut kept = pass::inherited();
        let mut waited = Duration::ZERO;
        if let Some(wait) = Wait::among(&mut kept) {
            // What takes a moment, and nobody waits for yet.
            let _ = crate::clock::Clock::new();
            let began = Instant::now();
            match wait.wait() {
                Ok(given) => kept = given?,
                Err(error) => {
                    error!(%error, "the manager does not say what to go on with");
                    return None;
                }
            }
            waited = began.elapsed();
        }
        let offered = std::env::var("FDSTORE").ok().and_then(|n| n.parse().ok());
        let socket = std::env::var_os("NOTIFY_SOCKET").map(PathBuf::from);
        let shelf = match (offered, socket) {
            (Some(most @ 1usize..), Some(path)) => Shelf::Manager(path, most),
            _ => Shelf::None,
        };
        let keeper = Keeper::new(shelf, kept);
        let nanos = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        keeper.0.waited.store(nanos, Relaxed);
        if keeper.keeps()
            && let Err(error) = keeper.watch()
        {
            warn!(%error, "a crash will not be told from a kill");
        }
        Some(keeper)
    }

    /// Know whether the process before this one crashed, and let the next one know of this.
    fn watch(&self) -> Result<(), KeepError> {
        let (mut place, file) = match self.claim(CRASH, "") {
            Some((place, mut kept)) => (place, kept.take("word")),
            None => (self.place(), None),
        };
        let fresh = file.is_none();
        let crash = Crash::watch(file)?;
        self.0.crashed.store(crash.before, Relaxed);
        if fresh {
            let mut kept = Kept::new(CRASH, "", &())?;
            kept.keep("word", &crash.file)?;
            place.put(&kept)?;
        }
        Ok(())
    }

    /// How long this process, ready to start, waited for the one before it to end.
    #[must_use]
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.0.waited.load(Relaxed))
    }

    /// Whether the process before this one ended by a fault of its own.
    #[must_use]
    pub fn crashed(&self) -> bool {
        self.0.crashed.load(Relaxed)
    }

    /// As if the process before this one had crashed, for tests.
    #[cfg(test)]
    pub(crate) fn blame(&self) {
        self.0.crashed.store(true, Relaxed);
    }

    /// Nobody keeps anything.
    #[must_use]
    pub fn nobody() -> Keeper {
        Keeper::new(Shelf::None, Vec::new())
    }

    /// Keeps in this process, for tests; `kept` is what [`Keeper::shelf`] of another gave.
    #[must_use]
    pub fn here(kept: Vec<(String, OwnedFd)>) -> Keeper {
        let keeper = Keeper::new(Shelf::Here(Mutex::default()), Vec::new());
        if let Shelf::Here(shelf) = &keeper.0.shelf {
            let twins = kept.iter().map(|(name, fd)| (name.clone(), fd.try_clone()));
            lock(shelf).extend(twins.filter_map(|(name, fd)| Some((name, fd.ok()?))));
        }
        keeper.found(kept);
        keeper
    }

    fn new(shelf: Shelf, kept: Vec<(String, OwnedFd)>) -> Keeper {
        let keeper = Keeper(Arc::new(Inner {
            shelf,
            serial: AtomicU64::new(1),
            stored: AtomicUsize::new(kept.len()),
            left: Mutex::default(),
            muster: Muster::default(),
            turn: Mutex::default(),
            control: Mutex::default(),
            failures: AtomicU64::new(0),
            crashed: AtomicBool::new(false),
            waited: AtomicU64::new(0),
        }));
        keeper.found(kept);
        keeper
    }

    fn found(&self, kept: Vec<(String, OwnedFd)>) {
        let mut ours = BTreeMap::new();
        for (name, fd) in kept {
            let serial = name
                .strip_prefix(PREFIX)
                .and_then(|n| n.parse::<u64>().ok());
            match serial {
                Some(serial) => {
                    self.0.serial.fetch_max(serial.saturating_add(1), Relaxed);
                    ours.insert(serial, fd);
                }
                None if name == CONTROL => *lock(&self.0.control) = Some(fd),
                None => warn!(name, "a descriptor of that name is not known; it is closed"),
            }
        }
        let mut left = lock(&self.0.left);
        for (serial, parcel) in ours {
            let mut place = Place {
                keeper: self.clone(),
                names: vec![format!("{PREFIX}{serial}")],
            };
            match Kept::open(&parcel) {
                Ok(kept) => {
                    let what = (kept.kind().to_owned(), kept.name().to_owned());
                    if let Some((mut old, _)) = left.insert(what, (place, kept)) {
                        old.clear();
                    }
                }
                Err(error) => {
                    warn!(%error, "something kept by a predecessor is given up");
                    place.clear();
                }
            }
        }
    }

    /// What is kept in this process, for tests.
    #[must_use]
    pub fn shelf(&self) -> Vec<(String, OwnedFd)> {
        let Shelf::Here(shelf) = &self.0.shelf else {
            return Vec::new();
        };
        let shelf = lock(shelf);
        let twins = shelf
            .iter()
            .map(|(name, fd)| (name.clone(), fd.try_clone()));
        twins
            .filter_map(|(name, fd)| Some((name, fd.ok()?)))
            .collect()
    }

    /// Whether somebody keeps what is given to [`Place::put`].
    #[must_use]
    pub fn keeps(&self) -> bool {
        !matches!(self.0.shelf, Shelf::None)
    }

    /// Times something could not be kept.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.0.failures.load(Relaxed)
    }

    /// The control socket that the manager opened (socket activation), once.
    #[must_use]
    pub fn control(&self) -> Option<OwnedFd> {
        lock(&self.0.control).take()
    }

    /// Sessions of a predecessor that are claimed and not back yet.
    #[must_use]
    pub fn muster(&self) -> &Muster {
        &self.0.muster
    }

    /// Held while a session is restored that a process crashed over: were they restored at the same
    /// time, all would be blamed for what one does.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.0.turn)
    }

    /// Whether a predecessor left sessions that nobody has claimed yet.
    #[must_use]
    pub fn has_sessions(&self) -> bool {
        self.has_kind(SESSION)
    }

    /// The same for things of this kind.
    #[must_use]
    pub fn has_kind(&self, kind: &str) -> bool {
        lock(&self.0.left).keys().any(|(of, _)| of == kind)
    }

    /// A place for something new.
    #[must_use]
    pub fn place(&self) -> Place {
        Place {
            keeper: self.clone(),
            names: Vec::new(),
        }
    }

    /// What a predecessor kept as `(kind, name)`, and its place; the latest version, once.
    #[must_use]
    pub fn claim(&self, kind: &str, name: &str) -> Option<(Place, Kept)> {
        let what = (kind.to_owned(), name.to_owned());
        lock(&self.0.left).remove(&what)
    }

    /// Whether a predecessor left something of the device `name` that nobody has claimed yet.
    #[must_use]
    pub fn has_left(&self, name: &str) -> bool {
        lock(&self.0.left).keys().any(|(_, of)| of == name)
    }

    /// Everything that was not claimed, in the order of kinds and names, but what `waits` for
    /// somebody who will come.
    #[must_use]
    pub fn claim_rest(&self, waits: impl Fn(&Kept) -> bool) -> Vec<(Place, Kept)> {
        let mut left = lock(&self.0.left);
        let rest = std::mem::take(&mut *left).into_iter();
        let (waiting, rest): (BTreeMap<_, _>, _) = rest.partition(|(_, (_, kept))| waits(kept));
        *left = waiting;
        let rest: BTreeMap<(String, String), (Place, Kept)> = rest;
        rest.into_values().collect()
    }

    fn store(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), Error> {
        match &self.0.shelf {
            Shelf::None => Ok(()),
            Shelf::Manager(path, most) => {
                // It would close what is too much, and tell nobody.
                if self.0.stored.load(Relaxed) >= *most {
                    return Err(Error::other(format!(
                        "the service manager keeps {most} descriptors and no more: raise \
                         FileDescriptorStoreMax= of the unit"
                    )));
                }
                // Not watched for a hang-up, which a parcel always shows.
                let text = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n");
                tell(path, &text, Some(fd))?;
                self.0.stored.fetch_add(1, Relaxed);
                Ok(())
            }
            Shelf::Here(shelf) => {
                lock(shelf).insert(name.to_owned(), fd.try_clone_to_owned()?);
                Ok(())
            }
        }
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        match &self.0.shelf {
            Shelf::None => Ok(()),
            Shelf::Manager(path, _) => {
                tell(path, &format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), None)?;
                self.0.stored.fetch_sub(1, Relaxed);
                Ok(())
            }
            Shelf::Here(shelf) => {
                lock(shelf).remove(name);
                Ok(())
            }
        }
    }
}

/// One message to the manager.
fn tell(path: &PathBuf, text: &str, fd: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect(path)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Error::from(ErrorKind::InvalidInput));
    }
    let text = [IoSlice::new(text.as_bytes())];
    sendmsg(&socket, &text, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Held for one insertion or removal only.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where one thing is kept. Dropping it leaves it there.
#[derive(Debug)]
pub struct Place {
    keeper: Keeper,
    /// The name of what is there, and of what could not be removed.
    names: Vec<String>,
}

impl Place {
    /// Whether anything given to it is kept.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.keeper.keeps()
    }

    /// Keep this and no longer what was kept here before. Once this returns it survives the
    /// process.
    ///
    /// # Errors
    /// If the manager cannot be told; what was kept before is kept still.
    pub fn put(&mut self, kept: &Kept) -> Result<(), KeepError> {
        if !self.keeps() {
            return Ok(());
        }
        let serial = self.keeper.0.serial.fetch_add(1, Relaxed);
        let name = format!("{PREFIX}{serial}");
        let parcel = kept.pack().and_then(|parcel| {
            self.keeper.store(&name, parcel.as_fd())?;
            Ok(())
        });
        if let Err(error) = parcel {
            self.keeper.0.failures.fetch_add(1, Relaxed);
            return Err(error);
        }
        self.clear();
        self.names.push(name);
        Ok(())
    }

    /// Keep nothing here any more.
    pub fn clear(&mut self) {
        let keeper = self.keeper.clone();
        // What cannot be removed is tried again next time, and is not the latest.
        self.names.retain(|name| keeper.remove(name).is_err());
    }
}

#[cfg(test)]
mod tests;
