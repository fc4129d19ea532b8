//! What a backup will consist of: its target opened, its manifest begun, its blocks chosen.
//!
//! All that may take long comes first ([`Plan::new`]); what has to be one moment of the disk is
//! [`Plan::begin`], for which the disk is at rest.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bitmap::{BLOCK, Made};
use super::copy::Sink;
use super::manifest::{Header, Journal, Manifest, Sum, beside, journal_of};
use super::volume::Volume;
use super::{BackupError, BackupOrder, Sort, Tracker};
use crate::config::Cache;
use crate::disk::{self, Disk, Serial};
use crate::storage::OpenError;
use crate::storage::nbd::Export;
use crate::storage::nbd::address::{Address, is_address};

/// What is beside the data, if anything is.
#[derive(Debug)]
struct Beside {
    manifest: PathBuf,
    header: Header,
    /// The journal that is gone on with, and its blocks whose data is still right.
    resumed: Option<(Manifest, BTreeMap<u64, Sum>)>,
}

/// A backup that has not begun.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) sort: Sort,
    pub(super) to: String,
    pub(super) note: Option<String>,
    beside: Option<Beside>,
    target: Arc<Disk>,
    fresh: bool,
    /// A file that was made, to be removed if nothing comes of it.
    made: Option<PathBuf>,
}

fn absolute(path: &Path) -> Result<(), BackupError> {
    if path.is_absolute() {
        return Ok(());
    }
    let path = path.display();
    let why = format!("{path} is not absolute: the daemon has a place of its own");
    Err(BackupError::Target(why))
}

/// The disk that a backup's data is on: a file or an NBD export.
pub(super) fn open_data(data: &str, read_only: bool) -> Result<Disk, BackupError> {
    let serial = Serial::of_path(Path::new("backup"));
    if is_address(data) {
        let address: Address = data
            .parse()
            .map_err(|e| BackupError::Target(format!("{data}: {e}")))?;
        let disk = Export::disk(&address, read_only, 1, serial);
        return Ok(disk.map_err(OpenError::from)?);
    }
    let spec = disk::Spec {
        path: data.into(),
        read_only,
        cache: Cache::Buffered,
        block_size: None,
        serial: Some(serial),
    };
    Ok(Disk::open(&spec).map_err(OpenError::from)?)
}

/// Make the file `path` of `size` bytes, which must not exist.
pub(super) fn create(path: &Path, size: u64) -> Result<(), BackupError> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    let file = options.open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => BackupError::Exists(path.to_owned()),
        _ => BackupError::file("create", path, e),
    })?;
    let sized = file.set_len(size);
    sized.map_err(|e| {
        let _the_first_error_counts = std::fs::remove_file(path);
        BackupError::file("size", path, e)
    })
}

/// Where data and manifest of `order` are.
fn places(order: &BackupOrder) -> Result<(PathBuf, String), BackupError> {
    if let Some(manifest) = &order.manifest {
        absolute(manifest)?;
    }
    if is_address(&order.to) {
        let Some(manifest) = order.manifest.clone() else {
            let why = "the manifest of a backup to NBD is a file here: name it with --manifest";
            return Err(BackupError::Target(why.to_owned()));
        };
        return Ok((manifest, order.to.clone()));
    }
    let path = Path::new(&order.to);
    absolute(path)?;
    let manifest = order.manifest.clone().unwrap_or_else(|| beside(path));
    let together = manifest.parent() == path.parent();
    let name = path.file_name().and_then(|n| n.to_str());
    let Some(name) = name.filter(|n| together && !is_address(n)) else {
        let why = "a backup's file and its manifest are in one directory, and the file has a name \
                   in UTF-8 that does not begin with nbd:";
        return Err(BackupError::Target(why.to_owned()));
    };
    Ok((manifest, name.to_owned()))
}

/// The journal to go on with, or why there is none.
fn resumable(tracker: &Tracker, manifest: &Path, disk: &Disk) -> Result<Manifest, String> {
    let cut_off = tracker.bitmap().cut_off();
    let cut_off = cut_off.ok_or("the bitmap knows of no backup that was cut off")?;
    let journal = Manifest::read(&journal_of(manifest)).map_err(|e| e.to_string())?;
    if journal.header.id != cut_off.id {
        return Err("another backup of the disk has begun since".to_owned());
    }
    if journal.header.size != disk.size() {
        return Err("the disk has another size now".to_owned());
    }
    let parent = journal.header.parent.as_ref();
    if parent.is_some() && parent != tracker.bitmap().last().ok().as_ref() {
        return Err("it is built upon another backup than an increment would be now".to_owned());
    }
    Ok(journal)
}

/// The blocks of `journal` that its data still holds: it may not have been durable.
fn intact(journal: &Manifest, target: &Arc<Disk>) -> Result<BTreeMap<u64, Sum>, BackupError> {
    let mut volume = Volume::new(Arc::clone(target));
    let volume = volume
        .as_mut()
        .map_err(|e| BackupError::NoMemory(e.to_string()))?;
    let mut good = BTreeMap::new();
    let mut buf = vec![0; usize::try_from(BLOCK).unwrap_or(0)];
    for (block, sum) in &journal.blocks {
        let len = usize::try_from(journal.header.len(*block)).unwrap_or(0);
        let bytes = buf.get_mut(..len).unwrap_or_default();
        volume.read(block * BLOCK, bytes)?;
        if Sum::of(bytes) == *sum {
            good.insert(*block, *sum);
        }
    }
    Ok(good)
}

impl Plan {
    /// Plan a backup of `disk`, called `name`. May take long.
    pub(super) fn new(
        name: &str,
        disk: &Disk,
        tracker: &Tracker,
        order: &BackupOrder,
    ) -> Result<Plan, BackupError> {
        let (manifest, data) = places(order)?;
        if manifest.exists() {
            return Err(BackupError::Exists(manifest));
        }
        let (mut note, mut parent) = (None, None);
        if order.incremental {
            match tracker.bitmap().last() {
                Ok(last) => parent = Some(last),
                Err(why) => note = Some(format!("it is a full backup: {why}")),
            }
        }
        let mut resumed = None;
        if order.resume {
            match resumable(tracker, &manifest, disk) {
                Ok(journal) => {
                    // What it was begun as, whatever is asked for now.
                    (parent, note) = (journal.header.parent.clone(), None);
                    resumed = Some(journal);
                }
                Err(why) => {
                    note = Some(format!("it begins anew: {why}"));
                    // Of no use to anybody.
                    let _ = std::fs::remove_file(journal_of(&manifest));
                }
            }
        } else if journal_of(&manifest).exists() {
            return Err(BackupError::Exists(journal_of(&manifest)));
        }
        let (target, made) = target(order, disk.size())?;
        let resumed = match resumed {
            None => None,
            Some(journal) => {
                let good = intact(&journal, &target)?;
                Some((journal, good))
            }
        };
        let sort = match parent {
            Some(_) => Sort::Incremental,
            None => Sort::Full,
        };
        let header = match &resumed {
            Some((journal, _)) => journal.header.clone(),
            None => Header::new(name, disk.size(), data, parent)?,
        };
        Ok(Plan {
            sort,
            to: order.to.clone(),
            note,
            fresh: made.is_some(),
            beside: Some(Beside {
                manifest,
                header,
                resumed,
            }),
            target,
            made,
        })
    }

    /// Plan a plain copy of `disk` to the new file `path`.
    pub(super) fn copy(disk: &Disk, path: &Path) -> Result<Plan, BackupError> {
        absolute(path)?;
        create(path, disk.size())?;
        let to = path.display().to_string();
        let target = open_data(&to, false).inspect_err(|_| {
            let _the_first_error_counts = std::fs::remove_file(path);
        })?;
        Ok(Plan {
            sort: Sort::Copy,
            to,
            note: None,
            beside: None,
            target: Arc::new(target),
            fresh: true,
            made: Some(path.to_owned()),
        })
    }

    /// What it will be in a bitmap, if it is to be there.
    pub(super) fn made(&self) -> Option<Made> {
        let beside = self.beside.as_ref()?;
        Some(Made {
            id: beside.header.id.clone(),
            manifest: beside.manifest.clone(),
        })
    }

    /// The moment of the backup: `disk` is at rest. Where its blocks go, and how many bytes they
    /// have.
    pub(super) fn begin(&self, disk: &Disk, tracker: &Tracker) -> Result<(Sink, u64), BackupError> {
        let mut kept = Vec::new();
        let journal = match &self.beside {
            None => None,
            Some(Beside {
                manifest, header, ..
            }) if !journal_of(manifest).exists() => Some(Journal::begin(manifest, header)?),
            Some(Beside {
                manifest,
                resumed: Some((journal, good)),
                ..
            }) => {
                let bitmap = tracker.bitmap();
                let is_good = |b: &u64| good.contains_key(b) && !bitmap.is_recent(*b);
                let (good, gone): (Vec<_>, Vec<_>) =
                    journal.blocks.keys().partition(|b| is_good(b));
                kept = good;
                // Before the bits go that say so.
                Some(Journal::resume(manifest, journal, &gone)?)
            }
            Some(Beside { manifest, .. }) => return Err(BackupError::Exists(journal_of(manifest))),
        };
        let mut keep = vec![0_u64; usize::try_from(tracker.bitmap().blocks() / 64).unwrap_or(0)];
        for block in kept {
            let word = usize::try_from(block / 64).ok();
            if let Some(word) = word.and_then(|at| keep.get_mut(at)) {
                *word |= 1 << (block % 64);
            }
        }
        if let Some(made) = self.made() {
            tracker.bitmap().begin(made)?;
        }
        let all = self.sort != Sort::Incremental;
        let count = tracker.begin(disk.size(), |at| {
            let word = if all {
                u64::MAX
            } else {
                tracker.bitmap().changed(at)
            };
            word & !keep.get(at).copied().unwrap_or(0)
        });
        let blocks = disk.size().div_ceil(BLOCK);
        let short = blocks * BLOCK - disk.size();
        let last = tracker.next(blocks - 1).is_some();
        let bytes = count * BLOCK - if last { short } else { 0 };
        let sink = Sink {
            disk: Arc::clone(&self.target),
            fresh: self.fresh,
            journal,
        };
        Ok((sink, bytes))
    }

    /// Nothing came of it, or nothing that can be gone on with.
    pub(super) fn undo(&self) {
        if let Some(Beside {
            manifest,
            resumed: None,
            ..
        }) = &self.beside
        {
            let _ours_and_useless = std::fs::remove_file(journal_of(manifest));
        }
        if let Some(path) = &self.made {
            let _ours_and_useless = std::fs::remove_file(path);
        }
    }
}

/// The target's disk, and the file if it was made.
fn target(order: &BackupOrder, size: u64) -> Result<(Arc<Disk>, Option<PathBuf>), BackupError> {
    let path = Path::new(&order.to);
    let is_file = !is_address(&order.to);
    let there = order.resume && path.exists();
    let made = (is_file && !there).then(|| path.to_owned());
    if let Some(path) = &made {
        create(path, size)?;
    } else if is_file {
        let file = OpenOptions::new().write(true).open(path);
        let sized = file.and_then(|f| f.set_len(size));
        sized.map_err(|e| BackupError::file("size", path, e))?;
    }
    let disk = open_data(&order.to, false).inspect_err(|_| {
        if let Some(path) = &made {
            let _the_first_error_counts = std::fs::remove_file(path);
        }
    })?;
    if disk.size() < size || !disk.block().divides(size) {
        let (there, block) = (disk.size(), disk.block().bytes());
        return Err(BackupError::Target(format!(
            "{} has {there} bytes in blocks of {block}, which does not fit a disk of {size} bytes",
            order.to
        )));
    }
    Ok((Arc::new(disk), made))
}
