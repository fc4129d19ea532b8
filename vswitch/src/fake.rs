//! A data plane that is not there: it remembers what was applied and shows made-up counters.

#![allow(
    clippy::unwrap_used,
    reason = "for tests alone; a lock is poisoned only after another failure"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use towpath_common::clock::Clock;
use towpath_common::control::Routes;

use crate::capture::{CaptureId, Captures, Tap, Tapping};
use crate::config::{Config, Port, Uplink};
use crate::control;
use crate::guard::Side;
use crate::mac::Mac;
use crate::mirror::MirrorRole;
use crate::recent::Record;
use crate::service::{
    Attachment, FdbEntry, FdbFilter, FdbStats, Flow, PortStats, PortStatus, QueueStats, Report,
    RingStatus, Service, ServiceError, SessionStatus, VlanFlow, VlanStatus, WorkerStatus,
};
use crate::table::PortNo;
use crate::vlan::Vid;
use crate::why::Snapshot;
use crate::why::api::{Desk, Looking};

/// Two workers, a connected front-end on every port, and one learned address at the first port.
#[derive(Debug, Default)]
pub struct FakeService {
    config: Mutex<Option<Config>>,
    flushed: AtomicU64,
    steps: [AtomicU64; 2],
}

impl FakeService {
    /// A port of this name cannot be set up.
    pub const REFUSED: &str = "refused";
    /// A port of this name comes with a warning.
    pub const ODD: &str = "odd";
    /// While a port has this name, a drain never ends.
    pub const STUCK: &str = "stuck";

    /// Lets a worker make progress.
    pub fn step(&self, worker: usize) {
        self.steps[worker].fetch_add(1, Ordering::Relaxed);
    }

    fn with<T>(&self, look: impl FnOnce(&Config) -> T) -> Option<T> {
        self.config.lock().unwrap().as_ref().map(look)
    }

    fn has(&self, name: &str) -> bool {
        let named = |config: &Config| config.ports.iter().any(|port| port.name.as_str() == name);
        self.with(named).unwrap_or_default()
    }
}

fn stats() -> PortStats {
    let flow = |packets: u64| Flow {
        packets,
        bytes: packets * 64,
        bursts: 2,
        notified: 3,
        suppressed: 4,
    };
    let queue = QueueStats {
        index: 0,
        rx: flow(10),
        tx: flow(20),
    };
    PortStats {
        connections: 1,
        queues: vec![queue],
        discards: BTreeMap::from([("receiver_full".to_owned(), 5)]),
        vlans: vec![vlan_flow(Vid::DEFAULT)],
        ring_broken: BTreeMap::from([("loop".to_owned(), 1)]),
    }
}

fn vlan_flow(vlan: Vid) -> VlanFlow {
    VlanFlow {
        vlan,
        rx_packets: 6,
        rx_bytes: 600,
        tx_packets: 7,
        tx_bytes: 700,
    }
}

fn port(port: &Port) -> PortStatus {
    PortStatus {
        name: port.name.clone(),
        attachment: Attachment::VhostUser {
            socket: port.socket.clone(),
            mode: port.mode,
        },
        access: port.access,
        trunk: port.trunk.clone(),
        native: port.native,
        macs: port.addresses().collect(),
        isolated: port.isolated,
        guards: port.guards.complete(Side::Guest),
        mirror: MirrorRole::None,
        mtu: port.mtu.get(),
        queues: port.queues.get(),
        connected: true,
        link: true,
        session: Some(SessionStatus {
            virtio_features: vec!["CSUM".into(), "MRG_RXBUF".into()],
            protocol_features: vec!["MQ".into()],
            memory_bytes: 512 << 20,
            rings: vec![RingStatus {
                size: 256,
                enabled: true,
                running: true,
                ..RingStatus::default()
            }],
            ..SessionStatus::default()
        }),
        last_error: None,
        learned: 1,
        stats: stats(),
    }
}

fn uplink(uplink: &Uplink) -> PortStatus {
    PortStatus {
        name: uplink.name.clone(),
        attachment: Attachment::Tap {
            tap: uplink.tap.clone(),
        },
        access: uplink.access,
        trunk: uplink.trunk.clone(),
        native: uplink.native,
        macs: Vec::new(),
        isolated: false,
        guards: uplink.guards.complete(Side::Uplink),
        mirror: MirrorRole::None,
        mtu: uplink.mtu.map_or(1500, |mtu| mtu.get()),
        queues: uplink.queues.get(),
        connected: true,
        link: true,
        session: None,
        last_error: None,
        learned: 0,
        stats: stats(),
    }
}

impl Service for FakeService {
    fn apply(&self, config: &Config) -> Result<Report, ServiceError> {
        let named = |name: &str| config.ports.iter().find(|port| port.name.as_str() == name);
        if let Some(port) = named(Self::REFUSED) {
            return Err(ServiceError::Port {
                name: port.name.clone(),
                source: "no".into(),
            });
        }
        *self.config.lock().unwrap() = Some(config.clone());
        let odd = |port: &Port| format!("port {} is odd", port.name);
        Ok(Report {
            warnings: named(Self::ODD).map(odd).into_iter().collect(),
        })
    }

    fn ports(&self) -> Vec<PortStatus> {
        let all = |config: &Config| {
            let ports = config.ports.iter().map(port);
            ports.chain(config.uplinks.iter().map(uplink)).collect()
        };
        self.with(all).unwrap_or_default()
    }

    fn workers(&self) -> Vec<WorkerStatus> {
        let worker = |(index, steps): (usize, &AtomicU64)| WorkerStatus {
            index,
            steps: steps.load(Ordering::Relaxed),
            busy_ratio: 0.25,
            ..WorkerStatus::default()
        };
        self.steps.iter().enumerate().map(worker).collect()
    }

    fn vlans(&self) -> Vec<VlanStatus> {
        let members = |config: &Config| VlanStatus {
            untagged: config.ports.iter().map(|port| port.name.clone()).collect(),
            tagged: config.uplinks.iter().map(|up| up.name.clone()).collect(),
            addresses: 1,
            flow: vlan_flow(Vid::DEFAULT),
        };
        self.with(members).into_iter().collect()
    }

    fn fdb_stats(&self) -> FdbStats {
        let entries = self.fdb(&FdbFilter::default());
        let statics = entries.iter().filter(|entry| entry.is_static).count();
        FdbStats {
            entries: entries.len() as u64,
            capacity: 1024,
            statics: statics as u64,
            learned: 3,
            moved: 2,
            ..FdbStats::default()
        }
    }

    fn fdb(&self, filter: &FdbFilter) -> Vec<FdbEntry> {
        let all = |config: &Config| {
            let learned = config.ports.first().map(|port| FdbEntry {
                vlan: Vid::DEFAULT,
                mac: "52:54:00:00:00:01".parse().unwrap(),
                port: port.name.clone(),
                is_static: false,
                age_seconds: 7,
                held: false,
            });
            let learned = learned.filter(|_| self.flushed.load(Ordering::Relaxed) == 0);
            let statics = config.fdb.iter().map(|entry| FdbEntry {
                vlan: entry.vlan,
                mac: entry.mac,
                port: entry.port.clone(),
                is_static: true,
                age_seconds: 0,
                held: false,
            });
            learned.into_iter().chain(statics).collect::<Vec<_>>()
        };
        let mut entries = self.with(all).unwrap_or_default();
        entries.retain(|entry| filter.passes(entry));
        entries
    }

    fn fdb_flush(&self, filter: &FdbFilter) -> u64 {
        let entries = self.fdb(filter);
        let learned = entries.iter().filter(|entry| !entry.is_static).count() as u64;
        self.flushed.fetch_add(learned, Ordering::Relaxed);
        learned
    }

    fn routes(&self) -> Routes {
        let (plane, clock) = (Arc::new(Still), Clock::new());
        let captures = Captures::new(Arc::<Still>::clone(&plane), clock.clone());
        control::looking(captures, Desk::new(plane, clock))
    }

    fn drain(&self) {
        while self.has(Self::STUCK) {
            std::thread::park();
        }
    }
}

/// A worker that never sees a frame.
#[derive(Debug)]
struct Still;

impl Tapping for Still {
    fn workers(&self) -> usize {
        1
    }

    fn port(&self, name: &str) -> Option<PortNo> {
        (name == "a").then_some(PortNo(0))
    }

    fn port_name(&self, _: PortNo) -> Option<String> {
        None
    }

    fn tap(&self, _: usize, _: Tap) -> Result<(), String> {
        Ok(())
    }

    fn untap(&self, _: usize, _: CaptureId) {}
}

impl Looking for Still {
    fn snapshot(&self, _: Mac) -> Snapshot {
        Snapshot::default()
    }

    fn recent(&self) -> Vec<Record> {
        Vec::new()
    }
}
