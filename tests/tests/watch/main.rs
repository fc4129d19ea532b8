//! What is shipped for those who watch the daemons: Prometheus' rules, Grafana's dashboards, `top`.
//!
//! Rules pass promtool and their own unit tests, of which every alert has one. Rules and dashboards
//! name metrics and labels that the READMEs list, which each daemon's own tests hold against what
//! it exports.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "rules that cannot be read have failed"
)]

mod dashboards;
mod many;
mod names;
mod rules;
mod scrape;
mod top;

use std::path::{Path, PathBuf};

const DAEMONS: [&str; 3] = ["vblk", "vswitch", "sriov-manager"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
