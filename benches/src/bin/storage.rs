//! Part of `make bench`: each kind of storage through vblk beside `io_uring` where its bytes lie.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use towpath_benches::backend::{Launcher, found};
use towpath_benches::options::{Common, beside, write_json};
use towpath_benches::plan::{Effort, Entrant, Entry};
use towpath_benches::report::Report;
use towpath_benches::runner::{Figure, run_all, tell};
use towpath_benches::storage::plan::{Row, Who, rows};
use towpath_benches::storage::runner::Runner;
use towpath_benches::storage::{crowd, guest, scene::Scene};
use towpath_common::limits::raise_open_files;

/// How weights and a cap divide a worker: no rates.
const SHARES: &str = "shares";

/// Measures vblk on each kind of storage, and many disks on one worker; prints ratios and writes
/// JSON. Needs root, for loop devices, a mount and logical volumes; the latter are measured in a
/// guest if this kernel has no device-mapper.
#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    common: Common,
    /// MiB of each disk.
    #[arg(long, default_value_t = 512)]
    size: u64,
    /// Where files on disk go; the file system must know `O_DIRECT`.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Two devices for logical volumes, which lose what they have [default: loop devices].
    #[arg(long, value_delimiter = ',')]
    devices: Vec<PathBuf>,
    /// The vblk binary [default: beside this one].
    #[arg(long)]
    vblk: Option<PathBuf>,
    /// Where the JSON goes.
    #[arg(long, default_value = "target/bench-storage.json")]
    json: PathBuf,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        let names = names();
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        self.common.wants(name, &all)
    }

    fn launcher(&self) -> Result<Launcher> {
        let vblk = self.vblk.clone().map_or_else(|| beside("vblk"), Ok)?;
        ensure!(
            vblk.exists(),
            "{}: cargo build --release -p vblk",
            vblk.display()
        );
        Ok(Launcher {
            vblk,
            qsd_aio: "io_uring".into(),
            cpu: self.common.back_cpu,
        })
    }
}

/// Every row, and what is none.
fn names() -> Vec<String> {
    let kinds = rows().into_iter().map(|row| row.name);
    let crowd = crowd::rows().into_iter().map(|row| row.name);
    kinds.chain(crowd).chain([SHARES.to_owned()]).collect()
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.common.list {
        names().iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    ensure!(
        names().iter().any(|name| options.wants(name)),
        "no row matches --only; `--list` shows their names"
    );
    let effort = options.common.effort()?;
    // Hundreds of sessions have some thousands of descriptors.
    raise_open_files();
    let (elsewhere, here): (Vec<Row>, Vec<Row>) = rows()
        .into_iter()
        .filter(|row| options.wants(&row.name))
        .partition(|row| row.kind.is_volume() && !guest::has_device_mapper());
    let mut reports = vec![kinds(&options, effort, &here)?];
    reports.extend(in_a_guest(&options, effort, &elsewhere));
    reports.push(many(&options, effort)?);
    write_json(&options.json, &format!("[{}]", reports.join(",")))
}

/// The rows of kinds: prints their table, returns them as JSON.
fn kinds(options: &Options, effort: Effort, rows: &[Row]) -> Result<String> {
    let mut report = Report::default();
    if rows.is_empty() {
        return Ok(report.json(rows, effort)?);
    }
    std::fs::create_dir_all(&options.dir).with_context(|| options.dir.display().to_string())?;
    let mut runner = Runner {
        launcher: options.launcher()?,
        front: options.common.front_cpu,
        effort,
        scene: Scene::new(
            &options.dir,
            options.size << 20,
            options.common.front_cpu,
            options.devices.clone(),
        )?,
    };
    let measure = |row: &Row, who| runner.measure(row, who);
    let tell = |rep, index: usize, who, figure: &Result<Figure>| {
        tell(rep, &rows[index].name, who, figure);
        report.add(index, who, figure.as_ref().ok().copied());
    };
    run_all(effort.reps, rows, &present(rows), measure, tell)?;
    println!("{}\n", report.table(rows, &effort));
    Ok(report.json(rows, effort)?)
}

/// The rows that this kernel is not made for: prints their table, returns them as JSON. They are
/// left out, as a row that fails is, if there can be no guest.
fn in_a_guest(options: &Options, effort: Effort, rows: &[Row]) -> Option<String> {
    if rows.is_empty() {
        return None;
    }
    match guest::measure(rows, effort, options.size << 20) {
        Ok(told) => {
            println!("{}", told.text);
            Some(told.json.to_string())
        }
        Err(error) => {
            eprintln!("FAILED: {error:#}");
            None
        }
    }
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
        let measure =
            |row: &_, _| crowd::measure(&launcher, options.common.front_cpu, &effort, row);
        let tell = |rep, index: usize, who, figure: &Result<Figure>| {
            tell(rep, &rows[index].name, who, figure);
            report.add(index, who, figure.as_ref().ok().copied());
        };
        run_all(effort.reps, &rows, &[Who::Vblk], measure, tell)?;
    }
    if options.wants(SHARES) {
        let asides = crowd::shares(&launcher, options.common.front_cpu, &effort)?;
        report.add_asides(Who::Vblk, asides);
    }
    if !rows.is_empty() || options.wants(SHARES) {
        println!("{}", report.table(&rows, &effort));
    }
    Ok(report.json(&rows, effort)?)
}

/// Who takes part in `rows`; says why somebody does not.
fn present(rows: &[Row]) -> Vec<Who> {
    let is_there = |who: &Who| {
        let found = match who {
            Who::Qsd => found("qemu-storage-daemon", "qemu-system-common"),
            Who::Fio => found("fio", "fio"),
            Who::Raw | Who::File | Who::Vblk => return true,
        };
        if let Err(why) = &found {
            eprintln!("without {}: missing {why}", who.name());
        }
        found.is_ok()
    };
    let asked = |who: &Who| rows.iter().any(|row| row.contenders().contains(who));
    let all = Who::ALL.iter().copied().filter(asked);
    all.filter(is_there).collect()
}
