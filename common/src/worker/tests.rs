//! Tests of the worker: it sleeps, no wake-up is lost, it dies loudly and ends in order.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::mailbox::{CallError, ReplyTo};

/// A guard against hangs, never a measurement.
const SOON: Duration = Duration::from_secs(30);

/// Work that another thread posts: as a ring does, it is looked at first and waited for second.
#[derive(Debug)]
struct Source {
    posted: AtomicU64,
    done: AtomicU64,
    armed: AtomicBool,
    kick: OwnedFd,
    /// Woke up to find work that nobody kicked for.
    lost: AtomicU64,
    steps: AtomicU64,
    dropped: AtomicBool,
}

impl Source {
    fn new() -> Arc<Source> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Arc::new(Source {
            posted: AtomicU64::new(0),
            done: AtomicU64::new(0),
            armed: AtomicBool::new(false),
            kick: eventfd(0, flags).unwrap(),
            lost: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            dropped: AtomicBool::new(false),
        })
    }

    fn post(&self) -> u64 {
        let n = self.posted.fetch_add(1, SeqCst) + 1;
        if self.armed.swap(false, SeqCst) {
            rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
        }
        n
    }

    fn pending(&self) -> bool {
        self.posted.load(SeqCst) != self.done.load(SeqCst)
    }

    /// Wait until `n` is done, without giving up the processor to the worker more than needed.
    fn wait(&self, n: u64) {
        let start = Instant::now();
        while self.done.load(SeqCst) < n {
            assert!(start.elapsed() < SOON, "work {n} was never done");
            std::thread::yield_now();
        }
    }
}

#[derive(Debug)]
enum Change {
    Double(u64, ReplyTo<u64>),
    Count,
    Die(ReplyTo<()>),
}

/// A moment on the way to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// The last step found nothing; nothing is armed yet.
    BeforeArming,
    /// All is armed and looked at again; the worker sleeps next.
    BeforeWaiting,
}

/// Work that arrives at just that moment, as often as `left` says.
struct Ambush {
    moment: Moment,
    left: std::cell::Cell<u32>,
    /// By mailbox; else by posting to the source.
    handle: Option<Arc<OnceLock<Handle<Change>>>>,
}

struct Bench {
    source: Arc<Source>,
    ambush: Option<Ambush>,
    /// `arm` found nothing, so the worker went to sleep.
    slept: bool,
    period: Option<Cycles>,
}

impl Plane for Bench {
    type Change = Change;

    fn apply(&mut self, change: Change, _: Cycles) {
        match change {
            Change::Double(n, reply) => reply.send(2 * n),
            Change::Count => {
                self.source.posted.fetch_add(1, SeqCst);
            }
            Change::Die(_reply) => panic!("as the test wants it"),
        }
    }

    fn step(&mut self, _: Cycles) -> bool {
        self.source.steps.fetch_add(1, SeqCst);
        let posted = self.source.posted.load(SeqCst);
        self.source.done.swap(posted, SeqCst) != posted
    }

    fn arm(&mut self) -> bool {
        self.source.armed.store(true, SeqCst);
        self.slept = !self.source.pending();
        !self.slept
    }

    fn disarm(&mut self) {
        let unkicked = rustix::io::read(&self.source.kick, &mut [0u8; 8]).is_err();
        // `armed` still stands if nobody has posted, or somebody is about to kick.
        let armed = self.source.armed.swap(false, SeqCst);
        if self.slept && unkicked && armed && self.source.pending() {
            self.source.lost.fetch_add(1, SeqCst);
        }
    }

    fn housekeep(&mut self, _: Cycles) {
        self.spring(Moment::BeforeArming);
    }

    fn deadline(&self, now: Cycles) -> Option<Cycles> {
        self.spring(Moment::BeforeWaiting);
        self.period.map(|period| now + period)
    }
}

impl Bench {
    fn spring(&self, now: Moment) {
        let Some(ambush) = self.ambush.as_ref().filter(|a| a.moment == now) else {
            return;
        };
        let Some(left) = ambush.left.get().checked_sub(1) else {
            return;
        };
        match &ambush.handle {
            None => drop(self.source.post()),
            // Not spawned to the end yet: another time.
            Some(handle) if handle.get().is_none() => return,
            Some(handle) => handle.get().unwrap().post(Change::Count).unwrap(),
        }
        ambush.left.set(left);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.source.dropped.store(true, SeqCst);
    }
}

fn bench(idle: Idle) -> (Arc<Source>, Worker<Change>) {
    let source = Source::new();
    let mine = Arc::clone(&source);
    let worker = Worker::spawn(0, None, idle, move |context| {
        context.poller.add(mine.kick.as_fd())?;
        Ok(Bench {
            source: mine,
            ambush: None,
            slept: false,
            period: None,
        })
    });
    (source, worker.unwrap())
}

#[test]
fn no_wake_up_is_lost_between_arming_and_sleeping() {
    for idle in [
        Idle::Interrupt,
        Idle::Adaptive(Duration::from_micros(5)),
        Idle::Adaptive(SPIN),
    ] {
        let (source, worker) = bench(idle);
        let start = Instant::now();
        for n in 0..5000u32 {
            // Hit every moment of going to sleep: wait a little longer each time.
            (0..n % 257).for_each(|_| std::hint::spin_loop());
            source.wait(source.post());
        }
        assert_eq!(source.lost.load(SeqCst), 0);
        // A lost wake-up would be found a heartbeat later: a few, and this guard strikes.
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        // One that polls a while before sleeping may always have found work in time.
        assert!(
            worker.pulse().sleeps() > 0 || idle != Idle::Interrupt,
            "never slept"
        );
    }
}

#[test]
fn work_that_comes_at_the_last_moment_is_found_before_sleeping() {
    const TIMES: u32 = 200;
    for moment in [Moment::BeforeArming, Moment::BeforeWaiting] {
        for by_mailbox in [false, true] {
            let source = Source::new();
            let (mine, cell) = (Arc::clone(&source), Arc::new(OnceLock::new()));
            let handle = by_mailbox.then(|| Arc::clone(&cell));
            let worker = Worker::spawn(0, None, Idle::Interrupt, move |context| {
                context.poller.add(mine.kick.as_fd())?;
                let left = std::cell::Cell::new(TIMES);
                let ambush = Some(Ambush {
                    moment,
                    left,
                    handle,
                });
                Ok(Bench {
                    source: mine,
                    ambush,
                    slept: false,
                    period: None,
                })
            });
            let worker = worker.unwrap();
            cell.set(worker.handle()).unwrap();
            // Overlooked, each of them would lie for a heartbeat: minutes, and the guard strikes.
            source.wait(TIMES.into());
        }
    }
}

#[test]
fn commands_reach_a_sleeping_worker() {
    let (_source, worker) = bench(Idle::Interrupt);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for caller in 0..4u64 {
            let handle = worker.handle();
            scope.spawn(move || {
                for n in 0..500 {
                    let n = n * 4 + caller;
                    assert_eq!(handle.call(|r| Change::Double(n, r)), Ok(2 * n));
                }
            });
        }
    });
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    assert!(worker.pulse().sleeps() > 0);
}

#[test]
fn a_busy_worker_never_sleeps_and_serves_all_the_same() {
    let (source, worker) = bench(Idle::Busy);
    for _ in 0..100 {
        source.wait(source.post());
    }
    assert_eq!(worker.handle().call(|r| Change::Double(4, r)), Ok(8));
    assert_eq!(worker.pulse().sleeps(), 0);
}

#[test]
fn callers_of_a_worker_that_panics_fail_instead_of_hanging() {
    let (source, worker) = bench(Idle::Interrupt);
    let handle = worker.handle();
    assert_eq!(handle.call(Change::Die), Err(CallError::Dropped));
    let start = Instant::now();
    while !worker.pulse().ended() {
        assert!(start.elapsed() < SOON);
        std::thread::yield_now();
    }
    let late = handle.call(|r| Change::Double(1, r));
    assert!(matches!(late, Err(CallError::Closed)), "{late:?}");
    assert!(source.dropped.load(SeqCst), "its rings went with it");
    drop(worker);
}

#[test]
fn dropping_a_worker_ends_and_joins_it() {
    for idle in [Idle::Interrupt, Idle::Busy] {
        let (source, worker) = bench(idle);
        let (handle, pulse) = (worker.handle(), Arc::clone(worker.pulse()));
        drop(worker);
        assert!(source.dropped.load(SeqCst) && pulse.ended());
        assert!(handle.call(|r| Change::Double(1, r)).is_err());
    }
}

#[test]
fn a_deadline_wakes_a_sleeping_worker() {
    let source = Source::new();
    let mine = Arc::clone(&source);
    let worker = Worker::spawn(0, None, Idle::Interrupt, move |context| {
        let period = Some(context.clock.rate().of(Duration::from_micros(200)));
        Ok(Bench {
            source: mine,
            ambush: None,
            slept: false,
            period,
        })
    });
    let start = Instant::now();
    // By heartbeats alone these would take five minutes.
    while source.steps.load(SeqCst) < 300 {
        assert!(start.elapsed() < SOON);
        std::thread::yield_now();
    }
    drop(worker);
}

#[test]
fn what_goes_wrong_at_the_start_is_returned() {
    let spawn = |cpu, plane: fn() -> io::Result<Bench>| {
        Worker::<Change>::spawn(3, cpu, Idle::Interrupt, move |_| plane()).map(drop)
    };
    let refused = spawn(None, || Err(io::Error::other("no io_uring here"))).unwrap_err();
    assert_eq!(refused.to_string(), "no io_uring here");
    for cpu in [1023, 1 << 20] {
        let refused = spawn(Some(cpu), || Err(io::Error::other("not reached"))).unwrap_err();
        let refused = refused.to_string();
        assert!(refused.contains(&format!("CPU {cpu}")), "{refused}");
        assert!(refused.contains("this process may use: "), "{refused}");
    }
    let refused = spawn(None, || panic!("as the test wants it")).unwrap_err();
    assert!(refused.to_string().contains("died at its start"));
}
