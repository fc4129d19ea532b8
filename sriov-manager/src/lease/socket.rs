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
