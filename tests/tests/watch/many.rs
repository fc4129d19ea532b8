//! A switch with a thousand ports is scraped, and no worker notices.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use towpath_tests::daemon::Vswitch;

const PORTS: usize = 1000;
const SCRAPES: u32 = 100;

/// How often an idle worker wakes by itself: `towpath_common::worker::HEARTBEAT`.
const HEARTBEAT: Duration = Duration::from_secs(1);

fn value(text: &str, series: &str) -> Result<f64> {
    let line = text.lines().find(|line| line.starts_with(series));
    let value = line.and_then(|line| line.rsplit(' ').next());
    let value = value.with_context(|| format!("there is no {series}"))?;
    Ok(value.parse()?)
}

#[test]
fn a_thousand_ports_are_scraped_and_no_worker_is_woken() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut config = String::new();
    let here = dir.path().display();
    for port in 0..PORTS {
        // Each in a VLAN of its own, so that there are a thousand of those, too.
        let vlan = port + 2;
        writeln!(
            config,
            "[[port]]\nname = \"p{port}\"\nsocket = \"{here}/p{port}\"\naccess = {vlan}"
        )?;
    }
    std::fs::write(dir.path().join("config"), config)?;
    let mut vswitch = Vswitch::serve(dir, &[], &["--config", "{dir}/config"])?;
    let sleeps = "towpath_worker_sleeps_total{worker=\"0\"}";
    let before = value(&vswitch.metrics()?, sleeps)?;
    let began = Instant::now();
    let mut times = Vec::new();
    let mut text = String::new();
    for _ in 0..SCRAPES {
        let one = Instant::now();
        text = vswitch.metrics()?;
        times.push(one.elapsed());
    }
    let took = began.elapsed();
    times.sort();
    println!(
        "{} lines in {:?} (median; worst {:?})",
        text.lines().count(),
        times[times.len() / 2],
        times[times.len() - 1]
    );
    // A message to a worker wakes it, and it sleeps again: it slept as often as it does alone.
    let slept = value(&text, sleeps)? - before;
    let alone = took.as_secs_f64() / HEARTBEAT.as_secs_f64() + 2.0;
    println!("a worker slept {slept} times in {took:?}");
    ensure!(slept <= alone, "{slept} times in {took:?}");
    ensure!(
        alone < f64::from(SCRAPES),
        "this machine is too slow to tell: {took:?}"
    );
    // What has not happened is there, for increase() to see the first time.
    for series in [
        "towpath_vswitch_port_discards_total{port=\"p999\",reason=\"receiver_full\"}",
        "towpath_vswitch_port_ring_broken_total{port=\"p999\",reason=\"",
        "towpath_vswitch_port_rx_packets_total{port=\"p0\",queue=\"0\"}",
        "towpath_vswitch_vlan_rx_packets_total{vlan=\"1001\"}",
    ] {
        ensure!(value(&text, series)? == 0.0, "{series}");
    }
    vswitch.daemon().stop()
}
