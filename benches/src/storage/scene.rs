//! Where the bytes of each kind lie: files, loop devices, a mounted ext4, logical volumes, an NBD
//! server.
//!
//! Everything is made when a row first needs it, written throughout, and goes with the value.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use tempfile::TempDir;

use super::plan::Kind;
use super::volumes::Volumes;
use crate::process::{LOOK, Process};
use crate::raw::Layout;
use crate::runner::{scratch, written};

/// Files of a stripe, and bytes of its chunks.
const STRIPES: u64 = 4;
/// Bytes of a stripe's chunk.
const CHUNK: u64 = 64 << 10;
/// Longest wait for the NBD server.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything rows are measured on.
#[derive(Debug)]
pub struct Scene {
    size: u64,
    /// Processor of the NBD server: the generator's, since the back-end has the other one.
    server_cpu: usize,
    device: Option<LoopDevice>,
    /// Before the device under it.
    mounted: Option<Mounted>,
    /// Devices that logical volumes may be made on, instead of loop devices.
    spare: Vec<PathBuf>,
    volumes: Option<Volumes>,
    server: Option<Process>,
    memory: TempDir,
    disk: TempDir,
}

/// A loop device with direct I/O; taken apart with the value.
#[derive(Debug)]
pub(super) struct LoopDevice(PathBuf);

/// An ext4 on a loop device; unmounted with the value.
#[derive(Debug)]
struct Mounted {
    at: PathBuf,
    _device: LoopDevice,
}

/// Runs a program; an error quotes what it said.
pub fn tool(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command
        .output()
        .with_context(|| format!("{name} is missing"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(
        out.status.success(),
        "{name}: {}: {}",
        out.status,
        said.trim()
    );
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

impl LoopDevice {
    pub(super) fn new(image: &Path) -> Result<Self> {
        let mut losetup = Command::new("losetup");
        losetup
            .args(["--find", "--show", "--direct-io=on"])
            .arg(image);
        Ok(Self(tool(&mut losetup)?.into()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = tool(Command::new("losetup").arg("-d").arg(&self.0)) {
            eprintln!("{error:#}");
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = tool(Command::new("umount").arg(&self.at)) {
            eprintln!("{error:#}");
        }
    }
}

impl Scene {
    /// For disks of `size` bytes, whole MiB; files go to a directory in `dir`, and to `/dev/shm`
    /// for the NBD server. Logical volumes are made on `spare`, which loses what it has, or on loop
    /// devices if it is empty.
    pub fn new(dir: &Path, size: u64, server_cpu: usize, spare: Vec<PathBuf>) -> Result<Self> {
        let dir = dir
            .canonicalize()
            .with_context(|| dir.display().to_string())?;
        Ok(Self {
            size,
            server_cpu,
            device: None,
            mounted: None,
            spare,
            volumes: None,
            server: None,
            memory: scratch(Path::new("/dev/shm"))?,
            disk: scratch(&dir)?,
        })
    }

    /// Bytes of each disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where the record of the mirror lies, or a log.
    #[must_use]
    pub fn at(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }

    /// Where the bytes of a kind lie, and how.
    pub fn files(&mut self, kind: Kind) -> Result<(Vec<PathBuf>, Layout)> {
        let size = self.size;
        let whole = Layout::Stripe(size);
        Ok(match kind {
            Kind::Device => (vec![self.device()?], whole),
            Kind::Extents => (vec![self.pinnable()?], whole),
            Kind::Segments | Kind::StripedSegments => (vec![self.volumes()?.path(kind)], whole),
            Kind::Nbd => {
                let path = self.memory.path().join("export");
                written(&path, size)?;
                (vec![path], whole)
            }
            Kind::Stripe => (
                self.several("stripe", STRIPES, size / STRIPES)?,
                Layout::Stripe(CHUNK),
            ),
            Kind::Mirror => (self.several("mirror", 2, size)?, Layout::Mirror),
        })
    }

    /// The words that name a kind's storage to vblk; the NBD server runs from then on.
    pub fn address(&mut self, kind: Kind) -> Result<String> {
        let (files, _) = self.files(kind)?;
        let list = |files: &[PathBuf]| {
            let names = files.iter().map(|file| file.display().to_string());
            names.collect::<Vec<_>>().join("|")
        };
        Ok(match kind {
            Kind::Device | Kind::Extents => list(&files),
            Kind::Segments | Kind::StripedSegments => self.volumes()?.address(kind),
            Kind::Nbd => format!("nbd:unix:{}", self.export(&files)?.display()),
            Kind::Stripe => format!("stripe:{}K:{}", CHUNK >> 10, list(&files)),
            Kind::Mirror => format!("mirror:{}", list(&files)),
        })
    }

    /// Process of the NBD server, once that runs.
    #[must_use]
    pub fn server(&self) -> Option<u32> {
        self.server.as_ref().map(Process::pid)
    }

    /// Socket of the NBD server.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.memory.path().join("nbd.sock")
    }

    fn several(&self, name: &str, count: u64, size: u64) -> Result<Vec<PathBuf>> {
        let paths: Vec<PathBuf> = (0..count).map(|i| self.at(&format!("{name}{i}"))).collect();
        for path in &paths {
            written(path, size)?;
        }
        Ok(paths)
    }

    fn device(&mut self) -> Result<PathBuf> {
        let image = self.at("device");
        written(&image, self.size)?;
        if self.device.is_none() {
            self.device = Some(LoopDevice::new(&image)?);
        }
        let device = self.device.as_ref().context("no loop device")?;
        Ok(device.0.clone())
    }

    fn pinnable(&mut self) -> Result<PathBuf> {
        if self.mounted.is_none() {
            let (image, at) = (self.at("ext4"), self.at("mnt"));
            // The file system's own part: journal, tables, what it keeps back.
            written(&image, (self.size + self.size / 4 + (64 << 20)) & !0xf_ffff)?;
            let device = LoopDevice::new(&image)?;
            tool(Command::new("mkfs.ext4").args(["-q", "-m0"]).arg(&device.0))?;
            std::fs::create_dir(&at)?;
            tool(Command::new("mount").arg(&device.0).arg(&at))?;
            self.mounted = Some(Mounted {
                at,
                _device: device,
            });
        }
        let path = self.at("mnt/disk");
        written(&path, self.size)?;
        Ok(path)
    }

    fn volumes(&mut self) -> Result<&Volumes> {
        if self.volumes.is_none() {
            let volumes = if self.spare.is_empty() {
                Volumes::on_loops(&[self.at("pv0"), self.at("pv1")], self.size)?
            } else {
                Volumes::new(&self.spare, self.size)?
            };
            self.volumes = Some(volumes);
        }
        self.volumes.as_ref().context("no volumes")
    }

    fn export(&mut self, files: &[PathBuf]) -> Result<PathBuf> {
        let socket = self.socket();
        if self.server.is_none() {
            let mut nbdkit = Command::new("nbdkit");
            nbdkit.args(["--foreground", "--unix"]).arg(&socket);
            nbdkit.arg("file").args(files);
            let log = self.at("nbdkit.log");
            let mut server = Process::start_alone(&mut nbdkit, self.server_cpu, &log)?;
            while !socket.exists() {
                server.check()?;
                ensure!(server.begin.elapsed() < PATIENCE, "nbdkit does not listen");
                std::thread::sleep(LOOK);
            }
            self.server = Some(server);
        }
        Ok(socket)
    }
}

/// Opens a file for direct I/O, as soon as nobody holds its immutable flag: a daemon that has ended
/// gives it back.
pub fn open_direct(path: &Path) -> Result<File> {
    let begin = Instant::now();
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::DIRECT;
    loop {
        match open(path, flags, Mode::empty()) {
            Ok(file) => return Ok(file.into()),
            Err(Errno::PERM) if begin.elapsed() < PATIENCE => std::thread::sleep(LOOK),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_throughout_and_named_as_vblk_wants() {
        let dir = tempfile::tempdir().unwrap();
        let mut scene = Scene::new(dir.path(), 8 << 20, 0, Vec::new()).unwrap();
        let (files, layout) = scene.files(Kind::Stripe).unwrap();
        assert_eq!(layout, Layout::Stripe(CHUNK));
        for file in &files {
            assert_eq!(std::fs::metadata(file).unwrap().len(), 2 << 20);
        }
        let address = scene.address(Kind::Stripe).unwrap();
        assert!(address.starts_with("stripe:64K:/"), "{address}");
        assert_eq!(address.matches('|').count(), 3);
        let bytes = std::fs::read(&files[3]).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0x5a));
    }

    #[test]
    fn a_tool_that_fails_is_quoted() {
        let error = tool(Command::new("losetup").args(["-d", "/nonexistent"])).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent"), "{error:#}");
    }
}
