//! `vblk serve`: from a command line to a daemon, and to its end.
//!
//! ```text
//! load ─▶ log ─▶ claim the control socket ─▶ start workers ─▶ apply disks ─▶ READY
//!                                                                              │
//!            SIGHUP, POST /v1/reload: load, diff, apply, or change nothing ◀───┤
//!            SIGTERM, SIGINT: STOPPING, drain, exit                        ◀───┘
//! ```
//!
//! What a predecessor left with the service manager is taken first of all ([`Keeper`]): its
//! sessions go on when their disks are served.
//!
//! Nothing is touched before everything is validated, and the control socket is claimed first, so
//! that a second daemon by mistake ends there. What comes after READY is [`life`].

use std::path::Path;
use std::sync::{Arc, Mutex, TryLockError};
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

use crate::config::{Config, Diff, Sources};
use crate::control;
use crate::events;
use crate::sandbox;
use crate::service::{Report, Service, ServiceError};

/// Time between two tries to open a disk.
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
    /// What is applied now; locked for as long as a reload takes.
    config: Mutex<Config>,
    started: Instant,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Serves until a signal says stop. `start` starts the workers; the disks are applied afterwards.
///
/// # Errors
/// [`ServeError`]. Before READY, nothing keeps running after an error.
pub fn serve(
    sources: Sources,
    start: impl FnOnce(&Config, Keeper) -> Result<Arc<dyn Service>, ServiceError>,
) -> Result<(), ServeError> {
    let started = Instant::now();
    let config = Config::load(&sources)?;
    logging::init("vblk", config.daemon.log.as_ref(), events::EVENTS)?;
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
    retry_on(&service);
    let daemon = Arc::new(Daemon {
        started: started + waited,
        ..Daemon::new(sources, service, config)
    });
    let routes = control::routes(Arc::clone(&daemon));
    Ok(life::live(&socket, routes, daemon.hooks())?)
}

/// Have disks tried again that could not be opened.
fn retry_on(service: &Arc<dyn Service>) {
    if !service.retry() {
        return;
    }
    let service = Arc::downgrade(service);
    let thread = std::thread::Builder::new().name("retry".to_owned());
    let spawned = thread.spawn(move || {
        loop {
            std::thread::sleep(RETRY);
            if !service.upgrade().is_some_and(|service| service.retry()) {
                return;
            }
        }
    });
    if let Err(error) = spawned {
        tracing::error!(%error, "no thread to try disks again");
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
        let disks = self.service.disks().len();
        tracing::info!(name: SERVING, disks, start_ms, control = %socket.display(), "serving");
        serving(disks)
    }

    /// Loads the configuration again and applies it as a whole, or not at all. The answer carries
    /// what changed; with `dry_run`, what would change. Blocks.
    pub fn reload(&self, dry_run: bool) -> Answer<Diff> {
        let mut current = match self.config.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let description = "another reload is under way; try again when it is done";
                return Answer::failed(StatusCode::CONFLICT, description);
            }
        };
        if dry_run {
            return match Config::load(&self.sources) {
                Ok(new) => judge(self.compare(&current, &new), &Report::default()),
                Err(error) => Answer::failed(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
            };
        }
        notify::reloading();
        let answer = match self.replace(&mut current) {
            Ok(answer) => {
                tracing::info!(name: RELOADED, changes = %answer.description, "reloaded");
                answer
            }
            Err(error) => {
                tracing::error!(name: RELOAD_REFUSED, %error,
                    "the reload was refused; nothing changed");
                Answer::failed(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
            }
        };
        notify::ready(&serving(current.disks.len()));
        answer
    }

    /// What changes, and whose sessions end.
    fn compare(&self, current: &Config, new: &Config) -> Diff {
        let mut diff = current.diff(new);
        let disks = self.service.disks();
        let connected = disks.iter().filter(|disk| disk.connected);
        let names = connected.map(|disk| &disk.name);
        let taken_down = diff.disks.taken_down();
        diff.disturbed = taken_down
            .filter(|name| names.clone().any(|one| one == *name))
            .cloned()
            .collect();
        diff
    }

    /// Loads, applies and remembers; on an error `current` stays what it was.
    fn replace(&self, current: &mut Config) -> Result<Answer<Diff>, ServeError> {
        let mut new = Config::load(&self.sources)?;
        let diff = self.compare(current, &new);
        // The process keeps its settings until it is restarted; a later diff says so again.
        new.daemon = current.daemon.clone();
        new.process = current.process.clone();
        let report = self.service.apply(&new)?;
        log_warnings(&report);
        *current = new;
        Ok(judge(diff, &report))
    }
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

fn log_warnings(report: &Report) {
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
}

fn serving(disks: usize) -> String {
    format!("serving {}", count_disks(disks))
}

/// `1 disk`, `2 disks`.
pub fn count_disks(number: usize) -> String {
    format!("{number} {}", if number == 1 { "disk" } else { "disks" })
}

#[cfg(test)]
mod tests;
