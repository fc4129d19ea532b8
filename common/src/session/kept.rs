//! A session that is kept while it runs, so that a successor of this process goes on with it.
//!
//! Its record is given away after each message that changed something, before the answer to it is
//! sent: what a front-end was told, a successor knows. A process that dies while it handles a
//! message leaves a mark in the journal. Nobody knows then how much of it the front-end has seen,
//! so the successor hangs up, and the front-end begins anew. Such moments are microseconds, and
//! rings at work are not among them.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::Device;
use super::error::SessionError;
use super::state::Session;
use crate::chain::{BURST, Burst};
use crate::keep::{Cell, Journal, KeepError, Keeper, Kept as Document, Place, Settings, Ticket};
use crate::ring::Ring;

/// Crashes of a process over a session after which it is quarantined.
pub(super) const STRIKES: u64 = 3;
/// A session that was served for so long since the last one begins anew.
const FORGIVEN: Duration = Duration::from_secs(600);

/// Who keeps the sessions of a server, and what a predecessor left of the last one.
#[derive(Debug)]
pub struct Keeping {
    pub(super) keeper: Keeper,
    pub(super) left: Option<Left>,
}

/// What a predecessor left of a session.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) place: Place,
    pub(super) kept: Document,
    /// Others wait for it before they send.
    pub(super) ticket: Ticket,
}

impl Keeping {
    /// Nobody: sessions end with the process.
    #[must_use]
    pub fn nobody() -> Keeping {
        let keeper = Keeper::nobody();
        Keeping { keeper, left: None }
    }

    /// `keeper`, with what a predecessor left with it of the session of device `name`.
    #[must_use]
    pub fn with(keeper: &Keeper, name: &str) -> Keeping {
        let left = keeper.claim(crate::keep::SESSION, name);
        let left = left.map(|(place, kept)| Left {
            place,
            kept,
            ticket: keeper.muster().ticket(),
        });
        Keeping {
            left,
            keeper: keeper.clone(),
        }
    }
}

/// What keeps one session.
#[derive(Debug)]
pub struct Kept {
    place: Place,
    connection: UnixStream,
    journal: Journal,
    /// What the device was told, as kept last.
    settings: Settings,
    /// Served since then.
    since: Instant,
    /// The last attempt to keep it failed.
    failing: bool,
    /// It is not back yet, and others wait for it.
    ticket: Option<Ticket>,
}

impl Kept {
    /// Keep the session of a device with `vrings` vrings on `connection`; `journal` is the
    /// predecessor's.
    ///
    /// # Errors
    /// If there are no file descriptors left.
    pub fn new(
        place: Place,
        connection: &UnixStream,
        journal: Option<Journal>,
        vrings: u16,
    ) -> Result<Kept, KeepError> {
        Ok(Kept {
            place,
            connection: connection.try_clone()?,
            journal: match journal {
                Some(journal) => journal,
                None => Journal::create(vrings)?,
            },
            settings: Settings::default(),
            since: Instant::now(),
            failing: false,
            ticket: None,
        })
    }

    /// What failed, as far as the record does not say it.
    pub(super) fn failed(&self) -> u64 {
        self.journal.failed()
    }

    /// It is being restored, until it settles.
    pub(super) fn restores(&self) {
        self.journal.restore();
    }

    /// It is coming back; others wait until it is.
    pub(super) fn awaited(mut self, ticket: Ticket) -> Kept {
        self.ticket = Some(ticket);
        self
    }
}

impl<D: Device> Session<D> {
    /// Keep this session from now on.
    pub fn keep_in(&mut self, keeping: Kept) {
        self.keeping = Some(keeping);
        self.commit();
    }

    /// Change something, and let whoever keeps the session know.
    pub(super) fn changed<T>(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let result = change(self);
        self.commit();
        result
    }

    /// Give the record as it is now to whoever keeps it.
    pub fn commit(&mut self) {
        let Some(mut keeping) = self.keeping.take() else {
            return;
        };
        // Read first: what changes meanwhile is seen by the next refresh.
        let settings = self.device.settings();
        if keeping.place.keeps() {
            let kept = self.keep().and_then(|mut kept| {
                kept.keep("connection", &keeping.connection)?;
                kept.keep("journal", keeping.journal.file())?;
                keeping.place.put(&kept)
            });
            let failed = kept.is_err();
            if let Err(error) = kept
                && !keeping.failing
            {
                let device = self.device.name();
                warn!(name: crate::logging::events::SESSION_NOT_KEPT, device, %error,
                    "a restart will end this session: it cannot be kept");
            }
            keeping.failing = failed;
            if !failed && settings.failed == 0 {
                keeping.journal.forget_failed();
            }
            keeping.settings = settings;
        }
        self.keeping = Some(keeping);
    }

    /// Keep what the device was told by other ways than messages since it was kept last.
    pub(super) fn refresh(&mut self) {
        if let Some(keeping) = &self.keeping
            && keeping.since.elapsed() > FORGIVEN
        {
            keeping.journal.forgive();
        }
        let settings = self.device.settings();
        if self
            .keeping
            .as_ref()
            .is_some_and(|k| k.settings != settings)
        {
            self.commit();
        }
    }

    /// Whether a successor finds it as it is.
    pub(super) fn is_kept(&self) -> bool {
        let kept = |k: &Kept| k.place.keeps() && !k.failing;
        self.keeping.as_ref().is_some_and(kept)
    }

    /// A message is being handled, or is not any more.
    pub(super) fn set_handling(&self, handling: bool) {
        if let Some(keeping) = &self.keeping {
            keeping.journal.set_handling(handling);
        }
    }

    /// The session is over, and not to be gone on with.
    pub(super) fn forget(&mut self) {
        if let Some(keeping) = &mut self.keeping {
            keeping.place.clear();
        }
        self.keeping = None;
    }

    /// The session is left to a successor, with nothing in flight but what its device holds back.
    pub(super) fn leave(&mut self) {
        for index in 0..self.device.max_queues() {
            // Only an index out of range could fail, and these are not.
            let _ = self.leave_one(index);
        }
        self.commit();
    }

    fn leave_one(&mut self, index: u16) -> Result<(), SessionError> {
        if self.vring(index)?.attached {
            let ring = self.device.leave(index);
            let vring = self.vring(index)?;
            vring.attached = false;
            // Where there is something in flight, the table knows where the ring stands.
            let drained = ring.filter(|ring| ring.in_flight() == 0);
            vring.base = drained.map(|ring| ring.next_avail());
        }
        Ok(())
    }

    /// It was restored.
    pub(super) fn settle(&mut self) {
        if let Some(keeping) = &self.keeping {
            keeping.journal.settle();
        }
        self.commit();
    }

    /// Rings are given to the device after a predecessor had them: first those that others send to,
    /// then, once all sessions of this process have got so far, those that send.
    pub(super) fn resume_in_order(&mut self) -> Result<(), SessionError> {
        let queues = 0..self.device.max_queues();
        let (last, first): (Vec<u16>, Vec<u16>) =
            queues.partition(|queue| self.device.sends_to_others(*queue));
        // One that cannot run does not keep the others from running.
        let begun = first.into_iter().map(|queue| self.resume_one(queue));
        let begun = begun.fold(Ok(()), Result::and);
        let ticket = self.keeping.as_mut().and_then(|k| k.ticket.take());
        if !last.is_empty() && ticket.is_some_and(|ticket| !ticket.meet()) {
            let device = self.device.name();
            warn!(
                device,
                "other sessions are not back yet: what is sent to them is lost"
            );
        }
        let rest = last.into_iter().map(|queue| self.resume_one(queue));
        begun.and(rest.fold(Ok(()), Result::and))
    }

    pub(super) fn cell(&self, vring: u16) -> Option<Cell> {
        self.keeping.as_ref()?.journal.cell(vring)
    }
}

/// A ring begins: its word says nothing yet. If a predecessor had the ring, what that may have
/// carried out although it is not in the used ring is given up: those chains are used, unread.
pub(super) fn take_up(cell: &Cell, ring: &mut Ring, restoring: bool) {
    let begun = cell.begun().filter(|_| restoring);
    let lost = begun.map_or(0, |to| give_up(ring, to));
    if lost > 0 {
        info!(lost, "chains that a predecessor had begun are given up");
    }
    cell.clear();
}

fn give_up(ring: &mut Ring, to: u16) -> u16 {
    // The front-end's in-flight table, if there is one, has them first.
    let owed = to.wrapping_sub(ring.next_used());
    if owed > ring.size() {
        return 0; // The word is older than the ring.
    }
    let mut burst = Burst::new();
    let mut left = owed;
    while left > 0 {
        let popped = ring.pop(&mut burst, usize::from(left).min(BURST));
        let popped = u16::try_from(popped).unwrap_or(0).min(left);
        if popped == 0 {
            break;
        }
        ring.put_all(burst.ids().map(|id| (id, 0)));
        left -= popped;
    }
    // The driver is called when the ring is attached.
    let _ = ring.publish();
    owed - left
}
