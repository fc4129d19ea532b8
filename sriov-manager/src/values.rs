//! Values with a rule that the specification, the kernel's interfaces and the plan share. Each can
//! only be made from something that obeys its rule (see [`towpath_common::config::value`]).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::config::ValueError;
pub use towpath_common::mac::Mac;
use towpath_common::ranged;

ranged! {
    /// A number of VFs of one PF. The kernel's attribute takes 16 bits (PCIe 6.0, 9.3.3.7).
    VfCount(u16), "vfs", 0..=65_535
}

ranged! {
    /// The index of a VF among those of its PF, from 0.
    VfIndex(u16), "index", 0..=65_534
}

ranged! {
    /// A VLAN that a VF's frames are put into; 0 is none (802.1Q, 9.6).
    Vlan(u16), "vlan", 0..=4_094
}

ranged! {
    /// The priority in a VF's VLAN tag (802.1Q, 9.6).
    Qos(u8), "qos", 0..=7
}

ranged! {
    /// A transmit rate in Mbit/s; 0 is no limit.
    Rate(u32), "rate", 0..=4_000_000
}

ranged! {
    /// MSI-X vectors of one VF (PCIe 6.0, 7.7.2).
    MsixCount(u16), "msix", 1..=2_048
}

ranged! {
    /// Queue pairs that an NVMe VF gets of its PF's flexible ones, the one for administration among
    /// them: with fewer than two it cannot go on line (NVMe 2.0, 8.26).
    VqCount(u16), "vq", 2..=65_535
}

ranged! {
    /// Interrupts that an NVMe VF gets of its PF's flexible ones.
    ViCount(u16), "vi", 1..=2_048
}

/// One half of a device's identity: vendor or device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written")]
pub struct PciId(u16);

/// As people write it. `lspci` shows it without `0x`, which would be another number.
#[derive(Deserialize)]
#[serde(untagged, expecting = "write the number, such as 0x8086")]
enum Written {
    Number(i64),
    Text(String),
}

impl PciId {
    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<Written> for PciId {
    type Error = ValueError;

    fn try_from(written: Written) -> Result<Self, ValueError> {
        let rule = "write a number of four hexadecimal digits without quotes, such as 0x8086";
        let wrong = |text| ValueError::form("PCI identity", text, rule);
        match written {
            Written::Number(number) => match u16::try_from(number) {
                Ok(number) => Ok(Self(number)),
                Err(_) => Err(wrong(number.to_string())),
            },
            Written::Text(text) => Err(wrong(text)),
        }
    }
}

/// The MAC address of one station: neither "none", which the kernel's interfaces write as zeroes,
/// nor a group's. What an operator or a VMM may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct StationMac(Mac);

impl StationMac {
    /// The address.
    pub const fn get(self) -> Mac {
        self.0
    }
}

impl FromStr for StationMac {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let rule = "write six bytes of one station, such as 52:54:00:00:00:01";
        let mac = text.parse().ok();
        mac.filter(|mac: &Mac| !mac.is_zero() && !mac.is_multicast())
            .map(Self)
            .ok_or_else(|| ValueError::form("mac", text, rule))
    }
}

impl TryFrom<String> for StationMac {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<StationMac> for String {
    fn from(mac: StationMac) -> Self {
        mac.0.to_string()
    }
}

/// An InfiniBand GUID: eight bytes, `00:11:22:33:44:55:66:77`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Guid(u64);

impl Guid {
    /// From the number that the kernel's interface carries.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number that the kernel's interface carries.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.to_be_bytes().map(|byte| format!("{byte:02x}"));
        f.write_str(&bytes.join(":"))
    }
}

impl TryFrom<String> for Guid {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        let parts: Vec<&str> = text.split(':').collect();
        let well_formed = parts.len() == 8 && parts.iter().all(|part| part.len() == 2);
        let number = u64::from_str_radix(&parts.concat(), 16).ok();
        let rule = "write eight bytes, such as 00:11:22:33:44:55:66:77";
        number
            .filter(|_| well_formed)
            .map(Self)
            .ok_or_else(|| ValueError::form("GUID", &text, rule))
    }
}

impl From<Guid> for String {
    fn from(guid: Guid) -> Self {
        guid.to_string()
    }
}

/// Defines an enum of words, the same in TOML, JSON and messages.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident {
        $($(#[$variant_doc:meta])* $variant:ident = $word:literal),* $(,)?
    }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
            JsonSchema,
        )]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// The word for it.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }
    };
}

words! {
    /// The kind of a VF's VLAN tag.
    VlanProtocol {
        /// A customer's tag, ethertype 0x8100.
        Customer = "802.1Q",
        /// A provider's tag, ethertype 0x88a8.
        Service = "802.1ad",
    }
}

words! {
    /// What a VF sees of the link.
    LinkState {
        /// What the PF sees.
        Auto = "auto",
        /// Up, even while the PF's link is down.
        Up = "up",
        /// Down, even while the PF's link is up.
        Down = "down",
    }
}

words! {
    /// How the card's embedded switch is run.
    EswitchMode {
        /// By the PF's driver, with the attributes of VFs.
        Legacy = "legacy",
        /// By the host, through a representor for each VF.
        Switchdev = "switchdev",
    }
}

words! {
    /// How a group's DMA is translated.
    GroupType {
        /// Translated, flushed at once.
        Dma = "DMA",
        /// Translated, flushed lazily: faster, with a window in which stale mappings work.
        DmaFq = "DMA-FQ",
        /// Not translated while the host's driver has the device.
        Identity = "identity",
    }
}

/// The name of a driver: what the kernel may call one.
/// Shared, since a host has thousands of VFs with one driver.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
pub struct DriverName(Arc<str>);

impl DriverName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it hands devices to user space.
    pub fn is_vfio(&self) -> bool {
        is_vfio(&self.0)
    }
}

/// Whether the driver `name` hands devices to user space: vfio-pci or a variant of it.
pub fn is_vfio(name: &str) -> bool {
    name == "vfio-pci" || name.ends_with("-vfio-pci") || name.ends_with("_vfio_pci")
}

impl TryFrom<String> for DriverName {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        let right = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if !text.is_empty() && text.len() < 64 && text.chars().all(right) {
            return Ok(Self(text.into()));
        }
        let rule = "write the name of a driver, such as vfio-pci, or native";
        Err(ValueError::form("driver", text, rule))
    }
}

impl From<DriverName> for String {
    fn from(name: DriverName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for DriverName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a VF is wanted to be bound to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub enum Driver {
    /// Whatever the kernel binds by itself.
    Native,
    /// This one and no other.
    Named(DriverName),
    /// None at all. Only what was before an apply can be this.
    Unbound,
}

impl Driver {
    /// Whether it hands the device to user space.
    pub fn is_vfio(&self) -> bool {
        matches!(self, Self::Named(name) if name.is_vfio())
    }
}

impl TryFrom<String> for Driver {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        Ok(match text.as_str() {
            "native" => Self::Native,
            "none" => Self::Unbound,
            _ => Self::Named(text.try_into()?),
        })
    }
}

impl From<Driver> for String {
    fn from(driver: Driver) -> Self {
        driver.to_string()
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => f.pad("native"),
            Self::Named(name) => name.fmt(f),
            Self::Unbound => f.pad("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_those_of_stations() {
        let mac: StationMac = "52:54:00:ab:cd:EF".parse().unwrap();
        assert_eq!(mac.get().to_string(), "52:54:00:ab:cd:ef");
        for bad in [
            "00:00:00:00:00:00",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "52:54:00:00:00",
            "5:54:00:00:00:01",
        ] {
            assert!(bad.parse::<StationMac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn words_are_the_same_everywhere() {
        let json = serde_json::to_string(&VlanProtocol::Service).unwrap();
        assert_eq!(json, "\"802.1ad\"");
        assert_eq!(LinkState::Up.to_string(), "up");
    }

    #[test]
    fn drivers_are_named_or_native() {
        assert_eq!(Driver::try_from("native".to_owned()), Ok(Driver::Native));
        let vfio = Driver::try_from("vfio-pci".to_owned()).unwrap();
        assert!(vfio.is_vfio() && is_vfio("mlx5_vfio_pci"));
        assert!(Driver::try_from("../x".to_owned()).is_err());
    }

    #[test]
    fn guids_read_back_as_they_print() {
        let guid = Guid::try_from("00:11:22:33:44:55:66:77".to_owned()).unwrap();
        assert_eq!(guid.get(), 0x0011_2233_4455_6677);
        assert_eq!(guid.to_string(), "00:11:22:33:44:55:66:77");
        assert!(Guid::try_from("0011:22:33:44:55:66:77".to_owned()).is_err());
    }
}
