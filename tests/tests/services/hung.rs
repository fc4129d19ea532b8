//! Storage that does not answer, for ever: another disk on the same worker goes on, and the daemon
//! ends when it is told to.
//!
//! The storage is a file on a frozen file system (fsfreeze): a write to it waits in the kernel and
//! cannot even be killed, as on an NFS mount whose server is gone (this kernel has no NFS client).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use towpath_tests::daemon::Vblk;

use crate::kills::{Guest, IMAGE_BYTES};
use crate::snapshot::Mounted;
use crate::{PATIENCE, create_image};

/// A frozen file system, thawed when dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn new(place: &Path) -> Result<Frozen> {
        let froze = Command::new("fsfreeze").arg("-f").arg(place).status()?;
        ensure!(froze.success(), "fsfreeze: {froze}");
        Ok(Frozen(place.to_owned()))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
    }
}

/// Work until nothing was acknowledged for a while.
fn until_stuck(guest: &mut Guest) -> Result<u64> {
    let (began, mut last) = (Instant::now(), Instant::now());
    while last.elapsed() < Duration::from_secs(1) {
        guest.post()?;
        if guest.reap()? > 0 {
            last = Instant::now();
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "a frozen file system takes writes"
        );
        std::thread::yield_now();
    }
    Ok(guest.written().iter().sum())
}

#[test]
fn storage_that_hangs_holds_up_its_own_disk_alone() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let Some(mounted) = Mounted::new(scratch.path())? else {
        return Ok(());
    };
    create_image(&mounted.path().join("hangs"), IMAGE_BYTES)?;
    let dir = tempfile::tempdir()?;
    create_image(&dir.path().join("image"), IMAGE_BYTES)?;
    let hangs = format!(
        "{}/hangs,socket={{dir}}/hangs,queues=1,name=hangs",
        mounted.path().display()
    );
    let disks = ["{dir}/image,socket={dir}/disk,queues=1,name=d", &hangs];
    let mut vblk = Vblk::serve(dir, &disks, &[])?;
    let mut good = Guest::connect(&vblk)?;
    let mut bad = Guest::connect_to(&vblk, "hangs")?;
    for _ in 0..500 {
        bad.post()?;
        bad.reap()?;
    }
    bad.settle()?;
    let frozen = Frozen::new(mounted.path())?;
    until_stuck(&mut bad)?;
    // One worker serves both.
    let until = Instant::now() + PATIENCE;
    let wanted = good.written().iter().sum::<u64>() + 20_000;
    while good.written().iter().sum::<u64>() < wanted {
        good.post()?;
        if good.reap()? == 0 {
            std::thread::yield_now();
        }
        ensure!(Instant::now() < until, "the other disk is held up");
    }
    good.settle()?;
    let shown = vblk.client(&["disk", "list"])?;
    ensure!(shown.contains("hangs"), "{shown}");
    // And it ends.
    vblk.daemon().stop()?;
    drop(frozen);
    drop((good, bad));
    drop(vblk);
    drop(mounted);
    Ok(())
}
