//! The conversation with the service manager: readiness, status, watchdog one way, signals the
//! other. Without systemd (no `NOTIFY_SOCKET`) every message is a silent no-op.

use std::io;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

/// The daemon serves; `status` is the line that `systemctl status` shows.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A new line for `systemctl status`.
pub fn status(status: &str) {
    send(&[NotifyState::Status(status)]);
}

/// A reload has begun; [`ready`] ends it. The time stamp is what systemd 253 and later insist on.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot read the clock for the service manager"),
    }
}

/// The daemon is on its way out.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell the service manager {states:?}");
    }
}

/// Feeds systemd's watchdog for as long as the workers get on with their work.
///
/// `progress` is asked at half the watchdog's period and says whether *every* worker has moved
/// since it was asked last. A worker that hangs therefore gets the daemon restarted even though
/// this thread is well.
#[derive(Debug)]
pub struct Watchdog<F> {
    period: Option<Duration>,
    progress: F,
}

impl<F: FnMut() -> bool> Watchdog<F> {
    /// A watchdog as the service manager ordered it (`WATCHDOG_USEC`), or an idle one.
    pub fn new(progress: F) -> Self {
        Self {
            period: sd_notify::watchdog_enabled().map(|whole| whole / 2),
            progress,
        }
    }

    /// Runs for ever. Must run inside a tokio runtime.
    pub async fn run(mut self) {
        let Some(period) = self.period.filter(|period| !period.is_zero()) else {
            return std::future::pending().await;
        };
        let mut ticks = interval(period);
        // After a stall, one question: asked twice at once, nobody would have moved in between.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.tick();
        }
    }

    fn tick(&mut self) {
        if (self.progress)() {
            send(&[NotifyState::Watchdog]);
        } else {
            tracing::error!(name: crate::logging::events::WORKER_STALLED,
                "a worker makes no progress: the watchdog is not fed");
        }
    }
}

/// What the outside wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: finish what is in flight and exit.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// The signals a daemon listens to, from the moment this is made.
#[derive(Debug)]
pub struct Signals {
    terminate: Stream,
    interrupt: Stream,
    hangup: Stream,
}

impl Signals {
    /// Installs the handlers. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Stop,
            _ = self.interrupt.recv() => Signal::Stop,
            _ = self.hangup.recv() => Signal::Reload,
        }
    }
}
