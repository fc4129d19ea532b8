//! A guest dies by SIGKILL while another floods it: the rest goes on, and nothing is left behind.

use anyhow::{Result, ensure};
use towpath_tests::daemon::Vswitch;
use towpath_tests::guest::Guest;
use towpath_tests::vm::{Nic, Turn, Vm};

use crate::{linked, packets, stats, until};

/// Anonymous memory vswitch may keep, in KiB: allocator slack.
const GROWTH: u64 = 8 << 10;

#[test]
fn a_guest_killed_under_a_flood_hurts_nobody() -> Result<()> {
    let turn = Turn::take()?;
    let mut vswitch = Vswitch::serve(
        tempfile::tempdir()?,
        &[
            "p1,socket={dir}/p1",
            "p2,socket={dir}/p2",
            "p3,socket={dir}/p3",
        ],
        &[],
    )?;
    let boot = |number: u8| {
        let socket = vswitch.path(&format!("p{number}"));
        let nic = Nic::new(socket, &format!("52:54:00:00:00:0{number}"));
        Guest::boot(Vm::builder(&format!("guest{number}")).nic(nic), &turn)
    };
    let up = |guest: &mut Guest, number: u8| -> Result<()> {
        guest.up()?;
        guest.run(&format!(
            "ip link set eth0 up; ip addr add 10.0.0.{number}/24 dev eth0"
        ))?;
        Ok(())
    };
    let (mut flooder, mut victim, mut other) = (boot(1)?, boot(2)?, boot(3)?);
    up(&mut flooder, 1)?;
    up(&mut other, 3)?;
    up(&mut victim, 2)?;
    linked(&vswitch, &["p1", "p2", "p3"])?;
    flooder.run("ping -q -c 1 10.0.0.2; ping -q -c 1 10.0.0.3")?;
    let (fds, kib) = {
        let process = vswitch.daemon().process();
        (process.open_fds()?, process.anonymous_kib()?)
    };

    // Its address stays known to the flooder's kernel: the flood does not end with its target.
    flooder.run(
        "arp -s 10.0.0.2 52:54:00:00:00:02; \
         (talk flood 10.0.0.2 9 1000 >/dev/null 2>&1 &)",
    )?;
    until("a flood at the victim", || {
        Ok((packets(&stats(&vswitch, "p2")?, "tx") > 2000).then_some(()))
    })?;
    victim.vm().kill()?;
    until("vswitch to notice", || {
        let port = vswitch.get("/v1/ports/p2")?;
        Ok((port["connected"] == false).then_some(()))
    })?;

    let before = packets(&stats(&vswitch, "p1")?, "rx");
    flooder.run("talk tcp 10.0.0.3 7 1000000 1000000")?;
    other.run("ping -q -c 3 -i 0.1 10.0.0.1; talk tcp 10.0.0.1 7 1000000 1000000")?;
    let flooded = packets(&stats(&vswitch, "p1")?, "rx") - before;
    ensure!(flooded > 2000, "the flood ended: {flooded} frames");

    let process = vswitch.daemon().process();
    until("fewer open files than with the victim", || {
        Ok((process.open_fds()? < fds).then_some(()))
    })?;
    let now = process.anonymous_kib()?;
    ensure!(now <= kib + GROWTH, "{kib} KiB of memory became {now}");
    Ok(())
}
