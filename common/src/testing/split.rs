//! The split virtqueue as its driver sees it (virtio 1.3, section 2.7).
//!
//! Honest by itself: a chain is offered once at a time, indices move forward, descriptors are
//! written before they are visible. The `poke_*` methods break every one of these on request.
//!
//! Three private counters, all modulo 2^16: `posted` (offers written), `published` (offers the
//! device can see), `reaped` (completions taken); `reaped <= published <= posted <= reaped + size`.
//!
//! With `IN_ORDER` (section 2.7.9) descriptors must be used in ring order, so a token's descriptor
//! is copied to the next ring position at each post, and the device may report only the last chain
//! of a batch: `order` remembers what was offered.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use super::driver::{Completion, Driver, Events, Form, Segment, Setup, Token};
use super::memory::GuestMemory;
use super::{Error, Result, feature};
use crate::mem::View;

/// Descriptor flag: another one follows.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes it.
pub const WRITE: u16 = 2;
/// Descriptor flag: it points to a table of descriptors.
pub const INDIRECT: u16 = 4;
/// Bytes of a descriptor.
pub const DESC: u64 = 16;
/// `avail.flags`: the driver wants no calls.
const NO_INTERRUPT: u16 = 1;
/// `used.flags`: the device wants no kicks.
const NO_NOTIFY: u16 = 1;

/// A descriptor as it lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Desc {
    /// Guest physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next one, if [`NEXT`].
    pub next: u16,
}

impl Desc {
    /// Bytes in memory order.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..].copy_from_slice(&self.tail().to_le_bytes());
        bytes
    }

    /// The second half: length, flags, next.
    fn tail(self) -> u64 {
        u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48
    }
}

/// One prepared chain.
#[derive(Debug, Default)]
struct Chain {
    /// Ring descriptors it holds, first to last; empty while the token is unused.
    held: Vec<u16>,
    /// Its indirect table and how many descriptors fit it.
    table: Option<(u64, usize)>,
    /// The one ring descriptor of an indirect chain.
    desc: Desc,
    on_offer: bool,
}

/// The driver of one split virtqueue.
#[derive(Debug)]
pub struct SplitDriver {
    memory: GuestMemory,
    size: u16,
    /// Guest physical addresses of the three parts.
    places: [u64; 3],
    desc: View,
    avail: View,
    used: View,
    events: Events,
    event_idx: bool,
    in_order: bool,
    free: Vec<u16>,
    chains: Vec<Chain>,
    /// Token of the chain whose first descriptor this is.
    by_head: Vec<Token>,
    /// With `IN_ORDER`: what is on offer, oldest first.
    order: VecDeque<Token>,
    posted: u16,
    published: u16,
    reaped: u16,
}

impl SplitDriver {
    /// An empty ring of `size` entries (a power of two, at most 32768) in fresh guest memory.
    ///
    /// `features` are the negotiated ones; `EVENT_IDX` and `IN_ORDER` matter here.
    pub fn new(memory: &GuestMemory, size: u16, features: u64) -> Result<Self> {
        if !size.is_power_of_two() {
            return Err(Error::Usage(format!(
                "queue size {size} is not a power of two"
            )));
        }
        let n = u64::from(size);
        let (desc_len, avail_len, used_len) = (DESC * n, 6 + 2 * n, 6 + 8 * n);
        // Pages of their own, so that no two parts share a cache line.
        let places = [
            memory.alloc_pages(desc_len)?,
            memory.alloc_pages(avail_len)?,
            memory.alloc_pages(used_len)?,
        ];
        let mut driver = Self {
            memory: memory.clone(),
            size,
            places,
            desc: memory.view(places[0], desc_len, 16)?,
            avail: memory.view(places[1], avail_len, 2)?,
            used: memory.view(places[2], used_len, 4)?,
            events: Events::new()?,
            event_idx: features & feature::EVENT_IDX != 0,
            in_order: features & feature::IN_ORDER != 0,
            free: (0..size).rev().collect(),
            chains: (0..size).map(|_| Chain::default()).collect(),
            by_head: (0..size).map(Token).collect(),
            order: VecDeque::with_capacity(size.into()),
            posted: 0,
            published: 0,
            reaped: 0,
        };
        driver.disarm();
        Ok(driver)
    }

    /// Entries of the ring.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Guest physical addresses of the descriptor table, the available and the used ring.
    #[must_use]
    pub fn places(&self) -> [u64; 3] {
        self.places
    }

    /// `used.idx` as the device left it.
    #[must_use]
    pub fn used_idx(&self) -> u16 {
        self.used.load_u16(2, Ordering::Acquire)
    }

    /// Lets an empty ring look as if it had run for long: all indices stand at `index`.
    pub fn age(&mut self, index: u16) {
        self.poke_avail_idx(index);
        self.used.store_u16(2, index, Ordering::Release);
        self.reaped = index;
    }

    /// Exchanges the event descriptors; the back-end does not know until it is told.
    pub fn renew_events(&mut self) -> Result<()> {
        self.events = Events::new()?;
        Ok(())
    }

    /// Overwrites ring descriptor `index` (modulo the size).
    pub fn poke_desc(&self, index: u16, desc: Desc) {
        let at = usize::from(index & (self.size - 1)) * 16;
        self.desc.store_u64(at, desc.addr, Ordering::Relaxed);
        self.desc.store_u64(at + 8, desc.tail(), Ordering::Relaxed);
    }

    /// Writes any head at the next available slot; visible after [`Driver::publish`].
    pub fn poke_head(&mut self, head: u16) {
        self.put_avail(head);
    }

    /// Sets `avail.idx` to any value, and the driver's own idea of it too.
    pub fn poke_avail_idx(&mut self, idx: u16) {
        self.posted = idx;
        self.published = idx;
        self.avail.store_u16(2, idx, Ordering::Release);
    }

    /// Sets `avail.flags`.
    pub fn poke_avail_flags(&self, flags: u16) {
        self.avail.store_u16(0, flags, Ordering::Release);
    }

    /// Sets `used_event`, where the device looks whether to call (section 2.7.10).
    pub fn poke_used_event(&self, idx: u16) {
        self.avail
            .store_u16(4 + 2 * usize::from(self.size), idx, Ordering::Release);
    }

    /// `avail_event` as the device left it (section 2.7.10).
    #[must_use]
    pub fn avail_event(&self) -> u16 {
        self.used
            .load_u16(4 + 8 * usize::from(self.size), Ordering::Acquire)
    }

    /// Raw used element at ring position `index` (modulo the size): id and written length.
    #[must_use]
    pub fn used_element(&self, index: u16) -> (u32, u32) {
        let at = 4 + 8 * usize::from(index & (self.size - 1));
        // Two halves: the used ring is only 4-byte aligned.
        let id = self.used_u32(at);
        (id, self.used_u32(at + 4))
    }

    fn used_u32(&self, at: usize) -> u32 {
        let low = self.used.load_u16(at, Ordering::Relaxed);
        let high = self.used.load_u16(at + 2, Ordering::Relaxed);
        u32::from(low) | u32::from(high) << 16
    }

    fn put_avail(&mut self, head: u16) {
        let at = 4 + 2 * usize::from(self.posted & (self.size - 1));
        self.avail.store_u16(at, head, Ordering::Relaxed);
        self.posted = self.posted.wrapping_add(1);
    }

    /// A linked list of descriptors in memory at `table`, indices from 0.
    fn write_table(&self, table: u64, segments: &[Segment]) -> Result<()> {
        let mut bytes = Vec::with_capacity(segments.len() * 16);
        for (index, desc) in linked(segments, |i| u16::try_from(i).unwrap_or(0)).enumerate() {
            debug_assert_eq!(index * 16, bytes.len());
            bytes.extend_from_slice(&desc.bytes());
        }
        self.memory.write(table, &bytes)
    }

    /// The indirect chain's table, filled, and the descriptor that points to it.
    fn indirect(&mut self, token: Token, segments: &[Segment]) -> Result<()> {
        let slot = usize::from(token.0);
        let table = match self.chains[slot].table {
            Some((table, room)) if segments.len() <= room => table,
            _ => {
                let table = self.memory.alloc(DESC * segments.len() as u64, 64)?;
                self.chains[slot].table = Some((table, segments.len()));
                table
            }
        };
        self.write_table(table, segments)?;
        let len = u32::try_from(segments.len() * 16)
            .map_err(|_| Error::Usage(format!("{} segments", segments.len())))?;
        let desc = Desc {
            addr: table,
            len,
            flags: INDIRECT,
            next: 0,
        };
        self.chains[slot].desc = desc;
        if !self.in_order {
            self.poke_desc(token.0, desc);
        }
        Ok(())
    }

    /// Looks up and takes off offer the chain that the device says it used.
    fn returned(&mut self, id: u32) -> Option<Token> {
        let head = u16::try_from(id).ok().filter(|head| *head < self.size)?;
        let token = self.by_head[usize::from(head)];
        let chain = &mut self.chains[usize::from(token.0)];
        std::mem::take(&mut chain.on_offer).then_some(token)
    }

    /// `IN_ORDER`: everything offered up to and including the chain with head `id`.
    fn returned_in_order(
        &mut self,
        id: u32,
        written: u32,
        done: &mut Vec<Completion>,
    ) -> Option<u16> {
        let last = self.by_head[usize::from(u16::try_from(id).ok().filter(|h| *h < self.size)?)];
        let count = 1 + self.order.iter().position(|token| *token == last)?;
        for (i, token) in self.order.drain(..count).enumerate() {
            self.chains[usize::from(token.0)].on_offer = false;
            let written = if i + 1 == count { written } else { 0 };
            done.push(Completion { token, written });
        }
        u16::try_from(count).ok()
    }
}

/// `segments` as descriptors linked in order, the i-th at ring or table index `place(i)`.
fn linked(segments: &[Segment], place: impl Fn(usize) -> u16) -> impl Iterator<Item = Desc> {
    segments.iter().enumerate().map(move |(i, segment)| {
        let last = i + 1 == segments.len();
        Desc {
            addr: segment.gpa,
            len: segment.len,
            flags: if last { 0 } else { NEXT } | if segment.writable { WRITE } else { 0 },
            next: if last { 0 } else { place(i + 1) },
        }
    })
}

impl Driver for SplitDriver {
    fn chain(&mut self, segments: &[Segment], form: Form) -> Result<Token> {
        let need = if form == Form::Direct {
            segments.len()
        } else {
            1
        };
        if need == 0 || need > self.free.len() {
            return Err(Error::Usage(format!(
                "a chain of {need} descriptors; the ring has {} free",
                self.free.len()
            )));
        }
        if self.in_order && form == Form::Direct {
            return Err(Error::Usage("IN_ORDER chains must be indirect here".into()));
        }
        let mut held = self.free.split_off(self.free.len() - need);
        held.reverse();
        let token = Token(held[0]);
        self.chains[usize::from(token.0)].held = held;
        if let Err(error) = self.write(token, segments, form) {
            self.free(token);
            return Err(error);
        }
        Ok(token)
    }

    fn point(&mut self, token: Token, segments: &[Segment]) -> Result<()> {
        let chain = &self.chains[usize::from(token.0)];
        let form = if chain.desc.flags & INDIRECT == 0 {
            Form::Direct
        } else {
            Form::Indirect
        };
        if form == Form::Direct && chain.held.len() != segments.len() {
            return Err(Error::Usage(format!(
                "{} segments for a chain of {}",
                segments.len(),
                chain.held.len()
            )));
        }
        self.write(token, segments, form)
    }

    fn free(&mut self, token: Token) {
        let chain = &mut self.chains[usize::from(token.0)];
        self.free.append(&mut chain.held);
        chain.desc = Desc::default();
        chain.on_offer = false;
    }

    #[inline]
    fn post(&mut self, token: Token) {
        let chain = &mut self.chains[usize::from(token.0)];
        chain.on_offer = true;
        let mut head = token.0;
        if self.in_order {
            head = self.posted & (self.size - 1);
            let desc = chain.desc;
            self.poke_desc(head, desc);
            self.by_head[usize::from(head)] = token;
            self.order.push_back(token);
        }
        self.put_avail(head);
    }

    #[inline]
    fn publish(&mut self) -> Result<bool> {
        let (old, new) = (self.published, self.posted);
        if old == new {
            return Ok(false);
        }
        self.avail.store_u16(2, new, Ordering::Release);
        self.published = new;
        // The index must be visible before we look whether the device sleeps (section 2.7.13.4).
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            new.wrapping_sub(self.avail_event()).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.used.load_u16(0, Ordering::Acquire) & NO_NOTIFY == 0
        };
        if wanted {
            self.events.kick()?;
        }
        Ok(wanted)
    }

    #[inline]
    fn reap(&mut self, done: &mut Vec<Completion>) -> Result<usize> {
        let before = done.len();
        let progress = self.used_idx().wrapping_sub(self.reaped);
        if progress > self.published.wrapping_sub(self.reaped) {
            return Err(Error::Device(format!(
                "used {progress} chains of {}",
                self.in_flight()
            )));
        }
        let mut left = progress;
        while left > 0 {
            let (id, written) = self.used_element(self.reaped);
            let count = if self.in_order {
                self.returned_in_order(id, written, done)
                    .filter(|count| *count <= left)
            } else {
                self.returned(id).map(|token| {
                    done.push(Completion { token, written });
                    1
                })
            };
            let Some(count) = count else {
                return Err(Error::Device(format!(
                    "used head {id}, which is not on offer"
                )));
            };
            self.reaped = self.reaped.wrapping_add(count);
            left -= count;
        }
        Ok(done.len() - before)
    }

    fn in_flight(&self) -> u16 {
        self.posted.wrapping_sub(self.reaped)
    }

    fn arm(&mut self) -> bool {
        if self.event_idx {
            self.poke_used_event(self.reaped);
        }
        self.poke_avail_flags(0);
        fence(Ordering::SeqCst);
        self.used_idx() != self.reaped
    }

    fn disarm(&mut self) {
        self.poke_avail_flags(NO_INTERRUPT);
        // With EVENT_IDX the flag is ignored; an event just behind is 65535 completions away.
        self.poke_used_event(self.reaped.wrapping_sub(1));
    }

    fn setup(&self) -> Setup<'_> {
        Setup {
            size: self.size,
            desc: self.places[0],
            avail: self.places[1],
            used: self.places[2],
            base: self.used_idx().into(),
            kick: self.events.kick_fd(),
            call: self.events.call_fd(),
            err: self.events.err_fd(),
        }
    }

    fn events(&self) -> &Events {
        &self.events
    }
}

impl SplitDriver {
    /// Writes a chain's descriptors where its form wants them.
    fn write(&mut self, token: Token, segments: &[Segment], form: Form) -> Result<()> {
        if form == Form::Indirect {
            return self.indirect(token, segments);
        }
        let held = &self.chains[usize::from(token.0)].held;
        for (index, desc) in held.iter().zip(linked(segments, |i| held[i])) {
            self.poke_desc(*index, desc);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
