//! The boundary between vswitch's control plane and its data plane.
//!
//! Control knows ports and workers only through [`Service`], and plain values that the API, the
//! metrics and the command line show as they are. The counters in them are totals since the daemon
//! started, taken from what the workers published last; reading them never makes a worker wait.
//!
//! Directions are the switch's, as in Open vSwitch: "rx" came from a port, "tx" went to it. A
//! guest's transmitted frames are its port's rx.

mod state;

use std::collections::BTreeMap;
use std::error::Error;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::config::{CpuId, Name, SocketMode, SocketPath};
use towpath_common::control::Routes;
use towpath_common::sandbox::SandboxError;

use crate::config::Config;
use crate::guard::GuardConfig;
use crate::mac::Mac;
use crate::mirror::MirrorRole;
use crate::port::tap::InterfaceName;
use crate::vlan::{Vid, VlanSet};

pub use state::PortState;

/// What the control plane may ask of the data plane. All verbs may be called from any thread.
pub trait Service: Send + Sync {
    /// Makes the running switch equal to `config`, as a whole or not at all: ports, uplinks,
    /// static addresses, mirrors and the settings of `[switch]`.
    ///
    /// The caller has validated `config` and does not change `config.daemon`. The implementor
    /// opens everything new before it touches anything old, leaves ports that did not change alone
    /// (their sessions and counters go on), and on an error has changed nothing. May block. When it
    /// returns `Ok`, every server-mode socket listens.
    ///
    /// # Errors
    /// [`ServiceError`], naming what could not be done.
    fn apply(&self, config: &Config) -> Result<Report, ServiceError>;

    /// Tries once more to open the interfaces of uplinks that are down. To be called now and then.
    fn retry(&self) {}

    /// Every port, then every uplink, in the order of the configuration. Must not block.
    fn ports(&self) -> Vec<PortStatus>;

    /// Every worker, by index. Must not block.
    fn workers(&self) -> Vec<WorkerStatus>;

    /// Every VLAN that a port names, ascending, and every other that has addresses or carried
    /// frames. Must not block.
    fn vlans(&self) -> Vec<VlanStatus>;

    /// The table of addresses as a whole. Must not block.
    fn fdb_stats(&self) -> FdbStats;

    /// The addresses that `filter` lets pass, by VLAN and address. May block.
    fn fdb(&self, filter: &FdbFilter) -> Vec<FdbEntry>;

    /// Forgets learned addresses that `filter` lets pass; says how many. Static ones stay: they
    /// come and go with [`Service::apply`].
    fn fdb_flush(&self, filter: &FdbFilter) -> u64;

    /// More of the API: what looks at frames (`capture`, `why`), which control passes on.
    fn routes(&self) -> Routes {
        Routes::new()
    }

    /// Serves the session of the port `name` again, which is quarantined; false if there is none.
    fn release(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// Stops taking frames, sends what was taken, and closes all sessions. Blocks.
    fn drain(&self);
}

/// What [`Service::apply`] has to tell although it succeeded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Sentences that deserve attention, such as a fall-back that was taken.
    pub warnings: Vec<String>,
}

/// Why the data plane could not do what was asked. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A port or uplink could not be set up.
    #[error("port {name}: {source}")]
    Port {
        /// The port.
        name: Name,
        /// Why, and what to do.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The mirrors cannot be as configured.
    #[error("mirrors: {source}")]
    Mirrors {
        /// Why, and what to do.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Rights could not be given up.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A worker could not be started.
    #[error("worker {index}: {source}")]
    Worker {
        /// Its index.
        index: usize,
        /// Why, and what to do.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// One port or uplink as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortStatus {
    /// Its name.
    pub name: Name,
    /// What it is connected to.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// The one VLAN of an access port.
    pub access: Option<Vid>,
    /// The VLANs of a trunk port.
    pub trunk: Option<VlanSet>,
    /// The VLAN of a trunk port's untagged frames.
    pub native: Option<Vid>,
    /// The addresses it may send from; empty: any.
    pub macs: Vec<Mac>,
    /// Whether it reaches uplinks only.
    pub isolated: bool,
    /// What it may send, complete.
    pub guards: GuardConfig,
    /// Whether it gets a mirror's copies.
    #[serde(default)]
    pub mirror: MirrorRole,
    /// Largest payload of a frame, in bytes.
    pub mtu: u16,
    /// Most pairs of queues.
    pub queues: u16,
    /// Whether a front-end is connected; for an uplink, whether the interface is open.
    pub connected: bool,
    /// Whether frames can pass: for a guest, connected and a ring enabled; for an uplink, the
    /// interface is up.
    pub link: bool,
    /// The connection, if there is one.
    pub session: Option<SessionStatus>,
    /// Why a message was refused, or why the last connection was ended by vswitch; while no
    /// front-end can connect, why that is.
    #[serde(default)]
    pub last_error: Option<String>,
    /// Addresses learned from it and not forgotten.
    pub learned: u64,
    /// What it has done.
    pub stats: PortStats,
}

/// What a port is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Attachment {
    /// A virtual machine.
    VhostUser {
        /// The vhost-user socket.
        socket: SocketPath,
        /// Which end of the socket vswitch is.
        mode: SocketMode,
    },
    /// The host.
    Tap {
        /// The interface.
        tap: InterfaceName,
    },
}

/// One vhost-user connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionStatus {
    /// Negotiated virtio features, by their names in the specification.
    pub virtio_features: Vec<String>,
    /// Negotiated vhost-user protocol features, by name.
    pub protocol_features: Vec<String>,
    /// Guest memory mapped, in bytes.
    pub memory_bytes: u64,
    /// Rings the front-end has set up.
    pub rings: Vec<RingStatus>,
    /// Whether a restart of the daemon leaves it as it is.
    #[serde(default)]
    pub kept: bool,
    /// Whether it goes on from before the daemon's last start.
    #[serde(default)]
    pub resumed: bool,
    /// It ended the daemon too often: it is held and not served, until it is released.
    #[serde(default)]
    pub quarantined: bool,
}

/// One ring of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RingStatus {
    /// Its index: 2N is the guest's receive queue of pair N, 2N + 1 its transmit queue
    /// (virtio 1.3, 5.1.2).
    pub index: u16,
    /// Its size in descriptors.
    pub size: u16,
    /// Whether the front-end has enabled it.
    pub enabled: bool,
    /// Whether a worker serves it.
    pub running: bool,
    /// The worker that polls it; `None` for receive queues, which any worker fills.
    pub worker: Option<usize>,
    /// Next available entry to be read, modulo 2^16.
    pub next_avail: u16,
    /// Next used entry to be written, modulo 2^16.
    pub next_used: u16,
    /// Why it was latched as broken, if it was.
    pub broken: Option<String>,
}

/// What a port has done since the daemon started, whatever connections came and went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortStats {
    /// Front-ends that connected.
    pub connections: u64,
    /// Counters by pair of queues.
    pub queues: Vec<QueueStats>,
    /// Frames dropped, by [`Discard`](crate::discard::Discard) name, those that happened. What is
    /// wrong with a frame counts at the port it came from, what is wrong with a receiver at the
    /// receiver.
    pub discards: BTreeMap<String, u64>,
    /// Counters by VLAN, those that happened.
    pub vlans: Vec<VlanFlow>,
    /// Rings latched as broken, by reason.
    pub ring_broken: BTreeMap<String, u64>,
}

impl PortStats {
    /// From the port, all queues together.
    pub fn rx(&self) -> Flow {
        self.queues.iter().map(|queue| queue.rx).sum()
    }

    /// To the port, all queues together.
    pub fn tx(&self) -> Flow {
        self.queues.iter().map(|queue| queue.tx).sum()
    }

    /// Frames dropped, all reasons together.
    pub fn discarded(&self) -> u64 {
        self.discards.values().sum()
    }
}

/// Counters of one pair of queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueueStats {
    /// The pair, from 0.
    pub index: u16,
    /// From the port.
    pub rx: Flow,
    /// To the port.
    pub tx: Flow,
}

/// Frames in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Flow {
    /// Frames; one that is segmented later counts once.
    pub packets: u64,
    /// Bytes of frames, without virtio-net headers.
    pub bytes: u64,
    /// Bursts: packets divided by this is how well batching works.
    pub bursts: u64,
    /// Notifications sent to the driver.
    pub notified: u64,
    /// Notifications the driver did not want.
    pub suppressed: u64,
}

impl std::iter::Sum for Flow {
    fn sum<I: Iterator<Item = Flow>>(flows: I) -> Flow {
        flows.fold(Flow::default(), |a, b| Flow {
            packets: a.packets + b.packets,
            bytes: a.bytes + b.bytes,
            bursts: a.bursts + b.bursts,
            notified: a.notified + b.notified,
            suppressed: a.suppressed + b.suppressed,
        })
    }
}

/// Counters of one VLAN, of a port or of the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VlanFlow {
    /// The VLAN.
    pub vlan: Vid,
    /// Frames from ports.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames to ports; a flooded frame counts once a receiver.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
}

/// One VLAN as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VlanStatus {
    /// Its members that send and receive its frames untagged.
    pub untagged: Vec<Name>,
    /// Its members that send and receive its frames tagged.
    pub tagged: Vec<Name>,
    /// Addresses known in it.
    pub addresses: u64,
    /// What it has carried, all ports together.
    #[serde(flatten)]
    pub flow: VlanFlow,
}

/// The table of addresses as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FdbStats {
    /// Addresses known, static ones among them.
    pub entries: u64,
    /// Most addresses it can hold.
    pub capacity: u64,
    /// Static ones.
    pub statics: u64,
    /// Addresses learned so far.
    pub learned: u64,
    /// Times a known address appeared on another port.
    pub moved: u64,
    /// Addresses forgotten because they sent nothing.
    pub aged: u64,
    /// Times an address was held at a port because it moved too often.
    pub held: u64,
    /// Addresses forgotten to make room for others.
    pub displaced: u64,
    /// Addresses not learned because there was no room.
    pub refused: u64,
    /// Addresses forgotten on request.
    pub flushed: u64,
}

/// Which addresses are meant; all conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FdbFilter {
    /// In this VLAN.
    pub vlan: Option<Vid>,
    /// At this port.
    pub port: Option<Name>,
    /// This address.
    pub mac: Option<Mac>,
}

impl FdbFilter {
    /// Whether an address is meant.
    pub fn passes(&self, entry: &FdbEntry) -> bool {
        self.vlan.is_none_or(|vlan| vlan == entry.vlan)
            && self.mac.is_none_or(|mac| mac == entry.mac)
            && self.port.as_ref().is_none_or(|port| *port == entry.port)
    }
}

/// One known address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FdbEntry {
    /// Its VLAN.
    pub vlan: Vid,
    /// The address.
    pub mac: Mac,
    /// Where it is.
    pub port: Name,
    /// Whether it was configured.
    #[serde(rename = "static")]
    pub is_static: bool,
    /// Seconds since it last sent; 0 for static ones.
    pub age_seconds: u32,
    /// Whether it stays where it is for a while because it moved too often.
    pub held: bool,
}

/// One worker as it is now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerStatus {
    /// Its index.
    pub index: usize,
    /// The CPU it is pinned to, if it is.
    pub cpu: Option<CpuId>,
    /// Turns of its loop so far. Grows at least once a second even when idle: the watchdog
    /// compares it.
    pub steps: u64,
    /// Share of the last second or so spent on work, 0 to 1.
    pub busy_ratio: f64,
    /// Time spent on work so far, in ns.
    pub busy_ns: u64,
    /// How often it went to sleep.
    pub sleeps: u64,
    /// Queues it polls.
    pub queues: usize,
}
