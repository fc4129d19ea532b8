//! Rows of the kinds of storage, and the goal of each.

use serde::Serialize;

use crate::plan::{Entrant, Entry, Goal, Workload};

/// What lies under the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A block device: a loop device with direct I/O on a file.
    Device,
    /// A file of an ext4 on a block device, by its extents.
    Extents,
    /// A linear logical volume, half of it on each of two devices, by its segments.
    Segments,
    /// A logical volume in stripes on the same two, by its segments.
    #[serde(rename = "segments-striped")]
    StripedSegments,
    /// An export of an NBD server on a unix socket, which has its bytes on tmpfs.
    Nbd,
    /// Chunks in turn on four files.
    Stripe,
    /// The same on two files.
    Mirror,
}

impl Kind {
    /// Every kind, in the order of the report.
    pub const ALL: [Self; 7] = [
        Self::Device,
        Self::Extents,
        Self::Segments,
        Self::StripedSegments,
        Self::Nbd,
        Self::Stripe,
        Self::Mirror,
    ];

    /// Name in rows.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Extents => "extents",
            Self::Segments => "segments",
            Self::StripedSegments => "segments-striped",
            Self::Nbd => "nbd",
            Self::Stripe => "stripe4",
            Self::Mirror => "mirror2",
        }
    }

    /// Whether the kernel must have device-mapper for it.
    #[must_use]
    pub fn is_volume(self) -> bool {
        matches!(self, Self::Segments | Self::StripedSegments)
    }
}

/// Who serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// Our own `io_uring` loop where the bytes lie, one thread: the limit. On the stripe it does
    /// the arithmetic, on the mirror it writes both files.
    Raw,
    /// fio's own client of the NBD server: no back-end gets more out of it.
    Fio,
    /// qemu-storage-daemon with an iothread and its own driver for the kind.
    Qsd,
    /// vblk through the file system where the row is of extents, through device-mapper where it is
    /// of segments.
    File,
    /// vblk.
    Vblk,
}

impl Entrant for Who {
    const ALL: &'static [Self] = &[Self::Raw, Self::Fio, Self::Qsd, Self::File, Self::Vblk];
    const OURS: Self = Self::Vblk;

    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Fio => "fio",
            Self::Qsd => "qsd",
            Self::File => "file",
            Self::Vblk => "vblk",
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// `kind/workload`, what `--only` matches.
    pub name: String,
    /// What lies under the disk.
    pub kind: Kind,
    /// What is asked of it.
    pub workload: Workload,
}

impl Entry for Row {
    type Who = Who;
    const UNIT: &'static str = "requests";

    fn name(&self) -> &str {
        &self.name
    }

    fn contenders(&self) -> &[Who] {
        match self.kind {
            Kind::Device => &[Who::Raw, Who::Qsd, Who::Vblk],
            Kind::Nbd => &[Who::Raw, Who::Fio, Who::Qsd, Who::Vblk],
            Kind::Extents => &[Who::Raw, Who::Qsd, Who::File, Who::Vblk],
            Kind::Segments | Kind::StripedSegments => &[Who::Raw, Who::File, Who::Vblk],
            Kind::Stripe | Kind::Mirror => &[Who::Raw, Who::Vblk],
        }
    }

    fn goals(&self) -> Vec<Goal<Who>> {
        let ratio = |to, least| Goal::Ratio { to, least };
        match self.kind {
            Kind::Nbd => vec![ratio(Who::Qsd, 1.5)],
            Kind::Device | Kind::Extents | Kind::Segments | Kind::StripedSegments
                if self.workload.depth >= 32 =>
            {
                vec![ratio(Who::Raw, 0.99)]
            }
            _ => Vec::new(),
        }
    }
}

/// Depths of the random workloads.
const DEPTHS: [u16; 3] = [1, 32, 128];

/// Every row, in the order of the report.
#[must_use]
pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        for write in [false, true] {
            for depth in DEPTHS {
                rows.push(row(kind, write, depth, 4 << 10));
            }
        }
        // Requests that take in several chunks of a stripe, or a large reply of an NBD server.
        for write in [false, true] {
            rows.push(row(kind, write, 8, 256 << 10));
        }
    }
    rows
}

fn row(kind: Kind, write: bool, depth: u16, block: u32) -> Row {
    let sequential = block > 4 << 10;
    let workload = Workload {
        write,
        sequential,
        block,
        depth,
        queues: 1,
    };
    let name = format!("{}/{}", kind.name(), workload.name());
    Row {
        name,
        kind,
        workload,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_distinct_names() {
        let mut names: Vec<_> = rows().into_iter().map(|row| row.name).collect();
        assert!(names.contains(&"nbd/read/32".into()));
        assert!(names.contains(&"mirror2/seqwrite/8".into()));
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn what_the_bench_must_reach_is_written_down() {
        let of = |name: &str| {
            let row = rows().into_iter().find(|row| row.name == name);
            row.map(|row| row.goals().len())
        };
        assert_eq!(of("device/read/32"), Some(1));
        assert_eq!(of("nbd/write/1"), Some(1));
        assert_eq!(of("device/read/1"), Some(0));
        assert_eq!(of("segments/write/128"), Some(1));
        assert_eq!(of("segments-striped/seqread/8"), Some(0));
    }
}
