//! The in-flight table: which heads a device holds, in shared memory that outlives the process.
//!
//! Layout and protocol are the vhost-user specification's, "Inflight I/O tracking", split
//! virtqueue: for each queue a header (features u64, version u16, `desc_num` u16,
//! `last_batch_head` u16, `used_idx` u16) and one 16-byte entry a descriptor (inflight u8, five
//! bytes of padding, next u16, counter u64). Every session has one: in a memfd the front-end asked
//! for (INFLIGHT_SHMFD), or else in one of our own, so that a successor process can go on.
//!
//! The table is written, never read, while a ring runs. It is read once, at start, and it may come
//! from a hostile front-end: every index and count found in it is bounded.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use std::sync::atomic::compiler_fence;

use super::{MAX_SIZE, RingError};
use crate::mem::{Mapping, MemError, View};

const HEADER: usize = 16;
const VERSION: usize = 8;
const DESC_NUM: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;

const ENTRY: usize = 16;
const INFLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// Queues' parts start at multiples of this, so that queues on different cores share no line.
const ALIGN: usize = 64;

/// Most queues one table covers.
pub const MAX_QUEUES: u16 = 256;

/// A whole table, for all queues of a device.
#[derive(Debug, Clone)]
pub struct InflightTable {
    mapping: Arc<Mapping>,
    file: Arc<OwnedFd>,
    /// Queues it covers.
    pub queues: u16,
    /// Descriptors a queue.
    pub size: u16,
    /// Offset in the file, in bytes.
    pub offset: u64,
}

impl InflightTable {
    /// Bytes of one queue's part.
    fn stride(size: u16) -> usize {
        (HEADER + ENTRY * usize::from(size)).next_multiple_of(ALIGN)
    }

    /// Bytes of a table for `queues` queues of `size` descriptors.
    #[must_use]
    pub fn bytes(queues: u16, size: u16) -> u64 {
        (Self::stride(size) * usize::from(queues)) as u64
    }

    fn check(queues: u16, size: u16) -> Result<u64, MemError> {
        let len = Self::bytes(queues, size);
        if queues == 0 || queues > MAX_QUEUES || size == 0 || size > MAX_SIZE {
            return Err(MemError::BadRange { gpa: 0, len });
        }
        Ok(len)
    }

    /// A fresh table in a memfd of its own.
    ///
    /// # Errors
    /// [`MemError`] if the counts are out of range or the kernel refuses.
    pub fn create(queues: u16, size: u16) -> Result<InflightTable, MemError> {
        let (mapping, file) = Mapping::memfd("towpath-inflight", Self::check(queues, size)?)?;
        let mapping = Arc::new(mapping);
        Ok(InflightTable {
            mapping,
            file: Arc::new(file),
            queues,
            size,
            offset: 0,
        })
    }

    /// The table a front-end hands back.
    ///
    /// # Errors
    /// [`MemError`] if the counts are out of range or the file is not that large.
    pub fn adopt(
        file: OwnedFd,
        offset: u64,
        queues: u16,
        size: u16,
    ) -> Result<InflightTable, MemError> {
        let len = Self::check(queues, size)?;
        let mapping = Arc::new(Mapping::of_file(file.as_fd(), offset, len)?);
        Ok(InflightTable {
            mapping,
            file: Arc::new(file),
            queues,
            size,
            offset,
        })
    }

    /// The file it lives in.
    #[must_use]
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// True once its file was found truncated.
    #[must_use]
    pub fn poisoned(&self) -> bool {
        self.mapping.poisoned()
    }

    /// The part of queue `index`.
    #[must_use]
    pub fn queue(&self, index: u16) -> Option<InflightQueue> {
        if index >= self.queues {
            return None;
        }
        let stride = Self::stride(self.size);
        let off = stride * usize::from(index);
        let view = View::new(&self.mapping, off as u64, stride as u64, 8)?;
        Some(InflightQueue {
            view,
            size: self.size,
            counter: 0,
            last: 0,
            staged: Vec::new(),
        })
    }
}

/// One queue's part of a table.
#[derive(Debug, Clone)]
pub struct InflightQueue {
    view: View,
    size: u16,
    counter: u64,
    /// `last_batch_head` as we last wrote it.
    last: u16,
    /// Heads used since the last publish.
    staged: Vec<u16>,
}

impl InflightQueue {
    fn entry(head: u16) -> usize {
        HEADER + ENTRY * usize::from(head)
    }

    /// Bring the table up to date with the ring, whose used index is `used_idx`, and give the heads
    /// that are still in flight, last popped first; `None` if no device has used the table yet.
    ///
    /// # Errors
    /// [`RingError::InflightSize`] if the table is for another queue size.
    pub fn recover(&mut self, used_idx: u16, queue: u16) -> Result<Option<Vec<u16>>, RingError> {
        if queue > self.size {
            return Err(RingError::InflightSize {
                table: self.size,
                queue,
            });
        }
        let v = &self.view;
        let held = |h: &u16| v.load_u8(Self::entry(*h) + INFLIGHT, Relaxed) != 0;
        let table = v.load_u16(DESC_NUM, Relaxed);
        let resized = table != queue && !(0..self.size).any(|h| held(&h));
        if v.load_u16(VERSION, Relaxed) == 0 || resized {
            // Fresh (all zero), or a driver that came back with another queue size.
            v.store_u16(DESC_NUM, queue, Relaxed);
            v.store_u16(USED_IDX, used_idx, Relaxed);
            v.store_u16(VERSION, 1, Release);
            self.staged.reserve_exact(usize::from(queue));
            return Ok(None);
        }
        if table != queue {
            return Err(RingError::InflightSize { table, queue });
        }
        self.staged.reserve_exact(usize::from(queue));
        // Died between publishing a batch and clearing its entries: walk the batch, bounded.
        let behind = used_idx.wrapping_sub(v.load_u16(USED_IDX, Relaxed));
        let mut head = v.load_u16(LAST_BATCH_HEAD, Relaxed);
        for _ in 0..behind.min(queue) {
            if head >= queue {
                break;
            }
            v.store_u8(Self::entry(head) + INFLIGHT, 0, Relaxed);
            head = v.load_u16(Self::entry(head) + NEXT, Relaxed);
        }
        v.store_u16(USED_IDX, used_idx, Relaxed);
        self.last = v.load_u16(LAST_BATCH_HEAD, Relaxed);
        let mut held: Vec<(u64, u16)> = (0..queue)
            .filter(held)
            .map(|h| (v.load_u64(Self::entry(h) + COUNTER, Relaxed), h))
            .collect();
        held.sort_unstable_by_key(|(counter, _)| std::cmp::Reverse(*counter));
        self.counter = held
            .first()
            .map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(Some(held.into_iter().map(|(_, head)| head).collect()))
    }

    /// A head was popped.
    #[inline]
    pub(super) fn popped(&mut self, head: u16) {
        let at = Self::entry(head);
        self.view.store_u64(at + COUNTER, self.counter, Relaxed);
        self.counter = self.counter.wrapping_add(1);
        self.view.store_u8(at + INFLIGHT, 1, Release);
    }

    /// A head that was popped was given back unused.
    #[inline]
    pub(super) fn returned(&mut self, head: u16) {
        self.view.store_u8(Self::entry(head) + INFLIGHT, 0, Release);
    }

    /// A head was written to the used ring, not yet published.
    #[inline]
    pub(super) fn used(&mut self, head: u16) {
        self.view
            .store_u16(Self::entry(head) + NEXT, self.last, Relaxed);
        self.last = head;
        self.view.store_u16(LAST_BATCH_HEAD, head, Release);
        self.staged.push(head);
    }

    /// The staged heads are visible to the driver: the used index is `used_idx` now.
    #[inline]
    pub(super) fn published(&mut self, used_idx: u16) {
        // A process killed in between has published what the table still has, never the other way
        // round: a request that is in neither would be lost. A kill stops the processor between two
        // instructions, so it is enough that the compiler keeps their order.
        compiler_fence(SeqCst);
        for head in self.staged.drain(..) {
            self.view.store_u8(Self::entry(head) + INFLIGHT, 0, Relaxed);
        }
        self.view.store_u16(USED_IDX, used_idx, Release);
    }
}
