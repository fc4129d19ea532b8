//! The control API of vswitch: what can be asked, and in which shape it is answered.
//!
//! | | | data |
//! |---|---|---|
//! | GET | `/v1/status` | [`Overview`] |
//! | GET | `/v1/ports`, `/v1/ports/{name}` | [`PortStatus`], a list or one |
//! | GET | `/v1/vlans` | a list of [`VlanStatus`] |
//! | GET | `/v1/fdb?vlan=&port=&mac=` | [`FdbTable`] |
//! | POST | `/v1/fdb/flush` | [`FdbFilter`] in, number of addresses out |
//! | GET | `/v1/mirrors` | a list of [`Mirror`] |
//! | GET | `/v1/stats` | [`Stats`] |
//! | POST | `/v1/change` | [`Order`] in, [`Diff`] out |
//! | POST | `/v1/reload` | [`Reload`] in, [`Diff`] out |
//! | GET | `/metrics` | Prometheus text |
//!
//! What looks at frames adds its own routes: [`Service::routes`](crate::service::Service::routes).

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use towpath_common::config::Name;
use towpath_common::control::{Answer, Body, beside, exposition};

use crate::config::{Change, Diff, Mirror};
use crate::metrics;
use crate::serve::{Daemon, count_ports};
use crate::service::{
    FdbEntry, FdbFilter, FdbStats, PortStats, PortStatus, VlanFlow, VlanStatus, WorkerStatus,
};

/// The daemon at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// How long it has been running.
    pub uptime_seconds: u64,
    /// Ports and uplinks.
    pub ports: usize,
    /// Those with a front-end, and open uplinks.
    pub connected: usize,
    /// The table of addresses.
    pub fdb: FdbStats,
    /// The workers.
    pub workers: Vec<WorkerStatus>,
}

/// Known addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbTable {
    /// Those asked for.
    pub entries: Vec<FdbEntry>,
    /// The table as a whole.
    pub stats: FdbStats,
}

/// All counters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// By port.
    pub ports: Vec<NamedStats>,
    /// By VLAN.
    pub vlans: Vec<VlanFlow>,
    /// The table of addresses.
    pub fdb: FdbStats,
    /// By worker.
    pub workers: Vec<WorkerStatus>,
}

/// The counters of one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedStats {
    /// The port.
    pub name: Name,
    /// Its counters.
    pub stats: PortStats,
}

/// The body of `POST /v1/change`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// What is to change.
    pub change: Change,
    /// Write it into the configuration file, too.
    #[serde(default)]
    pub persist: bool,
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
    let more = daemon.service().routes();
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/ports", get(ports))
        .route("/v1/ports/{name}", get(port))
        .route("/v1/ports/{name}/release", post(release))
        .route("/v1/vlans", get(vlans))
        .route("/v1/fdb", get(fdb))
        .route("/v1/fdb/flush", post(flush))
        .route("/v1/mirrors", get(mirrors))
        .route("/v1/stats", get(stats))
        .route("/v1/change", post(change))
        .route("/v1/reload", post(reload))
        .route("/metrics", get(scrape))
        .with_state(daemon)
        .merge(more)
}

async fn status(State(daemon): State<Arc<Daemon>>) -> Answer<Overview> {
    let service = daemon.service();
    let ports = service.ports();
    let overview = Overview {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: daemon.uptime().as_secs(),
        ports: ports.len(),
        connected: ports.iter().filter(|port| port.connected).count(),
        fdb: service.fdb_stats(),
        workers: service.workers(),
    };
    let (ports, connected) = (count_ports(overview.ports), overview.connected);
    Answer::success(format!("{ports}, {connected} connected"), overview)
}

async fn ports(State(daemon): State<Arc<Daemon>>) -> Answer<Vec<PortStatus>> {
    let ports = daemon.service().ports();
    Answer::success(count_ports(ports.len()), ports)
}

async fn port(
    State(daemon): State<Arc<Daemon>>,
    name: Result<Path<String>, PathRejection>,
) -> Answer<PortStatus> {
    let name = match name {
        Ok(Path(name)) => name,
        Err(rejection) => return Answer::failed(rejection.status(), rejection.body_text()),
    };
    let ports = daemon.service().ports();
    match ports.iter().find(|port| port.name.as_str() == name) {
        Some(port) => Answer::success(format!("port {name}"), port.clone()),
        None => {
            let known: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
            let description = format!("there is no port {name:?}; ports: {}", known.join(", "));
            Answer::failed(StatusCode::NOT_FOUND, description)
        }
    }
}

async fn vlans(State(daemon): State<Arc<Daemon>>) -> Answer<Vec<VlanStatus>> {
    let vlans = daemon.service().vlans();
    Answer::success(format!("{} VLANs", vlans.len()), vlans)
}

async fn fdb(
    State(daemon): State<Arc<Daemon>>,
    filter: Result<Query<FdbFilter>, QueryRejection>,
) -> Answer<FdbTable> {
    let filter = match filter {
        Ok(Query(filter)) => filter,
        Err(rejection) => return Answer::failed(rejection.status(), rejection.body_text()),
    };
    beside(move || {
        let table = FdbTable {
            entries: daemon.service().fdb(&filter),
            stats: daemon.service().fdb_stats(),
        };
        Answer::success(count_addresses(table.entries.len() as u64), table)
    })
    .await
}

async fn flush(State(daemon): State<Arc<Daemon>>, Body(filter): Body<FdbFilter>) -> Answer<u64> {
    beside(move || {
        let flushed = daemon.service().fdb_flush(&filter);
        tracing::info!(flushed, ?filter, "addresses forgotten");
        Answer::success(format!("{} forgotten", count_addresses(flushed)), flushed)
    })
    .await
}

async fn mirrors(State(daemon): State<Arc<Daemon>>) -> Answer<Vec<Mirror>> {
    match daemon.mirrors() {
        Some(mirrors) => Answer::success(format!("{} mirrors", mirrors.len()), mirrors),
        None => {
            let description = "a reload or change is under way; try again when it is done";
            Answer::failed(StatusCode::CONFLICT, description)
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
        return Answer::success(format!("the session of port {name} is served again"), ());
    }
    let description = format!("no session of a port {name:?} is quarantined");
    Answer::failed(StatusCode::NOT_FOUND, description)
}

async fn stats(State(daemon): State<Arc<Daemon>>) -> Answer<Stats> {
    let service = daemon.service();
    let named = |port: PortStatus| NamedStats {
        name: port.name,
        stats: port.stats,
    };
    let stats = Stats {
        ports: service.ports().into_iter().map(named).collect(),
        vlans: service.vlans().iter().map(|vlan| vlan.flow).collect(),
        fdb: service.fdb_stats(),
        workers: service.workers(),
    };
    Answer::success("totals since the start", stats)
}

async fn change(State(daemon): State<Arc<Daemon>>, Body(order): Body<Order>) -> Answer<Diff> {
    beside(move || daemon.change(&order.change, order.persist)).await
}

async fn reload(State(daemon): State<Arc<Daemon>>, Body(order): Body<Reload>) -> Answer<Diff> {
    beside(move || daemon.reload(order.dry_run)).await
}

async fn scrape(State(daemon): State<Arc<Daemon>>) -> impl IntoResponse {
    let text = metrics::render(daemon.service());
    ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], text)
}

/// `1 address`, `2 addresses`.
fn count_addresses(number: u64) -> String {
    let noun = if number == 1 { "address" } else { "addresses" };
    format!("{number} {noun}")
}

#[cfg(test)]
mod tests;
