//! Two guests with every mix of offloads between them, large frames, and several queues.
//!
//! Each guest has four interfaces: with all offloads, without segmentation, without any, and one
//! with two pairs of queues for payloads of 9216 bytes. So one boot serves the whole matrix, and
//! what differs is what the driver negotiated, not what it was told later.

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use towpath_tests::daemon::Vswitch;
use towpath_tests::guest::Guest;
use towpath_tests::vm::{NO_OFFLOADS, NO_SEGMENTATION, Nic, Turn, Vm};

use crate::stats;

/// Properties of `eth0` to `eth2`.
const KINDS: [&str; 3] = ["csum=on", NO_SEGMENTATION, NO_OFFLOADS];
/// The interface for large frames.
const JUMBO: usize = 3;

fn boot(vswitch: &Vswitch, guest: &str, turn: &Turn) -> Result<Guest> {
    let mut builder = Vm::builder(guest).cpus(2);
    for (index, kind) in KINDS.iter().enumerate() {
        let socket = vswitch.path(&format!("{guest}{index}"));
        let mac = format!("52:54:00:00:0{index}:0{guest}");
        builder = builder.nic(Nic::new(socket, &mac).properties(kind));
    }
    let socket = vswitch.path(&format!("{guest}{JUMBO}"));
    let mac = format!("52:54:00:00:03:0{guest}");
    let jumbo = Nic::new(socket, &mac).queues(2).properties("host_mtu=9216");
    Guest::boot(builder.nic(jumbo), turn)
}

/// Interface X of guest `a` has 10.X.Y.1 and fdXY::1, interface Y of guest `b` 10.X.Y.2 and
/// fdXY::2, for each pair.
fn addresses(guest: &mut Guest, mine: &str, number: u8) -> Result<()> {
    guest.up()?;
    guest.run(&format!(
        "for x in 0 1 2; do for y in 0 1 2; do \
         ip addr add 10.$x.$y.{number}/24 dev eth${mine}; done; done; \
         ip addr add 10.3.3.{number}/24 dev eth3; for x in 0 1 2 3; do ip link set eth$x up; done"
    ))?;
    for (x, y) in (0..KINDS.len()).flat_map(|x| (0..KINDS.len()).map(move |y| (x, y))) {
        let index = if mine == "x" { x } else { y };
        guest.six(&format!("eth{index}"), &format!("fd{x}{y}::{number}/64"))?;
    }
    Ok(())
}

#[test]
fn guests_talk_whatever_offloads_each_has() -> Result<()> {
    let turn = Turn::take()?;
    let ports: Vec<String> = ["a", "b"]
        .iter()
        .flat_map(|guest| {
            (0..=JUMBO).map(move |index| {
                let more = if index == JUMBO {
                    ",queues=2,mtu=9216"
                } else {
                    ""
                };
                format!("{guest}{index},socket={{dir}}/{guest}{index}{more}")
            })
        })
        .collect();
    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
    let vswitch = Vswitch::serve(tempfile::tempdir()?, &ports, &[])?;
    let (mut a, mut b) = (boot(&vswitch, "a", &turn)?, boot(&vswitch, "b", &turn)?);
    addresses(&mut a, "x", 1)?;
    addresses(&mut b, "y", 2)?;

    let offered = "for n in 0 1 2; do ethtool -k eth$n | grep -E \
                   '^(tx-checksumming|tcp-segmentation-offload):' | sed 's/.*: //;s/ .*//'; done";
    ensure!(
        a.run(offered)? == ["on", "on", "on", "off", "off", "off"],
        "the guest sees other offloads than its devices have"
    );
    each_pair(&mut a)?;
    // The same paths, with the driver of either end told to leave its offers unused.
    for guest in [&mut a, &mut b] {
        guest.run("ethtool -K eth0 tx off")?;
    }
    a.run("talk tcp 10.0.0.2 7 500000 500000")?;
    a.run("ethtool -K eth0 tx on tso on")?;
    a.run("talk tcp 10.0.0.2 7 500000 500000")?;

    each_pair_by_six(&mut a)?;

    large_frames_stay_whole(&mut a, &mut b)?;
    both_queues_are_used(&vswitch, &mut a)
}

fn each_pair(a: &mut Guest) -> Result<()> {
    let printed = a.run(
        "for x in 0 1 2; do for y in 0 1 2; do ping -q -c 2 -i 0.1 10.$x.$y.2 >/dev/null; \
         echo pair $x $y; talk tcp 10.$x.$y.2 7 400000 300000; talk udp 10.$x.$y.2 7 3 4000; \
         done; done",
    )?;
    let good = printed
        .iter()
        .filter(|line| line.starts_with("tcp ok"))
        .count();
    ensure!(good == 9, "{printed:?}");
    let echoed = printed
        .iter()
        .filter(|line| *line == "udp ok sent=3 lost=0 doubled=0");
    ensure!(echoed.count() == 9, "{printed:?}");
    Ok(())
}

/// The same over IPv6, whose segments are cut by other rules.
fn each_pair_by_six(a: &mut Guest) -> Result<()> {
    let printed = a.run(
        "for x in 0 1 2; do for y in 0 1 2; do echo pair $x $y; \
         talk tcp fd$x$y::2 7 400000 300000; talk udp fd$x$y::2 7 3 4000; done; done",
    )?;
    for ok in ["tcp ok", "udp ok sent=3 lost=0 doubled=0"] {
        let good = printed.iter().filter(|line| line.starts_with(ok)).count();
        ensure!(good == 9, "{ok}: {printed:?}");
    }
    Ok(())
}

fn large_frames_stay_whole(a: &mut Guest, b: &mut Guest) -> Result<()> {
    ensure!(
        a.number("cat /sys/class/net/eth3/mtu")? == 9216,
        "the driver did not take the MTU of its device"
    );
    a.run("ping -q -c 1 10.3.3.2")?; // addresses are known from here on
    // Packets of IPv4, before they are put together: what the interfaces of both guests flood for
    // IPv6 and ARP meanwhile is not counted.
    let received = "grep '^Ip: [0-9]' /proc/net/snmp | cut -d ' ' -f 4";
    let before = b.number(received)?;
    a.run("ping -q -c 10 -i 0.1 -s 9188 10.3.3.2")?;
    let heard = b.number(received)? - before;
    // In packets of 1500 it would be 70.
    ensure!(heard == 10, "{heard} packets for 10 large ones");
    Ok(())
}

/// Frames leave on the queue of the processor they are sent by, and arrive on one by their flow.
fn both_queues_are_used(vswitch: &Vswitch, a: &mut Guest) -> Result<()> {
    let mut counted = Value::Null;
    // Each turn has two flows of its own: that all of them meet in one queue is not to be expected.
    for _ in 0..30 {
        a.run(
            "for cpu in 0 1; do taskset -c $cpu talk tcp 10.3.3.2 7 200000 100000; \
             taskset -c $cpu talk udp 10.3.3.2 7 20 100; done",
        )?;
        counted = stats(vswitch, "a3")?;
        let used =
            |queue: usize, way: &str| counted["queues"][queue][way]["packets"].as_u64() >= Some(20);
        if (0..2).all(|queue| used(queue, "rx") && used(queue, "tx")) {
            return Ok(());
        }
    }
    bail!("a queue of guest a is not used: {counted:#}")
}
