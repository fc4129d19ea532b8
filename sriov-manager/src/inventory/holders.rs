//! Which processes have VFIO devices open, or nodes of RDMA's and disks of NVMe.
//!
//! `/proc/PID/fd` shows the nodes that are open; a kernel of 6.18 or newer also names the device
//! behind a device fd in `fdinfo` (`vfio-device-syspath:`). Descriptors under way in a socket or
//! registered with io_uring are in no such list, therefore a group is also tried: opening the node
//! of a group that somebody has gives EBUSY. (The node of a device, /dev/vfio/devices/vfioN, opens
//! any number of times; it proves nothing.)

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::address::PciAddr;
use crate::inventory::Use;
use crate::kernel::{Kernel, text};

/// Nodes by which a process uses a device without VFIO.
const OTHERS: [&str; 2] = ["/dev/infiniband/", "/dev/nvme"];

/// Open nodes by path, and devices by address, with those who have them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    nodes: BTreeMap<PathBuf, Vec<Use>>,
    devices: BTreeMap<PciAddr, Vec<Use>>,
}

impl Holders {
    /// Nodes whose path begins so, each with one who has it open.
    pub fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a Path, &'a Use)> {
        let nodes = self.nodes.iter();
        let nodes = nodes.filter(move |(node, _)| node.to_string_lossy().starts_with(prefix));
        nodes.flat_map(|(node, uses)| uses.iter().map(|one| (node.as_path(), one)))
    }

    /// Who has `node` or the device at `address` open.
    pub fn of(&self, nodes: &[PathBuf], address: PciAddr) -> Vec<Use> {
        let by_node = nodes.iter().filter_map(|node| self.nodes.get(node));
        let mut uses: Vec<Use> = by_node
            .chain(self.devices.get(&address))
            .flatten()
            .cloned()
            .collect();
        uses.dedup();
        uses
    }
}

/// Looks through all processes. Without nodes there is nothing to look for.
pub fn holders_of(kernel: &dyn Kernel) -> Holders {
    let mut holders = Holders::default();
    let listed = |dir| kernel.list(Path::new(dir)).unwrap_or_default();
    let others = |name: &String| name.starts_with("nvme") || name == "infiniband";
    if listed("/dev/vfio").iter().all(|node| node == "vfio") && !listed("/dev").iter().any(others) {
        return holders;
    }
    let processes = kernel.list(Path::new("/proc")).unwrap_or_default();
    for pid in processes.iter().filter_map(|name| name.parse::<u32>().ok()) {
        look_at(kernel, pid, &mut holders);
    }
    holders
}

fn look_at(kernel: &dyn Kernel, pid: u32, holders: &mut Holders) {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let holder = || Use::Vfio {
        pid,
        program: text(kernel, &process.join("comm")).unwrap_or_default(),
    };
    for fd in kernel.list(&process.join("fd")).unwrap_or_default() {
        let Ok(target) = kernel.link(&process.join("fd").join(&fd)) else {
            continue;
        };
        let name = target.to_string_lossy();
        let node = name.strip_suffix(" (deleted)").unwrap_or(&name);
        let node = PathBuf::from(node);
        let is_other = OTHERS.iter().any(|prefix| name.starts_with(prefix));
        if is_other || node.starts_with("/dev/vfio") {
            holders.nodes.entry(node).or_default().push(holder());
        } else if name.contains("vfio-device") {
            let info = text(kernel, &process.join("fdinfo").join(&fd)).unwrap_or_default();
            if let Some(address) = device_in(&info) {
                holders.devices.entry(address).or_default().push(holder());
            }
        }
    }
}

/// The device that an fd's `fdinfo` names.
fn device_in(info: &str) -> Option<PciAddr> {
    let path = info
        .lines()
        .find_map(|line| line.strip_prefix("vfio-device-syspath:"))?;
    path.trim().rsplit('/').next()?.parse().ok()
}

/// Whether the VFIO group `number` cannot be opened because somebody has it.
pub fn group_is_held(kernel: &dyn Kernel, number: u32) -> bool {
    let node = PathBuf::from(format!("/dev/vfio/{number}"));
    // The node cannot be read; whether it can be opened is all that is asked.
    let busy = |error: &std::io::Error| error.raw_os_error() == Some(Errno::BUSY.raw_os_error());
    kernel.read(&node).is_err_and(|error| busy(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_kernels_name_the_device() {
        let info = "pos:\t0\nflags:\t02\nvfio-device-syspath:\t\
                    /sys/devices/pci0000:e0/0000:e0:01.1/0000:e1:00.0\n";
        assert_eq!(device_in(info), "0000:e1:00.0".parse().ok());
        assert_eq!(device_in("pos: 0\n"), None);
    }
}
