//! H15: guests that do not take what is sent to them, or not in one piece.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use towpath_common::testing::net::frame::{BROADCAST, station};
use towpath_common::testing::net::{Frame, NetClient, NetOptions, Shape};
use towpath_common::testing::split::{NEXT, WRITE};
use towpath_common::testing::{Driver, Form, GuestMemory, Segment, feature};

use crate::harness::{PATIENCE, QUEUE, Scene, VICTIM, WITNESS, desc, until};

/// A numbered frame of the witness's to the victim.
fn to_victim(number: u64, len: usize) -> Frame {
    Frame::new(station(VICTIM), station(WITNESS)).numbered(number, len)
}

#[test]
fn h15_no_receive_buffers_at_all() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    v.transmits()?;
    v.withdraw()?;
    scene.discarded("victim", &[("receiver_full", 50)], || {
        (0..50).try_for_each(|number| scene.say(&to_victim(number, 100)))
    })?;
    // Others in its VLAN get what it does not: a flooded frame reaches the trunk all the same.
    let mut trunk = scene.client("trunk")?;
    let frame = Frame::new(BROADCAST, station(WITNESS)).numbered(77, 100);
    scene.discarded("victim", &[("receiver_full", 1)], || scene.say(&frame))?;
    let got = trunk.expect()?;
    ensure!(
        Frame::parse(&got.frame) == Some(frame.vlan(1)),
        "{got:02x?}"
    );
    drop(trunk);
    // With buffers again, frames come again.
    let gpa = v.memory.alloc_pages(2048)?;
    let token = v.rx.chain(&[Segment::writable(gpa, 2048)], Form::Direct)?;
    v.rx.post(token);
    v.rx.publish()?;
    scene.say(&to_victim(1000, 100))?;
    until("a frame received", || {
        Ok((v.rx.used_idx() == 1).then_some(()))
    })?;
    v.transmits()?;
    drop(v);
    scene.finish()
}

#[test]
fn h15_buffers_too_small_for_a_header() -> Result<()> {
    let scene = Scene::new()?;
    for len in [1, 11] {
        scene.breaks_receive("request", |v| {
            let all: Vec<_> = (0..QUEUE).map(|_| desc(v.data, len, WRITE, 0)).collect();
            let heads: Vec<u16> = (0..QUEUE).collect();
            v.offer_receive(&all, &heads)
        })?;
    }
    scene.finish()
}

#[test]
fn h15_a_thousand_buffers_of_a_few_bytes() -> Result<()> {
    let scene = Scene::new()?;
    // 1024 buffers of 12 bytes: room for 12 KiB, and far more buffers than a frame may take.
    let mut v = scene.victim_on(&GuestMemory::new(8 << 20)?)?;
    v.transmits()?;
    v.frontend.stop_queue(0)?;
    let features = v.frontend.features();
    v.rx = towpath_common::testing::SplitDriver::new(&v.memory, 1024, features)?;
    for _ in 0..1024 {
        let gpa = v.memory.alloc(16, 16)?;
        let token = v.rx.chain(&[Segment::writable(gpa, 12)], Form::Direct)?;
        v.rx.post(token);
    }
    v.rx.publish()?;
    v.frontend.start_queue(0, &v.memory, &v.rx.setup())?;
    scene.discarded("victim", &[("receiver_small", 5)], || {
        (0..5).try_for_each(|number| scene.say(&to_victim(number, 1400)))
    })?;
    ensure!(
        v.rx.used_idx() == 0,
        "buffers were used for a frame that does not fit"
    );
    // A small frame fits ten of them.
    scene.say(&to_victim(9, 94))?;
    until("a frame in ten buffers", || {
        Ok((v.rx.used_idx() == 10).then_some(()))
    })?;
    let mut bytes = Vec::new();
    for index in 0..10 {
        let (_, written) = v.rx.used_element(index);
        ensure!(written == 12, "buffer {index} says {written} bytes");
        bytes.push(written);
    }
    v.transmits()?;
    drop(v);
    scene.finish()
}

#[test]
fn h15_a_buffer_of_one_byte_descriptors() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    v.transmits()?;
    v.withdraw()?;
    // One buffer in 64 pieces of a byte: too small for a frame, and then one that is not.
    let all: Vec<_> = (0..QUEUE)
        .map(|i| {
            let more = if i + 1 < QUEUE { NEXT } else { 0 };
            desc(v.data + u64::from(i) * 2, 1, WRITE | more, i + 1)
        })
        .collect();
    v.offer_receive(&all, &[0])?;
    scene.discarded("victim", &[("receiver_full", 1)], || {
        scene.say(&to_victim(1, 100))
    })?;
    let frame = to_victim(2, 38);
    scene.say(&frame)?;
    until("a frame in pieces", || {
        Ok((v.rx.used_idx() == 1).then_some(()))
    })?;
    let mut bytes = [0; 128];
    v.memory.read(v.data, &mut bytes)?;
    let bytes: Vec<u8> = bytes.iter().copied().step_by(2).skip(12).take(52).collect();
    ensure!(bytes == frame.bytes(), "{bytes:02x?}");
    drop(v);
    scene.finish()
}

#[test]
fn h15_without_mergeable_buffers_a_frame_fits_one_or_none() -> Result<()> {
    let scene = Scene::new()?;
    let options = NetOptions {
        shape: Shape {
            rx_buffer: 256,
            rx_slots: 64,
            ..Shape::default()
        },
        patience: PATIENCE,
        ..NetOptions::default()
    }
    .without(feature::NET_MRG_RXBUF);
    let mut v = NetClient::connect(&scene.socket("victim"), options)?;
    v.send(
        &Frame::new(BROADCAST, station(VICTIM))
            .numbered(0, 40)
            .bytes(),
    )?;
    v.flush()?;
    scene.discarded("victim", &[("receiver_small", 3)], || {
        scene.say(&to_victim(1, 1000))?;
        scene.say(&to_victim(2, 231))?;
        scene.say(&to_victim(3, 1400))?;
        scene.say(&to_victim(4, 230))
    })?;
    let got = v.expect()?;
    ensure!(got.frame == to_victim(4, 230).bytes(), "another frame came");
    drop(v);
    scene.finish()
}

#[test]
fn h15_a_receiver_that_stops_in_mid_burst() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.client("victim")?;
    v.send(
        &Frame::new(BROADCAST, station(VICTIM))
            .numbered(0, 40)
            .bytes(),
    )?;
    v.flush()?;
    let pair = v.pair()?;
    pair.hold(true)?;
    // 128 buffers, none of which goes back: the first 128 frames arrive, in order, the rest do not.
    scene.discarded("victim", &[("receiver_full", 72)], || {
        (0..200).try_for_each(|number| scene.say(&to_victim(number, 100)))
    })?;
    for number in 0..128 {
        let got = pair.receive(PATIENCE)?.context("a frame that was kept")?;
        ensure!(
            got.frame == to_victim(number, 100).bytes(),
            "not frame {number}"
        );
    }
    ensure!(pair.receive(Duration::ZERO)?.is_none(), "one too many");
    // Stopped and started again in the middle of frames: nothing comes twice, nothing out of order.
    pair.hold(false)?;
    let memory = v.memory().clone();
    let mut last = 0;
    for round in 1..30u64 {
        scene.say(&to_victim(round, 1400))?;
        v.frontend().stop_queue(0)?;
        while let Some(got) = v.receive(Duration::ZERO)? {
            let number = Frame::parse(&got.frame).and_then(|f| f.number());
            let number = number.context("a frame of the witness's")?;
            ensure!(number > last, "{number} after {last}");
            last = number;
        }
        let (frontend, pairs) = v.parts();
        frontend.start_queue(0, &memory, &pairs[0].rx().setup())?;
    }
    drop(v);
    scene.finish()
}
