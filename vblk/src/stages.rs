//! Where a request's time went: a histogram for each stage of its way, and the slowest with theirs.
//!
//! ```text
//! fetched ──queue──▶ submitted ──device──▶ completed ──used──▶ used ──notify──▶ notified
//! ```
//!
//! | stage | is the time for | long, it means |
//! |---|---|---|
//! | queue | the request checked and handed to the kernel | the worker is busy, or waits for room |
//! | device | the storage, with everything tried again or held | the storage is slow |
//! | used | the answer put where the guest sees it | the worker is busy |
//! | notify | the interrupt sent | the VMM's eventfd is slow |
//!
//! Clocks are read once a burst, not once a request: all requests fetched in one visit have one
//! time, and so have all that were submitted, completed or published together. So a stage is known
//! to within a burst, and requests that never leave the worker (a null disk, GET_ID) cost no clock
//! reading at all; they are in no stage.

use towpath_common::clock::{Cycles, Rate};
use towpath_common::stats::{Histogram, SharedHistogram};

use crate::io::Finished;
use crate::slow::{Slow, Trace};

/// A stage of a request's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// From fetched to submitted.
    Queue,
    /// From submitted to completed.
    Device,
    /// From completed to used.
    Used,
    /// From used to notified.
    Notify,
}

/// How many there are.
pub const STAGES: usize = Stage::ALL.len();

impl Stage {
    /// All of them, in their order.
    pub const ALL: [Stage; 4] = [Stage::Queue, Stage::Device, Stage::Used, Stage::Notify];

    /// Its name in the API and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Queue => "queue",
            Stage::Device => "device",
            Stage::Used => "used",
            Stage::Notify => "notify",
        }
    }
}

/// Requests of one queue that completed since it was last published.
#[derive(Debug, Default, Clone, Copy)]
pub struct Reaped {
    count: u32,
    /// The sum of the moments at which they completed, since the first of them.
    after: u64,
    first: Cycles,
}

impl Reaped {
    /// One more, at `now`.
    #[inline]
    pub fn add(&mut self, now: Cycles) {
        if self.count == 0 {
            self.first = now;
        }
        self.count += 1;
        self.after += now.since(self.first).0;
    }

    /// True if there is none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The average moment.
    fn average(&self) -> Cycles {
        self.first + Cycles(self.after / u64::from(self.count.max(1)))
    }
}

/// A disk's stages on one worker.
#[derive(Debug, Default)]
pub struct Stages {
    histograms: Box<[Histogram; STAGES]>,
    /// The slowest requests.
    pub slow: Slow,
}

impl Stages {
    fn record(&mut self, stage: Stage, ns: u64, times: u64) {
        self.histograms[stage as usize].record_many(ns, times);
    }

    /// A request of queue `index` completed at `now`.
    #[inline]
    pub fn completed(&mut self, f: &Finished<'_>, index: u16, now: Cycles, rate: Rate) {
        let Some(submitted) = f.submitted else {
            return;
        };
        let queued = submitted.since(f.started);
        let device = now.since(submitted);
        self.record(Stage::Queue, rate.ns(queued), 1);
        self.record(Stage::Device, rate.ns(device), 1);
        let total = now.since(f.started);
        if total > self.slow.floor() {
            self.slow.add(Trace {
                queue: index,
                kind: f.kind,
                offset: f.offset,
                bytes: f.bytes,
                errno: f.errno.map_or(0, rustix::io::Errno::raw_os_error),
                completed: now,
                stages: [queued, device, Cycles::ZERO, Cycles::ZERO],
            });
        }
    }

    /// The requests `reaped` of queue `index` were used at `used`, and the driver notified at
    /// `notified` if it wanted that.
    pub fn told(
        &mut self,
        index: u16,
        reaped: Reaped,
        used: Cycles,
        notified: Option<Cycles>,
        rate: Rate,
    ) {
        let times = u64::from(reaped.count);
        let waited = rate.ns(used.since(reaped.average()));
        self.record(Stage::Used, waited, times);
        if let Some(notified) = notified {
            self.record(Stage::Notify, rate.ns(notified.since(used)), times);
        }
        self.slow.told(index, used, notified);
    }

    /// Publish what changed.
    pub fn publish(&mut self, shared: &[SharedHistogram; STAGES]) {
        for (mine, shared) in self.histograms.iter_mut().zip(shared) {
            mine.publish(shared);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Data, Kind, Status};
    use crate::slot::Origin;
    use towpath_common::mem::{Mem, Segment};

    fn finished(mem: &Mem, started: u64, submitted: Option<u64>) -> Finished<'_> {
        Finished {
            origin: Origin::default(),
            kind: Kind::Write,
            status: Status::Ok,
            status_at: Segment::default(),
            written: 1,
            bytes: 4096,
            errno: None,
            started: Cycles(started),
            submitted: submitted.map(Cycles),
            offset: 8192,
            mem,
            dirty: Data::default(),
        }
    }

    #[test]
    fn the_stages_of_a_request_add_up_to_its_time() {
        let (mem, rate) = (Mem::default(), Rate::NANOSECONDS);
        let mut stages = Stages::default();
        let mut reaped = Reaped::default();
        stages.completed(
            &finished(&mem, 1_000, Some(3_000)),
            1,
            Cycles(103_000),
            rate,
        );
        reaped.add(Cycles(103_000));
        stages.told(1, reaped, Cycles(107_000), Some(Cycles(115_000)), rate);
        let sums: Vec<u64> = stages
            .histograms
            .iter()
            .map(|h| h.snapshot().sum())
            .collect();
        assert_eq!(sums, [2_000, 100_000, 4_000, 8_000]);
        let slow = stages.slow.list();
        let expected = [2_000, 100_000, 4_000, 8_000].map(Cycles);
        assert_eq!((slow.len(), slow[0].stages), (1, expected));
        assert_eq!(
            (slow[0].offset, slow[0].bytes, slow[0].queue),
            (8192, 4096, 1)
        );
    }

    #[test]
    fn what_never_left_the_worker_is_in_no_stage() {
        let mem = Mem::default();
        let mut stages = Stages::default();
        stages.completed(
            &finished(&mem, 5, None),
            0,
            Cycles(9_000),
            Rate::NANOSECONDS,
        );
        assert!(stages.histograms.iter().all(|h| h.snapshot().count() == 0));
        assert!(stages.slow.list().is_empty());
    }

    #[test]
    fn a_driver_that_wants_no_interrupt_is_in_no_notify_stage() {
        let mut stages = Stages::default();
        let mut reaped = Reaped::default();
        reaped.add(Cycles(100));
        reaped.add(Cycles(300)); // 200 on average
        stages.told(0, reaped, Cycles(1_200), None, Rate::NANOSECONDS);
        let count = |stage: Stage| stages.histograms[stage as usize].snapshot();
        assert_eq!(
            (count(Stage::Used).count(), count(Stage::Used).sum()),
            (2, 2_000)
        );
        assert_eq!(count(Stage::Notify).count(), 0);
    }
}
