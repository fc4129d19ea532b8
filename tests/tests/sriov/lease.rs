//! VFs leased to processes without any privilege, and taken back when those end.

use anyhow::{Result, ensure};

use crate::{IGB, IOMMU, PATIENCE, guest};

const STORY: &str = r#"
ip link set eth0 up
conf <<END
[daemon]
drift_interval = 2
[[pool]]
name = "fast"
allow = ["user:65534"]
[[pool]]
name = "private"
[[pf]]
match = { name = "eth0" }
vfs = 3
[[pf.vf]]
range = "0-1"
pool = "fast"
vlan = 100
[[pf.vf]]
index = 2
pool = "private"
END
serve
said "3 VFs, 0 leased"
ip link show eth0 >/tmp/out
said "vf 0 .* vlan 100"
is $(driver $(vf 0)) vfio-pci

# Nobody, who may lease from one pool and not from the other.
vmm vm42
vm42=$vmm
mkfifo /tmp/hold43
is $(code vfio-user lease $SOCKET private other) 2
said "user 65534 may not lease from private"
is $(code sriov-manager lease list) 0
said "fast *vm42 *$vm42 *65534 *active"
echo "unprivileged"

# A command that becomes the owner, with settings of its own.
sriov-manager exec --pool fast --owner vm43 --vlan 200 --max-rate 300 -- \
    vfio-user fds {container_fd} {group_fd} {address} </tmp/hold43 >/tmp/vm43 &
vm43=$!
exec 5>/tmp/hold43
until grep -q using /tmp/vm43; do kill -0 $vm43; sleep 0.1; done
ip link show eth0 >/tmp/out
said "vlan 200, .*max_tx_rate 300Mbps"
is $(code sriov-manager exec --pool fast -- true) 1
said "all 2 VFs of fast are in use"
sed -i 's/vfs = 3/vfs = 4/' /etc/towpath/sriov-manager.toml
is $(code sriov-manager plan) 4
said "leased to vm42"
sed -i 's/vfs = 4/vfs = 3/' /etc/towpath/sriov-manager.toml
echo "exec"

# The owner is killed: the VF is reset, scrubbed, and free.
kill -9 $vm43
until [ "$(sriov-manager lease list | grep -c vm43)" = 0 ]; do sleep 0.2; done
ip link show eth0 >/tmp/out
never "vlan 200|max_tx_rate 300" /tmp/out
is $(grep -c "vlan 100" /tmp/out) 2
echo "released"

# Leases survive the daemon, and what ends meanwhile is noticed by the next.
kill -9 $daemon
wait $daemon || true
serve
is $(code sriov-manager lease list) 0
said "vm42 .*active"
is $(code sriov-manager lease release $(grep -o '0000:[0-9a-f:.]*' /tmp/vm42)) 1
said "open in vfio-user, process $vm42"
kill -9 $daemon
wait $daemon || true
kill -9 $vm42
wait $vm42 || true
serve
until [ "$(sriov-manager lease list | grep -c vm42)" = 0 ]; do sleep 0.2; done
echo "survived"

# Whoever asks and ends before it is answered has nothing.
is $(code vfio-user ask $SOCKET fast gone) 0
until sriov-manager status >/tmp/out && grep -q "0 leased" /tmp/out; do sleep 0.2; done
grep -q "owner=gone" /tmp/log
echo "nobody"

# For a VMM that opens the device by its name: the node is its user's, and nobody's afterwards.
vfio-user idle &
vmm=$!
until [ "$(awk '/^Uid/ { print $2 }' /proc/$vmm/status)" = 65534 ]; do sleep 0.1; done
is $(code sriov-manager lease get --pool fast --owner vm44 --pid $vmm) 0
said "vfio-pci,host=0000:"
is $(stat -c %u /dev/vfio/$(sed -n 's/.*group \([0-9]*\),.*/\1/p' /tmp/out)) 65534
sriov-manager lease list >/tmp/out
said "vm44 *$vmm *65534"
kill $vmm
until [ "$(sriov-manager lease list | grep -c vm44)" = 0 ]; do sleep 0.2; done
echo "by name"

# Somebody else changes a setting: reported, and repaired when told.
ip link set eth0 vf 0 vlan 7
until sriov-manager status | grep -q "1 drifted"; do sleep 0.2; done
is $(code sriov-manager repair) 0
ip link show eth0 >/tmp/out
is $(grep -c "vlan 100" /tmp/out) 2
echo "memory $(sed -n 's/^VmRSS: *//p' /proc/$daemon/status)"
echo "drift"

# The daemon ends when told, and leaves everything as it is.
kill $daemon
wait $daemon
is $(driver $(vf 0)) vfio-pci
echo "ended"
"#;

#[test]
fn a_lease_lasts_as_long_as_its_owner() -> Result<()> {
    let devices = [IOMMU, "-machine kernel-irqchip=split", IGB];
    let mut vm = guest("sriov-lease", &devices, STORY).boot()?;
    let printed = vm.finish(PATIENCE)?;
    let marks = [
        "unprivileged",
        "exec",
        "released",
        "survived",
        "nobody",
        "by name",
        "drift",
        "ended",
    ];
    ensure!(
        marks
            .iter()
            .all(|mark| printed.iter().any(|line| line == mark)),
        "it printed {printed:?}"
    );
    let memory = printed.iter().find(|line| line.starts_with("memory "));
    println!(
        "the daemon's {}",
        memory.map_or("memory is unknown", |line| line)
    );
    Ok(())
}
