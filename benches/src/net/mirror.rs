//! The generator's own ceiling: a device that gives every chain back at once, unread.
//!
//! It serves the generator's queues in a thread of this process, by the least that a device can do:
//! one look at the available index, one used element a chain, one write of the used index. Frames
//! are said to arrive wherever there is a buffer, one for each frame taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use towpath_common::mem::View;
use towpath_common::testing::GuestMemory;

use super::port::Port;
use super::queue::Queue;
use crate::cpu;

/// Chains in one visit.
const BURST: u16 = 64;
/// Bytes of flags and index before the elements of a ring.
const HEAD: usize = 4;

/// A running mirror; it ends with this value.
#[derive(Debug)]
pub struct Mirror {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Mirror {
    /// Serves the ports on processor `on`; each port's frames, of `filled` bytes with their header,
    /// go to the next.
    pub fn start(ports: &[Port], filled: u32, on: usize) -> Result<Self> {
        let mut ways = Vec::new();
        for (index, port) in ports.iter().enumerate() {
            let (memory, [_, transmit]) = port.parts();
            let (next, [receive, _]) = ports[(index + 1) % ports.len()].parts();
            ways.push((Side::new(memory, transmit)?, Side::new(next, receive)?));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let work = move || {
            while !stopped.load(Ordering::Relaxed) {
                for (from, to) in &mut ways {
                    let count = from.available().min(to.available()).min(BURST);
                    to.give(count, filled);
                    from.give(count, 0);
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("mirror".into())
            .spawn(move || cpu::on_cpu(on, work))
            .context("cannot start the mirror")?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot fail once it runs.
            let _ = thread.join();
        }
    }
}

/// The device's side of one queue.
#[derive(Debug)]
struct Side {
    avail: View,
    used: View,
    size: u16,
    next: u16,
}

impl Side {
    fn new(memory: &GuestMemory, queue: &Queue) -> Result<Self> {
        let size = queue.size();
        let [_, avail, used] = queue.places();
        Ok(Self {
            avail: memory.view(avail, 6 + 2 * u64::from(size), 2)?,
            used: memory.view(used, 6 + 8 * u64::from(size), 4)?,
            size,
            next: 0,
        })
    }

    #[inline]
    fn available(&self) -> u16 {
        let index = self.avail.load_u16(2, Ordering::Acquire);
        index.wrapping_sub(self.next)
    }

    #[inline]
    fn give(&mut self, count: u16, written: u32) {
        if count == 0 {
            return;
        }
        for _ in 0..count {
            let at = usize::from(self.next & (self.size - 1));
            let head = self.avail.load_u16(HEAD + 2 * at, Ordering::Relaxed);
            self.used.write_pair(HEAD + 8 * at, [head.into(), written]);
            self.next = self.next.wrapping_add(1);
        }
        self.used.store_u16(2, self.next, Ordering::Release);
    }
}
