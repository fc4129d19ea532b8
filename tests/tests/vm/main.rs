//! Real virtual machines on real disks: QEMU, a Debian kernel, busybox, and vblk.
//!
//! Each scenario is one guest, or one guest booted twice. They run one at a time (see
//! `towpath_tests::vm`), about 5 s each without KVM.

mod boot;
mod device;
mod filesystem;
mod harness;
mod migrate;
mod proof;
mod resize;
mod restart;
mod volumes;

use std::fs::File;
use std::path::Path;

use anyhow::Result;

const MIB: u64 = 1 << 20;

/// A sparse image of `bytes`, all zeroes.
fn create_image(path: &Path, bytes: u64) -> Result<()> {
    File::create(path)?.set_len(bytes)?;
    Ok(())
}
