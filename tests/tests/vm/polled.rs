//! vblk in a guest that has an NVMe device with queues that are polled: by the worker, and by a
//! thread of the kernel's. What is written is read back, FLUSH works, and the device
//! interrupts for less than half of the requests.

use std::time::Duration;

use anyhow::{Result, ensure};
use towpath_tests::vm::Vm;

use crate::{MIB, create_image};

/// Twenty times what it takes on an idle machine without KVM.
const PATIENCE: Duration = Duration::from_secs(300);

const SCENARIO: &str = r#"
# The first columns are those of the two processors.
interrupts() { awk '/nvme/ { n += $2 + $3 } END { print n + 0 }' /proc/interrupts; }
[ "$(cat /sys/block/nvme0n1/queue/io_poll)" = 1 ]
for how in device thread; do
    disk="/dev/nvme0n1,socket=/run/$how,polling=$how,queues=1"
    vblk serve --control /run/c --disk "$disk" 2>/tmp/log &
    daemon=$!
    until [ -S /run/$how ]; do sleep 0.2; done
    before=$(interrupts)
    rm -f /tmp/stop
    tenant disk /run/$how /tmp/stop >/tmp/out &
    tenant=$!
    sleep 6
    touch /tmp/stop
    wait $tenant || { cat /tmp/out /tmp/log; exit 9; }
    after=$(interrupts)
    cat /tmp/out
    requests=$(sed -n 's/^disk: \([0-9]*\) requests.*/\1/p' /tmp/out)
    echo "$how: $requests requests, $((after - before)) interrupts"
    [ "$requests" -gt 20 ]
    [ $((2 * (after - before))) -lt "$requests" ]
    kill $daemon
    wait $daemon
done
disk=/init,socket=/run/no,polling=device
if vblk serve --control /run/c --disk "$disk" 2>/tmp/log; then exit 8; fi
grep -q 'not a block device' /tmp/log
echo "done"
"#;

#[test]
fn an_nvme_device_is_polled() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    create_image(&image, 16 * MIB)?;
    let drive = format!("-drive file={},format=raw,if=none,id=n", image.display());
    let mut vm = Vm::builder("polled")
        .storage(&[&drive, "-device nvme,drive=n,serial=polled"])
        .kernel_arguments("nvme.poll_queues=1")
        .cpus(2)
        .memory(&[512])
        .script(SCENARIO)
        .boot()?;
    let printed = vm.finish(PATIENCE)?;
    println!("{printed:?}");
    ensure!(printed.iter().any(|line| line == "done"), "{printed:?}");
    Ok(())
}
