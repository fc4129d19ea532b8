//! A file system of one file, whose server can fall silent: what a hung NFS server is to a client,
//! where there is no NFS client. A request that the server has not taken waits in the kernel, and
//! can be killed but not interrupted, as on a hard NFS mount.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Operations (include/uapi/linux/fuse.h).
mod op {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const INIT: u32 = 26;
    pub(super) const BATCH_FORGET: u32 = 42;
}

const ENOENT: i32 = 2;
const ENOSYS: i32 = 38;
/// Bytes of a request's header, and of an answer's.
const IN: usize = 40;
const OUT: u32 = 16;
/// The name of the file, and its number; 1 is the directory.
const NAME: &[u8] = b"image\0";
const FILE: u64 = 2;

/// The mounted file system, unmounted when dropped.
#[derive(Debug)]
pub struct Fuse {
    place: PathBuf,
    silent: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
    device: Arc<File>,
}

impl Fuse {
    /// Mounts a file `image` of `bytes` zeroes at the directory `place`.
    ///
    /// # Errors
    /// When this is not allowed here.
    pub fn mount(place: &Path, bytes: usize) -> Result<Fuse> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let device = Arc::new(device.context("no /dev/fuse")?);
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let data = std::ffi::CString::new(data)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("towpath", place, "fuse", flags, &*data).context("cannot mount FUSE here")?;
        let silent = Arc::new(AtomicBool::new(false));
        let (told, ours) = (Arc::clone(&silent), Arc::clone(&device));
        let server = std::thread::spawn(move || serve(&ours, &told, vec![0; bytes]));
        Ok(Fuse {
            place: place.to_owned(),
            silent,
            server: Some(server),
            device,
        })
    }

    /// No request is taken any more, from the next but one on.
    pub fn fall_silent(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // Its requests fail then, and the server's thread ends.
        let _ = unmount(&self.place, UnmountFlags::FORCE | UnmountFlags::DETACH);
        self.silent.store(false, Ordering::SeqCst);
        if let Some(server) = self.server.take() {
            server.thread().unpark();
            let _ = server.join();
        }
        let _ = &self.device;
    }
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let part = bytes.get(at..at + len).unwrap_or_default();
    part.iter().rev().fold(0, |sum, b| sum << 8 | u64::from(*b))
}

fn serve(device: &File, silent: &AtomicBool, mut image: Vec<u8>) {
    let mut request = vec![0; (1 << 20) + 4096];
    loop {
        while silent.load(Ordering::SeqCst) {
            std::thread::park();
        }
        let mut device = device;
        let len = match device.read(&mut request) {
            Ok(len) if len >= IN => len,
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::NotFound) => continue,
            // Unmounted.
            _ => return,
        };
        let (head, body) = request[..len].split_at(IN);
        let opcode = u32::try_from(number(head, 4, 4)).unwrap_or(0);
        let node = number(head, 16, 8);
        let Some(answer) = answer(opcode, node, body, &mut image) else {
            continue;
        };
        let (error, data) = match answer {
            Ok(data) => (0, data),
            Err(errno) => (-errno, Vec::new()),
        };
        let whole = OUT + u32::try_from(data.len()).unwrap_or(0);
        let mut bytes = whole.to_le_bytes().to_vec();
        bytes.extend(error.to_le_bytes());
        bytes.extend(&head[8..16]);
        bytes.extend(data);
        // A request that was given up is not answered.
        let _ = device.write(&bytes);
    }
}

/// The answer to a request; none for those that have none.
fn answer(op: u32, node: u64, body: &[u8], image: &mut [u8]) -> Option<Result<Vec<u8>, i32>> {
    let size = image.len() as u64;
    let range = |at: u64, len: u64| {
        let at = usize::try_from(at).unwrap_or(usize::MAX).min(image.len());
        at..at
            .saturating_add(usize::try_from(len).unwrap_or(0))
            .min(image.len())
    };
    Some(match op {
        op::FORGET | op::BATCH_FORGET => return None,
        op::INIT => {
            let mut out = Vec::new();
            // Version 7.31; read-ahead; no flags; background; congestion; most a write;
            // granularity.
            for word in [7_u32, 31, 0, 0] {
                out.extend(word.to_le_bytes());
            }
            out.extend(16_u16.to_le_bytes());
            out.extend(12_u16.to_le_bytes());
            out.extend((1_u32 << 17).to_le_bytes());
            out.extend(1_u32.to_le_bytes());
            out.resize(64, 0);
            Ok(out)
        }
        op::LOOKUP if body == NAME => {
            // Node, generation, validity of entry and attributes.
            let mut out = FILE.to_le_bytes().to_vec();
            out.extend(0_u64.to_le_bytes());
            out.extend(3600_u64.to_le_bytes());
            out.extend(3600_u64.to_le_bytes());
            out.extend(0_u64.to_le_bytes());
            out.extend(attributes(FILE, size));
            Ok(out)
        }
        op::LOOKUP => Err(ENOENT),
        op::GETATTR | op::SETATTR => {
            let mut out = 3600_u64.to_le_bytes().to_vec();
            out.extend(0_u64.to_le_bytes());
            out.extend(attributes(node, size));
            Ok(out)
        }
        op::OPEN => Ok(vec![0; 16]),
        op::READ => Ok(image[range(number(body, 8, 8), number(body, 16, 4))].to_vec()),
        op::WRITE => {
            let (at, len) = (number(body, 8, 8), number(body, 16, 4));
            let range = range(at, len);
            let data = body.get(40..40 + range.len())?;
            image[range].copy_from_slice(data);
            let mut out = u32::try_from(len).unwrap_or(0).to_le_bytes().to_vec();
            out.extend([0; 4]);
            Ok(out)
        }
        op::STATFS => Ok(vec![0; 80]),
        op::FSYNC | op::RELEASE => Ok(Vec::new()),
        _ => Err(ENOSYS),
    })
}

/// struct `fuse_attr`.
fn attributes(node: u64, size: u64) -> Vec<u8> {
    let directory = node != FILE;
    let mode: u32 = if directory { 0o40755 } else { 0o100_600 };
    let size = if directory { 0 } else { size };
    let mut out = Vec::new();
    for word in [node, size, size / 512, 0, 0, 0] {
        out.extend(word.to_le_bytes());
    }
    // Fractions of times, mode, links, owner, group, device, block size, flags.
    for word in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        out.extend(word.to_le_bytes());
    }
    out
}
