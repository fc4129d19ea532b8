//! What tells a front-end of changes from outside its session's thread.

use std::sync::{Arc, Mutex, PoisonError};

use super::Device;
use super::serve::Shared;
use super::state::Session;

/// A session that can be told something, whatever its device.
pub(super) trait Notify: Send + std::fmt::Debug {
    fn config_changed(&self) -> bool;
    fn refresh(&self);
}

impl<D: Device + std::fmt::Debug> Notify for Arc<Mutex<Session<D>>> {
    fn config_changed(&self) -> bool {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .notify_config_change()
    }

    fn refresh(&self) {
        // One that is being talked to is kept after that.
        if let Ok(mut session) = self.try_lock() {
            session.refresh();
        }
    }
}

/// Tells the front-end of a [`super::Server`] what changed.
#[derive(Debug)]
pub struct Notifier(Arc<Shared>);

impl Notifier {
    pub(super) fn of(shared: &Arc<Shared>) -> Notifier {
        Notifier(Arc::clone(shared))
    }

    /// As [`super::Server::config_changed`].
    #[must_use]
    pub fn config_changed(&self) -> bool {
        let notify = &self.0.notify;
        let notify = notify.lock().unwrap_or_else(PoisonError::into_inner);
        notify.as_ref().is_some_and(|n| n.config_changed())
    }
}
