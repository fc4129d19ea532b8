//! The control API of vblk: what can be asked, and in which shape it is answered.
//!
//! | | | data |
//! |---|---|---|
//! | GET | `/v1/status` | [`Overview`] |
//! | GET | `/v1/disks`, `/v1/disks/{name}` | [`DiskStatus`], a list or one |
//! | GET | `/v1/stats` | [`Stats`] |
//! | POST | `/v1/reload` | [`Reload`] in, [`Diff`] out |
//! | GET | `/metrics` | Prometheus text |

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use towpath_common::config::Name;
use towpath_common::control::{Answer, Body, beside, exposition};

use crate::config::Diff;
use crate::metrics;
use crate::serve::{Daemon, count_disks};
use crate::service::{DiskStats, DiskStatus, WorkerStatus};

/// The daemon at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// By disk.
    pub disks: Vec<NamedStats>,
    /// By worker.
    pub workers: Vec<WorkerStatus>,
}

/// The counters of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedStats {
    /// The disk.
    pub name: Name,
    /// Its counters.
    pub stats: DiskStats,
}

/// The body of `POST /v1/reload`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reload {
    /// Validate and compare, but change nothing.
    pub dry_run: bool,
}

/// All routes.
pub fn routes(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/disks", get(disks))
        .route("/v1/disks/{name}", get(disk))
        .route("/v1/disks/{name}/release", post(release))
        .route("/v1/stats", get(stats))
        .route("/v1/reload", post(reload))
        .route("/metrics", get(scrape))
        .with_state(daemon)
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

async fn disk(
    State(daemon): State<Arc<Daemon>>,
    name: Result<Path<String>, PathRejection>,
) -> Answer<DiskStatus> {
    let name = match name {
        Ok(Path(name)) => name,
        Err(rejection) => return Answer::failed(rejection.status(), rejection.body_text()),
    };
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

async fn release(
    State(daemon): State<Arc<Daemon>>,
    name: Result<Path<String>, PathRejection>,
) -> Answer<()> {
    let name = match name {
        Ok(Path(name)) => name,
        Err(rejection) => return Answer::failed(rejection.status(), rejection.body_text()),
    };
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

async fn scrape(State(daemon): State<Arc<Daemon>>) -> impl IntoResponse {
    let text = metrics::render(&daemon.service().disks(), &daemon.service().workers());
    ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], text)
}

#[cfg(test)]
mod tests;
