//! Either end of a port's socket goes away and comes back: the switch, and a machine.

use anyhow::{Result, ensure};
use towpath_tests::daemon::Vswitch;
use towpath_tests::guest::Guest;
use towpath_tests::vm::{Nic, Turn, Vm};

use crate::{linked, until};

#[test]
fn whoever_goes_away_is_found_again() -> Result<()> {
    let turn = Turn::take()?;
    // One machine listens, the other one calls.
    let mut vswitch = Vswitch::serve(
        tempfile::tempdir()?,
        &["p1,socket={dir}/p1,client", "p2,socket={dir}/p2"],
        &[],
    )?;
    let nic = |number: u8| {
        let socket = vswitch.path(&format!("p{number}"));
        Nic::new(socket, &format!("52:54:00:00:00:0{number}"))
    };
    let (listens, calls) = (nic(1).listens(), nic(2));
    let boot = |name: &str, nic: &Nic| Guest::boot(Vm::builder(name).nic(nic.clone()), &turn);
    let up = |guest: &mut Guest, number: u8| -> Result<()> {
        guest.up()?;
        guest.run(&format!(
            "ip link set eth0 up; ip addr add 10.0.0.{number}/24 dev eth0"
        ))?;
        Ok(())
    };
    let (mut one, mut two) = (boot("one", &listens)?, boot("two", &calls)?);
    up(&mut one, 1)?;
    up(&mut two, 2)?;
    // A link that was down needs a moment in the guest: one answer will do.
    let talk = |two: &mut Guest| {
        two.run("ping -q -c 10 -i 0.3 10.0.0.1; talk tcp 10.0.0.1 7 300000 300000")
    };
    talk(&mut two)?;

    // The switch: killed, and asked to stop.
    for killed in [true, false] {
        if killed {
            vswitch.daemon().kill()?;
        } else {
            vswitch.daemon().stop()?;
        }
        vswitch.start_again()?;
        linked(&vswitch, &["p1", "p2"])?;
        talk(&mut two)?;
    }

    // The machine that listens: another one takes its place at the same socket.
    one.vm().kill()?;
    until("the port without its machine", || {
        let port = vswitch.get("/v1/ports/p1")?;
        Ok((port["connected"] == false).then_some(()))
    })?;
    let mut one = boot("another", &listens)?;
    up(&mut one, 1)?;
    talk(&mut two)?;
    let connections = vswitch.get("/v1/ports/p1")?["stats"]["connections"].take();
    ensure!(
        connections.as_u64() >= Some(2),
        "{connections} connections of p1"
    );
    Ok(())
}
