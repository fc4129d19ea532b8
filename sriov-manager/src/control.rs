//! The control API: what can be asked, and in which shape it is answered.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::control::{Answer, Part, Routes, beside, exposition};

use crate::address::PciAddr;
use crate::inventory::Inventory;
use crate::lease::{LeaseError, Shown};
use crate::metrics;
use crate::plan::Plan;
use crate::serve::Daemon;

/// The daemon at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Overview {
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// How long it has been running.
    pub uptime_seconds: u64,
    /// PFs of this host.
    pub pfs: usize,
    /// VFs of this host.
    pub vfs: usize,
    /// Leases.
    pub leases: usize,
    /// Steps that somebody else's changes call for.
    pub drift: usize,
    /// What is refused.
    pub refusals: usize,
    /// PFs that could not be brought where they should be.
    pub failures: Vec<String>,
    /// What VFs are without, because a driver does not support it.
    pub lacks: Vec<String>,
}

/// All routes.
pub fn routes(daemon: Arc<Daemon>) -> Router {
    let routes = table().with_state(daemon);
    routes.router("sriov-manager", env!("CARGO_PKG_VERSION"))
}

/// The OpenAPI document of all routes.
pub fn document() -> serde_json::Value {
    let (title, version) = ("sriov-manager", env!("CARGO_PKG_VERSION"));
    table().table().document(title, version)
}

fn table() -> Routes<Arc<Daemon>> {
    let release_summary = "Take a lease back from whoever is gone without giving it back";
    Routes::new()
        .get("/v1/status", "The daemon at a glance", status)
        .get("/v1/inventory", "PFs and VFs of this host", inventory)
        .get("/v1/plan", "What is left to do, and what is refused", plan)
        .get("/v1/leases", "All leases", leases)
        .post("/v1/leases/{address}/release", release_summary, release)
        .post("/v1/apply", "Do what is planned; gives what is left", apply)
        .post("/v1/reload", "Read the configuration again", reload)
        .get("/metrics", "All counters, for Prometheus", scrape)
}

async fn status(State(daemon): State<Arc<Daemon>>) -> Answer<Overview> {
    let report = daemon.keeper().report();
    let failures = report
        .failures
        .iter()
        .map(|(pf, text)| format!("{pf}: {text}"));
    let overview = Overview {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: daemon.uptime().as_secs(),
        pfs: report.inventory.pfs.len(),
        vfs: report.inventory.pfs.iter().map(|pf| pf.vfs.len()).sum(),
        leases: daemon.broker().leases().len(),
        drift: report.drift.len(),
        refusals: report.left.refusals.len(),
        failures: failures.collect(),
        lacks: report.left.lacks.iter().map(ToString::to_string).collect(),
    };
    let description = daemon.sentence();
    let faults = overview.failures.len() + overview.lacks.len();
    if faults + overview.drift + overview.refusals == 0 {
        Answer::success(description, overview)
    } else {
        Answer::warning(description, overview)
    }
}

async fn inventory(State(daemon): State<Arc<Daemon>>) -> Answer<Inventory> {
    beside(move || match daemon.look_now() {
        Ok(inventory) => Answer::success(format!("{} PFs", inventory.pfs.len()), inventory),
        Err(error) => failed(&error),
    })
    .await
}

async fn plan(State(daemon): State<Arc<Daemon>>) -> Answer<Plan> {
    beside(move || match daemon.look_now() {
        Ok(inventory) => {
            let (plan, _) = Plan::make(&inventory, &daemon.broker().spec());
            let (steps, refusals) = (plan.steps.len(), plan.refusals.len());
            Answer::success(format!("{steps} steps, {refusals} refusals"), plan)
        }
        Err(error) => failed(&error),
    })
    .await
}

fn failed<T>(error: &dyn std::fmt::Display) -> Answer<T> {
    Answer::failed(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

async fn leases(State(daemon): State<Arc<Daemon>>) -> Answer<Vec<Shown>> {
    let leases = daemon.broker().leases();
    Answer::success(format!("{} leases", leases.len()), leases)
}

async fn release(State(daemon): State<Arc<Daemon>>, Part(address): Part) -> Answer {
    let address: PciAddr = match address.parse() {
        Ok(address) => address,
        Err(error) => {
            let error: towpath_common::config::ValueError = error;
            return Answer::failed(StatusCode::BAD_REQUEST, error.to_string());
        }
    };
    beside(move || match daemon.broker().release(address) {
        Ok(()) => {
            daemon.keeper().wake();
            Answer::success(format!("{address} is free"), ())
        }
        Err(error @ LeaseError::NotLeased(_)) => {
            Answer::failed(StatusCode::NOT_FOUND, error.to_string())
        }
        Err(error) => Answer::failed(StatusCode::CONFLICT, error.to_string()),
    })
    .await
}

async fn apply(State(daemon): State<Arc<Daemon>>) -> Answer<Plan> {
    beside(move || match daemon.keeper().look(true) {
        Ok(()) => {
            let report = daemon.keeper().report();
            let failed: Vec<String> = report.failures.into_values().collect();
            if report.left.is_empty() && failed.is_empty() {
                Answer::success("everything is as wanted", report.left)
            } else {
                let refusals = report.left.refusals.len();
                let text = format!("{refusals} refusals; {}", failed.join("; "));
                Answer::warning(text, report.left)
            }
        }
        Err(error) => Answer::failed(StatusCode::CONFLICT, error.to_string()),
    })
    .await
}

async fn reload(State(daemon): State<Arc<Daemon>>) -> Answer {
    beside(move || daemon.reload()).await
}

async fn scrape(State(daemon): State<Arc<Daemon>>) -> exposition::Text {
    let text = tokio::task::spawn_blocking(move || {
        let report = daemon.keeper().report();
        // Counters of VFs are of now; without them the last look will do.
        let inventory = daemon
            .look_now()
            .unwrap_or_else(|_| report.inventory.clone());
        metrics::render(&report, &inventory, daemon.broker())
    });
    let text = text.await.unwrap_or_default();
    exposition::Text(text)
}

#[cfg(test)]
mod tests;
