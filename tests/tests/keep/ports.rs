//! Front-ends of others on a switch that is killed: DPDK's virtio-user under a flood, and virtual
//! machines that talk TCP to each other.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use towpath_tests::daemon::Vswitch;
use towpath_tests::guest::Guest;
use towpath_tests::testpmd::{Testpmd, Vdev};
use towpath_tests::vm::{Nic, Turn, Vm};

use crate::harness::{Random, child, kills, resumed, until};

/// Bytes of a TCP stream, each way: some kills come in each.
const STREAM: u64 = 15_000_000;

/// Packets of a stream from one kill to the next. The API is away while the daemon is. With
/// segmentation offload, a packet is up to 64 KiB.
const STRETCH: u64 = 40;

/// Frames counted at port `name`: from its guest, or to it.
fn packets(vswitch: &Vswitch, name: &str, which: &str) -> Result<u64> {
    let port = vswitch.get(&format!("/v1/ports/{name}"))?;
    let queues = port["stats"]["queues"].as_array().context("no queues")?;
    Ok(queues
        .iter()
        .filter_map(|queue| queue[which]["packets"].as_u64())
        .sum())
}

/// The longest wait of each stream that a guest has printed the end of, in its milliseconds.
fn waits(printed: &[String]) -> Vec<u64> {
    let ends = printed.iter().filter(|line| line.starts_with("tcp ok"));
    ends.filter_map(|line| line.rsplit_once("stall=")?.1.parse().ok())
        .collect()
}

/// What kills are compared with: streams, one after the other, of as many packets.
fn streams_without_kills(
    guest: &mut Guest,
    vswitch: &Vswitch,
    stream: &str,
    enough: u64,
) -> Result<()> {
    let began = Instant::now();
    let end = packets(vswitch, "p1", "rx")? + enough;
    while packets(vswitch, "p1", "rx")? < end {
        guest.run(stream)?;
    }
    let waits = waits(&guest.vm().printed());
    println!(
        "no kill in {} streams of {STREAM} bytes each way, {:.0} s; the longest wait for 64 KiB in \
         the guest {} ms",
        waits.len(),
        began.elapsed().as_secs_f32(),
        waits.iter().max().context("no stream ended")?
    );
    Ok(())
}

/// Nobody has connected to the port since its first session began.
fn never_left(vswitch: &Vswitch, name: &str) -> Result<()> {
    let shown = resumed(vswitch, &format!("/v1/ports/{name}"), || Ok(()))?;
    ensure!(shown["stats"]["connections"] == 1, "{name}: {shown}");
    Ok(())
}

/// virtio-user does not connect again by itself: what arrives at the end came on the first
/// connection.
#[test]
fn testpmd_sends_on_while_its_vswitch_is_killed() -> Result<()> {
    let mut vswitch = Vswitch::serve(
        tempfile::tempdir()?,
        &["p0,socket={dir}/p0", "p1,socket={dir}/p1"],
        &["--keep"],
    )?;
    let keeper = vswitch.daemon().process().child().id();
    let mac = |port: usize| format!("52:54:00:00:02:{port:02x}");
    let start = |port: usize, name: &str, socket: &Path| {
        let device = Vdev::virtio_user(0, socket, &mac(port)).with("queue_size=512");
        Testpmd::start(name, &[device], &format!("--eth-peer=0,{}", mac(port ^ 1)))
    };
    let mut receiver = start(1, "kept-receiver", &vswitch.path("p1"))?;
    let mut sender = start(0, "kept-sender", &vswitch.path("p0"))?;
    receiver.go("rxonly", 1)?;
    until("the receiver's address", || {
        Ok((packets(&vswitch, "p1", "rx")? >= 32).then_some(()))
    })?;
    sender.go("txonly", 0)?;
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut before = 0;
    for kill in 0..kills(20) {
        // Some kills come while the daemon takes up its sessions.
        if !kill.is_multiple_of(4) {
            before = until("frames after a kill", || {
                let now = receiver.counts()?[0].received;
                Ok((now > before + 1000).then_some(now))
            })?;
        }
        std::thread::sleep(std::time::Duration::from_millis(random.below(20)));
        let pid = until("a daemon", || Ok(child(keeper)))?;
        // It may have been killed just now, and not be gone yet.
        let _ = kill_process(pid, Signal::KILL);
    }
    until("frames after the last kill", || {
        let now = receiver.counts()?[0].received;
        Ok((now > before + 10_000).then_some(()))
    })?;
    sender.stop()?;
    never_left(&vswitch, "p0")?;
    never_left(&vswitch, "p1")?;
    // Nothing was doubled, and the rings are whole: a burst that fits arrives as it is.
    let (sent, received) = (sender.counts()?[0].sent, receiver.counts()?[0].received);
    println!("testpmd: {sent} frames sent, {received} received");
    ensure!(received <= sent, "{sent} frames became {received}");
    receiver.stop()?;
    let before = sender.counts()?[0].received;
    sender.go("rxonly", 0)?;
    receiver.go("rxonly", 4)?;
    until("a burst of 128 frames the other way", || {
        let now = sender.counts()?[0].received - before;
        ensure!(now <= 128, "128 frames became {now}");
        Ok((now == 128).then_some(()))
    })?;
    sender.quit()?;
    receiver.quit()
}

#[test]
fn guests_talk_on_while_their_vswitch_is_killed() -> Result<()> {
    let turn = Turn::take()?;
    let mut vswitch = Vswitch::serve(
        tempfile::tempdir()?,
        &["p1,socket={dir}/p1", "p2,socket={dir}/p2"],
        &["--keep"],
    )?;
    let keeper = vswitch.daemon().process().child().id();
    let boot = |number: u8| {
        let socket = vswitch.path(&format!("p{number}"));
        let nic = Nic::new(socket, &format!("52:54:00:00:00:0{number}"));
        Guest::boot(Vm::builder(&format!("kept{number}")).nic(nic), &turn)
    };
    let (mut one, mut two) = (boot(1)?, boot(2)?);
    for (number, guest) in [(1, &mut one), (2, &mut two)] {
        guest.up()?;
        guest.run(&format!(
            "ip link set eth0 up; ip addr add 10.0.0.{number}/24 dev eth0"
        ))?;
    }
    one.run("ping -q -c 3 -i 0.2 10.0.0.2")?;
    let changes = |guest: &mut Guest| guest.number("cat /sys/class/net/eth0/carrier_changes");
    let before = [changes(&mut one)?, changes(&mut two)?];
    let times = kills(8).min(50);
    let stream = format!("talk tcp 10.0.0.2 7 {STREAM} {STREAM}");
    let enough = u64::try_from(times)? * STRETCH;
    streams_without_kills(&mut one, &vswitch, &stream, enough)?;
    let quiet = waits(&one.vm().printed()).len();
    let began = Instant::now();
    let mut from = packets(&vswitch, "p1", "rx")?;
    let mut over = quiet;
    let mut call = Some(one.start(&stream)?);
    for kill in 0..times {
        from = until("the stream to run", || {
            if waits(&one.vm().printed()).len() > over {
                over += 1;
                let ended = call.take().context("no stream runs")?;
                one.end(ended)?;
                call = Some(one.start(&stream)?);
            }
            let now = packets(&vswitch, "p1", "rx").unwrap_or(0);
            Ok((now > from + STRETCH).then_some(now))
        })?;
        let pid = child(keeper).context("no daemon runs")?;
        // Every fourth is a planned restart.
        let signal = if kill % 4 == 3 {
            Signal::TERM
        } else {
            Signal::KILL
        };
        kill_process(pid, signal)?;
    }
    one.end(call.context("no stream runs")?)?;
    let waits = waits(&one.vm().printed()).split_off(quiet);
    println!(
        "{times} kills in {} streams of {STREAM} bytes each way, {:.0} s; the longest wait for \
         64 KiB in the guest {} ms",
        waits.len(),
        began.elapsed().as_secs_f32(),
        waits.iter().max().context("no stream ended")?
    );
    let after = [changes(&mut one)?, changes(&mut two)?];
    ensure!(before == after, "links went down: {before:?}, {after:?}");
    never_left(&vswitch, "p1")?;
    never_left(&vswitch, "p2")
}
