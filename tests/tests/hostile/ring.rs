//! Guests that break the rules of the ring: chains, heads, indices, tables.

use anyhow::{Result, ensure};
use towpath_common::testing::blk::{self, Op};
use towpath_common::testing::split::{Desc, INDIRECT, NEXT, WRITE};
use towpath_common::testing::{Driver, Form, Segment, Wanted, feature};

use crate::harness::{Answer, CAPACITY, MIB, QUEUE, Scene, Victim, desc, until};

/// Puts an indirect table into the victim's data buffer and offers it.
fn offer_table(victim: &mut Victim, table: &[Desc], len: u32) -> Result<()> {
    let bytes: Vec<u8> = table.iter().flat_map(|d| d.bytes()).collect();
    victim.memory.write(victim.data, &bytes)?;
    victim.offer(&[desc(victim.data, len, INDIRECT, 0)], &[0])
}

/// Length in bytes of a table.
fn table_len(table: &[Desc]) -> u32 {
    u32::try_from(table.len() * 16).unwrap_or(u32::MAX)
}

#[test]
fn h01_a_chain_that_never_ends() -> Result<()> {
    let scene = Scene::new()?;
    scene.breaks("loop", |v| v.offer(&[v.header_desc(0)], &[0]))?;
    scene.breaks("loop", |v| {
        v.offer(&[v.header_desc(1), v.header_desc(0)], &[0])
    })?;
    scene.breaks("loop", |v| {
        let all: Vec<Desc> = (0..QUEUE).map(|i| v.header_desc((i + 1) % QUEUE)).collect();
        v.offer(&all, &[0])
    })?;
    // Empty descriptors cost nothing but the walk, which must end too.
    scene.breaks("loop", |v| v.offer(&[desc(v.line, 0, NEXT, 0)], &[0]))?;
    scene.breaks("loop", |v| {
        let table = [v.header_desc(1), v.header_desc(0)];
        offer_table(v, &table, table_len(&table))
    })?;
    scene.finish()
}

#[test]
fn h02_a_next_outside_its_table() -> Result<()> {
    let scene = Scene::new()?;
    for next in [QUEUE, QUEUE + 1, u16::MAX] {
        scene.breaks("bad_next", |v| v.offer(&[v.header_desc(next)], &[0]))?;
        scene.breaks("bad_next", |v| {
            let table = [v.header_desc(next), v.header_desc(0)];
            offer_table(v, &table, table_len(&table))
        })?;
    }
    for head in [QUEUE, u16::MAX] {
        scene.breaks("bad_head", |v| v.offer(&[], &[head]))?;
    }
    scene.finish()
}

#[test]
fn h03_an_indirect_table_that_is_none() -> Result<()> {
    let scene = Scene::new()?;
    for len in [0, 8, 15, 17, 0xffff_fff0, u32::MAX] {
        scene.breaks("bad_indirect", |v| {
            let table = [v.header_desc(1)];
            offer_table(v, &table, len)
        })?;
    }
    // Nested, and followed by another descriptor.
    scene.breaks("bad_indirect", |v| {
        let table = [desc(v.data, 16, INDIRECT, 0)];
        offer_table(v, &table, table_len(&table))
    })?;
    scene.breaks("bad_indirect", |v| {
        v.offer(
            &[desc(v.data, 16, INDIRECT | NEXT, 1), v.header_desc(1)],
            &[0],
        )
    })?;
    // A table outside memory, and one that leaves it half way.
    for at in [MIB, MIB - 16, u64::MAX - 15] {
        scene.breaks("bad_address", |v| {
            if at < MIB {
                v.memory.write(at, &v.header_desc(1).bytes())?;
            }
            v.offer(&[desc(at, 32, INDIRECT, 0)], &[0])
        })?;
    }
    // Without the feature there are no tables.
    let wanted = Wanted {
        features: feature::MODERN,
        ..Wanted::default()
    };
    let memory = towpath_common::testing::GuestMemory::new(MIB)?;
    let mut victim = Victim::connect(&scene.socket("victim"), &memory, wanted)?;
    let table = [victim.header_desc(1), desc(victim.line + 16, 1, WRITE, 0)];
    offer_table(&mut victim, &table, 32)?;
    scene.is_broken(&victim, "bad_indirect")?;
    drop(victim);
    scene.finish()
}

#[test]
fn h04_a_head_that_is_in_flight() -> Result<()> {
    let scene = Scene::new()?;
    let flush = |v: &Victim| {
        v.aim(Op::Flush, 0)?;
        Ok::<_, anyhow::Error>([v.header_desc(1), desc(v.line + 16, 1, WRITE, 0)])
    };
    scene.breaks("head_in_flight", |v| {
        let chain = flush(v)?;
        v.offer(&chain, &[0, 0])
    })?;
    // While in flight: a flush takes its time in the kernel, but the second offer may still come
    // too late and be an honest reuse; sooner or later one does not.
    let mut victim = scene.victim()?;
    let chain = flush(&victim)?;
    until("a head offered again in time", || {
        for _ in 0..QUEUE {
            victim.offer(&chain, &[0])?;
        }
        Ok(victim
            .ring
            .events()
            .broken(std::time::Duration::ZERO)?
            .then_some(()))
    })?;
    until("told", || {
        let disk = scene.disk("victim")?;
        let reason = &disk["session"]["queues"][0]["broken"];
        // Offers that were not taken in time are more than the ring holds, another violation.
        let known = reason == "head_in_flight" || reason == "avail_jump";
        Ok(known.then_some(()))
    })?;
    drop(victim);
    scene.finish()
}

#[test]
fn h05_an_available_index_that_jumps() -> Result<()> {
    let scene = Scene::new()?;
    for idx in [QUEUE + 1, 0x8000, u16::MAX] {
        scene.breaks("avail_jump", |v| {
            v.ring.poke_avail_idx(idx);
            Ok(v.ring.events().kick()?)
        })?;
    }
    // Backwards, after honest work.
    scene.breaks("avail_jump", |v| {
        v.works()?;
        v.works()?;
        v.ring.poke_avail_idx(1);
        Ok(v.ring.events().kick()?)
    })?;
    scene.finish()
}

/// `len` bytes at `gpa` as descriptors of `piece` bytes.
fn split(gpa: u64, len: u32, piece: u32, writable: bool) -> Vec<Segment> {
    let pieces = (0..len).step_by(piece as usize);
    let one = |at: u32| Segment {
        gpa: gpa + u64::from(at),
        len: piece.min(len - at),
        writable,
    };
    pieces.map(one).collect()
}

#[test]
fn h06_any_framing_of_a_request_works() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    let done = Answer {
        status: blk::OK,
        written: 513,
    };
    for form in [Form::Direct, Form::Indirect] {
        // The header split over 16 descriptors, the data over 3, the status on its own.
        v.aim(Op::In, 1)?;
        let header = split(v.line, 16, 1, false);
        let data = split(v.data, 512, 171, true);
        let framed = [&header[..], &data, &[v.status()]].concat();
        ensure!(v.ask(&framed, form)? == done, "header split, {form:?}");
        // Data and status in one descriptor, then with empty descriptors around.
        let tail = Segment::writable(v.data, 513);
        ensure!(
            v.ask(&[v.header(), tail], form)? == done,
            "status joined, {form:?}"
        );
        let nothing = Segment::writable(v.data, 0);
        let framed = [
            Segment::readable(v.line, 0),
            v.header(),
            nothing,
            tail,
            nothing,
        ];
        ensure!(v.ask(&framed, form)? == done, "empty ones, {form:?}");
        // Header and data of a write in one descriptor.
        v.memory.write(v.data, &blk::header(Op::Out.code(), 2))?;
        let joined = [Segment::readable(v.data, 16 + 512), v.status()];
        let answer = v.ask(&joined, form)?;
        ensure!(answer.status == blk::OK, "header and data joined, {form:?}");
    }
    v.works()?;
    drop(v);
    scene.finish()
}

#[test]
fn h07_a_readable_descriptor_after_a_writable_one() -> Result<()> {
    let scene = Scene::new()?;
    let chain = |v: &Victim| {
        [
            v.header_desc(1),
            desc(v.data, 512, NEXT | WRITE, 2),
            desc(v.data, 512, NEXT, 3),
            desc(v.line + 16, 1, WRITE, 0),
        ]
    };
    let reason = "readable_after_writable";
    scene.breaks(reason, |v| v.offer(&chain(v), &[0]))?;
    scene.breaks(reason, |v| {
        let table = chain(v);
        // The table stands in the data buffer; nobody gets as far as the data.
        offer_table(v, &table, table_len(&table))
    })?;
    scene.finish()
}

#[test]
fn h10_addresses_and_sums_that_wrap() -> Result<()> {
    let scene = Scene::new()?;
    let wild = [
        (u64::MAX, 1),
        (u64::MAX - 10, 4096),
        (0, u32::MAX),
        (MIB - 1, 2),
        (1 << 63, 1),
        (0xffff_ffff, 512),
    ];
    for (addr, len) in wild {
        scene.breaks("bad_address", |v| {
            v.offer(&[v.header_desc(1), desc(addr, len, WRITE, 0)], &[0])
        })?;
    }
    // 254 segments of the same memory whose lengths add up to 2^32: nothing, to 32 bits.
    let memory = towpath_common::testing::GuestMemory::new(20 * MIB)?;
    let mut v = scene.victim_on("victim", &memory)?;
    let each = (1u32 << 24) + (1 << 17);
    let mut data = vec![Segment::writable(0, each); 253];
    let sum = u64::from(each) * 253;
    data.push(Segment::writable(0, u32::try_from((1 << 32) - sum)?));
    ensure!(
        v.request(Op::In, 0, &data)? == blk::IOERR,
        "4 GiB read as none"
    );
    ensure!(
        v.request(Op::In, CAPACITY - 1, &data)? == blk::IOERR,
        "4 GiB read at the end"
    );
    v.works()?;
    drop(v);
    scene.finish()
}

#[test]
fn h16_no_place_for_a_status_and_no_header() -> Result<()> {
    let scene = Scene::new()?;
    scene.breaks("request", |v| {
        v.aim(Op::Out, 0)?;
        v.offer(
            &[
                v.header_desc(1),
                desc(v.data, 512, NEXT, 2),
                desc(v.line + 16, 1, 0, 0),
            ],
            &[0],
        )
    })?;
    scene.breaks("request", |v| v.offer(&[desc(v.line, 16, 0, 0)], &[0]))?;
    scene.breaks("request", |v| v.offer(&[desc(v.line, 0, WRITE, 0)], &[0]))?;
    scene.breaks("request", |v| {
        v.offer(
            &[desc(v.line, 15, NEXT, 1), desc(v.line + 16, 1, WRITE, 0)],
            &[0],
        )
    })?;
    scene.finish()
}

#[test]
fn h22_a_ring_under_its_own_data() -> Result<()> {
    let scene = Scene::new()?;
    for part in 0..3 {
        for offset in [0, 2, 4] {
            let mut v = scene.victim()?;
            let target = v.ring.places()[part] + offset;
            // What a disk holds, read over the ring that asks for it; the status over the index.
            v.aim(Op::In, 3)?;
            let data = desc(target & !511, 512, NEXT | WRITE, 2);
            let status = desc(target, 1, WRITE, 0);
            v.offer(&[v.header_desc(1), data, status], &[0])?;
            v.ring.events().kick()?;
            scene.unaffected()?;
        }
    }
    // The session is still one: whatever became of the ring, it can be stopped.
    let mut v = scene.victim()?;
    v.aim(Op::In, 3)?;
    let used = v.ring.places()[2];
    v.offer(&[v.header_desc(1), desc(used, 513, WRITE, 0)], &[0])?;
    let base = v.frontend.stop_queue(0)?;
    ensure!(base <= 1, "stopped at {base}");
    drop(v);
    until("disconnected", || {
        Ok((scene.disk("victim")?["connected"] == false).then_some(()))
    })?;
    scene.finish()
}
