//! `vblk restore` and `vblk verify`: reading backups again, without a daemon.
//!
//! A disk is restored from a chain: each block comes from the newest backup that has it. What is
//! restored to is opened as a disk is for serving, so one that a daemon or QEMU has is refused.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::BackupError;
use super::bitmap::BLOCK;
use super::manifest::{Manifest, Sum, beside};
use super::plan::{create, open_data};
use super::volume::Volume;
use crate::storage::nbd::address::is_address;

/// Most corrupt blocks that are named.
pub const MAX_NAMED: usize = 100;

/// What became of a restore or a verification.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Backups that were read: the one named, and those it is built upon.
    pub backups: usize,
    /// Blocks that were read.
    pub blocks: u64,
    /// Bytes of the disk.
    pub bytes: u64,
}

/// Told of how far it is: blocks done, of how many.
pub type Watch<'a> = &'a mut dyn FnMut(u64, u64);

/// The chain of the backup `path`, its data or its manifest, the newest first.
fn chain(path: &Path) -> Result<Vec<Manifest>, BackupError> {
    let manifest = beside(path);
    Manifest::chain(if manifest.exists() { &manifest } else { path })
}

/// A backup with its data.
struct Source {
    manifest: Manifest,
    data: Volume,
}

impl Source {
    fn open(manifest: Manifest) -> Result<Source, BackupError> {
        let disk = Arc::new(open_data(&manifest.data(), true)?);
        let data = Volume::new(disk).map_err(|e| BackupError::NoMemory(e.to_string()))?;
        Ok(Source { manifest, data })
    }

    /// Read `block`, if this backup has it, and check it; its sum.
    fn read(&mut self, block: u64, buf: &mut Vec<u8>) -> Result<Option<Sum>, BackupError> {
        let Some(sum) = self.manifest.blocks.get(&block).copied() else {
            return Ok(None);
        };
        let len = usize::try_from(self.manifest.header.len(block)).unwrap_or(0);
        buf.clear();
        buf.resize(len, 0);
        if sum != Sum::Zero {
            self.data.read(block * BLOCK, buf)?;
            if Sum::of(buf) != sum {
                return Err(BackupError::Corrupt {
                    block,
                    data: self.manifest.data(),
                    manifest: self.manifest.path.clone(),
                });
            }
        }
        Ok(Some(sum))
    }
}

/// Write the disk that the backup `from` holds to `to`: a file or a device that nobody uses. One
/// that exists is written over only if `overwrite` says so.
///
/// # Errors
/// [`BackupError`]. What was written to is of no use then, a file that was made is removed.
pub fn restore(
    from: &Path,
    to: &str,
    overwrite: bool,
    watch: Watch<'_>,
) -> Result<Summary, BackupError> {
    let chain = chain(from)?;
    let sources: Result<Vec<Source>, _> = chain.into_iter().map(Source::open).collect();
    let mut sources = sources?;
    let Some(size) = sources.first().map(|s| s.manifest.header.size) else {
        return Ok(Summary::default());
    };
    let path = Path::new(to);
    let fresh = !is_address(to) && !path.exists();
    if fresh {
        create(path, size)?;
    } else if !overwrite {
        let why = format!("{to} exists: --overwrite restores over it, and all on it is lost");
        return Err(BackupError::Target(why));
    }
    let done = fill(&mut sources, to, fresh, size, watch);
    if done.is_err() && fresh {
        let _ours_and_useless = std::fs::remove_file(path);
    }
    done
}

fn fill(
    sources: &mut [Source],
    to: &str,
    fresh: bool,
    size: u64,
    watch: Watch<'_>,
) -> Result<Summary, BackupError> {
    let disk = Arc::new(open_data(to, false)?);
    // Locked before it is cut or grown.
    if let (false, false, Some(file)) = (fresh, disk.is_device(), disk.file()) {
        let sized = rustix::fs::ftruncate(file, size);
        sized.map_err(|e| BackupError::file("size", Path::new(to), e.into()))?;
    } else if disk.size() < size {
        let there = disk.size();
        let why = format!("{to} has {there} bytes, the disk in the backup {size}");
        return Err(BackupError::Target(why));
    }
    // Of the size it has now.
    drop(disk);
    let disk = Arc::new(open_data(to, false)?);
    let mut target = Volume::new(disk).map_err(|e| BackupError::NoMemory(e.to_string()))?;
    let blocks = size.div_ceil(BLOCK);
    let mut summary = Summary {
        backups: sources.len(),
        bytes: size,
        ..Summary::default()
    };
    let mut buf = Vec::new();
    for block in 0..blocks {
        watch(block, blocks);
        let (at, len) = (block * BLOCK, (size - block * BLOCK).min(BLOCK));
        let mut found = None;
        for source in sources.iter_mut() {
            found = source.read(block, &mut buf)?;
            if found.is_some() {
                break;
            }
        }
        buf.resize(usize::try_from(len).unwrap_or(0), 0);
        match found {
            Some(Sum::Hash(_)) => target.write(at, &buf)?,
            // A block that no backup has was never anything but zeroes.
            Some(Sum::Zero) | None if fresh => {}
            Some(Sum::Zero) | None => target.zero(at, len)?,
        }
        summary.blocks += u64::from(found.is_some());
    }
    target.flush()?;
    watch(blocks, blocks);
    Ok(summary)
}

/// Read every block of the backup `path`, and of those it is built upon that a restore would read;
/// what is corrupt is told to `corrupt`.
///
/// # Errors
/// If one of them cannot be read at all, or is not complete.
pub fn verify(
    path: &Path,
    corrupt: &mut dyn FnMut(BackupError),
    watch: Watch<'_>,
) -> Result<Summary, BackupError> {
    let chain = chain(path)?;
    let newest = chain.first().map(|m| (m.header.size, m.header.blocks()));
    let (bytes, within) = newest.unwrap_or_default();
    let total: BTreeSet<u64> = chain
        .iter()
        .flat_map(|m| m.blocks.keys().copied())
        .collect();
    let total = total.range(..within).count() as u64;
    let mut summary = Summary {
        backups: chain.len(),
        bytes,
        ..Summary::default()
    };
    let (mut buf, mut seen) = (Vec::new(), BTreeSet::new());
    for manifest in chain {
        let mut source = Source::open(manifest)?;
        let here: Vec<u64> = source.manifest.blocks.keys().copied().collect();
        for block in here.into_iter().filter(|b| *b < within) {
            if !seen.insert(block) {
                continue;
            }
            watch(summary.blocks, total);
            summary.blocks += 1;
            match source.read(block, &mut buf) {
                Ok(_) => {}
                Err(error @ (BackupError::Corrupt { .. } | BackupError::Storage { .. })) => {
                    corrupt(error);
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(summary)
}
