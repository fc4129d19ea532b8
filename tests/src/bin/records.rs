//! Writes and verifies numbered records inside a guest; see `towpath_tests::records`.
//!
//! `records write DISK` prints `ack LANE COUNT` each time that many of a lane's writes have
//! completed, never before. `records verify DISK` reads them all back. Both use direct I/O, so
//! that a completed write is one the disk completed, not the guest's page cache.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::fs::OFlags;
use towpath_tests::records::{LANES, RECORDS, check_lane, offset, record};

/// Completed writes between two lines: the serial console is slower than the disk.
const REPORT_EVERY: u64 = 16;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (verb, disk) = (arguments.next(), arguments.next());
    let path = disk.context("usage: records write|verify DISK")?;
    let disk = OpenOptions::new()
        .read(true)
        .write(verb.as_deref() == Some("write"))
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(&path)
        .with_context(|| format!("cannot open {path}"))?;
    match verb.as_deref() {
        Some("write") => thread::scope(|scope| {
            let disk = &disk;
            let lanes: Vec<_> = (0..LANES)
                .map(|lane| scope.spawn(move || write(disk, lane)))
                .collect();
            lanes.into_iter().try_for_each(|lane| match lane.join() {
                Ok(result) => result,
                Err(_) => bail!("a writer panicked"),
            })
        })?,
        Some("verify") => {
            (0..LANES).try_for_each(|lane| check_lane(&disk, lane, RECORDS, true))?;
        }
        _ => bail!("usage: records write|verify DISK"),
    }
    println!("{} ok", verb.unwrap_or_default());
    Ok(())
}

fn write(disk: &File, lane: u64) -> Result<()> {
    for seq in 0..RECORDS {
        disk.write_all_at(&record(lane, seq).0, offset(lane, seq))
            .with_context(|| format!("write of record {seq} of lane {lane} failed"))?;
        let count = seq + 1;
        if count % REPORT_EVERY == 0 || count == RECORDS {
            println!("ack {lane} {count}");
        }
    }
    Ok(())
}
