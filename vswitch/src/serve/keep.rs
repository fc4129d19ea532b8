//! Keeps a change in the configuration file: prepared and validated before anything is applied,
//! written after that, whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::PathBuf;

use towpath_common::config::{ConfigError, Document};

use crate::config::{Change, Config, EditError, Sources, edit};

/// Why a change cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    /// There is no file.
    #[error(
        "there is no configuration file to keep it in: the daemon was started without --config; \
         leave out --persist, or describe the ports in a file"
    )]
    NoFile,
    /// The file cannot be edited.
    #[error("{}: {source}", path.display())]
    Edit {
        /// The file.
        path: PathBuf,
        /// Why.
        source: EditError,
    },
    /// The file would not be a valid configuration.
    #[error("with the change in the file, {0}")]
    Config(#[from] ConfigError),
    /// The system refused.
    #[error("cannot write {}: {source}; the daemon needs to write there", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The new text of the file.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    text: String,
}

/// Makes the new text and holds it against the rules.
pub(super) fn prepare(sources: &Sources, change: &Change) -> Result<Kept, KeepError> {
    let path = sources.chosen_file().ok_or(KeepError::NoFile)?;
    let document = Document::read(&path)?;
    let text = edit(document.text(), change).map_err(|source| KeepError::Edit {
        path: path.clone(),
        source,
    })?;
    let edited = Document::new(&path, text.as_str());
    Config::load_from(sources, Some(&edited))?;
    Ok(Kept { path, text })
}

impl Kept {
    /// Takes the file's place with the file's owner and mode.
    pub(super) fn write(self) -> Result<(), KeepError> {
        self.replace().map_err(|source| KeepError::Write {
            path: self.path.clone(),
            source,
        })
    }

    fn replace(&self) -> io::Result<()> {
        // What a link names is replaced, not the link.
        let path = fs::canonicalize(&self.path)?;
        let old = fs::metadata(&path)?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new_path = path.with_file_name(name);
        let written = File::create(&new_path).and_then(|mut new| {
            new.set_permissions(old.permissions())?;
            let owner = new.metadata()?;
            if (owner.uid(), owner.gid()) != (old.uid(), old.gid()) {
                fchown(&new, Some(old.uid()), Some(old.gid()))?;
            }
            new.write_all(self.text.as_bytes())?;
            new.sync_all()?;
            fs::rename(&new_path, &path)
        });
        if written.is_err() {
            let _it_may_not_be_there = fs::remove_file(&new_path);
        }
        written
    }
}
