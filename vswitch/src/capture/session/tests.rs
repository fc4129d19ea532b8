//! Captures over a real control socket, from workers on threads of their own.

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::thread;

use pcap_file::pcapng::{Block, PcapNgReader};
use towpath_common::clock::Cycles;
use towpath_common::control::ControlSocket;
use towpath_common::control::server::{self, Patience};

use super::*;
use crate::capture::client::{self, CaptureClientError};
use crate::capture::{Direction, Sight, Taps, api};
use crate::discard::Discard;
use crate::mac::Mac;
use crate::vlan::Vid;

/// Workers that see frames of ports p0 and p1 in turns, as fast as they are asked to.
struct Plane {
    taps: Vec<Mutex<Taps>>,
    /// Frames shown by each worker so far.
    shown: AtomicU64,
    ended: AtomicBool,
    /// Panic when asked for a name.
    faulty: AtomicBool,
    clock: Clock,
}

const BURST: u64 = 32;

impl Plane {
    fn new() -> Arc<Plane> {
        Arc::new(Plane {
            taps: vec![Mutex::default(), Mutex::default()],
            shown: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            faulty: AtomicBool::new(false),
            clock: Clock::new(),
        })
    }

    /// One burst of each worker.
    fn step(&self) {
        for taps in &self.taps {
            let mut taps = taps.lock().unwrap();
            if taps.is_empty() {
                continue;
            }
            taps.burst();
            for i in 0..BURST {
                let sight = Sight {
                    now: self.clock.now(),
                    port: PortNo(u16::from(i % 2 == 1)),
                    direction: Direction::Rx,
                    vid: Vid::new(10),
                    source: Mac([2, 0, 0, 0, 0, 1]),
                    destination: Mac::BROADCAST,
                    discard: (i == 3).then_some(Discard::SourceGuard),
                    len: 60,
                };
                taps.see(&sight, &[0xee; 60], |_| ());
            }
            self.shown.fetch_add(BURST, Ordering::Relaxed);
        }
    }

    fn is_tapped(&self) -> bool {
        self.taps.iter().any(|t| !t.lock().unwrap().is_empty())
    }
}

impl Tapping for Plane {
    fn workers(&self) -> usize {
        self.taps.len()
    }

    fn port(&self, name: &str) -> Option<PortNo> {
        let number = name.strip_prefix('p')?.parse().ok()?;
        (number < 2).then_some(PortNo(number))
    }

    fn port_name(&self, port: PortNo) -> Option<String> {
        assert!(!self.faulty.load(Ordering::Relaxed), "a fault, as told");
        Some(format!("p{}", port.0))
    }

    fn tap(&self, worker: usize, tap: Tap) -> Result<(), String> {
        let mut taps = self.taps[worker].lock().unwrap();
        taps.add(tap).map_err(|_| "full".to_owned())
    }

    fn untap(&self, worker: usize, id: CaptureId) {
        let _ = self.taps[worker].lock().unwrap().remove(id);
    }
}

/// A daemon with nothing but captures.
struct Daemon {
    plane: Arc<Plane>,
    captures: Arc<Captures>,
    path: PathBuf,
    worker: Option<thread::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Daemon {
    /// A client may take as long as it likes: so does a busy machine.
    fn start() -> Daemon {
        Daemon::start_with(Duration::from_secs(1 << 20))
    }

    /// `stall`: how long a client may leave its stream unread.
    fn start_with(stall: Duration) -> Daemon {
        let plane = Plane::new();
        let dir = tempfile::tempdir().unwrap();
        let socket = ControlSocket::bind(&dir.path().join("c.sock")).unwrap();
        let path = socket.path().to_owned();
        let tapping: Arc<dyn Tapping> = Arc::clone(&plane) as _;
        let mut captures = Captures::new(tapping, plane.clock.clone());
        captures.stall = stall;
        let captures = Arc::new(captures);
        let routes = api::table().with_state(Arc::clone(&captures));
        let routes = routes.router("vswitch", "0");
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(2)
                .build()
                .unwrap();
            let listener = socket.listener().unwrap();
            runtime
                .block_on(server::serve(listener, routes, Patience::default()))
                .unwrap();
        });
        let frames = Arc::clone(&plane);
        let worker = thread::spawn(move || {
            while !frames.ended.load(Ordering::Relaxed) {
                frames.step();
                thread::yield_now();
            }
        });
        Daemon {
            plane,
            captures,
            path,
            worker: Some(worker),
            _dir: dir,
        }
    }

    fn capture(&self, order: &Order) -> (Result<CaptureStatus, CaptureClientError>, Vec<u8>) {
        self.capture_until(order, pending())
    }

    fn capture_until(
        &self,
        order: &Order,
        stop: impl Future<Output = ()>,
    ) -> (Result<CaptureStatus, CaptureClientError>, Vec<u8>) {
        let mut bytes = Vec::new();
        let status = client::capture(&self.path, order, &mut bytes, stop);
        (status, bytes)
    }

    /// The end of a capture whose client cannot tell.
    fn wait_for_end(&self, id: u64) -> CaptureStatus {
        loop {
            let list = self.captures.list();
            if let Some(status) = list.into_iter().find(|s| s.id == id && s.end.is_some()) {
                return status;
            }
            thread::yield_now();
        }
    }

    /// A client that has sent its order and read the head of the answer.
    fn raw(&self) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        let request = "POST /v1/captures HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut start = [0; 15];
        stream.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"HTTP/1.1 200 OK");
        stream
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.plane.ended.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            worker.join().unwrap();
        }
    }
}

/// Frames by port and comment, and the comment of the statistics.
fn read(bytes: &[u8]) -> (BTreeMap<(String, usize), u64>, bool) {
    let mut reader = PcapNgReader::new(bytes).unwrap();
    let (mut frames, mut ended) = (BTreeMap::new(), false);
    while let Some(block) = reader.next_block() {
        let (block, state) = block.unwrap();
        match block {
            Block::EnhancedPacket(b) => {
                let interface = &state.interfaces()[b.interface_id as usize];
                let name = format!("{:?}", interface.options[0]);
                *frames.entry((name, b.options.len() - 1)).or_default() += 1;
            }
            Block::InterfaceStatistics(_) => ended = true,
            _ => {}
        }
    }
    (frames, ended)
}

#[test]
fn a_capture_ends_after_as_many_frames_as_were_asked_for() {
    let daemon = Daemon::start();
    let order = Order {
        ports: vec!["p1".to_owned()],
        count: Some(160),
        ..Order::default()
    };
    let (status, bytes) = daemon.capture(&order);
    let status = status.unwrap();
    assert_eq!((status.captured, status.end), (160, Some(End::Count)));
    assert_eq!(status.bytes, bytes.len() as u64);
    let (frames, ended) = read(&bytes);
    assert!(ended);
    assert_eq!(frames.values().sum::<u64>(), 160);
    assert!(frames.keys().all(|(name, _)| name.contains("p1")));
    assert!(frames.keys().any(|(_, comments)| *comments == 1));
    assert!(!daemon.plane.is_tapped());
}

#[test]
fn stopped_by_hand_it_has_everything_it_did_not_miss() {
    let daemon = Daemon::start();
    let shown = || daemon.plane.shown.load(Ordering::Relaxed);
    let stop = async {
        while shown() < 5_000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let (status, bytes) = daemon.capture_until(&Order::default(), stop);
    let status = status.unwrap();
    assert_eq!(status.end, Some(End::Stopped));
    assert_eq!(status.captured + status.missed, shown());
    let (frames, ended) = read(&bytes);
    assert_eq!((frames.values().sum(), ended), (status.captured, true));
}

#[test]
fn a_capture_of_a_second_lasts_one() {
    let daemon = Daemon::start();
    let order = Order {
        discards: true,
        seconds: Some(1),
        ..Order::default()
    };
    let (status, bytes) = daemon.capture(&order);
    let status = status.unwrap();
    assert_eq!(status.end, Some(End::Time));
    let (frames, _) = read(&bytes);
    assert_eq!(frames.values().sum::<u64>(), status.captured);
    assert!(frames.keys().all(|(_, comments)| *comments == 1));
}

#[test]
fn orders_that_make_no_sense_are_refused() {
    let daemon = Daemon::start();
    let order = Order {
        ports: vec!["p9".to_owned()],
        ..Order::default()
    };
    let (status, _) = daemon.capture(&order);
    let error = status.unwrap_err().to_string();
    assert!(error.starts_with("there is no port p9"), "{error}");
    assert!(daemon.captures.list().is_empty());
    let missing = daemon.path.with_extension("missing");
    let none = client::capture(&missing, &order, &mut Vec::new(), pending());
    assert!(
        none.unwrap_err()
            .to_string()
            .starts_with("no daemon is listening")
    );
}

#[test]
fn a_client_that_leaves_ends_its_capture() {
    let daemon = Daemon::start();
    let stream = daemon.raw();
    assert!(daemon.plane.is_tapped());
    drop(stream);
    let status = daemon.wait_for_end(1);
    assert_eq!(status.end, Some(End::ClientGone));
    assert!(!daemon.plane.is_tapped());
}

#[test]
fn a_client_that_leaves_in_silence_ends_its_capture_too() {
    let daemon = Daemon::start();
    let mut stream = UnixStream::connect(&daemon.path).unwrap();
    // Nothing ever matches.
    let order = r#"{"mac": "02:00:00:00:00:99"}"#;
    let head = format!("Content-Length: {}\r\n\r\n{order}", order.len());
    let request = format!("POST /v1/captures HTTP/1.1\r\nHost: x\r\n{head}");
    stream.write_all(request.as_bytes()).unwrap();
    stream.read_exact(&mut [0; 15]).unwrap();
    drop(stream);
    assert_eq!(daemon.wait_for_end(1).end, Some(End::ClientGone));
}

#[test]
fn a_client_that_does_not_read_costs_frames_and_nothing_else() {
    let daemon = Daemon::start();
    let stream = daemon.raw();
    let missed = || daemon.captures.list()[0].missed;
    while missed() == 0 {
        thread::yield_now();
    }
    let before = daemon.plane.shown.load(Ordering::Relaxed);
    while daemon.plane.shown.load(Ordering::Relaxed) < before + 1_000 {
        thread::yield_now();
    }
    let (other, _) = daemon.capture(&Order {
        count: Some(10),
        ..Order::default()
    });
    assert_eq!(other.unwrap().end, Some(End::Count));
    drop(stream);
    assert_eq!(daemon.wait_for_end(1).end, Some(End::ClientGone));
}

#[test]
fn a_client_that_does_not_read_for_too_long_ends_its_capture() {
    let daemon = Daemon::start_with(Duration::from_millis(20));
    let stream = daemon.raw();
    let status = daemon.wait_for_end(1);
    assert_eq!(status.end, Some(End::ClientStuck));
    assert!(!daemon.plane.is_tapped());
    drop(stream);
}

#[test]
fn four_run_at_once_and_a_fifth_is_refused() {
    let daemon = Daemon::start();
    let mut streams: Vec<_> = (0..CAPTURES).map(|_| daemon.raw()).collect();
    let order = Order {
        count: Some(1),
        ..Order::default()
    };
    let (fifth, _) = daemon.capture(&order);
    let error = fifth.unwrap_err().to_string();
    assert!(
        error.starts_with("4 captures are running already"),
        "{error}"
    );
    drop(streams.pop());
    daemon.wait_for_end(4);
    let (fifth, _) = daemon.capture(&order);
    assert_eq!(fifth.unwrap().id, 5);
}

#[test]
fn a_worker_that_does_not_answer_refuses_the_capture() {
    let daemon = Daemon::start();
    let full = |worker: &Mutex<Taps>| {
        for id in 100..100 + CAPTURES as u64 {
            let (taps, _) = open(CaptureId(id), &Default::default(), 64, 1);
            taps.into_iter()
                .for_each(|tap| worker.lock().unwrap().add(tap).unwrap());
        }
    };
    full(&daemon.plane.taps[1]);
    let (status, _) = daemon.capture(&Order::default());
    let error = status.unwrap_err().to_string();
    assert_eq!(error, "cannot start the capture: full");
    assert!(daemon.plane.taps[0].lock().unwrap().is_empty());
    assert_eq!(daemon.wait_for_end(1).end, Some(End::Broken));
}

#[test]
fn unknown_captures_are_not_found() {
    let daemon = Daemon::start();
    let client = towpath_common::control::Client::new(&daemon.path);
    for target in ["/v1/captures/1", "/v1/captures/x"] {
        let answer = client.get::<CaptureStatus>(target).unwrap();
        assert!(answer.description.starts_with("there is no capture"));
    }
    assert_eq!(client::list(&daemon.path).unwrap().data, Some(Vec::new()));
}

/// Output that breaks, as `| head` does.
struct Broken;

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn output_that_breaks_ends_the_capture() {
    let daemon = Daemon::start();
    let path: &Path = &daemon.path;
    let error = client::capture(path, &Order::default(), &mut Broken, pending());
    assert!(matches!(error, Err(CaptureClientError::Write(_))));
    assert_eq!(daemon.wait_for_end(1).end, Some(End::ClientGone));
}

#[test]
fn time_of_frames_is_that_of_the_calendar() {
    let daemon = Daemon::start();
    let before = Anchor::new(&daemon.plane.clock).wall;
    let (_, bytes) = daemon.capture(&Order {
        count: Some(10),
        ..Order::default()
    });
    let after = Anchor::new(&daemon.plane.clock).wall;
    let mut reader = PcapNgReader::new(&bytes[..]).unwrap();
    let slack = Duration::from_millis(50);
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(b) = block.unwrap().0 {
            assert!(b.timestamp + slack > before && b.timestamp < after + slack);
        }
    }
    assert!(daemon.plane.clock.now() > Cycles::ZERO);
}

#[test]
fn a_capture_that_breaks_gives_its_place_back() {
    let daemon = Daemon::start();
    daemon.plane.faulty.store(true, Ordering::Relaxed);
    for _ in 0..=CAPTURES {
        let mut out = Vec::new();
        let running = || daemon.captures.list().iter().any(|c| c.end.is_none());
        // Its stream may end before its end is known.
        let _ = client::capture(&daemon.path, &Order::default(), &mut out, pending());
        while running() {
            thread::yield_now();
        }
        assert!(!daemon.plane.is_tapped());
    }
    let list = daemon.captures.list();
    assert_eq!(list.len(), CAPTURES + 1);
    assert!(list.iter().all(|c| c.end == Some(End::Broken)));
}
