//! The control API of vblk: what can be asked, and in which shape it is answered.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::config::Name;
use towpath_common::control::{Answer, Body, Part, Routes, beside, exposition};

use crate::backup::{BackupOrder, BackupStatus};
use crate::config::Diff;
use crate::metrics;
use crate::mirror::MirrorOrder;
use crate::serve::{Daemon, count_disks};
use crate::service::{
    DiskState, DiskStats, DiskStatus, GroupStatus, Resized, ServiceError, SlowRequest, Snapshot,
    WorkerStatus,
};
use crate::settings::Settings;

/// The daemon at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Overview {
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// How long it has been running.
    pub uptime_seconds: u64,
    /// Disks served.
    pub disks: usize,
    /// Disks with a front-end.
    pub connected: usize,
    /// The workers.
    pub workers: Vec<WorkerStatus>,
}

/// All counters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// By disk.
    pub disks: Vec<NamedStats>,
    /// By worker.
    pub workers: Vec<WorkerStatus>,
}

/// The counters of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NamedStats {
    /// The disk.
    pub name: Name,
    /// How it is; daemons before this did not say.
    #[serde(default)]
    pub state: Option<DiskState>,
    /// Its counters.
    pub stats: DiskStats,
}

/// The body of `POST /v1/reload`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Reload {
    /// Validate and compare, but change nothing.
    pub dry_run: bool,
}

/// The body of `POST /v1/disks/{name}/resize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resize {
    /// The new size; none: that of the file or device now.
    pub size_bytes: Option<u64>,
    /// It may be smaller.
    pub shrink: bool,
}

/// The body of `POST /v1/disks/{name}/snapshot`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The file to make; absolute.
    pub path: PathBuf,
}

/// All routes.
pub fn routes(daemon: Arc<Daemon>) -> Router {
    let routes = table().with_state(daemon);
    routes.router("vblk", env!("CARGO_PKG_VERSION"))
}

/// The OpenAPI document of all routes.
pub fn document() -> serde_json::Value {
    table().table().document("vblk", env!("CARGO_PKG_VERSION"))
}

fn table() -> Routes<Arc<Daemon>> {
    Routes::new()
        .get("/v1/status", "The daemon at a glance", status)
        .get("/v1/disks", "All disks", disks)
        .get("/v1/disks/{name}", "One disk", disk)
        .post(
            "/v1/disks/{name}",
            "Change a disk while it is served",
            set_disk,
        )
        .post(
            "/v1/disks/{name}/release",
            "Serve a quarantined session again",
            release,
        )
        .post(
            "/v1/disks/{name}/clear",
            "Take what failed as repaired",
            clear_disk,
        )
        .get(
            "/v1/disks/{name}/slow",
            "The slowest requests of a disk",
            slow_of_one,
        )
        .post(
            "/v1/disks/{name}/resize",
            "Give a disk another size",
            resize,
        )
        .post(
            "/v1/disks/{name}/snapshot",
            "Copy a disk as it is now",
            snapshot,
        )
        .post(
            "/v1/disks/{name}/mirror",
            "Take a disk out of a mirror, or bring it back",
            mirror,
        )
        .get(
            "/v1/disks/{name}/backup",
            "How the last backup stands",
            backup_status,
        )
        .post(
            "/v1/disks/{name}/backup",
            "Back a disk up as it is now",
            backup,
        )
        .post(
            "/v1/disks/{name}/backup/cancel",
            "End the backup under way",
            cancel_backup,
        )
        .get("/v1/slow", "The slowest requests of all disks", slow)
        .get("/v1/groups", "All groups", groups)
        .post(
            "/v1/groups/{name}",
            "Change the limits that disks share",
            set_group,
        )
        .get("/v1/stats", "All counters", stats)
        .post("/v1/reload", "Read the configuration again", reload)
        .get("/metrics", "All counters, for Prometheus", scrape)
}

async fn status(State(daemon): State<Arc<Daemon>>) -> Answer<Overview> {
    let disks = daemon.service().disks();
    let overview = Overview {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: daemon.uptime().as_secs(),
        disks: disks.len(),
        connected: disks.iter().filter(|disk| disk.connected).count(),
        workers: daemon.service().workers(),
    };
    Answer::success(
        format!(
            "{}, {} connected",
            count_disks(overview.disks),
            overview.connected
        ),
        overview,
    )
}

async fn disks(State(daemon): State<Arc<Daemon>>) -> Answer<Vec<DiskStatus>> {
    let disks = daemon.service().disks();
    Answer::success(count_disks(disks.len()), disks)
}

async fn disk(State(daemon): State<Arc<Daemon>>, Part(name): Part) -> Answer<DiskStatus> {
    let disks = daemon.service().disks();
    match disks.iter().find(|disk| disk.name.as_str() == name) {
        Some(disk) => Answer::success(format!("disk {name}"), disk.clone()),
        None => {
            let known: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
            let description = format!("there is no disk {name:?}; disks: {}", known.join(", "));
            Answer::failed(StatusCode::NOT_FOUND, description)
        }
    }
}

/// What was asked for was not done.
fn refused<T>(error: &ServiceError) -> Answer<T> {
    let code = match error {
        ServiceError::Unknown { .. } => StatusCode::NOT_FOUND,
        ServiceError::Setting(_) => StatusCode::UNPROCESSABLE_ENTITY,
        ServiceError::Refused(_) => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Answer::failed(code, error.to_string())
}

async fn set_disk(
    State(daemon): State<Arc<Daemon>>,
    Part(name): Part,
    Body(settings): Body<Settings>,
) -> Answer<DiskStatus> {
    beside(move || {
        let done = daemon.service().set_disk(&name, &settings);
        disk_after(&daemon, &name, done, "is changed")
    })
    .await
}

async fn clear_disk(State(daemon): State<Arc<Daemon>>, Part(name): Part) -> Answer<DiskStatus> {
    let done = daemon.service().clear_disk(&name);
    disk_after(&daemon, &name, done, "is taken as repaired")
}

/// A disk after something was done to it, or why it was not.
fn disk_after(
    daemon: &Daemon,
    name: &str,
    done: Result<(), ServiceError>,
    what: &str,
) -> Answer<DiskStatus> {
    if let Err(error) = done {
        return refused(&error);
    }
    let mut disks = daemon.service().disks();
    disks.retain(|disk| disk.name.as_str() == name);
    match disks.pop() {
        Some(disk) => Answer::success(format!("disk {name} {what}"), disk),
        None => Answer::failed(StatusCode::GONE, format!("disk {name} is gone")),
    }
}

async fn resize(
    State(daemon): State<Arc<Daemon>>,
    Part(name): Part,
    Body(order): Body<Resize>,
) -> Answer<Resized> {
    beside(move || {
        let Resize { size_bytes, shrink } = order;
        match daemon.service().resize(&name, size_bytes, shrink) {
            Err(error) => refused(&error),
            Ok(done) if done.new_bytes == done.old_bytes => {
                Answer::success(format!("disk {name} has that size already"), done)
            }
            Ok(done) => {
                let (old, new) = (done.old_bytes, done.new_bytes);
                let text = format!("disk {name} has {new} bytes now, not {old}");
                if done.told {
                    Answer::success(text, done)
                } else {
                    let later = "no front-end could be told; it sees that when it connects";
                    Answer::warning(format!("{text}; {later}"), done)
                }
            }
        }
    })
    .await
}

async fn snapshot(
    State(daemon): State<Arc<Daemon>>,
    Part(name): Part,
    Body(target): Body<Target>,
) -> Answer<Snapshot> {
    beside(
        move || match daemon.service().snapshot(&name, &target.path) {
            Err(error) => refused(&error),
            Ok(taken) => {
                let (path, ms) = (target.path.display(), taken.pause_us / 1000);
                let us = taken.pause_us % 1000;
                let how = if taken.copying {
                    "is being copied to"
                } else {
                    "is in"
                };
                let text = format!("disk {name} {how} {path}; its guest waited {ms}.{us:03} ms");
                Answer::success(text, taken)
            }
        },
    )
    .await
}

async fn mirror(
    State(daemon): State<Arc<Daemon>>,
    Part(name): Part,
    Body(order): Body<MirrorOrder>,
) -> Answer<DiskStatus> {
    beside(move || {
        let done = daemon.service().mirror(&name, &order);
        let what = match order {
            MirrorOrder::Fail(_) => "goes on without one of its disks",
            MirrorOrder::Add(_) | MirrorOrder::AddFull(_) => "copies what a disk of it missed",
        };
        disk_after(&daemon, &name, done, what)
    })
    .await
}

async fn backup(
    State(daemon): State<Arc<Daemon>>,
    Part(name): Part,
    Body(order): Body<BackupOrder>,
) -> Answer<BackupStatus> {
    beside(move || match daemon.service().backup(&name, &order) {
        Err(error) => refused(&error),
        Ok(begun) => {
            let (ms, us) = (begun.pause_us / 1000, begun.pause_us % 1000);
            let what = begun.sort.name();
            let text = format!("{what} of disk {name} began; its guest waited {ms}.{us:03} ms");
            match &begun.note {
                Some(note) => Answer::warning(format!("{text}; {note}"), begun.clone()),
                None => Answer::success(text, begun),
            }
        }
    })
    .await
}

async fn backup_status(
    State(daemon): State<Arc<Daemon>>,
    Part(name): Part,
) -> Answer<BackupStatus> {
    match daemon.service().backup_status(&name) {
        Ok(status) => Answer::success(format!("the last backup of disk {name}"), status),
        Err(error) => refused(&error),
    }
}

async fn cancel_backup(
    State(daemon): State<Arc<Daemon>>,
    Part(name): Part,
) -> Answer<BackupStatus> {
    beside(move || match daemon.service().cancel_backup(&name) {
        Ok(status) => Answer::success(format!("the backup of disk {name} is cancelled"), status),
        Err(error) => refused(&error),
    })
    .await
}

async fn slow(State(daemon): State<Arc<Daemon>>) -> Answer<Vec<SlowRequest>> {
    beside(move || slowest(daemon.service().slow(None))).await
}

async fn slow_of_one(
    State(daemon): State<Arc<Daemon>>,
    Part(name): Part,
) -> Answer<Vec<SlowRequest>> {
    beside(move || slowest(daemon.service().slow(Some(&name)))).await
}

fn slowest(found: Result<Vec<SlowRequest>, ServiceError>) -> Answer<Vec<SlowRequest>> {
    match found {
        Ok(slow) => Answer::success("the slowest requests of the last minute or two", slow),
        Err(error) => refused(&error),
    }
}

async fn groups(State(daemon): State<Arc<Daemon>>) -> Answer<Vec<GroupStatus>> {
    let groups = daemon.service().groups();
    Answer::success(format!("{} groups", groups.len()), groups)
}

async fn set_group(
    State(daemon): State<Arc<Daemon>>,
    Part(name): Part,
    Body(settings): Body<Settings>,
) -> Answer<GroupStatus> {
    beside(move || {
        if let Err(error) = daemon.service().set_group(&name, &settings) {
            return refused(&error);
        }
        let mut groups = daemon.service().groups();
        groups.retain(|group| group.name.as_str() == name);
        match groups.pop() {
            Some(group) => Answer::success(format!("group {name} is changed"), group),
            None => Answer::failed(StatusCode::GONE, format!("group {name} is gone")),
        }
    })
    .await
}

async fn release(State(daemon): State<Arc<Daemon>>, Part(name): Part) -> Answer<()> {
    if daemon.service().release(&name) {
        return Answer::success(format!("the session of disk {name} is served again"), ());
    }
    let description = format!("no session of a disk {name:?} is quarantined");
    Answer::failed(StatusCode::NOT_FOUND, description)
}

async fn stats(State(daemon): State<Arc<Daemon>>) -> Answer<Stats> {
    let disks = daemon.service().disks().into_iter();
    let disks = disks
        .map(|disk| NamedStats {
            state: Some(DiskState::of(&disk)),
            name: disk.name,
            stats: disk.stats,
        })
        .collect();
    Answer::success(
        "totals since the start",
        Stats {
            disks,
            workers: daemon.service().workers(),
        },
    )
}

async fn reload(State(daemon): State<Arc<Daemon>>, Body(order): Body<Reload>) -> Answer<Diff> {
    beside(move || daemon.reload(order.dry_run)).await
}

async fn scrape(State(daemon): State<Arc<Daemon>>) -> exposition::Text {
    let text = metrics::render(&daemon.service().disks(), &daemon.service().workers());
    exposition::Text(text)
}

#[cfg(test)]
mod tests;
