//! What concerns all devices of the host: IOMMU, interrupt remapping, VFIO.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kernel::{Kernel, text};

/// Facts about the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// Whether an IOMMU translates DMA: there are groups.
    pub iommu: bool,
    /// Whether interrupts are remapped. Proved by the chips of `/proc/interrupts`: the capability
    /// of the IOMMU stays set when remapping was turned off on the command line.
    pub interrupt_remapping: bool,
    /// Whether VFIO was told to do without interrupt remapping.
    pub unsafe_interrupts: bool,
    /// Whether the driver vfio-pci is there.
    pub vfio_pci: bool,
    /// Whether devices have nodes of their own, and `/dev/iommu` is there.
    pub iommufd: bool,
    /// What stands for this host in derived addresses.
    pub id: String,
}

/// Module parameters that turn the protection off.
const UNSAFE_INTERRUPTS: [&str; 2] = [
    "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
    "/sys/module/iommufd/parameters/allow_unsafe_interrupts",
];

/// Reads them.
pub(super) fn host(kernel: &dyn Kernel) -> Host {
    let listed = |path: &str| kernel.list(Path::new(path)).unwrap_or_default();
    let read = |path: &str| text(kernel, Path::new(path)).unwrap_or_default();
    let on = |path: &&str| matches!(read(path).as_str(), "Y" | "1");
    let devices = listed("/dev/vfio");
    Host {
        iommu: !listed("/sys/kernel/iommu_groups").is_empty(),
        interrupt_remapping: remapped(&read("/proc/interrupts")),
        unsafe_interrupts: UNSAFE_INTERRUPTS.iter().any(on),
        vfio_pci: !listed("/sys/bus/pci/drivers/vfio-pci").is_empty(),
        iommufd: listed("/dev").iter().any(|name| name == "iommu")
            && devices.iter().any(|name| name == "devices"),
        id: read("/etc/machine-id"),
    }
}

/// Whether a chip of `interrupts` is one that remaps: `IR-IO-APIC`, `IR-PCI-MSI-…`.
fn remapped(interrupts: &str) -> bool {
    let words = interrupts.split_whitespace();
    words.into_iter().any(|word| word.starts_with("IR-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remapping_is_seen_in_the_names_of_chips() {
        assert!(remapped(
            " 1: 9 IR-IO-APIC 1-edge i8042\n24: 0 DMAR-MSI 0-edge dmar0\n"
        ));
        assert!(!remapped(
            " 1: 9 IO-APIC 1-edge i8042\n24: 0 DMAR-MSI 0-edge dmar0\n"
        ));
    }
}
