//! What a daemon costs when nothing happens, and how fast it is back: start, memory, idle CPU,
//! wake-up.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use towpath_common::testing::Driver;
use towpath_common::testing::blk::{BlkClient, ClientOptions, OK, Op, Shape};

use crate::backend::{Backend, DiskSpec};
use crate::cpu;
use crate::plan::{Contender, Target};
use crate::report::{Aside, Limit};
use crate::runner::Runner;

/// Disks of the crowded daemon.
const MANY: usize = 64;
/// Size of an idle disk's sparse file.
const IDLE_DISK: u64 = 1 << 30;
/// Time for a daemon to go to sleep before it counts as idle.
const SETTLE: Duration = Duration::from_millis(500);
/// Idle CPU is taken over so many times the length of an ordinary measurement.
const IDLE_FACTOR: u32 = 5;
/// Requests of the wake-up figure.
const WAKES: u64 = 300;
/// Pause before each of them: long after any polling period.
const GAP: Duration = Duration::from_millis(5);

/// What an idle daemon costs.
#[derive(Debug, Clone, Copy)]
pub struct Idle {
    /// Process start to the first answer, milliseconds, one disk.
    pub start_ms: f64,
    /// Resident memory with one attached disk, MiB, without the guest's.
    pub rss_one_mib: f64,
    /// The same with [`MANY`] attached disks.
    pub rss_many_mib: f64,
    /// CPU of the daemon with [`MANY`] attached idle disks, per cent of a core.
    pub cpu_many_percent: f64,
    /// Latency of a request after an idle gap, microseconds, median.
    pub wake_p50_us: f64,
    /// The same, 99th percentile.
    pub wake_p99_us: f64,
}

impl Idle {
    /// The figures by name, each with its unit and, where the issue states one, its upper limit.
    #[must_use]
    pub fn asides(&self) -> Vec<Aside> {
        let most = |limit| Some(Limit::AtMost(limit));
        [
            ("start to serving", self.start_ms, "ms", most(50.0)),
            ("resident, 1 disk", self.rss_one_mib, "MiB", most(21.0)),
            ("resident, 64 disks", self.rss_many_mib, "MiB", most(84.0)),
            ("idle CPU, 64 disks", self.cpu_many_percent, "%", most(0.5)),
            ("wake-up p50", self.wake_p50_us, "us", None),
            ("wake-up p99", self.wake_p99_us, "us", None),
        ]
        .map(|(name, value, unit, limit)| Aside {
            name,
            value,
            unit,
            limit,
        })
        .to_vec()
    }
}

/// Measures all of it for one contender.
pub fn measure(runner: &Runner, who: Contender) -> Result<Idle> {
    let dir = tempfile::tempdir_in(runner.files.disk_dir()).context("scratch directory")?;
    let one = [disk(dir.path(), 0)?];
    let backend = runner.launcher.start(who, &one)?;
    let start_ms = backend.startup.as_secs_f64() * 1e3;
    let guests = attach(&backend, 1)?;
    let rss_one_mib = resident_mib(&backend)?;
    drop((guests, backend));
    let wake = wake_up(runner, who)?;
    let many = (0..MANY)
        .map(|i| disk(dir.path(), i))
        .collect::<Result<Vec<_>>>()?;
    let backend = runner.launcher.start(who, &many)?;
    let guests = attach(&backend, MANY)?;
    std::thread::sleep(SETTLE);
    let rss_many_mib = resident_mib(&backend)?;
    let cpu_many_percent = idle_share(backend.pid(), runner.effort.duration() * IDLE_FACTOR)?;
    drop(guests);
    Ok(Idle {
        start_ms,
        rss_one_mib,
        rss_many_mib,
        cpu_many_percent,
        wake_p50_us: wake.value_at_quantile(0.5) as f64 / 1e3,
        wake_p99_us: wake.value_at_quantile(0.99) as f64 / 1e3,
    })
}

/// A sparse file to serve.
fn disk(dir: &Path, index: usize) -> Result<DiskSpec> {
    let file = dir.join(format!("idle{index}"));
    std::fs::File::create(&file)?.set_len(IDLE_DISK)?;
    Ok(DiskSpec {
        target: Target::Direct,
        file,
        queues: 1,
    })
}

/// A guest on each disk that does nothing.
fn attach(backend: &Backend, disks: usize) -> Result<Vec<BlkClient>> {
    let sockets = backend.sockets().iter().take(disks);
    sockets.map(|socket| guest(socket)).collect()
}

/// A guest that has done one request and now does nothing.
pub fn guest(socket: &Path) -> Result<BlkClient> {
    let shape = Shape {
        slots: 1,
        buffer: 4096,
        ..Shape::default()
    };
    let options = ClientOptions {
        shape,
        ..ClientOptions::default()
    };
    let mut guest = BlkClient::connect(socket, options)?;
    // A disk that is null completes reads and writes no data.
    let done = guest.request(Op::In, 0, 4096)?;
    ensure!(done.status == OK, "a read failed: status {}", done.status);
    Ok(guest)
}

fn resident_mib(backend: &Backend) -> Result<f64> {
    Ok(cpu::resident(backend.pid())? as f64 / f64::from(1 << 20))
}

/// CPU that a process uses by itself over `duration`, per cent of a core.
pub fn idle_share(pid: u32, duration: Duration) -> Result<f64> {
    let before = cpu::process_time(pid)?;
    let begin = Instant::now();
    std::thread::sleep(duration);
    let used = cpu::process_time(pid)?.saturating_sub(before);
    Ok(100.0 * used.as_secs_f64() / begin.elapsed().as_secs_f64())
}

/// Latency in nanoseconds of single requests to a null disk, each after a pause: the back-end
/// sleeps, this side polls, so that only the back-end's wake-up is in it.
fn wake_up(runner: &Runner, who: Contender) -> Result<Histogram<u64>> {
    let null = DiskSpec {
        target: Target::Null,
        file: Path::new("").into(),
        queues: 1,
    };
    let backend = runner.launcher.start(who, &[null])?;
    let shape = Shape {
        slots: 1,
        buffer: 4096,
        ..Shape::default()
    };
    let options = ClientOptions {
        shape,
        ..ClientOptions::default()
    };
    let mut client = BlkClient::connect(backend.socket(0), options)?;
    let queue = client.queues().first_mut().context("no queue")?;
    let mut histogram = Histogram::new(3)?;
    let mut done = Vec::with_capacity(1);
    cpu::on_cpu(runner.front, || {
        for _ in 0..WAKES {
            std::thread::sleep(GAP);
            queue.prepare(0, Op::In, 0, 4096)?;
            let begin = Instant::now();
            queue.post(0);
            queue.publish()?;
            while queue.driver().in_flight() > 0 {
                queue.reap(&mut done)?;
                ensure!(
                    begin.elapsed() < Duration::from_secs(5),
                    "a request after a pause is lost"
                );
            }
            histogram.record(u64::try_from(begin.elapsed().as_nanos())?)?;
            ensure!(done.drain(..).all(|d| d.status == OK), "a request failed");
        }
        Ok(histogram)
    })?
}
