//! The commands about backups: asking the daemon for one, and reading backups without a daemon.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use axum::http::StatusCode;
use serde::Serialize;
use towpath_common::config::Name;
use towpath_common::control::print::print;
use towpath_common::control::{Answer, Client};
use vblk::backup::{BackupOrder, BackupStatus, State, offline};
use vblk::storage::nbd::address::is_address;

use crate::cli::{BackupArgs, Target};
use crate::local::tell;

/// How often the daemon is asked how it goes.
const TICK: Duration = Duration::from_millis(200);
/// How often progress is told where it is not a terminal.
const RARELY: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;

/// Tells how far something is: on a terminal in place, elsewhere now and then.
struct Progress {
    terminal: bool,
    last: Option<Instant>,
}

impl Progress {
    fn new() -> Progress {
        Progress {
            terminal: std::io::stderr().is_terminal(),
            last: None,
        }
    }

    fn tell(&mut self, text: impl FnOnce() -> String) {
        let every = if self.terminal { TICK } else { RARELY };
        let first = self.last.get_or_insert_with(Instant::now);
        if first.elapsed() < every {
            return;
        }
        self.last = Some(Instant::now());
        let text = text();
        let mut err = std::io::stderr();
        // Progress that cannot be told is no failure.
        let _ = if self.terminal {
            write!(err, "\r{text}\x1b[K")
        } else {
            writeln!(err, "{text}")
        };
    }

    fn end(&self) {
        if self.terminal && self.last.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100).checked_div(whole).unwrap_or(100)
}

/// One backup or copy, in a line or some.
fn report(status: &BackupStatus) -> String {
    let BackupStatus {
        sort,
        to,
        total_bytes,
        done_bytes,
        copied_first,
        pause_us,
        took_ms,
        ..
    } = status;
    let (done, total) = (done_bytes / MIB, total_bytes / MIB);
    let state = match status.state {
        State::Running => format!("{} % of {total} MiB", percent(*done_bytes, *total_bytes)),
        State::Done => format!("done, {total} MiB"),
        State::Failed => format!("given up after {done} of {total} MiB"),
    };
    let (s, ms) = (took_ms / 1000, took_ms % 1000);
    let (rest_ms, rest_us) = (pause_us / 1000, pause_us % 1000);
    let mut text = format!(
        "{} to {to}: {state} in {s}.{ms:03} s; the guest waited {rest_ms}.{rest_us:03} ms, and for \
         {copied_first} blocks\n",
        sort.name()
    );
    for more in [&status.note, &status.error].into_iter().flatten() {
        text.push_str(more);
        text.push('\n');
    }
    text
}

/// `vblk backup NAME`.
pub(crate) fn backup(
    target: &Target,
    name: &Name,
    args: BackupArgs,
    out: &mut impl Write,
) -> Result<()> {
    let client = Client::new(target.control.as_path());
    let path = format!("/v1/disks/{name}/backup");
    let Some(to) = args.to else {
        let answer: Answer<BackupStatus> = if args.cancel {
            client.post(&format!("{path}/cancel"), &())?
        } else {
            client.get(&path)?
        };
        return Ok(print(&answer, target.json, out, report)?);
    };
    let to = if is_address(&to) {
        to
    } else {
        std::path::absolute(&to)?.display().to_string()
    };
    let order = BackupOrder {
        to,
        manifest: args.manifest.map(std::path::absolute).transpose()?,
        incremental: args.incremental,
        resume: args.resume,
        rate: args.rate.map(|rate| rate.bytes()),
    };
    let answer: Answer<BackupStatus> = client.post(&path, &order)?;
    if args.detach || answer.data.is_none() {
        let description = answer.description.clone();
        return Ok(print(&answer, target.json, out, |_| {
            format!("{description}\n")
        })?);
    }
    eprintln!("{}", answer.description);
    follow(target, name, out)
}

/// Wait for the end of what is under way on a disk, telling how it goes.
pub(crate) fn follow(target: &Target, name: &Name, out: &mut impl Write) -> Result<()> {
    let client = Client::new(target.control.as_path());
    let mut progress = Progress::new();
    loop {
        let answer: Answer<BackupStatus> = client.get(&format!("/v1/disks/{name}/backup"))?;
        let Some(status) = &answer.data else {
            return Ok(print(&answer, target.json, out, report)?);
        };
        if status.state == State::Running {
            progress.tell(|| report(status).trim_end().to_owned());
            sleep(TICK);
            continue;
        }
        progress.end();
        let error = status.error.clone();
        print(&answer, target.json, out, report)?;
        return match error {
            Some(error) => bail!("{error}"),
            None => Ok(()),
        };
    }
}

/// What became of a restore.
#[derive(Debug, Serialize)]
struct Restored {
    to: String,
    size_bytes: u64,
    blocks: u64,
    backups: usize,
}

/// What a verification found.
#[derive(Debug, Serialize)]
struct Verified {
    size_bytes: u64,
    blocks: u64,
    backups: usize,
    corrupt_blocks: usize,
    /// Why, of the first of them.
    errors: Vec<String>,
}

/// `vblk restore BACKUP TO`.
pub(crate) fn restore(
    from: &Path,
    to: &str,
    overwrite: bool,
    json: bool,
    out: &mut impl Write,
) -> Result<()> {
    let mut progress = Progress::new();
    let done = offline::restore(from, to, overwrite, &mut |done, of| {
        progress.tell(|| format!("{} %", percent(done, of)));
    });
    progress.end();
    let mut text = String::new();
    let done = done.map(|done| {
        let (size_bytes, blocks, backups) = (done.bytes, done.blocks, done.backups);
        let description = format!(
            "{to} is the disk of {}: {size_bytes} bytes, {blocks} blocks from {backups} backups",
            from.display()
        );
        text = format!("{description}\n");
        let restored = Restored {
            to: to.to_owned(),
            size_bytes,
            blocks,
            backups,
        };
        Answer::success(description, restored)
    });
    tell(done.map_err(Into::into), json, &text, out)
}

/// `vblk verify BACKUP`.
pub(crate) fn verify(path: &Path, json: bool, out: &mut impl Write) -> Result<()> {
    let mut progress = Progress::new();
    let (mut corrupt_blocks, mut errors) = (0_usize, Vec::new());
    let mut note = |error: vblk::backup::BackupError| {
        corrupt_blocks += 1;
        if errors.len() < offline::MAX_NAMED {
            errors.push(error.to_string());
        }
    };
    let done = offline::verify(path, &mut note, &mut |done, of| {
        progress.tell(|| format!("{} %", percent(done, of)));
    });
    progress.end();
    let mut text = String::new();
    let done = done.map(|done| {
        let (size_bytes, blocks, backups) = (done.bytes, done.blocks, done.backups);
        let verified = Verified {
            size_bytes,
            blocks,
            backups,
            corrupt_blocks,
            errors,
        };
        if corrupt_blocks == 0 {
            let description =
                format!("all {blocks} blocks in {backups} backups are as they were written");
            text = format!("{description}\n");
            return Answer::success(description, verified);
        }
        let description = format!("{corrupt_blocks} of {blocks} blocks cannot be restored");
        text = verified.errors.iter().map(|e| format!("{e}\n")).collect();
        let mut answer = Answer::failed(StatusCode::INTERNAL_SERVER_ERROR, description);
        answer.data = Some(verified);
        answer
    });
    if !json && corrupt_blocks > 0 {
        write!(out, "{text}")?;
    }
    tell(done.map_err(Into::into), json, &text, out)
}
