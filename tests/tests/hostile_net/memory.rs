//! Front-ends that pull memory away from under rings and frames, and frames at its edges.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail, ensure};
use towpath_common::testing::memory::{PAGE, Sealing};
use towpath_common::testing::net::frame::{BROADCAST, station};
use towpath_common::testing::net::{Frame, Header};
use towpath_common::testing::split::{INDIRECT, WRITE};
use towpath_common::testing::{Driver, Form, GuestMemory, GuestRegion, Segment};

use crate::harness::{MIB, PATIENCE, Scene, VICTIM, WITNESS, desc, until};

#[test]
fn h08_frames_across_regions_that_adjoin_and_across_holes() -> Result<()> {
    let scene = Scene::new()?;
    // Two regions without a gap, then a hole.
    let places = [(0, MIB), (MIB, MIB), (4 * MIB, MIB)];
    let memory = GuestMemory::with_regions(&places)?;
    let mut v = scene.victim_on(&memory)?;
    // Sent from the edge, at every place of the edge in header and frame.
    for before in [1, 11, 12, 13, 18, 26, 60, 120] {
        let frame = v.frame(station(WITNESS));
        let bytes = [&Header::default().bytes()[..], &frame.bytes()].concat();
        memory.write(MIB - before, &bytes)?;
        let len = u32::try_from(bytes.len())?;
        v.post(&[Segment::readable(MIB - before, len)], Form::Direct)?;
        v.arrives(&frame)?;
        // And by an indirect table that lies across it.
        let parts = [
            desc(MIB - before, 40, 1, 1),
            desc(MIB - before + 40, len - 40, 0, 0),
        ];
        let table = [parts[0].bytes(), parts[1].bytes()].concat();
        let (edge, at) = (MIB - before, v.data + 512);
        memory.write(at, &table)?;
        let used = v.ring.used_idx();
        v.offer(&[desc(at, 32, INDIRECT, 0)], &[0])?;
        until("a frame taken", || {
            Ok((v.ring.used_idx() != used).then_some(()))
        })?;
        v.arrives(&frame)?;
        ensure!(edge < MIB, "the edge is inside the frame");
        v.frontend.stop_queue(1)?;
        v.ring = towpath_common::testing::SplitDriver::new(&memory, 64, v.frontend.features())?;
        v.frontend.start_queue(1, &memory, &v.ring.setup())?;
    }
    // Received across it.
    v.withdraw()?;
    for (index, before) in (0..).zip([1, 11, 12, 26, 100]) {
        v.rx.poke_desc(0, desc(MIB - before, 2048, WRITE, 0));
        v.rx.poke_head(0);
        v.rx.publish()?;
        let frame = Frame::new(BROADCAST, station(WITNESS)).numbered(before, 300);
        scene.say(&frame)?;
        until("a frame received", || {
            Ok((v.rx.used_idx() == index + 1).then_some(()))
        })?;
        let mut bytes = vec![0; 12 + 314];
        memory.read(MIB - before, &mut bytes)?;
        ensure!(bytes[12..] == frame.bytes(), "another frame at -{before}");
    }
    drop(v);
    // Into the hole, from either side of it.
    let hole = [(2 * MIB - 1, 100), (2 * MIB, 100), (4 * MIB - 1, 100)];
    for (at, len) in hole {
        let before = scene.violations("victim")?;
        let mut v = scene.victim_on(&memory)?;
        v.offer(&[desc(at, len, 0, 0)], &[0])?;
        ensure!(v.ring.events().broken(PATIENCE)?, "{at:#x}+{len} was taken");
        scene.is_latched("bad_address")?;
        ensure!(scene.violations("victim")? != before, "not counted");
    }
    scene.finish()
}

/// A guest whose rings are in region 0 and whose frames are in region 1, both without seals.
fn unsealed() -> Result<GuestMemory> {
    let region = |gpa, slot| GuestRegion::new(gpa, MIB, slot, Sealing::Refused).map(Arc::new);
    Ok(GuestMemory::of(vec![region(0, 0)?, region(8 * MIB, 1)?]))
}

fn truncate(memory: &GuestMemory, region: usize, len: u64) -> Result<()> {
    Ok(rustix::fs::ftruncate(memory.regions()[region].file(), len)?)
}

#[test]
fn m05_guest_memory_is_truncated() -> Result<()> {
    let scene = Scene::new()?;
    // Under the rings, while they are polled.
    for len in [0, PAGE] {
        let memory = unsealed()?;
        let mut v = scene.victim_on(&memory)?;
        v.works()?;
        truncate(&memory, 0, len)?;
        v.ring.events().kick()?;
        ensure!(
            v.frontend.raw().closes_within(PATIENCE)?,
            "the session goes on"
        );
        scene.error_says("truncated")?;
        scene.unaffected()?;
    }
    // Under a frame that is sent.
    let memory = unsealed()?;
    let mut v = scene.victim_on(&memory)?;
    let gone = memory.alloc_in(1, PAGE, PAGE)?;
    truncate(&memory, 1, 0)?;
    v.offer(&[desc(gone, 1000, 0, 0)], &[0])?;
    ensure!(
        v.frontend.raw().closes_within(PATIENCE)?,
        "the session goes on"
    );
    scene.error_says("truncated")?;
    scene.unaffected()?;
    drop(v);
    // Under a buffer that is received into, by a frame of somebody else's.
    let memory = unsealed()?;
    let mut v = scene.victim_on(&memory)?;
    v.transmits()?;
    v.withdraw()?;
    let gone = memory.alloc_in(1, PAGE, PAGE)?;
    v.offer_receive(&[desc(gone, 2048, WRITE, 0)], &[0])?;
    truncate(&memory, 1, 0)?;
    scene.say(&Frame::new(station(VICTIM), station(WITNESS)).numbered(0, 500))?;
    ensure!(
        v.frontend.raw().closes_within(PATIENCE)?,
        "the session goes on"
    );
    scene.error_says("truncated")?;
    scene.unaffected()?;
    drop(v);
    // A memfd that takes seals cannot be truncated at all.
    let v = scene.victim()?;
    let refused = rustix::fs::ftruncate(v.memory.regions()[0].file(), 0);
    ensure!(refused == Err(rustix::io::Errno::PERM), "{refused:?}");
    drop(v);
    scene.finish()
}

#[test]
fn m06_memory_tables_change_under_load() -> Result<()> {
    let scene = Scene::new()?;
    let mut client = scene.client("victim")?;
    let memory = client.memory().clone();
    let Some(mut pair) = client.take_pairs().pop() else {
        bail!("a client has a pair");
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let guest = threads.spawn(|| {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                let frame = Frame::new(station(WITNESS), station(VICTIM)).numbered(sent, 300);
                pair.send(&frame.bytes(), PATIENCE)?;
                sent += 1;
            }
            pair.flush(PATIENCE)?;
            Ok::<_, anyhow::Error>(sent)
        });
        let frontend = client.frontend();
        let changes = (0..60).try_for_each(|round| {
            let more = GuestRegion::new((64 + round) * MIB, MIB, 1, Sealing::Allowed)?;
            let more = Arc::new(more);
            frontend.add_region(&more)?;
            frontend.set_memory(&memory.with(Arc::clone(&more)))?;
            frontend.remove_region(&more)?;
            frontend.set_memory(&memory)?;
            scene.forget().map(drop)
        });
        stop.store(true, Ordering::Relaxed);
        let sent = guest.join();
        changes?;
        match sent {
            Ok(sent) => ensure!(sent? > 0, "nothing was sent"),
            Err(_) => bail!("the guest panicked"),
        }
        Ok(())
    })?;
    drop(client);
    scene.finish()
}
