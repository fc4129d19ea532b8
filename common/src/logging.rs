//! Logs with fields: to journald when systemd reads our stderr, else to stderr as text.
//!
//! Only control and session threads log; a worker counts instead.

pub mod events;
mod journal;

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use events::Event;
use journal::Journal;

/// Fields reach the journal with this prefix: `journalctl TOWPATH_DISK=web` finds a disk's lines.
const FIELD_PREFIX: &str = "TOWPATH";

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is wrong.
    #[error("log filter {filter:?}: {source}; use error, warn, info, debug, trace or target=level")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// It was started before.
    #[error("logging was already started: {0}")]
    Twice(#[from] TryInitError),
}

/// Which lines are logged, in `tracing`'s notation: `info`, `vblk=debug,warn`. Always readable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct LogFilter(String);

impl LogFilter {
    /// What counts when nobody says otherwise.
    const DEFAULT: &str = "info";

    fn parse(text: &str) -> Result<EnvFilter, LogError> {
        EnvFilter::builder()
            .parse(text)
            .map_err(|source| LogError::Filter {
                filter: text.to_owned(),
                source,
            })
    }
}

impl TryFrom<String> for LogFilter {
    type Error = LogError;

    fn try_from(text: String) -> Result<Self, LogError> {
        Self::parse(&text).map(|_| Self(text))
    }
}

impl FromStr for LogFilter {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        text.to_owned().try_into()
    }
}

/// Starts logging for the whole process, under the name `identifier`. Without a `filter`,
/// `RUST_LOG` decides, then "info". `own` are the daemon's events beside the shared ones.
///
/// # Errors
/// [`LogError`]: `RUST_LOG` cannot be read, or this is the second start.
pub fn init(
    identifier: &str,
    filter: Option<&LogFilter>,
    own: &'static [Event],
) -> Result<(), LogError> {
    let variable = std::env::var(EnvFilter::DEFAULT_ENV)
        .ok()
        .filter(|text| !text.is_empty());
    let chosen = filter
        .map(|filter| filter.0.as_str())
        .or(variable.as_deref());
    let filter = LogFilter::parse(chosen.unwrap_or(LogFilter::DEFAULT))?;
    let registry = tracing_subscriber::registry().with(filter);
    let journal = under_systemd()
        .then(|| {
            Journal::open(
                Path::new(journal::SOCKET),
                identifier,
                [events::EVENTS, own],
            )
        })
        .and_then(Result::ok);
    match journal {
        Some(layer) => registry.with(layer).try_init()?,
        None => {
            let layer = tracing_subscriber::fmt::layer()
                .with_writer(io::stderr)
                .with_ansi(io::stderr().is_terminal());
            registry.with(layer).try_init()?;
        }
    }
    Ok(())
}

/// Whether stderr is the journal's stream: systemd names it by device and inode in
/// `JOURNAL_STREAM` (systemd.exec(5)), which children inherit even when stderr was redirected.
fn under_systemd() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = rustix::fs::fstat(io::stderr().as_fd()) else {
        return false;
    };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked_before_anything_starts() {
        "vblk=debug,warn".parse::<LogFilter>().unwrap();
        let error = "info,vblk=loud"
            .parse::<LogFilter>()
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("log filter \"info,vblk=loud\": "),
            "{error}"
        );
    }
}
