//! A session that goes on in a successor: the first process is "killed" (its rings are lost with
//! chains in flight, its thread goes without touching the connection), the second starts from what
//! was kept, and the front-end notices nothing.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;

use vhost::vhost_user::BackendReqHandler;

use super::super::serve::exchange;
use super::super::{Alarm, Session, adopt};
use super::*;
use crate::keep::{KeepError, Kept, VERSION, parcel};
use crate::testing::echo::Conduct;

type Shared = Arc<Mutex<Session<Echo>>>;

/// A process that serves one connection.
struct Process {
    echo: Arc<Echo>,
    session: Shared,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Process {
    fn run(
        echo: Arc<Echo>,
        session: Shared,
        connection: &UnixStream,
        mut handler: BackendReqHandler<Mutex<Session<Echo>>>,
    ) -> Process {
        let stop = Arc::new(AtomicBool::new(false));
        let (asked, peek) = (Arc::clone(&stop), connection.try_clone().unwrap());
        let mine = Arc::clone(&session);
        let thread = std::thread::spawn(move || {
            while !asked.load(SeqCst) {
                let soon = Duration::from_millis(1);
                if crate::testing::wire::readable(&peek, soon).unwrap()
                    && exchange(&mut handler, &peek, &mine).is_break()
                {
                    return;
                }
            }
        });
        Process {
            echo,
            session,
            stop,
            thread,
        }
    }

    fn first(connection: &UnixStream) -> Process {
        let echo = Echo::on(&Host::start(Idle::Interrupt).unwrap(), 3);
        let alarm = Arc::new(Alarm::new(connection.try_clone().unwrap()));
        let session = Session::new(Arc::clone(&echo), alarm, Arc::default());
        let session = Arc::new(Mutex::new(session));
        let stream = connection.try_clone().unwrap();
        let handler = BackendReqHandler::from_stream(stream, Arc::clone(&session));
        Process::run(echo, session, connection, handler)
    }

    fn successor(connection: &UnixStream, kept: Kept) -> Result<Process, KeepError> {
        let echo = Echo::on(&Host::start(Idle::Interrupt).unwrap(), 3);
        let alarm = Arc::new(Alarm::new(connection.try_clone().unwrap()));
        let session = Session::restore(Arc::clone(&echo), alarm, Arc::default(), kept, None)?;
        let session = Arc::new(Mutex::new(session));
        let handler = adopt(connection, &session)?;
        Ok(Process::run(echo, session, connection, handler))
    }

    /// Kept as in the life of the process, then killed; how many chains were in flight.
    fn kill(self) -> (OwnedFd, usize) {
        let kept = self.session.lock().unwrap().keep().unwrap();
        let lost = self.echo.lose();
        self.stop.store(true, SeqCst);
        self.thread.join().unwrap();
        (kept.pack().unwrap(), lost)
    }
}

fn load(parcel: OwnedFd) -> Result<Kept, KeepError> {
    Kept::open(parcel)
}

/// The same parcel with another document.
fn rewritten(parcel: &OwnedFd, change: impl FnOnce(&mut serde_json::Value)) -> OwnedFd {
    let mut fds = parcel::open(parcel).unwrap();
    let text = std::io::read_to_string(
        std::fs::File::open(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&fds[0])
        ))
        .unwrap(),
    );
    let mut value = serde_json::from_str(&text.unwrap()).unwrap();
    change(&mut value);
    fds[0] = document(&serde_json::to_vec(&value).unwrap());
    let fds: Vec<_> = fds.iter().map(std::os::fd::AsFd::as_fd).collect();
    parcel::pack(&fds).unwrap()
}

fn document(text: &[u8]) -> OwnedFd {
    let fd = rustix::fs::memfd_create("document", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    assert_eq!(rustix::io::write(&fd, text).unwrap(), text.len());
    fd
}

/// A front-end, a connection, and the process that serves it.
fn begin(table: bool) -> (Guest, UnixStream, Process) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let process = Process::first(&ours);
    let raw = RawFrontend::new(theirs, SOON).unwrap();
    let front = Frontend::handshake(raw, everything()).unwrap();
    let mut guest = Guest::new(front, &[(0, 1 << 20), (1 << 30, 1 << 20)]);
    guest.share();
    if table {
        let table = guest.front.get_inflight(3, 16).unwrap();
        guest.front.set_inflight(&table).unwrap();
    }
    for queue in 0..2 {
        guest.queue(16);
        guest.start(queue);
    }
    guest.front.set_status(15).unwrap();
    guest.front.set_mtu(1400).unwrap();
    (guest, ours, process)
}

fn goes_on_in_a_successor(table: bool) {
    let (mut guest, connection, mut process) = begin(table);
    let channel = guest.front.backend_channel(SOON).unwrap();
    // Said of a vring that does not run yet; it must not be forgotten.
    guest
        .front
        .set_vring(Request::SET_VRING_BASE, 2, 0x4711)
        .unwrap();
    for round in 0..3u8 {
        guest.echo(0, &[round]);
        process.echo.conduct(Conduct::Hold);
        drop(process.echo.take_seen());
        for n in 0..4u8 {
            guest.offer(0, &[round, n]);
        }
        eventually("four in flight", || process.echo.seen() == 4);
        let second = process.echo.take_seen()[1].1;
        assert!(process.echo.finish(0, second));
        let (stored, lost) = process.kill();
        assert_eq!(lost, 3);
        // Said while nobody is there to hear it.
        guest.offer(1, b"in between");
        process = Process::successor(&connection, load(stored).unwrap()).unwrap();
        guest.settle(0);
        guest.settle(1);
        let seen = process.echo.take_seen().into_iter();
        let again: Vec<Vec<u8>> = seen.filter(|s| s.0 == 0).map(|s| s.2).collect();
        assert_eq!(again, [[round, 0], [round, 2], [round, 3]]);
        // The conversation goes on where it was: features, acknowledgements, diverted messages.
        guest.front.enable(1, false).unwrap();
        guest.front.enable(1, true).unwrap();
        assert!(guest.front.set_vring(Request::SET_VRING_NUM, 2, 3).is_err());
        assert_eq!(guest.front.status().unwrap(), 15);
        assert_eq!(process.echo.mtus(), [1400], "said once, known ever after");
        assert_eq!(guest.front.config(0, 4).unwrap(), [0, 1, 2, 3]);
        assert!(process.session.lock().unwrap().notify_config_change());
        assert_eq!(channel.recv().unwrap().request, 2);
        guest.echo(1, b"and work too");
    }
    assert_eq!(guest.front.stop_queue(2).unwrap(), 0x4711);
    assert_eq!(guest.front.stop_queue(0).unwrap(), 15);
    assert!(!guest.front.raw().closes_within(Duration::ZERO).unwrap());
    drop(process.kill());
}

#[test]
fn a_session_goes_on_with_tables_of_our_own() {
    goes_on_in_a_successor(false);
}

#[test]
fn a_session_goes_on_with_the_front_ends_table() {
    goes_on_in_a_successor(true);
}

#[test]
fn an_interrupt_owed_by_the_dead_is_delivered_by_the_living() {
    let (mut guest, connection, process) = begin(false);
    guest.echo(0, b"one");
    // Died between the used index and the call: the guest sleeps, its answer lies there.
    while guest.drivers[0].events().called(Duration::ZERO).unwrap() {}
    let (stored, _) = process.kill();
    let process = Process::successor(&connection, load(stored).unwrap()).unwrap();
    assert!(guest.drivers[0].events().called(SOON).unwrap());
    drop(process.kill());
}

#[test]
fn a_record_of_a_newer_build_is_refused() {
    let (_guest, _connection, process) = begin(false);
    let (parcel, _) = process.kill();
    let newer = rewritten(&parcel, |d| d["version"] = (VERSION + 1).into());
    let refused = load(newer).unwrap_err();
    assert!(
        matches!(refused, KeepError::Newer(v) if v == VERSION + 1),
        "{refused}"
    );
}

#[test]
fn a_record_of_the_first_build_is_read() {
    let (mut guest, connection, process) = begin(false);
    let (parcel, _) = process.kill();
    let old = rewritten(&parcel, |document| {
        document["version"] = 1.into();
        let body = document["body"].as_object_mut().unwrap();
        assert!(body.remove("settings").is_some() && body.remove("identity").is_some());
    });
    let process = Process::successor(&connection, load(old).unwrap()).unwrap();
    guest.echo(0, b"goes on");
    assert!(process.echo.mtus().is_empty());
    drop(process.kill());
}

#[test]
fn every_fd_is_needed_and_a_lost_one_is_named() {
    let (_guest, connection, process) = begin(true);
    let (parcel, _) = process.kill();
    let mut names = Vec::new();
    let _ = rewritten(&parcel, |d| {
        names = serde_json::from_value(d["fds"].clone()).unwrap();
    });
    let expected = ["mem.0", "mem.1", "inflight", "vring.0.kick", "vring.1.call"];
    assert!(
        expected
            .iter()
            .all(|name| names.iter().any(|n: &String| n == name))
    );
    for (at, name) in names.iter().enumerate() {
        // Lost on the way: fewer come than the document names.
        let fds = parcel::open(&parcel).unwrap();
        let short: Vec<_> = fds
            .iter()
            .take(at + 1)
            .map(std::os::fd::AsFd::as_fd)
            .collect();
        match load(parcel::pack(&short).unwrap()) {
            Err(KeepError::MissingFd(lost)) => assert_eq!(lost, *name),
            other => panic!("{name}: {other:?}"),
        }
    }
    // What does not fit is refused as well, and leaves nothing attached.
    let unfit = [
        rewritten(&parcel, |d| {
            d["body"]["vrings"][1]["addresses"]["used"] = 0.into()
        }),
        rewritten(&parcel, |d| d["body"]["identity"] = "another disk".into()),
    ];
    for (at, parcel) in unfit.into_iter().enumerate() {
        let echo = Echo::on(&Host::start(Idle::Interrupt).unwrap(), 3);
        let alarm = Arc::new(Alarm::new(connection.try_clone().unwrap()));
        let kept = load(parcel).unwrap();
        let restored = Session::restore(Arc::clone(&echo), alarm, Arc::default(), kept, None);
        assert!(matches!(restored, Err(KeepError::Unfit(_))), "{at}");
        assert_eq!(echo.disconnects(), u64::from(at == 0));
    }
}

#[test]
fn a_record_that_is_none_is_refused() {
    let junk: [&[u8]; 4] = [b"", b"{", b"{\"version\":1}", b"\xff\xfe\x00"];
    for bytes in junk {
        let parcel = parcel::pack(&[std::os::fd::AsFd::as_fd(&document(bytes))]).unwrap();
        assert!(matches!(Kept::open(parcel), Err(KeepError::Format(_))));
    }
    let empty = parcel::pack(&[]).unwrap();
    assert!(matches!(Kept::open(empty), Err(KeepError::MissingFd(_))));
}
