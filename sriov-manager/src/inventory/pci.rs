//! What PCI itself says: the SR-IOV capability, memory windows, bus numbers.

use crate::address::PciAddr;
use crate::inventory::{PcieLink, Room};
use crate::kernel::{Kernel, number, text};

/// SR-IOV extended capability (PCIe 6.0, 9.3.3).
const SRIOV: u16 = 0x0010;
/// Extended capabilities begin here (PCIe 6.0, 7.6.2).
const EXTENDED: usize = 0x100;
/// More capabilities than that do not fit into configuration space.
const MAX_CAPABILITIES: usize = 960;
/// VF BAR0, from the start of the capability (PCIe 6.0, 9.3.3.14).
const VF_BARS: usize = 0x24;
/// Subordinate bus number of a bridge (PCI-to-PCI bridge 1.2, 3.2.5).
const SUBORDINATE_BUS: usize = 0x1a;
/// Lines of `resource`: six BARs, the ROM, six VF BARs, and of a bridge four windows
/// (include/linux/pci.h).
const VF_RESOURCES: std::ops::Range<usize> = 7..13;
const BRIDGE_WINDOWS: std::ops::Range<usize> = 13..17;

/// The list of capabilities: the bit that says there is one, and where it begins (PCI 3.0, 6.7).
const STATUS: usize = 0x06;
const HAS_CAPABILITIES: u8 = 0x10;
const FIRST_CAPABILITY: usize = 0x34;
/// MSI-X capability; the size of its table, less one, is in Message Control (PCIe 6.0, 7.7.2).
const MSIX: u8 = 0x11;
const TABLE_SIZE: u32 = 0x7ff;

/// A little-endian number of configuration space.
fn dword(config: &[u8], at: usize) -> Option<u32> {
    let bytes = config.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The six registers of VF BARs; `None` without the capability, or when it cannot be read.
fn vf_bars(config: &[u8]) -> Option<[u32; 6]> {
    let mut at = EXTENDED;
    for _ in 0..MAX_CAPABILITIES {
        let header = dword(config, at)?;
        if header & 0xffff == u32::from(SRIOV) {
            let mut bars = [0; 6];
            for (index, bar) in bars.iter_mut().enumerate() {
                *bar = dword(config, at + VF_BARS + 4 * index)?;
            }
            return Some(bars);
        }
        at = usize::try_from(header >> 20).ok()?;
        if at < EXTENDED {
            return None;
        }
    }
    None
}

/// Interrupts that a device has room for in its MSI-X table.
fn table_size(config: &[u8]) -> Option<u16> {
    if config.get(STATUS)? & HAS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = usize::from(*config.get(FIRST_CAPABILITY)?);
    for _ in 0..MAX_CAPABILITIES {
        let header = dword(config, at & !3)?;
        let [id, next, ..] = header.to_le_bytes();
        if id == MSIX {
            return u16::try_from(((header >> 16) & TABLE_SIZE) + 1).ok();
        }
        at = usize::from(next);
        if at == 0 {
            return None;
        }
    }
    None
}

/// MSI-X vectors of the VF at `address`. What its driver was told cannot be read back: the kernel's
/// file for it is only for writing, and the card changes the size of the table.
pub(crate) fn msix(kernel: &dyn Kernel, address: PciAddr) -> Option<u16> {
    table_size(&kernel.read(&address.file("config")).ok()?)
}

/// Sizes in the lines `range` of a `resource` file; 0 for what is not there.
fn sizes(resource: &str, range: std::ops::Range<usize>) -> Vec<u64> {
    let lines = resource.lines().skip(range.start).take(range.len());
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let mut hex = || {
                let word = words.next()?.strip_prefix("0x")?;
                u64::from_str_radix(word, 16).ok()
            };
            match (hex(), hex()) {
                (Some(start), Some(end)) if end > start => end - start + 1,
                _ => 0,
            }
        })
        .collect()
}

/// Room for VFs of the PF at `address`, which can have `total`.
///
/// A VF BAR that has bits set in configuration space and no resource of the kernel's was not
/// placed, and with one such BAR the kernel refuses any number of VFs ("not enough MMIO resources
/// for SR-IOV", drivers/pci/iov.c). Configuration space beyond its beginning is for root.
pub(super) fn room(kernel: &dyn Kernel, address: PciAddr, total: u16) -> Room {
    let resource = text(kernel, &address.file("resource")).unwrap_or_default();
    let placed = sizes(&resource, VF_RESOURCES);
    let config = kernel.read(&address.file("config")).unwrap_or_default();
    let bars = vf_bars(&config).unwrap_or_default();
    let mut homeless = 0;
    let mut high_half = false;
    for (bar, size) in bars.iter().zip(&placed) {
        let second = high_half;
        high_half = !second && bar & 0b110 == 0b100;
        homeless += usize::from(!second && *bar != 0 && *size == 0);
    }
    let port = kernel.link(&address.dir()).ok();
    let port = port.as_deref().and_then(|dir| dir.parent());
    let port = port.filter(|dir| dir.file_name().is_some_and(|name| !is_root(name)));
    let bridge = port.and_then(|dir| kernel.read(&dir.join("config")).ok());
    let windows = port.and_then(|dir| text(kernel, &dir.join("resource")));
    let each = placed.into_iter().filter(|size| *size > 0);
    Room {
        bars: each.map(|size| size / u64::from(total.max(1))).collect(),
        homeless,
        last_bus: bridge.and_then(|config| config.get(SUBORDINATE_BUS).copied()),
        window: sizes(&windows.unwrap_or_default(), BRIDGE_WINDOWS)
            .iter()
            .sum(),
    }
}

/// Whether a directory is a root bus, `pci0000:00`, and no bridge.
fn is_root(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with("pci")
}

/// The PCIe link of a device; `None` where it has none.
pub(super) fn link(kernel: &dyn Kernel, address: PciAddr) -> Option<PcieLink> {
    let lanes = |name| {
        let lanes = number(kernel, &address.file(name))?;
        u16::try_from(lanes).ok()
    };
    Some(PcieLink {
        speed: text(kernel, &address.file("current_link_speed"))?,
        width: lanes("current_link_width")?,
        max_speed: text(kernel, &address.file("max_link_speed"))?,
        max_width: lanes("max_link_width")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two capabilities, the second is SR-IOV with a 64-bit BAR and a 32-bit one.
    fn config() -> Vec<u8> {
        let mut config = vec![0; 0x200];
        let mut put =
            |at: usize, value: u32| config[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0x100, 0x0001 | (0x160 << 20));
        put(0x160, 0x0010);
        put(0x160 + 0x24, 0x0000_000c);
        put(0x160 + 0x28, 0x0000_00ff);
        put(0x160 + 0x30, 0x8000_0000);
        config
    }

    #[test]
    fn the_capability_is_found() {
        let bars = vf_bars(&config()).unwrap();
        assert_eq!(bars, [0xc, 0xff, 0, 0x8000_0000, 0, 0]);
        assert_eq!(vf_bars(&config()[..64]), None, "what a plain user may read");
        assert_eq!(vf_bars(&[0; 0x200]), None);
    }

    #[test]
    fn a_loop_of_capabilities_ends() {
        let mut config = vec![0; 0x200];
        config[0x100..0x104].copy_from_slice(&(0x0001_u32 | (0x100 << 20)).to_le_bytes());
        assert_eq!(vf_bars(&config), None);
    }

    #[test]
    fn the_table_of_interrupts_has_a_size() {
        let mut config = vec![0; 0x100];
        assert_eq!(table_size(&config), None);
        config[STATUS] = HAS_CAPABILITIES;
        config[FIRST_CAPABILITY] = 0x40;
        config[0x40..0x44].copy_from_slice(&[0x01, 0x70, 0, 0]);
        config[0x70..0x74].copy_from_slice(&[MSIX, 0, 0x09, 0x80]);
        assert_eq!(table_size(&config), Some(10));
        assert_eq!(table_size(&config[..0x40]), None, "a plain user's part");
        config[0x70..0x72].copy_from_slice(&[0x01, 0x40]);
        assert_eq!(table_size(&config), None, "a loop");
    }

    #[test]
    fn resources_have_sizes() {
        let text = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    0x00000000fe000000 0x00000000fe01ffff 0x0000000000040200\n";
        assert_eq!(sizes(text, 0..2), [0, 0x2_0000]);
        assert_eq!(sizes("garbage\n", 0..2), [0]);
    }
}
