//! Tells a crash from a kill: who was being served when a process died by its own fault is to
//! blame, who was served when somebody killed it is not.
//!
//! One word of shared memory that outlives the process, set by signals that say that a program is
//! broken (SIGSEGV, SIGILL, SIGFPE, SIGSYS, which `crate::sandbox` has raised, and SIGABRT, which
//! is also what a watchdog sends) and by a worker's panic. A SIGKILL sets nothing.

// UNSAFETY: installing signal handlers, and raising the signal again inside them.
#![expect(unsafe_code, reason = "sigaction and raise have no safe form")]

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use libc::{SIGABRT, SIGFPE, SIGILL, SIGSEGV, SIGSYS};

use super::KeepError;
use crate::mem::{Mapping, View};

/// The word, once there is one.
static WORD: OnceLock<View> = OnceLock::new();

/// Bytes of the page.
const PAGE: u64 = 4096;

/// The word, in memory that can be kept.
#[derive(Debug)]
pub(super) struct Crash {
    /// The memory.
    pub(super) file: OwnedFd,
    /// A predecessor crashed.
    pub(super) before: bool,
}

impl Crash {
    /// Watch for a crash of this process from now on; `file` is a predecessor's. To be called once.
    pub(super) fn watch(file: Option<OwnedFd>) -> Result<Crash, KeepError> {
        let (mapping, file) = match file {
            Some(file) => {
                let borrowed = std::os::fd::AsFd::as_fd(&file);
                (Mapping::of_file(borrowed, 0, PAGE)?, file)
            }
            None => Mapping::memfd("towpath-crash", PAGE)?,
        };
        let view = View::new(&Arc::new(mapping), 0, PAGE, 8);
        let view = view.ok_or_else(|| KeepError::Unfit("a crash word too small".to_owned()))?;
        let before = view.load_u64(0, Ordering::Relaxed) != 0;
        view.store_u64(0, 0, Ordering::Relaxed);
        // The handlers use it as long as the process lives; the first one stays.
        let _ = WORD.set(view);
        let all = [SIGSEGV, SIGILL, SIGFPE, SIGABRT, SIGSYS];
        for signal in all {
            install(signal)?;
        }
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // A session's panic ends that session; a worker's ends the process.
            let thread = std::thread::current();
            if thread.name().is_some_and(|name| name.starts_with("worker")) {
                mark();
            }
            usual(panic);
        }));
        Ok(Crash { file, before })
    }
}

/// Async-signal-safe: a load, and a store to a page that is never unmapped.
fn mark() {
    if let Some(word) = WORD.get() {
        word.store_u64(0, 1, Ordering::Relaxed);
    }
}

fn install(signal: libc::c_int) -> Result<(), std::io::Error> {
    // SAFETY: sigaction is a C struct of integers and pointers, for which zero is valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_crash as *const () as usize;
    action.sa_flags = libc::SA_ONSTACK | libc::SA_NODEFER | libc::SA_RESETHAND;
    // SAFETY: `action` is complete, and `on_crash` has the signature of a plain handler.
    let rc = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if rc == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Marks, and lets the signal do what it does without us: SA_RESETHAND has put that back.
extern "C" fn on_crash(signal: libc::c_int) {
    mark();
    // SAFETY: raise is async-signal-safe.
    let _ = unsafe { libc::raise(signal) };
}
