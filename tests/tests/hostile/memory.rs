//! Front-ends that pull memory away, move it, or lie about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail, ensure};
use towpath_common::testing::blk::{self, BlkClient, BlkQueue, ClientOptions, OK, Op};
use towpath_common::testing::memory::{PAGE, Sealing};
use towpath_common::testing::split::{INDIRECT, WRITE};
use towpath_common::testing::{Driver, Form, GuestMemory, GuestRegion, RawFrontend, Segment};

use crate::harness::{MIB, PATIENCE, Scene, desc, image};

#[test]
fn h08_buffers_across_regions_that_adjoin_and_across_holes() -> Result<()> {
    let scene = Scene::new()?;
    // Two regions without a gap, then a hole.
    let places = [(0, MIB), (MIB, MIB), (4 * MIB, MIB)];
    let memory = GuestMemory::with_regions(&places)?;
    let mut v = scene.victim_on("victim", &memory)?;
    let edge = MIB - 256;
    let data = Segment::writable(edge, 512);
    ensure!(v.request(Op::In, 9, &[data])? == OK, "read across the edge");
    let mut bytes = [0; 512];
    memory.read(edge, &mut bytes)?;
    ensure!(
        bytes[..] == image()[9 * 512..][..512],
        "something else was read"
    );
    let data = Segment::readable(edge, 512);
    ensure!(
        v.request(Op::Out, 10, &[data])? == OK,
        "write across the edge"
    );
    let file = std::fs::read(scene.file("victim"))?;
    ensure!(
        file[10 * 512..][..512] == bytes,
        "something else was written"
    );
    // The header, and an indirect table, across the edge.
    memory.write(MIB - 8, &blk::header(Op::In.code(), 1))?;
    let framed = [
        Segment::readable(MIB - 8, 16),
        Segment::writable(v.data, 512),
        v.status(),
    ];
    ensure!(
        v.ask(&framed, Form::Direct)?.status == OK,
        "the header across the edge"
    );
    v.aim(Op::In, 1)?;
    let table = [v.header_desc(1), desc(v.data, 513, WRITE, 0)];
    memory.write(MIB - 16, &[table[0].bytes(), table[1].bytes()].concat())?;
    let before = v.ring.used_idx();
    v.offer(&[desc(MIB - 16, 32, INDIRECT, 0)], &[0])?;
    crate::harness::until("an answer", || {
        Ok((v.ring.used_idx() != before).then_some(()))
    })?;
    // Into the hole.
    v.offer(&[v.header_desc(1), desc(2 * MIB - 1, 2, WRITE, 0)], &[0])?;
    scene.is_broken(&v, "bad_address")?;
    drop(v);
    scene.finish()
}

#[test]
fn h09_a_buffer_in_a_slot_that_was_removed() -> Result<()> {
    let scene = Scene::new()?;
    let memory = GuestMemory::new(MIB)?;
    let mut v = scene.victim_on("victim", &memory)?;
    let more = Arc::new(GuestRegion::new(8 * MIB, MIB, 1, Sealing::Allowed)?);
    for _ in 0..3 {
        v.frontend.add_region(&more)?;
        let data = Segment::writable(8 * MIB, 512);
        ensure!(
            v.request(Op::In, 1, &[data])? == OK,
            "read into the new slot"
        );
        v.frontend.remove_region(&more)?;
    }
    v.works()?;
    v.offer(&[v.header_desc(1), desc(8 * MIB, 513, WRITE, 0)], &[0])?;
    scene.is_broken(&v, "bad_address")?;
    drop(v);
    scene.finish()
}

/// Writes and verifies on `queue` until `stop`; the number of rounds.
fn work(mut queue: BlkQueue, memory: &GuestMemory, stop: &AtomicBool) -> Result<u64> {
    let (mut rounds, mut read) = (0u64, [0; 4096]);
    let gpa = queue.data(0);
    while !stop.load(Ordering::Relaxed) {
        let written = rounds.to_le_bytes().repeat(512);
        memory.write(gpa, &written)?;
        for op in [Op::Out, Op::In] {
            let done = queue.call(op, rounds % 64 * 8, 4096, PATIENCE)?;
            ensure!(
                done.status == OK,
                "round {rounds}: {op:?} answered {}",
                done.status
            );
        }
        memory.read(gpa, &mut read)?;
        ensure!(
            read[..] == written[..],
            "round {rounds}: read something else"
        );
        rounds += 1;
    }
    Ok(rounds)
}

#[test]
fn h20_memory_tables_change_under_load() -> Result<()> {
    let scene = Scene::new()?;
    let memory = GuestMemory::new(8 * MIB)?;
    let raw = RawFrontend::connect(&scene.socket("victim"), PATIENCE)?;
    let mut client = BlkClient::with_memory(raw, &memory, ClientOptions::default())?;
    let Some(queue) = client.take_queues().pop() else {
        bail!("a client has a queue");
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let worker = threads.spawn(|| work(queue, &memory, &stop));
        let frontend = client.frontend();
        let changes = (0..60).try_for_each(|round| {
            let more = GuestRegion::new((16 + round) * MIB, MIB, 1, Sealing::Allowed)?;
            let more = Arc::new(more);
            frontend.add_region(&more)?;
            frontend.set_memory(&memory.with(Arc::clone(&more)))?;
            frontend.remove_region(&more)?;
            frontend.set_memory(&memory)
        });
        stop.store(true, Ordering::Relaxed);
        let rounds = worker.join();
        changes?;
        match rounds {
            Ok(rounds) => ensure!(rounds? > 0, "no work was done"),
            Err(_) => bail!("the guest panicked"),
        }
        Ok(())
    })?;
    drop(client);
    scene.finish()
}

/// A guest whose rings are in region 0 and whose data is in region 1, both without seals.
fn unsealed() -> Result<GuestMemory> {
    let region = |gpa, slot| GuestRegion::new(gpa, MIB, slot, Sealing::Refused).map(Arc::new);
    Ok(GuestMemory::of(vec![region(0, 0)?, region(8 * MIB, 1)?]))
}

fn truncate(memory: &GuestMemory, region: usize, len: u64) -> Result<()> {
    Ok(rustix::fs::ftruncate(memory.regions()[region].file(), len)?)
}

#[test]
fn h21_guest_memory_is_truncated() -> Result<()> {
    let scene = Scene::new()?;
    // Under the rings, while they are polled.
    for len in [0, PAGE] {
        let memory = unsealed()?;
        let mut v = scene.victim_on("victim", &memory)?;
        v.works()?;
        truncate(&memory, 0, len)?;
        // Whatever this stores is lost; the kick makes the worker look.
        v.ring.events().kick()?;
        ensure!(
            v.frontend.raw().closes_within(PATIENCE)?,
            "the session goes on"
        );
        scene.error_says("truncated")?;
        scene.unaffected()?;
    }
    // Under a header, which the worker reads, and under data, which the kernel does.
    for header in [true, false] {
        let memory = unsealed()?;
        let mut v = scene.victim_on("victim", &memory)?;
        let gone = memory.alloc_in(1, PAGE, PAGE)?;
        truncate(&memory, 1, 0)?;
        v.aim(Op::In, 0)?;
        let framed = if header {
            vec![Segment::readable(gone, 16), v.status()]
        } else {
            vec![v.header(), Segment::writable(gone, 512), v.status()]
        };
        match v.ask(&framed, Form::Direct) {
            // Of the header the worker saw zeroes, a read of nothing; data went to pages that the
            // kernel still holds if they are registered, and nowhere if not.
            Ok(answer) => ensure!(matches!(answer.status, OK | blk::IOERR), "{answer:?}"),
            Err(error) => ensure!(v.frontend.raw().closes_within(PATIENCE)?, "{error}"),
        }
        if header {
            ensure!(
                v.frontend.raw().closes_within(PATIENCE)?,
                "the session goes on"
            );
            scene.error_says("truncated")?;
        }
        scene.unaffected()?;
    }
    // A memfd that takes seals cannot be truncated at all.
    let v = scene.victim()?;
    let refused = rustix::fs::ftruncate(v.memory.regions()[0].file(), 0);
    ensure!(refused == Err(rustix::io::Errno::PERM), "{refused:?}");
    drop(v);
    scene.finish()
}
