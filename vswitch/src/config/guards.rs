//! Guards as configured: what a machine may not do to others. On by default for ports and off on
//! uplinks; `[switch.guards]` changes them for all ports, `guards` of a port or uplink for one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use towpath_common::config::{ByteSize, ValueError};

/// The most addresses a port may have for its source guard.
pub const MAX_SOURCES: usize = 8;
/// Largest value of a limit: above all hardware, below every overflow.
const MAX_BOUND: u64 = 1_000_000_000_000;

/// A limit: a number from 1 on, or none. Written as a number, with K, M, G (powers of 1024) if it
/// is a text, or `"off"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound(Option<u64>);

impl Bound {
    /// No limit.
    pub const OFF: Bound = Bound(None);

    /// The limit, if there is one.
    #[must_use]
    pub const fn get(self) -> Option<u64> {
        self.0
    }
}

impl FromStr for Bound {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Bound, ValueError> {
        if text == "off" {
            return Ok(Bound::OFF);
        }
        let number = text.parse::<ByteSize>().ok().map(ByteSize::bytes);
        let number = number.filter(|number| (1..=MAX_BOUND).contains(number));
        let rule = "write a number from 1 to 10^12, such as 1000 or 10M, or \"off\" for no limit";
        number.map_or_else(
            || Err(ValueError::form("limit", text, rule)),
            |number| Ok(Bound(Some(number))),
        )
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => number.fmt(f),
            None => f.write_str("off"),
        }
    }
}

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(number) => serializer.serialize_u64(number),
            None => serializer.serialize_str("off"),
        }
    }
}

impl<'de> Deserialize<'de> for Bound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bound, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "write a number, such as 1000 or \"10M\", or \"off\""
        )]
        enum Written {
            Number(i64),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(de::Error::custom)
    }
}

/// What a port is, for its defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A virtual machine: guarded.
    Guest,
    /// A network: trusted.
    Uplink,
}

/// Guards as written; what is left out is as usual for the port's side.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(
    missing_docs,
    reason = "each is the field of GuardConfig of the same name"
)]
pub struct GuardTable {
    pub bpdu_guard: Option<bool>,
    pub source_guard: Option<bool>,
    pub mac_limit: Option<Bound>,
    pub broadcast_limit: Option<Bound>,
    pub multicast_limit: Option<Bound>,
    pub unknown_limit: Option<Bound>,
    pub packet_rate: Option<Bound>,
    pub packet_burst: Option<Bound>,
    pub byte_rate: Option<Bound>,
    pub byte_burst: Option<Bound>,
}

/// Guards, complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuardConfig {
    /// Drop bridge protocol frames.
    pub bpdu_guard: bool,
    /// Drop sources that are not the port's addresses, if it has any.
    pub source_guard: bool,
    /// Source addresses that the port may have.
    pub mac_limit: Bound,
    /// Broadcast frames a second.
    pub broadcast_limit: Bound,
    /// Other multicast frames a second.
    pub multicast_limit: Bound,
    /// Frames a second to unknown addresses.
    pub unknown_limit: Bound,
    /// Frames a second.
    pub packet_rate: Bound,
    /// Frames at once; off: a twentieth of `packet_rate`, at least 64.
    pub packet_burst: Bound,
    /// Bytes a second, from the destination address on.
    pub byte_rate: Bound,
    /// Bytes at once; off: a twentieth of `byte_rate`, at least 128 KiB.
    pub byte_burst: Bound,
}

impl Default for GuardConfig {
    /// Those of a guest.
    fn default() -> GuardConfig {
        GuardConfig::usual(Side::Guest)
    }
}

impl GuardConfig {
    /// The guards of a port whose configuration names none.
    #[must_use]
    pub fn usual(side: Side) -> GuardConfig {
        let guest = side == Side::Guest;
        let limit = |number| {
            if guest {
                Bound(Some(number))
            } else {
                Bound::OFF
            }
        };
        GuardConfig {
            bpdu_guard: guest,
            source_guard: guest,
            mac_limit: limit(64),
            broadcast_limit: limit(1_000),
            multicast_limit: limit(10_000),
            unknown_limit: limit(10_000),
            packet_rate: Bound::OFF,
            packet_burst: Bound::OFF,
            byte_rate: Bound::OFF,
            byte_burst: Bound::OFF,
        }
    }
}

impl GuardTable {
    /// With what was left out.
    #[must_use]
    pub fn complete(&self, side: Side) -> GuardConfig {
        let usual = GuardConfig::usual(side);
        GuardConfig {
            bpdu_guard: self.bpdu_guard.unwrap_or(usual.bpdu_guard),
            source_guard: self.source_guard.unwrap_or(usual.source_guard),
            mac_limit: self.mac_limit.unwrap_or(usual.mac_limit),
            broadcast_limit: self.broadcast_limit.unwrap_or(usual.broadcast_limit),
            multicast_limit: self.multicast_limit.unwrap_or(usual.multicast_limit),
            unknown_limit: self.unknown_limit.unwrap_or(usual.unknown_limit),
            packet_rate: self.packet_rate.unwrap_or(usual.packet_rate),
            packet_burst: self.packet_burst.unwrap_or(usual.packet_burst),
            byte_rate: self.byte_rate.unwrap_or(usual.byte_rate),
            byte_burst: self.byte_burst.unwrap_or(usual.byte_burst),
        }
    }
}

/// `over` where it speaks, else `table`.
pub(super) fn overlay(table: &GuardTable, over: &GuardTable) -> GuardTable {
    GuardTable {
        bpdu_guard: over.bpdu_guard.or(table.bpdu_guard),
        source_guard: over.source_guard.or(table.source_guard),
        mac_limit: over.mac_limit.or(table.mac_limit),
        broadcast_limit: over.broadcast_limit.or(table.broadcast_limit),
        multicast_limit: over.multicast_limit.or(table.multicast_limit),
        unknown_limit: over.unknown_limit.or(table.unknown_limit),
        packet_rate: over.packet_rate.or(table.packet_rate),
        packet_burst: over.packet_burst.or(table.packet_burst),
        byte_rate: over.byte_rate.or(table.byte_rate),
        byte_burst: over.byte_burst.or(table.byte_burst),
    }
}
