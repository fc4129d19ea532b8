//! The pages of a file, read without a system call, where touching them cannot wait for storage.
//!
//! A page of a mapped file is there at once if it was locked (mlock(2)) and nobody took it out of
//! the file since. Memory pressure does not; truncation, hole punching and direct writes do, and
//! for each of them somebody must open the file, or truncate it by its name. A lease (fcntl(2),
//! F_SETLEASE) makes both wait until its holder gave it up. So while [`Pages::leased`] holds, what
//! was locked stays, but for what this process itself takes out of the file; whoever wants to do
//! that, or gives the lease up, makes sure first that nobody reads.
//!
//! What remains are moments, not I/O: a page that the kernel is moving elsewhere in memory. What
//! nothing announces (memory that failed) raises SIGBUS, which is survived as for guest memory:
//! look at [`Pages::poisoned`] after each copy.

// UNSAFETY: mmap and reads of it, bounded in `copy`; mlock, mincore and fcntl on what is ours.
#![expect(
    unsafe_code,
    reason = "mapping a file and leasing it have no safe form"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Once;

use super::{Mem, MemError, Segment, sigbus};

/// Bytes of a page: what mincore counts in.
const PAGE: usize = 4096;

/// A file's pages, mapped for reading.
#[derive(Debug)]
pub struct Pages {
    base: NonNull<u8>,
    len: usize,
    /// Another descriptor of the same open file: a lease belongs to the open file.
    file: OwnedFd,
    watch: sigbus::Watch,
}

// SAFETY: a Pages owns an address range; nothing in it is tied to a thread.
unsafe impl Send for Pages {}
// SAFETY: through `&Pages` its memory is only copied out of, and no reference to it exists that a
// write to the file could invalidate.
unsafe impl Sync for Pages {}

impl Pages {
    /// Map the first `len` bytes of `file`. Nothing is read yet.
    ///
    /// # Errors
    /// [`MemError`]: the file is shorter, or there is no room for a mapping.
    pub fn of_file(file: BorrowedFd<'_>, len: u64) -> Result<Pages, MemError> {
        let fail = |source: io::Error| MemError::Map {
            len,
            offset: 0,
            source,
        };
        let stat = rustix::fs::fstat(file).map_err(|e| fail(e.into()))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if len == 0 || len > size {
            return Err(MemError::FileTooSmall { end: len, size });
        }
        let whole = usize::try_from(len).map_err(|_| fail(io::ErrorKind::OutOfMemory.into()))?;
        let file = file.try_clone_to_owned().map_err(fail)?;
        let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED | libc::MAP_NORESERVE);
        let null = std::ptr::null_mut();
        // SAFETY: no address is asked for, so no existing mapping is touched.
        let base = unsafe { libc::mmap(null, whole, prot, flags, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(fail(io::Error::last_os_error()));
        }
        let Some(base) = NonNull::new(base.cast::<u8>()) else {
            return Err(fail(io::ErrorKind::OutOfMemory.into()));
        };
        match sigbus::watch(base.as_ptr().addr(), whole.next_multiple_of(PAGE)) {
            Ok(watch) => Ok(Pages {
                base,
                len: whole,
                file,
                watch,
            }),
            Err(e) => {
                unmap(base, whole);
                Err(e)
            }
        }
    }

    /// Take a lease on the file. False if somebody else has it open, or its file system has none.
    #[must_use]
    pub fn lease(&self) -> bool {
        static SILENT: Once = Once::new();
        // A lease that is asked back is announced by SIGIO, which would end the process; we look.
        SILENT.call_once(|| {
            // SAFETY: to ignore a signal that nothing here uses touches no handler.
            let _ = unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
        });
        let kind = self.kind();
        // SAFETY: fcntl on a descriptor of our own, with an integer.
        kind != libc::F_UNLCK && unsafe { libc::fcntl(self.fd(), libc::F_SETLEASE, kind) } == 0
    }

    /// True while nobody asked for the lease back.
    #[must_use]
    pub fn leased(&self) -> bool {
        // SAFETY: fcntl on a descriptor of our own, without an argument.
        let held = unsafe { libc::fcntl(self.fd(), libc::F_GETLEASE) };
        held != libc::F_UNLCK && held == self.kind()
    }

    /// Give the lease up. The caller made sure that nobody reads.
    pub fn give_up(&self) {
        // Without a lease there is none to give up.
        // SAFETY: fcntl on a descriptor of our own, with an integer.
        let _ = unsafe { libc::fcntl(self.fd(), libc::F_SETLEASE, libc::F_UNLCK) };
    }

    fn fd(&self) -> libc::c_int {
        self.file.as_raw_fd()
    }

    /// The lease that the file's mode allows: a writer's own, or one that readers share.
    fn kind(&self) -> libc::c_int {
        use rustix::fs::OFlags;
        match rustix::fs::fcntl_getfl(&self.file).map(|f| f & OFlags::RWMODE) {
            Ok(OFlags::RDONLY) => libc::F_RDLCK,
            Ok(_) => libc::F_WRLCK,
            Err(_) => libc::F_UNLCK,
        }
    }

    /// The part of `off .. off + len`, a multiple of the page size on, that is in the window.
    fn part(&self, off: u64, len: u64) -> Option<(*mut libc::c_void, usize)> {
        let off = usize::try_from(off).ok()?;
        let room = self.len.checked_sub(off).filter(|r| *r > 0)?;
        let len = usize::try_from(len).map_or(room, |len| len.min(room));
        let at = self.base.as_ptr().wrapping_add(off).cast();
        off.is_multiple_of(PAGE).then_some((at, len))
    }

    /// True if all of `off .. off + len` is in the page cache; `off` is a multiple of 4096.
    #[must_use]
    pub fn is_resident(&self, off: u64, len: u64) -> bool {
        let Some((at, len)) = self.part(off, len) else {
            return false;
        };
        let mut pages = vec![0u8; len.div_ceil(PAGE)];
        // SAFETY: the range is a part of our mapping, and there is a byte for each of its pages.
        let rc = unsafe { libc::mincore(at, len, pages.as_mut_ptr()) };
        rc == 0 && pages.iter().all(|page| page & 1 == 1)
    }

    /// Lock `off .. off + len` into memory, reading what is not there; `off` is a multiple of 4096.
    ///
    /// # Errors
    /// ENOMEM or EPERM beyond RLIMIT_MEMLOCK, or what the kernel said.
    pub fn lock(&self, off: u64, len: u64) -> io::Result<()> {
        let (at, len) = self.part(off, len).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the range is a part of our mapping.
        if unsafe { libc::mlock(at, len) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Unlock everything.
    pub fn unlock(&self) {
        // SAFETY: the range is our mapping. What is not locked stays as it is.
        let _ = unsafe { libc::munlock(self.base.as_ptr().cast(), self.len) };
    }

    /// Copy the bytes at `off` to `at` in a guest's memory; false if they are not all inside.
    #[inline]
    #[must_use]
    pub fn copy(&self, off: u64, to: &Mem, at: Segment) -> bool {
        let (target, len) = (to.host(at), at.len() as usize);
        let Ok(start) = usize::try_from(off) else {
            return false;
        };
        if target.is_null() || start > self.len || len > self.len - start {
            return false;
        }
        let source = self.base.as_ptr().wrapping_add(start);
        // SAFETY: `source` has `len` bytes in our mapping, checked above; `target` has as many in
        // `to`, which checked that; two mappings do not overlap.
        unsafe { source.copy_to_nonoverlapping(target, len) };
        true
    }

    /// True once a page could not be had: what was copied since may be zeroes of our own.
    #[inline]
    #[must_use]
    pub fn poisoned(&self) -> bool {
        self.watch.poisoned()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // The open file may live on elsewhere, and a lease with it that nobody looks after.
        self.give_up();
        self.watch.end();
        unmap(self.base, self.len);
    }
}

fn unmap(base: NonNull<u8>, len: usize) {
    // SAFETY: `base` and `len` are what mmap was asked for and gave; callers own the range.
    let _ = unsafe { libc::munmap(base.as_ptr().cast(), len) };
}

#[cfg(test)]
mod tests {
    use super::super::{Region, RegionSpec};
    use super::*;
    use std::fs::{File, OpenOptions};
    use std::os::fd::AsFd;

    const LEN: u64 = 8 * PAGE as u64;

    /// A file whose pages hold their numbers, and a guest's memory of as many pages.
    fn scene(dir: &tempfile::TempDir) -> (File, Mem) {
        let bytes: Vec<u8> = (0..LEN)
            .map(|i| u8::try_from(i / PAGE as u64).unwrap())
            .collect();
        std::fs::write(dir.path().join("file"), bytes).unwrap();
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .open(dir.path().join("file"))
            .unwrap();
        let memfd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memfd, LEN).unwrap();
        let spec = RegionSpec {
            gpa: 0,
            len: LEN,
            uva: 0,
            offset: 0,
        };
        let mem = Mem::new(vec![Region::map(spec, memfd).unwrap()]).unwrap();
        (file, mem)
    }

    fn copied(window: &Pages, mem: &Mem, off: u64, len: u32) -> Option<Vec<u8>> {
        let at = mem.lookup(0, len, &mut 0).unwrap();
        let mut bytes = vec![0; len as usize];
        (window.copy(off, mem, at) && mem.read(at, &mut bytes)).then_some(bytes)
    }

    #[test]
    fn what_is_in_the_file_is_copied_and_nothing_beyond() {
        let dir = tempfile::tempdir().unwrap();
        let (file, mem) = scene(&dir);
        let window = Pages::of_file(file.as_fd(), LEN - 512).unwrap();
        window.lock(0, LEN).unwrap();
        assert!(window.is_resident(0, LEN));
        assert_eq!(copied(&window, &mem, 4095, 2), Some(vec![0, 1]));
        assert_eq!(copied(&window, &mem, LEN - 1024, 512), Some(vec![7; 512]));
        assert_eq!(copied(&window, &mem, LEN - 1024, 513), None);
        assert_eq!(copied(&window, &mem, u64::MAX, 1), None);
        assert!(!window.is_resident(LEN, 1) && window.lock(1, 1).is_err());
        assert!(Pages::of_file(file.as_fd(), LEN + 1).is_err());
        window.unlock();
    }

    #[test]
    fn a_lease_is_ours_until_somebody_opens_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = scene(&dir);
        let path = dir.path().join("file");
        let window = Pages::of_file(file.as_fd(), LEN).unwrap();
        assert!(!window.leased() && window.lease() && window.leased());
        let opener = std::thread::spawn(move || File::open(path).unwrap());
        while window.leased() {
            std::thread::yield_now();
        }
        assert!(!opener.is_finished(), "the opener waits for us");
        window.give_up();
        let theirs = opener.join().unwrap();
        assert!(!window.lease(), "two have it open");
        drop(theirs);
        assert!(window.lease());
    }

    #[test]
    fn a_file_truncated_nevertheless_is_survived_and_shows() {
        let dir = tempfile::tempdir().unwrap();
        let (file, mem) = scene(&dir);
        let window = Pages::of_file(file.as_fd(), LEN).unwrap();
        file.set_len(0).unwrap();
        assert!(!window.poisoned());
        assert!(copied(&window, &mem, 0, 4096).is_some() && window.poisoned());
    }
}
