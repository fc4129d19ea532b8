//! Back-ends as processes: vblk and its peers, each on the processor it is told.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use towpath_common::testing::{Frontend, RawFrontend, Wanted};

use crate::plan::{Contender, Entrant, Target};
use crate::process::{LOOK, Process};

/// Longest wait for a back-end to serve.
const PATIENCE: Duration = Duration::from_secs(10);
/// Size of a disk that has no file, in bytes.
const NULL_SIZE: u64 = 4 << 30;

/// One disk of a back-end.
#[derive(Debug, Clone)]
pub struct DiskSpec {
    /// What lies under it.
    pub target: Target,
    /// The file, unless the target is null.
    pub file: PathBuf,
    /// Virtqueues.
    pub queues: u16,
}

/// How to start back-ends.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The vblk binary.
    pub vblk: PathBuf,
    /// `aio=` of qemu-storage-daemon: `io_uring`, `native` or `threads`.
    pub qsd_aio: String,
    /// The processor back-ends run on.
    pub cpu: usize,
}

/// A running back-end; it ends with this value.
#[derive(Debug)]
pub struct Backend {
    process: Process,
    sockets: Vec<PathBuf>,
    /// From the start of the process until its first disk answered.
    pub startup: Duration,
    /// Sockets and log; they go last.
    _dir: TempDir,
}

/// Whether a program is there; if not, which Debian package brings it.
pub fn found(name: &str, package: &str) -> std::result::Result<(), String> {
    let there = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).exists()));
    if there {
        Ok(())
    } else {
        Err(format!("{name}: apt-get install {package}"))
    }
}

impl Launcher {
    /// Whether a contender can be started at all; if not, why.
    pub fn available(&self, who: Contender) -> std::result::Result<(), String> {
        match who {
            Contender::Raw => Ok(()),
            Contender::Fio => found("fio", "fio"),
            Contender::Qsd => found("qemu-storage-daemon", "qemu-system-common"),
            Contender::Vblk if self.vblk.exists() => Ok(()),
            Contender::Vblk => Err(format!(
                "{}: cargo build --release -p vblk",
                self.vblk.display()
            )),
        }
    }

    /// Starts `who` with these disks and waits until all of them answer.
    pub fn start(&self, who: Contender, disks: &[DiskSpec]) -> Result<Backend> {
        let dir = tempfile::tempdir().context("scratch directory")?;
        let sockets: Vec<PathBuf> = (0..disks.len())
            .map(|i| dir.path().join(format!("disk{i}.sock")))
            .collect();
        let mut command = match who {
            Contender::Qsd => self.qsd(disks, &sockets),
            Contender::Vblk => self.vblk(disks, &sockets, dir.path()),
            Contender::Raw | Contender::Fio => bail!("{} is no back-end", who.name()),
        };
        self.run(&mut command, sockets, dir)
    }

    /// Starts a back-end by its command and waits until all its sockets answer; its log goes to
    /// `dir`.
    pub fn run(
        &self,
        command: &mut Command,
        sockets: Vec<PathBuf>,
        dir: TempDir,
    ) -> Result<Backend> {
        let process = Process::start_alone(command, self.cpu, &dir.path().join("log"))?;
        let mut backend = Backend {
            process,
            sockets,
            startup: Duration::ZERO,
            _dir: dir,
        };
        for index in 0..backend.sockets.len() {
            backend.wait_for(index)?;
            if index == 0 {
                backend.startup = backend.process.begin.elapsed();
            }
        }
        Ok(backend)
    }

    fn qsd(&self, disks: &[DiskSpec], sockets: &[PathBuf]) -> Command {
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--object", "iothread,id=t0"]);
        for (i, (disk, socket)) in disks.iter().zip(sockets).enumerate() {
            let node = match disk.target {
                Target::Null => {
                    format!("driver=null-co,node-name=d{i},size={NULL_SIZE},read-zeroes=off")
                }
                target => format!(
                    "driver=file,node-name=d{i},filename={},cache.direct={},aio={}",
                    disk.file.display(),
                    if target.is_direct() { "on" } else { "off" },
                    self.qsd_aio
                ),
            };
            let export = format!(
                "vhost-user-blk,id=e{i},node-name=d{i},addr.type=unix,addr.path={},writable=on,\
                 num-queues={},iothread=t0",
                socket.display(),
                disk.queues
            );
            command.args(["--blockdev", &node, "--export", &export]);
        }
        command
    }

    fn vblk(&self, disks: &[DiskSpec], sockets: &[PathBuf], dir: &Path) -> Command {
        let mut command = Command::new(&self.vblk);
        command.arg("serve").arg("--cpu").arg(self.cpu.to_string());
        command.arg("--control").arg(dir.join("control.sock"));
        for (disk, socket) in disks.iter().zip(sockets) {
            let path = match disk.target {
                Target::Null => format!("null:{}G", NULL_SIZE >> 30),
                _ => disk.file.display().to_string(),
            };
            let cache = match disk.target {
                Target::Null => "",
                target if target.is_direct() => ",cache=direct",
                _ => ",cache=buffered,resident=1G",
            };
            command.arg("--disk").arg(format!(
                "{path},socket={},queues={}{cache}",
                socket.display(),
                disk.queues
            ));
        }
        command
    }
}

impl Backend {
    /// Sockets, one a disk.
    #[must_use]
    pub fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    /// Socket of the disk with this index.
    #[must_use]
    pub fn socket(&self, disk: usize) -> &Path {
        &self.sockets[disk]
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until a disk answers its first message.
    fn wait_for(&mut self, disk: usize) -> Result<()> {
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&self.sockets[disk]) {
                break stream;
            }
            self.process.check()?;
            let late = self.process.begin.elapsed() > PATIENCE;
            let words = || self.process.last_words();
            ensure!(!late, "no socket within {PATIENCE:?}: {}", words());
            std::thread::sleep(LOOK);
        };
        Frontend::handshake(RawFrontend::new(stream, PATIENCE)?, Wanted::default())
            .with_context(|| format!("no handshake: {}", self.process.last_words()))?;
        Ok(())
    }
}
