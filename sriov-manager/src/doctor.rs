//! Why this host will, or will not, give machines I/O at nearly the speed of the card.
//!
//! Each [`Finding`] is one question with its answer, and what to do about it. Nothing is measured
//! and nothing changed; a question that this host does not answer is said to be open.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::inventory::{Inventory, Pf};
use crate::kernel::{Kernel, text};

/// How an answer is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// This host does not say.
    Unknown,
    /// It costs speed.
    Slow,
    /// VFs cannot be given to machines, or not safely.
    Bad,
}

/// One question and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How it is to be taken.
    pub verdict: Verdict,
    /// What was looked at, and what was found.
    pub text: String,
    /// What to do about it; empty if there is nothing.
    pub fix: String,
}

impl Finding {
    fn new(verdict: Verdict, text: impl Into<String>, fix: &str) -> Self {
        let fix = if verdict == Verdict::Good { "" } else { fix };
        Self {
            verdict,
            text: text.into(),
            fix: fix.to_owned(),
        }
    }

    fn judge(good: bool, worse: Verdict, text: impl Into<String>, fix: &str) -> Self {
        Self::new(if good { Verdict::Good } else { worse }, text, fix)
    }
}

/// A machine of so many bytes of memory, all of it locked, is a small one.
const SMALL_MACHINE: u64 = 1 << 30;

/// Looks at everything.
pub fn examine(kernel: &dyn Kernel, inventory: &Inventory) -> Vec<Finding> {
    let mut findings = isolation(kernel, inventory);
    findings.push(posted(kernel));
    findings.push(hugepages(kernel));
    findings.push(memlock(kernel));
    findings.push(command_line(kernel));
    if inventory.pfs.is_empty() {
        findings.push(Finding::new(
            Verdict::Bad,
            "no device here can have VFs",
            "enable SR-IOV in the firmware's settings; check the card's data sheet",
        ));
    }
    for pf in &inventory.pfs {
        findings.extend(card(kernel, inventory, pf));
    }
    findings
}

fn isolation(kernel: &dyn Kernel, inventory: &Inventory) -> Vec<Finding> {
    let host = &inventory.host;
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    let identity = inventory
        .groups
        .iter()
        .any(|group| group.kind == "identity");
    let kind = inventory.groups.first().map(|group| group.kind.clone());
    let version = text(kernel, Path::new("/proc/sys/kernel/osrelease")).unwrap_or_default();
    vec![
        Finding::judge(
            host.iommu,
            Verdict::Bad,
            format!("an IOMMU translates DMA: {}", yes(host.iommu)),
            "enable VT-d or AMD-Vi in the firmware; boot with intel_iommu=on on Intel",
        ),
        Finding::judge(
            host.interrupt_remapping,
            Verdict::Bad,
            format!("interrupts are remapped: {}", yes(host.interrupt_remapping)),
            "enable it in the firmware, and remove intremap=off from the kernel's command line",
        ),
        Finding::judge(
            !host.unsafe_interrupts,
            Verdict::Bad,
            format!(
                "allow_unsafe_interrupts is set: {}",
                yes(host.unsafe_interrupts)
            ),
            "remove it from the options of vfio_iommu_type1 and iommufd",
        ),
        Finding::judge(
            host.vfio_pci,
            Verdict::Bad,
            format!("the driver vfio-pci is there: {}", yes(host.vfio_pci)),
            "modprobe vfio-pci; `echo vfio-pci >/etc/modules-load.d/vfio.conf` for every boot",
        ),
        Finding::judge(
            host.iommufd,
            Verdict::Unknown,
            format!("the kernel ({version}) has iommufd: {}", yes(host.iommufd)),
            "groups and containers are used instead; nothing is slower for it",
        ),
        Finding::judge(
            identity || kind.is_none() || kind.as_deref() == Some("DMA-FQ"),
            Verdict::Slow,
            format!(
                "the host's own DMA: {}",
                kind.unwrap_or_else(|| "no groups".to_owned())
            ),
            "boot with iommu=pt, or iommu.strict=0: the PF's own driver gets faster",
        ),
    ]
}

/// Whether interrupts reach a running guest without its host.
fn posted(kernel: &dyn Kernel) -> Finding {
    let flags = text(kernel, Path::new("/proc/cpuinfo")).unwrap_or_default();
    let intel = text(
        kernel,
        Path::new("/sys/module/kvm_intel/parameters/enable_apicv"),
    );
    let amd = text(kernel, Path::new("/sys/module/kvm_amd/parameters/avic"));
    let on =
        |parameter: &Option<String>| parameter.as_deref().map(|value| matches!(value, "Y" | "1"));
    let virtual_cpu = flags.split_whitespace().any(|flag| flag == "hypervisor");
    match (on(&intel).or(on(&amd)), virtual_cpu) {
        (Some(true), _) => Finding::new(Verdict::Good, "interrupts can be posted to guests", ""),
        (Some(false), _) => Finding::new(
            Verdict::Slow,
            "interrupts cannot be posted: each stops its guest",
            "load kvm_intel with enable_apicv=1, or kvm_amd with avic=1, if the CPU has it",
        ),
        (None, true) => Finding::new(
            Verdict::Unknown,
            "this host is itself a virtual machine: posted interrupts are not to be had",
            "measure on the real machine",
        ),
        (None, false) => Finding::new(
            Verdict::Unknown,
            "KVM is not loaded, so nobody says whether interrupts can be posted",
            "modprobe kvm_intel or kvm_amd, and look again",
        ),
    }
}

fn hugepages(kernel: &dyn Kernel) -> Finding {
    let base = Path::new("/sys/kernel/mm/hugepages");
    let mut reserved = 0_u64;
    for name in kernel.list(base).unwrap_or_default() {
        reserved +=
            crate::kernel::number(kernel, &base.join(name).join("nr_hugepages")).unwrap_or(0);
    }
    let transparent = text(
        kernel,
        Path::new("/sys/kernel/mm/transparent_hugepage/enabled"),
    );
    let never = transparent
        .as_deref()
        .is_none_or(|modes| modes.contains("[never]"));
    Finding::judge(
        reserved > 0 || !never,
        Verdict::Slow,
        format!(
            "hugepages: {reserved} reserved, transparent: {}",
            transparent.as_deref().unwrap_or("no")
        ),
        "reserve some (vm.nr_hugepages), or enable transparent ones: fewer IOTLB misses",
    )
}

fn memlock(kernel: &dyn Kernel) -> Finding {
    let limits = text(kernel, Path::new("/proc/self/limits")).unwrap_or_default();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max locked memory"));
    let soft = line.and_then(|line| line.split_whitespace().nth(3));
    let enough = |soft: &str| {
        soft == "unlimited"
            || soft
                .parse::<u64>()
                .is_ok_and(|bytes| bytes >= SMALL_MACHINE)
    };
    match soft {
        None => Finding::new(Verdict::Unknown, "no limit of locked memory is shown", ""),
        Some(soft) => Finding::judge(
            enough(soft),
            Verdict::Bad,
            format!("memory that a process started here may lock: {soft} bytes"),
            "a VMM locks all of its machine's memory and the VF's BARs: raise LimitMEMLOCK= of \
             its unit, or `ulimit -l`, to that sum",
        ),
    }
}

fn command_line(kernel: &dyn Kernel) -> Finding {
    let line = text(kernel, Path::new("/proc/cmdline")).unwrap_or_default();
    let bad = [
        "intremap=off",
        "intel_iommu=off",
        "amd_iommu=off",
        "iommu=off",
        "pci=nomsi",
    ];
    let found: Vec<&str> = line
        .split_whitespace()
        .filter(|word| bad.contains(word))
        .collect();
    Finding::judge(
        found.is_empty(),
        Verdict::Bad,
        match found.as_slice() {
            [] => "the kernel's command line turns nothing off".to_owned(),
            words => format!("the kernel's command line has {}", words.join(" ")),
        },
        "remove that from the command line",
    )
}

fn card(kernel: &dyn Kernel, inventory: &Inventory, pf: &Pf) -> Vec<Finding> {
    let label = pf.label();
    let mut findings = Vec::new();
    if let Some(link) = &pf.pcie {
        let full = link.speed == link.max_speed && link.width >= link.max_width;
        findings.push(Finding::judge(
            full,
            Verdict::Slow,
            format!(
                "{label}: PCIe {} x{}, at best {} x{}",
                link.speed, link.width, link.max_speed, link.max_width
            ),
            "use a slot with the lanes and the generation of the card; check its seat",
        ));
    }
    let nodes = kernel
        .list(Path::new("/sys/devices/system/node"))
        .unwrap_or_default();
    let nodes = nodes.iter().filter(|name| name.starts_with("node")).count();
    findings.push(match pf.numa {
        Some(node) => Finding::new(
            Verdict::Good,
            format!("{label}: on NUMA node {node} of {nodes}: lease with --numa {node}"),
            "",
        ),
        None => Finding::judge(
            nodes <= 1,
            Verdict::Unknown,
            format!("{label}: on no NUMA node, of {nodes}"),
            "the firmware does not say where the slot is; look at the board's manual",
        ),
    });
    let group = pf.group.and_then(|number| inventory.group(number));
    if let Some(group) = group {
        let others = group
            .members
            .iter()
            .filter(|member| member.address != pf.address)
            .count();
        findings.push(Finding::judge(
            others == 0,
            Verdict::Bad,
            format!(
                "{label}: shares IOMMU group {} with {others} others",
                group.number
            ),
            "use a slot whose port has ACS: without it VFs share one group and none can be given",
        ));
    }
    findings.push(Finding::judge(
        pf.room.homeless == 0,
        Verdict::Bad,
        format!(
            "{label}: memory regions of VFs without room: {}",
            pf.room.homeless
        ),
        "enable \"above 4G decoding\" and SR-IOV in the firmware, or boot with pci=realloc",
    ));
    if let Some(interface) = &pf.interface {
        findings.push(Finding::judge(
            interface.carrier,
            Verdict::Slow,
            format!(
                "{label}: carrier: {}",
                if interface.carrier { "yes" } else { "no" }
            ),
            "bring the interface up and plug in a cable: several drivers set rates only then",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{Known, scan};
    use crate::model::{Card, Model, State};

    fn bad(change: fn(&mut State)) -> Vec<String> {
        let model = Model::new([Card::new(1)]);
        change(&mut model.state());
        let inventory = scan(model.machine(), &Known::default()).unwrap();
        let findings = examine(&model, &inventory).into_iter();
        let bad = findings.filter(|finding| finding.verdict == Verdict::Bad);
        bad.map(|finding| {
            assert!(!finding.fix.is_empty(), "{finding:?}");
            finding.text
        })
        .collect()
    }

    #[test]
    fn a_host_as_it_should_be_has_nothing_bad() {
        assert_eq!(bad(|_| ()), Vec::<String>::new());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (change, text) in [
            (
                (|state| state.files.remove("/sys/kernel/iommu_groups")) as fn(&mut State),
                "an IOMMU translates DMA: no",
            ),
            (
                |state| state.files.file("/proc/interrupts", "1: 0 IO-APIC\n"),
                "interrupts are remapped: no",
            ),
            (
                |state| state.files.file("/proc/cmdline", "quiet intremap=off"),
                "the kernel's command line has intremap=off",
            ),
            (
                |state| {
                    let line = "Max locked memory         8388608              8388608    bytes";
                    state.files.file("/proc/self/limits", line);
                },
                "memory that a process started here may lock: 8388608 bytes",
            ),
        ] {
            assert_eq!(bad(change), [text]);
        }
    }

    #[test]
    fn a_shared_group_and_missing_room_are_bad() {
        let card = Card {
            acs: false,
            room: false,
            ..Card::new(1)
        };
        let model = Model::new([card]);
        let inventory = scan(model.machine(), &Known::default()).unwrap();
        let findings = examine(&model, &inventory);
        let bad = findings
            .iter()
            .filter(|finding| finding.verdict == Verdict::Bad);
        assert_eq!(bad.count(), 2, "{findings:?}");
    }
}
