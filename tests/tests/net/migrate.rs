//! Guests that move to another QEMU while they run, and how the switch learns where they are now.

use anyhow::{Context, Result, ensure};
use towpath_tests::daemon::Vswitch;
use towpath_tests::guest::Guest;
use towpath_tests::vm::{Nic, Turn, Vm};

use crate::until;

/// The one that announces itself (`VIRTIO_NET_F_GUEST_ANNOUNCE`), and the one for which QEMU sends
/// SEND_RARP.
const MACS: [&str; 2] = ["52:54:00:00:00:0a", "52:54:00:00:00:0b"];

/// The port that has this address.
fn place(vswitch: &Vswitch, mac: &str) -> Result<String> {
    let known = vswitch.get(&format!("/v1/fdb?mac={mac}"))?;
    let entries = known["entries"].as_array().context("a list")?;
    let [entry] = &entries[..] else {
        return Ok(format!("{} places", entries.len()));
    };
    Ok(entry["port"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_guest_moves_and_the_switch_knows_where_to() -> Result<()> {
    let turn = Turn::take()?;
    let names = ["a0", "a1", "b0", "b1", "peer"];
    let ports = names.map(|name| format!("{name},socket={{dir}}/{name}"));
    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
    let vswitch = Vswitch::serve(tempfile::tempdir()?, &ports, &[])?;
    let meeting = vswitch.path("meeting");
    let machine = |name: &str, [first, second]: [&str; 2]| {
        let silent = Nic::new(vswitch.path(second), MACS[1]).properties("guest_announce=off");
        Vm::builder(name)
            .nic(Nic::new(vswitch.path(first), MACS[0]))
            .nic(silent)
    };
    let mut moving = Guest::boot(machine("a", ["a0", "a1"]), &turn)?;
    let nic = Nic::new(vswitch.path("peer"), "52:54:00:00:00:0c");
    let mut peer = Guest::boot(Vm::builder("peer").nic(nic), &turn)?;
    moving.up()?;
    moving.run(
        "ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up
         ip addr add 10.0.1.1/24 dev eth1; ip link set eth1 up",
    )?;
    peer.up()?;
    peer.run("ip addr add 10.0.0.9/24 dev eth0; ip addr add 10.0.1.9/24 dev eth0")?;
    peer.run("ip link set eth0 up; ping -q -c 1 10.0.0.1; ping -q -c 1 10.0.1.1")?;
    ensure!(place(&vswitch, MACS[0])? == "a0", "it is at a0");
    ensure!(place(&vswitch, MACS[1])? == "a1", "it is at a1");

    // Nobody sends anything: what moves the addresses are the announcements alone.
    let there = Guest::boot(machine("b", ["b0", "b1"]).incoming(&meeting), &turn)?;
    moving.migrate(there, &meeting)?;
    for (mac, port) in MACS.into_iter().zip(["b0", "b1"]) {
        until(&format!("{mac} at {port}"), || {
            Ok((place(&vswitch, mac)? == port).then_some(()))
        })?;
    }
    peer.run("talk tcp 10.0.0.1 7 200000 200000; talk tcp 10.0.1.1 7 200000 200000")?;

    // Back again, in the middle of a transfer each way: every byte of it is checked at its end.
    let meeting = vswitch.path("again");
    let there = Guest::boot(machine("c", ["a0", "a1"]).incoming(&meeting), &turn)?;
    let call = peer.start("talk tcp 10.0.0.1 7 6000000 6000000")?;
    let back = moving.start("talk tcp 10.0.0.9 7 6000000 6000000")?;
    moving.migrate(there, &meeting)?;
    moving.end(back)?;
    peer.end(call)?;
    for (mac, port) in MACS.into_iter().zip(["a0", "a1"]) {
        until(&format!("{mac} at {port}"), || {
            Ok((place(&vswitch, mac)? == port).then_some(()))
        })?;
    }
    for name in names {
        let port = vswitch.get(&format!("/v1/ports/{name}"))?;
        let broken = &port["stats"]["ring_broken"];
        ensure!(
            broken.as_object().is_none_or(|b| b.is_empty()),
            "{name}: {broken}"
        );
    }
    Ok(())
}
