//! A running guest sees its disk grow and shrink, without a reboot.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use towpath_tests::daemon::Vblk;
use towpath_tests::paths;
use towpath_tests::vm::{Drive, Vm};

use crate::{MIB, create_image};

/// Some forty times what each step takes on an idle machine without KVM.
const PATIENCE: Duration = Duration::from_secs(240);

#[test]
fn a_running_guest_sees_another_size() -> Result<()> {
    let dir = tempfile::tempdir()?;
    create_image(&dir.path().join("image"), 16 * MIB)?;
    let vblk = Vblk::serve(dir, &["{dir}/image,socket={dir}/disk,name=d,shrink"], &[])?;
    let mut vm = Vm::builder("resize")
        .drive(Drive::new(vblk.path("disk")))
        .script(
            "size() { cat /sys/block/vda/size; }
             echo sectors $(size)
             while [ $(size) = 32768 ]; do sleep 0.1; done
             echo sectors $(size)
             dd if=/dev/zero of=/dev/vda bs=4k seek=8191 count=1 oflag=direct
             mkfs.ext4 -q -F /dev/vda 4096
             echo made
             while [ $(size) = 65536 ]; do sleep 0.1; done
             echo sectors $(size)
             if dd if=/dev/zero of=/dev/vda bs=4k seek=8191 count=1 oflag=direct; then exit 3; fi",
        )
        .boot()?;
    vm.wait_for("sectors 32768", PATIENCE)?;
    vblk.client(&["disk", "resize", "d", "32M"])?;
    vm.wait_for("sectors 65536", PATIENCE)?;
    // The guest writes the last block of the larger disk, which must not be cut off before.
    vm.wait_for("made", PATIENCE)?;
    let refused = vblk.client(&["disk", "resize", "d", "8M"]);
    ensure!(refused.is_err(), "smaller without --shrink");
    vblk.client(&["disk", "resize", "d", "8M", "--shrink"])?;
    vm.wait_for("sectors 16384", PATIENCE)?;
    vm.finish(PATIENCE)?;
    // What the guest made before, below the new end, is whole.
    let check = Command::new(paths::program("e2fsck")?)
        .args(["-f", "-n"])
        .arg(vblk.path("image"))
        .output()?;
    ensure!(
        check.status.success(),
        "{}",
        String::from_utf8_lossy(&check.stdout)
    );
    Ok(())
}
