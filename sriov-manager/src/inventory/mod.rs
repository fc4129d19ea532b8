//! What this host has: PFs, their VFs, IOMMU groups, and who uses what.
//!
//! An [`Inventory`] is a value: [`scan()`] makes it from files and netlink, JSON carries it, tests
//! write it down, and a plan is a pure function of it. Nothing in it is guessed. What cannot be
//! read is absent, and a use that cannot be excluded counts as a use.
//!
//! A VF is in use if any of these says so (research: no single one is right): our own lease; a
//! process with the VFIO group or device open; a group that cannot be opened because somebody has
//! it; a driver whose interface is gone, so it went to another network namespace; an interface with
//! an address, a master or an interface on top; a disk that is mounted, swapped to or open; a node
//! of RDMA's that is open; a vDPA device.

mod aliases;
mod disks;
mod guards;
mod holders;
mod host;
pub(crate) mod pci;
mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::PciAddr;
use crate::attribute::{Attributes, Key};
use crate::kernel::VfCounters;
use crate::nvme::{Pool, Resources};
use crate::values::{EswitchMode, Mac};

pub use holders::{Holders, group_is_held, holders_of};
pub use host::Host;
pub use scan::{controller_of, scan, vf_addresses};

/// What this host has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Inventory {
    /// Functions that can have VFs, by address.
    pub pfs: Vec<Pf>,
    /// IOMMU groups that a PF or VF is in, by number.
    pub groups: Vec<Group>,
    /// What concerns all of them.
    pub host: Host,
}

/// What the scan is told because the kernel does not know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Known {
    /// VFs that are leased, and to whom.
    pub leases: BTreeMap<PciAddr, String>,
    /// PFs on which a write never returned, and the process that is stuck in it.
    pub wedged: BTreeMap<PciAddr, u32>,
    /// Drivers of PFs that said they lack something, and what.
    pub lacks: BTreeMap<PciAddr, Lacks>,
}

/// What a PF's driver was found to lack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lacks {
    /// The driver; another one is asked again.
    pub driver: String,
    /// What it lacks.
    pub keys: BTreeSet<Key>,
}

/// A function that can have VFs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pf {
    /// Where it is.
    pub address: PciAddr,
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Class code: 0x020000 is Ethernet, 0x010802 is NVMe.
    pub class: u32,
    /// The driver it is bound to.
    pub driver: Option<String>,
    /// Modules that would drive it; only looked for when none does.
    pub modules: Vec<String>,
    /// Its network interface.
    pub interface: Option<Interface>,
    /// Most VFs it can have.
    pub total: u16,
    /// Whether new VFs get a driver at once; `None` on kernels that do not say.
    pub autoprobe: Option<bool>,
    /// Routing IDs from it to its first VF.
    pub offset: u16,
    /// Routing IDs from one VF to the next.
    pub stride: u16,
    /// Device identity of its VFs.
    pub vf_device: u16,
    /// Whether its driver deals out MSI-X vectors to VFs.
    #[serde(default)]
    pub msix: bool,
    /// Room for VFs.
    pub room: Room,
    /// Its IOMMU group.
    pub group: Option<u32>,
    /// Its NUMA node.
    pub numa: Option<u32>,
    /// PCIe link, now and at best.
    pub pcie: Option<PcieLink>,
    /// How it is reset, the preferred way first.
    pub reset: Vec<String>,
    /// How its embedded switch is run, if it can be asked.
    pub eswitch: Option<EswitchMode>,
    /// Why it must not be disturbed.
    pub guards: Vec<Guard>,
    /// What it has to deal out, if it is an NVMe controller that does.
    pub nvme: Option<Pool>,
    /// The process that is stuck in a write to it.
    pub wedged: Option<u32>,
    /// Attributes of VFs that its driver was found to lack.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub lacks: BTreeSet<Key>,
    /// Its VFs, by index.
    pub vfs: Vec<Vf>,
}

/// How many VFs in use a sentence names.
const NAMED: usize = 4;

/// A virtual function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Vf {
    /// Which of its PF's.
    pub index: u16,
    /// Where it is.
    pub address: PciAddr,
    /// The driver it is bound to.
    pub driver: Option<String>,
    /// The only driver it may be bound to.
    pub driver_override: Option<String>,
    /// Its network interface, if it has one in this network namespace.
    pub interface: Option<Interface>,
    /// Its IOMMU group.
    pub group: Option<u32>,
    /// Its NUMA node.
    pub numa: Option<u32>,
    /// How it is reset, the preferred way first.
    pub reset: Vec<String>,
    /// What the PF's driver says of it.
    pub attributes: Attributes,
    /// What it has done.
    pub counters: Option<VfCounters>,
    /// MSI-X vectors, where the PF's driver can change them.
    pub msix: Option<u16>,
    /// What it has of its PF's flexible resources, where there are such.
    pub resources: Option<Resources>,
    /// Who uses it.
    pub uses: Vec<Use>,
}

/// A network interface of a PF or VF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its address.
    pub mac: Option<Mac>,
    /// The address it was made with, or its address if the driver does not say.
    pub permanent: Option<Mac>,
    /// Whether it is up.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
}

/// Whether VFs would find memory and bus numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Room {
    /// Bytes of each of a VF's BARs.
    pub bars: Vec<u64>,
    /// BARs of VFs for which the firmware and the kernel found no room in the window of the port.
    pub homeless: usize,
    /// The last bus behind the port that the PF is behind.
    pub last_bus: Option<u8>,
    /// Bytes of memory windows of that port.
    pub window: u64,
}

/// A PCIe link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PcieLink {
    /// Speed now, such as `8.0 GT/s PCIe`.
    pub speed: String,
    /// Lanes now.
    pub width: u16,
    /// The best speed of the device.
    pub max_speed: String,
    /// The most lanes of the device.
    pub max_width: u16,
}

/// Why a PF must not be disturbed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Guard {
    /// The host's default route goes through it.
    DefaultRoute {
        /// The interface with the route.
        interface: String,
    },
    /// The system runs from a disk behind it.
    SystemDisk {
        /// Where that disk is mounted.
        mount: String,
    },
    /// NetworkManager sets its number of VFs.
    NetworkManager {
        /// The profile.
        file: String,
    },
    /// systemd-networkd or udev sets its number of VFs.
    Networkd {
        /// The file.
        file: String,
    },
}

/// Who uses a VF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Use {
    /// It is leased.
    Leased {
        /// To whom.
        owner: String,
    },
    /// A process has it open.
    Vfio {
        /// The process.
        pid: u32,
        /// Its name.
        program: String,
    },
    /// Its group is open, by whom cannot be seen.
    Held,
    /// Its interface is in another network namespace.
    Namespace,
    /// Its interface is up and has an address.
    Address {
        /// The interface.
        interface: String,
    },
    /// Its interface belongs to, or carries, another one.
    Upper {
        /// The interface.
        interface: String,
        /// The other.
        upper: String,
    },
    /// A disk of it is mounted, or swapped to.
    Mounted {
        /// Where.
        mount: String,
    },
    /// A vDPA device stands on it.
    Vdpa,
    /// The kernel is removing it and waits for whoever has it.
    Leaving,
}

/// An IOMMU group: what can only be given away together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Group {
    /// Its number; another one after the next boot.
    pub number: u32,
    /// How its DMA is translated, such as `DMA-FQ`.
    pub kind: String,
    /// What is in it.
    pub members: Vec<Member>,
}

/// A device in a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    /// Where it is.
    pub address: PciAddr,
    /// The driver it is bound to.
    pub driver: Option<String>,
    /// Whether it is a bridge: those do no DMA of their own, and may stay with their driver.
    pub bridge: bool,
}

impl Inventory {
    /// The PF at `address`.
    pub fn pf(&self, address: PciAddr) -> Option<&Pf> {
        let found = self.pfs.binary_search_by_key(&address, |pf| pf.address);
        found.ok().and_then(|index| self.pfs.get(index))
    }

    /// The group `number`.
    pub fn group(&self, number: u32) -> Option<&Group> {
        let found = self
            .groups
            .binary_search_by_key(&number, |group| group.number);
        found.ok().and_then(|index| self.groups.get(index))
    }

    /// The VF at `address`, with its PF.
    pub fn vf(&self, address: PciAddr) -> Option<(&Pf, &Vf)> {
        let pairs = self
            .pfs
            .iter()
            .flat_map(|pf| pf.vfs.iter().map(move |vf| (pf, vf)));
        pairs.into_iter().find(|(_, vf)| vf.address == address)
    }
}

impl Pf {
    /// How many VFs it has: the links to them are counted, since the attribute may block its
    /// reader.
    pub fn count(&self) -> u16 {
        u16::try_from(self.vfs.len()).unwrap_or(u16::MAX)
    }

    /// VF `index`.
    pub fn vf(&self, index: u16) -> Option<&Vf> {
        // None is missing, nearly always: a search would touch eight others first.
        let there = self.vfs.get(usize::from(index));
        there.filter(|vf| vf.index == index).or_else(|| {
            let found = self.vfs.binary_search_by_key(&index, |vf| vf.index);
            found.ok().and_then(|at| self.vfs.get(at))
        })
    }

    /// Where VF `index` is, or would be.
    pub fn address_of(&self, index: u16) -> Option<PciAddr> {
        let known = self.vf(index).map(|vf| vf.address);
        known.or_else(|| self.address.vf(self.offset, self.stride, index))
    }

    /// Whether its VFs are of no use until they are given queue pairs and interrupts.
    pub fn is_flexible(&self) -> bool {
        self.nvme.is_some_and(|pool| pool.is_flexible())
    }

    /// Whether it is a network card.
    pub fn is_network(&self) -> bool {
        self.class >> 16 == 0x02
    }

    /// Which of its VFs that are `concerned` somebody uses, and who; `None` if nobody does.
    pub fn users(&self, concerned: impl Fn(&Vf) -> bool) -> Option<String> {
        let used = self.vfs.iter().filter(|vf| vf.is_used() && concerned(vf));
        let mut parts: Vec<String> = used
            .clone()
            .take(NAMED)
            .map(|vf| {
                let uses: Vec<String> = vf.uses.iter().map(ToString::to_string).collect();
                format!("VF {} ({}): {}", vf.index, vf.address, uses.join(", "))
            })
            .collect();
        let rest = used.skip(NAMED).count();
        if rest > 0 {
            parts.push(format!("and {rest} more"));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// What people call it: its interface and address.
    pub fn label(&self) -> String {
        match &self.interface {
            Some(interface) => format!("{} ({})", self.address, interface.name),
            None => self.address.to_string(),
        }
    }
}

impl Vf {
    /// Whether anybody uses it.
    pub fn is_used(&self) -> bool {
        !self.uses.is_empty()
    }

    /// Whether the kernel is removing it.
    pub fn is_leaving(&self) -> bool {
        self.uses.contains(&Use::Leaving)
    }

    /// Whether it is leased by this program.
    pub fn is_leased(&self) -> bool {
        self.uses
            .iter()
            .any(|one| matches!(one, Use::Leased { .. }))
    }
}

impl Group {
    /// What keeps the group from being given to user space: devices that a driver of the host has.
    /// `except` are devices that will not be with it.
    pub fn culprits(&self, except: &[PciAddr]) -> Vec<&Member> {
        let harmless = |member: &&Member| {
            let driver = member.driver.as_deref();
            let ours = driver.is_none_or(|name| name == "pci-stub" || crate::values::is_vfio(name));
            ours || member.bridge || except.contains(&member.address)
        };
        self.members
            .iter()
            .filter(|member| !harmless(member))
            .collect()
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultRoute { interface } => {
                write!(f, "the default route goes through it ({interface})")
            }
            Self::SystemDisk { mount } => write!(f, "{mount} is mounted from a disk behind it"),
            Self::NetworkManager { file } => {
                write!(f, "NetworkManager sets its number of VFs ({file})")
            }
            Self::Networkd { file } => write!(f, "systemd sets its number of VFs ({file})"),
        }
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leased { owner } => write!(f, "leased to {owner}"),
            Self::Vfio { pid, program } => write!(f, "open in {program}, process {pid}"),
            Self::Held => f.write_str("its VFIO group is open in a process that cannot be seen"),
            Self::Namespace => f.write_str("its interface is in another network namespace"),
            Self::Address { interface } => write!(f, "{interface} is up and has an address"),
            Self::Upper { interface, upper } => write!(f, "{interface} is part of {upper}"),
            Self::Mounted { mount } => write!(f, "{mount} is mounted from a disk of it"),
            Self::Vdpa => f.write_str("a vDPA device stands on it"),
            Self::Leaving => f.write_str("the kernel is removing it, once nobody has it open"),
        }
    }
}

#[cfg(test)]
mod tests;
