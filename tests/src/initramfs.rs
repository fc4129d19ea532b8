//! What a guest boots into: busybox, and a [`Kit`] of modules and programs.
//!
//! `/init` mounts the kernel's file systems, loads the modules in the order written to
//! `/modules/order`, runs `/scenario` and powers off. The scenario's output goes to the second
//! serial port, which carries nothing else; its trace (`sh -x`) goes to the first, among the
//! kernel's messages, for whoever reads about a failure. The last line on the second port is
//! `exit: N`, with the scenario's status.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

use crate::cargo;
use crate::cpio::Cpio;
use crate::paths;

/// What a guest is for. Each has what it needs and no more: all of it is loaded at each boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kit {
    /// Disks: `mkfs.ext4` and `records`.
    Disk,
    /// File systems of several kinds under stress: `mkfs.ext4`, `mkfs.xfs`, `dmsetup`, `records`
    /// and `exercise`.
    Proof,
    /// Networks: `ethtool` and `talk`.
    Net,
    /// Disks and networks: `mkfs.ext4`, `exercise` and `talk`.
    Whole,
    /// Cards with VFs: `ip`, `sriov-manager`, and `vfio-user`, which opens what it is handed.
    Sriov,
    /// Disks and file systems that are written and verified by `fio`: `mkfs.ext4`, `mkfs.xfs`,
    /// `records`.
    Fio,
    /// Logical volumes and other devices: `lvm`, `dmsetup`, `vblk` and `tenant`.
    Lvm,
    /// Logical volumes on disks in the guest's memory that are measured: `lvm`, `vblk` and the
    /// bench `storage`.
    Volumes,
    /// An NVMe device of the guest's own, served and used there: `vblk` and `tenant`.
    Storage,
    /// An NFS server and its client in one: `vblk` and `tenant`.
    Nfs,
    /// Cards with VFs on a [newer kernel](modern), with iommufd and netdevsim, and `eswitch`.
    Iommufd,
    /// A Debian on its first disk, which takes over: no programs. The last of all.
    Debian,
}

impl Kit {
    /// Modules a guest loads; what these need in turn is read from the kernel's own table.
    /// (ext4 asks the crypto layer for crc32c by name, so that table does not list it.)
    fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Disk | Self::Debian => &["crc32c_generic", "virtio_blk", "ext4"],
            Self::Fio => &["crc32c_generic", "virtio_blk", "ext4", "xfs"],
            Self::Proof => &[
                "crc32c_generic",
                "virtio_blk",
                "ext4",
                "xfs",
                "dm-log-writes",
            ],
            Self::Net => &["virtio_net", "8021q"],
            Self::Whole => &["crc32c_generic", "virtio_blk", "ext4", "virtio_net"],
            Self::Volumes => &["brd", "dm-mod"],
            Self::Storage => &["nvme"],
            Self::Nfs => &["nfsd", "nfsv4"],
            Self::Lvm => &[
                "crc32c_generic",
                "ext4",
                "loop",
                "dm-mod",
                "dm-snapshot",
                "dm-thin-pool",
                "dm-log-writes",
                "dm-mirror",
                "dm-cache",
                "dm-cache-smq",
            ],
            Self::Sriov => &["igb", "igbvf", "nvme", "vfio-pci", "vfio_iommu_type1"],
            Self::Iommufd => &["igb", "igbvf", "nvme", "iommufd", "vfio-pci", "netdevsim"],
        }
    }

    /// Programs of the host, and of this workspace with their packages.
    fn programs(self) -> Option<Programs> {
        Some(match self {
            Self::Debian => return None,
            Self::Disk => (&["mkfs.ext4"], &[("towpath-tests", "records")]),
            Self::Proof => (
                &["mkfs.ext4", "mkfs.xfs", "dmsetup"],
                &[("towpath-tests", "records"), ("towpath-tests", "exercise")],
            ),
            Self::Net => (&["ethtool"], &[("towpath-tests", "talk")]),
            Self::Whole => (
                &["mkfs.ext4"],
                &[("towpath-tests", "exercise"), ("towpath-tests", "talk")],
            ),
            Self::Fio => (
                &["fio", "mkfs.ext4", "mkfs.xfs"],
                &[("towpath-tests", "records")],
            ),
            Self::Lvm => (
                &["lvm", "dmsetup"],
                &[("vblk", "vblk"), ("towpath-tests", "tenant")],
            ),
            Self::Volumes => (
                &["lvm"],
                &[("vblk", "vblk"), ("towpath-benches", "storage")],
            ),
            Self::Storage | Self::Nfs => (&[], &[("vblk", "vblk"), ("towpath-tests", "tenant")]),
            Self::Sriov => (&["ip"], &[("sriov-manager", "sriov-manager")]),
            Self::Iommufd => (
                &["ip"],
                &[
                    ("sriov-manager", "sriov-manager"),
                    ("towpath-tests", "eswitch"),
                ],
            ),
        })
    }

    /// Whether it is about cards with VFs.
    fn has_cards(self) -> bool {
        matches!(self, Self::Sriov | Self::Iommufd)
    }

    /// Where its kernel is, and what puts it there.
    fn kernel(self) -> (PathBuf, &'static str) {
        match self {
            Self::Iommufd => (modern(), "make iommufd"),
            _ => (paths::cache().join("kernel"), "make packages"),
        }
    }
}

type Programs = (
    &'static [&'static str],
    &'static [(&'static str, &'static str)],
);

const DIRECTORIES: [&str; 8] = ["bin", "dev", "proc", "sys", "mnt", "tmp", "run", "modules"];

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/sbin
exec 3<>/dev/ttyS1
stty -F /dev/ttyS1 raw -echo
while read -r module; do
    # Parameters of modules are on the kernel's command line, as they would be for modprobe.
    set -- $(tr ' ' '\n' </proc/cmdline | sed -n "s/^$module\.//p")
    insmod "/modules/$module" "$@" || echo "insmod $module failed" >&3
done </modules/order
sh -eux /scenario <&3 >&3 2>/dev/ttyS0
echo "exit: $?" >&3
exec 3>&-
poweroff -f
"#;

/// The same for a Debian: its systemd becomes process 1.
const SWITCH: &str = r#"#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/sbin
while read -r module; do
    insmod "/modules/$module"
done </modules/order
mount -t ext4 /dev/vda /mnt
for at in dev proc sys; do mount --move /$at /mnt/$at; done
exec switch_root /mnt /sbin/init
"#;

/// Where the kernel with iommufd and netdevsim is, which Debian's lacks, once it was fetched.
pub fn modern() -> PathBuf {
    paths::cache().join("kernel-iommufd")
}

/// The kernel image for guests of this kind.
///
/// # Errors
/// When it has not been fetched, with the command that fetches it.
pub fn kernel(kit: Kit) -> Result<PathBuf> {
    let (dir, remedy) = kit.kernel();
    let path = dir.join("vmlinuz");
    ensure!(
        path.is_file(),
        "no guest kernel at {}; run: {remedy}",
        path.display()
    );
    Ok(path)
}

/// An initramfs that runs the shell script `scenario`: the base archive and one small file.
///
/// # Errors
/// When a part is missing on this machine; the message names it and the remedy.
pub fn with_scenario(kit: Kit, scenario: &str) -> Result<Vec<u8>> {
    const KITS: usize = Kit::Debian as usize + 1;
    static BASES: [OnceLock<Result<Vec<u8>, String>>; KITS] = [const { OnceLock::new() }; KITS];
    let base = BASES[kit as usize].get_or_init(|| base(kit).map_err(|error| format!("{error:#}")));
    let mut archive = base.as_ref().map_err(|error| anyhow!("{error}"))?.clone();
    let mut cpio = Cpio::new();
    cpio.file("scenario", scenario.as_bytes());
    archive.extend_from_slice(&cpio.finish());
    Ok(archive)
}

fn base(kit: Kit) -> Result<Vec<u8>> {
    let mut cpio = Cpio::new();
    for directory in DIRECTORIES {
        cpio.directory(directory);
    }
    let init = if kit == Kit::Debian { SWITCH } else { INIT };
    cpio.program("init", init.as_bytes());
    cpio.program("bin/busybox", &busybox()?);
    add_modules(&mut cpio, kit)?;
    let Some((theirs, ours)) = kit.programs() else {
        return Ok(cpio.finish());
    };
    let mut programs = Vec::new();
    for name in theirs {
        programs.push((paths::program(name)?, format!("bin/{name}")));
    }
    let mut built = Vec::new();
    for (package, name) in ours {
        let program = stripped(&cargo::program(package, name)?)?;
        programs.push((program.path().into(), format!("bin/{name}")));
        built.push(program);
    }
    let compiled = tempfile::tempdir()?;
    if kit.has_cards() {
        let helper = compiled.path().join("vfio-user");
        compile(&paths::repository().join("tests/data/vfio-user.c"), &helper)?;
        programs.push((helper, "bin/vfio-user".into()));
    }
    add_programs(&mut cpio, &programs)?;
    Ok(cpio.finish())
}

fn busybox() -> Result<Vec<u8>> {
    let path = paths::program("busybox")?;
    ensure!(
        libraries(&path)?.is_empty(),
        "{} is not the static one; run: make packages",
        path.display()
    );
    read(&path)
}

/// Adds programs and, at the paths their loader will look for them, the libraries they need.
fn add_programs(cpio: &mut Cpio, programs: &[(PathBuf, String)]) -> Result<()> {
    let mut needed = BTreeSet::new();
    for (path, name) in programs {
        needed.extend(libraries(path)?);
        cpio.program(name, &read(path)?);
    }
    let mut made = BTreeSet::new();
    for library in &needed {
        let parents: Vec<_> = library.ancestors().skip(1).collect();
        for parent in parents
            .iter()
            .rev()
            .filter(|parent| parent.parent().is_some())
        {
            if made.insert(parent.to_path_buf()) {
                cpio.directory(&parent.to_string_lossy());
            }
        }
        cpio.program(&library.to_string_lossy(), &read(library)?);
    }
    Ok(())
}

/// The absolute paths in `ldd`'s answer; none for a static program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

/// Compiles a program of one file in C.
fn compile(source: &Path, program: &Path) -> Result<()> {
    let status = Command::new("gcc")
        .args(["-O1", "-Wall", "-Werror", "-o"])
        .arg(program)
        .arg(source)
        .status()
        .context("cannot run gcc; run: make packages")?;
    ensure!(status.success(), "gcc {} failed", source.display());
    Ok(())
}

/// A copy without symbols: what a guest loads should be small.
fn stripped(program: &Path) -> Result<tempfile::NamedTempFile> {
    let copy = tempfile::NamedTempFile::new()?;
    let status = Command::new("strip")
        .arg("-o")
        .arg(copy.path())
        .arg(program)
        .status()
        .context("cannot run strip; run: make packages")?;
    ensure!(status.success(), "strip {} failed", program.display());
    Ok(copy)
}

fn add_modules(cpio: &mut Cpio, kit: Kit) -> Result<()> {
    kernel(kit)?;
    let (dir, remedy) = kit.kernel();
    let versions = dir.join("lib/modules");
    let version = fs::read_dir(&versions)
        .ok()
        .and_then(|mut entries| entries.next()?.ok())
        .with_context(|| format!("no modules in {}; run: {remedy}", versions.display()))?
        .path();
    let table = String::from_utf8(read(&version.join("modules.dep"))?)?;
    let mut order = String::new();
    for module in load_order(&table, kit.modules())? {
        let name = module_name(module);
        cpio.file(
            &format!("modules/{name}"),
            &decompressed(&version.join(module))?,
        );
        order.push_str(name);
        order.push('\n');
    }
    cpio.file("modules/order", order.as_bytes());
    Ok(())
}

/// Paths of `modules` and all they need, each after what it needs.
///
/// `table` is `modules.dep`: `path: path …`, where the list is complete and what must be loaded
/// first comes last (modules.dep(5)). A module that is not in the table is built in or absent.
fn load_order<'t>(table: &'t str, modules: &[&str]) -> Result<Vec<&'t str>> {
    let needs: HashMap<&str, (&str, &str)> = table
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needed)| (module_name(path), (path, needed)))
        .collect();
    let mut order = Vec::new();
    for module in modules {
        let (path, needed) = needs
            .get(module)
            .with_context(|| format!("the guest kernel has no module {module}"))?;
        for path in needed.split_whitespace().rev().chain([*path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    Ok(order)
}

/// `kernel/fs/ext4/ext4.ko.xz` is `ext4`, and `-` counts as `_`, except that we only ever ask for
/// names without either.
fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file)
}

fn decompressed(module: &Path) -> Result<Vec<u8>> {
    let program = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return read(module),
    };
    let output = Command::new(program)
        .arg("-dc")
        .arg(module)
        .output()
        .with_context(|| format!("cannot run {program}; run: make packages"))?;
    ensure!(
        output.status.success(),
        "{program} -dc {} failed",
        module.display()
    );
    Ok(output.stdout)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let table = "k/net/virtio_net.ko.xz: k/net/net_failover.ko.xz k/core/failover.ko.xz\n\
                     k/core/failover.ko.xz:\n\
                     k/net/net_failover.ko.xz: k/core/failover.ko.xz\n";
        let order = load_order(table, &["failover", "virtio_net"]).unwrap();
        let names: Vec<_> = order.into_iter().map(module_name).collect();
        assert_eq!(names, ["failover", "net_failover", "virtio_net"]);
    }

    #[test]
    fn a_missing_module_is_named() {
        let error = load_order("", &["virtio_blk"]).unwrap_err();
        assert!(error.to_string().contains("virtio_blk"));
    }
}
