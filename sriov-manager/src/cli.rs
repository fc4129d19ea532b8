//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use sriov_manager::address::PciAddr;
use sriov_manager::spec::{DEFAULT_CONTROL, DEFAULT_FILE, DEFAULT_LEASES};
use sriov_manager::values::{Rate, StationMac, Vlan};
use towpath_common::cli::Extra;
use towpath_common::config::{Name, SocketPath};

const EXAMPLES: &str = "\
Examples:
  sriov-manager scan
  sriov-manager plan
  sriov-manager apply

Exit codes: 0 success, or nothing to do; 1 failure; 2 wrong usage or configuration;
of plan also 3: there is something to do, 4: something is refused (apply: 4 as well).";

const EXEC_EXAMPLES: &str = "\
Examples:
  sriov-manager exec --pool fast -- qemu-system-x86_64 ... -device vfio-pci,host={address}
  sriov-manager exec --pool fast -- qemu-system-x86_64 ... -object iommufd,id=i0,fd={iommufd} \
    -device vfio-pci,iommufd=i0,fd={device_fd}
  sriov-manager exec --pool fast -- cloud-hypervisor ... \
    --device path=/sys/bus/pci/devices/{address}/

The command may lock as much memory as its machine has, and the VF's BARs: see ulimit -l.";

/// Virtual functions for virtual machines: planned, applied, and leased.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Extra(Extra),
    /// Show PFs, VFs, IOMMU groups, and who uses what.
    Scan {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        source: Source,
    },
    /// Show what apply would do, and what it would refuse.
    Plan {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        source: Source,
    },
    /// Make this host what the configuration says: all of it, or nothing.
    Apply {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Apply to the PFs of which nothing is refused.
        #[arg(long)]
        partial: bool,
        #[command(flatten)]
        source: Source,
    },
    /// Validate a configuration without looking at this host.
    Check {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        source: Source,
    },
    /// Say why this host will or will not give machines I/O at the speed of the card.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        source: Source,
    },
    /// Keep this host as the configuration says, and lease VFs, until told to stop.
    Serve {
        #[command(flatten)]
        source: Source,
    },
    /// Show how a running daemon fares.
    Status {
        #[command(flatten)]
        target: Target,
    },
    /// Give VFs to machines.
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// Lease a VF and become a command, which has it until it ends.
    #[command(after_help = EXEC_EXAMPLES)]
    Exec {
        #[command(flatten)]
        args: LeaseArgs,
        /// The command. {address} and {group} stand for the VF's; {container_fd} and {group_fd}, or
        /// {iommufd} and {device_fd}, for descriptors of it.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Make a running daemon repair what others changed, whatever its policy is.
    Repair {
        #[command(flatten)]
        target: Target,
    },
    /// Make a running daemon read its configuration again: all of it counts, or nothing.
    Reload {
        #[command(flatten)]
        target: Target,
    },
    /// Write to the kernel's files as told on standard input; this program's own child.
    #[command(hide = true)]
    WriteOrders,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LeaseCommand {
    /// Lease a VF for a process, which opens it by its name.
    Get {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        args: LeaseArgs,
    },
    /// One line a lease.
    List {
        #[command(flatten)]
        target: Target,
    },
    /// End a lease before its owner ends.
    Release {
        /// The VF.
        address: PciAddr,
        #[command(flatten)]
        target: Target,
    },
}

/// What is asked for.
#[derive(Debug, Args)]
pub(crate) struct LeaseArgs {
    /// The pool to take it from.
    #[arg(long)]
    pub(crate) pool: Name,
    /// Whose it is, in your own words [the command's or process's number].
    #[arg(long)]
    owner: Option<Name>,
    /// Prefer a card on this NUMA node.
    #[arg(long, value_name = "NODE")]
    pub(crate) numa: Option<u32>,
    /// The process whose end ends the lease [this one].
    #[arg(long)]
    pub(crate) pid: Option<u32>,
    /// An address instead of the configured one.
    #[arg(long)]
    pub(crate) mac: Option<StationMac>,
    /// A VLAN instead of the configured one.
    #[arg(long)]
    pub(crate) vlan: Option<Vlan>,
    /// A limit instead of the configured one, in Mbit/s.
    #[arg(long, value_name = "RATE")]
    pub(crate) max_rate: Option<Rate>,
    /// The daemon's socket for leases.
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_LEASES)]
    pub(crate) leases: SocketPath,
}

impl LeaseArgs {
    /// Whose it is.
    pub(crate) fn owner(&self) -> Name {
        let pid = self.pid.unwrap_or_else(std::process::id);
        let number = || Name::sanitized(&format!("process-{pid}"));
        self.owner.clone().unwrap_or_else(number)
    }
}

/// Which daemon to ask, and how to print.
#[derive(Debug, Args)]
pub(crate) struct Target {
    /// Print the answer as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The daemon's control socket.
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_CONTROL)]
    pub(crate) control: SocketPath,
}

/// What to read.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// Configuration file.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE)]
    pub(crate) config: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exec_takes_a_command_as_it_is() {
        let line =
            "sriov-manager exec --pool fast --vlan 7 -- qemu -device vfio-pci,host={address}";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Exec { args, command } = cli.command else {
            panic!("not exec")
        };
        assert_eq!(command, ["qemu", "-device", "vfio-pci,host={address}"]);
        assert_eq!(args.vlan.unwrap().get(), 7);
        assert_eq!(
            args.owner().as_str(),
            format!("process-{}", std::process::id())
        );
        assert!(Cli::try_parse_from(["sriov-manager", "exec", "--pool", "a"]).is_err());
    }
}
