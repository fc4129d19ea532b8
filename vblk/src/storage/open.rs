//! From a configured source to an open disk.

use std::sync::Arc;

use super::nbd::{Export, NbdError};
use super::pinned::{PinError, Pinned};
use super::stripe::{Stripe, StripeError};
use crate::config::{self, FileMap, Source};
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
    match source {
        Source::Null { size } => Ok(Disk::null(size.bytes())),
        Source::File(path) => {
            let block = config.block_size;
            let spec = disk::Spec {
                path: path.clone(),
                read_only: config.read_only,
                cache: config.cache,
                block_size: block.and_then(|b| disk::BlockSize::new(b.bytes())),
                serial: Some(serial),
            };
            match config.map {
                FileMap::File => Ok(Disk::open(&spec)?),
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
        Source::Stripe { chunk, of } => {
            let children: Result<Vec<_>, OpenError> = of
                .iter()
                .map(|child| open_source(child, config).map(Arc::new))
                .collect();
            Ok(Stripe::disk(children?, chunk.bytes(), serial)?)
        }
    }
}
