//! `sriov-manager serve`: from a configuration to a daemon.
//!
//! ```text
//! load ─▶ log ─▶ claim the sockets ─▶ finish what was left, apply ─▶ READY
//!                                                                     │
//!     keeper: events, drift, owners that end ◀────────────────────────┤
//!     SIGHUP, POST /v1/reload: load, or change nothing  ◀─────────────┤
//!     SIGTERM, SIGINT: exit; VFs and leases stay as they are  ◀───────┘
//! ```
//!
//! READY comes after the first apply, so that units ordered after this one find their VFs.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use towpath_common::config::ConfigError;
use towpath_common::control::life::{self, Hooks, LifeError};
use towpath_common::control::{Answer, ControlSocket, SocketError};
use towpath_common::logging::events::{RELOAD_REFUSED, SERVING};
use towpath_common::logging::{self, LogError};
use towpath_common::notify;

use crate::apply::{State, StateError};
use crate::control;
use crate::events;
use crate::inventory::{Inventory, scan};
use crate::keeper::Keeper;
use crate::kernel::{Machine, Sysfs, Writer};
use crate::lease::{self, Broker};
use crate::spec::Spec;

/// Who may connect is decided by the kernel's word about the peer, not by the socket's mode.
const LEASE_MODE: u32 = 0o666;
/// A keeper that takes no turn for so long hangs; a write may take its whole deadline.
const SLACK: Duration = Duration::from_secs(60);

/// Why the daemon did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Logging could not start.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A socket could not be claimed.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The system refused.
    #[error("the system refused: {0}")]
    System(#[from] io::Error),
    /// The daemon did not run or end as it should.
    #[error(transparent)]
    Life(#[from] LifeError),
}

/// The running daemon as its control plane sees it.
#[derive(Debug)]
pub struct Daemon {
    file: PathBuf,
    program: PathBuf,
    broker: Arc<Broker>,
    keeper: Arc<Keeper>,
    started: Instant,
}

/// Serves what `file` says until a signal says stop.
///
/// # Errors
/// [`ServeError`].
pub fn serve(file: &Path) -> Result<(), ServeError> {
    let started = Instant::now();
    let spec = Spec::load(file)?;
    logging::init("sriov-manager", spec.daemon.log.as_ref(), events::EVENTS)?;
    let socket = ControlSocket::bind(spec.daemon.control.as_path())?;
    let socket = socket.guarded(&spec.daemon.access)?;
    let leases = ControlSocket::bind(spec.daemon.leases.as_path())?;
    std::fs::set_permissions(leases.path(), std::fs::Permissions::from_mode(LEASE_MODE))?;
    let listener = leases.listener()?;
    listener.set_nonblocking(false)?;
    let daemon = Arc::new(Daemon::new(file, spec, started)?);
    // What cannot be done now is reported, and does not keep the rest from being served.
    if let Err(error) = daemon.keeper.look(false) {
        tracing::error!(%error, "the first apply was in vain");
    }
    let keeper = Arc::clone(&daemon.keeper);
    thread::Builder::new()
        .name("keeper".to_owned())
        .spawn(move || keeper.run())?;
    let (broker, keeper) = (Arc::clone(&daemon.broker), Arc::clone(&daemon.keeper));
    thread::Builder::new()
        .name("leases".to_owned())
        .spawn(move || lease::serve(&listener, &broker, move || keeper.wake()))?;
    let routes = control::routes(Arc::clone(&daemon));
    Ok(life::live(&socket, routes, daemon.hooks())?)
}

impl Daemon {
    /// One that has not looked yet, for what `spec` says, which was read from `file`.
    ///
    /// # Errors
    /// When its state cannot be used, or the process has no descriptors left.
    pub(crate) fn new(file: &Path, spec: Spec, started: Instant) -> Result<Self, ServeError> {
        let program = std::env::current_exe()?;
        let state = State::open(&spec.daemon.state)?;
        let broker = Arc::new(Broker::open(state, program.clone(), spec)?);
        let keeper = Arc::new(Keeper::new(Arc::clone(&broker))?);
        Ok(Self {
            file: file.to_owned(),
            program,
            broker,
            keeper,
            started,
        })
    }

    /// The leases.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// What keeps the host as it is wanted.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// How long it has been running.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The host as it is now; nothing is changed.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn look_now(&self) -> io::Result<Inventory> {
        let kernel = Sysfs::new("/", Writer::new(self.program.clone()));
        let machine = Machine::running(&kernel);
        let known = self.broker.state().known().map_err(io::Error::other)?;
        scan(machine, &known)
    }

    /// Where the host stands, in a sentence.
    pub fn sentence(&self) -> String {
        let report = self.keeper.report();
        let vfs: usize = report.inventory.pfs.iter().map(|pf| pf.vfs.len()).sum();
        let leases = self.broker.leases().len();
        let mut sentence = format!("{vfs} VFs, {leases} leased");
        for (count, what) in [
            (report.drift.len(), "drifted"),
            (report.left.refusals.len(), "refused"),
            (report.failures.len(), "failed"),
        ] {
            if count > 0 {
                sentence.push_str(&format!(", {count} {what}"));
            }
        }
        sentence
    }

    /// Reads the configuration again: it is in force as a whole, or not at all. Sockets and who is
    /// answered on them, state and log stay what they are until the daemon is restarted.
    pub fn reload(&self) -> Answer {
        let mut new = match Spec::load(&self.file) {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(name: RELOAD_REFUSED, %error,
                    "the reload was refused; nothing changed");
                return Answer::failed(StatusCode::UNPROCESSABLE_ENTITY, error.to_string());
            }
        };
        notify::reloading();
        let old = self.broker.spec().daemon;
        let asked = new.daemon.clone();
        new.daemon.control = old.control;
        new.daemon.access = old.access;
        new.daemon.leases = old.leases;
        new.daemon.state = old.state;
        new.daemon.log = old.log;
        let restart = new.daemon != asked;
        self.broker.reload(new);
        let looked = self.keeper.look(true);
        notify::ready(&self.sentence());
        match looked {
            Err(error) => Answer::failed(StatusCode::CONFLICT, error.to_string()),
            Ok(()) if restart => {
                let text = "reloaded; control, leases, state and log change at the next start";
                Answer::warning(text, ())
            }
            Ok(()) => Answer::success(format!("reloaded: {}", self.sentence()), ()),
        }
    }

    /// What it does when told by signals and systemd.
    fn hooks(self: &Arc<Self>) -> Hooks {
        let (reloaded, announced, watched) = (Arc::clone(self), Arc::clone(self), Arc::clone(self));
        let mut seen = (0, Instant::now());
        Hooks {
            reload: Box::new(move || drop(reloaded.reload())),
            // Nothing is in flight that a new process would not find in the journal.
            drain: Box::new(|| ()),
            progress: Box::new(move || {
                let turns = watched.keeper.turns();
                if turns != seen.0 {
                    seen = (turns, Instant::now());
                }
                let deadline = watched.broker.spec().daemon.deadline();
                seen.1.elapsed() < deadline * 4 + SLACK
            }),
            ready: Box::new(move |socket| {
                let start_ms = announced.uptime().as_secs_f64() * 1e3;
                let sentence = announced.sentence();
                tracing::info!(name: SERVING, start_ms, control = %socket.display(),
                    "serving: {sentence}");
                sentence
            }),
        }
    }
}
