//! Front-ends that break the protocol: messages, their order, their fds, their absence.
//!
//! `hostile_net` has this file too: what is said here goes for any device, and what is not the same
//! for all of them is in the harness of each.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use towpath_common::testing::driver::Events;
use towpath_common::testing::frontend::describe;
use towpath_common::testing::memory::Sealing;
use towpath_common::testing::wire::{HEADER, NEED_REPLY, VERSION, encode};
use towpath_common::testing::{
    Driver, Error, Frontend, GuestMemory, GuestRegion, RawFrontend, Wanted, feature,
};
use vhost::vhost_user::message::{FrontendReq as Request, VhostUserProtocolFeatures as Protocol};

use crate::harness::{BEYOND, FOREIGN, MIB, PATIENCE, RING, SPARE, Scene, Victim, until, wanted};
use crate::maps::refused;

/// Long enough for a message to be handled, short enough to be spent a hundred times.
const MOMENT: Duration = Duration::from_millis(2);
/// Numbers of messages: all that the protocol has, and some more.
const REQUESTS: std::ops::Range<u32> = 0..48;

fn raw(scene: &Scene) -> Result<RawFrontend> {
    Ok(RawFrontend::connect(&scene.socket("victim"), PATIENCE)?)
}

/// The next front-end is served.
fn next_is_served(scene: &Scene) -> Result<()> {
    scene.victim()?.works()
}

/// A front-end that negotiated every protocol feature.
fn everything(scene: &Scene) -> Result<Frontend> {
    let wanted = Wanted {
        protocol: Protocol::all(),
        ..wanted()
    };
    Ok(Frontend::connect(
        &scene.socket("victim"),
        wanted,
        PATIENCE,
    )?)
}

fn memfd(len: u64) -> Result<OwnedFd> {
    let file = memfd_create("hostile", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, len)?;
    Ok(file)
}

/// A message: request, payload, fds.
type Said<'a> = (Request, Vec<u8>, Vec<BorrowedFd<'a>>);

/// A guest's setup as messages.
fn handshake<'a>(
    memory: &'a GuestMemory,
    v: &'a towpath_common::testing::SplitDriver,
) -> Result<Vec<Said<'a>>> {
    let pair = |a: u32, b: u32| [a.to_ne_bytes(), b.to_ne_bytes()].concat();
    let word = |w: u64| w.to_ne_bytes().to_vec();
    let region = &memory.regions()[0];
    let setup = v.setup();
    let uva = |gpa| memory.uva(gpa);
    let places = [uva(setup.desc)?, uva(setup.used)?, uva(setup.avail)?, 0];
    let addresses: Vec<u8> = places.iter().flat_map(|a| a.to_ne_bytes()).collect();
    let protocol = Protocol::MQ | Protocol::CONFIG | Protocol::INFLIGHT_SHMFD;
    Ok(vec![
        (Request::SET_OWNER, vec![], vec![]),
        (Request::GET_FEATURES, vec![], vec![]),
        (Request::GET_PROTOCOL_FEATURES, vec![], vec![]),
        (
            Request::SET_PROTOCOL_FEATURES,
            word(protocol.bits()),
            vec![],
        ),
        (Request::GET_QUEUE_NUM, vec![], vec![]),
        (
            Request::SET_FEATURES,
            word(feature::VERSION_1 | feature::PROTOCOL),
            vec![],
        ),
        (
            Request::GET_CONFIG,
            [&pair(0, 60)[..], &[0; 64]].concat(),
            vec![],
        ),
        (
            Request::SET_MEM_TABLE,
            [&pair(1, 0)[..], &describe(region)].concat(),
            vec![region.file()],
        ),
        (Request::SET_VRING_NUM, pair(0, setup.size.into()), vec![]),
        (Request::SET_VRING_BASE, pair(0, 0), vec![]),
        (
            Request::SET_VRING_ADDR,
            [&pair(0, 0)[..], &addresses].concat(),
            vec![],
        ),
        (Request::SET_VRING_ERR, word(0), vec![setup.err]),
        (Request::SET_VRING_CALL, word(0), vec![setup.call]),
        (Request::SET_VRING_KICK, word(0), vec![setup.kick]),
        (Request::SET_VRING_ENABLE, pair(0, 1), vec![]),
        (Request::GET_VRING_BASE, pair(0, 0), vec![]),
    ])
}

/// Memory and a ring for messages to speak of.
fn guest() -> Result<(GuestMemory, towpath_common::testing::SplitDriver)> {
    let memory = GuestMemory::new(MIB)?;
    let ring = towpath_common::testing::SplitDriver::new(&memory, 64, feature::VERSION_1)?;
    Ok((memory, ring))
}

/// Far more fds than any message wants, with messages and with single bytes.
pub(crate) fn a_thousand_fds() -> Result<()> {
    let scene = Scene::new()?;
    let file = memfd(4096)?;
    let fds = vec![file.as_fd(); 250];
    for request in [
        Request::SET_OWNER,
        Request::SET_MEM_TABLE,
        Request::SET_VRING_CALL,
    ] {
        let raw = raw(&scene)?;
        let message = encode(request.into(), VERSION, &[0; 8]);
        for _ in 0..4 {
            // Hung up on after the first, or not: both are fine.
            let _ = raw.send_bytes(&message, &fds);
        }
        // And fds that come with every single byte.
        for byte in &message {
            let _ = raw.send_bytes(std::slice::from_ref(byte), &fds);
        }
    }
    next_is_served(&scene)?;
    scene.finish()
}

/// The messages of a handshake, shuffled.
pub(crate) fn messages_in_any_order() -> Result<()> {
    let scene = Scene::new()?;
    let (memory, ring) = guest()?;
    for seed in 0..200u64 {
        let mut messages = handshake(&memory, &ring)?;
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for last in (1..messages.len()).rev() {
            // xorshift64: any order will do, the same one each time.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            messages.swap(last, usize::try_from(state % (last as u64 + 1))?);
        }
        let raw = raw(&scene)?;
        for (request, payload, fds) in messages {
            if raw.send(request.into(), VERSION, &payload, &fds).is_err() {
                break;
            }
        }
    }
    next_is_served(&scene)?;
    scene.finish()
}

/// A second front-end waits for the first one to go.
pub(crate) fn two_front_ends_at_once() -> Result<()> {
    let scene = Scene::new()?;
    let mut first = scene.victim()?;
    let second = raw(&scene)?;
    second.send(Request::GET_FEATURES.into(), VERSION, &[], &[])?;
    for _ in 0..20 {
        first.works()?;
    }
    ensure!(!second.closes_within(MOMENT)?, "the second was turned away");
    drop(first);
    second.recv()?;
    drop(second);
    next_is_served(&scene)?;
    scene.finish()
}

#[test]
fn m01_headers_that_lie_and_messages_in_pieces() -> Result<()> {
    let scene = Scene::new()?;
    for size in [4097, 1 << 20, u32::MAX] {
        let raw = raw(&scene)?;
        let mut message = encode(Request::SET_FEATURES.into(), VERSION, &[]);
        message[8..HEADER].copy_from_slice(&size.to_ne_bytes());
        raw.send_bytes(&message, &[])?;
        ensure!(
            raw.closes_within(PATIENCE)?,
            "a payload of {size} bytes was awaited"
        );
    }
    for flags in [0, 2, 3, VERSION | 4, u32::MAX] {
        let raw = raw(&scene)?;
        raw.send(Request::SET_FEATURES.into(), flags, &[0; 8], &[])?;
        ensure!(raw.closes_within(PATIENCE)?, "flags {flags:#x} were taken");
    }
    let message = encode(Request::SET_FEATURES.into(), VERSION, &[0; 8]);
    for cut in 1..message.len() {
        // Cut off: the rest never comes.
        let cut_off = raw(&scene)?;
        cut_off.send_bytes(&message[..cut], &[])?;
        drop(cut_off);
        // In two pieces: taken if they were read as one, or hung up on. Nobody is waited for.
        let slow = raw(&scene)?;
        slow.send_bytes(&message[..cut], &[])?;
        std::thread::sleep(MOMENT);
        let rest = slow.send_bytes(&message[cut..], &[]);
        let asked = rest.and_then(|()| {
            slow.send(Request::GET_FEATURES.into(), VERSION, &[], &[])?;
            slow.recv()
        });
        ensure!(
            !matches!(asked, Err(Error::Timeout(_))),
            "cut at {cut}: no answer"
        );
    }
    next_is_served(&scene)?;
    scene.finish()
}

#[test]
fn m02_every_message_with_fds_it_does_not_want() -> Result<()> {
    let scene = Scene::new()?;
    let (pipe, _writer) = rustix::pipe::pipe()?;
    let dir = std::fs::File::open("/")?;
    let file = memfd(4096)?;
    let event = Events::new()?;
    let kinds = [pipe.as_fd(), dir.as_fd(), file.as_fd(), event.call_fd()];
    for request in REQUESTS {
        for (count, len) in [(0, 8), (1, 8), (1, 40), (2, 8), (9, 16), (253, 8)] {
            let frontend = everything(&scene)?;
            let fds: Vec<_> = kinds.into_iter().cycle().take(count).collect();
            // Whatever the answer is: fds and memory must be back at the end.
            let _ = frontend
                .raw()
                .send(request, VERSION | NEED_REPLY, &vec![0; len], &fds);
            let _ = frontend.raw().closes_within(Duration::from_micros(100));
        }
    }
    next_is_served(&scene)?;
    scene.finish()
}

#[test]
fn m03_vrings_that_do_not_exist() -> Result<()> {
    let scene = Scene::new()?;
    for index in [BEYOND, 255, 256, 65536, 0x1_0001, u32::MAX] {
        for request in [
            Request::SET_VRING_NUM,
            Request::SET_VRING_BASE,
            Request::SET_VRING_ENABLE,
        ] {
            let mut frontend = scene.frontend()?;
            refused(frontend.set_vring(request, index, 1))?;
        }
        let mut frontend = scene.frontend()?;
        ensure!(
            !matches!(frontend.stop_queue(index), Ok(_) | Err(Error::Timeout(_))),
            "GET_VRING_BASE of {index}"
        );
    }
    scene.error_says("vring")?;
    next_is_served(&scene)?;
    scene.finish()
}

#[test]
fn m04_queue_sizes() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    for size in [0, 3, 65, 32769, 65536, u32::MAX] {
        refused(v.frontend.set_vring(Request::SET_VRING_NUM, SPARE, size))?;
        scene.error_says("power of two")?;
    }
    for _ in 0..100 {
        v.frontend.set_vring(Request::SET_VRING_NUM, SPARE, 32768)?;
    }
    refused(v.frontend.set_vring(Request::SET_VRING_NUM, RING, 128))?;
    scene.error_says("running")?;
    v.works()?;
    drop(v);
    scene.finish()
}

#[test]
fn m06_the_region_under_a_running_ring_is_removed() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    let rings = v.memory.regions()[0].clone();
    for _ in 0..10 {
        // Taken or refused, the ring stands still until its memory is back.
        let _ = v.frontend.remove_region(&rings);
        scene.unaffected()?;
        v.frontend.add_region(&rings)?;
        v.works()?;
    }
    // A region that was never there, and the same one twice.
    let other = GuestRegion::new(64 * MIB, MIB, 5, Sealing::Allowed)?;
    refused(v.frontend.remove_region(&other))?;
    scene.error_says("no memory region")?;
    refused(v.frontend.add_region(&rings))?;
    scene.error_says("overlaps")?;
    v.works()?;
    drop(v);
    scene.finish()
}

#[test]
fn m07_ring_addresses() -> Result<()> {
    let scene = Scene::new()?;
    // While the ring runs: it moves there and back.
    let mut v = scene.victim()?;
    v.works()?;
    let (memory, setup) = (v.memory.clone(), v.ring.setup());
    for _ in 0..10 {
        v.frontend.set_vring_addr(RING, &memory, &setup)?;
    }
    v.works()?;
    drop(v);
    // Outside memory, across its end, misaligned, wrapping.
    let (memory, ring) = guest()?;
    let uva = memory.uva(0)?;
    for at in [
        0,
        1,
        uva - 16,
        uva + 1,
        uva + MIB - 8,
        u64::MAX - 7,
        u64::MAX,
    ] {
        let mut frontend = scene.frontend()?;
        frontend.set_memory(&memory)?;
        frontend.set_vring(Request::SET_VRING_NUM, 0, 64)?;
        let mut payload = vec![0; 8];
        (0..4).for_each(|_| payload.extend_from_slice(&at.to_ne_bytes()));
        let told = frontend.tell(Request::SET_VRING_ADDR, &payload, &[]);
        let kick = Some(ring.events().kick_fd());
        let kicked = told.and_then(|()| frontend.set_vring_fd(Request::SET_VRING_KICK, 0, kick));
        refused(kicked)?;
    }
    // Before there is memory.
    let mut frontend = scene.frontend()?;
    frontend.set_vring(Request::SET_VRING_NUM, 0, 64)?;
    let told = frontend.set_vring_addr(0, &memory, &ring.setup());
    ensure!(!matches!(told, Err(Error::Timeout(_))), "no answer");
    drop(frontend);
    next_is_served(&scene)?;
    scene.finish()
}

#[test]
fn m08_dirty_logs_too_small_and_out_of_range() -> Result<()> {
    let scene = Scene::new()?;
    let (memory, ring) = guest()?;
    let logs = [
        (0, 0),
        (1, 0),
        (8, 0),
        (4096, 4096),
        (4096, u64::MAX),
        (u64::MAX, 0),
        (u64::MAX, u64::MAX),
    ];
    for (size, offset) in logs {
        let file = memfd(4096)?;
        let mut frontend = everything(&scene)?;
        frontend.set_memory(&memory)?;
        let answer = frontend.set_log(file.as_fd(), size, offset);
        ensure!(
            !matches!(answer, Err(Error::Timeout(_))),
            "log {size}+{offset}: no answer"
        );
    }
    // A log of the right size; the ring says that it is logged far outside.
    let file = memfd(4096)?;
    let mut frontend = everything(&scene)?;
    frontend.set_memory(&memory)?;
    frontend.set_features(feature::VERSION_1 | feature::LOG_ALL)?;
    frontend.set_log(file.as_fd(), 4096, 0)?;
    let setup = ring.setup();
    frontend.set_vring(Request::SET_VRING_NUM, 0, setup.size.into())?;
    for log in [u64::MAX, u64::MAX - 4096, 1 << 60] {
        let told = frontend.set_vring_addr_log(0, &memory, &setup, Some(log));
        ensure!(
            !matches!(told, Err(Error::Timeout(_))),
            "logged at {log:#x}: no answer"
        );
    }
    frontend.start_queue(0, &memory, &setup)?;
    frontend.set_vring_addr_log(0, &memory, &setup, Some(u64::MAX - 4096))?;
    drop(frontend);
    next_is_served(&scene)?;
    scene.finish()
}

#[test]
fn m09_in_flight_tables_again_and_again_and_full_of_lies() -> Result<()> {
    let scene = Scene::new()?;
    let mut frontend = scene.frontend()?;
    for _ in 0..200 {
        frontend.get_inflight(2, 64)?;
    }
    drop(frontend);
    for (queues, size) in [(0, 64), (1, 0), (65535, 1), (65535, 32768), (65535, 65535)] {
        let mut frontend = scene.frontend()?;
        let answer = frontend.get_inflight(queues, size);
        ensure!(
            !matches!(answer, Err(Error::Timeout(_))),
            "{queues} of {size}: no answer"
        );
    }
    // Each head in flight, each link to itself, every counter the same.
    for fill in [0x01, 0x7f, 0xff] {
        let (memory, ring) = guest()?;
        let mut frontend = scene.frontend()?;
        frontend.set_memory(&memory)?;
        let queues = u16::try_from(RING + 1)?;
        let table = frontend.get_inflight(queues, 64)?;
        let whole = vec![fill; usize::try_from(table.size)?];
        rustix::io::pwrite(&table.file, &whole, table.offset)?;
        frontend.set_inflight(&table)?;
        let started = frontend.start_queue(RING, &memory, &ring.setup());
        ensure!(!matches!(started, Err(Error::Timeout(_))), "no answer");
        scene.unaffected()?;
    }
    next_is_served(&scene)?;
    scene.finish()
}

#[test]
fn m10_features_that_were_not_offered() -> Result<()> {
    let scene = Scene::new()?;
    for bits in [u64::MAX, 1 << 63, feature::PACKED, FOREIGN] {
        let mut frontend = scene.frontend()?;
        refused(frontend.tell(Request::SET_FEATURES, &bits.to_ne_bytes(), &[]))?;
        scene.error_says("not offered")?;
    }
    let mut v = scene.victim()?;
    for _ in 0..20 {
        v.frontend.set_features(wanted().features)?;
        v.works()?;
    }
    drop(v);
    scene.finish()
}

#[test]
fn m11_hanging_up_after_each_message_of_a_handshake() -> Result<()> {
    let scene = Scene::new()?;
    let (memory, ring) = guest()?;
    let messages = handshake(&memory, &ring)?.len();
    for last in 0..=messages {
        let raw = raw(&scene)?;
        for (request, payload, fds) in handshake(&memory, &ring)?.into_iter().take(last) {
            raw.send(request.into(), VERSION, &payload, &fds)?;
        }
    }
    // With requests in flight.
    for _ in 0..20 {
        let mut v: Victim = scene.victim()?;
        v.busy()?;
    }
    next_is_served(&scene)?;
    scene.finish()
}

#[test]
fn m12_replies_that_nobody_reads() -> Result<()> {
    let scene = Scene::new()?;
    let wanted = Wanted {
        protocol: Protocol::all(),
        ..wanted()
    };
    for request in [Request::GET_FEATURES, Request::GET_STATUS] {
        // It gives up sending after a while: that is how it knows that nothing is read any more.
        let deaf = Frontend::connect(&scene.socket("victim"), wanted, Duration::from_secs(3))?;
        let mut sent = 0;
        while sent < 100_000 && deaf.raw().send(request.into(), VERSION, &[], &[]).is_ok() {
            sent += 1;
        }
        ensure!(sent < 100_000, "{sent} requests taken, and no reply read");
        // The control plane does not wait for that session.
        scene.status()?;
        scene.unaffected()?;
    }
    next_is_served(&scene)?;
    scene.finish()
}

#[test]
fn m14_a_storm_of_connections_and_a_front_end_that_never_speaks() -> Result<()> {
    let scene = Scene::new()?;
    for round in 0..1500 {
        let raw = raw(&scene)?;
        if round % 3 == 0 {
            raw.send(Request::GET_FEATURES.into(), VERSION, &[], &[])?;
        }
    }
    until("every connection seen", || {
        let seen = scene.status()?["stats"]["connections"].as_u64();
        Ok((seen > Some(1500)).then_some(()))
    })?;
    scene.unaffected()?;
    // Half a header, and silence: that front-end holds up its own disk and no other.
    let silent = raw(&scene)?;
    silent.send_bytes(&[1, 0, 0, 0, 1], &[])?;
    scene.unaffected()?;
    drop(silent);
    next_is_served(&scene)?;
    scene.finish()
}
