//! A listening socket that a predecessor had and that cannot be had now: its file was removed, and
//! its directory with it, or somebody else listens there. The session it had accepted needs none,
//! and goes on; until it can be bound again, only new front-ends are kept out.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{error, info};

use super::endpoint::{Mode, bind, keep};
use super::serve::{RETRY, Shared};
use crate::logging::events::{SOCKET_BACK, SOCKET_LOST};

/// Whether a server has no socket to listen on, and why.
#[derive(Debug)]
pub(super) struct Deaf(Mutex<State>);

#[derive(Debug)]
struct State {
    why: Option<String>,
    /// Bound at last, and not in use yet.
    late: Option<UnixListener>,
}

impl Deaf {
    pub(super) fn of(why: Option<String>) -> Deaf {
        Deaf(Mutex::new(State { why, late: None }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it has none; `None` if it has one, or needs none.
    pub(super) fn why(&self) -> Option<String> {
        self.state().why.clone()
    }
}

impl Shared {
    /// Try to listen at `path` until that is possible, on a thread of its own: the session may go
    /// on for months.
    pub(super) fn listen_later(
        shared: &Arc<Shared>,
        device: &str,
        path: &Path,
    ) -> std::io::Result<()> {
        let why = shared.deaf.why().unwrap_or_default();
        error!(name: SOCKET_LOST, device, why, "no front-end can connect");
        let (shared, device, path) = (Arc::clone(shared), device.to_owned(), path.to_owned());
        let thread = std::thread::Builder::new().name("listen".to_owned());
        let spawned = thread.spawn(move || {
            let mut pause = RETRY[0];
            while !shared.stopping() {
                shared.wait(None, Some(pause));
                pause = (pause * 2).min(RETRY[1]);
                match bind(&path) {
                    Ok(listener) => return shared.hear(listener, &device, &path),
                    Err(error) => shared.still_deaf(&error.to_string(), &device),
                }
            }
        });
        spawned.map(drop)
    }

    fn hear(&self, listener: UnixListener, device: &str, path: &Path) {
        let mut state = self.deaf.state();
        if self.stopping() {
            drop(listener);
            let _ = std::fs::remove_file(path);
            return;
        }
        if let Some(place) = self.place().as_mut() {
            keep(place, path, Some(&listener));
        }
        state.late = Some(listener);
        state.why = None;
        info!(name: SOCKET_BACK, device, "front-ends can connect again");
    }

    fn still_deaf(&self, why: &str, device: &str) {
        let mut state = self.deaf.state();
        if state.why.as_deref() != Some(why) {
            error!(name: SOCKET_LOST, device, why, "no front-end can connect");
            state.why = Some(why.to_owned());
        }
    }

    /// The socket that could not be bound at first, as soon as it is; `None` if the server is to
    /// stop, or is to connect.
    pub(super) fn late_listener(&self, mode: Mode) -> Option<UnixListener> {
        while mode == Mode::Server && !self.stopping() {
            if let Some(listener) = self.deaf.state().late.take() {
                return Some(listener);
            }
            self.wait(None, Some(RETRY[0]));
        }
        None
    }
}
