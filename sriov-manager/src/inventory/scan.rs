//! From the machine to an [`Inventory`].

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use crate::address::{DEVICES, PciAddr};
use crate::inventory::aliases::modules_for;
use crate::inventory::disks::Disks;
use crate::inventory::guards::Guards;
use crate::inventory::holders::{Holders, group_is_held, holders_of};
use crate::inventory::{Group, Interface, Inventory, Known, Member, Pf, Use, Vf, host, pci};
use crate::kernel::{Kernel, Link, Machine, VfReport, link_name, number, text};

/// PCI class of bridges, in the upper byte.
const BRIDGE: u64 = 0x06;

/// Drivers that deal out interrupts to VFs (those that set `sriov_set_msix_vec_count`). The
/// kernel's own word for it, sriov_vf_total_msix, waits for whoever writes the number of VFs.
const DEALERS: [&str; 2] = ["mlx5_core", "ice"];

/// Looks at everything once. Nothing that may block is read.
///
/// # Errors
/// When the machine has no PCI bus that can be listed, or netlink fails.
pub fn scan(machine: Machine<'_>, known: &Known) -> io::Result<Inventory> {
    let kernel = machine.kernel;
    let links = machine.network.links(None)?;
    let all = kernel.list(Path::new(DEVICES))?;
    let holders = holders_of(kernel);
    let scan = Scan {
        machine,
        known,
        disks: Disks::read(kernel, &holders),
        holders,
        by_name: links
            .iter()
            .map(|link| (link.name.as_str(), link))
            .collect(),
        guards: Guards::read(machine, &links)?,
        links: &links,
        all: all.iter().filter_map(|name| name.parse().ok()).collect(),
    };
    let pfs = scan.all.iter().filter_map(|address| scan.pf(*address));
    let mut pfs: Vec<Pf> = pfs.collect();
    pfs.sort_by_key(|pf| pf.address);
    Ok(Inventory {
        groups: groups(kernel, &pfs),
        host: host::host(kernel),
        pfs,
    })
}

/// The VFs of the PF at `address`, by index: where its `virtfn` links lead.
pub fn vf_addresses(kernel: &dyn Kernel, address: PciAddr) -> Vec<(u16, PciAddr)> {
    let names = kernel.list(&address.dir()).unwrap_or_default();
    let mut vfs: Vec<(u16, PciAddr)> = names
        .iter()
        .filter_map(|name| {
            let index = name.strip_prefix("virtfn")?.parse().ok()?;
            Some((index, link_name(kernel, &address.file(name))?.parse().ok()?))
        })
        .collect();
    vfs.sort_unstable();
    vfs
}

/// The character device of the NVMe controller at `address`, if it is one with its driver.
pub fn controller_of(kernel: &dyn Kernel, address: PciAddr) -> Option<PathBuf> {
    let names = kernel.list(&address.file("nvme")).ok()?;
    let name = names.iter().find(|name| name.starts_with("nvme"))?;
    Some(Path::new("/dev").join(name))
}

struct Scan<'a> {
    machine: Machine<'a>,
    known: &'a Known,
    holders: Holders,
    disks: Disks,
    links: &'a [Link],
    by_name: HashMap<&'a str, &'a Link>,
    guards: Guards,
    /// Every function of the machine.
    all: BTreeSet<PciAddr>,
}

impl Scan<'_> {
    /// The PF at `address`; `None` if it is none.
    fn pf(&self, address: PciAddr) -> Option<Pf> {
        let kernel = self.machine.kernel;
        let count = |name: &str| {
            let count = number(kernel, &address.file(name))?;
            u16::try_from(count).ok()
        };
        let total = count("sriov_totalvfs")?;
        let link = self.link_of(address);
        let driver = link_name(kernel, &address.file("driver"));
        let vf_device = hex16(kernel, address, "sriov_vf_device");
        let report = |index| link.and_then(|link| link.vfs.iter().find(|vf| vf.index == index));
        let controller = controller_of(kernel, address);
        let family = controller.and_then(|path| self.machine.controllers.family(&path).ok());
        let family = family.unwrap_or_default();
        let nvme = Some(family.pool).filter(|pool| pool.is_flexible());
        let eswitch = link.and_then(|_| self.machine.network.eswitch(address).ok().flatten());
        let msix = driver
            .as_deref()
            .is_some_and(|name| DEALERS.contains(&name));
        let (offset, stride) = (count("sriov_offset"), count("sriov_stride"));
        let (offset, stride) = (offset.unwrap_or_default(), stride.unwrap_or_default());
        let leaving = (0..total).filter_map(|index| {
            let vf = address.vf(offset, stride, index)?;
            self.is_left(vf, vf_device).then_some((index, vf))
        });
        let vfs = self.vfs(address, leaving.collect());
        let lacks = self.known.lacks.get(&address);
        let lacks = lacks.filter(|lacks| Some(&lacks.driver) == driver.as_ref());
        let lacks = lacks.map(|lacks| lacks.keys.clone()).unwrap_or_default();
        Some(Pf {
            address,
            vendor: count("vendor").unwrap_or_default(),
            device: count("device").unwrap_or_default(),
            class: class(kernel, address),
            modules: match driver {
                Some(_) => Vec::new(),
                None => modules_for(kernel, address),
            },
            driver,
            interface: link.map(interface),
            total,
            autoprobe: number(kernel, &address.file("sriov_drivers_autoprobe")).map(|on| on != 0),
            offset,
            stride,
            vf_device,
            msix,
            room: pci::room(kernel, address, total),
            group: group_of(kernel, address),
            numa: numa(kernel, address),
            pcie: pci::link(kernel, address),
            reset: words(kernel, address, "reset_method"),
            eswitch,
            guards: self.guards.of(kernel, address, link, &self.disks),
            nvme,
            wedged: self.known.wedged.get(&address).copied(),
            lacks,
            vfs: vfs
                .into_iter()
                .map(|(index, vf, leaving)| {
                    let resources = nvme.and_then(|_| family.resources(index));
                    let mut vf = self.vf(index, vf, report(index));
                    vf.resources = resources;
                    vf.msix = msix.then(|| pci::msix(kernel, vf.address)).flatten();
                    vf.uses.extend(leaving.then_some(Use::Leaving));
                    vf
                })
                .collect(),
        })
    }

    /// Whether the function at `address`, if there is one, is a VF that its PF does not know any
    /// more: the kernel takes the links away first, and then waits for whoever has it open.
    fn is_left(&self, address: PciAddr, vf_device: u16) -> bool {
        let kernel = self.machine.kernel;
        vf_device != 0
            && self.all.contains(&address)
            && hex16(kernel, address, "device") == vf_device
            && kernel.link(&address.file("physfn")).is_err()
    }

    /// VFs of the PF at `pf` by index, and whether they are on their way out.
    fn vfs(&self, pf: PciAddr, leaving: Vec<(u16, PciAddr)>) -> Vec<(u16, PciAddr, bool)> {
        let linked = vf_addresses(self.machine.kernel, pf).into_iter();
        let linked = linked.map(|(index, vf)| (index, vf, false));
        let leaving = leaving.into_iter().map(|(index, vf)| (index, vf, true));
        let mut vfs: Vec<_> = linked.chain(leaving).collect();
        vfs.sort_unstable();
        vfs.dedup_by_key(|(index, ..)| *index);
        vfs
    }

    fn vf(&self, index: u16, address: PciAddr, report: Option<&VfReport>) -> Vf {
        let kernel = self.machine.kernel;
        let link = self.link_of(address);
        let driver = link_name(kernel, &address.file("driver"));
        let group = group_of(kernel, address);
        let wanted = text(kernel, &address.file("driver_override"));
        Vf {
            index,
            address,
            driver_override: wanted.filter(|name| !name.is_empty() && name != "(null)"),
            interface: link.map(interface),
            numa: numa(kernel, address),
            reset: words(kernel, address, "reset_method"),
            attributes: report.map(|report| report.attributes).unwrap_or_default(),
            counters: report.and_then(|report| report.counters),
            msix: None,
            resources: None,
            uses: self.uses(address, driver.as_deref(), group, link),
            driver,
            group,
        }
    }

    /// The interface of the device at `address`, if it is in our network namespace. Which one is
    /// the device's is read from the device, not from names, which change.
    fn link_of(&self, address: PciAddr) -> Option<&Link> {
        let names = self.machine.kernel.list(&address.file("net")).ok()?;
        names
            .iter()
            .find_map(|name| self.by_name.get(name.as_str()).copied())
    }

    fn uses(
        &self,
        address: PciAddr,
        driver: Option<&str>,
        group: Option<u32>,
        link: Option<&Link>,
    ) -> Vec<Use> {
        let kernel = self.machine.kernel;
        let mut uses = Vec::new();
        if let Some(owner) = self.known.leases.get(&address) {
            let owner = owner.clone();
            uses.push(Use::Leased { owner });
        }
        let vfio = driver.is_some_and(crate::values::is_vfio);
        // One that the kernel is removing has lost its driver, and not those who have it open.
        if vfio || driver.is_none() {
            let devices = kernel.list(&address.file("vfio-dev")).unwrap_or_default();
            let devices = devices
                .iter()
                .map(|name| format!("/dev/vfio/devices/{name}"));
            let node = group.map(|number| format!("/dev/vfio/{number}"));
            let nodes: Vec<PathBuf> = devices.chain(node).map(PathBuf::from).collect();
            let holders = self.holders.of(&nodes, address);
            let hidden = vfio && holders.is_empty() && uses.is_empty();
            if hidden && group.is_some_and(|number| group_is_held(kernel, number)) {
                uses.push(Use::Held);
            }
            uses.extend(holders);
        } else {
            // A driver that made an interface leaves the directory behind when it is moved away.
            let interfaces = kernel.list(&address.file("net"));
            if link.is_none() && interfaces.is_ok() {
                uses.push(Use::Namespace);
            }
            let verbs = kernel.list(&address.file("infiniband_verbs"));
            let verbs = verbs.unwrap_or_default();
            let nodes = verbs
                .iter()
                .map(|name| Path::new("/dev/infiniband").join(name));
            let nodes: Vec<PathBuf> = nodes.collect();
            uses.extend(self.holders.of(&nodes, address));
            uses.extend(self.disks.of(address));
        }
        if let Some(link) = link {
            uses.extend(self.interface_uses(link));
        }
        let children = kernel.list(&address.dir()).unwrap_or_default();
        if children.iter().any(|name| name.starts_with("vdpa")) {
            uses.push(Use::Vdpa);
        }
        uses
    }

    fn interface_uses(&self, link: &Link) -> Vec<Use> {
        let interface = link.name.clone();
        let mut uses = Vec::new();
        if link.up && link.addressed {
            let interface = interface.clone();
            uses.push(Use::Address { interface });
        }
        let named = |other: &Link| (other.name != link.name).then(|| other.name.clone());
        let master = self
            .links
            .iter()
            .filter(|other| Some(other.index) == link.master);
        let above = self
            .links
            .iter()
            .filter(|other| other.lower == Some(link.index));
        for upper in master.chain(above).filter_map(named) {
            let interface = interface.clone();
            uses.push(Use::Upper { interface, upper });
        }
        uses
    }
}

fn interface(link: &Link) -> Interface {
    Interface {
        index: link.index,
        name: link.name.clone(),
        mac: link.mac,
        permanent: link.permanent.or(link.mac),
        up: link.up,
        carrier: link.carrier,
    }
}

fn class(kernel: &dyn Kernel, address: PciAddr) -> u32 {
    let class = number(kernel, &address.file("class"));
    class
        .and_then(|class| u32::try_from(class).ok())
        .unwrap_or_default()
}

/// A number that the kernel writes in hexadecimal without saying so.
fn hex16(kernel: &dyn Kernel, address: PciAddr, name: &str) -> u16 {
    let text = text(kernel, &address.file(name)).unwrap_or_default();
    let digits = text.trim_start_matches("0x");
    u16::from_str_radix(digits, 16).unwrap_or_default()
}

fn numa(kernel: &dyn Kernel, address: PciAddr) -> Option<u32> {
    // -1, "none", is no number here.
    number(kernel, &address.file("numa_node")).and_then(|node| u32::try_from(node).ok())
}

fn words(kernel: &dyn Kernel, address: PciAddr, name: &str) -> Vec<String> {
    let text = text(kernel, &address.file(name)).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn group_of(kernel: &dyn Kernel, address: PciAddr) -> Option<u32> {
    link_name(kernel, &address.file("iommu_group"))?
        .parse()
        .ok()
}

/// The groups of `pfs` and their VFs.
fn groups(kernel: &dyn Kernel, pfs: &[Pf]) -> Vec<Group> {
    let vfs = pfs.iter().flat_map(|pf| pf.vfs.iter().map(|vf| vf.group));
    let numbers: BTreeSet<u32> = pfs.iter().map(|pf| pf.group).chain(vfs).flatten().collect();
    let groups = numbers.into_iter().map(|number| {
        let dir = PathBuf::from(format!("/sys/kernel/iommu_groups/{number}"));
        let devices = kernel.list(&dir.join("devices")).unwrap_or_default();
        let members = devices.iter().filter_map(|name| name.parse().ok());
        Group {
            number,
            kind: text(kernel, &dir.join("type")).unwrap_or_default(),
            members: members.map(|address| member(kernel, address)).collect(),
        }
    });
    groups.collect()
}

fn member(kernel: &dyn Kernel, address: PciAddr) -> Member {
    Member {
        address,
        driver: link_name(kernel, &address.file("driver")),
        bridge: u64::from(class(kernel, address) >> 16) == BRIDGE,
    }
}
