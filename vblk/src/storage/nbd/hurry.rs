//! Stopping a disk whose server does not answer.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, mpsc};
use std::time::Duration;

use super::{Desk, Shared};

/// How long a server has to answer once its disk is being stopped.
const GRACE: Duration = Duration::from_secs(5);

/// As long as this lives, requests may wait for their server only so long.
#[derive(Debug)]
pub struct Hurry {
    shared: Arc<Shared>,
    /// Its end ends the thread that waits.
    _stop: mpsc::Sender<()>,
}

impl Shared {
    /// Requests that take longer than a grace from now on fail, until the guard is dropped.
    #[must_use]
    pub fn hurry(self: &Arc<Self>) -> Hurry {
        self.hurry_after(GRACE)
    }

    pub(crate) fn hurry_after(self: &Arc<Self>, grace: Duration) -> Hurry {
        let (stop, stopped) = mpsc::channel();
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name("nbd-hurry".to_owned());
        let waits = thread.spawn(move || {
            if stopped.recv_timeout(grace) == Err(mpsc::RecvTimeoutError::Timeout) {
                shared.give_up();
                // Until it is stopped, so that nothing is given up that was begun later.
                let _ = stopped.recv();
                shared.given_up.store(false, Ordering::Release);
            }
        });
        if waits.is_err() {
            // No thread to wait with: do not wait.
            self.give_up();
        }
        Hurry {
            shared: Arc::clone(self),
            _stop: stop,
        }
    }

    fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        self.ring();
    }

    /// Make the bells of all clients readable.
    pub(super) fn ring(&self) {
        let desks = self.desks.lock().unwrap_or_else(PoisonError::into_inner);
        desks
            .iter()
            .filter_map(std::sync::Weak::upgrade)
            .for_each(|d| d.ring());
    }

    /// True if requests fail rather than wait.
    #[must_use]
    pub(crate) fn has_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    pub(super) fn introduce(&self, desk: &Arc<Desk>) {
        let mut desks = self.desks.lock().unwrap_or_else(PoisonError::into_inner);
        desks.retain(|d| d.strong_count() > 0);
        desks.push(Arc::downgrade(desk));
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        self.shared.given_up.store(false, Ordering::Release);
    }
}
