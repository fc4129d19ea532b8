//! What happened, counted by workers without locks and read by control without disturbing them.
//!
//! ```text
//!  worker: plain u64s ── publish(), now and then ─→ shared atomics ── snapshot() ─→ control
//! ```
//!
//! **Hot side.** A worker owns its [`counters!`](crate::counters) struct and [`Histogram`]s and
//! adds to plain integers, where a `metrics` counter would cost 12 to 100 ns each time.
//!
//! **Shared side.** [`Shared`] and [`SharedHistogram`] are relaxed atomics with one writer each.
//! Publishing stores only what changed, since a cache line that control reads costs the worker more
//! each time it is written; what stood still costs a few loads of lines the worker has anyway.
//!
//! **Consistency.** A reader sees every value as it was at some recent publication, each value on
//! its own: values only grow, but two of them may be from neighbouring publications (bytes that
//! belong to a request not yet counted). A histogram's count is by construction the sum of the
//! buckets read, so the two always agree; its sum of values may be one publication ahead or behind.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

mod histogram;

pub use histogram::{Histogram, HistogramSnapshot, SharedHistogram};

/// A set of named `u64` counters; made by [`counters!`](crate::counters), not by hand.
pub trait Counters: Copy + Default + fmt::Debug {
    /// The names, in the order of the values.
    const NAMES: &'static [&'static str];
    /// `[u64; N]`
    type Values: AsRef<[u64]>;
    /// `[AtomicU64; N]`
    type Cells: AsRef<[AtomicU64]> + Send + Sync + fmt::Debug;

    /// The values, in the order of the names.
    fn values(&self) -> Self::Values;
    /// As many atomics, all zero.
    fn cells() -> Self::Cells;
    /// The counters with the values that `cells` hold.
    fn load(cells: &Self::Cells) -> Self;
    /// Combines two sets value by value.
    fn zip(self, other: Self, combine: impl Fn(u64, u64) -> u64) -> Self;

    /// Names and values.
    fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let values = self.values();
        Self::NAMES
            .iter()
            .enumerate()
            .map(move |(i, &name)| (name, values.as_ref()[i]))
    }

    /// The sum of two sets: of several queues, say.
    fn plus(self, other: Self) -> Self {
        self.zip(other, u64::wrapping_add)
    }

    /// What was added since `earlier`.
    fn since(self, earlier: Self) -> Self {
        self.zip(earlier, u64::wrapping_sub)
    }
}

/// Declares a set of counters: a struct of public `u64` fields that is [`Counters`].
///
/// ```
/// use towpath_common::counters;
/// use towpath_common::stats::{Counters, Shared};
///
/// counters! {
///     /// What a queue did.
///     pub struct QueueCounters {
///         /// Requests that read.
///         reads,
///         /// Bytes read.
///         bytes_read,
///     }
/// }
///
/// let shared = Shared::<QueueCounters>::new();
/// let mut mine = QueueCounters::default();
/// mine.reads += 1;
/// mine.bytes_read += 4096;
/// shared.publish(&mine);
/// assert_eq!(shared.snapshot().bytes_read, 4096);
/// assert_eq!(mine.iter().next(), Some(("reads", 1)));
/// ```
#[macro_export]
macro_rules! counters {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident {
            $($(#[$field_attribute:meta])* $field:ident),+ $(,)?
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        $visibility struct $name {
            $($(#[$field_attribute])* pub $field: u64,)+
        }

        impl $crate::stats::Counters for $name {
            const NAMES: &'static [&'static str] = &[$(stringify!($field)),+];
            type Values = [u64; <$name as $crate::stats::Counters>::NAMES.len()];
            type Cells = [
                ::std::sync::atomic::AtomicU64;
                <$name as $crate::stats::Counters>::NAMES.len()
            ];

            fn values(&self) -> Self::Values {
                [$(self.$field),+]
            }

            fn cells() -> Self::Cells {
                [const { ::std::sync::atomic::AtomicU64::new(0) };
                    <$name as $crate::stats::Counters>::NAMES.len()]
            }

            fn load(cells: &Self::Cells) -> Self {
                let [$($field),+] = cells;
                Self { $($field: $field.load(::std::sync::atomic::Ordering::Relaxed)),+ }
            }

            fn zip(self, other: Self, combine: impl Fn(u64, u64) -> u64) -> Self {
                Self { $($field: combine(self.$field, other.$field)),+ }
            }
        }
    };
}

/// The published copy of one worker's counters, on cache lines of its own.
#[derive(Debug)]
#[repr(align(64))]
pub struct Shared<C: Counters> {
    cells: C::Cells,
}

impl<C: Counters> Shared<C> {
    /// All zero.
    pub fn new() -> Self {
        Shared { cells: C::cells() }
    }

    /// Stores the counters that changed. One thread alone publishes here.
    pub fn publish(&self, counters: &C) {
        for (cell, &value) in self.cells.as_ref().iter().zip(counters.values().as_ref()) {
            store(cell, value);
        }
    }

    /// The counters as published last.
    pub fn snapshot(&self) -> C {
        C::load(&self.cells)
    }
}

impl<C: Counters> Default for Shared<C> {
    fn default() -> Self {
        Self::new()
    }
}

/// Stores if different: the only writer need not write a line that stands still.
fn store(cell: &AtomicU64, value: u64) {
    if cell.load(Ordering::Relaxed) != value {
        cell.store(value, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    counters! {
        /// Two of a kind.
        struct Pair {
            /// The first.
            first,
            /// The second.
            second,
        }
    }

    #[test]
    fn counters_have_names_sums_and_differences() {
        let (a, b) = (
            Pair {
                first: 5,
                second: 7,
            },
            Pair {
                first: 2,
                second: 3,
            },
        );
        assert_eq!(a.iter().collect::<Vec<_>>(), [("first", 5), ("second", 7)]);
        assert_eq!(
            a.plus(b),
            Pair {
                first: 7,
                second: 10
            }
        );
        assert_eq!(
            a.since(b),
            Pair {
                first: 3,
                second: 4
            }
        );
    }

    #[test]
    fn readers_see_what_was_published_and_nothing_else() {
        let shared = Shared::<Pair>::new();
        assert_eq!(shared.snapshot(), Pair::default());
        let mut mine = Pair {
            first: 1,
            second: 0,
        };
        shared.publish(&mine);
        mine.second = 9;
        assert_eq!(
            shared.snapshot(),
            Pair {
                first: 1,
                second: 0
            }
        );
        shared.publish(&mine);
        assert_eq!(shared.snapshot(), mine);
    }

    #[test]
    fn a_shared_set_has_cache_lines_of_its_own() {
        assert_eq!(
            (align_of::<Shared<Pair>>(), size_of::<Shared<Pair>>()),
            (64, 64)
        );
    }
}
