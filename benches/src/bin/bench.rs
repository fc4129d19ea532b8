//! `make bench`: vblk beside qemu-storage-daemon and beside the raw limit.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use towpath_benches::backend::Launcher;
use towpath_benches::plan::{Contender, Effort, Entrant, Row, rows};
use towpath_benches::report::Report;
use towpath_benches::runner::{Files, Runner, run_all, tell};
use towpath_benches::{echo, idle};

/// Measures vblk side by side with its peers; prints ratios and writes JSON.
#[derive(Debug, Parser)]
struct Options {
    /// Only the row of this name, e.g. `cached/read/32`, or rows whose names contain it (may be
    /// given several times); `idle` stands for start, memory, idle CPU and wake-up.
    #[arg(long)]
    only: Vec<String>,
    /// Only these contenders.
    #[arg(long, value_delimiter = ',', value_parser = contender)]
    with: Vec<Contender>,
    /// Print the names of all rows and stop.
    #[arg(long)]
    list: bool,
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Repetitions.
    #[arg(long, default_value_t = 5)]
    reps: usize,
    /// One short repetition: does everything work?
    #[arg(long)]
    quick: bool,
    /// MiB of each file under test.
    #[arg(long, default_value_t = 1024)]
    size: u64,
    /// Where files on disk go; the file system must know `O_DIRECT`.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Processor of the load generator.
    #[arg(long, default_value_t = 0)]
    front_cpu: usize,
    /// Processor of the back-end.
    #[arg(long, default_value_t = 1)]
    back_cpu: usize,
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
    fn effort(&self) -> Effort {
        if self.quick {
            return Effort {
                seconds: self.seconds.min(0.2),
                reps: 1,
            };
        }
        Effort {
            seconds: self.seconds,
            reps: self.reps,
        }
    }

    fn wants(&self, name: &str) -> bool {
        let hit = |part: &String| {
            let whole = rows().iter().any(|row| row.name == *part);
            if whole {
                name == part
            } else {
                name.contains(part.as_str())
            }
        };
        self.only.is_empty() || self.only.iter().any(hit)
    }

    fn launcher(&self) -> Result<Launcher> {
        let beside = std::env::current_exe()
            .context("current_exe")?
            .with_file_name("vblk");
        Ok(Launcher {
            vblk: self.vblk.clone().unwrap_or(beside),
            qsd_aio: self.qsd_aio.clone(),
            cpu: self.back_cpu,
        })
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let effort = options.effort();
    ensure!(
        effort.seconds > 0.0 && effort.reps > 0,
        "--seconds and --reps must be positive"
    );
    if options.list {
        for row in rows() {
            println!("{}", row.name);
        }
        println!("idle");
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
        front: options.front_cpu,
        effort,
        files,
    };
    let contenders = available(&options, &runner.launcher);
    let mut report = Report::default();
    if !rows.is_empty() || !options.wants("idle") {
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
    if options.wants("idle") {
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
    if let Some(parent) = options.json.parent() {
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    std::fs::write(&options.json, report.json(&rows, effort)?)
        .with_context(|| options.json.display().to_string())?;
    eprintln!("every sample is in {}", options.json.display());
    Ok(())
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
            let (front, back) = (options.front_cpu, options.back_cpu);
            best = best.max(echo::self_test(depth, front, back, effort.duration())?.rate());
        }
        println!(
            "generator alone, depth {depth:>3}: {:.2} M requests/s",
            best / 1e6
        );
    }
    Ok(())
}
