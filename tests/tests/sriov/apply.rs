//! Scan, plan, apply, and what the kernel says afterwards.

use anyhow::{Result, ensure};

use crate::{IGB, IOMMU, PATIENCE, guest};

const STORY: &str = r#"
ip link set eth0 up
conf <<END
[daemon]
write_deadline = 120
[[pf]]
match = { mac = "52:54:00:00:01:00" }
vfs = 7
[[pf.vf]]
range = "0-1"
mac = "derived"
driver = "vfio-pci"
vlan = 100
qos = 3
[[pf.vf]]
index = 2
mac = "52:54:00:00:02:02"
trust = true
spoof_check = false
max_rate = 200
[[pf.vf]]
index = 3
driver = "native"
END

is $(code sriov-manager scan) 0
said "IOMMU: yes   interrupt remapping: yes   vfio-pci: yes"
said "eth0 *igb *0/7"
said "room: .* KiB a VF, .* all VFs reach bus 01, the port bus 0"
is $(code sriov-manager plan) 3
said "make 7 VFs"
is $(code sriov-manager apply) 0
said "applied"
echo "applied"
is $(code sriov-manager plan) 0
is $(code sriov-manager apply) 0
said "nothing to do"

# What the kernel says.
is $(driver $(vf 0)) vfio-pci
is $(driver $(vf 1)) vfio-pci
is $(driver $(vf 3)) igbvf
ip link show eth0 >/tmp/out
said "vf 0 .* vlan 100, qos 3, spoof checking on, link-state auto, trust off"
said "vf 2 .*52:54:00:00:02:02 .*max_tx_rate 200Mbps, spoof checking off, .*trust on"
grep -q "vf 0.*link/ether 00:00:00:00:00:00" /tmp/out && exit 9
is $(code sriov-manager scan) 0
said "$(vf 0).*vfio-pci.*yes"
echo "read back"

# A VM has VF 1: nothing that would touch it is done, and everything else is.
mkfifo /tmp/hold
vfio-user hold $(group $(vf 1)) $(vf 1) </tmp/hold >/tmp/held &
holder=$!
exec 4>/tmp/hold
until grep -q using /tmp/held; do sleep 0.1; done
is $(code sriov-manager scan) 0
said "open in vfio-user, process $holder"
sed -i 's/vfs = 7/vfs = 6/' /etc/towpath/sriov-manager.toml
is $(code sriov-manager plan) 4
said "refused: .*in use are VF 1 ($(vf 1)): open in vfio-user, process $holder"
is $(code sriov-manager apply) 4
said "nothing was changed"
sed -i 's/vfs = 6/vfs = 7/; s/vlan = 100/vlan = 101/' /etc/towpath/sriov-manager.toml
is $(code sriov-manager apply) 4
sed -i 's/vlan = 101/vlan = 100/; s/max_rate = 200/max_rate = 300/' /etc/towpath/sriov-manager.toml
is $(code sriov-manager apply) 0
ip link show eth0 >/tmp/out
said "vf 2 .*max_tx_rate 300Mbps"
kill -0 $holder
echo "held"

# A write that never returns takes its writer and nobody else.
printf '/sys/bus/pci/devices/%s/sriov_numvfs\0000\000' $PF >/tmp/order
sriov-manager write-orders </tmp/order >/tmp/answer 4>&- &
writer=$!
sleep 3
[ -s /tmp/answer ] && exit 9
kill -0 $holder
is $(code timeout 20 sriov-manager scan) 0
kill -9 $writer
kill -0 $writer
exec 4>&-
wait $holder
until ! kill -0 $writer 2>/dev/null; do sleep 0.1; done
echo "let go"
is $(code sriov-manager plan) 3

# What the driver lacks and is required ends in what was there before.
is $(code sriov-manager apply) 0
ip link show eth0 >/tmp/before
for odd in 'link_state = "up"' 'vlan = 5
vlan_protocol = "802.1ad"' 'min_rate = 10' 'rss_query = true'; do
    cp /etc/towpath/sriov-manager.toml /tmp/good
    printf '[[pf.vf]]\nindex = 5\n%s\n' "$odd" >>/etc/towpath/sriov-manager.toml
    sed -i 's/vfs = 7/vfs = 6\nrequired = ["link_state", "rss_query"]/' \
        /etc/towpath/sriov-manager.toml
    is $(code sriov-manager apply) 1
    said "failed, and everything is as it was"
    cp /tmp/good /etc/towpath/sriov-manager.toml
    is $(code sriov-manager plan) 0
done
echo "rolled back"

# What is not required is done without, and said; required, it is now refused.
cp /etc/towpath/sriov-manager.toml /tmp/good
printf '[[pf.vf]]\nindex = 5\nlink_state = "up"\n' >>/etc/towpath/sriov-manager.toml
is $(code sriov-manager apply) 0
said "its driver does not support link_state"
is $(code sriov-manager plan) 0
said "warning: .*link_state"
sed -i 's/vfs = 7/vfs = 7\nrequired = ["link_state"]/' /etc/towpath/sriov-manager.toml
is $(code sriov-manager apply) 4
cp /tmp/good /etc/towpath/sriov-manager.toml
is $(code sriov-manager plan) 0

# This driver deals out no interrupts, and the kernel's file for it is for writing only.
is $(stat -c %a /sys/bus/pci/devices/$(vf 5)/sriov_vf_msix_count) 200
printf '[[pf.vf]]\nindex = 5\nmsix = 2\n' >>/etc/towpath/sriov-manager.toml
is $(code sriov-manager plan) 4
said "its driver cannot change the number of interrupts of VFs"
cp /tmp/good /etc/towpath/sriov-manager.toml
echo "without"

# Killed in the middle; the next one finishes or undoes it.
sed -i 's/vfs = 7/vfs = 5/' /etc/towpath/sriov-manager.toml
for after in 0.05 0.2 0.5; do
    sriov-manager apply >/dev/null 2>&1 &
    sleep $after
    kill -9 $! 2>/dev/null || true
    wait $! || true
    until [ "$(code sriov-manager apply)" = 0 ]; do sleep 0.2; done
    is $(code sriov-manager plan) 0
    is $(ls -d /sys/bus/pci/devices/$PF/virtfn* | wc -l) 5
    sed -i 's/vfs = 5/vfs = 7/' /etc/towpath/sriov-manager.toml
    is $(code sriov-manager apply) 0
    sed -i 's/vfs = 7/vfs = 5/' /etc/towpath/sriov-manager.toml
done
echo "killed"

# The default route goes through the card.
ip addr add 192.0.2.1/24 dev eth0
ip route add default via 192.0.2.2
is $(code sriov-manager plan) 4
said "the default route goes through it (eth0)"
ip route del default
is $(code sriov-manager plan) 3
echo "guarded"
"#;

#[test]
fn a_card_is_planned_applied_and_held() -> Result<()> {
    let devices = [IOMMU, "-machine kernel-irqchip=split", IGB];
    let mut vm = guest("sriov", &devices, STORY).boot()?;
    let printed = vm.finish(PATIENCE)?;
    let marks = [
        "applied",
        "read back",
        "held",
        "let go",
        "rolled back",
        "without",
        "killed",
        "guarded",
    ];
    ensure!(
        marks
            .iter()
            .all(|mark| printed.iter().any(|line| line == mark)),
        "it printed {printed:?}"
    );
    Ok(())
}
