//! `vswitch serve`: from a command line to a daemon, and to its end.
//!
//! ```text
//! load ─▶ log ─▶ claim the control socket ─▶ start workers ─▶ apply the configuration ─▶ READY
//!                                                                                        │
//!            SIGHUP, POST /v1/reload: load, diff, apply, or change nothing           ◀───┤
//!            POST /v1/change: edit what is in force, apply, perhaps write the file   ◀───┤
//!            SIGTERM, SIGINT: STOPPING, drain, exit                                  ◀───┘
//! ```
//!
//! What a predecessor left with the service manager is taken first of all ([`Keeper`]): sessions,
//! uplinks' interfaces, addresses and counters go on when the configuration is applied.
//!
//! Nothing is touched before everything is validated, and the control socket is claimed first, so
//! that a second daemon by mistake ends there.

mod keep;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Once, TryLockError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use towpath_common::config::{ConfigError, latest};
use towpath_common::control::life::{self, Hooks, LifeError, progress};
use towpath_common::control::{Answer, ControlSocket, SocketError};
use towpath_common::keep::Keeper;
use towpath_common::limits::raise_open_files;
use towpath_common::logging::events::{RELOAD_REFUSED, RELOADED, SERVING};
use towpath_common::logging::{self, LogError};
use towpath_common::notify;

use crate::config::{Change, Config, Diff, Mirror, Sources};
use crate::control;
use crate::events;
use crate::sandbox;
use crate::service::{Report, Service, ServiceError};

/// How often uplinks that are down are tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Why the daemon did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Logging could not start.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The control socket could not be claimed.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The data plane refused.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The daemon did not run or end as it should.
    #[error(transparent)]
    Life(#[from] LifeError),
}

/// The running daemon as its control plane sees it.
pub struct Daemon {
    sources: Sources,
    service: Arc<dyn Service>,
    /// What is applied now; locked for as long as a reload or a change takes.
    config: Mutex<Config>,
    started: Instant,
    /// Uplinks that are down are tried again.
    retrying: Once,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Serves until a signal says stop. `start` starts the workers; the configuration is applied
/// afterwards.
///
/// # Errors
/// [`ServeError`]. Before READY, nothing keeps running after an error.
pub fn serve(
    sources: Sources,
    start: impl FnOnce(&Config, Keeper) -> Result<Arc<dyn Service>, ServiceError>,
) -> Result<(), ServeError> {
    let started = Instant::now();
    let config = Config::load(&sources)?;
    logging::init("vswitch", config.daemon.log.as_ref(), events::EVENTS)?;
    raise_open_files();
    sandbox::prepare(&config);
    let Some(keeper) = Keeper::inherit() else {
        return Ok(());
    };
    let waited = keeper.waited();
    let config = latest(waited, config, || Config::load(&sources));
    let socket = ControlSocket::claim(config.daemon.control.as_path(), keeper.control())?;
    let socket = socket.guarded(&config.daemon.access)?;
    let service = start(&config, keeper)?;
    let report = service.apply(&config)?;
    log_warnings(&report);
    let uplinks = !config.uplinks.is_empty();
    let daemon = Arc::new(Daemon {
        started: started + waited,
        ..Daemon::new(sources, service, config)
    });
    daemon.look_after(uplinks);
    let routes = control::routes(Arc::clone(&daemon));
    Ok(life::live(&socket, routes, daemon.hooks())?)
}

/// Have uplinks tried again that are down.
fn retry_on(service: &Arc<dyn Service>) {
    let service = Arc::downgrade(service);
    let thread = std::thread::Builder::new().name("retry".to_owned());
    let spawned = thread.spawn(move || {
        loop {
            std::thread::sleep(RETRY);
            let Some(service) = service.upgrade() else {
                return;
            };
            service.retry();
        }
    });
    if let Err(error) = spawned {
        tracing::error!(%error, "no thread to try uplinks again");
    }
}

impl Daemon {
    /// A daemon around a service to which `config`, loaded from `sources`, has been applied.
    pub fn new(sources: Sources, service: Arc<dyn Service>, config: Config) -> Self {
        Self {
            sources,
            service,
            config: Mutex::new(config),
            started: Instant::now(),
            retrying: Once::new(),
        }
    }

    /// From the first uplink on, those that are down are tried again.
    fn look_after(&self, uplinks: bool) {
        if uplinks {
            self.retrying.call_once(|| retry_on(&self.service));
        }
    }

    /// The data plane.
    pub fn service(&self) -> &dyn Service {
        &*self.service
    }

    /// How long it has been running.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// What it does when told by signals and systemd.
    fn hooks(self: &Arc<Self>) -> Hooks {
        let (drained, steps) = (Arc::clone(&self.service), Arc::clone(&self.service));
        let (announced, reloaded) = (Arc::clone(self), Arc::clone(self));
        Hooks {
            reload: Box::new(move || drop(reloaded.reload(false))),
            drain: Box::new(move || drained.drain()),
            progress: Box::new(progress(move || {
                steps.workers().iter().map(|worker| worker.steps).collect()
            })),
            ready: Box::new(move |socket| announced.ready(socket)),
        }
    }

    fn ready(&self, socket: &Path) -> String {
        let start_ms = self.started.elapsed().as_secs_f64() * 1e3;
        let ports = self.service.ports().len();
        tracing::info!(name: SERVING, ports, start_ms, control = %socket.display(), "serving");
        serving(ports)
    }

    /// The mirrors in force; `None` while a reload or a change is under way.
    pub fn mirrors(&self) -> Option<Vec<Mirror>> {
        self.claim().map(|config| config.mirrors.clone())
    }

    /// The configuration in force, unless somebody is about to change it.
    fn claim(&self) -> Option<MutexGuard<'_, Config>> {
        match self.config.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Loads the configuration again and applies it as a whole, or not at all. The answer carries
    /// what changed; with `dry_run`, what would change. Blocks.
    pub fn reload(&self, dry_run: bool) -> Answer<Diff> {
        let Some(mut current) = self.claim() else {
            return busy();
        };
        if dry_run {
            return match Config::load(&self.sources) {
                Ok(new) => judge(self.compare(&current, &new), &Report::default()),
                Err(error) => refused(&error),
            };
        }
        notify::reloading();
        let loaded = Config::load(&self.sources).map_err(ServeError::from);
        let answer = match loaded.and_then(|new| self.replace(&mut current, new)) {
            Ok(answer) => {
                tracing::info!(name: RELOADED, changes = %answer.description, "reloaded");
                answer
            }
            Err(error) => {
                tracing::error!(name: RELOAD_REFUSED, %error,
                    "the reload was refused; nothing changed");
                refused(&error)
            }
        };
        notify::ready(&serving(current.ports.len() + current.uplinks.len()));
        answer
    }

    /// Applies `change` to the configuration in force, as a whole or not at all; with `persist`,
    /// to the file, too. Blocks.
    pub fn change(&self, change: &Change, persist: bool) -> Answer<Diff> {
        let Some(mut current) = self.claim() else {
            return busy();
        };
        let new = match current.changed(change) {
            Ok(new) => new,
            Err(error) => return refused(&error),
        };
        let prepare = || keep::prepare(&self.sources, change);
        let kept = match persist.then(prepare).transpose() {
            Ok(kept) => kept,
            Err(error) => return refused(&error),
        };
        let mut answer = match self.replace(&mut current, new) {
            Ok(answer) => answer,
            Err(error) => return refused(&error),
        };
        tracing::info!(name: events::CHANGED, changes = %answer.description, persist, "changed");
        if let Some(Err(error)) = kept.map(keep::Kept::write) {
            tracing::warn!(name: events::CHANGE_NOT_KEPT, %error,
                "the change is in force, but not kept");
            let description = format!("{}; but it is not kept: {error}", answer.description);
            answer = Answer::warning(description, answer.data.unwrap_or_default());
        }
        notify::status(&serving(current.ports.len() + current.uplinks.len()));
        answer
    }

    /// What changes, and whose sessions end.
    fn compare(&self, current: &Config, new: &Config) -> Diff {
        let mut diff = current.diff(new);
        let ports = self.service.ports();
        let connected = ports.iter().filter(|port| port.connected);
        let names = connected.map(|port| &port.name);
        let taken_down = diff.ports.taken_down();
        diff.disturbed = taken_down
            .filter(|name| names.clone().any(|one| one == *name))
            .cloned()
            .collect();
        diff
    }

    /// Applies and remembers; on an error `current` stays what it was.
    fn replace(&self, current: &mut Config, mut new: Config) -> Result<Answer<Diff>, ServeError> {
        let diff = self.compare(current, &new);
        // The process keeps its settings until it is restarted; a later diff says so again.
        new.keep_what_needs_a_restart(current);
        let report = self.service.apply(&new)?;
        self.look_after(!new.uplinks.is_empty());
        log_warnings(&report);
        *current = new;
        Ok(judge(diff, &report))
    }
}

fn busy() -> Answer<Diff> {
    let description = "another reload or change is under way; try again when it is done";
    Answer::failed(StatusCode::CONFLICT, description)
}

fn refused(error: &dyn std::error::Error) -> Answer<Diff> {
    Answer::failed(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
}

/// Success, or a warning if something deserves attention.
fn judge(diff: Diff, report: &Report) -> Answer<Diff> {
    let sentences: Vec<String> = std::iter::once(diff.to_string())
        .chain(report.warnings.iter().cloned())
        .collect();
    let description = sentences.join("; ");
    if report.warnings.is_empty() && diff.needs_restart.is_empty() {
        Answer::success(description, diff)
    } else {
        Answer::warning(description, diff)
    }
}

fn serving(ports: usize) -> String {
    format!("serving {}", count_ports(ports))
}

fn log_warnings(report: &Report) {
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
}

/// `1 port`, `2 ports`.
pub fn count_ports(number: usize) -> String {
    format!("{number} {}", if number == 1 { "port" } else { "ports" })
}

#[cfg(test)]
mod tests;
