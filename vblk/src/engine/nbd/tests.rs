//! The client against a server of the test's own, which keeps the protocol or breaks it.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::*;
use crate::disk::{Disk, Serial};
use crate::engine::router::Router;
use crate::engine::uring::Uring;
use crate::request::Status;
use crate::storage::nbd::address::Address;
use crate::testing::{Bench, DISCARD, End, FLUSH, IN, OUT, WRITE_ZEROES};

const SIZE: u64 = 8 << 20;
pub(super) const ALL: u16 =
    flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES;

type Engine = Router<Uring>;

/// A request as the server sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    flags: u16,
    pub(super) kind: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
}

/// A server of one export, which answers each connection with a script of its own.
struct Server {
    path: PathBuf,
    _dir: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

type Script = Box<dyn FnOnce(&mut UnixStream) + Send>;

impl Server {
    /// For each connection in turn: flags and size of the export, and what to do with it.
    fn new(connections: Vec<(u16, u64, Script)>) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            for (flags, size, script) in connections {
                let (mut stream, _) = listener.accept().unwrap();
                if greet(&mut stream, flags, size) {
                    script(&mut stream);
                }
            }
        });
        Server {
            path,
            _dir: dir,
            thread: Some(thread),
        }
    }

    fn one(flags: u16, script: impl FnOnce(&mut UnixStream) + Send + 'static) -> Server {
        Server::new(vec![(flags, SIZE, Box::new(script))])
    }

    fn bench(&self) -> Bench<Engine> {
        let address: Address = format!("nbd:unix:{}", self.path.display()).parse().unwrap();
        let serial = Serial::new("nbd").unwrap();
        let disk: Disk = Export::disk(&address, false, 1, serial).unwrap();
        Bench::new(Router::new(Uring::new(256).unwrap()), disk, 64)
    }

    fn join(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

fn read<const N: usize>(stream: &mut UnixStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// A handshake with structured replies, NBD_OPT_GO and nothing else.
pub(super) fn greet(stream: &mut UnixStream, flags: u16, size: u64) -> bool {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").unwrap();
    let _client: [u8; 4] = read(stream);
    loop {
        let head: [u8; 16] = read(stream);
        let kind = u32::from_be_bytes(head[8..12].try_into().unwrap());
        let len = u32::from_be_bytes(head[12..].try_into().unwrap());
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data).unwrap();
        let mut reply = |answer: u32, data: &[u8]| {
            let mut out = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
            out.extend(kind.to_be_bytes());
            out.extend(answer.to_be_bytes());
            out.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
            out.extend(data);
            stream.write_all(&out).unwrap();
        };
        if kind == 7 {
            let mut info = 0u16.to_be_bytes().to_vec();
            info.extend(size.to_be_bytes());
            info.extend(flags.to_be_bytes());
            reply(3, &info);
            reply(1, &[]);
            return true;
        }
        reply(1, &[]);
    }
}

/// The next request; None at the end of the connection.
pub(super) fn asked(stream: &mut UnixStream) -> Option<Asked> {
    let mut head = [0; 28];
    stream.read_exact(&mut head).ok()?;
    assert_eq!(head[..4], [0x25, 0x60, 0x95, 0x13]);
    Some(Asked {
        flags: u16::from_be_bytes(head[4..6].try_into().unwrap()),
        kind: u16::from_be_bytes(head[6..8].try_into().unwrap()),
        cookie: u64::from_be_bytes(head[8..16].try_into().unwrap()),
        offset: u64::from_be_bytes(head[16..24].try_into().unwrap()),
        len: u32::from_be_bytes(head[24..].try_into().unwrap()),
    })
}

pub(super) fn simple(stream: &mut UnixStream, cookie: u64, error: u32) {
    let mut out = vec![0x67, 0x44, 0x66, 0x98];
    out.extend(error.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    let _ = stream.write_all(&out);
}

pub(super) fn chunk(stream: &mut UnixStream, cookie: u64, last: bool, kind: u16, payload: &[u8]) {
    let mut out = vec![0x66, 0x8e, 0x33, 0xef];
    out.extend(u16::from(last).to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    out.extend(payload);
    let _ = stream.write_all(&out);
}

pub(super) fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = offset.to_be_bytes().to_vec();
    out.extend(bytes);
    out
}

/// Serve `store` as the protocol says, until the connection ends or after `count` requests.
fn serve(stream: &mut UnixStream, store: &mut [u8], count: usize) -> Vec<Asked> {
    let mut seen = Vec::new();
    while seen.len() < count
        && let Some(ask) = asked(stream)
    {
        let at = usize::try_from(ask.offset).unwrap();
        let range = at..at + ask.len as usize;
        match ask.kind {
            0 => {
                // Two chunks in the wrong order, the second a hole if it is one.
                let half = range.len() / 1024 * 512;
                let (a, b) = store[range.clone()].split_at(half);
                chunk(
                    stream,
                    ask.cookie,
                    false,
                    1,
                    &data(ask.offset + a.len() as u64, b),
                );
                if a.iter().all(|b| *b == 0) && !a.is_empty() {
                    let mut hole = ask.offset.to_be_bytes().to_vec();
                    hole.extend(u32::try_from(a.len()).unwrap().to_be_bytes());
                    chunk(stream, ask.cookie, true, 2, &hole);
                } else if a.is_empty() {
                    chunk(stream, ask.cookie, true, 0, &[]);
                } else {
                    chunk(stream, ask.cookie, true, 1, &data(ask.offset, a));
                }
            }
            1 => {
                let mut bytes = vec![0; ask.len as usize];
                stream.read_exact(&mut bytes).unwrap();
                store[range].copy_from_slice(&bytes);
                simple(stream, ask.cookie, 0);
            }
            2 => {
                seen.push(ask);
                return seen;
            }
            3 => simple(stream, ask.cookie, 0),
            4 | 6 => {
                store[range].fill(0);
                simple(stream, ask.cookie, 0);
            }
            other => panic!("command {other}"),
        }
        seen.push(ask);
    }
    seen
}

fn pattern(seed: u8, len: u32) -> Vec<u8> {
    (0..len)
        .map(|i| (i >> 2).to_le_bytes()[0] ^ i.to_le_bytes()[1] ^ seed)
        .collect()
}

fn write(bench: &mut Bench<Engine>, sector: u64, bytes: &[u8]) -> End {
    let len = u32::try_from(bytes.len()).unwrap();
    let first = len / 3;
    let data = [
        bench.ram.place(first, 1, 1),
        bench.ram.place(len - first, 1, 0),
    ];
    bench.ram.fill(&data, bytes);
    let write = bench.ram.request(OUT, sector, &data);
    bench.run(&write)
}

fn read_back(bench: &mut Bench<Engine>, sector: u64, len: u32) -> (End, Vec<u8>) {
    let data = [bench.ram.place(700, 1, 0), bench.ram.place(len - 700, 1, 3)];
    let read = bench.ram.request(IN, sector, &data);
    let end = bench.run(&read);
    (end, bench.ram.bytes(&data))
}

#[test]
fn what_is_written_is_read_back_small_and_large() {
    let (tell, told) = mpsc::channel();
    let server = Server::one(ALL, move |stream| {
        let mut store = vec![0; usize::try_from(SIZE).unwrap()];
        tell.send(serve(stream, &mut store, usize::MAX)).unwrap();
    });
    let mut bench = server.bench();
    for (i, len) in [1024, 4096, 32 * 1024, 33 * 1024, 256 * 1024, 3 << 20]
        .into_iter()
        .enumerate()
    {
        let bytes = pattern(u8::try_from(i).unwrap(), len);
        let end = write(&mut bench, 8, &bytes);
        assert_eq!((end.status, end.bytes), (Status::Ok, len.into()), "{len}");
        let (end, got) = read_back(&mut bench, 8, len);
        assert_eq!((end.status, end.written), (Status::Ok, len + 1), "{len}");
        assert!(got == bytes, "{len}");
    }
    // Zeroes come as a hole.
    assert!(read_back(&mut bench, 8192, 65536).1 == vec![0; 65536]);
    let flush = bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(bench.run(&flush).status, Status::Ok);
    bench.target.set_write_through(true);
    assert_eq!(write(&mut bench, 0, &[1; 1024]).status, Status::Ok);
    let zero = bench.ram.ranges(WRITE_ZEROES, &[(0, 8, 0)]);
    assert_eq!(bench.run(&zero).status, Status::Ok);
    let discard = bench.ram.ranges(DISCARD, &[(8, 8, 0)]);
    assert_eq!(bench.run(&discard).status, Status::Ok);
    drop(bench);
    let seen = told.recv().unwrap();
    let tail: Vec<_> = seen
        .iter()
        .map(|a| (a.kind, a.flags))
        .skip(seen.len() - 6)
        .collect();
    // Flush; durable write; zeroes that keep their space, and the flush that makes them durable
    // (their own FUA is not relied on); trim; goodbye.
    assert_eq!(tail, [(3, 0), (1, 1), (6, 3), (3, 0), (4, 1), (2, 0)]);
    server.join();
}

#[test]
fn many_requests_leave_with_one_send_and_come_back_in_any_order() {
    let server = Server::one(ALL, |stream| {
        let all: Vec<_> = (0..16).map(|_| asked(stream).unwrap()).collect();
        for ask in all.iter().rev() {
            let bytes = vec![u8::try_from(ask.offset / 4096).unwrap(); 4096];
            chunk(stream, ask.cookie, true, 1, &data(ask.offset, &bytes));
        }
        asked(stream);
    });
    let mut bench = server.bench();
    let data: Vec<_> = (0..16).map(|_| bench.ram.place(4096, 4096, 0)).collect();
    for (i, seg) in data.iter().enumerate() {
        let read = bench.ram.request(IN, i as u64 * 8, &[*seg]);
        assert_eq!(bench.start(&read), Ok(None));
    }
    let ends = bench.drain();
    assert!(ends.len() == 16 && ends.iter().all(|e| e.status == Status::Ok));
    for (i, seg) in data.iter().enumerate() {
        assert_eq!(
            bench.ram.bytes(&[*seg]),
            vec![u8::try_from(i).unwrap(); 4096]
        );
    }
    drop(bench);
    server.join();
}

#[test]
fn errors_are_the_requests_own_and_the_connection_goes_on() {
    let server = Server::one(ALL, |stream| {
        let ask = asked(stream).unwrap();
        let mut error = 28u32.to_be_bytes().to_vec();
        error.extend([0, 5]);
        error.extend(b"is so");
        chunk(stream, ask.cookie, true, 0x8001, &error);
        let ask = asked(stream).unwrap();
        simple(stream, ask.cookie, 5);
        let mut store = vec![9; 65536];
        serve(stream, &mut store, usize::MAX);
    });
    let mut bench = server.bench();
    assert_eq!(read_back(&mut bench, 0, 4096).0.errno, Some(28));
    let flush = bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(bench.run(&flush).errno, Some(5));
    assert!(read_back(&mut bench, 0, 4096).1 == vec![9; 4096]);
    drop(bench);
    server.join();
}

#[test]
fn without_fua_a_durable_write_is_flushed_before_it_completes() {
    let (tell, told) = mpsc::channel();
    let server = Server::one(ALL & !flag::SEND_FUA, move |stream| {
        let mut store = vec![0; 65536];
        tell.send(serve(stream, &mut store, usize::MAX)).unwrap();
    });
    let mut bench = server.bench();
    bench.target.set_write_through(true);
    assert_eq!(write(&mut bench, 0, &[1; 4096]).status, Status::Ok);
    drop(bench);
    let kinds: Vec<_> = told
        .recv()
        .unwrap()
        .iter()
        .map(|a| (a.kind, a.flags))
        .collect();
    assert_eq!(kinds, [(1, 0), (3, 0), (2, 0)]);
    server.join();
}

/// A way to break the protocol, by name.
type Breach = (&'static str, fn(&mut UnixStream, Asked));

/// Each way to break the protocol: what the server says to a read of 4 KiB at 0.
fn broken_replies() -> Vec<Breach> {
    vec![
        ("no magic", |s, _| s.write_all(&[7; 64]).unwrap()),
        ("unknown cookie", |s, a| {
            chunk(s, a.cookie ^ 1, true, 1, &data(0, &[1; 4096]))
        }),
        ("stale serial", |s, a| {
            chunk(s, a.cookie ^ 1 << 40, true, 1, &data(0, &[1; 4096]))
        }),
        ("no data", |s, a| chunk(s, a.cookie, true, 0, &[])),
        ("half", |s, a| {
            chunk(s, a.cookie, true, 1, &data(0, &[1; 2048]))
        }),
        ("too much", |s, a| {
            chunk(s, a.cookie, true, 1, &data(0, &[1; 4608]))
        }),
        ("before", |s, a| {
            chunk(
                s,
                a.cookie,
                true,
                1,
                &data(a.offset.wrapping_sub(512), &[1; 512]),
            )
        }),
        ("beyond", |s, a| {
            chunk(s, a.cookie, true, 1, &data(4096, &[1; 512]))
        }),
        ("twice", |s, a| {
            chunk(s, a.cookie, false, 1, &data(0, &[1; 2048]));
            chunk(s, a.cookie, true, 1, &data(1024, &[1; 2048]));
        }),
        ("huge chunk", |s, a| {
            let mut out = vec![0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1];
            out.extend(a.cookie.to_be_bytes());
            out.extend(u32::MAX.to_be_bytes());
            out.extend([0; 8]);
            s.write_all(&out).unwrap();
        }),
        ("huge hole", |s, a| {
            let mut hole = 0u64.to_be_bytes().to_vec();
            hole.extend(u32::MAX.to_be_bytes());
            chunk(s, a.cookie, true, 2, &hole);
        }),
        ("unknown kind", |s, a| chunk(s, a.cookie, true, 99, &[0; 8])),
        ("simple", |s, a| simple(s, a.cookie, 0)),
        ("shutdown", |s, a| {
            let mut error = 108u32.to_be_bytes().to_vec();
            error.extend([0, 0]);
            chunk(s, a.cookie, true, 0x8001, &error);
        }),
        ("hang up", |_, _| {}),
        ("half a head", |s, _| s.write_all(&[0x66, 0x8e]).unwrap()),
    ]
}

#[test]
fn a_server_that_breaks_the_protocol_is_left_and_the_request_asked_anew() {
    for (name, reply) in broken_replies() {
        let server = Server::new(vec![
            (
                ALL,
                SIZE,
                Box::new(move |s: &mut UnixStream| {
                    let ask = asked(s).unwrap();
                    reply(s, ask);
                    if !matches!(name, "hang up" | "half a head") {
                        // It is the client that ends it.
                        while asked(s).is_some_and(|a| a.kind != 2) {}
                    }
                }),
            ),
            (
                ALL,
                SIZE,
                Box::new(|s: &mut UnixStream| {
                    serve(s, &mut vec![3; 65536], usize::MAX);
                }),
            ),
        ]);
        let mut bench = server.bench();
        let (end, bytes) = read_back(&mut bench, 0, 4096);
        assert_eq!(end.status, Status::Ok, "{name}");
        assert!(bytes == vec![3; 4096], "{name}");
        let crate::storage::Storage::Nbd(export) = bench.target.storage() else {
            unreachable!()
        };
        assert_eq!(export.shared().health().losses, 1, "{name}");
        drop(bench);
        server.join();
    }
}

#[test]
fn what_was_in_flight_is_sent_anew_in_its_order() {
    let (tell, told) = mpsc::channel();
    let server = Server::new(vec![
        (
            ALL,
            SIZE,
            Box::new(|s: &mut UnixStream| {
                let ask = asked(s).unwrap();
                let mut rest = vec![0; ask.len as usize];
                s.read_exact(&mut rest).unwrap();
            }),
        ),
        (
            ALL,
            SIZE,
            Box::new(move |s: &mut UnixStream| {
                let mut store = vec![0; 1 << 20];
                let seen = serve(s, &mut store, usize::MAX);
                tell.send((seen, store)).unwrap();
            }),
        ),
    ]);
    let mut bench = server.bench();
    let mut expected = vec![0; 1 << 20];
    for i in 0..8u8 {
        let len = if i % 2 == 0 { 4096 } else { 65536 };
        let data = bench.ram.place(len, 4096, 0);
        let bytes = pattern(i, len);
        bench.ram.fill(&[data], &bytes);
        let at = usize::from(i) * 65536;
        expected[at..at + bytes.len()].copy_from_slice(&bytes);
        let write = bench.ram.request(OUT, u64::from(i) * 128, &[data]);
        assert_eq!(bench.start(&write), Ok(None));
    }
    let ends = bench.drain();
    assert!(
        ends.len() == 8 && ends.iter().all(|e| e.status == Status::Ok),
        "{ends:?}"
    );
    drop(bench);
    let (seen, store) = told.recv().unwrap();
    let offsets: Vec<_> = seen
        .iter()
        .filter(|a| a.kind == 1)
        .map(|a| a.offset)
        .collect();
    assert!(offsets.is_sorted() && offsets.len() == 8, "{offsets:?}");
    assert!(store == expected);
    server.join();
}

#[test]
fn a_flush_fails_once_a_server_went_away_with_writes_it_was_not_told_to_flush() {
    let lives = |count| {
        move |s: &mut UnixStream| {
            serve(s, &mut vec![0; 65536], count);
        }
    };
    // Flushed before it went: nothing is lost.
    let server = Server::new(vec![
        (ALL, SIZE, Box::new(lives(2))),
        (ALL, SIZE, Box::new(lives(usize::MAX))),
    ]);
    let mut bench = server.bench();
    let flush = bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(write(&mut bench, 0, &[1; 1024]).status, Status::Ok);
    assert_eq!(bench.run(&flush).status, Status::Ok);
    assert_eq!(read_back(&mut bench, 0, 1024).0.status, Status::Ok);
    assert_eq!(bench.run(&flush).status, Status::Ok);
    drop(bench);
    server.join();
    // Not flushed: what was acknowledged may be gone, and no later flush may say otherwise.
    let server = Server::new(vec![
        (ALL, SIZE, Box::new(lives(1))),
        (ALL, SIZE, Box::new(lives(usize::MAX))),
    ]);
    let mut bench = server.bench();
    let flush = bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(write(&mut bench, 0, &[1; 1024]).status, Status::Ok);
    assert_eq!(read_back(&mut bench, 0, 1024).0.status, Status::Ok);
    assert_eq!(bench.run(&flush).errno, Some(5));
    assert_eq!(bench.run(&flush).errno, Some(5));
    let health = bench.target.storage().health();
    assert!(health.trouble.is_some_and(|t| t.contains("FLUSH fails")) && health.losses == 1);
    drop(bench);
    server.join();
}

#[test]
fn another_image_behind_the_same_address_is_not_served() {
    let server = Server::new(vec![
        (ALL, SIZE, Box::new(|_: &mut UnixStream| {})),
        (ALL, SIZE / 2, Box::new(|_: &mut UnixStream| {})),
        (
            ALL & !flag::SEND_FUA,
            SIZE,
            Box::new(|_: &mut UnixStream| {}),
        ),
        (
            ALL,
            SIZE,
            Box::new(|s: &mut UnixStream| {
                serve(s, &mut vec![5; 65536], usize::MAX);
            }),
        ),
    ]);
    let mut bench = server.bench();
    let (end, bytes) = read_back(&mut bench, 0, 4096);
    assert!(end.status == Status::Ok && bytes == vec![5; 4096]);
    drop(bench);
    server.join();
}

#[test]
fn a_disk_can_be_detached_and_dropped_while_its_server_is_silent() {
    let (tell, told) = mpsc::channel::<()>();
    let server = Server::one(ALL, move |s| {
        let mut all = Vec::new();
        let _ = s.read_to_end(&mut all);
        drop(tell);
    });
    let mut bench = server.bench();
    bench.io.submit();
    bench.io.reap(|_| {});
    bench.io.detach(bench.disk);
    drop(bench);
    assert!(told.recv().is_err());
    server.join();
}

#[test]
fn a_disk_that_is_stopped_does_not_wait_for_a_silent_server() {
    let server = Server::new(vec![
        (
            ALL,
            SIZE,
            Box::new(|s: &mut UnixStream| {
                let mut all = Vec::new();
                let _ = s.read_to_end(&mut all);
            }),
        ),
        (
            ALL,
            SIZE,
            Box::new(|s: &mut UnixStream| {
                serve(s, &mut vec![4; 65536], usize::MAX);
            }),
        ),
    ]);
    let mut bench = server.bench();
    for i in 0..8 {
        let data = bench.ram.place(65536, 4096, 0);
        let request = bench
            .ram
            .request(if i % 2 == 0 { OUT } else { IN }, i * 128, &[data]);
        assert_eq!(bench.start(&request), Ok(None));
    }
    let crate::storage::Storage::Nbd(export) = bench.target.storage() else {
        unreachable!()
    };
    let hurry = export
        .shared()
        .hurry_after(std::time::Duration::from_millis(50));
    let ends = bench.drain();
    assert!(
        ends.len() == 8 && ends.iter().all(|e| e.errno == Some(5)),
        "{ends:?}"
    );
    // A disk that is not stopped after all goes on.
    drop(hurry);
    assert!(read_back(&mut bench, 0, 4096).1 == vec![4; 4096]);
    drop(bench);
    server.join();
}

fn export_of(bench: &Bench<Engine>) -> &Export {
    let crate::storage::Storage::Nbd(export) = bench.target.storage() else {
        unreachable!()
    };
    export
}

/// An export of so many bytes that serves every request of one connection.
fn of_size(size: u64) -> (u16, u64, Script) {
    let serves = move |s: &mut UnixStream| {
        let mut store = vec![6; usize::try_from(size).unwrap()];
        serve(s, &mut store, usize::MAX);
    };
    (ALL, size, Box::new(serves))
}

#[test]
fn a_connection_from_before_the_export_had_grown_is_not_used() {
    let server = Server::new(vec![
        (
            ALL,
            SIZE,
            Box::new(|s: &mut UnixStream| assert!(asked(s).is_none())),
        ),
        of_size(2 * SIZE),
    ]);
    let mut bench = server.bench();
    export_of(&bench).expect(2 * SIZE);
    bench.target.set_size(2 * SIZE);
    assert!(read_back(&mut bench, SIZE / 512, 4096).1 == vec![6; 4096]);
    drop(bench);
    server.join();
}
