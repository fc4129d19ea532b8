//! How long one frame takes: alone, under a light load, and through a switch that sleeps.
//!
//! Two ports; the generator polls, so only the switch and the way between two processors is in the
//! figures. A ping-pong is there and back: two passes through the switch.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use hdrhistogram::Histogram;
use rustix::event::{EventfdFlags, eventfd};
use towpath_common::clock::{Clock, Cycles};

use super::frame::Stamp;
use super::port::Port;
use super::traffic::Generator;
use crate::cpu;

/// A frame that takes so long is lost.
const LOST: Duration = Duration::from_secs(2);
/// The same once nothing else is sent.
const LATE: Duration = Duration::from_millis(20);
/// Frames of the wake-up figure.
const WAKES: u64 = 300;
/// Pause before each of them: long after any polling period.
const GAP: Duration = Duration::from_millis(5);
/// Frames a second of the light load: a tenth of what Open vSwitch forwards with one core.
const LIGHT: u64 = 1_000_000;

/// Percentiles in microseconds.
#[derive(Debug, Clone, Copy)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            p50: at(0.5),
            p99: at(0.99),
        }
    }
}

fn two(generator: &mut Generator) -> Result<&mut [Port; 2]> {
    generator
        .ports()
        .try_into()
        .map_err(|_| anyhow!("latency is measured between two ports"))
}

/// Waits for one frame at `to`, polling.
#[inline]
fn await_frame(to: &mut Port, clock: &Clock, start: Cycles) -> Result<()> {
    let patience = clock.rate().of(LOST);
    while to.catch()? == 0 {
        let waited = clock.now().since(start);
        ensure!(waited < patience, "a frame is lost");
    }
    Ok(())
}

/// There and back, one frame at a time, for `duration`.
pub fn ping_pong(generator: &mut Generator, duration: Duration) -> Result<Latency> {
    let [a, b] = two(generator)?;
    let clock = Clock::new();
    let mut histogram = Histogram::new(3)?;
    let begin = Instant::now();
    while begin.elapsed() < duration {
        for _ in 0..64 {
            let start = clock.now();
            a.shoot()?;
            await_frame(b, &clock, start)?;
            b.shoot()?;
            await_frame(a, &clock, start)?;
            histogram.record(clock.rate().ns(clock.now().since(start)))?;
            a.land();
            b.land();
        }
    }
    Ok(Latency::of(&histogram))
}

/// What became of a light load.
#[derive(Debug, Clone, Copy)]
pub struct Light {
    /// Of the frames that arrived.
    pub latency: Latency,
    /// Frames that did not, in a million.
    pub lost_ppm: f64,
}

/// One way at a tenth of the load, one frame at a time on schedule, for `duration`. Frames are
/// numbered: a receiver whose processor is taken away for longer than its buffers last loses some,
/// through any switch.
pub fn light_load(generator: &mut Generator, duration: Duration) -> Result<Light> {
    let [a, b] = two(generator)?;
    let clock = Clock::new();
    let mut histogram = Histogram::new(3)?;
    let mut flying: VecDeque<(u64, Cycles)> = VecDeque::with_capacity(1 << 16);
    let begin = clock.now();
    let (length, patience) = (clock.rate().of(duration), clock.rate().of(LATE));
    let (mut sent, mut lost) = (0, 0u64);
    loop {
        let now = clock.now();
        let elapsed = now.since(begin);
        let due = Cycles(begin.get() + clock.rate().cycles(sent * 1_000_000_000 / LIGHT).get());
        // A schedule is kept: a frame that waits for a slot counts from when it was due.
        if elapsed < length && now >= due && a.send(0, sent)? {
            flying.push_back((sent, due));
            sent += 1;
        }
        a.land();
        while let Some((head, _, bytes)) = b.next_arrived()? {
            let now = clock.now();
            b.give_back(head)?;
            let stamp = Stamp::find(&bytes).context("a frame that nobody sent")?;
            // Frames of one sender stay in order, so those before it are lost.
            while let Some((number, start)) = flying.pop_front() {
                if number == stamp.number {
                    histogram.record(clock.rate().ns(now.since(start)))?;
                    break;
                }
                ensure!(number < stamp.number, "frame {} came late", stamp.number);
                lost += 1;
            }
        }
        let newest = flying.back().map(|(_, due)| now.since(*due));
        if elapsed >= length && newest.is_none_or(|waited| waited > patience) {
            lost += flying.len() as u64;
            ensure!(lost < histogram.len(), "most frames are lost");
            return Ok(Light {
                latency: Latency::of(&histogram),
                lost_ppm: lost as f64 * 1e6 / sent as f64,
            });
        }
    }
}

/// One frame after each pause: how long a sleeping switch takes to forward it.
pub fn wake_up(generator: &mut Generator) -> Result<Latency> {
    let [a, b] = two(generator)?;
    let clock = Clock::new();
    let mut histogram = Histogram::new(3)?;
    for _ in 0..WAKES {
        std::thread::sleep(GAP);
        let start = clock.now();
        a.shoot()?;
        await_frame(b, &clock, start)?;
        histogram.record(clock.rate().ns(clock.now().since(start)))?;
        a.land();
    }
    Ok(Latency::of(&histogram))
}

/// Sends until the first frame arrives.
pub fn first_frame(generator: &mut Generator) -> Result<()> {
    let [a, b] = two(generator)?;
    let begin = Instant::now();
    while b.catch()? == 0 {
        a.shoot()?;
        a.land();
        std::thread::sleep(Duration::from_micros(50));
        ensure!(begin.elapsed() < LOST, "no frame arrives");
    }
    Ok(())
}

/// The machine's own part of [`wake_up`]: how long a thread that sleeps on an eventfd takes to say
/// that it is awake, on processor `on`.
pub fn bare_wake_up(on: usize) -> Result<Latency> {
    let bell = eventfd(0, EventfdFlags::CLOEXEC).context("cannot make an eventfd")?;
    let awake = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            cpu::on_cpu(on, || -> Result<()> {
                let mut count = [0; 8];
                for wake in 1..=WAKES {
                    rustix::io::read(&bell, &mut count)?;
                    awake.store(wake, Ordering::Release);
                }
                Ok(())
            })?
        });
        let clock = Clock::new();
        let mut histogram = Histogram::new(3)?;
        for wake in 1..=WAKES {
            std::thread::sleep(GAP);
            let start = clock.now();
            rustix::io::write(&bell, &1u64.to_ne_bytes())?;
            while awake.load(Ordering::Acquire) < wake {
                ensure!(
                    !sleeper.is_finished() || awake.load(Ordering::Acquire) >= wake,
                    "no wake-up"
                );
                std::hint::spin_loop();
            }
            histogram.record(clock.rate().ns(clock.now().since(start)))?;
        }
        sleeper
            .join()
            .map_err(|_| anyhow!("the sleeper panicked"))??;
        Ok(Latency::of(&histogram))
    })
}
