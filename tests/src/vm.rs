//! A QEMU guest with vhost-user disks and network interfaces.
//!
//! The first serial port is the guest's console and goes to a file. The second carries what the
//! scenario prints, line by line, to QEMU's standard output and so to [`Vm::wait_for`]; what is
//! [sent](Vm::send) arrives as the scenario's standard input.
//!
//! Scenarios run one at a time: a [`Turn`], a lock in cargo's target directory, is held as long as
//! one of its guests lives, because emulated machines of several scenarios on two processors are
//! slower than one after the other, and deadlines could not be honest.

mod builder;
mod devices;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::accel::{self, Accel};
use crate::lines::{Gone, Lines, tail};
use crate::paths;
use crate::process::Process;
use crate::qmp::Qmp;

pub use builder::Builder;
pub use devices::{Drive, NO_OFFLOADS, NO_SEGMENTATION, Nic};

/// From power-on to the end of a short scenario: 4 s on an idle machine without KVM, and a
/// machine under load is given twenty times that.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// How often a wait looks at what QEMU itself has to say.
const GLANCE: Duration = Duration::from_millis(500);

/// How much of the console an error shows.
const TAIL: usize = 40;

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
    _turn: Turn,
}

impl Vm {
    /// A guest with 256 MiB, one processor, no disk, and nothing to do.
    #[must_use]
    pub fn builder(name: &str) -> Builder {
        Builder::new(name)
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

    /// A connection to QEMU's monitor; only a guest for [networks](Builder::network) has one, and
    /// takes one at a time.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn monitor(&self) -> Result<Qmp> {
        Ok(Qmp::connect(&monitor(self.dir.path()))?)
    }

    /// Where the monitor listens.
    #[must_use]
    pub fn monitor_path(&self) -> PathBuf {
        monitor(self.dir.path())
    }

    /// Kills QEMU outright (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill(&mut self) -> Result<()> {
        if !self.is_running()? {
            return Err(self.failure("QEMU had ended by itself"));
        }
        self.process.signal(Signal::KILL)?;
        self.process.wait(PATIENCE)?;
        Ok(())
    }

    /// Whether QEMU still runs.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// An error about this guest: `what`, and the end of all that it said.
    #[must_use]
    pub fn failure(&self, what: &str) -> anyhow::Error {
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

fn monitor(dir: &Path) -> PathBuf {
    dir.join("monitor")
}

/// The right to run guests: nobody else of this target directory has one meanwhile. Clones share
/// it, for guests that run together.
#[derive(Debug, Clone)]
pub struct Turn(#[expect(dead_code, reason = "held for its lock")] Arc<File>);

impl Turn {
    /// Waits until no other guest of this target directory runs.
    ///
    /// # Errors
    /// When the lock cannot be made, or QEMU is missing.
    pub fn take() -> Result<Self> {
        // The probe for KVM is a guest itself: it must come before the lock.
        accel::best()?;
        Self::lock()
    }

    fn lock() -> Result<Self> {
        let path = paths::profile_dir()?.join("vm.lock");
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(Self(Arc::new(file)))
    }
}
