//! Which frames to explain when somebody asks about an address.
//!
//! About an address there are two questions: what becomes of its own frames, and what becomes of
//! frames for it. Both are answered for every place where the address is known or configured, or
//! for the port and VLAN that are named.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Explanation, Known, Question, Snapshot, explain};
use crate::mac::Mac;
use crate::recent::history::History;
use crate::table::PortNo;
use crate::vlan::{Mode, Vid};

/// Most frames explained for each of the two questions.
pub const EXPLANATIONS: usize = 8;

/// What is asked: `GET /v1/why?mac=…&vlan=…&port=…`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// The address.
    pub mac: Mac,
    /// In this VLAN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vid>,
    /// For frames received from this port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Why {
    /// The address.
    pub mac: Mac,
    /// Where it is known to be.
    pub places: Vec<Place>,
    /// What would become of frames from it.
    pub from: Vec<Explanation>,
    /// What would become of frames to it.
    pub to: Vec<Explanation>,
    /// What became of recent frames from and to it.
    pub recent: History,
}

/// Where an address is known to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Place {
    /// The VLAN.
    pub vlan: Vid,
    /// The port.
    pub port: String,
    /// Whether it was configured.
    #[serde(rename = "static")]
    pub is_static: bool,
    /// Seconds since it last sent.
    pub age_seconds: u32,
    /// Whether it is held there, because it moved too often.
    pub held: bool,
}

/// Answers for `mac`, in `vlan` and for frames from `port` if these are named.
#[must_use]
pub fn ask(
    snapshot: &Snapshot,
    mac: Mac,
    vlan: Option<Vid>,
    port: Option<PortNo>,
    recent: History,
) -> Why {
    let known = snapshot.known.iter().filter(|k| k.mac == mac);
    let known: Vec<&Known> = known.filter(|k| vlan.is_none_or(|v| v == k.vid)).collect();
    let name = |number| {
        let port = snapshot.port(number);
        port.map_or_else(|| "(gone)".to_owned(), |port| port.name.clone())
    };
    let places = known.iter().map(|known| Place {
        vlan: known.vid,
        port: name(known.port),
        is_static: known.is_static,
        age_seconds: known.age_seconds,
        held: known.is_held,
    });
    let explained = |questions: Vec<Question>| {
        let questions = questions.iter().take(EXPLANATIONS);
        questions
            .map(|question| explain(snapshot, question))
            .collect()
    };
    let sources = if mac.is_multicast() {
        Vec::new()
    } else {
        origins(snapshot, &known, mac, vlan, port)
    };
    let from = sources.into_iter().map(|(ingress, vlan)| Question {
        ingress: Some(ingress),
        vlan,
        source: Some(mac),
        destination: None,
    });
    let targets = targets(snapshot, &known, mac, vlan, port);
    let to = targets.into_iter().map(|(ingress, vlan)| Question {
        ingress,
        vlan,
        source: None,
        destination: Some(mac),
    });
    Why {
        mac,
        places: places.collect(),
        from: explained(from.collect()),
        to: explained(to.collect()),
        recent,
    }
}

/// Where frames of `mac` may come from: the port that is named; else where it is known, and where
/// it is configured and not known.
fn origins(
    snapshot: &Snapshot,
    known: &[&Known],
    mac: Mac,
    vlan: Option<Vid>,
    port: Option<PortNo>,
) -> Vec<(PortNo, Option<Vid>)> {
    if let Some(port) = port {
        return vec![(port, vlan)];
    }
    let mut origins: Vec<_> = known.iter().map(|k| (k.port, Some(k.vid))).collect();
    let configured = snapshot
        .ports
        .iter()
        .filter(|port| port.macs.contains(&mac));
    for port in configured {
        if !known.iter().any(|k| k.port == port.number) {
            origins.push((port.number, vlan));
        }
    }
    origins
}

/// Frames for `mac`: from the port that is named, unless it is there itself; else in the VLANs
/// where it is known, or could be.
fn targets(
    snapshot: &Snapshot,
    known: &[&Known],
    mac: Mac,
    vlan: Option<Vid>,
    port: Option<PortNo>,
) -> Vec<(Option<PortNo>, Option<Vid>)> {
    let is_there = |port: PortNo| known.iter().any(|k| k.port == port);
    if let Some(port) = port.filter(|port| !is_there(*port)) {
        return vec![(Some(port), vlan)];
    }
    if let Some(vid) = vlan {
        return vec![(None, Some(vid))];
    }
    let mut vlans: Vec<Vid> = known.iter().map(|k| k.vid).collect();
    if vlans.is_empty() {
        let theirs = snapshot
            .ports
            .iter()
            .filter(|port| port.macs.contains(&mac));
        vlans = theirs.filter_map(|port| untagged(&port.mode)).collect();
    }
    if vlans.is_empty() {
        let all = snapshot.ports.iter();
        vlans = all.filter_map(|port| untagged(&port.mode)).collect();
    }
    vlans.sort_unstable();
    vlans.dedup();
    vlans.into_iter().map(|vid| (None, Some(vid))).collect()
}

/// The VLAN of a port's untagged frames.
fn untagged(mode: &Mode) -> Option<Vid> {
    match mode {
        Mode::Access { pvid } => Some(*pvid),
        Mode::Trunk { native, .. } => *native,
    }
}
