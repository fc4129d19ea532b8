//! What Debian's kernel lacks: iommufd with a node for each device, and netdevsim, whose eswitch
//! can be switched. `make iommufd` fetches a kernel that has them and runs this; without that
//! kernel, what is here is skipped, and says so.

use anyhow::{Result, ensure};
use towpath_tests::initramfs::modern;
use towpath_tests::vm::Vm;

use crate::{IGB, IOMMU, PATIENCE, POOL, PRELUDE};

const STORY: &str = r#"
ip link set eth0 up
serve
said "3 VFs, 0 leased"
is $(code sriov-manager scan) 0
said "iommufd: yes"

# Nobody gets an iommufd and the device, binds them, maps memory, and is seen as their holder.
vmm vm42
vm42=$vmm
is $(code sriov-manager scan) 0
said "leased to vm42, open in vfio-user, process $vm42"
is $(code sriov-manager lease list) 0
said "vm42 .*active"
echo "unprivileged"

# A command that becomes the owner gets them by number.
mkfifo /tmp/hold43
sriov-manager exec --pool fast --owner vm43 -- \
    vfio-user iommufd {iommufd} {device_fd} {address} </tmp/hold43 >/tmp/vm43 &
vm43=$!
exec 5>/tmp/hold43
until grep -q "using .* as 0" /tmp/vm43; do kill -0 $vm43; sleep 0.1; done
is $(code sriov-manager exec --pool fast -- true) 1
said "all 2 VFs of fast are in use"
echo "exec"

# No copy is kept: the device is free as soon as its owner is dead, and the next one binds it.
kill -9 $vm42
wait $vm42 || true
until [ "$(sriov-manager lease list | grep -c vm42)" = 0 ]; do sleep 0.2; done
vmm vm44
echo "again"

# The eswitch, of a device that has one.
echo "7 1" >/sys/bus/netdevsim/new_device
is $(code eswitch netdevsim7) 0
said "legacy"
is $(code eswitch netdevsim7 switchdev) 0
said "switchdev"
is $(code eswitch netdevsim7 legacy) 0
said "legacy"
is $(code eswitch netdevsim9) 0
said "none"
is $(code eswitch netdevsim9 legacy) 1
echo "eswitch"
"#;

#[test]
fn devices_with_nodes_of_their_own_are_leased() -> Result<()> {
    if !modern().is_dir() {
        println!("skipped: there is no kernel with iommufd; run: make iommufd");
        return Ok(());
    }
    let devices = [IOMMU, "-machine kernel-irqchip=split", IGB];
    let mut vm = Vm::builder("iommufd")
        .memory(&[512])
        .iommufd(&devices)
        .kernel_arguments("intel_iommu=on")
        .script(&format!("{PRELUDE}{POOL}{STORY}"))
        .boot()?;
    let printed = vm.finish(PATIENCE)?;
    let marks = ["unprivileged", "exec", "again", "eswitch"];
    ensure!(
        marks
            .iter()
            .all(|mark| printed.iter().any(|line| line == mark)),
        "it printed {printed:?}"
    );
    Ok(())
}
