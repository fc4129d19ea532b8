//! What concerns all ports: the tables `[switch]`, `[[fdb]]` and `[[mirror]]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::config::Name;

use super::guards::GuardTable;
use crate::fdb::{Ageing, Capacity};
use crate::mac::Mac;
use crate::vlan::{Vid, VlanSet};

/// The table `[switch]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Switch {
    /// Room for addresses, all VLANs together; read at the start only.
    pub fdb_size: Capacity,
    /// Seconds after which an address that sends nothing is forgotten.
    pub ageing: Ageing,
    /// What differs from the usual guards, for all ports but uplinks.
    pub guards: GuardTable,
}

/// An address that is not learned: `[[fdb]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticEntry {
    /// The address, of one station.
    pub mac: Mac,
    /// Its VLAN.
    #[serde(default = "default_vlan")]
    pub vlan: Vid,
    /// Where it is.
    pub port: Name,
}

/// serde takes a function for a default that is not `Default`'s.
fn default_vlan() -> Vid {
    Vid::DEFAULT
}

/// A copy of traffic to a port: `[[mirror]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// What operators and the API call it.
    pub name: Name,
    /// The ports whose traffic is copied.
    #[serde(default)]
    pub from: Vec<Name>,
    /// The VLANs whose traffic is copied, whatever the port.
    pub vlans: Option<VlanSet>,
    /// The port that gets the copies.
    pub to: Name,
    /// Which traffic, as seen by the switch.
    #[serde(default)]
    pub direction: Direction,
    /// Whether that port goes on switching; without it, it only gets copies.
    #[serde(default)]
    pub member: bool,
}

/// Which traffic of a port is mirrored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// What the switch receives from the port.
    Rx,
    /// What the switch sends to the port.
    Tx,
    /// Both.
    #[default]
    Both,
}
