//! A guest on VLAN 10, a guest on VLAN 20, and a guest with both, tagged: each hears its own.

use anyhow::{Result, ensure};
use towpath_tests::daemon::Vswitch;
use towpath_tests::guest::Guest;
use towpath_tests::vm::{Nic, Turn, Vm};

use crate::{discards, linked, until};

#[test]
fn a_vlan_is_heard_by_its_members_alone() -> Result<()> {
    let turn = Turn::take()?;
    let vswitch = Vswitch::serve(
        tempfile::tempdir()?,
        &[
            "ten,socket={dir}/ten,access=10",
            "twenty,socket={dir}/twenty,access=20",
            "trunk,socket={dir}/trunk,trunk=10:20",
        ],
        &[],
    )?;
    let boot = |name: &str, mac: &str| {
        let nic = Nic::new(vswitch.path(name), mac);
        Guest::boot(Vm::builder(name).nic(nic), &turn)
    };
    let mut ten = boot("ten", "52:54:00:00:00:10")?;
    let mut twenty = boot("twenty", "52:54:00:00:00:20")?;
    let mut trunk = boot("trunk", "52:54:00:00:00:30")?;
    for (vlan, guest) in [(10, &mut ten), (20, &mut twenty)] {
        guest.up()?;
        guest.run(&format!(
            "ip link set eth0 up; ip addr add 10.0.{vlan}.1/24 dev eth0"
        ))?;
    }
    trunk.up()?;
    trunk.run(
        "ip link set eth0 up; for vlan in 10 20; do \
         ip link add link eth0 name eth0.$vlan type vlan id $vlan; \
         ip link set eth0.$vlan up; ip addr add 10.0.$vlan.2/24 dev eth0.$vlan; done",
    )?;
    linked(&vswitch, &["ten", "twenty", "trunk"])?;

    // Each VLAN in turn, while the guest of the other one listens.
    for (vlan, other) in [(10, &mut twenty), (20, &mut ten)] {
        let before = other.heard("eth0")?;
        trunk.run(&format!(
            "ping -q -c 3 -i 0.1 10.0.{vlan}.1; talk tcp 10.0.{vlan}.1 7 1000000 1000000; \
             ping -q -c 3 -i 0.1 -b 10.0.{vlan}.255 || true"
        ))?;
        let heard = other.heard("eth0")? - before;
        ensure!(
            heard == 0,
            "{heard} frames of VLAN {vlan} were heard elsewhere"
        );
    }
    ten.run("ping -q -c 1 -W 1 10.0.20.1 && exit 1 || true")?;
    hopping_ends_nowhere(&vswitch, &mut ten, [&mut twenty, &mut trunk])
}

/// Frames with a tag, with two, and of VLAN 20 by every other trick, from the guest on VLAN 10.
fn hopping_ends_nowhere(
    vswitch: &Vswitch,
    ten: &mut Guest,
    [twenty, trunk]: [&mut Guest; 2],
) -> Result<()> {
    const HEAD: &str = "ffffffffffff525400000010";
    const TAIL: &str = "88b5000000000000000000000000000000000000000000000000\
                        0000000000000000000000000000000000000000";
    let before = (twenty.heard("eth0")?, trunk.heard("eth0.20")?);
    let dropped = discards(vswitch, "ten", "tagged_on_access")?;
    for tags in ["81000014", "8100000a81000014", "8100000a"] {
        ten.run(&format!("talk frame eth0 {HEAD}{tags}{TAIL} 5"))?;
    }
    until("15 tagged frames on an access port", || {
        let now = discards(vswitch, "ten", "tagged_on_access")? - dropped;
        ensure!(now <= 15, "{now} frames were dropped");
        Ok((now == 15).then_some(()))
    })?;
    // A frame that may pass comes after them all, and is heard.
    ten.run("ping -q -c 1 10.0.10.2")?;
    let after = (twenty.heard("eth0")?, trunk.heard("eth0.20")?);
    ensure!(
        before == after,
        "heard on VLAN 20: {before:?}, then {after:?}"
    );
    Ok(())
}
