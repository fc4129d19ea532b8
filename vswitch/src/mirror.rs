//! Port mirroring: which ports get a copy of a frame. A pure function of where the frame came
//! from, its VLAN and where it goes.
//!
//! A mirror selects frames received from some ports (rx), sent to some ports (tx), or of some
//! VLANs, whatever the port; a frame that several conditions select is copied once to each
//! mirror's port. What is dropped on its way in is not mirrored: captures show that.
//!
//! A copy is the frame as the switch received it, with the tag it had then, whatever the VLANs of
//! the port that gets it. It is counted at that port, and not in a VLAN.
//!
//! **No loops.** A mirror's port is an output: what comes in from an output is never mirrored, and
//! what goes out to one does not count as sent. So a copy is never the cause of another copy, even
//! if two mirrors name each other's ports.
//!
//! **An output is not a member** of any VLAN unless asked to be one: nothing is flooded to it or
//! learned from it, and what it sends is dropped ([`Mirrors::excludes`]). If it is one, it gets a
//! frame that is addressed to it once, not twice.

use arrayvec::ArrayVec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::table::PortNo;
use crate::vlan::{Vid, VlanSet};

/// Mirrors at a time: each is looked at for each frame.
pub const MIRRORS: usize = 8;

/// Ports that a set can hold.
const PORTS: usize = 1024;
const WORDS: usize = PORTS / 64;

/// A set of ports with numbers below 1024.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet([u64; WORDS]);

impl PortSet {
    /// Adds a port. False, and nothing happens, if its number is too large.
    pub fn insert(&mut self, port: PortNo) -> bool {
        let word = self.0.get_mut(port.index() / 64);
        word.map(|word| *word |= 1 << (port.index() % 64)).is_some()
    }

    /// Whether the port is in the set.
    #[inline]
    #[must_use]
    pub fn contains(&self, port: PortNo) -> bool {
        let word = self.0.get(port.index() / 64).copied().unwrap_or(0);
        word >> (port.index() % 64) & 1 != 0
    }

    /// Whether any port is in this set and `other`, but not in `except`.
    #[inline]
    #[must_use]
    pub fn meets(&self, other: &PortSet, except: &PortSet) -> bool {
        let words = self.0.iter().zip(&other.0).zip(&except.0);
        words.fold(0, |all, ((a, b), c)| all | (a & b & !c)) != 0
    }

    /// All ports.
    const ALL: PortSet = PortSet([u64::MAX; WORDS]);
}

impl FromIterator<PortNo> for PortSet {
    fn from_iter<I: IntoIterator<Item = PortNo>>(ports: I) -> PortSet {
        let mut set = PortSet::default();
        for port in ports {
            set.insert(port);
        }
        set
    }
}

/// A mirror as asked for, its ports found.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// The ports whose traffic is copied.
    pub from: Vec<PortNo>,
    /// The VLANs whose traffic is copied, whatever the port.
    pub vlans: Option<VlanSet>,
    /// Copy what the switch receives.
    pub rx: bool,
    /// Copy what the switch sends.
    pub tx: bool,
    /// The port that gets the copies.
    pub to: Option<PortNo>,
    /// Whether that port takes part in switching all the same.
    pub member: bool,
}

/// What a port is to mirrors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MirrorRole {
    /// No mirror's port.
    #[default]
    None,
    /// It gets copies, and nothing else.
    Output,
    /// It gets copies and takes part in switching.
    Member,
}

/// What is wrong with mirrors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// Too many.
    #[error("at most {MIRRORS} mirrors can be active")]
    TooMany,
    /// A port that does not exist, or that cannot be in a set.
    #[error("a mirror names a port that is not there")]
    NoPort,
    /// It would copy to the port it copies from.
    #[error("a port cannot be mirrored to itself: name another one with `to`")]
    Itself,
    /// It selects nothing.
    #[error("a mirror needs ports or VLANs, and rx, tx or both")]
    Nothing,
}

#[derive(Clone, Debug)]
struct Mirror {
    rx: PortSet,
    tx: PortSet,
    rx_vlans: Option<VlanSet>,
    tx_vlans: Option<VlanSet>,
    to: PortNo,
}

/// Where copies go.
pub type Copies = ArrayVec<PortNo, MIRRORS>;

/// All mirrors, ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct Mirrors {
    mirrors: ArrayVec<Mirror, MIRRORS>,
    outputs: PortSet,
    /// Outputs that are not members.
    excluded: PortSet,
}

impl Mirrors {
    /// Makes `rules` ready.
    ///
    /// # Errors
    /// [`MirrorError`], for the first rule that cannot be.
    pub fn new(rules: &[Rule]) -> Result<Mirrors, MirrorError> {
        let mut all = Mirrors::default();
        for rule in rules {
            let to = rule.to.ok_or(MirrorError::NoPort)?;
            if rule.from.contains(&to) {
                return Err(MirrorError::Itself);
            }
            let vlans = rule.vlans.as_ref().filter(|vlans| !vlans.is_empty());
            if rule.from.is_empty() && vlans.is_none() || !(rule.rx || rule.tx) {
                return Err(MirrorError::Nothing);
            }
            let known = |port: &PortNo| port.index() < PORTS;
            if !rule.from.iter().all(known) || !all.outputs.insert(to) {
                return Err(MirrorError::NoPort);
            }
            let ports: PortSet = rule.from.iter().copied().collect();
            let side = |wanted: bool| {
                let ports = if wanted {
                    ports.clone()
                } else {
                    PortSet::default()
                };
                (ports, vlans.filter(|_| wanted).cloned())
            };
            let ((rx, rx_vlans), (tx, tx_vlans)) = (side(rule.rx), side(rule.tx));
            let mirror = Mirror {
                rx,
                tx,
                rx_vlans,
                tx_vlans,
                to,
            };
            all.mirrors
                .try_push(mirror)
                .map_err(|_| MirrorError::TooMany)?;
        }
        // A port that one of the rules wants to be a member is one.
        let members: PortSet = rules
            .iter()
            .filter(|r| r.member)
            .filter_map(|r| r.to)
            .collect();
        let excluded = rules.iter().filter_map(|rule| rule.to);
        all.excluded = excluded.filter(|port| !members.contains(*port)).collect();
        Ok(all)
    }

    /// Whether there is nothing to do: to be asked once a burst.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mirrors.is_empty()
    }

    /// Whether the port is kept out of switching: it only gets copies.
    #[inline]
    #[must_use]
    pub fn excludes(&self, port: PortNo) -> bool {
        self.excluded.contains(port)
    }

    /// What the port is to mirrors.
    #[must_use]
    pub fn role(&self, port: PortNo) -> MirrorRole {
        match (self.outputs.contains(port), self.excludes(port)) {
            (false, _) => MirrorRole::None,
            (true, true) => MirrorRole::Output,
            (true, false) => MirrorRole::Member,
        }
    }

    /// The ports that get a copy of a frame that came from `ingress` in VLAN `vid` and is sent to
    /// all of `egress`; each port once, and none that gets the frame anyway.
    #[inline]
    #[must_use]
    pub fn copies(&self, ingress: PortNo, vid: Vid, egress: &PortSet) -> Copies {
        let mut copies = Copies::new();
        if self.outputs.contains(ingress) {
            return copies;
        }
        let has = |vlans: &Option<VlanSet>| vlans.as_ref().is_some_and(|v| v.contains(vid));
        for mirror in &self.mirrors {
            let received = || mirror.rx.contains(ingress) || has(&mirror.rx_vlans);
            let sent = || {
                let ports = if has(&mirror.tx_vlans) {
                    &PortSet::ALL
                } else {
                    &mirror.tx
                };
                ports.meets(egress, &self.outputs)
            };
            let new = !egress.contains(mirror.to) && !copies.contains(&mirror.to);
            if new && (received() || sent()) {
                copies.push(mirror.to);
            }
        }
        copies
    }
}

#[cfg(test)]
mod tests;
