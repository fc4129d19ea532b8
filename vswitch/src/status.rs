//! What the data plane shows of itself: its counters and sessions as the API's values.

use std::collections::BTreeMap;

use towpath_common::config::Name;
use towpath_common::session::{Server, Status};

use crate::device::NetDevice;
use crate::discard::Discard;
use crate::fdb::Entry;
use crate::features;
use crate::host::{Kind, Running};
use crate::mirror::MirrorRole;
use crate::service::{
    Attachment, Flow, PortStats, PortStatus, QueueStats, RingStatus, SessionStatus, VlanFlow,
    VlanStatus,
};
use crate::stats::{Carried, QueueShared};
use crate::vlan::{Egress, Mode, Vid};

/// Names of protocol features by bit (vhost-user, "Protocol features").
const PROTOCOL: [(u64, &str); 11] = [
    (1 << 0, "MQ"),
    (1 << 1, "LOG_SHMFD"),
    (1 << 2, "RARP"),
    (1 << 3, "REPLY_ACK"),
    (1 << 4, "MTU"),
    (1 << 5, "BACKEND_REQ"),
    (1 << 9, "CONFIG"),
    (1 << 12, "INFLIGHT_SHMFD"),
    (1 << 13, "RESET_DEVICE"),
    (1 << 15, "CONFIGURE_MEM_SLOTS"),
    (1 << 16, "STATUS"),
];

fn protocol_names(bits: u64) -> Vec<String> {
    let set = PROTOCOL.iter().filter(|(bit, _)| bits & bit != 0);
    set.map(|(_, name)| (*name).to_owned()).collect()
}

/// A port as it is now.
pub(crate) fn port(
    running: &Running,
    mirror: MirrorRole,
    learned: u64,
    workers: usize,
) -> PortStatus {
    let (access, trunk, native) = match running.mode() {
        Mode::Access { pvid } => (Some(pvid), None, None),
        Mode::Trunk { allowed, native } => (None, Some(allowed), native),
    };
    let none = Status::default();
    let (status, attachment, macs, isolated, mtu, queues) = match &running.kind {
        Kind::Guest(config, server) => (
            server.as_ref().map(Server::status).unwrap_or_default(),
            Attachment::VhostUser {
                socket: config.socket.clone(),
                mode: config.mode,
            },
            config.addresses().collect(),
            config.isolated,
            config.mtu.get(),
            config.queues.get(),
        ),
        Kind::Uplink(config, mtu, _) => (
            none,
            Attachment::Tap {
                tap: config.tap.clone(),
            },
            Vec::new(),
            false,
            u16::try_from(*mtu).unwrap_or(u16::MAX),
            config.queues.get(),
        ),
    };
    let uplink = matches!(running.kind, Kind::Uplink(..)) && running.works();
    let failure = running.shared.failure();
    let remedy = if running.is_absent() {
        "it is tried again all the time"
    } else {
        "it is opened again once the interface is there; `vswitch reload` makes it"
    };
    let failure = failure.map(|why| format!("{why}; {remedy}"));
    PortStatus {
        name: running.name().clone(),
        attachment,
        access,
        trunk,
        native,
        macs,
        isolated,
        guards: running.guards.config().clone(),
        mirror,
        mtu,
        queues,
        connected: uplink || status.connected,
        link: uplink || has_ring(&status),
        session: status.connected.then(|| session(running, &status, workers)),
        last_error: status.last_error.clone().or(failure),
        learned,
        stats: stats(running, running.connections + status.sessions),
    }
}

/// Whether frames can pass.
pub(crate) fn link(running: &Running) -> bool {
    match &running.kind {
        Kind::Guest(_, server) => server.as_ref().is_some_and(|s| has_ring(&s.status())),
        Kind::Uplink(..) => running.works(),
    }
}

fn has_ring(status: &Status) -> bool {
    let attached = |(_, _, enabled, running): &(u16, bool, bool, bool)| *enabled && *running;
    status.vrings.iter().any(attached)
}

fn vlan_flow((vlan, carried): (Vid, Carried)) -> VlanFlow {
    VlanFlow {
        vlan,
        rx_packets: carried.rx_frames,
        rx_bytes: carried.rx_bytes,
        tx_packets: carried.tx_frames,
        tx_bytes: carried.tx_bytes,
    }
}

fn session(running: &Running, status: &Status, workers: usize) -> SessionStatus {
    let rings = (0u16..).zip(&status.vrings).zip(&running.shared.queues);
    let rings = rings
        .filter(|((_, vring), _)| vring.0 != 0)
        .map(|((index, vring), shared)| {
            let (size, _, enabled, attached) = *vring;
            let counters = shared.counters.snapshot();
            let position = |n: u64| u16::try_from(n & 0xffff).unwrap_or(0);
            let transmit = !index.is_multiple_of(2);
            let worker = NetDevice::worker_of(running.no, index / 2, workers);
            RingStatus {
                index,
                size,
                enabled,
                running: attached,
                worker: (transmit && attached).then_some(worker),
                next_avail: position(counters.next_avail),
                next_used: position(counters.next_used),
                broken: shared.broken_now().map(str::to_owned),
            }
        });
    SessionStatus {
        virtio_features: features::names(status.features),
        protocol_features: protocol_names(status.protocol),
        memory_bytes: status.memory,
        rings: rings.collect(),
        kept: status.kept,
        resumed: status.resumed > 0,
        quarantined: status.quarantined,
    }
}

fn flow(queue: Option<&QueueShared>) -> Flow {
    let counters = queue.map(|q| q.counters.snapshot()).unwrap_or_default();
    Flow {
        packets: counters.frames,
        bytes: counters.bytes,
        bursts: counters.bursts,
        notified: counters.notified,
        suppressed: counters.suppressed,
    }
}

fn stats(running: &Running, connections: u64) -> PortStats {
    let shared = &running.shared;
    let pairs = (0u16..).zip(shared.queues.chunks(2));
    let queues = pairs.map(|(index, pair)| QueueStats {
        index,
        rx: flow(pair.get(1)),
        tx: flow(pair.first()),
    });
    // Pairs that nobody ever used say nothing.
    let used = |q: &QueueStats| q.index == 0 || q.rx.bursts + q.tx.bursts > 0;
    let queues: Vec<QueueStats> = queues.filter(used).collect();
    let discards = Discard::NAMES.into_iter().zip(shared.discards());
    let mut broken = BTreeMap::new();
    for queue in &shared.queues {
        for (name, count) in queue.violations().into_iter().filter(|(_, n)| *n > 0) {
            *broken.entry(name.to_owned()).or_insert(0) += count;
        }
    }
    PortStats {
        connections,
        queues,
        discards: discards
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name.to_owned(), count))
            .collect(),
        vlans: running.carried().into_iter().map(vlan_flow).collect(),
        ring_broken: broken,
    }
}

/// Queues that a worker polls.
pub(crate) fn queues_of(ports: &[Running], worker: usize, workers: usize) -> usize {
    let polled = |running: &Running| match &running.kind {
        Kind::Uplink(config, ..) => {
            let queues = usize::from(config.queues.get());
            (0..queues).filter(|q| q % workers.max(1) == worker).count()
        }
        Kind::Guest(_, server) => {
            let status = server.as_ref().map(Server::status).unwrap_or_default();
            let rings = (0u16..).zip(status.vrings);
            rings
                .filter(|(index, ring)| !index.is_multiple_of(2) && ring.3)
                .filter(|(index, _)| NetDevice::worker_of(running.no, index / 2, workers) == worker)
                .count()
        }
    };
    ports.iter().map(polled).sum()
}

/// Every VLAN that a port names, and every other that has addresses or carried frames.
pub(crate) fn vlans(ports: &[Running], addresses: &[Entry]) -> Vec<VlanStatus> {
    let named = ports.iter().filter_map(|port| match port.mode() {
        Mode::Access { pvid } => Some(pvid),
        Mode::Trunk { native, .. } => native,
    });
    // A trunk of all VLANs names none of them.
    let few = ports.iter().filter_map(|port| match port.mode() {
        Mode::Trunk { allowed, .. } if allowed.len() < 1024 => Some(allowed),
        _ => None,
    });
    let few: Vec<Vid> = few.flat_map(|set| set.iter().collect::<Vec<_>>()).collect();
    let known = addresses.iter().map(|entry| entry.vid);
    let mut carried: BTreeMap<Vid, Carried> = BTreeMap::new();
    for (vid, more) in ports.iter().flat_map(Running::carried) {
        let sum = carried.entry(vid).or_default();
        *sum = sum.with(more);
    }
    let busy = carried.keys().copied();
    let mut vids: Vec<Vid> = named.chain(few).chain(known).chain(busy).collect();
    vids.sort_unstable();
    vids.dedup();
    let mut addressed: BTreeMap<Vid, u64> = BTreeMap::new();
    for entry in addresses {
        *addressed.entry(entry.vid).or_default() += 1;
    }
    let mut members = members(ports, &vids);
    vids.into_iter()
        .map(|vid| {
            let (untagged, tagged) = members.remove(&vid).unwrap_or_default();
            VlanStatus {
                untagged,
                tagged,
                addresses: addressed.get(&vid).copied().unwrap_or(0),
                flow: vlan_flow((vid, carried.get(&vid).copied().unwrap_or_default())),
            }
        })
        .collect()
}

/// Who sends and receives frames of each of `vids` untagged, and who tagged. One look at each
/// port: with a thousand ports in VLANs of their own, one at each pair would be a million.
fn members(ports: &[Running], vids: &[Vid]) -> BTreeMap<Vid, (Vec<Name>, Vec<Name>)> {
    let mut members: BTreeMap<Vid, (Vec<Name>, Vec<Name>)> = BTreeMap::new();
    for port in ports {
        let mode = port.mode();
        let own = match &mode {
            Mode::Access { pvid } => std::slice::from_ref(pvid),
            Mode::Trunk { .. } => vids,
        };
        for &vid in own {
            let both = members.entry(vid).or_default();
            match mode.egress(vid) {
                Some(Egress::Untagged) => both.0.push(port.name().clone()),
                Some(Egress::Tagged) => both.1.push(port.name().clone()),
                None => {}
            }
        }
    }
    members
}
