//! DPDK's virtio-user in every shape it comes in, on vswitch as server and as client.
//!
//! One testpmd has all the front-ends, two to a VLAN, so that a shape that fails does not hide
//! behind another. A round is a burst into rings that can take it, so that each frame must arrive:
//! what one counted as sent, its partner counts as received, and vswitch counts the same. A burst
//! of one buffer a frame goes through single descriptors, one of several buffers through indirect
//! tables.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, ensure};
use towpath_tests::daemon::Vswitch;
use towpath_tests::testpmd::{Counts, Testpmd, Vdev};

use crate::{discards, packets, stats, until};

/// Bursts of 32 a round; half of what a ring takes.
const BURSTS: u32 = 8;
const RING: &str = "queue_size=512";
/// Enough to go around a ring several times.
const ROUNDS: usize = 12;
/// Lets testpmd send frames of several buffers (`RTE_ETH_TX_OFFLOAD_MULTI_SEGS`).
const MULTI_SEGS: &str = "--tx-offloads=0x8000";

/// A pair of front-ends.
struct Shape {
    devargs: String,
    client: bool,
}

fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for client in [false, true] {
        for (mrg, in_order) in [(1, 1), (1, 0), (0, 1), (0, 0)] {
            let mut devargs = format!("mrg_rxbuf={mrg},in_order={in_order},{RING}");
            if client {
                devargs += ",server=1";
            }
            shapes.push(Shape { devargs, client });
        }
    }
    shapes
}

fn mac(port: usize) -> String {
    format!("52:54:00:00:01:{port:02x}")
}

#[test]
fn virtio_user_of_every_shape_gets_each_frame_once() -> Result<()> {
    let shapes = shapes();
    let dir = tempfile::tempdir()?;
    let ports: Vec<String> = (0..2 * shapes.len())
        .map(|port| {
            let client = if shapes[port / 2].client {
                ",client"
            } else {
                ""
            };
            format!(
                "p{port},socket={{dir}}/p{port}{client},access={}",
                10 + port / 2
            )
        })
        .collect();
    let words: Vec<&str> = ports.iter().map(String::as_str).collect();
    let vswitch = Vswitch::serve(dir, &words, &[])?;
    let devices: Vec<Vdev> = (0..ports.len())
        .map(|port| {
            Vdev::virtio_user(port, &vswitch.path(&format!("p{port}")), &mac(port))
                .with(&shapes[port / 2].devargs)
        })
        .collect();
    let mut arguments = MULTI_SEGS.to_owned();
    for port in 0..ports.len() {
        write!(arguments, " --eth-peer={port},{}", mac(port ^ 1))?;
    }
    let mut testpmd = Testpmd::start("shapes", &devices, &arguments)?;
    for sizes in ["64", "60,300,900", "1514"] {
        testpmd.tell(&format!("set txpkts {sizes}"))?;
        let before = testpmd.counts()?;
        for _ in 0..ROUNDS {
            round(&mut testpmd, &shapes)?;
        }
        // testpmd sends less where several descriptors a frame fill its ring.
        let sent = sum(&testpmd.counts()?) - sum(&before);
        let most = ROUNDS as u64 * u64::from(BURSTS) * 32 * ports.len() as u64;
        ensure!(
            sent <= most && sent >= most / 2,
            "{sent} frames of {sizes} bytes were sent, of {most}"
        );
    }
    let counts = testpmd.counts()?;
    for (port, count) in counts.iter().enumerate() {
        let name = format!("p{port}");
        let (rx, tx) = until("vswitch's counters", || {
            let stats = stats(&vswitch, &name)?;
            let (rx, tx) = (packets(&stats, "rx"), packets(&stats, "tx"));
            Ok((rx >= count.sent && tx >= count.received).then_some((rx, tx)))
        })?;
        ensure!(
            (rx, tx) == (count.sent, count.received),
            "port {port} ({}) says {count:?}, vswitch {rx} from it and {tx} to it",
            shapes[port / 2].devargs
        );
    }
    testpmd.quit()
}

/// Every port sends a burst; each frame arrives at its partner.
fn round(testpmd: &mut Testpmd, shapes: &[Shape]) -> Result<()> {
    testpmd.go("rxonly", BURSTS)?;
    let mut counts = Vec::new();
    let arrived = until("each frame at its partner", || {
        counts = testpmd.counts()?;
        Ok(missing(&counts).is_none().then_some(()))
    });
    if let Some(port) = missing(&counts) {
        let partner = counts[port ^ 1];
        arrived.map_err(|late| {
            let shape = &shapes[port / 2].devargs;
            late.context(format!(
                "port {port} ({shape}): {partner:?} → {:?}",
                counts[port]
            ))
        })?;
    }
    testpmd.stop()
}

/// The first port that has not received what its partner sent.
fn missing(counts: &[Counts]) -> Option<usize> {
    (0..counts.len()).find(|&port| counts[port].received != counts[port ^ 1].sent)
}

fn sum(counts: &[Counts]) -> u64 {
    counts.iter().map(|count| count.sent).sum()
}

#[test]
fn a_flood_is_delivered_or_counted_as_lost() -> Result<()> {
    let vswitch = Vswitch::serve(
        tempfile::tempdir()?,
        &["p0,socket={dir}/p0", "p1,socket={dir}/p1"],
        &[],
    )?;
    let start = |port: usize, name: &str, socket: &Path| {
        let device = Vdev::virtio_user(0, socket, &mac(port)).with(RING);
        Testpmd::start(name, &[device], &format!("--eth-peer=0,{}", mac(port ^ 1)))
    };
    let mut receiver = start(1, "receiver", &vswitch.path("p1"))?;
    let mut sender = start(0, "sender", &vswitch.path("p0"))?;
    // The receiver's address is learned first: floods of unknown addresses are for another test.
    receiver.go("rxonly", 1)?;
    until("the receiver's address", || {
        Ok((packets(&stats(&vswitch, "p1")?, "rx") >= 32).then_some(()))
    })?;
    sender.go("txonly", 0)?;
    until("200000 frames", || {
        Ok((sender.counts()?[0].sent >= 200_000).then_some(()))
    })?;
    sender.stop()?;
    let sent = sender.counts()?[0].sent;
    until("delivered and lost frames to be those sent", || {
        let received = receiver.counts()?[0].received;
        let lost = discards(&vswitch, "p1", "receiver_full")?;
        ensure!(
            received + lost <= sent,
            "{sent} sent, {received} received, {lost} lost"
        );
        Ok((received + lost == sent).then_some(()))
    })?;
    receiver.stop()?;
    sender.quit()?;
    receiver.quit()
}

#[test]
fn a_packed_ring_is_not_offered() -> Result<()> {
    let vswitch = Vswitch::serve(
        tempfile::tempdir()?,
        &["p0,socket={dir}/p0", "p1,socket={dir}/p1"],
        &[],
    )?;
    let devices = [0, 1].map(|port| {
        Vdev::virtio_user(port, &vswitch.path(&format!("p{port}")), &mac(port)).with("packed_vq=1")
    });
    // virtio-user falls back to what is offered, and works.
    let arguments = format!("--eth-peer=0,{} --eth-peer=1,{}", mac(1), mac(0));
    let mut testpmd = Testpmd::start("packed", &devices, &arguments)?;
    testpmd.go("rxonly", 2)?;
    until("64 frames each way", || {
        let counts = testpmd.counts()?;
        Ok(counts
            .iter()
            .all(|c| c.sent == 64 && c.received == 64)
            .then_some(()))
    })?;
    let port = vswitch.get("/v1/ports/p0")?;
    let features = port["session"]["virtio_features"].to_string();
    ensure!(!features.contains("PACKED"), "{features}");
    testpmd.stop()?;
    testpmd.quit()
}
