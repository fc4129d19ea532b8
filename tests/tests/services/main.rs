//! Data services of the real vblk, seen from an in-process front-end: killed at the worst moments,
//! resized, limited, and asked where the time went.

mod backup;
mod confined;
mod forbidden;
mod hung;
mod kills;
mod limits;
mod mirror;
mod nbd;
mod pinned;
mod resize;
mod snapshot;
mod together;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

/// Guards against hanging, no more.
const PATIENCE: Duration = Duration::from_secs(60);

/// A sparse image of `bytes`, all zeroes.
fn create_image(path: &Path, bytes: u64) -> Result<()> {
    File::create(path)?.set_len(bytes)?;
    Ok(())
}
