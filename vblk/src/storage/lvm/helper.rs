//! The process that runs `lvm` for a daemon that has given up beginning processes.
//!
//! LVM needs root, ioctls of device-mapper and much else that a daemon with guests does not. So a
//! small process of its own is begun before the daemon limits its system calls (`crate::sandbox`)
//! and runs what it is asked for, if it is one of [`COMMANDS`]. They talk over its standard input
//! and output, one line of JSON each way, one command at a time: a command that hangs holds up
//! those after it, and no guest. It ends when the daemon does, by whatever means, because its input
//! ends.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

/// What may be run: reports, and snapshots.
const COMMANDS: [&str; 2] = ["fullreport", "lvcreate"];

/// The subcommand of vblk that is the helper.
pub const SUBCOMMAND: &str = "lvm-helper";

/// What a command said.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Said {
    /// It succeeded.
    pub(super) success: bool,
    /// Its standard output.
    pub(super) output: String,
    /// Its standard error.
    pub(super) error: String,
}

#[derive(Debug)]
struct Helper {
    /// Not waited for: it is gone when we are.
    _child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

/// A process has at most one.
static HELPER: OnceLock<Mutex<Helper>> = OnceLock::new();

/// Begin it, if there is none yet.
///
/// # Errors
/// If no process can be begun.
pub fn begin() -> io::Result<()> {
    if HELPER.get().is_some() {
        return Ok(());
    }
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(SUBCOMMAND);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .env_remove("NOTIFY_SOCKET")
        .spawn()?;
    let (to, from) = (child.stdin.take(), child.stdout.take());
    let (to, from) = to.zip(from).ok_or(io::ErrorKind::BrokenPipe)?;
    let _ = HELPER.set(Mutex::new(Helper {
        _child: child,
        to,
        from: BufReader::new(from),
    }));
    Ok(())
}

/// Run `lvm` with `words`, by the helper if there is one.
pub(super) fn run(words: &[&str]) -> io::Result<Said> {
    match HELPER.get() {
        Some(helper) => {
            // A line is written and read whole, or the helper is of no use any more.
            let mut helper = helper.lock().unwrap_or_else(PoisonError::into_inner);
            helper.ask(words)
        }
        None => execute(words).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => io::Error::other(
                "this daemon began without logical volumes and may not begin processes any more; \
                 restart it, which guests do not notice (or say seccomp = \"off\")",
            ),
            _ => error,
        }),
    }
}

impl Helper {
    fn ask(&mut self, words: &[&str]) -> io::Result<Said> {
        let gone = |_| io::Error::other("the process that runs lvm is gone; restart vblk");
        let mut line = serde_json::to_vec(words)?;
        line.push(b'\n');
        self.to.write_all(&line).map_err(gone)?;
        let mut answer = String::new();
        self.from.read_line(&mut answer).map_err(gone)?;
        serde_json::from_str::<Result<Said, String>>(&answer)
            .map_err(|e| gone(e.into()))?
            .map_err(io::Error::other)
    }
}

fn execute(words: &[&str]) -> io::Result<Said> {
    let mut command = Command::new("lvm");
    // Its messages are shown as they are, and descriptors of ours are no news.
    command
        .env("LC_ALL", "C")
        .env("LVM_SUPPRESS_FD_WARNINGS", "1");
    let output = command.args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => io::Error::other("there is no such program; install lvm2"),
        _ => e,
    })?;
    Ok(Said {
        success: output.status.success(),
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
        error: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The helper's life, until its input ends.
///
/// # Errors
/// If it can neither be asked nor answer.
pub fn serve(input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    for line in input.lines() {
        let answer = answer(&line?);
        serde_json::to_writer(&mut output, &answer)?;
        output.write_all(b"\n")?;
        output.flush()?;
    }
    Ok(())
}

fn answer(line: &str) -> Result<Said, String> {
    let words: Vec<String> = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.first() {
        Some(command) if COMMANDS.contains(command) => {
            execute(&words).map_err(|error| error.to_string())
        }
        other => Err(format!(
            "{} is not run for a daemon",
            other.unwrap_or(&"nothing")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_what_daemons_need_and_nothing_else() {
        let lines =
            "[\"vgremove\",\"-f\",\"vg\"]\n[]\nvgs\n[\"fullreport\",\"--no-such-option\"]\n";
        let mut said = Vec::new();
        serve(lines.as_bytes(), &mut said).unwrap();
        let said = String::from_utf8(said).unwrap();
        let answers: Vec<Result<Said, String>> = said
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(answers.len(), 4);
        let refused = "vgremove is not run for a daemon";
        assert_eq!(answers[0].as_ref().unwrap_err(), refused);
        assert!(answers[1].is_err() && answers[2].is_err());
        match &answers[3] {
            Ok(said) => assert!(!said.success && !said.error.is_empty()),
            // On a machine without it.
            Err(error) => assert!(error.contains("install lvm2"), "{error}"),
        }
    }
}
