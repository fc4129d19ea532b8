//! A pinned thread that owns its queues and polls them, and sleeps when there is nothing to poll.
//!
//! ```text
//!   step step step ... step      nothing to do for `spin`      asleep
//!   └─ mailbox, stats every HOUSEKEEP steps ─┘  arm → look again → epoll_wait ─┐
//!        ↑                                                                     │
//!        └───────────── kick, command, completion, deadline ───────────────────┘
//! ```
//!
//! While busy the thread takes no lock, touches no heap, writes no log and makes no system call but
//! those of its plane's engine and notifications, and yields between two looks while kernel threads
//! hold all its work, and for a moment after a command. It sleeps only after every source of work
//! was armed *and then* looked at once more, so no wake-up is lost; it always wakes within
//! [`HEARTBEAT`], so that a watchdog can tell an idle worker from a stuck one.

mod poller;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::CpuSet;
use tracing::{error, warn};

use crate::clock::{Clock, Cycles, Rate};
use crate::mailbox::{CAPACITY, Inbox, Sender, mailbox};
pub use poller::{Poller, RUNGS, Rungs};

/// Steps between two looks at the housekeeping: 256 steps of an idle poll are some 10 µs, of a full
/// burst a millisecond or two.
const HOUSEKEEP: u32 = 256;

/// Longest sleep.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// Default time to poll after the last work before sleeping: longer than a flash read, so that one
/// request after the other is served without sleeping in between.
pub const SPIN: Duration = Duration::from_micros(200);

/// For how long after a command a worker without work offers its processor between two looks:
/// whoever asked may have to go on there, and mostly asks again, as for each queue of a session
/// that is resumed. One with work does so once a command: its guests come first.
const COURTESY: Duration = Duration::from_millis(1);

/// When a worker sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Poll this long after the last work, then sleep.
    Adaptive(Duration),
    /// Never sleep.
    Busy,
    /// Sleep as soon as there is no work.
    Interrupt,
}

/// What a worker does: the data plane of one daemon, on one thread.
pub trait Plane {
    /// A validated change, from the control plane or a session.
    type Change: Send + 'static;

    /// Carry out a change, between two steps.
    fn apply(&mut self, change: Self::Change, now: Cycles);

    /// One round over everything that may have work; false if there was none.
    fn step(&mut self, now: Cycles) -> bool;

    /// Ask every source of work for a wake-up, then look again: true if there is work already.
    fn arm(&mut self) -> bool;

    /// Polling again: wake-ups are not needed.
    fn disarm(&mut self);

    /// What was added to the poller with `token` has become readable.
    fn rung(&mut self, _token: u32) {}

    /// Publish counters; look at what is too rare for every step.
    fn housekeep(&mut self, now: Cycles);

    /// True if all that is in flight is done by threads that may need this processor: offer it to
    /// them between two looks.
    fn is_patient(&self) -> bool {
        false
    }

    /// When the plane wants to be woken although nothing happens (a cap runs out).
    fn deadline(&self, now: Cycles) -> Option<Cycles>;
}

/// What a plane is given to work with, on the worker's own thread.
#[derive(Debug, Clone)]
pub struct Context {
    /// Wakes the worker.
    pub poller: Poller,
    /// Reads the time.
    pub clock: Clock,
    /// Index of this worker.
    pub index: usize,
    /// When it sleeps.
    pub idle: Idle,
}

/// What the control plane sees of a worker.
#[derive(Debug, Default)]
pub struct Pulse {
    /// Rounds of the loop that counted something: moves whenever the worker is alive.
    beats: AtomicU64,
    /// Time spent in steps that did work, in cycles.
    busy: AtomicU64,
    /// Times it went to sleep.
    sleeps: AtomicU64,
    /// The thread has ended.
    ended: AtomicBool,
}

impl Pulse {
    /// Moves at least once in [`HEARTBEAT`] while the worker lives.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.beats.load(Relaxed)
    }

    /// Time spent in steps that did work, in cycles.
    #[must_use]
    pub fn busy(&self) -> u64 {
        self.busy.load(Relaxed)
    }

    /// Times the worker went to sleep.
    #[must_use]
    pub fn sleeps(&self) -> u64 {
        self.sleeps.load(Relaxed)
    }

    /// True once the thread is gone, by order or by a bug.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended.load(Relaxed)
    }
}

/// A running worker.
#[derive(Debug)]
pub struct Worker<C: Send + 'static> {
    sender: Sender<Command<C>>,
    pulse: Arc<Pulse>,
    rate: Rate,
    cpu: Option<usize>,
    thread: Option<JoinHandle<()>>,
}

/// Posts changes to a worker.
#[derive(Debug)]
pub struct Handle<C: Send + 'static> {
    sender: Sender<Command<C>>,
}

impl<C: Send + 'static> Clone for Handle<C> {
    fn clone(&self) -> Self {
        Handle {
            sender: self.sender.clone(),
        }
    }
}

#[derive(Debug)]
enum Command<C> {
    Change(C),
    Stop,
}

/// Longest a caller waits for a worker: it answers between two steps, so this is for drains that
/// depend on a device, and for workers that are stuck.
pub const PATIENCE: Duration = Duration::from_secs(300);

impl<C: Send + 'static> Handle<C> {
    /// Post a change and wait for its answer.
    ///
    /// # Errors
    /// [`crate::mailbox::CallError`] if the worker is gone or does not answer.
    pub fn call<T: Send>(
        &self,
        build: impl FnOnce(crate::mailbox::ReplyTo<T>) -> C,
    ) -> Result<T, crate::mailbox::CallError> {
        self.sender
            .call(|reply| Command::Change(build(reply)), PATIENCE)
    }

    /// Post a change that needs no answer.
    ///
    /// # Errors
    /// [`crate::mailbox::CallError`] if the worker is gone.
    pub fn post(&self, change: C) -> Result<(), crate::mailbox::CallError> {
        self.sender.post(Command::Change(change), PATIENCE)
    }
}

impl<C: Send + 'static> Worker<C> {
    /// Start worker `index` on `cpu`; `plane` is made on the thread itself, and its failure is
    /// returned.
    ///
    /// # Errors
    /// If the thread, its fds or its plane cannot be made, or it cannot be pinned.
    pub fn spawn<P, F>(index: usize, cpu: Option<usize>, idle: Idle, plane: F) -> io::Result<Self>
    where
        P: Plane<Change = C>,
        F: FnOnce(Context) -> io::Result<P> + Send + 'static,
    {
        let (sender, inbox) = mailbox(CAPACITY)?;
        let pulse = Arc::new(Pulse::default());
        let clock = Clock::new();
        let rate = clock.rate();
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let mine = Arc::clone(&pulse);
        let thread = std::thread::Builder::new()
            .name(format!("worker{index}"))
            .spawn(move || {
                let _end = OnEnd(Arc::clone(&mine));
                let made = pin(cpu).and_then(|()| Poller::new()).and_then(|poller| {
                    poller.add(inbox.as_fd())?;
                    let context = Context {
                        poller: poller.clone(),
                        clock: clock.clone(),
                        index,
                        idle,
                    };
                    Ok((plane(context)?, poller))
                });
                match made {
                    Ok((plane, poller)) => {
                        let _ = ready.send(Ok(()));
                        Loop {
                            plane,
                            inbox,
                            poller,
                            clock,
                            idle,
                            pulse: mine,
                        }
                        .run();
                    }
                    Err(e) => {
                        let _ = ready.send(Err(e));
                    }
                }
            })?;
        started
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the worker died at its start")))?;
        Ok(Worker {
            sender,
            pulse,
            rate,
            cpu,
            thread: Some(thread),
        })
    }

    /// A handle that posts changes.
    #[must_use]
    pub fn handle(&self) -> Handle<C> {
        Handle {
            sender: self.sender.clone(),
        }
    }

    /// What the worker shows of itself.
    #[must_use]
    pub fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Cycles and nanoseconds on this worker.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// The processor it is pinned to.
    #[must_use]
    pub fn cpu(&self) -> Option<usize> {
        self.cpu
    }
}

impl<C: Send + 'static> Drop for Worker<C> {
    fn drop(&mut self) {
        let _ = self.sender.post(Command::Stop, PATIENCE);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("a worker had panicked");
        }
    }
}

struct OnEnd(Arc<Pulse>);

impl Drop for OnEnd {
    fn drop(&mut self) {
        self.0.ended.store(true, Relaxed);
    }
}

fn pin(cpu: Option<usize>) -> io::Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let fail = |e: rustix::io::Errno| {
        let usable = rustix::thread::sched_getaffinity(None).map_or_else(
            |_| String::new(),
            |set| {
                let all = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
                let all = all.map(|cpu| cpu.to_string()).collect::<Vec<_>>();
                format!("; this process may use: {}", all.join(","))
            },
        );
        let text = format!("cannot pin a worker to CPU {cpu}: {e}{usable}");
        io::Error::new(io::Error::from(e).kind(), text)
    };
    if cpu >= CpuSet::MAX_CPU {
        return Err(fail(rustix::io::Errno::INVAL));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).map_err(fail)
}

struct Loop<P: Plane> {
    plane: P,
    inbox: Inbox<Command<P::Change>>,
    poller: Poller,
    clock: Clock,
    idle: Idle,
    pulse: Arc<Pulse>,
}

impl<P: Plane> Loop<P> {
    fn run(mut self) {
        let spin = match self.idle {
            Idle::Adaptive(spin) => Some(self.clock.rate().of(spin)),
            Idle::Interrupt => Some(Cycles(0)),
            Idle::Busy => None,
        };
        let (mut steps, mut busy) = (0u32, 0u64);
        let mut now = self.clock.now();
        let mut last_work = now;
        let courtesy = self.clock.rate().of(COURTESY);
        let mut asked_at = None;
        loop {
            if self.inbox.pending() {
                if !self.commands(now) {
                    self.plane.housekeep(now);
                    return;
                }
                asked_at = Some(now);
                std::thread::yield_now();
            }
            let worked = self.plane.step(now);
            let before = std::mem::replace(&mut now, self.clock.now());
            steps = steps.wrapping_add(1);
            if worked {
                last_work = now;
                busy += now.0.saturating_sub(before.0);
            }
            if steps.is_multiple_of(HOUSEKEEP) {
                self.housekeep(now, busy);
            }
            let Some(spin) = spin else { continue };
            if worked {
                continue;
            }
            asked_at = asked_at.filter(|at| now.since(*at) < courtesy);
            if asked_at.is_some() || self.plane.is_patient() {
                std::thread::yield_now();
            }
            if now.0.saturating_sub(last_work.0) >= spin.0 {
                self.housekeep(now, busy);
                self.sleep(now);
                now = self.clock.now();
                // Time asleep is not time polled in vain: a wake-up earns a whole spin.
                last_work = now;
            }
        }
    }

    /// Carry out what is in the mailbox; false: stop.
    fn commands(&mut self, now: Cycles) -> bool {
        while let Some(command) = self.inbox.take() {
            match command {
                Command::Change(change) => self.plane.apply(change, now),
                Command::Stop => return false,
            }
        }
        true
    }

    fn housekeep(&mut self, now: Cycles, busy: u64) {
        self.plane.housekeep(now);
        self.pulse.busy.store(busy, Relaxed);
        // One writer: no read-modify-write needed.
        self.pulse
            .beats
            .store(self.pulse.beats.load(Relaxed).wrapping_add(1), Relaxed);
    }

    fn sleep(&mut self, now: Cycles) {
        if !self.plane.arm() && self.inbox.arm() {
            let rate = self.clock.rate();
            let deadline = self.plane.deadline(now);
            let time = deadline.map(|at| rate.duration(Cycles(at.0.saturating_sub(now.0))));
            self.pulse
                .sleeps
                .store(self.pulse.sleeps.load(Relaxed).wrapping_add(1), Relaxed);
            let rungs = self.poller.sleep(time);
            self.inbox.disarm();
            rungs.into_iter().for_each(|token| self.plane.rung(token));
        }
        self.plane.disarm();
    }
}

/// Warn once if the machine has fewer processors than workers: each polls one of its own.
pub fn warn_if_crowded(workers: usize) {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if workers > cpus {
        warn!(
            workers,
            cpus, "more polling workers than processors; they will starve each other"
        );
    }
}

#[cfg(test)]
mod tests;
