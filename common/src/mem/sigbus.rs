//! Surviving SIGBUS: a front-end that truncates the file behind its guest's memory must end its own
//! session and nothing else.
//!
//! Touching a page past the end of a file raises SIGBUS in the thread that touches it. The handler
//! looks the address up in a fixed table of the mappings made by [`super::mapping`]; if it is one
//! of ours, it replaces the whole mapping by private zero pages at the same addresses, marks it
//! poisoned and returns, so that the access finishes on bytes nobody sees. The owner notices the
//! mark ([`super::Mem::poisoned`]) and ends the session. Any other SIGBUS is put back to its
//! default action, which ends the process with the truth in its core.
//!
//! The table is atomics in a static: a signal handler may not lock or allocate. An entry is claimed
//! by a compare-exchange on its state, and its range is complete before the state says `LIVE`.

// UNSAFETY: installing a signal handler, and mmap(MAP_FIXED) inside it over a range of our own.
#![expect(
    unsafe_code,
    reason = "sigaction and mmap(MAP_FIXED) have no safe form"
)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use super::MemError;

/// Mappings one process can hold; 64 guests with 64 regions each.
const MAX_WATCHES: usize = 4096;

const FREE: u8 = 0;
const CLAIMED: u8 = 1;
const LIVE: u8 = 2;
const POISONED: u8 = 3;

struct Entry {
    state: AtomicU8,
    start: AtomicUsize,
    len: AtomicUsize,
}

static TABLE: [Entry; MAX_WATCHES] = [const {
    Entry {
        state: AtomicU8::new(FREE),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
    }
}; MAX_WATCHES];

/// One mapping's entry in the table.
#[derive(Debug)]
pub(super) struct Watch {
    index: usize,
}

impl Watch {
    pub(super) fn poisoned(&self) -> bool {
        TABLE[self.index].state.load(Ordering::Relaxed) == POISONED
    }

    /// Give the entry back. Called once, before the range is unmapped.
    pub(super) fn end(&mut self) {
        TABLE[self.index].state.store(FREE, Ordering::Release);
    }
}

/// Watch `start .. start + len`, a mapping of the caller's.
pub(super) fn watch(start: usize, len: usize) -> Result<Watch, MemError> {
    install().map_err(|source| MemError::Map {
        len: len as u64,
        offset: 0,
        source,
    })?;
    for (index, e) in TABLE.iter().enumerate() {
        let claim = e
            .state
            .compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed);
        if claim.is_ok() {
            e.start.store(start, Ordering::Relaxed);
            e.len.store(len, Ordering::Relaxed);
            e.state.store(LIVE, Ordering::Release);
            return Ok(Watch { index });
        }
    }
    Err(MemError::TooManyMappings(MAX_WATCHES))
}

fn install() -> std::io::Result<()> {
    static INSTALLED: OnceLock<i32> = OnceLock::new();
    let errno = *INSTALLED.get_or_init(|| {
        // SAFETY: sigaction is a C struct of integers and pointers, for which zero is valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: `action` is complete, and `on_sigbus` has the signature SA_SIGINFO asks for.
        let rc = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
        if rc == 0 {
            0
        } else {
            std::io::Error::last_os_error().raw_os_error().unwrap_or(-1)
        }
    });
    if errno == 0 {
        Ok(())
    } else {
        Err(std::io::Error::from_raw_os_error(errno))
    }
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo.
    let info = unsafe { info.read() };
    // SAFETY: a SIGBUS is of the kind of siginfo that carries an address.
    let addr = unsafe { info.si_addr() }.addr();
    for e in &TABLE {
        let state = e.state.load(Ordering::Acquire);
        if state != LIVE && state != POISONED {
            continue;
        }
        let start = e.start.load(Ordering::Relaxed);
        let len = e.len.load(Ordering::Relaxed);
        if addr.wrapping_sub(start) < len && replace(start, len) {
            e.state.store(POISONED, Ordering::Release);
            return;
        }
    }
    // Not ours: let it end the process as it would have without us.
    // SAFETY: resetting a signal to its default action is async-signal-safe.
    let _ = unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

/// Put private zero pages over `start .. start + len`.
fn replace(start: usize, len: usize) -> bool {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let at = std::ptr::with_exposed_provenance_mut::<libc::c_void>(start);
    // SAFETY: a LIVE entry's range is a mapping that its `Mapping` unmaps only after the entry is
    // FREE, and it is being accessed right now, so it exists; nothing else lives in that range.
    let base = unsafe { libc::mmap(at, len, prot, flags, -1, 0) };
    base == at
}
