//! Cards with VFs on a real kernel: QEMU's `igb` behind an emulated IOMMU, and sriov-manager.
//!
//! Few scenarios, each a guest and a long story, because an emulated guest takes 15 to 50 s.

mod apply;
mod hosts;
mod lease;

use towpath_tests::vm::{Builder, Vm};

/// Twenty times what a scenario takes on an idle machine without KVM.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(400);

/// An IOMMU that remaps interrupts.
const IOMMU: &str = "-device intel-iommu,intremap=on,caching-mode=on";
/// A card with up to 7 VFs, and what its link leads to. Its port tells functions apart.
const IGB: &str = "-netdev hubport,id=h1,hubid=0 -device igb,id=card,bus=slot0,netdev=h1,\
     mac=52:54:00:00:01:00";

/// Shell functions for scenarios.
const PRELUDE: &str = r#"
# Not busybox's own, which knows nothing of VFs.
ip() { /bin/ip "$@"; }
PF=0000:$(basename $(readlink -f /sys/class/net/eth0/device) | cut -d: -f2-)
conf() { mkdir -p /etc/towpath; cat >/etc/towpath/sriov-manager.toml; }
# The exit code of a command, which may fail.
code() { set +e; "$@" >/tmp/out 2>&1; status=$?; set -e; cat /tmp/out >&2; echo $status; }
is() { [ "$1" = "$2" ] || { echo "is $1, not $2"; cat /tmp/out; exit 9; }; }
said() { grep -q -- "$1" /tmp/out || { echo "did not say: $1"; cat /tmp/out; exit 9; }; }
driver() { basename $(readlink -f /sys/bus/pci/devices/$1/driver); }
vf() { basename $(readlink -f /sys/bus/pci/devices/$PF/virtfn$1); }
group() { basename $(readlink -f /sys/bus/pci/devices/$1/iommu_group); }
echo model >/etc/machine-id || { mkdir -p /etc; echo model >/etc/machine-id; }
ip link set lo up
"#;

/// A guest with one card.
pub(crate) fn guest(name: &str, devices: &[&str], script: &str) -> Builder {
    Vm::builder(name)
        .sriov(devices)
        .kernel_arguments("intel_iommu=on")
        .script(&format!("{PRELUDE}{script}"))
}
