//! The load generator: a guest that does nothing but keep a number of requests in flight.
//!
//! It is the same for every back-end, so it must never be the limit. Per request it writes one
//! cache line (header and status, see [`towpath_common::testing::blk`]) and two bytes of the
//! available ring, and reads eight bytes of the used ring; indices move once a burst, and it waits
//! a little between two looks at a ring that showed nothing, so as not to take the used index's
//! line away from the back-end that is about to write it. Data is neither filled nor looked at.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use towpath_common::testing::blk::{
    BlkClient, BlkQueue, ClientOptions, Done, OK, Op, SECTOR, Shape,
};
use towpath_common::testing::{Driver, Form};

use crate::plan::Workload;

/// Entries of each virtqueue: more than any depth measured.
pub const QUEUE_SIZE: u16 = 256;
/// Looks at the rings between two looks at the clock.
const CLOCK_EVERY: u32 = 64;
/// Pauses after a look that found nothing.
const PAUSES: u32 = 4;
/// A back-end that completes nothing for so long is broken.
const STALL: Duration = Duration::from_secs(10);

/// What a run did.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Requests completed.
    pub requests: u64,
    /// In this time.
    pub time: Duration,
}

impl Sample {
    /// Requests a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.time.as_secs_f64()
    }
}

/// Where the next request goes.
#[derive(Debug, Clone)]
pub struct Aim {
    blocks: u64,
    sequential: bool,
    state: u64,
}

impl Aim {
    /// Over a disk of `size` bytes; the sequence is the same in every run.
    pub fn new(workload: &Workload, size: u64) -> Result<Self> {
        let blocks = size / u64::from(workload.block);
        ensure!(
            blocks > 0,
            "a disk of {size} bytes is smaller than one request"
        );
        let state = if workload.sequential {
            0
        } else {
            0x9e37_79b9_7f4a_7c15
        };
        Ok(Self {
            blocks,
            sequential: workload.sequential,
            state,
        })
    }

    /// The next block.
    #[inline]
    pub fn next_block(&mut self) -> u64 {
        if self.sequential {
            let block = self.state;
            self.state = if block + 1 == self.blocks {
                0
            } else {
                block + 1
            };
            return block;
        }
        // xorshift64*, then the high half scaled to the range.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let random = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        (random * self.blocks) >> 32
    }
}

/// A guest attached to a back-end, ready to run one workload.
#[derive(Debug)]
pub struct Generator<D = towpath_common::testing::SplitDriver> {
    queues: Vec<BlkQueue<D>>,
    aim: Aim,
    sectors: u64,
    done: Vec<Done>,
    /// Requests completed on each queue.
    counts: Vec<u64>,
    /// They keep the sessions alive.
    clients: Vec<BlkClient>,
}

impl Generator {
    /// Attaches to a back-end's socket; takes the disk's size from its configuration space.
    pub fn attach(socket: &Path, workload: &Workload) -> Result<Self> {
        Self::attach_all(&[socket], workload)
    }

    /// Attaches to several disks, of the size of the first one; the workload's queues are spread
    /// over them.
    pub fn attach_all(sockets: &[impl AsRef<Path>], workload: &Workload) -> Result<Self> {
        let (mut queues, mut clients, mut size) = (Vec::new(), Vec::new(), None);
        let each = u32::from(workload.queues) / u32::try_from(sockets.len())?;
        for socket in sockets {
            let mut client = Self::client(socket.as_ref(), workload, each.max(1))?;
            let sectors = client.capacity()?;
            let bytes = sectors.checked_mul(SECTOR).context("capacity overflows")?;
            size.get_or_insert(bytes);
            queues.extend(client.take_queues());
            clients.push(client);
        }
        let mut this = Self::over(queues, workload, size.context("no disk")?)?;
        this.clients = clients;
        Ok(this)
    }

    fn client(socket: &Path, workload: &Workload, queues: u32) -> Result<BlkClient> {
        let options = ClientOptions {
            queues,
            queue_size: QUEUE_SIZE,
            shape: shape(workload),
            ..ClientOptions::default()
        };
        BlkClient::connect(socket, options)
            .with_context(|| format!("no session with {}", socket.display()))
    }
}

/// Slots and buffers for a workload.
#[must_use]
pub fn shape(workload: &Workload) -> Shape {
    Shape {
        slots: workload.depth_per_queue(),
        buffer: workload.block,
        piece: u32::MAX,
        form: Form::Indirect,
    }
}

impl<D: Driver> Generator<D> {
    /// A generator on queues that somebody else set up.
    pub fn over(mut queues: Vec<BlkQueue<D>>, workload: &Workload, size: u64) -> Result<Self> {
        let op = if workload.write { Op::Out } else { Op::In };
        for queue in &mut queues {
            for slot in 0..queue.slots() {
                queue.prepare(slot, op, 0, workload.block)?;
            }
        }
        Ok(Self {
            counts: vec![0; queues.len()],
            queues,
            aim: Aim::new(workload, size)?,
            sectors: u64::from(workload.block) / SECTOR,
            done: Vec::with_capacity(QUEUE_SIZE.into()),
            clients: Vec::new(),
        })
    }

    /// Requests completed on each queue so far.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Runs for `duration`, then waits until everything in flight came back.
    ///
    /// Requests that complete after `duration` are not counted.
    pub fn run(&mut self, duration: Duration) -> Result<Sample> {
        for index in 0..self.queues.len() {
            for slot in 0..self.queues[index].slots() {
                self.offer(index, slot);
            }
            self.queues[index].publish()?;
        }
        let start = Instant::now();
        let mut time = Duration::ZERO;
        let (mut requests, mut counted, mut quiet) = (0, 0, Duration::ZERO);
        while time < duration {
            for _ in 0..CLOCK_EVERY {
                requests += self.turn(true)?;
            }
            time = start.elapsed();
            if requests != counted {
                (counted, quiet) = (requests, time);
            }
            ensure!(time - quiet < STALL, "no completion for {STALL:?}");
        }
        self.drain()?;
        Ok(Sample { requests, time })
    }

    /// One look at every queue; with `again`, what came back goes out once more.
    #[inline]
    fn turn(&mut self, again: bool) -> Result<u64> {
        let mut total = 0;
        for index in 0..self.queues.len() {
            let count = self.queues[index].reap(&mut self.done)?;
            if count == 0 {
                continue;
            }
            total += count as u64;
            self.counts[index] += count as u64;
            let mut burst = std::mem::take(&mut self.done);
            for done in burst.drain(..) {
                if done.status != OK {
                    bail!("a request came back with status {}", done.status);
                }
                if again {
                    self.offer(index, done.slot);
                }
            }
            self.done = burst;
            self.queues[index].publish()?;
        }
        if total == 0 {
            for _ in 0..PAUSES {
                std::hint::spin_loop();
            }
        }
        Ok(total)
    }

    #[inline]
    fn offer(&mut self, queue: usize, slot: usize) {
        let sector = self.aim.next_block() * self.sectors;
        let queue = &mut self.queues[queue];
        queue.aim(slot, sector);
        queue.post(slot);
    }

    fn drain(&mut self) -> Result<()> {
        let start = Instant::now();
        while self
            .queues
            .iter()
            .any(|queue| queue.driver().in_flight() > 0)
        {
            self.turn(false)?;
            ensure!(
                start.elapsed() < STALL,
                "requests in flight never came back"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(sequential: bool) -> Workload {
        Workload {
            write: false,
            sequential,
            block: 4096,
            depth: 1,
            queues: 1,
        }
    }

    #[test]
    fn sequential_aim_wraps_and_random_aim_stays_inside() {
        let mut aim = Aim::new(&workload(true), 3 * 4096 + 5).unwrap();
        assert_eq!([0; 4].map(|_| aim.next_block()), [0, 1, 2, 0]);
        let mut aim = Aim::new(&workload(false), 7 * 4096).unwrap();
        let mut seen = [0u32; 7];
        for _ in 0..7000 {
            seen[usize::try_from(aim.next_block()).unwrap()] += 1;
        }
        assert!(seen.iter().all(|count| *count > 800));
        assert!(Aim::new(&workload(false), 100).is_err());
    }
}
