//! `make bench`, the switch's part: vswitch beside Open vSwitch, testpmd and a bare copy loop.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use towpath_benches::cpu;
use towpath_benches::net::mirror::Mirror;
use towpath_benches::net::plan::{CHECKSUM, Contender, Row, rows};
use towpath_benches::net::runner::Runner;
use towpath_benches::net::shape::Shape;
use towpath_benches::net::switch::{HUGE_MIB, Launcher};
use towpath_benches::net::traffic::Generator;
use towpath_benches::options::{Common, beside, write_json};
use towpath_benches::plan::{Effort, Entrant, Entry};
use towpath_benches::report::{Aside, Report};
use towpath_benches::runner::{run_all, tell};

/// Rows that are no rates.
const ASIDES: [&str; 2] = ["latency", "idle"];
/// Huge pages of the machine.
const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";
/// MiB of one.
const HUGE_PAGE: u64 = 2;

/// Measures vswitch side by side with its peers; prints ratios and writes JSON.
#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    common: Common,
    /// Only these contenders.
    #[arg(long, value_delimiter = ',', value_parser = contender)]
    with: Vec<Contender>,
    /// Entries of each virtqueue; 256 is QEMU's default.
    #[arg(long, default_value_t = 256)]
    ring: u16,
    /// Load a word of each received buffer, as a guest does.
    #[arg(long)]
    touch: bool,
    /// The vswitch binary [default: beside this one].
    #[arg(long)]
    vswitch: Option<PathBuf>,
    /// Words added to `vswitch serve`.
    #[arg(long, allow_hyphen_values = true)]
    vswitch_args: Vec<String>,
    /// Leave the machine's huge pages alone; the peers get small ones if too few are there.
    #[arg(long)]
    no_huge: bool,
    /// Where the JSON goes.
    #[arg(long, default_value = "target/bench-net.json")]
    json: PathBuf,
    /// Measure the generator's own ceiling and stop.
    #[arg(long)]
    self_test: bool,
}

fn contender(name: &str) -> Result<Contender, String> {
    let mut all = Contender::ALL.iter().copied();
    all.find(|who| who.name() == name)
        .ok_or_else(|| format!("{name}: one of copy, testpmd, ovs, vswitch"))
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        let rows = rows();
        let all: Vec<&str> = rows.iter().map(Entry::name).chain(ASIDES).collect();
        self.common.wants(name, &all)
    }

    fn runner(&self, huge: bool) -> Result<Runner> {
        Ok(Runner {
            launcher: Launcher {
                vswitch: self.vswitch.clone().map_or_else(|| beside("vswitch"), Ok)?,
                vswitch_args: self.vswitch_args.clone(),
                cpu: self.common.back_cpu,
                huge,
            },
            front: self.common.front_cpu,
            ring: self.ring,
            touch: self.touch,
            effort: self.common.effort()?,
        })
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let effort = options.common.effort()?;
    if options.common.list {
        rows().iter().for_each(|row| println!("{}", row.name()));
        ASIDES.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    if options.self_test {
        return self_test(&options, &effort);
    }
    let huge = HugePages::take(!options.no_huge);
    if !huge.enough {
        eprintln!("too few huge pages: the peers run on small ones, which slows them");
    }
    let runner = options.runner(huge.enough)?;
    let present = available(&options, &runner.launcher);
    let wanted: Vec<Row> = rows()
        .into_iter()
        .filter(|row| options.wants(row.name()))
        .collect();
    let report = measure(&options, &runner, &wanted, &present)?;
    println!("{}", report.table(&wanted, &effort));
    write_json(&options.json, &report.json(&wanted, effort)?)
}

fn measure(
    options: &Options,
    runner: &Runner,
    wanted: &[Row],
    present: &[Contender],
) -> Result<Report<Contender>> {
    let mut report = Report::default();
    let asides = ASIDES.map(|name| options.wants(name));
    if !wanted.is_empty() || asides == [false; 2] {
        let one = |row: &Row, who| runner.measure(row, who);
        run_all(
            runner.effort.reps,
            wanted,
            present,
            one,
            |rep, index, who, figure| {
                tell(rep, wanted[index].name(), who, figure);
                report.add(index, who, figure.as_ref().ok().copied());
            },
        )?;
    }
    let mut add = |who: Contender, name: &str, asides: Result<Vec<Aside>>| match asides {
        Ok(asides) => report.add_asides(who, asides),
        Err(error) => eprintln!("{name} {} FAILED: {error:#}", who.name()),
    };
    for &who in present {
        if asides[0] {
            add(who, ASIDES[0], runner.latency(who));
        }
        if asides[1] && who != Contender::Copy {
            add(who, ASIDES[1], runner.idle(who));
        }
    }
    Ok(report)
}

/// Who takes part; says why somebody does not.
fn available(options: &Options, launcher: &Launcher) -> Vec<Contender> {
    let mut present = Vec::new();
    for who in Contender::ALL.iter().copied() {
        if !options.with.is_empty() && !options.with.contains(&who) {
            continue;
        }
        match launcher.available(who) {
            Ok(()) => present.push(who),
            Err(why) => eprintln!("without {}: missing {why}", who.name()),
        }
    }
    present
}

fn self_test(options: &Options, effort: &Effort) -> Result<()> {
    for size in [64, 1518] {
        let mut best = 0.0f64;
        for _ in 0..effort.reps {
            let mut generator = Generator::new(Shape::plain(2, options.ring, size - CHECKSUM))?;
            generator.touch = options.touch;
            let filled = u32::try_from(generator.shape().filled(0))?;
            let _mirror = Mirror::start(generator.ports(), filled, options.common.back_cpu)?;
            let sample = cpu::on_cpu(options.common.front_cpu, || {
                generator.run(2, effort.duration())
            })??;
            best = best.max(sample.rate());
        }
        println!(
            "generator alone, {size:>4} bytes: {:.1} M frames/s",
            best / 1e6
        );
    }
    Ok(())
}

/// Huge pages for the peers' buffers; the machine gets its old number back with this value.
#[derive(Debug)]
struct HugePages {
    before: Option<u64>,
    enough: bool,
}

impl HugePages {
    /// Asks for as many as the peers want, unless they are there or not to be had.
    fn take(ask: bool) -> Self {
        let number = || {
            fs::read_to_string(HUGE_PAGES)
                .ok()?
                .trim()
                .parse::<u64>()
                .ok()
        };
        let wanted = HUGE_MIB / HUGE_PAGE;
        let before = number().filter(|there| ask && *there < wanted);
        if before.is_some() && fs::write(HUGE_PAGES, wanted.to_string()).is_err() {
            eprintln!("cannot write {HUGE_PAGES}: huge pages need root");
        }
        Self {
            before,
            enough: number().is_some_and(|there| there >= wanted),
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // The pages would stay reserved, which harms nobody but takes memory.
            let _ = fs::write(HUGE_PAGES, before.to_string());
        }
    }
}
