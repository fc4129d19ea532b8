//! What is ordered, and how it goes: values of the API, and what the threads of a backup share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::BackupError;

/// The body of `POST /v1/disks/{name}/backup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupOrder {
    /// An absolute path of a file to make, or an NBD export.
    pub to: String,
    /// The manifest; none: beside the file, as FILE.manifest.
    #[serde(default)]
    pub manifest: Option<PathBuf>,
    /// Only what changed since the last backup.
    #[serde(default)]
    pub incremental: bool,
    /// Go on with one that was cut off.
    #[serde(default)]
    pub resume: bool,
    /// Most bytes a second; none: as fast as it goes.
    #[serde(default)]
    pub rate: Option<u64>,
}

/// What is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// A backup of all blocks.
    Full,
    /// A backup of those that changed.
    Incremental,
    /// A plain image, without a manifest: a snapshot.
    Copy,
}

impl Sort {
    /// In words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Sort::Full => "full backup",
            Sort::Incremental => "incremental backup",
            Sort::Copy => "copy",
        }
    }
}

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Being made.
    Running,
    /// Complete and durable.
    Done,
    /// Given up.
    Failed,
}

/// A backup or copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupStatus {
    /// What is being made.
    pub sort: Sort,
    /// Where it stands.
    pub state: State,
    /// Where the data goes.
    pub to: String,
    /// Where its manifest is when it is done.
    pub manifest: Option<PathBuf>,
    /// Its identity.
    pub id: Option<String>,
    /// Bytes to copy.
    pub total_bytes: u64,
    /// Bytes copied.
    pub done_bytes: u64,
    /// Blocks that were copied first because the guest wanted to change them.
    pub copied_first: u64,
    /// How long the disk was at rest, in microseconds.
    pub pause_us: u64,
    /// What somebody should know, such as why it is a full one.
    pub note: Option<String>,
    /// Why it was given up.
    pub error: Option<String>,
    /// How long it has taken, in milliseconds.
    pub took_ms: u64,
}

/// Backups of a disk, as the API shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Backed {
    /// Bytes changed since the last backup that succeeded, if that is known.
    pub changed_bytes: Option<u64>,
    /// The last one that was begun since the disk was attached.
    pub latest: Option<BackupStatus>,
    /// Backups and copies that succeeded.
    pub done: u64,
    /// Those that were given up.
    pub failed: u64,
    /// Bytes they copied.
    pub bytes: u64,
    /// Blocks they copied first because the guest wanted to change them.
    pub copied_first: u64,
}

/// Counted for a disk since the daemon's start.
#[derive(Debug, Default)]
pub struct Totals {
    /// Backups and copies that succeeded.
    pub done: AtomicU64,
    /// Those that were given up.
    pub failed: AtomicU64,
    /// Bytes copied.
    pub bytes: AtomicU64,
    /// Blocks copied first because the guest wanted to change them.
    pub first: AtomicU64,
}

/// One backup, as its threads and those who ask see it.
#[derive(Debug)]
pub(crate) struct Progress {
    fixed: BackupStatus,
    began: Instant,
    stop: AtomicBool,
    pub(super) total: AtomicU64,
    pub(super) done: AtomicU64,
    pub(super) first: AtomicU64,
    pub(super) pause_us: AtomicU64,
    end: Mutex<Option<(Result<(), String>, u64)>>,
}

impl Progress {
    pub(super) fn new(fixed: BackupStatus) -> Progress {
        Progress {
            fixed,
            began: Instant::now(),
            stop: AtomicBool::new(false),
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            first: AtomicU64::new(0),
            pause_us: AtomicU64::new(0),
            end: Mutex::default(),
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn finish(&self, result: &Result<(), BackupError>) {
        let result = result.as_ref().copied().map_err(ToString::to_string);
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        *end = Some((result, self.elapsed_ms()));
    }

    /// How it stands.
    pub(crate) fn status(&self) -> BackupStatus {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, error) = match &*end {
            None => (State::Running, None),
            Some((Ok(()), _)) => (State::Done, None),
            Some((Err(why), _)) => (State::Failed, Some(why.clone())),
        };
        BackupStatus {
            state,
            error,
            total_bytes: self.total.load(Relaxed),
            done_bytes: self.done.load(Relaxed),
            copied_first: self.first.load(Relaxed),
            pause_us: self.pause_us.load(Relaxed),
            took_ms: end.as_ref().map_or_else(|| self.elapsed_ms(), |e| e.1),
            ..self.fixed.clone()
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.is_none()
    }

    /// Ask it to end.
    pub(crate) fn cancel(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Everything was copied.
    pub(super) fn is_whole(&self) -> bool {
        self.done.load(Relaxed) == self.total.load(Relaxed)
    }

    pub(super) fn check(&self) -> Result<(), BackupError> {
        if self.stop.load(Relaxed) {
            return Err(BackupError::Cancelled);
        }
        Ok(())
    }
}
