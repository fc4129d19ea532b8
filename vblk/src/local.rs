//! Commands that need no daemon: what they did, for a person or as JSON.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use axum::http::StatusCode;
use serde::Serialize;
use towpath_common::config::ByteSize;
use towpath_common::control::Answer;
use towpath_common::control::print::{print, sentence};
use vblk::config::Source;
use vblk::{image, storage};

/// A file that was made.
#[derive(Debug, Serialize)]
struct Made {
    path: PathBuf,
    /// Of the disk in it, or that it is the record of.
    size_bytes: u64,
}

/// Print how it ended, for a person as `text`. A failure is an answer, too, and the error it was.
pub(crate) fn tell<T: Serialize>(
    done: Result<Answer<T>>,
    json: bool,
    text: &str,
    out: &mut impl Write,
) -> Result<()> {
    let error = match done {
        Ok(answer) => return Ok(print(&answer, json, out, |_| text.to_owned())?),
        Err(error) => error,
    };
    if json {
        let code = StatusCode::INTERNAL_SERVER_ERROR;
        let answer = Answer::<()>::failed(code, sentence(&*error));
        // What it returns is what the answer says.
        let _ = print(&answer, json, out, |()| String::new());
    }
    Err(error)
}

/// `vblk create PATH SIZE`.
pub(crate) fn create(path: &Path, size: ByteSize, json: bool, out: &mut impl Write) -> Result<()> {
    let done = image::create(path, size).map(|()| {
        let description = format!("{} of {size} was made", path.display());
        let (path, size_bytes) = (path.to_owned(), size.bytes());
        Answer::success(description, Made { path, size_bytes })
    });
    tell(done.map_err(Into::into), json, "", out)
}

/// `vblk mirror create MIRROR`.
pub(crate) fn mirror_create(
    source: &Source,
    record: Option<&Path>,
    assume_clean: bool,
    json: bool,
    out: &mut impl Write,
) -> Result<()> {
    let mut text = String::new();
    let done = storage::create_mirror(source, record, assume_clean).map(|made| {
        let (path, size) = (made.path.display(), ByteSize::from_bytes(made.size));
        let description = format!("a mirror of {size}, recorded in {path}");
        text = format!("{description}\n");
        let (path, size_bytes) = (made.path, made.size);
        Answer::success(description, Made { path, size_bytes })
    });
    tell(done.map_err(Into::into), json, &text, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn said(out: &[u8]) -> Value {
        serde_json::from_slice(out).unwrap()
    }

    #[test]
    fn what_was_made_is_told_as_json_and_so_is_why_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let size = "1M".parse().unwrap();
        let mut out = Vec::new();
        create(&path, size, true, &mut out).unwrap();
        let answer = said(&out);
        assert_eq!(answer["status"], "success");
        assert_eq!(answer["data"], json!({"path": path, "size_bytes": 1 << 20}));
        let mut out = Vec::new();
        let error = create(&path, size, true, &mut out).unwrap_err();
        let answer = said(&out);
        assert_eq!(answer["status"], "failed");
        assert_eq!(answer["description"], error.to_string());
        // A person is told by the error alone, and of success by silence.
        let mut out = Vec::new();
        create(&path, size, false, &mut out).unwrap_err();
        create(&dir.path().join("other"), size, false, &mut out).unwrap();
        assert!(out.is_empty());
    }

    #[test]
    fn a_mirror_that_was_made_is_told_as_json() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, record] = ["a", "b", "r"].map(|name| dir.path().join(name));
        for path in [&a, &b] {
            image::create(path, "1M".parse().unwrap()).unwrap();
        }
        let source = format!("mirror:{}|{}", a.display(), b.display());
        let source = source.parse().unwrap();
        let mut out = Vec::new();
        mirror_create(&source, Some(&record), true, true, &mut out).unwrap();
        let wanted = json!({"path": record, "size_bytes": 1 << 20});
        assert_eq!(said(&out)["data"], wanted);
        let again = mirror_create(&source, Some(&record), true, true, &mut Vec::new());
        assert!(again.is_err(), "there is one already");
    }
}
