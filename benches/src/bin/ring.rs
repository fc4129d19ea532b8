//! What a chain costs our ring, beside the `virtio-queue` crate in the same run.

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use towpath_benches::chains::{Chains, Device, Guest};

/// The most a chain may cost our ring, alone on a core, in nanoseconds.
const GOAL: f64 = 8.0;

/// Nanoseconds per chain (pop, read 64 bytes, push): ours against virtio-queue.
#[derive(Debug, Parser)]
struct Options {
    /// Only cases whose name contains this, e.g. `one core`.
    #[arg(long, default_value = "")]
    only: String,
    /// Only our ring, e.g. to profile it.
    #[arg(long)]
    ours: bool,
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 0.3)]
    seconds: f64,
    /// Repetitions.
    #[arg(long, default_value_t = 9)]
    reps: usize,
    /// Processor of the driver, where it is not the device's.
    #[arg(long, default_value_t = 0)]
    front_cpu: usize,
    /// Processor of the device.
    #[arg(long, default_value_t = 1)]
    back_cpu: usize,
}

/// One line of the table.
struct Case {
    name: &'static str,
    chains: Chains,
    regions: usize,
    apart: bool,
    /// Whether [`GOAL`] is about it.
    goal: bool,
}

const fn case(name: &'static str, chains: Chains, regions: usize, apart: bool) -> Case {
    let goal = matches!(chains, Chains::Single) && regions == 1 && !apart;
    Case {
        name,
        chains,
        regions,
        apart,
        goal,
    }
}

const CASES: [Case; 6] = [
    case("one core, 1 descriptor", Chains::Single, 1, false),
    case(
        "one core, 1 descriptor, 4 regions",
        Chains::Single,
        4,
        false,
    ),
    case("one core, table of 3", Chains::Table, 1, false),
    case("one core, table of 3, 4 regions", Chains::Table, 4, false),
    case("two cores, 1 descriptor", Chains::Single, 1, true),
    case("two cores, table of 3", Chains::Table, 1, true),
];

fn main() -> Result<()> {
    let options = Options::parse();
    let cases: Vec<&Case> = CASES
        .iter()
        .filter(|c| c.name.contains(&options.only))
        .collect();
    let reps = options.reps.max(1);
    let mut ours = vec![Vec::new(); cases.len()];
    let mut theirs = vec![Vec::new(); cases.len()];
    for _ in 0..reps {
        for (i, case) in cases.iter().enumerate() {
            let mut guest = Guest::new(case.regions, case.chains)?;
            let mut device = guest.ours()?;
            ours[i].push(measure(&mut guest, &mut *device, case, &options)?);
            if !options.ours {
                let mut device = guest.theirs()?;
                theirs[i].push(measure(&mut guest, &mut *device, case, &options)?);
            }
        }
    }
    println!("ns per chain (pop, read 64 bytes, push): median (best) of {reps}");
    println!("{:<36}{:<18}{:<18}times", "", "ours", "virtio-queue");
    for (i, case) in cases.iter().enumerate() {
        let (mine, other) = (middle(&mut ours[i]), middle(&mut theirs[i]));
        let goal = match (case.goal, mine <= GOAL) {
            (true, true) => format!("at most {GOAL} (met)"),
            (true, false) => format!("at most {GOAL} (NOT MET)"),
            _ => String::new(),
        };
        let cell = |middle: f64, all: &[f64]| {
            all.first()
                .map_or_else(|| "-".to_owned(), |best| format!("{middle:.1} ({best:.1})"))
        };
        let times = if other.is_nan() {
            "-".to_owned()
        } else {
            format!("{:.1}", other / mine)
        };
        println!(
            "{:<36}{:<18}{:<18}{times:<6}{goal}",
            case.name,
            cell(mine, &ours[i]),
            cell(other, &theirs[i])
        );
    }
    Ok(())
}

fn measure(guest: &mut Guest, device: &mut dyn Device, case: &Case, o: &Options) -> Result<f64> {
    let time = Duration::from_secs_f64(o.seconds);
    if case.apart {
        return guest.apart(device, o.front_cpu, o.back_cpu, time);
    }
    towpath_benches::cpu::on_cpu(o.back_cpu, || guest.alone(device, time))?
}

/// Sorts, then the middle one; not a number if there is none.
fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
