//! A manager whose daemon is an older build than the one before: it refuses what it cannot read,
//! and front-ends connect anew.

use std::fs::File;
use std::io::{IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use towpath_common::keep::parcel;
use towpath_common::testing::blk::{BlkClient, ClientOptions};
use towpath_tests::daemon::program;
use towpath_tests::process::{Process, command};

use crate::harness::PATIENCE;

/// What a service manager is to a daemon: sd_notify(3), and a store of descriptors.
struct Manager {
    dir: TempDir,
    inbox: UnixDatagram,
    held: Vec<(String, OwnedFd)>,
}

/// A daemon, and the thread that hears what it says meanwhile: it would wait for us.
struct Started {
    process: Process,
    stop: Arc<AtomicBool>,
    ear: JoinHandle<Result<Manager>>,
}

impl Started {
    /// Ends it, and hears it out.
    fn end(mut self, signal: Signal) -> Result<(Manager, ExitStatus)> {
        self.process.signal(signal)?;
        let status = self.process.wait(PATIENCE)?;
        self.stop.store(true, SeqCst);
        let heard = self.ear.join();
        let manager = heard.map_err(|_| anyhow::anyhow!("the manager panicked"))??;
        Ok((manager, status))
    }
}

impl Manager {
    fn new() -> Result<Manager> {
        let dir = tempfile::tempdir()?;
        let inbox = UnixDatagram::bind(dir.path().join("notify"))?;
        inbox.set_read_timeout(Some(Duration::from_millis(100)))?;
        let held = Vec::new();
        Ok(Manager { dir, inbox, held })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Start vblk with what is held, and hear it until it is ready.
    fn start(mut self) -> Result<Started> {
        // Descriptors get their numbers by way of the standard streams, of which there are three.
        ensure!(self.held.len() <= 3, "{} are held", self.held.len());
        let log = self.path("log");
        let script = format!(
            "exec 3<&0 4<&1 5<&2 0</dev/null 1>/dev/null 2>>{}; exec \"$@\"",
            log.display()
        );
        let disk = format!(
            "{},socket={}",
            self.path("image").display(),
            self.path("disk").display()
        );
        let mut shell = command(Path::new("sh"));
        shell.args(["-c", &script, "sh"]).arg(program("vblk")?);
        shell.args(["serve", "--disk", &disk, "--control"]);
        shell.arg(self.path("control"));
        let names: Vec<&str> = self.held.iter().map(|(name, _)| name.as_str()).collect();
        shell
            .env("NOTIFY_SOCKET", self.path("notify"))
            .env("FDSTORE", "64")
            .env("LISTEN_FDS", self.held.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        let mut twins = self.held.iter().map(|(_, fd)| fd.try_clone());
        let mut stream = || match twins.next() {
            Some(twin) => Ok::<_, std::io::Error>(Stdio::from(twin?)),
            None => Ok(Stdio::null()),
        };
        shell.stdin(stream()?).stdout(stream()?).stderr(stream()?);
        let process = Process::start(&mut shell)?;
        drop(shell);
        let deadline = Instant::now() + PATIENCE;
        while self.hear()? != Some(true) {
            let said = || std::fs::read_to_string(self.path("log")).unwrap_or_default();
            ensure!(Instant::now() < deadline, "never ready: {}", said());
        }
        let stop = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stop);
        let ear = std::thread::spawn(move || {
            // What it said before its end counts.
            while self.hear()?.is_some() || !over.load(SeqCst) {}
            Ok(self)
        });
        Ok(Started { process, stop, ear })
    }

    /// One message, if there is one, and whether it says that the daemon is ready.
    fn hear(&mut self) -> Result<Option<bool>> {
        let mut text = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let parts = &mut [IoSliceMut::new(&mut text)];
        let length = match recvmsg(&self.inbox, parts, &mut control, flags) {
            Ok(message) => message.bytes,
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut fds = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = part {
                fds.extend(some);
            }
        }
        let text = String::from_utf8_lossy(&text[..length]).into_owned();
        if let Some(name) = text.lines().find_map(|line| line.strip_prefix("FDNAME=")) {
            if text.lines().any(|line| line == "FDSTOREREMOVE=1") {
                self.held.retain(|(held, _)| held != name);
            }
            self.held
                .extend(fds.into_iter().map(|fd| (name.to_owned(), fd)));
        }
        Ok(Some(text.lines().any(|line| line == "READY=1")))
    }

    /// Write the document of the session as a later version would; the version it had.
    fn age(&mut self) -> Result<u64> {
        for (_, held) in &mut self.held {
            let mut fds = parcel::open(&*held)?;
            let mut document = File::from(fds.remove(0));
            let mut text = String::new();
            document.rewind()?;
            document.read_to_string(&mut text)?;
            let mut value: Value = serde_json::from_str(&text)?;
            if value["kind"] != "session" {
                continue;
            }
            let version = value["version"].as_u64().context("a version")?;
            value["version"] = (version + 1).into();
            // What a later version says may be anything.
            value["body"] = "said in another way".into();
            let mut newer = tempfile::tempfile()?;
            newer.write_all(value.to_string().as_bytes())?;
            let all: Vec<_> = std::iter::once(newer.as_fd())
                .chain(fds.iter().map(AsFd::as_fd))
                .collect();
            *held = parcel::pack(&all)?;
            return Ok(version);
        }
        anyhow::bail!("no session is held")
    }
}

#[test]
fn an_older_build_refuses_a_newer_record_and_front_ends_connect_anew() -> Result<()> {
    let manager = Manager::new()?;
    let (path, log) = (manager.path("disk"), manager.path("log"));
    File::create(manager.path("image"))?.set_len(1 << 20)?;
    let mut vblk = manager.start()?;
    let mut client = BlkClient::connect(&path, ClientOptions::default())?;
    client.write(8, &[0x5a; 4096])?;
    client.flush()?;
    let mut bytes = [0; 4096];
    // The same build goes on: what is held is right.
    for signal in [Signal::KILL, Signal::TERM] {
        vblk = vblk.end(signal)?.0.start()?;
        client.read(8, &mut bytes)?;
        ensure!(bytes == [0x5a; 4096], "other contents after {signal:?}");
    }
    let (mut manager, _) = vblk.end(Signal::KILL)?;
    let version = manager.age()?;
    let vblk = manager.start()?;
    ensure!(
        client.frontend().raw().closes_within(PATIENCE)?,
        "the front-end is not told"
    );
    let log = std::fs::read_to_string(log)?;
    let why = format!(
        "has version {}, this build reads up to {version}",
        version + 1
    );
    ensure!(log.contains(&why), "{log}");
    // It comes again, and nothing is lost.
    let mut client = BlkClient::connect(&path, ClientOptions::default())?;
    client.read(8, &mut bytes)?;
    ensure!(bytes == [0x5a; 4096], "what was acknowledged is lost");
    client.write(8, &[0xa5; 4096])?;
    let (_manager, status) = vblk.end(Signal::TERM)?;
    ensure!(status.success(), "it ends with {status}");
    Ok(())
}
