//! The life of a daemon once everything is set up: READY, the API, signals, the watchdog, and the
//! end.
//!
//! ```text
//! READY ─▶ API ─┬─ SIGHUP: Hooks::reload
//!               └─ SIGTERM, SIGINT: STOPPING, Hooks::drain, end; a second one ends at once
//! ```
//!
//! All of it runs on the calling thread; what blocks runs beside it, so that meanwhile the API
//! answers, signals arrive and the watchdog is fed.

use std::io;
use std::path::Path;

use axum::Router;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::ControlSocket;
use super::server::{self, Patience};
use crate::logging::events;
use crate::notify::{self, Signal, Signals, Watchdog};

/// For a reload, and a request to the API beside it.
const BLOCKING_THREADS: usize = 2;

/// How a life may end badly.
#[derive(Debug, thiserror::Error)]
pub enum LifeError {
    /// The control thread could not be set up.
    #[error("cannot set up the control thread: {0}")]
    Runtime(#[from] io::Error),
    /// A second signal ended the drain.
    #[error("stopped by a second signal before everything in flight was completed")]
    Impatient,
}

/// What the daemon does when told.
pub struct Hooks {
    /// Reads the configuration again. May block; overlapping calls are the daemon's to refuse.
    pub reload: Box<dyn Fn() + Send + Sync>,
    /// Completes what is in flight and stops. Blocks.
    pub drain: Box<dyn FnOnce() + Send>,
    /// Whether every worker has moved since the last call. Must not block.
    pub progress: Box<dyn FnMut() -> bool + Send>,
    /// Called when systemd and the log have to know that everything is served; gives the sentence.
    pub ready: Box<dyn Fn(&Path) -> String + Send>,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hooks")
    }
}

/// A [`Hooks::progress`] made from the turns that every worker's loop has taken so far.
pub fn progress(mut steps: impl FnMut() -> Vec<u64>) -> impl FnMut() -> bool {
    let mut before: Vec<u64> = Vec::new();
    move || {
        let now = steps();
        let moved = now.iter().zip(&before).all(|(now, before)| now > before);
        before = now;
        moved
    }
}

/// Serves `routes` on `socket` until a signal says stop and the drain is over.
///
/// # Errors
/// [`LifeError`].
pub fn live(socket: &ControlSocket, routes: Router, hooks: Hooks) -> Result<(), LifeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    let outcome = runtime.block_on(run(socket, routes, hooks));
    runtime.shutdown_background();
    outcome
}

async fn run(socket: &ControlSocket, routes: Router, hooks: Hooks) -> Result<(), LifeError> {
    let Hooks {
        reload,
        drain,
        progress,
        ready,
    } = hooks;
    let reload = std::sync::Arc::new(reload);
    let mut signals = Signals::new()?;
    let (listener, access) = (socket.listener()?, socket.access());
    let api = server::serve_guarded(listener, routes, Patience::default(), access);
    tokio::pin!(api);
    tokio::spawn(Watchdog::new(progress).run());
    notify::ready(&ready(socket.path()));
    loop {
        tokio::select! {
            ended = &mut api => ended?,
            signal = signals.next() => match signal {
                Signal::Reload => {
                    let reload = std::sync::Arc::clone(&reload);
                    drop(spawn_blocking(move || reload()));
                }
                Signal::Stop => break,
            },
        }
    }
    notify::stopping();
    tracing::info!(name: events::STOPPING, "stopping: completing what is in flight");
    let mut drained = beside(drain)?;
    loop {
        tokio::select! {
            // The API goes on answering while what is in flight is completed.
            ended = &mut api => ended?,
            done = &mut drained => {
                done.map_err(|_| io::Error::other("the drain panicked"))?;
                tracing::info!(name: events::STOPPED, "stopped");
                return Ok(());
            }
            signal = signals.next() => if signal == Signal::Stop {
                return Err(LifeError::Impatient);
            },
        }
    }
}

/// Do it on a thread that ends with it. One of a pool's would be woken for its end, and could wait
/// for a processor on which a guest polls, and all guests with it: a successor begins when the
/// process has ended.
fn beside(work: Box<dyn FnOnce() + Send>) -> io::Result<oneshot::Receiver<()>> {
    let (done, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name("drain".to_owned());
    thread.spawn(move || {
        work();
        // Nobody listens if a second signal came.
        let _ = done.send(());
    })?;
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_means_every_worker() {
        let looks = [vec![0, 0], vec![0, 0], vec![1, 0], vec![2, 1]];
        let mut looks = looks.into_iter();
        let mut progress = progress(move || looks.next().unwrap_or_default());
        assert!(progress(), "nothing to compare with yet");
        assert!(!progress(), "nobody moved");
        assert!(!progress(), "one of two moved");
        assert!(progress());
    }
}
