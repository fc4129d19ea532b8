//! A QEMU guest with vhost-user disks.
//!
//! The first serial port is the guest's console and goes to a file. The second carries what the
//! scenario prints, line by line, to QEMU's standard output and so to [`Vm::wait_for`]; what is
//! [sent](Vm::send) arrives as the scenario's standard input.
//!
//! Guests run one at a time: a lock in cargo's target directory is held as long as one lives,
//! because two emulated machines and their back-ends on two processors are slower than one after
//! the other, and deadlines could not be honest.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::accel::{self, Accel};
use crate::initramfs;
use crate::lines::{Gone, Lines, tail};
use crate::paths;
use crate::process::{Process, command};

/// From power-on to the end of a short scenario: 4 s on an idle machine without KVM, and a
/// machine under load is given twenty times that.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// How often a wait looks at what QEMU itself has to say.
const GLANCE: Duration = Duration::from_millis(500);

/// How much of the console an error shows.
const TAIL: usize = 40;

/// A vhost-user-blk device of the guest.
#[derive(Debug, Clone)]
pub struct Drive {
    socket: PathBuf,
    queues: u16,
    queue_size: u16,
    listens: bool,
}

impl Drive {
    /// A disk served on `socket`: one queue of 128.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            queues: 1,
            queue_size: 128,
            listens: false,
        }
    }

    /// Number of request queues.
    #[must_use]
    pub fn queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    /// The guest's end listens and the back-end connects to it.
    #[must_use]
    pub fn listens(mut self) -> Self {
        self.listens = true;
        self
    }

    /// Descriptors a queue.
    #[must_use]
    pub fn queue_size(mut self, size: u16) -> Self {
        self.queue_size = size;
        self
    }
}

/// A guest yet to be booted.
#[derive(Debug)]
pub struct Builder {
    name: String,
    memory: Vec<u32>,
    cpus: u32,
    drives: Vec<Drive>,
    kernel_arguments: String,
    script: String,
    accelerator: Option<Accel>,
    echo: Option<fn(&str)>,
}

impl Builder {
    /// Sizes of the memory back-ends in MiB. With more than one, each is a NUMA node and a memfd
    /// of its own, and so a region of its own in the vhost-user memory table.
    #[must_use]
    pub fn memory(mut self, mib: &[u32]) -> Self {
        self.memory = mib.to_vec();
        self
    }

    /// Number of virtual processors.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Adds a disk: the first is `/dev/vda`, the next `/dev/vdb`.
    #[must_use]
    pub fn drive(mut self, drive: Drive) -> Self {
        self.drives.push(drive);
        self
    }

    /// More arguments for the guest's kernel.
    #[must_use]
    pub fn kernel_arguments(mut self, arguments: &str) -> Self {
        arguments.clone_into(&mut self.kernel_arguments);
        self
    }

    /// What the guest runs: a shell script, ended by the first command that fails.
    #[must_use]
    pub fn script(mut self, script: &str) -> Self {
        script.clone_into(&mut self.script);
        self
    }

    /// Uses this accelerator instead of the best one.
    #[must_use]
    pub fn accelerator(mut self, accelerator: Accel) -> Self {
        self.accelerator = Some(accelerator);
        self
    }

    /// Hands each line the scenario prints to `echo` as well.
    #[must_use]
    pub fn echo(mut self, echo: fn(&str)) -> Self {
        self.echo = Some(echo);
        self
    }

    /// Starts QEMU. The guest boots while the caller does other things.
    ///
    /// # Errors
    /// When QEMU or a part of the guest is missing, with the remedy.
    pub fn boot(self) -> Result<Vm> {
        // The probe for KVM is a guest itself: it must come before the lock.
        let accelerator = match self.accelerator {
            Some(accelerator) => accelerator,
            None => accel::best()?,
        };
        let turn = take_turn()?;
        let dir = tempfile::Builder::new().prefix("towpath-vm-").tempdir()?;
        fs::write(
            dir.path().join("initramfs"),
            initramfs::with_scenario(&self.script)?,
        )?;
        let mut qemu = command(&paths::program("qemu-system-x86_64")?);
        qemu.args(self.arguments(accelerator, dir.path())?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Process::start(&mut qemu)?;
        let output = process
            .child()
            .stdout
            .take()
            .context("QEMU's output is piped")?;
        let errors = process
            .child()
            .stderr
            .take()
            .context("QEMU's errors are piped")?;
        Ok(Vm {
            name: self.name,
            started: Instant::now(),
            accelerator,
            output: Lines::follow(output, self.echo),
            errors: Lines::follow(errors, None),
            process,
            dir,
            _turn: turn,
        })
    }

    fn arguments(&self, accelerator: Accel, dir: &Path) -> Result<Vec<OsString>> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |words: &str| arguments.extend(words.split(' ').map(OsString::from));
        add("-nodefaults -no-user-config -display none -nic none -M q35");
        add(&format!(
            "-accel {accelerator} -smp {0},sockets={0}",
            self.cpus
        ));
        add(&format!("-m {}M", self.memory.iter().sum::<u32>()));
        for (node, mib) in self.memory.iter().enumerate() {
            add(&format!(
                "-object memory-backend-memfd,id=mem{node},size={mib}M,share=on"
            ));
        }
        if self.memory.len() == 1 {
            add("-machine memory-backend=mem0");
        } else {
            // Processor N is of node N, the rest of node 0: what runs there allocates there.
            for node in 0..self.memory.len() {
                add(&format!("-numa node,nodeid={node},memdev=mem{node}"));
            }
            for cpu in 0..self.cpus {
                let node = if (cpu as usize) < self.memory.len() {
                    cpu
                } else {
                    0
                };
                add(&format!("-numa cpu,node-id={node},socket-id={cpu}"));
            }
        }
        for (index, drive) in self.drives.iter().enumerate() {
            let end = if drive.listens {
                "server=on,wait=off"
            } else {
                "reconnect-ms=200"
            };
            let path = drive.socket.display();
            add(&format!("-chardev socket,id=disk{index},path={path},{end}"));
            add(&format!(
                "-device vhost-user-blk-pci,chardev=disk{index},num-queues={},queue-size={},\
                 disable-legacy=on",
                drive.queues, drive.queue_size
            ));
        }
        add(&format!("-serial file:{}", console(dir).display()));
        add("-chardev stdio,id=scenario,signal=off -serial chardev:scenario");
        add(&format!(
            "-kernel {} -initrd {}",
            initramfs::kernel()?.display(),
            dir.join("initramfs").display()
        ));
        arguments.push("-append".into());
        arguments
            .push(format!("console=ttyS0 loglevel=4 panic=0 {}", self.kernel_arguments).into());
        Ok(arguments)
    }
}

/// A running guest. Dropping it kills it.
#[derive(Debug)]
pub struct Vm {
    name: String,
    started: Instant,
    accelerator: Accel,
    output: Lines,
    errors: Lines,
    process: Process,
    dir: TempDir,
    _turn: File,
}

impl Vm {
    /// A guest with 256 MiB, one processor, no disk, and nothing to do.
    #[must_use]
    pub fn builder(name: &str) -> Builder {
        Builder {
            name: name.into(),
            memory: vec![256],
            cpus: 1,
            drives: Vec::new(),
            kernel_arguments: String::new(),
            script: String::new(),
            accelerator: None,
            echo: None,
        }
    }

    /// How the guest's instructions are run.
    #[must_use]
    pub fn accelerator(&self) -> Accel {
        self.accelerator
    }

    /// Waits for a line that starts with `start`, and returns the rest of it.
    ///
    /// # Errors
    /// When the scenario ends before, the guest dies, or `patience` runs out; the message carries
    /// the end of the console.
    pub fn wait_for(&self, start: &str, patience: Duration) -> Result<String> {
        self.wait(start, patience, |lines| {
            lines
                .iter()
                .find_map(|line| line.strip_prefix(start))
                .map(|rest| rest.trim().into())
        })
    }

    /// Waits until `found` makes something of the lines the scenario printed so far; `what` names
    /// it in the error.
    ///
    /// # Errors
    /// As [`Vm::wait_for`].
    pub fn wait<T>(
        &self,
        what: &str,
        patience: Duration,
        mut found: impl FnMut(&[String]) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        let seen = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let seen = self.output.wait(left.min(GLANCE), |lines| {
                found(lines).map(Ok).or_else(|| {
                    let status = lines.iter().find_map(|line| line.strip_prefix("exit: "))?;
                    Some(Err(status.to_owned()))
                })
            });
            // QEMU lives on after these words, but its guest does not.
            if self
                .errors
                .all()
                .iter()
                .any(|line| line.starts_with("KVM internal error"))
            {
                return Err(self.failure("the guest does not run on this machine's KVM"));
            }
            if left.is_zero() || !matches!(seen, Err(Gone::Late)) {
                break seen;
            }
        };
        match seen {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(status)) => Err(self.failure(&format!(
                "the scenario ended with {status} before \"{what}\""
            ))),
            Err(Gone::Ended) => Err(self.failure(&format!("QEMU ended before \"{what}\""))),
            Err(Gone::Late) => Err(self.failure(&format!("no \"{what}\" within {patience:?}"))),
        }
    }

    /// Sends a line to the scenario's standard input.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn send(&mut self, line: &str) -> Result<()> {
        let input = self
            .process
            .child()
            .stdin
            .as_mut()
            .context("QEMU's input is piped")?;
        writeln!(input, "{line}")?;
        Ok(())
    }

    /// Waits for the scenario to succeed and the guest to power off; returns what it printed.
    ///
    /// # Errors
    /// When it fails, dies, or is not done within `patience`, with the end of the console.
    pub fn finish(&mut self, patience: Duration) -> Result<Vec<String>> {
        let deadline = Instant::now() + patience;
        let status = self.wait_for("exit: ", patience)?;
        if status != "0" {
            return Err(self.failure(&format!("the scenario ended with {status}")));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let ended = self.process.wait(left.max(Duration::from_secs(10)));
        match ended {
            Ok(status) if status.success() => Ok(self.output.all()),
            Ok(status) => Err(self.failure(&format!("QEMU ended with {status}"))),
            Err(_) => Err(self.failure("the guest did not power off")),
        }
    }

    /// What the scenario has printed so far.
    #[must_use]
    pub fn printed(&self) -> Vec<String> {
        self.output.all()
    }

    /// Whether QEMU still runs.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    fn failure(&self, what: &str) -> anyhow::Error {
        let console = fs::read(console(self.dir.path())).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let console: Vec<_> = console.lines().collect();
        anyhow!(
            "guest {} ({}, {:.1} s old): {what}\n\
             it printed:\n{}its console:\n{}QEMU said:\n{}",
            self.name,
            self.accelerator,
            self.started.elapsed().as_secs_f32(),
            self.output.tail(TAIL),
            tail(&console, TAIL),
            self.errors.tail(TAIL),
        )
    }
}

fn console(dir: &Path) -> PathBuf {
    dir.join("console")
}

/// Waits until no other guest of this target directory runs.
fn take_turn() -> Result<File> {
    let path = paths::profile_dir()?.join("vm.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}
