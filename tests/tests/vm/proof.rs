//! File systems in a guest whose disks' daemon is killed over and over: the guest sees no error,
//! its file systems are whole at the end, and the disk is, byte for byte, what the guest wrote.
//!
//! The first disk has an ext4 upon dm-log-writes, which logs each write on the second disk with its
//! data, in the order in which they completed. Replayed onto zeroes, that log must give the first
//! disk: so nothing was lost, and nothing done twice or late. The third disk has an xfs.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use towpath_tests::daemon::Vblk;
use towpath_tests::logwrites;
use towpath_tests::paths;
use towpath_tests::records::{DISK_BYTES, LANES, RECORDS, check_lane};
use towpath_tests::vm::{Drive, Vm};

use crate::{MIB, create_image};

/// Many times what the scenarios take on an idle machine without KVM.
const PATIENCE: Duration = Duration::from_secs(500);

/// Times that vblk is killed.
const KILLS: usize = 24;
/// Operations of each exerciser, and lines of `tick` between two kills.
const OPERATIONS: u64 = 1200;
const TICKS: usize = 4;

const DATA: u64 = 96 * MIB;
const LOG: u64 = 1024 * MIB;
const XFS: u64 = 320 * MIB;

fn check(program: &str, arguments: &[&str], image: &Path) -> Result<()> {
    let mut command = Command::new(paths::program(program)?);
    let output = command.args(arguments).arg(image).output()?;
    ensure!(
        output.status.success(),
        "{program}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn file_systems_stay_whole_while_their_daemon_is_killed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (name, size) in [("data", DATA), ("log", LOG), ("xfs", XFS)] {
        create_image(&dir.path().join(name), size)?;
    }
    let disk = |name| format!("{{dir}}/{name},socket={{dir}}/{name}.sock,name={name}");
    let disks = ["data", "log", "xfs"].map(disk);
    let disks: Vec<&str> = disks.iter().map(String::as_str).collect();
    let mut vblk = Vblk::serve(dir, &disks, &[])?;
    let script = format!(
        "dmsetup create logged --table \"0 {} log-writes /dev/vda /dev/vdb\"
         # Pages do not change while they are written: else log and disk might see two of them.
         echo 1 >/sys/block/dm-0/queue/stable_writes
         mkfs.ext4 -q -F -E nodiscard /dev/dm-0
         mkfs.xfs -q /dev/vdc
         mkdir /e /x
         mount -t ext4 /dev/dm-0 /e
         mount -t xfs /dev/vdc /x
         exercise file /e/one {OPERATIONS} 1 & a=$!
         exercise file /e/two {OPERATIONS} 2 & b=$!
         exercise file /x/three {OPERATIONS} 3 & c=$!
         wait $a
         wait $b
         wait $c
         umount /e
         umount /x
         dmsetup remove logged
         dmesg | grep -i 'i/o error' && exit 4
         sync",
        DATA / 512
    );
    let mut vm = Vm::builder("proof")
        .proof()
        .cpus(2)
        .memory(&[512])
        .drive(Drive::new(vblk.path("data.sock")).queues(2))
        .drive(Drive::new(vblk.path("log.sock")).queues(2))
        .drive(Drive::new(vblk.path("xfs.sock")).queues(2))
        .script(&script)
        .boot()?;
    let mut kills = 0;
    while kills < KILLS {
        let ended = vm.wait("progress", PATIENCE, |lines| {
            let ticks = lines.iter().filter(|l| l.starts_with("tick")).count();
            let over = lines.iter().filter(|l| l.ends_with("file ok")).count() == 3;
            (over || ticks >= (kills + 1) * TICKS).then_some(over)
        })?;
        ensure!(
            !ended,
            "the guest was done after {kills} kills: not much was in flight"
        );
        vblk.daemon().kill()?;
        vblk.start_again()?;
        kills += 1;
    }
    vm.finish(PATIENCE)?;
    vblk.daemon().stop()?;
    check("e2fsck", &["-f", "-n"], &vblk.path("data"))?;
    check("xfs_repair", &["-n"], &vblk.path("xfs"))?;
    let entries = replay(&vblk.path("log"), &vblk.path("data"))?;
    println!("{kills} kills, {entries} writes logged and found");
    Ok(())
}

/// The disk is what the log says; how many entries there were.
fn replay(log: &Path, disk: &Path) -> Result<u64> {
    let (model, entries) = logwrites::replay(log, None)?;
    ensure!(entries > 1000, "only {entries} entries");
    for (sector, bytes) in fs::read(disk)?.chunks_exact(512).enumerate() {
        let wanted = model.get(&(sector as u64)).copied().unwrap_or([0; 512]);
        ensure!(bytes == wanted, "sector {sector} is not what the log says");
    }
    Ok(entries)
}

/// Requests of each kind through the polled queue: 2 MiB in 4 KiB.
const POLLED: u64 = 512;

/// The driver sets up a queue without interrupts beside the one that reads and writes come through.
/// Only io_uring uses it, where it was asked to poll: what goes through that queue was polled for,
/// as nothing else would ever complete it.
#[test]
fn a_guest_polls_a_queue_of_its_own() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    create_image(&image, DISK_BYTES)?;
    let mut vblk = Vblk::serve(dir, &["{dir}/image,socket={dir}/disk,queues=2,name=d"], &[])?;
    let mut vm = Vm::builder("poll")
        .fio()
        .cpus(2)
        .memory(&[768])
        .drive(Drive::new(vblk.path("disk")).queues(2))
        .kernel_arguments("virtio_blk.poll_queues=1")
        .script(
            "echo poll $(cat /sys/block/vda/queue/io_poll)
             fio --output=/dev/ttyS0 --name=polled --filename=/dev/vda --ioengine=io_uring \
                 --hipri=1 --direct=1 --bs=4k --iodepth=4 --rw=randwrite --size=2m \
                 --verify=crc32c --verify_fatal=1
             records write /dev/vda
             records verify /dev/vda",
        )
        .boot()?;
    vm.wait_for("poll 1", PATIENCE)?;
    let disk = vblk.get("/v1/disks/d")?;
    let queues = disk["session"]["queues"].as_array().map_or(0, Vec::len);
    ensure!(queues == 2, "{queues} queues: {}", disk["session"]);
    vm.finish(PATIENCE)?;
    for kind in ["read", "write"] {
        let labels = format!("queue=\"1\",type=\"{kind}\"");
        let polled = vblk.metric("towpath_vblk_requests_total", &labels)?;
        ensure!(polled >= POLLED as f64, "{polled} {kind}s were polled for");
    }
    vblk.daemon().stop()?;
    let disk = File::open(&image)?;
    (0..LANES).try_for_each(|lane| check_lane(&disk, lane, RECORDS, true))
}
