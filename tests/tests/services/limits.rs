//! Limits through the real daemon: never more than was configured, changed while requests flow;
//! and the stages of those requests.
//!
//! The upper bound is checked against the client's own clock, which holds however slow the machine
//! is. What was reached is printed: run it alone, with `--nocapture`, to see the rate.
//!
//! The rate itself, from both sides, is a count between two completions of a front-end that always
//! has requests waiting. A machine that is busy takes the processor from daemon and front-end; the
//! buckets of that test are two seconds deep, so that what was missed meanwhile is caught up with,
//! and are emptied before. Where the machine stands still for longer, or just before the count, it
//! is counted again, and that is said.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use towpath_common::testing::blk::{BlkClient, BlkQueue, ClientOptions, Done, OK, Op, Shape};
use towpath_tests::daemon::Vblk;

use crate::{PATIENCE, create_image};

const BLOCK: u32 = 4096;
const SLOTS: usize = 32;

/// How long each rate is tried; `TOWPATH_SECONDS` says otherwise.
fn seconds() -> u64 {
    let asked = std::env::var("TOWPATH_SECONDS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// A front-end of one queue.
fn attach(vblk: &Vblk, socket: &str) -> Result<(BlkClient, BlkQueue)> {
    let options = ClientOptions {
        shape: Shape {
            slots: u16::try_from(SLOTS)?,
            buffer: BLOCK,
            ..Shape::default()
        },
        ..ClientOptions::default()
    };
    let mut client = BlkClient::connect(&vblk.path(socket), options)?;
    let queue = client.take_queues().pop().context("no queue")?;
    Ok((client, queue))
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
    let (client, mut queue) = attach(&vblk, "disk")?;
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

/// How long the rate is measured.
const WINDOW: Duration = Duration::from_secs(10);
/// Until every bucket was emptied.
const WARM: Duration = Duration::from_secs(2);
/// How often it is measured before it is believed to be wrong.
const ATTEMPTS: u32 = 3;
/// How far it may be off.
const TOLERANCE: f64 = 0.02;

/// A disk that always has requests waiting.
struct Flood {
    queue: BlkQueue,
    /// The first completion that counts, and the last one.
    span: Option<(Instant, Instant)>,
    /// Completions after the first.
    count: u64,
}

impl Flood {
    /// Take what was done and ask for it again; whether there was something.
    fn turn(&mut self, done: &mut Vec<Done>, counts: bool) -> Result<bool> {
        done.clear();
        self.queue.reap(done)?;
        for one in &*done {
            ensure!(one.status == OK, "status {}", one.status);
            self.queue.aim(one.slot, one.slot as u64 * 8);
            self.queue.post(one.slot);
        }
        self.queue.publish()?;
        if done.is_empty() || !counts {
            return Ok(!done.is_empty());
        }
        let now = Instant::now();
        match &mut self.span {
            Some((_, last)) => (*last, self.count) = (now, self.count + done.len() as u64),
            None => (self.span, self.count) = (Some((now, now)), 0),
        }
        Ok(true)
    }

    /// Requests a second.
    fn rate(&self) -> Result<f64> {
        let (first, last) = self.span.context("nothing was done")?;
        Ok(self.count as f64 / (last - first).as_secs_f64())
    }
}

fn measure(floods: &mut [Flood]) -> Result<()> {
    let began = Instant::now();
    let mut done = Vec::new();
    floods.iter_mut().for_each(|f| f.span = None);
    while began.elapsed() < WARM + WINDOW {
        let counts = began.elapsed() >= WARM;
        let mut any = false;
        for flood in &mut *floods {
            any |= flood.turn(&mut done, counts)?;
        }
        if !any {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    Ok(())
}

/// How far each rate is off: what is limited, to how much, and which disks share it.
fn deviations(floods: &[Flood], wanted: &[(&str, f64, &[usize])]) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for (what, rate, disks) in wanted {
        let rates = disks.iter().map(|n| floods[*n].rate());
        let got: f64 = rates.collect::<Result<Vec<_>>>()?.iter().sum();
        println!("{what}: {got:.1}/s, {:+.2} %", (got / rate - 1.0) * 100.0);
        all.push((got / rate - 1.0).abs());
    }
    Ok(all)
}

#[test]
fn a_rate_is_kept_within_two_hundredths_over_ten_seconds() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let names = ["a", "b", "c", "d", "e"];
    let limits = [
        "iops=2000,iops-burst=4000",
        "iops=300,iops-burst=600",
        "bandwidth=8M,bandwidth-burst=16M",
        "group=g",
        "group=g",
    ];
    let mut disks = Vec::new();
    for (name, limits) in names.iter().zip(limits) {
        create_image(&dir.path().join(name), 4 << 20)?;
        disks.push(format!(
            "{{dir}}/{name},socket={{dir}}/{name}.sock,queues=1,name={name},{limits}"
        ));
    }
    let disks: Vec<&str> = disks.iter().map(String::as_str).collect();
    let group = ["--group", "g,iops=1000,iops-burst=2000"];
    let mut vblk = Vblk::serve(dir, &disks, &group)?;
    let (mut clients, mut floods) = (Vec::new(), Vec::new());
    for name in names {
        let (client, mut queue) = attach(&vblk, &format!("{name}.sock"))?;
        for slot in 0..SLOTS {
            queue.prepare(slot, Op::In, slot as u64 * 8, BLOCK)?;
            queue.post(slot);
        }
        queue.publish()?;
        clients.push(client);
        floods.push(Flood {
            queue,
            span: None,
            count: 0,
        });
    }
    let wanted: [(&str, f64, &[usize]); 4] = [
        ("iops=2000", 2_000.0, &[0]),
        ("iops=300", 300.0, &[1]),
        ("bandwidth=8M", 2_048.0, &[2]),
        ("a group's iops=1000", 1_000.0, &[3, 4]),
    ];
    let mut kept = false;
    for attempt in 1..=ATTEMPTS {
        measure(&mut floods)?;
        let off = deviations(&floods, &wanted)?;
        kept = off.iter().all(|off| *off <= TOLERANCE);
        if kept {
            break;
        }
        println!("attempt {attempt} of {ATTEMPTS}: off by more than {TOLERANCE}");
    }
    ensure!(kept, "not within {TOLERANCE} in {ATTEMPTS} attempts");
    drop((clients, floods));
    vblk.daemon().stop()
}

#[test]
fn bytes_come_in_a_burst_and_a_trickle_ends_when_it_is_told_to() -> Result<()> {
    const MIB: f64 = 1_048_576.0;
    let dir = tempfile::tempdir()?;
    create_image(&dir.path().join("image"), 4 << 20)?;
    let disk = "{dir}/image,socket={dir}/disk,queues=1,name=d";
    let mut vblk = Vblk::serve(dir, &[disk], &[])?;
    let (client, mut queue) = attach(&vblk, "disk")?;
    // What is saved up comes at once, and after it no more than the rate.
    vblk.client(&["disk", "set", "d", "bandwidth=4M", "bandwidth-burst=16M"])?;
    for pause in [0, 5] {
        // Emptied in the first turn, the bucket is full again after four seconds.
        std::thread::sleep(Duration::from_secs(pause));
        let (count, took) = flood(&mut queue, Duration::from_secs(2))?;
        let (bytes, took) = (count as f64 * f64::from(BLOCK), took.as_secs_f64());
        println!("a burst: {:.2} MiB in {took:.2} s", bytes / MIB);
        let allowed = 16.0 * MIB + took * 4.0 * MIB + SLOTS as f64 * f64::from(BLOCK);
        ensure!(bytes <= allowed, "{bytes} bytes in {took} s");
        // It is not timed, so a machine that is slow enough hides a burst that is not there.
        ensure!(bytes >= 16.0 * MIB, "{bytes} bytes are no burst of 16 MiB");
    }
    // A trickle, and back while requests wait for it.
    let trickle = [
        "disk",
        "set",
        "d",
        "bandwidth=",
        "bandwidth-burst=",
        "iops=1",
    ];
    vblk.client(&trickle)?;
    for slot in 0..SLOTS {
        queue.prepare(slot, Op::In, slot as u64 * 8, BLOCK)?;
        queue.post(slot);
    }
    let began = Instant::now();
    queue.publish()?;
    let mut done = Vec::new();
    while began.elapsed() < Duration::from_secs(3) || done.is_empty() {
        queue.reap(&mut done)?;
        ensure!(began.elapsed() < PATIENCE, "a trickle is not nothing");
        std::thread::sleep(Duration::from_millis(5));
    }
    let (trickled, took) = (done.len(), began.elapsed().as_secs_f64());
    println!("a trickle: {trickled} in {took:.2} s");
    // One is saved up at most, and one may be owed.
    ensure!(trickled as f64 <= took + 2.0, "{trickled} in {took} s");
    vblk.client(&["disk", "set", "d", "iops="])?;
    let until = Instant::now() + PATIENCE;
    while done.len() < SLOTS {
        queue.reap(&mut done)?;
        ensure!(Instant::now() < until, "{} were answered", done.len());
    }
    ensure!(done.iter().all(|one| one.status == OK), "{done:?}");
    drop((client, queue));
    vblk.daemon().stop()
}
