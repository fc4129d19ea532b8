//! Many disks on one worker: what a busy disk loses to busy and to idle neighbours, and how weights
//! and caps divide the worker when it has more to do than it can.
//!
//! Disks of rows are null: all that a request costs is the worker's own. Shares are of disks in
//! memory and of large reads, so that the worker, which copies, is short, and not the generator;
//! weights with a short queue too, which a worker could take whole in each turn.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::plan::Who;
use crate::backend::{Backend, DiskSpec, Launcher};
use crate::cpu;
use crate::idle::guest;
use crate::load::Generator;
use crate::plan::{Contender, Effort, Entry, Goal, Target, Workload};
use crate::report::{Aside, median};
use crate::runner::{Figure, Load, quietest, scratch, written};

/// Requests in flight over all busy disks.
const DEPTH: u16 = 64;
/// Bytes of a read of the rows.
const SMALL: u32 = 4 << 10;
/// Bytes of a read of a disk whose share is measured.
const LARGE: u32 = 32 << 10;
/// Requests in flight on it: two bursts (`common::chain::BURST`).
const DEEP: u16 = 128;
/// The same, of a disk with a short queue.
const SHORT: u16 = 16;
/// Bytes of such a disk.
const SIZE: u64 = 64 << 20;
/// Weights of two disks that want all of the worker.
const WEIGHTS: [u32; 2] = [300, 100];
/// Cap of one that does, in per cent of a core.
const CAP: u32 = 25;

/// One line of the report.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What `--only` matches.
    pub name: String,
    /// Disks that requests are kept in flight on.
    pub busy: u16,
    /// Disks that are attached and ask for nothing.
    pub idle: usize,
}

/// Every row, in the order of the report.
#[must_use]
pub fn rows() -> Vec<Row> {
    let row = |name: &str, busy, idle| Row {
        name: name.to_owned(),
        busy,
        idle,
    };
    vec![
        row(ALONE, 1, 0),
        row("busy/8", 8, 0),
        row("busy/64", 64, 0),
        row("busy/1+1000-idle", 1, 1000),
    ]
}

/// The row of one disk alone.
const ALONE: &str = "busy/1";

impl Entry for Row {
    type Who = Who;
    const UNIT: &'static str = "requests";

    fn name(&self) -> &str {
        &self.name
    }

    fn contenders(&self) -> &[Who] {
        &[Who::Vblk]
    }

    fn goals(&self) -> Vec<Goal<Who>> {
        let share = Goal::Share {
            of: ALONE,
            least: 0.98,
        };
        if self.idle > 0 {
            vec![share]
        } else {
            Vec::new()
        }
    }
}

/// Reads, spread over so many disks.
fn workload(busy: u16, block: u32, depth: u16) -> Workload {
    Workload {
        write: false,
        sequential: false,
        block,
        depth,
        queues: busy,
    }
}

/// Requests a second over all busy disks.
pub fn measure(launcher: &Launcher, front: usize, effort: &Effort, row: &Row) -> Result<Figure> {
    let once = || {
        let null = DiskSpec {
            target: Target::Null,
            file: Path::new("").into(),
            queues: 1,
        };
        let disks = vec![null; usize::from(row.busy) + row.idle];
        let backend = launcher.start(Contender::Vblk, &disks)?;
        let (busy, idle) = backend.sockets().split_at(row.busy.into());
        let guests = idle.iter().map(|socket| guest(socket));
        let guests = guests.collect::<Result<Vec<_>>>()?;
        let load = Load {
            workload: workload(row.busy, SMALL, DEPTH),
            front,
            effort: *effort,
            yields: false,
            server: None,
        };
        let figure = load.drive(&backend, busy);
        drop(guests);
        figure
    };
    quietest(once).with_context(|| row.name.clone())
}

/// How weights and a cap divide a worker: medians of `effort.reps` runs.
pub fn shares(launcher: &Launcher, front: usize, effort: &Effort) -> Result<Vec<Aside>> {
    let (mut deep, mut short, mut capped) = (Vec::new(), Vec::new(), Vec::new());
    let counts = |depth, settings: &[&str]| counts(launcher, front, effort, depth, settings);
    for _ in 0..effort.reps {
        let [heavy, light] = WEIGHTS.map(|weight| format!(",weight={weight}"));
        for (ratios, depth) in [(&mut deep, DEEP), (&mut short, SHORT)] {
            let counts = counts(depth, &[&heavy, &light])?;
            ratios.push(counts[0] as f64 / counts[1].max(1) as f64);
        }
        let alone = counts(DEEP, &[""])?;
        let under = counts(DEEP, &[&format!(",cap={CAP}")])?;
        capped.push(100.0 * under[0] as f64 / alone[0].max(1) as f64);
    }
    let aside = |name, values, unit| {
        Some(Aside {
            name,
            value: median(values)?,
            unit,
            limit: None,
        })
    };
    let asides = [
        aside("rate of weight=300 beside weight=100", deep, "times"),
        aside("the same with 16 in flight each", short, "times"),
        aside("rate under cap=25, of that without", capped, "%"),
    ];
    Ok(asides.into_iter().flatten().collect())
}

/// Requests that disks with these settings complete beside each other.
fn counts(
    launcher: &Launcher,
    front: usize,
    effort: &Effort,
    depth: u16,
    settings: &[&str],
) -> Result<Vec<u64>> {
    let dir = scratch(Path::new("/dev/shm"))?;
    let mut command = Command::new(&launcher.vblk);
    command
        .arg("serve")
        .arg("--cpu")
        .arg(launcher.cpu.to_string());
    command
        .arg("--control")
        .arg(dir.path().join("control.sock"));
    let mut sockets = Vec::new();
    for (index, setting) in settings.iter().enumerate() {
        let socket = dir.path().join(format!("disk{index}.sock"));
        let file = dir.path().join(format!("disk{index}"));
        written(&file, SIZE)?;
        let disk = format!("{},socket={}", file.display(), socket.display());
        let disk = format!("{disk},cache=buffered{setting}");
        command.arg("--disk").arg(disk);
        sockets.push(socket);
    }
    let backend: Backend = launcher.run(&mut command, sockets, dir)?;
    let disks = u16::try_from(settings.len())?;
    let workload = workload(disks, LARGE, disks * depth);
    let mut generator = Generator::attach_all(backend.sockets(), &workload)?;
    let run = || {
        // Credits are given out every few milliseconds; the first of them are a start.
        generator.run(effort.warm_up().max(Duration::from_millis(100)))?;
        let before = generator.counts().to_vec();
        generator.run(effort.duration())?;
        let after = generator.counts().iter().zip(before);
        Ok(after.map(|(now, then)| now - then).collect())
    };
    cpu::on_cpu(front, run)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_compared_with_one_that_exists() {
        let rows = rows();
        for goal in rows.iter().flat_map(Entry::goals) {
            let Goal::Share { of, .. } = goal else {
                panic!("a share is what is asked");
            };
            assert!(rows.iter().any(|row| row.name == of));
        }
        assert!(
            rows.iter()
                .all(|row| workload(row.busy, SMALL, DEPTH).depth_per_queue() > 0)
        );
    }
}
