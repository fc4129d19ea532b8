//! Where frames for a port go: the guest's receive queues, or an uplink.
//!
//! Each queue stands in a lease, taken for one burst by whichever worker has frames for it. So a
//! frame is copied once, from the sender's buffers to the receiver's, even when two workers serve
//! the two; and a session takes a ring back by taking the lease, without asking any worker.

use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering::Relaxed};

use towpath_common::lease::{Held, Lease};
use towpath_common::ring::{Ring, Soon};
use towpath_common::session::Update;

use crate::features;
use crate::port::Uplink;
use crate::port::guest::GuestRx;
use towpath_common::bell::Bell;

/// Where frames for a port go.
#[derive(Debug)]
pub enum Egress {
    /// To a guest.
    Guest(GuestEgress),
    /// To an uplink, through as many queues as it has; worker `i` takes queue `i % len`.
    Uplink(Box<[Lease<Box<dyn Uplink>>]>),
}

/// What the driver has said nothing about.
const UNSAID: u64 = u64::MAX;

/// A guest's receive queues, by pair.
#[derive(Debug)]
pub struct GuestEgress {
    queues: Box<[Lease<Option<GuestRx>>]>,
    /// Where the first queue's ring is used next, as of its last burst: hints, for whoever comes
    /// next, of what to fetch before taking the lease.
    soon: [AtomicUsize; 2],
    /// Queues that are enabled, from the first on without a gap.
    open: AtomicU16,
    /// Most that the driver wants in use, if it said so through its control queue.
    limit: AtomicU16,
    /// Bits of the offloads it takes, or [`UNSAID`].
    offloads: AtomicU64,
}

impl GuestEgress {
    /// For `pairs` queue pairs, none of which is attached.
    #[must_use]
    pub fn new(pairs: u16) -> GuestEgress {
        GuestEgress {
            queues: (0..pairs).map(|_| Lease::new(None)).collect(),
            soon: Default::default(),
            open: AtomicU16::new(0),
            limit: AtomicU16::new(u16::MAX),
            offloads: AtomicU64::new(UNSAID),
        }
    }

    /// How many queues take frames.
    #[inline]
    #[must_use]
    pub fn active(&self) -> u16 {
        self.open.load(Relaxed).min(self.limit.load(Relaxed))
    }

    /// Fetch what the next burst will touch first.
    #[inline]
    pub fn fetch(&self) {
        let [avail, used] = &self.soon;
        Soon {
            avail: avail.load(Relaxed),
            used: used.load(Relaxed),
        }
        .fetch();
    }

    /// Note where a queue's ring will be used next; by whoever holds it.
    #[inline]
    pub fn note(&self, pair: u16, soon: Soon) {
        if pair == 0 {
            self.soon[0].store(soon.avail, Relaxed);
            self.soon[1].store(soon.used, Relaxed);
        }
    }

    /// Hold a queue for a burst; only for workers.
    #[inline]
    pub fn hold(&self, pair: u16) -> Option<Held<'_, Option<GuestRx>>> {
        self.queues.get(usize::from(pair)).map(Lease::hold)
    }

    /// Put a queue in place; gives it back if there is no such pair. May wait for a burst to end.
    ///
    /// # Errors
    /// The queue, if `pair` is not one.
    pub fn install(&self, pair: u16, mut queue: GuestRx) -> Result<(), Box<GuestRx>> {
        let Some(lease) = self.queues.get(usize::from(pair)) else {
            return Err(Box::new(queue));
        };
        let mut held = lease.lock();
        if let Some(offloads) = self.offloads() {
            queue.set_accepts(features::accepts(offloads));
        }
        *held = Some(queue);
        drop(held);
        self.recount();
        Ok(())
    }

    /// Take a queue back: from then on no worker touches it. May wait for a burst to end.
    #[must_use]
    pub fn remove(&self, pair: u16) -> Option<(Ring, Option<Bell>)> {
        let queue = self.queues.get(usize::from(pair))?.lock().take();
        self.recount();
        queue.map(GuestRx::into_parts)
    }

    /// Change a queue.
    pub fn update(&self, pair: u16, update: Update) {
        if let Some(lease) = self.queues.get(usize::from(pair))
            && let Some(queue) = lease.lock().as_mut()
        {
            queue.update(update);
        }
        self.recount();
    }

    /// True if a queue's memory was truncated; its session is hung up then.
    #[must_use]
    pub fn check_poison(&self) -> bool {
        let poisoned = |q: &Lease<Option<GuestRx>>| {
            let held = q.try_hold();
            held.is_some_and(|h| h.as_ref().is_some_and(GuestRx::check_poison))
        };
        self.queues.iter().any(poisoned)
    }

    /// Use no more than the first `pairs` queues.
    pub fn set_limit(&self, pairs: u16) {
        self.limit.store(pairs, Relaxed);
    }

    /// How many pairs the driver wants in use, if it said so.
    #[must_use]
    pub fn pairs(&self) -> Option<u16> {
        Some(self.limit.load(Relaxed)).filter(|limit| *limit != u16::MAX)
    }

    /// Which of the offloads it negotiated the driver wants, by feature bits, if it said so.
    #[must_use]
    pub fn offloads(&self) -> Option<u64> {
        Some(self.offloads.load(Relaxed)).filter(|bits| *bits != UNSAID)
    }

    /// The driver takes these offloads from now on; so do queues that are yet to be put in place.
    pub fn set_offloads(&self, bits: u64) {
        self.offloads.store(bits, Relaxed);
        for lease in &self.queues {
            if let Some(queue) = lease.lock().as_mut() {
                queue.set_accepts(features::accepts(bits));
            }
        }
    }

    /// Forget what the driver said; no queue is in place.
    pub fn reset(&self) {
        self.limit.store(u16::MAX, Relaxed);
        self.offloads.store(UNSAID, Relaxed);
    }

    /// Only a port's session does this, so that no two counts overtake each other.
    fn recount(&self) {
        let open = |q: &&Lease<Option<GuestRx>>| q.lock().as_ref().is_some_and(GuestRx::is_enabled);
        let open = self.queues.iter().take_while(open).count();
        self.open
            .store(u16::try_from(open).unwrap_or(u16::MAX), Relaxed);
    }
}
