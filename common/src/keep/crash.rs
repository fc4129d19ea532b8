//! Tells a crash from a kill: who was being served when a process died by its own fault is to
//! blame, who was served when somebody killed it is not.
//!
//! One word of shared memory that outlives the process, set by signals that say that a program is
//! broken (SIGSEGV, SIGILL, SIGFPE, and SIGABRT, which is also what a watchdog sends) and by a
//! worker's panic. A SIGKILL sets nothing.

// UNSAFETY: installing signal handlers, and one store to a page that is never unmapped inside them.
#![expect(
    unsafe_code,
    reason = "sigaction has no safe form, and a handler reaches memory by address alone"
)]

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::KeepError;
use crate::mem::Mapping;

/// Where the word is, or 0.
static WORD: AtomicUsize = AtomicUsize::new(0);

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
        let mut word = [0; 8];
        let before = mapping.read(0, &mut word) && word != [0; 8];
        if !mapping.write(0, &[0; 8]) {
            return Err(KeepError::Unfit("a crash word too small".to_owned()));
        }
        let at = mapping.host(0, 8);
        // The handlers use it as long as the process lives.
        std::mem::forget(mapping);
        WORD.store(at.expose_provenance(), Ordering::SeqCst);
        for signal in [libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGABRT] {
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

fn mark() {
    let at = WORD.load(Ordering::SeqCst);
    if at != 0 {
        let word = std::ptr::with_exposed_provenance_mut::<u64>(at);
        // SAFETY: the page at `at` is mapped for writing, aligned, and never unmapped.
        unsafe { word.write_volatile(1) };
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
