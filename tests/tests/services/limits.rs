//! Limits through the real daemon: never more than was configured, changed while requests flow;
//! and the stages of those requests.
//!
//! The upper bound is checked against the client's own clock, which holds however slow the machine
//! is. What was reached is printed: run it alone, with `--nocapture`, to see the rate.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use towpath_common::testing::blk::{BlkClient, BlkQueue, ClientOptions, OK, Op, Shape};
use towpath_tests::daemon::Vblk;

use crate::{PATIENCE, create_image};

const BLOCK: u32 = 4096;
const SLOTS: usize = 32;

/// How long each rate is tried; `TOWPATH_SECONDS` says otherwise.
fn seconds() -> u64 {
    let asked = std::env::var("TOWPATH_SECONDS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// Reads as fast as it goes for some time; requests done, and how long that took.
fn flood(queue: &mut BlkQueue, time: Duration) -> Result<(u64, Duration)> {
    for slot in 0..SLOTS {
        queue.prepare(slot, Op::In, slot as u64 * 8, BLOCK)?;
        queue.post(slot);
    }
    let began = Instant::now();
    queue.publish()?;
    let (mut count, mut done, mut flying) = (0, Vec::new(), SLOTS);
    while flying > 0 {
        done.clear();
        queue.reap(&mut done)?;
        for one in &done {
            ensure!(one.status == OK, "status {}", one.status);
            count += 1;
            if began.elapsed() < time {
                queue.aim(one.slot, one.slot as u64 * 8);
                queue.post(one.slot);
            } else {
                flying -= 1;
            }
        }
        queue.publish()?;
        if done.is_empty() {
            ensure!(
                began.elapsed() < PATIENCE + time,
                "requests were never answered"
            );
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    Ok((count, began.elapsed()))
}

#[test]
fn a_limited_disk_gets_what_was_configured_and_not_more() -> Result<()> {
    let dir = tempfile::tempdir()?;
    create_image(&dir.path().join("image"), 4 << 20)?;
    let disks = ["{dir}/image,socket={dir}/disk,queues=1,name=d,group=g"];
    let mut vblk = Vblk::serve(dir, &disks, &["--group", "g"])?;
    let options = ClientOptions {
        shape: Shape {
            slots: u16::try_from(SLOTS)?,
            buffer: BLOCK,
            ..Shape::default()
        },
        ..ClientOptions::default()
    };
    let mut client = BlkClient::connect(&vblk.path("disk"), options)?;
    let mut queue = client.take_queues().pop().context("no queue")?;
    let time = Duration::from_secs(seconds());
    let (free, took) = flood(&mut queue, Duration::from_millis(200))?;
    println!("unlimited: {:.0}/s", free as f64 / took.as_secs_f64());
    for (what, name, setting, rate) in [
        ("disk", "d", "iops=2000", 2_000.0),
        ("disk", "d", "iops=200", 200.0),
        ("disk", "d", "bandwidth=8M", 2_048.0),
        ("group", "g", "iops=1000", 1_000.0),
    ] {
        vblk.client(&[what, "set", name, "iops=", "bandwidth="])?;
        vblk.client(&[what, "set", name, setting])?;
        if what == "group" {
            vblk.client(&["disk", "set", "d", "iops=", "bandwidth="])?;
        }
        let (count, took) = flood(&mut queue, time)?;
        let (count, took) = (count as f64, took.as_secs_f64());
        println!(
            "{setting}: {:.1}/s, {:+.2} %",
            count / took,
            (count / took / rate - 1.0) * 100.0
        );
        // A full bucket is a tenth of a second, and one burst may be owed.
        let most = rate * (took + 0.1) + SLOTS as f64;
        ensure!(count <= most, "{count} requests in {took} s with {setting}");
    }
    vblk.client(&["group", "set", "g", "iops="])?;
    let (again, took) = flood(&mut queue, Duration::from_millis(200))?;
    ensure!(
        again as f64 > 2_000.0 * took.as_secs_f64(),
        "the limit is gone: {again}"
    );
    let held_back = vblk.metric("towpath_vblk_throttled_seconds_total", "disk=\"d\"")?;
    ensure!(held_back > 0.0, "time held back is counted");
    // Every request went through the stages; those that were notified are fewer.
    for stage in ["queue", "device", "used"] {
        let labels = format!("stage=\"{stage}\"");
        let count = vblk.metric("towpath_vblk_stage_seconds_count", &labels)?;
        ensure!(count >= free as f64, "{stage}: {count}");
    }
    let slow = vblk.client(&["slow", "d", "--count", "3"])?;
    println!("{slow}");
    ensure!(slow.lines().count() == 4 && slow.contains("read"), "{slow}");
    drop((client, queue));
    vblk.daemon().stop()
}
