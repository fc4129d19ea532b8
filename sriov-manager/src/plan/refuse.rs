//! What will not be done to a PF, and why.

use std::collections::BTreeSet;

use crate::attribute::Attribute;
use crate::inventory::{Guard, Inventory, Pf, Vf};
use crate::nvme::Resources;
use crate::plan::{Action, Refusal, Step, Why};
use crate::target::PfTarget;
use crate::values::{Driver, EswitchMode, is_vfio};

struct Refusals<'a> {
    pf: &'a Pf,
    list: Vec<Refusal>,
}

impl Refusals<'_> {
    fn push(&mut self, why: Why, text: String, fix: impl Into<String>) {
        let (pf, fix) = (Some(self.pf.address), fix.into());
        self.list.push(Refusal { pf, why, text, fix });
    }
}

/// Everything that speaks against `steps`. Without steps, nothing does.
pub(super) fn refusals(
    inventory: &Inventory,
    pf: &Pf,
    wanted: &PfTarget,
    steps: &[Step],
) -> Vec<Refusal> {
    let mut refusals = Refusals {
        pf,
        list: Vec::new(),
    };
    if steps.is_empty() {
        return refusals.list;
    }
    if let Some(writer) = pf.wedged {
        let users = pf.users(|_| true);
        let users = users.map_or(String::new(), |users| format!("; in use are {users}"));
        refusals.push(
            Why::Wedged,
            format!(
                "{}: a write never returned; process {writer} is stuck in it{users}",
                pf.label()
            ),
            "end whoever has its VFs open; the write then returns by itself",
        );
        return refusals.list;
    }
    let remake = steps.iter().any(|step| step.action.remakes());
    in_use(pf, steps, remake, &mut refusals);
    if remake {
        guards(pf, &mut refusals);
        numbers(pf, wanted, &mut refusals);
    }
    means(pf, wanted, steps, &mut refusals);
    interrupts(pf, steps, &mut refusals);
    resources(pf, wanted, steps, &mut refusals);
    isolation(inventory, pf, wanted, steps, remake, &mut refusals);
    refusals.list
}

/// VFs in use that a step would touch: all of them when they are made anew.
fn in_use(pf: &Pf, steps: &[Step], remake: bool, refusals: &mut Refusals<'_>) {
    if !pf.vfs.iter().any(Vf::is_used) {
        return;
    }
    let touched: BTreeSet<u16> = steps.iter().filter_map(|step| step.action.vf()).collect();
    let Some(users) = pf.users(|vf| remake || touched.contains(&vf.index)) else {
        return;
    };
    let what = if remake {
        "all VFs would go"
    } else {
        "a VF would be changed"
    };
    let text = format!("{}: {what}, and in use are {users}", pf.label());
    refusals.push(
        Why::InUse,
        text,
        "end those uses, or leave the setting as it is",
    );
}

fn guards(pf: &Pf, refusals: &mut Refusals<'_>) {
    for guard in &pf.guards {
        let (why, fix) = match guard {
            Guard::DefaultRoute { .. } => (
                Why::DefaultRoute,
                "move the route to another card, or apply before the network is up",
            ),
            Guard::SystemDisk { .. } => (Why::SystemDisk, "use another controller"),
            Guard::NetworkManager { .. } | Guard::Networkd { .. } => (
                Why::ForeignManager,
                "take the SR-IOV settings out of that file",
            ),
        };
        refusals.push(why, format!("{}: {guard}", pf.label()), fix);
    }
}

/// Whether so many VFs can be.
fn numbers(pf: &Pf, wanted: &PfTarget, refusals: &mut Refusals<'_>) {
    let label = pf.label();
    match pf.driver.as_deref() {
        None => refusals.push(
            Why::NoDriver,
            format!("{label}: no driver has it, and a driver makes the VFs"),
            match pf.modules.as_slice() {
                [] => "load the card's driver; this kernel's modules know none".to_owned(),
                modules => format!("load the card's driver: modprobe {}", modules.join(" or ")),
            },
        ),
        Some(name) if is_vfio(name) => refusals.push(
            Why::NoDriver,
            format!("{label}: {name} has it, which makes no VFs"),
            "give it back to the card's driver",
        ),
        Some(_) => {}
    }
    if wanted.count > pf.total {
        refusals.push(
            Why::TooMany,
            format!(
                "{label}: {} VFs are wanted, and it can have {}",
                wanted.count, pf.total
            ),
            "lower vfs; some cards take a higher limit in their firmware's settings",
        );
        return;
    }
    if wanted.count == 0 {
        return;
    }
    if pf.room.homeless > 0 {
        let each: u64 = pf.room.bars.iter().sum();
        refusals.push(
            Why::NoMemory,
            format!(
                "{label}: not enough MMIO: {} of the VFs' memory regions found no room in the \
                 port's window of {} KiB (each VF takes {} KiB in those that did)",
                pf.room.homeless,
                pf.room.window >> 10,
                each >> 10
            ),
            "enable \"above 4G decoding\" and SR-IOV in the firmware, or boot with pci=realloc",
        );
    }
    let last = pf.address.vf(pf.offset, pf.stride, wanted.count - 1);
    let limit = pf.room.last_bus.unwrap_or(u8::MAX);
    if last.is_none_or(|address| address.bus() > limit) {
        let bus = last.map_or("no bus at all".to_owned(), |a| {
            format!("bus {:02x}", a.bus())
        });
        refusals.push(
            Why::NoBus,
            format!(
                "{label}: bus number out of range: VF {} would be on {bus}, and the port goes to \
                 bus {limit:02x}",
                wanted.count - 1
            ),
            "lower vfs, or boot with pci=assign-busses",
        );
    }
}

/// Whether there is a way to do it.
fn means(pf: &Pf, wanted: &PfTarget, steps: &[Step], refusals: &mut Refusals<'_>) {
    let attribute = |step: &Step| matches!(step.action, Action::Attribute { .. });
    if pf.interface.is_none() && steps.iter().any(attribute) {
        refusals.push(
            Why::NoInterface,
            format!(
                "{}: it has no network interface here to tell its VFs by",
                pf.label()
            ),
            "bring its interface into this network namespace, or leave the VFs' attributes out",
        );
    }
    let lacking = steps.iter().find_map(|step| match step.action {
        Action::Attribute { attribute, .. } => {
            Some(attribute.key()).filter(|key| pf.lacks.contains(key))
        }
        _ => None,
    });
    if let Some(key) = lacking {
        refusals.push(
            Why::Unsupported,
            format!(
                "{}: its driver does not support {key}, which is required",
                pf.label()
            ),
            format!("take {key} out of required, or leave it out for this PF"),
        );
    }
    let rates = |step: &Step| {
        let Action::Attribute { attribute, .. } = step.action else {
            return false;
        };
        matches!(attribute, Attribute::Rates(_))
    };
    let eswitch = wanted.eswitch.or(pf.eswitch);
    if eswitch == Some(EswitchMode::Switchdev) && steps.iter().any(rates) {
        refusals.push(
            Why::Unsupported,
            format!(
                "{}: in switchdev mode VFs have no rates of their own",
                pf.label()
            ),
            "leave max_rate and min_rate out, and limit the representors: devlink port function \
             rate set",
        );
    }
    if wanted.eswitch.is_some() && pf.eswitch.is_none() {
        refusals.push(
            Why::Unsupported,
            format!(
                "{}: its driver has no eswitch that can be switched",
                pf.label()
            ),
            "leave eswitch out",
        );
    }
}

/// Whether VFs can be given interrupts.
fn interrupts(pf: &Pf, steps: &[Step], refusals: &mut Refusals<'_>) {
    let msix = |step: &Step| matches!(step.action, Action::Msix { .. });
    if !pf.msix && steps.iter().any(msix) {
        refusals.push(
            Why::Unsupported,
            format!(
                "{}: its driver cannot change the number of interrupts of VFs",
                pf.label()
            ),
            "leave msix out for this PF",
        );
    }
}

/// Whether VFs of an NVMe controller get what they need, and there is as much.
fn resources(pf: &Pf, wanted: &PfTarget, steps: &[Step], refusals: &mut Refusals<'_>) {
    let label = pf.label();
    let given: Vec<(u16, Resources)> = wanted
        .vfs
        .iter()
        .filter_map(|(index, own)| Some((*index, own.resources?)))
        .collect();
    let Some(pool) = pf.nvme else {
        if !given.is_empty() {
            refusals.push(
                Why::Unsupported,
                format!("{label}: it has no flexible resources to give to VFs"),
                "leave vq and vi out; of an NVMe controller, load its driver",
            );
        }
        return;
    };
    let bare = |vf: u16| {
        let now = pf.vf(vf).and_then(|vf| vf.resources).unwrap_or_default();
        !given.iter().any(|(index, _)| *index == vf) && now == Resources::NONE
    };
    let bound = steps.iter().find_map(|step| match step.action {
        Action::Bind { vf, .. } if bare(vf) => Some(vf),
        _ => None,
    });
    if let Some(vf) = bound {
        refusals.push(
            Why::NoResources,
            format!("{label}: VF {vf} would have a driver and no queues"),
            "give it vq and vi, or no driver",
        );
    }
    for (name, flexible, of) in [
        (
            "queue pairs",
            pool.vq,
            (|has| has.vq) as fn(&Resources) -> u16,
        ),
        ("interrupts", pool.vi, |has| has.vi),
    ] {
        let sum: u32 = given.iter().map(|(_, has)| u32::from(of(has))).sum();
        let odd = |has: &Resources| {
            let (count, step) = (of(has), flexible.step.max(1));
            flexible.most > 0 && count > flexible.most || count % step != 0
        };
        if sum > flexible.total {
            refusals.push(
                Why::NoResources,
                format!(
                    "{label}: {sum} {name} are wanted, and {} are flexible",
                    flexible.total
                ),
                "lower vq and vi, or vfs",
            );
        } else if let Some((vf, has)) = given.iter().find(|(_, has)| odd(has)) {
            refusals.push(
                Why::NoResources,
                format!(
                    "{label}: {} {name} are wanted for VF {vf}; it can have up to {}, in steps of \
                     {}",
                    of(has),
                    flexible.most,
                    flexible.step.max(1)
                ),
                "change vq and vi",
            );
        }
    }
}

/// Whether VFs that are to be given away can be.
fn isolation(
    inventory: &Inventory,
    pf: &Pf,
    wanted: &PfTarget,
    steps: &[Step],
    remake: bool,
    refusals: &mut Refusals<'_>,
) {
    let host = &inventory.host;
    let given: Vec<u16> = steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::Bind {
                vf,
                driver: Some(name),
            } if name.is_vfio() => Some(*vf),
            _ => None,
        })
        .collect();
    if given.is_empty() {
        return;
    }
    let label = pf.label();
    if !host.iommu {
        refusals.push(
            Why::NoIommu,
            format!("{label}: VFs are wanted for VFIO, and no IOMMU translates DMA"),
            "enable VT-d or AMD-Vi in the firmware; boot with intel_iommu=on on Intel",
        );
        return;
    }
    if !host.interrupt_remapping {
        refusals.push(
            Why::NoRemapping,
            format!("{label}: VFs are wanted for VFIO, and interrupts are not remapped"),
            "enable it in the firmware, and remove intremap=off from the kernel's command line",
        );
    }
    if host.unsafe_interrupts {
        refusals.push(
            Why::UnsafeInterrupts,
            format!("{label}: allow_unsafe_interrupts is set: a VM could forge interrupts"),
            "remove it from the options of vfio_iommu_type1 and iommufd",
        );
    }
    if !host.vfio_pci {
        refusals.push(
            Why::DriverMissing,
            format!("{label}: VFs are wanted for VFIO, and vfio-pci is not there"),
            "modprobe vfio-pci; `echo vfio-pci >/etc/modules-load.d/vfio.conf` for every boot",
        );
    }
    groups(inventory, pf, wanted, &given, remake, refusals);
}

/// Whether the groups of the VFs `given` hold nothing of the host's.
fn groups(
    inventory: &Inventory,
    pf: &Pf,
    wanted: &PfTarget,
    given: &[u16],
    remake: bool,
    refusals: &mut Refusals<'_>,
) {
    let label = pf.label();
    let mut culprits: BTreeSet<String> = BTreeSet::new();
    for index in given.iter().copied() {
        // VFs that are to be are in the PF's group if that group is more than the PF: whatever
        // keeps the port from telling functions apart keeps it from telling VFs apart.
        let existing = pf.vf(index).filter(|_| !remake);
        let number = existing.map_or(pf.group, |vf| vf.group);
        let Some(group) = number.and_then(|number| inventory.group(number)) else {
            continue;
        };
        let own: BTreeSet<_> = pf.vfs.iter().map(|vf| vf.address).collect();
        let others = group
            .members
            .iter()
            .filter(|member| !own.contains(&member.address));
        if existing.is_none() && others.count() <= 1 {
            continue;
        }
        let leaving: Vec<_> = pf
            .vfs
            .iter()
            .filter(|vf| remake || leaves(wanted, vf))
            .map(|vf| vf.address)
            .collect();
        for member in group.culprits(&leaving) {
            let driver = member.driver.as_deref().unwrap_or_default();
            culprits.insert(format!("{} ({driver})", member.address));
        }
    }
    if !culprits.is_empty() {
        let culprits: Vec<String> = culprits.into_iter().collect();
        refusals.push(
            Why::NotViable,
            format!(
                "{label}: its VFs share an IOMMU group with what the host uses: {}",
                culprits.join(", ")
            ),
            "use a slot whose port has ACS (`sriov-manager scan` shows groups), or unbind those",
        );
    }
}

/// Whether `vf` will not have a driver of the host.
fn leaves(wanted: &PfTarget, vf: &Vf) -> bool {
    let own = wanted
        .vfs
        .get(&vf.index)
        .and_then(|own| own.driver.as_ref());
    own.is_some_and(|driver| driver.is_vfio() || *driver == Driver::Unbound)
}
