//! Daemons under test: started, watched until ready, stopped, killed, started again.
//!
//! [`Daemon`] is any back-end process; [`Vblk`] and [`Vswitch`] are ours, with a directory for
//! their sockets and a control API. Readiness is what the daemon itself says through sd_notify, as
//! systemd hears it. With `TOWPATH_VBLK=PROGRAM` (or `TOWPATH_VSWITCH`) in the environment that
//! program is tested instead of ours: an installed one, or a stand-in with the same command line.

use std::io::ErrorKind;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::api;
use crate::cargo;
use crate::lines::Lines;
use crate::netns::Netns;
use crate::paths;
use crate::process::{Process, command};

/// From start to readiness, and from SIGTERM to the end: milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a daemon that is not ready yet is looked at.
const TICK: Duration = Duration::from_millis(5);
/// How much of a daemon's log an error shows.
const TAIL: usize = 40;

/// How a daemon shows that it serves.
#[derive(Debug)]
enum Ready {
    /// It sends `READY=1` to the socket in `NOTIFY_SOCKET`.
    Notify(UnixDatagram),
    /// This socket accepts connections.
    Listens(PathBuf),
}

/// A daemon's process, killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    process: Process,
    log: Lines,
}

impl Daemon {
    /// Starts `command`, called `name` in errors, and waits until `socket` accepts connections.
    ///
    /// # Errors
    /// When it ends or is not ready in time, with its log.
    pub fn listening(name: &str, command: &mut Command, socket: &Path) -> Result<Self> {
        Self::start(name, command, &Ready::Listens(socket.into()))
    }

    /// Starts `command`, called `name` in errors, and waits for its `READY=1`; `dir` is for the
    /// socket that takes it.
    ///
    /// # Errors
    /// When it ends or is not ready in time, with its log.
    pub fn notifying(name: &str, command: &mut Command, dir: &Path) -> Result<Self> {
        let path = dir.join("notify");
        let _ = std::fs::remove_file(&path); // left from the start before this one
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(TICK))?;
        command.env("NOTIFY_SOCKET", &path);
        Self::start(name, command, &Ready::Notify(socket))
    }

    fn start(name: &str, command: &mut Command, ready: &Ready) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = Process::start(command)?;
        let stderr = process
            .child()
            .stderr
            .take()
            .context("the daemon's log is piped")?;
        let mut daemon = Self {
            name: name.into(),
            process,
            log: Lines::follow(stderr, None),
        };
        let deadline = Instant::now() + PATIENCE;
        while !ready.now()? {
            if let Some(status) = daemon.process.ended()? {
                // Its last words may still be on their way.
                let _ = daemon.log.wait(PATIENCE, |_| None::<()>);
                bail!(
                    "{} ended with {status}:\n{}",
                    daemon.name,
                    daemon.log.tail(TAIL)
                );
            }
            ensure!(
                Instant::now() < deadline,
                "{} was not ready within {PATIENCE:?}:\n{}",
                daemon.name,
                daemon.log.tail(TAIL)
            );
        }
        Ok(daemon)
    }

    /// Sends SIGTERM and waits for the end, which must be a clean one.
    ///
    /// # Errors
    /// When it does not end, or ends with a failure.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        let status = self.ended(PATIENCE)?;
        ensure!(
            status.success(),
            "{} ended with {status} after SIGTERM:\n{}",
            self.name,
            self.log.tail(TAIL)
        );
        Ok(())
    }

    /// Kills it outright (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill(&mut self) -> Result<()> {
        ensure!(
            self.process.ended()?.is_none(),
            "{} had ended by itself:\n{}",
            self.name,
            self.log.tail(TAIL)
        );
        self.process.signal(Signal::KILL)?;
        self.ended(PATIENCE)?;
        Ok(())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it does not within `patience`.
    pub fn ended(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.process
            .wait(patience)
            .with_context(|| format!("{}:\n{}", self.name, self.log.tail(TAIL)))
    }

    /// The process, for signals and for what `/proc` says.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it has written to standard error so far.
    #[must_use]
    pub fn log(&self) -> &Lines {
        &self.log
    }
}

impl Ready {
    /// Whether the daemon is ready; waits a little when it is not.
    fn now(&self) -> Result<bool> {
        match self {
            Self::Notify(socket) => {
                let mut message = [0; 4096];
                match socket.recv(&mut message) {
                    Ok(length) => {
                        let text = String::from_utf8_lossy(&message[..length]);
                        Ok(text.lines().any(|line| line == "READY=1"))
                    }
                    Err(error) => match error.kind() {
                        // The latter for one that was stopped and goes on.
                        ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(false),
                        _ => Err(error.into()),
                    },
                }
            }
            Self::Listens(path) => {
                let ready = UnixStream::connect(path).is_ok();
                if !ready {
                    std::thread::sleep(TICK);
                }
                Ok(ready)
            }
        }
    }
}

/// A daemon of ours under test, with a directory of its own for sockets and images.
#[derive(Debug)]
pub struct Service {
    daemon: Daemon,
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    namespace: Option<String>,
    variables: Vec<(&'static str, String)>,
    dir: TempDir,
}

/// A `vblk serve` under test.
#[derive(Debug)]
pub struct Vblk(Service);

impl Vblk {
    /// [`Vblk::serve`] of another program with the same command line.
    ///
    /// # Errors
    /// As there.
    pub fn serve_as(program: &Path, dir: TempDir, disks: &[&str], more: &[&str]) -> Result<Self> {
        let program = program.to_owned();
        Service::serve_as(program, "vblk", dir, ("--disk", disks), more, None).map(Self)
    }

    /// Starts `vblk serve` with one `--disk` for each of `disks`, in which `{dir}` stands for the
    /// daemon's directory, and `more` arguments.
    ///
    /// # Errors
    /// When vblk cannot be built, ends, or is not ready in time.
    pub fn serve(dir: TempDir, disks: &[&str], more: &[&str]) -> Result<Self> {
        Service::serve("vblk", dir, ("--disk", disks), more, None).map(Self)
    }
}

/// A program `dir/forbidden` that runs `program` where the host forbids `what` (`forbid` knows
/// what).
///
/// # Errors
/// When something cannot be built or written.
pub fn forbidding(what: &str, program: &Path, dir: &Path) -> Result<PathBuf> {
    let forbid = cargo::program("towpath-tests", "forbid")?;
    let script = dir.join("forbidden");
    let (forbid, program) = (forbid.display(), program.display());
    std::fs::write(
        &script,
        format!("#!/bin/sh\nexec {forbid} {what} {program} \"$@\"\n"),
    )?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

impl Deref for Vblk {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.0
    }
}

impl DerefMut for Vblk {
    fn deref_mut(&mut self) -> &mut Service {
        &mut self.0
    }
}

/// A `vswitch serve` under test.
#[derive(Debug)]
pub struct Vswitch(Service);

impl Vswitch {
    /// Starts `vswitch serve` with one `--port` for each of `ports`, in which `{dir}` stands for
    /// the daemon's directory, and `more` arguments.
    ///
    /// # Errors
    /// When vswitch cannot be built, ends, or is not ready in time.
    pub fn serve(dir: TempDir, ports: &[&str], more: &[&str]) -> Result<Self> {
        Service::serve("vswitch", dir, ("--port", ports), more, None).map(Self)
    }

    /// The same in a network namespace, where its TAP devices then are. Its sockets are files,
    /// and so reached from everywhere.
    ///
    /// # Errors
    /// As [`Vswitch::serve`].
    pub fn serve_in(netns: &Netns, dir: TempDir, ports: &[&str], more: &[&str]) -> Result<Self> {
        Service::serve("vswitch", dir, ("--port", ports), more, Some(netns.name())).map(Self)
    }
}

impl Deref for Vswitch {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.0
    }
}

impl DerefMut for Vswitch {
    fn deref_mut(&mut self) -> &mut Service {
        &mut self.0
    }
}

impl Drop for Service {
    /// One that was not stopped shows the end of its log: cargo passes that on if a test failed.
    fn drop(&mut self) {
        let ended = self.daemon.process.ended().ok().flatten();
        if ended.is_none_or(|status| !status.success()) {
            let how = ended.map_or("is running".into(), |status| status.to_string());
            eprintln!("{} ({how}) said:\n{}", self.name, self.said());
        }
    }
}

/// The daemon `name` that is tested: ours, built if need be, or what the environment names.
///
/// # Errors
/// When it cannot be built.
pub fn program(name: &str) -> Result<PathBuf> {
    match std::env::var_os(format!("TOWPATH_{}", name.to_uppercase())) {
        Some(named) => Ok(named.into()),
        None => cargo::program(name, name),
    }
}

impl Service {
    fn serve(
        name: &'static str,
        dir: TempDir,
        (option, items): (&str, &[&str]),
        more: &[&str],
        namespace: Option<&str>,
    ) -> Result<Self> {
        Self::serve_as(program(name)?, name, dir, (option, items), more, namespace)
    }

    fn serve_as(
        program: PathBuf,
        name: &'static str,
        dir: TempDir,
        (option, items): (&str, &[&str]),
        more: &[&str],
        namespace: Option<&str>,
    ) -> Result<Self> {
        let here = dir.path().display().to_string();
        let mut arguments = vec![
            "serve".into(),
            "--control".into(),
            format!("{here}/control"),
        ];
        for item in items {
            arguments.extend([option.into(), item.replace("{dir}", &here)]);
        }
        arguments.extend(more.iter().map(|argument| argument.replace("{dir}", &here)));
        let namespace = namespace.map(str::to_owned);
        let command = Self::command(&program, &arguments, namespace.as_deref())?;
        let daemon = Self::start(name, command, dir.path())?;
        Ok(Self {
            daemon,
            name,
            program,
            arguments,
            namespace,
            variables: Vec::new(),
            dir,
        })
    }

    fn command(program: &Path, arguments: &[String], namespace: Option<&str>) -> Result<Command> {
        let mut command = match namespace {
            None => command(program),
            Some(namespace) => {
                let mut ip = command(&paths::program("ip")?);
                ip.args(["netns", "exec", namespace]).arg(program);
                ip
            }
        };
        command.args(arguments);
        Ok(command)
    }

    fn start(name: &str, mut command: Command, dir: &Path) -> Result<Daemon> {
        Daemon::notifying(name, &mut command, dir)
    }

    /// Starts it again, with the same arguments, after it was stopped or killed.
    ///
    /// # Errors
    /// When it still runs, or as the first time.
    pub fn start_again(&mut self) -> Result<()> {
        let name = self.name;
        ensure!(
            self.daemon.process().ended()?.is_some(),
            "{name} still runs"
        );
        let namespace = self.namespace.as_deref();
        let mut command = Self::command(&self.program, &self.arguments, namespace)?;
        command.envs(self.variables.iter().map(|(key, value)| (*key, value)));
        self.daemon = Self::start(name, command, self.dir.path())?;
        Ok(())
    }

    /// Runs a client subcommand, `disk show` for example, against this daemon, and
    /// returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn client(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.program)
            .args(arguments)
            .arg("--control")
            .arg(self.path("control"))
            .output()?;
        ensure!(
            output.status.success(),
            "{} {}: {}\n{}",
            self.name,
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs a subcommand that needs no daemon, and returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn tool(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.program).args(arguments).output()?;
        ensure!(
            output.status.success(),
            "{} {}: {}\n{}",
            self.name,
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Gives it an environment variable when it is started again, or takes that away.
    pub fn set_variable(&mut self, key: &'static str, value: Option<String>) {
        self.variables.retain(|(known, _)| *known != key);
        self.variables.extend(value.map(|value| (key, value)));
    }

    /// The process.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// The end of what it wrote to standard error, for errors.
    #[must_use]
    pub fn said(&self) -> String {
        self.daemon.log.tail(TAIL)
    }

    /// A file in the daemon's directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The `data` of the control API's answer to `GET path`.
    ///
    /// # Errors
    /// When the API does not answer, or answers with a failure.
    pub fn get(&self, path: &str) -> Result<Value> {
        api::data(&self.path("control"), path)
    }

    /// The metrics, as Prometheus would scrape them.
    ///
    /// # Errors
    /// When the API does not answer.
    pub fn metrics(&self) -> Result<String> {
        let (code, text) = api::get(&self.path("control"), "/metrics")?;
        ensure!(code == 200, "GET /metrics: {code}");
        Ok(text)
    }

    /// The sum of all samples of metric `name` whose labels contain `labels`.
    ///
    /// # Errors
    /// When there is no such sample.
    pub fn metric(&self, name: &str, labels: &str) -> Result<f64> {
        let text = self.metrics()?;
        let samples: Vec<f64> = text
            .lines()
            .filter(|line| {
                line.strip_prefix(name).is_some_and(|rest| {
                    (rest.starts_with('{') || rest.starts_with(' ')) && rest.contains(labels)
                })
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        ensure!(
            !samples.is_empty(),
            "no sample {name}{{{labels}}} in:\n{text}"
        );
        Ok(samples.iter().sum())
    }
}
