//! What the switch knows of its ports and VLANs: one immutable value, replaced whole.
//!
//! Workers get a new [`Tables`] between two bursts, so no frame ever meets half a change. What
//! moves by itself (learned addresses, guards' accounts, rings that come and go) is behind the
//! `Arc`s in it and outlives a replacement.

use std::sync::Arc;

use crate::egress::Egress;
use crate::guard::Guards;
use crate::mirror::Mirrors;
use crate::stats::{PortShared, VlanCounters};
use crate::vlan::{Mode, Vid};

/// A port of the switch: its index in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortNo(pub u16);

impl PortNo {
    /// No port.
    pub const NONE: PortNo = PortNo(0xffff);

    /// As an index.
    #[inline]
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Number of VLAN id values.
const VIDS: usize = 4096;

/// A port.
#[derive(Debug, Clone)]
pub struct Port {
    /// Its number: its index in the tables.
    pub no: PortNo,
    /// Its name.
    pub name: Arc<str>,
    /// Leads out of the host: isolated ports reach it.
    pub uplink: bool,
    /// Reaches uplinks only.
    pub isolated: bool,
    /// Which VLANs it carries, and how.
    pub mode: Mode,
    /// Longest frame taken from it, in bytes from the destination address on, without a tag;
    /// unsegmented ones may be longer.
    pub max_frame: u32,
    /// What it may send.
    pub guards: Arc<Guards>,
    /// Where frames for it go.
    pub egress: Arc<Egress>,
    /// Its counters.
    pub shared: Arc<PortShared>,
    /// The same by VLAN.
    pub vlans: Arc<VlanCounters>,
}

/// All ports and VLANs.
#[derive(Debug)]
pub struct Tables {
    ports: Box<[Option<Port>]>,
    /// By VLAN id: its members.
    members: Box<[Box<[PortNo]>]>,
    mirrors: Mirrors,
}

impl Default for Tables {
    fn default() -> Tables {
        Tables::new([], Mirrors::default())
    }
}

impl Tables {
    /// Tables of these ports, each at the index its number says; of two with one number the later
    /// counts. Ports that only get copies are members of no VLAN.
    #[must_use]
    pub fn new(all: impl IntoIterator<Item = Port>, mirrors: Mirrors) -> Tables {
        let mut ports: Vec<Option<Port>> = Vec::new();
        for port in all {
            let at = usize::from(port.no.0);
            if at >= ports.len() {
                ports.resize(at + 1, None);
            }
            ports[at] = Some(port);
        }
        let mut members = vec![Vec::new(); VIDS];
        let members_only = ports.iter().flatten().filter(|p| !mirrors.excludes(p.no));
        for port in members_only {
            for vid in port.mode.members().iter() {
                members[usize::from(vid.get())].push(port.no);
            }
        }
        Tables {
            ports: ports.into(),
            members: members.into_iter().map(Vec::into_boxed_slice).collect(),
            mirrors,
        }
    }

    /// A port by number.
    #[inline]
    #[must_use]
    pub fn port(&self, no: PortNo) -> Option<&Port> {
        self.ports.get(usize::from(no.0))?.as_ref()
    }

    /// Copies to be made.
    #[inline]
    #[must_use]
    pub fn mirrors(&self) -> &Mirrors {
        &self.mirrors
    }

    /// All ports, by number.
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().flatten()
    }

    /// One more than the highest port number.
    #[must_use]
    pub fn size(&self) -> usize {
        self.ports.len()
    }

    /// The members of a VLAN.
    #[inline]
    #[must_use]
    pub fn members(&self, vid: Vid) -> &[PortNo] {
        self.members
            .get(usize::from(vid.get()))
            .map_or(&[], |members| members)
    }
}
