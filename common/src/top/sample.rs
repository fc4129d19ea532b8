//! The nouns of `top`: columns, readings of totals, and samples of rates with their order.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// How the numbers of a column are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A number of things, with k, M or G if it is large.
    Count,
    /// Bytes, in MiB.
    Mebibytes,
    /// Bytes, in Mbit.
    Megabits,
    /// Nanoseconds.
    Time,
    /// A share, 0 to 1.
    Share,
    /// A mean, such as that of requests in flight.
    Mean,
}

/// How a column's number follows from two readings. Totals are named by their place in
/// [`Thing::totals`].
#[derive(Clone, Copy, Debug)]
pub enum Measure {
    /// How much the sum of these totals grew a second.
    Rate(&'static [usize]),
    /// How much a total of nanoseconds grew in a nanosecond.
    Share(usize),
    /// How much one total grew for each that another did.
    Ratio(usize, usize),
    /// The time that this share of the requests did not exceed.
    Percentile(f64),
}

/// One column of numbers.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// What stands above it.
    pub title: &'static str,
    /// What it is called in JSON; `--sort` takes either.
    pub key: &'static str,
    /// What the numbers are.
    pub format: Format,
    /// Where they come from.
    pub measure: Measure,
}

/// What the API said at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Every port or disk, in the daemon's order.
    pub things: Vec<Thing>,
    /// Every worker, by index.
    pub workers: Vec<WorkerTotals>,
}

/// How a port or disk is, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// The word.
    pub word: &'static str,
    /// What an operator is to make of it.
    pub tone: Tone,
}

/// What an operator is to make of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// It works.
    Good,
    /// Nobody uses it.
    Idle,
    /// It works, but not as it should.
    Warning,
    /// It does not work.
    Bad,
}

/// The totals of one port or disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thing {
    /// What it is called.
    pub name: String,
    /// How it is; `None` if its daemon is too old to say.
    pub state: Option<State>,
    /// Totals, in an order that its daemon gives.
    pub totals: Vec<u64>,
    /// Requests by time: upper bound in ns, and how many are at or below it, ascending.
    pub times: Vec<(u64, u64)>,
    /// All requests that were timed.
    pub timed: u64,
    /// What went wrong, and how often.
    pub causes: BTreeMap<String, u64>,
}

/// What a worker has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerTotals {
    /// The CPU it is pinned to, if it is.
    pub cpu: Option<usize>,
    /// Turns of its loop.
    pub steps: u64,
    /// Time spent on work, in ns.
    pub busy_ns: u64,
}

/// What happened between two readings.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// When the second was taken.
    pub at: SystemTime,
    /// The time between them.
    pub elapsed: Duration,
    /// Every port or disk.
    pub rows: Vec<Row>,
    /// Every worker, by index.
    pub workers: Vec<Load>,
    /// What a worker's time was worth, if they worked enough to tell.
    pub efficiency: Option<Efficiency>,
}

/// One port or disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What it is called.
    pub name: String,
    /// How it was at the second reading, if its daemon says.
    pub state: Option<State>,
    /// A number a column; `None`: nothing happened that could be measured.
    pub numbers: Vec<Option<f64>>,
    /// What went wrong most often, and how often a second.
    pub cause: Option<(String, f64)>,
}

/// How busy a worker was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// The CPU it is pinned to, if it is.
    pub cpu: Option<usize>,
    /// Share of the time spent on work, 0 to 1; `None` over a restart.
    pub busy: Option<f64>,
}

/// What was done, and what workers' time it took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Efficiency {
    /// Work done a second (frames received; requests).
    pub rate: f64,
    /// Work done in a second of a worker's busy time.
    pub per_busy_second: f64,
    /// Work a second with all workers busy, at the best `per_busy_second` that was seen so far.
    pub ceiling: f64,
}

impl Efficiency {
    /// The part of the ceiling that is in use, 0 to 1.
    pub fn share(self) -> f64 {
        if self.ceiling > 0.0 {
            self.rate / self.ceiling
        } else {
            0.0
        }
    }

    /// A worker's time for each, in ns.
    pub fn each_ns(self) -> f64 {
        1e9 / self.per_busy_second
    }
}

/// There is no such column.
#[derive(Debug, thiserror::Error)]
#[error("--sort {wanted}: there is no such column; use one of {known}")]
pub struct UnknownColumn {
    wanted: String,
    known: String,
}

/// The order of rows: largest first by a column, or by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Which column; `None`: the name.
    pub column: Option<usize>,
    /// The other way round.
    pub reverse: bool,
}

impl Order {
    /// By the column called `wanted`, or `name`.
    ///
    /// # Errors
    /// [`UnknownColumn`]
    pub fn by(wanted: &str, reverse: bool, columns: &[Column]) -> Result<Self, UnknownColumn> {
        let column = columns.iter().position(|column| {
            let mut names = [column.title, column.key].into_iter();
            names.any(|name| name.eq_ignore_ascii_case(wanted))
        });
        if column.is_none() && !wanted.eq_ignore_ascii_case("name") {
            let keys = columns.iter().map(|column| column.key);
            return Err(UnknownColumn {
                wanted: wanted.to_owned(),
                known: keys.chain(["name"]).collect::<Vec<_>>().join(", "),
            });
        }
        Ok(Self { column, reverse })
    }

    /// Puts rows in order; what is not known comes last, equals stand by name.
    pub fn sort(self, rows: &mut [Row]) {
        let number = |row: &Row, column: usize| row.numbers.get(column).copied().flatten();
        rows.sort_by(|a, b| {
            let by_name = a.name.cmp(&b.name);
            let Some(column) = self.column else {
                return if self.reverse {
                    by_name.reverse()
                } else {
                    by_name
                };
            };
            let order = match (number(a, column), number(b, column)) {
                (Some(a), Some(b)) if self.reverse => a.total_cmp(&b),
                (Some(a), Some(b)) => b.total_cmp(&a),
                (a, b) => b.is_some().cmp(&a.is_some()),
            };
            order.then(by_name)
        });
    }
}
