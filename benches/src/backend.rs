//! Back-ends as processes: vblk and its peers, each on the processor it is told.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use towpath_common::testing::{Frontend, RawFrontend, Wanted};

use crate::cpu;
use crate::plan::{Contender, Target};

/// Longest wait for a back-end to serve, or to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two looks at a back-end that starts or ends.
const LOOK: Duration = Duration::from_micros(200);
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
    child: Child,
    sockets: Vec<PathBuf>,
    /// From the start of the process until its first disk answered.
    pub startup: Duration,
    dir: TempDir,
}

impl Launcher {
    /// Whether a contender can be started at all; if not, why.
    pub fn available(&self, who: Contender) -> std::result::Result<(), String> {
        let found = |name: &str| {
            std::env::var_os("PATH")
                .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).exists()))
        };
        let missing = |name: &str, package: &str| {
            if found(name) {
                Ok(())
            } else {
                Err(format!("{name}: apt-get install {package}"))
            }
        };
        match who {
            Contender::Raw => Ok(()),
            Contender::Fio => missing("fio", "fio"),
            Contender::Qsd => missing("qemu-storage-daemon", "qemu-system-common"),
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
        let log = File::create(dir.path().join("log")).context("log file")?;
        let mut command = match who {
            Contender::Qsd => self.qsd(disks, &sockets),
            Contender::Vblk => self.vblk(disks, &sockets, dir.path()),
            Contender::Raw | Contender::Fio => bail!("{} is no back-end", who.name()),
        };
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let begin = Instant::now();
        let child = cpu::on_cpu(self.cpu, || command.spawn())?
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let mut backend = Backend {
            child,
            sockets,
            startup: Duration::ZERO,
            dir,
        };
        for index in 0..disks.len() {
            backend.wait_for(index, begin)?;
            if index == 0 {
                backend.startup = begin.elapsed();
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
                _ => ",cache=buffered",
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
    /// Socket of the disk with this index.
    #[must_use]
    pub fn socket(&self, disk: usize) -> &Path {
        &self.sockets[disk]
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a disk answers its first message.
    fn wait_for(&mut self, disk: usize, begin: Instant) -> Result<()> {
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&self.sockets[disk]) {
                break stream;
            }
            if let Some(status) = self.child.try_wait().context("wait")? {
                bail!("the back-end ended with {status}: {}", self.last_words());
            }
            let late = begin.elapsed() > PATIENCE;
            ensure!(
                !late,
                "no socket within {PATIENCE:?}: {}",
                self.last_words()
            );
            std::thread::sleep(LOOK);
        };
        Frontend::handshake(RawFrontend::new(stream, PATIENCE)?, Wanted::default())
            .with_context(|| format!("no handshake: {}", self.last_words()))?;
        Ok(())
    }

    /// The end of what it printed.
    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended already; `wait` below tells.
            let _ = kill_process(pid, Signal::TERM);
        }
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(LOOK),
                _ => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
