//! Servers whose sessions are kept: left to a successor, lost with a message half handled, blamed
//! for crashes, given up when they do not fit.

use super::super::{Device, Keeping, Server};
use super::*;
use crate::keep::{Journal, Keeper, SESSION};
use crate::testing::bed::Scratch;

/// One process after the other, at one socket.
struct Succession {
    dir: Scratch,
    /// Each process has a device of another name; sessions are found by that of the last one.
    name: std::cell::RefCell<String>,
}

impl Succession {
    fn serve(&self, keeper: &Keeper) -> (Arc<Echo>, Server) {
        let echo = Echo::on(&Host::start(Idle::Interrupt).unwrap(), 3);
        let endpoint = Endpoint {
            path: self.dir.path().join("s"),
            mode: Mode::Server,
        };
        let listening = endpoint.listen_kept(keeper).unwrap();
        let name = self.name.replace(echo.name().to_owned());
        let keeping = Keeping::with(keeper, &name);
        let server = Server::start_kept(listening, Arc::clone(&echo), keeping).unwrap();
        (echo, server)
    }

    fn journal(&self, keeper: &Keeper) -> Journal {
        let kept = Keeper::here(keeper.shelf()).claim(SESSION, &self.name.borrow());
        let (_, mut kept) = kept.expect("the session is kept");
        Journal::adopt(kept.need("journal").unwrap(), 3).unwrap()
    }

    fn guest(&self) -> Guest {
        let path = self.dir.path().join("s");
        let front = Frontend::connect(&path, everything(), SOON).unwrap();
        let mut guest = Guest::new(front, &[(0, 1 << 20)]);
        guest.share();
        guest.queue(16);
        guest.start(0);
        guest
    }
}

fn begin() -> (Succession, Keeper, Server, Guest) {
    let succession = Succession {
        dir: Scratch::new(),
        name: std::cell::RefCell::default(),
    };
    let keeper = Keeper::here(Vec::new());
    let (_, server) = succession.serve(&keeper);
    let mut guest = succession.guest();
    guest.echo(0, b"first");
    (succession, keeper, server, guest)
}

/// What a process leaves that is killed now; it is stopped so that nothing it does is seen.
fn killed(keeper: &Keeper, server: Server) -> Keeper {
    let next = Keeper::here(keeper.shelf());
    std::mem::forget(server);
    next
}

#[test]
fn a_session_that_is_left_goes_on_and_so_does_its_socket() {
    let (succession, mut keeper, mut server, mut guest) = begin();
    for round in 0..3u8 {
        server.leave();
        guest.offer(0, &[round]);
        // Comes while nobody is there, and waits.
        let path = succession.dir.path().join("s");
        let waiting = crate::testing::RawFrontend::connect(&path, SOON).unwrap();
        keeper = Keeper::here(keeper.shelf());
        let (_, next) = succession.serve(&keeper);
        assert!(!next.status().connected, "before all is ready");
        next.go();
        guest.settle(0);
        guest.echo(0, b"and on");
        guest.front.enable(0, true).unwrap();
        let status = next.status();
        assert_eq!((status.sessions, status.resumed), (0, 1));
        assert!(status.kept);
        drop(waiting);
        server = next;
    }
    drop(guest);
    eventually("the session to end", || !server.status().connected);
    eventually("nothing but the socket to be kept", || {
        keeper.shelf().len() == 1
    });
    server.stop();
    assert!(keeper.shelf().is_empty());
}

#[test]
fn one_that_was_just_answered_is_hung_up() {
    let (succession, keeper, server, guest) = begin();
    let journal = succession.journal(&keeper);
    eventually("the last message to be done with", || {
        !journal.was_handling()
    });
    journal.set_handling(true);
    let next = killed(&keeper, server);
    let (_, server) = succession.serve(&next);
    server.go();
    assert!(guest.front.raw().closes_within(SOON).unwrap());
    let kept = || next.shelf().len();
    eventually("nothing but the socket to be kept", || kept() == 1);
}

#[test]
fn three_crashes_over_a_session_are_held_against_it() {
    let (succession, mut keeper, mut server, mut guest) = begin();
    let cell = |keeper: &Keeper| succession.journal(keeper).cell(0).unwrap();
    for crash in 1..=3 {
        cell(&keeper).set_busy(true);
        server.leave();
        keeper = Keeper::here(keeper.shelf());
        keeper.blame();
        let name = succession.name.borrow().clone();
        let (_, next) = succession.serve(&keeper);
        next.go();
        if crash < 3 {
            guest.echo(0, b"still served");
        } else {
            // What is not served stays what it was.
            succession.name.replace(name);
        }
        server = next;
    }
    eventually("quarantine", || server.status().quarantined);
    guest.offer(0, b"waits");
    // A restart alone does not help it.
    server.leave();
    keeper = Keeper::here(keeper.shelf());
    let (_, server) = succession.serve(&keeper);
    server.go();
    eventually("quarantine again", || server.status().quarantined);
    assert!(!guest.front.raw().closes_within(Duration::ZERO).unwrap());
    server.release();
    guest.settle(0);
    assert!(!server.status().quarantined);
}

#[test]
fn a_front_end_that_goes_ends_its_quarantine() {
    let (succession, keeper, server, guest) = begin();
    server.leave();
    let journal = succession.journal(&keeper);
    for _ in 0..4 {
        journal.restore();
        let _ = journal.begin(true);
    }
    let keeper = Keeper::here(keeper.shelf());
    let (_, server) = succession.serve(&keeper);
    server.go();
    eventually("quarantine", || server.status().quarantined);
    drop(guest);
    eventually("its end", || !server.status().connected);
    let mut guest = succession.guest();
    guest.echo(0, b"another one is served");
}

#[test]
fn a_socket_that_nobody_wants_any_more_is_free_at_once() {
    let dir = Scratch::new();
    let endpoint = || Endpoint {
        path: dir.path().join("s"),
        mode: Mode::Server,
    };
    let keeper = Keeper::here(Vec::new());
    // Killed before it served anybody.
    std::mem::forget(endpoint().listen_kept(&keeper).unwrap());
    // The manager hears of it later.
    let held = keeper.shelf();
    assert!(endpoint().listen().is_err(), "it listens");
    let next = Keeper::here(keeper.shelf());
    for (place, kept) in next.claim_rest(|_| false) {
        kept.abandon(place);
    }
    assert!(next.shelf().is_empty());
    endpoint().listen().unwrap();
    drop(held);
}

/// As in a reload that is refused because of something else.
#[test]
fn a_socket_that_is_not_served_after_all_leaves_nothing() {
    let dir = Scratch::new();
    let endpoint = || Endpoint {
        path: dir.path().join("s"),
        mode: Mode::Server,
    };
    let keeper = Keeper::here(Vec::new());
    drop(endpoint().listen_kept(&keeper).unwrap());
    assert!(keeper.shelf().is_empty() && !endpoint().path.exists());
    // A predecessor's goes on waiting for one that serves it.
    std::mem::forget(endpoint().listen_kept(&keeper).unwrap());
    let next = Keeper::here(keeper.shelf());
    drop(endpoint().listen_kept(&next).unwrap());
    assert!(next.shelf().len() == 1 && endpoint().path.exists());
}

/// Something else lies where the socket was, as after an operator's mistake.
#[test]
fn a_guest_goes_on_where_nobody_can_listen_any_more() {
    let (succession, mut keeper, mut server, mut guest) = begin();
    let path = succession.dir.path().join("s");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    // Nor can the next one.
    for round in 0..2u8 {
        server.leave();
        guest.offer(0, &[round]);
        keeper = Keeper::here(keeper.shelf());
        server = succession.serve(&keeper).1;
        server.go();
        guest.settle(0);
        guest.echo(0, b"and on");
        let why = server.status().last_error.unwrap();
        assert!(why.starts_with("no front-end can connect"), "{why}");
        assert!(why.contains("is not a socket"), "{why}");
    }
    std::fs::remove_dir(&path).unwrap();
    eventually("a socket", || server.deaf().is_none());
    guest.echo(0, b"all the time");
    assert_eq!(server.status().last_error, None);
    drop(guest);
    eventually("the session to end", || !server.status().connected);
    succession.guest().echo(0, b"another one");
    server.stop();
    assert!(keeper.shelf().is_empty() && !path.exists());
}

#[test]
fn what_lies_where_a_socket_was_is_not_ours_to_remove() {
    let (succession, keeper, server, _guest) = begin();
    let path = succession.dir.path().join("s");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"somebody's").unwrap();
    server.leave();
    let keeper = Keeper::here(keeper.shelf());
    let (_, server) = succession.serve(&keeper);
    server.go();
    eventually("the session", || server.status().connected);
    server.stop();
    assert_eq!(std::fs::read(&path).unwrap(), b"somebody's");
    eventually("nothing to be kept", || keeper.shelf().is_empty());
}
