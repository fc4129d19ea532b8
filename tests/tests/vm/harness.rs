//! The harness itself, on QEMU's own back-end: when this fails, the fault is not vblk's.

use std::fs::File;

use anyhow::Result;
use towpath_tests::daemon::Daemon;
use towpath_tests::records::{DISK_BYTES, LANES, RECORDS, check_lane};
use towpath_tests::vm::{Drive, PATIENCE, Vm};
use towpath_tests::{paths, process};

#[test]
fn records_reach_the_file_behind_another_back_end() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
    File::create(&image)?.set_len(DISK_BYTES)?;
    let mut daemon = process::command(&paths::program("qemu-storage-daemon")?);
    daemon
        .arg("--blockdev")
        .arg(format!("file,node-name=file,filename={}", image.display()))
        .args(["--blockdev", "raw,node-name=disk,file=file", "--export"])
        .arg(format!(
            "vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={},writable=on",
            socket.display()
        ));
    let _backend = Daemon::listening("qemu-storage-daemon", &mut daemon, &socket)?;
    let mut vm = Vm::builder("harness")
        .drive(Drive::new(&socket))
        .script("records write /dev/vda\nrecords verify /dev/vda\n")
        .boot()?;
    vm.finish(PATIENCE)?;
    let disk = File::open(&image)?;
    (0..LANES).try_for_each(|lane| check_lane(&disk, lane, RECORDS, true))
}
