//! Mirror: the same bytes on several disks, as one disk that survives the loss of all but one.
//!
//! A worker's part (`crate::engine::mirror`) copies what is written, since a guest may change its
//! buffer while it is written and every disk must get the same bytes, and writes the copy to all.
//! Reads go to the disk that answers soonest, or the one that is preferred.
//!
//! # What is written down
//!
//! Which disks are *current*, and in which regions they may differ (`record`), in a file of its
//! own. A region is marked there, durably, before it is first written; it is unmarked a while after
//! the last write, once every disk has flushed. So after a crash only the marked regions are
//! copied, and none after an end with nothing in flight, in the same boot (`rest`): from the first
//! current disk to the others, and until a region was copied it is read from that one alone. A disk
//! that fails is written down as not current before any write it missed is acknowledged; nothing is
//! unmarked until it is back, and it is not read before it has caught up, whatever happens in
//! between. A mirror without a current disk is not served.
//!
//! Writes that overlap, and copies under writes, are carried out one after the other, which is why
//! one worker serves all queues.
//!
//! # What is failed, and what comes back
//!
//! An error, a failed flush, or no answer within `mirror_timeout` fails a disk, except the last
//! current one, whose errors are the guest's. `vblk mirror add` brings a disk back by what it
//! missed; NBD exports are brought back by themselves.

pub mod bits;
mod keeper;
mod orders;
pub mod record;
mod resize;
mod rest;
mod state;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU8, AtomicU32, AtomicU64};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use rustix::event::EventfdFlags;
use towpath_common::clock::Clock;

use super::{Health, Shape, Storage, nbd};
use crate::config::Cache;
use crate::disk::{Disk, DiskError, Serial, Spec};
use record::{MAX_MEMBERS, Record, RecordError, hash};
pub use state::{Standing, State};

/// Opens a disk of a mirror, or says why it cannot.
pub type Opener = Box<dyn Fn() -> Result<Disk, String> + Send + Sync>;

/// A disk of a mirror.
pub struct Member {
    /// What the configuration calls it; the record knows it by that.
    pub name: String,
    /// Opens it.
    pub open: Opener,
    /// It is brought back by itself when it failed.
    pub returns: bool,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Longest an end waits for the record; without its last word, marked regions are copied later.
const REST: Duration = Duration::from_secs(1);

/// How a mirror is used.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The disk to read from while it is current, counted from 0.
    pub prefer: Option<usize>,
    /// Most bytes a second to copy to a disk that catches up.
    pub rate: u64,
    /// How long a disk has to answer.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            prefer: None,
            rate: 100 << 20,
            timeout: Duration::from_secs(30),
        }
    }
}

/// Why there is no mirror.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// Too few or too many disks.
    #[error("a mirror of {0} disks; name 2 to {MAX_MEMBERS}")]
    Count(usize),
    /// The record's file.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The record cannot be opened.
    #[error("the mirror's record: {0}; `vblk mirror create` makes one for a new mirror")]
    NoRecord(DiskError),
    /// Nothing that may be read.
    #[error(
        "none of the mirror's current disks can be opened ({0}); what the others hold is older: \
         bring one back, or make a new record from the disk to be kept (`vblk mirror create`)"
    )]
    NoneCurrent(String),
    /// A disk is too small or too demanding.
    #[error("disk {name} of the mirror: {why}")]
    Unfit {
        /// Which.
        name: String,
        /// Why.
        why: String,
    },
    /// It would have to be written.
    #[error("a mirror cannot be served read-only; serve one of its disks")]
    ReadOnly,
    /// There is no such disk, or it is in no such state.
    #[error("{0}")]
    Refused(String),
    /// An eventfd or a thread.
    #[error("cannot set up a mirror: {0}")]
    System(std::io::Error),
}

/// What the control plane asks of the worker.
#[derive(Debug)]
pub(crate) enum Order {
    /// Use a disk no more.
    Fail(usize),
    /// Use this disk in the place; copy what it missed, or everything.
    Add(usize, Arc<Disk>, bool),
}

/// What all sides know of one disk.
#[derive(Debug, Default)]
pub struct Gauge {
    standing: AtomicU8,
    /// Why it failed: an errno, 0 for an operator's word.
    pub(crate) errno: AtomicI32,
    /// Failed operations.
    pub(crate) errors: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    /// What a read takes, in ns.
    pub(crate) latency: AtomicU64,
    /// Regions it has to catch up with.
    pub(crate) behind: AtomicUsize,
    /// What it is (`rest`): 0 if nobody can tell whether it is still that later on.
    pub(crate) rest: AtomicU64,
    /// The worker has nothing to do with it any more.
    pub(crate) closed: AtomicBool,
}

impl Gauge {
    /// How it stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        Standing::of(self.standing.load(Ordering::Acquire))
    }

    pub(crate) fn set(&self, standing: Standing) {
        self.standing.store(standing as u8, Ordering::Release);
    }
}

/// What the worker, the control plane and the mirror's own thread share.
#[derive(Debug)]
pub struct Shared {
    pub(crate) names: Box<[String]>,
    pub(crate) gauges: Box<[Gauge]>,
    pub(crate) orders: ArrayQueue<Order>,
    bell: OwnedFd,
    /// The state, while no worker has it.
    parcel: Mutex<Option<Box<State>>>,
    /// The control plane wants the state.
    wanted: AtomicBool,
    /// Bytes of a region.
    pub(crate) region: AtomicU64,
    pub(crate) clock: Clock,
    pub(crate) prefer: AtomicUsize,
    pub(crate) timeout: AtomicU64,
    rate: AtomicU64,
    /// Bytes that may be copied now.
    pub(crate) budget: AtomicI64,
    pub(crate) copied: AtomicU64,
    /// Regions that are marked.
    pub(crate) dirty: AtomicUsize,
    /// Operations in flight.
    pub(crate) flying: AtomicU32,
    /// What the record's file said last; 0 for nothing bad.
    pub(crate) record_errno: AtomicI32,
}

impl Shared {
    /// Readable when somebody wants the worker's attention.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Make the bell readable.
    pub fn ring(&self) {
        // The counter cannot be full: it is read each time.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// The state, if it is here and nobody else is to have it.
    pub(crate) fn take(&self) -> Option<Box<State>> {
        if self.is_wanted() {
            return None;
        }
        self.parcel
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Wait, for a moment, until the worker has written down how the disks are left.
    pub(crate) fn wait_for_rest(&self) {
        let until = std::time::Instant::now() + REST;
        let parcel = || self.parcel.lock().unwrap_or_else(PoisonError::into_inner);
        while parcel().is_none() && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn give_back(&self, state: Box<State>) {
        *self.parcel.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }

    /// Use it like this from now on.
    pub fn set_options(&self, options: &Options) {
        let prefer = options.prefer.unwrap_or(usize::MAX);
        self.prefer.store(prefer, Ordering::Relaxed);
        self.rate.store(options.rate, Ordering::Relaxed);
        let timeout = self.clock.rate().of(options.timeout);
        self.timeout.store(timeout.0, Ordering::Relaxed);
    }

    /// True if a disk has to catch up.
    fn is_behind(&self) -> bool {
        let behind = |g: &Gauge| g.behind.load(Ordering::Relaxed) > 0;
        let here = |g: &Gauge| g.standing() != Standing::Failed;
        self.gauges.iter().any(|g| here(g) && behind(g))
    }
}

/// A mirror.
#[derive(Debug)]
pub struct Mirror {
    shared: Arc<Shared>,
    inside: Arc<Inside>,
}

/// What the control plane has of a mirror, and its thread as long as the mirror lives.
#[derive(Debug)]
struct Inside {
    members: Box<[Member]>,
    /// The open disks.
    disks: Mutex<Vec<Option<Arc<Disk>>>>,
    /// Held while a disk is brought back.
    adding: Mutex<()>,
    record: Arc<Disk>,
    record_path: PathBuf,
    shape: Shape,
    /// Bytes of the mirror now.
    size: AtomicU64,
}

impl Mirror {
    /// A disk mirrored over `members`, by the record at `path`.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub fn disk(
        members: Vec<Member>,
        path: &Path,
        options: &Options,
        serial: Serial,
    ) -> Result<Disk, MirrorError> {
        if !(2..=MAX_MEMBERS).contains(&members.len()) {
            return Err(MirrorError::Count(members.len()));
        }
        let spec = Spec {
            path: path.to_owned(),
            read_only: false,
            cache: Cache::Buffered,
            block_size: None,
            serial: None,
        };
        let file = Disk::open(&spec).map_err(MirrorError::NoRecord)?;
        let found = orders::read(&file, path)?;
        let clock = Clock::new();
        Mirror::over(members, found, Arc::new(file), path, options, serial, clock)
    }

    pub(crate) fn over(
        members: Vec<Member>,
        found: Record,
        file: Arc<Disk>,
        path: &Path,
        options: &Options,
        serial: Serial,
        clock: Clock,
    ) -> Result<Disk, MirrorError> {
        let opened: Vec<Result<Arc<Disk>, String>> =
            members.iter().map(|m| (m.open)().map(Arc::new)).collect();
        let size = found.head.size;
        let shapes = opened.iter().flatten().map(|d| *d.shape());
        let none = || MirrorError::NoneCurrent("there is none".to_owned());
        let shape = Shape {
            size,
            one_worker: true,
            ..Shape::of_all(shapes).ok_or_else(none)?
        };
        for (member, disk) in members.iter().zip(&opened) {
            if let Ok(disk) = disk {
                fits(member, disk, &shape)?;
            }
        }
        let hashes: Vec<u64> = members.iter().map(|m| hash(m.name.as_bytes())).collect();
        let here: Vec<bool> = opened.iter().map(Result::is_ok).collect();
        let rest = |disk: &Result<Arc<Disk>, String>| disk.as_ref().map_or(0, |d| rest::of(d));
        let rests: Vec<u64> = opened.iter().map(rest).collect();
        let state = State::new(&found, &hashes, &here, &rests);
        if !state.standings().contains(&Standing::Current) {
            let known = found.head.known.iter().filter(|k| k.current);
            let known: Vec<u64> = known.map(|k| k.hash).collect();
            let current = |(h, _): &(&u64, _)| known.contains(h);
            let all = hashes.iter().zip(members.iter().zip(&opened));
            let whys = all.filter(current).map(|(_, (member, disk))| match disk {
                Err(why) => format!("{}: {why}", member.name),
                Ok(_) => member.name.clone(),
            });
            let whys: Vec<String> = whys.collect();
            return Err(MirrorError::NoneCurrent(whys.join("; ")));
        }
        orders::write(&file, &state.record(), path)?;
        for (member, disk) in members.iter().zip(&opened) {
            if let Err(why) = disk {
                tracing::error!(disk = member.name, why, "a mirror begins without this disk");
            }
        }
        let shared =
            Arc::new(shared(&members, &state, options, clock).map_err(MirrorError::System)?);
        for (gauge, rest) in shared.gauges.iter().zip(rests) {
            gauge.rest.store(rest, Ordering::Relaxed);
        }
        shared.give_back(Box::new(state));
        let inside = Arc::new(Inside {
            members: members.into(),
            disks: Mutex::new(opened.into_iter().map(Result::ok).collect()),
            adding: Mutex::default(),
            record: file,
            record_path: path.to_owned(),
            shape,
            size: AtomicU64::new(size),
        });
        keeper::start(&inside, &shared).map_err(MirrorError::System)?;
        let mirror = Mirror { shared, inside };
        Ok(Disk::of(Storage::Mirror(mirror), shape, serial))
    }

    /// What all sides know.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The file of its record.
    #[must_use]
    pub fn record(&self) -> &Arc<Disk> {
        &self.inside.record
    }

    /// Its open disks.
    #[must_use]
    pub fn disks(&self) -> Vec<Option<Arc<Disk>>> {
        self.inside.disks().clone()
    }

    /// How it is.
    #[must_use]
    pub fn health(&self) -> Health {
        let mut troubles = Vec::new();
        let shared = &self.shared;
        for (name, gauge) in shared.names.iter().zip(&shared.gauges) {
            match gauge.standing() {
                Standing::Failed => troubles.push(format!("disk {name} of the mirror failed")),
                Standing::Behind => troubles.push(format!("disk {name} of the mirror catches up")),
                Standing::Current => {}
            }
        }
        let errno = shared.record_errno.load(Ordering::Relaxed);
        if errno != 0 {
            let what = std::io::Error::from_raw_os_error(errno);
            let path = self.inside.record_path.display();
            troubles.push(format!(
                "the mirror's record {path} cannot be written: {what}"
            ));
        }
        let below = self.disks().into_iter().flatten();
        let below = below.map(|d| d.storage().health());
        let losses = below.map(|health| health.losses).sum();
        Health {
            trouble: (!troubles.is_empty()).then(|| troubles.join("; ")),
            losses,
        }
    }

    /// See [`Storage::hurry`].
    #[must_use]
    pub fn hurry(&self) -> Vec<nbd::Hurry> {
        let disks = self.disks().into_iter().flatten();
        disks.flat_map(|d| d.storage().hurry()).collect()
    }
}

fn unknown() -> MirrorError {
    MirrorError::Refused("the mirror has no such disk".to_owned())
}

impl Inside {
    fn disks(&self) -> std::sync::MutexGuard<'_, Vec<Option<Arc<Disk>>>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fits(member: &Member, disk: &Disk, shape: &Shape) -> Result<(), MirrorError> {
    let (has, size) = (disk.size(), shape.size);
    let of = disk.shape();
    let why = if has < size {
        format!("it has {has} bytes, and the mirror {size}")
    } else if of.block > shape.block || of.mem_align > shape.mem_align {
        "its blocks or alignment are larger than those of the others".to_owned()
    } else if disk.is_null() {
        "a null disk keeps nothing".to_owned()
    } else if of.read_only {
        return Err(MirrorError::ReadOnly);
    } else {
        return Ok(());
    };
    let name = member.name.clone();
    Err(MirrorError::Unfit { name, why })
}

fn shared(
    members: &[Member],
    state: &State,
    options: &Options,
    clock: Clock,
) -> std::io::Result<Shared> {
    let shared = Shared {
        names: members.iter().map(|m| m.name.clone()).collect(),
        gauges: members.iter().map(|_| Gauge::default()).collect(),
        orders: ArrayQueue::new(2 * MAX_MEMBERS),
        bell: rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?,
        parcel: Mutex::default(),
        wanted: AtomicBool::new(false),
        region: AtomicU64::new(1 << state.head.shift),
        clock,
        prefer: AtomicUsize::new(usize::MAX),
        timeout: AtomicU64::new(0),
        rate: AtomicU64::new(0),
        budget: AtomicI64::new(0),
        copied: AtomicU64::new(0),
        dirty: AtomicUsize::new(state.dirty.count()),
        flying: AtomicU32::new(0),
        record_errno: AtomicI32::new(0),
    };
    for ((gauge, standing), behind) in shared
        .gauges
        .iter()
        .zip(state.standings())
        .zip(&state.behind)
    {
        gauge.set(standing);
        gauge.behind.store(behind.count(), Ordering::Relaxed);
        if standing == Standing::Failed {
            gauge.closed.store(true, Ordering::Relaxed);
            let errno = rustix::io::Errno::NODEV.raw_os_error();
            gauge.errno.store(errno, Ordering::Relaxed);
        }
    }
    shared.set_options(options);
    Ok(shared)
}
