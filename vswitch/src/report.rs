//! Text for people, made from what the API answers. Pure functions from values to strings.
//!
//! Directions are the switch's: rx came from a port, tx went to it.

use std::time::Duration;

use towpath_common::config::{ByteSize, Name};
use towpath_common::control::print::{end, per_second, table, yes_no};
use vswitch::config::{Config, Direction, Mirror};
use vswitch::control::{FdbTable, Stats};
use vswitch::guard::GuardConfig;
use vswitch::mirror::MirrorRole;
use vswitch::service::{Attachment, Flow, PortStats, PortStatus, RingStatus, VlanStatus};
use vswitch::vlan::{Mode, Vid, VlanSet};

/// One line a port.
pub(crate) fn port_list(ports: &[PortStatus]) -> String {
    let rows = ports.iter().map(|port| {
        [
            port.name.to_string(),
            attachment(&port.attachment),
            vlans_of(port),
            yes_no(port.connected),
            if port.link { "up" } else { "down" }.to_owned(),
            port.stats.rx().packets.to_string(),
            port.stats.tx().packets.to_string(),
            port.stats.discarded().to_string(),
        ]
    });
    let header = [
        "NAME",
        "ATTACHED TO",
        "VLANS",
        "CONNECTED",
        "LINK",
        "RX",
        "TX",
        "DROPPED",
    ];
    table(header, rows)
}

/// What a validated configuration would serve.
pub(crate) fn config(config: &Config) -> String {
    let ports = config.ports.iter().map(|port| {
        [
            port.name.to_string(),
            mode(&port.vlans()),
            port.queues.to_string(),
            port.mtu.to_string(),
            format!("{} ({})", port.socket, end(port.mode)),
        ]
    });
    let uplinks = config.uplinks.iter().map(|uplink| {
        [
            uplink.name.to_string(),
            mode(&uplink.vlans()),
            uplink.queues.to_string(),
            uplink.mtu.map_or("-".to_owned(), |mtu| mtu.to_string()),
            format!("tap {}", uplink.tap),
        ]
    });
    table(
        ["NAME", "VLANS", "QUEUES", "MTU", "ATTACHED TO"],
        ports.chain(uplinks),
    )
}

/// Everything about one port.
pub(crate) fn port(port: &PortStatus) -> String {
    let mut lines = vec![
        format!("port {}", port.name),
        format!("  attached to {}", attachment(&port.attachment)),
        format!("  vlans       {}", vlans_of(port)),
        format!(
            "  mtu         {}, at most {} queue pairs",
            port.mtu, port.queues
        ),
        format!("  addresses   {}", addresses(port)),
        format!("  isolated    {}", yes_no(port.isolated)),
        format!("  mirror      {}", mirror_role(port.mirror)),
        format!("  guards      {}", guards(&port.guards)),
        format!(
            "  connected   {}, link {}",
            yes_no(port.connected),
            if port.link { "up" } else { "down" }
        ),
    ];
    if let Some(session) = &port.session {
        let memory = ByteSize::from_bytes(session.memory_bytes);
        lines.push(format!("  memory      {memory}"));
        lines.push(format!(
            "  virtio      {}",
            session.virtio_features.join(" ")
        ));
        lines.push(format!(
            "  protocol    {}",
            session.protocol_features.join(" ")
        ));
        lines.extend(session.rings.iter().map(ring));
    }
    let last = port.last_error.iter();
    lines.extend(last.map(|why| format!("  last error  {why}")));
    format!("{}\n{}", lines.join("\n"), counters(&port.stats))
}

/// Known addresses.
pub(crate) fn fdb(fdb: &FdbTable) -> String {
    let rows = fdb.entries.iter().map(|entry| {
        let kind = match (entry.is_static, entry.held) {
            (true, _) => "static".to_owned(),
            (false, true) => format!("{} s, held: it moved too often", entry.age_seconds),
            (false, false) => format!("{} s", entry.age_seconds),
        };
        [
            entry.vlan.to_string(),
            entry.mac.to_string(),
            entry.port.to_string(),
            kind,
        ]
    });
    let shown = fdb.entries.len();
    let (known, capacity) = (fdb.stats.entries, fdb.stats.capacity);
    let rows = table(["VLAN", "ADDRESS", "PORT", "AGE"], rows);
    format!("{rows}{shown} shown, {known} known of at most {capacity}\n")
}

/// One line a VLAN.
pub(crate) fn vlans(vlans: &[VlanStatus]) -> String {
    let names = |names: &[Name]| match names.len() {
        0 => "-".to_owned(),
        _ => names.iter().map(Name::as_str).collect::<Vec<_>>().join(","),
    };
    let rows = vlans.iter().map(|vlan| {
        [
            vlan.flow.vlan.to_string(),
            names(&vlan.untagged),
            names(&vlan.tagged),
            vlan.addresses.to_string(),
            vlan.flow.rx_packets.to_string(),
            vlan.flow.tx_packets.to_string(),
        ]
    });
    table(
        ["VLAN", "UNTAGGED", "TAGGED", "ADDRESSES", "RX", "TX"],
        rows,
    )
}

/// One line a mirror.
pub(crate) fn mirrors(mirrors: &[Mirror]) -> String {
    let rows = mirrors.iter().map(|mirror| {
        let ports = mirror.from.iter().map(|port| port.to_string());
        let vlans = mirror.vlans.iter().map(|vlans| format!("vlan {vlans}"));
        let direction = match mirror.direction {
            Direction::Rx => "rx",
            Direction::Tx => "tx",
            Direction::Both => "both",
        };
        [
            mirror.name.to_string(),
            ports.chain(vlans).collect::<Vec<_>>().join(", "),
            mirror.to.to_string(),
            direction.to_owned(),
        ]
    });
    table(["NAME", "FROM", "TO", "DIRECTION"], rows)
}

/// All totals.
pub(crate) fn stats(stats: &Stats) -> String {
    let ports = stats
        .ports
        .iter()
        .map(|port| format!("port {}\n{}", port.name, counters(&port.stats)));
    let fdb = &stats.fdb;
    let addresses = format!(
        "addresses: {} of at most {}; {} learned, {} moved, {} aged, {} displaced, {} refused\n",
        fdb.entries, fdb.capacity, fdb.learned, fdb.moved, fdb.aged, fdb.displaced, fdb.refused
    );
    let workers = stats.workers.iter().map(|worker| {
        let cpu = worker
            .cpu
            .map_or("any CPU".to_owned(), |cpu| format!("CPU {cpu}"));
        let busy = worker.busy_ratio * 100.0;
        format!(
            "worker {} on {cpu}: {busy:.1} % busy, {} queues\n",
            worker.index, worker.queues
        )
    });
    ports.chain([addresses]).chain(workers).collect()
}

/// What happened between two looks, `period` apart, by second.
pub(crate) fn rates(before: &Stats, now: &Stats, period: Duration) -> String {
    let rows = now.ports.iter().map(|port| {
        let old = before.ports.iter().find(|old| old.name == port.name);
        let rate = |total: &dyn Fn(&PortStats) -> u64| {
            let grown = total(&port.stats).saturating_sub(old.map_or(0, |old| total(&old.stats)));
            per_second(grown, period)
        };
        let count = |total: &dyn Fn(&PortStats) -> u64| format!("{:.0}", rate(total));
        let mbit = |total: &dyn Fn(&PortStats) -> u64| format!("{:.1}", rate(total) * 8.0 / 1e6);
        [
            port.name.to_string(),
            count(&|s| s.rx().packets),
            mbit(&|s| s.rx().bytes),
            count(&|s| s.tx().packets),
            mbit(&|s| s.tx().bytes),
            count(&PortStats::discarded),
        ]
    });
    table(
        ["PORT", "RX/s", "Mbit/s", "TX/s", "Mbit/s", "DROPPED/s"],
        rows,
    )
}

/// The counters of a port, all queues together.
fn counters(stats: &PortStats) -> String {
    let row = |name: &str, flow: Flow| {
        [
            format!("  {name}"),
            flow.packets.to_string(),
            flow.bytes.to_string(),
            flow.bursts.to_string(),
            flow.notified.to_string(),
            flow.suppressed.to_string(),
        ]
    };
    let mut rows = vec![row("rx", stats.rx()), row("tx", stats.tx())];
    if stats.queues.len() > 1 {
        for queue in &stats.queues {
            rows.push(row(&format!("rx {}", queue.index), queue.rx));
            rows.push(row(&format!("tx {}", queue.index), queue.tx));
        }
        // Pairs nobody used say nothing.
        rows.retain(|row| row[1] != "0" || !row[0].trim().contains(' '));
    }
    let header = ["  ", "PACKETS", "BYTES", "BURSTS", "NOTIFIED", "SUPPRESSED"];
    let mut text = table(header, rows.into_iter());
    for vlan in &stats.vlans {
        text.push_str(&format!(
            "  vlan {}: rx {} packets, {} bytes; tx {} packets, {} bytes\n",
            vlan.vlan, vlan.rx_packets, vlan.rx_bytes, vlan.tx_packets, vlan.tx_bytes
        ));
    }
    for (reason, count) in &stats.discards {
        text.push_str(&format!("  dropped {reason}: {count}\n"));
    }
    for (reason, count) in &stats.ring_broken {
        text.push_str(&format!("  rings broken by {reason}: {count}\n"));
    }
    text
}

/// One ring of a connection.
fn ring(ring: &RingStatus) -> String {
    let state = match (&ring.broken, ring.running, ring.enabled) {
        (Some(reason), ..) => format!("BROKEN: {reason}"),
        (None, true, _) => "running".to_owned(),
        (None, false, true) => "enabled, not running".to_owned(),
        (None, false, false) => "disabled".to_owned(),
    };
    // The guest's receive queues are even (virtio 1.3, 5.1.2); ours is the other end.
    let way = if ring.index.is_multiple_of(2) {
        "tx"
    } else {
        "rx"
    };
    let worker = ring.worker;
    let worker = worker.map_or(String::new(), |worker| format!(", worker {worker}"));
    format!(
        "  ring {:<6} {way} {}, size {}, {state}{worker}, next avail {}, next used {}",
        ring.index,
        ring.index / 2,
        ring.size,
        ring.next_avail,
        ring.next_used
    )
}

fn addresses(port: &PortStatus) -> String {
    let learned = format!("{} known", port.learned);
    if port.macs.is_empty() {
        return learned;
    }
    let own: Vec<String> = port.macs.iter().map(|mac| mac.to_string()).collect();
    format!("{learned}; may send from {}", own.join(", "))
}

fn mirror_role(role: MirrorRole) -> &'static str {
    match role {
        MirrorRole::None => "no",
        MirrorRole::Output => "gets copies, and nothing else",
        MirrorRole::Member => "gets copies",
    }
}

/// What a port may send: those that are on by their keys.
fn guards(guards: &GuardConfig) -> String {
    let switches = [
        ("bpdu_guard", guards.bpdu_guard),
        ("source_guard", guards.source_guard),
    ];
    let limits = [
        ("mac_limit", guards.mac_limit),
        ("broadcast_limit", guards.broadcast_limit),
        ("multicast_limit", guards.multicast_limit),
        ("unknown_limit", guards.unknown_limit),
        ("packet_rate", guards.packet_rate),
        ("packet_burst", guards.packet_burst),
        ("byte_rate", guards.byte_rate),
        ("byte_burst", guards.byte_burst),
    ];
    let switches = switches.iter().filter(|(_, on)| *on);
    let switches = switches.map(|(key, _)| (*key).to_owned());
    let limits = limits
        .iter()
        .filter_map(|(key, bound)| bound.get().map(|limit| format!("{key} {limit}")));
    let all: Vec<String> = switches.chain(limits).collect();
    if all.is_empty() {
        return "none".to_owned();
    }
    all.join(", ")
}

fn attachment(attachment: &Attachment) -> String {
    match attachment {
        Attachment::VhostUser { socket, mode } => format!("{socket} ({})", end(*mode)),
        Attachment::Tap { tap } => format!("tap {tap}"),
    }
}

fn vlans_of(port: &PortStatus) -> String {
    match (&port.trunk, port.access) {
        (Some(trunk), _) => trunk_of(trunk, port.native),
        (None, access) => format!("access {}", access.unwrap_or(Vid::DEFAULT)),
    }
}

fn mode(mode: &Mode) -> String {
    match mode {
        Mode::Access { pvid } => format!("access {pvid}"),
        Mode::Trunk { allowed, native } => trunk_of(allowed, *native),
    }
}

fn trunk_of(allowed: &VlanSet, native: Option<Vid>) -> String {
    match native {
        Some(native) => format!("trunk {allowed}, native {native}"),
        None => format!("trunk {allowed}"),
    }
}

#[cfg(test)]
pub(crate) mod tests;
