//! The daemon as a process of its own: this test program runs itself again, with a data plane that
//! is not there, and plays service manager and operator.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, kill_process};
use towpath_common::control::Client;
use towpath_common::keep::Keeper;

use super::*;
use crate::control::{Overview, Reload};
use crate::fake::FakeService;

/// Names the configuration file to the second run of this program.
const FILE_VARIABLE: &str = "VBLK_TEST_SERVE";
/// A message that has not come by then will never come.
const HANG: Duration = Duration::from_secs(60);

/// Not a test by itself: the daemon that the tests below start.
#[test]
fn child() {
    let Some(file) = std::env::var_os(FILE_VARIABLE) else {
        return;
    };
    let sources = Sources {
        file: Some(file.into()),
        ..Sources::default()
    };
    let start = |_: &Config, _: Keeper| -> Result<Arc<dyn Service>, ServiceError> {
        let service = Arc::new(FakeService::default());
        let workers = Arc::clone(&service);
        std::thread::spawn(move || {
            loop {
                workers.step(0);
                workers.step(1);
                std::thread::yield_now();
            }
        });
        Ok(service)
    };
    serve(sources, start).unwrap();
}

struct Running {
    dir: tempfile::TempDir,
    manager: UnixDatagram,
    process: Child,
}

impl Running {
    fn start(watchdog: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(HANG)).unwrap();
        write_config(dir.path(), &["a"]);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "serve::tests::child"])
            .env(FILE_VARIABLE, dir.path().join("vblk.toml"))
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if watchdog {
            command.env("WATCHDOG_USEC", "20000");
        }
        let process = command.spawn().unwrap();
        Self {
            dir,
            manager,
            process,
        }
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("c.sock")
    }

    /// The next message to the service manager.
    fn message(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self
            .manager
            .recv(&mut buffer)
            .expect("the daemon does not report");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, signal).unwrap();
    }

    fn succeeds(mut self) -> bool {
        let status = self.process.wait().unwrap();
        assert!(!self.control().exists(), "the control socket is removed");
        status.success()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _it_may_have_ended = self.process.kill();
        let _it_may_have_been_waited_for = self.process.wait();
    }
}

fn write_config(dir: &Path, disks: &[&str]) {
    let control = dir.join("c.sock");
    let mut text = format!("[daemon]\ncontrol = {control:?}\n");
    for name in disks {
        text += &format!("[[disk]]\nname = {name:?}\npath = \"null:4K\"\nsocket = {name:?}\n");
    }
    fs::write(dir.join("vblk.toml"), text).unwrap();
}

#[test]
fn a_life_from_ready_to_stopping() {
    let daemon = Running::start(false);
    assert_eq!(daemon.message(), "READY=1\nSTATUS=serving 1 disk\n");
    let client = Client::new(&daemon.control());
    let overview: Answer<Overview> = client.get("/v1/status").unwrap();
    assert_eq!(overview.data.unwrap().pid, daemon.process.id());

    write_config(daemon.dir.path(), &["a", "b"]);
    daemon.signal(rustix::process::Signal::HUP);
    let reloading = daemon.message();
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(daemon.message(), "READY=1\nSTATUS=serving 2 disks\n");

    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.message(), "STOPPING=1\n");
    assert!(daemon.succeeds());
}

#[test]
fn a_refused_reload_leaves_the_daemon_ready_with_what_it_had() {
    let daemon = Running::start(false);
    daemon.message();
    write_config(daemon.dir.path(), &["a", FakeService::REFUSED]);
    daemon.signal(rustix::process::Signal::HUP);
    assert!(daemon.message().starts_with("RELOADING=1\n"));
    assert_eq!(daemon.message(), "READY=1\nSTATUS=serving 1 disk\n");
    daemon.signal(rustix::process::Signal::INT);
    daemon.message();
    assert!(daemon.succeeds());
}

#[test]
fn the_watchdog_is_fed_while_workers_move() {
    let daemon = Running::start(true);
    let fed = std::iter::from_fn(|| Some(daemon.message())).filter(|m| m == "WATCHDOG=1\n");
    assert_eq!(fed.take(3).count(), 3);
}

#[test]
fn a_second_signal_ends_a_drain_that_hangs() {
    let daemon = Running::start(false);
    daemon.message();
    write_config(daemon.dir.path(), &[FakeService::STUCK]);
    let client = Client::new(&daemon.control());
    let reload: Answer<Diff> = client.post("/v1/reload", &Reload::default()).unwrap();
    assert_eq!(reload.description, format!("+{}; -a", FakeService::STUCK));
    assert!(daemon.message().starts_with("RELOADING=1\n"));
    assert!(daemon.message().starts_with("READY=1\n"));
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.message(), "STOPPING=1\n");
    daemon.signal(rustix::process::Signal::TERM);
    assert!(!daemon.succeeds());
}

#[test]
fn a_second_daemon_on_the_same_socket_starts_nothing() {
    let daemon = Running::start(false);
    daemon.message();
    let file = Some(daemon.dir.path().join("vblk.toml"));
    let refuse = |_: &Config, _: Keeper| panic!("workers were started");
    let error = serve(
        Sources {
            file,
            ..Sources::default()
        },
        refuse,
    )
    .unwrap_err();
    assert!(
        matches!(error, ServeError::Socket(SocketError::InUse { .. })),
        "{error}"
    );
}
