//! The control API: what can be asked, and in which shape it is answered.
//!
//! | | | data |
//! |---|---|---|
//! | GET | `/v1/status` | [`Overview`] |
//! | GET | `/v1/inventory` | [`Inventory`] |
//! | GET | `/v1/plan` | [`Plan`]: what is left to do, and what is refused |
//! | GET | `/v1/leases` | a list of [`Shown`] |
//! | POST | `/v1/leases/{address}/release` | nothing |
//! | POST | `/v1/apply` | [`Plan`]: what is left afterwards |
//! | POST | `/v1/reload` | nothing |
//! | GET | `/metrics` | Prometheus text |

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use towpath_common::control::{Answer, beside, exposition};

use crate::address::PciAddr;
use crate::inventory::Inventory;
use crate::lease::{LeaseError, Shown};
use crate::metrics;
use crate::plan::Plan;
use crate::serve::Daemon;

/// The daemon at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/inventory", get(inventory))
        .route("/v1/plan", get(plan))
        .route("/v1/leases", get(leases))
        .route("/v1/leases/{address}/release", post(release))
        .route("/v1/apply", post(apply))
        .route("/v1/reload", post(reload))
        .route("/metrics", get(scrape))
        .with_state(daemon)
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

async fn release(State(daemon): State<Arc<Daemon>>, Path(address): Path<String>) -> Answer {
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

async fn scrape(State(daemon): State<Arc<Daemon>>) -> impl IntoResponse {
    let text = tokio::task::spawn_blocking(move || {
        let report = daemon.keeper().report();
        // Counters of VFs are of now; without them the last look will do.
        let inventory = daemon
            .look_now()
            .unwrap_or_else(|_| report.inventory.clone());
        metrics::render(&report, &inventory, daemon.broker())
    });
    let text = text.await.unwrap_or_default();
    ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], text)
}
