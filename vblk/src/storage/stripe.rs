//! Stripe: chunks in turn on several disks, as one disk.
//!
//! Each child gives as many whole chunks as the smallest has. A request that spans chunks is one
//! vectored operation a child, since consecutive chunks of a child are consecutive on it. There is
//! no redundancy: a child's error is the disk's.

use std::sync::Arc;

use super::map::Map;
use super::{Shape, Storage};
use crate::disk::{Disk, Serial};

/// Most children of a composed disk.
pub const MAX_CHILDREN: usize = 32;

/// Smallest and largest chunk, as powers of two: 4 KiB to 16 MiB.
const CHUNK_SHIFTS: std::ops::RangeInclusive<u32> = 12..=24;

/// Why disks make no stripe.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StripeError {
    /// Too few or too many.
    #[error("a stripe over {0} disks; name 2 to {MAX_CHILDREN}")]
    Count(usize),
    /// The chunk is no chunk.
    #[error("chunk of {0} bytes; use a power of two from 4K to 16M")]
    Chunk(u64),
    /// The chunk is not a whole number of a child's blocks.
    #[error("chunk of {chunk} bytes is smaller than a block of {block}; use a larger chunk")]
    Block {
        /// The chunk in bytes.
        chunk: u64,
        /// The largest block of a child in bytes.
        block: u32,
    },
    /// A child has not one whole chunk.
    #[error("the smallest disk has {size} bytes, less than one chunk of {chunk}")]
    TooSmall {
        /// Bytes of the smallest child.
        size: u64,
        /// The chunk in bytes.
        chunk: u64,
    },
    /// A child that can have no children's duty.
    #[error("a null disk cannot be part of a stripe")]
    Null,
}

/// The disks of a stripe and how they are used.
#[derive(Debug)]
pub struct Stripe {
    children: Box<[Arc<Disk>]>,
    map: Map,
    /// Bytes on a child before the next one's turn.
    chunk: u64,
}

impl Stripe {
    /// A disk over `children`, in chunks of `chunk` bytes.
    ///
    /// # Errors
    /// [`StripeError`].
    pub fn disk(children: Vec<Arc<Disk>>, chunk: u64, serial: Serial) -> Result<Disk, StripeError> {
        let count = children.len();
        if !(2..=MAX_CHILDREN).contains(&count) {
            return Err(StripeError::Count(count));
        }
        if children.iter().any(|d| d.is_null()) {
            return Err(StripeError::Null);
        }
        let shift = chunk.trailing_zeros();
        if !chunk.is_power_of_two() || !CHUNK_SHIFTS.contains(&shift) {
            return Err(StripeError::Chunk(chunk));
        }
        let all = Shape::of_all(children.iter().map(|d| *d.shape()));
        let shape = all.ok_or(StripeError::Count(count))?;
        if !shape.block.divides(chunk) {
            let block = shape.block.bytes();
            return Err(StripeError::Block { chunk, block });
        }
        if shape.size < chunk {
            let size = shape.size;
            return Err(StripeError::TooSmall { size, chunk });
        }
        let stripe = Stripe {
            map: Map::Stripe {
                shift,
                children: count,
            },
            children: children.into(),
            chunk,
        };
        let shape = Shape {
            size: stripe.size_over(shape.size),
            ..shape
        };
        Ok(Disk::of(Storage::Stripe(stripe), shape, serial))
    }

    /// The disks.
    #[must_use]
    pub fn children(&self) -> &[Arc<Disk>] {
        &self.children
    }

    /// Which of them holds what.
    #[must_use]
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// Bytes on one of them before the next one's turn.
    #[must_use]
    pub fn chunk(&self) -> u64 {
        self.chunk
    }

    /// What its size is a multiple of: a chunk on each of them.
    #[must_use]
    pub fn granule(&self) -> u64 {
        self.chunk * self.children.len() as u64
    }

    /// Its size if the smallest of them has `smallest` bytes.
    #[must_use]
    pub fn size_over(&self, smallest: u64) -> u64 {
        let granule = self.granule();
        (smallest / self.chunk).min(u64::MAX / granule) * granule
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram(size: u64) -> Arc<Disk> {
        Arc::new(Disk::ram(size))
    }

    fn make(children: Vec<Arc<Disk>>, chunk: u64) -> Result<Disk, StripeError> {
        Stripe::disk(children, chunk, Serial::new("s").unwrap())
    }

    #[test]
    fn a_stripe_is_as_large_as_whole_chunks_of_its_smallest_child() {
        let disk = make(vec![ram(1 << 20), ram((1 << 20) + 70_000)], 1 << 16).unwrap();
        assert_eq!((disk.size(), disk.trims()), (2 << 20, false));
        let disk = make(vec![ram((1 << 20) - 512), ram(1 << 20)], 1 << 16).unwrap();
        assert_eq!(disk.size(), 2 * ((1 << 20) - (1 << 16)));
    }

    #[test]
    fn what_makes_no_stripe_is_refused() {
        let two = || vec![ram(1 << 20), ram(1 << 20)];
        let error = |r: Result<Disk, StripeError>| r.unwrap_err();
        assert_eq!(error(make(vec![ram(1 << 20)], 4096)), StripeError::Count(1));
        let many = (0..33).map(|_| ram(1 << 20)).collect();
        assert_eq!(error(make(many, 4096)), StripeError::Count(33));
        for chunk in [0, 512, 6144, 1 << 25] {
            assert_eq!(error(make(two(), chunk)), StripeError::Chunk(chunk));
        }
        let small = make(vec![ram(4096), ram(1 << 20)], 8192);
        let (size, chunk) = (4096, 8192);
        assert_eq!(error(small), StripeError::TooSmall { size, chunk });
        let null = make(vec![Arc::new(Disk::null(1 << 20)), ram(1 << 20)], 8192);
        assert_eq!(error(null), StripeError::Null);
    }
}
