//! Guests that ask for what they may not have: sectors, ranges, types, sizes.

use std::fs;

use anyhow::{Result, ensure};
use towpath_common::testing::blk::{self, IOERR, OK, Op, UNMAP, UNSUPP, range};
use towpath_common::testing::{Form, Segment, feature};

use crate::harness::{CAPACITY, DATA, MIB, Scene, Victim, image};

/// Sends `ranges` with `op`; the status.
fn send(v: &mut Victim, op: Op, ranges: &[[u8; 16]]) -> Result<u8> {
    let bytes = ranges.concat();
    v.memory.write(v.data, &bytes)?;
    let len = u32::try_from(bytes.len())?;
    v.request(op, 0, &[Segment::readable(v.data, len)])
}

fn unchanged(scene: &Scene) -> Result<()> {
    let file = fs::read(scene.file("victim"))?;
    ensure!(file == image(), "the victim's file was written");
    Ok(())
}

#[test]
fn h11_sectors_past_the_end() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    let sectors = [
        CAPACITY,
        1 << 55,
        (1 << 55) + 1,
        1 << 63,
        u64::MAX,
        u64::MAX - 7,
    ];
    for sector in sectors {
        for (op, writable) in [(Op::In, true), (Op::Out, false)] {
            let data = Segment {
                gpa: v.data,
                len: 512,
                writable,
            };
            let status = v.request(op, sector, &[data])?;
            ensure!(status == IOERR, "{op:?} at {sector}: {status}");
        }
        let one = range(sector, 1, 0);
        ensure!(
            send(&mut v, Op::Discard, &[one])? == IOERR,
            "discard {sector}"
        );
        ensure!(
            send(&mut v, Op::WriteZeroes, &[one])? == IOERR,
            "zeroes {sector}"
        );
    }
    // The last sector, and more segments than it has room for.
    for count in [2, 3, 64] {
        for (op, writable) in [(Op::In, true), (Op::Out, false)] {
            let data = Segment {
                gpa: v.data,
                len: 512,
                writable,
            };
            let status = v.request(op, CAPACITY - 1, &vec![data; count])?;
            ensure!(
                status == IOERR,
                "{op:?} of {count} at the last sector: {status}"
            );
        }
    }
    // Not whole sectors.
    let odd = Segment::readable(v.data, 511);
    ensure!(v.request(Op::Out, 0, &[odd])? == IOERR, "511 bytes written");
    unchanged(&scene)?;
    let last = Segment::writable(v.data, 512);
    ensure!(
        v.request(Op::In, CAPACITY - 1, &[last])? == OK,
        "the last sector"
    );
    let refused = crate::harness::until("counted", || {
        Ok(scene.disk("victim")?["stats"]["queues"][0]["refused"]
            .as_u64()
            .filter(|n| *n >= 31))
    })?;
    ensure!(refused == 31, "{refused} refused");
    drop(v);
    scene.finish()
}

#[test]
fn h12_ranges_to_discard_and_to_zero() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    let discards = v.frontend.offered() & feature::BLK_DISCARD != 0;
    let mut ops = vec![Op::WriteZeroes];
    if discards {
        ops.push(Op::Discard);
    } else {
        println!("skipped: DISCARD, which this file system lacks");
    }
    for op in ops {
        let wrong = [
            (range(0, 0, 0), IOERR),
            (range(0, 1 << 23, 0), IOERR),
            (range(0, u32::MAX, 0), IOERR),
            (range(CAPACITY - 1, 2, 0), IOERR),
            (range(u64::MAX, 1, 0), IOERR),
            (range(0, 1, 2), UNSUPP),
            (range(0, 1, u32::MAX), UNSUPP),
        ];
        for (one, status) in wrong {
            ensure!(send(&mut v, op, &[one])? == status, "{op:?} of {one:?}");
            // A bad range after a good one: nothing of the request may happen.
            let both = [range(0, 8, 0), one];
            ensure!(send(&mut v, op, &both)? == status, "{op:?} of {both:?}");
        }
        let status = send(&mut v, op, &[range(0, 1, 0); 33])?;
        ensure!(status == IOERR, "{op:?} of 33 ranges: {status}");
        for len in [0, 1, 15, 17, DATA] {
            let status = v.request(op, 0, &[Segment::readable(v.data, len)])?;
            ensure!(status == IOERR, "{op:?} of {len} bytes of ranges: {status}");
        }
    }
    if discards {
        let status = send(&mut v, Op::Discard, &[range(0, 8, UNMAP)])?;
        ensure!(status == UNSUPP, "UNMAP on discard: {status}");
    }
    unchanged(&scene)?;
    ensure!(
        send(&mut v, Op::WriteZeroes, &[range(0, 8, UNMAP); 32])? == OK,
        "32 good ones"
    );
    let file = fs::read(scene.file("victim"))?;
    ensure!(
        file[..4096] == [0; 4096] && file[4096..] == image()[4096..],
        "other bytes zeroed"
    );
    drop(v);
    scene.finish()
}

#[test]
fn h14_writes_to_a_read_only_disk() -> Result<()> {
    let scene = Scene::new()?;
    let memory = towpath_common::testing::GuestMemory::new(MIB)?;
    let mut v = scene.victim_on("readonly", &memory)?;
    ensure!(
        v.frontend.features() & feature::BLK_RO != 0,
        "RO is not negotiated"
    );
    let data = Segment::readable(v.data, 512);
    ensure!(v.request(Op::Out, 0, &[data])? == IOERR, "OUT");
    ensure!(
        send(&mut v, Op::Discard, &[range(0, 8, 0)])? == IOERR,
        "DISCARD"
    );
    ensure!(
        send(&mut v, Op::WriteZeroes, &[range(0, 8, UNMAP)])? == IOERR,
        "WRITE_ZEROES"
    );
    ensure!(
        v.request(Op::Flush, 0, &[])? == OK,
        "FLUSH, as firmware sends it"
    );
    v.works()?;
    drop(v);
    scene.finish()
}

#[test]
fn h15_unknown_types_and_scsi_commands() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    for code in [
        2,
        3,
        5,
        6,
        7,
        9,
        10,
        12,
        14,
        15,
        16,
        18,
        24,
        1 << 31,
        u32::MAX,
    ] {
        for data in [
            Segment::writable(v.data, 512),
            Segment::readable(v.data, 512),
        ] {
            let status = v.request(Op::Other(code), 0, &[data])?;
            ensure!(status == UNSUPP, "type {code}: {status}");
        }
        ensure!(
            v.request(Op::Other(code), 0, &[])? == UNSUPP,
            "type {code}, no data"
        );
    }
    unchanged(&scene)?;
    crate::harness::until("counted", || {
        let unsupported = &scene.disk("victim")?["stats"]["queues"][0]["requests"]["unsupported"];
        Ok((*unsupported == 45).then_some(()))
    })?;
    drop(v);
    scene.finish()
}

#[test]
fn h17_an_identification_of_any_size() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    let mut serial = [0; 20];
    serial[..6].copy_from_slice(b"victim");
    for len in [0, 1, 19, 20, 21, 4096] {
        v.memory.write(v.data, &[blk::UNTOUCHED; 4096])?;
        v.aim(Op::GetId, 0)?;
        let framed = [v.header(), Segment::writable(v.data, len), v.status()];
        let answer = v.ask(&framed, Form::Indirect)?;
        let said = len.min(20);
        ensure!(
            answer.status == OK && answer.written == said + 1,
            "{len}: {answer:?}"
        );
        let mut bytes = [0; 4096];
        v.memory.read(v.data, &mut bytes)?;
        let (id, rest) = bytes.split_at(said as usize);
        ensure!(
            *id == serial[..id.len()],
            "{len} bytes of identification: {id:?}"
        );
        ensure!(
            rest.iter().all(|b| *b == blk::UNTOUCHED),
            "{len}: more was written"
        );
    }
    drop(v);
    scene.finish()
}
