//! The limit as others measure it: fio in one thread, with `io_uring` on a file, or with libnbd on
//! an export.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::load::Sample;
use crate::plan::{Effort, Workload};

/// What fio did, and the CPU time it took.
#[derive(Debug, Clone, Copy)]
pub struct FioSample {
    /// Requests and time.
    pub sample: Sample,
    /// CPU time of its one thread.
    pub cpu: Duration,
}

#[derive(Deserialize)]
struct Report {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    read: Direction,
    write: Direction,
    /// Per cent of one core.
    usr_cpu: f64,
    /// Per cent of one core.
    sys_cpu: f64,
}

#[derive(Deserialize)]
struct Direction {
    total_ios: u64,
    /// Milliseconds.
    runtime: u64,
}

/// What fio reads and writes.
#[derive(Debug, Clone, Copy)]
pub enum On<'a> {
    /// A file, with `O_DIRECT` or without.
    File(&'a Path, bool),
    /// What the NBD server at this socket exports.
    Export(&'a Path),
}

/// Runs `workload` on `on`, of `size` bytes.
pub fn run(on: On<'_>, size: u64, workload: &Workload, effort: &Effort) -> Result<FioSample> {
    let random = if workload.sequential { "" } else { "rand" };
    let kind = if workload.write { "write" } else { "read" };
    let mut command = Command::new("fio");
    command.arg("--name=limit");
    match on {
        On::File(file, direct) => command
            .args(["--ioengine=io_uring", "--thread"])
            .arg(format!("--filename={}", file.display()))
            .arg(format!("--direct={}", u8::from(direct))),
        On::Export(socket) => command
            .args(["--ioengine=nbd", "--thread"])
            .arg(format!("--uri=nbd+unix:///?socket={}", socket.display())),
    };
    command
        .arg(format!("--size={size}"))
        .arg(format!("--rw={random}{kind}"))
        .arg(format!("--bs={}", workload.block))
        .arg(format!("--iodepth={}", workload.depth))
        .arg(format!("--runtime={}ms", effort.duration().as_millis()))
        .arg(format!("--ramp_time={}ms", effort.warm_up().as_millis()))
        .args(["--time_based", "--norandommap"])
        // Cached files stay cached: fio would drop their pages first.
        .args(["--invalidate=0", "--randrepeat=1", "--output-format=json"])
        .stdin(Stdio::null());
    let output = command
        .output()
        .context("cannot run fio; apt-get install fio")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "fio failed: {}", errors.trim());
    parse(&output.stdout, workload.write)
}

fn parse(output: &[u8], write: bool) -> Result<FioSample> {
    // Notes may precede the report.
    let start = output
        .iter()
        .position(|byte| *byte == b'{')
        .context("no report from fio")?;
    let report: Report = serde_json::from_slice(&output[start..]).context("fio's report")?;
    let job = report.jobs.into_iter().next().context("fio ran no job")?;
    let direction = if write { job.write } else { job.read };
    ensure!(
        direction.total_ios > 0 && direction.runtime > 0,
        "fio completed nothing"
    );
    let time = Duration::from_millis(direction.runtime);
    Ok(FioSample {
        sample: Sample {
            requests: direction.total_ios,
            time,
        },
        cpu: time.mul_f64((job.usr_cpu + job.sys_cpu) / 100.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_and_an_empty_one_refused() {
        let text = br#"note: x
            {"jobs": [{"read": {"total_ios": 5000, "runtime": 500},
                       "write": {"total_ios": 0, "runtime": 0},
                       "usr_cpu": 25.0, "sys_cpu": 50.0}]}"#;
        let read = parse(text, false).unwrap();
        assert!((read.sample.rate() - 10_000.0).abs() < 1e-6);
        assert_eq!(read.cpu, Duration::from_millis(375));
        assert!(parse(text, true).is_err());
        assert!(parse(b"fio: unknown option", false).is_err());
    }
}
