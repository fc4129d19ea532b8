//! Pinned extents by the real daemon, with the filter on its system calls: killed, started again,
//! stopped.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use rustix::fs::IFlags;
use towpath_tests::daemon::Vblk;
use towpath_tests::mounted::Mounted;

use crate::kills::{Guest, IMAGE_BYTES};

fn work(guest: &mut Guest) -> Result<()> {
    for _ in 0..300 {
        guest.post()?;
        guest.reap()?;
    }
    guest.settle()
}

#[test]
fn a_pinned_file_is_pinned_again_after_a_kill_and_free_after_a_stop() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let Some(mounted) = Mounted::image(scratch.path(), 64 << 20, &["mkfs.ext4", "-q"])? else {
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let image = mounted.path().join("image");
    // Every byte is written, or it is refused.
    let file = File::create(&image)?;
    file.write_all_at(&vec![0; usize::try_from(IMAGE_BYTES)?], 0)?;
    file.sync_all()?;
    drop(file);
    let disk = format!(
        "{},socket={{dir}}/disk,queues=1,name=d,cache=direct,map=extents",
        image.display()
    );
    let mut vblk = Vblk::serve(dir, &[&disk], &[])?;
    let mut guest = Guest::connect(&vblk)?;
    work(&mut guest)?;
    let flags = || -> Result<IFlags> { Ok(rustix::fs::ioctl_getflags(File::open(&image)?)?) };
    ensure!(flags()?.contains(IFlags::IMMUTABLE), "it is not pinned");
    vblk.daemon().kill()?;
    ensure!(flags()?.contains(IFlags::IMMUTABLE), "who took it away?");
    vblk.start_again().context("after a kill")?;
    guest.reconnect(&vblk)?;
    work(&mut guest)?;
    let shown = vblk.get("/v1/disks/d")?;
    ensure!(shown["trouble"].is_null(), "{shown}");
    vblk.daemon().stop()?;
    ensure!(!flags()?.contains(IFlags::IMMUTABLE), "it is pinned still");
    let mark = rustix::fs::getxattr(&image, "user.towpath.pinned", &mut [0u8; 8]);
    ensure!(mark.is_err(), "the mark is left: {mark:?}");
    guest.check(&File::open(&image)?)?;
    // Nobody stands in the way of whoever it belongs to.
    fs::remove_file(&image)?;
    Ok(())
}
