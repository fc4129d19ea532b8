//! The client against servers that others wrote: nbdkit, qemu-nbd and nbd-server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::*;
use crate::disk::{Disk, Serial};
use crate::engine::router::Router;
use crate::engine::uring::Uring;
use crate::request::Status;
use crate::storage::nbd::NbdError;
use crate::testing::{Bench, DISCARD, FLUSH, IN, OUT, WRITE_ZEROES};

pub(super) const SIZE: u64 = 16 << 20;

pub(super) type Engine = Router<Uring>;

/// A server, killed when dropped.
struct Server {
    child: Child,
    address: String,
    /// Where a server that goes to the background writes its number.
    pid: Option<PathBuf>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let pid = self.pid.as_ref().and_then(|p| fs::read_to_string(p).ok());
        if let Some(pid) = pid {
            let _ = Command::new("kill").arg(pid.trim()).status();
        }
    }
}

/// The kinds of servers, each serving `image` from a socket or port in `dir`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nbdkit,
    QemuNbd,
    QemuNbdTcp,
    NbdServer,
}

pub(super) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn start(kind: Kind, dir: &Path, image: &Path, read_only: bool) -> Option<Server> {
    let socket = dir.join("nbd.sock");
    let _ = fs::remove_file(&socket);
    let (socket, image) = (socket.to_str().unwrap(), image.to_str().unwrap());
    let unix = format!("nbd:unix:{socket}:e");
    let port = free_port().to_string();
    let ro = |flag| if read_only { vec![flag] } else { Vec::new() };
    let (program, args, address) = match kind {
        Kind::Nbdkit => {
            let mut args = ro("-r");
            args.extend(["-f", "-U", socket, "-e", "e", "file", image]);
            ("nbdkit", args, unix)
        }
        Kind::QemuNbd => {
            let mut args = ro("-r");
            args.extend(["-t", "-e", "8", "-f", "raw", "-x", "e", "-k", socket, image]);
            ("qemu-nbd", args, unix)
        }
        Kind::QemuNbdTcp => {
            let mut args = ro("-r");
            args.extend([
                "-t",
                "-e",
                "8",
                "-f",
                "raw",
                "-b",
                "127.0.0.1",
                "-p",
                &port,
                image,
            ]);
            ("qemu-nbd", args, format!("nbd://127.0.0.1:{port}"))
        }
        Kind::NbdServer => {
            let config = dir.join("nbd-server.conf");
            let ro = if read_only { "readonly = true\n" } else { "" };
            let text = format!(
                "[generic]\nport = {port}\nunixsock = {socket}\nallowlist = true\n\
                 [e]\nexportname = {image}\nflush = true\nfua = true\ntrim = true\n{ro}"
            );
            fs::write(&config, text).unwrap();
            let config = config.to_str().unwrap().to_owned();
            let args = vec!["-C", Box::leak(config.into_boxed_str()), "-p"];
            let pid = dir.join("nbd.pid").to_str().unwrap().to_owned();
            let mut args = args;
            args.push(Box::leak(pid.into_boxed_str()));
            ("nbd-server", args, unix)
        }
    };
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match child {
        Ok(child) => Some(Server {
            child,
            address,
            pid: (kind == Kind::NbdServer).then(|| dir.join("nbd.pid")),
        }),
        Err(error) => {
            println!("skipped: no {program} here: {error}");
            None
        }
    }
}

/// Connect, once the server listens.
fn connect(server: &Server, read_only: bool, connections: u8) -> Disk {
    let address = server.address.parse().unwrap();
    let mut last = None;
    for _ in 0..600 {
        let serial = Serial::new("nbd").unwrap();
        match Export::disk(&address, read_only, connections, serial) {
            Ok(disk) => return disk,
            Err(error) => last = Some(error.to_string()),
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("{last:?}");
}

pub(super) fn bench(disk: Disk) -> Bench<Engine> {
    Bench::new(Router::new(Uring::new(1024).unwrap()), disk, 128)
}

/// The next number of splitmix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub(super) fn image(dir: &Path) -> PathBuf {
    let path = dir.join("image.raw");
    fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
    path
}

/// Random requests, `depth` at a time and not overlapping, against a model.
pub(super) fn work(bench: &mut Bench<Engine>, model: &mut [u8], rounds: usize, state: &mut u64) {
    const DEPTH: u64 = 16;
    let slice = SIZE / DEPTH;
    // One buffer a slot, as the memory of the bench is only handed out.
    let slots: Vec<_> = (0..DEPTH)
        .map(|_| bench.ram.place(300_000, 4096, 0))
        .collect();
    for _ in 0..rounds {
        let mut reads = Vec::new();
        for (i, slot) in (0..DEPTH).zip(&slots) {
            let sectors = 1 + random(state)
                % if random(state).is_multiple_of(4) {
                    500
                } else {
                    16
                };
            let len = u32::try_from(sectors * 512).unwrap();
            let at = i * slice + random(state) % (slice / 512 - sectors) * 512;
            let range = usize::try_from(at).unwrap()..usize::try_from(at).unwrap() + len as usize;
            let cut = 512.min(len / 2);
            let data = [slot.take(cut), slot.skip(cut).take(len - cut)];
            let laid = match random(state) % 8 {
                0..4 => {
                    let byte = random(state).to_le_bytes()[0];
                    let bytes: Vec<u8> =
                        (0..len).map(|i| (i >> 3).to_le_bytes()[0] ^ byte).collect();
                    bench.ram.fill(&data, &bytes);
                    model[range].copy_from_slice(&bytes);
                    bench.ram.request(OUT, at / 512, &data)
                }
                4 => {
                    model[range].fill(0);
                    let unmap = u32::from(random(state).is_multiple_of(2));
                    let sectors = u32::try_from(sectors).unwrap();
                    bench
                        .ram
                        .ranges(WRITE_ZEROES, &[(at / 512, sectors, unmap)])
                }
                _ => {
                    reads.push((data, range));
                    bench.ram.request(IN, at / 512, &data)
                }
            };
            assert_eq!(bench.start(&laid), Ok(None));
        }
        let ends = bench.drain();
        assert!(ends.iter().all(|e| e.status == Status::Ok), "{ends:?}");
        for (data, range) in reads {
            assert!(bench.ram.bytes(&data) == model[range.clone()], "{range:?}");
        }
    }
}

fn kinds() -> [Kind; 4] {
    [
        Kind::Nbdkit,
        Kind::QemuNbd,
        Kind::QemuNbdTcp,
        Kind::NbdServer,
    ]
}

#[test]
fn random_requests_end_as_they_should_with_every_server() {
    for kind in kinds() {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path());
        let Some(server) = start(kind, dir.path(), &image, false) else {
            continue;
        };
        let disk = connect(&server, false, 3);
        assert_eq!(disk.size(), SIZE, "{kind:?}");
        let mut bench = bench(disk);
        let mut model = vec![0; usize::try_from(SIZE).unwrap()];
        let mut state = 42;
        work(&mut bench, &mut model, 12, &mut state);
        bench.target.set_write_through(true);
        work(&mut bench, &mut model, 3, &mut state);
        let flush = bench.ram.request(FLUSH, 0, &[]);
        assert_eq!(bench.run(&flush).status, Status::Ok, "{kind:?}");
        assert!(fs::read(&image).unwrap() == model, "{kind:?}");
        if bench.target.limits().discard {
            let discard = bench.ram.ranges(DISCARD, &[(0, 2048, 0)]);
            let end = bench.run(&discard);
            assert!(
                matches!(end.status, Status::Ok | Status::Unsupported),
                "{kind:?} {end:?}"
            );
        }
        println!("{kind:?}: {:?}", bench.target.shape());
    }
}

#[test]
fn a_read_only_export_is_served_read_only_or_not_at_all() {
    for kind in kinds() {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path());
        fs::write(&image, vec![7; usize::try_from(SIZE).unwrap()]).unwrap();
        let Some(server) = start(kind, dir.path(), &image, true) else {
            continue;
        };
        let mut bench = bench(connect(&server, true, 1));
        assert!(bench.target.read_only());
        let data = [bench.ram.place(4096, 512, 0)];
        let read = bench.ram.request(IN, 0, &data);
        assert_eq!(bench.run(&read).status, Status::Ok, "{kind:?}");
        assert_eq!(bench.ram.bytes(&data), [7; 4096]);
        let address = server.address.parse().unwrap();
        let error = Export::disk(&address, false, 1, Serial::new("x").unwrap()).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, NbdError::ReadOnly { .. }),
            "{kind:?}: {text}"
        );
    }
}

#[test]
fn an_export_that_is_not_there_is_refused_by_name() {
    for kind in [Kind::QemuNbd, Kind::NbdServer] {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path());
        let Some(server) = start(kind, dir.path(), &image, false) else {
            continue;
        };
        drop(connect(&server, false, 1));
        let wrong = server.address.replace(":e", ":another").parse().unwrap();
        let error = Export::disk(&wrong, false, 1, Serial::new("x").unwrap()).unwrap_err();
        assert!(error.to_string().contains("another"), "{kind:?}: {error}");
    }
}

#[test]
fn a_server_that_is_killed_and_comes_back_costs_nothing_but_time() {
    for kind in [Kind::Nbdkit, Kind::QemuNbd, Kind::QemuNbdTcp] {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path());
        let Some(mut server) = start(kind, dir.path(), &image, false) else {
            continue;
        };
        let mut bench = bench(connect(&server, false, 2));
        // Durable writes: nothing can be lost with the server.
        bench.target.set_write_through(true);
        let mut model = vec![0; usize::try_from(SIZE).unwrap()];
        let mut state = 7;
        for _ in 0..3 {
            work(&mut bench, &mut model, 2, &mut state);
            // Killed with requests in flight.
            let slots: Vec<_> = (0..32).map(|_| bench.ram.place(65536, 4096, 0)).collect();
            for (i, slot) in slots.iter().enumerate() {
                let bytes = vec![random(&mut state).to_le_bytes()[0]; 65536];
                bench.ram.fill(&[*slot], &bytes);
                model[i * 65536..(i + 1) * 65536].copy_from_slice(&bytes);
                let write = bench.ram.request(OUT, i as u64 * 128, &[*slot]);
                assert_eq!(bench.start(&write), Ok(None));
            }
            bench.io.submit();
            let address = server.address.clone();
            drop(server);
            server = if kind == Kind::QemuNbdTcp {
                let port = address.rsplit(':').next().unwrap().to_owned();
                let image = image.to_str().unwrap();
                let args = [
                    "-t",
                    "-e",
                    "8",
                    "-f",
                    "raw",
                    "-b",
                    "127.0.0.1",
                    "-p",
                    &port,
                    image,
                ];
                let child = Command::new("qemu-nbd").args(args).spawn().unwrap();
                let pid = None;
                Server {
                    child,
                    address,
                    pid,
                }
            } else {
                start(kind, dir.path(), &image, false).unwrap()
            };
            let ends = bench.drain();
            assert!(
                ends.iter().all(|e| e.status == Status::Ok),
                "{kind:?} {ends:?}"
            );
        }
        let flush = bench.ram.request(FLUSH, 0, &[]);
        assert_eq!(bench.run(&flush).status, Status::Ok, "{kind:?}");
        assert!(fs::read(&image).unwrap() == model, "{kind:?}");
    }
}

#[test]
fn a_qcow2_image_comes_through_qemu_nbd_and_what_was_flushed_survives_its_kill() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (image, socket, raw) = (path("image.qcow2"), path("nbd.sock"), path("raw"));
    let qemu_img = |args: &[&str]| Command::new("qemu-img").args(args).output();
    match qemu_img(&["create", "-q", "-f", "qcow2", &image, &SIZE.to_string()]) {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => {
            println!("skipped: qemu-img cannot be run: {error}");
            return;
        }
    }
    // The line of README.md.
    let args = ["-t", "-k", &socket, "-f", "qcow2", &image];
    let child = Command::new("qemu-nbd").args(args).spawn().unwrap();
    let server = Server {
        child,
        address: format!("nbd:unix:{socket}"),
        pid: None,
    };
    let mut bench = bench(connect(&server, false, 1));
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    work(&mut bench, &mut model, 40, &mut 7);
    let flush = bench.ram.request(FLUSH, 0, &[]);
    assert_eq!(bench.run(&flush).status, Status::Ok);
    drop(server);
    let made = qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &image, &raw]).unwrap();
    assert!(made.status.success(), "{made:?}");
    assert!(fs::read(&raw).unwrap() == model);
}
