//! Sockets: who listens, who waits, who is turned away, and how it ends.

use std::os::unix::net::UnixListener;

use super::*;
use crate::testing::Listener;

fn endpoint(bed: &std::path::Path, mode: Mode) -> Endpoint {
    Endpoint {
        path: bed.join("s"),
        mode,
    }
}

#[test]
fn the_next_front_end_waits_until_the_first_has_gone() {
    let bed = Bed::new(1);
    let mut first = bed.guest(1);
    let second = bed.raw();
    second
        .send(Request::GET_FEATURES.into(), 1, &[], &[])
        .unwrap();
    assert!(!second.closes_within(Duration::from_millis(20)).unwrap());
    first.echo(0, b"mine alone");
    drop(first);
    let answer = second.recv().unwrap();
    assert_ne!(answer.u64().unwrap() & feature::VERSION_1, 0);
    assert_eq!(bed.server.status().sessions, 2);
    assert_eq!(bed.echo.disconnects(), 1);
}

#[test]
fn as_client_we_come_back_whenever_the_front_end_does() {
    let dir = tempfile::tempdir().unwrap();
    let echo = Echo::on(&Host::start(Idle::Interrupt).unwrap(), 1);
    let at = endpoint(dir.path(), Mode::Client);
    let server = Server::start(at.listen().unwrap(), Arc::clone(&echo)).unwrap();
    for round in 0..3u64 {
        let listener = Listener::bind(&dir.path().join("s")).unwrap();
        let raw = listener.accept(SOON).unwrap();
        let front = Frontend::handshake(raw, everything()).unwrap();
        let mut guest = Guest::new(front, &[(0, 1 << 20)]);
        guest.share();
        guest.queue(8);
        guest.start(0);
        guest.echo(0, b"here again");
        drop(guest);
        eventually("the session's end", || echo.disconnects() == round + 1);
    }
    server.stop();
}

#[test]
fn a_client_stops_although_the_front_end_never_accepts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _deaf = UnixListener::bind(&path).unwrap();
    // A listen queue of one, full: a blocking connect would wait for ever.
    rustix::net::listen(&_deaf, 0).unwrap();
    let _first = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let echo = Echo::on(&Host::start(Idle::Interrupt).unwrap(), 1);
    let at = endpoint(dir.path(), Mode::Client);
    let server = Server::start(at.listen().unwrap(), echo).unwrap();
    server.stop();
    // Nor does a server hang when it looks whether somebody lives at its path.
    let busy = endpoint(dir.path(), Mode::Server).listen().unwrap_err();
    assert_eq!(busy.kind(), std::io::ErrorKind::AddrInUse);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = || endpoint(dir.path(), Mode::Server);
    drop(UnixListener::bind(dir.path().join("s")).unwrap());
    let live = at().listen().expect("nobody listens there any more");
    let refused = at().listen().unwrap_err();
    assert!(refused.to_string().contains("another process listens"));
    drop(live);
    assert!(!dir.path().join("s").exists(), "it is not served after all");
    std::fs::write(dir.path().join("s"), b"precious").unwrap();
    let refused = at().listen().unwrap_err();
    assert!(refused.to_string().contains("not a socket"), "{refused}");
    assert_eq!(std::fs::read(dir.path().join("s")).unwrap(), b"precious");
    let refused = endpoint(&dir.path().join("none"), Mode::Server).listen();
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("there is no directory"), "{refused}");
}

#[test]
fn a_stop_drains_hangs_up_and_removes_the_socket() {
    let bed = Bed::new(1);
    let mut guest = bed.guest(1);
    bed.echo.conduct(crate::testing::echo::Conduct::Hold);
    guest.offer(0, b"in flight");
    eventually("it is in flight", || bed.echo.seen() == 1);
    let path = bed.path();
    bed.server.stop();
    assert_eq!(guest.reap(0), 1, "finished before the thread ended");
    assert!(guest.front.raw().closes_within(SOON).unwrap());
    assert!(!path.exists());
}

#[test]
fn a_device_without_a_worker_refuses_vrings_and_stays_polite() {
    let bed = Bed::new(1);
    let mut guest = bed.guest(1);
    guest.echo(0, b"alive");
    bed.echo.host().die();
    eventually("the worker's death", || {
        bed.echo.host().worker().pulse().ended()
    });
    guest.front.stop_queue(0).unwrap();
    assert!(guest.say(0, Request::SET_VRING_KICK).is_err());
    let why = bed.noted();
    assert!(why.contains("worker"), "{why}");
    assert!(bed.server.status().vrings.iter().all(|v| !v.3));
}

#[test]
fn odd_device_names_do_not_matter() {
    assert_eq!(
        super::super::serve::thread_name("größer als nötig"),
        "s:grer als ntig"
    );
    assert_eq!(super::super::serve::thread_name("a\0b"), "s:ab");
}
