//! What is being done, written down before it is done: one JSON object a line, with the kernel
//! before the step it speaks of begins, so that a process that dies leaves it to the next.
//!
//! Where an apply begins and ends is on the disk at once. Its steps are not waited for: a machine
//! that dies takes its VFs along, and what they were to be is in the beginning.
//!
//! The file is also the record of who changed what: it grows to [`MAX_BYTES`] and is then put aside
//! once, so that the one before it can still be read.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::StateError;
use crate::plan::Step;
use crate::target::Target;

/// Some hundred applies of a large host.
const MAX_BYTES: u64 = 8 << 20;

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// An apply begins.
    Begin {
        /// Seconds since 1970.
        time: u64,
        /// The process.
        pid: u32,
        /// The user.
        uid: u32,
        /// What was there.
        before: Target,
        /// What is to be.
        target: Target,
    },
    /// A step begins.
    Doing {
        /// Its number in its plan.
        number: usize,
        /// The step.
        step: Step,
    },
    /// A step is done and was read back.
    Done {
        /// Its number.
        number: usize,
    },
    /// A step was left out: the driver lacks it, and it is not required.
    Lacked {
        /// Its number.
        number: usize,
    },
    /// The apply has ended, in this way.
    End(String),
}

/// An apply without an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// What was there.
    pub before: Target,
    /// What was to be.
    pub target: Target,
}

/// The journal, open for one apply.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Begins an apply.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(path: PathBuf, before: &Target, target: &Target) -> Result<Self, StateError> {
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > MAX_BYTES) {
            let aside = path.with_extension("old");
            fs::rename(&path, &aside).map_err(|error| StateError::new("rename", &path, error))?;
        }
        let mut journal = Self::resume(path)?;
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        journal.write(&Entry::Begin {
            time: time.map(|time| time.as_secs()).unwrap_or_default(),
            pid: std::process::id(),
            uid: rustix::process::getuid().as_raw(),
            before: before.clone(),
            target: target.clone(),
        })?;
        journal.sync()?;
        Ok(journal)
    }

    /// Goes on with an apply that another process began.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn resume(path: PathBuf) -> Result<Self, StateError> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path);
        let file = file.map_err(|error| StateError::new("open", &path, error))?;
        Ok(Self { file, path })
    }

    pub(super) fn doing(&mut self, number: usize, step: &Step) -> Result<(), StateError> {
        let step = step.clone();
        self.write(&Entry::Doing { number, step })
    }

    pub(super) fn done(&mut self, number: usize) -> Result<(), StateError> {
        self.write(&Entry::Done { number })
    }

    pub(super) fn lacked(&mut self, number: usize) -> Result<(), StateError> {
        self.write(&Entry::Lacked { number })
    }

    pub(super) fn end(&mut self, how: &str) -> Result<(), StateError> {
        self.write(&Entry::End(how.to_owned()))?;
        self.sync()
    }

    fn write(&mut self, entry: &Entry) -> Result<(), StateError> {
        let mut line = serde_json::to_vec(entry)
            .map_err(|error| StateError::new("write", &self.path, error.into()))?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(|error| StateError::new("write", &self.path, error))
    }

    fn sync(&self) -> Result<(), StateError> {
        let synced = self.file.sync_data();
        synced.map_err(|error| StateError::new("write", &self.path, error))
    }

    /// The last apply, if it has no end. A line that was cut off by the end of its writer is no
    /// line: what it speaks of was not begun.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn unfinished(path: PathBuf) -> Result<Option<Unfinished>, StateError> {
        let mut unfinished = None;
        for entry in Self::read(&path)? {
            match entry {
                Entry::Begin { before, target, .. } => {
                    unfinished = Some(Unfinished { before, target });
                }
                Entry::End(_) => unfinished = None,
                Entry::Doing { .. } | Entry::Done { .. } | Entry::Lacked { .. } => {}
            }
        }
        Ok(unfinished)
    }

    /// Every whole line.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(path: &Path) -> Result<Vec<Entry>, StateError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StateError::new("read", path, error)),
        };
        let mut entries = Vec::new();
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(|error| StateError::new("read", path, error))?;
            entries.extend(serde_json::from_slice(&line).ok());
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_apply_without_an_end_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        assert_eq!(Journal::unfinished(path.clone()).unwrap(), None);
        let (before, target) = (Target::default(), Target::default());
        let mut journal = Journal::begin(path.clone(), &before, &target).unwrap();
        let found = Some(Unfinished { before, target });
        assert_eq!(Journal::unfinished(path.clone()).unwrap(), found);
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"end\":\"appl")
            .unwrap();
        assert_eq!(Journal::unfinished(path.clone()).unwrap(), found, "cut off");
        journal.write(&Entry::Done { number: 0 }).unwrap();
        journal.end("applied").unwrap();
        assert_eq!(Journal::unfinished(path).unwrap(), None);
    }

    #[test]
    fn a_journal_that_grew_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        Journal::begin(path.clone(), &Target::default(), &Target::default()).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < MAX_BYTES);
        assert!(path.with_extension("old").exists());
    }
}
