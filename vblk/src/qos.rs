//! Limits on what a disk, or a group of disks, may do in a second: token buckets on the workers'
//! clock, kept as one atomic word each, so that all workers that serve a disk or a group share them
//! without a lock.
//!
//! A bucket is a moment, `due`: when it will be full again if nothing is taken. A token takes
//! `per` cycles to come back, and a bucket holds as many as come back in `depth` cycles; so there
//! is something in it while `due < now + depth`, and taking n tokens moves `due` on by n × `per`
//! (the generic cell rate algorithm). Time that passes is never counted twice nor forgotten, so the
//! rate is exact over any time that is long against `depth`.
//!
//! Requests are let through while every bucket has something in it, and may take more than there
//! is: what is owed is waited for, so a request larger than the bucket is no special case.
//!
//! A changed limit is a new [`Throttle`], full and without debt: a disk that was throttled to a
//! trickle does not go on paying for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use towpath_common::clock::{Cycles, Rate};

use crate::config::Limit;

/// What a bucket holds unless configured: a tenth of a second's worth.
const DEPTH: Duration = Duration::from_millis(100);

/// What a bucket holds at least: a worker that slept too long for a moment catches up with it, so
/// that the configured rate is reached.
const MIN_DEPTH: Duration = Duration::from_millis(10);

/// Fractional bits of a token's cost in cycles.
const FRACTION: u32 = 16;

/// Bytes of a request that are not data: its header and status byte.
const FRAME: u64 = 17;

/// One bucket.
#[derive(Debug)]
struct Bucket {
    due: AtomicU64,
    /// Cycles in which one token comes back, times 2^16.
    per: u64,
    /// Cycles in which the whole bucket fills.
    depth: u64,
}

impl Bucket {
    /// `rate` tokens a second; `burst` of them at once, or a tenth of a second's.
    fn new(rate: u64, burst: Option<u64>, clock: Rate) -> Bucket {
        let per = (u128::from(clock.hz()) << FRACTION) / u128::from(rate.max(1));
        let per = u64::try_from(per).unwrap_or(u64::MAX).max(1);
        let depth = burst.map_or(clock.of(DEPTH).0, |tokens| cost(tokens, per));
        Bucket {
            due: AtomicU64::new(0),
            per,
            depth: depth.max(clock.of(MIN_DEPTH).0),
        }
    }

    /// When there will be something in it.
    fn opens(&self) -> u64 {
        self.due
            .load(Relaxed)
            .saturating_sub(self.depth)
            .saturating_add(1)
    }

    /// Tokens in it, the last one perhaps not whole.
    fn room(&self, now: u64) -> u64 {
        let owed = self.due.load(Relaxed).saturating_sub(now);
        let left = u128::from(self.depth.saturating_sub(owed)) << FRACTION;
        u64::try_from(left.div_ceil(u128::from(self.per))).unwrap_or(u64::MAX)
    }

    fn take(&self, tokens: u64, now: u64) {
        let cost = cost(tokens, self.per);
        // Cannot fail: the closure always gives a value.
        let _ = self.due.fetch_update(Relaxed, Relaxed, |due| {
            Some(due.max(now).saturating_add(cost))
        });
    }
}

/// Cycles in which `tokens` come back.
fn cost(tokens: u64, per: u64) -> u64 {
    u64::try_from((u128::from(tokens) * u128::from(per)) >> FRACTION).unwrap_or(u64::MAX)
}

/// The buckets of one disk, or of one group.
#[derive(Debug)]
pub struct Throttle {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Throttle {
    /// Full buckets for `limit`; none if it limits nothing.
    #[must_use]
    pub fn new(limit: &Limit, clock: Rate) -> Option<Arc<Throttle>> {
        let requests = limit.iops.map(|rate| {
            let burst = limit.iops_burst.map(|burst| u64::from(burst.get()));
            Bucket::new(rate.get().into(), burst, clock)
        });
        let bytes = limit.bandwidth.map(|rate| {
            let burst = limit.bandwidth_burst.map(|burst| burst.bytes());
            Bucket::new(rate.bytes(), burst, clock)
        });
        let limits = requests.is_some() || bytes.is_some();
        limits.then(|| Arc::new(Throttle { requests, bytes }))
    }
}

/// All that limits one disk on one worker.
#[derive(Debug)]
pub struct Throttles {
    /// The disk's own, and its group's.
    all: [Option<Arc<Throttle>>; 2],
    /// Bytes of the requests seen lately, on average.
    average: u64,
    /// Since when nothing is let through.
    closed: Option<Cycles>,
    /// Cycles for which nothing was let through, before `closed`.
    waited: u64,
}

impl Throttles {
    /// Under the disk's own limits and those of its group.
    #[must_use]
    pub fn new(own: Option<Arc<Throttle>>, group: Option<Arc<Throttle>>) -> Throttles {
        Throttles {
            all: [own, group],
            average: 4096,
            closed: None,
            waited: 0,
        }
    }

    /// Take over from what applied before.
    pub fn replace(&mut self, own: Option<Arc<Throttle>>, group: Option<Arc<Throttle>>) {
        self.all = [own, group];
    }

    /// True if nothing is limited.
    #[inline]
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.all, [None, None])
    }

    fn buckets(&self) -> impl Iterator<Item = (&Bucket, bool)> {
        self.all.iter().flatten().flat_map(|throttle| {
            let requests = throttle.requests.iter().map(|bucket| (bucket, false));
            requests.chain(throttle.bytes.iter().map(|bucket| (bucket, true)))
        })
    }

    /// Requests that may be taken at `now`; as many bytes as there are may be a few requests less
    /// or more, which later ones wait for.
    #[must_use]
    pub fn room(&self, now: Cycles) -> usize {
        let rooms = self.buckets().map(|(bucket, bytes)| {
            let room = bucket.room(now.0);
            if bytes {
                room.div_ceil(self.average.max(1))
            } else {
                room
            }
        });
        let room = rooms.min().unwrap_or(u64::MAX);
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// The same, and keeps account of how long it was nothing.
    #[must_use]
    pub fn ask(&mut self, now: Cycles) -> usize {
        let room = self.room(now);
        if room == 0 {
            self.closed.get_or_insert(now);
        } else if let Some(since) = self.closed.take() {
            self.waited += now.since(since).0;
        }
        room
    }

    /// `requests` were taken, of `bytes` in all with what frames them.
    pub fn take(&mut self, requests: usize, bytes: u64, now: Cycles) {
        let requests = u64::try_from(requests).unwrap_or(u64::MAX);
        let Some(each) = bytes.checked_div(requests) else {
            return;
        };
        let bytes = bytes.saturating_sub(FRAME.saturating_mul(requests));
        self.average = (self.average * 7 + each.saturating_sub(FRAME)) / 8;
        for (bucket, is_bytes) in self.buckets() {
            bucket.take(if is_bytes { bytes } else { requests }, now.0);
        }
    }

    /// When something will be let through again, if nothing is at `now`.
    #[must_use]
    pub fn opens(&self, now: Cycles) -> Option<Cycles> {
        let opens = self.buckets().map(|(bucket, _)| bucket.opens()).max()?;
        (opens > now.0).then_some(Cycles(opens))
    }

    /// Cycles for which nothing was let through, until `now`.
    #[must_use]
    pub fn waited(&self, now: Cycles) -> Cycles {
        let open = self.closed.map_or(0, |since| now.since(since).0);
        Cycles(self.waited + open)
    }
}

impl Default for Throttles {
    fn default() -> Self {
        Throttles::new(None, None)
    }
}

#[cfg(test)]
mod tests;
