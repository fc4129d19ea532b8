//! Several connections to one server: used where it allows them, and each for itself when it
//! breaks.

use std::io::Read;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::servers::{Engine, SIZE, bench, work};
use super::tests::{ALL, asked, chunk, data, greet, simple};
use super::*;
use crate::disk::{Disk, Serial};
use crate::engine::faulty::{Fault, Faulty};
use crate::engine::router::Router;
use crate::engine::uring::Uring;
use crate::request::Status;
use crate::testing::{Bench, FLUSH, IN, OUT};

const MULTI: u16 = ALL | flag::CAN_MULTI_CONN;

/// A connection, as the server sees it.
struct Line {
    stream: UnixStream,
    /// Requests that came.
    asked: AtomicUsize,
    /// Requests it answers; it says nothing to any later one.
    answers: AtomicUsize,
}

#[derive(Default)]
struct Inside {
    store: Mutex<Vec<u8>>,
    lines: Mutex<Vec<Arc<Line>>>,
    /// Bytes that new connections are told of.
    size: AtomicU64,
    /// Held while nobody new is greeted.
    gate: Mutex<()>,
}

/// A server with a thread for each connection and one store.
struct Server {
    path: PathBuf,
    inside: Arc<Inside>,
    _dir: tempfile::TempDir,
}

impl Server {
    fn new(flags: u16) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd");
        let listener = UnixListener::bind(&path).unwrap();
        let inside = Arc::new(Inside::default());
        inside.size.store(SIZE, Ordering::SeqCst);
        inside
            .store
            .lock()
            .unwrap()
            .resize(SIZE.try_into().unwrap(), 0);
        let all = Arc::clone(&inside);
        // Both kinds of threads end with the test's process at the latest.
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                drop(all.gate.lock().unwrap());
                greet(&mut stream, flags, all.size.load(Ordering::SeqCst));
                let line = Arc::new(Line {
                    stream: stream.try_clone().unwrap(),
                    asked: AtomicUsize::new(0),
                    answers: AtomicUsize::new(usize::MAX),
                });
                all.lines.lock().unwrap().push(Arc::clone(&line));
                let all = Arc::clone(&all);
                std::thread::spawn(move || all.serve(&mut stream, &line));
            }
        });
        Server {
            path,
            inside,
            _dir: dir,
        }
    }

    fn disk(&self, connections: u8) -> Disk {
        let address = format!("nbd:unix:{}", self.path.display());
        let serial = Serial::new("nbd").unwrap();
        Export::disk(&address.parse().unwrap(), false, connections, serial).unwrap()
    }

    fn bench(&self, connections: u8) -> Bench<Engine> {
        bench(self.disk(connections))
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Arc<Line>>> {
        self.inside.lines.lock().unwrap()
    }

    fn line(&self, n: usize) -> Arc<Line> {
        Arc::clone(&self.lines()[n])
    }

    /// Turn the worker over until there were `count` connections in all.
    fn await_lines(&self, bench: &mut Bench<impl super::Engine>, count: usize) {
        while self.lines().len() < count {
            turn(bench);
        }
    }

    /// Requests on each connection so far.
    fn asked(&self) -> Vec<usize> {
        let lines = self.lines();
        lines
            .iter()
            .map(|l| l.asked.load(Ordering::SeqCst))
            .collect()
    }
}

impl Inside {
    fn serve(&self, stream: &mut UnixStream, line: &Line) {
        while let Some(ask) = asked(stream) {
            let mut bytes = vec![0; if ask.kind == 1 { ask.len as usize } else { 0 }];
            if ask.kind == 2 || stream.read_exact(&mut bytes).is_err() {
                return;
            }
            let number = line.asked.fetch_add(1, Ordering::SeqCst);
            let at = usize::try_from(ask.offset).unwrap();
            let range = at..at + ask.len as usize;
            let mut store = self.store.lock().unwrap();
            match ask.kind {
                1 => store[range.clone()].copy_from_slice(&bytes),
                6 => store[range.clone()].fill(0),
                _ => {}
            }
            if number >= line.answers.load(Ordering::SeqCst) {
                continue;
            }
            if ask.kind == 0 {
                let found = data(ask.offset, &store[range]);
                drop(store);
                chunk(stream, ask.cookie, true, 1, &found);
            } else {
                drop(store);
                simple(stream, ask.cookie, 0);
            }
        }
    }
}

impl Line {
    /// Answer nothing from now on.
    fn fall_silent(&self) {
        self.answers.store(0, Ordering::SeqCst);
    }

    fn close(&self) {
        self.stream.shutdown(Shutdown::Both).unwrap();
    }
}

/// A turn of the worker.
fn turn(bench: &mut Bench<impl super::Engine>) {
    bench.io.submit();
    bench.io.reap(|f| panic!("{:?} ended", f.kind));
    std::thread::yield_now();
}

/// Start writes of 4 KiB, one for each of `blocks`, of `byte`.
fn start_writes(bench: &mut Bench<impl super::Engine>, blocks: std::ops::Range<u64>, byte: u8) {
    for block in blocks {
        let seg = bench.ram.place(4096, 4096, 0);
        bench.ram.fill(&[seg], &[byte; 4096]);
        let write = bench.ram.request(OUT, block * 8, &[seg]);
        assert_eq!(bench.start(&write), Ok(None));
    }
}

fn all_well(bench: &mut Bench<impl super::Engine>) {
    let ends = bench.drain();
    assert!(ends.iter().all(|e| e.status == Status::Ok), "{ends:?}");
}

fn flush(bench: &mut Bench<Engine>) -> Option<i32> {
    let flush = bench.ram.request(FLUSH, 0, &[]);
    bench.run(&flush).errno
}

fn losses(bench: &Bench<impl super::Engine>) -> u64 {
    bench.target.storage().health().losses
}

#[test]
fn several_connections_are_used_where_the_server_allows_it_and_one_where_not() {
    for (flags, wanted) in [(MULTI, 4), (ALL, 1)] {
        let server = Server::new(flags);
        let mut bench = server.bench(4);
        server.await_lines(&mut bench, wanted);
        let mut model = vec![0; usize::try_from(SIZE).unwrap()];
        work(&mut bench, &mut model, 16, &mut 5);
        let asked = server.asked();
        assert_eq!(asked.len(), wanted, "{asked:?}");
        // Which of them has the least to do is a matter of how fast it answers, but sixteen
        // requests at a time are more than one takes.
        assert!(asked.iter().all(|n| *n > 16), "{asked:?}");
        assert!(*server.inside.store.lock().unwrap() == model);
    }
}

#[test]
fn one_of_several_breaks_under_load_and_only_its_requests_are_sent_anew() {
    let server = Server::new(MULTI);
    let mut bench = server.bench(3);
    server.await_lines(&mut bench, 3);
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    work(&mut bench, &mut model, 4, &mut 1);
    let (mut state, mut live) = (2, vec![0, 1, 2]);
    for round in 0..6 {
        // The server has carried out what came last there, and did not say so.
        let dying = server.line(live.remove(round % 3));
        let others = server.asked().iter().sum::<usize>();
        dying.fall_silent();
        let made = server.lines().len();
        start_writes(&mut bench, 0..24, round.to_le_bytes()[0] + 1);
        model[..24 * 4096].fill(round.to_le_bytes()[0] + 1);
        // The others go on: all that is left is on the silent one.
        let mut ended = 0;
        let left = |d: &Line| d.asked.load(Ordering::SeqCst);
        let before = left(&dying);
        while ended + left(&dying) - before < 24 || ended == 0 {
            bench.io.submit();
            bench.io.reap(|f| {
                assert_eq!(f.status, Status::Ok);
                ended += 1;
            });
            std::thread::yield_now();
        }
        dying.close();
        all_well(&mut bench);
        // Sent twice is what was on it, and nothing else.
        let twice = server.asked().iter().sum::<usize>() - others - 24;
        assert_eq!(twice, 24 - ended);
        server.await_lines(&mut bench, made + 1);
        live.push(made);
        assert_eq!(losses(&bench), round as u64 + 1);
        work(&mut bench, &mut model, 2, &mut state);
    }
    // Writes were acknowledged without a FLUSH all the time, and the server was always there.
    assert_eq!(flush(&mut bench), None);
    assert!(*server.inside.store.lock().unwrap() == model);
    // The last one opened has its share.
    let newest = server.asked().len() - 1;
    work(&mut bench, &mut model, 8, &mut state);
    assert!(server.asked()[newest] > 0, "{:?}", server.asked());
}

/// Two connections, writes acknowledged on both, and one of them made anew.
fn made_anew() -> (Server, Bench<Engine>, Arc<Line>) {
    let server = Server::new(MULTI);
    let mut bench = server.bench(2);
    server.await_lines(&mut bench, 2);
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    work(&mut bench, &mut model, 4, &mut 3);
    let (stays, ends) = (server.line(1), server.line(0));
    stays.fall_silent();
    ends.close();
    server.await_lines(&mut bench, 3);
    (server, bench, stays)
}

#[test]
fn a_flush_is_not_left_to_a_connection_that_may_lead_to_another_server() {
    let (server, mut bench, stale) = made_anew();
    // As after a restart of the server's machine, of which only one connection knows.
    let laid = bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(bench.start(&laid), Ok(None));
    let asked = stale.asked.load(Ordering::SeqCst);
    while stale.asked.load(Ordering::SeqCst) == asked {
        turn(&mut bench);
    }
    for _ in 0..1000 {
        turn(&mut bench);
    }
    assert_eq!(server.asked()[2], 0, "the new one answers for the old ones");
    stale.close();
    let ends = bench.drain();
    assert!(ends.len() == 1 && ends[0].errno == Some(5), "{ends:?}");
    assert_eq!(flush(&mut bench), Some(5));
    // Reads and writes go on.
    let seg = bench.ram.place(4096, 4096, 0);
    let read = bench.ram.request(IN, 0, &[seg]);
    assert_eq!(bench.run(&read).status, Status::Ok);
}

#[test]
fn a_connection_made_anew_is_used_once_another_has_answered() {
    let (server, mut bench, stays) = made_anew();
    stays.answers.store(usize::MAX, Ordering::SeqCst);
    assert_eq!(flush(&mut bench), None);
    let mut model = server.inside.store.lock().unwrap().clone();
    work(&mut bench, &mut model, 4, &mut 8);
    assert!(server.asked()[2] > 0, "{:?}", server.asked());
    assert_eq!((flush(&mut bench), losses(&bench)), (None, 1));
}

#[test]
fn a_connection_that_is_dying_vouches_for_what_it_acknowledged() {
    let server = Server::new(MULTI);
    let engine = Faulty::new(Uring::new(256).unwrap());
    let mut bench = Bench::new(Router::new(engine), server.disk(2), 64);
    // Both acknowledge a write that nobody flushes.
    while server.asked().len() < 2 || server.asked().contains(&0) {
        start_writes(&mut bench, 0..2, 1);
        all_well(&mut bench);
    }
    // The first one answers once more; what it receives after that does not end with it.
    let faulty = bench.io.engine_mut().inner_mut();
    faulty.expect(Verb::Read, Fault::Hang);
    start_writes(&mut bench, 0..1, 2);
    all_well(&mut bench);
    // The server is started anew: the second connection ends, and then the first one, slowly.
    let gate = server.inside.gate.lock().unwrap();
    server.line(1).close();
    while losses(&bench) < 1 {
        turn(&mut bench);
    }
    server.line(0).close();
    let flush = bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(bench.start(&flush), Ok(None));
    while losses(&bench) < 2 {
        turn(&mut bench);
    }
    // What comes meanwhile is no sign that the writes are still there.
    drop(gate);
    server.await_lines(&mut bench, 3);
    for _ in 0..1000 {
        turn(&mut bench);
    }
    bench.io.engine_mut().inner_mut().let_go();
    let ends = bench.drain();
    assert!(ends.len() == 1 && ends[0].errno == Some(5), "{ends:?}");
    assert_eq!(server.asked()[2], 0, "{:?}", server.asked());
}

#[test]
fn an_export_that_has_grown_is_connected_to_anew() {
    for flushed in [true, false] {
        let server = Server::new(MULTI);
        let mut bench = server.bench(2);
        server.await_lines(&mut bench, 2);
        start_writes(&mut bench, 0..2, 5);
        all_well(&mut bench);
        if flushed {
            assert_eq!(flush(&mut bench), None);
        }
        let crate::storage::Storage::Nbd(export) = bench.target.storage() else {
            unreachable!()
        };
        server.inside.size.store(2 * SIZE, Ordering::SeqCst);
        let grown = vec![6; usize::try_from(SIZE).unwrap()];
        server.inside.store.lock().unwrap().extend(grown);
        assert_eq!(export.look().unwrap(), 2 * SIZE);
        assert_eq!(export.shared().size(), SIZE, "nobody asked for it yet");
        export.expect(2 * SIZE);
        export.renew();
        bench.target.set_size(2 * SIZE);
        // Two from before, the one that looked, and two more.
        server.await_lines(&mut bench, 5);
        let seg = bench.ram.place(4096, 4096, 0);
        let read = bench.ram.request(IN, SIZE / 512, &[seg]);
        assert_eq!(bench.run(&read).status, Status::Ok);
        assert_eq!(bench.ram.bytes(&[seg]), vec![6; 4096]);
        assert_eq!(losses(&bench), 0, "they were left, not lost");
        // Which is why the disk is flushed before.
        let expected = if flushed { None } else { Some(5) };
        assert_eq!(flush(&mut bench), expected);
    }
}
