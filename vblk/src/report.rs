//! Text for people, made from what the API answers. Pure functions from values to strings.

use std::time::Duration;

use towpath_common::config::ByteSize;
use towpath_common::control::print::{duration, end, per_second, table, yes_no};
use vblk::config::Config;
use vblk::control::Stats;
use vblk::metrics::errno_name;
use vblk::service::{Direction, DiskStats, DiskStatus, QueueStatus, RequestType};

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
    lines.extend(disk.trouble.iter().map(|why| format!("  trouble    {why}")));
    format!("{}\n{}", lines.join("\n"), counters(&disk.stats))
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
