//! What a guest's block layer does to a device beside reading and writing it: schedulers, depths,
//! processors and the driver change while fio writes and verifies, and discarded bytes are the same
//! through the page cache and past it.
//!
//! blktests and xfstests try this and more; no package of Debian's has them. These are the subjects
//! of blktests' group `block` that a single virtio disk has.

use anyhow::{Result, ensure};
use towpath_tests::daemon::Vblk;
use towpath_tests::vm::{Drive, Vm};

use crate::{FUNCTIONS, LONG, MIB, create_image};

const SCENARIO: &str = r#"
cat >/tmp/job <<END
[global]
thread
direct=1
ioengine=io_uring
iodepth=16
rw=randwrite
bs=4k
size=2m
verify=crc32c
verify_fatal=1
do_verify=1
verify_state_save=0
randrepeat=0
filename=/dev/vda
[one]
[two]
offset=16m
END
queue=/sys/block/vda/queue
pass() {
    fio --minimal --terse-version=3 /tmp/job >/tmp/out 2>&1 ||
        { cat /tmp/out; echo "fio failed"; exit 1; }
}
in_flight() { awk '{ print $1 + $2 }' /sys/block/vda/inflight; }
load() { while [ ! -e /tmp/enough ]; do
    pass
    echo pass >>/tmp/passes
done; }
passes() { cat /tmp/passes 2>/dev/null | wc -l; }
while_loaded() {
    rm -f /tmp/enough /tmp/passes; load & fio=$!
    until [ -e /tmp/passes ] || [ $(in_flight) -gt 0 ]; do :; done
    rounds=0
    until [ $(passes) -ge 2 ] && [ $rounds -ge 4 ]; do "$@"; rounds=$((rounds + 1)); done
    touch /tmp/enough; wait $fio
    is $(in_flight) 0
    echo "$1: $rounds rounds"
}

schedulers=$(tr -d '[]' <$queue/scheduler)
depth=$(cat $queue/nr_requests)
switch() {
    for name in $schedulers; do
        echo $name >$queue/scheduler
        for n in 4 32 $depth; do echo $n >$queue/nr_requests || true; done
    done
}
while_loaded switch
echo none >$queue/scheduler

processors() {
    echo 0 >/sys/devices/system/cpu/cpu1/online; sleep 0.2
    echo 1 >/sys/devices/system/cpu/cpu1/online; sleep 0.2
}
while_loaded processors

sizes() {
    for n in 4 64 $(cat $queue/max_hw_sectors_kb); do echo $n >$queue/max_sectors_kb || true; done
}
while_loaded sizes

# The driver is taken from the device with requests in flight, which fail then, and given back.
device=$(basename $(readlink -f /sys/block/vda/device))
driver=/sys/bus/virtio/drivers/virtio_blk
for n in 1 2 3; do
    fio --minimal --terse-version=3 --continue_on_error=all /tmp/job >/tmp/out 2>&1 & fio=$!
    until [ $(in_flight) -gt 0 ]; do :; done
    echo $device >$driver/unbind
    wait $fio || true
    echo $device >$driver/bind
    until [ -b /dev/vda ]; do sleep 0.1; done
done
pass
echo "driver"

# What is discarded is so through the page cache, too, and its neighbours stay.
tr '\0' 'x' </dev/zero | dd of=/dev/vda bs=64k count=64 iflag=fullblock
sync
cat /dev/vda >/dev/null
blkdiscard -o 1048576 -l 1048576 /dev/vda
for n in 0 1 2 3; do
    dd if=/dev/vda bs=1M skip=$n count=1 of=/tmp/cached
    dd if=/dev/vda bs=1M skip=$n count=1 iflag=direct of=/tmp/direct
    cmp /tmp/cached /tmp/direct
done
is "$(dd if=/dev/vda bs=64k skip=15 count=1 iflag=direct | tr -d x | wc -c)" 0
is "$(dd if=/dev/vda bs=64k skip=16 count=16 iflag=direct | tr -d '\0' | wc -c)" 0
is "$(dd if=/dev/vda bs=64k skip=32 count=1 iflag=direct | tr -d x | wc -c)" 0
echo "discard"
"#;

#[test]
fn a_guest_changes_everything_about_a_disk_that_is_busy() -> Result<()> {
    let dir = tempfile::tempdir()?;
    create_image(&dir.path().join("image"), 64 * MIB)?;
    let vblk = Vblk::serve(dir, &["{dir}/image,socket={dir}/disk,queues=2,name=d"], &[])?;
    let mut vm = Vm::builder("block")
        .drive(Drive::new(vblk.path("disk")).queues(2))
        .fio()
        .cpus(2)
        .memory(&[512])
        .script(&format!("{FUNCTIONS}{SCENARIO}"))
        .boot()?;
    let printed = vm.finish(LONG)?;
    for mark in ["switch: ", "processors: ", "sizes: ", "driver", "discard"] {
        let found = printed.iter().any(|line| line.starts_with(mark));
        ensure!(found, "{mark}: {printed:?}");
    }
    println!("{printed:?}");
    let shown = vblk.get("/v1/disks/d")?;
    let broken = &shown["stats"]["ring_broken"];
    ensure!(broken.as_object().is_none_or(|b| b.is_empty()), "{shown}");
    Ok(())
}
