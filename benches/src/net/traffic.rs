//! The generator: guests that send frames as fast as the switch takes them.
//!
//! One thread serves every port in turn. Before a run it primes the switch (every station sends,
//! so that every address is learnt) and checks it: numbered frames must arrive once, in order, at
//! the port they are for and at no other. During the run only counts and samples are looked at.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::frame::{EVERYBODY, Stamp};
use super::port::Port;
use super::shape::Shape;

/// Turns between two looks at the clock.
const CLOCK_EVERY: u32 = 64;
/// A switch that moves nothing for so long is broken.
const STALL: Duration = Duration::from_secs(5);
/// Nothing more arrives after so long.
const QUIET: Duration = Duration::from_millis(50);
/// Frames of a port on their way while it is checked.
const WINDOW: u64 = 64;
/// Time for a switch to settle on where everybody is.
const SETTLE: Duration = Duration::from_secs(20);
/// Pause between two checks.
const PAUSE: Duration = Duration::from_millis(200);
/// Frames of each port in a check, at most; priming sends them all.
const CHECKED: u64 = 4096;

/// What a run did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Frames received.
    pub frames: u64,
    /// Bytes in them, without headers.
    pub bytes: u64,
    /// Frames that the switch took and nobody received.
    pub lost: i64,
    /// Samples that were not for the port where they arrived.
    pub astray: u64,
    /// In this time.
    pub time: Duration,
}

impl Sample {
    /// Frames a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.frames as f64 / self.time.as_secs_f64()
    }
}

/// What a check found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames sent.
    pub sent: u64,
    /// Frames that arrived where they should, in order.
    pub good: u64,
    /// Numbers that were left out.
    pub lost: u64,
    /// Numbers that came again, or late.
    pub repeated: u64,
    /// Frames for another port.
    pub astray: u64,
    /// Frames that nobody sent.
    pub foreign: u64,
}

impl Tally {
    /// Whether every frame arrived once, in order, where it should, and nothing else did.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.good == self.sent && self.repeated + self.astray + self.foreign == 0
    }
}

/// All ports and what they send.
#[derive(Debug)]
pub struct Generator {
    shape: Shape,
    ports: Vec<Port>,
    /// Load a word of each received buffer.
    pub touch: bool,
    /// Next number from each port to each other.
    numbers: Vec<u64>,
    /// Next number expected at each port from each other.
    expected: Vec<u64>,
}

impl Generator {
    /// Ports that are not attached yet.
    pub fn new(shape: Shape) -> Result<Self> {
        let ports = (0..shape.ports)
            .map(|index| Port::new(index, &shape))
            .collect::<Result<Vec<_>>>()?;
        let pairs = ports.len() * ports.len();
        Ok(Self {
            shape,
            ports,
            touch: false,
            numbers: vec![0; pairs],
            expected: vec![0; pairs],
        })
    }

    /// The ports, to attach them.
    pub fn ports(&mut self) -> &mut [Port] {
        &mut self.ports
    }

    /// What the ports are.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Lets every station send until the switch delivers all of it and nothing else.
    pub fn prime(&mut self) -> Result<()> {
        let start = Instant::now();
        let mut first = u64::MAX;
        loop {
            let tally = self.pass(first)?;
            if first == CHECKED && tally.is_clean() {
                return Ok(());
            }
            ensure!(
                start.elapsed() < SETTLE,
                "the switch does not deliver frames as it should: {tally:?}"
            );
            if first == CHECKED {
                std::thread::sleep(PAUSE);
            }
            first = CHECKED;
        }
    }

    /// Every port sends the frames of its pool, `most` at most, a few at a time.
    pub fn pass(&mut self, most: u64) -> Result<Tally> {
        let mut tally = Tally::default();
        let mut sent = vec![0; self.ports.len()];
        let mut moved = Instant::now();
        let goal = |port: &Port| port.pool().min(most);
        self.expected.clone_from(&self.numbers);
        loop {
            let before = (tally, sent.clone());
            for (index, sent) in sent.iter_mut().enumerate() {
                let target = goal(&self.ports[index]);
                let open = tally.sent - tally.good < WINDOW * self.ports.len() as u64;
                if *sent < target && open && self.send(index, *sent)? {
                    *sent += 1;
                    tally.sent += 1;
                }
                self.ports[index].land();
                self.inspect(index, &mut tally)?;
            }
            if before != (tally, sent.clone()) {
                moved = Instant::now();
            }
            let all = self.ports.iter().zip(&sent).all(|(p, n)| *n == goal(p));
            let quiet = moved.elapsed();
            if quiet > QUIET || (all && tally.good == tally.sent && quiet > QUIET / 10) {
                tally.lost = tally.sent.saturating_sub(tally.good);
                if all {
                    return Ok(tally);
                }
                // What is missing will not come: make room for the rest.
                ensure!(quiet < STALL, "the switch takes no frames: {tally:?}");
                tally.good = tally.sent;
            }
        }
    }

    fn send(&mut self, from: usize, index: u64) -> Result<bool> {
        let to = usize::from(self.ports[from].target(index));
        let pair = from * self.ports.len() + to;
        let sent = self.ports[from].send(index, self.numbers[pair])?;
        if sent {
            self.numbers[pair] += 1;
        }
        Ok(sent)
    }

    /// Takes what arrived at a port and judges it.
    fn inspect(&mut self, at: usize, tally: &mut Tally) -> Result<()> {
        let count = self.ports.len();
        let mut bytes = 0;
        while let Some((head, written, beginning)) = self.ports[at].next_arrived()? {
            self.ports[at].give_back(head)?;
            if self.shape.segmented {
                bytes += u64::from(written);
                continue;
            }
            let Some(stamp) = Stamp::find(&beginning) else {
                tally.foreign += 1;
                continue;
            };
            let (from, to) = (usize::from(stamp.from), usize::from(stamp.to));
            if stamp.to != EVERYBODY && to != at || from >= count {
                tally.astray += 1;
                continue;
            }
            let expected = &mut self.expected[from * count + at];
            if stamp.number < *expected {
                tally.repeated += 1;
            } else {
                *expected = stamp.number + 1;
                tally.good += 1;
            }
        }
        tally.good += self.whole(bytes);
        Ok(())
    }

    /// Frames in so many bytes of buffers.
    fn whole(&self, bytes: u64) -> u64 {
        bytes / self.shape.filled(0) as u64
    }

    /// Runs for `duration` with the first `senders` ports sending.
    ///
    /// What arrives later is not counted but waited for, so that the next run starts clean.
    pub fn run(&mut self, senders: usize, duration: Duration) -> Result<Sample> {
        for port in self.ports.iter_mut().take(senders) {
            port.launch()?;
        }
        let start = Instant::now();
        let mut sample = Sample::default();
        let (mut buffers, mut taken) = (0, 0);
        let (mut counted, mut moved) = (0, Duration::ZERO);
        while sample.time < duration {
            for _ in 0..CLOCK_EVERY {
                for (index, port) in self.ports.iter_mut().enumerate() {
                    let arrived = port.receive(self.touch)?;
                    if arrived.buffers > 0 {
                        buffers += arrived.buffers;
                        sample.bytes += arrived.bytes;
                        sample.astray +=
                            u64::from(!self.shape.segmented && is_astray(port, index)?);
                    }
                    if index < senders {
                        taken += port.transmit()?;
                    }
                }
            }
            sample.time = start.elapsed();
            if buffers != counted {
                (counted, moved) = (buffers, sample.time);
            }
            ensure!(sample.time - moved < STALL, "nothing arrives for {STALL:?}");
        }
        let during = buffers;
        let bytes = sample.bytes;
        self.drain(&mut taken, &mut buffers, &mut sample.bytes)?;
        let all = self.frames(buffers, sample.bytes);
        sample.frames = self.frames(during, bytes);
        sample.bytes = bytes.saturating_sub(during * super::frame::HEADER as u64);
        sample.lost = i64::try_from(taken)? - i64::try_from(all)?;
        Ok(sample)
    }

    fn frames(&self, buffers: u64, bytes: u64) -> u64 {
        if self.shape.segmented {
            self.whole(bytes)
        } else {
            buffers
        }
    }

    /// Sends nothing more, until everything on its way has arrived.
    fn drain(&mut self, taken: &mut u64, buffers: &mut u64, bytes: &mut u64) -> Result<()> {
        let mut moved = Instant::now();
        loop {
            let mut flying = 0;
            for port in &mut self.ports {
                let landed = port.land();
                *taken += landed;
                flying += u32::from(port.in_flight());
                let arrived = port.receive(false)?;
                *buffers += arrived.buffers;
                *bytes += arrived.bytes;
                if landed + arrived.buffers > 0 {
                    moved = Instant::now();
                }
            }
            if flying == 0 && moved.elapsed() > QUIET {
                return Ok(());
            }
            ensure!(moved.elapsed() < STALL, "{flying} frames are never taken");
        }
    }
}

#[inline]
fn is_astray(port: &Port, index: usize) -> Result<bool> {
    let stamp = Stamp::find(&port.sample()?);
    Ok(stamp.is_none_or(|s| usize::from(s.to) != index && s.to != EVERYBODY))
}
