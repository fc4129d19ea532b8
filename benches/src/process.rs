//! A back-end's process: started on the processor it is told, ended with the value.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::cpu;

/// Longest wait for a process to end by itself.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two looks at a process that starts or ends.
pub const LOOK: Duration = Duration::from_micros(200);
/// Lines of the log that an error quotes.
const LAST_WORDS: usize = 5;

/// A running process.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    /// When it was started.
    pub begin: Instant,
}

impl Process {
    /// Starts `command` on processor `cpu`; what it prints goes to the file `log`.
    pub fn start(command: &mut Command, cpu: usize, log: &Path) -> Result<Self> {
        cpu::on_cpu(cpu, || Self::spawn(command, log))?
    }

    fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).context("log file")?;
        command.stdout(file.try_clone()?).stderr(file);
        let begin = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self {
            child,
            log: log.to_path_buf(),
            begin,
        })
    }

    /// As [`Process::start`], with nothing on standard input.
    pub fn start_alone(command: &mut Command, cpu: usize, log: &Path) -> Result<Self> {
        Self::start(command.stdin(Stdio::null()), cpu, log)
    }

    /// As [`Process::start_alone`], on any processor.
    pub fn start_anywhere(command: &mut Command, log: &Path) -> Result<Self> {
        Self::spawn(command.stdin(Stdio::null()), log)
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error with its last words if it has ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("wait")? {
            bail!("the back-end ended with {status}: {}", self.last_words());
        }
        Ok(())
    }

    /// The end of what it printed.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(LAST_WORDS).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }
}

impl Drop for Process {
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
