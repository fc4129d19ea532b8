//! The session against `vhost-user-backend`'s daemon as the reference: the same front-end says the
//! same things to an echo device behind each, and must hear the same answers and see the same ring
//! progress. Left out is what the reference lacks (in-flight tables, status, config changes, a
//! second connection) and where it is known to be lax (it takes a queue size of 3 and ignores it).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use towpath_common::testing::bed::{Bed, Guest, SOON, Scratch, everything};
use towpath_common::testing::memory::Sealing;
use towpath_common::testing::{
    Error, Frontend, GuestMemory, GuestRegion, Result, SplitDriver, Wanted, feature,
};
use vhost::vhost_user::message::{FrontendReq as Request, VhostUserProtocolFeatures as Protocol};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueOwnedT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// The echo device as the reference's users would write it.
struct Reference {
    memory: Mutex<Memory>,
    config: Mutex<Vec<u8>>,
}

impl VhostUserBackend for Reference {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        32768
    }

    fn features(&self) -> u64 {
        wanted().features | feature::PROTOCOL
    }

    fn protocol_features(&self) -> Protocol {
        wanted().protocol
    }

    fn set_event_idx(&self, _: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.config.lock().unwrap();
        let from = offset as usize;
        config
            .get(from..from + size as usize)
            .unwrap_or_default()
            .to_vec()
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> std::io::Result<()> {
        let mut config = self.config.lock().unwrap();
        config[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn update_memory(&self, memory: Memory) -> std::io::Result<()> {
        *self.memory.lock().unwrap() = memory;
        Ok(())
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &self,
        queue: u16,
        _: EventSet,
        vrings: &[VringRwLock],
        _: usize,
    ) -> std::io::Result<()> {
        let mut vring = vrings[usize::from(queue)].get_mut();
        let map = || self.memory.lock().unwrap().memory();
        loop {
            vring.disable_notification().unwrap();
            loop {
                let next = vring.get_queue_mut().iter(map()).unwrap().next();
                let Some(chain) = next else { break };
                // The map is taken after the chain: a chain may lie in memory that was added while
                // this loop ran, and was published only after the addition had been answered.
                let memory = map();
                let head = chain.head_index();
                let mut bytes = Vec::new();
                let mut reader = chain.clone().reader(&memory).unwrap();
                reader.read_to_end(&mut bytes).unwrap();
                let written = chain.writer(&memory).unwrap().write(&bytes).unwrap();
                vring
                    .add_used(head, u32::try_from(written).unwrap())
                    .unwrap();
                if vring.needs_notification().unwrap() {
                    vring.signal_used_queue().unwrap();
                }
            }
            if !vring.enable_notification().unwrap() {
                return Ok(());
            }
        }
    }
}

/// What both can do.
fn wanted() -> Wanted {
    Wanted {
        features: everything().features,
        protocol: Protocol::MQ
            | Protocol::REPLY_ACK
            | Protocol::CONFIG
            | Protocol::CONFIGURE_MEM_SLOTS,
    }
}

/// What was heard and seen, line by line.
type Transcript = Vec<String>;

/// What a front-end says, and notes.
type Script = fn(&mut Guest, &mut Transcript);

/// An answer, without what each implementation words in its own way: the reference hangs up after
/// a refusal, we go on.
fn heard<T: std::fmt::Debug>(answer: Result<T>) -> String {
    match answer {
        Ok(value) => format!("{value:?}"),
        Err(Error::Refused { request, .. }) => format!("{request} refused"),
        Err(Error::Closed) => "hung up".to_owned(),
        Err(e) => format!("{e}"),
    }
}

fn play(front: Frontend, script: Script) -> Transcript {
    let mut heard = Transcript::new();
    let mut guest = Guest::new(front, &[(0, 1 << 20), (1 << 20, 1 << 20)]);
    heard.push(format!(
        "{:?} {:?}",
        guest.front.protocol(),
        guest.front.queues()
    ));
    guest.share();
    script(&mut guest, &mut heard);
    for (i, driver) in guest.drivers.iter().enumerate() {
        let used = (0..driver.size())
            .map(|n| driver.used_element(n))
            .collect::<Vec<_>>();
        heard.push(format!("queue {i}: {} {used:?}", driver.used_idx()));
    }
    heard
}

fn reference(script: Script) -> Transcript {
    let dir = Scratch::new();
    let path = dir.path().join("s");
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let backend = Arc::new(Reference {
        memory: Mutex::new(memory.clone()),
        config: Mutex::new((0..64).collect()),
    });
    let mut daemon = VhostUserDaemon::new("reference".to_owned(), backend, memory).unwrap();
    let at = path.clone();
    let thread = std::thread::spawn(move || daemon.serve(at));
    let front = Frontend::connect(&path, wanted(), SOON).unwrap();
    let transcript = play(front, script);
    // A refusal ends the reference with an error; that is what it was asked for.
    let _ = thread.join().unwrap();
    transcript
}

fn ours(script: Script) -> Transcript {
    play(Bed::new(2).front(wanted()), script)
}

fn start(guest: &mut Guest, sizes: &[u16]) {
    for (queue, size) in (0u32..).zip(sizes) {
        guest.queue(*size);
        guest.start(queue);
    }
}

fn agree(scripts: &[(&str, Script)]) {
    for (what, script) in scripts {
        assert_eq!(ours(*script), reference(*script), "{what}");
    }
}

#[test]
fn rings_take_the_same_course() {
    agree(&[
        ("stop and go on", |guest, heard| {
            start(guest, &[8, 64]);
            for round in 0..3u8 {
                for n in 0..11u8 {
                    guest.echo(0, &[round, n]);
                    guest.echo(1, &[n; 100]);
                }
                heard.push(self::heard(guest.front.stop_queue(0)));
                guest.start(0);
            }
            heard.push(self::heard(guest.front.stop_queue(0)));
            heard.push(self::heard(guest.front.stop_queue(1)));
        }),
        ("bursts", |guest, heard| {
            start(guest, &[32]);
            for n in 0..20u8 {
                for _ in 0..n % 16 {
                    guest.offer(0, &[n; 40]);
                }
                guest.settle(0);
            }
            heard.push(self::heard(guest.front.stop_queue(0)));
        }),
        ("indices wrap", |guest, heard| {
            guest.queue(16);
            guest.drivers[0].age(0xfff0);
            guest.start(0);
            (0..40u8).for_each(|n| guest.echo(0, &[n]));
            heard.push(self::heard(guest.front.stop_queue(0)));
        }),
        ("disable and enable", |guest, heard| {
            start(guest, &[8, 8]);
            guest.echo(0, b"enabled");
            heard.push(self::heard(guest.front.enable(0, false)));
            guest.echo(1, b"the other");
            heard.push(self::heard(guest.front.enable(0, true)));
            guest.echo(0, b"again");
        }),
    ]);
}

#[test]
fn memory_queues_and_configuration_change_in_the_same_way() {
    agree(&[
        ("memory comes and goes", |guest, heard| {
            start(guest, &[8]);
            let extra = Arc::new(GuestRegion::new(1 << 32, 1 << 20, 9, Sealing::Allowed).unwrap());
            guest.echo(0, b"before");
            heard.push(self::heard(guest.front.add_region(&extra)));
            let old = std::mem::replace(
                &mut guest.inside.memory,
                GuestMemory::of(vec![Arc::clone(&extra)]),
            );
            guest.echo(0, b"buffers in new memory");
            guest.inside.memory = old;
            heard.push(self::heard(guest.front.remove_region(&extra)));
            guest.echo(0, b"buffers in old memory");
            guest.share();
            guest.echo(0, b"and the table once more");
        }),
        ("a queue moves", |guest, heard| {
            start(guest, &[8]);
            guest.echo(0, b"here");
            heard.push(self::heard(guest.front.stop_queue(0)));
            let features = guest.front.features();
            guest.drivers[0] = SplitDriver::new(&guest.inside.memory, 32, features).unwrap();
            guest.start(0);
            (0..33u8).for_each(|n| guest.echo(0, &[n]));
            heard.push(self::heard(guest.front.stop_queue(0)));
        }),
        ("configuration space", |guest, heard| {
            for (offset, len) in [(0, 64), (60, 4), (0, 1)] {
                heard.push(self::heard(guest.front.config(offset, len)));
            }
            heard.push(self::heard(guest.front.set_config(4, &[9; 3])));
            heard.push(self::heard(guest.front.config(0, 16)));
        }),
    ]);
}

#[test]
fn the_same_mistakes_are_refused() {
    agree(&[
        ("a queue size of 0", |guest, heard| {
            let said = guest.front.set_vring(Request::SET_VRING_NUM, 0, 0);
            heard.push(self::heard(said));
        }),
        ("a queue size of 65536", |guest, heard| {
            let said = guest.front.set_vring(Request::SET_VRING_NUM, 0, 65536);
            heard.push(self::heard(said));
        }),
        ("a queue that is not there", |guest, heard| {
            let said = guest.front.set_vring(Request::SET_VRING_NUM, 2, 8);
            heard.push(self::heard(said));
        }),
        ("the base of a queue that is not there", |guest, heard| {
            heard.push(self::heard(guest.front.stop_queue(2)));
        }),
        ("a kick for a queue that is not there", |guest, heard| {
            let said = guest.front.set_vring_fd(Request::SET_VRING_KICK, 2, None);
            heard.push(self::heard(said));
        }),
        ("features nobody offered", |guest, heard| {
            let bits = (guest.front.features() | 1 << 34).to_ne_bytes();
            let said = guest.front.tell(Request::SET_FEATURES, &bits, &[]);
            heard.push(self::heard(said));
        }),
        ("a region that was never added", |guest, heard| {
            let extra = GuestRegion::new(1 << 32, 4096, 9, Sealing::Allowed).unwrap();
            heard.push(self::heard(guest.front.remove_region(&extra)));
        }),
        ("a region over another", |guest, heard| {
            let over = GuestRegion::new(4096, 8192, 9, Sealing::Allowed).unwrap();
            heard.push(self::heard(guest.front.add_region(&over)));
        }),
    ]);
}
