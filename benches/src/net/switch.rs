//! Switches as processes: ours and its peers, each on the processor it is told.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use towpath_common::testing::Listener;

use super::frame;
use super::plan::Contender;
use super::traffic::Generator;
use crate::backend::found;
use crate::plan::Entrant;
use crate::process::{LOOK, Process};

/// Longest wait for a switch to take part.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where Debian keeps the Open vSwitch that is linked with DPDK.
const OVS_DPDK: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
/// Huge pages that DPDK's buffers get, if the machine gives them, in MiB.
pub const HUGE_MIB: u64 = 1400;
/// What they get otherwise, in MiB.
const SMALL_MIB: u64 = 1024;
/// Addresses that Open vSwitch is told to learn: more than any row has.
const OVS_ADDRESSES: &str = "400000";

/// Addresses vswitch knows by default.
const FDB_DEFAULT: u32 = 131_072;

/// What a port of the switch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// No VLANs are configured.
    None,
    /// Untagged frames of this VLAN.
    Access(u16),
    /// Tagged frames of two VLANs.
    Trunk(u16, u16),
}

/// How to start switches.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The vswitch binary.
    pub vswitch: PathBuf,
    /// Words added to `vswitch serve`.
    pub vswitch_args: Vec<String>,
    /// The processor they run on.
    pub cpu: usize,
    /// Whether huge pages are there for the peers that want them.
    pub huge: bool,
}

/// A running switch with every port of a generator attached; it ends with this value.
#[derive(Debug)]
pub struct Switch {
    processes: Vec<Process>,
    /// When the forwarding process was started.
    pub begin: Instant,
    /// Sockets, databases and logs; they go last.
    _dir: TempDir,
}

impl Switch {
    /// Process id of the forwarding process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.processes.first().map_or(0, Process::pid)
    }

    /// What it printed last.
    #[must_use]
    pub fn last_words(&self) -> String {
        self.processes
            .first()
            .map(Process::last_words)
            .unwrap_or_default()
    }
}

impl Launcher {
    /// Whether a contender can be started at all; if not, why.
    pub fn available(&self, who: Contender) -> std::result::Result<(), String> {
        match who {
            Contender::Copy => Ok(()),
            Contender::Ovs if Path::new(OVS_DPDK).exists() => {
                found("ovsdb-server", "openvswitch-switch-dpdk")
            }
            Contender::Ovs => Err(format!(
                "{OVS_DPDK}: apt-get install openvswitch-switch-dpdk"
            )),
            Contender::Testpmd => found("dpdk-testpmd", "dpdk"),
            Contender::Vswitch if self.vswitch.exists() => Ok(()),
            Contender::Vswitch => Err(format!(
                "{}: cargo build --release -p vswitch",
                self.vswitch.display()
            )),
        }
    }

    /// Starts `who` and attaches every port of the generator, as a member of these VLANs.
    pub fn start(
        &self,
        who: Contender,
        generator: &mut Generator,
        members: &[Membership],
    ) -> Result<Switch> {
        let dir = tempfile::tempdir().context("scratch directory")?;
        let sockets: Vec<PathBuf> = (0..members.len())
            .map(|i| dir.path().join(format!("p{i}.sock")))
            .collect();
        let mut processes = match who {
            Contender::Ovs => return self.ovs(generator, members, dir),
            Contender::Testpmd => vec![self.testpmd(&sockets, dir.path())?],
            Contender::Vswitch => {
                let stations = generator.shape().stations;
                vec![self.vswitch(&sockets, members, stations, dir.path())?]
            }
            Contender::Copy => bail!("{} is no process", who.name()),
        };
        for (port, socket) in generator.ports().iter_mut().zip(&sockets) {
            for process in &mut processes {
                await_socket(process, socket)?;
            }
            let words = || {
                processes
                    .iter()
                    .map(Process::last_words)
                    .collect::<String>()
            };
            port.connect(socket, PATIENCE).with_context(words)?;
        }
        Ok(Switch {
            begin: processes.first().map_or_else(Instant::now, |p| p.begin),
            processes,
            _dir: dir,
        })
    }

    /// Guards as they are by default; where the row has VLANs, each port's address is given, so
    /// that its sources are checked; where it has many addresses, the limits are what it needs.
    fn vswitch(
        &self,
        sockets: &[PathBuf],
        members: &[Membership],
        stations: u32,
        dir: &Path,
    ) -> Result<Process> {
        let mut command = Command::new(&self.vswitch);
        command.arg("serve").arg("--cpu").arg(self.cpu.to_string());
        command.arg("--control").arg(dir.join("control.sock"));
        if stations > 1 {
            let file = dir.join("vswitch.toml");
            let table = (4 * stations).max(FDB_DEFAULT);
            let text =
                format!("[switch]\nfdb_size = {table}\n[switch.guards]\nmac_limit = {stations}\n");
            std::fs::write(&file, text).context("vswitch.toml")?;
            command.arg("--config").arg(file);
        }
        for ((socket, member), i) in sockets.iter().zip(members).zip(0..) {
            let address = frame::mac(i, 0).map(|byte| format!("{byte:02x}")).join(":");
            let vlan = match member {
                Membership::None => String::new(),
                Membership::Access(vlan) => format!(",access={vlan},mac={address}"),
                Membership::Trunk(a, b) => format!(",trunk={a}:{b},mac={address}"),
            };
            command
                .arg("--port")
                .arg(format!("p{i},socket={}{vlan}", socket.display()));
        }
        command.args(&self.vswitch_args);
        Process::start_alone(&mut command, self.cpu, &dir.join("log"))
    }

    /// Memory arguments of DPDK's environment layer.
    fn eal(&self) -> String {
        if self.huge {
            "--in-memory --no-pci".to_owned()
        } else {
            format!("--no-huge --legacy-mem -m {SMALL_MIB} --no-pci")
        }
    }

    fn testpmd(&self, sockets: &[PathBuf], dir: &Path) -> Result<Process> {
        let mut command = Command::new("dpdk-testpmd");
        // The main thread sleeps in a read of its standard input, beside the one that forwards.
        command.arg(format!("--lcores=0@{0},1@{0}", self.cpu));
        command.args(self.eal().split(' ')).arg("--no-telemetry");
        if !self.huge {
            command.arg("--file-prefix").arg(dir.join("rte"));
        }
        for (i, socket) in sockets.iter().enumerate() {
            let device = format!("net_vhost{i},iface={},queues=1,tso=1", socket.display());
            command.arg("--vdev").arg(device);
        }
        command.args([
            "--",
            "-i",
            "--auto-start",
            "--forward-mode=io",
            "--no-flush-rx",
        ]);
        command.args(["--nb-cores=1", "--total-num-mbufs=65536"]);
        command.stdin(Stdio::piped());
        Process::start(&mut command, self.cpu, &dir.join("log"))
    }

    fn ovs(
        &self,
        generator: &mut Generator,
        members: &[Membership],
        dir: TempDir,
    ) -> Result<Switch> {
        let ovs = Ovs {
            dir: dir.path(),
            cpu: self.cpu,
        };
        let database = ovs.database()?;
        ovs.configure(&self.eal(), generator.shape().segmented)?;
        let mut command = ovs.command(OVS_DPDK);
        command.arg(format!("unix:{}", ovs.path("db.sock").display()));
        command.arg("--pidfile");
        // Only the polling thread belongs to the processor that is measured: the threads that
        // install and revise flows may run anywhere, or they would fall behind and drop flows.
        let switch = Process::start_anywhere(&mut command, &ovs.path("switch.log"))?;
        let mut switch = Switch {
            begin: switch.begin,
            processes: vec![switch, database],
            _dir: TempDir::new()?,
        };
        let attached = ovs
            .vsctl(&[
                "add-br",
                "br0",
                "--",
                "set",
                "bridge",
                "br0",
                "datapath_type=netdev",
            ])
            .and_then(|()| {
                let table = format!("other-config:mac-table-size={OVS_ADDRESSES}");
                ovs.vsctl(&["set", "bridge", "br0", &table])
            })
            .and_then(|()| ovs.ports(generator, members));
        let words = || switch.last_words();
        attached.with_context(words)?;
        switch._dir = dir;
        Ok(switch)
    }
}

/// A private Open vSwitch: everything it has is in one scratch directory.
struct Ovs<'a> {
    dir: &'a Path,
    cpu: usize,
}

impl Ovs<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(variable, self.dir);
        }
        command
    }

    fn database(&self) -> Result<Process> {
        let file = self.path("conf.db");
        let made = self
            .command("ovsdb-tool")
            .arg("create")
            .arg(&file)
            .arg("/usr/share/openvswitch/vswitch.ovsschema")
            .status()
            .context("ovsdb-tool")?;
        ensure!(made.success(), "ovsdb-tool ended with {made}");
        let socket = self.path("db.sock");
        let mut command = self.command("ovsdb-server");
        command
            .arg(&file)
            .arg(format!("--remote=punix:{}", socket.display()));
        let mut server = Process::start_alone(&mut command, self.cpu, &self.path("db.log"))?;
        await_socket(&mut server, &socket)?;
        self.vsctl(&["--no-wait", "init"])?;
        Ok(server)
    }

    /// One polling thread on our processor; segmentation offload only where a row needs it.
    fn configure(&self, eal: &str, segmented: bool) -> Result<()> {
        let settings = [
            "other_config:dpdk-init=true".to_owned(),
            format!("other_config:dpdk-extra=\"{eal}\""),
            format!("other_config:pmd-cpu-mask={:#x}", 1 << self.cpu),
            "other_config:per-port-memory=true".to_owned(),
            format!("other_config:userspace-tso-enable={segmented}"),
        ];
        let mut words = vec!["--no-wait", "set", "Open_vSwitch", "."];
        words.extend(settings.iter().map(String::as_str));
        self.vsctl(&words)
    }

    /// Adds a port in client mode for each of the generator's, which listen.
    fn ports(&self, generator: &mut Generator, members: &[Membership]) -> Result<()> {
        for (i, (port, member)) in generator.ports().iter_mut().zip(members).enumerate() {
            let socket = self.path(&format!("p{i}.sock"));
            let listener = Listener::bind(&socket)?;
            let name = format!("p{i}");
            let mut words = vec!["add-port".to_owned(), "br0".to_owned(), name.clone()];
            match member {
                Membership::None => {}
                Membership::Access(vlan) => words.push(format!("tag={vlan}")),
                Membership::Trunk(a, b) => {
                    words.extend([format!("trunks={a},{b}"), "vlan_mode=trunk".to_owned()]);
                }
            }
            let kind = "type=dpdkvhostuserclient";
            words.extend(["--", "set", "interface", &name, kind].map(str::to_owned));
            words.push(format!("options:vhost-server-path={}", socket.display()));
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            self.vsctl(&words)?;
            port.accept(&listener, PATIENCE)?;
        }
        Ok(())
    }

    fn vsctl(&self, words: &[&str]) -> Result<()> {
        let output = self
            .command("ovs-vsctl")
            .arg(format!("--db=unix:{}", self.path("db.sock").display()))
            .arg(format!("--timeout={}", PATIENCE.as_secs()))
            .args(words)
            .output()
            .context("ovs-vsctl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ovs-vsctl {words:?}: {said}");
        Ok(())
    }
}

/// Waits until a socket is there, or its process is not.
fn await_socket(process: &mut Process, socket: &Path) -> Result<()> {
    let begin = Instant::now();
    while !socket.exists() {
        process.check()?;
        let words = || process.last_words();
        ensure!(begin.elapsed() < PATIENCE, "no socket: {}", words());
        std::thread::sleep(LOOK);
    }
    Ok(())
}
