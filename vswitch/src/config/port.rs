//! Ports and uplinks as configured: the tables `[[port]]` and `[[uplink]]`, and what `--port` and
//! `--uplink` become. A value of these types obeys each rule that concerns it alone; what ties
//! several together is checked in [`check`](super::check).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::config::{Cap, Name, SocketMode, SocketPath, Weight};
use towpath_common::ranged;

use super::guards::GuardTable;
use crate::mac::Mac;
use crate::port::tap::InterfaceName;
use crate::vlan::{Mode, Vid, VlanSet};

/// A port for a virtual machine: `[[port]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// What operators, the API and metrics call it.
    pub name: Name,
    /// The vhost-user socket.
    pub socket: SocketPath,
    /// Which end of the socket vswitch is.
    #[serde(default)]
    pub mode: SocketMode,
    /// The one VLAN of an access port; without `access` and `trunk`: VLAN 1.
    pub access: Option<Vid>,
    /// The VLANs of a trunk port.
    pub trunk: Option<VlanSet>,
    /// The VLAN of a trunk port's untagged frames; without it they are dropped.
    pub native: Option<Vid>,
    /// The machine's address: with one, frames from other addresses are dropped.
    pub mac: Option<Mac>,
    /// More addresses the machine may send from.
    #[serde(default)]
    pub macs: Vec<Mac>,
    /// It reaches uplinks only: frames between it and any other guest are dropped.
    #[serde(default)]
    pub isolated: bool,
    /// Most pairs of queues a guest may use.
    #[serde(default)]
    pub queues: QueuePairs,
    /// Largest payload of an Ethernet frame; offered to the guest.
    #[serde(default)]
    pub mtu: Mtu,
    /// Whether checksum and segmentation offloads are offered.
    #[serde(default = "yes")]
    pub offloads: bool,
    /// What differs from `[switch]`'s guards, which differ from the usual ones.
    #[serde(default)]
    pub guards: GuardTable,
    /// Share of its worker's time.
    #[serde(default)]
    pub weight: Weight,
    /// The most it may use of a core; `None`: no limit.
    pub cap: Option<Cap>,
}

/// A port to the host's network: `[[uplink]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, from = "UplinkTable")]
pub struct Uplink {
    /// What operators, the API and metrics call it.
    pub name: Name,
    /// The TAP interface, which is created if it does not exist.
    pub tap: InterfaceName,
    /// As a port's.
    pub access: Option<Vid>,
    /// As a port's.
    pub trunk: Option<VlanSet>,
    /// As a port's.
    pub native: Option<Vid>,
    /// Queues, each served by a worker; more than one takes an interface with multi_queue.
    pub queues: QueuePairs,
    /// Largest payload of an Ethernet frame, set on the interface; `None`: as it is.
    pub mtu: Option<Mtu>,
    /// Whether the host's checksum and segmentation offloads are used.
    pub offloads: bool,
    /// What differs from no guards at all.
    pub guards: GuardTable,
    /// Share of its worker's time.
    pub weight: Weight,
    /// The most it may use of a core; `None`: no limit.
    pub cap: Option<Cap>,
}

/// An [`Uplink`] as written: its name defaults to the interface's.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct UplinkTable {
    name: Option<Name>,
    tap: InterfaceName,
    access: Option<Vid>,
    trunk: Option<VlanSet>,
    native: Option<Vid>,
    #[serde(default = "one")]
    queues: QueuePairs,
    mtu: Option<Mtu>,
    #[serde(default = "yes")]
    offloads: bool,
    #[serde(default)]
    guards: GuardTable,
    #[serde(default)]
    weight: Weight,
    cap: Option<Cap>,
}

impl From<UplinkTable> for Uplink {
    fn from(table: UplinkTable) -> Self {
        let name = table.name;
        Self {
            name: name.unwrap_or_else(|| Name::sanitized(table.tap.as_str())),
            tap: table.tap,
            access: table.access,
            trunk: table.trunk,
            native: table.native,
            queues: table.queues,
            mtu: table.mtu,
            offloads: table.offloads,
            guards: table.guards,
            weight: table.weight,
            cap: table.cap,
        }
    }
}

/// serde takes a function for a default that is not `Default`'s.
fn yes() -> bool {
    true
}

/// One pair of queues.
fn one() -> QueuePairs {
    QueuePairs::MIN
}

impl Port {
    /// Its VLANs. Whoever loads a configuration has refused what is no mode.
    pub fn vlans(&self) -> Mode {
        vlans(self.access, self.trunk.as_ref(), self.native)
    }

    /// The addresses it may send from; empty: any.
    pub fn addresses(&self) -> impl Iterator<Item = Mac> {
        self.mac.into_iter().chain(self.macs.iter().copied())
    }
}

impl Uplink {
    /// Its VLANs, as [`Port::vlans`]; without `access` and `trunk` all VLANs, tagged, with VLAN 1
    /// as the native one, so that a host that knows no VLANs meets ports that name none.
    pub fn vlans(&self) -> Mode {
        if self.access.is_none() && self.trunk.is_none() {
            let native = self.native.or(Some(Vid::DEFAULT));
            return vlans(None, Some(&VlanSet::all()), native);
        }
        vlans(self.access, self.trunk.as_ref(), self.native)
    }
}

fn vlans(access: Option<Vid>, trunk: Option<&VlanSet>, native: Option<Vid>) -> Mode {
    match trunk {
        Some(allowed) => Mode::Trunk {
            allowed: allowed.clone(),
            native,
        },
        None => Mode::Access {
            pvid: access.unwrap_or(Vid::DEFAULT),
        },
    }
}

ranged! {
    /// How many pairs of queues a guest may use; a pair nobody uses costs next to nothing.
    QueuePairs(u16), "queues", 1..=64
}

impl Default for QueuePairs {
    /// QEMU asks for as many as its command line says and fails if it cannot have them.
    fn default() -> Self {
        Self(16)
    }
}

ranged! {
    /// The largest payload of an Ethernet frame, in bytes; 68 is IPv4's least (RFC 791).
    Mtu(u16), "mtu", 68..=9216
}

impl Default for Mtu {
    /// Ethernet's.
    fn default() -> Self {
        Self(1500)
    }
}
