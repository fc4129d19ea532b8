//! The lean driver of one split virtqueue (virtio 1.3, 2.7): what the generator pays per frame.
//!
//! [`towpath_common::testing::SplitDriver`] checks everything and follows every chain; here every
//! chain is set up once, a chain that came back is offered again by its id, and the indices move
//! once a burst. A burst costs the driver one read of the used index, eight bytes of the used ring
//! and two of the available ring a chain, one write of the available index, and a look at whether
//! the device wants a kick.
//!
//! The elements of both rings stand on 8-byte boundaries, so that each is one load.

use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, Result, ensure};
use towpath_common::mem::View;
use towpath_common::testing::driver::{Events, Setup};
use towpath_common::testing::{GuestMemory, feature};

/// Bytes of a descriptor.
const DESC: usize = 16;
/// Bytes of flags and index before the elements of a ring.
const HEAD: usize = 4;
/// Descriptor flags.
const NEXT: u64 = 1;
const WRITE: u64 = 2;
/// `avail.flags`: the driver wants no calls.
const NO_INTERRUPT: u16 = 1;
/// `used.flags`: the device wants no kicks.
const NO_NOTIFY: u16 = 1;

/// One piece of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// Guest physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// The driver's side of one virtqueue.
#[derive(Debug)]
pub struct Queue {
    size: u16,
    mask: u16,
    /// Guest physical addresses of the descriptor table, the available and the used ring.
    places: [u64; 3],
    desc: View,
    avail: View,
    used: View,
    events: Events,
    event_idx: bool,
    posted: u16,
    published: u16,
    reaped: u16,
}

impl Queue {
    /// An empty ring of `size` entries (a power of two) in fresh guest memory.
    pub fn new(memory: &GuestMemory, size: u16, features: u64) -> Result<Self> {
        ensure!(
            size.is_power_of_two(),
            "ring size {size} is no power of two"
        );
        let n = u64::from(size);
        let (desc_len, avail_len, used_len) = (16 * n, 6 + 2 * n, 6 + 8 * n);
        let head = HEAD as u64;
        let places = [
            memory.alloc_pages(desc_len)?,
            memory.alloc_pages(avail_len + head)? + head,
            memory.alloc_pages(used_len + head)? + head,
        ];
        let this = Self {
            size,
            mask: size - 1,
            places,
            desc: memory.view(places[0], desc_len, DESC)?,
            avail: memory.view(places[1], avail_len, 2)?,
            used: memory.view(places[2], used_len, 4)?,
            events: Events::new()?,
            event_idx: features & feature::EVENT_IDX != 0,
            posted: 0,
            published: 0,
            reaped: 0,
        };
        this.avail.store_u16(0, NO_INTERRUPT, Ordering::Release);
        Ok(this)
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Guest physical addresses of the descriptor table, the available and the used ring.
    #[must_use]
    pub fn places(&self) -> [u64; 3] {
        self.places
    }

    /// What to tell the back-end.
    #[must_use]
    pub fn setup(&self) -> Setup<'_> {
        Setup {
            size: self.size,
            desc: self.places[0],
            avail: self.places[1],
            used: self.places[2],
            base: self.reaped.into(),
            kick: self.events.kick_fd(),
            call: self.events.call_fd(),
            err: self.events.err_fd(),
        }
    }

    /// Writes a chain over the descriptors from `head` on.
    pub fn describe(&self, head: u16, pieces: &[Piece]) -> Result<()> {
        let count = u16::try_from(pieces.len()).context("too many pieces")?;
        ensure!(
            count > 0 && head < self.size && count <= self.size - head,
            "a chain of {count} at {head} in a ring of {}",
            self.size
        );
        for (index, piece) in (head..).zip(pieces) {
            let last = index + 1 == head + count;
            let next = if last { 0 } else { index + 1 };
            let flags = if last { 0 } else { NEXT } | if piece.writable { WRITE } else { 0 };
            let tail = u64::from(piece.len) | flags << 32 | u64::from(next) << 48;
            let at = usize::from(index) * DESC;
            self.desc.store_u64(at, piece.gpa, Ordering::Relaxed);
            self.desc.store_u64(at + 8, tail, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Offers a chain; visible after [`Queue::publish`].
    #[inline]
    pub fn offer(&mut self, head: u16) {
        let at = HEAD + 2 * usize::from(self.posted & self.mask);
        self.avail.store_u16(at, head, Ordering::Relaxed);
        self.posted = self.posted.wrapping_add(1);
    }

    /// Makes every offer visible and kicks if the device wants it.
    #[inline]
    pub fn publish(&mut self) -> Result<()> {
        let (old, new) = (self.published, self.posted);
        if old == new {
            return Ok(());
        }
        self.avail.store_u16(2, new, Ordering::Release);
        self.published = new;
        // The index must be visible before we look whether the device sleeps (2.7.13.4.1).
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let at = HEAD + 8 * usize::from(self.size);
            let event = self.used.load_u16(at, Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.used.load_u16(0, Ordering::Relaxed) & NO_NOTIFY == 0
        };
        if wanted {
            self.events.kick()?;
        }
        Ok(())
    }

    /// Chains that came back and were not taken yet.
    #[inline]
    #[must_use]
    pub fn pending(&self) -> u16 {
        self.used
            .load_u16(2, Ordering::Acquire)
            .wrapping_sub(self.reaped)
    }

    /// The next chain that came back, of [`Queue::pending`]: its id and the bytes written.
    #[inline]
    pub fn take(&mut self) -> (u16, u32) {
        let at = HEAD + 8 * usize::from(self.reaped & self.mask);
        let element = self.used.load_u64(at, Ordering::Relaxed);
        self.reaped = self.reaped.wrapping_add(1);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "id and length are the two halves; the id is masked"
        )]
        let parts = (element as u16 & self.mask, (element >> 32) as u32);
        parts
    }

    /// Chains on offer that did not come back.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.posted.wrapping_sub(self.reaped)
    }
}
