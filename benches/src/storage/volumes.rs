//! Logical volumes of a group of their own on two devices; the group goes with the value.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::plan::Kind;
use super::scene::{LoopDevice, tool};
use crate::runner::written;

/// Room on each device for the group's own records, and for extents that do not come out even.
const EXTRA: u64 = 16 << 20;
/// Devices of the group.
const DEVICES: usize = 2;

/// A group with a volume of each kind.
#[derive(Debug)]
pub struct Volumes {
    group: String,
    devices: Vec<PathBuf>,
    /// After the group: `drop` runs before.
    _loops: Vec<LoopDevice>,
}

/// Runs LVM.
fn lvm(words: &[&str]) -> Result<String> {
    tool(Command::new("lvm").args(words)).with_context(|| format!("lvm {}", words.join(" ")))
}

/// Bytes of a device that has room for half of two volumes of `size` bytes.
#[must_use]
pub fn device_size(size: u64) -> u64 {
    size + EXTRA
}

impl Volumes {
    /// On loop devices with direct I/O on new files at `images`, written throughout.
    pub fn on_loops(images: &[PathBuf; DEVICES], size: u64) -> Result<Self> {
        let mut loops = Vec::new();
        for image in images {
            written(image, device_size(size))?;
            loops.push(LoopDevice::new(image)?);
        }
        let devices: Vec<PathBuf> = loops.iter().map(|one| one.path().into()).collect();
        let mut volumes = Self::new(&devices, size)?;
        volumes._loops = loops;
        Ok(volumes)
    }

    /// Volumes of `size` bytes, whole MiB, on `devices`, which lose what they have.
    pub fn new(devices: &[PathBuf], size: u64) -> Result<Self> {
        ensure!(
            devices.len() == DEVICES,
            "logical volumes are measured on {DEVICES} devices"
        );
        let names: Vec<String> = devices.iter().map(|d| d.display().to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        // No `-`: device-mapper doubles it.
        let group = format!("towpathbench{}", std::process::id());
        let this = Self {
            group: group.clone(),
            devices: devices.to_vec(),
            _loops: Vec::new(),
        };
        lvm(&[&["pvcreate", "--yes", "-ff"], names.as_slice()].concat())?;
        lvm(&[
            &["vgcreate", "--physicalextentsize", "1m", &group],
            names.as_slice(),
        ]
        .concat())?;
        let create = ["lvcreate", "--yes", "--wipesignatures", "n", "--size"];
        let size = format!("{}m", size >> 20);
        let striped = [&size, "--stripes", "2", "--stripesize", "64k", "--name"];
        let striped = [
            &striped,
            [Self::name(Kind::StripedSegments), &group].as_slice(),
        ]
        .concat();
        lvm(&[create.as_slice(), &striped].concat())?;
        // What is left of the first device has room for half of it and a little.
        let linear = [&size, "--name", Self::name(Kind::Segments), &group];
        lvm(&[create.as_slice(), &linear].concat())?;
        Ok(this)
    }

    fn name(kind: Kind) -> &'static str {
        if kind == Kind::StripedSegments {
            "striped"
        } else {
            "linear"
        }
    }

    /// The volume as device-mapper has it.
    #[must_use]
    pub fn path(&self, kind: Kind) -> PathBuf {
        let name = format!("{}-{}", self.group, Self::name(kind));
        Path::new("/dev/mapper").join(name)
    }

    /// The words that name it to vblk.
    #[must_use]
    pub fn address(&self, kind: Kind) -> String {
        format!("lvm:{}/{}", self.group, Self::name(kind))
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        let mut ends = vec![lvm(&["vgremove", "--yes", "--force", &self.group])];
        for device in &self.devices {
            ends.push(lvm(&["pvremove", "--yes", &device.display().to_string()]));
        }
        for error in ends.into_iter().filter_map(Result::err) {
            eprintln!("{error:#}");
        }
    }
}
