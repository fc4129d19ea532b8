//! Text for people, made from what the API answers. Pure functions from values to strings.

use std::time::Duration;

use towpath_common::config::ByteSize;
use towpath_common::control::print::{duration, end, per_second, table, yes_no};
use vblk::config::{Config, Limit, OnError};
use vblk::control::Stats;
use vblk::metrics::errno_name;
use vblk::mirror::{MirrorDiskState, MirrorDiskStatus};
use vblk::service::{
    Direction, DiskStats, DiskStatus, Failed, GroupStatus, QueueStatus, RequestType, SlowRequest,
};

/// One line a disk.
pub(crate) fn disk_list(disks: &[DiskStatus]) -> String {
    let rows = disks.iter().map(|disk| {
        [
            disk.name.to_string(),
            ByteSize::from_bytes(disk.size_bytes).to_string(),
            access(disk.read_only),
            yes_no(disk.connected),
            disk.path.clone(),
            disk.socket.to_string(),
        ]
    });
    table(
        ["NAME", "SIZE", "ACCESS", "CONNECTED", "PATH", "SOCKET"],
        rows,
    )
}

/// What a validated configuration would serve.
pub(crate) fn config(config: &Config) -> String {
    let rows = config.disks.iter().map(|disk| {
        let (path, socket) = (disk.path.to_string(), disk.socket.to_string());
        [
            disk.name.to_string(),
            access(disk.read_only),
            disk.queues.to_string(),
            path,
            socket,
        ]
    });
    table(["NAME", "ACCESS", "QUEUES", "PATH", "SOCKET"], rows)
}

/// Everything about one disk.
pub(crate) fn disk(disk: &DiskStatus) -> String {
    let size = ByteSize::from_bytes(disk.size_bytes);
    let mut lines = vec![
        format!("disk {}", disk.name),
        format!("  path       {} ({})", disk.path, access(disk.read_only)),
        format!("  size       {size} in blocks of {} bytes", disk.block_size),
        format!(
            "  socket     {} ({}), at most {} queues",
            disk.socket,
            end(disk.mode),
            disk.queues
        ),
        format!("  connected  {}", yes_no(disk.connected)),
    ];
    if disk.on_error != OnError::Report || disk.failed.is_some() {
        lines.push(format!("  failures   {}", failures(disk)));
    }
    if disk.limit != Limit::default() || disk.group.is_some() {
        lines.push(format!("  limits     {}", limits(disk)));
    }
    if let Some(session) = &disk.session {
        let registered = if session.memory_registered {
            "registered"
        } else {
            "not registered"
        };
        let memory = ByteSize::from_bytes(session.memory_bytes);
        lines.push(format!("  memory     {memory}, {registered} with io_uring"));
        lines.push(format!(
            "  virtio     {}",
            session.virtio_features.join(" ")
        ));
        lines.push(format!(
            "  protocol   {}",
            session.protocol_features.join(" ")
        ));
        lines.extend(session.queues.iter().map(ring));
    }
    lines.extend(
        disk.last_error
            .iter()
            .map(|why| format!("  last error {why}")),
    );
    lines.extend(
        disk.mirror
            .iter()
            .flat_map(|mirror| &mirror.disks)
            .map(member),
    );
    lines.extend(disk.trouble.iter().map(|why| format!("  trouble    {why}")));
    format!("{}\n{}", lines.join("\n"), counters(&disk.stats))
}

/// A mirror and its disks.
pub(crate) fn mirror(disk: &DiskStatus) -> String {
    let Some(mirror) = &disk.mirror else {
        return format!("disk {} is no mirror\n", disk.name);
    };
    let behind: u64 = mirror.disks.iter().map(|d| d.behind_bytes).sum();
    let mut lines = vec![format!("mirror {}", disk.name)];
    lines.extend(
        (1..)
            .zip(&mirror.disks)
            .map(|(i, d)| format!("{i}{}", member(d))),
    );
    let size = |bytes| ByteSize::from_bytes(bytes);
    lines.push(format!(
        "marked {}, copied {} so far, {} to copy",
        size(mirror.marked_bytes),
        size(mirror.copied_bytes),
        size(behind)
    ));
    lines.extend(disk.trouble.iter().map(|why| format!("trouble: {why}")));
    lines.join("\n") + "\n"
}

/// One line a disk of a mirror.
fn member(disk: &MirrorDiskStatus) -> String {
    let state = match (disk.state, disk.errno) {
        (MirrorDiskState::Current, _) => "current".to_owned(),
        (MirrorDiskState::Behind, _) => {
            let behind = ByteSize::from_bytes(disk.behind_bytes);
            format!("catches up, {behind} to go")
        }
        (MirrorDiskState::Failed, 0) => "taken out".to_owned(),
        (MirrorDiskState::Failed, errno) => format!("FAILED ({})", errno_name(errno)),
    };
    let latency = duration(disk.latency_ns);
    format!(
        "  mirrors    {}: {state}; {} reads ({latency}), {} writes, {} errors",
        disk.path, disk.reads, disk.writes, disk.errors
    )
}

/// All totals.
pub(crate) fn stats(stats: &Stats) -> String {
    let disks = stats
        .disks
        .iter()
        .map(|disk| format!("disk {}\n{}", disk.name, counters(&disk.stats)));
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
    disks.chain(workers).collect()
}

/// What happened between two looks, `period` apart, by second.
pub(crate) fn rates(before: &Stats, now: &Stats, period: Duration) -> String {
    let rows = now.disks.iter().map(|disk| {
        let old = before.disks.iter().find(|old| old.name == disk.name);
        let rate = |total: &dyn Fn(&DiskStats) -> u64| {
            let grown = total(&disk.stats).saturating_sub(old.map_or(0, |old| total(&old.stats)));
            per_second(grown, period)
        };
        let mib = |direction| format!("{:.1}", rate(&|s| s.bytes(direction)) / f64::from(1 << 20));
        let ops = |kind| format!("{:.0}", rate(&|s| s.requests(kind)));
        [
            disk.name.to_string(),
            ops(RequestType::Read),
            mib(Direction::Read),
            ops(RequestType::Write),
            mib(Direction::Written),
            ops(RequestType::Flush),
            format!("{:.0}", rate(&|s| s.errors().values().sum())),
        ]
    });
    table(
        [
            "DISK", "READ/s", "MiB/s", "WRITE/s", "MiB/s", "FLUSH/s", "ERROR/s",
        ],
        rows,
    )
}

/// What is done about failures, and what came of it.
fn failures(disk: &DiskStatus) -> String {
    let policy = match disk.on_error {
        OnError::Report => "told to the guest",
        OnError::Hold => "held and tried again",
        OnError::Fail => "taken as the end of the disk",
    };
    let failed = match disk.failed {
        None => "",
        Some(Failed::Flush) => "; an fsync failed: FLUSH fails until `vblk disk clear`",
        Some(Failed::All) => "; everything fails until `vblk disk clear`",
    };
    format!("{policy}; {} held now{failed}", disk.held)
}

/// What limits a disk.
fn limits(disk: &DiskStatus) -> String {
    let mut parts = limit(&disk.limit);
    parts.extend(
        disk.group
            .iter()
            .map(|group| format!("those of group {group}")),
    );
    let held_back = duration(disk.stats.throttled_ns);
    format!("{}; held back for {held_back} so far", parts.join(", "))
}

/// A limit in words.
fn limit(limit: &Limit) -> Vec<String> {
    let burst = |burst: Option<String>| burst.map_or(String::new(), |b| format!(" (burst {b})"));
    let iops = limit.iops.map(|n| {
        let burst = burst(limit.iops_burst.map(|b| b.to_string()));
        format!("{n} requests/s{burst}")
    });
    let bytes = limit.bandwidth.map(|n| {
        let burst = burst(limit.bandwidth_burst.map(|b| b.to_string()));
        format!("{n}/s{burst}")
    });
    iops.into_iter().chain(bytes).collect()
}

/// One line a request.
pub(crate) fn slow(slow: &[SlowRequest]) -> String {
    let rows = slow.iter().map(|request| {
        let ended = match request.errno {
            0 => "ok".to_owned(),
            errno => errno_name(errno).into_owned(),
        };
        [
            request.disk.to_string(),
            request.queue.to_string(),
            request.kind.name().to_owned(),
            request.offset.to_string(),
            request.bytes.to_string(),
            duration(request.age_ns),
            duration(request.total_ns),
            duration(request.queue_ns),
            duration(request.device_ns),
            duration(request.used_ns),
            duration(request.notify_ns),
            ended,
        ]
    });
    let header = [
        "DISK", "QUEUE", "TYPE", "OFFSET", "BYTES", "AGO", "TOOK", "QUEUED", "DEVICE", "USED",
        "NOTIFY", "ENDED",
    ];
    table(header, rows)
}

/// One line a group.
pub(crate) fn groups(groups: &[GroupStatus]) -> String {
    let rows = groups.iter().map(|group| {
        let limits = limit(&group.limit);
        let disks: Vec<&str> = group.disks.iter().map(|name| name.as_str()).collect();
        let limits = if limits.is_empty() {
            "none".to_owned()
        } else {
            limits.join(", ")
        };
        [group.name.to_string(), limits, disks.join(" ")]
    });
    table(["GROUP", "LIMITS", "DISKS"], rows)
}

/// One ring of a connection.
fn ring(queue: &QueueStatus) -> String {
    let state = match (&queue.broken, queue.running, queue.enabled) {
        (Some(reason), ..) => format!("BROKEN: {reason}"),
        (None, true, _) => "running".to_owned(),
        (None, false, true) => "enabled, not running".to_owned(),
        (None, false, false) => "disabled".to_owned(),
    };
    format!(
        "  queue {:<4} size {}, {state}, {} in flight, next avail {}, next used {}",
        queue.index, queue.size, queue.in_flight, queue.next_avail, queue.next_used
    )
}

/// The counters of a disk, all queues together, and its latencies.
fn counters(stats: &DiskStats) -> String {
    let kinds = [
        (RequestType::Read, Some(Direction::Read)),
        (RequestType::Write, Some(Direction::Written)),
        (RequestType::Flush, None),
        (RequestType::Discard, Some(Direction::Discarded)),
        (RequestType::WriteZeroes, Some(Direction::Zeroed)),
        (RequestType::GetId, None),
        (RequestType::Unsupported, None),
    ];
    let seen = kinds
        .into_iter()
        .filter(|(kind, _)| stats.requests(*kind) > 0);
    let rows = seen.map(|(kind, direction)| {
        let latency = stats.latency.get(&kind);
        let time = |ns: Option<u64>| ns.map_or("-".to_owned(), duration);
        [
            format!("  {}", kind.name()),
            stats.requests(kind).to_string(),
            direction.map_or("-".to_owned(), |direction| {
                stats.bytes(direction).to_string()
            }),
            time(latency.map(|l| l.p50_ns)),
            time(latency.map(|l| l.p99_ns)),
            time(latency.map(|l| l.p99_9_ns)),
            time(latency.map(|l| l.max_ns)),
        ]
    });
    let header = ["  TYPE", "COUNT", "BYTES", "p50", "p99", "p99.9", "MAX"];
    let idle = stats
        .queues
        .iter()
        .all(|queue| queue.requests.values().all(|count| *count == 0));
    let mut text = if idle {
        "  no requests yet\n".to_owned()
    } else {
        table(header, rows)
    };
    if !stats.stages.is_empty() {
        let rows = stats.stages.iter().map(|(stage, latency)| {
            let times = [
                latency.p50_ns,
                latency.p99_ns,
                latency.p99_9_ns,
                latency.max_ns,
            ];
            let [p50, p99, p99_9, max] = times.map(duration);
            [format!("  {stage}"), p50, p99, p99_9, max]
        });
        text.push_str(&table(["  STAGE", "p50", "p99", "p99.9", "MAX"], rows));
    }
    for (errno, count) in stats.errors() {
        text.push_str(&format!("  errors {}: {count}\n", errno_name(errno)));
    }
    for (reason, count) in &stats.ring_broken {
        text.push_str(&format!("  rings broken by {reason}: {count}\n"));
    }
    text
}

fn access(read_only: bool) -> String {
    if read_only { "ro" } else { "rw" }.to_owned()
}

#[cfg(test)]
pub(crate) mod tests;
