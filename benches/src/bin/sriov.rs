//! What a plan costs for a host full of cards, and an apply beside a script of `ip`.

use anyhow::Result;
use clap::Parser;
use towpath_benches::sriov::{Figures, Size, cases, in_a_guest};

/// Plans: milliseconds, median and worst of the repetitions. Applies: seconds in an emulated guest.
#[derive(Debug, Parser)]
struct Options {
    /// Cards of the host.
    #[arg(long, default_value_t = 64)]
    pfs: u16,
    /// VFs of each card.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    vfs: u16,
    /// Repetitions.
    #[arg(long, default_value_t = 25)]
    reps: usize,
    /// Leave out the guest.
    #[arg(long)]
    plan_only: bool,
}

fn middle_and_last(mut all: Vec<f64>) -> (f64, f64) {
    all.sort_by(f64::total_cmp);
    let last = all.len().saturating_sub(1);
    let at = |index: usize| all.get(index).copied().unwrap_or_default();
    (at(last / 2), at(last))
}

fn main() -> Result<()> {
    let options = Options::parse();
    let (pfs, vfs) = (options.pfs, options.vfs);
    println!("plan, {pfs} PFs of {vfs} VFs       steps    median     worst");
    for case in cases(Size { pfs, vfs })? {
        let mut times = Vec::new();
        let mut steps = 0;
        for _ in 0..options.reps.max(1) {
            let (took, count) = case.run()?;
            steps = count;
            times.push(took.as_secs_f64() * 1e3);
        }
        let (median, worst) = middle_and_last(times);
        println!(
            "{:<28} {steps:>6} {median:>6.2} ms {worst:>6.2} ms",
            case.name
        );
    }
    if options.plan_only {
        return Ok(());
    }
    let Figures { hand, ours, memory } = in_a_guest()?;
    let ratios = ours.iter().zip(&hand).map(|(ours, hand)| ours / hand);
    let (ratio, worst_ratio) = middle_and_last(ratios.collect());
    println!(
        "apply of 7 VFs, {} turns            median     worst",
        ours.len()
    );
    for (name, times) in [("a script of ip", hand), ("sriov-manager", ours)] {
        let (median, worst) = middle_and_last(times);
        println!("{name:<35} {median:>6.2} s {worst:>7.2} s");
    }
    println!(
        "{:<35} {ratio:>6.2}   {worst_ratio:>7.2}",
        "of the turn before"
    );
    println!(
        "{:<35} {:>6.1} MiB",
        "the daemon's memory",
        memory as f64 / 1024.0
    );
    Ok(())
}
