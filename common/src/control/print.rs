//! What client commands print: answers as JSON or as text, and the parts of such text.

use std::error::Error;
use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use super::answer::{Answer, Status};
use crate::config::SocketMode;

/// Why a command did not end well although there was an answer.
#[derive(Debug, thiserror::Error)]
pub enum PrintError {
    /// The daemon did not do it, for this reason.
    #[error("{0}")]
    Failed(String),
    /// Nobody reads.
    #[error("cannot print the answer: {0}")]
    Output(#[from] io::Error),
}

impl PrintError {
    /// Whether the reader of our output has seen enough, as `head` does.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Prints an answer: as JSON whatever it says, or its data for a person.
///
/// # Errors
/// [`PrintError`]: the answer says "failed", or cannot be printed.
pub fn print<T: Serialize>(
    answer: &Answer<T>,
    json: bool,
    out: &mut impl Write,
    text: impl Fn(&T) -> String,
) -> Result<(), PrintError> {
    if json {
        serde_json::to_writer(&mut *out, answer).map_err(io::Error::from)?;
        writeln!(out)?;
    }
    match (&answer.data, answer.status) {
        (_, Status::Failed) => return Err(PrintError::Failed(answer.description.clone())),
        (Some(data), _) if !json => write!(out, "{}", text(data))?,
        _ => {}
    }
    Ok(out.flush()?)
}

/// An error and what is behind it, in one line, nothing said twice: many messages quote their cause
/// already.
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(behind) = cause {
        let more = behind.to_string();
        if !said.contains(&more) {
            said = format!("{said}: {more}");
        }
        cause = behind.source();
    }
    said
}

/// Columns as wide as their widest cell, two blanks apart.
pub fn table<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(header.map(str::to_owned))
        .chain(rows)
        .collect();
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths);
        let cells = cells.map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A rate for the eye.
#[expect(
    clippy::cast_precision_loss,
    reason = "a rate for the eye; exact below 2^53"
)]
pub fn per_second(count: u64, period: Duration) -> f64 {
    count as f64 / period.as_secs_f64()
}

/// Nanoseconds with a unit that leaves one to three digits before the point.
pub fn duration(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{}.{} µs", ns / 1_000, ns / 100 % 10),
        1_000_000..1_000_000_000 => format!("{}.{} ms", ns / 1_000_000, ns / 100_000 % 10),
        _ => format!("{}.{} s", ns / 1_000_000_000, ns / 100_000_000 % 10),
    }
}

/// Which end of a socket.
pub fn end(mode: SocketMode) -> &'static str {
    match mode {
        SocketMode::Server => "server",
        SocketMode::Client => "client",
    }
}

/// A truth.
pub fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_readable_units() {
        let units = [999, 1_000, 999_999, 1_500_000, 2_000_000_000].map(duration);
        assert_eq!(units, ["999 ns", "1.0 µs", "999.9 µs", "1.5 ms", "2.0 s"]);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            ["µ".to_owned(), "1".to_owned()],
            ["abcd".to_owned(), String::new()],
        ];
        let text = table(["A", "B"], rows.into_iter());
        assert_eq!(text, "A     B\nµ     1\nabcd\n");
    }

    #[test]
    fn what_is_behind_an_error_is_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("port p0: {source}")]
        struct Quotes {
            source: io::Error,
        }
        #[derive(Debug, thiserror::Error)]
        #[error("cannot start")]
        struct Silent(#[source] Quotes);
        let source = io::Error::other("no such directory");
        let silent = Silent(Quotes { source });
        assert_eq!(
            sentence(&silent),
            "cannot start: port p0: no such directory"
        );
    }

    #[test]
    fn a_failure_is_printed_as_json_and_is_an_error() {
        let failed = Answer::<u8>::failed(axum::http::StatusCode::NOT_FOUND, "no disk");
        let mut out = Vec::new();
        let error = print(&failed, true, &mut out, u8::to_string).unwrap_err();
        assert_eq!(error.to_string(), "no disk");
        assert!(out.starts_with(b"{\"status\":\"failed\""));
        let mut out = Vec::new();
        print(&Answer::success("", 7), false, &mut out, u8::to_string).unwrap();
        assert_eq!(out, b"7");
    }
}
