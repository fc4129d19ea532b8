//! A switch whose uplink cannot be opened: guests talk on across restarts, and the uplink comes
//! back by itself. Only a switch that follows nobody refuses to start.

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use towpath_common::testing::net::{NetClient, NetOptions};
use towpath_tests::daemon::Vswitch;
use towpath_tests::netns::Netns;

use crate::harness::{child, resumed, until};

/// To the other guest, which is known by then.
fn talks(from: &mut NetClient, to: &mut NetClient, number: u8) -> Result<()> {
    let mut frame = vec![0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5];
    frame.resize(64, number);
    from.send(&frame)?;
    loop {
        let received = to.expect()?.frame;
        // The host says things of its own on an interface that is up.
        if received[12..14] == [0x88, 0xb5] {
            ensure!(received == frame, "another frame came");
            return Ok(());
        }
    }
}

/// A switch with two guests' ports and the uplink tap0, in a host of its own.
struct Bed {
    host: Netns,
    vswitch: Vswitch,
    keeper: u32,
    guests: [NetClient; 2],
    number: u8,
}

impl Bed {
    fn new() -> Result<Bed> {
        let host = Netns::create("absent")?;
        let ports = ["a,socket={dir}/a", "b,socket={dir}/b"];
        let options = ["--keep", "--uplink", "tap0"];
        let mut vswitch = Vswitch::serve_in(&host, tempfile::tempdir()?, &ports, &options)?;
        let keeper = vswitch.daemon().process().child().id();
        let connect = |port| NetClient::connect(&vswitch.path(port), NetOptions::default());
        let guests = [connect("a")?, connect("b")?];
        Ok(Bed {
            host,
            vswitch,
            keeper,
            guests,
            number: 0,
        })
    }

    /// Ends the daemon; the guests talk on once it is followed by another one.
    fn survives(&mut self, signal: Signal) -> Result<()> {
        let before = child(self.keeper).context("no daemon")?;
        if signal == Signal::USR2 {
            self.vswitch.daemon().process().signal(signal)?;
        } else {
            kill_process(before, signal)?;
        }
        until("a successor", || {
            let anew = child(self.keeper).is_some_and(|now| now != before);
            Ok((anew && self.uplink().is_ok()).then_some(()))
        })?;
        for port in ["a", "b"] {
            resumed(&self.vswitch, &format!("/v1/ports/{port}"), || Ok(()))?;
        }
        self.talk()
    }

    fn talk(&mut self) -> Result<()> {
        self.number += 1;
        let [a, b] = &mut self.guests;
        talks(a, b, self.number)
    }

    fn uplink(&self) -> Result<Value> {
        self.vswitch.get("/v1/ports/tap0")
    }

    /// Wait until it is up, or down.
    fn link(&self, up: bool) -> Result<Value> {
        until("another state of the uplink", || {
            let shown = self.uplink().ok();
            Ok(shown.filter(|shown| shown["link"] == up && shown["connected"] == up))
        })
    }
}

#[test]
fn an_uplink_that_cannot_be_opened_at_a_restart_holds_up_no_port() -> Result<()> {
    let mut bed = Bed::new()?;
    bed.talk()?;
    bed.link(true)?;
    // Somebody else has the name now, and it is no TAP interface.
    bed.host
        .run("ip link del tap0; ip link add tap0 type veth peer name other")?;
    bed.link(false)?;
    for signal in [Signal::KILL, Signal::KILL, Signal::USR2] {
        bed.survives(signal)?;
        let shown = bed.link(false)?;
        let why = shown["last_error"].as_str().unwrap_or_default();
        ensure!(
            why.contains("tap0: exists, and is no TAP interface") && why.contains("tried again"),
            "{signal:?}: {shown}"
        );
    }
    let said = bed.vswitch.said();
    ensure!(said.contains("the uplink is down until"), "{said}");
    let listed = bed.vswitch.client(&["port", "show"])?;
    let line = listed.lines().find(|line| line.starts_with("tap0"));
    ensure!(line.is_some_and(|l| l.contains("down")), "{listed}");

    // What is about others is done, and what is about it waits for it.
    let nowhere = bed.vswitch.client(&["port", "add", "c,socket=/nowhere/c"]);
    ensure!(nowhere.is_err(), "a port is nowhere");
    let socket = format!("c,socket={}", bed.vswitch.path("c").display());
    let said = bed.vswitch.client(&["port", "add", &socket])?;
    ensure!(said.contains("tap0 is down still"), "{said}");
    let entry = ["fdb", "add", "52:54:00:00:00:99", "--port", "tap0"];
    bed.vswitch.client(&entry)?;
    bed.vswitch.client(&["port", "set", "tap0,mtu=1400"])?;
    bed.guests[0].send(&[0x52, 0x54, 0, 0, 0, 0x99, 0x52, 0x54, 0, 0, 0, 1, 8, 0].repeat(5))?;
    until("a frame for the uplink to be dropped", || {
        let shown = bed.uplink()?;
        Ok((shown["stats"]["discards"]["port_down"].as_u64() >= Some(1)).then_some(()))
    })?;

    bed.host.run("ip link del tap0")?;
    bed.link(true)?;
    let shown = bed.host.run("ip link show tap0")?;
    ensure!(shown.contains("mtu 1400"), "{shown}");
    let said = bed.vswitch.said();
    ensure!(said.contains("the uplink is up again"), "{said}");
    let sent = |bed: &Bed| {
        let shown = bed.uplink()?;
        Ok::<_, anyhow::Error>(shown["stats"]["queues"][0]["tx"]["packets"].as_u64())
    };
    let before = sent(&bed)?;
    bed.guests[0].send(&[0x52, 0x54, 0, 0, 0, 0x99, 0x52, 0x54, 0, 0, 0, 1, 8, 0].repeat(5))?;
    until("a frame to the host", || {
        Ok((sent(&bed)? > before).then_some(()))
    })?;
    // It is kept like any other.
    bed.survives(Signal::KILL)?;
    bed.link(true)?;
    for guest in &mut bed.guests {
        let closed = guest
            .frontend()
            .raw()
            .closes_within(std::time::Duration::ZERO)?;
        ensure!(!closed, "a connection was closed");
    }
    bed.vswitch.daemon().stop()
}

#[test]
fn one_that_is_deleted_while_it_is_served_is_opened_once_somebody_makes_it_again() -> Result<()> {
    let mut bed = Bed::new()?;
    bed.talk()?;
    bed.host.run("ip link del tap0")?;
    bed.link(false)?;
    // Whoever makes it does not find its name taken, however long that takes.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    bed.host.run("ip tuntap add tap0 mode tap vnet_hdr")?;
    bed.link(true)?;
    bed.talk()?;
    bed.vswitch.daemon().stop()
}

#[test]
fn a_switch_that_follows_nobody_refuses_an_uplink_that_cannot_be_opened() -> Result<()> {
    let host = Netns::create("refused")?;
    host.run("ip link add tap0 type veth peer name other")?;
    let started = Vswitch::serve_in(
        &host,
        tempfile::tempdir()?,
        &["a,socket={dir}/a"],
        &["--uplink", "tap0"],
    );
    let why = format!("{:#}", started.err().context("it started")?);
    ensure!(
        why.contains("tap0: exists, and is no TAP interface"),
        "{why}"
    );
    Ok(())
}
