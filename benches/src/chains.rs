//! The virtqueue alone: what a device pays per chain to pop it, read 64 bytes of it and give it
//! back, by our ring and by the `virtio-queue` crate, in the same run.
//!
//! Both see the same driver, memory and feature bits, take chains in bursts of [`BURST`], and
//! notify by the same rule. `virtio-queue` is used the fastest way it offers: one iterator and one
//! memory guard a burst.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use towpath_common::chain::Burst;
use towpath_common::mem::{Mem, Region, RegionSpec};
use towpath_common::ring::{Ring, Setup};
use towpath_common::testing::split::SplitDriver;
use towpath_common::testing::{Driver, Form, GuestMemory, Segment, Token, feature};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::cpu;

/// Entries of the ring.
const SIZE: u16 = 256;
/// Chains a visit.
const BURST: usize = 32;
/// Bytes read of each chain.
const READ: usize = 64;
/// Bytes of each region of guest memory.
const REGION: u64 = 8 << 20;
/// Features of the ring.
const FEATURES: u64 = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;

/// What the chains look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chains {
    /// One descriptor of 64 readable bytes, as a network driver sends.
    Single,
    /// A table of three (64 readable, 4096 writable, 1 writable), as a disk driver sends.
    Table,
}

/// A device that gives every chain back.
pub trait Device: Send {
    /// Takes up to [`BURST`] chains, reads the first 64 bytes of each, gives them back; how many.
    fn visit(&mut self) -> Result<usize>;
}

/// By our ring.
#[derive(Debug)]
struct Ours {
    ring: Ring,
    burst: Burst,
}

impl Device for Ours {
    #[inline]
    fn visit(&mut self) -> Result<usize> {
        let count = self.ring.pop(&mut self.burst, BURST);
        if count == 0 {
            ensure!(
                self.ring.broken().is_none(),
                "our ring broke: {:?}",
                self.ring.broken()
            );
            return Ok(0);
        }
        let mut bytes = [0; READ];
        for chain in self.burst.iter() {
            ensure!(
                chain.read(self.ring.mem(), &mut bytes),
                "a chain shorter than {READ} bytes"
            );
            std::hint::black_box(&bytes);
            self.ring.put(chain.id, 0);
        }
        std::hint::black_box(self.ring.publish());
        Ok(count)
    }
}

/// By the `virtio-queue` crate.
#[derive(Debug)]
struct Crate {
    queue: Queue,
    memory: GuestMemoryMmap,
    heads: Vec<u16>,
}

impl Device for Crate {
    #[inline]
    fn visit(&mut self) -> Result<usize> {
        let mut bytes = [0; READ];
        self.heads.clear();
        for chain in self.queue.iter(&self.memory)?.take(BURST) {
            self.heads.push(chain.head_index());
            let first = chain.into_iter().next().context("an empty chain")?;
            self.memory.read_slice(&mut bytes, first.addr())?;
            std::hint::black_box(&bytes);
        }
        for head in &self.heads {
            self.queue.add_used(&self.memory, *head, 0)?;
        }
        if !self.heads.is_empty() {
            std::hint::black_box(self.queue.needs_notification(&self.memory)?);
        }
        Ok(self.heads.len())
    }
}

/// A driver with a full set of prepared chains.
#[derive(Debug)]
pub struct Guest {
    memory: GuestMemory,
    driver: SplitDriver,
    tokens: Vec<Token>,
}

impl Guest {
    /// Guest memory of so many regions, chains spread over all of them.
    pub fn new(regions: usize, chains: Chains) -> Result<Self> {
        let places: Vec<(u64, u64)> = (0..regions as u64)
            .map(|i| (i * 2 * REGION, REGION))
            .collect();
        let memory = GuestMemory::with_regions(&places)?;
        let mut driver = SplitDriver::new(&memory, SIZE, FEATURES)?;
        let mut tokens = Vec::with_capacity(SIZE.into());
        for i in 0..usize::from(SIZE) {
            let region = i % regions;
            let data = Segment::readable(memory.alloc_in(region, 64, 64)?, 64);
            let token = match chains {
                Chains::Single => driver.chain(&[data], Form::Direct)?,
                Chains::Table => {
                    let page = Segment::writable(memory.alloc_in(region, 4096, 4096)?, 4096);
                    let status = Segment::writable(memory.alloc_in(region, 1, 64)?, 1);
                    driver.chain(&[data, page, status], Form::Indirect)?
                }
            };
            tokens.push(token);
        }
        Ok(Self {
            memory,
            driver,
            tokens,
        })
    }

    /// Our ring on this guest's.
    pub fn ours(&self) -> Result<Box<dyn Device>> {
        let mut regions = Vec::new();
        for region in self.memory.regions() {
            let spec = RegionSpec {
                gpa: region.gpa(),
                len: region.size(),
                uva: region.uva(),
                offset: 0,
            };
            regions.push(Region::map(spec, region.file().try_clone_to_owned()?)?);
        }
        let [desc, avail, used] = self.driver.places();
        let setup = Setup {
            size: SIZE,
            desc: self.memory.uva(desc)?,
            avail: self.memory.uva(avail)?,
            used: self.memory.uva(used)?,
            base: None,
            features: FEATURES,
            log: None,
            log_addr: None,
            inflight: None,
        };
        let mut ring = Ring::new(setup, Arc::new(Mem::new(regions)?))?;
        ring.disarm();
        Ok(Box::new(Ours {
            ring,
            burst: Burst::new(),
        }))
    }

    /// The crate's queue on this guest's.
    pub fn theirs(&self) -> Result<Box<dyn Device>> {
        let mut ranges = Vec::new();
        for region in self.memory.regions() {
            let file = std::fs::File::from(region.file().try_clone_to_owned()?);
            let size = usize::try_from(region.size())?;
            ranges.push((
                GuestAddress(region.gpa()),
                size,
                Some(FileOffset::new(file, 0)),
            ));
        }
        let memory = GuestMemoryMmap::from_ranges_with_files(&ranges)?;
        let [desc, avail, used] = self.driver.places().map(GuestAddress);
        let mut queue = Queue::new(SIZE)?;
        queue.try_set_size(SIZE)?;
        queue.try_set_desc_table_address(desc)?;
        queue.try_set_avail_ring_address(avail)?;
        queue.try_set_used_ring_address(used)?;
        queue.set_event_idx(true);
        queue.set_ready(true);
        let used = queue.used_idx(&memory, Ordering::Acquire)?;
        let Wrapping(used) = used;
        queue.set_next_avail(used);
        queue.set_next_used(used);
        Ok(Box::new(Crate {
            queue,
            memory,
            heads: Vec::with_capacity(BURST),
        }))
    }

    /// Nanoseconds a chain with driver and device on one core: hot caches, the device's part alone.
    ///
    /// The median over visits of a full ring each, so that being preempted does not count.
    pub fn alone(&mut self, device: &mut dyn Device, duration: Duration) -> Result<f64> {
        let begin = Instant::now();
        let mut visits = Vec::new();
        let mut done = Vec::with_capacity(SIZE.into());
        while begin.elapsed() < duration {
            for token in &self.tokens {
                self.driver.post(*token);
            }
            self.driver.publish()?;
            let visit = Instant::now();
            let mut count = 0;
            while count < self.tokens.len() {
                let got = device.visit()?;
                ensure!(got > 0, "chains on offer were not taken");
                count += got;
            }
            visits.push(visit.elapsed());
            self.driver.reap(&mut done)?;
            ensure!(
                done.len() == count,
                "{} of {count} chains came back",
                done.len()
            );
            done.clear();
        }
        visits.sort_unstable();
        let middle = visits
            .get(visits.len() / 2)
            .context("no time for a single visit")?;
        Ok(nanoseconds(*middle, self.tokens.len()))
    }

    /// Nanoseconds a chain, end to end, with the driver polling on another core.
    pub fn apart(
        &mut self,
        device: &mut dyn Device,
        front: usize,
        back: usize,
        duration: Duration,
    ) -> Result<f64> {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let driver = scope.spawn(|| cpu::on_cpu(front, || self.drive(&stop)));
            let result = cpu::on_cpu(back, || serve(device, duration));
            stop.store(true, Ordering::Relaxed);
            // The driver waits for what is in flight.
            while !driver.is_finished() {
                device.visit()?;
            }
            driver.join().ok().context("the driver panicked")???;
            result?
        })
    }

    /// Offers chains again as they come back, until told to stop; then takes the rest back.
    fn drive(&mut self, stop: &AtomicBool) -> Result<()> {
        for token in &self.tokens {
            self.driver.post(*token);
        }
        self.driver.publish()?;
        let mut done = Vec::with_capacity(SIZE.into());
        while self.driver.in_flight() > 0 {
            let again = !stop.load(Ordering::Relaxed);
            if self.driver.reap(&mut done)? == 0 {
                std::hint::spin_loop();
                continue;
            }
            for completion in done.drain(..) {
                if again {
                    self.driver.post(completion.token);
                }
            }
            self.driver.publish()?;
        }
        Ok(())
    }
}

/// Visits for `duration`; nanoseconds a chain.
fn serve(device: &mut dyn Device, duration: Duration) -> Result<f64> {
    let begin = Instant::now();
    let mut chains = 0;
    while begin.elapsed() < duration {
        for _ in 0..BURST {
            chains += device.visit()?;
        }
    }
    Ok(nanoseconds(begin.elapsed(), chains))
}

fn nanoseconds(time: Duration, chains: usize) -> f64 {
    time.as_secs_f64() * 1e9 / chains.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_devices_take_every_chain_of_the_same_guest() {
        let time = Duration::from_millis(2);
        for chains in [Chains::Single, Chains::Table] {
            for regions in [1, 4] {
                let mut guest = Guest::new(regions, chains).unwrap();
                let mut ours = guest.ours().unwrap();
                assert!(guest.alone(&mut *ours, time).unwrap() > 0.0);
                assert!(guest.apart(&mut *ours, 0, 0, time).unwrap() > 0.0);
                // The other one goes on where the used index stands.
                let mut theirs = guest.theirs().unwrap();
                assert!(guest.alone(&mut *theirs, time).unwrap() > 0.0);
                assert!(guest.apart(&mut *theirs, 0, 0, time).unwrap() > 0.0);
            }
        }
    }
}
