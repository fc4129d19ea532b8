//! The operator's page, followed from two NICs to a machine with a VF: its own configuration, and
//! its own commands in their order. Of QEMU, Cloud Hypervisor and systemctl only what the page
//! needs is there, as scripts.

use anyhow::{Context, Result, ensure};

use crate::{IGB, IOMMU, PATIENCE, guest};

const PAGE: &str = include_str!("../../../sriov-manager/README.md");

/// A second card, which the page's configuration does not mean.
const OTHER: &str = "-netdev hubport,id=h2,hubid=1 -device igb,bus=slot1,netdev=h2,\
     mac=52:54:00:00:09:00";

const STORY: &str = r#"
# A VMM says which VF it was told to open, and what it finds.
cat >/bin/vmm <<'END'
#!/bin/sh
vf=$(echo "$*" | grep -o '0000:[0-9a-f:.]*')
driver=$(basename $(readlink -f /sys/bus/pci/devices/$vf/driver))
group=$(basename $(readlink -f /sys/bus/pci/devices/$vf/iommu_group))
lease=$(sriov-manager lease list | grep -c "^$vf  *fast  *vm42 .*active")
echo "$(basename $0) $driver $(ls /dev/vfio/$group) $lease" >>/tmp/vmms
END
chmod +x /bin/vmm
ln -s vmm /bin/qemu-system-x86_64
ln -s vmm /bin/cloud-hypervisor
cat >/bin/systemctl <<'END'
#!/bin/sh
[ "$*" = "enable --now sriov-manager" ] || exit 1
sriov-manager serve >/tmp/log 2>&1 &
until sriov-manager status; do sleep 0.2; done
END
chmod +x /bin/systemctl
free() { until [ "$(sriov-manager lease list | grep -c vm42)" = 0 ]; do sleep 0.2; done; }

# Without a configuration the way on is said once.
is $(code sriov-manager plan) 2
is "$(grep -o 'No such file' /tmp/out | wc -l)" 1
is $(code sriov-manager scan) 0
said "eth0 *igb *0/7"
said "eth1 *igb *0/7"
code sriov-manager doctor >/dev/null
said "good  an IOMMU translates DMA: yes"
mkdir -p /etc/towpath
cp /tmp/page.toml /etc/towpath/sriov-manager.toml
is $(code sh -e /tmp/page1) 3
said "make 4 VFs (4 are wanted)"
said "VF 3: bind to vfio-pci (this driver is wanted)"
ls -d /sys/bus/pci/devices/*/virtfn* && exit 9
is $(code sh -e /tmp/page2) 0
said "^applied: "
said "^4 VFs, 0 leased"
is $(code sriov-manager apply) 0
said "nothing to do"
is $(ls -d /sys/bus/pci/devices/$PF/virtfn* | wc -l) 4
ip link show eth0 >/tmp/out
is $(grep -c "vlan 100" /tmp/out) 4
is $(grep "vf [0-3]" /tmp/out | grep -o "link/ether [0-9a-f:]*" | sort -u | grep -cv 00:00:00:00) 4
is $(code sh -e /tmp/page3) 0
free
is "$(sed 's,/dev/vfio/[0-9]*,node,' /tmp/vmms | tr '\n' ';')" \
    "qemu-system-x86_64 vfio-pci node 1;cloud-hypervisor vfio-pci node 1;"
is $(code sriov-manager plan) 0
echo "followed"
"#;

/// The page's blocks that begin with the line `fence`.
fn blocks(fence: &str) -> impl Iterator<Item = &str> {
    let parts = PAGE.split("```").skip(1).step_by(2);
    parts.filter_map(move |part| part.strip_prefix(fence))
}

#[test]
fn the_page_leads_from_two_cards_to_a_machine_with_a_vf() -> Result<()> {
    let toml = blocks("toml sriov-manager\n").next();
    let toml = toml.context("no configuration")?;
    let mut story = format!("cat >/tmp/page.toml <<'PAGE'\n{toml}PAGE\n");
    let commands: Vec<&str> = blocks("sh manual\n").collect();
    ensure!(commands.len() == 3, "not three blocks: {commands:?}");
    for (number, block) in (1..).zip(commands) {
        story.push_str(&format!("cat >/tmp/page{number} <<'PAGE'\n{block}PAGE\n"));
    }
    story.push_str(STORY);
    let devices = [IOMMU, "-machine kernel-irqchip=split", IGB, OTHER];
    let mut vm = guest("sriov-page", &devices, &story).boot()?;
    let printed = vm.finish(PATIENCE)?;
    ensure!(printed.iter().any(|line| line == "followed"), "{printed:?}");
    Ok(())
}
