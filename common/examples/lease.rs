//! What it costs two workers to share a port: through a [`Lease`], one copy a frame, or by handing
//! frames to the port's own worker, which takes a second copy.
//!
//! ```text
//! cargo run --release --package towpath-common --example lease
//! ```
//!
//! Bursts of 32 frames are copied from memory of the sender's to the port's, by one thread and then
//! by two on processors 0 and 1. Figures are medians of five runs, and ratios of one run.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};
use towpath_common::lease::Lease;

const BURST: usize = 32;
const RUN: Duration = Duration::from_millis(200);
const RUNS: usize = 5;

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    // With one processor it is a measurement of something else, and says so by its figures.
    let _ = sched_setaffinity(None, &set);
}

/// Nanoseconds for each turn of `turn`.
fn each(mut turn: impl FnMut()) -> f64 {
    let (start, mut turns) = (Instant::now(), 0u32);
    while start.elapsed() < RUN {
        (0..64).for_each(|_| turn());
        turns += 64;
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(turns)
}

fn median(mut one: impl FnMut() -> f64) -> f64 {
    let mut all: Vec<f64> = (0..RUNS).map(|_| one()).collect();
    all.sort_by(f64::total_cmp);
    all[RUNS / 2]
}

/// A burst, copied.
fn copy(from: &[u8], to: &mut [u8], size: usize) {
    let frames = from.chunks_exact(size).zip(to.chunks_exact_mut(size));
    for (from, to) in frames {
        to.copy_from_slice(black_box(from));
    }
    black_box(to);
}

/// Bursts a second that `workers` bring to one port together.
fn through_a_lease(workers: usize, size: usize) -> f64 {
    let port = Lease::new(vec![0u8; BURST * size]);
    let (stop, bursts) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|threads| {
        for cpu in 0..workers {
            let (port, stop, bursts) = (&port, &stop, &bursts);
            threads.spawn(move || {
                pin(cpu);
                let from = vec![1u8; BURST * size];
                let mut mine = 0;
                while !stop.load(Relaxed) {
                    copy(&from, &mut port.hold(), size);
                    mine += 1;
                }
                bursts.fetch_add(mine, Relaxed);
            });
        }
        std::thread::sleep(RUN);
        stop.store(true, Relaxed);
    });
    #[expect(clippy::cast_precision_loss, reason = "for the eye")]
    let bursts = bursts.load(Relaxed) as f64;
    bursts / RUN.as_secs_f64()
}

fn main() {
    pin(0);
    let port = Lease::new(0u64);
    let alone = median(|| each(|| *port.hold() += 1));
    println!("taking a lease and giving it back, alone: {alone:.1} ns");
    for size in [64, 1518] {
        let (from, mut to) = (vec![1u8; BURST * size], vec![0u8; BURST * size]);
        let second = median(|| each(|| copy(&from, &mut to, size)));
        let one = median(|| through_a_lease(1, size));
        let two = median(|| through_a_lease(2, size));
        println!(
            "{size} bytes, {BURST} frames a burst: {:.0} ns to copy (a second copy costs that \
             again), {:.1} M frames/s by one worker, {:.2} times that by two at the same port",
            second,
            one * 32.0 / 1e6,
            two / one
        );
    }
}
