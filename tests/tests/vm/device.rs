//! The shapes a disk comes in: queues, blocks, read-only, several at once, odd guest memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use towpath_tests::daemon::Vblk;
use towpath_tests::records::{DISK_BYTES, LANES, RECORDS, check_lane, offset, record};
use towpath_tests::vm::{Drive, PATIENCE, Vm};

use crate::{MIB, create_image};

#[test]
fn four_queues_are_all_used() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    create_image(&image, DISK_BYTES)?;
    let vblk = Vblk::serve(
        dir,
        &["{dir}/image,socket={dir}/disk,queues=4,name=four"],
        &[],
    )?;
    let mut vm = Vm::builder("queues")
        .cpus(4)
        .drive(Drive::new(vblk.path("disk")).queues(4).queue_size(256))
        .script(
            "ls /sys/block/vda/mq | wc -l
             records write /dev/vda
             for cpu in 0 1 2 3; do
                 taskset -c $cpu dd if=/dev/vda of=/dev/null bs=64k count=64 iflag=direct
             done",
        )
        .boot()?;
    let printed = vm.finish(PATIENCE)?;
    ensure!(
        printed[0] == "4",
        "the guest sees {} hardware queues",
        printed[0]
    );
    let disk = File::open(&image)?;
    (0..LANES).try_for_each(|lane| check_lane(&disk, lane, RECORDS, true))?;
    for queue in 0..4 {
        let labels = format!("queue=\"{queue}\"");
        let requests = vblk.metric("towpath_vblk_requests_total", &labels)?;
        ensure!(requests >= 64.0, "queue {queue} served {requests} requests");
    }
    Ok(())
}

#[test]
fn a_read_only_disk_is_read_and_never_written() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    create_image(&image, DISK_BYTES)?;
    let disk = File::options().write(true).open(&image)?;
    for lane in 0..LANES {
        for seq in 0..RECORDS {
            disk.write_all_at(&record(lane, seq).0, offset(lane, seq))?;
        }
    }
    let before = fs::read(&image)?;
    let vblk = Vblk::serve(dir, &["{dir}/image,socket={dir}/disk,ro"], &[])?;
    let mut vm = Vm::builder("read-only")
        .drive(Drive::new(vblk.path("disk")))
        .script(
            "[ $(cat /sys/block/vda/ro) = 1 ]
             records verify /dev/vda
             if dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct; then exit 3; fi
             if mkfs.ext4 -q -F /dev/vda; then exit 4; fi
             records verify /dev/vda",
        )
        .boot()?;
    vm.finish(PATIENCE)?;
    ensure!(fs::read(&image)? == before, "the image changed");
    Ok(())
}

#[test]
fn two_disks_of_one_daemon_stay_apart() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let images = [dir.path().join("a"), dir.path().join("b")];
    create_image(&images[0], DISK_BYTES)?;
    create_image(&images[1], DISK_BYTES + MIB)?;
    let vblk = Vblk::serve(
        dir,
        &[
            "{dir}/a,socket={dir}/disk-a,serial=first",
            "{dir}/b,socket={dir}/disk-b,serial=second,cache=buffered",
        ],
        &[],
    )?;
    let mut vm = Vm::builder("two-disks")
        .cpus(2)
        .drive(Drive::new(vblk.path("disk-a")))
        .drive(Drive::new(vblk.path("disk-b")))
        .script(
            "cat /sys/block/vda/serial /sys/block/vdb/serial
             echo
             cat /sys/block/vda/size /sys/block/vdb/size
             records write /dev/vda &
             dd if=/dev/urandom of=/dev/vdb bs=64k oflag=direct || true
             wait $!
             records verify /dev/vda
             # Sectors of 512 bytes, and better not less than 4 KiB (512e).
             cd /sys/block/vdb/queue
             cat logical_block_size physical_block_size minimum_io_size
             for sector in 3 9 4095; do
                 dd if=/dev/vda of=/dev/vdb bs=512 count=1 seek=$sector oflag=direct
             done
             echo \"second $(sha256sum </dev/vdb)\"",
        )
        .boot()?;
    let printed = vm.finish(PATIENCE)?;
    let (serials, sizes) = (printed[0].as_str(), [&printed[1], &printed[2]]);
    ensure!(
        serials == "firstsecond",
        "the guest sees serial numbers {serials}"
    );
    let sectors = [DISK_BYTES / 512, (DISK_BYTES + MIB) / 512].map(|size| size.to_string());
    ensure!(
        sizes == [&sectors[0], &sectors[1]],
        "the guest sees {sizes:?} sectors"
    );
    let blocks = ["512", "4096", "4096"];
    ensure!(
        printed.windows(3).any(|lines| lines == blocks),
        "the guest sees other blocks than {blocks:?}: {printed:?}"
    );

    let disk = File::open(&images[0])?;
    (0..LANES).try_for_each(|lane| check_lane(&disk, lane, RECORDS, true))?;
    let seen = vm.wait_for("second ", PATIENCE)?;
    let output = std::process::Command::new("sha256sum")
        .stdin(File::open(&images[1])?)
        .output()?;
    ensure!(
        String::from_utf8_lossy(&output.stdout).trim() == seen,
        "/dev/vdb differs"
    );
    Ok(())
}

#[test]
fn blocks_of_4_kib_reach_the_guest() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    create_image(&image, DISK_BYTES)?;
    let vblk = Vblk::serve(dir, &["{dir}/image,socket={dir}/disk,block-size=4096"], &[])?;
    let mut vm = Vm::builder("4k-blocks")
        .drive(Drive::new(vblk.path("disk")))
        .script(
            "cat /sys/block/vda/queue/logical_block_size
             mkfs.ext4 -q -F /dev/vda
             mount -t ext4 /dev/vda /mnt
             echo kept >/mnt/file
             umount /mnt
             mount -t ext4 /dev/vda /mnt
             [ $(cat /mnt/file) = kept ]
             umount /mnt
             dd if=/dev/zero of=/dev/vda bs=1M count=32 oflag=direct
             records write /dev/vda
             records verify /dev/vda",
        )
        .boot()?;
    let printed = vm.finish(PATIENCE)?;
    ensure!(
        printed[0] == "4096",
        "the guest sees blocks of {}",
        printed[0]
    );
    let disk = File::open(&image)?;
    (0..LANES).try_for_each(|lane| check_lane(&disk, lane, RECORDS, true))
}

#[test]
fn guest_memory_of_two_back_ends_is_reached() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    create_image(&image, DISK_BYTES)?;
    let vblk = Vblk::serve(dir, &["{dir}/image,socket={dir}/disk"], &[])?;
    // A program on processor N has its pages, and so its buffers, in back-end N.
    let mut vm = Vm::builder("two-memories")
        .memory(&[192, 192])
        .cpus(2)
        .drive(Drive::new(vblk.path("disk")))
        .script(
            "ls -d /sys/devices/system/node/node[0-9] | wc -l
             for cpu in 0 1; do
                 taskset -c $cpu records write /dev/vda
                 taskset -c $((1 - cpu)) records verify /dev/vda
                 [ $cpu = 1 ] || dd if=/dev/zero of=/dev/vda bs=1M oflag=direct || true
             done",
        )
        .boot()?;
    let printed = vm.finish(PATIENCE)?;
    ensure!(
        printed[0] == "2",
        "the guest sees {} memory nodes",
        printed[0]
    );
    let disk = File::open(&image)?;
    (0..LANES).try_for_each(|lane| check_lane(&disk, lane, RECORDS, true))
}

#[test]
fn a_back_end_in_client_mode_serves_one_guest_after_the_other() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    create_image(&image, DISK_BYTES)?;
    // Nobody listens yet: it must go on trying, now and after the first guest is gone.
    let vblk = Vblk::serve(dir, &["{dir}/image,socket={dir}/disk,client"], &[])?;
    for verb in ["write", "verify"] {
        let mut vm = Vm::builder("client-mode")
            .drive(Drive::new(vblk.path("disk")).listens())
            .script(&format!("records {verb} /dev/vda"))
            .boot()?;
        vm.finish(PATIENCE)?;
    }
    Ok(())
}
