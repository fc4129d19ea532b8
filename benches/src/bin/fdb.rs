//! What the forwarding database costs, by number of addresses.

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use towpath_benches::cpu;
use towpath_benches::fdb::{Bench, Costs};

/// Nanoseconds per address, in bursts of 64: median of the repetitions.
#[derive(Debug, Parser)]
struct Options {
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 0.05)]
    seconds: f64,
    /// Repetitions.
    #[arg(long, default_value_t = 9)]
    reps: usize,
    /// Processor to run on.
    #[arg(long, default_value_t = 1)]
    cpu: usize,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let time = Duration::from_secs_f64(options.seconds);
    println!("ns per address     hash   lookup    learn   learn and lookup");
    cpu::on_cpu(options.cpu, || {
        for stations in [1, 1_000, 16_000, 100_000] {
            let bench = Bench::new(stations)?;
            let runs: Vec<Costs> = (0..options.reps.max(1)).map(|_| bench.run(time)).collect();
            let median = |cost: fn(&Costs) -> f64| {
                let mut all: Vec<f64> = runs.iter().map(cost).collect();
                all.sort_by(f64::total_cmp);
                all[all.len() / 2]
            };
            println!(
                "{stations:>8} addresses {:>5.1} {:>8.1} {:>8.1} {:>18.1}",
                median(|c| c.hash),
                median(|c| c.lookup),
                median(|c| c.learn),
                median(|c| c.frame),
            );
        }
        Ok(())
    })?
}
