//! A client of the control API, of one request a connection.
//!
//! Written by hand on purpose: it shares no code with the daemon, so a mistake in the daemon's
//! HTTP cannot be made twice.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// A control API that does not answer for this long is a failure.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a `GET` on the control socket answers: status code and body.
///
/// # Errors
/// When nobody listens, the answer is late or is not HTTP.
pub fn get(socket: &Path, path: &str) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .with_context(|| format!("GET {path}"))?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer without a body")?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = if head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
    {
        joined(body)?
    } else {
        body.to_owned()
    };
    Ok((
        code.with_context(|| format!("no status in {head:?}"))?,
        body,
    ))
}

/// The `data` of a successful answer.
///
/// # Errors
/// When the answer is not a success, with its description.
pub fn data(socket: &Path, path: &str) -> Result<Value> {
    let (code, body) = get(socket, path)?;
    let mut answer: Value =
        serde_json::from_str(&body).with_context(|| format!("GET {path}: {body}"))?;
    ensure!(
        code == 200 && answer["status"] != "failed",
        "GET {path}: {code} {}",
        answer["description"]
    );
    Ok(answer["data"].take())
}

/// The body behind chunked transfer coding (RFC 9112, section 7.1).
fn joined(mut chunks: &str) -> Result<String> {
    let mut body = String::new();
    loop {
        let (size, rest) = chunks
            .split_once("\r\n")
            .context("a chunk without a size")?;
        let size = usize::from_str_radix(size.split(';').next().unwrap_or(size), 16)?;
        if size == 0 {
            return Ok(body);
        }
        let Some((chunk, rest)) = rest.split_at_checked(size) else {
            bail!("a chunk shorter than its size");
        };
        body.push_str(chunk);
        chunks = rest
            .strip_prefix("\r\n")
            .context("a chunk without an end")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() {
        assert_eq!(
            joined("3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n").unwrap(),
            "abcde"
        );
        assert!(joined("5\r\nabc").is_err());
    }
}
