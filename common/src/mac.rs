//! MAC addresses (IEEE 802, 48 bits), as they stand in frames, configuration and output, and as
//! cards are told theirs.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A MAC address.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$"))]
pub struct Mac(pub [u8; 6]);

/// Not a MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address; write six hexadecimal bytes, as in 52:54:00:12:34:56")]
pub struct BadMac(String);

impl Mac {
    /// All stations.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// No station: what the kernel shows of a VF to which no address was given.
    pub const ZERO: Mac = Mac([0; 6]);

    /// An address of our own making: the low 46 bits of `seed`, locally administered, individual.
    #[must_use]
    pub const fn local(seed: u64) -> Mac {
        let [_, _, a, b, c, d, e, f] = seed.to_be_bytes();
        Mac([(a & 0xfc) | 2, b, c, d, e, f])
    }

    /// True for group addresses, the broadcast address among them (IEEE 802, the I/G bit).
    #[inline]
    #[must_use]
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// True for ff:ff:ff:ff:ff:ff.
    #[inline]
    #[must_use]
    pub fn is_broadcast(self) -> bool {
        self == Mac::BROADCAST
    }

    /// True for 00:00:00:00:00:00, which no station may have.
    #[inline]
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Mac::ZERO
    }

    /// True for 01:80:c2:00:00:00 to 0f: link-local, never forwarded (IEEE 802.1Q, 8.6.3).
    #[inline]
    #[must_use]
    pub fn is_reserved(self) -> bool {
        self.to_u64() & !0xf == 0x0180_c200_0000
    }

    /// The address as a number: the first byte on the wire is the most significant of 48 bits.
    #[inline]
    #[must_use]
    pub fn to_u64(self) -> u64 {
        // In two loads; eight bytes put together would be eight.
        let [a, b, c, d, e, f] = self.0;
        let (high, low) = (u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f]));
        u64::from(high) << 32 | u64::from(low)
    }

    /// The inverse of [`Mac::to_u64`]; the upper 16 bits are ignored.
    #[inline]
    #[must_use]
    pub fn from_u64(value: u64) -> Mac {
        let [_, _, a, b, c, d, e, f] = value.to_be_bytes();
        Mac([a, b, c, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        out.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Mac, BadMac> {
        let bad = || BadMac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let two = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(two).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Mac(bytes))
    }
}

impl TryFrom<String> for Mac {
    type Error = BadMac;

    fn try_from(text: String) -> Result<Mac, BadMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_nothing_else() {
        let mac: Mac = "52:54:00:12:34:56".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:12:34:56");
        assert_eq!(Mac::from_u64(mac.to_u64()), mac);
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "+2:54:00:12:34:56",
            "g2:54:0:1:2:3",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn made_addresses_are_local_and_individual() {
        for seed in [0, u64::MAX, 0x1234_5678_9abc_def0] {
            assert_eq!(Mac::local(seed).0[0] & 3, 2, "{seed:x}");
        }
        assert_ne!(Mac::local(1), Mac::local(2));
    }

    #[test]
    fn reserved_addresses_are_the_sixteen_of_the_standard() {
        let reserved = |last| Mac([1, 0x80, 0xc2, 0, 0, last]).is_reserved();
        assert!((0..=0x0f).all(reserved));
        assert!(!reserved(0x10));
        assert!(!Mac::BROADCAST.is_reserved());
    }
}
