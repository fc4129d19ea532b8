//! L1 to L8: frames that are right as far as virtio goes, and meant to do harm in the network.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use towpath_common::testing::feature;
use towpath_common::testing::net::frame::{BROADCAST, Mac, TPID, TPID_SERVICE, station};
use towpath_common::testing::net::{
    Frame, GSO_TCPV4, Header, NEEDS_CSUM, NetClient, NetOptions, Shape,
};

use crate::harness::{GUARDED, PATIENCE, Scene, VICTIM, WITNESS, until};
use crate::headers::segment;

/// Addresses learned from one port unless told otherwise.
const MAC_LIMIT: u64 = 64;

/// Sends many frames, as many at once as there are buffers, and waits until all were taken.
fn volley(client: &mut NetClient, frames: impl IntoIterator<Item = Vec<u8>>) -> Result<u64> {
    let mut sent = 0;
    for frame in frames {
        while !client.pair()?.queue(Header::default(), &frame)? {
            client.flush()?;
        }
        sent += 1;
    }
    client.flush()?;
    Ok(sent)
}

/// A numbered frame.
fn numbered(to: Mac, from: u32, number: u64) -> Frame {
    Frame::new(to, station(from)).numbered(number, 50)
}

/// What a client has not looked at yet.
fn drain(client: &mut NetClient) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    while let Some(got) = client.poll()? {
        frames.push(Frame::parse(&got.frame).context("a frame")?);
    }
    Ok(frames)
}

#[test]
fn l1_more_addresses_than_a_port_may_have() -> Result<()> {
    let scene = Scene::new()?;
    let mut guest = scene.client("victim")?;
    let mut guarded = scene.client("guarded")?;
    guarded.send(&numbered(BROADCAST, GUARDED, 0).bytes())?;
    guarded.flush()?;
    guest.send(&numbered(station(GUARDED), VICTIM, 0).bytes())?;
    guest.flush()?;
    let addresses = 20_000;
    let refused = u64::from(addresses) - (MAC_LIMIT - 1);
    scene.discarded("victim", &[("mac_limit", refused)], || {
        let frames = (0..addresses).map(|n| numbered(station(WITNESS), 0x10_0000 + n, 1).bytes());
        volley(&mut guest, frames)
    })?;
    let learned = scene.port("victim")?["learned"].take();
    ensure!(learned == MAC_LIMIT, "{learned} addresses learned");
    // Its own address is still its own, and others are known as well: nothing is flooded.
    drain(&mut guest)?;
    drain(&mut guarded)?;
    scene.forget()?;
    scene.say(&numbered(station(GUARDED), WITNESS, 5))?;
    let got = guarded.expect()?;
    ensure!(
        got.frame == numbered(station(GUARDED), WITNESS, 5).bytes(),
        "another frame"
    );
    scene.say(&numbered(station(VICTIM), WITNESS, 6))?;
    let got = guest.expect()?;
    ensure!(
        got.frame == numbered(station(VICTIM), WITNESS, 6).bytes(),
        "a frame to somebody else was flooded"
    );
    drop((guest, guarded));
    scene.finish()
}

#[test]
fn l1_more_addresses_than_the_table_has_room_for() -> Result<()> {
    let scene = Scene::new()?;
    let mut guarded = scene.client("guarded")?;
    guarded.send(&numbered(BROADCAST, GUARDED, 0).bytes())?;
    guarded.flush()?;
    let mut guest = scene.client("victim")?;
    guest.send(&numbered(station(GUARDED), VICTIM, 0).bytes())?;
    guest.flush()?;
    scene.say(&numbered(station(GUARDED), WITNESS, 0))?;
    // The trunk may have any number; the table has room for 4096.
    let mut trunk = scene.client("trunk")?;
    for vid in [1, 10] {
        let frames = (0..30_000).map(|n| {
            let frame = numbered(station(WITNESS), 0x20_0000 + n, 1);
            frame.vlan(vid).bytes()
        });
        volley(&mut trunk, frames)?;
    }
    let entries = scene.get("/v1/fdb")?;
    let capacity = scene.port("trunk")?["learned"]
        .as_u64()
        .context("a number")?;
    ensure!(
        capacity <= 4096,
        "{capacity} addresses of one port: {}",
        entries.to_string().len()
    );
    // Who needed no more than a few keeps them: their frames are not flooded.
    drain(&mut guest)?;
    drain(&mut guarded)?;
    drain(&mut trunk)?;
    scene.forget()?;
    scene.say(&numbered(station(GUARDED), WITNESS, 7))?;
    guarded.expect()?;
    let frame = numbered(station(WITNESS), GUARDED, 8);
    guarded.send(&frame.bytes())?;
    let got = scene.seen(PATIENCE)?.context("a frame")?;
    ensure!(got.frame == frame.bytes(), "another frame");
    ensure!(
        drain(&mut guest)?.is_empty(),
        "a known address was forgotten, and flooded"
    );
    ensure!(
        drain(&mut trunk)?.is_empty(),
        "a known address was forgotten, and flooded"
    );
    drop((guest, guarded, trunk));
    scene.finish()
}

#[test]
fn l2_sources_that_no_station_may_have() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    v.works()?;
    scene.forget()?;
    let bad: [Mac; 5] = [
        [0; 6],
        BROADCAST,
        [1, 0, 0x5e, 0, 0, 1],
        [1, 0x80, 0xc2, 0, 0, 0],
        [0x33, 0x33, 0, 0, 0, 1],
    ];
    for from in bad {
        let frame = Frame::new(station(WITNESS), from).numbered(1, 60).bytes();
        scene.discarded("victim", &[("bad_source", 1)], || v.send(&frame))?;
    }
    ensure!(scene.forget()? == 0, "one was forwarded");
    v.works()?;
    drop(v);
    scene.finish()
}

#[test]
fn l2_the_address_of_somebody_else() -> Result<()> {
    let scene = Scene::new()?;
    let mut guarded = scene.client("guarded")?;
    guarded.send(&numbered(BROADCAST, GUARDED, 0).bytes())?;
    guarded.flush()?;
    // A port with an address sends from no other.
    for from in [VICTIM, WITNESS, 0x99, 0] {
        scene.forget()?;
        let frame = numbered(station(WITNESS), from, 1).bytes();
        scene.discarded("guarded", &[("source_guard", 1)], || {
            guarded.send(&frame)?;
            Ok(guarded.flush()?)
        })?;
        ensure!(scene.forget()? == 0, "a spoofed frame was forwarded");
    }
    let mut v = scene.victim()?;
    drain(&mut guarded)?;
    // One that is not configured moves with its station, there and back.
    v.send(&numbered(station(GUARDED), WITNESS, 4).bytes())?;
    guarded.expect()?;
    scene.say(&numbered(station(GUARDED), WITNESS, 5))?;
    guarded.expect()?;
    let back = numbered(station(WITNESS), GUARDED, 6);
    guarded.send(&back.bytes())?;
    v.arrives(&back)?;
    drop((guarded, v));
    scene.finish()
}

/// A port's addresses are static entries in its VLANs: no other port that sends from one of them is
/// believed, and gets that station's frames.
#[test]
fn l2_an_address_that_is_configured_at_a_port_is_nowhere_else() -> Result<()> {
    let scene = Scene::new()?;
    let mut guarded = scene.client("guarded")?;
    guarded.send(&numbered(BROADCAST, GUARDED, 0).bytes())?;
    guarded.flush()?;
    scene.forget()?;
    let mut v = scene.victim()?;
    let stolen = numbered(station(WITNESS), GUARDED, 2).bytes();
    scene.discarded("victim", &[("source_guard", 1)], || v.send(&stolen))?;
    ensure!(scene.forget()? == 0, "a spoofed frame was forwarded");
    drain(&mut guarded)?;
    scene.say(&numbered(station(GUARDED), WITNESS, 3))?;
    let got = guarded.expect()?;
    ensure!(
        got.frame == numbered(station(GUARDED), WITNESS, 3).bytes(),
        "another frame"
    );
    drop((guarded, v));
    scene.finish()
}

#[test]
fn l3_bridge_protocols_and_what_looks_like_them() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    let mut trunk = scene.client("trunk")?;
    v.works()?;
    scene.forget()?;
    drain(&mut trunk)?;
    let group = |last: u8| [1, 0x80, 0xc2, 0, 0, last];
    // A configuration BPDU that claims to be the root, a topology change, RSTP, and none of these.
    let superior = [&[0x42, 0x42, 3, 0, 0, 0, 0, 0][..], &[0; 40]].concat();
    let change = vec![0x42, 0x42, 3, 0, 0, 0, 0x80];
    let bodies = [
        superior,
        change,
        vec![],
        vec![0x42],
        vec![0xff; 1400],
        vec![0x42; 3],
    ];
    for body in &bodies {
        for to in [group(0), [1, 0, 0x0c, 0xcc, 0xcc, 0xcd]] {
            let len = u16::try_from(body.len())?;
            let frame = Frame::new(to, station(VICTIM)).ethertype(len).payload(body);
            scene.discarded("victim", &[("bpdu_guard", 1)], || v.send(&frame.bytes()))?;
        }
    }
    // LACP, pause, 802.1X, LLDP and all others of the range, whole and cut short.
    for last in 1..=0x0f {
        for (kind, body) in [
            (0x8809, vec![1, 1, 1, 20]),
            (0x88cc, vec![2, 0xff, 4, 1]),
            (0x88cc, vec![]),
            (0x8808, vec![0, 1, 0xff, 0xff]),
        ] {
            let frame = Frame::new(group(last), station(VICTIM))
                .ethertype(kind)
                .payload(&body);
            scene.discarded("victim", &[("link_local", 1)], || v.send(&frame.bytes()))?;
        }
    }
    // In a VLAN, from a trunk.
    let tagged = Frame::new(group(0), station(0x88))
        .vlan(1)
        .payload(&[0x42; 40]);
    scene.discarded("trunk", &[("bpdu_guard", 1)], || {
        trunk.send(&tagged.bytes())?;
        Ok(trunk.flush()?)
    })?;
    // A storm of topology changes.
    let mut guarded = scene.client("guarded")?;
    let change = Frame::new(group(0), station(GUARDED))
        .ethertype(7)
        .payload(&bodies[1]);
    scene.discarded("guarded", &[("bpdu_guard", 5000)], || {
        volley(&mut guarded, std::iter::repeat_n(change.bytes(), 5000))
    })?;
    ensure!(
        scene.forget()? == 0,
        "a bridge protocol's frame was forwarded"
    );
    ensure!(
        drain(&mut trunk)?.is_empty(),
        "a bridge protocol's frame was forwarded"
    );
    // The next address is an ordinary group.
    let next = Frame::new([1, 0x80, 0xc2, 0, 0, 0x10], station(VICTIM)).numbered(1, 60);
    v.send(&next.bytes())?;
    v.arrives(&next)?;
    drop((v, trunk, guarded));
    scene.finish()
}

#[test]
#[expect(clippy::too_many_lines, reason = "one scene, told in its order")]
fn l4_tags_do_not_hop_between_vlans() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    let mut ten = scene.client("ten")?;
    let mut trunk = scene.client("trunk")?;
    let from = |port: u32| Frame::new(BROADCAST, station(port)).numbered(1, 60);
    v.works()?;
    drain(&mut trunk)?;
    scene.forget()?;
    let access = [
        ("tagged_on_access", from(VICTIM).vlan(10)),
        ("tagged_on_access", from(VICTIM).vlan(1)),
        ("tagged_on_access", from(VICTIM).vlan(1).vlan(10)),
        ("tagged_on_access", from(VICTIM).vlan(10).vlan(1)),
        ("bad_tag", from(VICTIM).tag(TPID, 0).vlan(10)),
        (
            "bad_tag",
            from(VICTIM).tag(TPID, 0xe000).tag(TPID_SERVICE, 10),
        ),
        ("bad_tag", from(VICTIM).tag(TPID_SERVICE, 10)),
        ("bad_tag", from(VICTIM).tag(TPID_SERVICE, 0)),
        ("bad_tag", from(VICTIM).tag(TPID_SERVICE, 1).vlan(10)),
        ("bad_tag", from(VICTIM).vlan(4095)),
        ("bad_tag", from(VICTIM).tag(TPID, 0xffff)),
    ];
    for (reason, frame) in access {
        let sent = scene.discarded("victim", &[(reason, 1)], || v.send(&frame.bytes()));
        sent.with_context(|| format!("tags {:04x?}", frame.tags))?;
    }
    let on_trunk = [
        ("untagged_on_trunk", from(8)),
        ("untagged_on_trunk", from(8).tag(TPID, 0)),
        ("vlan_not_allowed", from(8).vlan(2)),
        ("vlan_not_allowed", from(8).vlan(4094)),
        ("vlan_not_allowed", from(8).vlan(2).vlan(10)),
        ("bad_tag", from(8).vlan(4095)),
        ("bad_tag", from(8).tag(TPID_SERVICE, 10)),
        ("bad_tag", from(8).tag(TPID, 0).vlan(10)),
    ];
    for (reason, frame) in on_trunk {
        let sent = scene.discarded("trunk", &[(reason, 1)], || {
            trunk.send(&frame.bytes())?;
            Ok(trunk.flush()?)
        });
        sent.with_context(|| format!("tags {:04x?}", frame.tags))?;
    }
    ensure!(scene.forget()? == 0, "the witness heard of it");
    // A tag in a tag may cross a trunk; where the outer one is taken off it would be read as the
    // VLAN, so it goes nowhere.
    scene.discarded("ten", &[("nested_tag", 2)], || {
        for frame in [
            from(8).vlan(10).vlan(1),
            from(8).vlan(10).tag(TPID_SERVICE, 2),
        ] {
            trunk.send(&frame.bytes())?;
        }
        Ok(trunk.flush()?)
    })?;
    scene.discarded("witness", &[("nested_tag", 1)], || {
        trunk.send(&from(8).vlan(1).vlan(10).bytes())?;
        Ok(trunk.flush()?)
    })?;
    ensure!(scene.forget()? == 0, "the witness got a nested tag");
    ensure!(drain(&mut ten)?.is_empty(), "a frame hopped to VLAN 10");
    ensure!(
        drain(&mut trunk)?.is_empty(),
        "a frame came back to the trunk"
    );
    // A priority tag is no VLAN: the frame is the port's, and its priority is kept.
    v.send(&from(VICTIM).tag(TPID, 0xa000).bytes())?;
    v.arrives(&from(VICTIM))?;
    let got = Frame::parse(&trunk.expect()?.frame).context("a frame")?;
    ensure!(
        got == from(VICTIM).tag(TPID, 0xa001),
        "the trunk got {got:02x?}"
    );
    ensure!(drain(&mut ten)?.is_empty(), "a frame hopped to VLAN 10");
    drop((v, ten, trunk));
    scene.finish()
}

#[test]
fn l5_a_storm_of_frames_to_all() -> Result<()> {
    let scene = Scene::new()?;
    let storms: [(&str, Mac, u64); 3] = [
        ("broadcast_storm", BROADCAST, 1_000),
        ("multicast_storm", [1, 0, 0x5e, 1, 2, 3], 10_000),
        ("unknown_storm", station(0x0f0f), 10_000),
    ];
    let mut guarded = scene.client("guarded")?;
    for (reason, to, limit) in storms {
        let (begin, before) = (Instant::now(), scene.port("guarded")?);
        let count =
            |port: &serde_json::Value| port["stats"]["discards"][reason].as_u64().unwrap_or(0);
        let (mut sent, mut dropped) = (0, 0);
        let frame = numbered(to, GUARDED, 1).bytes();
        // Far above the limit, until it has struck for a while.
        while dropped < 1000 && sent < 1_000_000 {
            sent += volley(&mut guarded, std::iter::repeat_n(frame.clone(), 500))?;
            dropped = count(&scene.port("guarded")?) - count(&before);
            scene.forget()?;
        }
        let passed = sent - dropped;
        let allowed = limit + (begin.elapsed().as_secs() + 1) * limit;
        ensure!(
            dropped > 0,
            "{sent} frames to {to:02x?}, none dropped for {reason}"
        );
        ensure!(
            passed >= limit.min(sent) && passed <= allowed,
            "{passed} of {sent} passed"
        );
    }
    // What goes to one station is none of storm control's business.
    scene.say(&numbered(station(GUARDED), WITNESS, 0))?;
    let to_one = numbered(station(WITNESS), GUARDED, 9).bytes();
    scene.discarded("guarded", &[], || {
        volley(&mut guarded, std::iter::repeat_n(to_one, 50))
    })?;
    drop(guarded);
    scene.finish()
}

#[test]
fn l5_a_guest_that_bridges_two_ports() -> Result<()> {
    let scene = Scene::new()?;
    // To itself: nothing comes back on the port it came from.
    let mut first = scene.client("victim")?;
    first.send(&numbered(BROADCAST, VICTIM, 0).bytes())?;
    first.flush()?;
    scene.discarded("victim", &[("hairpin", 10)], || {
        let frame = numbered(station(VICTIM), VICTIM, 1).bytes();
        volley(&mut first, std::iter::repeat_n(frame, 10))
    })?;
    ensure!(
        drain(&mut first)?.is_empty(),
        "a frame came back to its sender"
    );
    // Two cards of one guest that passes everything on: a loop, for as long as it likes.
    let mut second = scene.client("trunk")?;
    scene.say(&numbered(BROADCAST, WITNESS, 2))?;
    let mut passed = 0;
    let deadline = Instant::now() + PATIENCE;
    while passed < 2000 && Instant::now() < deadline {
        if let Some(got) = first.receive(Duration::from_millis(1))? {
            let frame = Frame::parse(&got.frame).context("a frame")?;
            second.send(&frame.vlan(1).bytes())?;
            passed += 1;
        }
        if let Some(got) = second.receive(Duration::from_millis(1))? {
            let mut frame = Frame::parse(&got.frame).context("a frame")?;
            frame.tags.clear();
            first.send(&frame.bytes())?;
            passed += 1;
        }
        scene.forget()?;
    }
    ensure!(passed >= 2, "the loop was none");
    scene.unaffected()?;
    drop((first, second));
    scene.finish()
}

#[test]
fn l6_addresses_chosen_to_collide() -> Result<()> {
    let scene = Scene::new()?;
    let mut trunk = scene.client("trunk")?;
    let mut guarded = scene.client("guarded")?;
    guarded.send(&numbered(BROADCAST, GUARDED, 0).bytes())?;
    guarded.flush()?;
    scene.forget()?;
    // What common hashes fold together: multiples, one byte alone, swapped halves, equal sums.
    let shapes: [fn(u64) -> u64; 6] = [
        |n| n << 24,
        |n| n << 12,
        |n| n * 4096 + 4096,
        |n| (n << 24) ^ n,
        |n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0xffff_0000_0000,
        |n| (n & 0xff) << 32 | (0xff - (n & 0xff)) << 8 | n >> 8,
    ];
    for shape in shapes {
        let frames = (0..6000).map(|n| {
            let [_, _, _, b, c, d, e, f] = shape(n).to_be_bytes();
            let from = [0x02, b, c, d, e, f];
            Frame::new(station(GUARDED), from)
                .vlan(1)
                .numbered(n, 40)
                .bytes()
        });
        volley(&mut trunk, frames)?;
        drain(&mut guarded)?;
        scene.unaffected()?;
    }
    ensure!(
        scene.forget()? == 0,
        "a known address was forgotten, and flooded"
    );
    drop((trunk, guarded));
    scene.finish()
}

/// Sends one prepared frame again and again, as fast as it goes, until stopped.
fn flood(client: &mut NetClient, header: Header, frame: &[u8], stop: &AtomicBool) -> Result<u64> {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        while client.pair()?.queue(header, frame)? {
            sent += 1;
        }
        client.pair()?.publish()?;
        if client.pair()?.take_back()? == 0 {
            std::thread::yield_now();
        }
    }
    client.flush()?;
    Ok(sent)
}

#[test]
fn l7_a_guest_that_wants_all_of_the_worker() -> Result<()> {
    let scene = Scene::new()?;
    let small = numbered(BROADCAST, VICTIM, 1).bytes();
    let large = segment(65_000);
    let segmented = Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    // Small ones, flooded; and segments by the dozen, which the switch has to cut for the witness.
    for (header, frame) in [
        (Header::default(), small),
        (
            segmented,
            Frame {
                to: BROADCAST,
                ..large
            }
            .bytes(),
        ),
    ] {
        let options = NetOptions {
            shape: Shape {
                tx_buffer: 66 << 10,
                ..Shape::default()
            },
            patience: PATIENCE,
            ..NetOptions::default()
        };
        let options = options.with(feature::NET_OFFLOADS);
        let mut guest = NetClient::connect(&scene.socket("victim"), options)?;
        let (stop, reached) = (AtomicBool::new(false), AtomicU64::new(0));
        let sent = std::thread::scope(|threads| {
            let flooder = threads.spawn(|| flood(&mut guest, header, &frame, &stop));
            let begin = scene.rounds();
            let honest = until(
                "a hundred rounds of the honest pair beside the flood",
                || {
                    reached.store(scene.rounds() - begin, Ordering::Relaxed);
                    scene.forget()?;
                    Ok((scene.rounds() >= begin + 100).then_some(()))
                },
            );
            stop.store(true, Ordering::Relaxed);
            let sent = match flooder.join() {
                Ok(sent) => sent,
                Err(_) => bail!("the flooding guest panicked"),
            };
            honest?;
            sent
        })?;
        ensure!(sent > 100, "{sent} frames are no flood");
        drop(guest);
    }
    scene.finish()
}

#[test]
fn l8_more_groups_than_anybody_has_members_for() -> Result<()> {
    let scene = Scene::new()?;
    let mut guest = scene.client("victim")?;
    let mut ten = scene.client("ten")?;
    let mut trunk = scene.client("trunk")?;
    let groups = 20_000u32;
    let mut heard = 0;
    for start in (0..groups).step_by(100) {
        let reports = (start..start + 100).map(|group| {
            let [_, b, c, d] = group.to_be_bytes();
            let to = [1, 0, 0x5e, b & 0x7f, c, d];
            // An IGMPv2 membership report (RFC 2236), its checksum left wrong.
            let mut packet = vec![0x46, 0xc0, 0, 32, 0, 1, 0, 0, 1, 2, 0, 0, 10, 0, 0, 1];
            packet.extend([
                239,
                b & 0x7f,
                c,
                d,
                0x94,
                4,
                0,
                0,
                0x16,
                0,
                0,
                0,
                239,
                b & 0x7f,
                c,
                d,
            ]);
            Frame::new(to, station(VICTIM))
                .ethertype(0x0800)
                .payload(&packet)
                .bytes()
        });
        volley(&mut guest, reports)?;
        for frame in drain(&mut trunk)? {
            ensure!(
                frame.tags == [(TPID, 1)],
                "the trunk got tags {:04x?}",
                frame.tags
            );
            heard += 1;
        }
        scene.forget()?;
    }
    ensure!(heard > 0, "no report was forwarded");
    ensure!(
        drain(&mut ten)?.is_empty(),
        "VLAN 10 heard of groups in VLAN 1"
    );
    let learned = scene.port("victim")?["learned"].take();
    ensure!(learned == 1, "{learned} addresses learned");
    drop((guest, ten, trunk));
    scene.finish()
}
