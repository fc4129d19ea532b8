//! Samples as lines: a table for people, an object for programs.

use std::time::UNIX_EPOCH;

use serde_json::{Map, Value, json as object};

use super::sample::{Column, Format, Load, Row, Sample};
use crate::clock::Rate;

/// What a daemon calls things.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    /// The program.
    pub daemon: &'static str,
    /// One of what it serves, such as `disk`; JSON has a list of them, with an `s`.
    pub thing: &'static str,
    /// What workers do, in the plural, such as `requests`.
    pub work: &'static str,
    /// What stands above causes.
    pub cause: &'static str,
}

impl Format {
    /// A number as people read it; `-` for none.
    pub fn write(self, number: Option<f64>) -> String {
        let Some(number) = number else {
            return "-".to_owned();
        };
        match self {
            Self::Count => count(number),
            Self::Mebibytes => format!("{:.1}", number / f64::from(1 << 20)),
            Self::Megabits => format!("{:.1}", number * 8.0 / 1e6),
            Self::Time => time(number),
            Self::Share => format!("{:.0}%", number * 100.0),
            Self::Mean => format!("{number:.1}"),
        }
    }
}

fn count(number: f64) -> String {
    match number {
        n if n < 99_999.5 => format!("{n:.0}"),
        n if n < 9.9995e6 => format!("{:.0}k", n / 1e3),
        n if n < 9.9995e9 => format!("{:.1}M", n / 1e6),
        n => format!("{:.1}G", n / 1e9),
    }
}

fn time(ns: f64) -> String {
    match ns {
        n if n < 999.5 => format!("{n:.0}ns"),
        n if n < 999_950.0 => format!("{:.1}µs", n / 1e3),
        n if n < 999_950_000.0 => format!("{:.1}ms", n / 1e6),
        n => format!("{:.1}s", n / 1e9),
    }
}

/// What went wrong most, and how often a second.
pub(super) fn cause(row: &Row) -> String {
    match &row.cause {
        Some((cause, rate)) => format!("{cause} {}/s", count(*rate)),
        None => String::new(),
    }
}

/// How busy the workers were, in one line.
pub(super) fn load(workers: &[Load]) -> String {
    let cells = workers.iter().enumerate().map(|(index, worker)| {
        let busy = Format::Share.write(worker.busy);
        match worker.cpu {
            Some(cpu) => format!("{index} (CPU {cpu}) {busy}"),
            None => format!("{index} {busy}"),
        }
    });
    format!("workers busy: {}", cells.collect::<Vec<_>>().join(", "))
}

/// What a worker's time was worth, in one line. `rate` is that of the processor's counter.
pub(super) fn efficiency(sample: &Sample, work: &str, rate: Rate) -> String {
    let Some(one) = sample.efficiency else {
        return format!("{work}: too little to tell what one costs");
    };
    let cycles = if rate == Rate::NANOSECONDS {
        String::new()
    } else {
        let per_ns = crate::control::exposition::approximate(rate.hz()) / 1e9;
        format!(" ({:.0} cycles)", one.each_ns() * per_ns)
    };
    format!(
        "{work}: {}/s, {} of a worker each{cycles}; {} of {}/s, the best seen here for all workers",
        count(one.rate),
        time(one.each_ns()),
        Format::Share.write(Some(one.share())),
        count(one.ceiling),
    )
}

/// How something is; `-` if nobody says.
fn state(row: &Row) -> &'static str {
    row.state.map_or("-", |state| state.word)
}

/// Columns to the left of the numbers: the name and the state.
pub(super) const WORDS_BEFORE: usize = 2;

/// The cells of the table, its header first.
pub(super) fn cells(words: &Words, columns: &[Column], rows: &[Row]) -> Vec<Vec<String>> {
    let titles = columns.iter().map(|column| column.title.to_owned());
    let header = [words.thing.to_uppercase(), "STATE".to_owned()]
        .into_iter()
        .chain(titles)
        .chain([words.cause.to_owned()])
        .collect();
    let lines = rows.iter().map(|row| {
        let numbers = columns.iter().zip(&row.numbers);
        let numbers = numbers.map(|(column, number)| column.format.write(*number));
        [row.name.clone(), state(row).to_owned()]
            .into_iter()
            .chain(numbers)
            .chain([cause(row)])
            .collect()
    });
    std::iter::once(header).chain(lines).collect()
}

/// The widths of columns: those of their widest cells.
pub(super) fn widths(cells: &[Vec<String>]) -> Vec<usize> {
    let columns = cells.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = cells.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    (0..columns).map(width).collect()
}

/// One table: names and states to the left, numbers to the right; then the workers.
pub fn text(words: &Words, columns: &[Column], sample: &Sample, rate: Rate) -> String {
    let cells = cells(words, columns, &sample.rows);
    let widths = widths(&cells);
    let last = widths.len().saturating_sub(1);
    let mut text = String::new();
    for line in &cells {
        let padded = line.iter().zip(&widths).enumerate();
        let padded = padded.map(|(index, (cell, &width))| match index {
            index if index < WORDS_BEFORE => format!("{cell:<width$}"),
            index if index == last => cell.clone(),
            _ => format!("{cell:>width$}"),
        });
        text += padded.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    let efficiency = efficiency(sample, words.work, rate);
    format!("{text}{}\n{efficiency}\n", load(&sample.workers))
}

/// One object. Times are in ns, shares 0 to 1, bytes are bytes; `null` where nothing was measured.
pub fn json(words: &Words, columns: &[Column], sample: &Sample) -> Value {
    let since = sample.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let rows = sample.rows.iter().map(|row| {
        let mut all = Map::new();
        all.insert("name".to_owned(), row.name.clone().into());
        let state = row.state.map(|state| state.word);
        all.insert("state".to_owned(), state.into());
        for (column, number) in columns.iter().zip(&row.numbers) {
            all.insert(column.key.to_owned(), (*number).into());
        }
        let cause = row.cause.as_ref();
        let cause = cause.map(|(cause, rate)| object!({"cause": cause, "rate": rate}));
        all.insert("worst".to_owned(), cause.into());
        Value::Object(all)
    });
    let workers = sample.workers.iter().enumerate();
    let workers = workers
        .map(|(index, worker)| object!({"index": index, "cpu": worker.cpu, "busy": worker.busy}));
    let efficiency = sample.efficiency.map(|one| {
        object!({
            "work_per_second": one.rate,
            "work_per_busy_second": one.per_busy_second,
            "ceiling_per_second": one.ceiling,
            "share_of_ceiling": one.share(),
        })
    });
    object!({
        "time": since.as_secs_f64(),
        "seconds": sample.elapsed.as_secs_f64(),
        format!("{}s", words.thing): rows.collect::<Vec<_>>(),
        "workers": workers.collect::<Vec<_>>(),
        "efficiency": efficiency,
    })
}
