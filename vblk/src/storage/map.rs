//! Maps: which child holds which part of a disk, found by arithmetic or in a table.
//!
//! A map is a pure function of an offset. It covers its disk without gaps, and no byte of a child
//! twice.

/// A part of a disk that is in one piece on a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Which child.
    pub child: usize,
    /// Where it begins there, in bytes.
    pub offset: u64,
    /// Bytes from there to the end of the piece.
    pub len: u64,
}

/// A piece of a disk in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins on the disk, in bytes.
    pub start: u64,
    /// Where it is.
    pub run: Run,
}

/// A part of a volume, in chunks in turn on its legs; one leg and one chunk if it is linear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins on the disk, in bytes.
    pub start: u64,
    /// Bytes: whole chunks on every leg.
    pub len: u64,
    /// Bytes on one leg before the next one's turn.
    pub chunk: u64,
    /// Where it is; one at least.
    pub legs: Box<[Leg]>,
}

/// Where a part of a volume begins on a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// Which child.
    pub child: usize,
    /// Bytes from its beginning.
    pub offset: u64,
}

/// Where a disk's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Map {
    /// Chunks of `1 << shift` bytes on `children` disks in turn.
    Stripe {
        /// Logarithm of the chunk's size.
        shift: u32,
        /// How many disks.
        children: usize,
    },
    /// Extents in ascending order, without gaps from offset 0.
    Table(Box<[Extent]>),
    /// Pieces in ascending order, without gaps from offset 0.
    Volume(Box<[Piece]>),
}

impl Map {
    /// A table of `runs`, one after the other.
    #[must_use]
    pub fn table(runs: impl IntoIterator<Item = Run>) -> Map {
        let mut start = 0;
        let mut table: Vec<Extent> = Vec::new();
        for run in runs {
            match table.last_mut() {
                Some(Extent { run: last, .. })
                    if last.child == run.child && last.offset + last.len == run.offset =>
                {
                    last.len += run.len;
                }
                _ => table.push(Extent { start, run }),
            }
            start += run.len;
        }
        Map::Table(table.into())
    }

    /// The piece that holds byte `offset`, from there on; None beyond the end of a table.
    #[inline]
    #[must_use]
    pub fn run(&self, offset: u64) -> Option<Run> {
        match self {
            Map::Stripe { shift, children } => {
                let chunk = offset >> shift;
                let within = offset & ((1 << shift) - 1);
                let count = *children as u64;
                Some(Run {
                    child: usize::try_from(chunk % count).ok()?,
                    offset: ((chunk / count) << shift) + within,
                    len: (1 << shift) - within,
                })
            }
            Map::Volume(pieces) => {
                let after = pieces.partition_point(|p| p.start <= offset);
                let piece = pieces.get(after.checked_sub(1)?)?;
                let rest = offset - piece.start;
                if rest >= piece.len {
                    return None;
                }
                let count = piece.legs.len() as u64;
                let (chunk, within) = (rest / piece.chunk, rest % piece.chunk);
                let leg = piece.legs.get(usize::try_from(chunk % count).ok()?)?;
                Some(Run {
                    child: leg.child,
                    offset: leg.offset + chunk / count * piece.chunk + within,
                    len: piece.chunk - within,
                })
            }
            Map::Table(table) => {
                let after = table.partition_point(|e| e.start <= offset);
                let Extent { start, run } = table.get(after.checked_sub(1)?)?;
                let skip = offset - start;
                (skip < run.len).then(|| Run {
                    child: run.child,
                    offset: run.offset + skip,
                    len: run.len - skip,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(child: usize, offset: u64, len: u64) -> Run {
        Run { child, offset, len }
    }

    #[test]
    fn a_stripe_takes_its_children_in_turn() {
        let map = Map::Stripe {
            shift: 12,
            children: 3,
        };
        assert_eq!(map.run(0), Some(run(0, 0, 4096)));
        assert_eq!(map.run(4095), Some(run(0, 4095, 1)));
        assert_eq!(map.run(4096), Some(run(1, 0, 4096)));
        assert_eq!(map.run(3 * 4096 + 512), Some(run(0, 4096 + 512, 3584)));
        // Every byte of the disk is one byte of one child.
        let mut seen = std::collections::HashSet::new();
        for at in (0..64 * 4096).step_by(512) {
            let run = map.run(at).unwrap();
            assert!(seen.insert((run.child, run.offset)));
        }
    }

    #[test]
    fn a_volume_is_linear_here_and_striped_there() {
        let leg = |child, offset| Leg { child, offset };
        let map = Map::Volume(Box::new([
            Piece {
                start: 0,
                len: 100,
                chunk: 100,
                legs: Box::new([leg(1, 1000)]),
            },
            Piece {
                start: 100,
                len: 80,
                chunk: 20,
                legs: Box::new([leg(0, 500), leg(1, 2000)]),
            },
        ]));
        assert_eq!(map.run(0), Some(run(1, 1000, 100)));
        assert_eq!(map.run(99), Some(run(1, 1099, 1)));
        assert_eq!(map.run(100), Some(run(0, 500, 20)));
        assert_eq!(map.run(125), Some(run(1, 2005, 15)));
        assert_eq!(map.run(140), Some(run(0, 520, 20)));
        assert_eq!(map.run(179), Some(run(1, 2039, 1)));
        assert_eq!(map.run(180), None);
    }

    #[test]
    fn a_table_joins_what_adjoins_and_ends_where_it_ends() {
        let map = Map::table([run(0, 100, 10), run(0, 110, 5), run(1, 115, 5)]);
        let Map::Table(table) = &map else {
            unreachable!()
        };
        assert_eq!(table.len(), 2);
        assert_eq!(map.run(0), Some(run(0, 100, 15)));
        assert_eq!(map.run(14), Some(run(0, 114, 1)));
        assert_eq!(map.run(15), Some(run(1, 115, 5)));
        assert_eq!(map.run(19), Some(run(1, 119, 1)));
        assert_eq!(map.run(20), None);
        assert_eq!(Map::table([]).run(0), None);
    }
}
