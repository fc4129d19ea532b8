//! A disk: what stands behind a guest's blocks, opened once and checked before anything is served.
//!
//! What stands behind a disk is a [`Storage`] of some kind: a file, a block device, other disks, or
//! nothing at all. Everything the data path wants to know about it (size, block sizes, the
//! alignment O_DIRECT asks for, what can be deallocated) is found out at open, its [`Shape`], and
//! never asked again.
//!
//! One image, one writer: a file is locked, shared by readers and exclusive to a writer; a block
//! device opened for writing is opened O_EXCL, so neither a mount nor another daemon has it. What
//! is refused, is refused with the holder's name (`lock.rs`).
//!
//! Three facts about a disk are learned while it is served and shared by all workers (relaxed: they
//! guard no other data): an fsync that failed, deallocation that turned out to be unsupported, and
//! whether the driver turned the write cache off.

mod error;
mod lock;
mod moving;
mod open;
pub(crate) mod sysfs;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::backup::{BackupError, Bitmap, Tracker};
use crate::config::Polling;
use crate::engine::Verb;
use crate::policy::Policy;
use crate::request::{ID_BYTES, Limits};
use crate::resident::Resident;
use crate::storage::{Shape, Storage};
pub use error::DiskError;
pub use open::Spec;
pub(crate) use open::TMPFS_MAGIC;

/// A logical or physical block size: a power of two from 512 bytes to 64 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockSize(u32);

impl BlockSize {
    /// The smallest, and the unit of the protocol.
    pub const SECTOR: BlockSize = BlockSize(512);
    /// What nearly every file system uses.
    pub const PAGE: BlockSize = BlockSize(4096);

    /// A block of `bytes` bytes, if that is a power of two in range.
    #[must_use]
    pub fn new(bytes: u32) -> Option<BlockSize> {
        (bytes.is_power_of_two() && (512..=65536).contains(&bytes)).then_some(BlockSize(bytes))
    }

    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// True if `value` is a multiple of it.
    #[inline]
    #[must_use]
    pub const fn divides(self, value: u64) -> bool {
        value & (self.0 as u64 - 1) == 0
    }

    /// `value` rounded down to a multiple of it.
    #[inline]
    #[must_use]
    pub const fn floor(self, value: u64) -> u64 {
        value & !(self.0 as u64 - 1)
    }
}

/// What GET_ID answers: up to 20 bytes of ASCII, zero-padded (virtio 1.3, 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serial([u8; ID_BYTES]);

impl Serial {
    /// A serial as configured.
    ///
    /// # Errors
    /// [`DiskError::Serial`] if it has more than 20 bytes or anything but printable ASCII.
    pub fn new(text: &str) -> Result<Serial, DiskError> {
        if text.len() > ID_BYTES || !text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            return Err(DiskError::Serial(text.to_owned()));
        }
        Ok(Serial::fit(text.bytes()))
    }

    /// The serial of a disk that was given none: the printable part of its file's name.
    #[must_use]
    pub fn of_path(path: &Path) -> Serial {
        let name = path.file_name().unwrap_or(path.as_os_str());
        let name = name.to_string_lossy();
        Serial::fit(name.bytes().filter(u8::is_ascii_graphic))
    }

    fn fit(text: impl Iterator<Item = u8>) -> Serial {
        let mut id = [0; ID_BYTES];
        id.iter_mut().zip(text).for_each(|(to, from)| *to = from);
        Serial(id)
    }

    /// The bytes of the answer.
    #[must_use]
    pub fn bytes(&self) -> &[u8; ID_BYTES] {
        &self.0
    }
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    storage: Storage,
    shape: Shape,
    /// Bytes, whole blocks; changes when it is resized.
    size: AtomicU64,
    serial: Serial,
    /// Its pages, where they may be read by copying.
    resident: Option<Arc<Resident>>,
    /// Its lock comes and goes with its queues.
    moving: Option<moving::Moving>,
    polling: Polling,
    /// Verbs that turned out to be unsupported, one bit each.
    unsupported: AtomicU8,
    sync_failed: AtomicBool,
    policy: Policy,
    write_through: AtomicBool,
    /// What is told of every change, once somebody wants to know.
    tracker: OnceLock<Arc<Tracker>>,
}

/// Bits of [`Disk::failures`]: FLUSH, everything, writes that a server had acknowledged.
const SYNC: u64 = 1;
const ALL: u64 = 1 << 1;
const LOST: u64 = 1 << 2;

impl Disk {
    /// A disk of `size` bytes without anything behind it: every request succeeds at once.
    #[must_use]
    pub fn null(size: u64) -> Disk {
        Disk::synthetic(Storage::Null, size, Serial::fit("null".bytes()))
    }

    /// A disk of `size` bytes in the memory of a [`crate::engine::memory::Memory`] engine.
    #[must_use]
    pub fn ram(size: u64) -> Disk {
        Disk::synthetic(Storage::Ram, size, Serial::fit("ram".bytes()))
    }

    fn synthetic(storage: Storage, size: u64, serial: Serial) -> Disk {
        let shape = Shape {
            size: BlockSize::SECTOR.floor(size),
            block: BlockSize::SECTOR,
            physical: BlockSize::PAGE,
            direct: false,
            inline: true,
            waits: false,
            threaded: false,
            read_only: false,
            mem_align: 1,
            len_align: 1,
            discard: Some(BlockSize::PAGE.bytes()),
            one_worker: false,
        };
        Disk::of(storage, shape, serial)
    }

    /// A disk of any kind of storage.
    #[must_use]
    pub fn of(storage: Storage, shape: Shape, serial: Serial) -> Disk {
        Disk {
            size: AtomicU64::new(shape.size),
            storage,
            shape,
            serial,
            resident: None,
            moving: None,
            polling: Polling::Off,
            unsupported: AtomicU8::new(0),
            sync_failed: AtomicBool::new(false),
            policy: Policy::default(),
            write_through: AtomicBool::new(false),
            tracker: OnceLock::new(),
        }
    }

    /// This disk as if O_DIRECT asked for memory in multiples of `align`.
    #[cfg(test)]
    pub(crate) fn demanding(mut self, align: u32) -> Disk {
        self.shape.direct = true;
        (self.shape.mem_align, self.shape.len_align) = (align, 512);
        self
    }

    /// This disk as if it were opened read-only.
    #[cfg(test)]
    pub(crate) fn locked(mut self) -> Disk {
        self.shape.read_only = true;
        self.shape.discard = None;
        self
    }

    /// This disk as if it were a block device.
    #[cfg(test)]
    pub(crate) fn like_a_device(mut self) -> Disk {
        let null = std::fs::File::open("/dev/null").unwrap();
        self.storage = Storage::Device(null.into());
        self
    }

    /// This disk as if its device were polled.
    #[cfg(test)]
    pub(crate) fn polled_by(mut self, polling: Polling) -> Disk {
        self.polling = polling;
        self
    }

    /// How the completions of its reads and writes are found.
    #[must_use]
    pub fn polling(&self) -> Polling {
        self.polling
    }

    /// What stands behind it.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// What was found out about it at open.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// It has `size` bytes now, whole blocks.
    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
    }

    /// Logical block size.
    #[must_use]
    pub fn block(&self) -> BlockSize {
        self.shape.block
    }

    /// Physical block size: what the device writes without reading first.
    #[must_use]
    pub fn physical(&self) -> BlockSize {
        self.shape.physical
    }

    /// True if nothing may be written.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.shape.read_only
    }

    /// True if `verb` is done by a thread of the kernel's: by io_uring's own, where it may wait and
    /// cannot say so (fsync, fallocate, most writes to the page cache), or by the device's.
    #[inline]
    #[must_use]
    pub fn delegates(&self, verb: Verb) -> bool {
        match verb {
            Verb::Read => self.shape.waits || self.shape.threaded,
            Verb::Write => {
                self.shape.waits || self.shape.threaded || !self.shape.direct && !self.shape.inline
            }
            Verb::Sync | Verb::Punch | Verb::Zero | Verb::Discard => true,
        }
    }

    /// True if a system call on it may wait for a server, whatever it is asked.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.shape.waits
    }

    /// True if the page cache is bypassed.
    #[must_use]
    pub fn direct(&self) -> bool {
        self.shape.direct
    }

    /// True if it can deallocate without promising what is read afterwards, as devices do.
    #[must_use]
    pub fn trims(&self) -> bool {
        self.storage.trims()
    }

    /// True if there is nothing behind it.
    #[inline]
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self.storage, Storage::Null)
    }

    /// True for a block device.
    pub(crate) fn is_device(&self) -> bool {
        matches!(self.storage, Storage::Device(_))
    }

    /// Its open file, if it has one.
    #[must_use]
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.storage {
            Storage::File(f) | Storage::Device(f) => Some(f.as_fd()),
            _ => None,
        }
    }

    /// Unit of deallocation in bytes, if the disk can deallocate.
    #[must_use]
    pub fn discard_unit(&self) -> Option<u32> {
        self.shape.discard
    }

    /// Its serial number.
    #[must_use]
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// Its pages, where they may be read by copying.
    #[inline]
    #[must_use]
    pub fn resident(&self) -> Option<&Arc<Resident>> {
        self.resident.as_ref()
    }

    /// What requests are checked against.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            capacity: self.size(),
            block: self.shape.block,
            read_only: self.shape.read_only,
            discard: self.shape.discard.is_some(),
            write_zeroes: !self.shape.read_only,
        }
    }

    /// True if I/O may use `len` bytes of memory at address `addr` as they are.
    #[inline]
    #[must_use]
    pub(crate) fn takes(&self, addr: usize, len: u32) -> bool {
        addr & (self.shape.mem_align as usize - 1) == 0 && len & (self.shape.len_align - 1) == 0
    }

    /// True once an fsync failed: what was lost then cannot be made durable by a later one.
    #[must_use]
    pub fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Relaxed)
    }

    /// What is done about failures.
    #[inline]
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// An operator says that the storage is good again: what failed before is over.
    pub fn clear_failures(&self) {
        self.sync_failed.store(false, Ordering::Relaxed);
        self.policy.clear();
        self.storage.set_lost(false);
    }

    /// What fails until then, as bits that a successor of this process is given.
    #[must_use]
    pub fn failures(&self) -> u64 {
        let all = [
            (SYNC, self.sync_failed()),
            (ALL, self.policy.has_failed()),
            (LOST, self.storage.is_lost()),
        ];
        let set = all.into_iter().filter(|(_, is)| *is);
        set.fold(0, |bits, (bit, _)| bits | bit)
    }

    /// A predecessor of this process left the disk with these failures.
    pub(crate) fn restore_failures(&self, bits: u64) {
        if bits & SYNC != 0 {
            self.fail_sync();
        }
        if bits & ALL != 0 {
            self.policy.fail();
        }
        if bits & LOST != 0 {
            self.storage.set_lost(true);
        }
    }

    pub(crate) fn fail_sync(&self) {
        self.sync_failed.store(true, Ordering::Relaxed);
    }

    /// True if every write must be durable before it completes.
    #[inline]
    #[must_use]
    pub fn write_through(&self) -> bool {
        self.write_through.load(Ordering::Relaxed)
    }

    /// Set by the session when features are negotiated or the driver writes `wce`
    /// ([`crate::features::write_through`]); counts for requests started from then on.
    pub fn set_write_through(&self, on: bool) {
        self.write_through.store(on, Ordering::Relaxed);
    }

    /// What is told of every change, if anything is.
    #[inline]
    #[must_use]
    pub fn tracker(&self) -> Option<&Arc<Tracker>> {
        self.tracker.get()
    }

    /// The tracker it has, or from now on a new one with a bitmap that `make` makes.
    ///
    /// # Errors
    /// If the bitmap cannot be made.
    pub(crate) fn track(
        &self,
        make: impl FnOnce() -> Result<Bitmap, BackupError>,
    ) -> Result<Arc<Tracker>, BackupError> {
        if let Some(tracker) = self.tracker.get() {
            return Ok(Arc::clone(tracker));
        }
        let file = self.file().filter(|_| !self.is_device());
        let file = file.and_then(|fd| fd.try_clone_to_owned().ok());
        let new = Arc::new(Tracker::new(make()?, file));
        Ok(Arc::clone(self.tracker.get_or_init(|| new)))
    }

    /// True unless `verb` was found to be unsupported.
    pub(crate) fn can(&self, verb: Verb) -> bool {
        self.unsupported.load(Ordering::Relaxed) & verb.bit() == 0
    }

    pub(crate) fn cannot(&self, verb: Verb) {
        self.unsupported.fetch_or(verb.bit(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
