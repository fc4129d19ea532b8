//! Part of `make bench`: each kind of storage through vblk beside `io_uring` where its bytes lie.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use towpath_benches::backend::{Launcher, found};
use towpath_benches::plan::{Effort, Entrant, Entry};
use towpath_benches::report::Report;
use towpath_benches::runner::{Figure, run_all, tell};
use towpath_benches::storage::plan::{Row, Who, rows};
use towpath_benches::storage::runner::Runner;
use towpath_benches::storage::{crowd, scene::Scene};

/// Measures vblk on each kind of storage, and many disks on one worker; prints ratios and writes
/// JSON. Needs root, for loop devices and a mount.
#[derive(Debug, Parser)]
struct Options {
    /// Only rows whose names contain this (may be given several times); `shares` stands for weights
    /// and caps.
    #[arg(long)]
    only: Vec<String>,
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
    /// MiB of each disk.
    #[arg(long, default_value_t = 512)]
    size: u64,
    /// Where files on disk go; the file system must know `O_DIRECT`.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Processor of the load generator and of the NBD server.
    #[arg(long, default_value_t = 0)]
    front_cpu: usize,
    /// Processor of the back-end.
    #[arg(long, default_value_t = 1)]
    back_cpu: usize,
    /// The vblk binary [default: beside this one].
    #[arg(long)]
    vblk: Option<PathBuf>,
    /// Where the JSON goes.
    #[arg(long, default_value = "target/bench-storage.json")]
    json: PathBuf,
}

impl Options {
    fn effort(&self) -> Effort {
        let seconds = if self.quick {
            self.seconds.min(0.2)
        } else {
            self.seconds
        };
        let reps = if self.quick { 1 } else { self.reps };
        Effort { seconds, reps }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    fn launcher(&self) -> Result<Launcher> {
        let beside = std::env::current_exe()
            .context("current_exe")?
            .with_file_name("vblk");
        let vblk = self.vblk.clone().unwrap_or(beside);
        ensure!(
            vblk.exists(),
            "{}: cargo build --release -p vblk",
            vblk.display()
        );
        Ok(Launcher {
            vblk,
            qsd_aio: "io_uring".into(),
            cpu: self.back_cpu,
        })
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.list {
        let names = rows().into_iter().map(|row| row.name);
        for name in names.chain(crowd::rows().into_iter().map(|row| row.name)) {
            println!("{name}");
        }
        println!("shares");
        return Ok(());
    }
    let effort = options.effort();
    ensure!(
        effort.seconds > 0.0 && effort.reps > 0,
        "--seconds and --reps must be positive"
    );
    // A thousand sessions have some thousands of descriptors.
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, most).context("RLIMIT_NOFILE")?;
    let kinds = kinds(&options, effort)?;
    let many = many(&options, effort)?;
    let json = format!("[{kinds},{many}]");
    if let Some(parent) = options.json.parent() {
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    std::fs::write(&options.json, json).with_context(|| options.json.display().to_string())?;
    eprintln!("every sample is in {}", options.json.display());
    Ok(())
}

/// The rows of kinds: prints their table, returns them as JSON.
fn kinds(options: &Options, effort: Effort) -> Result<String> {
    let rows: Vec<Row> = rows()
        .into_iter()
        .filter(|row| options.wants(&row.name))
        .collect();
    let mut report = Report::default();
    if rows.is_empty() {
        return Ok(report.json(&rows, effort)?);
    }
    std::fs::create_dir_all(&options.dir).with_context(|| options.dir.display().to_string())?;
    let mut runner = Runner {
        launcher: options.launcher()?,
        front: options.front_cpu,
        effort,
        scene: Scene::new(&options.dir, options.size << 20, options.front_cpu)?,
    };
    let measure = |row: &Row, who| runner.measure(row, who);
    let tell = |rep, index: usize, who, figure: &Result<Figure>| {
        tell(rep, &rows[index].name, who, figure);
        report.add(index, who, figure.as_ref().ok().copied());
    };
    run_all(effort.reps, &rows, &present(), measure, tell)?;
    println!("{}\n", report.table(&rows, &effort));
    Ok(report.json(&rows, effort)?)
}

/// The rows of many disks, and shares.
fn many(options: &Options, effort: Effort) -> Result<String> {
    let rows: Vec<crowd::Row> = crowd::rows()
        .into_iter()
        .filter(|row| options.wants(row.name()))
        .collect();
    let mut report = Report::default();
    let launcher = options.launcher()?;
    if !rows.is_empty() {
        let measure = |row: &_, _| crowd::measure(&launcher, options.front_cpu, &effort, row);
        let tell = |rep, index: usize, who, figure: &Result<Figure>| {
            tell(rep, &rows[index].name, who, figure);
            report.add(index, who, figure.as_ref().ok().copied());
        };
        run_all(effort.reps, &rows, &[Who::Vblk], measure, tell)?;
    }
    if options.wants("shares") {
        let asides = crowd::shares(&launcher, options.front_cpu, &effort)?;
        report.add_asides(Who::Vblk, asides);
    }
    if !rows.is_empty() || options.wants("shares") {
        println!("{}", report.table(&rows, &effort));
    }
    Ok(report.json(&rows, effort)?)
}

/// Who takes part; says why somebody does not.
fn present() -> Vec<Who> {
    let missing = found("qemu-storage-daemon", "qemu-system-common");
    if let Err(why) = &missing {
        eprintln!("without qsd: missing {why}");
    }
    let all = Who::ALL.iter().copied();
    all.filter(|who| *who != Who::Qsd || missing.is_ok())
        .collect()
}
