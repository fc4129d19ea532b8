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
//! Nothing is touched before everything is validated, and the control socket is claimed first, so
//! that a second daemon by mistake ends there.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use towpath_common::config::ConfigError;
use towpath_common::control::life::{self, Hooks, LifeError};
use towpath_common::control::{ControlSocket, SocketError};
use towpath_common::logging::{self, LogError};

use crate::config::{Config, Sources};
use crate::service::{Report, Service, ServiceError};

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
    start: impl FnOnce(&Config) -> Result<Arc<dyn Service>, ServiceError>,
) -> Result<(), ServeError> {
    let started = Instant::now();
    let config = Config::load(&sources)?;
    logging::init("vswitch", config.daemon.log.as_ref())?;
    let socket = ControlSocket::bind(config.daemon.control.as_path())?;
    let service = start(&config)?;
    let report = service.apply(&config)?;
    log_warnings(&report);
    let daemon = Arc::new(Daemon {
        started,
        ..Daemon::new(sources, service, config)
    });
    Ok(life::live(&socket, Router::new(), daemon.hooks())?)
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
        let drained = Arc::clone(&self.service);
        let announced = Arc::clone(self);
        Hooks {
            reload: Box::new(|| ()),
            drain: Box::new(move || drained.drain()),
            progress: Box::new(progress(Arc::clone(&self.service))),
            ready: Box::new(move |socket| announced.ready(socket)),
        }
    }

    fn ready(&self, socket: &Path) -> String {
        let start_ms = self.started.elapsed().as_secs_f64() * 1e3;
        let ports = self.service.ports().len();
        tracing::info!(ports, start_ms, control = %socket.display(), "serving");
        format!("serving {}", count_ports(ports))
    }
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

/// Whether every worker has taken a step since the last call.
fn progress(service: Arc<dyn Service>) -> impl FnMut() -> bool {
    let mut before: Vec<u64> = Vec::new();
    move || {
        let workers = service.workers();
        let now: Vec<u64> = workers.iter().map(|worker| worker.steps).collect();
        let moved = now.iter().zip(&before).all(|(now, before)| now > before);
        before = now;
        moved
    }
}
