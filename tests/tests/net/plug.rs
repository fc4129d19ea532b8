//! Ports and machines that come and go while others talk: hot-plug, reboot, unplug.

use anyhow::{Result, ensure};
use serde_json::json;
use towpath_tests::daemon::Vswitch;
use towpath_tests::guest::Guest;
use towpath_tests::vm::{Nic, Turn, Vm};

use crate::{linked, until};

#[test]
fn a_port_is_plugged_in_and_out_and_a_guest_reboots() -> Result<()> {
    let turn = Turn::take()?;
    let mut vswitch = Vswitch::serve(
        tempfile::tempdir()?,
        &["p0,socket={dir}/p0", "p1,socket={dir}/p1"],
        &[],
    )?;
    let nic =
        |name: &str, number: u8| Nic::new(vswitch.path(name), &format!("52:54:00:00:00:0{number}"));
    let mut a = Guest::boot(Vm::builder("a").nic(nic("p0", 1)), &turn)?;
    let mut b = Guest::boot(Vm::builder("b").nic(nic("p1", 2)), &turn)?;
    let hot = nic("p2", 3);
    for (number, guest) in [(1, &mut a), (2, &mut b)] {
        guest.up()?;
        guest.run(&format!(
            "ip link set eth0 up; ip addr add 10.0.0.{number}/24 dev eth0"
        ))?;
    }
    a.run("ping -q -c 1 10.0.0.2; talk tcp 10.0.0.2 7 100000 100000")?;
    let fds = vswitch.daemon().process().open_fds()?;

    // A new port, and a new device on it, while the two go on talking.
    let talking = a.start("talk tcp 10.0.0.2 7 3000000 3000000")?;
    let socket = vswitch.path("p2");
    let port = format!("p2,socket={},mac=52:54:00:00:00:03", socket.display());
    vswitch.client(&["port", "add", &port])?;
    let qmp = b.vm().monitor_path().display().to_string();
    vswitch.client(&["attach", "p2", "--qmp", &qmp, "--bus", "slot0"])?;
    let mut monitor = b.vm().monitor()?;
    a.end(talking)?;
    b.run(
        "until [ -e /sys/class/net/eth1 ]; do sleep 0.1; done; ip link set eth1 up; \
         ip addr flush dev eth0; ip link set eth0 down; ip addr add 10.0.0.3/24 dev eth1",
    )?;
    linked(&vswitch, &["p2"])?;
    a.run("ping -q -c 1 10.0.0.3; talk tcp 10.0.0.3 7 500000 500000")?;

    // Guest a resets in the middle of a transfer and comes back as if nothing had been.
    let _cut = b.start("timeout 5 talk tcp 10.0.0.1 7 900000000 0 || true")?;
    until("a transfer to a", || {
        let port = vswitch.get("/v1/ports/p0")?;
        Ok((crate::packets(&port["stats"], "tx") > 1000).then_some(()))
    })?;
    a.reboot()?;
    a.up()?;
    a.run("ip link set eth0 up; ip addr add 10.0.0.1/24 dev eth0")?;
    a.run("ping -q -c 1 10.0.0.3; talk tcp 10.0.0.3 7 500000 500000")?;

    // Out again, device first.
    hot.unplug(&mut monitor, "p2")?;
    vswitch.client(&["port", "remove", "p2"])?;
    ensure!(vswitch.get("/v1/ports/p2").is_err(), "p2 is still there");
    ensure!(!socket.exists(), "the socket of p2 is still there");
    b.run("ip link set eth0 up; ip addr add 10.0.0.2/24 dev eth0")?;
    a.run("ping -q -c 1 10.0.0.2; talk tcp 10.0.0.2 7 100000 100000")?;
    // The notifier of a transmit queue that is gone is kept for the next one (bell.rs).
    const SPARE: usize = 1;
    until("as many open files as before", || {
        let now = vswitch.daemon().process().open_fds()?;
        Ok((now <= fds + SPARE).then_some(()))
    })?;
    monitor.execute("query-status", json!({}))?;
    Ok(())
}
