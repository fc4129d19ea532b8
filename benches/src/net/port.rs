//! One guest's network card: memory, a receive and a transmit queue, and frames ready to go.
//!
//! Each slot of the transmit ring has a frame of its own in guest memory, built before the run.
//! Where there are more pairs of addresses than slots, both addresses are written anew each time a
//! slot is offered again: two words, so that the frames of many stations take no more memory, and
//! no more of the caches, than those of one.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use towpath_common::mem::View;
use towpath_common::testing::{Frontend, GuestMemory, Listener, RawFrontend, Wanted, feature};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use super::frame::{self, HEADER, SMALLEST, Spec, Stamp};
use super::queue::{Piece, Queue};
use super::shape::{PIECE, Shape};

/// Added to that from one receive buffer to the next: an odd number of cache lines, so that the
/// buffers' first lines spread over all sets of a cache, as they do in a guest.
const GAP: u32 = 3 * 64;
/// Chains are left alone until so many came back, or until [`PATIENCE`] looks found fewer.
const ENOUGH: u16 = 32;
const PATIENCE: u32 = 8;
/// Where the words with both addresses stand in a buffer: behind the first 8 bytes of the header,
/// the last four of which are zero.
const ADDRESSES: usize = 8;

/// virtio-net features (virtio 1.3, 5.1.3) that a Linux guest negotiates.
mod net {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const GUEST_ECN: u64 = 1 << 9;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const HOST_ECN: u64 = 1 << 13;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
}

/// Features every port asks for.
pub const FEATURES: u64 = feature::VERSION_1
    | feature::EVENT_IDX
    | feature::INDIRECT_DESC
    | net::MRG_RXBUF
    | net::CSUM
    | net::GUEST_CSUM
    | net::GUEST_TSO4
    | net::GUEST_TSO6
    | net::GUEST_ECN
    | net::HOST_TSO4
    | net::HOST_TSO6
    | net::HOST_ECN;

/// What arrived in one look at a receive queue.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arrived {
    /// Buffers filled.
    pub buffers: u64,
    /// Bytes in them, headers included.
    pub bytes: u64,
}

/// Places of one size in guest memory.
#[derive(Debug)]
struct Area {
    first: u64,
    stride: u32,
    view: View,
}

impl Area {
    fn new(memory: &GuestMemory, stride: u32, count: u16) -> Result<Self> {
        let len = u64::from(stride) * u64::from(count);
        let first = memory.alloc_pages(len)?;
        Ok(Self {
            first,
            stride,
            view: memory.view(first, len, 64)?,
        })
    }

    /// Guest physical address of a place.
    fn gpa(&self, index: u16) -> u64 {
        self.first + u64::from(index) * u64::from(self.stride)
    }

    /// Offset of a place in the view.
    #[inline]
    fn offset(&self, index: u16) -> usize {
        usize::from(index) * self.stride as usize
    }
}

/// A port of the generator.
#[derive(Debug)]
pub struct Port {
    index: u16,
    shape: Shape,
    memory: GuestMemory,
    receive: Queue,
    transmit: Queue,
    /// The receive buffers.
    buffers: Area,
    /// The slots' frames.
    frames: Area,
    /// Descriptors of a slot.
    pieces: u16,
    /// The words with both addresses, of every frame in the pool.
    pool: Vec<[u64; 2]>,
    /// The pool is larger than the ring.
    rotates: bool,
    /// Next frame of the pool to send.
    next: usize,
    /// Slots not on offer, by the heads of their chains.
    free: Vec<u16>,
    /// Looks that found too little, at the receive and at the transmit queue.
    waited: [u32; 2],
    /// Buffer looked at last.
    last: u16,
    /// Keeps the session alive.
    session: Option<Frontend>,
}

impl Port {
    /// Port `index` of a run: memory, rings, buffers and frames, not attached to anything.
    pub fn new(index: u16, shape: &Shape) -> Result<Self> {
        ensure!(shape.size >= SMALLEST, "frames of {} bytes", shape.size);
        let (pieces, slots) = (shape.pieces(index), shape.slots());
        ensure!(
            pieces * slots <= shape.ring,
            "{slots} chains of {pieces} do not fit a ring of {}",
            shape.ring
        );
        let frame = u32::try_from(shape.filled(index).next_multiple_of(64))?;
        let buffer = shape.buffer() + GAP;
        let rings = 64 * u64::from(shape.ring) + (64 << 10);
        let areas = u64::from(frame + buffer) * u64::from(shape.ring);
        let memory = GuestMemory::new((rings + areas).next_multiple_of(2 << 20))?;
        let receive = Queue::new(&memory, shape.ring, FEATURES)?;
        let transmit = Queue::new(&memory, shape.ring, FEATURES)?;
        let buffers = Area::new(&memory, buffer, shape.ring)?;
        let frames = Area::new(&memory, frame, slots)?;
        let pool = shape.pool();
        let mut this = Self {
            index,
            shape: shape.clone(),
            receive,
            transmit,
            buffers,
            frames,
            pieces,
            pool: (0..pool)
                .map(|i| addresses(&shape.frame(index, i)))
                .collect(),
            rotates: pool > u64::from(slots),
            next: 0,
            free: (0..slots).rev().map(|slot| slot * pieces).collect(),
            waited: [0; 2],
            last: 0,
            session: None,
            memory,
        };
        this.fill()?;
        Ok(this)
    }

    /// Writes frames and descriptors, and offers every receive buffer.
    fn fill(&mut self) -> Result<()> {
        let filled = self.shape.filled(self.index);
        for &head in &self.free {
            let gpa = self.frame(head);
            let spec = self.shape.frame(self.index, (head / self.pieces).into());
            self.memory.write(gpa, &frame::build(&spec))?;
            let mut pieces = Vec::new();
            let mut done = 0;
            while done < filled {
                let len = PIECE.min(filled - done);
                pieces.push(Piece {
                    gpa: gpa + done as u64,
                    len: u32::try_from(len)?,
                    writable: false,
                });
                done += len;
            }
            self.transmit.describe(head, &pieces)?;
        }
        for head in 0..self.receive.size() {
            let piece = Piece {
                gpa: self.buffers.gpa(head),
                len: self.shape.buffer(),
                writable: true,
            };
            self.receive.describe(head, &[piece])?;
            self.receive.offer(head);
        }
        self.receive.publish()
    }

    fn frame(&self, head: u16) -> u64 {
        self.frames.gpa(head / self.pieces)
    }

    /// Attaches to a back-end that listens on `socket`.
    pub fn connect(&mut self, socket: &Path, patience: Duration) -> Result<()> {
        let raw = RawFrontend::connect(socket, patience)
            .with_context(|| format!("nobody on {}", socket.display()))?;
        self.attach(raw)
    }

    /// Attaches to the back-end that connects to `listener`.
    pub fn accept(&mut self, listener: &Listener, patience: Duration) -> Result<()> {
        self.attach(listener.accept(patience)?)
    }

    fn attach(&mut self, raw: RawFrontend) -> Result<()> {
        let wanted = Wanted {
            features: FEATURES,
            protocol: Protocol::MQ | Protocol::REPLY_ACK,
        };
        let mut session = Frontend::handshake(raw, wanted)?;
        let features = session.features();
        ensure!(
            features & feature::VERSION_1 != 0 && features & feature::EVENT_IDX != 0,
            "the switch offers {features:#x}, without VERSION_1 or EVENT_IDX"
        );
        session.set_memory(&self.memory)?;
        session.start_queue(0, &self.memory, &self.receive.setup())?;
        session.start_queue(1, &self.memory, &self.transmit.setup())?;
        self.session = Some(session);
        Ok(())
    }

    /// Features negotiated; none before it is attached.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.session.as_ref().map_or(0, Frontend::features)
    }

    /// The guest's memory and its receive and transmit queues, for who serves them in this process.
    #[must_use]
    pub fn parts(&self) -> (&GuestMemory, [&Queue; 2]) {
        (&self.memory, [&self.receive, &self.transmit])
    }

    /// Bytes of each receive buffer.
    #[must_use]
    pub fn buffer_len(&self) -> u32 {
        self.shape.buffer()
    }

    /// Frames in the pool.
    #[must_use]
    pub fn pool(&self) -> u64 {
        self.pool.len() as u64
    }

    /// Takes what arrived and offers the buffers again, if enough arrived or waited long enough;
    /// with `touch`, loads a word of each buffer.
    #[inline]
    pub fn receive(&mut self, touch: bool) -> Result<Arrived> {
        let count = self.receive.pending();
        if count == 0 || !self.is_enough(0, count) {
            return Ok(Arrived::default());
        }
        let mut bytes = 0;
        let mut seen = 0;
        for _ in 0..count {
            let (head, written) = self.receive.take();
            if touch {
                let at = self.buffers.offset(head);
                seen ^= self.buffers.view.load_u64(at, Ordering::Relaxed);
            }
            bytes += u64::from(written);
            self.receive.offer(head);
            self.last = head;
        }
        std::hint::black_box(seen);
        self.receive.publish()?;
        Ok(Arrived {
            buffers: count.into(),
            bytes,
        })
    }

    #[inline]
    fn is_enough(&mut self, queue: usize, count: u16) -> bool {
        let waited = &mut self.waited[queue];
        if count < ENOUGH && *waited < PATIENCE {
            *waited += 1;
            return false;
        }
        *waited = 0;
        true
    }

    /// Offers every slot that came back again, each with the next frame; how many.
    #[inline]
    pub fn transmit(&mut self) -> Result<u64> {
        let count = self.transmit.pending();
        if count == 0 || !self.is_enough(1, count) {
            return Ok(0);
        }
        for _ in 0..count {
            let (head, _) = self.transmit.take();
            if self.rotates {
                self.readdress(head);
            }
            self.transmit.offer(head);
        }
        self.transmit.publish()?;
        Ok(count.into())
    }

    /// Writes the next pair of addresses into a slot's frame.
    #[inline]
    fn readdress(&mut self, head: u16) {
        let Some(words) = self.pool.get(self.next) else {
            self.next = 0;
            return;
        };
        // Only chains of one piece rotate: the head is the slot.
        let at = self.frames.offset(head) + ADDRESSES;
        let view = &self.frames.view;
        view.store_u64(at, words[0], Ordering::Relaxed);
        view.store_u64(at + 8, words[1], Ordering::Relaxed);
        self.next += 1;
        if self.next == self.pool.len() {
            self.next = 0;
        }
    }

    /// Offers every free slot; how many.
    pub fn launch(&mut self) -> Result<u64> {
        let mut count = 0;
        let slots = self.pool.len() as u64;
        while let Some(head) = self.free.pop() {
            // A check before may have left anything in the slots.
            let index = u64::from(head / self.pieces) % slots;
            self.write(head, index, 0)?;
            self.transmit.offer(head);
            count += 1;
        }
        self.transmit.publish()?;
        Ok(count)
    }

    /// Writes frame `index` of the pool with this number into a slot.
    fn write(&mut self, head: u16, index: u64, number: u64) -> Result<()> {
        if self.shape.segmented {
            return Ok(());
        }
        let spec = self.shape.frame(self.index, index);
        let stamp = Stamp {
            number,
            ..spec.stamp
        };
        let gpa = self.frame(head);
        let [first, second] = addresses(&spec).map(u64::to_le_bytes);
        let words = [first, second].concat();
        self.memory.write(gpa + ADDRESSES as u64, &words)?;
        let at = HEADER + frame::stamp_at(spec.tag.is_some());
        self.memory.write(gpa + at as u64, &stamp.bytes())?;
        Ok(())
    }

    /// Takes slots that came back without offering them again; how many.
    pub fn land(&mut self) -> u64 {
        let count = self.transmit.pending();
        for _ in 0..count {
            let (head, _) = self.transmit.take();
            self.free.push(head);
        }
        count.into()
    }

    /// Sends one frame, whichever is next; whether a slot was free.
    #[inline]
    pub fn shoot(&mut self) -> Result<bool> {
        let Some(head) = self.free.pop() else {
            return Ok(false);
        };
        self.transmit.offer(head);
        self.transmit.publish()?;
        Ok(true)
    }

    /// Takes whatever arrived and offers the buffers again at once; how many.
    #[inline]
    pub fn catch(&mut self) -> Result<u16> {
        let count = self.receive.pending();
        for _ in 0..count {
            let (head, _) = self.receive.take();
            self.receive.offer(head);
        }
        if count > 0 {
            self.receive.publish()?;
        }
        Ok(count)
    }

    /// Transmit slots on offer.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.transmit.in_flight()
    }

    /// Sends frame `index` of the pool with this number, if a slot is free; whether one was.
    pub fn send(&mut self, index: u64, number: u64) -> Result<bool> {
        let Some(head) = self.free.pop() else {
            return Ok(false);
        };
        self.write(head, index, number)?;
        self.transmit.offer(head);
        self.transmit.publish()?;
        Ok(true)
    }

    /// Port that frame `index` of the pool goes to.
    #[must_use]
    pub fn target(&self, index: u64) -> u16 {
        self.shape.frame(self.index, index).stamp.to
    }

    /// The next arrived buffer: its bytes and its beginning; it is offered again by
    /// [`Port::give_back`].
    pub fn next_arrived(&mut self) -> Result<Option<(u16, u32, [u8; HEADER + 4 + SMALLEST])>> {
        if self.receive.pending() == 0 {
            return Ok(None);
        }
        let (head, written) = self.receive.take();
        Ok(Some((head, written, self.beginning(head)?)))
    }

    /// Offers a buffer again.
    pub fn give_back(&mut self, head: u16) -> Result<()> {
        self.receive.offer(head);
        self.receive.publish()
    }

    /// Beginning of the buffer that was taken last: a sample.
    pub fn sample(&self) -> Result<[u8; HEADER + 4 + SMALLEST]> {
        self.beginning(self.last)
    }

    fn beginning(&self, head: u16) -> Result<[u8; HEADER + 4 + SMALLEST]> {
        let mut bytes = [0; HEADER + 4 + SMALLEST];
        self.memory.read(self.buffers.gpa(head), &mut bytes)?;
        Ok(bytes)
    }
}

/// The words of a buffer with both addresses of a frame, between zeros.
fn addresses(spec: &Spec) -> [u64; 2] {
    let mut bytes = [0; 16];
    bytes[4..10].copy_from_slice(&spec.destination);
    bytes[10..].copy_from_slice(&spec.source);
    let value = u128::from_le_bytes(bytes);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    let halves = [value as u64, (value >> 64) as u64];
    halves
}
