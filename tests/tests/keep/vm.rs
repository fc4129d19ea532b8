//! Virtual machines whose daemons are killed under `--keep`: QEMU's connection never closes.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use towpath_tests::daemon::Vblk;
use towpath_tests::records::{DISK_BYTES, LANES, RECORDS, acknowledged, check_lane};
use towpath_tests::vm::{Drive, Vm};

use crate::harness::{child, kills, resumed};

/// Twenty times what the scenario takes on an idle machine without KVM.
const PATIENCE: Duration = Duration::from_secs(240);

#[test]
fn a_guest_writes_on_while_its_vblk_is_killed() -> Result<()> {
    let times = u64::try_from(kills(8).min(50))?;
    let stretch = LANES * RECORDS / (times + 1);
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    File::create(&image)?.set_len(DISK_BYTES)?;
    let mut vblk = Vblk::serve(
        dir,
        &["{dir}/image,socket={dir}/disk,queues=2"],
        &["--keep"],
    )?;
    let keeper = vblk.daemon().process().child().id();
    let mut vm = Vm::builder("keep")
        .cpus(2)
        .drive(Drive::new(vblk.path("disk")).queues(2))
        .script("records write /dev/vda\nrecords verify /dev/vda\n")
        .boot()?;
    for time in 1..=times {
        let total = vm.wait("records acknowledged", PATIENCE, |lines| {
            let total = acknowledged(lines).iter().sum::<u64>();
            (total >= time * stretch).then_some(total)
        })?;
        ensure!(
            total < LANES * RECORDS,
            "the guest was done before kill {time}"
        );
        let pid = child(keeper).context("no daemon runs")?;
        kill_process(pid, Signal::KILL)?;
    }
    vm.wait_for("write ok", PATIENCE)?;
    let shown = resumed(&vblk, "/v1/disks/image", || Ok(()))?;
    // A front-end that had connected anew would be counted.
    ensure!(shown["stats"]["connections"] == 0, "{shown}");
    vm.finish(PATIENCE)?;
    let disk = File::open(&image)?;
    (0..LANES).try_for_each(|lane| check_lane(&disk, lane, RECORDS, true))
}
