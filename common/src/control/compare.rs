//! `config diff`: what a reload would change in a running daemon, asked and printed.
//!
//! The daemon loads its file and compares, as in a reload, and stops there: it knows what it was
//! started with, what was changed since, and who is connected. As with diff(1), "no difference",
//! "differences" and "no comparison" are three outcomes.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use serde::{Serialize, de::DeserializeOwned};

use super::client::{Client, ClientError};
use super::print::{PrintError, print, sentence};

/// What a reload would change.
pub trait Difference: Serialize + DeserializeOwned {
    /// Whether it is nothing.
    fn is_empty(&self) -> bool;

    /// Lines for people, each change one or more.
    fn lines(&self) -> String;
}

/// Why there was no comparison.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The daemon did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It refused, for what is wrong with its file, say; or nobody reads.
    #[error(transparent)]
    Print(#[from] PrintError),
}

/// The body of `POST /v1/reload`, as far as it is used here.
#[derive(Serialize)]
struct DryRun {
    dry_run: bool,
}

/// Asks the daemon at `control` what a reload would change and prints it; true: something.
///
/// # Errors
/// [`CompareError`]
pub fn compare<D: Difference>(
    control: &Path,
    json: bool,
    out: &mut impl Write,
) -> Result<bool, CompareError> {
    let order = DryRun { dry_run: true };
    let answer = Client::new(control).post::<D>("/v1/reload", &order)?;
    print(&answer, json, out, D::lines)?;
    Ok(answer.data.is_some_and(|difference| !difference.is_empty()))
}

/// The outcome as diff(1) tells it: 0 none, 1 differences, 2 no comparison, which `program` then
/// explains.
pub fn exit_code(program: &str, outcome: Result<bool, CompareError>) -> ExitCode {
    match outcome {
        Ok(differs) => ExitCode::from(u8::from(differs)),
        Err(CompareError::Print(error)) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {}", sentence(&error));
            ExitCode::from(2)
        }
    }
}
