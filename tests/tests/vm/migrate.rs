//! A guest that moves to another QEMU, and its disk to another daemon, while it writes and reads.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use towpath_tests::daemon::Vblk;
use towpath_tests::guest::Guest;
use towpath_tests::paths;
use towpath_tests::vm::{Builder, Drive, Turn, Vm};

use crate::{MIB, create_image};

fn machine(name: &str, vblk: &Vblk) -> Builder {
    Vm::builder(name)
        .proof()
        .drive(Drive::new(vblk.path("disk")))
}

fn serve(image: &Path, lock: &str) -> Result<Vblk> {
    let disk = format!("{},socket={{dir}}/disk,lock={lock}", image.display());
    Vblk::serve(tempfile::tempdir()?, &[&disk], &[])
}

fn writes(vblk: &Vblk) -> Result<u64> {
    let shown = vblk.get("/v1/disks/image")?;
    let queues = shown["stats"]["queues"]
        .as_array()
        .context("queues")?
        .clone();
    let counts = queues
        .iter()
        .map(|queue| queue["requests"]["write"].as_u64());
    counts.sum::<Option<u64>>().context("no counts")
}

/// What the exerciser reads is compared with what it has in memory: data that arrived in guest
/// memory and was not marked dirty would be missing there after the move.
#[test]
fn a_guest_moves_and_its_disk_with_it() -> Result<()> {
    let turn = Turn::take()?;
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    create_image(&image, 256 * MIB)?;
    let (one, two) = (serve(&image, "running")?, serve(&image, "running")?);
    let mut guest = Guest::boot_as(machine("from", &one), &turn)?;
    guest.up()?;
    guest.run("mkfs.ext4 -q -F /dev/vda; mount -t ext4 /dev/vda /mnt")?;
    let refused = serve(&image, "open")
        .err()
        .context("the file is not locked")?;
    ensure!(format!("{refused:#}").contains("in use"), "{refused:#}");

    for (round, (from, to)) in [(&one, &two), (&two, &one)].into_iter().enumerate() {
        let meeting = dir.path().join(format!("meeting{round}"));
        let there = machine("there", to).incoming(&meeting);
        let there = Guest::boot_as(there, &turn)?;
        let before = writes(to)?;
        let load = guest.start(&format!("exercise file /mnt/{round} 400 {round}"))?;
        guest.migrate(there, &meeting)?;
        guest.end(load)?;
        guest.run("sync")?;
        ensure!(writes(to)? > before, "it does not write there");
        let left = from.get("/v1/disks/image")?;
        ensure!(left["connected"] == false, "still there: {left}");
    }
    guest.run("umount /mnt")?;
    guest.quit(towpath_tests::guest::PATIENCE)?;
    let check = Command::new(paths::program("e2fsck")?)
        .args(["-f", "-n"])
        .arg(&image)
        .output()?;
    ensure!(
        check.status.success(),
        "{}",
        String::from_utf8_lossy(&check.stdout)
    );
    for vblk in [&one, &two] {
        let shown = vblk.get("/v1/disks/image")?;
        let broken = &shown["stats"]["ring_broken"];
        ensure!(broken.as_object().is_none_or(|b| b.is_empty()), "{broken}");
    }
    Ok(())
}
