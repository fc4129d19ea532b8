//! Guards: what a port may send, however it is connected.
//!
//! Guests are hostile, so a guest's port has guards unless they are turned off; an uplink, behind
//! which is a whole network, has none unless they are turned on. A guard is one question with one
//! answer: pass, or the reason to drop. Each has its own counter by way of [`Discard`].
//!
//! | key | guest | uplink | |
//! |---|---|---|---|
//! | `bpdu_guard` | on | off | drops bridge protocol frames |
//! | `source_guard` | on | off | drops sources that are not the port's addresses, if it has any |
//! | `mac_limit` | 64 | off | source addresses of the port |
//! | `broadcast_limit` | 1000 | off | broadcast frames a second |
//! | `multicast_limit` | 10000 | off | other multicast frames a second |
//! | `unknown_limit` | 10000 | off | frames a second to addresses that nobody was seen to have |
//! | `packet_rate`, `packet_burst` | off | off | frames a second, and at once |
//! | `byte_rate`, `byte_burst` | off | off | bytes a second, and at once |
//!
//! A frame that is to be cut into segments counts as so many frames, whether or not anybody gets it
//! in pieces.
//!
//! The limits are for floods, not for busy guests: a /22 full of ARP stays far below 1000
//! broadcasts a second, a 100 Mbit/s multicast stream is 10 000 frames, and a unicast flow is
//! unknown only until its receiver answers. 64 addresses are room for nested guests and
//! containers; more than that on one port is unusual enough to be said.

mod limiter;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use arrayvec::ArrayVec;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use towpath_common::config::{ByteSize, ValueError};

pub use limiter::Limiter;

use crate::discard::Discard;
use crate::mac::Mac;

/// The most addresses a port may have for its source guard.
pub const MAX_SOURCES: usize = 8;
/// Largest value of a limit: above all hardware, below every overflow.
const MAX_BOUND: u64 = 1_000_000_000_000;
/// Least that may pass at once under a rate limit: a worker's burst, and two frames of 64 KiB.
const LEAST_BURST: (u64, u64) = (64, 128 << 10);
/// A rate's default burst is what passes in the twentieth part of a second.
const BURST_PART: u64 = 20;

/// Spanning tree of IEEE 802.1Q, table 8-1, and of Cisco's PVST+.
pub(crate) const BRIDGE_GROUPS: [Mac; 2] = [
    Mac([0x01, 0x80, 0xc2, 0, 0, 0]),
    Mac([0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd]),
];

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

    fn limiter(self, burst: impl FnOnce(u64) -> u64) -> Option<Limiter> {
        self.0.map(|rate| Limiter::new(rate, burst(rate)))
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

impl JsonSchema for Bound {
    fn schema_name() -> Cow<'static, str> {
        "Bound".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number, such as 1000 or \"10M\", or \"off\".",
            "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}],
        })
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
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[expect(
    missing_docs,
    reason = "each is the field of GuardConfig of the same name"
)]
pub struct GuardTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bpdu_guard: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_guard: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac_limit: Option<Bound>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broadcast_limit: Option<Bound>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multicast_limit: Option<Bound>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_limit: Option<Bound>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_rate: Option<Bound>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_burst: Option<Bound>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub byte_rate: Option<Bound>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub byte_burst: Option<Bound>,
}

/// Guards, complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// Frames that storm control counts, by where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storm {
    /// To all stations.
    Broadcast,
    /// To another group.
    Multicast,
    /// To a station that nobody was seen to be.
    Unknown,
}

/// A port's guards at work. Shared by its workers.
#[derive(Debug)]
pub struct Guards {
    config: GuardConfig,
    bpdu: bool,
    /// Empty: any.
    sources: ArrayVec<Mac, MAX_SOURCES>,
    mac_limit: u32,
    storms: [Option<Limiter>; 3],
    packets: Option<Limiter>,
    bytes: Option<Limiter>,
}

impl Guards {
    /// The guards of a port with these addresses; those beyond [`MAX_SOURCES`] are left out.
    #[must_use]
    pub fn new(config: &GuardConfig, addresses: &[Mac]) -> Guards {
        let guarded = addresses.iter().filter(|_| config.source_guard);
        let storms = [
            config.broadcast_limit,
            config.multicast_limit,
            config.unknown_limit,
        ];
        let burst = |bound: Bound, rate: u64, least: u64| {
            bound.get().unwrap_or((rate / BURST_PART).max(least))
        };
        let limit = config.mac_limit.get().map(u32::try_from);
        Guards {
            config: config.clone(),
            bpdu: config.bpdu_guard,
            sources: guarded.copied().take(MAX_SOURCES).collect(),
            mac_limit: limit.and_then(Result::ok).unwrap_or(u32::MAX),
            storms: storms.map(|bound| bound.limiter(|rate| rate)),
            packets: config
                .packet_rate
                .limiter(|rate| burst(config.packet_burst, rate, LEAST_BURST.0)),
            bytes: config
                .byte_rate
                .limiter(|rate| burst(config.byte_burst, rate, LEAST_BURST.1)),
        }
    }

    /// What they were made from.
    #[must_use]
    pub fn config(&self) -> &GuardConfig {
        &self.config
    }

    /// Whether the port may send from `source`.
    ///
    /// # Errors
    /// [`Discard::SourceGuard`].
    #[inline]
    pub fn source(&self, source: Mac) -> Result<(), Discard> {
        let may = self.sources.is_empty() || self.sources.contains(&source);
        may.then_some(()).ok_or(Discard::SourceGuard)
    }

    /// Whether the port may send to `destination`, as far as bridge protocols go.
    ///
    /// # Errors
    /// [`Discard::BpduGuard`].
    #[inline]
    pub fn bridge_protocol(&self, destination: Mac) -> Result<(), Discard> {
        let drop = self.bpdu && BRIDGE_GROUPS.contains(&destination);
        (!drop).then_some(()).ok_or(Discard::BpduGuard)
    }

    /// Whether a frame that goes to many may pass at `now_ns`. It is counted if it may, as the
    /// `frames` that it makes on a wire.
    ///
    /// # Errors
    /// [`Discard::BroadcastStorm`], [`Discard::MulticastStorm`], [`Discard::UnknownStorm`].
    #[inline]
    pub fn storm(&self, storm: Storm, frames: u32, now_ns: u64) -> Result<(), Discard> {
        let (limiter, reason) = match storm {
            Storm::Broadcast => (&self.storms[0], Discard::BroadcastStorm),
            Storm::Multicast => (&self.storms[1], Discard::MulticastStorm),
            Storm::Unknown => (&self.storms[2], Discard::UnknownStorm),
        };
        passes(limiter, frames.into(), now_ns)
            .then_some(())
            .ok_or(reason)
    }

    /// Whether a frame of `bytes`, which makes `frames` on a wire, may pass at `now_ns`. One with
    /// too many bytes still counts as so many frames.
    ///
    /// # Errors
    /// [`Discard::RateLimit`].
    #[inline]
    pub fn rate(&self, frames: u32, bytes: usize, now_ns: u64) -> Result<(), Discard> {
        let may = passes(&self.packets, frames.into(), now_ns)
            && passes(&self.bytes, bytes as u64, now_ns);
        may.then_some(()).ok_or(Discard::RateLimit)
    }

    /// How many addresses the port may have in the FDB.
    #[inline]
    #[must_use]
    pub fn mac_limit(&self) -> u32 {
        self.mac_limit
    }

    /// Whether the port may send from its own addresses only.
    #[must_use]
    pub fn has_sources(&self) -> bool {
        !self.sources.is_empty()
    }

    /// Whether bridge protocols from the port are dropped.
    #[must_use]
    pub fn stops_bridge_protocols(&self) -> bool {
        self.bpdu
    }

    /// Whether any frame needs the time: false if nothing limits the rate of ordinary frames.
    #[inline]
    #[must_use]
    pub fn is_rated(&self) -> bool {
        self.packets.is_some() || self.bytes.is_some()
    }
}

/// Whether `n` pass a limit, if there is one.
#[inline]
fn passes(limiter: &Option<Limiter>, n: u64, now_ns: u64) -> bool {
    limiter
        .as_ref()
        .is_none_or(|limiter| limiter.take(n, now_ns))
}

#[cfg(test)]
mod tests;
