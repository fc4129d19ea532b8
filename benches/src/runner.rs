//! Runs rows: sets the scene for one figure, measures it, and repeats what was disturbed.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tempfile::TempDir;

use crate::backend::{Backend, DiskSpec, Launcher};
use crate::cpu::{self, Noise, Watch};
use crate::fio::{self, On};
use crate::load::{Generator, Sample};
use crate::plan::{Contender, Effort, Entrant, Entry, Row, Target, Workload};
use crate::raw::{Raw, yielding};

/// Foreign work, in cores, above which a run counts as disturbed.
pub const QUIET: f64 = 0.15;
/// Tries before a disturbed figure is taken as it is.
const TRIES: usize = 3;
/// Bytes written or read at once when a file is made or warmed.
const CHUNK: usize = 1 << 20;

/// One figure.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Figure {
    /// So many requests, or frames, a second.
    pub rate: f64,
    /// Microseconds of CPU time the serving side took for each.
    pub cpu_us: f64,
    /// Foreign work meanwhile, in cores.
    pub foreign: f64,
    /// Whether it stayed disturbed after all tries.
    pub disturbed: bool,
}

impl Figure {
    fn new(sample: Sample, noise: Noise) -> Self {
        Self::of(sample.requests, sample.rate(), noise)
    }

    /// Of so many, at this rate.
    #[must_use]
    pub fn of(count: u64, rate: f64, noise: Noise) -> Self {
        Self {
            rate,
            cpu_us: noise.backend.as_secs_f64() * 1e6 / count.max(1) as f64,
            foreign: noise.foreign,
            disturbed: noise.foreign > QUIET,
        }
    }
}

/// The files under test; they go with this value.
#[derive(Debug)]
pub struct Files {
    memory: TempDir,
    disk: TempDir,
    size: u64,
}

impl Files {
    /// Scratch directories for files of `size` bytes: on tmpfs, and under `dir` on a disk.
    pub fn new(dir: &Path, size: u64) -> Result<Self> {
        Ok(Self {
            memory: scratch(Path::new("/dev/shm"))?,
            disk: scratch(dir)?,
            size,
        })
    }

    /// The scratch directory on disk.
    #[must_use]
    pub fn disk_dir(&self) -> &Path {
        self.disk.path()
    }

    /// Where a target's file is.
    #[must_use]
    pub fn path(&self, target: Target) -> PathBuf {
        let dir = if target == Target::Tmpfs {
            &self.memory
        } else {
            &self.disk
        };
        dir.path().join(target.name())
    }

    /// Makes the target's file if need be: written throughout, on the device, warm if it is to be.
    fn ready(&self, target: Target) -> Result<PathBuf> {
        let path = self.path(target);
        if target == Target::Null {
            return Ok(path);
        }
        let mut file = written(&path, self.size)?;
        if target == Target::Cached {
            let mut chunk = vec![0; CHUNK];
            while file.read(&mut chunk)? > 0 {}
        }
        Ok(path)
    }
}

/// The file at `path`, of `size` bytes, written throughout and on its device; made if need be.
pub fn written(path: &Path, size: u64) -> Result<File> {
    if !path.exists() {
        let mut file = File::create(path).with_context(|| path.display().to_string())?;
        let chunk = vec![0x5a; CHUNK];
        for _ in 0..size / CHUNK as u64 {
            file.write_all(&chunk)
                .with_context(|| format!("cannot fill {}", path.display()))?;
        }
    }
    let file = File::open(path)?;
    // What the last run wrote must not be written back during the next.
    file.sync_all().context("sync")?;
    Ok(file)
}

/// A scratch directory in `dir`; it goes with the value.
pub fn scratch(dir: &Path) -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder
        .prefix("towpath-bench-")
        .tempdir_in(dir)
        .with_context(|| format!("no scratch directory in {}", dir.display()))
}

/// Everything a run needs.
#[derive(Debug)]
pub struct Runner {
    /// How back-ends start.
    pub launcher: Launcher,
    /// The processor of the load generator.
    pub front: usize,
    /// How long.
    pub effort: Effort,
    /// On what.
    pub files: Files,
}

impl Runner {
    /// The quietest of a few runs of `row` by `who`.
    pub fn measure(&self, row: &Row, who: Contender) -> Result<Figure> {
        quietest(|| self.once(row, who)).with_context(|| format!("{} {}", row.name, who.name()))
    }

    fn once(&self, row: &Row, who: Contender) -> Result<Figure> {
        let path = self.files.ready(row.target)?;
        match who {
            Contender::Raw => cpu::on_cpu(self.launcher.cpu, || self.raw(row, &path))?,
            Contender::Fio => cpu::on_cpu(self.launcher.cpu, || self.fio(row, &path))?,
            Contender::Qsd | Contender::Vblk => self.served(row, who, path),
        }
    }

    fn raw(&self, row: &Row, path: &Path) -> Result<Figure> {
        use rustix::fs::{Mode, OFlags, open};
        let direct = if row.target.is_direct() {
            OFlags::DIRECT
        } else {
            OFlags::empty()
        };
        let file = open(path, OFlags::RDWR | OFlags::CLOEXEC | direct, Mode::empty())
            .with_context(|| path.display().to_string())?;
        let raw = Raw::new(&File::from(file), self.files.size, row.workload)?;
        limit(raw, &self.effort)
    }

    fn fio(&self, row: &Row, path: &Path) -> Result<Figure> {
        let on = On::File(path, row.target.is_direct());
        by_fio(on, self.files.size, &row.workload, &self.effort, None)
    }

    fn served(&self, row: &Row, who: Contender, file: PathBuf) -> Result<Figure> {
        let disk = DiskSpec {
            target: row.target,
            file,
            queues: row.workload.queues,
        };
        let backend = self.launcher.start(who, &[disk])?;
        let yields = row.target == Target::Direct;
        let load = Load {
            workload: row.workload,
            front: self.front,
            effort: self.effort,
            yields,
            server: None,
        };
        load.drive(&backend, backend.sockets())
    }
}

/// What fio reaches on `on`, of `size` bytes; `server` is a process that does part of the work.
pub fn by_fio(
    on: On<'_>,
    size: u64,
    workload: &Workload,
    effort: &Effort,
    server: Option<u32>,
) -> Result<Figure> {
    let watch = Watch::start(None)?.beside(server)?;
    let ran = fio::run(on, size, workload, effort)?;
    // Its start and warm-up are part of the time watched, and its own.
    let all = effort.duration() + effort.warm_up();
    let gone = ran
        .cpu
        .mul_f64(all.as_secs_f64() / ran.sample.time.as_secs_f64());
    let noise = watch.stop(gone)?;
    let noise = Noise {
        backend: ran.cpu,
        ..noise
    };
    Ok(Figure::new(ran.sample, noise))
}

/// What this thread reaches without a back-end.
pub fn limit(mut raw: Raw, effort: &Effort) -> Result<Figure> {
    raw.run(effort.warm_up())?;
    let watch = Watch::start(None)?;
    let sample = raw.run(effort.duration())?;
    Ok(Figure::new(sample, watch.stop(Duration::ZERO)?))
}

/// What is asked of a back-end, and how.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// What.
    pub workload: Workload,
    /// The processor of the generator.
    pub front: usize,
    /// How long.
    pub effort: Effort,
    /// Whether the generator yields to everything else there: [`yielding`].
    pub yields: bool,
    /// A process that does part of the work, such as a server of storage.
    pub server: Option<u32>,
}

impl Load {
    /// Runs it on these disks of a back-end at once.
    pub fn drive(&self, backend: &Backend, sockets: &[PathBuf]) -> Result<Figure> {
        let mut generator = Generator::attach_all(sockets, &self.workload)?;
        let measure = || {
            generator.run(self.effort.warm_up())?;
            let watch = Watch::start(Some(backend.pid()))?.beside(self.server)?;
            let sample = generator.run(self.effort.duration())?;
            Ok(Figure::new(sample, watch.stop(Duration::ZERO)?))
        };
        cpu::on_cpu(self.front, || yielding(self.yields, measure))??
    }
}

/// The quietest of at most [`TRIES`] runs.
pub fn quietest(mut once: impl FnMut() -> Result<Figure>) -> Result<Figure> {
    let mut best: Option<Figure> = None;
    for _ in 0..TRIES {
        let figure = once()?;
        if best.is_none_or(|best| figure.foreign < best.foreign) {
            best = Some(figure);
        }
        if !figure.disturbed {
            break;
        }
    }
    best.context("no run")
}

/// Runs every row `reps` times by everybody who is present, with the repetitions outermost; `tell`
/// hears each figure.
///
/// A row that fails is reported by `tell` and left out.
pub fn run_all<R: Entry>(
    reps: usize,
    rows: &[R],
    present: &[R::Who],
    mut measure: impl FnMut(&R, R::Who) -> Result<Figure>,
    mut tell: impl FnMut(usize, usize, R::Who, &Result<Figure>),
) -> Result<()> {
    if rows.is_empty() {
        bail!("no row matches --only; `--list` shows their names");
    }
    for rep in 0..reps {
        for (index, row) in rows.iter().enumerate() {
            let mut order: Vec<R::Who> = row
                .contenders()
                .iter()
                .copied()
                .filter(|who| present.contains(who))
                .collect();
            // Whoever goes first meets a colder machine: take turns.
            if rep % 2 == 1 {
                order.reverse();
            }
            for who in order {
                tell(rep, index, who, &measure(row, who));
            }
        }
    }
    Ok(())
}

/// One line of progress.
pub fn tell(rep: usize, row: &str, who: impl Entrant, figure: &Result<Figure>) {
    let head = format!("{:>2} {row:<20} {:<7}", rep + 1, who.name());
    match figure {
        Ok(f) => eprintln!("{head} {:>9.0}/s, foreign {:.2}", f.rate, f.foreign),
        Err(error) => eprintln!("{head} FAILED: {error:#}"),
    }
}
