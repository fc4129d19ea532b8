//! A card that is pulled while a machine has one of its VFs, put back, and pulled again.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{IGB, IOMMU, PATIENCE, POOL, guest};

const STORY: &str = r#"
ip link set eth0 up
serve
vmm vm42
echo "plugged"

# The kernel takes the VF from its PF and waits for whoever has it, igb before it does anything else.
# Nobody else waits: not the daemon, not a look at the host.
until sriov-manager lease list | grep -q "vm42 .*lost"; do sleep 0.2; done
[ -e /sys/bus/pci/devices/$PF ]
is $(code timeout 30 sriov-manager scan) 0
said "leased to vm42, open in vfio-user, process $vmm, the kernel is removing it"
! grep wedged /tmp/out
is $(code timeout 30 sriov-manager plan) 4
said "in use are VF 0"
is $(code timeout 30 sriov-manager status) 0
kill -0 $vmm
kill -0 $daemon
echo "lost"

# Its owner ends: the card goes, and the lease with it.
exec 4>&-
wait $vmm
until [ ! -e /sys/bus/pci/devices/$PF ]; do sleep 0.2; done
until [ "$(sriov-manager lease list | grep -c vm42)" = 0 ]; do sleep 0.2; done
is $(code timeout 30 sriov-manager plan) 4
said "no PF matches"
echo "gone"

# It is put back: the daemon makes its VFs without being told.
until [ -e /sys/class/net/eth0 ]; do sleep 0.2; done
until sriov-manager status >/tmp/out && grep -q "3 VFs, 0 leased" /tmp/out; do sleep 0.2; done
until [ -e /sys/bus/pci/devices/$PF/virtfn2 ]; do sleep 0.2; done
until is $(code sriov-manager plan) 0; do sleep 0.5; done
vmm vm43
exec 4>&-
wait $vmm
until [ "$(sriov-manager lease list | grep -c vm43)" = 0 ]; do sleep 0.2; done
echo "back"

# Pulled while nobody has anything of it.
until [ ! -e /sys/bus/pci/devices/$PF ]; do sleep 0.2; done
is $(code timeout 30 sriov-manager status) 0
kill $daemon
wait $daemon
! grep -i panic /tmp/log
echo "free"
"#;

#[test]
fn a_card_that_is_pulled_is_its_lessees_until_they_end() -> Result<()> {
    let devices = [IOMMU, "-machine kernel-irqchip=split", IGB];
    let mut vm = guest("sriov-unplug", &devices, &format!("{POOL}{STORY}")).boot()?;
    vm.wait_for("plugged", PATIENCE)?;
    let mut monitor = vm.monitor()?;
    monitor.execute("device_del", json!({"id": "card"}))?;
    vm.wait_for("gone", PATIENCE)?;
    monitor.event("DEVICE_DELETED", |data| data["device"] == "card")?;
    monitor.execute(
        "device_add",
        json!({
            "driver": "igb", "id": "card", "bus": "slot0", "netdev": "h1",
            "mac": "52:54:00:00:01:00",
        }),
    )?;
    vm.wait_for("back", PATIENCE)?;
    monitor.execute("device_del", json!({"id": "card"}))?;
    let printed = vm.finish(PATIENCE)?;
    let marks = ["lost", "gone", "back", "free"];
    ensure!(
        marks
            .iter()
            .all(|mark| printed.iter().any(|line| line == mark)),
        "it printed {printed:?}"
    );
    Ok(())
}
