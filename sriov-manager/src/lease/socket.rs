//! The socket that leases are asked for on: one line of JSON in, one out, with descriptors.
//!
//! Anybody may connect; who may lease is a matter of pools. A connection costs one of
//! [`MAX_CONNECTIONS`] threads for [`PATIENCE`] at most.

use std::io::{self, BufRead, BufReader, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use axum::http::StatusCode;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use towpath_common::control::Answer;

use super::access::Peer;
use super::broker::Broker;
use super::error::LeaseError;
use super::hand::Opened;
use super::{Granted, Request};

/// Connections at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;
/// A local client sends its line at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest request.
const MAX_BYTES: u64 = 4 << 10;
/// Descriptors in an answer.
const MAX_FDS: usize = 2;
/// Pause when the kernel refuses to accept.
const RETRY: Duration = Duration::from_millis(100);

/// Serves requests until the process ends.
pub fn serve(
    listener: &UnixListener,
    broker: &Arc<Broker>,
    changed: impl Fn() + Send + Sync + 'static,
) {
    let busy = Arc::new(AtomicUsize::new(0));
    let changed = Arc::new(changed);
    loop {
        while busy.load(Ordering::Acquire) >= MAX_CONNECTIONS {
            thread::sleep(RETRY);
        }
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the socket for leases cannot accept a connection");
                thread::sleep(RETRY);
                continue;
            }
        };
        busy.fetch_add(1, Ordering::AcqRel);
        let (broker, own, changed) = (Arc::clone(broker), Arc::clone(&busy), Arc::clone(&changed));
        let spawned = thread::Builder::new()
            .name("lease".to_owned())
            .spawn(move || {
                if let Err(error) = converse(&stream, &broker) {
                    tracing::debug!(%error, "a connection for a lease ended early");
                }
                changed();
                own.fetch_sub(1, Ordering::AcqRel);
            });
        if spawned.is_err() {
            busy.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn converse(stream: &UnixStream, broker: &Broker) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let peer = Peer::of(stream)?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_BYTES)).read_line(&mut line)?;
    let (answer, opened) = match serde_json::from_str::<Request>(&line) {
        Ok(request) => match broker.grant(&request, peer) {
            Ok((granted, opened)) => {
                let description = format!("{} is leased to {}", granted.address, request.owner);
                (Answer::success(description, granted), opened)
            }
            Err(error) => (
                Answer::failed(code(&error), error.to_string()),
                Opened::default(),
            ),
        },
        Err(error) => {
            let description = format!("the request is wrong: {error}");
            (
                Answer::failed(StatusCode::BAD_REQUEST, description),
                Opened::default(),
            )
        }
    };
    let leased = answer
        .data
        .as_ref()
        .map(|granted: &Granted| granted.address);
    let sent = send(stream, &answer, &opened);
    if let (Err(_), Some(vf)) = (&sent, leased) {
        // Whoever asked is gone; the descriptors must be as well, before the VF can be freed.
        drop(opened);
        if let Err(error) = broker.release(vf) {
            tracing::warn!(%vf, %error, "a lease that nobody received cannot be ended yet");
        }
    }
    sent
}

fn code(error: &LeaseError) -> StatusCode {
    match error {
        LeaseError::NoPool(_) => StatusCode::NOT_FOUND,
        LeaseError::Forbidden { .. } => StatusCode::FORBIDDEN,
        _ => StatusCode::CONFLICT,
    }
}

fn send(stream: &UnixStream, answer: &Answer<Granted>, opened: &Opened) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let fds: Vec<_> = opened.fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(&line)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    // A line fits into the socket's buffer, unless somebody made that absurdly small.
    if sent == line.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::State;
    use crate::spec::tests::spec;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage};
    use std::fs::File;
    use std::io::Write;
    use std::path::PathBuf;

    /// A daemon without pools, and where it listens.
    fn listening(dir: &std::path::Path) -> PathBuf {
        let state = State::open(dir).unwrap();
        let broker = Broker::open(state, "/bin/false".into(), spec("").unwrap()).unwrap();
        let path = dir.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || serve(&listener, &Arc::new(broker), || ()));
        path
    }

    fn answer(stream: &UnixStream) -> String {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }

    const ASK: &[u8] = b"{\"pool\":\"none\",\"owner\":\"vm\"}\n";

    #[test]
    fn connections_that_say_nothing_keep_nobody_out_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = listening(dir.path());
        let silent = (0..MAX_CONNECTIONS + 8).map(|_| UnixStream::connect(&path).unwrap());
        let silent: Vec<UnixStream> = silent.collect();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(ASK).unwrap();
        assert!(answer(&stream).contains("there is no pool"));
        drop(silent);
    }

    #[test]
    fn descriptors_that_nobody_asked_for_are_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = listening(dir.path());
        // Ours, and not open otherwise: seen by its name in our own list of descriptors.
        let file = File::create(dir.path().join("unwanted")).unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        let fds = [file.as_fd(); 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(
            &stream,
            &[IoSlice::new(ASK)],
            &mut ancillary,
            SendFlags::empty(),
        )
        .unwrap();
        assert!(answer(&stream).contains("there is no pool"));
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let names = open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        assert_eq!(names.filter(|name| name.ends_with("unwanted")).count(), 1);
    }

    #[test]
    fn what_is_no_request_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let path = listening(dir.path());
        for odd in [
            &b"\n"[..],
            b"{}\n",
            b"{\"pool\":\"a\",\"owner\":\"b\",\"x\":1}\n",
        ] {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(odd).unwrap();
            assert!(answer(&stream).contains("the request is wrong"));
        }
    }
}
