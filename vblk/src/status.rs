//! What the data plane shows of itself: its counters and sessions as the API's values.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use towpath_common::clock::{Cycles, Rate};
use towpath_common::config::Name;
use towpath_common::session::{F_LOG_ALL, F_PROTOCOL_FEATURES, Server, Status};
use towpath_common::stats::HistogramSnapshot;

use crate::backup;
use crate::disk::Disk;
use crate::host::{Running, workers_of};
use crate::request::Kind;
use crate::service::{
    Direction, DiskStats, DiskStatus, Failed, Latency, QueueStats, QueueStatus, RequestType,
    SessionStatus, SlowRequest,
};
use crate::slow::Trace;
use crate::stages::Stage;
use crate::stats::{DiskShared, QueueShared};

/// Upper bounds of the latency buckets shown to Prometheus, in ns: 1-2-5 from a microsecond to ten
/// seconds.
const BOUNDS: [u64; 22] = [
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// Names of virtio features by bit (virtio 1.3, 5.2.3 and 6; vhost-user for 26 and 30).
const VIRTIO: [(u64, &str); 16] = [
    (1 << 1, "SIZE_MAX"),
    (1 << 2, "SEG_MAX"),
    (1 << 5, "RO"),
    (1 << 6, "BLK_SIZE"),
    (1 << 9, "FLUSH"),
    (1 << 10, "TOPOLOGY"),
    (1 << 11, "CONFIG_WCE"),
    (1 << 12, "MQ"),
    (1 << 13, "DISCARD"),
    (1 << 14, "WRITE_ZEROES"),
    (F_LOG_ALL, "LOG_ALL"),
    (1 << 28, "INDIRECT_DESC"),
    (1 << 29, "EVENT_IDX"),
    (F_PROTOCOL_FEATURES, "PROTOCOL_FEATURES"),
    (1 << 32, "VERSION_1"),
    (1 << 35, "IN_ORDER"),
];

/// Names of protocol features by bit (vhost-user, "Protocol features").
const PROTOCOL: [(u64, &str); 9] = [
    (1 << 0, "MQ"),
    (1 << 1, "LOG_SHMFD"),
    (1 << 3, "REPLY_ACK"),
    (1 << 5, "BACKEND_REQ"),
    (1 << 9, "CONFIG"),
    (1 << 12, "INFLIGHT_SHMFD"),
    (1 << 13, "RESET_DEVICE"),
    (1 << 15, "CONFIGURE_MEM_SLOTS"),
    (1 << 16, "STATUS"),
];

fn names(bits: u64, table: &[(u64, &str)]) -> Vec<String> {
    table
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, n)| (*n).to_owned())
        .collect()
}

fn request_type(kind: Kind) -> RequestType {
    match kind {
        Kind::Read => RequestType::Read,
        Kind::Write => RequestType::Write,
        Kind::Flush => RequestType::Flush,
        Kind::GetId => RequestType::GetId,
        Kind::Discard => RequestType::Discard,
        Kind::WriteZeroes => RequestType::WriteZeroes,
        Kind::Unsupported => RequestType::Unsupported,
    }
}

/// A disk as it is now.
pub(crate) fn disk(running: &Running) -> DiskStatus {
    let config = &running.config;
    let disk = running.device.disk();
    let status = running.server.as_ref().map(Server::status);
    let status = status.unwrap_or_default();
    DiskStatus {
        name: config.name.clone(),
        path: config.path.to_string(),
        socket: config.socket.clone(),
        mode: config.mode,
        read_only: disk.read_only(),
        size_bytes: disk.size(),
        locked_bytes: disk.resident().map_or(0, |r| r.locked()),
        block_size: disk.block().bytes(),
        queues: config.queues.get(),
        limit: running.limited.limit,
        group: config.group.clone(),
        weight: running.weight,
        cap: running.cap,
        on_error: disk.policy().mode(),
        failed: failed(disk),
        held: disk.policy().held(),
        connected: status.connected,
        session: status.connected.then(|| session(running, &status)),
        last_error: status.last_error.clone(),
        trouble: disk.storage().health().trouble,
        mirror: crate::mirror::status(disk),
        backup: backup::show(running),
        stats: stats(running, &status),
    }
}

fn failed(disk: &Disk) -> Option<Failed> {
    if disk.policy().has_failed() {
        Some(Failed::All)
    } else {
        let flush = disk.sync_failed() || disk.storage().is_lost();
        flush.then_some(Failed::Flush)
    }
}

fn session(running: &Running, status: &Status) -> SessionStatus {
    let queues = (0u16..).zip(&status.vrings).zip(&running.shared.queues);
    let queues = queues
        .filter(|((_, v), _)| v.0 != 0)
        .map(|((index, vring), shared)| {
            let (size, _, enabled, running) = *vring;
            queue_status(index, size, enabled, running, shared)
        });
    SessionStatus {
        virtio_features: names(status.features, &VIRTIO),
        protocol_features: names(status.protocol, &PROTOCOL),
        memory_bytes: status.memory,
        memory_registered: running.device.registered(),
        queues: queues.collect(),
        kept: status.kept,
        resumed: status.resumed > 0,
        quarantined: status.quarantined,
    }
}

fn queue_status(
    index: u16,
    size: u16,
    enabled: bool,
    running: bool,
    shared: &QueueShared,
) -> QueueStatus {
    let counters = shared.counters.snapshot();
    let small = |v: u64| u16::try_from(v).unwrap_or(u16::MAX);
    QueueStatus {
        index,
        size,
        enabled,
        running,
        next_avail: small(counters.next_avail),
        next_used: small(counters.next_used),
        in_flight: small(counters.in_flight),
        broken: shared.broken_now().map(str::to_owned),
    }
}

fn stats(running: &Running, status: &Status) -> DiskStats {
    let shared = &running.shared;
    let mut ring_broken = BTreeMap::new();
    for (reason, count) in shared.queues.iter().flat_map(QueueShared::broken) {
        *ring_broken.entry(reason.to_owned()).or_default() += count;
    }
    DiskStats {
        connections: running.connections + status.sessions,
        storage_losses: running.device.disk().storage().health().losses,
        queues: (0u16..)
            .zip(&shared.queues)
            .map(|(i, q)| queue_stats(i, q))
            .collect(),
        ring_broken,
        latency: latencies(shared),
        stages: stages(shared),
        holds: running.device.disk().policy().holds(),
        throttled_ns: shared.throttled.iter().map(|n| n.load(Relaxed)).sum(),
    }
}

fn queue_stats(index: u16, shared: &QueueShared) -> QueueStats {
    let c = shared.counters.snapshot();
    QueueStats {
        index,
        requests: BTreeMap::from([
            (RequestType::Read, c.reads),
            (RequestType::Write, c.writes),
            (RequestType::Flush, c.flushes),
            (RequestType::GetId, c.get_ids),
            (RequestType::Discard, c.discards),
            (RequestType::WriteZeroes, c.write_zeroes),
            (RequestType::Unsupported, c.unsupported),
        ]),
        bytes: BTreeMap::from([
            (Direction::Read, c.bytes_read),
            (Direction::Written, c.bytes_written),
            (Direction::Discarded, c.bytes_discarded),
            (Direction::Zeroed, c.bytes_zeroed),
        ]),
        errors: shared.errors().collect(),
        refused: c.refused,
        notifications_sent: c.notified,
        notifications_suppressed: c.suppressed,
    }
}

fn latencies(shared: &DiskShared) -> BTreeMap<RequestType, Latency> {
    let mut all = BTreeMap::new();
    for kind in Kind::ALL {
        let mut merged = HistogramSnapshot::new();
        for worker in &shared.latency {
            merged.merge(&worker[kind.index()].snapshot());
        }
        if merged.count() > 0 {
            all.insert(request_type(kind), latency(&merged));
        }
    }
    all
}

fn stages(shared: &DiskShared) -> BTreeMap<String, Latency> {
    let mut all = BTreeMap::new();
    for stage in Stage::ALL {
        let mut merged = HistogramSnapshot::new();
        for worker in &shared.stages {
            merged.merge(&worker[stage as usize].snapshot());
        }
        if merged.count() > 0 {
            all.insert(stage.name().to_owned(), latency(&merged));
        }
    }
    all
}

/// A slow request as the API shows it, of `disk`, `now`.
pub(crate) fn slow(disk: &Name, trace: &Trace, now: Cycles, rate: Rate) -> SlowRequest {
    let [queue_ns, device_ns, used_ns, notify_ns] = trace.stages.map(|stage| rate.ns(stage));
    SlowRequest {
        disk: disk.clone(),
        queue: trace.queue,
        kind: request_type(trace.kind),
        offset: trace.offset,
        bytes: trace.bytes,
        errno: trace.errno,
        age_ns: rate.ns(now.since(trace.completed)),
        total_ns: queue_ns + device_ns + used_ns + notify_ns,
        queue_ns,
        device_ns,
        used_ns,
        notify_ns,
    }
}

fn latency(h: &HistogramSnapshot) -> Latency {
    Latency {
        count: h.count(),
        sum_ns: h.sum(),
        p50_ns: h.percentile(50.0),
        p90_ns: h.percentile(90.0),
        p99_ns: h.percentile(99.0),
        p99_9_ns: h.percentile(99.9),
        max_ns: h.max(),
        buckets: BOUNDS.into_iter().zip(h.cumulative(&BOUNDS)).collect(),
    }
}

/// How many running queues worker `index` of `workers` serves.
pub(crate) fn queues_of(disks: &[Running], index: usize, workers: usize) -> usize {
    let here = |running: &Running| {
        let queues = running.config.queues.get();
        let (first, used) = workers_of(running.device.disk(), running.key, queues, workers);
        let status = running
            .server
            .as_ref()
            .map(towpath_common::session::Server::status);
        let vrings = status.map(|s| s.vrings).unwrap_or_default();
        vrings
            .iter()
            .enumerate()
            .filter(|(i, v)| v.3 && first + i % used.max(1) == index)
            .count()
    };
    disks.iter().map(here).sum()
}
