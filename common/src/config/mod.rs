//! Configuration: a TOML file or a command line becomes typed values, or one error that says
//! where the mistake is and what to write instead.
//!
//! Every rule about a single value lives in its type ([`value`]): a value that exists is valid,
//! and nobody downstream checks it again. Rules that tie values together (two disks on one
//! socket) are checked by the daemon once everything is read, and name both [`Place`]s.
//! Nothing here changes the machine: reading and validating have no effect but the answer.

pub mod argument;
mod daemon;
mod difference;
mod landlock;
pub mod value;

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

pub use daemon::{Daemon, DaemonTable, chosen_file};
pub use difference::{Change, Changes, changed_keys, table_lines};
pub use landlock::Landlock;
pub use value::{
    ByteSize, Cap, CpuId, CpuList, Name, Poll, SocketMode, SocketPath, ValueError, Weight,
};

/// A configuration file larger than this is a mistake (a disk image, say), not a configuration.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where a configured thing was written, so that an error can point at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a file; line and column count from 1.
    File {
        /// The file as the user named it.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// In the n-th use of a command-line option, from 1.
    Argument {
        /// The option, such as `--disk`.
        option: &'static str,
        /// Which use of it, from 1.
        ordinal: usize,
    },
    /// In the configuration that is in force.
    Running(
        /// What it is, such as `port web`.
        String,
    ),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => {
                write!(f, "{}:{line}:{column}", path.display())
            }
            Self::Argument { option, ordinal } => write!(f, "{option} number {ordinal}"),
            Self::Running(what) => f.write_str(&printable(what)),
        }
    }
}

/// Why a configuration was refused. Nothing has been applied when one of these is returned.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {}: {source}; check --config and the file's permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is larger than [`MAX_FILE_BYTES`].
    #[error("{} is larger than {MAX_FILE_BYTES} bytes: not a configuration file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A value, key or the syntax is wrong.
    #[error("{place}: {}", printable(message))]
    Invalid {
        /// Where.
        place: Place,
        /// What is wrong and what would be right.
        message: String,
    },
    /// Two items contend for the same thing.
    #[error("{second}: {} is already used at {first}; {fix}", printable(what))]
    Conflict {
        /// What they contend for, such as `socket "/run/a.sock"`.
        what: String,
        /// The item that was there first.
        first: Place,
        /// The item that is refused.
        second: Place,
        /// How to resolve it.
        fix: &'static str,
    },
    /// There is nothing to do.
    #[error("{0}")]
    Empty(&'static str),
}

/// The text of a configuration file with its name, able to turn byte offsets into [`Place`]s.
#[derive(Debug)]
pub struct Document {
    path: PathBuf,
    text: String,
}

impl Document {
    /// Reads `path`, at most [`MAX_FILE_BYTES`].
    ///
    /// # Errors
    /// [`ConfigError::Read`] (also when it is not UTF-8), [`ConfigError::TooLarge`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text))
            .map_err(|source| ConfigError::Read {
                path: path.to_owned(),
                source,
            })?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(ConfigError::TooLarge {
                path: path.to_owned(),
            });
        }
        Ok(Self::new(path, text))
    }

    /// A document that is already in memory; `path` is used in errors only.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
        }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Parses the TOML text into `T`, which should carry `#[serde(deny_unknown_fields)]`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with line and column of the first mistake.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|error| ConfigError::Invalid {
            place: self.place(error.span().unwrap_or(0..0)),
            message: one_line(error.message()),
        })
    }

    /// The line and column where `span` (byte offsets, as of [`toml::Spanned`]) begins.
    pub fn place(&self, span: Range<usize>) -> Place {
        let before = self.text.get(..span.start).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place::File {
            path: self.path.clone(),
            line: before.matches('\n').count() + 1,
            column: before
                .get(line_start..)
                .map_or(0, |line| line.chars().count())
                + 1,
        }
    }
}

/// What a configuration says now, to a daemon that has `waited` since it read it; what it said
/// before, if it is broken meanwhile: one that follows another serves on.
pub fn latest<T>(waited: Duration, before: T, load: impl FnOnce() -> Result<T, ConfigError>) -> T {
    if waited.is_zero() {
        return before;
    }
    load().unwrap_or_else(|error| {
        tracing::error!(name: crate::logging::events::CONFIG_BROKEN, %error,
            "the configuration is broken; what it was before is served");
        before
    })
}

/// A message that quotes what was written: control characters must not look like lines of ours.
fn printable(message: &str) -> Cow<'_, str> {
    if !message.contains(char::is_control) {
        return message.into();
    }
    let shown = |c: char| {
        let escaped = c.is_control().then(|| c.escape_default());
        escaped
            .into_iter()
            .flatten()
            .chain((!c.is_control()).then_some(c))
    };
    message.chars().flat_map(shown).collect::<String>().into()
}

/// Folds a parser's message of several lines into one, so that it fits one log line.
fn one_line(message: &str) -> String {
    message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[test]
    fn what_is_quoted_stays_in_its_line() {
        let error = ConfigError::Invalid {
            place: Place::Running("a\rb".to_owned()),
            message: "queues=\n4\u{1b}[31m: é".to_owned(),
        };
        assert_eq!(error.to_string(), "a\\rb: queues=\\n4\\u{1b}[31m: é");
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        weight: Weight,
        #[serde(default)]
        socket: Option<SocketPath>,
    }

    fn refuse(text: &str) -> String {
        Document::new("/etc/t.toml", text)
            .parse::<Sample>()
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn errors_point_at_the_value_and_say_what_is_right() {
        assert_eq!(
            refuse("\n  weight = 0\n"),
            "/etc/t.toml:2:12: weight must be 1 to 10000, not 0"
        );
        assert_eq!(
            refuse("weight = 1\nwait = 2"),
            "/etc/t.toml:2:1: unknown field `wait`, expected `weight` or `socket`"
        );
        assert_eq!(
            refuse("weight = \"heavy\""),
            "/etc/t.toml:1:10: invalid type: string \"heavy\", expected i64"
        );
        assert!(refuse("weight = 1\nweight = 2").starts_with("/etc/t.toml:2:1: duplicate key"));
        assert!(refuse("weight = ").starts_with("/etc/t.toml:1:"));
        assert_eq!(refuse(""), "/etc/t.toml:1:1: missing field `weight`");
    }

    #[test]
    fn a_valid_file_becomes_values() {
        let document = Document::new("t", "weight = 7\nsocket = \"/run/a\"");
        let sample: Sample = document.parse().unwrap();
        assert_eq!(sample.weight.get(), 7);
        assert_eq!(sample.socket.unwrap().as_path(), Path::new("/run/a"));
    }

    #[test]
    fn columns_count_characters() {
        let document = Document::new("t", "é = 1\nüü x");
        assert_eq!(document.place(12..13).to_string(), "t:2:4");
        assert_eq!(document.place(999..1000).to_string(), "t:2:5");
    }

    #[test]
    fn files_that_are_no_configuration_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        File::create(&path)
            .unwrap()
            .set_len(MAX_FILE_BYTES + 1)
            .unwrap();
        assert!(matches!(
            Document::read(&path),
            Err(ConfigError::TooLarge { .. })
        ));
        let missing = Document::read(&dir.path().join("missing"))
            .unwrap_err()
            .to_string();
        assert!(missing.contains("missing: No such file"), "{missing}");
    }
}
