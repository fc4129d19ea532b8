//! Snapshots while a guest writes: each holds exactly what was acknowledged at one moment between
//! asking for it and the answer, and the guest sees no error.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use towpath_tests::daemon::Vblk;
use towpath_tests::mounted::Mounted;
use towpath_tests::records::{Block, record};

use crate::create_image;
use crate::kills::{Guest, IMAGE_BYTES, LANES, place, window};

/// An xfs that clones files.
pub(crate) const XFS: [&str; 4] = ["mkfs.xfs", "-q", "-m", "reflink=1"];

/// True if `image` holds the first `count` records of `lane` and nothing later.
pub(crate) fn holds(image: &File, lane: u16, count: u64) -> Result<bool> {
    let mut block = Block::default();
    for seq in count.saturating_sub(window(lane))..count {
        image.read_exact_at(&mut block.0, place(lane, seq))?;
        if block != record(lane.into(), seq) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The image at `path` is of a moment between these counts of records.
pub(crate) fn of_one_moment(path: &Path, before: &[u64], after: &[u64]) -> Result<()> {
    let image = File::open(path)?;
    for lane in 0..LANES {
        let at = usize::from(lane);
        let mut moments = before[at]..=after[at] + 1;
        let found = moments.find(|count| holds(&image, lane, *count).unwrap_or(false));
        found.with_context(|| {
            let (path, before, after) = (path.display(), before[at], after[at]);
            format!("{path}, lane {lane}: no moment from {before} to {after} records")
        })?;
    }
    Ok(())
}

#[test]
fn a_snapshot_is_one_moment_of_a_disk_that_is_being_written() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let Some(mounted) = Mounted::image(scratch.path(), 512 << 20, &XFS)? else {
        return Ok(());
    };
    let dir = tempfile::tempdir_in(mounted.path())?;
    create_image(&dir.path().join("image"), IMAGE_BYTES)?;
    let disk = "{dir}/image,socket={dir}/disk,queues=1,name=d";
    let mut vblk = Vblk::serve(dir, &[disk], &[])?;
    let mut guest = Guest::connect(&vblk)?;
    for round in 0..5 {
        for _ in 0..200 {
            guest.post()?;
            guest.reap()?;
        }
        let path = vblk.path(&format!("snapshot{round}"));
        let before = guest.written();
        let text = path.display().to_string();
        let said = std::thread::scope(|scope| {
            let taking = scope.spawn(|| vblk.client(&["snapshot", "d", &text]));
            while !taking.is_finished() {
                guest.post()?;
                if guest.reap()? == 0 {
                    std::thread::yield_now();
                }
            }
            taking
                .join()
                .map_err(|_| anyhow::anyhow!("the client panicked"))?
        })?;
        println!("{}", said.trim());
        let (image, after) = (File::open(&path)?, guest.written());
        ensure!(image.metadata()?.len() == IMAGE_BYTES);
        of_one_moment(&path, &before, &after).with_context(|| format!("round {round}"))?;
        ensure!(
            vblk.client(&["snapshot", "d", &text]).is_err(),
            "a file is not overwritten"
        );
        // The disk goes on, and the snapshot keeps what it had.
        guest.settle()?;
        guest.check(&File::open(vblk.path("image"))?)?;
    }
    copied_elsewhere(&vblk, &mut guest, &scratch.path().join("copy"))?;
    drop(guest);
    vblk.daemon().stop()?;
    drop(vblk);
    drop(mounted);
    Ok(())
}

/// On another file system nothing can be cloned: the copy is of one moment all the same.
fn copied_elsewhere(vblk: &Vblk, guest: &mut Guest, elsewhere: &Path) -> Result<()> {
    let text = elsewhere.display().to_string();
    let before = guest.written();
    let said = std::thread::scope(|scope| {
        let taking = scope.spawn(|| vblk.client(&["snapshot", "d", &text]));
        while !taking.is_finished() {
            guest.post()?;
            if guest.reap()? == 0 {
                std::thread::yield_now();
            }
        }
        taking
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))?
    })?;
    println!("{}", said.trim());
    ensure!(said.contains("copy to"), "{said}");
    of_one_moment(elsewhere, &before, &guest.written())
}
