//! `vblk top`: what disks do right now.

use std::collections::BTreeMap;

use clap::Args;
use towpath_common::top::{
    Column, Format, Measure, Reading, State, Subject, Thing, Tone, TopArgs, TopError, Words,
    WorkerTotals, run,
};
use vblk::control::{NamedStats, Stats};
use vblk::metrics::errno_name;
use vblk::service::{Direction, DiskState, RequestType};

use super::Target;

pub(crate) const HELP: &str = "\
Columns, by their names for --sort and in JSON (there, bytes are bytes and times are in ns):
  requests          requests completed a second, of all types
  reads, writes, flushes
  read_bytes, written_bytes
  p50, p99          time from pop to completion that half, 99 of 100 requests did not exceed;
                    between the bounds 1-2-5 of the buckets, as if requests lay evenly
  in_flight         requests under way, on average
  limited           share of the time in which limits let nothing through
  errors            requests that failed a second; the last column has the most frequent errno
STATE is how a disk is now, the worst of what holds (\"state\" in JSON):
  not served        its storage cannot be opened yet
  failed            FLUSH or everything fails until `vblk disk clear`
  quarantined       its connection ended the daemon too often; `vblk disk release` serves it again
  broken            a ring of its connection is latched as broken
  held              requests wait for its storage to get better
  degraded          something is wrong with its storage; `vblk disk show` says what
  no guest, up      nothing of that, without and with a front-end
A row shows - after a restart of the daemon, until there are two readings to compare.

Below the table (above it on a screen): the share of time each worker spent on work; what of a
worker's time a request took; and how much of the ceiling that is. The ceiling is the best rate in a
second of busy time that this view has seen so far, times the workers: a measurement with these
requests on this machine, not a limit. It grows with load.

Keys: q ends, ← and → choose the column to sort by, r reverses, p pauses, + and - double and halve
the interval, ↑ ↓ PgUp PgDn Home scroll.

Examples:
  vblk top
  vblk top --sort p99 --interval 5
  vblk top --once --json";

/// How to show disks.
#[derive(Debug, Args)]
pub(crate) struct Top {
    #[command(flatten)]
    args: TopArgs,
    #[command(flatten)]
    target: Target,
}

/// Shows them.
pub(crate) fn top(top: &Top) -> Result<(), TopError> {
    run::<Disks>(top.target.control.as_path(), &top.args, top.target.json)
}

/// The order of a disk's totals.
const READS: usize = 0;
const WRITES: usize = 1;
const FLUSHES: usize = 2;
const OTHERS: usize = 3;
const READ_BYTES: usize = 4;
const WRITTEN_BYTES: usize = 5;
const TIME_NS: usize = 6;
const LIMITED_NS: usize = 7;
const ERRORS: usize = 8;

const fn column(title: &'static str, key: &'static str, format: Format, from: Measure) -> Column {
    Column {
        title,
        key,
        format,
        measure: from,
    }
}

struct Disks;

impl Subject for Disks {
    type Totals = Stats;
    const PATH: &'static str = "/v1/stats";
    const WORDS: Words = Words {
        daemon: "vblk",
        thing: "disk",
        work: "requests",
        cause: "FAILED WITH",
    };
    const WORK: &'static [usize] = &[READS, WRITES, FLUSHES, OTHERS];
    const COLUMNS: &'static [Column] = &[
        column("IO/s", "requests", Format::Count, Measure::Rate(Self::WORK)),
        column("READ/s", "reads", Format::Count, Measure::Rate(&[READS])),
        column(
            "MiB/s",
            "read_bytes",
            Format::Mebibytes,
            Measure::Rate(&[READ_BYTES]),
        ),
        column("WRITE/s", "writes", Format::Count, Measure::Rate(&[WRITES])),
        column(
            "MiB/s",
            "written_bytes",
            Format::Mebibytes,
            Measure::Rate(&[WRITTEN_BYTES]),
        ),
        column(
            "FLUSH/s",
            "flushes",
            Format::Count,
            Measure::Rate(&[FLUSHES]),
        ),
        column("P50", "p50", Format::Time, Measure::Percentile(0.5)),
        column("P99", "p99", Format::Time, Measure::Percentile(0.99)),
        column(
            "IN FLIGHT",
            "in_flight",
            Format::Mean,
            Measure::Share(TIME_NS),
        ),
        column(
            "LIMITED",
            "limited",
            Format::Share,
            Measure::Share(LIMITED_NS),
        ),
        column("ERROR/s", "errors", Format::Count, Measure::Rate(&[ERRORS])),
    ];

    fn reading(stats: Stats) -> Reading {
        let things = stats.disks.iter().map(thing);
        let workers = stats.workers.iter().map(|worker| WorkerTotals {
            cpu: worker.cpu.map(|cpu| usize::from(cpu.get())),
            steps: worker.steps,
            busy_ns: worker.busy_ns,
        });
        Reading {
            things: things.collect(),
            workers: workers.collect(),
        }
    }
}

fn state(state: DiskState) -> State {
    let (word, tone) = match state {
        DiskState::NotServed => ("not served", Tone::Bad),
        DiskState::Failed => ("failed", Tone::Bad),
        DiskState::Quarantined => ("quarantined", Tone::Bad),
        DiskState::Broken => ("broken", Tone::Bad),
        DiskState::Held => ("held", Tone::Warning),
        DiskState::Degraded => ("degraded", Tone::Warning),
        DiskState::NoGuest => ("no guest", Tone::Idle),
        DiskState::Up => ("up", Tone::Good),
    };
    State { word, tone }
}

fn thing(disk: &NamedStats) -> Thing {
    let stats = &disk.stats;
    let of = |kind| stats.requests(kind);
    let others = [
        RequestType::Discard,
        RequestType::WriteZeroes,
        RequestType::GetId,
        RequestType::Unsupported,
    ];
    let mut times: BTreeMap<u64, u64> = BTreeMap::new();
    for (bound, count) in stats.latency.values().flat_map(|latency| &latency.buckets) {
        *times.entry(*bound).or_default() += count;
    }
    let errors = stats.errors();
    let causes = errors
        .iter()
        .map(|(errno, count)| (errno_name(*errno).into_owned(), *count));
    Thing {
        name: disk.name.to_string(),
        state: disk.state.map(state),
        totals: vec![
            of(RequestType::Read),
            of(RequestType::Write),
            of(RequestType::Flush),
            others.map(of).iter().sum(),
            stats.bytes(Direction::Read),
            stats.bytes(Direction::Written),
            stats.latency.values().map(|latency| latency.sum_ns).sum(),
            stats.throttled_ns,
            errors.values().sum(),
        ],
        times: times.into_iter().collect(),
        timed: stats.latency.values().map(|latency| latency.count).sum(),
        causes: causes.collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use towpath_common::top::Watch;
    use vblk::service::{DiskStats, Latency, QueueStats, WorkerStatus};

    use super::*;

    /// A disk after `n` reads of 4 KiB in 3 µs each, `n` writes, and `n` errors.
    fn after(n: u64) -> Stats {
        let mut disk = DiskStats {
            throttled_ns: n * 1_000_000,
            ..DiskStats::default()
        };
        disk.queues.push(QueueStats {
            requests: [(RequestType::Read, n), (RequestType::Write, n)].into(),
            bytes: [(Direction::Read, n * 4096)].into(),
            errors: [(5, n)].into(),
            ..QueueStats::default()
        });
        let latency = Latency {
            count: n,
            sum_ns: n * 3_000,
            buckets: vec![(2_000, 0), (5_000, n)],
            ..Latency::default()
        };
        disk.latency = [(RequestType::Read, latency)].into();
        Stats {
            disks: vec![NamedStats {
                name: "web".parse().unwrap(),
                state: Some(DiskState::Degraded),
                stats: disk,
            }],
            workers: vec![WorkerStatus {
                steps: n,
                busy_ns: n * 1_000_000,
                ..WorkerStatus::default()
            }],
        }
    }

    #[test]
    fn every_column_shows_what_it_says() {
        let mut watch = Watch::new(Disks::COLUMNS, Disks::WORK);
        let start = Instant::now();
        assert!(watch.take(start, Disks::reading(after(100))).is_none());
        let later = start + Duration::from_secs(2);
        let sample = watch.take(later, Disks::reading(after(300))).unwrap();
        let row = &sample.rows[0];
        let shown: Vec<String> = Disks::COLUMNS
            .iter()
            .zip(&row.numbers)
            .map(|(column, number)| format!("{} {}", column.key, column.format.write(*number)))
            .collect();
        let expected = [
            "requests 200",
            "reads 100",
            "read_bytes 0.4",
            "writes 100",
            "written_bytes 0.0",
            "flushes 0",
            "p50 3.5µs",
            "p99 5.0µs",
            "in_flight 0.0",
            "limited 10%",
            "errors 100",
        ];
        assert_eq!(shown, expected);
        assert_eq!(row.cause, Some(("EIO".to_owned(), 100.0)));
        assert_eq!(row.state, Some(state(DiskState::Degraded)));
        let efficiency = sample.efficiency.unwrap();
        assert!(
            (efficiency.each_ns() - 500_000.0).abs() < 1.0,
            "{efficiency:?}"
        );
    }

    #[test]
    fn help_names_every_column() {
        for column in Disks::COLUMNS {
            assert!(HELP.contains(column.key), "{}", column.key);
        }
    }

    #[test]
    fn help_names_every_state() {
        use DiskState::*;
        for one in [
            NotServed,
            Failed,
            Quarantined,
            Broken,
            Held,
            Degraded,
            NoGuest,
            Up,
        ] {
            let word = state(one).word;
            assert!(HELP.contains(word), "{word}");
        }
    }

    #[test]
    fn a_daemon_that_says_nothing_of_states_is_shown_without() {
        let mut answer = serde_json::to_value(after(1)).unwrap();
        answer["disks"][0].as_object_mut().unwrap().remove("state");
        let stats: Stats = serde_json::from_value(answer).unwrap();
        assert_eq!(Disks::reading(stats).things[0].state, None);
    }
}
