//! Storage that does not answer, for ever: another disk on the same worker goes on, and the daemon
//! ends when it is told to.
//!
//! The storage is a file of a FUSE file system whose server falls silent, as an NFS server may that
//! is gone: the test machine's kernel has no NFS client.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use towpath_tests::daemon::Vblk;
use towpath_tests::fuse::Fuse;

use crate::kills::{Guest, IMAGE_BYTES};
use crate::{PATIENCE, create_image};

/// Work until nothing was acknowledged for a while.
pub(crate) fn until_stuck(guest: &mut Guest) -> Result<u64> {
    let (began, mut last) = (Instant::now(), Instant::now());
    while last.elapsed() < Duration::from_secs(1) {
        guest.post()?;
        if guest.reap()? > 0 {
            last = Instant::now();
        }
        ensure!(began.elapsed() < PATIENCE, "a silent server answers");
        std::thread::yield_now();
    }
    Ok(guest.written().iter().sum())
}

#[test]
fn storage_that_hangs_holds_up_its_own_disk_alone() -> Result<()> {
    let place = tempfile::tempdir()?;
    let far = match Fuse::mount(place.path(), usize::try_from(IMAGE_BYTES)?) {
        Ok(far) => far,
        Err(error) => {
            println!("skipped: {error:#}");
            return Ok(());
        }
    };
    let dir = tempfile::tempdir()?;
    create_image(&dir.path().join("image"), IMAGE_BYTES)?;
    let hangs = format!(
        "{}/image,socket={{dir}}/hangs,queues=1,name=hangs",
        place.path().display()
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
    // A file that is closed while nobody answers would make the daemon wait in close(2): once told
    // that there is no flush, the kernel does not ask for it any more.
    drop(std::fs::File::open(place.path().join("image"))?);
    far.fall_silent();
    until_stuck(&mut bad)?;
    // One worker serves both.
    let until = Instant::now() + PATIENCE;
    let wanted = good.written().iter().sum::<u64>() + 2_000;
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
    let said = vblk.said();
    ensure!(said.contains("left with requests in flight"), "{said}");
    drop((good, bad));
    drop(vblk);
    drop(far);
    Ok(())
}
