//! The command line of vswitch, daemon and client in one. Values are parsed into the types of the
//! configuration, so a mistake here ends with exit code 2 before anything happens.

mod args;
pub(crate) mod capture;
mod help;
pub(crate) mod top;
pub(crate) mod why;

use clap::{Parser, Subcommand};
use towpath_common::cli::{Extra, Place};
use towpath_common::config::Name;
use vswitch::config::Direction;
use vswitch::mac::Mac;
use vswitch::vlan::{Vid, VlanSet};

pub(crate) use args::{FdbArgs, SourceArgs, Target};

/// A switch for virtual machines over vhost-user, with VLANs and uplinks.
#[derive(Debug, Parser)]
#[command(version, after_help = help::EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Switch frames until told to stop.
    #[command(after_help = help::SERVE)]
    Serve {
        /// Start it again if it ends, in a way that virtual machines do not notice: for hosts where
        /// systemd does not do that, and for containers. SIGUSR2 restarts it.
        #[arg(long)]
        keep: bool,
        #[command(flatten)]
        sources: SourceArgs,
    },
    /// Look at ports and uplinks, change and remove them; add ports.
    #[command(subcommand)]
    Port(PortCommand),
    /// Give a virtual machine a port: print the words for a new one, or plug it into a running one.
    #[command(after_help = help::ATTACH)]
    Attach {
        /// The port.
        name: Name,
        #[command(flatten)]
        place: Place,
        /// Pairs of queues that the machine is to have.
        #[arg(long, value_name = "N", default_value_t = 1)]
        queues: u16,
        /// An empty PCI Express port of the running machine (a pcie-root-port of QEMU's q35).
        #[arg(long, value_name = "BUS", requires = "qmp")]
        bus: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    #[command(flatten)]
    Extra(Extra),
    /// Add uplinks.
    #[command(subcommand)]
    Uplink(UplinkCommand),
    /// Look at the table of addresses and change it.
    #[command(subcommand)]
    Fdb(FdbCommand),
    /// Look at VLANs.
    #[command(subcommand)]
    Vlan(VlanCommand),
    /// Look at copies of traffic, add and remove them.
    #[command(subcommand)]
    Mirror(MirrorCommand),
    /// Look at frames as they pass, or write them to a file.
    #[command(after_help = capture::EXAMPLES)]
    Capture(capture::CaptureArgs),
    /// Explain what becomes of frames from and to an address.
    #[command(after_help = why::EXAMPLES)]
    Why(why::WhyArgs),
    /// Show what ports and workers have done since the start.
    #[command(after_help = help::DIRECTIONS)]
    Stats {
        /// Show rates instead, every second until interrupted.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Show what ports and workers do right now.
    #[command(after_help = top::HELP)]
    Top(top::Top),
    /// Validate a configuration and say what would be served.
    Check {
        #[command(flatten)]
        sources: SourceArgs,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Compare the configuration file with what the daemon runs.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make a running daemon read its configuration again: all of it is applied, or nothing.
    ///
    /// What was changed at run time without --persist is undone.
    Reload {
        /// Only say what would change.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// What a reload would change, and which machines' sessions it would end.
    #[command(after_help = help::CONFIG_DIFF)]
    Diff {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PortCommand {
    /// One line a port, or everything about one.
    #[command(after_help = help::DIRECTIONS)]
    Show {
        /// The port; without it, one line for each.
        name: Option<Name>,
        #[command(flatten)]
        target: Target,
    },
    /// Serve a session again that is quarantined: the daemon crashed over it three times.
    Release {
        /// Its port.
        name: Name,
        #[command(flatten)]
        target: Target,
    },
    /// Add a port.
    #[command(after_help = help::PORT)]
    Add {
        /// The port, as after `serve --port`.
        #[arg(value_name = "NAME,socket=SOCKET[,OPTIONS]")]
        port: String,
        /// Write it into the configuration file, too.
        #[arg(long)]
        persist: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Change a port or an uplink: what is not named stays as it is.
    #[command(after_help = help::SET)]
    Set {
        /// The port, and what changes; `KEY=` without a value takes the key away.
        #[arg(value_name = "NAME,OPTIONS")]
        port: String,
        /// Write it into the configuration file, too.
        #[arg(long)]
        persist: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Remove a port or an uplink.
    Remove {
        /// Which.
        name: Name,
        /// Remove it from the configuration file, too.
        #[arg(long)]
        persist: bool,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum UplinkCommand {
    /// Add an uplink.
    #[command(after_help = help::UPLINK)]
    Add {
        /// The uplink, as after `serve --uplink`.
        #[arg(value_name = "TAP[,OPTIONS]")]
        uplink: String,
        /// Write it into the configuration file, too.
        #[arg(long)]
        persist: bool,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum FdbCommand {
    /// Show known addresses.
    Show {
        #[command(flatten)]
        filter: FdbArgs,
        #[command(flatten)]
        target: Target,
    },
    /// Add a static address.
    Add {
        /// The address.
        mac: Mac,
        /// Where it is.
        #[arg(long)]
        port: Name,
        /// Its VLAN.
        #[arg(long, default_value_t = Vid::DEFAULT)]
        vlan: Vid,
        /// Write it into the configuration file, too.
        #[arg(long)]
        persist: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Remove a static address.
    Del {
        /// The address.
        mac: Mac,
        /// Its VLAN.
        #[arg(long, default_value_t = Vid::DEFAULT)]
        vlan: Vid,
        /// Remove it from the configuration file, too.
        #[arg(long)]
        persist: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Forget learned addresses: all, or those that are named.
    Flush {
        #[command(flatten)]
        filter: FdbArgs,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum VlanCommand {
    /// One line a VLAN: members, addresses, traffic.
    #[command(after_help = help::DIRECTIONS)]
    Show {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum MirrorCommand {
    /// One line a mirror.
    Show {
        #[command(flatten)]
        target: Target,
    },
    /// Copy traffic to a port.
    Add {
        /// What to call it.
        name: Name,
        /// Ports whose traffic is copied, separated by commas.
        #[arg(long, value_delimiter = ',', required_unless_present = "vlans")]
        from: Vec<Name>,
        /// VLANs whose traffic is copied, such as 10,20,30-40.
        #[arg(long)]
        vlans: Option<VlanSet>,
        /// The port that gets the copies.
        #[arg(long)]
        to: Name,
        /// Which traffic, as seen by the switch: rx came from the port, tx went to it.
        #[arg(long, value_name = "rx|tx|both", default_value = "both")]
        #[arg(value_parser = args::direction)]
        direction: Direction,
        /// Let that port go on switching; otherwise it only gets copies.
        #[arg(long)]
        member: bool,
        /// Write it into the configuration file, too.
        #[arg(long)]
        persist: bool,
        #[command(flatten)]
        target: Target,
    },
    /// End it.
    Del {
        /// Which.
        name: Name,
        /// Remove it from the configuration file, too.
        #[arg(long)]
        persist: bool,
        #[command(flatten)]
        target: Target,
    },
}

#[cfg(test)]
mod tests;
