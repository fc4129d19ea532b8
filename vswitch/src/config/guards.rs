//! Guards as configured: what a machine may not do to others. On by default for ports, never on
//! uplinks; `[switch.guards]` changes them for all ports, `guards` in `[[port]]` for one.

use serde::{Deserialize, Serialize};
use towpath_common::ranged;

/// The guards of one port, complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guards {
    /// Drop frames from other addresses than the port's, if it has any configured.
    pub source_guard: bool,
    /// Most addresses learned from the port.
    pub mac_limit: MacLimit,
    /// Drop frames of bridge protocols.
    pub bpdu_guard: bool,
    /// Most frames per second to all or to unknown addresses; `None`: no limit.
    pub storm: Storm,
    /// Most traffic from the port.
    pub rate: Rate,
}

/// Guards as written: what is absent is inherited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuardTable {
    /// See [`Guards::source_guard`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_guard: Option<bool>,
    /// See [`Guards::mac_limit`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac_limit: Option<MacLimit>,
    /// See [`Guards::bpdu_guard`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bpdu_guard: Option<bool>,
    /// See [`Guards::storm`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storm: Option<Storm>,
    /// See [`Guards::rate`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
}

/// Frames per second that may be flooded; 0: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storm {
    /// To the broadcast address.
    pub broadcast: PerSecond,
    /// To group addresses.
    pub multicast: PerSecond,
    /// To addresses that are not known.
    pub unknown: PerSecond,
}

impl Default for Storm {
    fn default() -> Self {
        Self {
            broadcast: PerSecond(1_000),
            multicast: PerSecond(1_000),
            unknown: PerSecond(1_000),
        }
    }
}

/// Traffic from a port; 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rate {
    /// Frames per second.
    pub packets: PerSecond,
    /// Frames that may come at once.
    pub packet_burst: PerSecond,
    /// Bytes per second.
    pub bytes: PerSecond,
    /// Bytes that may come at once.
    pub byte_burst: PerSecond,
}

ranged! {
    /// Addresses learned from one port.
    MacLimit(u32), "mac_limit", 1..=1_048_576
}

ranged! {
    /// A number per second; 0: no limit.
    PerSecond(u64), "rate", 0..=1_000_000_000_000
}

impl Default for MacLimit {
    fn default() -> Self {
        Self(64)
    }
}

impl Default for PerSecond {
    fn default() -> Self {
        Self(0)
    }
}

impl Default for Guards {
    fn default() -> Self {
        Self {
            source_guard: true,
            mac_limit: MacLimit::default(),
            bpdu_guard: true,
            storm: Storm::default(),
            rate: Rate::default(),
        }
    }
}

impl Guards {
    /// These, changed by what `table` says.
    #[must_use]
    pub fn with(&self, table: &GuardTable) -> Self {
        Self {
            source_guard: table.source_guard.unwrap_or(self.source_guard),
            mac_limit: table.mac_limit.unwrap_or(self.mac_limit),
            bpdu_guard: table.bpdu_guard.unwrap_or(self.bpdu_guard),
            storm: table.storm.unwrap_or(self.storm),
            rate: table.rate.unwrap_or(self.rate),
        }
    }
}
