//! The load generator's own ceiling: a device that does nothing, in this process.
//!
//! It touches memory as a null back-end must (index, head, descriptor, header, status, used
//! element, index once a burst) and checks nothing, so whatever the generator reaches against it
//! is more than it can reach against any back-end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use towpath_common::mem::View;
use towpath_common::testing::blk::BlkQueue;
use towpath_common::testing::split::SplitDriver;
use towpath_common::testing::{GuestMemory, feature};

use crate::cpu;
use crate::load::{Generator, QUEUE_SIZE, Sample, shape};
use crate::plan::Workload;

/// Guest memory for one queue: rings, lines, tables, and the data nobody touches.
const MEMORY: u64 = 64 << 20;
/// Size of the disk that is not there, in bytes.
const DISK: u64 = 4 << 30;

/// The device's end of one split ring, whose guest memory is one region at address 0.
struct Echo {
    memory: View,
    desc: usize,
    avail: usize,
    used: usize,
    size: u16,
    next: u16,
}

impl Echo {
    fn new(memory: &GuestMemory, driver: &SplitDriver) -> Result<Self> {
        let [desc, avail, used] = driver.places().map(usize::try_from);
        let memory = memory.view(0, MEMORY, 64)?;
        let echo = Self {
            memory,
            desc: desc?,
            avail: avail?,
            used: used?,
            size: driver.size(),
            next: 0,
        };
        // No kicks, please.
        echo.memory.store_u16(echo.used, 1, Ordering::Release);
        Ok(echo)
    }

    /// Completes everything on offer; how many.
    fn step(&mut self) -> Result<u16> {
        let memory = &self.memory;
        let count = memory
            .load_u16(self.avail + 2, Ordering::Acquire)
            .wrapping_sub(self.next);
        for _ in 0..count {
            let slot = usize::from(self.next & (self.size - 1));
            let head = memory.load_u16(self.avail + 4 + 2 * slot, Ordering::Relaxed);
            let desc = self.desc + 16 * usize::from(head);
            let table = usize::try_from(memory.load_u64(desc, Ordering::Relaxed))?;
            let header = usize::try_from(memory.load_u64(table, Ordering::Relaxed))?;
            std::hint::black_box(memory.load_u64(header + 8, Ordering::Relaxed));
            let status = usize::try_from(memory.load_u64(table + 32, Ordering::Relaxed))?;
            memory.store_u8(status, 0, Ordering::Relaxed);
            memory.write_pair(self.used + 4 + 8 * slot, [head.into(), 4097]);
            self.next = self.next.wrapping_add(1);
        }
        if count > 0 {
            memory.store_u16(self.used + 2, self.next, Ordering::Release);
        }
        Ok(count)
    }
}

/// The generator on `front`, the device on `back`.
pub fn self_test(depth: u16, front: usize, back: usize, duration: Duration) -> Result<Sample> {
    let workload = Workload {
        write: false,
        sequential: false,
        block: 4096,
        depth,
        queues: 1,
    };
    let memory = GuestMemory::new(MEMORY)?;
    let driver = SplitDriver::new(&memory, QUEUE_SIZE, feature::VERSION_1)?;
    let mut echo = Echo::new(&memory, &driver)?;
    let queue = BlkQueue::new(driver, &memory, shape(&workload))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let device = scope.spawn(|| {
            cpu::on_cpu(back, || {
                while !stop.load(Ordering::Relaxed) {
                    if echo.step()? == 0 {
                        std::hint::spin_loop();
                    }
                }
                anyhow::Ok(())
            })
        });
        let sample = cpu::on_cpu(front, || {
            let mut generator = Generator::over(vec![queue], &workload, DISK)?;
            generator.run(duration / 5)?;
            generator.run(duration)
        });
        stop.store(true, Ordering::Relaxed);
        device.join().ok().context("the device panicked")???;
        sample?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_runs_at_every_depth_and_loses_nothing() {
        let cpus = rustix::thread::sched_getaffinity(None).unwrap();
        let mut allowed = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| cpus.is_set(*cpu));
        let front = allowed.next().unwrap();
        let back = allowed.next().unwrap_or(front);
        for depth in [1, 3, 128] {
            let sample = self_test(depth, front, back, Duration::from_millis(20)).unwrap();
            assert!(sample.requests > 0);
        }
    }
}
