//! A daemon gives up, once it knows what it serves, what it will never need: system calls that it
//! does not declare (seccomp) and files outside its directories ([`landlock`]).
//!
//! # System calls
//!
//! What daemons share is declared in `calls.rs`, what one of them needs beyond in its own
//! `sandbox.rs`: a number, where it matters the arguments, and why. Three answers, of which the
//! kernel takes the sternest:
//!
//! - **What is declared** is let through.
//! - **What is not** fails with EPERM and is in the kernel's log (audit record 1326, with the
//!   number of the call). A list like this is never proven complete, and the C library's next
//!   version may try something new. An error is what every caller here must cope with anyway; to
//!   end the daemon would interrupt every virtual machine because one corner was forgotten. Not
//!   ENOSYS: libraries take that for an old kernel and try other ways, so that the mistake is found
//!   late.
//! - **What only an intruder does** (ptrace, executing programs, modules, mounts, …) raises SIGSYS,
//!   which ends the daemon. It comes back without what intruded, virtual machines go on, and the
//!   sessions at work are suspected as after any crash.
//!
//! clone3 gets ENOSYS: its flags are in memory, which a filter cannot look at. The C library then
//! uses clone, of which only threads are let through: a daemon begins no process.
//!
//! It is installed before workers and sessions exist, so that every thread has it from its first
//! moment, and cannot be undone.

mod calls;
pub mod landlock;
mod seccomp;

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use seccompiler::BpfProgram;

use crate::logging::events::NOT_CONFINED;

use serde::{Deserialize, Serialize};

pub use calls::{Argument, Call, call, only};

use crate::bell::Bell;
use crate::config::ValueError;

/// What becomes of system calls that are not declared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// They fail, or end the daemon.
    #[default]
    Enforce,
    /// They are in the kernel's log.
    Log,
    /// Nothing.
    Off,
}

impl FromStr for Seccomp {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "enforce" => Ok(Self::Enforce),
            "log" => Ok(Self::Log),
            "off" => Ok(Self::Off),
            _ => {
                let fix = "use enforce, log or off";
                Err(ValueError::form("seccomp", text, fix))
            }
        }
    }
}

impl fmt::Display for Seccomp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforce => "enforce",
            Self::Log => "log",
            Self::Off => "off",
        })
    }
}

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The filter.
    #[error("no seccomp filter: {0}; seccomp = \"off\" does without")]
    Seccomp(String),
    /// Nobody could be notified.
    #[error("{0}")]
    Bell(std::io::Error),
    /// The rules for files.
    #[error("no Landlock rules: {0}; take `paths` out of [landlock] to do without")]
    Landlock(String),
}

/// Whether `error` is a kernel without filters, or a filter from outside that forbids more of them.
fn is_impossible(error: &std::io::Error) -> bool {
    let known = [libc::EINVAL, libc::ENOSYS, libc::EPERM, libc::EACCES];
    error
        .raw_os_error()
        .is_some_and(|errno| known.contains(&errno))
}

/// Make sure that drivers can be notified on this host.
///
/// # Errors
/// [`SandboxError::Bell`].
pub fn check_bell() -> Result<(), SandboxError> {
    Bell::new().map(drop).map_err(SandboxError::Bell)
}

/// Filters that are made and not installed yet.
static MADE: Mutex<Option<Made>> = Mutex::new(None);

struct Made {
    mode: Seccomp,
    own: Vec<Call>,
    programs: Vec<BpfProgram>,
}

/// Make the filters for [`limit_calls`] ahead: it takes a millisecond, which guests would wait for
/// while one daemon follows another. What is wrong with them is told there.
pub fn prepare_calls(mode: Seccomp, own: &[Call]) {
    if mode != Seccomp::Off
        && let Ok(programs) = seccomp::programs(mode, &[calls::SHARED, own])
    {
        let own = own.to_vec();
        *made() = Some(Made {
            mode,
            own,
            programs,
        });
    }
}

fn made() -> MutexGuard<'static, Option<Made>> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The filters, made ahead or now.
fn programs(mode: Seccomp, own: &[Call]) -> Result<Vec<BpfProgram>, SandboxError> {
    match made().take() {
        Some(made) if made.mode == mode && made.own == own => Ok(made.programs),
        _ => seccomp::programs(mode, &[calls::SHARED, own]),
    }
}

/// Limit all threads of this process to the calls that daemons share and `own`, as `mode` has it.
/// A kernel without seccomp is said in the log.
///
/// # Errors
/// [`SandboxError::Seccomp`].
pub fn limit_calls(mode: Seccomp, own: &[Call]) -> Result<(), SandboxError> {
    if mode == Seccomp::Off {
        tracing::warn!(name: NOT_CONFINED, "system calls are not limited (seccomp = \"off\")");
        return Ok(());
    }
    for program in &programs(mode, own)? {
        match seccomp::install(program) {
            Ok(()) => {}
            Err(error) if is_impossible(&error) => {
                tracing::warn!(name: NOT_CONFINED, %error,
                    "no seccomp filter can be installed here: system calls are not limited by the \
                    daemon itself");
                return Ok(());
            }
            Err(error) => return Err(SandboxError::Seccomp(error.to_string())),
        }
    }
    tracing::info!(%mode, "system calls are limited");
    Ok(())
}

#[cfg(test)]
mod tests;
