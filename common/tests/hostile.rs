//! Hostile front-ends: whatever comes over its socket, a session refuses it by name or ends; the
//! process lives, its file descriptors and memory do not grow, another guest on the same worker
//! notices nothing, and the next front-end is served.
//!
//! The tests here run one at a time: they count the descriptors of their process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use towpath_common::testing::bed::{Bed, Guest, Neighbour, SOON, eventually, everything};
use towpath_common::testing::memory::Sealing;
use towpath_common::testing::wire::{NEED_REPLY, VERSION, encode};
use towpath_common::testing::{
    Driver, Error, Form, Frontend, GuestMemory, GuestRegion, RawFrontend, Segment,
};
use vhost::vhost_user::message::FrontendReq as Request;

/// Every request number of the specification, and some beyond.
const REQUESTS: std::ops::Range<u32> = 0..50;

static ALONE: Mutex<()> = Mutex::new(());

/// A device under attack, its innocent neighbour, and what the process holds before.
struct Siege {
    bed: Bed,
    neighbour: Neighbour,
    fds: usize,
    _alone: MutexGuard<'static, ()>,
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// What the process holds, for the report of a leak.
fn list_fds() -> Vec<String> {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = fds.map(|fd| std::fs::read_link(fd.unwrap().path()));
    let mut names: Vec<String> = links.map(|l| format!("{l:?}")).collect();
    names.sort();
    names
}

/// Resident memory in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

impl Siege {
    fn lay() -> Siege {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let bed = Bed::new(2);
        let mut neighbour = bed.neighbour();
        neighbour.is_well();
        bed.guest(1).echo(0, b"before");
        bed.end();
        Siege {
            bed,
            neighbour,
            fds: open_fds(),
            _alone: alone,
        }
    }

    fn front(&self) -> Frontend {
        self.bed.front(everything())
    }

    /// The device serves again, and nothing has leaked.
    fn lift(mut self) {
        self.neighbour.is_well();
        self.bed.guest(1).echo(0, b"after");
        let fds = self.fds;
        let start = std::time::Instant::now();
        while open_fds() > fds {
            assert!(start.elapsed() < SOON, "fds leaked: {:#?}", list_fds());
            std::thread::sleep(Duration::from_millis(1));
        }
        self.neighbour.is_well();
    }

    /// `said` must be refused; the reason noted must contain `reason`.
    fn refused<T: std::fmt::Debug>(&self, said: Result<T, Error>, reason: &str) {
        let answered = !matches!(said, Ok(_) | Err(Error::Timeout(_)));
        assert!(answered, "{reason}: {said:?}");
        let noted = || self.bed.server.status().last_error.unwrap_or_default();
        let start = std::time::Instant::now();
        while !noted().contains(reason) {
            assert!(start.elapsed() < SOON, "not {reason}: {}", noted());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

fn pair(a: u32, b: u32) -> Vec<u8> {
    [a.to_ne_bytes(), b.to_ne_bytes()].concat()
}

/// SET_MEM_TABLE with `regions` of (gpa, size, uva, offset).
fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).unwrap();
    [pair(count, 0), words(&regions.concat())].concat()
}

fn memfd(len: u64, flags: MemfdFlags) -> OwnedFd {
    let fd = rustix::fs::memfd_create("hostile", flags | MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    fd
}

/// A payload of the right length for `request`.
fn payload(request: u32) -> Vec<u8> {
    match request {
        5 => table(&[[0, 4096, 1 << 40, 0]]),
        6 => words(&[4096, 0]),
        8 | 10 | 11 | 18 => pair(0, 0),
        9 => words(&[0, 1 << 40, 1 << 40, 1 << 40, 0]),
        24 | 25 => [words(&[4 << 32]), vec![0; 8]].concat(),
        31 | 32 => words(&[4096, 0, 16 << 16 | 1]),
        37 | 38 => words(&[0, 0, 4096, 1 << 40, 0]),
        2 | 7 | 12..=14 | 16 | 19 | 20 | 22 | 39 => words(&[0]),
        _ => Vec::new(),
    }
}

/// Lengths that no message has, announced or sent.
#[test]
fn lengths_that_lie() {
    let siege = Siege::lay();
    for size in [4097, 1 << 20, u32::MAX] {
        let front = siege.front();
        let header = [5, VERSION, size].map(u32::to_ne_bytes).concat();
        front.raw().send_bytes(&header, &[]).unwrap();
        assert!(front.raw().closes_within(SOON).unwrap());
        let why = siege.bed.end();
        let named = format!("message 5 with {size} bytes");
        assert!(why.contains(&named), "{why}");
    }
    for request in REQUESTS {
        let right = payload(request).len();
        let near = [right.saturating_sub(1), right + 1];
        for size in [0, 1, 7, 8, 9, 255, 4096].into_iter().chain(near) {
            let front = siege.front();
            let flags = VERSION | NEED_REPLY;
            // It may hang up before it has read all.
            let _ = front.raw().send(request, flags, &vec![0; size], &[]);
        }
    }
    siege.lift();
}

/// A message cut at each byte, continued later or never.
#[test]
fn messages_cut_at_every_byte() {
    let siege = Siege::lay();
    let flags = VERSION | NEED_REPLY;
    let message = encode(Request::SET_VRING_NUM.into(), flags, &pair(0, 64));
    for cut in 1..message.len() {
        let front = siege.front();
        front.raw().send_bytes(&message[..cut], &[]).unwrap();
        drop(front);
        siege.bed.end();
        let front = siege.front();
        front.raw().send_bytes(&message[..cut], &[]).unwrap();
        std::thread::yield_now();
        // It may have hung up already.
        let _ = front.raw().send_bytes(&message[cut..], &[]);
        match front.raw().recv() {
            Ok(answer) => assert_eq!(answer.u64().unwrap(), 0),
            // Header and body may come apart; either of them in pieces may be refused.
            Err(Error::Closed) => assert_ne!(cut, 12),
            Err(e) => panic!("cut at {cut}: {e}"),
        }
    }
    siege.lift();
}

/// Version and reply flags that are wrong.
#[test]
fn flags_that_lie() {
    let siege = Siege::lay();
    for flags in [0, 2, 3, 5, 5 | NEED_REPLY, u32::MAX] {
        for request in [1, 7, 8, 15, 39, 40] {
            let front = siege.front();
            let raw = front.raw();
            raw.send(request, flags, &payload(request), &[]).unwrap();
            let closed = raw.closes_within(SOON).unwrap();
            assert!(closed, "{request} {flags:#x}");
        }
    }
    siege.lift();
}

/// Too many, too few fds with every message.
#[test]
fn fds_in_any_number() {
    let siege = Siege::lay();
    let spare = memfd(8192, MemfdFlags::empty());
    for request in REQUESTS {
        for count in [0, 1, 2, 8, 9, 32, 33, 253] {
            let front = siege.front();
            let fds = vec![spare.as_fd(); count];
            let raw = front.raw();
            let sent = raw.send(request, VERSION, &payload(request), &fds);
            assert!(sent.is_ok(), "{request} with {count} fds: {sent:?}");
        }
    }
    drop(spare);
    siege.lift();
}

/// Fds of every wrong kind, wherever one is expected.
#[test]
fn fds_of_the_wrong_kind() {
    let siege = Siege::lay();
    let (pipe, writer) = rustix::pipe::pipe().unwrap();
    let open = |path: &str, flags| rustix::fs::open(path, flags, Mode::empty()).unwrap();
    let directory = open("/", OFlags::RDONLY | OFlags::DIRECTORY);
    let path = open("/proc/self/exe", OFlags::PATH);
    let readonly = open("/proc/self/exe", OFlags::RDONLY);
    let zero = open("/dev/zero", OFlags::RDWR);
    let (socket, peer) = UnixStream::pair().unwrap();
    let sealed = memfd(1 << 16, MemfdFlags::ALLOW_SEALING);
    rustix::fs::fcntl_add_seals(&sealed, SealFlags::WRITE | SealFlags::SEAL).unwrap();
    let wrong: [(&str, BorrowedFd<'_>); 7] = [
        ("pipe", pipe.as_fd()),
        ("directory", directory.as_fd()),
        ("O_PATH", path.as_fd()),
        ("read-only", readonly.as_fd()),
        ("device", zero.as_fd()),
        ("socket", socket.as_fd()),
        ("write-sealed", sealed.as_fd()),
    ];
    for (what, fd) in wrong {
        let mut front = siege.front();
        for (request, name) in [
            (Request::SET_VRING_KICK, "kick"),
            (Request::SET_VRING_CALL, "call"),
            (Request::SET_VRING_ERR, "error"),
        ] {
            let said = front.set_vring_fd(request, 1, Some(fd));
            siege.refused(said, &format!("vring 1: the {name} fd is not an eventfd"));
        }
        for request in [Request::SET_MEM_TABLE, Request::ADD_MEM_REG] {
            let said = front.tell(request, &payload(request.into()), &[fd]);
            let refused = matches!(said, Err(Error::Refused { .. }));
            assert!(refused, "{request:?} {what}: {said:?}");
        }
        let said = front.tell(Request::SET_INFLIGHT_FD, &payload(32), &[fd]);
        siege.refused(said, "in-flight table for 1 queues of 16");
        // A channel that cannot be spoken on is noticed when we want to.
        let channel = front.tell(Request::SET_BACKEND_REQ_FD, &[], &[fd]);
        if channel.is_ok() && what != "socket" {
            assert!(!siege.bed.server.config_changed());
        }
        let said = front.set_log(fd, 4096, 0);
        assert!(matches!(said, Err(Error::Closed)), "log {what}: {said:?}");
        siege.bed.end();
    }
    drop((
        pipe, writer, directory, path, readonly, zero, socket, peer, sealed,
    ));
    siege.lift();
}

/// Vrings that are not there, sizes and bases that are none.
#[test]
fn indices_and_sizes_out_of_range() {
    let siege = Siege::lay();
    let mut front = siege.front();
    for index in [2, 255, 256, 65536, 0x10001, u32::MAX] {
        let reason = format!("vring {index} does not exist");
        for request in [
            Request::SET_VRING_NUM,
            Request::SET_VRING_BASE,
            Request::SET_VRING_ENABLE,
        ] {
            siege.refused(front.set_vring(request, index, 1), &reason);
        }
        let addresses = [pair(index, 0), words(&[1 << 40; 3]), words(&[0])].concat();
        let said = front.tell(Request::SET_VRING_ADDR, &addresses, &[]);
        siege.refused(said, &reason);
    }
    let said = front.set_vring_fd(Request::SET_VRING_KICK, 200, None);
    siege.refused(said, "vring 200 does not exist");
    for size in [0, 3, 32769, 65536, u32::MAX] {
        let said = front.set_vring(Request::SET_VRING_NUM, 0, size);
        siege.refused(said, &format!("queue size {size} is not"));
    }
    let said = front.set_vring(Request::SET_VRING_BASE, 0, 65536);
    siege.refused(said, "vring base 65536");
    for size in [1, 32768, 1, 256, 32768] {
        front.set_vring(Request::SET_VRING_NUM, 0, size).unwrap();
    }
    drop(front);
    for index in [2, 65536, 0x10001] {
        let said = siege.front().stop_queue(index);
        siege.refused(said, &format!("vring {index} does not exist"));
    }
    siege.lift();
}

/// Memory tables that contradict themselves or their files.
#[test]
fn memory_tables_that_lie() {
    type Case<'a> = (&'a str, &'a [[u64; 4]]);
    let siege = Siege::lay();
    let file = memfd(1 << 16, MemfdFlags::ALLOW_SEALING);
    let uva = 1 << 40;
    let cases: [Case<'_>; 7] = [
        (
            "0x8000+0x8000 overlaps",
            &[[0, 0x9000, uva, 0], [0x8000, 0x8000, 2 * uva, 0]],
        ),
        (
            "overlaps",
            &[[0, 0x8000, uva, 0], [0x8000, 0x8000, uva + 0x4000, 0]],
        ),
        ("overlaps", &[[0, 0x8000, uva, 0], [0, 0x8000, 2 * uva, 0]]),
        ("ends at 65537", &[[0, 0x8001, uva, 0x8000]]),
        ("ends at 1099511693312", &[[0, 0x10000, uva, 1 << 40]]),
        ("ends at 4611686018427387904", &[[0, 1 << 62, uva, 0]]),
        ("message 5", &[[u64::MAX, 0x1000, uva, 0]]),
    ];
    for (reason, regions) in cases {
        let mut front = siege.front();
        let fds = vec![file.as_fd(); regions.len()];
        let said = front.tell(Request::SET_MEM_TABLE, &table(regions), &fds);
        siege.refused(said, reason);
    }
    // Numbers of regions: none, more than described, fewer or more fds than regions; and nine,
    // which is one more than once was allowed and must simply work.
    let nine: Vec<[u64; 4]> = (0..9)
        .map(|i| [i << 16, 1 << 16, uva + (i << 32), 0])
        .collect();
    for (payload, fds) in [
        (table(&[]), 0),
        ([pair(9, 0), words(&nine[..8].concat())].concat(), 8),
        ([pair(u32::MAX, 0), words(&nine.concat())].concat(), 9),
        (table(&nine), 8),
        (table(&nine), 10),
    ] {
        let mut front = siege.front();
        let fds = vec![file.as_fd(); fds];
        let said = front.tell(Request::SET_MEM_TABLE, &payload, &fds);
        siege.refused(said, "message 5");
    }
    let mut front = siege.front();
    front
        .tell(Request::SET_MEM_TABLE, &table(&nine), &[file.as_fd(); 9])
        .unwrap();
    drop(front);
    drop(file);
    siege.lift();
}

/// Memory that is cut off under us: only that session ends.
#[test]
fn truncated_memory_ends_one_session() {
    let siege = Siege::lay();
    for queues in [1, 2] {
        let region = Arc::new(GuestRegion::new(0, 1 << 20, 0, Sealing::Refused).unwrap());
        let mut guest = Guest::new(siege.front(), &[(0, 4096)]);
        guest.inside.memory = GuestMemory::of(vec![Arc::clone(&region)]);
        guest.share();
        for queue in 0..queues {
            guest.queue(8);
            guest.start(queue);
            guest.echo(queue as usize, b"whole");
        }
        rustix::fs::ftruncate(region.file(), 0).unwrap();
        guest.drivers[0].events().kick().unwrap();
        assert!(guest.front.raw().closes_within(SOON).unwrap());
        siege.bed.end();
    }
    // Where the file can be sealed, it cannot even be done.
    let guest = siege.bed.guest(1);
    let file = guest.memory.regions()[0].file();
    assert!(rustix::fs::ftruncate(file, 0).is_err());
    drop(guest);
    siege.lift();
}

/// Ring addresses outside memory or misaligned.
#[test]
fn ring_addresses_that_lie() {
    let siege = Siege::lay();
    let fresh = || {
        let mut guest = siege.bed.guest(0);
        guest.queue(8);
        for what in [
            Request::SET_VRING_NUM,
            Request::SET_VRING_KICK,
            Request::SET_VRING_CALL,
        ] {
            guest.say(0, what).unwrap();
        }
        guest
    };
    let say = |guest: &mut Guest, part: Option<(usize, u64)>| {
        let places = guest.drivers[0].places();
        let mut at = places.map(|p| guest.memory.uva(p).unwrap());
        if let Some((part, place)) = part {
            at[part] = place;
        }
        let [desc, avail, used] = at;
        let addresses = [pair(0, 0), words(&[desc, used, avail, 0])].concat();
        guest.front.tell(Request::SET_VRING_ADDR, &addresses, &[])
    };
    let mut guest = fresh();
    let end = guest.memory.uva(0).unwrap() + (4 << 20);
    let outside = [
        (0, 0),
        (1, 2),
        (2, 4),
        (0, end),
        (1, end - 16),
        (2, end - 32),
    ];
    for wrong in outside
        .into_iter()
        .chain([(0, end - 16), (1, u64::MAX - 1)])
    {
        let said = say(&mut guest, Some(wrong));
        siege.refused(said, "vring 0:");
    }
    say(&mut guest, None).expect("the right ones heal it");
    guest.front.enable(0, true).unwrap();
    guest.echo(0, b"healed");
    drop(guest);
    for misaligned in [(0, end - 4088), (1, end - 4095), (2, end - 4094)] {
        let said = say(&mut fresh(), Some(misaligned));
        siege.refused(said, "message 9");
    }
    siege.lift();
}

/// Features nobody offered, and messages of features not negotiated.
#[test]
fn features_that_were_not_offered() {
    let siege = Siege::lay();
    let mut front = siege.front();
    for bit in [0, 34, 63] {
        let value = (front.features() | 1 << bit).to_ne_bytes();
        let said = front.tell(Request::SET_FEATURES, &value, &[]);
        let reason = format!("features {:#x} were not offered", 1u64 << bit);
        siege.refused(said, &reason);
    }
    let bit = (1u64 << 60).to_ne_bytes();
    let said = front.tell(Request::SET_PROTOCOL_FEATURES, &bit, &[]);
    siege.refused(said, "features 0x1000000000000000 were not offered");
    drop(front);
    for request in [17, 21, 24, 25, 31, 32, 34, 36, 37, 38, 39, 40] {
        let raw = siege.bed.raw();
        let fd = memfd(4096, MemfdFlags::empty());
        let one = [fd.as_fd()];
        let fds: &[BorrowedFd<'_>] = if matches!(request, 21 | 32 | 37) {
            &one
        } else {
            &[]
        };
        raw.send(request, VERSION, &payload(request), fds).unwrap();
        assert!(raw.closes_within(SOON).unwrap(), "request {request}");
        let why = siege.bed.end();
        assert!(why.contains(&format!("message {request} ")), "{why}");
    }
    siege.lift();
}

/// A hang-up after each message of a handshake, its answers read or not.
#[test]
fn hang_ups_at_every_message() {
    let siege = Siege::lay();
    let script = [
        3, 1, 15, 16, 17, 2, 5, 31, 8, 10, 9, 14, 13, 12, 18, 11, 34, 40,
    ];
    // MQ, LOG_SHMFD, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, STATUS: answers only where
    // the messages have their own.
    let protocol = 1 | 1 << 1 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 16;
    for length in 0..=script.len() {
        for reads in [false, true] {
            let raw = siege.bed.raw();
            let guest = memfd(8192, MemfdFlags::empty());
            let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            for request in script[..length].iter().copied() {
                let payload = match request {
                    2 => words(&[1 << 32 | 1 << 30]),
                    16 => words(&[protocol]),
                    8 => pair(0, 8),
                    18 => pair(0, 1),
                    other => payload(other),
                };
                let fds: &[BorrowedFd<'_>] = match request {
                    5 => &[guest.as_fd()],
                    12..=14 => &[event.as_fd()],
                    _ => &[],
                };
                raw.send(request, VERSION, &payload, fds).unwrap();
                if reads && matches!(request, 1 | 15 | 17 | 31 | 11 | 40) {
                    raw.recv().unwrap();
                }
            }
        }
    }
    siege.lift();
}

/// Hang-ups with rings at work.
#[test]
fn hang_ups_under_load() {
    let siege = Siege::lay();
    for _ in 0..50 {
        let mut guest = siege.bed.guest(2);
        for queue in [0, 1] {
            guest.offer(queue, b"never mind the answer");
        }
    }
    siege.lift();
}

/// Answers that nobody reads stall their own session, and not its end.
#[test]
fn answers_that_nobody_reads() {
    let mut siege = Siege::lay();
    let message = encode(Request::GET_FEATURES.into(), VERSION, &[]);
    let deafen = |bed: &Bed| {
        let socket = UnixStream::connect(bed.path()).unwrap();
        let deaf = RawFrontend::new(socket, Duration::from_millis(100)).unwrap();
        while deaf.send_bytes(&message, &[]).is_ok() {}
        deaf
    };
    let deaf = deafen(&siege.bed);
    siege.neighbour.is_well();
    drop(deaf);
    siege.bed.guest(1).echo(0, b"served again");
    // A server can be stopped all the same.
    let other = Bed::on(siege.bed.echo.host(), 1);
    let deaf = deafen(&other);
    drop(other);
    drop(deaf);
    siege.lift();
}

/// Eventfds that are full, that would block.
#[test]
fn eventfds_that_are_full() {
    let mut siege = Siege::lay();
    for flags in [
        EventfdFlags::CLOEXEC,
        EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
    ] {
        let full = eventfd(0, flags).unwrap();
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let mut guest = siege.bed.guest(1);
        for request in [
            Request::SET_VRING_CALL,
            Request::SET_VRING_ERR,
            Request::SET_VRING_KICK,
        ] {
            let front = &mut guest.front;
            front.set_vring_fd(request, 0, Some(full.as_fd())).unwrap();
        }
        for n in 0..4u8 {
            guest.drivers[0].arm(); // it wants to be called
            guest.offer(0, &[n]);
            // A kick fd that is always readable kicks once; then the device polls when it is told
            // of anything, here by another message.
            guest.front.enable(0, true).unwrap();
            eventually("the answer", || guest.reap(0) > 0);
        }
        siege.neighbour.is_well();
        guest.front.stop_queue(0).unwrap();
    }
    siege.lift();
}

/// A storm of connections, and the next honest guest is served.
#[test]
fn thousands_of_connections() {
    let mut siege = Siege::lay();
    let storm = |siege: &Siege| {
        for n in 0..1500u32 {
            let Ok(mut socket) = UnixStream::connect(siege.bed.path()) else {
                continue;
            };
            // Whether anybody is there to read it does not matter.
            let _ = socket.write_all(&encode(n % 50, VERSION, &payload(n % 50)));
        }
    };
    storm(&siege);
    siege.bed.guest(1).echo(0, b"between two storms");
    let before = resident();
    storm(&siege);
    siege.neighbour.is_well();
    siege.bed.guest(1).echo(0, b"after the storms");
    let after = resident();
    assert!(after < before + 8192, "{before} KiB grew to {after}");
    siege.lift();
}

/// Somebody who sends a little and then nothing holds up his own device alone.
#[test]
fn slow_front_ends() {
    let mut siege = Siege::lay();
    let message = encode(Request::SET_FEATURES.into(), VERSION, &[0; 8]);
    for bytes in [1, 11, 12, 15] {
        let slow = siege.bed.raw();
        slow.send_bytes(&message[..bytes], &[]).unwrap();
        siege.neighbour.is_well();
    }
    let other = Bed::on(siege.bed.echo.host(), 1);
    let slow = other.raw();
    slow.send_bytes(&message[..15], &[]).unwrap();
    drop(other);
    drop(slow);
    siege.lift();
}

/// A small generator, so that a failure comes again with its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    /// Overwrite a word of `bytes` with a number that means something somewhere.
    fn spoil(&mut self, bytes: &mut [u8]) {
        let interesting = [0, 1, 2, 3, 7, 16, 255, 4096, 1 << 20, 1 << 40, u64::MAX];
        let value = interesting[self.below(interesting.len())].to_ne_bytes();
        let at = self.below(bytes.len()) & !7;
        let end = (at + 8).min(bytes.len());
        bytes[at..end].copy_from_slice(&value[..end - at]);
    }
}

/// Any messages in any order, of the right length, while rings run.
#[test]
fn nonsense_in_any_order() {
    let siege = Siege::lay();
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let before = resident();
    for seed in 1..=150u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut guest = siege.bed.guest(u32::try_from(seed % 3).unwrap());
        let memory = guest.memory.clone();
        let file = memory.regions()[0].file();
        for _ in 0..30 {
            let request = u32::try_from(random.below(44)).unwrap();
            let mut bytes = payload(request);
            if random.below(2) == 0 && !bytes.is_empty() {
                random.spoil(&mut bytes);
            }
            let fds: &[BorrowedFd<'_>] = match request {
                12..=14 => &[event.as_fd()],
                5 | 6 | 32 | 37 => &[file],
                _ => &[],
            };
            let need = if random.below(4) > 0 { NEED_REPLY } else { 0 };
            let raw = guest.front.raw();
            if raw.send(request, VERSION | need, &bytes, fds).is_err() {
                break;
            }
            if !guest.drivers.is_empty() && random.below(3) == 0 {
                let segment = Segment::readable(random.next() % (4 << 20), 64);
                if let Ok(token) = guest.drivers[0].chain(&[segment], Form::Direct) {
                    guest.drivers[0].post(token);
                    guest.drivers[0].publish().unwrap();
                }
            }
        }
    }
    let after = resident();
    assert!(after < before + 16384, "{before} KiB grew to {after}");
    drop(event);
    siege.lift();
}
