//! A kernel in memory, for tests: its files have the side effects that the real ones have.
//!
//! What was probed on a real kernel (with an 82576, igb) and is modelled here: a number of VFs
//! changes only from and to none (EBUSY), never beyond the total (ERANGE), and not without a
//! driver (ENOENT), room (ENOMEM) or buses (ENOMEM); VFs sit at offset and stride; a driver may
//! make fewer than asked and say nothing; removing them while one is held removes those before it
//! and never returns; a VF's interrupts are changed while it has no driver, and their number is
//! read in its configuration space only; what a VF was told goes with it (igb) or stays
//! (netdevsim); `drivers_probe` succeeds whether or not a driver took the device; without autoprobe
//! only an override binds.
//!
//! Faults: the n-th change fails, or everything from the n-th on does, as for a process that was
//! killed.

mod files;
mod network;
mod nvme;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rustix::io::Errno;

use crate::address::{DEVICES, PciAddr};
use crate::attribute::Attributes;
use crate::kernel::{Kernel, Link, Machine, Network, WriteError};
use crate::nvme::{Family, Resources};
use crate::values::EswitchMode;

pub(crate) use files::Files;

/// A card of the model.
#[derive(Clone, Debug)]
pub(crate) struct Card {
    pub(crate) address: PciAddr,
    pub(crate) total: u16,
    pub(crate) offset: u16,
    pub(crate) stride: u16,
    /// netdevsim: what VFs were told outlives them.
    pub(crate) keeps: bool,
    /// The driver makes so many at most, and says nothing.
    pub(crate) grants: u16,
    /// Keys of attributes that the driver lacks.
    pub(crate) lacks: Vec<&'static str>,
    /// Whether memory of VFs was placed.
    pub(crate) room: bool,
    /// The last bus of its port.
    pub(crate) last_bus: u8,
    /// Whether its port tells functions apart.
    pub(crate) acs: bool,
    pub(crate) eswitch: Option<EswitchMode>,
    /// Whether the driver deals out interrupts to VFs.
    pub(crate) msix: bool,
    /// An NVMe controller with so much to deal out, instead of a network card.
    pub(crate) nvme: Option<Resources>,
}

impl Card {
    /// An 82576 on bus `bus`.
    pub(crate) fn new(bus: u8) -> Self {
        Self {
            address: PciAddr::new(0, bus, 0, 0),
            total: 7,
            offset: 128,
            stride: 2,
            keeps: false,
            grants: u16::MAX,
            lacks: vec!["link_state", "rss_query"],
            room: true,
            last_bus: 255,
            acs: true,
            eswitch: None,
            msix: false,
            nvme: None,
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The n-th change from now fails.
    Once(usize),
    /// The n-th change from now on, all fail.
    Dead(usize),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) files: Files,
    pub(crate) cards: BTreeMap<PciAddr, Card>,
    pub(crate) links: Vec<Link>,
    pub(crate) routes: Vec<u32>,
    /// What the PF's driver knows of its VFs.
    pub(crate) told: BTreeMap<PciAddr, Vec<Attributes>>,
    /// VFs that a process has open.
    pub(crate) held: BTreeSet<PciAddr>,
    /// VFs that were removed, bound, unbound or told something.
    pub(crate) touched: BTreeSet<PciAddr>,
    pub(crate) wedged: BTreeSet<PciAddr>,
    pub(crate) probe_lies: bool,
    /// NVMe: what each family has, and what the primary has from its next reset on.
    pub(crate) families: BTreeMap<PciAddr, (Family, Resources)>,
    fault: Option<Fault>,
    pub(crate) changes: usize,
    next_index: u32,
    pub(crate) next_group: u32,
}

/// The kernel.
#[derive(Debug, Default)]
pub(crate) struct Model(Mutex<State>);

impl Model {
    /// A machine with an IOMMU, interrupt remapping and vfio-pci, and these cards.
    pub(crate) fn new(cards: impl IntoIterator<Item = Card>) -> Self {
        let model = Self::default();
        {
            let mut state = model.state();
            state.next_index = 2;
            state.next_group = 10;
            state.base();
            for card in cards {
                state.plug(card);
            }
        }
        model
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn machine(&self) -> Machine<'_> {
        Machine {
            kernel: self,
            network: self,
            controllers: self,
        }
    }

    pub(crate) fn fault(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }
}

impl State {
    fn base(&mut self) {
        self.files
            .file("/proc/interrupts", "1: 0 IR-IO-APIC 1-edge i8042\n");
        self.files.file("/proc/self/mountinfo", "");
        self.files.file("/etc/machine-id", "model\n");
        self.files.dir("/dev/vfio");
        self.files.file("/dev/vfio/vfio", "");
        self.files.file("/sys/bus/pci/drivers_probe", "");
        for driver in ["igb", "igbvf", "mlx5_core", "nvme", "vfio-pci", "pcieport"] {
            self.files
                .file(&format!("/sys/bus/pci/drivers/{driver}/bind"), "");
            self.files
                .file(&format!("/sys/bus/pci/drivers/{driver}/unbind"), "");
        }
    }

    /// Puts a card behind a port of its own, with its driver.
    pub(crate) fn plug(&mut self, card: Card) {
        let port = PciAddr::new(0, 0, card.address.bus(), 0);
        let group = self.next_group;
        self.next_group += 2;
        let at = format!("/sys/devices/pci0000:00/{port}");
        self.function(port, &at, 0x06_0400, "pcieport", group);
        let mut config = vec![0; 64];
        config[0x1a] = card.last_bus;
        self.files.bytes(&format!("{at}/config"), config);
        let pf = card.address;
        let at = format!("{at}/{pf}");
        let own = if card.acs { group + 1 } else { group };
        let (class, driver) = match card.nvme {
            Some(_) => (0x01_0802, "nvme"),
            None if card.msix => (0x02_0000, "mlx5_core"),
            None => (0x02_0000, "igb"),
        };
        self.function(pf, &at, class, driver, own);
        self.files.file(&format!("{at}/reset"), "");
        for (name, text) in [
            ("vendor", "0x8086"),
            ("device", "0x10c9"),
            ("sriov_vf_device", "10ca"),
            ("sriov_drivers_autoprobe", "1"),
            ("sriov_numvfs", "0"),
            ("sriov_totalvfs", &card.total.to_string()),
            ("sriov_offset", &card.offset.to_string()),
            ("sriov_stride", &card.stride.to_string()),
        ] {
            self.files.file(&format!("{at}/{name}"), text);
        }
        let mut config = vec![0; 0x200];
        config[0x100..0x104].copy_from_slice(&0x0010_u32.to_le_bytes());
        config[0x124..0x128].copy_from_slice(&0x000c_u32.to_le_bytes());
        self.files.bytes(&format!("{at}/config"), config);
        let line = if card.room {
            "0x1000000 0x101bfff 0x14220c"
        } else {
            "0x0 0x0 0x0"
        };
        let resource = format!("{}{line}\n", "0x0 0x0 0x0\n".repeat(7));
        self.files.file(&format!("{at}/resource"), &resource);
        if let Some(all) = card.nvme {
            self.files.dir(&format!("{at}/nvme/nvme{}", pf.bus()));
            self.families.insert(pf, nvme::family(&card, all));
            self.cards.insert(pf, card);
            return;
        }
        let index = self.interface(pf, &format!("eth{}", card.address.bus()));
        let link = self
            .links
            .iter_mut()
            .find(|link| link.index == index)
            .unwrap();
        link.up = true;
        link.carrier = true;
        self.told
            .insert(pf, vec![told_nothing(); usize::from(card.total)]);
        self.cards.insert(pf, card);
    }

    /// A function with its files, driver and group.
    pub(crate) fn function(
        &mut self,
        at: PciAddr,
        dir: &str,
        class: u32,
        driver: &str,
        group: u32,
    ) {
        self.files.dir(dir);
        self.files.link(&format!("{DEVICES}/{at}"), dir);
        self.files
            .file(&format!("{dir}/class"), &format!("0x{class:06x}"));
        self.files.file(&format!("{dir}/numa_node"), "-1");
        self.files.file(&format!("{dir}/driver_override"), "(null)");
        let groups = format!("/sys/kernel/iommu_groups/{group}");
        self.files.link(&format!("{groups}/devices/{at}"), dir);
        self.files.file(&format!("{groups}/type"), "DMA-FQ");
        self.files.link(&format!("{dir}/iommu_group"), &groups);
        if !driver.is_empty() {
            self.files.link(
                &format!("{dir}/driver"),
                &format!("/sys/bus/pci/drivers/{driver}"),
            );
        }
    }

    /// Gives the function a network interface.
    pub(crate) fn interface(&mut self, at: PciAddr, name: &str) -> u32 {
        let index = self.next_index;
        self.next_index += 1;
        let dir = self.files.resolve(&at.dir()).unwrap();
        let own = format!("{}/net/{name}/ifindex", dir.display());
        self.files.file(&own, &index.to_string());
        let mac = crate::values::Mac::local(u64::from(index));
        self.links.push(Link {
            index,
            name: name.to_owned(),
            mac: Some(mac),
            permanent: Some(mac),
            ..Link::default()
        });
        index
    }

    /// Counts a change, and says whether it fails.
    fn change(&mut self) -> Result<(), WriteError> {
        self.changes += 1;
        let broken = WriteError::refused(Errno::IO.raw_os_error());
        match &mut self.fault {
            Some(Fault::Once(0)) => {
                self.fault = None;
                Err(broken)
            }
            Some(Fault::Dead(0)) => Err(broken),
            Some(Fault::Once(left) | Fault::Dead(left)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// What the driver says of a VF that it was told nothing about.
pub(crate) fn told_nothing() -> Attributes {
    Attributes {
        spoof_check: Some(true),
        link_state: Some(crate::values::LinkState::Auto),
        rss_query: Some(false),
        ..Attributes::SCRUBBED
    }
}

impl Kernel for Model {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state();
        assert!(
            !path.ends_with("sriov_numvfs") && !path.ends_with("sriov_vf_total_msix"),
            "nobody reads what may block"
        );
        if path.ends_with("sriov_vf_msix_count") {
            return Err(Errno::IO.into());
        }
        if let Some(group) = path
            .to_str()
            .and_then(|path| path.strip_prefix("/dev/vfio/"))
        {
            let members = format!("/sys/kernel/iommu_groups/{group}/devices");
            let members = state.files.list(Path::new(&members)).unwrap_or_default();
            let held = |name: &String| name.parse().is_ok_and(|at| state.held.contains(&at));
            if members.iter().any(held) {
                return Err(Errno::BUSY.into());
            }
        }
        state.files.read(path)
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), WriteError> {
        let mut state = self.state();
        state.change()?;
        state.write(path, text)
    }

    fn link(&self, path: &Path) -> io::Result<PathBuf> {
        self.state().files.resolve(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.state().files.list(path)
    }

    /// Links come up meanwhile.
    fn pause(&self, _: Duration) {
        let mut state = self.state();
        for link in state.links.iter_mut().filter(|link| link.up) {
            link.carrier = true;
        }
    }
}

impl Network for Model {
    fn links(&self, only: Option<&str>) -> io::Result<Vec<Link>> {
        let mut links = self.state().links_now();
        links.retain(|link| only.is_none_or(|name| link.name == name));
        Ok(links)
    }

    fn default_routes(&self) -> io::Result<Vec<u32>> {
        Ok(self.state().routes.clone())
    }

    fn set_vf(
        &self,
        link: u32,
        vf: crate::values::VfIndex,
        attribute: &crate::attribute::Attribute,
    ) -> Result<(), WriteError> {
        let mut state = self.state();
        state.change()?;
        state.tell(link, vf.get(), attribute)
    }

    fn eswitch(&self, pf: PciAddr) -> io::Result<Option<EswitchMode>> {
        Ok(self.state().cards.get(&pf).and_then(|card| card.eswitch))
    }

    fn set_eswitch(&self, pf: PciAddr, mode: EswitchMode) -> Result<(), WriteError> {
        let mut state = self.state();
        state.change()?;
        let card = state
            .cards
            .get_mut(&pf)
            .filter(|card| card.eswitch.is_some());
        let card = card.ok_or(WriteError::refused(Errno::OPNOTSUPP.raw_os_error()))?;
        card.eswitch = Some(mode);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
