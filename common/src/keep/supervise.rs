//! `serve --keep`: a manager for hosts without systemd, in containers and while developing.
//!
//! One process that does nothing but start the daemon, hold what it gives away, and start it again
//! when it ends. It speaks the same protocol as systemd (sd_notify(3), sd_listen_fds(3)), so the
//! daemon runs the same code under both.
//!
//! ```text
//! SIGTERM, SIGINT   stop the daemon, and end when it has
//! SIGUSR2           follow it with another one: another build, if the file was replaced
//! SIGHUP            passed on: read the configuration again
//! ```
//!
//! One that follows another is started first, and comes as far as reading its configuration while
//! the other one serves ([`super::standby`]). If it cannot, the other one goes on. One that has
//! served for a moment gets such a follower at its side, for the day on which it is killed.
//!
//! A daemon that ends is started again at once, unless that happened again and again before it was
//! ready or within moments: from the third time on after a pause that doubles each time. One that
//! ends by itself before it was ever ready has something to say about its configuration; its exit
//! code is passed on.

mod inbox;

use std::ffi::OsString;
use std::io::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal as Number, kill_process};
use tokio::io::Interest;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, warn};

use crate::logging::events;

use self::inbox::{Inbox, pass_on, receive};
use super::pass;
use super::standby::{Follows, Standby, follows};

/// Most that is held: two thousand disks or ports with their listening sockets. The names of all go
/// to a daemon in one variable of its environment, which may have 128 KiB.
const MOST: usize = 4096;
/// A daemon that lived shorter than this is not started again at once.
const MOMENT: Duration = Duration::from_millis(50);
/// First and longest pause before a daemon that fails is started again. Guests wait meanwhile, so
/// that the longest is what it costs them once the reason is gone.
const PAUSE: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];
/// So often in a row it may end early and is started again at once.
const FREE: u32 = 2;
/// A daemon that has served so long gets a follower, and this long after that failed another one.
const SETTLED: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// Longest without a sign of progress, once it is ready.
const WATCHDOG: Duration = Duration::from_secs(30);
/// A timer that is so late says that this process did not run, nor perhaps the daemon.
const STALL: Duration = Duration::from_secs(1);
/// Longest message taken; systemd takes as much.
const MESSAGE: usize = 4096;

/// What to start.
#[derive(Debug, Clone)]
pub struct Daemon {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// `serve --keep` of the program `name`: supervises the same program with the same arguments but
/// that one.
#[must_use]
pub fn main(name: &str) -> ExitCode {
    // The path is taken now: after an upgrade it leads to the new build.
    let outcome = std::env::current_exe().and_then(|program| {
        let arguments = std::env::args_os().skip(1);
        let arguments = arguments.filter(|argument| argument != "--keep").collect();
        crate::logging::init(name, None, &[]).map_err(Error::other)?;
        crate::limits::raise_open_files();
        supervise(Daemon { program, arguments })
    });
    outcome.unwrap_or_else(|error| {
        error!(%error, "cannot keep {name}");
        ExitCode::FAILURE
    })
}

/// Start the daemon, hold what it gives away, start it again, until told to stop.
///
/// # Errors
/// If it cannot be started at all, or the system refuses what is needed to watch it.
pub fn supervise(daemon: Daemon) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async { Manager::new(daemon)?.run().await })
}

/// What the outside wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Stop,
    Again,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    again: Signal,
    child: Signal,
}

struct Manager {
    daemon: Daemon,
    inbox: Inbox,
    signals: Signals,
    held: Vec<(String, OwnedFd)>,
    most: usize,
    /// Who is to follow the running daemon.
    next: Option<Standby>,
    /// The running daemon said that it serves.
    ready: bool,
    /// Last sign of progress.
    fed: Instant,
    /// When it gets a follower, once it is ready.
    spare: Instant,
}

/// The daemon as it runs.
struct Running {
    child: Child,
    pid: Pid,
}

impl Running {
    fn signal(&self, number: Number) {
        // Its number is its own until it is waited for; one that has just ended needs no signal.
        let _ = kill_process(self.pid, number);
    }
}

impl Manager {
    fn new(daemon: Daemon) -> Result<Manager, Error> {
        Ok(Manager {
            daemon,
            inbox: Inbox::new()?,
            signals: Signals {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
                hangup: signal(SignalKind::hangup())?,
                again: signal(SignalKind::user_defined2())?,
                child: signal(SignalKind::child())?,
            },
            held: Vec::new(),
            most: MOST,
            next: None,
            ready: false,
            fed: Instant::now(),
            spare: Instant::now(),
        })
    }

    async fn run(mut self) -> Result<ExitCode, Error> {
        let mut ever_ready = false;
        let mut early = 0;
        loop {
            let began = Instant::now();
            let mut running = match self.start() {
                Ok(running) => running,
                Err(error) if !ever_ready => return Err(error),
                Err(error) => {
                    error!(%error, "the daemon cannot be started");
                    early = FREE.max(early) + 1;
                    if self.rest(pause(early)).await == Some(Order::Stop) {
                        return Ok(ExitCode::FAILURE);
                    }
                    continue;
                }
            };
            let (status, order) = self.watch(&mut running).await?;
            // Everything it said before it ended counts.
            self.read_all(running.pid);
            if order == Some(Order::Stop) {
                return Ok(stopped(status));
            }
            ever_ready |= self.ready;
            if !ever_ready && status.code().is_some() {
                return Ok(code(status));
            }
            let lived = began.elapsed();
            let well = self.ready && lived >= MOMENT;
            early = if well || order == Some(Order::Again) {
                0
            } else {
                early.saturating_add(1)
            };
            let (held, pause) = (self.held.len(), pause(early));
            warn!(name: events::DAEMON_ENDED, %status, ?lived, held, ?pause,
                "the daemon ended and is started again");
            if self.rest(pause).await == Some(Order::Stop) {
                return Ok(code(status));
            }
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.daemon.program);
        command
            .args(&self.daemon.arguments)
            .env("NOTIFY_SOCKET", self.inbox.directory.join("notify"))
            .env("FDSTORE", MOST.to_string())
            .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
            .env_remove("WATCHDOG_PID")
            // What a terminal sends is for us; we pass it on once.
            .process_group(0);
        command
    }

    fn start(&mut self) -> Result<Running, Error> {
        let next = self.next.take().filter(|next| next.here);
        let next = next.and_then(|next| {
            let went = next.go(&self.held);
            went.inspect_err(|error| warn!(%error, "the daemon that was to follow is gone"))
                .ok()
        });
        let child = match next {
            Some(child) => child,
            None => {
                let mut command = self.command();
                let fillers = pass::hand_over(&mut command, &self.held)?;
                let child = command.spawn()?;
                drop(fillers);
                child
            }
        };
        self.ready = false;
        self.fed = Instant::now();
        self.spare = self.fed + SETTLED[0];
        let pid = Pid::from_child(&child);
        Ok(Running { child, pid })
    }

    /// Start who is to follow; false if that cannot be.
    fn prepare(&mut self) -> bool {
        let next = Standby::start(self.command());
        if let Err(error) = &next {
            error!(%error, "another daemon cannot be started; the running one goes on");
        }
        self.next = next.ok();
        self.spare = Instant::now() + SETTLED[1];
        self.next.is_some()
    }

    /// Until the daemon ends; what was ordered meanwhile.
    async fn watch(&mut self, running: &mut Running) -> Result<(ExitStatus, Option<Order>), Error> {
        let (mut order, mut told) = (None, false);
        loop {
            // One that is to be replaced ends well once it has taken up what it was given.
            let here = self.next.as_ref().is_none_or(|next| next.here);
            if order == Some(Order::Again) && self.ready && here && !told {
                running.signal(Number::TERM);
                told = true;
            }
            let deadline = self.fed + WATCHDOG;
            let late = tokio::time::sleep_until(deadline.into());
            let wants = self.ready && order.is_none() && self.next.is_none();
            let settled = tokio::time::sleep_until(self.spare.into());
            let Signals {
                terminate,
                interrupt,
                hangup,
                again,
                child,
            } = &mut self.signals;
            tokio::select! {
                biased;
                readable = self.inbox.socket.readable() => {
                    readable?;
                    self.read_all(running.pid);
                }
                _ = child.recv() => {
                    if let Some(status) = running.child.try_wait()? {
                        return Ok((status, order));
                    }
                }
                _ = terminate.recv() => order = self.stop(running, order, told),
                _ = interrupt.recv() => order = self.stop(running, order, told),
                _ = again.recv() => {
                    if order != Some(Order::Stop) && !told && self.prepare() {
                        order = Some(Order::Again);
                    }
                }
                _ = hangup.recv() => running.signal(Number::HUP),
                follows = follows(&mut self.next) => match follows {
                    Follows::Here => {}
                    Follows::Unaware => self.next = None,
                    Follows::Gone => (self.next, order) = (None, None),
                },
                () = settled, if wants => { self.prepare(); },
                () = late => {
                    // After a stall of our own, the daemon gets another period.
                    let stalled = deadline.elapsed() > STALL;
                    self.fed = Instant::now();
                    match order {
                        _ if !self.ready || stalled => {}
                        None => {
                            error!(name: events::DAEMON_HANGS,
                                "the daemon makes no progress and is aborted");
                            running.signal(Number::ABORT);
                        }
                        // Its sessions are held, and nobody is to blame.
                        Some(Order::Again) => {
                            error!(name: events::DAEMON_HANGS,
                                "the daemon does not end and is killed");
                            running.signal(Number::KILL);
                        }
                        Some(Order::Stop) => {}
                    }
                }
            }
        }
    }

    /// It is to end for good, whatever it does now. One that ends already, to be followed (`order`
    /// until now, `told`), is told nothing: a second signal would cut off what it has in flight.
    fn stop(&mut self, running: &Running, order: Option<Order>, told: bool) -> Option<Order> {
        self.next = None;
        if !(told && order == Some(Order::Again)) {
            running.signal(Number::TERM);
        }
        Some(Order::Stop)
    }

    /// A pause, in which orders are heard.
    async fn rest(&mut self, pause: Duration) -> Option<Order> {
        let Signals {
            terminate,
            interrupt,
            again,
            ..
        } = &mut self.signals;
        // The shortest sleep of the runtime is a millisecond, in which guests would wait.
        let over = async {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        };
        tokio::select! {
            biased;
            _ = terminate.recv() => Some(Order::Stop),
            _ = interrupt.recv() => Some(Order::Stop),
            _ = again.recv() => Some(Order::Again),
            () = over => None,
        }
    }

    /// Everything that has been sent.
    fn read_all(&mut self, daemon: Pid) {
        let mut text = [0; MESSAGE];
        loop {
            let socket = &self.inbox.socket;
            let mut received = receive(socket, &mut text);
            if matches!(&received, Err(error) if error.kind() == ErrorKind::WouldBlock) {
                // Once more through the runtime, which then waits for the next; it does not look
                // itself at a socket that it knows nothing new of.
                received = socket.try_io(Interest::READABLE, || receive(socket, &mut text));
            }
            match received {
                Ok((length, sender, fds)) if sender == Some(daemon) => {
                    let text = text.get(..length).unwrap_or_default();
                    let text = String::from_utf8_lossy(text).into_owned();
                    self.message(&text, fds);
                }
                Ok(_) => warn!("a message from another process than the daemon is ignored"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    warn!(%error, "the daemon's messages cannot be read");
                    return;
                }
            }
        }
    }

    fn message(&mut self, text: &str, fds: Vec<OwnedFd>) {
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
        let name = name.unwrap_or("stored");
        let mut rest = Vec::new();
        for line in text.lines() {
            match line {
                "FDSTOREREMOVE=1" => self.held.retain(|(held, _)| held != name),
                "FDSTORE=1" | "FDPOLL=0" | "STOPPING=1" => {}
                _ if line.starts_with("FDNAME=") => {}
                _ => {
                    self.ready |= line == "READY=1";
                    if line == "WATCHDOG=1" || line == "READY=1" {
                        self.fed = Instant::now();
                    }
                    rest.push(line);
                }
            }
        }
        if text.lines().any(|line| line == "FDSTORE=1") {
            for fd in fds {
                if self.held.len() < self.most && pass::is_name(name) {
                    self.held.push((name.to_owned(), fd));
                } else {
                    warn!(name, most = self.most, "cannot hold another descriptor");
                }
            }
        }
        if !rest.is_empty() {
            pass_on(&rest.join("\n"));
        }
    }
}

/// Before a daemon is started again that ended early so often in a row.
fn pause(early: u32) -> Duration {
    let Some(times) = early.checked_sub(FREE + 1) else {
        return Duration::ZERO;
    };
    let [first, longest] = PAUSE;
    first.saturating_mul(1 << times.min(16)).min(longest)
}

/// What to end with after it was to end: well, if SIGTERM met it before it listened to that, which
/// systemd takes for a clean end too.
fn stopped(status: ExitStatus) -> ExitCode {
    if status.signal() == Some(Number::TERM.as_raw()) {
        return ExitCode::SUCCESS;
    }
    code(status)
}

/// The daemon's exit code; as shells have it, 128 and the signal that ended it.
fn code(status: ExitStatus) -> ExitCode {
    let signalled = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signalled).unwrap_or(1);
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests;
