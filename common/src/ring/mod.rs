//! Virtqueues, device side, one interface for every layout (virtio 1.3, 2.6).
//!
//! A [`Ring`] belongs to one worker. A visit is: [`Ring::pop`] copies up to a burst of chains out
//! of guest memory (one read of the avail index), the device works on them, [`Ring::put`] stages
//! used buffers, and [`Ring::publish`] makes them visible (one write of the used index) and says
//! whether the driver wants to be told. Idle: [`Ring::arm`] asks for kicks and looks once more.
//!
//! What never happens: a guest-owned word is read twice; a chain that is not valid as a whole
//! reaches the device; a head is handed out twice while in flight; a ring that broke the rules is
//! read again. A violation latches ([`Ring::broken`]), work in flight completes, nobody else
//! notices. The code here needs no `unsafe`: [`crate::mem`] checks every access.

mod descriptor;
pub mod inflight;
mod reorder;
mod split;

use std::sync::Arc;

use thiserror::Error;

use crate::chain::Burst;
use crate::mem::{DirtyLog, Mem, MemError};
use inflight::InflightQueue;
use split::Split;

/// VIRTIO_F_INDIRECT_DESC (virtio 1.3, 6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1.
pub const F_VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_RING_PACKED.
pub const F_RING_PACKED: u64 = 1 << 34;
/// VIRTIO_F_IN_ORDER.
pub const F_IN_ORDER: u64 = 1 << 35;

/// Largest queue size (virtio 1.3, 2.7: 32768).
pub const MAX_SIZE: u16 = 32768;

/// What a driver did wrong: the ring is broken from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Violation {
    /// The avail index ran ahead by more than the queue size, or backwards.
    #[error("avail index jumped by {0}, more than the queue size")]
    AvailJump(u16),
    /// A head index beyond the descriptor table.
    #[error("head {0} is not in the descriptor table")]
    BadHead(u16),
    /// A head made available while it is in flight.
    #[error("head {0} was made available twice")]
    HeadInFlight(u16),
    /// A next index beyond its table.
    #[error("next {0} is not in the descriptor table")]
    BadNext(u16),
    /// More descriptors than the table has: a loop.
    #[error("descriptor chain does not end")]
    Loop,
    /// More segments than [`crate::chain::MAX_SEGMENTS`].
    #[error(
        "descriptor chain has more than {} segments",
        crate::chain::MAX_SEGMENTS
    )]
    TooLong,
    /// A readable descriptor after a writable one.
    #[error("readable descriptor after a writable one")]
    ReadableAfterWritable,
    /// Bytes outside guest memory.
    #[error("buffer {gpa:#x}+{len:#x} is not in guest memory")]
    BadAddress {
        /// Guest physical address.
        gpa: u64,
        /// Length in bytes.
        len: u32,
    },
    /// INDIRECT without the feature, nested, with NEXT, or with a length that is no table's.
    #[error("bad indirect descriptor (table of {0} bytes)")]
    BadIndirect(u32),
    /// The device refused a chain for what it says (no header, no room for a status).
    #[error("malformed request: {0}")]
    Request(&'static str),
}

impl Violation {
    /// Short names for metrics, by [`Violation::index`].
    pub const NAMES: [&'static str; 10] = [
        "avail_jump",
        "bad_head",
        "head_in_flight",
        "bad_next",
        "loop",
        "too_long",
        "readable_after_writable",
        "bad_address",
        "bad_indirect",
        "request",
    ];

    /// A small number for tables of counters.
    #[must_use]
    pub fn index(&self) -> usize {
        match self {
            Violation::AvailJump(_) => 0,
            Violation::BadHead(_) => 1,
            Violation::HeadInFlight(_) => 2,
            Violation::BadNext(_) => 3,
            Violation::Loop => 4,
            Violation::TooLong => 5,
            Violation::ReadableAfterWritable => 6,
            Violation::BadAddress { .. } => 7,
            Violation::BadIndirect(_) => 8,
            Violation::Request(_) => 9,
        }
    }

    /// A short name for metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        Self::NAMES[self.index()]
    }
}

/// Why a ring cannot start.
#[derive(Debug, Error)]
pub enum RingError {
    /// Not a power of two, or zero, or above [`MAX_SIZE`].
    #[error("queue size {0} is not a power of two from 1 to {MAX_SIZE}")]
    BadSize(u32),
    /// A part of the ring is outside guest memory or misaligned.
    #[error("{part} ring: {source}")]
    BadPart {
        /// Which part.
        part: &'static str,
        /// Why.
        source: MemError,
    },
    /// A layout that is not offered.
    #[error("packed virtqueues are not offered")]
    Packed,
    /// The in-flight table is for another queue size.
    #[error("in-flight table is for {table} descriptors, the queue has {queue}")]
    InflightSize {
        /// Descriptors the table says it has.
        table: u16,
        /// Queue size.
        queue: u16,
    },
}

/// Everything needed to start a ring.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Queue size in descriptors.
    pub size: u16,
    /// Front-end address of the descriptor table.
    pub desc: u64,
    /// Front-end address of the avail ring.
    pub avail: u64,
    /// Front-end address of the used ring.
    pub used: u64,
    /// Next avail index to read (SET_VRING_BASE). `None`: what the used index and the in-flight
    /// table say, which is also what counts whenever the table holds heads.
    pub base: Option<u16>,
    /// Negotiated virtio features.
    pub features: u64,
    /// Where writes by the device are logged during migration.
    pub log: Option<DirtyLog>,
    /// Guest address of the used ring for logging (SET_VRING_ADDR with VHOST_VRING_F_LOG).
    pub log_addr: Option<u64>,
    /// Table that survives this process.
    pub inflight: Option<InflightQueue>,
}

/// What makes exposed buffers visible to a driver before its wish to be notified is read (virtio
/// 1.3, 2.7.13.4.1): between [`Ring::expose`] and [`Ring::owes_call`] of any number of rings.
#[inline]
pub fn fence() {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

/// Addresses in a ring that will be used next. They are hints, and may be of a ring that is gone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Soon {
    /// Of the next available element.
    pub avail: usize,
    /// Of the next used element.
    pub used: usize,
}

impl Soon {
    /// Ask the processor to fetch them.
    #[inline]
    pub fn fetch(self) {
        crate::mem::prefetch_hint(self.avail, false);
        crate::mem::prefetch_hint(self.used, true);
    }
}

/// A virtqueue, device side.
#[derive(Debug)]
pub struct Ring {
    layout: Layout,
}

#[derive(Debug)]
enum Layout {
    Split(Split),
}

impl Ring {
    /// Start a ring on `mem`.
    ///
    /// # Errors
    /// See [`RingError`].
    pub fn new(setup: Setup, mem: Arc<Mem>) -> Result<Ring, RingError> {
        if setup.features & F_RING_PACKED != 0 {
            return Err(RingError::Packed);
        }
        Ok(Ring {
            layout: Layout::Split(Split::new(setup, mem)?),
        })
    }

    #[inline]
    fn split(&self) -> &Split {
        let Layout::Split(ring) = &self.layout;
        ring
    }

    #[inline]
    fn split_mut(&mut self) -> &mut Split {
        let Layout::Split(ring) = &mut self.layout;
        ring
    }

    /// The memory this ring's chains are in.
    #[inline]
    #[must_use]
    pub fn mem(&self) -> &Arc<Mem> {
        self.split().mem()
    }

    /// Where the device logs its writes, if a migration runs.
    #[inline]
    #[must_use]
    pub fn log(&self) -> Option<&DirtyLog> {
        self.split().log()
    }

    /// Copy up to `max` available chains into `burst`, which is cleared first; gives their number.
    #[inline]
    pub fn pop(&mut self, burst: &mut Burst, max: usize) -> usize {
        self.split_mut().pop(burst, max)
    }

    /// Give back the last `count` chains of `burst` as if they had not been popped. The caller
    /// promises that the last [`Ring::pop`] filled `burst` and that none of these chains was put.
    #[inline]
    pub fn unpop(&mut self, burst: &Burst, count: usize) {
        self.split_mut().unpop(burst, count);
    }

    /// Stage a used buffer: `written` bytes of the chain `id` were written.
    #[inline]
    pub fn put(&mut self, id: u16, written: u32) {
        self.split_mut().put(id, written);
    }

    /// Stage many used buffers at once: each chain's id, and how many bytes were written to it.
    #[inline]
    pub fn put_all(&mut self, used: impl Iterator<Item = (u16, u32)>) {
        self.split_mut().put_all(used);
    }

    /// Make staged buffers visible to the driver; true if it asked to be notified of them.
    #[inline]
    #[must_use]
    pub fn publish(&mut self) -> bool {
        self.split_mut().publish()
    }

    /// Make staged buffers visible to the driver, and leave it to [`Ring::owes_call`] to ask
    /// whether it is to be notified, so that many rings share one [`fence`].
    #[inline]
    pub fn expose(&mut self) {
        self.split_mut().expose();
    }

    /// True if the driver asked to be notified of what was exposed since this was last asked. The
    /// caller passed a [`fence`] in between.
    #[inline]
    #[must_use]
    pub fn owes_call(&mut self) -> bool {
        self.split_mut().owes_call()
    }

    /// Where the next pop and the next put will be, to be fetched early.
    #[inline]
    #[must_use]
    pub fn soon(&self) -> Soon {
        self.split().soon()
    }

    /// Ask the driver for kicks, then look again: true if there is work already.
    #[must_use]
    pub fn arm(&mut self) -> bool {
        self.split_mut().arm()
    }

    /// Chains that [`Ring::pop`] would find, if it took as many at once.
    pub fn waiting(&mut self) -> usize {
        self.split_mut().waiting()
    }

    /// Tell the driver that kicks are not needed while we poll.
    pub fn disarm(&mut self) {
        self.split_mut().disarm();
    }

    /// Latch the ring as broken: nothing is popped any more.
    pub fn latch(&mut self, violation: Violation) {
        self.split_mut().latch(violation);
    }

    /// Why the ring is broken, if it is.
    #[inline]
    #[must_use]
    pub fn broken(&self) -> Option<Violation> {
        self.split().broken()
    }

    /// Next avail index: what GET_VRING_BASE answers once nothing is in flight.
    #[inline]
    #[must_use]
    pub fn next_avail(&self) -> u16 {
        self.split().next_avail()
    }

    /// Next used index.
    #[inline]
    #[must_use]
    pub fn next_used(&self) -> u16 {
        self.split().next_used()
    }

    /// Chains popped and not yet put.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.split().in_flight()
    }

    /// Queue size in descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.split().size()
    }
}

#[cfg(test)]
mod tests;
