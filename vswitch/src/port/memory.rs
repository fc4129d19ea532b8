//! An uplink in memory, for tests: what a test pushes at the [`Wire`] is received, and what the
//! switch sends comes out there. A wire has a limited length, so that a full receiver can be had.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use towpath_common::chain::BURST;

use super::{LARGEST, Uplink};
use crate::net::{NetHeader, Offloads};

/// A frame on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    /// Its virtio-net header.
    pub header: NetHeader,
    /// From the destination address on.
    pub bytes: Vec<u8>,
}

/// What both ends share.
#[derive(Debug)]
struct Shared {
    to_switch: ArrayQueue<Frame>,
    from_switch: ArrayQueue<Frame>,
    broken: AtomicBool,
    /// Readable when there is something in `to_switch`.
    bell: OwnedFd,
}

impl Shared {
    fn ring(&self) {
        // It can only fail with the counter at its limit, and then it is readable.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

/// The switch's end.
#[derive(Debug)]
pub struct Memory {
    shared: Arc<Shared>,
    accepts: Offloads,
    max_frame: usize,
    received: Vec<Frame>,
    /// Written, and about to be committed.
    reserved: Vec<u8>,
    queued: Vec<Frame>,
    failed: Option<io::Error>,
}

/// The test's end.
#[derive(Debug, Clone)]
pub struct Wire {
    shared: Arc<Shared>,
}

impl Memory {
    /// An uplink and its wire. The switch may send what `accepts` says, and frames of up to
    /// `max_frame` bytes or whole segments; each direction holds `capacity` frames, at least one.
    ///
    /// # Errors
    /// If there are no file descriptors left.
    pub fn new(accepts: Offloads, max_frame: usize, capacity: usize) -> io::Result<(Memory, Wire)> {
        let capacity = capacity.max(1);
        let shared = Arc::new(Shared {
            to_switch: ArrayQueue::new(capacity),
            from_switch: ArrayQueue::new(capacity),
            broken: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        });
        let wire = Wire {
            shared: Arc::clone(&shared),
        };
        let memory = Memory {
            shared,
            accepts,
            max_frame,
            received: Vec::with_capacity(BURST),
            reserved: Vec::new(),
            queued: Vec::with_capacity(BURST),
            failed: None,
        };
        Ok((memory, wire))
    }
}

impl AsFd for Wire {
    /// What the switch's end is polled by.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }
}

impl Wire {
    /// Let the switch receive a frame; false if there is no room.
    #[must_use]
    pub fn push(&self, header: NetHeader, bytes: &[u8]) -> bool {
        let bytes = bytes.to_vec();
        let room = self.shared.to_switch.push(Frame { header, bytes }).is_ok();
        self.shared.ring();
        room
    }

    /// The next frame the switch sent.
    #[must_use]
    pub fn pop(&self) -> Option<Frame> {
        self.shared.from_switch.pop()
    }

    /// Make the uplink fail when it next receives.
    pub fn cut(&self) {
        self.shared.broken.store(true, Ordering::Release);
        self.shared.ring();
    }
}

impl Uplink for Memory {
    fn receive(&mut self, max: usize) -> usize {
        self.received.clear();
        if self.shared.broken.load(Ordering::Acquire) {
            self.failed = Some(Errno::BADFD.into());
            return 0;
        }
        let max = max.min(BURST);
        while self.received.len() < max {
            let Some(frame) = self.shared.to_switch.pop() else {
                break;
            };
            self.received.push(frame);
        }
        if self.received.len() < max {
            // Nothing is left: silence the bell, then look again.
            let _ = rustix::io::read(&self.shared.bell, &mut [0; 8]);
            if !self.shared.to_switch.is_empty() || self.shared.broken.load(Ordering::Acquire) {
                self.shared.ring();
            }
        }
        self.received.len()
    }

    fn frame(&self, index: usize) -> (NetHeader, &[u8]) {
        let frame = self.received.get(index);
        frame.map_or_else(Default::default, |frame| (frame.header, &frame.bytes[..]))
    }

    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        if len > LARGEST || self.queued.len() == BURST {
            return None;
        }
        // What nobody writes shows.
        self.reserved.clear();
        self.reserved.resize(len, 0xee);
        Some(&mut self.reserved)
    }

    fn commit(&mut self, header: NetHeader) {
        let bytes = std::mem::take(&mut self.reserved);
        self.queued.push(Frame { header, bytes });
    }

    fn send(&mut self) -> usize {
        let broken = self.failed.is_some();
        let queued = self.queued.drain(..);
        queued
            .filter_map(|frame| {
                (broken || self.shared.from_switch.push(frame).is_err()).then_some(())
            })
            .count()
    }

    fn accepts(&self) -> Offloads {
        self.accepts
    }

    fn max_frame(&self) -> usize {
        self.max_frame
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }

    fn failed(&self) -> Option<&io::Error> {
        self.failed.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::net::NEEDS_CSUM;

    const HEADER: NetHeader = NetHeader {
        flags: NEEDS_CSUM,
        gso_type: 0,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 34,
        csum_offset: 16,
    };

    fn readable(port: &Memory) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(port.fd(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn frames_pass_both_ways_with_their_headers() {
        let (mut port, wire) = Memory::new(Offloads::ALL, 1518, 4).unwrap();
        assert_eq!(port.receive(64), 0);
        assert!(wire.push(HEADER, &[1; 60]));
        assert!(wire.push(NetHeader::default(), &[2; 61]));
        assert_eq!(port.receive(64), 2);
        assert_eq!(port.frame(0), (HEADER, &[1; 60][..]));
        assert_eq!(port.frame(1), (NetHeader::default(), &[2; 61][..]));

        port.reserve(3).unwrap().copy_from_slice(&[7, 8, 9]);
        port.commit(HEADER);
        assert_eq!(wire.pop(), None, "not sent yet");
        assert_eq!(port.send(), 0);
        let bytes = vec![7, 8, 9];
        assert_eq!(
            wire.pop(),
            Some(Frame {
                header: HEADER,
                bytes
            })
        );
    }

    #[test]
    fn it_is_readable_while_there_is_something_to_receive() {
        let (mut port, wire) = Memory::new(Offloads::NONE, 1518, 4).unwrap();
        assert!(!readable(&port));
        assert!(wire.push(HEADER, &[1; 60]) && wire.push(HEADER, &[2; 60]));
        assert!(readable(&port));
        assert_eq!(port.receive(1), 1);
        assert!(readable(&port), "one is left");
        assert_eq!(port.receive(2), 1);
        assert!(!readable(&port));
    }

    #[test]
    fn a_full_wire_loses_the_rest_of_a_burst() {
        let (mut port, wire) = Memory::new(Offloads::NONE, 1518, 2).unwrap();
        for i in 0..5 {
            port.reserve(60).unwrap().fill(i);
            port.commit(NetHeader::default());
        }
        assert_eq!(port.send(), 3);
        assert_eq!(port.send(), 0, "counted once");
        assert_eq!(wire.pop().unwrap().bytes, [0; 60]);
        assert_eq!(wire.pop().unwrap().bytes, [1; 60]);
        assert_eq!(wire.pop(), None);
        assert!(wire.push(HEADER, &[0]) && wire.push(HEADER, &[0]));
        assert!(!wire.push(HEADER, &[0]));
    }

    #[test]
    fn a_queue_has_room_for_one_burst_of_frames_that_can_exist() {
        let (mut port, _wire) = Memory::new(Offloads::NONE, 1518, 100).unwrap();
        assert!(port.reserve(LARGEST + 1).is_none());
        for _ in 0..BURST {
            assert!(port.reserve(60).is_some());
            port.commit(NetHeader::default());
        }
        assert!(port.reserve(60).is_none());
    }

    #[test]
    fn a_cut_wire_fails_the_port() {
        let (mut port, wire) = Memory::new(Offloads::NONE, 1518, 4).unwrap();
        assert!(wire.push(HEADER, &[1; 60]));
        assert!(port.failed().is_none());
        wire.cut();
        assert!(readable(&port));
        assert_eq!(port.receive(64), 0);
        assert!(port.failed().is_some());
        port.reserve(60).unwrap().fill(0);
        port.commit(NetHeader::default());
        assert_eq!(port.send(), 1);
    }
}
