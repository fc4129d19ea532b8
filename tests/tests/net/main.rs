//! Real front-ends on vswitch: QEMU guests, DPDK's virtio-user, the host's own bridge.
//!
//! Guests of a scenario boot together and are told what to do a command at a time; scenarios run
//! one after another (see `towpath_tests::vm`), about 10 s each without KVM.

mod dpdk;
mod harness;
mod killed;
mod migrate;
mod moves;
mod offloads;
mod plug;
mod reconnect;
mod uplink;
mod vlans;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use towpath_tests::daemon::Vswitch;

/// Guards against hanging: what is waited for here is a matter of milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(20);

/// Polls until `done` gives something, or fails with what it waited for.
fn until<T>(what: &str, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("{what}: not within {PATIENCE:?}");
        }
        sleep(TICK);
    }
}

/// What vswitch counts at port `name`.
fn stats(vswitch: &Vswitch, name: &str) -> Result<Value> {
    Ok(vswitch.get(&format!("/v1/ports/{name}"))?["stats"].take())
}

/// Frames from the port, all queues together; `tx` for those to it.
fn packets(stats: &Value, direction: &str) -> u64 {
    let queues = stats["queues"].as_array().into_iter().flatten();
    queues
        .filter_map(|queue| queue[direction]["packets"].as_u64())
        .sum()
}

/// Frames dropped at the port for `reason`.
fn discards(vswitch: &Vswitch, port: &str, reason: &str) -> Result<u64> {
    let stats = stats(vswitch, port)?;
    Ok(stats["discards"][reason].as_u64().unwrap_or(0))
}

/// Waits until the driver of each port is there.
fn linked(vswitch: &Vswitch, ports: &[&str]) -> Result<()> {
    for name in ports {
        until(&format!("a driver at port {name}"), || {
            let port = vswitch.get(&format!("/v1/ports/{name}"))?;
            let link = port["link"].as_bool().context("a port shows its link")?;
            Ok(link.then_some(()))
        })?;
    }
    Ok(())
}
