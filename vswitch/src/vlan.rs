//! VLANs: tags and ids (IEEE 802.1Q, 9), sets of VLANs, and what a port takes and sends.
//!
//! [`Mode::classify`] says which VLAN a received frame belongs to, [`Mode::egress`] whether a port
//! belongs to that VLAN and how its frames leave there, [`Egress::tci`] what stands in the tag.
//! All of it is pure; nothing is looked up but one bit of a [`VlanSet`].

mod mode;
mod set;

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use mode::{Class, Egress, Mode};
pub use set::VlanSet;

/// TPID of a customer VLAN tag (IEEE 802.1Q, table 9-1).
pub const TPID: u16 = 0x8100;
/// TPID of a service VLAN tag (802.1ad).
pub const TPID_SERVICE: u16 = 0x88a8;

/// A VLAN id: 1 to 4094 (802.1Q, 9.6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u16", into = "u16")]
#[schemars(extend("minimum" = 1, "maximum" = 4094))]
pub struct Vid(NonZeroU16);

/// Not a VLAN id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a VLAN id; use 1 to 4094")]
pub struct BadVid(String);

impl Vid {
    /// The VLAN of ports that name none (802.1Q, default PVID).
    pub const DEFAULT: Vid = Vid(NonZeroU16::MIN);

    /// `vid`, if it is one.
    #[inline]
    #[must_use]
    pub fn new(vid: u16) -> Option<Vid> {
        match NonZeroU16::new(vid) {
            Some(vid) if vid.get() <= 4094 => Some(Vid(vid)),
            _ => None,
        }
    }

    /// As a number.
    #[inline]
    #[must_use]
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Vid {
    type Err = BadVid;

    fn from_str(text: &str) -> Result<Vid, BadVid> {
        // Digits only: a number's own parser takes a sign as well.
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let vid = text.parse().ok().filter(|_| digits).and_then(Vid::new);
        vid.ok_or_else(|| BadVid(text.to_owned()))
    }
}

impl TryFrom<u16> for Vid {
    type Error = BadVid;

    fn try_from(vid: u16) -> Result<Vid, BadVid> {
        Vid::new(vid).ok_or_else(|| BadVid(vid.to_string()))
    }
}

impl From<Vid> for NonZeroU16 {
    #[inline]
    fn from(vid: Vid) -> NonZeroU16 {
        vid.0
    }
}

impl From<Vid> for u16 {
    fn from(vid: Vid) -> u16 {
        vid.get()
    }
}

/// A VLAN tag as it stands in a frame (802.1Q, 9.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// [`TPID`] or [`TPID_SERVICE`].
    pub tpid: u16,
    /// Priority (3 bits), drop eligibility (1), VLAN id (12).
    pub tci: u16,
}

impl Tag {
    /// The VLAN id field: 0 is a priority tag, 4095 is reserved.
    #[inline]
    #[must_use]
    pub fn vid_bits(self) -> u16 {
        self.tci & 0x0fff
    }

    /// Priority code point.
    #[inline]
    #[must_use]
    pub fn pcp(self) -> u8 {
        (self.tci >> 13).to_le_bytes()[0]
    }
}

/// True for the TPIDs of 802.1Q: whatever follows one of them is a tag.
#[inline]
#[must_use]
pub const fn is_tpid(ethertype: u16) -> bool {
    ethertype == TPID || ethertype == TPID_SERVICE
}

#[cfg(test)]
mod tests;
