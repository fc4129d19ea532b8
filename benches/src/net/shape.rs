//! What all ports of a run have in common: how many they are, their rings and what they send.

use super::frame::{self, HEADER, Spec, Stamp};

/// Bytes of a receive buffer, and for offloaded frames: Linux sizes them by what arrives, up to a
/// page.
const BUFFER: u32 = 2048;
const LARGE_BUFFER: u32 = 4096;
/// Largest piece of a chain; Linux sends offloaded frames in pieces of this size.
pub(super) const PIECE: usize = 32 << 10;
/// Transmit slots of offloaded frames: half a megabyte in flight, as TCP keeps it.
const SEGMENTED_SLOTS: u16 = 8;

/// What all ports of a run have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Ports.
    pub ports: u16,
    /// Entries of each virtqueue.
    pub ring: u16,
    /// Bytes of a frame without tag and checksum.
    pub size: usize,
    /// Frames are TCP for the receiver to segment.
    pub segmented: bool,
    /// Stations behind each port.
    pub stations: u32,
    /// VLAN that the port's frames are tagged with, by port; untagged where there is none.
    pub tags: Vec<Option<u16>>,
}

impl Shape {
    /// Untagged frames of `size` bytes between ports of one station each.
    #[must_use]
    pub fn plain(ports: u16, ring: u16, size: usize) -> Self {
        Self {
            ports,
            ring,
            size,
            segmented: false,
            stations: 1,
            tags: vec![None; ports.into()],
        }
    }

    pub(super) fn tag(&self, port: u16) -> Option<u16> {
        self.tags.get(usize::from(port)).copied().flatten()
    }

    /// Bytes of a buffer that holds a frame of this port, header included.
    #[must_use]
    pub fn filled(&self, port: u16) -> usize {
        HEADER + self.size + if self.tag(port).is_some() { 4 } else { 0 }
    }

    /// Other ports.
    pub(super) fn peers(&self) -> u64 {
        u64::from(self.ports.saturating_sub(1)).max(1)
    }

    /// Pieces of a chain.
    pub(super) fn pieces(&self, port: u16) -> u16 {
        let pieces = self.filled(port).div_ceil(PIECE);
        u16::try_from(pieces).unwrap_or(u16::MAX)
    }

    /// Transmit slots.
    pub(super) fn slots(&self) -> u16 {
        if self.segmented {
            SEGMENTED_SLOTS
        } else {
            self.ring
        }
    }

    /// Bytes of a receive buffer.
    pub(super) fn buffer(&self) -> u32 {
        if self.segmented { LARGE_BUFFER } else { BUFFER }
    }

    /// Frames in a port's pool: each station to each peer, and one a slot at least.
    pub(super) fn pool(&self) -> u64 {
        let once = self.peers() * u64::from(self.stations);
        if once <= u64::from(self.slots()) {
            u64::from(self.slots())
        } else {
            once
        }
    }

    /// What frame `index` of `port`'s pool is.
    pub(super) fn frame(&self, port: u16, index: u64) -> Spec {
        let peer = u16::try_from(index % self.peers()).unwrap_or(0);
        let to = (port + 1 + peer) % self.ports.max(1);
        let station = index / self.peers() % u64::from(self.stations);
        let station = u32::try_from(station).unwrap_or(0);
        Spec {
            size: self.size,
            source: frame::mac(port, station),
            destination: frame::mac(to, station),
            tag: self.tag(port),
            segmented: self.segmented,
            stamp: Stamp {
                from: port,
                to,
                number: 0,
            },
        }
    }
}
