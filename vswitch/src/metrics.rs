//! What Prometheus sees: the table of metrics, and how they follow from the status of ports and
//! workers. Names and labels are a promise to dashboards; [`FAMILIES`] is the whole of it.

use std::collections::BTreeMap;

use towpath_common::control::Exposition;
use towpath_common::control::exposition::approximate;
use towpath_common::families;
use towpath_common::ring::Violation;

use crate::discard::Discard;
use crate::service::{FdbStats, Flow, PortStatus, QueueStats, Service, VlanStatus};

families! {
    RX_PACKETS: Counter "towpath_vswitch_port_rx_packets_total" "Frames received from the port.";
    RX_BYTES: Counter "towpath_vswitch_port_rx_bytes_total" "Bytes received from the port.";
    RX_BURSTS: Counter "towpath_vswitch_port_rx_bursts_total" "Bursts received from the port.";
    TX_PACKETS: Counter "towpath_vswitch_port_tx_packets_total" "Frames sent to the port.";
    TX_BYTES: Counter "towpath_vswitch_port_tx_bytes_total" "Bytes sent to the port.";
    TX_BURSTS: Counter "towpath_vswitch_port_tx_bursts_total" "Bursts sent to the port.";
    NOTICES: Counter "towpath_vswitch_port_notifications_total" "Interrupts sent or suppressed.";
    DISCARDS: Counter "towpath_vswitch_port_discards_total" "Frames dropped, by reason.";
    BROKEN: Counter "towpath_vswitch_port_ring_broken_total" "Rings latched as broken, by reason.";
    CONNECTED: Gauge "towpath_vswitch_port_connected" "1 while a front-end is connected.";
    CONNECTIONS: Counter "towpath_vswitch_port_connections_total" "Front-ends that connected.";
    LINK: Gauge "towpath_vswitch_port_link" "1 while frames can pass.";
    MTU: Gauge "towpath_vswitch_port_mtu_bytes" "Largest payload of a frame.";
    LEARNED: Gauge "towpath_vswitch_port_addresses" "Addresses known at the port.";
    VLAN_RX_PACKETS: Counter "towpath_vswitch_vlan_rx_packets_total" "Frames received in the VLAN.";
    VLAN_RX_BYTES: Counter "towpath_vswitch_vlan_rx_bytes_total" "Bytes received in the VLAN.";
    VLAN_TX_PACKETS: Counter "towpath_vswitch_vlan_tx_packets_total" "Frames sent in the VLAN.";
    VLAN_TX_BYTES: Counter "towpath_vswitch_vlan_tx_bytes_total" "Bytes sent in the VLAN.";
    VLAN_ADDRESSES: Gauge "towpath_vswitch_vlan_addresses" "Addresses known in the VLAN.";
    FDB_ENTRIES: Gauge "towpath_vswitch_fdb_entries" "Addresses known.";
    FDB_CAPACITY: Gauge "towpath_vswitch_fdb_capacity" "Most addresses that can be known.";
    FDB_EVENTS: Counter "towpath_vswitch_fdb_events_total" "What happened to addresses.";
    BUSY: Gauge "towpath_worker_busy_ratio" "Share of time a worker spends on work, 0 to 1.";
    STEPS: Counter "towpath_worker_steps_total" "Turns of a worker's loop.";
    SLEEPS: Counter "towpath_worker_sleeps_total" "Times a worker went to sleep.";
    BUILD: Gauge "towpath_build_info" "1; the labels name daemon and version.";
}

/// One scrape.
pub fn render(service: &dyn Service) -> String {
    let mut scrape = Exposition::default();
    let version = [
        ("daemon", "vswitch"),
        ("version", env!("CARGO_PKG_VERSION")),
    ];
    scrape.gauge(&BUILD, &version, 1.0);
    for port in service.ports() {
        add_port(&mut scrape, &port);
        for queue in &port.stats.queues {
            add_queue(&mut scrape, &port, queue);
        }
    }
    for vlan in service.vlans() {
        add_vlan(&mut scrape, &vlan);
    }
    add_fdb(&mut scrape, &service.fdb_stats());
    for worker in service.workers() {
        let index = worker.index.to_string();
        let labels = [("worker", index.as_str())];
        scrape.gauge(&BUSY, &labels, worker.busy_ratio);
        scrape.counter(&STEPS, &labels, worker.steps);
        scrape.counter(&SLEEPS, &labels, worker.sleeps);
    }
    scrape.render()
}

/// What is counted for the port as a whole.
fn add_port(scrape: &mut Exposition, port: &PortStatus) {
    let name = ("port", port.name.as_str());
    let truth = |yes| if yes { 1.0 } else { 0.0 };
    scrape.gauge(&CONNECTED, &[name], truth(port.connected));
    scrape.gauge(&LINK, &[name], truth(port.link));
    scrape.gauge(&MTU, &[name], f64::from(port.mtu));
    scrape.gauge(&LEARNED, &[name], approximate(port.learned));
    scrape.counter(&CONNECTIONS, &[name], port.stats.connections);
    // All reasons, those that have not happened, too: increase() sees the first time only of a
    // series that was there before it.
    let of = |counts: &BTreeMap<String, u64>, reason| counts.get(reason).copied().unwrap_or(0);
    for reason in Discard::NAMES {
        let count = of(&port.stats.discards, reason);
        scrape.counter(&DISCARDS, &[name, ("reason", reason)], count);
    }
    for reason in Violation::NAMES {
        let count = of(&port.stats.ring_broken, reason);
        scrape.counter(&BROKEN, &[name, ("reason", reason)], count);
    }
}

/// What is counted by pair of queues.
fn add_queue(scrape: &mut Exposition, port: &PortStatus, queue: &QueueStats) {
    let index = queue.index.to_string();
    let labels = [("port", port.name.as_str()), ("queue", index.as_str())];
    let (rx, tx) = (&queue.rx, &queue.tx);
    scrape.counter(&RX_PACKETS, &labels, rx.packets);
    scrape.counter(&RX_BYTES, &labels, rx.bytes);
    scrape.counter(&RX_BURSTS, &labels, rx.bursts);
    scrape.counter(&TX_PACKETS, &labels, tx.packets);
    scrape.counter(&TX_BYTES, &labels, tx.bytes);
    scrape.counter(&TX_BURSTS, &labels, tx.bursts);
    let mut notifications = |direction, flow: &Flow| {
        for (outcome, count) in [("sent", flow.notified), ("suppressed", flow.suppressed)] {
            let [port, queue] = labels;
            let labels = [port, queue, ("direction", direction), ("outcome", outcome)];
            scrape.counter(&NOTICES, &labels, count);
        }
    };
    notifications("rx", rx);
    notifications("tx", tx);
}

fn add_vlan(scrape: &mut Exposition, vlan: &VlanStatus) {
    let flow = &vlan.flow;
    let id = flow.vlan.to_string();
    let labels = [("vlan", id.as_str())];
    scrape.gauge(&VLAN_ADDRESSES, &labels, approximate(vlan.addresses));
    scrape.counter(&VLAN_RX_PACKETS, &labels, flow.rx_packets);
    scrape.counter(&VLAN_RX_BYTES, &labels, flow.rx_bytes);
    scrape.counter(&VLAN_TX_PACKETS, &labels, flow.tx_packets);
    scrape.counter(&VLAN_TX_BYTES, &labels, flow.tx_bytes);
}

fn add_fdb(scrape: &mut Exposition, fdb: &FdbStats) {
    for (kind, count) in [
        ("learned", fdb.entries - fdb.statics.min(fdb.entries)),
        ("static", fdb.statics),
    ] {
        scrape.gauge(&FDB_ENTRIES, &[("kind", kind)], approximate(count));
    }
    scrape.gauge(&FDB_CAPACITY, &[], approximate(fdb.capacity));
    for (event, count) in [
        ("learned", fdb.learned),
        ("moved", fdb.moved),
        ("aged", fdb.aged),
        ("held", fdb.held),
        ("displaced", fdb.displaced),
        ("flushed", fdb.flushed),
        ("refused", fdb.refused),
    ] {
        scrape.counter(&FDB_EVENTS, &[("event", event)], count);
    }
}
