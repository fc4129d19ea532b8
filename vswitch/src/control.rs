//! The control API of vswitch: what can be asked, and in which shape it is answered.
//!
//! What looks at frames adds its own routes: [`Service::routes`](crate::service::Service::routes).

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::config::Name;
use towpath_common::control::{Answer, Asked, Body, Part, Routes, beside, exposition};

use crate::capture::{self, Captures};
use crate::config::{Change, Diff, Mirror};
use crate::metrics;
use crate::serve::{Daemon, count_ports};
use crate::service::{
    FdbEntry, FdbFilter, FdbStats, PortState, PortStats, PortStatus, VlanFlow, VlanStatus,
    WorkerStatus,
};
use crate::why;
use crate::why::api::Desk;

/// The daemon at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FdbTable {
    /// Those asked for.
    pub entries: Vec<FdbEntry>,
    /// The table as a whole.
    pub stats: FdbStats,
}

/// All counters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NamedStats {
    /// The port.
    pub name: Name,
    /// How it is; daemons before this did not say.
    #[serde(default)]
    pub state: Option<PortState>,
    /// Its counters.
    pub stats: PortStats,
}

/// The body of `POST /v1/change`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// What is to change.
    pub change: Change,
    /// Write it into the configuration file, too.
    #[serde(default)]
    pub persist: bool,
}

/// The body of `POST /v1/reload`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Reload {
    /// Validate and compare, but change nothing.
    pub dry_run: bool,
}

/// All routes.
pub fn routes(daemon: Arc<Daemon>) -> Router {
    let more = daemon.service().routes();
    let routes = table().with_state(daemon).merge(more);
    routes.router("vswitch", env!("CARGO_PKG_VERSION"))
}

/// The routes of what looks at frames: [`Service::routes`](crate::service::Service::routes).
pub fn looking(captures: Captures, desk: Desk) -> Routes {
    let captures = capture::api::table().with_state(Arc::new(captures));
    captures.merge(why::api::table().with_state(Arc::new(desk)))
}

/// The OpenAPI document of all routes.
pub fn document() -> serde_json::Value {
    let (own, captures, why) = (table(), capture::api::table(), why::api::table());
    let all = own.table().clone().and(captures.table()).and(why.table());
    all.document("vswitch", env!("CARGO_PKG_VERSION"))
}

fn table() -> Routes<Arc<Daemon>> {
    Routes::new()
        .get("/v1/status", "The daemon at a glance", status)
        .get("/v1/ports", "All ports and uplinks", ports)
        .get("/v1/ports/{name}", "One port or uplink", port)
        .post(
            "/v1/ports/{name}/release",
            "Serve a quarantined session again",
            release,
        )
        .get("/v1/vlans", "All VLANs", vlans)
        .get("/v1/fdb", "Known addresses", fdb)
        .post(
            "/v1/fdb/flush",
            "Forget learned addresses; gives how many",
            flush,
        )
        .get("/v1/mirrors", "All mirrors", mirrors)
        .get("/v1/stats", "All counters", stats)
        .post(
            "/v1/change",
            "Change a port, a static address or a mirror",
            change,
        )
        .post("/v1/reload", "Read the configuration again", reload)
        .get("/metrics", "All counters, for Prometheus", scrape)
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

async fn port(State(daemon): State<Arc<Daemon>>, Part(name): Part) -> Answer<PortStatus> {
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
    Asked(filter): Asked<FdbFilter>,
) -> Answer<FdbTable> {
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

async fn release(State(daemon): State<Arc<Daemon>>, Part(name): Part) -> Answer<()> {
    if daemon.service().release(&name) {
        return Answer::success(format!("the session of port {name} is served again"), ());
    }
    let description = format!("no session of a port {name:?} is quarantined");
    Answer::failed(StatusCode::NOT_FOUND, description)
}

async fn stats(State(daemon): State<Arc<Daemon>>) -> Answer<Stats> {
    let service = daemon.service();
    let named = |port: PortStatus| NamedStats {
        state: Some(PortState::of(&port)),
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

async fn scrape(State(daemon): State<Arc<Daemon>>) -> exposition::Text {
    let text = metrics::render(daemon.service());
    exposition::Text(text)
}

/// `1 address`, `2 addresses`.
fn count_addresses(number: u64) -> String {
    let noun = if number == 1 { "address" } else { "addresses" };
    format!("{number} {noun}")
}

#[cfg(test)]
mod tests;
