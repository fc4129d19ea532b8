//! Numbers that can be worked out by hand, and screens that can be read.

use std::time::{Duration, Instant, SystemTime};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::{Color, Modifier};

use super::*;
use crate::clock::Rate;

const COLUMNS: &[Column] = &[
    Column {
        title: "IO/s",
        key: "requests",
        format: Format::Count,
        measure: Measure::Rate(&[0]),
    },
    Column {
        title: "P99",
        key: "p99",
        format: Format::Time,
        measure: Measure::Percentile(0.99),
    },
    Column {
        title: "HELD",
        key: "held",
        format: Format::Share,
        measure: Measure::Share(1),
    },
    Column {
        title: "EACH",
        key: "each",
        format: Format::Mean,
        measure: Measure::Ratio(1, 0),
    },
];

const WORDS: Words = Words {
    daemon: "vblk",
    thing: "disk",
    work: "requests",
    cause: "FAILED WITH",
};

const UP: State = State {
    word: "up",
    tone: Tone::Good,
};
const NO_GUEST: State = State {
    word: "no guest",
    tone: Tone::Idle,
};
const DEGRADED: State = State {
    word: "degraded",
    tone: Tone::Warning,
};
const FAILED: State = State {
    word: "failed",
    tone: Tone::Bad,
};

fn row(name: &str, numbers: [Option<f64>; 4]) -> Row {
    Row {
        name: name.to_owned(),
        state: Some(UP),
        numbers: numbers.to_vec(),
        cause: None,
    }
}

fn rows() -> Vec<Row> {
    vec![
        Row {
            state: None,
            ..row("b", [Some(5.0), None, Some(0.5), None])
        },
        row("a", [Some(5.0), Some(1_500.0), Some(0.0), None]),
        Row {
            cause: Some(("EIO".to_owned(), 12.0)),
            state: Some(FAILED),
            ..row("c", [Some(123_456.0), Some(2e6), Some(1.0), Some(2.0)])
        },
    ]
}

fn sample() -> Sample {
    Sample {
        at: SystemTime::UNIX_EPOCH,
        elapsed: Duration::from_secs(2),
        rows: rows(),
        workers: vec![
            Load {
                cpu: Some(3),
                busy: Some(0.5),
            },
            Load {
                cpu: None,
                busy: None,
            },
        ],
        efficiency: Some(Efficiency {
            rate: 250_000.0,
            per_busy_second: 500_000.0,
            ceiling: 1e6,
        }),
    }
}

fn sorted(order: Order) -> String {
    let mut rows = rows();
    order.sort(&mut rows);
    rows.into_iter().map(|row| row.name).collect()
}

#[test]
fn rows_stand_by_a_column_and_equals_by_name() {
    let by = |name, reverse| sorted(Order::by(name, reverse, COLUMNS).unwrap());
    assert_eq!(by("io/s", false), "cab");
    assert_eq!(by("requests", true), "abc");
    assert_eq!(by("p99", false), "cab");
    assert_eq!(by("p99", true), "acb", "what is not known comes last");
    assert_eq!(by("held", false), "cba");
    assert_eq!(
        (by("name", false), by("NAME", true)),
        ("abc".into(), "cba".into())
    );
    let error = Order::by("size", false, COLUMNS).unwrap_err().to_string();
    let expected =
        "--sort size: there is no such column; use one of requests, p99, held, each, name";
    assert_eq!(error, expected);
}

#[test]
fn a_table_has_numbers_to_the_right() {
    let expected = "\
DISK  STATE   IO/s    P99  HELD  EACH  FAILED WITH
b     -          5      -   50%     -
a     up         5  1.5µs    0%     -
c     failed  123k  2.0ms  100%   2.0  EIO 12/s
workers busy: 0 (CPU 3) 50%, 1 -
requests: 250k/s, 2.0µs of a worker each (6000 cycles); 25% of 1000k/s, the best seen here for all \
workers
";
    let text = text(&WORDS, COLUMNS, &sample(), Rate::from_ratio(3, 1));
    assert_eq!(text, expected);
}

#[test]
fn an_object_has_numbers_as_they_are() {
    let object = json(&WORDS, COLUMNS, &sample());
    assert_eq!(object["seconds"], 2.0);
    assert_eq!(object["disks"][0]["p99"], serde_json::Value::Null);
    assert_eq!(object["disks"][2]["p99"], 2e6);
    assert_eq!(object["disks"][2]["worst"]["cause"], "EIO");
    assert_eq!(object["disks"][0]["state"], serde_json::Value::Null);
    assert_eq!(object["disks"][2]["state"], "failed");
    assert_eq!(object["workers"][0]["cpu"], 3);
    assert_eq!(object["efficiency"]["share_of_ceiling"], 0.25);
}

#[test]
fn numbers_are_short() {
    let count = |n| Format::Count.write(Some(n));
    assert_eq!(
        [0.4, 99_999.4, 99_999.6, 2.5e6, 1e7, 2e10].map(count),
        ["0", "99999", "100k", "2500k", "10.0M", "20.0G"]
    );
    let time = |n| Format::Time.write(Some(n));
    assert_eq!(
        [999.0, 999.6, 999_960.0, 2e9].map(time),
        ["999ns", "1.0µs", "1.0ms", "2.0s"]
    );
    assert_eq!(Format::Mebibytes.write(Some(1_572_864.0)), "1.5");
    assert_eq!(Format::Megabits.write(Some(1e6)), "8.0");
}

#[test]
fn percentiles_are_of_the_samples_between() {
    let before = [(1_000, 100), (2_000, 100), (5_000, 100)];
    let now = [(1_000, 100), (2_000, 150), (5_000, 200)];
    let at = |share| percentile_ns((&before, 100), (&now, 200), share).map(f64::round);
    assert_eq!(at(0.25), Some(1_500.0));
    assert_eq!(at(0.5), Some(2_000.0));
    assert_eq!(at(1.0), Some(5_000.0));
    let none = percentile_ns((&now, 200), (&now, 200), 0.5);
    assert_eq!(none, None, "no samples");
    let beyond = percentile_ns((&before, 100), (&before, 200), 0.5);
    assert_eq!(beyond, Some(5_000.0), "slower than the last bound");
}

/// A daemon whose one disk did `requests`, each of which held it a second, and failed `errors`.
fn reading(steps: u64, requests: u64, errors: u64) -> Reading {
    Reading {
        things: vec![Thing {
            name: "web".to_owned(),
            state: Some(UP),
            totals: vec![requests, requests * 1_000_000_000],
            causes: [("EIO".to_owned(), errors)].into(),
            ..Thing::default()
        }],
        workers: vec![WorkerTotals {
            cpu: None,
            steps,
            busy_ns: steps * 100_000_000,
        }],
    }
}

/// What a second after each of the readings showed.
fn watched(readings: Vec<Option<Reading>>) -> Vec<Option<Sample>> {
    let mut watch = Watch::new(COLUMNS, &[0]);
    let start = Instant::now();
    let seconds = (0..).map(|n| start + Duration::from_secs(n));
    let take = |(at, reading): (Instant, Option<Reading>)| match reading {
        Some(reading) => watch.take(at, reading),
        None => {
            watch.lose();
            None
        }
    };
    seconds.zip(readings).map(take).collect()
}

fn first(sample: Option<&Sample>) -> Option<f64> {
    sample.and_then(|sample| sample.rows[0].numbers[0])
}

#[test]
fn rates_are_of_the_time_between() {
    let seen = watched(vec![Some(reading(1, 10, 0)), Some(reading(2, 30, 7))]);
    assert!(seen[0].is_none(), "one reading is no rate");
    let sample = seen[1].as_ref().unwrap();
    assert_eq!(first(Some(sample)), Some(20.0));
    assert_eq!(sample.rows[0].cause, Some(("EIO".to_owned(), 7.0)));
    assert_eq!(sample.workers[0].busy, Some(0.1));
    assert!(Span::new(Duration::ZERO).rate(0, 1).is_finite());
}

#[test]
fn a_daemon_that_counts_anew_gives_no_rate_over_its_restart() {
    // Its counters are behind, ahead, or where they were: the workers tell.
    for requests in [0, 100, 5_000] {
        let seen = watched(vec![
            Some(reading(50, 100, 0)),
            Some(reading(1, requests, 0)),
            Some(reading(2, requests + 3, 0)),
        ]);
        let (over, after) = (seen[1].as_ref(), seen[2].as_ref());
        assert_eq!(first(over), None, "{requests}");
        let over = over.unwrap();
        assert_eq!(over.rows[0].state, Some(UP), "a state is no rate");
        assert_eq!((over.workers[0].busy, over.efficiency), (None, None));
        assert_eq!(first(after), Some(3.0));
    }
}

#[test]
fn a_disk_that_counts_anew_gives_no_rate_either() {
    let seen = watched(vec![Some(reading(1, 100, 0)), Some(reading(2, 5, 0))]);
    assert_eq!(first(seen[1].as_ref()), None);
    let seen = watched(vec![Some(reading(1, 100, 9)), Some(reading(2, 200, 5))]);
    assert_eq!(first(seen[1].as_ref()), None, "its errors are fewer");
}

#[test]
fn an_outage_is_no_interval() {
    let seen = watched(vec![
        Some(reading(1, 100, 0)),
        None,
        Some(reading(3, 300, 0)),
        Some(reading(4, 301, 0)),
    ]);
    assert!(seen[2].is_none());
    assert_eq!(first(seen[3].as_ref()), Some(1.0));
}

#[test]
fn the_ceiling_is_the_best_that_was_seen() {
    let seen = watched(vec![
        Some(reading(1, 0, 0)),
        // 0.1 s of work for 100, then for 50; then too little to tell.
        Some(reading(2, 100, 0)),
        Some(reading(3, 150, 0)),
        Some(reading(3, 151, 0)),
    ]);
    let one = |n: usize| seen[n].as_ref().unwrap().efficiency;
    assert_eq!(one(1).unwrap().share(), 0.1);
    let second = one(2).unwrap();
    assert_eq!((second.per_busy_second, second.ceiling), (500.0, 1_000.0));
    assert_eq!(second.share(), 0.05);
    assert_eq!(one(3), None);
}

fn view(sort: &str) -> View {
    let order = Order::by(sort, false, COLUMNS).unwrap();
    let second = "1".parse().unwrap();
    View::new(WORDS, COLUMNS, order, second, Rate::from_ratio(3, 1))
}

/// What stands on a terminal of this size, without blanks at the ends of lines.
fn drawn(view: &View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let cell = |x, y| buffer[(x, y)].symbol().to_owned();
    let line = |y| (0..width).map(|x| cell(x, y)).collect::<String>();
    let lines = (0..height).map(line);
    lines.map(|line| line.trim_end().to_owned()).collect()
}

fn press(view: &mut View, code: KeyCode) -> Next {
    view.press(KeyEvent::new(code, KeyModifiers::NONE))
}

#[test]
fn the_screen_shows_workers_rows_and_keys() {
    let mut view = view("requests");
    assert!(drawn(&view, 100, 8)[2].starts_with("the first numbers come"));
    view.take(Some(sample()));
    let expected = [
        "vblk top  every 1 s  3 disks by IO/s",
        "worker 0 CPU 3 █████░░░░░  50%  worker 1 ░░░░░░░░░░    -",
        "requests: 250k/s, 2.0µs of a worker each (6000 cycles); 25% of 1000k/s, the best seen he",
        "DISK  STATE   IO/s▼    P99  HELD  EACH  FAILED WITH",
        "c     failed   123k  2.0ms  100%   2.0  EIO 12/s",
        "a     up          5  1.5µs    0%     -",
        "b     -           5      -   50%     -",
        "q quit  ←→ sort by  r reverse  p pause  +- interval  ↑↓ PgUp PgDn scroll  Home top",
    ];
    let shown = drawn(&view, 88, 8);
    let shown: Vec<&str> = shown.iter().map(|line| line.trim_end()).collect();
    assert_eq!(shown, expected);
}

#[test]
fn a_state_stands_beside_its_name_in_a_colour() {
    let mut view = view("name");
    let with = |name, state| Row {
        state,
        ..row(name, [Some(1.0); 4])
    };
    view.take(Some(Sample {
        rows: vec![
            with("a", Some(UP)),
            with("b", Some(NO_GUEST)),
            with("c", Some(DEGRADED)),
            with("d", Some(FAILED)),
            with("e", None),
        ],
        ..sample()
    }));
    let mut terminal = Terminal::new(TestBackend::new(100, 10)).unwrap();
    terminal.draw(|frame| view.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let seen = (4..9).map(|y| {
        // The name is wide as its title, with a mark of the order, and two blanks.
        let word = (7..15).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        let style = buffer[(7, y)].style();
        let (name, number) = (&buffer[(0, y)], &buffer[(18, y)]);
        assert_eq!(name.style(), number.style(), "the state alone has a colour");
        (word.trim_end().to_owned(), style.fg, style.add_modifier)
    });
    let expected = [
        ("up", Color::Green, Modifier::empty()),
        ("no guest", Color::Reset, Modifier::DIM),
        ("degraded", Color::Yellow, Modifier::empty()),
        ("failed", Color::Red, Modifier::BOLD),
        ("-", Color::Reset, Modifier::empty()),
    ];
    let expected = expected.map(|(word, color, how)| (word.to_owned(), Some(color), how));
    assert_eq!(seen.collect::<Vec<_>>(), expected);
}

#[test]
fn columns_move_together_where_there_is_little_room() {
    let mut view = view("name");
    view.take(Some(sample()));
    let header = |width| {
        let lines = drawn(&view, width, 9).into_iter();
        lines
            .filter(|line| line.starts_with("DISK"))
            .collect::<String>()
    };
    assert_eq!(
        header(60),
        "DISK▲  STATE   IO/s    P99  HELD  EACH  FAILED WITH"
    );
    assert_eq!(header(50), "DISK▲ STATE  IO/s   P99 HELD EACH FAILED WITH");
}

#[test]
fn keys_choose_the_order_and_what_is_seen_of_it() {
    let mut view = view("requests");
    view.take(Some(sample()));
    let names = |view: &View| {
        let lines = drawn(view, 100, 8);
        let lines = lines[4..7].iter();
        lines
            .map(|line| line.chars().next().unwrap_or(' '))
            .collect::<String>()
    };
    assert_eq!(names(&view), "cab");
    press(&mut view, KeyCode::Char('r'));
    assert_eq!(names(&view), "abc");
    press(&mut view, KeyCode::Right);
    assert_eq!(
        (names(&view), &*drawn(&view, 100, 8)[0]),
        ("acb".into(), "vblk top  every 1 s  3 disks by P99")
    );
    press(&mut view, KeyCode::Left);
    press(&mut view, KeyCode::Left);
    press(&mut view, KeyCode::Left);
    assert!(drawn(&view, 100, 8)[0].ends_with("by name"));
    press(&mut view, KeyCode::Down);
    assert_eq!(names(&view), "ba ", "c is above");
    press(&mut view, KeyCode::PageDown);
    assert_eq!(names(&view), "a  ", "one row stays");
    press(&mut view, KeyCode::Home);
    assert_eq!(names(&view), "cba");
    for _ in 0..9 {
        press(&mut view, KeyCode::Char('>'));
    }
    assert!(
        drawn(&view, 100, 8)[0].ends_with("by EACH"),
        "the last column"
    );
}

#[test]
fn keys_pause_end_and_change_the_pace() {
    let mut view = view("requests");
    view.take(Some(sample()));
    press(&mut view, KeyCode::Char('p'));
    view.take(Some(Sample {
        rows: Vec::new(),
        ..sample()
    }));
    let head = drawn(&view, 100, 8)[0].clone();
    assert!(
        head.contains("3 disks") && head.ends_with("PAUSED"),
        "{head}"
    );
    press(&mut view, KeyCode::Char(' '));
    view.take(Some(Sample {
        rows: Vec::new(),
        ..sample()
    }));
    assert!(drawn(&view, 100, 8)[0].contains("0 disks"));
    let every = |text: &str| Next::Every(text.parse().unwrap());
    assert_eq!(press(&mut view, KeyCode::Char('+')), every("2"));
    assert_eq!(press(&mut view, KeyCode::Char('-')), every("1"));
    for _ in 0..9 {
        press(&mut view, KeyCode::Char('-'));
    }
    assert_eq!(press(&mut view, KeyCode::Char('-')), every("0.1"));
    assert_eq!(press(&mut view, KeyCode::Char('c')), Next::Go);
    let ends = [
        KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL),
        KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE),
        KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE),
    ];
    assert_eq!(ends.map(|key| view.press(key)), [Next::End; 3]);
}

#[test]
fn trouble_stands_below_what_was_seen_last() {
    let mut view = view("requests");
    view.take(Some(sample()));
    view.lose("no daemon is listening on /run/x".to_owned());
    let lines = drawn(&view, 100, 8);
    assert_eq!(lines[7], "no daemon is listening on /run/x; trying again");
    assert!(lines[4].starts_with('c'));
    view.take(None);
    assert!(
        drawn(&view, 100, 8)[7].starts_with("q quit"),
        "it came back"
    );
}

#[test]
fn any_size_of_terminal_will_do() {
    let mut view = view("requests");
    let mut many = sample();
    many.workers = vec![many.workers[0]; 100];
    many.rows = vec![row(&"x".repeat(200), [None; 4]); 1_000];
    view.take(Some(many));
    for (width, height) in [(1, 1), (10, 3), (40, 12), (300, 80)] {
        drawn(&view, width, height);
    }
    let lines = drawn(&view, 66, 12);
    assert_eq!(lines[5], "and 92 more workers");
    assert!(lines[8].contains('…'), "{lines:?}");
}

#[test]
fn options_follow_from_the_line_and_the_output() {
    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        top: TopArgs,
    }
    let parse = |line: &str| {
        let words = std::iter::once("top").chain(line.split_whitespace());
        <Line as clap::Parser>::try_parse_from(words).map(|line| line.top)
    };
    let plain = parse("").unwrap();
    assert!(!plain.options(false, true).batch);
    assert!(plain.options(false, false).batch, "no terminal");
    assert!(plain.options(true, true).batch, "JSON");
    let few = parse("-n 3 --interval 0.5").unwrap().options(false, true);
    assert_eq!((few.batch, few.count), (true, Some(3)));
    assert_eq!(few.interval.get(), Duration::from_millis(500));
    assert_eq!(parse("--once").unwrap().options(false, true).count, Some(1));
    for line in [
        "-n 0",
        "--once -n 2",
        "--interval 0",
        "--interval nan",
        "--interval 9999",
    ] {
        parse(line).unwrap_err();
    }
    let error = parse("--interval x").unwrap_err().to_string();
    assert!(error.contains("use seconds, 0.1 to 3600"), "{error}");
}
