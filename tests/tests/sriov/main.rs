//! Cards with VFs on a real kernel: QEMU's `igb` behind an emulated IOMMU, and sriov-manager.
//!
//! Few scenarios, each a guest and a long story, because an emulated guest takes 15 to 50 s.

mod apply;
mod hosts;
mod lease;
mod modern;
mod page;
mod unplug;

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
# `! grep` would not end a scenario.
never() { if grep -E -q -- "$1" $2; then echo "said: $1"; cat $2; exit 9; fi; }
driver() { basename $(readlink -f /sys/bus/pci/devices/$1/driver); }
vf() { basename $(readlink -f /sys/bus/pci/devices/$PF/virtfn$1); }
group() { basename $(readlink -f /sys/bus/pci/devices/$1/iommu_group); }
echo model >/etc/machine-id || { mkdir -p /etc; echo model >/etc/machine-id; }
ip link set lo up
# The daemon, once it answers.
serve() {
    sriov-manager serve >/tmp/log 2>&1 &
    daemon=$!
    until sriov-manager status >/tmp/out 2>&1; do kill -0 $daemon; sleep 0.2; done
}
# A VMM as nobody, with the lease of its name.
SOCKET=/run/towpath/sriov-manager-lease.sock
vmm() {
    mkfifo /tmp/hold$1
    vfio-user lease $SOCKET fast $1 </tmp/hold$1 >/tmp/$1 &
    vmm=$!
    exec 4>/tmp/hold$1
    until grep -q "using .* as 65534" /tmp/$1; do
        ! grep -E "failed|refused" /tmp/$1 || { cat /tmp/log; exit 9; }
        sleep 0.1
    done
}
"#;

/// The daemon, a pool for nobody, and three VFs of which two are in it.
const POOL: &str = r#"
conf <<END
[daemon]
drift_interval = 2
[[pool]]
name = "fast"
allow = ["user:65534"]
[[pf]]
match = { mac = "52:54:00:00:01:00" }
vfs = 3
[[pf.vf]]
range = "0-1"
pool = "fast"
END
"#;

/// A guest with one card.
pub(crate) fn guest(name: &str, devices: &[&str], script: &str) -> Builder {
    Vm::builder(name)
        .sriov(devices)
        .kernel_arguments("intel_iommu=on")
        .script(&format!("{PRELUDE}{script}"))
}
