//! vblk on devices of a guest's own: one that fails and comes back, one that is taken away, one
//! that is polled, one in partitions, one of which is mounted, and one whose log tells what was
//! durable when.

use anyhow::Result;
use std::path::Path;
use towpath_tests::vm::Vm;

use crate::{FUNCTIONS, create_image, finish};

/// After what [`what_was_flushed_was_durable_and_one_device_that_fails_is_one`] does.
const PARTITIONS: &str = r#"
# Two partitions of a disk: of 4 MiB from 1 MiB on, and of 2 MiB right after it.
truncate -s 8M /tmp/whole
put() { printf "$1" | dd of=/tmp/whole bs=1 seek=$2 conv=notrunc; }
put '\000\000\000\000\203\000\000\000\000\010\000\000\000\040\000\000' 446
put '\000\000\000\000\203\000\000\000\000\050\000\000\000\020\000\000' 462
put '\125\252' 510
head -c 1048576 /tmp/whole >/tmp/head
losetup /dev/loop4 /tmp/whole
for n in $(seq 50); do [ -b /dev/loop4p2 ] && break; sleep 0.2; done
refused() { code vblk serve --control /run/x --disk "$1,socket=/run/xs"; }
kill $!
wait $! || exit 9
serve --disk /dev/loop4p1,socket=/run/p1,name=p1 --disk /dev/loop4p2,socket=/run/p2,name=p2
is $(code vblk disk show p1 --control /run/c) 0
said 'size       4M'
is $(code vblk disk show p2 --control /run/c) 0
said 'size       2M'
is $(refused /dev/loop4) 1
said 'in use'
is $(refused /dev/loop4p2) 1
is $(code tenant fill /run/p1 7) 0
is $(code tenant fill /run/p2 8) 0
is $(code tenant verify /run/p1 7) 0
tenant pattern 7 4194304 >/tmp/pattern
tenant pattern 8 2097152 >>/tmp/pattern
head -c 1048576 /tmp/whole | cmp - /tmp/head
tail -c +1048577 /tmp/whole | head -c 6291456 | cmp - /tmp/pattern
is $(tail -c 1048576 /tmp/whole | tr -d '\000' | wc -c) 0
is $(code tenant trim /run/p1) 0
tail -c +3145729 /tmp/whole | head -c 4194304 >/tmp/kept
tail -c +2097153 /tmp/pattern | cmp - /tmp/kept
kill $!
wait $! || exit 9
# Somebody has the whole disk: by which its partitions are in use as well.
dmsetup create held --table "0 16384 linear /dev/loop4 0"
is $(refused /dev/loop4p1) 1
said 'stands on /dev/loop4'
dmsetup remove held
serve --disk /dev/loop4p2,socket=/run/p2,name=p2
is $(code tenant verify /run/p2 8) 0
echo "partitions"
"#;

/// After what [`PARTITIONS`] does: a disk whose partition is mounted.
const MOUNTED: &str = r#"
kill $!
wait $! || exit 9
mke2fs /dev/loop4p1 4096 >&2
mount -t ext4 /dev/loop4p1 /mnt
for how in "" ,ro; do
    is $(refused /dev/loop4p1$how) 1
    said '/dev/loop4p1 is in use.*it is mounted at /mnt'
    is $(refused /dev/loop4$how) 1
    said '/dev/loop4 is in use.*/dev/loop4p1 is mounted at /mnt'
done
# Its neighbour is nobody's.
serve --disk /dev/loop4p2,socket=/run/p2,name=p2
is $(code tenant verify /run/p2 8) 0
kill $!
wait $! || exit 9
# What nobody writes to may be read by others.
mount -o remount,ro /mnt
is $(refused /dev/loop4p1) 1
said 'it is mounted at /mnt'
serve --disk /dev/loop4,ro,socket=/run/whole,name=whole
is $(code vblk disk show whole --control /run/c) 0
said 'size       8M'
kill $!
wait $! || exit 9
umount /mnt
serve --disk /dev/loop4p1,socket=/run/p1,name=p1
is $(code tenant fill /run/p1 9) 0
is $(code tenant verify /run/p1 9) 0
kill $!
wait $! || exit 9
serve --disk /dev/loop4,socket=/run/whole,name=whole
is $(code vblk disk show whole --control /run/c) 0
said 'size       8M'
echo "mounted"
"#;

/// `fill` ends with a FLUSH that was acknowledged. What the log has then is all that a power cut at
/// that moment would leave, and it must be the whole pattern; killing vblk in between changes
/// nothing.
#[test]
fn what_was_flushed_was_durable_and_one_device_that_fails_is_one() -> Result<()> {
    let scenario = r#"
for n in 0 1 2 3; do
    truncate -s 64M /tmp/store$n
    losetup /dev/loop$n /tmp/store$n
done
# Nobody else makes the nodes.
export DM_DISABLE_UDEV=1
dmsetup create logged --table "0 16384 log-writes /dev/loop0 /dev/loop1"
dmsetup create frail --table "0 16384 linear /dev/loop2 0"
serve() {
    vblk serve --control /run/c "$@" &
    until vblk disk list --control /run/c >/tmp/list; do sleep 0.2; done
}
logged="--disk /dev/mapper/logged,socket=/run/log"
serve $logged
for seed in 1 2 3; do
    is $(code tenant fill /run/log $seed) 0
    dmsetup message logged 0 mark m$seed
    if [ $seed = 2 ]; then kill -9 $!; wait $! || true; serve $logged; fi
done
kill $!
wait $! || exit 9
# The kernel writes the log behind the writes; what is in it now is all of it.
dmsetup remove logged
for seed in 1 2 3; do
    tenant pattern $seed 8388608 >/tmp/pattern
    tenant replay /dev/loop1 m$seed 8388608 | cmp - /tmp/pattern
done
echo "durable"

serve --disk /dev/mapper/frail,socket=/run/frail --disk /dev/loop3,socket=/run/firm
is $(code tenant fill /run/frail 5) 0
dmsetup suspend frail
dmsetup reload frail --table "0 16384 error"
dmsetup resume frail
is $(code tenant refused /run/frail) 0
is $(code tenant fill /run/firm 6) 0
is $(code vblk disk show frail --control /run/c) 0
dmsetup suspend frail
dmsetup reload frail --table "0 16384 linear /dev/loop2 0"
dmsetup resume frail
is $(code tenant verify /run/frail 5) 0
is $(code tenant verify /run/firm 6) 0
echo "frail"
"#;
    let vm = Vm::builder("devices")
        .volumes()
        .memory(&[768])
        .kernel_arguments("loop.max_part=8")
        .script(&format!("{FUNCTIONS}{scenario}{PARTITIONS}{MOUNTED}"))
        .boot()?;
    finish(vm, &["durable", "frail", "partitions", "mounted"])
}

fn nvme(name: &str, image: &Path) -> String {
    format!(
        "-drive file={},format=raw,if=none,id={name} \
         -device nvme,drive={name},serial={name},bus=port-{name}",
        image.display()
    )
}

/// The kernel polls for what vblk polls for, and a device that is pulled takes its disk along, and
/// nothing else.
#[test]
fn nvme_devices_are_polled_and_one_is_pulled() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut devices = Vec::new();
    // Where everybody polls on two emulated processors, a request takes its time.
    for (chassis, name, mib) in [(41, "one", 4), (42, "two", 1)] {
        let image = dir.path().join(name);
        create_image(&image, mib << 20)?;
        devices.push(format!(
            "-device pcie-root-port,id=port-{name},chassis={chassis}"
        ));
        devices.push(nvme(name, &image));
    }
    let scenario = r#"
for n in $(seq 100); do
    [ -b /dev/nvme0n1 ] && [ -b /dev/nvme1n1 ] && break
    sleep 0.2
done
is "$(cat /sys/block/nvme0n1/queue/io_poll)" 1
vblk serve --control /run/c --disk /dev/nvme0n1,socket=/run/a,name=a,polling=device \
    --disk /dev/nvme1n1,socket=/run/b,name=b,polling=thread &
until vblk disk list --control /run/c >/tmp/list; do sleep 0.2; done
before=$(awk '/nvme0q/ { n += $2 } END { print n }' /proc/interrupts)
is $(code tenant fill /run/a 1) 0
is $(code tenant verify /run/a 1) 0
after=$(awk '/nvme0q/ { n += $2 } END { print n }' /proc/interrupts)
# Thousands of requests; FLUSH and what the kernel does by itself interrupts.
[ $((after - before)) -lt 200 ] || { echo "$before to $after interrupts"; exit 9; }
is $(code tenant fill /run/b 2) 0
is $(code tenant verify /run/b 2) 0
is $(code tenant trim /run/a) 0
echo "polled"
echo 1 >/sys/class/nvme/nvme0/device/remove
is $(code tenant refused /run/a) 0
is $(code tenant fill /run/b 3) 0
is $(code tenant verify /run/b 3) 0
is $(code vblk disk show a --control /run/c) 0
kill $!
wait $! || exit 9
echo "pulled"
"#;
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    let vm = Vm::builder("nvme")
        .storage(&devices)
        .memory(&[512])
        // No more than processors.
        .cpus(2)
        .kernel_arguments("nvme.poll_queues=1")
        .script(&format!("{FUNCTIONS}{scenario}"))
        .boot()?;
    finish(vm, &["polled", "pulled"])
}
