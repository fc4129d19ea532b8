//! H13: a guest that changes what it asked while it is carried out.
//!
//! Each word flips between a value that is allowed and one that is not, chosen so that a torn read
//! of the two is one or the other as well: whatever the daemon reads, it may only touch sectors 64
//! to 71, and a word checked once and used twice would sooner or later touch something else.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use towpath_common::testing::blk::{self, Op};
use towpath_common::testing::split::{NEXT, WRITE};
use towpath_common::testing::{Driver, GuestMemory};

use crate::harness::{MIB, PATIENCE, Scene, Victim, desc, image};

/// The sectors that may change.
const ALLOWED: u64 = 64;
const SECTORS: u32 = 8;
/// Requests of one run.
const REQUESTS: usize = 3000;

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

/// Header words that flip: what is asked, and of which sector.
fn header(v: &Victim, ops: [Op; 2]) -> Vec<(u64, [Vec<u8>; 2])> {
    let code = ops.map(|op| op.code().to_le_bytes().to_vec());
    let sector = [ALLOWED, ALLOWED + (1 << 55)].map(|s| s.to_le_bytes().to_vec());
    vec![(v.line, code), (v.line + 8, sector)]
}

/// Ranges that flip: 32 of them, which are 512 bytes and so one sector of a write too.
fn ranges(v: &Victim) -> Vec<(u64, [Vec<u8>; 2])> {
    let wild = [
        blk::range(ALLOWED + (1 << 55), SECTORS, 0),
        blk::range(ALLOWED, SECTORS + (1 << 23), 0),
        blk::range(ALLOWED, SECTORS, 1 << 31),
    ];
    let one = |(at, wild): (u64, &[u8; 16])| {
        let good = blk::range(ALLOWED, SECTORS, 0);
        (v.data + 16 * at, [good.to_vec(), wild.to_vec()])
    };
    let wild: Vec<_> = wild.iter().cycle().take(32).collect();
    (0..).zip(wild).map(one).collect()
}

/// Sends the same chain again and again while `words` flip, until the ring breaks or it is enough.
fn ask(v: &mut Victim, words: &[(u64, [Vec<u8>; 2])]) -> Result<()> {
    let (memory, stop) = (v.memory.clone(), AtomicBool::new(false));
    let chain = [
        v.header_desc(1),
        desc(v.data, 512, NEXT, 2),
        desc(v.line + 16, 1, WRITE, 0),
    ];
    std::thread::scope(|threads| {
        let flipper = threads.spawn(|| flip(&memory, words, &stop));
        let mut asked = || {
            for _ in 0..REQUESTS {
                let before = v.ring.used_idx();
                v.offer(&chain, &[0])?;
                let deadline = std::time::Instant::now() + PATIENCE;
                while v.ring.used_idx() == before {
                    if v.ring.events().broken(std::time::Duration::ZERO)? {
                        return Ok(());
                    }
                    ensure!(std::time::Instant::now() < deadline, "no answer");
                }
            }
            Ok(())
        };
        let result = asked();
        stop.store(true, Ordering::Relaxed);
        match flipper.join() {
            Ok(flipped) => result.and(flipped),
            Err(_) => anyhow::bail!("the flipping thread panicked"),
        }
    })
}

/// Nothing but the allowed sectors of the victim's file has changed.
fn contained(scene: &Scene) -> Result<()> {
    let (file, before) = (fs::read(scene.file("victim"))?, image());
    let start = usize::try_from(ALLOWED * blk::SECTOR)?;
    let end = start + SECTORS as usize * 512;
    ensure!(
        file.len() == before.len(),
        "the file has {} bytes",
        file.len()
    );
    ensure!(
        file[..start] == before[..start],
        "written below the allowed sectors"
    );
    ensure!(
        file[end..] == before[end..],
        "written above the allowed sectors"
    );
    Ok(())
}

#[test]
fn h13_headers_and_ranges_change_under_the_request() -> Result<()> {
    let scene = Scene::new()?;
    let pairs = [
        [Op::Out, Op::Discard],
        [Op::Discard, Op::WriteZeroes],
        [Op::In, Op::WriteZeroes],
        [Op::Out, Op::Other(u32::MAX)],
    ];
    for ops in pairs {
        let mut v = scene.victim()?;
        let words = [header(&v, ops), ranges(&v)].concat();
        ask(&mut v, &words)?;
        drop(v);
        contained(&scene)?;
    }
    // The same on a disk where nothing at all may be written; `finish` looks at its file.
    let mut v = scene.victim_on("readonly", &GuestMemory::new(MIB)?)?;
    let words = [header(&v, [Op::In, Op::Out]), ranges(&v)].concat();
    ask(&mut v, &words)?;
    drop(v);
    scene.finish()
}

#[test]
fn h13_descriptors_change_under_the_request() -> Result<()> {
    let scene = Scene::new()?;
    let tail = |len: u32, flags: u16, next: u16| {
        let word = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        word.to_le_bytes().to_vec()
    };
    for round in 0..12 {
        let mut v = scene.victim()?;
        let table = v.ring.places()[0];
        let flips = [
            (
                table + 16,
                [v.data, MIB + (1 << 40)].map(|a| a.to_le_bytes().to_vec()),
            ),
            (table + 24, [tail(512, NEXT, 2), tail(u32::MAX, NEXT, 2)]),
            (table + 24, [tail(512, NEXT, 2), tail(512, NEXT, 999)]),
            (table + 24, [tail(512, NEXT, 2), tail(512, NEXT | WRITE, 2)]),
            (table + 40, [tail(1, WRITE, 0), tail(1, WRITE | NEXT, 0)]),
            (table + 40, [tail(1, WRITE, 0), tail(0, 0, 0)]),
        ];
        let one = flips[round % flips.len()].clone();
        let words = [
            header(&v, [Op::Out, Op::WriteZeroes]),
            ranges(&v),
            vec![one],
        ]
        .concat();
        ask(&mut v, &words)?;
        drop(v);
        contained(&scene)?;
        scene.unaffected()?;
    }
    scene.finish()
}
