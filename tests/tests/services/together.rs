//! Resized, copied and killed at the same time, while a guest writes: nothing that was acknowledged
//! is lost, every snapshot that succeeded is of one moment, and the size is one of those asked for.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use towpath_tests::daemon::Vblk;
use towpath_tests::mounted::Mounted;

use crate::kills::{Guest, IMAGE_BYTES};
use crate::snapshot::{XFS, of_one_moment};
use crate::{PATIENCE, create_image};

const ROUNDS: u64 = 12;

/// What happened in a round.
#[derive(Default)]
struct Round {
    /// Snapshots that succeeded, with what had been acknowledged before.
    snapshots: Vec<(PathBuf, Vec<u64>)>,
}

/// Resizes back and forth until it is told to end; how often that was done.
fn resize(vblk: &Vblk, over: &AtomicBool, done: &AtomicU64) {
    for larger in [true, false].into_iter().cycle() {
        if over.load(SeqCst) {
            return;
        }
        let size = if larger { 2 * IMAGE_BYTES } else { IMAGE_BYTES };
        let size = size.to_string();
        // It fails while the daemon is dead or has the disk for something else.
        let answer = vblk.client(&["disk", "resize", "d", &size, "--shrink"]);
        done.fetch_add(answer.is_ok().into(), SeqCst);
    }
}

/// Takes snapshots until it is told to end.
fn copy(vblk: &Vblk, over: &AtomicBool, counts: &Mutex<Vec<u64>>, round: u64) -> Round {
    let mut made = Round::default();
    for number in 0.. {
        if over.load(SeqCst) {
            break;
        }
        let path = vblk.path(&format!("snapshot-{round}-{number}"));
        let before = counts.lock().map(|counts| counts.clone());
        let answer = vblk.client(&["snapshot", "d", &path.display().to_string()]);
        if let (Ok(before), Ok(_)) = (before, answer) {
            made.snapshots.push((path, before));
        }
    }
    made
}

#[test]
fn resized_copied_and_killed_at_once_a_disk_loses_nothing() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let Some(mounted) = Mounted::image(scratch.path(), 512 << 20, &XFS)? else {
        return Ok(());
    };
    let dir = tempfile::tempdir_in(mounted.path())?;
    create_image(&dir.path().join("image"), IMAGE_BYTES)?;
    let disk = "{dir}/image,socket={dir}/disk,queues=1,name=d,shrink";
    let mut vblk = Vblk::serve(dir, &[disk], &[])?;
    let mut guest = Guest::connect(&vblk)?;
    let (resized, mut copied) = (AtomicU64::new(0), 0);
    for round in 0..ROUNDS {
        let pid = vblk.daemon().process().child().id();
        let pid = Pid::from_raw(i32::try_from(pid)?).context("no process")?;
        let counts = Mutex::new(guest.written());
        let (over, daemon) = (AtomicBool::new(false), &vblk);
        let made = std::thread::scope(|scope| -> Result<Round> {
            let resizing = scope.spawn(|| resize(daemon, &over, &resized));
            let copying = scope.spawn(|| copy(daemon, &over, &counts, round));
            let life = Duration::from_millis(150 + 37 * round);
            let began = Instant::now();
            let worked = loop {
                let turn = guest.post().and_then(|()| guest.reap());
                if let (Ok(mut shared), Ok(_)) = (counts.lock(), &turn) {
                    *shared = guest.written();
                }
                if turn.is_err() || began.elapsed() > life {
                    break turn;
                }
            };
            kill_process(pid, Signal::KILL)?;
            over.store(true, SeqCst);
            let made = copying.join();
            ensure!(resizing.join().is_ok(), "the one who resizes panicked");
            worked?;
            made.map_err(|_| anyhow::anyhow!("the one who copies panicked"))
        })?;
        vblk.daemon().ended(PATIENCE)?;
        vblk.start_again()?;
        let length = std::fs::metadata(vblk.path("image"))?.len();
        let shown = vblk.get("/v1/disks/d")?;
        ensure!(shown["size_bytes"] == length, "{length} bytes: {shown}");
        ensure!(
            length == IMAGE_BYTES || length == 2 * IMAGE_BYTES,
            "{length}"
        );
        guest.reconnect(&vblk)?;
        guest.settle()?;
        guest.check(&File::open(vblk.path("image"))?)?;
        let after = guest.written();
        for (path, before) in &made.snapshots {
            of_one_moment(path, before, &after)?;
            std::fs::remove_file(path)?;
            copied += 1;
        }
    }
    let resized = resized.into_inner();
    println!("{ROUNDS} kills, {resized} times resized, {copied} snapshots");
    ensure!(resized > 0 && copied > 0, "it was only killed");
    vblk.daemon().stop()?;
    drop((guest, vblk));
    drop(mounted);
    Ok(())
}
