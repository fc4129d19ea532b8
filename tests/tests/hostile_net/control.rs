//! H17: control queues that are given anything but commands.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use towpath_common::testing::net::frame::{BROADCAST, station};
use towpath_common::testing::net::{Frame, NetClient, NetOptions};
use towpath_common::testing::split::{NEXT, WRITE};
use towpath_common::testing::{Driver, Form, Segment, feature};

use crate::harness::{PATIENCE, Scene, VICTIM, desc, until};

/// The victim has two pairs, so this is the queue after them.
const QUEUE: u32 = 4;
const OK: u8 = 0;
const ERR: u8 = 1;

fn card(scene: &Scene) -> Result<NetClient> {
    let options = NetOptions {
        pairs: 2,
        control: Some(QUEUE),
        patience: PATIENCE,
        ..NetOptions::default()
    };
    let options = options.with(feature::NET_CTRL_VQ);
    Ok(NetClient::connect(&scene.socket("victim"), options)?)
}

fn works(scene: &Scene, client: &mut NetClient, number: u64) -> Result<()> {
    let frame = Frame::new(BROADCAST, station(VICTIM)).numbered(number, 200);
    client.send(&frame.bytes())?;
    let got = scene.seen(PATIENCE)?.context("a frame")?;
    ensure!(got.frame == frame.bytes(), "another frame");
    Ok(())
}

#[test]
fn h17_commands_cut_short_and_out_of_range() -> Result<()> {
    let scene = Scene::new()?;
    let mut client = card(&scene)?;
    ensure!(client.max_pairs()? == 2, "two pairs are configured");
    let control = client.control().context("a control queue")?;
    ensure!(control.use_pairs(2)? == OK, "two pairs");
    for pairs in [0, 3, 4, 0x8000, 0x8001, u16::MAX] {
        ensure!(control.use_pairs(pairs)? == ERR, "{pairs} pairs");
    }
    // Nothing at all, half a head, a head alone, half a number, a number and a half.
    let cut: [&[u8]; 6] = [
        &[],
        &[4],
        &[4, 0],
        &[4, 0, 1],
        &[4, 0, 1, 0, 0],
        &[4, 0, 1, 0, 0, 0],
    ];
    for bytes in cut {
        let answer = control.ask(bytes, 1, PATIENCE)?;
        let known = answer == Some(ERR) || (bytes.len() > 4 && answer == Some(OK));
        ensure!(known, "{bytes:02x?}: {answer:?}");
    }
    // Every class and command, with no data, with some, and with a page of it.
    for class in 0..=255 {
        for command in [0, 1, 2, 3, 255] {
            for len in [0, 1, 2, 8, 40, 4094] {
                let bytes = [&[class, command][..], &vec![0xff; len]].concat();
                let answer = control.ask(&bytes, 1, PATIENCE)?;
                ensure!(
                    matches!(answer, Some(OK | ERR)),
                    "class {class}, command {command}, {len} bytes: {answer:?}"
                );
            }
        }
    }
    // RSS and its tables are not offered (5.1.6.5.7): any table is refused.
    let rss = [&[4, 1][..], &[0xff; 60]].concat();
    ensure!(
        control.ask(&rss, 1, PATIENCE)? == Some(ERR),
        "RSS was taken"
    );
    ensure!(control.use_pairs(1)? == OK, "one pair");
    works(&scene, &mut client, 1)?;
    drop(client);
    scene.finish()
}

#[test]
fn h17_commands_of_any_length_and_with_any_room_for_an_answer() -> Result<()> {
    let scene = Scene::new()?;
    let mut client = card(&scene)?;
    let at = client.memory().alloc_pages(8192)?;
    let control = client.control().context("a control queue")?;
    // 200 buffers of one command.
    let len = 4097;
    let parts: Vec<_> = (0..200)
        .map(|_| Segment::readable(0, len))
        .chain([Segment::writable(at, 1)])
        .collect();
    let driver = control.driver();
    let token = driver.chain(&parts, Form::Indirect)?;
    driver.post(token);
    driver.publish()?;
    let mut done = Vec::new();
    while driver.reap(&mut done)? == 0 {
        ensure!(driver.wait(PATIENCE)?, "no answer to {len} bytes 200 times");
    }
    driver.free(token);
    let mut byte = [0xa5];
    client.memory().read(at, &mut byte)?;
    ensure!(byte == [ERR], "answered {byte:?}");
    let control = client.control().context("a control queue")?;
    ensure!(control.use_pairs(1)? == OK, "one pair");
    let control = client.control().context("a control queue")?;
    ensure!(
        control.ask(&[4, 0, 1, 0], 4096, PATIENCE)?.is_some(),
        "a page of room"
    );
    // A storm of them: others get on.
    for _ in 0..2000 {
        control.ask(&[4, 0, 0, 0], 1, PATIENCE)?;
    }
    scene.unaffected()?;
    works(&scene, &mut client, 2)?;
    drop(client);
    scene.finish()
}

#[test]
fn h17_a_control_ring_that_breaks_the_rules() -> Result<()> {
    let scene = Scene::new()?;
    // No room for an answer; room before the command; a loop; a wild address; a head that is none.
    let cases = [
        ("request", desc(0, 4, 0, 0), 0),
        ("readable_after_writable", desc(0, 4, NEXT | WRITE, 1), 0),
        ("loop", desc(0, 4, NEXT, 0), 0),
        ("bad_address", desc(u64::MAX, 4, 0, 0), 0),
        ("bad_head", desc(0, 4, 0, 0), 9999),
    ];
    for (reason, first, head) in cases {
        let before = scene
            .violations("victim")?
            .get(reason)
            .copied()
            .unwrap_or(0);
        let mut client = card(&scene)?;
        let driver = client.control().context("a control queue")?.driver();
        driver.poke_desc(0, first);
        driver.poke_desc(1, desc(0, 4, 0, 0));
        driver.poke_head(head);
        driver.publish()?;
        ensure!(driver.events().broken(PATIENCE)?, "not broken for {reason}");
        until(&format!("control ring broken for {reason}"), || {
            let ring = scene.ring(QUEUE.into())?;
            let count = scene
                .violations("victim")?
                .get(reason)
                .copied()
                .unwrap_or(0);
            Ok((ring["broken"] == reason && count == before + 1).then_some(()))
        })?;
        // Frames pass all the same.
        works(&scene, &mut client, 3)?;
        ensure!(scene.seen(Duration::ZERO)?.is_none(), "one too many");
    }
    scene.finish()
}
