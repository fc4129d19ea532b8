//! From a configured source to an open disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::lvm::{self, LvmError};
use super::mirror::record::{Record, RecordError};
use super::mirror::{Member, Mirror, MirrorError, Options};
use super::nbd::{Export, NbdError};
use super::pinned::{PinError, Pinned};
use super::stripe::{Stripe, StripeError};
use crate::config::{self, FileLock, FileMap, Polling, Source};
use crate::disk::{self, Disk, DiskError};

/// Why a storage cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or a device.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A stripe.
    #[error(transparent)]
    Stripe(#[from] StripeError),
    /// A file by its extents.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// An NBD export.
    #[error(transparent)]
    Nbd(#[from] NbdError),
    /// A logical volume.
    #[error(transparent)]
    Lvm(#[from] LvmError),
    /// A mirror.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// A mirror without a place for its record.
    #[error(
        "the mirror's first disk {0} is no file to keep the record beside; name a file, such as \
             record = \"/var/lib/towpath/web.mirror\""
    )]
    NoRecord(String),
}

/// Open the storage that `config` names. May block for as long as storage takes.
///
/// # Errors
/// [`OpenError`].
pub fn open(config: &config::Disk) -> Result<Disk, OpenError> {
    open_source(&config.path, config)
}

fn open_source(source: &Source, config: &config::Disk) -> Result<Disk, OpenError> {
    let serial = disk::Serial::new(config.serial.as_str())?;
    refuse_polling(source, config)?;
    let spec = |path: PathBuf| disk::Spec {
        path,
        read_only: config.read_only,
        cache: config.cache,
        block_size: config
            .block_size
            .and_then(|b| disk::BlockSize::new(b.bytes())),
        serial: Some(serial),
    };
    match source {
        Source::Null { size } => Ok(Disk::null(size.bytes())),
        Source::File(path) => {
            let spec = spec(path.clone());
            match config.map {
                FileMap::File | FileMap::Segments => {
                    let disk = match config.lock {
                        FileLock::Open => Disk::open(&spec)?,
                        FileLock::Running => Disk::open_moving(&spec)?,
                    };
                    Ok(disk.polled(path, config.polling)?)
                }
                FileMap::Extents => Ok(Pinned::disk(&spec, serial)?),
            }
        }
        Source::Nbd(address) => {
            let connections = config.connections.get();
            Ok(Export::disk(
                address,
                config.read_only,
                connections,
                serial,
            )?)
        }
        Source::Lvm(volume) => {
            let spec = spec(PathBuf::new());
            match config.map {
                FileMap::Segments => Ok(lvm::open_segments(volume, &spec, serial)?),
                FileMap::File | FileMap::Extents => Ok(lvm::open(volume, &spec)?),
            }
        }
        Source::Mirror(of) => {
            let path = record_path(of, config.record.as_deref())?;
            let options = mirror_options(config);
            let members = of.iter().map(|source| member(source, config)).collect();
            Ok(Mirror::disk(members, &path, &options, serial)?)
        }
        Source::Stripe { chunk, of } => {
            let children: Result<Vec<_>, OpenError> = of
                .iter()
                .map(|child| open_source(child, config).map(Arc::new))
                .collect();
            Ok(Stripe::disk(children?, chunk.bytes(), serial)?)
        }
    }
}

/// Only devices, as they are, are polled; of disks made of others each has its own say.
fn refuse_polling(source: &Source, config: &config::Disk) -> Result<(), DiskError> {
    let plain = matches!(source, Source::File(_)) && config.map == FileMap::File;
    let composed = matches!(source, Source::Mirror(_) | Source::Stripe { .. });
    if config.polling == Polling::Off || plain || composed {
        return Ok(());
    }
    Err(DiskError::NotPolled {
        what: source.to_string(),
        why: "it is not a block device, reached as it is",
    })
}

fn member(source: &Source, config: &config::Disk) -> Member {
    let (one, config) = (source.clone(), config.clone());
    Member {
        name: source.to_string(),
        open: Box::new(move || open_source(&one, &config).map_err(|e| e.to_string())),
        returns: matches!(source, Source::Nbd(_)),
    }
}

/// How a mirror is to be used.
pub(crate) fn mirror_options(config: &config::Disk) -> Options {
    Options {
        prefer: config.prefer.map(|n| usize::from(n.get()) - 1),
        rate: config.resync_rate.bytes(),
        timeout: Duration::from_secs(config.mirror_timeout.get().into()),
    }
}

/// Where the record of a mirror over `of` is: as said, or beside the first disk.
fn record_path(of: &[Source], said: Option<&Path>) -> Result<PathBuf, OpenError> {
    match (said, of.first()) {
        (Some(path), _) => Ok(path.to_owned()),
        (None, Some(Source::File(path))) if !path.starts_with("/dev") => {
            let mut name = path.clone().into_os_string();
            name.push(".mirror");
            Ok(name.into())
        }
        (None, first) => {
            let first = first.map(ToString::to_string).unwrap_or_default();
            Err(OpenError::NoRecord(first))
        }
    }
}

/// Make the record of a new mirror over `source`: its disks are `equal` already, or the first one
/// is to be copied to the others.
///
/// # Errors
/// [`OpenError`]; there is no new record then.
pub fn create_mirror(
    source: &Source,
    record: Option<&Path>,
    equal: bool,
) -> Result<Created, OpenError> {
    let Source::Mirror(of) = source else {
        return Err(MirrorError::Count(1).into());
    };
    let path = record_path(of, record)?;
    let mut size = u64::MAX;
    for one in of {
        size = size.min(match one {
            Source::File(path) => length(path)?,
            Source::Nbd(address) => Export::size(address)?,
            Source::Lvm(volume) => length(Path::new(&format!("/dev/{volume}")))?,
            _ => u64::MAX,
        });
    }
    let names: Vec<String> = of.iter().map(ToString::to_string).collect();
    // Whole blocks of any size a disk may have.
    let record = Record::first(size & !4095, &names, equal);
    record.create(&path).map_err(MirrorError::from)?;
    Ok(Created {
        path,
        size: size & !4095,
    })
}

/// A new mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Its record.
    pub path: PathBuf,
    /// Bytes of it.
    pub size: u64,
}

/// Bytes of a file or device.
fn length(path: &Path) -> Result<u64, OpenError> {
    use std::io::Seek;
    let end = std::fs::File::open(path).and_then(|mut f| f.seek(std::io::SeekFrom::End(0)));
    let end = end.map_err(|source| RecordError::Io {
        what: "open",
        path: path.to_owned(),
        source,
    });
    Ok(end.map_err(MirrorError::from)?)
}
