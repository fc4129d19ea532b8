//! The commands that speak to a running daemon, and the form of a lease that lasts as long as a
//! command.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Resource, getrlimit};
use sriov_manager::address::PciAddr;
use sriov_manager::control::Overview;
use sriov_manager::lease::{self, Granted, Handed, How, Request, Shown};
use sriov_manager::plan::Plan;
use towpath_common::control::print::print;
use towpath_common::control::{Answer, Client};

use crate::cli::{LeaseArgs, Target};
use crate::report;

/// `status`.
pub(crate) fn status(target: &Target, out: &mut impl Write) -> Result<ExitCode> {
    let answer: Answer<Overview> = Client::new(target.control.as_path()).get("/v1/status")?;
    let description = answer.description.clone();
    print(&answer, target.json, out, |overview| {
        report::overview(overview, &description)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `lease list`.
pub(crate) fn leases(target: &Target, out: &mut impl Write) -> Result<ExitCode> {
    let answer: Answer<Vec<Shown>> = Client::new(target.control.as_path()).get("/v1/leases")?;
    print(&answer, target.json, out, |leases| report::leases(leases))?;
    Ok(ExitCode::SUCCESS)
}

/// `lease release`.
pub(crate) fn release(target: &Target, vf: PciAddr, out: &mut impl Write) -> Result<ExitCode> {
    let client = Client::new(target.control.as_path());
    let answer: Answer = client.post(&format!("/v1/leases/{vf}/release"), &())?;
    done(&answer, target, out)
}

/// Prints an answer that carries nothing but its sentence.
fn done(answer: &Answer, target: &Target, out: &mut impl Write) -> Result<ExitCode> {
    print(answer, target.json, out, |()| String::new())?;
    if !target.json {
        writeln!(out, "{}", answer.description)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `reload`.
pub(crate) fn reload(target: &Target, out: &mut impl Write) -> Result<ExitCode> {
    let answer: Answer = Client::new(target.control.as_path()).post("/v1/reload", &())?;
    done(&answer, target, out)
}

/// `repair`.
pub(crate) fn repair(target: &Target, out: &mut impl Write) -> Result<ExitCode> {
    let answer: Answer<Plan> = Client::new(target.control.as_path()).post("/v1/apply", &())?;
    let description = answer.description.clone();
    print(&answer, target.json, out, |plan| {
        let left = report::plan(plan, &sriov_manager::inventory::Inventory::default());
        format!("{left}{description}\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

fn asked(args: &LeaseArgs, how: How) -> Request {
    Request {
        numa: args.numa,
        pid: args.pid,
        how,
        mac: args.mac,
        vlan: args.vlan,
        max_rate: args.max_rate,
        ..Request::new(args.pool.clone(), args.owner())
    }
}

/// `lease get`: for the process that is named, which opens the device by its name.
pub(crate) fn get(args: &LeaseArgs, json: bool, out: &mut impl Write) -> Result<ExitCode> {
    if args.pid.is_none() {
        bail!(
            "whose lease is it? name the process with --pid, or use `sriov-manager exec`, \
             which becomes the command and leases for it"
        );
    }
    let Handed { granted, .. } = lease::request(args.leases.as_path(), &asked(args, How::Node))?;
    let description = format!("{} is leased", granted.address);
    print(
        &Answer::success(description, granted),
        json,
        out,
        report::granted,
    )?;
    Ok(ExitCode::SUCCESS)
}

/// `exec`: leases, and becomes the command. The lease follows the process.
pub(crate) fn exec(args: &LeaseArgs, command: &[String]) -> Result<ExitCode> {
    let wants_fds = command
        .iter()
        .any(|word| word.contains("_fd}") || word.contains("{iommufd}"));
    let how = if wants_fds { How::Fds } else { How::Node };
    let Handed { granted, fds } = lease::request(args.leases.as_path(), &asked(args, how))?;
    if let Some(warning) = memlock(&granted) {
        eprintln!("sriov-manager: {warning}");
    }
    let words = substitute(command, &granted, &fds)?;
    let (program, arguments) = words.split_first().context("there is no command")?;
    for fd in &fds {
        fcntl_setfd(fd, FdFlags::empty())?;
    }
    let error = Command::new(program)
        .args(arguments)
        .env("TOWPATH_VF", granted.address.to_string())
        .env("TOWPATH_GROUP", granted.group.to_string())
        .exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}

/// No machine is smaller.
const SMALLEST_MACHINE: u64 = 64 << 20;

/// What is to be said about the memory that the command may lock, if that cannot be enough.
fn memlock(granted: &Granted) -> Option<String> {
    let limit = getrlimit(Resource::Memlock).current?;
    too_little(limit, granted.bars)
}

fn too_little(limit: u64, bars: u64) -> Option<String> {
    (limit < bars.saturating_add(SMALLEST_MACHINE)).then(|| {
        format!(
            "the command may lock {} KiB; a VMM locks all of its machine's memory and {} KiB of \
             the VF: raise LimitMEMLOCK= of its unit, or `ulimit -l`, or mapping fails with ENOMEM",
            limit >> 10,
            bars >> 10
        )
    })
}

/// The command with `{address}`, `{group}` and descriptors filled in.
fn substitute(command: &[String], granted: &Granted, fds: &[OwnedFd]) -> Result<Vec<String>> {
    let mut known: BTreeMap<String, String> = BTreeMap::from([
        ("{address}".to_owned(), granted.address.to_string()),
        ("{group}".to_owned(), granted.group.to_string()),
    ]);
    for (name, fd) in granted.fds.iter().zip(fds) {
        let key = if name == "iommufd" {
            "{iommufd}".to_owned()
        } else {
            format!("{{{name}_fd}}")
        };
        known.insert(key, fd.as_raw_fd().to_string());
    }
    let words = command.iter().map(|word| {
        let filled = known
            .iter()
            .fold(word.clone(), |word, (key, value)| word.replace(key, value));
        for odd in ["{iommufd}", "{device_fd}", "{group_fd}", "{container_fd}"] {
            if filled.contains(odd) {
                bail!(
                    "this kernel hands over {}; {odd} is none of them",
                    granted.fds.join(", ")
                );
            }
        }
        Ok(filled)
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sriov_manager::attribute::Attributes;
    use std::fs::File;

    fn granted(names: [&str; 2]) -> Granted {
        Granted {
            address: "0000:01:10.0".parse().unwrap(),
            pf: "0000:01:00.0".parse().unwrap(),
            index: 0,
            numa: None,
            group: 17,
            fds: names.map(str::to_owned).to_vec(),
            bars: 0,
            attributes: Attributes::default(),
        }
    }

    #[test]
    fn memory_that_cannot_be_locked_is_said_before_it_is_missed() {
        let said = too_little(8 << 20, 32 << 10).unwrap();
        assert!(said.contains("may lock 8192 KiB") && said.contains("32 KiB of the VF"));
        assert_eq!(too_little(8 << 30, 32 << 10), None);
    }

    #[test]
    fn a_command_is_filled_in() {
        let fds: Vec<OwnedFd> = (0..2)
            .map(|_| File::open("/dev/null").unwrap().into())
            .collect();
        let command = [
            "qemu",
            "vfio-pci,host={address}",
            "fd={group_fd}",
            "{group}",
        ];
        let command = command.map(str::to_owned);
        let words = substitute(&command, &granted(["container", "group"]), &fds).unwrap();
        assert_eq!(words[1], "vfio-pci,host=0000:01:10.0");
        assert_eq!(words[2], format!("fd={}", fds[1].as_raw_fd()));
        assert_eq!(words[3], "17");
        let error = substitute(&command, &granted(["iommufd", "device"]), &fds).unwrap_err();
        assert!(
            error.to_string().contains("{group_fd} is none of them"),
            "{error}"
        );
    }
}
