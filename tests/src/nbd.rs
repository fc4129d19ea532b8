//! NBD servers of others.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::paths;
use crate::process::Process;

/// A guard against hanging.
const PATIENCE: Duration = Duration::from_secs(60);

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
    let server = Process::start(command.arg(socket).arg(image))?;
    let until = Instant::now() + PATIENCE;
    while UnixStream::connect(socket).is_err() {
        ensure!(Instant::now() < until, "qemu-nbd does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(server)
}
