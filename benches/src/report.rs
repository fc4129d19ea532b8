//! What was measured, as a table for people and as JSON for comparison over time.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::idle::Idle;
use crate::plan::{Contender, Effort, Goal, Row};
use crate::runner::{Figure, QUIET};

/// Order of columns.
const COLUMNS: [Contender; 4] = [
    Contender::Raw,
    Contender::Fio,
    Contender::Qsd,
    Contender::Vblk,
];

/// Whom vblk is compared with.
const OTHERS: [Contender; 3] = [Contender::Raw, Contender::Fio, Contender::Qsd];

/// All figures of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// By row and contender, one figure a repetition; `None` where it failed.
    figures: BTreeMap<(usize, usize), Vec<Option<Figure>>>,
    /// Idle costs by contender.
    idle: BTreeMap<usize, Idle>,
}

/// A goal and how vblk stands to it.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// In words.
    pub text: String,
    /// Whether it is met.
    pub met: bool,
}

#[derive(Serialize)]
struct JsonRow<'a> {
    #[serde(flatten)]
    row: &'a Row,
    samples: BTreeMap<&'static str, &'a [Option<Figure>]>,
    median_rate: BTreeMap<&'static str, f64>,
    vblk_ratio: BTreeMap<&'static str, f64>,
    goals: Vec<Verdict>,
}

#[derive(Serialize)]
struct Json<'a> {
    machine: Machine,
    effort: Effort,
    rows: Vec<JsonRow<'a>>,
    idle: BTreeMap<&'static str, Idle>,
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

fn column(who: Contender) -> usize {
    COLUMNS
        .iter()
        .position(|c| *c == who)
        .unwrap_or(COLUMNS.len())
}

/// Middle value; the mean of the two middle ones if their number is even.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[half]),
        _ => Some(f64::midpoint(values[half - 1], values[half])),
    }
}

impl Report {
    /// Takes one figure of the row with this index.
    pub fn add(&mut self, row: usize, who: Contender, figure: Option<Figure>) {
        self.figures
            .entry((row, column(who)))
            .or_default()
            .push(figure);
    }

    /// Takes a contender's idle costs.
    pub fn add_idle(&mut self, who: Contender, idle: Idle) {
        self.idle.insert(column(who), idle);
    }

    fn samples(&self, row: usize, who: Contender) -> &[Option<Figure>] {
        self.figures
            .get(&(row, column(who)))
            .map_or(&[], Vec::as_slice)
    }

    /// Median rate.
    #[must_use]
    pub fn rate(&self, row: usize, who: Contender) -> Option<f64> {
        median(
            self.samples(row, who)
                .iter()
                .flatten()
                .map(|f| f.rate)
                .collect(),
        )
    }

    /// Median of vblk's rate over `other`'s, each pair from one repetition.
    #[must_use]
    pub fn ratio(&self, row: usize, other: Contender) -> Option<f64> {
        let pairs = self
            .samples(row, Contender::Vblk)
            .iter()
            .zip(self.samples(row, other));
        median(
            pairs
                .filter_map(|(ours, theirs)| Some(ours.as_ref()?.rate / theirs.as_ref()?.rate))
                .collect(),
        )
    }

    /// How vblk stands to the goals of a row; empty if it was not measured.
    #[must_use]
    pub fn verdicts(&self, index: usize, row: &Row) -> Vec<Verdict> {
        let judge = |goal: &Goal| match *goal {
            Goal::Rate { least } => {
                let rate = self.rate(index, Contender::Vblk)?;
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
        };
        row.goals().iter().filter_map(judge).collect()
    }

    /// The table.
    #[must_use]
    pub fn table(&self, rows: &[Row], effort: &Effort) -> String {
        let machine = Machine::here();
        let mut lines = vec![
            format!(
                "{}, {} cores, Linux {}; thousand requests a second, medians of {} x {} s",
                machine.cpu, machine.cores, machine.kernel, effort.reps, effort.seconds
            ),
            format!(
                "(lowest-highest); us: CPU of the serving side a request; ~: something else used \
                 more than {:.0} % of a core; v/x: vblk's rate over x's",
                QUIET * 100.0
            ),
            String::new(),
        ];
        let mut cells = vec![head()];
        cells.extend(
            rows.iter()
                .enumerate()
                .map(|(index, row)| self.line(index, row)),
        );
        lines.extend(align(&cells));
        if !self.idle.is_empty() {
            lines.push(String::new());
            lines.extend(align(&self.idle_cells()));
        }
        lines.join("\n")
    }

    fn line(&self, index: usize, row: &Row) -> Vec<String> {
        let mut cells = vec![row.name.clone()];
        cells.extend(COLUMNS.iter().map(|who| self.cell(index, *who)));
        for other in OTHERS {
            cells.push(
                self.ratio(index, other)
                    .map_or_else(missing, |r| format!("{r:.2}")),
            );
        }
        let goals: Vec<String> = self.verdicts(index, row).iter().map(mark).collect();
        cells.push(goals.join("; "));
        cells
    }

    fn cell(&self, row: usize, who: Contender) -> String {
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

    fn idle_cells(&self) -> Vec<Vec<String>> {
        let Some(first) = self.idle.values().next() else {
            return Vec::new();
        };
        let mut head = vec!["idle".to_owned()];
        head.extend(self.idle.keys().map(|who| COLUMNS[*who].name().to_owned()));
        head.push("vblk's goal".to_owned());
        let mut lines = vec![head];
        for (i, (name, _, unit, limit)) in first.figures().into_iter().enumerate() {
            let mut cells = vec![name.to_owned()];
            for idle in self.idle.values() {
                cells.push(format!("{:.2} {unit}", idle.figures()[i].1));
            }
            let ours = self.idle.get(&column(Contender::Vblk));
            cells.push(match (limit, ours) {
                (Some(limit), Some(ours)) => {
                    let met = ours.figures()[i].1 <= limit;
                    mark(&Verdict {
                        text: format!("at most {limit} {unit}"),
                        met,
                    })
                }
                _ => String::new(),
            });
            lines.push(cells);
        }
        lines
    }

    /// Everything, for machines.
    pub fn json(&self, rows: &[Row], effort: Effort) -> serde_json::Result<String> {
        let row = |(index, row)| JsonRow {
            row,
            samples: COLUMNS
                .iter()
                .map(|who| (who.name(), self.samples(index, *who)))
                .collect(),
            median_rate: COLUMNS
                .iter()
                .filter_map(|who| Some((who.name(), self.rate(index, *who)?)))
                .collect(),
            vblk_ratio: OTHERS
                .iter()
                .filter_map(|who| Some((who.name(), self.ratio(index, *who)?)))
                .collect(),
            goals: self.verdicts(index, row),
        };
        let idle = self
            .idle
            .iter()
            .map(|(who, idle)| (COLUMNS[*who].name(), *idle))
            .collect();
        let rows = rows.iter().enumerate().map(row).collect();
        serde_json::to_string_pretty(&Json {
            machine: Machine::here(),
            effort,
            rows,
            idle,
        })
    }
}

fn head() -> Vec<String> {
    let names = COLUMNS.iter().map(|who| who.name().to_owned());
    let ratios = OTHERS.iter().map(|who| format!("v/{}", who.name()));
    let first = std::iter::once("row".to_owned());
    first
        .chain(names)
        .chain(ratios)
        .chain(["vblk's goals".to_owned()])
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
    use crate::plan::rows;

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
            .verdicts(index, &rows[index])
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
        assert_eq!(json["rows"][index]["vblk_ratio"]["qsd"], 2.0);
    }

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
