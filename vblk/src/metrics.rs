//! What Prometheus sees: the table of metrics, and how they follow from the status of disks and
//! workers. Names and labels are a promise to dashboards; [`FAMILIES`] is the whole of it.

use std::borrow::Cow;

use rustix::io::Errno;
use towpath_common::control::Exposition;
use towpath_common::control::exposition::approximate;
use towpath_common::families;
use towpath_common::ring::Violation;

use crate::backup::State;
use crate::mirror::MirrorDiskState;
use crate::service::{DiskStatus, WorkerStatus};

families! {
    REQUESTS: Counter "towpath_vblk_requests_total" "Requests completed, by type.";
    BYTES: Counter "towpath_vblk_bytes_total" "Bytes moved or affected, by direction.";
    SECONDS: Histogram "towpath_vblk_request_seconds" "Time from pop to completion, by type.";
    STAGES: Histogram "towpath_vblk_stage_seconds" "Where that time went, by stage.";
    ERRORS: Counter "towpath_vblk_errors_total" "Requests failed, by errno of the storage.";
    BROKEN: Counter "towpath_vblk_ring_broken_total" "Rings latched as broken, by reason.";
    REFUSED: Counter "towpath_vblk_refused_total" "Requests refused before they reached the disk.";
    NOTIFICATIONS: Counter "towpath_vblk_notifications_total" "Interrupts sent or suppressed.";
    CONNECTED: Gauge "towpath_vblk_connected" "1 while a front-end is connected.";
    CONNECTIONS: Counter "towpath_vblk_connections_total" "Front-ends that connected.";
    TROUBLE: Gauge "towpath_vblk_storage_trouble" "1 while something is wrong with the storage.";
    LOSSES: Counter "towpath_vblk_storage_losses_total" "Connections to the storage lost.";
    MIRROR_UP: Gauge "towpath_vblk_mirror_disk_current"
        "1 while a disk of a mirror has everything.";
    MIRROR_BEHIND: Gauge "towpath_vblk_mirror_behind_bytes"
        "Bytes a disk of a mirror has to catch up with.";
    MIRROR_ERRORS: Counter "towpath_vblk_mirror_errors_total"
        "Failed operations of a disk of a mirror.";
    IN_FLIGHT: Gauge "towpath_vblk_in_flight" "Requests taken and not yet completed.";
    THROTTLED: Counter "towpath_vblk_throttled_seconds_total"
        "Time in which limits held it back.";
    HELD: Gauge "towpath_vblk_held" "Requests held until the storage gets better.";
    HOLDS: Counter "towpath_vblk_holds_total" "Times a request was held, each try counted.";
    FAILED: Gauge "towpath_vblk_failed"
        "1 while FLUSH or everything fails until an operator clears it.";
    LOCKED: Gauge "towpath_vblk_locked_bytes" "Page cache locked in memory for reads.";
    SIZE: Gauge "towpath_vblk_size_bytes" "Capacity of the disk.";
    CHANGED: Gauge "towpath_vblk_changed_bytes"
        "Bytes changed since the last backup, where known.";
    BACKUPS: Counter "towpath_vblk_backups_total" "Backups and copies, by outcome.";
    BACKING_UP: Gauge "towpath_vblk_backup_running" "1 while a backup or copy is under way.";
    BACKED_UP: Counter "towpath_vblk_backup_bytes_total" "Bytes that backups and copies read.";
    COPIED_FIRST: Counter "towpath_vblk_copied_first_total"
        "Blocks copied first because the guest wanted to change them.";
    BUSY: Gauge "towpath_worker_busy_ratio" "Share of time a worker spends on work, 0 to 1.";
    STEPS: Counter "towpath_worker_steps_total" "Turns of a worker's loop.";
    SLEEPS: Counter "towpath_worker_sleeps_total" "Times a worker went to sleep.";
    BUILD: Gauge "towpath_build_info" "1; the labels name daemon and version.";
}

/// One scrape.
pub fn render(disks: &[DiskStatus], workers: &[WorkerStatus]) -> String {
    let mut scrape = Exposition::default();
    let version = [("daemon", "vblk"), ("version", env!("CARGO_PKG_VERSION"))];
    scrape.gauge(&BUILD, &version, 1.0);
    for disk in disks {
        add_disk(&mut scrape, disk);
        add_queues(&mut scrape, disk);
        add_mirror(&mut scrape, disk);
    }
    for worker in workers {
        let index = worker.index.to_string();
        let labels = [("worker", index.as_str())];
        scrape.gauge(&BUSY, &labels, worker.busy_ratio);
        scrape.counter(&STEPS, &labels, worker.steps);
        scrape.counter(&SLEEPS, &labels, worker.sleeps);
    }
    scrape.render()
}

/// How the disks of a mirror are.
fn add_mirror(scrape: &mut Exposition, disk: &DiskStatus) {
    for one in disk.mirror.iter().flat_map(|mirror| &mirror.disks) {
        let labels = [("disk", disk.name.as_str()), ("path", one.path.as_str())];
        let current = one.state == MirrorDiskState::Current;
        scrape.gauge(&MIRROR_UP, &labels, if current { 1.0 } else { 0.0 });
        scrape.gauge(&MIRROR_BEHIND, &labels, approximate(one.behind_bytes));
        scrape.counter(&MIRROR_ERRORS, &labels, one.errors);
    }
}

/// What is counted for the disk as a whole.
fn add_disk(scrape: &mut Exposition, disk: &DiskStatus) {
    let name = ("disk", disk.name.as_str());
    scrape.gauge(&CONNECTED, &[name], if disk.connected { 1.0 } else { 0.0 });
    scrape.gauge(&LOCKED, &[name], approximate(disk.locked_bytes));
    scrape.gauge(&SIZE, &[name], approximate(disk.size_bytes));
    scrape.gauge(&HELD, &[name], f64::from(disk.held));
    scrape.counter(&HOLDS, &[name], disk.stats.holds);
    let failed = if disk.failed.is_some() { 1.0 } else { 0.0 };
    scrape.gauge(&FAILED, &[name], failed);
    scrape.time(&THROTTLED, &[name], disk.stats.throttled_ns);
    scrape.gauge(
        &TROUBLE,
        &[name],
        if disk.trouble.is_some() { 1.0 } else { 0.0 },
    );
    add_backups(scrape, disk);
    scrape.counter(&LOSSES, &[name], disk.stats.storage_losses);
    scrape.counter(&CONNECTIONS, &[name], disk.stats.connections);
    // Reasons and errnos that have not happened, too: increase() sees the first time only of a
    // series that was there before it.
    for reason in Violation::NAMES {
        let count = disk.stats.ring_broken.get(reason).copied().unwrap_or(0);
        scrape.counter(&BROKEN, &[name, ("reason", reason)], count);
    }
    let mut errors = disk.stats.errors();
    for (errno, symbol) in ERRNOS {
        let count = errors.remove(&errno.raw_os_error()).unwrap_or(0);
        scrape.counter(&ERRORS, &[name, ("errno", symbol)], count);
    }
    for (errno, count) in errors {
        scrape.counter(&ERRORS, &[name, ("errno", &errno.to_string())], count);
    }
    for (kind, latency) in &disk.stats.latency {
        let labels = [name, ("type", kind.name())];
        let (sum, count) = (latency.sum_ns, latency.count);
        scrape.histogram(&SECONDS, &labels, &latency.buckets, sum, count);
    }
    for (stage, latency) in &disk.stats.stages {
        let labels = [name, ("stage", stage.as_str())];
        let (sum, count) = (latency.sum_ns, latency.count);
        scrape.histogram(&STAGES, &labels, &latency.buckets, sum, count);
    }
}

fn add_backups(scrape: &mut Exposition, disk: &DiskStatus) {
    let (name, backup) = (("disk", disk.name.as_str()), &disk.backup);
    if let Some(changed) = backup.changed_bytes {
        scrape.gauge(&CHANGED, &[name], approximate(changed));
    }
    scrape.counter(&BACKUPS, &[name, ("outcome", "done")], backup.done);
    scrape.counter(&BACKUPS, &[name, ("outcome", "failed")], backup.failed);
    let latest = backup.latest.as_ref();
    let running = latest.is_some_and(|b| b.state == State::Running);
    scrape.gauge(&BACKING_UP, &[name], if running { 1.0 } else { 0.0 });
    scrape.counter(&BACKED_UP, &[name], backup.bytes);
    scrape.counter(&COPIED_FIRST, &[name], backup.copied_first);
}

/// What is counted by queue.
fn add_queues(scrape: &mut Exposition, disk: &DiskStatus) {
    let name = ("disk", disk.name.as_str());
    for stats in &disk.stats.queues {
        let index = stats.index.to_string();
        let queue = ("queue", index.as_str());
        for (kind, count) in &stats.requests {
            scrape.counter(&REQUESTS, &[name, queue, ("type", kind.name())], *count);
        }
        for (direction, bytes) in &stats.bytes {
            scrape.counter(
                &BYTES,
                &[name, queue, ("direction", direction.name())],
                *bytes,
            );
        }
        scrape.counter(&REFUSED, &[name, queue], stats.refused);
        let sent = ("outcome", "sent");
        scrape.counter(
            &NOTIFICATIONS,
            &[name, queue, sent],
            stats.notifications_sent,
        );
        let suppressed = ("outcome", "suppressed");
        scrape.counter(
            &NOTIFICATIONS,
            &[name, queue, suppressed],
            stats.notifications_suppressed,
        );
    }
    for ring in disk.session.iter().flat_map(|session| &session.queues) {
        let index = ring.index.to_string();
        scrape.gauge(
            &IN_FLIGHT,
            &[name, ("queue", &index)],
            f64::from(ring.in_flight),
        );
    }
}

/// What storage is known to give.
const ERRNOS: [(Errno, &str); 19] = [
    (Errno::IO, "EIO"),
    (Errno::NOSPC, "ENOSPC"),
    (Errno::DQUOT, "EDQUOT"),
    (Errno::ROFS, "EROFS"),
    (Errno::INVAL, "EINVAL"),
    (Errno::FBIG, "EFBIG"),
    (Errno::NOMEM, "ENOMEM"),
    (Errno::AGAIN, "EAGAIN"),
    (Errno::FAULT, "EFAULT"),
    (Errno::BADF, "EBADF"),
    (Errno::NODEV, "ENODEV"),
    (Errno::NXIO, "ENXIO"),
    (Errno::NODATA, "ENODATA"),
    (Errno::ILSEQ, "EILSEQ"),
    (Errno::REMOTEIO, "EREMOTEIO"),
    (Errno::TIMEDOUT, "ETIMEDOUT"),
    (Errno::STALE, "ESTALE"),
    (Errno::OPNOTSUPP, "EOPNOTSUPP"),
    (Errno::CANCELED, "ECANCELED"),
];

/// The symbol of an errno that storage is known to give, else its number.
pub fn errno_name(errno: i32) -> Cow<'static, str> {
    let known = ERRNOS
        .iter()
        .find(|(known, _)| known.raw_os_error() == errno);
    known.map_or_else(|| errno.to_string().into(), |(_, name)| (*name).into())
}
