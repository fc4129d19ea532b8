//! A child process that dies with its owner, and what `/proc` says about it.
//!
//! Dropping a [`Process`] kills it. A test that is itself killed drops nothing, so [`command`] also
//! asks the kernel to kill the child when the thread that started it ends.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often a child's end is looked for.
const TICK: Duration = Duration::from_millis(5);

/// A command that runs `program` and is killed when the calling thread ends.
///
/// `setpriv` (util-linux) sets the signal and becomes the program, with the same process id; to do
/// it here would take code between fork and exec.
#[must_use]
pub fn command(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A child that is killed, and waited for, when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts `command`.
    ///
    /// # Errors
    /// When it cannot be started; the message names the program.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
        Ok(Self { child })
    }

    /// The child's standard streams and process id, where std keeps them.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// When the child has ended and been waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a process id is positive")?, signal)?;
        Ok(())
    }

    /// Whether the child still runs, and its status if not.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits at most `patience` for the child to end by itself.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "process {} did not end within {patience:?}",
                    self.child.id()
                );
            }
            std::thread::sleep(TICK);
        }
    }

    /// Number of open file descriptors.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn open_fds(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    /// Number of threads.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn threads(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/task", self.child.id()))?.count())
    }

    /// Resident memory in KiB, shared guest memory not counted (`RssAnon`).
    ///
    /// # Errors
    /// When the process has ended.
    pub fn anonymous_kib(&self) -> Result<u64> {
        self.status_field("RssAnon:")
    }

    /// Resident memory in KiB, all of it (`VmRSS`).
    ///
    /// # Errors
    /// When the process has ended.
    pub fn resident_kib(&self) -> Result<u64> {
        self.status_field("VmRSS:")
    }

    /// Processor time of all threads so far, in user and system mode.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        let mut total = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // Nanoseconds on a processor: the first field, finer than stat's clock ticks.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else {
                continue; // the thread ended meanwhile
            };
            total += text.split(' ').next().unwrap_or("0").parse::<u64>()?;
        }
        Ok(Duration::from_nanos(total))
    }

    fn status_field(&self, name: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(&path)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|rest| rest.split_whitespace().next());
        Ok(value
            .with_context(|| format!("no {name} in {path}"))?
            .parse()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when the child is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_process_is_dead() {
        let mut process = Process::start(command(Path::new("sleep")).arg("600")).unwrap();
        let pid = process.child().id();
        assert!(process.ended().unwrap().is_none());
        assert!(process.open_fds().unwrap() >= 3);
        assert!(process.resident_kib().unwrap() > 0);
        drop(process);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_signal_ends_a_process() {
        let mut process = Process::start(command(Path::new("sleep")).arg("600")).unwrap();
        process.signal(Signal::TERM).unwrap();
        assert!(!process.wait(Duration::from_secs(10)).unwrap().success());
    }
}
