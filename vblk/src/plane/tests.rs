//! Tests of the plane, stepped by hand in a time of its own: who dozes and who wakes, and turns.

use std::time::Duration;

use towpath_common::clock::Rate;
use towpath_common::sched::Share;
use towpath_common::testing::{
    Driver, Form, GuestMemory, Segment, SplitDriver, Token, direct, feature,
};

use super::*;
use crate::config::Limit;
use crate::engine::Guest;
use crate::engine::memory::Memory;
use crate::qos::Throttle;
use crate::testing::IN;

const FEATURES: u64 = feature::VERSION_1 | feature::EVENT_IDX;
const RING: u16 = 128;

/// A plane that is stepped by hand, in a time of its own.
struct Bed {
    plane: BlkPlane<Memory>,
    now: Cycles,
    rate: Rate,
}

/// A guest with one queue on a null disk.
struct Client {
    key: DiskKey,
    memory: GuestMemory,
    driver: SplitDriver,
    shared: Arc<DiskShared>,
    /// Requests that came back, to be posted again.
    spare: Vec<Token>,
    posted: u64,
    done: u64,
}

impl Bed {
    fn new(idle: Idle) -> Bed {
        let clock = Clock::new();
        let (now, rate) = (clock.now(), clock.rate());
        let context = Context {
            poller: Poller::new().unwrap(),
            clock,
            index: 0,
            idle,
        };
        let io = Io::new(Memory::new(), 256).unwrap();
        let plane = BlkPlane::new(io, context, Events::default());
        Bed { plane, now, rate }
    }

    fn client(&mut self, key: DiskKey, weight: u32) -> Client {
        let shared = Arc::new(DiskShared::new(1, 1));
        let share = Share {
            weight: weight.try_into().unwrap(),
            cap: None,
        };
        let new = NewDisk {
            key,
            name: format!("d{key}").into(),
            disk: Arc::new(Disk::null(1 << 20)),
            share,
            throttles: [None, None],
            shared: Arc::clone(&shared),
        };
        self.plane.add_disk(new, self.now).unwrap();
        let memory = GuestMemory::new(1 << 20).unwrap();
        let driver = SplitDriver::new(&memory, RING, FEATURES).unwrap();
        let mem = direct::mem(&memory).unwrap();
        let guest = Guest::plain(Arc::clone(&mem));
        self.plane.set_memory(key, &guest).unwrap();
        let mut attach = direct::attach(&driver, &memory, &mem, FEATURES).unwrap();
        let kick = driver.events().kick_fd().try_clone_to_owned().unwrap();
        attach.kick = Some(kick);
        assert!(self.plane.attach(key, 0, attach, self.now));
        Client {
            key,
            memory,
            driver,
            shared,
            spare: Vec::new(),
            posted: 0,
            done: 0,
        }
    }

    /// A step, and housekeeping, after some time.
    fn step(&mut self, after: Duration) -> bool {
        self.now += self.rate.of(after);
        let worked = self.plane.step(self.now);
        self.plane.housekeep(self.now);
        worked
    }

    fn dozing(&self) -> Vec<DiskKey> {
        let disks = self.plane.disks.iter().flatten();
        disks.filter(|d| d.dozing).map(|d| d.key).collect()
    }
}

impl Client {
    fn prepare(&mut self) -> Token {
        let gpa = self.memory.alloc(1024, 16).unwrap();
        self.memory.write(gpa, &IN.to_le_bytes()).unwrap();
        let parts = [
            Segment::readable(gpa, 16),
            Segment::writable(gpa + 256, 512),
            Segment::writable(gpa + 800, 1),
        ];
        self.driver.chain(&parts, Form::Direct).unwrap()
    }

    fn post(&mut self, count: u64) {
        for _ in 0..count {
            let token = self.spare.pop().unwrap_or_else(|| self.prepare());
            self.driver.post(token);
        }
        self.posted += count;
        // Kicks if the device wants it, as a driver does.
        self.driver.publish().unwrap();
    }

    fn reap(&mut self) -> u64 {
        let mut done = Vec::new();
        self.driver.reap(&mut done).unwrap();
        self.spare.extend(done.iter().map(|one| one.token));
        self.done += done.len() as u64;
        done.len() as u64
    }
}

const LONG: Duration = Duration::from_millis(11);
const SHORT: Duration = Duration::from_micros(60);

#[test]
fn who_asks_for_nothing_dozes_until_it_kicks() {
    let mut bed = Bed::new(Idle::Adaptive(Duration::ZERO));
    let (mut busy, mut quiet) = (bed.client(1, 256), bed.client(2, 256));
    for _ in 0..3 {
        busy.post(1);
        assert!(bed.step(LONG / 2));
        assert_eq!(busy.reap(), 1);
    }
    assert_eq!(bed.dozing(), [2]);
    // It is not asked, but heard of.
    quiet.post(3);
    bed.step(SHORT);
    assert_eq!(quiet.reap(), 3);
    assert_eq!(bed.dozing(), [0; 0]);
    bed.step(LONG);
    assert_eq!(bed.dozing(), [1, 2]);
    // What was counted is seen from outside.
    let completed = |client: &Client| client.shared.queues[0].counters.snapshot();
    assert_eq!(completed(&quiet).next_used, 3);
    assert_eq!(completed(&busy).next_used, 3);
}

#[test]
fn a_worker_that_never_sleeps_polls_all() {
    let mut bed = Bed::new(Idle::Busy);
    bed.client(1, 256);
    for _ in 0..5 {
        bed.step(LONG);
    }
    assert_eq!(bed.dozing(), [0; 0]);
}

#[test]
fn a_driver_that_forgets_to_kick_is_found() {
    let mut bed = Bed::new(Idle::Interrupt);
    let mut client = bed.client(1, 256);
    bed.step(LONG);
    assert_eq!(bed.dozing(), [1]);
    // Silences its own kick: as if it had never been told to.
    client.driver.age(0);
    client.post(1);
    let _ = bed.plane.poller.look();
    bed.step(SHORT);
    bed.step(Duration::from_secs(2));
    bed.step(SHORT);
    assert_eq!(client.reap(), 1);
}

#[test]
fn work_that_waits_keeps_a_disk_awake() {
    let mut bed = Bed::new(Idle::Interrupt);
    let mut client = bed.client(1, 256);
    let (_, disk) = bed.plane.find(1).unwrap();
    disk.paused = true;
    client.post(1);
    bed.step(LONG);
    bed.step(LONG);
    assert_eq!(bed.dozing(), [0; 0]);
    bed.plane.apply(Change::Resume(1), bed.now);
    assert!(bed.step(SHORT));
    assert_eq!(client.reap(), 1);
}

#[test]
fn a_disk_that_dozes_can_go() {
    let mut bed = Bed::new(Idle::Interrupt);
    let [a, mut b] = [1, 2].map(|key| bed.client(key, 256));
    bed.step(LONG);
    assert_eq!(bed.dozing(), [1, 2]);
    bed.plane.remove_disk(a.key);
    b.post(1);
    bed.step(SHORT);
    assert_eq!(b.reap(), 1);
    bed.plane.remove_disk(b.key);
    assert!(bed.plane.naps.awake.is_empty());
    bed.step(LONG);
}

/// What was done for each of two in every step, while they keep so many in flight.
fn race(weights: [u32; 2], depth: u64, steps: usize) -> Vec<[u64; 2]> {
    let mut bed = Bed::new(Idle::Interrupt);
    let mut clients = weights.map(|weight| bed.client(weight.into(), weight));
    let mut done = Vec::new();
    for _ in 0..steps {
        for client in &mut clients {
            let missing = depth - (client.posted - client.done);
            client.post(missing);
        }
        bed.now = bed.plane.clock.now();
        bed.plane.step(bed.now);
        done.push(clients.each_mut().map(Client::reap));
    }
    done
}

#[test]
fn beside_others_of_another_weight_half_is_left() {
    // In the first step nobody is known to be beside another.
    let done = race([768, 256], 32, 100);
    let whole: Vec<_> = done.iter().skip(2).filter(|d| d.contains(&32)).collect();
    assert!(whole.is_empty(), "{whole:?}");
    assert!(done.iter().skip(2).all(|d| d.contains(&16)), "{done:?}");
    // Who weighs the same takes all there is.
    let done = race([255, 256], 32, 1);
    assert_eq!(done[0][0], 32);
}

#[test]
fn queues_of_a_limited_disk_take_turns() {
    let mut bed = Bed::new(Idle::Interrupt);
    let mut client = bed.client(1, 256);
    let mut second = SplitDriver::new(&client.memory, RING, FEATURES).unwrap();
    let mem = Arc::clone(bed.plane.queues[0].as_ref().unwrap().ring.mem());
    let attach = direct::attach(&second, &client.memory, &mem, FEATURES).unwrap();
    assert!(bed.plane.attach(1, 1, attach, bed.now));
    let limit = Limit {
        iops: Some(1_000.try_into().unwrap()),
        iops_burst: Some(1.try_into().unwrap()),
        ..Limit::default()
    };
    let throttle = Throttle::new(&limit, bed.rate);
    bed.plane
        .apply(Change::Throttle(1, [throttle, None]), bed.now);
    client.post(20);
    std::mem::swap(&mut client.driver, &mut second);
    client.post(20);
    for _ in 0..20 {
        bed.step(Duration::from_millis(1));
    }
    let of = |driver: &SplitDriver| driver.used_idx();
    let counts = [of(&client.driver), of(&second)];
    assert!(counts.iter().all(|count| *count >= 5), "{counts:?}");
}
