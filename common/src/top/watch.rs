//! Two readings become a sample.

use std::time::{Duration, Instant, SystemTime};

use super::rate::{Span, percentile_ns};
use super::sample::{Column, Efficiency, Load, Measure, Reading, Row, Sample, Thing, WorkerTotals};

/// Below this much busy time of one worker in an interval, its length is mostly the error of
/// measurement, and says nothing about efficiency.
const ENOUGH_BUSY: f64 = 0.05;

/// What was seen so far.
#[derive(Debug)]
pub struct Watch {
    columns: &'static [Column],
    /// The total that is the daemon's work.
    work: &'static [usize],
    before: Option<(Instant, Reading)>,
    /// The most work in a second of a worker's busy time.
    best: f64,
}

impl Watch {
    /// Nothing, yet. `work` are the totals that count the daemon's work.
    pub fn new(columns: &'static [Column], work: &'static [usize]) -> Self {
        Self {
            columns,
            work,
            before: None,
            best: 0.0,
        }
    }

    /// Takes a reading that was made at `now`; a sample, if there was one before it.
    pub fn take(&mut self, now: Instant, reading: Reading) -> Option<Sample> {
        let before = self.before.take();
        let sample = before.map(|(then, before)| {
            self.compare(&before, &reading, now.saturating_duration_since(then))
        });
        self.before = Some((now, reading));
        sample
    }

    /// The daemon did not answer: what it counts next has nothing to do with what it counted.
    pub fn lose(&mut self) {
        self.before = None;
    }

    fn compare(&mut self, before: &Reading, now: &Reading, elapsed: Duration) -> Sample {
        let span = Span::new(elapsed);
        let anew = is_anew(&before.workers, &now.workers);
        let rows = now.things.iter().enumerate().map(|(index, thing)| {
            let old = same(before, index, thing);
            let old = old.filter(|old| !anew && old.goes_on_as(thing));
            self.row(old, thing, span)
        });
        let rows: Vec<Row> = rows.collect();
        let workers = now.workers.iter().enumerate().map(|(index, worker)| {
            let old = before.workers.get(index).filter(|_| !anew);
            Load {
                cpu: worker.cpu,
                busy: old.map(|old| span.share(old.busy_ns, worker.busy_ns).min(1.0)),
            }
        });
        let workers: Vec<Load> = workers.collect();
        let efficiency = self.efficiency(before, now, span, &workers);
        Sample {
            at: SystemTime::now(),
            elapsed,
            rows,
            workers,
            efficiency,
        }
    }

    fn row(&self, old: Option<&Thing>, now: &Thing, span: Span) -> Row {
        let number = |column: &Column| old.and_then(|old| measure(column.measure, old, now, span));
        let grown = |old: &Thing| {
            let causes = now.causes.iter().map(|(cause, &count)| {
                let before = old.causes.get(cause).copied().unwrap_or(0);
                (cause.clone(), span.rate(before, count))
            });
            let some = causes.filter(|(_, rate)| *rate > 0.0);
            some.max_by(|a, b| a.1.total_cmp(&b.1))
        };
        Row {
            name: now.name.clone(),
            state: now.state,
            numbers: self.columns.iter().map(number).collect(),
            cause: old.and_then(grown),
        }
    }

    /// What the workers' time was worth.
    fn efficiency(
        &mut self,
        before: &Reading,
        now: &Reading,
        span: Span,
        workers: &[Load],
    ) -> Option<Efficiency> {
        let busy: f64 = workers.iter().filter_map(|worker| worker.busy).sum();
        if busy < ENOUGH_BUSY {
            return None;
        }
        let rates = now.things.iter().enumerate().filter_map(|(index, thing)| {
            let old = same(before, index, thing)?;
            let rates = self.work.iter();
            Some(
                rates
                    .map(|&i| span.rate(old.total(i), thing.total(i)))
                    .sum::<f64>(),
            )
        });
        let rate: f64 = rates.sum();
        if rate <= 0.0 {
            return None;
        }
        let per_busy_second = rate / busy;
        self.best = self.best.max(per_busy_second);
        let count = u32::try_from(workers.len()).unwrap_or(u32::MAX);
        Some(Efficiency {
            rate,
            per_busy_second,
            ceiling: self.best * f64::from(count),
        })
    }
}

impl Thing {
    fn total(&self, index: usize) -> u64 {
        self.totals.get(index).copied().unwrap_or(0)
    }

    /// Whether `now` counts on from here: nothing shrank.
    fn goes_on_as(&self, now: &Thing) -> bool {
        let kept = |(cause, &count): (&String, &u64)| now.causes.get(cause).copied() >= Some(count);
        self.totals
            .iter()
            .zip(&now.totals)
            .all(|(old, new)| new >= old)
            && now.timed >= self.timed
            && self.causes.iter().all(kept)
    }
}

/// The thing of that name before; as a rule at the same place.
fn same<'a>(before: &'a Reading, index: usize, now: &Thing) -> Option<&'a Thing> {
    let here = before.things.get(index).filter(|old| old.name == now.name);
    here.or_else(|| before.things.iter().find(|old| old.name == now.name))
}

/// Whether other workers count now: those of a daemon that was restarted.
fn is_anew(before: &[WorkerTotals], now: &[WorkerTotals]) -> bool {
    let mut pairs = before.iter().zip(now);
    before.len() != now.len()
        || pairs.any(|(old, new)| new.steps < old.steps || new.busy_ns < old.busy_ns)
}

fn measure(measure: Measure, old: &Thing, now: &Thing, span: Span) -> Option<f64> {
    let rate = |index: usize| span.rate(old.total(index), now.total(index));
    match measure {
        Measure::Rate(totals) => Some(totals.iter().map(|&index| rate(index)).sum()),
        Measure::Share(index) => Some(span.share(old.total(index), now.total(index))),
        Measure::Ratio(of, by) => (rate(by) > 0.0).then(|| rate(of) / rate(by)),
        Measure::Percentile(share) => {
            percentile_ns((&old.times, old.timed), (&now.times, now.timed), share)
        }
    }
}
