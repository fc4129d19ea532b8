//! A process to lose: it writes to the kernel's files, so that a write that never returns takes it
//! and nobody else.
//!
//! Measured with an 82576 (igb) whose VF a VMM holds: writing 0 to `sriov_numvfs` blocks until the
//! VMM ends, SIGKILL or not, and so does everything that afterwards reads the same file. So this
//! program starts itself a second time ([`obey`]) and sends that process one write at a time:
//!
//! ```text
//! Writer ── path NUL text NUL ──▶ obey ── write(2) ──▶ kernel
//!        ◀── errno, a line ──────       └── stuck: after the deadline, nobody waits for it
//! ```
//!
//! The child inherits the lock of the apply it works for ([`Writer::hold`]): whoever starts while
//! an orphan is still in its last write finds the lock taken.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};

use super::WriteError;

/// How long a write may take. Sixty VFs of an i40e take more than ten seconds; a minute and a half
/// were seen for sixty VFs and the change to switchdev together (netplan pull request 439).
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The longest path and text taken.
const MAX_BYTES: u64 = 8 << 10;

/// Sends writes to a child, which is started when the first one is sent.
#[derive(Debug)]
pub struct Writer {
    program: PathBuf,
    deadline: Duration,
    lock: Option<OwnedFd>,
    child: Option<Running>,
    /// Stuck in a write; looked after so that they do not stay zombies once they return.
    lost: Vec<Child>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Writer {
    /// Writes with `program write-orders`, giving up after [`DEADLINE`].
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            deadline: DEADLINE,
            lock: None,
            child: None,
            lost: Vec::new(),
        }
    }

    /// Gives up after `deadline` instead.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Lets the child hold `lock` for as long as it lives.
    #[must_use]
    pub fn hold(mut self, lock: OwnedFd) -> Self {
        self.lock = Some(lock);
        self
    }

    /// Writes `text` to `path`.
    ///
    /// # Errors
    /// [`WriteError`]: what the kernel says, or that it does not return.
    pub fn write(&mut self, path: &Path, text: &str) -> Result<(), WriteError> {
        self.lost
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let mut child = match self.child.take() {
            Some(child) => child,
            None => self.start()?,
        };
        match child.exchange(path, text, self.deadline) {
            Ok(Some(errno)) => {
                self.child = Some(child);
                match errno {
                    0 => Ok(()),
                    errno => Err(WriteError::refused(errno)),
                }
            }
            Ok(None) => {
                let writer = child.child.id();
                self.lost.push(child.child);
                Err(WriteError::Wedged { writer })
            }
            Err(error) => {
                let _already_gone = child.child.kill();
                let _its_end_says_nothing = child.child.wait();
                Err(error.into())
            }
        }
    }

    fn start(&self) -> io::Result<Running> {
        if let Some(lock) = &self.lock {
            fcntl_setfd(lock, FdFlags::empty())?;
        }
        let child = Command::new(&self.program)
            .arg("write-orders")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        if let Some(lock) = &self.lock {
            fcntl_setfd(lock, FdFlags::CLOEXEC)?;
        }
        let mut child = child?;
        let pipes = (child.stdin.take(), child.stdout.take());
        let (Some(orders), Some(answers)) = pipes else {
            return Err(io::Error::other("no pipes to the writer"));
        };
        let answers = BufReader::new(answers);
        Ok(Running {
            child,
            orders,
            answers,
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(Running {
            mut child, orders, ..
        }) = self.child.take()
        {
            drop(orders);
            let _its_end_says_nothing = child.wait();
        }
    }
}

impl Running {
    /// The errno of one write, 0 if it was done; `None` when it does not come back in time.
    fn exchange(&mut self, path: &Path, text: &str, deadline: Duration) -> io::Result<Option<i32>> {
        let order = [
            path.as_os_str().as_encoded_bytes(),
            b"\0",
            text.as_bytes(),
            b"\0",
        ];
        self.orders.write_all(&order.concat())?;
        let mut answer = [PollFd::new(self.answers.get_ref(), PollFlags::IN)];
        let timeout = Timespec::try_from(deadline).ok();
        while poll(&mut answer, timeout.as_ref()).is_err_and(|error| error == Errno::INTR) {}
        if answer[0].revents().is_empty() {
            return Ok(None);
        }
        let mut line = String::new();
        self.answers.by_ref().take(64).read_line(&mut line)?;
        let errno = line.trim().parse().ok();
        errno
            .map(Some)
            .ok_or_else(|| io::Error::other("the writer ended"))
    }
}

/// The child's side: carries out orders until there are no more. Only [`Writer`] starts it.
///
/// # Errors
/// When the pipes break.
pub fn obey(orders: impl Read, mut answers: impl Write + AsFd) -> io::Result<()> {
    let mut orders = BufReader::new(orders);
    let mut part = || -> io::Result<Option<String>> {
        let mut bytes = Vec::new();
        orders.by_ref().take(MAX_BYTES).read_until(0, &mut bytes)?;
        match bytes.pop() {
            None => Ok(None),
            Some(0) => String::from_utf8(bytes).map(Some).map_err(io::Error::other),
            Some(_) => Err(io::Error::other("an order without an end")),
        }
    };
    while let (Some(path), Some(text)) = (part()?, part()?) {
        let done = OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        let errno = done.map_or_else(
            |error| error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
            |()| 0,
        );
        writeln!(answers, "{errno}")?;
        answers.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::PermissionsExt;

    /// A program that stands for this one; what it writes decides what it answers.
    fn stand_in(dir: &Path, script: &str) -> PathBuf {
        let program = dir.join("writer");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        program
    }

    #[test]
    fn orders_are_carried_out_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let (file, answers) = (dir.path().join("file"), dir.path().join("answers"));
        fs::write(&file, "").unwrap();
        let orders = format!("{}\07\0/nowhere/x\01\0", file.display());
        obey(orders.as_bytes(), File::create(&answers).unwrap()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "7");
        assert_eq!(fs::read_to_string(&answers).unwrap(), "0\n2\n");
    }

    #[test]
    fn half_an_order_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let answers = File::create(dir.path().join("answers")).unwrap();
        assert!(obey(&b"/sys/x"[..], answers).is_err());
    }

    #[test]
    fn a_refusal_is_an_errno() {
        let dir = tempfile::tempdir().unwrap();
        let program = stand_in(dir.path(), "while read -r order; do echo 16; done");
        let mut writer = Writer::new(program);
        // The stand-in reads lines, so the text ends in one.
        let refused = writer.write(Path::new("/x"), "1\n").unwrap_err();
        assert_eq!(refused, WriteError::refused(16));
    }

    #[test]
    fn a_write_that_does_not_return_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let program = stand_in(dir.path(), "exec sleep 600");
        let mut writer = Writer::new(program).deadline(Duration::from_millis(50));
        let wedged = writer.write(Path::new("/x"), "0").unwrap_err();
        let WriteError::Wedged { writer: pid } = wedged else {
            panic!("{wedged}")
        };
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        for child in &mut writer.lost {
            child.kill().unwrap();
        }
    }

    #[test]
    fn a_writer_that_cannot_start_is_an_error() {
        let mut writer = Writer::new("/nowhere/program".into());
        assert!(writer.write(Path::new("/x"), "0").is_err());
    }
}
