//! From lists of system calls to filters, and into the kernel.

// UNSAFETY: one system call that libc has no function for.
#![expect(unsafe_code, reason = "rustix has no seccomp(2)")]

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::calls::{Argument, Call, FATAL};
use super::{SandboxError, Seccomp};

/// SECCOMP_SET_MODE_FILTER (include/uapi/linux/seccomp.h).
const SET_MODE_FILTER: libc::c_uint = 1;

/// For all threads.
const TSYNC: libc::c_ulong = 1;

/// What is refused is in the kernel's log.
const LOG: libc::c_ulong = 2;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn failed(error: impl std::fmt::Display) -> SandboxError {
    SandboxError::Seccomp(error.to_string())
}

fn condition(argument: &Argument) -> Result<SeccompCondition, SandboxError> {
    let Argument { index, mask, value } = *argument;
    // The kernel takes these arguments as 32 bits, whatever is in the others.
    let (size, how) = (SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask.into()));
    SeccompCondition::new(index, size, how, value.into()).map_err(failed)
}

fn rules(lists: &[&[Call]]) -> Result<Rules, SandboxError> {
    let mut rules: BTreeMap<i64, Option<Vec<SeccompRule>>> = BTreeMap::new();
    for call in lists.iter().copied().flatten() {
        let here = rules.entry(call.number).or_insert_with(|| Some(Vec::new()));
        if call.only.is_empty() {
            // Whatever its arguments.
            *here = None;
        }
        if let Some(here) = here {
            for all in call.only {
                let all: Result<Vec<_>, _> = all.iter().map(condition).collect();
                here.push(SeccompRule::new(all?).map_err(failed)?);
            }
        }
    }
    // A call without rules is let through always.
    let rules = rules.into_iter().map(|(n, r)| (n, r.unwrap_or_default()));
    Ok(rules.collect())
}

fn program(
    rules: Rules,
    else_: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, SandboxError> {
    let machine = std::env::consts::ARCH.try_into().map_err(failed)?;
    let filter = SeccompFilter::new(rules, else_, matched, machine).map_err(failed)?;
    BpfProgram::try_from(filter).map_err(failed)
}

/// The filters for `mode`, in the order in which they are installed.
pub(super) fn programs(mode: Seccomp, lists: &[&[Call]]) -> Result<Vec<BpfProgram>, SandboxError> {
    let allowed = rules(lists)?;
    if mode == Seccomp::Log {
        return Ok(vec![program(
            allowed,
            SeccompAction::Log,
            SeccompAction::Allow,
        )?]);
    }
    let refuse = |errno: i32| errno.try_into().map(SeccompAction::Errno).map_err(failed);
    let no_clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
    let fatal = FATAL.iter().map(|(number, _)| (*number, Vec::new()));
    Ok(vec![
        program(fatal.collect(), SeccompAction::Allow, SeccompAction::Trap)?,
        program(no_clone3, SeccompAction::Allow, refuse(libc::ENOSYS)?)?,
        program(allowed, refuse(libc::EPERM)?, SeccompAction::Allow)?,
    ])
}

/// Install `program` for all threads, for good.
pub(super) fn install(program: &BpfProgram) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let short = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let fprog = libc::sock_fprog {
        len: program.len().try_into().map_err(short)?,
        // The same structure under another name; the kernel only reads it.
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `fprog` is a filter of as many instructions as it says, alive until the call is over.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SET_MODE_FILTER,
            TSYNC | LOG,
            &raw const fprog,
        )
    };
    match rc {
        0 => Ok(()),
        // A thread that has another filter, by its id.
        1.. => Err(io::Error::other(format!(
            "thread {rc} has a filter of its own"
        ))),
        _ => Err(io::Error::last_os_error()),
    }
}
