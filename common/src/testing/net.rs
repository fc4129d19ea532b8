//! virtio-net from the guest's side (virtio 1.3, section 5.1.6).
//!
//! A [`NetPair`] is a receive queue and a transmit queue with buffers: [`NetPair::send`] in any
//! framing, [`NetPair::receive`] whole frames, over as many buffers as the device says. It is
//! honest, and it verifies: written lengths, buffer counts and their being there all at once, or
//! the call fails with [`Error::Device`]. [`NetClient`] (in `client`) adds the session; [`frame`]
//! makes frames that can be checked. The drivers underneath are open to whoever wants to misuse
//! them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::driver::{Completion, Driver, Form, Segment, Token};
use super::memory::GuestMemory;
use super::split::SplitDriver;
use super::{Error, Result};

mod client;
pub mod frame;

pub use client::{Control, NetClient, NetOptions};
pub use frame::{Frame, Mac};

/// Bytes of the header before each frame, with `VERSION_1`.
pub const HEADER: usize = 12;
/// [`Header::flags`]: the checksum is partial.
pub const NEEDS_CSUM: u8 = 1;
/// [`Header::flags`]: the checksum was verified.
pub const DATA_VALID: u8 = 2;
/// [`Header::gso_type`]: not segmented.
pub const GSO_NONE: u8 = 0;
/// [`Header::gso_type`]: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// [`Header::gso_type`]: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// [`Header::gso_type`]: UDP.
pub const GSO_UDP_L4: u8 = 5;
/// With a [`Header::gso_type`] of TCP: segments carry ECN.
pub const GSO_ECN: u8 = 0x80;

/// The virtio-net header (section 5.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// [`GSO_NONE`] and others.
    pub gso_type: u8,
    /// Bytes of all headers of the frame.
    pub hdr_len: u16,
    /// Payload of a segment, in bytes.
    pub gso_size: u16,
    /// Where checksumming starts.
    pub csum_start: u16,
    /// Where the checksum stands, from there.
    pub csum_offset: u16,
    /// Receive buffers that the frame takes.
    pub num_buffers: u16,
}

impl Header {
    /// As it stands in memory.
    #[must_use]
    pub fn bytes(self) -> [u8; HEADER] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let words = [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.num_buffers,
        ];
        for (place, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The header in `bytes`.
    #[must_use]
    pub fn parse(bytes: &[u8; HEADER]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            num_buffers: word(10),
        }
    }
}

/// How header and frame are laid out in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Both in one segment.
    Whole,
    /// The header in one, the frame in another, as older drivers do.
    Header,
    /// Segments of this many bytes (1 at least), whatever is in them.
    Pieces(u32),
}

/// Buffers of a pair, and what chains look like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Receive buffers that are kept on offer.
    pub rx_slots: u16,
    /// Bytes of each.
    pub rx_buffer: u32,
    /// Each is cut into segments of at most this many bytes.
    pub rx_piece: u32,
    /// Frames that can be sent before one comes back.
    pub tx_slots: u16,
    /// Longest frame with its header, in bytes.
    pub tx_buffer: u32,
    /// How frames are laid out.
    pub cut: Cut,
    /// Where descriptors go; with `IN_ORDER` they are always indirect.
    pub form: Form,
}

impl Default for Shape {
    /// As Linux does with `MRG_RXBUF`: receive buffers of a frame's usual size.
    fn default() -> Self {
        Self {
            rx_slots: 128,
            rx_buffer: 1536,
            rx_piece: u32::MAX,
            tx_slots: 32,
            tx_buffer: 16 << 10,
            cut: Cut::Whole,
            form: Form::Direct,
        }
    }
}

impl Shape {
    /// Guest memory that a pair of this shape takes, in bytes, rings and tables not counted.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let page = |bytes: u32| u64::from(bytes).next_multiple_of(4096);
        u64::from(self.rx_slots) * page(self.rx_buffer)
            + u64::from(self.tx_slots) * page(self.tx_buffer)
    }
}

/// A frame that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Its header.
    pub header: Header,
    /// Its bytes, from the destination address on.
    pub frame: Vec<u8>,
}

/// A receive and a transmit queue.
#[derive(Debug)]
pub struct NetPair<D = SplitDriver> {
    memory: GuestMemory,
    shape: Shape,
    mergeable: bool,
    in_order: bool,
    rx: D,
    tx: D,
    /// Address of a receive buffer, by token.
    rx_at: Vec<u64>,
    /// Receive buffers that came back and were not read yet.
    arrived: VecDeque<Completion>,
    /// Receive buffers that were read and are not on offer, while [`NetPair::hold`] says so.
    held: Vec<Token>,
    holding: bool,
    /// Addresses of transmit buffers that are free.
    tx_free: Vec<u64>,
    /// Address of the transmit buffer on offer, by token.
    tx_at: Vec<u64>,
    returned: Vec<Completion>,
}

impl<D: Driver> NetPair<D> {
    /// Buffers in fresh guest memory, those for receiving on offer; `features` are the negotiated
    /// ones.
    pub fn new(
        [rx, tx]: [D; 2],
        memory: &GuestMemory,
        features: u64,
        shape: Shape,
    ) -> Result<Self> {
        let (rx_size, tx_size) = (rx.setup().size, tx.setup().size);
        let mut pair = Self {
            memory: memory.clone(),
            shape,
            mergeable: features & super::feature::NET_MRG_RXBUF != 0,
            in_order: features & super::feature::IN_ORDER != 0,
            rx,
            tx,
            rx_at: vec![0; rx_size.into()],
            arrived: VecDeque::with_capacity(rx_size.into()),
            held: Vec::new(),
            holding: false,
            tx_free: Vec::with_capacity(shape.tx_slots.into()),
            tx_at: vec![0; tx_size.into()],
            returned: Vec::with_capacity(rx_size.max(tx_size).into()),
        };
        for _ in 0..shape.tx_slots {
            pair.tx_free
                .push(memory.alloc_pages(shape.tx_buffer.into())?);
        }
        for _ in 0..shape.rx_slots {
            pair.add_buffer()?;
        }
        pair.rx.publish()?;
        Ok(pair)
    }

    fn form(&self) -> Form {
        if self.in_order {
            Form::Indirect
        } else {
            self.shape.form
        }
    }

    /// One more receive buffer, on offer after the next publish.
    fn add_buffer(&mut self) -> Result<()> {
        let gpa = self.memory.alloc_pages(self.shape.rx_buffer.into())?;
        let segments = pieces(gpa, self.shape.rx_buffer, self.shape.rx_piece, true);
        let token = self.rx.chain(&segments, self.form())?;
        self.rx_at[usize::from(token.0)] = gpa;
        self.rx.post(token);
        Ok(())
    }

    /// The receive queue's driver, to poke.
    pub fn rx(&mut self) -> &mut D {
        &mut self.rx
    }

    /// The transmit queue's driver, to poke.
    pub fn tx(&mut self) -> &mut D {
        &mut self.tx
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Bytes and buffers; may be changed for frames to come, but not its slots and buffer sizes.
    pub fn shape(&mut self) -> &mut Shape {
        &mut self.shape
    }

    /// Whether buffers that were read stay off the ring from now on; those held go back when not.
    pub fn hold(&mut self, holding: bool) -> Result<()> {
        self.holding = holding;
        if !holding {
            self.held.drain(..).for_each(|token| self.rx.post(token));
            self.rx.publish()?;
        }
        Ok(())
    }

    /// Queues a frame for the next [`NetPair::publish`]; false if no transmit buffer is free.
    pub fn queue(&mut self, header: Header, frame: &[u8]) -> Result<bool> {
        self.take_back()?;
        let len = u32::try_from(HEADER + frame.len()).unwrap_or(u32::MAX);
        if len > self.shape.tx_buffer {
            return Err(Error::Usage(format!(
                "a frame of {} bytes for a buffer of {}",
                frame.len(),
                self.shape.tx_buffer
            )));
        }
        let Some(gpa) = self.tx_free.pop() else {
            return Ok(false);
        };
        self.memory
            .write(gpa, &[&header.bytes()[..], frame].concat())?;
        let token = self
            .tx
            .chain(&framed(gpa, len, self.shape.cut), self.form());
        let Ok(token) = token else {
            self.tx_free.push(gpa);
            return if self.tx.in_flight() == 0 {
                token.map(|_| false)
            } else {
                Ok(false)
            };
        };
        self.tx_at[usize::from(token.0)] = gpa;
        self.tx.post(token);
        Ok(true)
    }

    /// Makes queued frames visible to the device, and kicks it if it wants that.
    pub fn publish(&mut self) -> Result<bool> {
        self.tx.publish()
    }

    /// Sends one frame with an empty header, after waiting for a buffer up to `patience`.
    pub fn send(&mut self, frame: &[u8], patience: Duration) -> Result<()> {
        self.send_with(Header::default(), frame, patience)
    }

    /// Sends one frame, after waiting for a buffer up to `patience`.
    pub fn send_with(&mut self, header: Header, frame: &[u8], patience: Duration) -> Result<()> {
        while !self.queue(header, frame)? {
            if !self.tx.wait(patience)? {
                return Err(Error::Timeout(patience));
            }
        }
        self.publish()?;
        Ok(())
    }

    /// Waits until every frame sent was taken by the device, up to `patience`.
    pub fn flush(&mut self, patience: Duration) -> Result<()> {
        self.publish()?;
        self.take_back()?;
        while self.tx.in_flight() > 0 {
            if !self.tx.wait(patience)? {
                return Err(Error::Timeout(patience));
            }
            self.take_back()?;
        }
        Ok(())
    }

    /// Takes transmit buffers back; how many.
    pub fn take_back(&mut self) -> Result<usize> {
        let count = self.tx.reap(&mut self.returned)?;
        for done in self.returned.drain(..) {
            if done.written != 0 {
                return Err(Error::Device(format!(
                    "wrote {} bytes of a frame that was sent",
                    done.written
                )));
            }
            self.tx_free.push(self.tx_at[usize::from(done.token.0)]);
            self.tx.free(done.token);
        }
        Ok(count)
    }

    /// The next frame, if one is there.
    pub fn poll(&mut self) -> Result<Option<Received>> {
        if self.arrived.is_empty() && self.rx.reap(&mut self.returned)? > 0 {
            self.arrived.extend(self.returned.drain(..));
        }
        let Some(first) = self.arrived.front() else {
            return Ok(None);
        };
        let mut bytes = [0; HEADER];
        let gpa = self.rx_at[usize::from(first.token.0)];
        self.memory.read(gpa, &mut bytes)?;
        let header = Header::parse(&bytes);
        let count = usize::from(header.num_buffers);
        if count == 0 || count > self.arrived.len() || (count > 1 && !self.mergeable) {
            return Err(Error::Device(format!(
                "says {count} buffers of a frame, {} are there",
                self.arrived.len()
            )));
        }
        let mut all = Vec::new();
        for index in 0..count {
            let Some(done) = self.arrived.pop_front() else {
                break;
            };
            all.extend(self.content(done, index + 1 == count)?);
            if self.holding {
                self.held.push(done.token);
            } else {
                self.rx.post(done.token);
            }
        }
        self.rx.publish()?;
        if all.len() < HEADER {
            return Err(Error::Device(format!(
                "wrote {} bytes of a header",
                all.len()
            )));
        }
        let frame = all.split_off(HEADER);
        Ok(Some(Received { header, frame }))
    }

    /// What the device wrote to a receive buffer; `last` of its frame.
    fn content(&self, done: Completion, last: bool) -> Result<Vec<u8>> {
        let mut len = done.written;
        // An element that stands for a batch gives the length of its last chain; all before it were
        // used whole (section 2.7.9).
        if self.in_order && !last && len == 0 {
            len = self.shape.rx_buffer;
        }
        if len == 0 || len > self.shape.rx_buffer {
            return Err(Error::Device(format!(
                "wrote {len} bytes to a buffer of {}",
                self.shape.rx_buffer
            )));
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        self.memory
            .read(self.rx_at[usize::from(done.token.0)], &mut bytes)?;
        Ok(bytes)
    }

    /// The next frame, or none within `patience`.
    pub fn receive(&mut self, patience: Duration) -> Result<Option<Received>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(frame) = self.poll()? {
                return Ok(Some(frame));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.rx.wait(left)? {
                return self.poll();
            }
        }
    }
}

/// `len` bytes at `gpa` in segments of at most `piece` bytes.
#[must_use]
pub fn pieces(gpa: u64, len: u32, piece: u32, writable: bool) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut at = 0;
    while at < len {
        let now = piece.max(1).min(len - at);
        segments.push(Segment {
            gpa: gpa + u64::from(at),
            len: now,
            writable,
        });
        at += now;
    }
    segments
}

/// A header and a frame of `len` bytes together, at `gpa`, cut as told.
#[must_use]
pub fn framed(gpa: u64, len: u32, cut: Cut) -> Vec<Segment> {
    match cut {
        Cut::Whole => vec![Segment::readable(gpa, len)],
        Cut::Header => {
            let header = u32::try_from(HEADER).unwrap_or(0).min(len);
            let mut segments = vec![Segment::readable(gpa, header)];
            segments.extend(pieces(
                gpa + u64::from(header),
                len - header,
                u32::MAX,
                false,
            ));
            segments
        }
        Cut::Pieces(bytes) => pieces(gpa, len, bytes, false),
    }
}

#[cfg(test)]
mod tests;
