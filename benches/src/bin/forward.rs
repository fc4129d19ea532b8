//! What a frame costs vswitch's forwarding path, on one core.

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use towpath_benches::cpu;
use towpath_benches::forward::Bench;
use towpath_benches::net::shape::Shape;

/// Nanoseconds per frame, driver and switch in turns on one core: median (best) of the repetitions.
#[derive(Debug, Parser)]
struct Options {
    /// Only the row of this name, or rows whose name contains it.
    #[arg(long, default_value = "")]
    only: String,
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 0.1)]
    seconds: f64,
    /// Repetitions.
    #[arg(long, default_value_t = 9)]
    reps: usize,
    /// Processor to run on.
    #[arg(long, default_value_t = 1)]
    cpu: usize,
}

fn rows() -> Vec<(&'static str, Shape)> {
    let plain = |ports, size| Shape::plain(ports, 256, size);
    let stations = |stations| Shape {
        stations,
        ..plain(2, 60)
    };
    let trunk = Shape {
        tags: vec![None, Some(10)],
        ..plain(2, 60)
    };
    vec![
        ("64", plain(2, 60)),
        ("1518", plain(2, 1514)),
        ("64, 1 k addresses", stations(500)),
        ("64, 16 k addresses", stations(8_000)),
        ("64, 100 k addresses", stations(50_000)),
        ("64, access to trunk", trunk),
        ("64, mesh of 8", plain(8, 60)),
    ]
}

fn main() -> Result<()> {
    let options = Options::parse();
    let time = Duration::from_secs_f64(options.seconds);
    println!(
        "ns per frame, on one core: median (best) of {}",
        options.reps
    );
    cpu::on_cpu(options.cpu, || {
        let rows = rows();
        let exact = rows.iter().any(|(name, _)| *name == options.only);
        for (name, shape) in rows {
            if name != options.only && (exact || !name.contains(&options.only)) {
                continue;
            }
            let mut bench = Bench::new(&shape)?;
            let mut all = Vec::new();
            let (mut lost, mut frames) = (0, 0);
            for _ in 0..options.reps.max(1) {
                let cost = bench.run(time)?;
                lost += cost.lost;
                frames += cost.frames;
                all.push(cost.ns());
            }
            all.sort_by(f64::total_cmp);
            let (median, best) = (all[all.len() / 2], all[0]);
            println!("{name:<22} {median:>6.1} ({best:.1})   {frames} frames, {lost} lost");
        }
        Ok(())
    })?
}
