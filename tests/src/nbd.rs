//! NBD servers of others, and what is between them and a client.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::paths;
use crate::process::Process;

/// A guard against hanging.
const PATIENCE: Duration = Duration::from_secs(60);
/// A server that says nothing for so long has nothing to do.
const QUIET: Duration = Duration::from_millis(50);

/// `qemu-nbd` with the raw `image`, once it listens on `socket`.
pub fn qemu_nbd(socket: &Path, image: &Path) -> Result<Process> {
    serve(socket, image, "8")
}

/// The same for one client at a time, with one connection: no second one is promised anything.
pub fn qemu_nbd_for_one(socket: &Path, image: &Path) -> Result<Process> {
    serve(socket, image, "1")
}

fn serve(socket: &Path, image: &Path, clients: &str) -> Result<Process> {
    let mut command = Command::new(paths::program("qemu-nbd")?);
    command.args(["-t", "-e", clients, "-f", "raw", "-k"]);
    start(command.arg(socket).arg(image), socket)
}

/// `nbdkit` with the raw `image`, once it listens on `socket`. It tells each connection how long
/// the image is then.
pub fn nbdkit(socket: &Path, image: &Path) -> Result<Process> {
    // It does not take a socket that is left of another one.
    let _ = std::fs::remove_file(socket);
    let mut command = Command::new(paths::program("nbdkit")?);
    command.args(["-f", "-U"]).arg(socket).arg("file");
    start(command.arg(image), socket)
}

fn start(command: &mut Command, socket: &Path) -> Result<Process> {
    let server = Process::start(command)?;
    let until = Instant::now() + PATIENCE;
    while UnixStream::connect(socket).is_err() {
        ensure!(Instant::now() < until, "the NBD server does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(server)
}

/// A connection through a [`Relay`], and how many bytes the client sent.
#[derive(Debug)]
struct Line {
    client: UnixStream,
    server: UnixStream,
    sent: u64,
    open: bool,
    /// When the server last said something.
    heard: Instant,
}

/// Stands between a client and a server on unix sockets, counts connections, and cuts them.
#[derive(Debug, Clone)]
pub struct Relay {
    lines: Arc<Mutex<Vec<Line>>>,
}

impl Relay {
    /// Connections to `socket`, which is made, are led on to `server`. Its threads end with the
    /// test.
    ///
    /// # Errors
    /// When `socket` cannot be made.
    pub fn start(socket: &Path, server: &Path) -> Result<Self> {
        let relay = Self {
            lines: Arc::default(),
        };
        let (listener, server) = (UnixListener::bind(socket)?, server.to_owned());
        let within = relay.clone();
        std::thread::spawn(move || -> io::Result<()> {
            loop {
                let (client, _) = listener.accept()?;
                within.lead(client, UnixStream::connect(&server)?)?;
            }
        });
        Ok(relay)
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lead(&self, client: UnixStream, server: UnixStream) -> io::Result<()> {
        let (up, down) = (
            (client.try_clone()?, server.try_clone()?),
            (server.try_clone()?, client.try_clone()?),
        );
        let mut lines = self.lines();
        let number = lines.len();
        lines.push(Line {
            client,
            server,
            sent: 0,
            open: true,
            heard: Instant::now(),
        });
        drop(lines);
        let within = self.clone();
        std::thread::spawn(move || within.copy(number, up, true));
        let within = self.clone();
        std::thread::spawn(move || within.copy(number, down, false));
        Ok(())
    }

    fn copy(&self, number: usize, (mut from, mut to): (UnixStream, UnixStream), upwards: bool) {
        use std::io::{Read, Write};
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length) = from.read(&mut buffer)
            && length > 0
        {
            let Some(open) = self.lines().get_mut(number).map(|line| {
                if upwards {
                    line.sent += length as u64;
                } else {
                    line.heard = Instant::now();
                }
                line.open
            }) else {
                return;
            };
            if open && to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        self.end(number);
    }

    fn end(&self, number: usize) {
        if let Some(line) = self.lines().get_mut(number) {
            line.open = false;
            // One that ended by itself is as good.
            let _ = line.client.shutdown(Shutdown::Both);
            let _ = line.server.shutdown(Shutdown::Both);
        }
    }

    /// Lets nothing through connection `number` any more, and ends it soon: once the server has
    /// done what it was asked for there, of which its client never hears. A server that does it
    /// later still, when the client asked for it on another connection and for other things since,
    /// is what no client can do anything about.
    pub fn cut(&self, number: usize) {
        if let Some(line) = self.lines().get_mut(number) {
            line.open = false;
        }
        let within = self.clone();
        std::thread::spawn(move || {
            let quiet = |relay: &Self| {
                let lines = relay.lines();
                lines.get(number).is_none_or(|l| l.heard.elapsed() > QUIET)
            };
            std::thread::sleep(QUIET);
            while !quiet(&within) {
                std::thread::sleep(QUIET / 10);
            }
            within.end(number);
        });
    }

    /// The open connections: their numbers, and how many bytes came from the client on each.
    #[must_use]
    pub fn open(&self) -> Vec<(usize, u64)> {
        let lines = self.lines();
        let open = lines.iter().enumerate().filter(|(_, line)| line.open);
        open.map(|(number, line)| (number, line.sent)).collect()
    }
}
