//! VFs given to machines, for as long as their owners live.
//!
//! ```text
//! request ─▶ who asks? ─▶ choose ─▶ write down ─▶ set, bind ─▶ open ─▶ hand over, close our copies
//!                                       │
//! owner ends, or is released ───────────▶ nobody has it open? ─▶ reset ─▶ scrub, read back ─▶ free
//! ```
//!
//! A lease is on disk before anything is done to its VF, so that whatever dies in between leaves a
//! lease that ends with its owner, and never a VF that is somebody's and nobody's. A VF that cannot
//! be scrubbed stays leased, to nobody, and is tried again: it is never handed out dirty.

mod access;
mod broker;
mod client;
mod error;
mod hand;
mod pick;
mod socket;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::config::Name;

use crate::address::PciAddr;
use crate::apply::Process;
use crate::attribute::{Attributes, Rates, Tag};
use crate::values::{Qos, Rate, StationMac, Vlan, VlanProtocol};

pub use access::Peer;
pub use broker::{Broker, MAX_LEASES};
pub use client::{ClientError, Handed, request};
pub use error::{Counters, LeaseError};
pub use hand::{How, Opened};
pub use socket::serve;

/// A VF that somebody has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lease {
    /// Who, in the words of who asked.
    pub owner: Name,
    /// The pool it came from.
    pub pool: Name,
    /// The PF.
    pub pf: PciAddr,
    /// Which of its VFs.
    pub index: u16,
    /// The process whose end ends the lease.
    pub process: Process,
    /// The process's user, whose node a device is that is opened by its name.
    pub uid: u32,
    /// Seconds since 1970.
    pub since: u64,
    /// What the VF was told for this lease.
    pub attributes: Attributes,
    /// Where it is in its life.
    pub phase: Phase,
}

/// Where a lease is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "phase", content = "because", rename_all = "snake_case")]
pub enum Phase {
    /// Its owner has it.
    Active,
    /// Its owner is gone, and the VF is not yet as it was, for this reason.
    Ending(String),
    /// The card was pulled.
    Lost,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => f.write_str("active"),
            Self::Ending(reason) => write!(f, "ending: {reason}"),
            Self::Lost => f.write_str("lost"),
        }
    }
}

/// What is asked for: one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// From which pool.
    pub pool: Name,
    /// For whom, in the words of who asks.
    pub owner: Name,
    /// Near which NUMA node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa: Option<u32>,
    /// The process whose end ends the lease; who asks, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// How the device is handed over.
    #[serde(default)]
    pub how: How,
    /// An address instead of the configured one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<StationMac>,
    /// A VLAN instead of the configured one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
    /// A limit instead of the configured one, in Mbit/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<Rate>,
}

impl Request {
    /// What is asked for, and nothing else.
    pub fn new(pool: Name, owner: Name) -> Self {
        Self {
            pool,
            owner,
            numa: None,
            pid: None,
            how: How::Fds,
            mac: None,
            vlan: None,
            max_rate: None,
        }
    }

    /// What the VF is told for this lease.
    pub fn attributes(&self) -> Attributes {
        Attributes {
            mac: self.mac.map(StationMac::get),
            tag: self.vlan.map(|vlan| Tag {
                vlan,
                qos: Qos::MIN,
                protocol: VlanProtocol::Customer,
            }),
            rates: self.max_rate.map(|max| Rates {
                min: Rate::MIN,
                max,
            }),
            ..Attributes::default()
        }
    }
}

/// What was handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Granted {
    /// The VF.
    pub address: PciAddr,
    /// Its PF.
    pub pf: PciAddr,
    /// Which of the PF's.
    pub index: u16,
    /// Its NUMA node.
    pub numa: Option<u32>,
    /// The IOMMU group.
    pub group: u32,
    /// What the descriptors are, in order: `container`, `group` or `iommufd`, `device`.
    pub fds: Vec<String>,
    /// Bytes of the device that its owner maps besides the machine's memory; all of it is locked.
    pub bars: u64,
    /// What its PF's driver was told.
    pub attributes: Attributes,
}

/// A lease with its VF, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Shown {
    /// The VF.
    pub address: PciAddr,
    /// The lease.
    #[serde(flatten)]
    pub lease: Lease,
}

#[cfg(test)]
mod tests;
