//! The bell of hosts that forbid io_uring: Linux's older asynchronous I/O, which signals eventfds
//! itself as well, and never waits for one either.
//!
//! To notify is to read one byte of an empty file in memory with the call eventfd named for the
//! completion: done before io_submit(2) returns. The kernel's list of completions is emptied every
//! few signals, so that it never fills. The eventfd is looked up with each signal, hence kept here.

// UNSAFETY: four system calls that libc has no functions for, and two structures for them.
#![expect(unsafe_code, reason = "neither rustix nor libc has these calls")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, memfd_create};

/// Completions the kernel has room for. The system has 65536 in all (fs.aio-max-nr).
const ROOM: usize = 16;

/// Signals after which they are taken out.
const FEW: usize = ROOM / 2;

/// IOCB_CMD_PREAD (include/uapi/linux/aio_abi.h).
const PREAD: u16 = 0;

/// IOCB_FLAG_RESFD: `resfd` is signalled.
const RESFD: u32 = 1;

/// struct iocb of a little-endian machine.
#[repr(C)]
#[derive(Debug, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: i32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: i32,
}

/// struct io_event.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

/// A context, and the eventfd it signals.
#[derive(Debug)]
pub(super) struct Aio {
    context: libc::c_ulong,
    target: Option<OwnedFd>,
    /// Signals since completions were taken out.
    signals: usize,
}

/// What is read: nothing, at once.
fn nothing() -> io::Result<&'static OwnedFd> {
    static NOTHING: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(file) = NOTHING.get() {
        return Ok(file);
    }
    let file = memfd_create("bell", MemfdFlags::CLOEXEC)?;
    Ok(NOTHING.get_or_init(|| file))
}

impl Aio {
    /// A context that signals nothing yet.
    ///
    /// # Errors
    /// If the kernel gives none (fs.aio-max-nr, no such system call).
    pub(super) fn new() -> io::Result<Aio> {
        nothing()?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: `context` is zero, as the call wants it, and writable.
        let rc = unsafe { libc::syscall(libc::SYS_io_setup, ROOM, &raw mut context) };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Aio {
            context,
            target: None,
            signals: 0,
        })
    }

    /// See [`super::Bell::aim`].
    pub(super) fn aim(&mut self, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.target = None;
        let Some(fd) = fd else { return Ok(()) };
        let fd = fd.try_clone_to_owned()?;
        // A read to nowhere tells without a signal what the kernel thinks of the file: it looks at
        // that first (EINVAL), then at the address (EFAULT).
        let refused = self.submit(&fd, u64::MAX);
        match refused {
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                self.target = Some(fd);
                Ok(())
            }
            Err(error) => Err(error),
            Ok(()) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Signal the eventfd.
    pub(super) fn ring(&mut self) {
        let Some(fd) = self.target.take() else { return };
        if self.signals == FEW {
            self.empty();
        }
        self.signals += 1;
        let mut byte = 0u8;
        // Refused only without memory for a request.
        let _ = self.submit(&fd, (&raw mut byte).addr() as u64);
        self.target = Some(fd);
    }

    /// Read a byte to `buf` and signal `fd`. The file is empty, so nothing is ever written there.
    fn submit(&self, fd: &OwnedFd, buf: u64) -> io::Result<()> {
        let request = Iocb {
            opcode: PREAD,
            fd: nothing()?.as_raw_fd(),
            buf,
            nbytes: 1,
            flags: RESFD,
            resfd: fd.as_raw_fd(),
            ..Iocb::default()
        };
        let list = [&raw const request];
        // SAFETY: `list` is one pointer to one request, and the kernel is done with both when the
        // call returns. The memory the request names is never written: its file has no bytes.
        let rc = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_ptr()) };
        if rc == 1 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Take completions out.
    fn empty(&mut self) {
        let mut events = [Event::default(); ROOM];
        let now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let (first, now) = (events.as_mut_ptr(), &raw const now);
        // SAFETY: `first` has room for as many events as are asked for; `now` is a time.
        let _ = unsafe { libc::syscall(libc::SYS_io_getevents, self.context, 0, ROOM, first, now) };
        self.signals = 0;
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: the context is ours and used no more.
        let _ = unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}
