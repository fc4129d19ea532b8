//! The harness itself, on DPDK's own back-end: when this fails, the fault is not vswitch's.

use anyhow::{Result, ensure};
use towpath_tests::guest::Guest;
use towpath_tests::testpmd::{Testpmd, Vdev};
use towpath_tests::vm::{Nic, Turn, Vm};

#[test]
fn guests_talk_through_another_back_end() -> Result<()> {
    let turn = Turn::take()?;
    let dir = tempfile::tempdir()?;
    let sockets = ["a", "b"].map(|name| dir.path().join(name));
    let ports = [0, 1].map(|index| Vdev::vhost(index, &sockets[index]));
    let mut switch = Testpmd::start("switch", &ports, "")?;
    switch.go("io", 0)?;
    let boot = |name: &str, index: usize| {
        let mac = format!("52:54:00:00:00:0{index}");
        Guest::boot(
            Vm::builder(name).nic(Nic::new(&sockets[index], &mac)),
            &turn,
        )
    };
    let (mut a, mut b) = (boot("a", 0)?, boot("b", 1)?);
    for (number, guest) in [(1, &mut a), (2, &mut b)] {
        guest.up()?;
        guest.run(&format!(
            "ip addr add 10.0.0.{number}/24 dev eth0
             ip link set eth0 up
             talk serve 7 >/tmp/served 2>&1 &"
        ))?;
    }
    a.run("ping -c 3 -i 0.2 10.0.0.2")?;
    let call = a.start("talk tcp 10.0.0.2 7 4000000 1000000")?;
    let back = b.run("talk udp 10.0.0.1 7 20 4000")?;
    println!("{:?} {back:?}", a.end(call)?);
    // That back-end drops what a queue has no room for, and the stream fills queues.
    let echoed = (0..=5).any(|lost| back == [format!("udp ok sent=20 lost={lost} doubled=0")]);
    ensure!(echoed, "{back:?}");
    Ok(())
}
