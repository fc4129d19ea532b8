//! What was measured, as a table for people and as JSON for comparison over time.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use serde::Serialize;

use crate::plan::{Effort, Entrant, Entry, Goal};
use crate::runner::{Figure, QUIET};

/// All figures of a run.
#[derive(Debug)]
pub struct Report<W> {
    /// By row and contender, one figure a repetition; `None` where it failed.
    figures: BTreeMap<(usize, usize), Vec<Option<Figure>>>,
    /// Figures that are no rates, by contender.
    asides: BTreeMap<usize, Vec<Aside>>,
    who: PhantomData<W>,
}

impl<W> Default for Report<W> {
    fn default() -> Self {
        Self {
            figures: BTreeMap::new(),
            asides: BTreeMap::new(),
            who: PhantomData,
        }
    }
}

/// A figure that is no rate: a time, a size, a share; less is better.
#[derive(Debug, Clone, Serialize)]
pub struct Aside {
    /// What it is.
    pub name: &'static str,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What ours may be at most.
    pub limit: Option<Limit>,
}

/// What a figure may be at most.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// So much.
    AtMost(f64),
    /// As much as the contender of this name has.
    Beats(&'static str),
}

/// A goal and how ours stands to it.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// In words.
    pub text: String,
    /// Whether it is met.
    pub met: bool,
}

#[derive(Serialize)]
struct JsonRow<'a, R> {
    #[serde(flatten)]
    row: &'a R,
    samples: BTreeMap<&'static str, &'a [Option<Figure>]>,
    median_rate: BTreeMap<&'static str, f64>,
    our_ratio: BTreeMap<&'static str, f64>,
    goals: Vec<Verdict>,
}

#[derive(Serialize)]
struct Json<'a, R> {
    machine: Machine,
    effort: Effort,
    rows: Vec<JsonRow<'a, R>>,
    asides: BTreeMap<&'static str, &'a [Aside]>,
}

/// Where it was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn here() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            cpu: model.map_or("unknown", |(_, name)| name).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

fn column<W: Entrant>(who: W) -> usize {
    W::ALL
        .iter()
        .position(|c| *c == who)
        .unwrap_or(W::ALL.len())
}

/// Whom ours is compared with.
fn others<W: Entrant>() -> impl Iterator<Item = W> {
    W::ALL.iter().copied().filter(|who| *who != W::OURS)
}

/// Middle value; the mean of the two middle ones if their number is even.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[half]),
        _ => Some(f64::midpoint(values[half - 1], values[half])),
    }
}

impl<W: Entrant> Report<W> {
    /// Takes one figure of the row with this index.
    pub fn add(&mut self, row: usize, who: W, figure: Option<Figure>) {
        self.figures
            .entry((row, column(who)))
            .or_default()
            .push(figure);
    }

    /// Takes a contender's figures that are no rates.
    pub fn add_asides(&mut self, who: W, asides: Vec<Aside>) {
        self.asides.entry(column(who)).or_default().extend(asides);
    }

    fn samples(&self, row: usize, who: W) -> &[Option<Figure>] {
        self.figures
            .get(&(row, column(who)))
            .map_or(&[], Vec::as_slice)
    }

    /// Median rate.
    #[must_use]
    pub fn rate(&self, row: usize, who: W) -> Option<f64> {
        median(
            self.samples(row, who)
                .iter()
                .flatten()
                .map(|f| f.rate)
                .collect(),
        )
    }

    /// Median of our rate over `other`'s, each pair from one repetition.
    #[must_use]
    pub fn ratio(&self, row: usize, other: W) -> Option<f64> {
        let pairs = self
            .samples(row, W::OURS)
            .iter()
            .zip(self.samples(row, other));
        median(
            pairs
                .filter_map(|(ours, theirs)| Some(ours.as_ref()?.rate / theirs.as_ref()?.rate))
                .collect(),
        )
    }

    /// How ours stands to the goals of a row; empty if it was not measured.
    #[must_use]
    pub fn verdicts<R: Entry<Who = W>>(&self, index: usize, rows: &[R]) -> Vec<Verdict> {
        let judge = |goal: &Goal<W>| match *goal {
            Goal::Rate { least } => {
                let rate = self.rate(index, W::OURS)?;
                let text = format!("{:.2} of {:.1} M/s", rate / 1e6, least / 1e6);
                Some(Verdict {
                    text,
                    met: rate >= least,
                })
            }
            Goal::Ratio { to, least } => {
                let ratio = self.ratio(index, to)?;
                let text = format!("{least} x {}", to.name());
                Some(Verdict {
                    text,
                    met: ratio >= least,
                })
            }
            Goal::Share { of, least } => {
                let base = rows.iter().position(|row| row.name() == of)?;
                let share = self.rate(index, W::OURS)? / self.rate(base, W::OURS)?;
                let text = format!("{share:.2}, at least {least} of {of}");
                Some(Verdict {
                    text,
                    met: share >= least,
                })
            }
        };
        let goals = rows.get(index).map(Entry::goals).unwrap_or_default();
        goals.iter().filter_map(judge).collect()
    }

    /// The table.
    #[must_use]
    pub fn table<R: Entry<Who = W>>(&self, rows: &[R], effort: &Effort) -> String {
        let machine = Machine::here();
        let mut lines = vec![
            format!(
                "{}, {} cores, Linux {}; thousand {} a second, medians of {} x {} s",
                machine.cpu,
                machine.cores,
                machine.kernel,
                R::UNIT,
                effort.reps,
                effort.seconds
            ),
            format!(
                "(lowest-highest); ~: something else used more than {:.0} % of a core; us: CPU of \
                 the serving side for each; v/x: {}'s rate over x's",
                QUIET * 100.0,
                W::OURS.name()
            ),
            String::new(),
        ];
        let mut cells = vec![head::<W>()];
        cells.extend((0..rows.len()).map(|index| self.line(index, rows)));
        if !rows.is_empty() {
            lines.extend(align(&cells));
        }
        if !self.asides.is_empty() {
            lines.push(String::new());
            lines.extend(align(&self.aside_cells()));
        }
        lines.join("\n")
    }

    fn line<R: Entry<Who = W>>(&self, index: usize, rows: &[R]) -> Vec<String> {
        let mut cells = vec![rows[index].name().to_owned()];
        cells.extend(W::ALL.iter().map(|who| self.cell(index, *who)));
        for other in others() {
            cells.push(
                self.ratio(index, other)
                    .map_or_else(missing, |r| format!("{r:.2}")),
            );
        }
        let goals: Vec<String> = self.verdicts(index, rows).iter().map(mark).collect();
        cells.push(goals.join("; "));
        cells
    }

    fn cell(&self, row: usize, who: W) -> String {
        let samples: Vec<Figure> = self.samples(row, who).iter().flatten().copied().collect();
        let Some(rate) = self.rate(row, who) else {
            return missing();
        };
        let rates = samples.iter().map(|f| f.rate);
        let low = rates.clone().fold(f64::INFINITY, f64::min);
        let high = rates.fold(0.0, f64::max);
        let cpu = median(samples.iter().map(|f| f.cpu_us).collect()).unwrap_or(0.0);
        let mark = if samples.iter().any(|f| f.disturbed) {
            "~"
        } else {
            ""
        };
        let k = |rate: f64| format!("{:.0}", rate / 1e3);
        format!("{mark}{} ({}-{}) {cpu:.2}us", k(rate), k(low), k(high))
    }

    fn aside(&self, who: usize, name: &str) -> Option<&Aside> {
        self.asides
            .get(&who)?
            .iter()
            .find(|aside| aside.name == name)
    }

    fn aside_cells(&self) -> Vec<Vec<String>> {
        let ours = column(W::OURS);
        let mut head = vec![String::new()];
        head.extend(self.asides.keys().map(|who| W::ALL[*who].name().to_owned()));
        head.push(format!("{}'s goal", W::OURS.name()));
        let mut lines = vec![head];
        let mut names: Vec<&str> = Vec::new();
        for aside in self.asides.values().flatten() {
            if !names.contains(&aside.name) {
                names.push(aside.name);
            }
        }
        for name in names {
            let mut cells = vec![name.to_owned()];
            for who in self.asides.keys() {
                cells.push(self.aside(*who, name).map_or_else(missing, |aside| {
                    format!("{:.2} {}", aside.value, aside.unit)
                }));
            }
            let verdict = self.aside(ours, name).and_then(|a| self.judge(a));
            cells.push(verdict.as_ref().map(mark).unwrap_or_default());
            lines.push(cells);
        }
        lines
    }

    /// How one of our figures that are no rates stands to its limit, if it has one.
    fn judge(&self, ours: &Aside) -> Option<Verdict> {
        let (text, limit) = match ours.limit? {
            Limit::AtMost(most) => (format!("at most {most} {}", ours.unit), most),
            Limit::Beats(other) => {
                let who = W::ALL.iter().position(|who| who.name() == other)?;
                let theirs = self.aside(who, ours.name)?.value;
                (format!("below {other}'s"), theirs)
            }
        };
        Some(Verdict {
            text,
            met: ours.value <= limit,
        })
    }

    /// Everything, for machines.
    pub fn json<R: Entry<Who = W>>(
        &self,
        rows: &[R],
        effort: Effort,
    ) -> serde_json::Result<String> {
        let row = |(index, row)| JsonRow {
            row,
            samples: W::ALL
                .iter()
                .map(|who| (who.name(), self.samples(index, *who)))
                .collect(),
            median_rate: W::ALL
                .iter()
                .filter_map(|who| Some((who.name(), self.rate(index, *who)?)))
                .collect(),
            our_ratio: others::<W>()
                .filter_map(|who| Some((who.name(), self.ratio(index, who)?)))
                .collect(),
            goals: self.verdicts(index, rows),
        };
        let asides = self
            .asides
            .iter()
            .map(|(who, asides)| (W::ALL[*who].name(), asides.as_slice()))
            .collect();
        let rows = rows.iter().enumerate().map(row).collect();
        serde_json::to_string_pretty(&Json {
            machine: Machine::here(),
            effort,
            rows,
            asides,
        })
    }
}

fn head<W: Entrant>() -> Vec<String> {
    let names = W::ALL.iter().map(|who| who.name().to_owned());
    let ratios = others::<W>().map(|who| format!("v/{}", who.name()));
    let first = std::iter::once("row".to_owned());
    first
        .chain(names)
        .chain(ratios)
        .chain([format!("{}'s goals", W::OURS.name())])
        .collect()
}

fn missing() -> String {
    "-".to_owned()
}

fn mark(verdict: &Verdict) -> String {
    format!(
        "{} ({})",
        verdict.text,
        if verdict.met { "met" } else { "NOT MET" }
    )
}

/// Pads every column to its widest cell.
fn align(lines: &[Vec<String>]) -> Vec<String> {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| lines.iter().filter_map(|l| l.get(i)).map(String::len).max();
    let widths: Vec<usize> = (0..columns).map(|i| width(i).unwrap_or(0)).collect();
    let pad = |line: &Vec<String>| {
        let cells = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}  "));
        cells.collect::<String>().trim_end().to_owned()
    };
    lines.iter().map(pad).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Contender, rows};

    fn figure(rate: f64) -> Option<Figure> {
        Some(Figure {
            rate,
            cpu_us: 1.0,
            foreign: 0.0,
            disturbed: false,
        })
    }

    #[test]
    fn ratios_are_paired_and_goals_judged() {
        let rows = rows();
        let index = rows
            .iter()
            .position(|row| row.name == "cached/read/32")
            .unwrap();
        let mut report = Report::default();
        for (ours, raw, qsd) in [
            (100.0, 100.0, 50.0),
            (300.0, 200.0, 100.0),
            (97.0, 100.0, 80.0),
        ] {
            report.add(index, Contender::Vblk, figure(ours));
            report.add(index, Contender::Raw, figure(raw));
            report.add(index, Contender::Qsd, figure(qsd));
        }
        report.add(index, Contender::Fio, None);
        assert_eq!(report.ratio(index, Contender::Raw), Some(1.0));
        assert_eq!(report.ratio(index, Contender::Fio), None);
        let met: Vec<bool> = report
            .verdicts(index, &rows)
            .iter()
            .map(|v| v.met)
            .collect();
        assert_eq!(met, [true, true]);
        let effort = Effort {
            seconds: 1.0,
            reps: 3,
        };
        let table = report.table(&rows, &effort);
        assert!(table.contains("0.95 x raw (met); 1.5 x qsd (met)"));
        let json: serde_json::Value =
            serde_json::from_str(&report.json(&rows, effort).unwrap()).unwrap();
        assert_eq!(json["rows"][index]["our_ratio"]["qsd"], 2.0);
    }

    #[test]
    fn asides_are_judged_by_a_number_or_by_another() {
        let aside = |value| Aside {
            name: "p99",
            value,
            unit: "us",
            limit: Some(Limit::Beats("qsd")),
        };
        let mut report: Report<Contender> = Report::default();
        report.add_asides(Contender::Vblk, vec![aside(2.0)]);
        assert!(report.judge(&aside(2.0)).is_none());
        report.add_asides(Contender::Qsd, vec![aside(3.0)]);
        assert!(report.judge(&aside(2.0)).unwrap().met);
        assert!(!report.judge(&aside(4.0)).unwrap().met);
        let limit = Some(Limit::AtMost(1.0));
        assert!(
            !report
                .judge(&Aside {
                    limit,
                    ..aside(2.0)
                })
                .unwrap()
                .met
        );
    }

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
