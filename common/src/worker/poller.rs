//! What can wake a sleeping worker: file descriptors, edge-triggered, and a moment.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::HEARTBEAT;

/// Most tokens that [`Poller::look`] tells at once; the others are told by the next look.
pub const RUNGS: usize = 32;

/// Tokens of what became readable.
pub type Rungs = ArrayVec<u32, RUNGS>;

/// Stands for what has no token.
const NOBODY: u64 = u64::MAX;

/// What can wake a sleeping worker.
#[derive(Debug, Clone)]
pub struct Poller {
    epoll: Arc<OwnedFd>,
    /// Ends a sleep on time: `epoll_wait` counts in milliseconds, and caps and limits in less.
    timer: Arc<OwnedFd>,
}

impl Poller {
    /// One that watches nothing yet.
    ///
    /// # Errors
    /// If there are no file descriptors left.
    pub fn new() -> io::Result<Poller> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let poller = Poller {
            epoll: Arc::new(epoll::create(CreateFlags::CLOEXEC)?),
            timer: Arc::new(timerfd_create(TimerfdClockId::Monotonic, flags)?),
        };
        poller.add(poller.timer.as_fd())?;
        Ok(poller)
    }

    /// Wake the worker whenever `fd` becomes readable. Edge-triggered: it need not be read, and a
    /// front-end that leaves it readable for ever cannot keep the worker awake.
    ///
    /// # Errors
    /// If the fd cannot be polled.
    pub fn add(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.watch(fd, NOBODY)
    }

    /// The same, and tell the plane ([`super::Plane::rung`]) with this token.
    ///
    /// # Errors
    /// If the fd cannot be polled.
    pub fn add_as(&self, fd: BorrowedFd<'_>, token: u32) -> io::Result<()> {
        self.watch(fd, token.into())
    }

    fn watch(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let data = EventData::new_u64(token);
        Ok(epoll::add(
            &*self.epoll,
            fd,
            data,
            EventFlags::IN | EventFlags::ET,
        )?)
    }

    /// Stop waking for `fd`. To be called before it is closed: a duplicate elsewhere would keep it
    /// registered.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        // It may never have been added.
        let _ = epoll::delete(&*self.epoll, fd);
    }

    /// Tokens of what became readable, some [`RUNGS`] at a time, without waiting: for a plane that
    /// is busy and wants to hear of what it does not poll.
    #[must_use]
    pub fn look(&self) -> Rungs {
        self.wait(Duration::ZERO)
    }

    /// Wait for something, or for [`HEARTBEAT`], or for a `time` that is shorter.
    pub(super) fn sleep(&self, time: Option<Duration>) -> Rungs {
        let time = time.filter(|time| *time < HEARTBEAT);
        if let Some(it_value) = time.and_then(|time| Timespec::try_from(time).ok()) {
            // All zeroes would be no alarm at all.
            let it_value = Timespec {
                tv_nsec: it_value.tv_nsec.max(1),
                ..it_value
            };
            let it_interval = Timespec::default();
            let at = Itimerspec {
                it_interval,
                it_value,
            };
            // It rings late in the worst case: with the heartbeat.
            let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &at);
        }
        self.wait(HEARTBEAT)
    }

    fn wait(&self, timeout: Duration) -> Rungs {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; RUNGS];
        let timeout = Timespec::try_from(timeout).ok();
        // EINTR is a wake-up like any other.
        let Ok((events, _)) = epoll::wait(&*self.epoll, &mut events[..], timeout.as_ref()) else {
            return Rungs::new();
        };
        let tokens = events.iter().map(|event| event.data.u64());
        tokens
            .filter_map(|token| u32::try_from(token).ok())
            .collect()
    }
}
