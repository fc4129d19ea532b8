//! A guest's transmit queue: where its frames come from (virtio 1.3, 5.1.6.2).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use towpath_common::bell::Bell;
use towpath_common::chain::{BURST, Burst};
use towpath_common::keep::Cell;
use towpath_common::ring::{Ring, Violation, fence};
use towpath_common::session::{Attach, Update};

use super::line::Line;
use crate::batch::Source;
use crate::fdb::PortNo;
use crate::features;
use crate::net::Offloads;
use crate::stats::QueueCounters;
use crate::switch::{Ingress, Moment, Switch};

/// A guest's transmit queue, on the worker that polls it.
#[derive(Debug)]
pub struct GuestTx {
    ring: Ring,
    index: u16,
    port: PortNo,
    kick: Option<OwnedFd>,
    line: Line,
    may_send: Offloads,
    /// Where a successor reads which frames may have been sent.
    cell: Option<Cell>,
    /// What it did.
    pub counters: QueueCounters,
}

impl GuestTx {
    /// A queue just handed over by its session; `features` were negotiated, and `counters` go on
    /// from earlier sessions.
    ///
    /// # Errors
    /// If the call fd cannot be signalled.
    pub fn new(
        port: PortNo,
        index: u16,
        attach: Attach,
        bell: Bell,
        counters: QueueCounters,
        features: u64,
    ) -> io::Result<GuestTx> {
        let cell = attach.cell.clone();
        let (mut ring, kick, line) = Line::of(attach, bell)?;
        ring.disarm();
        Ok(GuestTx {
            ring,
            index,
            port,
            kick,
            line,
            may_send: features::may_send(features),
            cell,
            counters,
        })
    }

    /// Give back the ring, for its session, and the bell, which signals nothing any more.
    #[must_use]
    pub fn into_parts(mut self) -> (Ring, Option<Bell>) {
        fence();
        self.settle();
        (self.ring, self.line.into_bell())
    }

    /// Apply a change that needs no drain.
    pub fn update(&mut self, update: Update) {
        self.line.update(update);
    }

    /// Number of the queue in its device.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> PortNo {
        self.port
    }

    /// Readable when the driver kicked.
    #[must_use]
    pub fn kick(&self) -> Option<BorrowedFd<'_>> {
        self.kick.as_ref().map(AsFd::as_fd)
    }

    /// Forward a burst; gives its size. [`GuestTx::settle`] is to be called before the worker does
    /// anything else.
    #[inline]
    pub fn visit(&mut self, switch: &mut Switch, burst: &mut Burst, now: Moment) -> usize {
        let frames = self.ring.pop(burst, BURST);
        if frames == 0 {
            return 0;
        }
        // The first copy can be seen before the ring says that the frames were taken; whoever comes
        // after a crash in between must not send them twice.
        if let Some(cell) = &self.cell {
            cell.set_busy(true);
            cell.begin(self.ring.next_avail());
        }
        let ingress = Ingress {
            port: self.port,
            may_send: self.may_send,
            trusted: false,
            counters: &mut self.counters,
        };
        if self.line.enabled {
            let mem = self.ring.mem();
            switch.forward(Source::Guest { mem, burst }, ingress, now);
        } else {
            // vhost-user, "Ring states": a network device drains a ring that is not enabled.
            switch.discard_disabled(&ingress, frames);
        }
        if burst.has_writable() {
            let why = "writable buffer in a transmit queue";
            self.ring.latch(Violation::Request(why));
        }
        self.ring.put_all(burst.ids().map(|id| (id, 0)));
        self.ring.expose();
        if let Some(cell) = &self.cell {
            cell.set_busy(false);
        }
        frames
    }

    /// Notify the driver of what was taken of late, if it wants that; the caller passed a
    /// [`fence`] since.
    #[inline]
    pub fn settle(&mut self) {
        if self.ring.owes_call() {
            self.counters.notified += 1;
            self.line.notify();
        } else {
            self.counters.suppressed += 1;
        }
    }

    /// Ask for kicks; true if there is work already.
    #[must_use]
    pub fn arm(&mut self) -> bool {
        self.ring.arm()
    }

    /// No kicks while we poll.
    pub fn disarm(&mut self) {
        self.ring.disarm();
    }

    /// True if the guest's memory was truncated; the session is hung up then.
    #[must_use]
    pub fn check_poison(&self) -> bool {
        self.line.check_poison(&self.ring)
    }

    /// Why the ring broke, the first time this is asked after it did; the front-end is told too.
    #[inline]
    pub fn newly_broken(&mut self) -> Option<Violation> {
        self.line.newly_broken(&self.ring)
    }

    /// Bring the counters up to date.
    pub fn report(&mut self) -> &QueueCounters {
        self.counters.next_avail = self.ring.next_avail().into();
        self.counters.next_used = self.ring.next_used().into();
        &self.counters
    }
}
