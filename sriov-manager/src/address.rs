//! Where a PCI function sits: `0000:01:00.0`, and the arithmetic by which VFs get their addresses.
//!
//! A VF's routing ID (bus, device and function in 16 bits) is that of its PF plus First VF Offset
//! plus its index times VF Stride (PCIe 6.0, 9.2.1.2). The sum may leave the PF's bus.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::config::ValueError;

/// Where the kernel lists PCI functions.
pub const DEVICES: &str = "/sys/bus/pci/devices";

/// The address of a PCI function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddr {
    /// Domains made by the kernel itself (VMD) need more than 16 bits.
    domain: u32,
    rid: u16,
}

impl PciAddr {
    /// From its parts; `device` and `function` are cut to 5 and 3 bits.
    pub const fn new(domain: u32, bus: u8, device: u8, function: u8) -> Self {
        let rid = ((bus as u16) << 8) | (((device & 31) as u16) << 3) | (function & 7) as u16;
        Self { domain, rid }
    }

    /// The bus.
    pub const fn bus(self) -> u8 {
        (self.rid >> 8) as u8
    }

    /// The function `offset` routing IDs further on; `None` beyond bus 255.
    pub fn plus(self, offset: u32) -> Option<Self> {
        let rid = u32::from(self.rid).checked_add(offset)?;
        let rid = u16::try_from(rid).ok()?;
        Some(Self { rid, ..self })
    }

    /// The address of VF `index` of this PF.
    pub fn vf(self, offset: u16, stride: u16, index: u16) -> Option<Self> {
        self.plus(u32::from(offset) + u32::from(stride) * u32::from(index))
    }

    /// Its directory in sysfs.
    pub fn dir(self) -> PathBuf {
        Path::new(DEVICES).join(self.to_string())
    }

    /// A file in its directory in sysfs.
    pub fn file(self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    fn parse(text: &str) -> Option<Self> {
        let (place, function) = text.rsplit_once('.')?;
        let mut parts = place.rsplit(':');
        let hex = |digits: &str, most: usize| {
            let right =
                (1..=most).contains(&digits.len()) && digits.bytes().all(|c| c.is_ascii_hexdigit());
            right
                .then(|| u32::from_str_radix(digits, 16).ok())
                .flatten()
        };
        let device = hex(parts.next()?, 2).filter(|device| *device < 32)?;
        let bus = hex(parts.next()?, 2)?;
        let domain = parts.next().map_or(Some(0), |digits| hex(digits, 8))?;
        let function = hex(function, 1).filter(|function| *function < 8)?;
        if parts.next().is_some() {
            return None;
        }
        let rid = u16::try_from((bus << 8) | (device << 3) | function).ok()?;
        Some(Self { domain, rid })
    }
}

impl fmt::Display for PciAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (device, function) = ((self.rid >> 3) & 31, self.rid & 7);
        let text = format!(
            "{:04x}:{:02x}:{device:02x}.{function}",
            self.domain,
            self.bus()
        );
        f.pad(&text)
    }
}

impl fmt::Debug for PciAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PciAddr {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let rule = "write domain:bus:device.function, such as 0000:3b:00.0";
        Self::parse(text).ok_or_else(|| ValueError::form("address", text, rule))
    }
}

impl TryFrom<String> for PciAddr {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<PciAddr> for String {
    fn from(address: PciAddr) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_as_they_print() {
        for (text, same) in [
            ("0000:01:00.0", "0000:01:00.0"),
            ("3b:1f.7", "0000:3b:1f.7"),
            ("10000:E1:00.0", "10000:e1:00.0"),
        ] {
            assert_eq!(text.parse::<PciAddr>().unwrap().to_string(), same);
        }
        for bad in [
            "",
            "01:00",
            "01:20.0",
            "01:00.8",
            "0:0:0:0.0",
            "g:00.0",
            "+1:00.0",
            "01:.0",
        ] {
            assert!(bad.parse::<PciAddr>().is_err(), "{bad:?}");
        }
    }

    /// An 82576 (offset 128, stride 2), and a card whose VFs go on on the next bus.
    #[test]
    fn a_vf_is_offset_and_strides_away() {
        let pf: PciAddr = "0000:01:00.0".parse().unwrap();
        assert_eq!(pf.vf(128, 2, 0).unwrap().to_string(), "0000:01:10.0");
        assert_eq!(pf.vf(128, 2, 6).unwrap().to_string(), "0000:01:11.4");
        assert_eq!(pf.vf(256, 1, 9).unwrap().to_string(), "0000:02:01.1");
        assert_eq!(pf.vf(65535, 1, 0), None);
    }
}
