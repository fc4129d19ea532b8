//! The driver's side of a virtqueue, whatever its format.
//!
//! A [`Driver`] separates preparing a chain from making it available: [`Driver::chain`] writes the
//! descriptors once and returns a [`Token`]; [`Driver::post`] offers that chain to the device, as
//! often as wanted once each offer has come back; [`Driver::publish`] makes all offers since the
//! last call visible by one store; [`Driver::reap`] collects completions with one read of the
//! device's progress. So a load generator touches shared memory once a burst, and a test can stop
//! between any two steps.
//!
//! A driver starts without interrupts, polling; [`Driver::wait`] blocks on the call descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::wire::readable;
use super::{Error, Result};

/// A prepared chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u16);

/// One piece of guest memory in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it (or reads it).
    pub writable: bool,
}

impl Segment {
    /// Bytes for the device to read.
    #[must_use]
    pub fn readable(gpa: u64, len: u32) -> Self {
        Self {
            gpa,
            len,
            writable: false,
        }
    }

    /// Room for the device to write.
    #[must_use]
    pub fn writable(gpa: u64, len: u32) -> Self {
        Self {
            gpa,
            len,
            writable: true,
        }
    }
}

/// Where a chain's descriptors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// In the ring itself, linked.
    Direct,
    /// In a table of their own (virtio 1.3, section 2.7.5.3).
    Indirect,
}

/// A chain that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Which one.
    pub token: Token,
    /// Bytes the device says it wrote; 0 for chains that an `IN_ORDER` device skipped.
    pub written: u32,
}

/// What the front-end tells the back-end about a queue.
#[derive(Debug)]
pub struct Setup<'a> {
    /// Entries.
    pub size: u16,
    /// Guest physical address of the descriptor table (or packed ring).
    pub desc: u64,
    /// Guest physical address of the available ring (or driver event area).
    pub avail: u64,
    /// Guest physical address of the used ring (or device event area).
    pub used: u64,
    /// Where the device is to start (`SET_VRING_BASE`).
    pub base: u32,
    /// Driver tells device.
    pub kick: BorrowedFd<'a>,
    /// Device tells driver.
    pub call: BorrowedFd<'a>,
    /// Device reports a broken queue.
    pub err: BorrowedFd<'a>,
}

/// A queue's three event descriptors.
#[derive(Debug)]
pub struct Events {
    kick: OwnedFd,
    call: OwnedFd,
    err: OwnedFd,
}

impl Events {
    /// Three fresh eventfds.
    pub fn new() -> Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let make = || eventfd(0, flags).map_err(Error::errno("eventfd"));
        Ok(Self {
            kick: make()?,
            call: make()?,
            err: make()?,
        })
    }

    /// Driver tells device.
    #[must_use]
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// Device tells driver.
    #[must_use]
    pub fn call_fd(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// Device reports a broken queue.
    #[must_use]
    pub fn err_fd(&self) -> BorrowedFd<'_> {
        self.err.as_fd()
    }

    /// Wakes the device.
    pub fn kick(&self) -> Result<()> {
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).map_err(Error::errno("kick"))?;
        Ok(())
    }

    /// Whether the device called within `patience`; takes the call.
    pub fn called(&self, patience: Duration) -> Result<bool> {
        take(&self.call, patience)
    }

    /// Whether the device reported a broken queue within `patience`; takes the report.
    pub fn broken(&self, patience: Duration) -> Result<bool> {
        take(&self.err, patience)
    }
}

fn take(fd: &OwnedFd, patience: Duration) -> Result<bool> {
    if !readable(fd, patience)? {
        return Ok(false);
    }
    rustix::io::read(fd, &mut [0; 8]).map_err(Error::errno("read eventfd"))?;
    Ok(true)
}

/// The driver's side of one virtqueue.
pub trait Driver {
    /// Writes the descriptors of a chain, without offering it.
    ///
    /// Fails if the ring has no room for them.
    fn chain(&mut self, segments: &[Segment], form: Form) -> Result<Token>;

    /// Writes other segments, as many as before, into a chain that is not on offer.
    fn point(&mut self, token: Token, segments: &[Segment]) -> Result<()>;

    /// Gives a chain's descriptors back; it must not be on offer.
    fn free(&mut self, token: Token);

    /// Offers a chain that is not on offer; the device sees it after [`Driver::publish`].
    fn post(&mut self, token: Token);

    /// Makes every offer visible and kicks if the device wants it; whether it did.
    fn publish(&mut self) -> Result<bool>;

    /// Appends the chains that came back to `done`; how many.
    ///
    /// An error means that the device broke the rules: a token never offered, or progress past
    /// what was offered.
    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize>;

    /// Chains on offer that have not come back.
    fn in_flight(&self) -> u16;

    /// Asks for an interrupt at the next completion; whether one is there already.
    fn arm(&mut self) -> bool;

    /// Asks for no interrupts.
    fn disarm(&mut self);

    /// What to tell the back-end; `base` continues where the device's progress in memory says.
    fn setup(&self) -> Setup<'_>;

    /// The event descriptors.
    fn events(&self) -> &Events;

    /// Blocks until something came back, at most `patience`; whether something did.
    fn wait(&mut self, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            if self.arm() {
                self.disarm();
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.events().called(left)? {
                let late = self.arm();
                self.disarm();
                return Ok(late);
            }
        }
    }
}
