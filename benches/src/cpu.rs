//! Where threads run, and who used the processors during a measurement.
//!
//! "Foreign" time is everything the machine was busy with, less our own threads, the back-end's
//! and the kernel's own threads: those complete direct I/O on behalf of whoever is measured, so
//! they are part of the work, not a disturbance. Time stolen by the hypervisor counts as foreign.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Kernel clock ticks a second in `/proc` (`USER_HZ`, fixed on every Linux we run on).
const TICKS: u64 = 100;
/// Parent of every kernel thread.
const KTHREADD: u32 = 2;

/// Runs `work` with this thread, and whatever it starts meanwhile, on one processor.
pub fn on_cpu<T>(cpu: usize, work: impl FnOnce() -> T) -> Result<T> {
    let before = sched_getaffinity(None).context("sched_getaffinity")?;
    ensure!(cpu < CpuSet::MAX_CPU, "there is no CPU {cpu}");
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).with_context(|| format!("cannot run on CPU {cpu}"))?;
    let result = work();
    sched_setaffinity(None, &before).context("sched_setaffinity")?;
    Ok(result)
}

/// CPU time of a living process, all its threads.
pub fn process_time(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("process is gone")? {
        // A thread may end while we look; its last microseconds do not matter.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        total += first_number(&text);
    }
    Ok(Duration::from_nanos(total))
}

/// Resident memory of a process in bytes: private and file pages, without shared memory, which is
/// the guest's.
pub fn resident(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("process is gone")?;
    let kib = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .map_or(0, first_number)
    };
    Ok((kib("RssAnon:") + kib("RssFile:")) << 10)
}

fn first_number(text: &str) -> u64 {
    text.split_ascii_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0)
}

/// What happened on the processors during a measurement.
#[derive(Debug, Clone, Copy)]
pub struct Noise {
    /// CPU time of the back-end, or of this process where it did the work itself.
    pub backend: Duration,
    /// Cores' worth of foreign work.
    pub foreign: f64,
}

/// An open measurement.
#[derive(Debug)]
pub struct Watch {
    backend: Option<u32>,
    /// A process that is part of the work and not of the back-end, and its time.
    beside: Option<(u32, Duration)>,
    start: Instant,
    busy: Duration,
    ours: Duration,
    theirs: Duration,
    kernel: Duration,
}

impl Watch {
    /// Starts to watch; `backend` is the process under test, if it is not this one.
    pub fn start(backend: Option<u32>) -> Result<Self> {
        Ok(Self {
            backend,
            beside: None,
            start: Instant::now(),
            busy: busy()?,
            ours: process_time(std::process::id())?,
            theirs: backend.map_or(Ok(Duration::ZERO), process_time)?,
            kernel: kernel_threads()?,
        })
    }

    /// What the process `server` does is not foreign, nor the back-end's.
    pub fn beside(mut self, server: Option<u32>) -> Result<Self> {
        let time = server.map(|pid| process_time(pid).map(|time| (pid, time)));
        self.beside = time.transpose()?;
        Ok(self)
    }

    /// Ends it; `gone` is CPU time of processes that ended meanwhile and were part of the work.
    pub fn stop(self, gone: Duration) -> Result<Noise> {
        let since = |now: Duration, then: Duration| now.saturating_sub(then);
        let theirs = since(
            self.backend.map_or(Ok(Duration::ZERO), process_time)?,
            self.theirs,
        );
        let ours = since(process_time(std::process::id())?, self.ours);
        let kernel = since(kernel_threads()?, self.kernel);
        let beside = self.beside.map_or(Ok(Duration::ZERO), |(pid, then)| {
            process_time(pid).map(|now| since(now, then))
        })?;
        let known = ours + theirs + beside + kernel + gone;
        let foreign = since(since(busy()?, self.busy), known);
        let foreign = foreign.as_secs_f64() / self.start.elapsed().as_secs_f64();
        let alone = self.backend.is_none() && gone.is_zero();
        Ok(Noise {
            backend: if alone { ours } else { theirs + gone },
            foreign,
        })
    }
}

/// Time all processors were not idle since boot.
fn busy() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_ascii_whitespace()
        .skip(1)
        .flat_map(str::parse)
        .collect();
    // user nice system idle iowait irq softirq steal guest guest_nice; guest is within user.
    let sum = ticks.iter().take(8).sum::<u64>();
    let idle = ticks.iter().skip(3).take(2).sum::<u64>();
    Ok(from_ticks(sum.saturating_sub(idle)))
}

/// CPU time of all kernel threads.
fn kernel_threads() -> Result<Duration> {
    let mut ticks = 0;
    for entry in fs::read_dir("/proc").context("/proc")? {
        let Ok(text) = fs::read_to_string(entry?.path().join("stat")) else {
            continue;
        };
        // The name, in parentheses, may hold anything; fields count from the last ")".
        let Some((_, rest)) = text.rsplit_once(") ") else {
            continue;
        };
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |index: usize| fields.get(index).map_or(0, |word| first_number(word));
        if number(1) == u64::from(KTHREADD) {
            ticks += number(11) + number(12);
        }
    }
    Ok(from_ticks(ticks))
}

fn from_ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1000 / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_work_is_not_foreign() {
        let watch = Watch::start(None).unwrap();
        let before = process_time(std::process::id()).unwrap();
        let mut sum = 0u64;
        while process_time(std::process::id()).unwrap() < before + Duration::from_millis(50) {
            sum = sum.wrapping_add(1);
        }
        assert!(sum > 0);
        assert!(watch.stop(Duration::ZERO).unwrap().foreign >= 0.0);
    }

    #[test]
    fn a_process_has_resident_memory_and_a_missing_one_is_an_error() {
        assert!(resident(std::process::id()).unwrap() > 1 << 20);
        assert!(resident(u32::MAX).is_err());
        assert!(process_time(u32::MAX).is_err());
    }

    #[test]
    fn work_runs_where_it_is_told() {
        let cpu = on_cpu(0, rustix::thread::sched_getcpu).unwrap();
        assert_eq!(cpu, 0);
        assert!(on_cpu(usize::MAX, || ()).is_err());
    }
}
