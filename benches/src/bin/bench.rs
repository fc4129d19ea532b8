//! `make bench`: vblk beside qemu-storage-daemon and beside the raw limit.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use towpath_benches::backend::Launcher;
use towpath_benches::options::{Common, beside, write_json};
use towpath_benches::plan::{Contender, Effort, Entrant, Row, rows};
use towpath_benches::report::Report;
use towpath_benches::runner::{Files, Runner, run_all, tell};
use towpath_benches::{echo, idle};

/// Start, memory, CPU when idle, and wake-up: no rates.
const IDLE: &str = "idle";

/// Measures vblk side by side with its peers; prints ratios and writes JSON.
#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    common: Common,
    /// Only these contenders.
    #[arg(long, value_delimiter = ',', value_parser = contender)]
    with: Vec<Contender>,
    /// MiB of each file under test.
    #[arg(long, default_value_t = 1024)]
    size: u64,
    /// Where files on disk go; the file system must know `O_DIRECT`.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// The vblk binary [default: beside this one].
    #[arg(long)]
    vblk: Option<PathBuf>,
    /// aio= of qemu-storage-daemon.
    #[arg(long, default_value = "io_uring")]
    qsd_aio: String,
    /// Where the JSON goes.
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// Measure the load generator's own ceiling and stop.
    #[arg(long)]
    self_test: bool,
}

fn contender(name: &str) -> Result<Contender, String> {
    let all = Contender::ALL.iter().copied();
    all.into_iter()
        .find(|who| who.name() == name)
        .ok_or_else(|| format!("{name}: one of raw, fio, qsd, vblk"))
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        let rows = rows();
        let mut all: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        all.push(IDLE);
        self.common.wants(name, &all)
    }

    fn launcher(&self) -> Result<Launcher> {
        Ok(Launcher {
            vblk: self.vblk.clone().map_or_else(|| beside("vblk"), Ok)?,
            qsd_aio: self.qsd_aio.clone(),
            cpu: self.common.back_cpu,
        })
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let effort = options.common.effort()?;
    if options.common.list {
        for row in rows() {
            println!("{}", row.name);
        }
        println!("{IDLE}");
        return Ok(());
    }
    if options.self_test {
        return self_test(&options, &effort);
    }
    let rows: Vec<Row> = rows()
        .into_iter()
        .filter(|row| options.wants(&row.name))
        .collect();
    std::fs::create_dir_all(&options.dir).with_context(|| options.dir.display().to_string())?;
    let files = Files::new(&options.dir, options.size << 20)?;
    let runner = Runner {
        launcher: options.launcher()?,
        front: options.common.front_cpu,
        effort,
        files,
    };
    let contenders = available(&options, &runner.launcher);
    let mut report = Report::default();
    if !rows.is_empty() || !options.wants(IDLE) {
        let measure = |row: &Row, who| runner.measure(row, who);
        run_all(
            effort.reps,
            &rows,
            &contenders,
            measure,
            |rep, index, who, figure| {
                tell(rep, &rows[index].name, who, figure);
                report.add(index, who, figure.as_ref().ok().copied());
            },
        )?;
    }
    if options.wants(IDLE) {
        for who in contenders
            .iter()
            .filter(|c| matches!(c, Contender::Qsd | Contender::Vblk))
        {
            match idle::measure(&runner, *who) {
                Ok(idle) => report.add_asides(*who, idle.asides()),
                Err(error) => eprintln!("idle {}: {error:#}", who.name()),
            }
        }
    }
    println!("{}", report.table(&rows, &effort));
    write_json(&options.json, &report.json(&rows, effort)?)
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
    for depth in [1, 32, 128] {
        let mut best = 0.0f64;
        for _ in 0..effort.reps {
            let (front, back) = (options.common.front_cpu, options.common.back_cpu);
            best = best.max(echo::self_test(depth, front, back, effort.duration())?.rate());
        }
        println!(
            "generator alone, depth {depth:>3}: {:.2} M requests/s",
            best / 1e6
        );
    }
    Ok(())
}
