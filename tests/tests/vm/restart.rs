//! vblk goes away and comes back in the middle of a guest's writes: nothing acknowledged is lost,
//! nothing takes effect twice, nothing is torn, and the guest sees no error.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use towpath_tests::daemon::Vblk;
use towpath_tests::records::{DISK_BYTES, LANES, RECORDS, acknowledged, check_lane};
use towpath_tests::vm::{Drive, Vm};

use crate::create_image;

/// Twenty times what the scenario takes on an idle machine without KVM.
const PATIENCE: Duration = Duration::from_secs(240);

/// vblk is taken away each time this many more records were acknowledged, of `LANES * RECORDS`.
const STRETCH: u64 = 1500;
const TIMES: u64 = 3;

#[test]
fn a_planned_restart_loses_and_doubles_nothing() -> Result<()> {
    writes_survive(|vblk| vblk.daemon().stop())
}

#[test]
fn a_killed_vblk_loses_and_doubles_nothing() -> Result<()> {
    writes_survive(|vblk| vblk.daemon().kill())
}

fn writes_survive(mut take_away: impl FnMut(&mut Vblk) -> Result<()>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    create_image(&image, DISK_BYTES)?;
    let mut vblk = Vblk::serve(dir, &["{dir}/image,socket={dir}/disk,queues=2"], &[])?;
    let mut vm = Vm::builder("restart")
        .cpus(2)
        .drive(Drive::new(vblk.path("disk")).queues(2))
        .script("records write /dev/vda\nrecords verify /dev/vda\n")
        .boot()?;
    let disk = File::open(&image)?;
    for time in 1..=TIMES {
        let total = vm.wait("records acknowledged", PATIENCE, |lines| {
            let total = acknowledged(lines).iter().sum::<u64>();
            (total >= time * STRETCH).then_some(total)
        })?;
        take_away(&mut vblk)?;
        ensure!(
            total < LANES * RECORDS,
            "the guest was done before restart {time}: nothing was in flight"
        );
        // Acknowledged before, and therefore in the file now, with nobody serving it.
        for (lane, count) in (0..).zip(acknowledged(&vm.printed())) {
            check_lane(&disk, lane, count, false)
                .with_context(|| format!("while vblk was away, time {time}"))?;
        }
        vblk.start_again()?;
    }
    vm.wait_for("write ok", PATIENCE)?;
    vm.finish(PATIENCE)?;
    (0..LANES).try_for_each(|lane| check_lane(&disk, lane, RECORDS, true))
}
