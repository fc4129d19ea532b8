//! Runs a program on a host that forbids something, as containers and gVisor do.
//!
//! ```text
//! forbid io_uring PROGRAM [ARGUMENT…]    io_uring_setup and its like fail with EPERM
//! forbid both PROGRAM [ARGUMENT…]        io_setup (AIO) as well
//! ```

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// io_uring_setup, io_uring_enter, io_uring_register: the same on every architecture.
const IO_URING: [i64; 3] = [425, 426, 427];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forbid: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut words = std::env::args_os().skip(1);
    let what = words.next().context("what is forbidden?")?;
    let program = words.next().context("which program is run?")?;
    let mut forbidden = IO_URING.to_vec();
    match what.to_str() {
        Some("io_uring") => {}
        Some("both") => forbidden.push(libc::SYS_io_setup),
        _ => bail!("{what:?} is neither io_uring nor both"),
    }
    let refuse = SeccompAction::Errno(u32::try_from(libc::EPERM)?);
    let rules: BTreeMap<i64, Vec<_>> = forbidden.into_iter().map(|n| (n, vec![])).collect();
    let machine = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, machine)?;
    apply_filter(&BpfProgram::try_from(filter)?)?;
    // Comes back only with an error.
    Err(Command::new(program).args(words).exec().into())
}
