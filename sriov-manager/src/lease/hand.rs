//! A device, opened for somebody else.
//!
//! Two descriptors are enough for a VMM without any privilege: the device's own node and an
//! iommufd, where the kernel has them, or the group and a container. The VMM makes every ioctl
//! itself. Opening and handing over needs none, and no copy is kept: a device whose descriptor
//! somebody keeps stays bound after its VMM's end.
//!
//! QEMU takes descriptors only with iommufd; otherwise it opens the group by its name, for which
//! the node is given to its user ([`How::Node`]).

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::PciAddr;
use crate::kernel::Kernel;

/// How a device is handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// As descriptors.
    #[default]
    Fds,
    /// By giving its node to the user.
    Node,
}

/// Descriptors, and what they are.
#[derive(Debug, Default)]
pub struct Opened {
    /// `container` and `group`, or `iommufd` and `device`.
    pub names: Vec<String>,
    /// In the same order.
    pub fds: Vec<OwnedFd>,
}

/// The node of a group.
pub(super) fn group_node(group: u32) -> PathBuf {
    PathBuf::from(format!("/dev/vfio/{group}"))
}

/// The node of a device, on kernels that have them.
fn device_node(kernel: &dyn Kernel, vf: PciAddr) -> Option<PathBuf> {
    let names = kernel.list(&vf.file("vfio-dev")).ok()?;
    let path = PathBuf::from(format!("/dev/vfio/devices/{}", names.first()?));
    path.exists().then_some(path)
}

fn open(path: PathBuf) -> io::Result<OwnedFd> {
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("cannot open {}: {error}", path.display()),
            )
        })?;
    Ok(file.into())
}

/// Opens the device at `vf` in group `group`.
pub(super) fn fds(kernel: &dyn Kernel, vf: PciAddr, group: u32) -> io::Result<Opened> {
    let iommufd = PathBuf::from("/dev/iommu");
    let (names, paths) = match device_node(kernel, vf).filter(|_| iommufd.exists()) {
        Some(device) => (["iommufd", "device"], [iommufd, device]),
        None => (
            ["container", "group"],
            ["/dev/vfio/vfio".into(), group_node(group)],
        ),
    };
    let fds = paths
        .into_iter()
        .map(open)
        .collect::<io::Result<Vec<OwnedFd>>>()?;
    let names = names.map(str::to_owned).to_vec();
    Ok(Opened { names, fds })
}

/// Gives the node of `group` to `uid`.
pub(super) fn give(group: u32, uid: u32) -> io::Result<()> {
    let node = group_node(group);
    chown(&node, Some(uid), None)?;
    std::fs::set_permissions(&node, Permissions::from_mode(0o600))
}

/// Takes it back. A node that is gone is nobody's.
pub(super) fn take_back(group: u32) -> io::Result<()> {
    match chown(group_node(group), Some(0), Some(0)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        taken => taken,
    }
}
