//! A file system made, filled and found again.

use std::process::Command;

use anyhow::{Result, ensure};
use towpath_tests::daemon::Vblk;
use towpath_tests::paths;
use towpath_tests::vm::{Drive, PATIENCE, Vm};

use crate::{MIB, create_image};

/// The first boot finds no file system and makes one; the second finds it and checks it.
const SCRIPT: &str = r#"
if ! mount -t ext4 /dev/vda /mnt; then
    mkfs.ext4 -q -F /dev/vda
    mount -t ext4 /dev/vda /mnt
    mkdir /mnt/files
    for n in 1 2 3 4 5 6 7 8; do
        head -c $((n * 300001)) /dev/urandom >/mnt/files/$n
    done
    cd /mnt/files
    sha256sum * >../sums
    rm 3
    cp 8 3
    sha256sum * >../sums
    cd /
    sync
    echo "written $(sha256sum </mnt/sums)"
    umount /mnt
    reboot -f
fi
echo "found $(sha256sum </mnt/sums)"
cd /mnt/files
sha256sum -c ../sums >/dev/null
cd /
umount /mnt
"#;

#[test]
fn a_file_system_is_found_again_after_a_reboot() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    create_image(&image, 64 * MIB)?;
    let vblk = Vblk::serve(dir, &["{dir}/image,socket={dir}/disk"], &[])?;
    let mut vm = Vm::builder("file-system")
        .drive(Drive::new(vblk.path("disk")))
        .script(SCRIPT)
        .boot()?;
    let written = vm.wait_for("written ", PATIENCE)?;
    let found = vm.wait_for("found ", PATIENCE)?;
    ensure!(
        written == found,
        "written {written}, found {found} after the reboot"
    );
    vm.finish(PATIENCE)?;

    // The host's own tool must like what arrived in the file.
    let check = Command::new(paths::program("e2fsck")?)
        .args(["-f", "-n"])
        .arg(&image)
        .output()?;
    ensure!(
        check.status.success(),
        "e2fsck of the image:\n{}",
        String::from_utf8_lossy(&check.stdout)
    );
    Ok(())
}
