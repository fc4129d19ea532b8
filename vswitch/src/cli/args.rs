//! Arguments that several commands share.

use std::path::PathBuf;

use clap::Args;
use towpath_common::config::{CpuList, DaemonTable, Name, Poll, SocketPath};
use towpath_common::logging::LogFilter;
use towpath_common::sandbox::Seccomp;
use vswitch::config::{DEFAULT_CONTROL, Direction, Sources};
use vswitch::mac::Mac;
use vswitch::service::FdbFilter;
use vswitch::vlan::Vid;

use super::help;

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

/// What to serve.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// Configuration file; without it, --port and --uplink, /etc/towpath/vswitch.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A port for a virtual machine (--help lists the options); repeat for more.
    #[arg(long = "port", value_name = "NAME,socket=SOCKET[,OPTIONS]")]
    #[arg(long_help = help::PORT_SYNTAX)]
    ports: Vec<String>,
    /// A TAP interface to the host's network (--help lists the options); repeat for more.
    #[arg(long = "uplink", value_name = "TAP[,OPTIONS]", long_help = help::UPLINK_SYNTAX)]
    uplinks: Vec<String>,
    /// CPUs to pin workers to, one worker each, such as 2,4-6 [one worker, not pinned].
    #[arg(long = "cpu", value_name = "LIST")]
    cpus: Option<CpuList>,
    /// What workers do when idle: adaptive, busy or interrupt [adaptive].
    #[arg(long, value_name = "HOW")]
    poll: Option<Poll>,
    /// Control socket to listen on [/run/towpath/vswitch.sock].
    #[arg(long, value_name = "SOCKET")]
    control: Option<SocketPath>,
    /// Lines to log, such as debug or vswitch=trace,warn [RUST_LOG, or info].
    #[arg(long, value_name = "FILTER")]
    log: Option<LogFilter>,
    /// What becomes of system calls the daemon does not declare: enforce, log or off [enforce].
    #[arg(long, value_name = "HOW")]
    seccomp: Option<Seccomp>,
}

impl From<SourceArgs> for Sources {
    fn from(args: SourceArgs) -> Self {
        Self {
            file: args.config,
            ports: args.ports,
            uplinks: args.uplinks,
            daemon: DaemonTable {
                cpus: args.cpus,
                poll: args.poll,
                control: args.control,
                log: args.log,
                seccomp: args.seccomp,
                ..DaemonTable::default()
            },
        }
    }
}

/// Which addresses.
#[derive(Debug, Args)]
pub(crate) struct FdbArgs {
    /// Only this VLAN.
    #[arg(long)]
    vlan: Option<Vid>,
    /// Only this port.
    #[arg(long)]
    port: Option<Name>,
    /// Only this address.
    #[arg(long)]
    mac: Option<Mac>,
}

impl From<FdbArgs> for FdbFilter {
    fn from(args: FdbArgs) -> Self {
        let FdbArgs { vlan, port, mac } = args;
        Self { vlan, port, mac }
    }
}

pub(super) fn direction(text: &str) -> Result<Direction, String> {
    match text {
        "rx" => Ok(Direction::Rx),
        "tx" => Ok(Direction::Tx),
        "both" => Ok(Direction::Both),
        _ => Err("use rx, tx or both".to_owned()),
    }
}
