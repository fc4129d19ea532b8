//! The command line of vblk, daemon and client in one. Values are parsed into the types of the
//! configuration, so a mistake here ends with exit code 2 before anything happens.

mod help;
pub(crate) mod top;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use towpath_common::cli::{Extra, Place};
use towpath_common::config::{ByteSize, CpuList, DaemonTable, Name, Poll, SocketPath};
use towpath_common::logging::LogFilter;
use towpath_common::sandbox::Seccomp;
use vblk::config::{DEFAULT_CONTROL, EngineChoice, ProcessTable, Source, Sources};
use vblk::storage::lvm::helper;

const EXAMPLES: &str = "\
Examples:
  vblk create /var/lib/vm/disk.img 20G
  vblk serve --disk /var/lib/vm/disk.img,socket=/run/towpath/disk.sock
  vblk disk list
  vblk stats --watch

Exit codes: 0 success, 1 failure, 2 wrong usage or configuration.";

const SERVE_EXAMPLES: &str = "\
Examples:
  vblk serve --disk disk.img,socket=/run/towpath/disk.sock
  vblk serve --disk /dev/vg/data,socket=/run/a.sock,queues=4 --disk base.img,socket=/run/b.sock,ro
  vblk serve --config /etc/towpath/vblk.toml --cpu 2,3

With QEMU, a disk is attached by
  -object memory-backend-memfd,id=mem,size=4G,share=on -machine memory-backend=mem
  -chardev socket,id=c0,path=/run/towpath/disk.sock,reconnect-ms=200
  -device vhost-user-blk-pci,chardev=c0

Signals: SIGTERM and SIGINT complete what is in flight and exit, SIGHUP reloads.";

const ATTACH_EXAMPLES: &str = "\
Examples:
  vblk attach web --print qemu                   words for a command line
  vblk attach web --print libvirt                XML for virsh edit
  vblk attach web --qmp /run/vm.qmp --bus slot0  into a machine that runs";

const DISK_SYNTAX: &str = "\
A disk to serve; repeat for more. PATH is a file or block device, or null:SIZE for no storage at \
all. OPTIONS, separated by commas (,, for a comma in a value):
  client                 connect to SOCKET instead of listening on it
  ro                     refuse writes
  queues=N               most queues a guest may use, 1 to 64 [16]
  name=NAME              name in the API [the file's stem]
  uuid=UUID              identity in the API, which a copy of the name has not [none]
  serial=TEXT            what the guest sees as the disk's serial [the name]
  cache=direct|buffered  bypass or use the host's page cache [direct]
  resident=SIZE          most of the page cache to lock in memory, for faster reads [0]
  bitmap=FILE            keeps what changed since the last backup, across restarts [none]
  map=file|extents       through the file system, or past it on the file's blocks [file]
  lock=open|running      lock a file while it is open, or only while the guest runs [open]
  record=FILE            record of a mirror [beside its first disk]
  prefer=N               disk of a mirror to read from, counted from 1 [the fastest]
  resync-rate=SIZE       most bytes a second to copy to a disk that catches up [100M]
  mirror-timeout=N       seconds in which a disk of a mirror has to answer [30]
  polling=device|thread  the worker, or a thread of the kernel's, asks a device that polls [off]
  connections=N          connections of each worker to an NBD server, 1 to 16 [1]
  block-size=512|4096    logical block size [that of the device, or 512]
  weight=N               share of the worker's time, 1 to 10000 [100]
  cap=PERCENT            most of a core it may use, 1 to 6400 [no limit]
  guest-memory=auto|registered|plain  register guest memory with io_uring [auto]
  iops=N                 most requests a second [no limit]
  iops-burst=N           requests at once after a pause [what comes in 100 ms]
  bandwidth=SIZE         most bytes a second, such as 100M [no limit]
  bandwidth-burst=SIZE   bytes at once after a pause [what comes in 100 ms]
  group=NAME             also under the limits of this group
  on-error=report|hold|fail  tell the guest, hold and try again, or fail all from then on [report]
  shrink                 `vblk disk resize --shrink` may make it smaller";

const SETTINGS: &str = "\
Settings:
  iops=N, bandwidth=SIZE              most requests, bytes a second
  iops-burst=N, bandwidth-burst=SIZE  at once after a pause
  weight=N, cap=PERCENT               share of its worker (disks only)
  on-error=report|hold|fail           about failures of the storage (disks only)

They last until the key changes in the configuration, or the daemon ends.

Examples:
  vblk disk set web iops=500 bandwidth=20M
  vblk disk set web iops= bandwidth=
  vblk group set gold bandwidth=1G";

/// Virtual disks for virtual machines over vhost-user, from files and block devices.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve disks until told to stop.
    #[command(after_help = SERVE_EXAMPLES)]
    Serve {
        /// Start it again if it ends, in a way that virtual machines do not notice: for hosts where
        /// systemd does not do that, and for containers. SIGUSR2 restarts it.
        #[arg(long)]
        keep: bool,
        #[command(flatten)]
        sources: SourceArgs,
    },
    /// Runs lvm for a daemon; not for people.
    #[command(hide = true, name = helper::SUBCOMMAND)]
    LvmHelper,
    /// Create an empty, sparse raw image.
    Create {
        /// The file to create; it must not exist.
        path: PathBuf,
        /// Its size, such as 20G: a multiple of 512 bytes.
        size: ByteSize,
        /// Print the answer as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Look at the disks of a running daemon, and change them.
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Make mirrors, look at them, take disks out and bring them back.
    #[command(subcommand)]
    Mirror(MirrorCommand),
    /// Copy a disk as it is now to a new file while it is served: by cloning on the same xfs or
    /// btrfs, else block by block behind the guest's back.
    Snapshot {
        /// The disk.
        name: Name,
        /// The file to make.
        path: PathBuf,
        #[command(flatten)]
        target: Target,
    },
    /// Back a disk up as it is now while it is served, and show how that goes.
    #[command(after_help = help::BACKUP)]
    Backup {
        /// The disk.
        name: Name,
        #[command(flatten)]
        backup: BackupArgs,
        #[command(flatten)]
        target: Target,
    },
    /// Write the disk in a backup to a file or device that nobody uses.
    #[command(after_help = help::RESTORE)]
    Restore {
        /// The backup: its file, or its manifest. For an increment, what it is built upon is found
        /// beside it, or where it was.
        backup: PathBuf,
        /// Where to: a new file; an NBD export.
        to: String,
        /// It exists already, and all on it may be lost.
        #[arg(long)]
        overwrite: bool,
        /// Print the answer as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Read a backup and what it is built upon, and compare every block with its hash.
    Verify {
        /// The backup: its file, or its manifest.
        backup: PathBuf,
        /// Print the answer as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Look at groups of disks, and change them.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Show what disks and workers have done since the start.
    Stats {
        /// Show rates instead, every second until interrupted.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Show the slowest requests of the last minute or two, and where their time went.
    Slow {
        /// The disk; without it, all disks.
        name: Option<Name>,
        /// How many.
        #[arg(long, value_name = "N", default_value_t = 20)]
        count: usize,
        #[command(flatten)]
        target: Target,
    },
    /// Give a virtual machine a disk: print the words for a new one, or plug it into a running one.
    #[command(after_help = ATTACH_EXAMPLES)]
    Attach {
        /// The disk.
        name: Name,
        #[command(flatten)]
        place: Place,
        /// Queues that the machine is to have.
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
    /// Show what disks and workers do right now.
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
pub(crate) enum DiskCommand {
    /// One line a disk.
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Everything about one disk, or about all.
    Show {
        /// The disk; without it, all disks.
        name: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Serve a session again that is quarantined: the daemon crashed over it three times.
    Release {
        /// Its disk.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Give a disk another size while it is served; the guest is told.
    Resize {
        /// The disk.
        name: Name,
        /// The new size, such as 40G; without it, that of its file or device now.
        size: Option<ByteSize>,
        /// Allow a smaller size, for a disk with `shrink = true`: what is cut off is lost.
        #[arg(long)]
        shrink: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Take what failed on a disk as repaired: FLUSH after a failed fsync, or all after a failure
    /// with `on-error=fail`.
    Clear {
        /// The disk.
        name: Name,
        #[command(flatten)]
        target: Target,
    },
    /// Change a disk while it is served: what is not named stays as it is.
    #[command(after_help = SETTINGS)]
    Set {
        /// The disk.
        name: Name,
        /// What changes; KEY= without a value takes it away.
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum MirrorCommand {
    /// Make the record of a new mirror: its first disk is copied to the others.
    Create {
        /// The mirror, as in the configuration: mirror:DISK|DISK.
        source: Source,
        /// The record; without it, a file beside the first disk.
        #[arg(long, value_name = "FILE")]
        record: Option<PathBuf>,
        /// The disks hold the same already, such as nothing at all: copy nothing.
        #[arg(long)]
        assume_clean: bool,
        /// Print the answer as JSON.
        #[arg(long)]
        json: bool,
    },
    /// How a mirror and its disks are.
    Show {
        /// The mirror.
        name: Name,
        #[command(flatten)]
        target: Target,
    },
    /// Take a disk out.
    Fail {
        /// The mirror.
        name: Name,
        /// Its disk: a number, counted from 1, or its path.
        disk: String,
        #[command(flatten)]
        target: Target,
    },
    /// Bring a disk back, and copy what it missed.
    Add {
        /// The mirror.
        name: Name,
        /// Its disk: a number, counted from 1, or its path.
        disk: String,
        /// Copy everything: it is another disk, or something else has written to it.
        #[arg(long)]
        full: bool,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// One line a group.
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Change the limits that its disks share.
    #[command(after_help = SETTINGS)]
    Set {
        /// The group.
        name: Name,
        /// What changes; KEY= without a value takes it away.
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
        #[command(flatten)]
        target: Target,
    },
}

/// What to do about backups; nothing: show how the last one stands.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// A file to make, or an NBD export to write over.
    #[arg(long, value_name = "FILE|nbd:…")]
    pub(crate) to: Option<String>,
    /// The manifest to make [FILE.manifest].
    #[arg(long, value_name = "FILE", requires = "to")]
    pub(crate) manifest: Option<PathBuf>,
    /// Only what changed since the last backup.
    #[arg(long, requires = "to")]
    pub(crate) incremental: bool,
    /// Go on with one that was cut off, as of now: what it has and did not change since is kept.
    #[arg(long, requires = "to")]
    pub(crate) resume: bool,
    /// Most bytes a second, such as 50M [as fast as it goes].
    #[arg(long, value_name = "SIZE", requires = "to")]
    pub(crate) rate: Option<ByteSize>,
    /// Do not wait for the end.
    #[arg(long, requires = "to")]
    pub(crate) detach: bool,
    /// End the one that is under way; it can be resumed.
    #[arg(long, conflicts_with = "to")]
    pub(crate) cancel: bool,
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

/// What to serve.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// Configuration file; without it and without --disk, /etc/towpath/vblk.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A disk to serve (--help lists the options); repeat for more.
    #[arg(long = "disk", value_name = "PATH,socket=SOCKET[,OPTIONS]", long_help = DISK_SYNTAX)]
    disks: Vec<String>,
    /// Limits that disks share, by `group=NAME`: `iops=N`, `bandwidth=SIZE`, `iops-burst=N`,
    /// `bandwidth-burst=SIZE`; repeat for more.
    #[arg(long = "group", value_name = "NAME[,LIMITS]")]
    groups: Vec<String>,
    /// CPUs to pin workers to, one worker each, such as 2,4-6 [one worker, not pinned].
    #[arg(long = "cpu", value_name = "LIST")]
    cpus: Option<CpuList>,
    /// What workers do when idle: adaptive, busy or interrupt [adaptive].
    #[arg(long, value_name = "HOW")]
    poll: Option<Poll>,
    /// Who does the I/O: io_uring, threads, or auto for threads where io_uring is forbidden [auto].
    #[arg(long, value_name = "WHO")]
    engine: Option<EngineChoice>,
    /// Control socket to listen on [/run/towpath/vblk.sock].
    #[arg(long, value_name = "SOCKET")]
    control: Option<SocketPath>,
    /// Lines to log, such as debug or vblk=trace,warn [RUST_LOG, or info].
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
            disks: args.disks,
            groups: args.groups,
            daemon: DaemonTable {
                cpus: args.cpus,
                poll: args.poll,
                control: args.control,
                log: args.log,
                seccomp: args.seccomp,
                ..DaemonTable::default()
            },
            process: ProcessTable {
                engine: args.engine,
                ..ProcessTable::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Command, String> {
        let words = std::iter::once("vblk").chain(line.split_whitespace());
        Cli::try_parse_from(words)
            .map(|cli| cli.command)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_takes_everything_the_file_does() {
        let line = "serve --config f --disk a,socket=s --disk b,socket=t --cpu 2,4-5 --poll busy \
                    --control c --log debug";
        let Ok(Command::Serve { keep, sources }) = parse(line) else {
            panic!("not serve")
        };
        assert!(!keep);
        let sources = Sources::from(sources);
        assert_eq!(sources.disks, ["a,socket=s", "b,socket=t"]);
        assert_eq!(sources.daemon.cpus, Some("2,4,5".parse().unwrap()));
        assert_eq!(sources.daemon.poll, Some(Poll::Busy));
    }

    #[test]
    fn values_are_checked_at_once() {
        for (line, message) in [
            ("serve --poll lazy", "use adaptive, busy or interrupt"),
            ("serve --cpu 1,1", "name each CPU once"),
            ("serve --log loud=x", "log filter \"loud=x\""),
            ("create d 4Q", "powers of 1024"),
            ("dsk", "a similar subcommand exists: 'disk'"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn clients_connect_to_the_default_socket() {
        let Ok(Command::Disk(DiskCommand::List { target })) = parse("disk list --json") else {
            panic!("not a list")
        };
        assert!(target.json);
        assert_eq!(target.control, vblk::config::default_control());
    }

    #[test]
    fn help_names_every_key_of_disk() {
        let help = Cli::command()
            .find_subcommand_mut("serve")
            .unwrap()
            .render_long_help();
        let help = help.to_string();
        for key in vblk::config::argument_keys() {
            assert!(help.contains(key), "{key}");
        }
    }
}
