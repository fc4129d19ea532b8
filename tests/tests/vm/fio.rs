//! fio writes and verifies in a guest whose disk's daemon is killed over and over: fio finds what
//! it wrote, sees no error, and is never left without an answer.
//!
//! `TOWPATH_GUEST_KILLS=20` makes it the long run. (fsx is in no package of Debian's; what it does
//! to a file, `exercise` does in `proof.rs`.)

use std::time::Duration;

use anyhow::{Result, ensure};
use towpath_tests::daemon::Vblk;
use towpath_tests::vm::{Drive, Vm};

use crate::{MIB, create_image};

/// Many times what it takes on an idle machine without KVM.
const PATIENCE: Duration = Duration::from_secs(500);

/// Kills, unless `TOWPATH_GUEST_KILLS` says otherwise.
const KILLS: usize = 6;

/// A pass writes each block once in a random order, reads back what it wrote some hundred blocks
/// ago, and at the end everything; it is repeated until it is told to stop.
const SCRIPT: &str = r"
cat >/tmp/job <<END
[global]
filename=/dev/vda
direct=1
ioengine=io_uring
iodepth=16
bs=4k
fsync=64
verify=crc32c
verify_fatal=1
verify_backlog=256
do_verify=1
[low]
rw=randwrite
offset=0
size=8m
[high]
rw=randwrite
bssplit=512/20:4k/40:64k/40
offset=8m
size=24m
END
passes() {
    until [ -e /tmp/stop ]; do
        fio /tmp/job >/tmp/out 2>&1 || { cat /tmp/out; return 1; }
        echo pass
    done
}
while sleep 1; do echo tick; done &
ticks=$!
passes &
fio=$!
read -r line
touch /tmp/stop
wait $fio
kill $ticks
dmesg | grep -i 'i/o error' && exit 4
echo verified
";

fn kills() -> usize {
    let asked = std::env::var("TOWPATH_GUEST_KILLS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(KILLS)
}

#[test]
fn fio_verifies_what_it_wrote_while_the_daemon_is_killed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    create_image(&dir.path().join("image"), 32 * MIB)?;
    let mut vblk = Vblk::serve(dir, &["{dir}/image,socket={dir}/disk,queues=2"], &[])?;
    let mut vm = Vm::builder("fio")
        .fio()
        .cpus(2)
        .memory(&[768])
        .drive(Drive::new(vblk.path("disk")).queues(2))
        .script(SCRIPT)
        .boot()?;
    let mut seen = 0;
    for _ in 0..kills() {
        seen = vm.wait("fio to go on", PATIENCE, |lines| {
            let ticks = lines.iter().filter(|line| *line == "tick").count();
            (ticks > seen).then_some(ticks)
        })?;
        vblk.daemon().kill()?;
        vblk.start_again()?;
    }
    vm.send("stop\n")?;
    vm.wait_for("verified", PATIENCE)?;
    let printed = vm.finish(PATIENCE)?;
    let passes = printed.iter().filter(|line| *line == "pass").count();
    println!("{} kills in {passes} passes", kills());
    ensure!(passes > 0, "no pass ended: {printed:?}");
    vblk.daemon().stop()
}
