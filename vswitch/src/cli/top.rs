//! `vswitch top`: what ports do right now.

use clap::Args;
use towpath_common::top::{
    Column, Format, Measure, Reading, State, Subject, Thing, Tone, TopArgs, TopError, Words,
    WorkerTotals, run,
};
use vswitch::control::{NamedStats, Stats};
use vswitch::service::PortState;

use super::Target;

pub(crate) const HELP: &str = "\
Columns, by their names for --sort and in JSON (there, bytes are bytes, not bits). Directions are
the switch's: rx came from a port, tx went to it.
  rx_packets, tx_packets  frames a second; one that is segmented later counts once
  rx_bytes, tx_bytes      their bytes a second, on the screen in Mbit
  batch                   frames in a burst from the port, on average
  discards                frames dropped a second; the last column has the most frequent reason
  broken                  rings latched as broken, a second
STATE is how a port is now, the worst of what holds (\"state\" in JSON):
  quarantined             its connection ended the daemon too often; `vswitch port release` serves
                          it again
  broken                  a ring of its connection is latched as broken
  no guest                no front-end is connected
  no link                 one is, but its driver has enabled no ring
  down                    the interface of an uplink is down or gone; `vswitch port show` says why
  up                      frames can pass
A row shows - after a restart of the daemon, until there are two readings to compare.

Below the table (above it on a screen): the share of time each worker spent on work; what of a
worker's time a frame took; and how much of the ceiling that is. The ceiling is the best rate in a
second of busy time that this view has seen so far, times the workers: a measurement with these
frames on this machine, not a limit. It grows with load.

Keys: q ends, ← and → choose the column to sort by, r reverses, p pauses, + and - double and halve
the interval, ↑ ↓ PgUp PgDn Home scroll.

Examples:
  vswitch top
  vswitch top --sort discards --interval 5
  vswitch top --once --json";

/// How to show ports.
#[derive(Debug, Args)]
pub(crate) struct Top {
    #[command(flatten)]
    args: TopArgs,
    #[command(flatten)]
    target: Target,
}

/// Shows them.
pub(crate) fn top(top: &Top) -> Result<(), TopError> {
    run::<Ports>(top.target.control.as_path(), &top.args, top.target.json)
}

/// The order of a port's totals.
const RX_PACKETS: usize = 0;
const RX_BYTES: usize = 1;
const RX_BURSTS: usize = 2;
const TX_PACKETS: usize = 3;
const TX_BYTES: usize = 4;
const DISCARDS: usize = 5;
const BROKEN: usize = 6;

const fn column(title: &'static str, key: &'static str, format: Format, from: Measure) -> Column {
    Column {
        title,
        key,
        format,
        measure: from,
    }
}

struct Ports;

impl Subject for Ports {
    type Totals = Stats;
    const PATH: &'static str = "/v1/stats";
    const WORDS: Words = Words {
        daemon: "vswitch",
        thing: "port",
        work: "frames",
        cause: "DROPPED FOR",
    };
    const WORK: &'static [usize] = &[RX_PACKETS];
    const COLUMNS: &'static [Column] = &[
        column(
            "RX/s",
            "rx_packets",
            Format::Count,
            Measure::Rate(&[RX_PACKETS]),
        ),
        column(
            "Mbit/s",
            "rx_bytes",
            Format::Megabits,
            Measure::Rate(&[RX_BYTES]),
        ),
        column(
            "TX/s",
            "tx_packets",
            Format::Count,
            Measure::Rate(&[TX_PACKETS]),
        ),
        column(
            "Mbit/s",
            "tx_bytes",
            Format::Megabits,
            Measure::Rate(&[TX_BYTES]),
        ),
        column(
            "BATCH",
            "batch",
            Format::Mean,
            Measure::Ratio(RX_PACKETS, RX_BURSTS),
        ),
        column(
            "BROKEN/s",
            "broken",
            Format::Count,
            Measure::Rate(&[BROKEN]),
        ),
        column(
            "DROP/s",
            "discards",
            Format::Count,
            Measure::Rate(&[DISCARDS]),
        ),
    ];

    fn reading(stats: Stats) -> Reading {
        let things = stats.ports.iter().map(thing);
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

fn state(state: PortState) -> State {
    let (word, tone) = match state {
        PortState::Quarantined => ("quarantined", Tone::Bad),
        PortState::Broken => ("broken", Tone::Bad),
        PortState::NoGuest => ("no guest", Tone::Idle),
        PortState::NoLink => ("no link", Tone::Idle),
        PortState::Down => ("down", Tone::Bad),
        PortState::Up => ("up", Tone::Good),
    };
    State { word, tone }
}

fn thing(port: &NamedStats) -> Thing {
    let stats = &port.stats;
    let (rx, tx) = (stats.rx(), stats.tx());
    Thing {
        name: port.name.to_string(),
        state: port.state.map(state),
        totals: vec![
            rx.packets,
            rx.bytes,
            rx.bursts,
            tx.packets,
            tx.bytes,
            stats.discarded(),
            stats.ring_broken.values().sum(),
        ],
        causes: stats.discards.clone(),
        ..Thing::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use towpath_common::top::Watch;
    use vswitch::service::{FdbStats, Flow, PortStats, QueueStats, WorkerStatus};

    use super::*;

    /// A port after `n` bursts of two frames of 1,000 bytes each, half of which went back, and `n`
    /// drops.
    fn after(n: u64) -> Stats {
        let flow = |packets: u64| Flow {
            packets,
            bytes: packets * 1_000,
            bursts: n,
            ..Flow::default()
        };
        let mut port = PortStats {
            discards: [("storm".to_owned(), n), ("vlan".to_owned(), n / 2)].into(),
            ..PortStats::default()
        };
        port.queues.push(QueueStats {
            index: 0,
            rx: flow(2 * n),
            tx: flow(n),
        });
        Stats {
            ports: vec![NamedStats {
                name: "web".parse().unwrap(),
                state: Some(PortState::NoLink),
                stats: port,
            }],
            vlans: Vec::new(),
            fdb: FdbStats::default(),
            workers: vec![WorkerStatus {
                steps: n,
                busy_ns: n * 1_000,
                ..WorkerStatus::default()
            }],
        }
    }

    #[test]
    fn every_column_shows_what_it_says() {
        let mut watch = Watch::new(Ports::COLUMNS, Ports::WORK);
        let start = Instant::now();
        assert!(watch.take(start, Ports::reading(after(0))).is_none());
        let later = start + Duration::from_secs(2);
        let sample = watch.take(later, Ports::reading(after(1_000_000))).unwrap();
        let row = &sample.rows[0];
        let shown: Vec<String> = Ports::COLUMNS
            .iter()
            .zip(&row.numbers)
            .map(|(column, number)| format!("{} {}", column.key, column.format.write(*number)))
            .collect();
        let expected = [
            "rx_packets 1000k",
            "rx_bytes 8000.0",
            "tx_packets 500k",
            "tx_bytes 4000.0",
            "batch 2.0",
            "broken 0",
            "discards 750k",
        ];
        assert_eq!(shown, expected);
        assert_eq!(row.cause, Some(("storm".to_owned(), 500_000.0)));
        assert_eq!(row.state, Some(state(PortState::NoLink)));
        let efficiency = sample.efficiency.unwrap();
        assert!(
            (efficiency.per_busy_second - 2e6).abs() < 1.0,
            "{efficiency:?}"
        );
    }

    #[test]
    fn help_names_every_column() {
        for column in Ports::COLUMNS {
            assert!(HELP.contains(column.key), "{}", column.key);
        }
    }

    #[test]
    fn help_names_every_state() {
        use PortState::*;
        for one in [Quarantined, Broken, NoGuest, NoLink, Down, Up] {
            let word = state(one).word;
            assert!(HELP.contains(word), "{word}");
        }
    }

    #[test]
    fn a_daemon_that_says_nothing_of_states_is_shown_without() {
        let mut answer = serde_json::to_value(after(1)).unwrap();
        answer["ports"][0].as_object_mut().unwrap().remove("state");
        let stats: Stats = serde_json::from_value(answer).unwrap();
        assert_eq!(Ports::reading(stats).things[0].state, None);
    }
}
