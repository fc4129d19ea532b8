//! Which blocks of a disk changed: two bitmaps in one file that is mapped, and a header.
//!
//! ```text
//! 0      header: a checksum, and JSON padded with zeroes
//! 4096   recent: blocks written since the last backup began
//!  …     older:  blocks written before that, and since the backup before it
//! ```
//!
//! Incremental backups copy the union of both. When a backup begins, at rest, `recent` moves into
//! `older`; when it has succeeded, `older` is emptied. One that fails or is cut off leaves both
//! as they are, so nothing is forgotten, and what `recent` says tells its resumption which of the
//! blocks that it has copied are still right.
//!
//! A bit is set before the write is handed to the kernel. A process that is killed loses nothing:
//! bits stand in the page cache, which outlives it. A machine that crashes may lose bits that were
//! not written back yet: the header says `clean` only after everything was made durable, and names
//! the boot in which it was opened. A file that is neither clean nor of this boot is not believed,
//! nor is one whose disk was written to by others while it was closed (modification time), nor one
//! with a wrong checksum. Then the next backup is a full one, and says why.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use towpath_common::mem::{Mapping, View};

use super::BackupError;

/// Bytes that one bit stands for, and the unit of backups: small enough that a guest that has to
/// wait for one to be copied hardly notices, large enough that a TiB has a bitmap of 512 KiB.
pub const BLOCK: u64 = 256 * 1024;

/// Bytes of the header.
const HEADER: u64 = 4096;
/// A disk may grow to so many times its size and still fit its bitmap.
const GROWTH: u64 = 4;
/// Bitmaps are at least for so many blocks (64 GiB): growing a small disk is common.
const FEWEST: u64 = 1 << 18;
/// How often, and how long apart, a bitmap is tried that a killed daemon still holds.
const TRIES: u32 = 1000;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(2);

/// A backup by its identity and its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Random, of 32 hexadecimal digits.
    pub id: String,
    /// Its manifest.
    pub manifest: PathBuf,
}

/// What is known of a bitmap besides its bits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    /// What disk it is about.
    disk: String,
    /// The disk's size in bytes.
    size: u64,
    /// Blocks there is room for.
    blocks: u64,
    /// Everything is durable, and nothing was written since.
    clean: bool,
    /// The boot in which it was opened.
    boot: String,
    /// When the disk was modified last, as of closing.
    stamp: Option<String>,
    /// The last backup that succeeded.
    last: Option<Made>,
    /// The backup that has begun and not succeeded.
    begun: Option<Made>,
    /// Why `last` cannot be built upon.
    doubt: Option<String>,
}

/// A disk's identity, for its bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The same for the same disk.
    pub identity: String,
    /// Bytes.
    pub size: u64,
    /// When it was modified last, if that can be known.
    pub stamp: Option<String>,
}

/// The bitmaps of one disk.
#[derive(Debug)]
pub struct Bitmap {
    /// None: in memory, for one backup.
    file: Option<(File, PathBuf)>,
    header: Mutex<Header>,
    recent: View,
    older: View,
    blocks: u64,
    /// Writes beyond the last block.
    overflowed: AtomicBool,
}

/// The identity of this boot of the kernel; empty if there is none.
pub(crate) fn boot() -> String {
    // Without it no bitmap that is not clean is believed.
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Bytes of a bitmap of `blocks`.
fn bytes(blocks: u64) -> u64 {
    blocks.div_ceil(8).next_multiple_of(4096)
}

/// Blocks there should be room for.
fn room(size: u64) -> u64 {
    let grown = size.div_ceil(BLOCK).saturating_mul(GROWTH);
    grown.max(FEWEST).next_multiple_of(64)
}

impl Bitmap {
    /// A bitmap in memory, of which nothing is left afterwards.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn in_memory(size: u64) -> Result<Bitmap, BackupError> {
        let blocks = room(size);
        let memory = Mapping::memfd("vblk-bitmap", HEADER + 2 * bytes(blocks));
        let (mapping, _) = memory.map_err(|e| BackupError::NoMemory(e.to_string()))?;
        let header = Header {
            doubt: Some("its disk has no `bitmap`".to_owned()),
            ..Header::default()
        };
        Bitmap::over(None, &Arc::new(mapping), header, blocks)
    }

    /// The bitmap in the file `path` of the disk `subject`, made if there is none.
    ///
    /// # Errors
    /// If the file cannot be opened, belongs to another process, or is something else.
    pub fn open(path: &Path, subject: &Subject) -> Result<Bitmap, BackupError> {
        let failed = |what| move |e: std::io::Error| BackupError::file(what, path, e);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).open(path).map_err(failed("open"))?;
        lock(&file, path)?;
        let length = file.metadata().map_err(failed("examine"))?.len();
        let (mut header, found) = match read_header(&file, length, path)? {
            None => (Header::default(), length > 0),
            Some(header) => (header, true),
        };
        let blocks = if header.blocks > 0 {
            header.blocks
        } else {
            room(subject.size)
        };
        let doubt = doubts(&header, found, subject, length);
        let fresh = doubt.is_some();
        if let Some(doubt) = doubt {
            if found {
                tracing::warn!(bitmap = %path.display(), %doubt, "the next backup is a full one");
            }
            header = Header {
                doubt: Some(doubt),
                ..Header::default()
            };
        }
        let blocks = if fresh { room(subject.size) } else { blocks };
        if fresh {
            // All zeroes again.
            file.set_len(0).map_err(failed("empty"))?;
        }
        let whole = HEADER + 2 * bytes(blocks);
        file.set_len(whole).map_err(failed("size"))?;
        let mapping = Mapping::of_file(file.as_fd(), 0, whole);
        let mapping = mapping.map_err(|e| BackupError::NoMemory(e.to_string()))?;
        let grown = header.size..subject.size;
        header.disk.clone_from(&subject.identity);
        (header.size, header.blocks) = (subject.size, blocks);
        (header.clean, header.boot, header.stamp) = (false, boot(), None);
        let file = Some((file, path.to_owned()));
        let bitmap = Bitmap::over(file, &Arc::new(mapping), header, blocks)?;
        bitmap.save(&bitmap.header(), true)?;
        if !fresh && !grown.is_empty() {
            bitmap.mark(grown.start, grown.end - grown.start);
        }
        Ok(bitmap)
    }

    fn over(
        file: Option<(File, PathBuf)>,
        mapping: &Arc<Mapping>,
        header: Header,
        blocks: u64,
    ) -> Result<Bitmap, BackupError> {
        let view = |at| View::new(mapping, at, bytes(blocks), 8);
        let views = view(HEADER).zip(view(HEADER + bytes(blocks)));
        let (recent, older) =
            views.ok_or_else(|| BackupError::NoMemory("a bitmap of no size".to_owned()))?;
        Ok(Bitmap {
            file,
            header: Mutex::new(header),
            recent,
            older,
            blocks,
            overflowed: AtomicBool::new(false),
        })
    }

    fn header(&self) -> MutexGuard<'_, Header> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, header: &Header, durably: bool) -> Result<(), BackupError> {
        let Some((file, path)) = &self.file else {
            return Ok(());
        };
        let text = serde_json::to_string(header).unwrap_or_default();
        let mut page = format!("{}{text}\n", seal(&text)).into_bytes();
        if page.len() as u64 > HEADER {
            return Err(BackupError::LongPath(path.clone()));
        }
        page.resize(usize::try_from(HEADER).unwrap_or(0), 0);
        let failed = |e| BackupError::file("write", path, e);
        file.write_all_at(&page, 0).map_err(failed)?;
        if durably {
            file.sync_data().map_err(failed)?;
        }
        Ok(())
    }

    /// Blocks it has room for.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// `len` bytes from `offset` are about to change.
    #[inline]
    pub fn mark(&self, offset: u64, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|n| offset.checked_add(n)) else {
            return;
        };
        for block in offset / BLOCK..=last / BLOCK {
            let Some((at, bit)) = self.place(block) else {
                self.overflowed.store(true, Relaxed);
                return;
            };
            // Mostly it is set: then the line stays shared.
            if self.recent.load_u8(at, Relaxed) & bit == 0 {
                self.recent.or_u8(at, bit);
            }
        }
    }

    #[inline]
    fn place(&self, block: u64) -> Option<(usize, u8)> {
        let at = usize::try_from(block / 8).ok()?;
        (block < self.blocks).then_some((at, 1 << (block % 8)))
    }

    /// True if `block` changed since the last backup began.
    #[must_use]
    pub fn is_recent(&self, block: u64) -> bool {
        let set = |(at, bit)| self.recent.load_u8(at, Relaxed) & bit != 0;
        self.place(block).is_some_and(set)
    }

    /// Which of 64 blocks from `64 * index` on changed since the last backup, a bit each.
    #[must_use]
    pub fn changed(&self, index: usize) -> u64 {
        let word = |view: &View| view.load_u64(index * 8, Relaxed);
        if (index as u64) * 64 >= self.blocks {
            return u64::MAX;
        }
        word(&self.recent) | word(&self.older)
    }

    /// Bytes of a disk of `size` that changed since the last backup that succeeded.
    #[must_use]
    pub fn changed_bytes(&self, size: u64) -> u64 {
        let blocks = size.div_ceil(BLOCK);
        let words = usize::try_from(blocks.div_ceil(64)).unwrap_or(0);
        let count = |i| u64::from(self.changed(i).count_ones());
        (0..words).map(count).sum::<u64>().min(blocks) * BLOCK
    }

    /// The backup that an incremental one can build upon, or why there is none.
    ///
    /// # Errors
    /// The reason, for people.
    pub fn last(&self) -> Result<Made, String> {
        if self.recent.mapping().poisoned() {
            return Err("the bitmap's file was truncated".to_owned());
        }
        if self.overflowed.load(Relaxed) {
            return Err("the disk has outgrown its bitmap".to_owned());
        }
        let header = self.header();
        let none = || "no backup was made yet".to_owned();
        match (&header.last, &header.doubt) {
            (Some(last), _) => Ok(last.clone()),
            (None, doubt) => Err(doubt.clone().unwrap_or_else(none)),
        }
    }

    /// The backup that was cut off, if one was and its blocks can be told from later ones.
    #[must_use]
    pub fn cut_off(&self) -> Option<Made> {
        let broken = self.recent.mapping().poisoned() || self.overflowed.load(Relaxed);
        self.header().begun.clone().filter(|_| !broken)
    }

    /// The backup `made` begins: what changes from now on is told apart. The disk is at rest.
    ///
    /// # Errors
    /// If the header cannot be written; nothing is forgotten then.
    pub fn begin(&self, made: Made) -> Result<(), BackupError> {
        for at in (0..self.recent.len()).step_by(8) {
            let moved = self.recent.load_u64(at, Relaxed);
            if moved != 0 {
                let before = self.older.load_u64(at, Relaxed);
                self.older.store_u64(at, before | moved, Relaxed);
            }
        }
        let mut header = self.header();
        header.begun = Some(made);
        self.save(&header, false)?;
        for at in (0..self.recent.len()).step_by(8) {
            if self.recent.load_u64(at, Relaxed) != 0 {
                self.recent.store_u64(at, 0, Relaxed);
            }
        }
        Ok(())
    }

    /// The backup that had begun has succeeded.
    ///
    /// # Errors
    /// If the header cannot be written; later backups copy more than they must then.
    pub fn succeed(&self, made: Made) -> Result<(), BackupError> {
        let mut header = self.header();
        (header.last, header.begun, header.doubt) = (Some(made), None, None);
        // Before the bits go: what is left of them after a crash costs time, no data.
        self.save(&header, true)?;
        for at in (0..self.older.len()).step_by(8) {
            if self.older.load_u64(at, Relaxed) != 0 {
                self.older.store_u64(at, 0, Relaxed);
            }
        }
        Ok(())
    }

    /// The disk has `size` bytes now, and had `old`.
    pub fn resized(&self, old: u64, size: u64) {
        if size > old {
            self.mark(old, size - old);
        }
        let mut header = self.header();
        header.size = size;
        if let Err(error) = self.save(&header, true) {
            tracing::warn!(%error, "the bitmap does not know of the new size");
        }
    }

    /// Everything is durable and no write is in flight: `stamp` is when the disk was modified last.
    ///
    /// # Errors
    /// If that cannot be written; the bitmap is believed after this boot no more then.
    pub fn close(&self, stamp: Option<String>) -> Result<(), BackupError> {
        let Some((file, path)) = &self.file else {
            return Ok(());
        };
        file.sync_data()
            .map_err(|e| BackupError::file("sync", path, e))?;
        let mut header = self.header();
        if self.overflowed.load(Relaxed) {
            (header.last, header.begun) = (None, None);
            header.doubt = Some("the disk has outgrown its bitmap".to_owned());
            header.blocks = 0;
        }
        (header.clean, header.stamp) = (true, stamp);
        self.save(&header, true)
    }
}

fn seal(text: &str) -> String {
    format!(
        "towpath-bitmap-1 {}\n",
        blake3::hash(text.as_bytes()).to_hex()
    )
}

fn read_header(file: &File, length: u64, path: &Path) -> Result<Option<Header>, BackupError> {
    if length == 0 {
        return Ok(None);
    }
    let mut page = vec![0; usize::try_from(HEADER.min(length)).unwrap_or(0)];
    file.read_exact_at(&mut page, 0)
        .map_err(|e| BackupError::file("read", path, e))?;
    if !page.starts_with(b"towpath-bitmap-1 ") && page.iter().any(|b| *b != 0) {
        return Err(BackupError::NotABitmap(path.to_owned()));
    }
    let text = String::from_utf8_lossy(&page);
    let parts = text.split_once('\n');
    let parts = parts.and_then(|(_, rest)| rest.split_once('\n'));
    let Some((json, _)) = parts else {
        return Ok(None);
    };
    if !text.starts_with(&seal(json)) {
        return Ok(None);
    }
    Ok(serde_json::from_str(json).ok())
}

/// Why the bits cannot be believed, if they cannot.
fn doubts(header: &Header, found: bool, subject: &Subject, length: u64) -> Option<String> {
    if !found {
        return Some("no backup was made yet".to_owned());
    }
    let why = if header.blocks == 0 || length < HEADER + 2 * bytes(header.blocks) {
        header
            .doubt
            .clone()
            .unwrap_or_else(|| "the bitmap is damaged".to_owned())
    } else if header.disk != subject.identity {
        format!("the bitmap is of another disk, {}", header.disk)
    } else if header.clean && header.stamp != subject.stamp {
        "the disk was changed while vblk did not serve it".to_owned()
    } else if !header.clean && header.boot != boot() {
        "the machine crashed, and the bitmap may have lost what was not written back".to_owned()
    } else {
        return None;
    };
    Some(why)
}

fn lock(file: &File, path: &Path) -> Result<(), BackupError> {
    for _ in 0..TRIES {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(PAUSE),
            Err(e) => return Err(BackupError::file("lock", path, e.into())),
        }
    }
    Err(BackupError::BitmapInUse(path.to_owned()))
}

#[cfg(test)]
mod tests;
