//! Which rows are measured, and what the goal of each is.

use std::time::Duration;

use serde::Serialize;

/// What lies under the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Nothing: requests complete at once.
    Null,
    /// A file on tmpfs, opened with `O_DIRECT`.
    Tmpfs,
    /// A file whose pages are all in the page cache, buffered.
    Cached,
    /// A file on a disk's file system, opened with `O_DIRECT`.
    Direct,
}

impl Target {
    /// Every target, in the order of the report.
    pub const ALL: [Self; 4] = [Self::Null, Self::Tmpfs, Self::Cached, Self::Direct];

    /// Name in rows.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Tmpfs => "tmpfs",
            Self::Cached => "cached",
            Self::Direct => "direct",
        }
    }

    /// Whether the file is opened with `O_DIRECT`.
    #[must_use]
    pub fn is_direct(self) -> bool {
        matches!(self, Self::Tmpfs | Self::Direct)
    }
}

/// What is asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Writes, or reads.
    pub write: bool,
    /// One block after the other, or anywhere.
    pub sequential: bool,
    /// Bytes a request.
    pub block: u32,
    /// Requests in flight, over all queues.
    pub depth: u16,
    /// Virtqueues the depth is spread over.
    pub queues: u16,
}

impl Workload {
    /// Requests in flight on each queue.
    #[must_use]
    pub fn depth_per_queue(&self) -> u16 {
        (self.depth / self.queues).max(1)
    }

    /// Name in rows: what is done, and the depth.
    #[must_use]
    pub fn name(&self) -> String {
        let order = if self.sequential { "seq" } else { "" };
        let kind = if self.write { "write" } else { "read" };
        let queues = if self.queues > 1 {
            format!("/{}q", self.queues)
        } else {
            String::new()
        };
        format!("{order}{kind}/{}{queues}", self.depth)
    }
}

/// Whoever takes part in a measurement.
pub trait Entrant: Copy + PartialEq + 'static {
    /// Everybody, in the order of the report.
    const ALL: &'static [Self];
    /// The one that goals are for.
    const OURS: Self;

    /// Name in the report.
    fn name(self) -> &'static str;
}

/// One line of a report.
pub trait Entry: Serialize {
    /// Who takes part.
    type Who: Entrant;
    /// What is counted.
    const UNIT: &'static str;

    /// What `--only` matches.
    fn name(&self) -> &str;

    /// Who can run it.
    fn contenders(&self) -> &[Self::Who];

    /// What ours must reach on it.
    fn goals(&self) -> Vec<Goal<Self::Who>>;
}

/// Who serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Contender {
    /// Our own `io_uring` loop on the file, one thread, no virtqueue: the limit.
    Raw,
    /// fio with `io_uring`, one thread.
    Fio,
    /// qemu-storage-daemon with an iothread.
    Qsd,
    /// Ours.
    Vblk,
}

impl Entrant for Contender {
    const ALL: &'static [Self] = &[Self::Raw, Self::Fio, Self::Qsd, Self::Vblk];
    const OURS: Self = Self::Vblk;

    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Fio => "fio",
            Self::Qsd => "qsd",
            Self::Vblk => "vblk",
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// `target/workload`, what `--only` matches.
    pub name: String,
    /// What lies under the disk.
    pub target: Target,
    /// What is asked of it.
    pub workload: Workload,
}

impl Row {
    fn new(target: Target, workload: Workload) -> Self {
        Self {
            name: format!("{}/{}", target.name(), workload.name()),
            target,
            workload,
        }
    }
}

impl Entry for Row {
    type Who = Contender;
    const UNIT: &'static str = "requests";

    fn name(&self) -> &str {
        &self.name
    }

    fn contenders(&self) -> &[Contender] {
        match self.target {
            Target::Null => &[Contender::Qsd, Contender::Vblk],
            _ => &[
                Contender::Raw,
                Contender::Fio,
                Contender::Qsd,
                Contender::Vblk,
            ],
        }
    }

    fn goals(&self) -> Vec<Goal<Contender>> {
        let Workload {
            write,
            sequential,
            depth,
            queues,
            ..
        } = self.workload;
        let deep = depth >= 32;
        let beats = |least| Goal::Ratio {
            to: Contender::Qsd,
            least,
        };
        match self.target {
            Target::Null if queues == 1 && depth == 32 => {
                vec![Goal::Rate { least: 2.8e6 }, beats(1.0)]
            }
            Target::Null if queues == 1 && depth == 128 => {
                vec![Goal::Rate { least: 5.0e6 }, beats(1.0)]
            }
            Target::Direct if deep => {
                vec![
                    Goal::Ratio {
                        to: Contender::Raw,
                        least: 0.99,
                    },
                    beats(1.0),
                ]
            }
            Target::Direct if depth == 1 => {
                vec![
                    Goal::Ratio {
                        to: Contender::Fio,
                        least: 1.8,
                    },
                    beats(1.0),
                ]
            }
            Target::Tmpfs | Target::Cached => {
                let cached_read = self.target == Target::Cached && !write && !sequential;
                let mut goals = Vec::new();
                if deep {
                    goals.push(Goal::Ratio {
                        to: Contender::Raw,
                        least: 0.95,
                    });
                }
                goals.push(beats(if cached_read { 1.5 } else { 1.0 }));
                goals
            }
            Target::Null | Target::Direct => vec![beats(1.0)],
        }
    }
}

/// A figure that ours must reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Goal<W> {
    /// So many a second, at least.
    Rate {
        /// The least rate.
        least: f64,
    },
    /// So many times another contender's rate, at least.
    Ratio {
        /// Whose rate.
        to: W,
        /// How many times.
        least: f64,
    },
    /// So large a part of our own rate on another row, at least.
    Share {
        /// Name of the other row.
        of: &'static str,
        /// The least part.
        least: f64,
    },
}

/// Depths of the random workloads.
const DEPTHS: [u16; 3] = [1, 32, 128];
/// Depth of the sequential ones: enough to keep a device streaming.
const SEQUENTIAL_DEPTH: u16 = 8;
/// Bytes of a random request.
const SMALL: u32 = 4 << 10;
/// Bytes of a sequential request.
const LARGE: u32 = 128 << 10;

/// Every row, in the order of the report.
#[must_use]
pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for target in Target::ALL {
        for queues in [1, 4] {
            for write in [false, true] {
                // A single request cannot be spread over queues.
                for depth in DEPTHS.into_iter().filter(|depth| *depth >= queues) {
                    let workload = Workload {
                        write,
                        sequential: false,
                        block: SMALL,
                        depth,
                        queues,
                    };
                    rows.push(Row::new(target, workload));
                }
            }
        }
        if target != Target::Null {
            for write in [false, true] {
                let depth = SEQUENTIAL_DEPTH;
                let workload = Workload {
                    write,
                    sequential: true,
                    block: LARGE,
                    depth,
                    queues: 1,
                };
                rows.push(Row::new(target, workload));
            }
        }
    }
    rows
}

/// How long and how often.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Effort {
    /// Seconds of one measurement.
    pub seconds: f64,
    /// Measurements of each figure.
    pub reps: usize,
}

impl Effort {
    /// Length of one measurement.
    #[must_use]
    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// What runs unmeasured before it.
    #[must_use]
    pub fn warm_up(&self) -> Duration {
        self.duration() / 5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_distinct_names_and_a_goal_each() {
        let rows = rows();
        let mut names: Vec<_> = rows.iter().map(|row| row.name.clone()).collect();
        assert!(names.contains(&"cached/read/32".into()));
        assert!(names.contains(&"direct/seqwrite/8".into()));
        assert!(names.contains(&"null/write/128/4q".into()));
        assert!(!names.contains(&"tmpfs/read/1/4q".into()));
        assert!(rows.iter().all(|row| !row.goals().is_empty()));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), rows.len());
    }
}
