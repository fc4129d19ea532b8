//! H11: a guest that rewrites rings and frames while they are looked at.
//!
//! Frames: the guarded port's guest may send from one address only, and is in VLAN 1. It flips its
//! frame between one that may pass and one that may not (another source, a tag, a group address)
//! while it is sent. Whatever arrives anywhere has the one source and no tag; what is decided on is
//! what is emitted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use towpath_common::testing::net::frame::{BROADCAST, TPID, station};
use towpath_common::testing::net::{Frame, HEADER, Header, NetClient, NetOptions};
use towpath_common::testing::split::{INDIRECT, NEXT, WRITE};
use towpath_common::testing::{Driver, Form, GuestMemory, Segment};

use crate::harness::{GUARDED, MIB, PATIENCE, Scene, Victim, desc};

/// Frames of one run.
const FRAMES: usize = 3000;

/// Overwrites places in guest memory with one of two values each, in turns, until stopped.
fn flip(memory: &GuestMemory, words: &[(u64, [Vec<u8>; 2])], stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        for turn in 0..2 {
            for (gpa, values) in words {
                memory.write(*gpa, &values[turn])?;
            }
        }
    }
    Ok(())
}

/// Runs `work` while the words flip.
fn racing<T>(
    memory: &GuestMemory,
    words: &[(u64, [Vec<u8>; 2])],
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let flipper = threads.spawn(|| flip(memory, words, &stop));
        let result = work();
        stop.store(true, Ordering::Relaxed);
        match flipper.join() {
            Ok(flipped) => flipped.and(result),
            Err(_) => bail!("the flipping thread panicked"),
        }
    })
}

/// Looks at everything that arrived; how many frames.
fn inspect(port: &str, client: &mut NetClient, tag: Option<u16>) -> Result<usize> {
    let mut frames = 0;
    while let Some(got) = client.poll()? {
        let frame = Frame::parse(&got.frame).context("a frame")?;
        ensure!(
            frame.from == station(GUARDED),
            "{port} got a frame from {:02x?}",
            frame.from
        );
        let tags: Vec<_> = tag.map(|vid| (TPID, vid)).into_iter().collect();
        ensure!(frame.tags == tags, "{port} got tags {:04x?}", frame.tags);
        frames += 1;
    }
    Ok(frames)
}

#[test]
#[expect(clippy::too_many_lines, reason = "one scene, told in its order")]
fn h11_no_frame_gets_through_with_a_source_or_a_vlan_that_was_not_checked() -> Result<()> {
    let scene = Scene::new()?;
    let good = Frame::new(BROADCAST, station(GUARDED))
        .numbered(1, 200)
        .bytes();
    let spoilt = [
        Frame::new(BROADCAST, station(0x99)).numbered(1, 200),
        Frame::new(BROADCAST, [0xff; 6]).numbered(1, 200),
        Frame::new(BROADCAST, station(GUARDED))
            .vlan(10)
            .numbered(1, 200),
        Frame::new(BROADCAST, station(GUARDED))
            .tag(TPID, 0)
            .vlan(10)
            .numbered(1, 200),
        Frame::new(station(0x77), station(0x99))
            .vlan(2)
            .numbered(1, 200),
    ];
    // One descriptor, the header alone, and a cut in the middle of each thing that is checked.
    let cuts: [&[u32]; 5] = [
        &[],
        &[12],
        &[12 + 3],
        &[12 + 6, 12 + 9],
        &[12 + 13, 12 + 15],
    ];
    let mut arrived = 0;
    for (bad, cut) in spoilt.iter().zip(cuts) {
        let options = NetOptions {
            patience: PATIENCE,
            ..NetOptions::default()
        };
        let mut guest = NetClient::connect(&scene.socket("guarded"), options)?;
        let mut ears = [
            ("trunk", scene.client("trunk")?, Some(1)),
            ("ten", scene.client("ten")?, None),
            ("victim", scene.client("victim")?, None),
        ];
        let (memory, bad) = (guest.memory().clone(), bad.bytes());
        let at = memory.alloc_pages(4096)?;
        let len = u32::try_from(HEADER + good.len())?;
        memory.write(at, &[&Header::default().bytes()[..], &good].concat())?;
        let mut edges = vec![0];
        edges.extend(cut);
        edges.push(len);
        let parts: Vec<_> = edges
            .windows(2)
            .map(|w| Segment::readable(at + u64::from(w[0]), w[1] - w[0]))
            .collect();
        // Addresses and tag at once, and each word of them alone.
        let whole = [good[..20].to_vec(), bad[..20].to_vec()];
        let words = [(at + HEADER as u64, whole)];
        let tx = guest.pair()?.tx();
        let token = tx.chain(&parts, Form::Direct)?;
        racing(&memory, &words, || {
            let mut done = Vec::new();
            for _ in 0..FRAMES {
                tx.post(token);
                tx.publish()?;
                let deadline = Instant::now() + PATIENCE;
                while tx.reap(&mut done)? == 0 {
                    ensure!(Instant::now() < deadline, "no frame is taken any more");
                }
                for (port, client, tag) in &mut ears {
                    let count = inspect(port, client, *tag)?;
                    ensure!(*port != "ten" || count == 0, "a frame hopped to VLAN 10");
                    arrived += count;
                }
                let mut from = Vec::new();
                while let Some(got) = scene.seen(Duration::ZERO)? {
                    from.extend(Frame::parse(&got.frame));
                }
                ensure!(
                    from.iter()
                        .all(|f| f.from == station(GUARDED) && f.tags.is_empty()),
                    "the witness got {from:02x?}"
                );
            }
            Ok(())
        })?;
        drop(ears);
        drop(guest);
        scene.settle_but_witness()?;
    }
    ensure!(arrived > 0, "nothing arrived: the race was not run");
    scene.finish()
}

#[test]
fn h11_descriptors_change_under_the_switch() -> Result<()> {
    let scene = Scene::new()?;
    let tail = |len: u32, flags: u16, next: u16| {
        let word = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        word.to_le_bytes().to_vec()
    };
    for round in 0..12 {
        let mut v = scene.victim()?;
        let frame = v.frame(BROADCAST).bytes();
        let len = v.write(Header::default(), &frame)?;
        let table = v.ring.places()[0];
        let flips = [
            (
                table,
                [v.data, MIB + (1 << 40)].map(|a| a.to_le_bytes().to_vec()),
            ),
            (table + 8, [tail(60, NEXT, 1), tail(u32::MAX, NEXT, 1)]),
            (table + 8, [tail(60, NEXT, 1), tail(60, NEXT, 999)]),
            (table + 8, [tail(60, NEXT, 1), tail(60, NEXT | WRITE, 1)]),
            (table + 8, [tail(60, NEXT, 1), tail(60, INDIRECT, 0)]),
            (table + 24, [tail(len - 60, 0, 0), tail(len - 60, NEXT, 0)]),
        ];
        let chain = [desc(v.data, 60, NEXT, 1), desc(v.data + 60, len - 60, 0, 0)];
        v.offer(&chain, &[])?;
        let memory = v.memory.clone();
        let one = [flips[round % flips.len()].clone()];
        racing(&memory, &one, || until_broken(&mut v))?;
        scene.forget()?;
        drop(v);
        scene.unaffected()?;
    }
    scene.finish()
}

/// Sends the chain at descriptor 0 again and again, until the ring breaks or it is enough.
fn until_broken(v: &mut Victim) -> Result<()> {
    for _ in 0..FRAMES {
        let before = v.ring.used_idx();
        v.ring.poke_head(0);
        v.ring.publish()?;
        let deadline = Instant::now() + PATIENCE;
        while v.ring.used_idx() == before {
            if v.ring.events().broken(Duration::ZERO)? {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "neither taken nor broken");
        }
    }
    Ok(())
}
