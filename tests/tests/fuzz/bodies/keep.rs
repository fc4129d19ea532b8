//! What a predecessor may have left, damaged: the daemon gives it up or goes on with it, and serves
//! the next front-end either way.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};

use rustix::fs::MemfdFlags;
use serde_json::Value;
use towpath_common::keep::{Keeper, parcel};
use towpath_common::session::{Endpoint, Keeping, Mode, Server};
use towpath_common::testing::RawFrontend;
use towpath_common::testing::bed::{SOON, Scratch};
use towpath_common::testing::echo::{Echo, Host};
use towpath_common::worker::Idle;

use super::vhost::answered;

/// The name under which sessions are looked for.
pub(crate) const NAME: &str = "fuzz";

fn memory(bytes: &[u8], size: u64) -> OwnedFd {
    let file = rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap();
    let mut file = std::fs::File::from(file);
    file.write_all(bytes).unwrap();
    if size > bytes.len() as u64 {
        file.set_len(size).unwrap();
    }
    file.into()
}

/// The descriptor that `name` asks for, or, if `odd`, another one.
fn descriptor(name: &str, odd: bool, connection: &UnixStream) -> OwnedFd {
    let what = name.split('.').next().unwrap_or_default();
    let last = name.rsplit('.').next().unwrap_or_default();
    match (what, last, odd) {
        ("connection", ..) => connection.try_clone().unwrap().into(),
        ("journal", _, false) => memory(&[], 4096),
        ("mem", _, false) => memory(&[], 1 << 20),
        ("log", _, false) | (_, "inflight", false) => memory(&[], 1 << 16),
        ("vring", _, false) => {
            let flags = rustix::event::EventfdFlags::CLOEXEC;
            rustix::event::eventfd(0, flags).unwrap()
        }
        _ => memory(&[0xff; 100], 0),
    }
}

/// The first byte says which descriptors are of the wrong kind, or missing; the rest is the
/// document.
pub(crate) fn keep_records(input: &[u8]) {
    static HOST: OnceLock<Arc<Host>> = OnceLock::new();
    let Some((odd, text)) = input.split_first() else {
        return;
    };
    let document: Value = serde_json::from_slice(text).unwrap_or_default();
    let names = document["fds"].as_array().cloned().unwrap_or_default();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let head = memory(text, 0);
    let mut fds = vec![head];
    for (at, name) in names.iter().take(40).enumerate() {
        let name = name.as_str().unwrap_or_default();
        fds.push(descriptor(
            name,
            *odd != 0 && usize::from(*odd) == at + 1,
            &theirs,
        ));
    }
    if *odd == u8::MAX {
        fds.pop();
    }
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let parcel = parcel::pack(&borrowed).unwrap();
    drop((fds, theirs));
    let keeper = Keeper::here(vec![("towpath-0".to_owned(), parcel)]);
    let host = HOST.get_or_init(|| Host::start(Idle::Interrupt).unwrap());
    let echo = Echo::on(host, 3);
    let dir = Scratch::new();
    let endpoint = Endpoint {
        path: dir.path().join("s"),
        mode: Mode::Server,
    };
    let listening = endpoint.listen_kept(&keeper).unwrap();
    let server = Server::start_kept(listening, echo, Keeping::with(&keeper, NAME)).unwrap();
    server.go();
    // The old front-end is served or hung up; in quarantine it would be neither.
    let old = RawFrontend::new(ours, SOON).unwrap();
    if old.send(1, 1, &[], &[]).is_ok() {
        let _ = old.recv();
    }
    drop(old);
    answered(&RawFrontend::connect(&dir.path().join("s"), SOON).unwrap());
    server.stop();
}
