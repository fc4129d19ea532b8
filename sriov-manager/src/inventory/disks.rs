//! Which disks are used, and which PCI functions they are behind: what is mounted, swapped to, or,
//! of NVMe, open in a process. Followed through partitions, device-mapper and RAID.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::address::PciAddr;
use crate::inventory::{Holders, Use};
use crate::kernel::{Kernel, text};

/// Mounts without which the system does not run or does not come back.
const SYSTEM_MOUNTS: [&str; 6] = ["/", "/usr", "/var", "/boot", "/boot/efi", "/nix/store"];
/// Levels of device-mapper, RAID and partitions.
const MAX_LAYERS: usize = 8;

/// Uses of disks, by function.
#[derive(Debug, Default)]
pub(super) struct Disks(BTreeMap<PciAddr, Vec<Use>>);

impl Disks {
    pub(super) fn read(kernel: &dyn Kernel, holders: &Holders) -> Self {
        let mut disks = Self::default();
        let mounts = text(kernel, Path::new("/proc/self/mountinfo")).unwrap_or_default();
        for (dir, mount) in mounts.lines().filter_map(|line| mounted(kernel, line)) {
            disks.add(kernel, &dir, &Use::Mounted { mount });
        }
        let swaps = text(kernel, Path::new("/proc/swaps")).unwrap_or_default();
        let swaps = swaps.lines().filter_map(|line| line.split(' ').next());
        for dir in swaps.filter_map(|source| by_name(kernel, source)) {
            let mount = "swap".to_owned();
            disks.add(kernel, &dir, &Use::Mounted { mount });
        }
        for (node, holder) in holders.under("/dev/nvme") {
            if let Some(dir) = by_name(kernel, &node.to_string_lossy()) {
                disks.add(kernel, &dir, holder);
            }
        }
        disks
    }

    fn add(&mut self, kernel: &dyn Kernel, dir: &Path, one: &Use) {
        let mut functions = BTreeSet::new();
        functions_behind(kernel, dir, MAX_LAYERS, &mut functions);
        for function in functions {
            let uses = self.0.entry(function).or_default();
            if !uses.contains(one) {
                uses.push(one.clone());
            }
        }
    }

    /// Who uses disks of the function at `address`.
    pub(super) fn of(&self, address: PciAddr) -> impl Iterator<Item = Use> {
        self.0.get(&address).into_iter().flatten().cloned()
    }

    /// A mount that the system needs of a disk behind the function at `address`.
    pub(super) fn system(&self, address: PciAddr) -> Option<String> {
        self.of(address).find_map(|one| match one {
            Use::Mounted { mount } if SYSTEM_MOUNTS.contains(&mount.as_str()) => Some(mount),
            _ => None,
        })
    }
}

/// The directory of the block device called `source`, if that is one.
fn by_name(kernel: &dyn Kernel, source: &str) -> Option<PathBuf> {
    let source = Path::new(source);
    let node = source.starts_with("/dev").then(|| kernel.link(source).ok());
    let name = node.flatten()?.file_name()?.to_owned();
    kernel.link(&Path::new("/sys/class/block").join(name)).ok()
}

/// The directory of what is mounted, and where; of a line of `mountinfo` (proc(5)).
fn mounted(kernel: &dyn Kernel, line: &str) -> Option<(PathBuf, String)> {
    let words: Vec<&str> = line.split(' ').collect();
    let (device, mount) = (words.get(2)?, words.get(4)?);
    let separator = words.iter().position(|word| *word == "-");
    let source = separator.and_then(|at| words.get(at + 2));
    let dir = source.and_then(|source| by_name(kernel, source));
    let by_number = || kernel.link(&Path::new("/sys/dev/block").join(device)).ok();
    Some((dir.or_else(by_number)?, (*mount).to_owned()))
}

fn functions_behind(kernel: &dyn Kernel, dir: &Path, layers: usize, found: &mut BTreeSet<PciAddr>) {
    let parts = dir.iter().map(|part| part.to_string_lossy());
    found.extend(parts.filter_map(|part| part.parse::<PciAddr>().ok()));
    if layers == 0 {
        return;
    }
    // Of device-mapper and RAID, and of the whole device that a partition is part of.
    let parent = dir.parent().map(Path::to_path_buf);
    for dir in [Some(dir.to_path_buf()), parent].into_iter().flatten() {
        for slave in kernel.list(&dir.join("slaves")).unwrap_or_default() {
            if let Ok(slave) = kernel.link(&dir.join("slaves").join(slave)) {
                functions_behind(kernel, &slave, layers - 1, found);
            }
        }
    }
    // NVMe with several paths: the disk belongs to a subsystem, which has controllers.
    let mut ancestors = dir.ancestors();
    let subsystem = ancestors.find(|dir| {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("nvme-subsys")
    });
    if let Some(subsystem) = subsystem {
        for name in kernel.list(subsystem).unwrap_or_default() {
            let controller = subsystem.join(&name);
            let is_link = name.starts_with("nvme") && !name.contains("subsys");
            if let Some(path) = is_link.then(|| kernel.link(&controller).ok()).flatten()
                && !path.starts_with(subsystem)
            {
                functions_behind(kernel, &path, layers - 1, found);
            }
        }
    }
}
