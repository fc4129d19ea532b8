//! Hosts that lack something: what is said before anything is written, and that the kernel would
//! have said the same.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{IGB, IOMMU, PATIENCE, guest};

/// A specification that gives a VF to VFIO, and one that does not.
const CONFIGURE: &str = r#"
conf <<END
[[pf]]
match = { name = "eth0" }
vfs = 2
[[pf.vf]]
index = 0
driver = "vfio-pci"
END
"#;

#[test]
fn without_an_iommu_nothing_is_given_away() -> Result<()> {
    let story = format!(
        "{CONFIGURE}
         is $(code sriov-manager plan) 4
         said 'no IOMMU translates DMA'
         is $(code sriov-manager doctor) 1
         said 'BAD   an IOMMU translates DMA: no'
         sed -i 's/vfio-pci/native/' /etc/towpath/sriov-manager.toml
         is $(code sriov-manager apply) 0
         is $(driver $(vf 0)) igbvf
         echo done"
    );
    let mut vm = guest("no-iommu", &[IGB], &story).boot()?;
    let printed = vm.finish(PATIENCE)?;
    ensure!(printed.iter().any(|line| line == "done"), "{printed:?}");
    Ok(())
}

/// The group is viable and the IOMMU's capability is set; only VFIO_SET_IOMMU would tell.
#[test]
fn without_interrupt_remapping_nothing_is_given_away() -> Result<()> {
    let story = format!(
        "{CONFIGURE}
         is $(code sriov-manager scan) 0
         said 'IOMMU: yes   interrupt remapping: no'
         is $(code sriov-manager plan) 4
         said 'interrupts are not remapped'
         is $(code sriov-manager apply) 4
         # The kernel says so as well, once it is too late.
         echo 1 >/sys/bus/pci/devices/$PF/sriov_numvfs
         echo $(vf 0) >/sys/bus/pci/devices/$(vf 0)/driver/unbind
         echo vfio-pci >/sys/bus/pci/devices/$(vf 0)/driver_override
         echo $(vf 0) >/sys/bus/pci/drivers_probe
         is $(code vfio-user hold $(group $(vf 0)) $(vf 0)) 1
         said 'VFIO_SET_IOMMU: Operation not permitted'
         echo done"
    );
    let iommu = "-device intel-iommu,intremap=off,caching-mode=on";
    let mut vm = guest("no-remapping", &[iommu, IGB], &story).boot()?;
    let printed = vm.finish(PATIENCE)?;
    ensure!(printed.iter().any(|line| line == "done"), "{printed:?}");
    Ok(())
}

const ODD: &str = r#"
# The port does not tell functions apart: port, card and VFs are one group.
is $(code sriov-manager plan) 4
said "its VFs share an IOMMU group with what the host uses: $PF (igb)"
is $(code sriov-manager doctor) 1
said "shares IOMMU group"
is $(code sriov-manager scan) 0
said "(pcieport), $PF (igb)"

# NVMe: VFs of a controller, for VFIO.
NVME=$(basename $(readlink -f /sys/class/nvme/nvme0/device))
conf <<END
[[pf]]
match = { address = "$NVME" }
vfs = 2
[[pf.vf]]
index = 0
vq = 2
vi = 1
driver = "native"
[[pf.vf]]
index = 1
vq = 3
vi = 2
driver = "vfio-pci"
END
nvf() { basename $(readlink -f /sys/bus/pci/devices/$NVME/virtfn$1); }
is $(code sriov-manager plan) 3
said "VF 1: 3 queue pairs, 2 interrupts (it has none)"
is $(code sriov-manager apply) 0
is $(driver $(nvf 0)) nvme
is $(driver $(nvf 1)) vfio-pci
is $(code sriov-manager plan) 0
is $(code sriov-manager scan) 0
said "flexible: 16 queue pairs and 8 interrupts, of which it has 0 and 0 itself"
said "$(nvf 1) .* 3 queue pairs, 2 interrupts"
# The controller of the VF works: it answers its driver.
is "$(cat /sys/bus/pci/devices/$(nvf 0)/nvme/nvme*/state)" live
# Another share goes by way of taking the VF from its driver, and no other VF notices.
sed -i 's/vq = 3/vq = 4/' /etc/towpath/sriov-manager.toml
is $(code sriov-manager apply) 0
said "VF 1: take it from vfio-pci"
is $(driver $(nvf 0)) nvme
is $(driver $(nvf 1)) vfio-pci
is $(code sriov-manager plan) 0
sed -i 's/vi = 2/vi = 1/' /etc/towpath/sriov-manager.toml
is $(code sriov-manager apply) 0
said "VF 1: 4 queue pairs, 1 interrupts (it has 4 queue pairs, 2 interrupts)"
is $(code sriov-manager plan) 0
cp /etc/towpath/sriov-manager.toml /tmp/good
sed -i 's/vfs = 2/vfs = 3/' /etc/towpath/sriov-manager.toml
printf '[[pf.vf]]\nindex = 2\ndriver = "native"\n' >>/etc/towpath/sriov-manager.toml
is $(code sriov-manager plan) 4
said "VF 2 would have a driver and no queues"
sed -e 's/vq = 4/vq = 7/' /tmp/good >/etc/towpath/sriov-manager.toml
is $(code sriov-manager plan) 4
said "7 queue pairs are wanted for VF 1; it can have up to 6"
# The kernel says no as well: a VF without queues has no driver.
sed -e 's/vfs = 2/vfs = 0/; /pf.vf/,$d' /tmp/good >/etc/towpath/sriov-manager.toml
is $(code sriov-manager apply) 0
echo 1 >/sys/bus/pci/devices/$NVME/sriov_numvfs
[ ! -e /sys/bus/pci/devices/$(nvf 0)/driver ]
echo 0 >/sys/bus/pci/devices/$NVME/sriov_numvfs
echo "nvme"

# A controller with more VFs than there is room for, behind a port with little.
echo "plug"
until [ -e /sys/class/nvme/nvme1 ]; do sleep 0.2; done
BIG=$(basename $(readlink -f /sys/class/nvme/nvme1/device))
conf <<END
[[pf]]
match = { address = "$BIG" }
vfs = 1
END
is $(code sriov-manager plan) 4
said "not enough MMIO"
is $(code sh -c "echo 1 >/sys/bus/pci/devices/$BIG/sriov_numvfs") 1
dmesg | grep -q "not enough MMIO resources for SR-IOV"
echo "no room"
"#;

#[test]
fn what_the_hardware_cannot_is_said_before_it_is_tried() -> Result<()> {
    let card = "-device pcie-root-port,id=plain,chassis=7,disable-acs=on \
         -netdev hubport,id=h1,hubid=0 -device igb,bus=plain,netdev=h1,mac=52:54:00:00:01:00 \
         -device nvme-subsys,id=ss0 -device nvme,bus=slot0,serial=a,subsys=ss0,sriov_max_vfs=4,\
         sriov_vq_flexible=16,sriov_vi_flexible=8,sriov_max_vq_per_vf=6,sriov_max_vi_per_vf=4 -device nvme-subsys,id=ss1 \
         -device pcie-root-port,id=small,chassis=8,mem-reserve=1M,pref64-reserve=1M";
    let devices = [IOMMU, "-machine kernel-irqchip=split", card];
    let story = format!("{CONFIGURE}{ODD}");
    let mut vm = guest("odd-hardware", &devices, &story).boot()?;
    vm.wait_for("plug", PATIENCE)?;
    vm.monitor()?.execute(
        "device_add",
        json!({
            "driver": "nvme", "bus": "small", "serial": "b", "subsys": "ss1",
            "sriov_max_vfs": 127, "sriov_vq_flexible": 254, "sriov_vi_flexible": 1024,
            "sriov_max_vi_per_vf": 1000, "max_ioqpairs": 262, "msix_qsize": 2048,
        }),
    )?;
    let printed = vm.finish(PATIENCE)?;
    ensure!(
        ["nvme", "no room"]
            .iter()
            .all(|mark| printed.iter().any(|line| line == mark)),
        "{printed:?}"
    );
    Ok(())
}
