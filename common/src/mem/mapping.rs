//! The only mmap of guest memory, and with its neighbours the only code that dereferences it.
//!
//! A [`Mapping`] owns a shared, writable mapping of a file; a [`View`] is a checked window on one
//! that keeps it alive (a virtqueue part, an in-flight table, a dirty log), [`super::Cells`] the
//! elements of a ring in one, and [`super::Window`] all of one. Every access checks its
//! offset against the mapping's length, whoever asks, or cannot lie outside. The bytes may change
//! at any moment: they belong to a guest. That cannot break memory safety, because no reference to
//! them is formed and every value is copied before it is used; it can only change what is read.

// UNSAFETY: mmap/munmap and dereferencing the mapping. Each block's argument is bounds (checked in
// the function) and lifetime (`Mapping` unmaps only in `Drop`).
#![expect(
    unsafe_code,
    reason = "guest memory is reached through raw pointers, here alone"
)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use rustix::fs::{FileType, SealFlags};

use super::MemError;
use super::sigbus;
use super::window::{prefetch, prefetch_write};

/// A shared, readable and writable mapping of part of a file.
#[derive(Debug)]
pub struct Mapping {
    /// First usable byte; `base .. base + len` lies inside `map_base .. map_base + map_len`.
    base: NonNull<u8>,
    len: u64,
    map_base: NonNull<u8>,
    map_len: usize,
    watch: sigbus::Watch,
}

// SAFETY: a Mapping is an address range owned by this value; nothing in it is tied to a thread.
unsafe impl Send for Mapping {}
// SAFETY: all access through `&Mapping` is by copies and volatile or atomic words on memory that
// other processes change anyway; no Rust reference to it exists that a race could invalidate.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Map `len` bytes at `offset` of `file`, which must be a regular file of that size at least.
    ///
    /// # Errors
    /// See [`MemError`].
    pub fn of_file(file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Mapping, MemError> {
        let fail = |e: rustix::io::Errno| MemError::Map {
            len,
            offset,
            source: e.into(),
        };
        let stat = rustix::fs::fstat(file).map_err(fail)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(MemError::NotAFile);
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let end = offset.checked_add(len).filter(|_| len > 0);
        let end = end.ok_or(MemError::BadRange { gpa: offset, len })?;
        if end > size {
            return Err(MemError::FileTooSmall { end, size });
        }
        seal(file);
        // Huge pages want offset and length in their own size, which fstat reports.
        let page = u64::try_from(stat.st_blksize).unwrap_or(4096).max(4096);
        let page = if page.is_power_of_two() && is_hugetlb(file) {
            page
        } else {
            4096
        };
        let start = offset & !(page - 1);
        let map_len = (end - start).next_multiple_of(page);
        let map_len = usize::try_from(map_len).map_err(|_| fail(rustix::io::Errno::NOMEM))?;
        let map_base = map(file, start, map_len).map_err(fail)?;
        let head = usize::try_from(offset - start).unwrap_or(0);
        // SAFETY: head < map_len, so the result stays inside the mapping just made.
        let base = unsafe { map_base.add(head) };
        match sigbus::watch(map_base.as_ptr().addr(), map_len) {
            Ok(watch) => Ok(Mapping {
                base,
                len,
                map_base,
                map_len,
                watch,
            }),
            Err(e) => {
                unmap(map_base, map_len);
                Err(e)
            }
        }
    }

    /// A new sealed memfd of `len` bytes, all zero, and its mapping.
    ///
    /// # Errors
    /// [`MemError::Map`] with what the kernel said.
    pub fn memfd(name: &str, len: u64) -> Result<(Mapping, std::os::fd::OwnedFd), MemError> {
        use rustix::fs::MemfdFlags;
        let fail = |e: rustix::io::Errno| MemError::Map {
            len,
            offset: 0,
            source: e.into(),
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create(name, flags).map_err(fail)?;
        rustix::fs::ftruncate(&fd, len).map_err(fail)?;
        let mapping = Mapping::of_file(fd.as_fd(), 0, len)?;
        Ok((mapping, fd))
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true: a mapping of no bytes is refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True once the file behind it was found truncated; its bytes are zero pages of our own then.
    #[must_use]
    pub fn poisoned(&self) -> bool {
        self.watch.poisoned()
    }

    /// Our address of its first byte.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Our address of `off .. off + len`, or null if that is not inside.
    #[inline]
    #[must_use]
    pub fn host(&self, off: u64, len: u64) -> *mut u8 {
        if off > self.len || len > self.len - off {
            return std::ptr::null_mut();
        }
        let off = usize::try_from(off).unwrap_or(usize::MAX);
        self.base.as_ptr().wrapping_add(off)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First stop watching: another mapping may get these addresses next.
        self.watch.end();
        unmap(self.map_base, self.map_len);
    }
}

fn map(file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<NonNull<u8>, rustix::io::Errno> {
    let offset = libc::off_t::try_from(offset).map_err(|_| rustix::io::Errno::OVERFLOW)?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
    // SAFETY: no address is asked for, so no existing mapping is touched; the arguments are plain.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            prot,
            flags,
            file.as_raw_fd(),
            offset,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(
            rustix::io::Errno::from_io_error(&std::io::Error::last_os_error())
                .unwrap_or(rustix::io::Errno::INVAL),
        );
    }
    NonNull::new(base.cast::<u8>()).ok_or(rustix::io::Errno::INVAL)
}

fn unmap(base: NonNull<u8>, len: usize) {
    // SAFETY: `base` and `len` are what `map` returned; callers own the range and drop it here.
    let _ = unsafe { libc::munmap(base.as_ptr().cast(), len) };
}

/// Seal a memfd against shrinking if it still accepts seals; a file that does not is watched for
/// SIGBUS instead, so a refusal is no error.
fn seal(file: BorrowedFd<'_>) {
    if let Ok(seals) = rustix::fs::fcntl_get_seals(file)
        && !seals.intersects(SealFlags::SHRINK | SealFlags::SEAL)
    {
        let _ = rustix::fs::fcntl_add_seals(file, SealFlags::SHRINK);
    }
}

fn is_hugetlb(file: BorrowedFd<'_>) -> bool {
    /// HUGETLBFS_MAGIC, include/uapi/linux/magic.h.
    const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
    rustix::fs::fstatfs(file).is_ok_and(|s| u64::try_from(s.f_type) == Ok(HUGETLBFS_MAGIC))
}

/// A window on a mapping, with word access: one part of a virtqueue, an in-flight table, a log.
///
/// Offsets are ours (an index under a mask), never the guest's, so one outside is a bug of ours and
/// panics rather than being ignored.
#[derive(Debug, Clone)]
pub struct View {
    ptr: NonNull<u8>,
    len: usize,
    /// Keeps the memory mapped.
    mapping: Arc<Mapping>,
}

// SAFETY: a View is a Mapping (which is Send) and an address inside it.
unsafe impl Send for View {}
// SAFETY: as for Mapping: all access is volatile or atomic, and there are no references.
unsafe impl Sync for View {}

impl View {
    /// `len` bytes at `off` of `mapping`, if they are inside and aligned to `align`.
    #[must_use]
    pub fn new(mapping: &Arc<Mapping>, off: u64, len: u64, align: usize) -> Option<View> {
        let ptr = NonNull::new(mapping.host(off, len))?;
        let len = usize::try_from(len).ok()?;
        (ptr.as_ptr().addr().is_multiple_of(align)).then(|| View {
            ptr,
            len,
            mapping: Arc::clone(mapping),
        })
    }

    /// The mapping it keeps alive.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if the window has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of a `T` at `off`: checked to lie inside and to be aligned.
    #[inline]
    fn word<T>(&self, off: usize) -> *mut T {
        let size = size_of::<T>();
        assert!(
            off <= self.len && size <= self.len - off,
            "view offset outside"
        );
        let ptr = self.ptr.as_ptr().wrapping_add(off);
        assert!(
            ptr.addr().is_multiple_of(align_of::<T>()),
            "view offset misaligned"
        );
        ptr.cast::<T>()
    }

    /// Read a u16 atomically.
    #[inline]
    #[must_use]
    pub fn load_u16(&self, off: usize, order: Ordering) -> u16 {
        // SAFETY: `word` checked bounds and alignment; the mapping lives as long as `self`.
        let word = unsafe { AtomicU16::from_ptr(self.word::<u16>(off)) };
        u16::from_le(word.load(order))
    }

    /// Write a u16 atomically.
    #[inline]
    pub fn store_u16(&self, off: usize, value: u16, order: Ordering) {
        // SAFETY: as in `load_u16`.
        let word = unsafe { AtomicU16::from_ptr(self.word::<u16>(off)) };
        word.store(value.to_le(), order);
    }

    /// Read a u64 atomically.
    #[inline]
    #[must_use]
    pub fn load_u64(&self, off: usize, order: Ordering) -> u64 {
        // SAFETY: as in `load_u16`.
        let word = unsafe { AtomicU64::from_ptr(self.word::<u64>(off)) };
        u64::from_le(word.load(order))
    }

    /// Write a u64 atomically.
    #[inline]
    pub fn store_u64(&self, off: usize, value: u64, order: Ordering) {
        // SAFETY: as in `load_u16`.
        let word = unsafe { AtomicU64::from_ptr(self.word::<u64>(off)) };
        word.store(value.to_le(), order);
    }

    /// Read two u64s that stand side by side, each atomically: a descriptor.
    #[inline]
    #[must_use]
    pub fn load_pair(&self, off: usize) -> [u64; 2] {
        let pair = self.word::<[AtomicU64; 2]>(off);
        // SAFETY: `word` checked bounds and alignment; the mapping lives as long as `self`.
        let [a, b] = unsafe { &*pair };
        [a, b].map(|word| u64::from_le(word.load(Ordering::Relaxed)))
    }

    /// Write two u32s side by side (volatile, not ordered): a used element.
    #[inline]
    pub fn write_pair(&self, off: usize, pair: [u32; 2]) {
        let word = self.word::<[u32; 2]>(off);
        // SAFETY: `word` checked bounds and alignment; the mapping lives as long as `self`.
        unsafe { word.write_volatile(pair.map(u32::to_le)) };
    }

    /// Read a byte atomically.
    #[inline]
    #[must_use]
    pub fn load_u8(&self, off: usize, order: Ordering) -> u8 {
        // SAFETY: as in `load_u16`.
        let word = unsafe { AtomicU8::from_ptr(self.word::<u8>(off)) };
        word.load(order)
    }

    /// Write a byte atomically.
    #[inline]
    pub fn store_u8(&self, off: usize, value: u8, order: Ordering) {
        // SAFETY: as in `load_u16`.
        let word = unsafe { AtomicU8::from_ptr(self.word::<u8>(off)) };
        word.store(value, order);
    }

    /// Set bits of a byte atomically.
    #[inline]
    pub fn or_u8(&self, off: usize, bits: u8) {
        // SAFETY: as in `load_u16`.
        let word = unsafe { AtomicU8::from_ptr(self.word::<u8>(off)) };
        word.fetch_or(bits, Ordering::Relaxed);
    }

    /// Its first byte.
    pub(super) fn base(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Our address of `off`, for hints.
    #[inline]
    #[must_use]
    pub fn address(&self, off: usize) -> usize {
        self.ptr.as_ptr().wrapping_add(off).addr()
    }

    /// Ask the processor to fetch the cache line at `off`.
    #[inline]
    pub fn prefetch(&self, off: usize) {
        prefetch(self.ptr.as_ptr().wrapping_add(off));
    }

    /// The same for a line that will be written.
    #[inline]
    pub fn prefetch_write(&self, off: usize) {
        prefetch_write(self.ptr.as_ptr().wrapping_add(off));
    }
}
