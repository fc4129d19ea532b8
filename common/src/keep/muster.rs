//! Sessions that a predecessor left go on together: none sends to another that is not back yet.
//!
//! Each holds a [`Ticket`] until what it receives with is in place, or until it is clear that it
//! will not be. Whoever is about to send waits for all of them, but not for long: a session that
//! takes its time (a large guest, storage that hangs) costs the others that time once, no more.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Longest wait for the others. A session takes milliseconds to come back.
const PATIENCE: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
struct Inner {
    /// Tickets that are held.
    awaited: Mutex<usize>,
    all: Condvar,
}

/// The sessions of a process that are coming back.
#[derive(Debug, Clone, Default)]
pub struct Muster(Arc<Inner>);

/// One session that is coming back; dropped when it has, or will not.
#[derive(Debug)]
pub struct Ticket(Muster);

impl Muster {
    /// One more is awaited.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        *self.awaited() += 1;
        Ticket(self.clone())
    }

    /// Wait until nobody is awaited; false if that takes too long.
    #[must_use]
    pub fn wait(&self) -> bool {
        let all = &self.0.all;
        let waited = all.wait_timeout_while(self.awaited(), PATIENCE, |n| *n > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }

    /// Held for a number only.
    fn awaited(&self) -> std::sync::MutexGuard<'_, usize> {
        let awaited = &self.0.awaited;
        awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// It is back; wait for the others. False if that takes too long.
    #[must_use]
    pub fn meet(self) -> bool {
        let muster = self.0.clone();
        drop(self);
        muster.wait()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut awaited = self.0.awaited();
        *awaited = awaited.saturating_sub(1);
        if *awaited == 0 {
            self.0.0.all.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    #[test]
    fn all_meet_before_anybody_goes_on() {
        let muster = Muster::default();
        assert!(muster.wait(), "nobody is awaited");
        let back = AtomicU32::new(0);
        let tickets: Vec<Ticket> = (0..5).map(|_| muster.ticket()).collect();
        std::thread::scope(|scope| {
            for ticket in tickets {
                scope.spawn(|| {
                    back.fetch_add(1, SeqCst);
                    assert!(ticket.meet());
                    assert_eq!(back.load(SeqCst), 5);
                });
            }
        });
    }

    #[test]
    fn one_that_does_not_come_is_not_waited_for_for_ever() {
        let muster = Muster::default();
        let (slow, quick, lost) = (muster.ticket(), muster.ticket(), muster.ticket());
        drop(lost);
        assert!(!quick.meet(), "one is missing");
        drop(slow);
        assert!(muster.wait());
    }
}
