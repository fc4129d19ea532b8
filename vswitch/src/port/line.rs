//! What a guest's queue has besides its ring: eventfds, and the way to end the session.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use towpath_common::bell::Bell;
use towpath_common::ring::{Ring, Violation};
use towpath_common::session::{Alarm, Attach, Update};

/// The line to a queue's driver and to its front-end.
#[derive(Debug)]
pub(super) struct Line {
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    bell: Bell,
    /// Whether the front-end enabled the queue.
    pub(super) enabled: bool,
    alarm: Arc<Alarm>,
    told_broken: bool,
}

impl Line {
    /// The parts of what a session hands over: its ring, the kick fd, and the line.
    ///
    /// # Errors
    /// If the call fd cannot be signalled.
    pub(super) fn of(attach: Attach, mut bell: Bell) -> io::Result<(Ring, Option<OwnedFd>, Line)> {
        let Attach {
            ring,
            kick,
            call,
            err,
            enabled,
            alarm,
            cell: _,
        } = attach;
        bell.aim(call.as_ref().map(AsFd::as_fd))?;
        // A predecessor may have died between publishing and notifying; the driver would wait for
        // ever. One interrupt too many is harmless.
        bell.ring();
        let line = Line {
            call,
            err,
            bell,
            enabled,
            alarm,
            told_broken: false,
        };
        Ok((ring, kick, line))
    }

    /// The bell, which signals nothing any more.
    #[must_use]
    pub(super) fn into_bell(mut self) -> Option<Bell> {
        self.bell.aim(None).is_ok().then_some(self.bell)
    }

    /// Apply a change that needs no drain.
    pub(super) fn update(&mut self, update: Update) {
        match update {
            Update::Call(fd) => {
                self.call = fd;
                // The session took nothing but an eventfd; without one, the driver polls.
                let _ = self.bell.aim(self.call.as_ref().map(AsFd::as_fd));
                // The driver may have missed what was announced on the old one.
                self.bell.ring();
            }
            Update::Err(fd) => self.err = fd,
            Update::Enabled(enabled) => self.enabled = enabled,
        }
    }

    /// Notify the driver.
    #[inline]
    pub(super) fn notify(&mut self) {
        self.bell.ring();
    }

    /// Why `ring` broke, the first time this is asked after it did; the front-end is told too.
    #[inline]
    pub(super) fn newly_broken(&mut self, ring: &Ring) -> Option<Violation> {
        let violation = ring.broken()?;
        if std::mem::replace(&mut self.told_broken, true) {
            return None;
        }
        if let Some(err) = &self.err
            && self.bell.aim(Some(err.as_fd())).is_ok()
        {
            self.bell.ring();
        }
        let _ = self.bell.aim(self.call.as_ref().map(AsFd::as_fd));
        Some(violation)
    }

    /// True if the guest's memory was truncated; the session is hung up then.
    #[must_use]
    pub(super) fn check_poison(&self, ring: &Ring) -> bool {
        let poisoned = ring.mem().poisoned();
        if poisoned {
            self.alarm.raise();
        }
        poisoned
    }
}
