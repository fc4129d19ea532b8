//! What the switch needs of a port that is not a guest: bursts of frames, in buffers of its own.

pub mod guest;
pub mod guest_ctrl;
pub mod guest_tx;
mod line;
pub mod memory;
pub mod tap;
mod tap_sys;

use std::io;
use std::os::fd::BorrowedFd;

use crate::net::{NetHeader, Offloads};

/// Longest frame that can come or go, unsegmented, in bytes from the destination address on: an IP
/// packet of 64 KiB, the Ethernet header and two tags, rounded up.
pub const LARGEST: usize = 65_600;

/// One queue pair of a burst-oriented port with its own buffers: TAP now; `AF_XDP` and DPDK fit.
///
/// A worker owns the receiving side of the queue; the sending side is used by one worker at a time,
/// for one burst. Nothing here may block or allocate.
///
/// Callers promise: `frame(i)` only for `i` below what the last `receive` returned; after `reserve`
/// gave room, all of it is written before `commit`. Implementors promise: what `receive` returned
/// stays in place until the next `receive`; whole frames only, except that one longer than
/// [`LARGEST`] may be cut off, but not below `LARGEST + 1` bytes; `commit` cannot fail, and may
/// send at once; `send` reports what could not be sent.
///
/// Headers are as the device gave them: to be checked with [`crate::offload::validate_uplink`].
pub trait Uplink: Send + std::fmt::Debug {
    /// Take up to `max` frames (at most [`towpath_common::chain::BURST`]) into our own buffers, in
    /// place of those received before; gives their number.
    fn receive(&mut self, max: usize) -> usize;

    /// A frame of the last burst: its virtio-net header, and its bytes from the destination address
    /// on, without the frame check sequence.
    fn frame(&self, index: usize) -> (NetHeader, &[u8]);

    /// Room to write a frame of `len` bytes to be sent; none if the sending queue is full for now.
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]>;

    /// Queue what was written to the reserved room.
    fn commit(&mut self, header: NetHeader);

    /// Send what was queued; gives how many frames were lost because the other side is full or
    /// down.
    fn send(&mut self) -> usize;

    /// What may be queued without doing checksums and segmentation first.
    fn accepts(&self) -> Offloads;

    /// Largest frame, in bytes from the destination address on; unsegmented ones may be larger.
    fn max_frame(&self) -> usize;

    /// Readable when there is something to receive.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Why the port failed, if it did: it is then reported as down and left alone.
    fn failed(&self) -> Option<&io::Error>;
}
