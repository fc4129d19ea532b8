//! Real TAP interfaces. Each test runs again by itself, in a process with a network namespace of
//! its own, so that nothing is left behind and nothing of the machine's network is touched.
//!
//! It takes /dev/net/tun, and `unshare`, `setpriv` and `ip` (packages util-linux, iproute2);
//! without them a test says why it was skipped.

use std::env;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use smoltcp::phy::{Device, Medium, RawSocket, RxToken, TxToken};
use towpath_common::testing::bed::{Scratch, eventually};

use super::*;
use crate::config::{Config, Sources};
use crate::host::start;
use crate::net::{GSO_UDP_L4, NEEDS_CSUM};
use crate::offload::{Segments, complete_checksum, validate_uplink};
use towpath_common::keep::Keeper;

/// Which part a process plays; unset in the first one.
const ROLE: &str = "TOWPATH_TAP_ROLE";
/// More than any step takes; nothing waits so long unless it fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// An EtherType for experiments (IEEE 802, local experimental): no protocol answers.
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

fn role() -> Option<String> {
    env::var(ROLE).ok()
}

/// This test again, after `wrapper`, in a role.
fn again(test: &str, role: &str, wrapper: &[&str]) -> Command {
    let (program, arguments) = wrapper.split_first().unwrap();
    let mut command = Command::new(program);
    command.args(arguments).arg(env::current_exe().unwrap());
    command.args(["--exact", &format!("port::tap::tests::{test}")]);
    command.args(["--nocapture", "--test-threads=1"]);
    command.env(ROLE, role);
    command
}

/// Run it to its end, its output captured with ours.
fn run(mut command: Command) {
    let output = command.output().unwrap();
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "failed in its namespace: {stdout}");
}

fn namespace() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() {
        &["unshare", "--net"]
    } else {
        &["unshare", "--net", "--map-root-user"]
    }
}

/// True in a process with a network namespace of its own; elsewhere it runs the test in one.
fn in_namespace(test: &str) -> bool {
    if role().is_some() {
        return true;
    }
    let (program, arguments) = namespace().split_first().unwrap();
    let mut probe = Command::new(program);
    let works = |command: &mut Command| {
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !Path::new("/dev/net/tun").exists() {
        eprintln!("{test}: skipped: there is no /dev/net/tun");
    } else if !works(probe.args(arguments).arg("true")) {
        eprintln!("{test}: skipped: no network namespace to be had ({program})");
    } else if !works(Command::new("ip").arg("-Version")) {
        eprintln!("{test}: skipped: no ip (package iproute2)");
    } else {
        run(again(test, "main", namespace()));
    }
    false
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

fn open(name: &str, queues: u16, mtu: Option<u16>) -> Result<Vec<Tap>, TapError> {
    Tap::open(&name.parse().unwrap(), queues, mtu)
}

fn one(name: &str) -> Tap {
    open(name, 1, None).unwrap().pop().unwrap()
}

fn until<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = f() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_micros(100));
    }
}

fn experiment(fill: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![fill; len];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&EXPERIMENT);
    frame
}

fn put(port: &mut dyn Uplink, header: NetHeader, frame: &[u8]) -> usize {
    port.reserve(frame.len()).unwrap().copy_from_slice(frame);
    port.commit(header);
    port.send()
}

#[test]
fn interface_names_are_those_the_kernel_takes() {
    for good in ["tap0", "a", "br-lan.7", "fifteen-letters"] {
        let name: InterfaceName = good.parse().unwrap();
        assert_eq!(name.to_string(), good);
    }
    for bad in [
        "",
        ".",
        "..",
        "a/b",
        "a:b",
        "a b",
        "tap%d",
        "sixteen-letters-",
        "ä",
    ] {
        assert!(bad.parse::<InterfaceName>().is_err(), "{bad}");
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    assert!(matches!(open("tp0", 0, None), Err(TapError::Queues(0))));
    assert!(matches!(open("tp0", 257, None), Err(TapError::Queues(257))));
    assert!(matches!(open("tp0", 1, Some(67)), Err(TapError::Mtu(67))));
    let large = open("tp0", 1, Some(65_522));
    assert!(matches!(large, Err(TapError::Mtu(65_522))));
}

#[test]
fn frames_pass_both_ways() {
    if !in_namespace("frames_pass_both_ways") {
        return;
    }
    let mut tap = one("tp0");
    assert_eq!(tap.max_frame(), 1518);
    let mut raw = RawSocket::new("tp0", Medium::Ethernet).unwrap();
    let now = smoltcp::time::Instant::ZERO;
    let sent: Vec<_> = (0..200)
        .map(|i| experiment(i, 60 + usize::from(i) * 7))
        .collect();

    for frame in &sent {
        assert_eq!(put(&mut tap, NetHeader::default(), frame), 0);
        let seen = until("a frame from the port", || {
            let (rx, _) = raw.receive(now)?;
            let bytes = rx.consume(<[u8]>::to_vec);
            (bytes[12..14] == EXPERIMENT).then_some(bytes)
        });
        assert_eq!(seen, *frame);
    }

    let mut received = Vec::new();
    for some in sent.chunks(100) {
        for frame in some {
            let tx = raw.transmit(now).unwrap();
            tx.consume(frame.len(), |bytes| bytes.copy_from_slice(frame));
        }
        let all = received.len() + some.len();
        until("frames from the kernel", || {
            let count = tap.receive(BURST);
            assert!(count <= BURST);
            let frames = (0..count).map(|i| tap.frame(i));
            let ours = frames.filter(|(_, bytes)| bytes[12..14] == EXPERIMENT);
            received.extend(ours.map(|(_, bytes)| bytes.to_vec()));
            (received.len() >= all).then_some(())
        });
    }
    assert_eq!(received, sent);
    assert!(tap.failed().is_none());
}

#[test]
fn an_interface_that_is_down_loses_frames_and_comes_back() {
    if !in_namespace("an_interface_that_is_down_loses_frames_and_comes_back") {
        return;
    }
    let mut tap = one("tp0");
    let frame = experiment(1, 60);
    assert_eq!(put(&mut tap, NetHeader::default(), &frame), 0);
    ip("link set tp0 down");
    assert_eq!(put(&mut tap, NetHeader::default(), &frame), 1);
    until("nothing to receive", || {
        (tap.receive(BURST) == 0).then_some(())
    });
    assert!(tap.failed().is_none());
    ip("link set tp0 up");
    assert_eq!(put(&mut tap, NetHeader::default(), &frame), 0);
    // What the kernel does not like is lost alone.
    let bad = NetHeader {
        gso_type: 0x7f,
        ..NetHeader::default()
    };
    assert_eq!(put(&mut tap, bad, &frame), 1);
    assert_eq!(put(&mut tap, NetHeader::default(), &frame), 0);
}

#[test]
fn an_interface_that_is_deleted_fails_the_port() {
    if !in_namespace("an_interface_that_is_deleted_fails_the_port") {
        return;
    }
    let (mut reader, mut writer) = (one("tp0"), one("tp1"));
    ip("link del tp0");
    ip("link del tp1");
    assert_eq!(reader.receive(BURST), 0);
    assert!(reader.failed().is_some());
    assert_eq!(
        put(&mut reader, NetHeader::default(), &experiment(1, 60)),
        1
    );
    assert_eq!(
        put(&mut writer, NetHeader::default(), &experiment(1, 60)),
        1
    );
    assert!(writer.failed().is_some());
    assert_eq!(writer.receive(BURST), 0);
}

#[test]
fn queues_and_mtu_are_as_asked_for() {
    if !in_namespace("queues_and_mtu_are_as_asked_for") {
        return;
    }
    let taps = open("tp0", 3, Some(9000)).unwrap();
    assert_eq!(taps.len(), 3);
    assert!(taps.iter().all(|tap| tap.max_frame() == 9018));
    let read = |file| std::fs::read_to_string(format!("/proc/self/net/{file}")).unwrap();
    assert!(read("dev").contains("tp0"));
    drop(taps);
    assert!(!read("dev").contains("tp0"), "it was ours");
    // The longest that can be.
    let mut tap = open("tp0", 1, Some(MAX_MTU)).unwrap().pop().unwrap();
    let longest = experiment(1, usize::from(MAX_MTU) + 14);
    assert_eq!(put(&mut tap, NetHeader::default(), &longest), 0);
    assert!(tap.reserve(LARGEST).is_some() && tap.reserve(LARGEST + 1).is_none());
}

#[test]
fn interfaces_that_cannot_be_used_are_told_apart() {
    if !in_namespace("interfaces_that_cannot_be_used_are_told_apart") {
        return;
    }
    let _single = one("tp0");
    assert!(matches!(open("tp0", 1, None), Err(TapError::Busy(_))));
    ip("tuntap add tp1 mode tap");
    let several = open("tp1", 2, None);
    assert!(matches!(
        several,
        Err(TapError::OtherKind { queues: 2, .. })
    ));
    assert!(matches!(
        open("lo", 1, None),
        Err(TapError::OtherKind { .. })
    ));
    ip("tuntap add tp2 mode tun");
    assert!(matches!(
        open("tp2", 1, None),
        Err(TapError::OtherKind { .. })
    ));
    // Made with multi_queue, one queue does too, and an interface of somebody else's stays.
    ip("tuntap add tp3 mode tap multi_queue");
    drop(one("tp3"));
    assert_eq!(open("tp3", 2, None).unwrap().len(), 2);
}

#[test]
fn without_the_privilege_only_prepared_interfaces_open() {
    let test = "without_the_privilege_only_prepared_interfaces_open";
    if !in_namespace(test) {
        return;
    }
    if role().as_deref() == Some("main") {
        ip("tuntap add tp0 mode tap user 0");
        ip("link set tp0 up mtu 2000");
        ip("tuntap add tp1 mode tap user 0");
        let drop = ["setpriv", "--bounding-set=-net_admin"];
        run(again(test, "bare", &drop));
        return;
    }
    assert_eq!(open("tp0", 1, None).unwrap()[0].max_frame(), 2018);
    assert_eq!(open("tp0", 1, Some(2000)).unwrap()[0].max_frame(), 2018);
    let refused = |name, mtu, what| {
        let error = open(name, 1, mtu).unwrap_err();
        let TapError::NotPermitted { action, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*action, what);
        assert!(error.to_string().contains("CAP_NET_ADMIN"));
    };
    refused("tp9", None, "create or use it");
    refused("tp0", Some(1500), "set its MTU");
    refused("tp1", None, "bring it up");
}

#[test]
fn many_queues_take_little_memory() {
    if !in_namespace("many_queues_take_little_memory") {
        return;
    }
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * rustix::param::page_size()
    };
    let before = resident();
    let mut taps = open("tp0", 64, None).unwrap();
    for tap in &mut taps {
        assert_eq!(put(tap, NetHeader::default(), &experiment(1, 1500)), 0);
        tap.receive(BURST);
    }
    let each = (resident() - before) / taps.len();
    assert!(each < 64 << 10, "{each} bytes for each queue");
}

/// A UDP frame to 10.9.0.1 port 999, with the sum of the pseudo-header.
fn udp(payload: &[u8]) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
        .ipv4([10, 9, 0, 2], [10, 9, 0, 1], 64)
        .udp(1000, 999);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    let length: [u8; 2] = frame[38..40].try_into().unwrap();
    let pseudo = crate::offload::Sum::of(&frame[26..34])
        .with_u16(17)
        .with_u16(u16::from_be_bytes(length));
    frame[40..42].copy_from_slice(&pseudo.fold().to_be_bytes());
    frame
}

#[test]
fn the_kernel_cuts_udp_as_we_do() {
    if !in_namespace("the_kernel_cuts_udp_as_we_do") {
        return;
    }
    let mut tap = one("tp0");
    ip("link set tp0 address 02:00:00:00:00:01");
    ip("addr add 10.9.0.1/24 dev tp0");
    let socket = UdpSocket::bind("10.9.0.1:999").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let payload: Vec<u8> = (0..5000u32).map(|i| i.to_le_bytes()[0]).collect();
    // Destination and source as the builder wants them: source first.
    let mut frame = udp(&payload);
    let (to, from) = frame[..12].split_at_mut(6);
    to.swap_with_slice(from);
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    let header = NetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        hdr_len: 0,
        gso_size: 1400,
        csum_start: 34,
        csum_offset: 6,
    };
    let header = validate_uplink(header, frame.len(), &frame).unwrap();
    let datagrams = || {
        let lengths = (0..4).map(|_| {
            let mut buffer = [0; 2000];
            let length = socket.recv(&mut buffer).unwrap();
            buffer[..length].to_vec()
        });
        let all: Vec<_> = lengths.collect();
        assert_eq!(all.concat(), payload);
        all.iter().map(Vec::len).collect::<Vec<_>>()
    };
    if tap.accepts().has(Offloads::USO) {
        assert_eq!(put(&mut tap, header, &frame), 0);
        assert_eq!(datagrams(), [1400, 1400, 1400, 800]);
    } else {
        eprintln!("the_kernel_cuts_udp_as_we_do: half skipped: this kernel does not");
    }
    for accepts in [Offloads::NONE, Offloads::CSUM] {
        for segment in Segments::new(header, &frame, accepts).unwrap() {
            segment.write(tap.reserve(segment.len()).unwrap()).unwrap();
            tap.commit(segment.header);
        }
        assert_eq!(tap.send(), 0);
        assert_eq!(datagrams(), [1400, 1400, 1400, 800]);
    }
}

/// Frames that passed between two interfaces.
#[derive(Debug, Default)]
struct Passed {
    whole: AtomicUsize,
    cut: AtomicUsize,
}

/// Hand what one interface received to another that `accepts` this.
fn pass(from: &mut Tap, to: &mut Tap, accepts: Offloads, passed: &Passed) {
    for i in 0..from.receive(BURST) {
        let (header, frame) = from.frame(i);
        let head = &frame[..frame.len().min(128)];
        let header = validate_uplink(header, frame.len(), head).unwrap();
        let needs = header.needs();
        if accepts.has(needs) {
            let large = header.gso_type != crate::net::GSO_NONE;
            passed.whole.fetch_add(large.into(), Ordering::Relaxed);
            put(to, header, frame);
        } else if header.gso_type == crate::net::GSO_NONE {
            let mut frame = frame.to_vec();
            complete_checksum(header, &mut frame).unwrap();
            put(to, NetHeader::default(), &frame);
        } else {
            passed.cut.fetch_add(1, Ordering::Relaxed);
            for segment in Segments::new(header, frame, accepts).unwrap() {
                assert!(segment.len() <= 1514);
                segment.write(to.reserve(segment.len()).unwrap()).unwrap();
                to.commit(segment.header);
                to.send();
            }
        }
    }
}

/// The other namespace: whatever a connection sends comes back.
fn echo() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    ip("addr add 10.9.0.2/24 dev tp1");
    ip("addr add fd09::2/64 dev tp1 nodad");
    ip("link set tp1 up");
    let listener = TcpListener::bind("[::]:999").unwrap();
    println!("ready");
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    }
}

struct Kill(Child);

impl Drop for Kill {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process in a namespace of its own that answers at tp1.
fn peer(test: &str) -> Kill {
    let mut command = again(test, "echo", &["unshare", "--net"]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut peer = Kill(child.unwrap());
    let id = peer.0.id();
    until("the other namespace", || {
        let of = |id: &str| std::fs::read_link(format!("/proc/{id}/ns/net")).unwrap();
        (of("self") != of(&id.to_string())).then_some(())
    });
    ip(&format!("link set tp1 netns {id}"));
    peer.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let mut said = Vec::new();
    let output = peer.0.stdout.as_mut().unwrap();
    until("the other namespace to be ready", || {
        let mut byte = [0];
        output.read_exact(&mut byte).unwrap();
        said.push(byte[0]);
        said.ends_with(b"ready\n").then_some(())
    });
    peer
}

#[test]
fn kernels_talk_tcp_with_offloads_passed_and_done() {
    let test = "kernels_talk_tcp_with_offloads_passed_and_done";
    if !in_namespace(test) {
        return;
    }
    if role().as_deref() == Some("echo") {
        return echo();
    }
    let (mut a, mut b) = (one("tp0"), one("tp1"));
    ip("addr add 10.9.0.1/24 dev tp0");
    ip("addr add fd09::1/64 dev tp0 nodad");
    let _peer = peer(test);
    let all: Vec<u8> = (0..2_000_000u32)
        .map(|i| i.wrapping_mul(i).to_le_bytes()[1])
        .collect();
    for accepts in [a.accepts(), Offloads::CSUM, Offloads::NONE] {
        let (passed, done) = (Passed::default(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    pass(&mut a, &mut b, accepts, &passed);
                    pass(&mut b, &mut a, accepts, &passed);
                    thread::yield_now();
                }
            });
            let talk = |address: &str| -> io::Result<Vec<u8>> {
                let address = address.parse().map_err(io::Error::other)?;
                let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                stream.write_all(&all)?;
                stream.shutdown(std::net::Shutdown::Write)?;
                let mut back = Vec::new();
                stream.read_to_end(&mut back)?;
                Ok(back)
            };
            let backs = ["10.9.0.2:999", "[fd09::2]:999"].map(talk);
            done.store(true, Ordering::Relaxed);
            for back in backs {
                assert!(back.unwrap() == all, "not what was sent");
            }
        });
        let (whole, cut) = (passed.whole.into_inner(), passed.cut.into_inner());
        assert_eq!(
            whole > 0,
            accepts.has(Offloads::TSO4),
            "{whole} passed whole"
        );
        assert_eq!(cut > 0, !accepts.has(Offloads::TSO4), "{cut} were cut");
    }
}

/// The interface's line in `ip link`: "4: tp0: <...> mtu 1500 ...".
fn link(name: &str) -> (String, u16) {
    let arguments = ["-o", "link", "show", name];
    let output = Command::new("ip").args(arguments).output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    let mtu = line.split_once(" mtu ").unwrap().1.split(' ').next();
    let index = line.split(':').next().unwrap().to_owned();
    (index, mtu.unwrap().parse().unwrap())
}

#[test]
fn a_reload_changes_the_mtu_of_the_interface_that_is_there() {
    if !in_namespace("a_reload_changes_the_mtu_of_the_interface_that_is_there") {
        return;
    }
    let scratch = Scratch::new();
    let load = |rest: &str| {
        let file = scratch.path().join("vswitch.toml");
        let text = ["[[uplink]]\ntap = \"tp0\"\n", rest].concat();
        std::fs::write(&file, text.replace('@', scratch.path().to_str().unwrap())).unwrap();
        let sources = Sources {
            file: Some(file),
            ..Sources::default()
        };
        Config::load(&sources).unwrap()
    };
    let host = start(&load(""), Keeper::nobody()).unwrap();
    let shown = || {
        let mut ports = host.ports().into_iter();
        ports.find(|p| p.name.as_str() == "tp0").unwrap().mtu
    };
    host.apply(&load("")).unwrap();
    let (index, mtu) = link("tp0");
    assert_eq!((mtu, shown()), (1500, 1500));
    for (rest, mtu) in [("mtu = 9000", 9000), ("mtu = 2000", 2000), ("", 2000)] {
        host.apply(&load(rest)).unwrap();
        assert_eq!(
            (link("tp0"), shown()),
            ((index.clone(), mtu), mtu),
            "{rest}"
        );
    }
    // What fails after that: a directory that vanished under a port's socket.
    let port = "[[port]]\nname = \"a\"\nsocket = \"@/sub/a.sock\"\n";
    let sub = scratch.path().join("sub");
    std::fs::create_dir(&sub).unwrap();
    host.apply(&load(port)).unwrap();
    std::fs::remove_dir_all(&sub).unwrap();
    let all = ["mtu = 3000\n", port, "mtu = 9000\n"].concat();
    assert!(host.apply(&load(&all)).is_err());
    assert_eq!((link("tp0"), shown()), ((index, 2000), 2000));
    // An interface that is gone is made anew, with what is configured by then.
    ip("link delete tp0");
    eventually("the uplink to be down", || {
        let mut ports = host.ports().into_iter();
        !ports.find(|p| p.name.as_str() == "tp0").unwrap().link
    });
    let report = host.apply(&load("mtu = 3000")).unwrap();
    assert_eq!(report.warnings.len(), 1, "{report:?}");
    assert_eq!((link("tp0").1, shown()), (3000, 3000));
}
