//! Going on with what a predecessor of this process left: its connection, and all that was said on
//! it. Runs on the thread that will serve the session, so many are restored at the same time.

use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use tracing::{error, info, warn};

use crate::logging::events;
use vhost::vhost_user::BackendReqHandler;

use super::adopt::adopt;
use super::kept::{Kept, Left, STRIKES};
use super::serve::{Shared, locked};
use super::state::{Session, lock};
use super::{Alarm, Device};
use crate::keep::{Journal, KeepError, Kept as Document, Ticket};

/// How long a session that a process crashed over is served before the next such one is restored:
/// if it is the one at fault it shows by then, and the next one is not blamed for it.
const PROBATION: Duration = Duration::from_millis(20);

/// A predecessor's session, and the handler for its connection.
type Restored<D> = (BackendReqHandler<Mutex<Session<D>>>, Arc<Mutex<Session<D>>>);

impl Shared {
    /// Go on with the session that a predecessor left.
    pub(super) fn resume<D: Device + std::fmt::Debug>(&self, left: Left, device: &Arc<D>) {
        let Left {
            mut place,
            mut kept,
            ticket,
        } = left;
        let mut ticket = Some(ticket);
        let name = device.name().to_owned();
        let parts = kept.need("connection").and_then(|connection| {
            let journal = Journal::adopt(kept.need("journal")?, device.max_queues())?;
            Ok((UnixStream::from(connection), journal))
        });
        let (stream, journal) = match parts {
            Ok(parts) => parts,
            Err(error) => {
                lost(&name, &error);
                place.clear();
                return;
            }
        };
        let Some((alarm, peek)) = self.begin(&stream, device) else {
            return;
        };
        let suspect = match self.quarantine(&name, &stream, &journal, &mut ticket) {
            ControlFlow::Continue(suspect) => suspect,
            ControlFlow::Break(Verdict::Leave) => return,
            ControlFlow::Break(Verdict::Over) => {
                place.clear();
                self.end(None);
                return;
            }
        };
        if suspect {
            ticket = None;
        }
        let turn = suspect.then(|| {
            // The others first: what comes of this one is not to find them half restored.
            let _ = self.keeper.muster().wait();
            self.keeper.turn()
        });
        let restored = if journal.was_handling() {
            place.clear();
            let why = "the process ended while it handled a message".to_owned();
            Err(KeepError::Unfit(why))
        } else {
            let keeping = Kept::new(place, &stream, Some(journal), device.max_queues());
            keeping.and_then(|keeping| {
                let keeping = match ticket {
                    Some(ticket) => keeping.awaited(ticket),
                    None => keeping,
                };
                self.restore(keeping, kept, device, &stream, alarm)
            })
        };
        if turn.is_some() && restored.is_ok() {
            std::thread::sleep(PROBATION);
        }
        drop(turn);
        match restored {
            Ok((handler, session)) => {
                info!(name: events::SESSION_RESUMED, device = name,
                    "the session of a predecessor goes on");
                lock(&self.status).resumed += 1;
                self.run(handler, &peek, &session);
            }
            Err(error) => {
                lost(&name, &error);
                // Whoever else holds the connection, the front-end is to know.
                let _ = stream.shutdown(std::net::Shutdown::Both);
                self.end(Some(error.to_string()));
            }
        }
    }

    fn restore<D: Device + std::fmt::Debug>(
        &self,
        keeping: Kept,
        kept: Document,
        device: &Arc<D>,
        stream: &UnixStream,
        alarm: Arc<Alarm>,
    ) -> Result<Restored<D>, KeepError> {
        let status = Arc::clone(&self.status);
        keeping.restores();
        let session = Session::restore(Arc::clone(device), alarm, status, kept, Some(keeping))?;
        let session = Arc::new(Mutex::new(session));
        let adopted = adopt(stream, &session);
        let mut locked = locked(&session);
        match adopted {
            Ok(handler) => {
                locked.settle();
                drop(locked);
                Ok((handler, session))
            }
            Err(error) => {
                locked.forget();
                locked.end();
                Err(error)
            }
        }
    }

    /// Hold a session that ended too many processes, until it is released, or over. One that may
    /// have ended any is a suspect: others do not wait for it, and it is restored alone.
    fn quarantine(
        &self,
        name: &str,
        stream: &UnixStream,
        journal: &Journal,
        ticket: &mut Option<Ticket>,
    ) -> ControlFlow<Verdict, bool> {
        let times = journal.begin(self.keeper.crashed());
        if times < STRIKES {
            return ControlFlow::Continue(times > 0);
        }
        journal.settle();
        // Nobody waits for it.
        *ticket = None;
        let why = format!(
            "the daemon crashed {times} times over this session, which is quarantined: its \
             requests wait until it is released, or until the front-end goes"
        );
        error!(name: events::QUARANTINED, device = name, times, "{why}");
        {
            let mut status = lock(&self.status);
            status.quarantined = true;
            status.last_error = Some(why);
        }
        loop {
            let mut fds = [
                PollFd::new(&self.bell, PollFlags::IN),
                PollFd::new(stream, PollFlags::RDHUP),
            ];
            let polled = poll(&mut fds, None);
            if self.release.swap(false, Ordering::SeqCst) {
                info!(name: events::QUARANTINE_ENDED, device = name, "the session is tried again");
                // The bell is read, or it would ring for ever.
                let _ = rustix::io::read(&self.bell, &mut [0; 8]);
                lock(&self.status).quarantined = false;
                journal.forgive();
                return ControlFlow::Continue(true);
            }
            if self.leave.load(Ordering::SeqCst) {
                return ControlFlow::Break(Verdict::Leave);
            }
            let gone = polled.is_ok() && fds.get(1).is_some_and(|f| !f.revents().is_empty());
            if self.stopping() || gone {
                return ControlFlow::Break(Verdict::Over);
            }
        }
    }
}

/// What became of a session in quarantine.
enum Verdict {
    /// It is left to a successor.
    Leave,
    /// It is over.
    Over,
}

/// A session of a predecessor ends here.
fn lost(device: &str, error: &dyn std::fmt::Display) {
    warn!(name: events::SESSION_LOST, device, %error, "the session of a predecessor is given up");
}
