//! A TAP uplink into a namespace where a Linux bridge and a second host stand behind it.
//!
//! ```text
//! guest eth0 (VLAN 1)  ─┐                      ┌──────────── host ────────────┐
//! guest eth1 (VLAN 10) ─┴─ vswitch ── tap0 ── br0 ── near ══ far (another namespace)
//! ```
//!
//! The uplink carries VLAN 1 untagged and the others tagged. The host may know nothing of VLANs (no
//! 802.1Q devices), so tagged frames are sent and looked at as they stand, with a packet socket
//! and tcpdump; its bridge passes them on like any frame.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use towpath_tests::cargo;
use towpath_tests::daemon::Vswitch;
use towpath_tests::guest::Guest;
use towpath_tests::lines::Lines;
use towpath_tests::netns::Netns;
use towpath_tests::paths;
use towpath_tests::process::Process;
use towpath_tests::vm::{Nic, Turn, Vm};

use crate::{PATIENCE, until};

/// An EtherType for experiments (IEEE 802, local experimental 1), and a payload.
const TAIL: &str = "88b5746f77706174682074657374206672616d652c206f6e6c7920612074657374\
                    000000000000000000000000000000000000000000000000";

#[test]
fn an_uplink_carries_one_vlan_untagged_and_others_tagged() -> Result<()> {
    let turn = Turn::take()?;
    let (host, other) = (Netns::create("host")?, Netns::create("other")?);
    let vswitch = Vswitch::serve_in(
        &host,
        tempfile::tempdir()?,
        &["one,socket={dir}/one", "ten,socket={dir}/ten,access=10"],
        &["--uplink", "tap0"],
    )?;
    let mut guest = Guest::boot(
        Vm::builder("uplink")
            .nic(Nic::new(vswitch.path("one"), "52:54:00:00:00:01"))
            .nic(Nic::new(vswitch.path("ten"), "52:54:00:00:00:10")),
        &turn,
    )?;
    host.run(&format!(
        "ip link add near type veth peer name far netns {}
         ip link add br0 type bridge
         ip link set tap0 master br0
         ip link set near master br0
         for name in tap0 near br0; do ip link set $name up; done",
        other.name()
    ))?;
    other.run(
        "ip link set far up; ip addr add 10.0.0.2/24 dev far
         ip -6 addr add fd00::2/64 dev far nodad",
    )?;
    let talk = cargo::program("towpath-tests", "talk")?;
    let talk_path = talk.display();
    let mut server = other.command(&talk)?;
    server.args(["serve", "7"]).stdout(Stdio::piped());
    let mut server = Process::start(&mut server)?;
    let said = Lines::follow(server.child().stdout.take().context("piped")?, None);
    guest.up()?;
    guest.run("for n in 0 1; do ip link set eth$n up; done; ip addr add 10.0.0.1/24 dev eth0")?;

    // Untagged: two kernels talk, each calling the other, with all offloads, with none at the host.
    let serving = said.wait(PATIENCE, |lines| (!lines.is_empty()).then_some(()));
    ensure!(serving.is_ok(), "the other host does not serve");
    guest.run("ping -q -c 3 -i 0.1 10.0.0.2; talk tcp 10.0.0.2 7 2000000 2000000")?;
    other.run(&format!("{talk_path} tcp 10.0.0.1 7 2000000 2000000"))?;
    // By IPv6 as well, and datagrams that the kernel leaves to the switch to cut.
    guest.six("eth0", "fd00::1/64")?;
    guest.run("talk tcp fd00::2 7 1000000 1000000; talk uso 10.0.0.2 7 20 20000 1000")?;
    for address in ["10.0.0.1", "fd00::1"] {
        other.run(&format!("{talk_path} uso {address} 7 20 20000 1000"))?;
    }
    other.run("ethtool -K far tx off tso off gso off gro off")?;
    guest.run("talk tcp 10.0.0.2 7 500000 500000; talk udp 10.0.0.2 7 5 4000")?;

    tagged_out(&other, &mut guest)?;
    tagged_in(&other, &mut guest, &talk_path.to_string())
}

#[test]
fn an_interface_that_is_deleted_is_shown_and_opened_again_by_a_reload() -> Result<()> {
    let host = Netns::create("gone")?;
    let vswitch = Vswitch::serve_in(
        &host,
        tempfile::tempdir()?,
        &["p0,socket={dir}/p0"],
        &["--uplink", "tap0"],
    )?;
    let link = || Ok::<_, anyhow::Error>(vswitch.get("/v1/ports/tap0")?["link"] == true);
    ensure!(link()?, "the interface is there");
    host.run("ip link del tap0")?;
    until("the uplink to be down", || Ok((!link()?).then_some(())))?;
    let shown = vswitch.client(&["port", "show", "tap0"])?;
    ensure!(
        shown.contains("connected   no, link down") && shown.contains("last error"),
        "{shown}"
    );
    let said = vswitch.client(&["reload"])?;
    ensure!(
        said.contains("tap0 had failed and was opened again"),
        "{said}"
    );
    ensure!(link()?, "down after the reload");
    host.run("ip link show tap0")?;
    let said = vswitch.client(&["reload"])?;
    ensure!(said.trim() == "nothing changes", "{said}");

    // And by hand: away, and back.
    vswitch.client(&["port", "remove", "tap0"])?;
    ensure!(host.run("ip link show tap0").is_err(), "it is still there");
    vswitch.client(&["uplink", "add", "tap0,trunk=10"])?;
    vswitch.client(&["port", "set", "tap0,mtu=9000"])?;
    let shown = host.run("ip link show tap0")?;
    ensure!(shown.contains("mtu 9000"), "{shown}");
    Ok(())
}

/// What the guest says on VLAN 10 arrives at the other host with that tag, once.
fn tagged_out(other: &Netns, guest: &mut Guest) -> Result<()> {
    let mut tcpdump = other.command(&paths::program("tcpdump")?)?;
    tcpdump
        .args([
            "-i",
            "far",
            "-e",
            "-n",
            "-l",
            "-Q",
            "in",
            "ether proto 0x88b5 or vlan",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut tcpdump = Process::start(&mut tcpdump)?;
    let seen = Lines::follow(tcpdump.child().stdout.take().context("piped")?, None);
    let said = Lines::follow(tcpdump.child().stderr.take().context("piped")?, None);
    let listening = said.wait(PATIENCE, |lines| {
        lines
            .iter()
            .any(|line| line.starts_with("listening on"))
            .then_some(())
    });
    ensure!(listening.is_ok(), "tcpdump: {}", said.tail(9));
    for (nic, mac) in [("eth1", "525400000010"), ("eth0", "525400000001")] {
        guest.run(&format!("talk frame {nic} ffffffffffff{mac}{TAIL}"))?;
    }
    // The untagged one comes last.
    let lines = seen.wait(PATIENCE, |lines| {
        let last = lines
            .iter()
            .any(|line| line.contains("52:54:00:00:00:01 >"));
        last.then(|| lines.to_vec())
    });
    let lines = lines.map_err(|_| anyhow::anyhow!("tcpdump saw only:\n{}", seen.tail(9)))?;
    let [first, second] = &lines
        .iter()
        .filter(|l| l.contains(" > "))
        .collect::<Vec<_>>()[..]
    else {
        anyhow::bail!("two frames were sent and these seen: {lines:#?}");
    };
    ensure!(
        first.contains("52:54:00:00:00:10 >") && first.contains("vlan 10"),
        "the frame of VLAN 10 is {first}"
    );
    ensure!(!second.contains("vlan"), "the frame of VLAN 1 is {second}");
    Ok(())
}

/// What the other host says with a tag arrives on that VLAN without it, and nowhere else.
fn tagged_in(other: &Netns, guest: &mut Guest, talk: &str) -> Result<()> {
    const HEAD: &str = "ffffffffffff525400000099";
    let mut heard = || -> Result<[u64; 2]> { Ok([guest.heard("eth0")?, guest.heard("eth1")?]) };
    let before = heard()?;
    other.run(&format!(
        "{talk} frame far {HEAD}8100000a{TAIL} 5; {talk} frame far {HEAD}81000014{TAIL} 3"
    ))?;
    let after = until("5 frames on VLAN 10", || {
        let now = heard()?;
        Ok((now[1] >= before[1] + 5).then_some(now))
    })?;
    // The hosts look for each other now and then (ARP): one frame or two more, where a leak would
    // be three or five.
    ensure!(
        after[1] == before[1] + 5 && after[0] < before[0] + 3,
        "eth0 and eth1 had heard {before:?}, then {after:?}"
    );
    // Untagged is VLAN 1, as a tag that names no VLAN is.
    other.run(&format!("{talk} frame far {HEAD}{TAIL} 2"))?;
    until("2 frames on VLAN 1", || {
        let now = heard()?;
        ensure!(now[1] == after[1], "VLAN 10 heard what was not its own");
        Ok((now[0] >= after[0] + 2).then_some(()))
    })
}
