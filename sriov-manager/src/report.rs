//! What people read: inventories, plans and outcomes as text.

use std::fmt::Write;

use pci_ids::{Device, FromId, Vendor};
use sriov_manager::apply::{Failure, Outcome};
use sriov_manager::attribute::Attributes;
use sriov_manager::control::Overview;
use sriov_manager::doctor::{Finding, Verdict};
use sriov_manager::inventory::{Group, Inventory, Pf, Vf};
use sriov_manager::lease::{Granted, Shown};
use sriov_manager::plan::Plan;
use sriov_manager::values::Mac;
use towpath_common::control::print::{table, yes_no};

use crate::local::Applied;

fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}

/// Vendor and device as people call them, or their numbers.
fn name(pf: &Pf) -> String {
    match Device::from_vid_pid(pf.vendor, pf.device) {
        Some(device) => device.name().to_owned(),
        None => {
            let vendor = Vendor::from_id(pf.vendor).map(Vendor::name);
            let vendor = vendor.map_or_else(|| format!("{:04x}", pf.vendor), str::to_owned);
            format!("{vendor} {:04x}", pf.device)
        }
    }
}

/// `scan`.
pub(crate) fn inventory(inventory: &Inventory) -> String {
    let host = &inventory.host;
    let mut text = format!(
        "IOMMU: {}   interrupt remapping: {}   vfio-pci: {}   iommufd: {}\n",
        yes_no(host.iommu),
        yes_no(host.interrupt_remapping),
        yes_no(host.vfio_pci),
        yes_no(host.iommufd),
    );
    if inventory.pfs.is_empty() {
        text.push_str("no PF: no device here can have VFs, or SR-IOV is off in the firmware\n");
        return text;
    }
    text.push('\n');
    let header = [
        "PF",
        "INTERFACE",
        "DRIVER",
        "VFS",
        "GROUP",
        "NUMA",
        "LINK",
        "RESET",
        "DEVICE",
    ];
    text.push_str(&table(header, inventory.pfs.iter().map(pf_row)));
    for pf in &inventory.pfs {
        let notes = notes(pf);
        if !notes.is_empty() {
            let _infallible = writeln!(text, "\n{}:", pf.label());
            text.push_str(&notes);
        }
    }
    let vfs: Vec<(&Pf, &Vf)> = inventory
        .pfs
        .iter()
        .flat_map(|pf| pf.vfs.iter().map(move |vf| (pf, vf)))
        .collect();
    if !vfs.is_empty() {
        let header = [
            "VF",
            "PF",
            "INDEX",
            "DRIVER",
            "GROUP",
            "VIABLE",
            "ATTRIBUTES",
            "USED BY",
        ];
        text.push('\n');
        let rows = vfs.into_iter().map(|(pf, vf)| vf_row(inventory, pf, vf));
        text.push_str(&table(header, rows));
    }
    text.push_str(&groups(&inventory.groups));
    text
}

/// IOMMU groups with more than one member, and how many there are without.
fn groups(groups: &[Group]) -> String {
    let shared = || groups.iter().filter(|group| group.members.len() > 1);
    let alone = groups.len() - shared().count();
    let mut text = String::new();
    if shared().next().is_some() {
        let rows = shared().map(|group| {
            let members = group.members.iter().map(|member| {
                let driver = member.driver.as_deref().unwrap_or("no driver");
                format!("{} ({driver})", member.address)
            });
            let members: Vec<String> = members.collect();
            let number = group.number.to_string();
            [number, group.kind.clone(), members.join(", ")]
        });
        text.push('\n');
        text.push_str(&table(["GROUP", "TYPE", "MEMBERS"], rows));
    }
    if alone > 0 {
        let _infallible = writeln!(text, "\n{alone} IOMMU groups hold one device each");
    }
    text
}

fn pf_row(pf: &Pf) -> [String; 9] {
    let link = pf
        .pcie
        .as_ref()
        .map(|link| format!("{} x{}", link.speed, link.width));
    [
        pf.address.to_string(),
        or_dash(pf.interface.as_ref().map(|interface| &interface.name)),
        or_dash(pf.driver.as_ref()),
        format!("{}/{}", pf.count(), pf.total),
        or_dash(pf.group),
        or_dash(pf.numa),
        or_dash(link),
        or_dash(pf.reset.first()),
        name(pf),
    ]
}

fn notes(pf: &Pf) -> String {
    let mut notes = String::new();
    for guard in &pf.guards {
        let _infallible = writeln!(notes, "  guarded: {guard}");
    }
    if let Some(writer) = pf.wedged {
        let _infallible = writeln!(
            notes,
            "  wedged: process {writer} is stuck in a write to it"
        );
    }
    if let Some(pool) = pf.nvme {
        let _infallible = writeln!(
            notes,
            "  flexible: {} queue pairs and {} interrupts, of which it has {} and {} itself",
            pool.vq.total, pool.vi.total, pool.vq.primary, pool.vi.primary
        );
    }
    let last = pf.total.checked_sub(1);
    let last = last.and_then(|index| pf.address.vf(pf.offset, pf.stride, index));
    let bus = |bus: Option<u8>| bus.map_or_else(|| "-".to_owned(), |bus| format!("{bus:02x}"));
    let _infallible = writeln!(
        notes,
        "  room: {} KiB a VF, the port's window has {} KiB; all VFs reach bus {}, the port bus {}",
        pf.room.bars.iter().sum::<u64>() >> 10,
        pf.room.window >> 10,
        bus(last.map(|last| last.bus())),
        bus(pf.room.last_bus)
    );
    if pf.room.homeless > 0 {
        let _infallible = writeln!(
            notes,
            "  no room: {} memory regions of VFs do not fit into the port's window ({} KiB)",
            pf.room.homeless,
            pf.room.window >> 10
        );
    }
    notes
}

fn vf_row(inventory: &Inventory, pf: &Pf, vf: &Vf) -> [String; 8] {
    let group = vf.group.and_then(|number| inventory.group(number));
    let viable = group.map(|group| match host_drivers(group, vf) {
        0 => "yes".to_owned(),
        count => format!("no: {count} others"),
    });
    let uses: Vec<String> = vf.uses.iter().map(ToString::to_string).collect();
    [
        vf.address.to_string(),
        pf.address.to_string(),
        vf.index.to_string(),
        or_dash(vf.driver.as_ref()),
        or_dash(vf.group),
        or_dash(viable),
        vf.resources
            .map_or_else(|| attributes(&vf.attributes), |has| has.to_string()),
        or_dash(Some(uses.join(", ")).filter(|uses| !uses.is_empty())),
    ]
}

/// Devices of the group that keep `vf` from being given away.
fn host_drivers(group: &Group, vf: &Vf) -> usize {
    group.culprits(&[vf.address]).len()
}

/// What is not as every VF has it.
fn attributes(attributes: &Attributes) -> String {
    let plain = Attributes {
        mac: Some(Mac::ZERO),
        spoof_check: Some(true),
        ..Attributes::SCRUBBED
    };
    let odd = attributes.each().filter(|attribute| {
        let usual = plain.holds(attribute);
        let words = attribute.to_string();
        !usual
            && words != "link_state auto"
            && words != "rss_query off"
            && !words.ends_with("00:00")
    });
    let words: Vec<String> = odd.map(|attribute| attribute.to_string()).collect();
    if words.is_empty() {
        "-".to_owned()
    } else {
        words.join(", ")
    }
}

/// One sentence about a plan.
pub(crate) fn summary(plan: &Plan) -> String {
    match (plan.steps.len(), plan.refusals.len()) {
        (0, 0) => "nothing to do".to_owned(),
        (steps, 0) => format!("{steps} steps"),
        (steps, refusals) => format!("{steps} steps, {refusals} refusals"),
    }
}

/// `plan`.
pub(crate) fn plan(plan: &Plan, inventory: &Inventory) -> String {
    let mut text = String::new();
    for address in plan.pfs() {
        let label = inventory
            .pf(address)
            .map_or_else(|| address.to_string(), Pf::label);
        let _infallible = writeln!(text, "{label}:");
        for (number, step) in plan.of(address).enumerate() {
            let _infallible = writeln!(
                text,
                "  {:>3}. {} ({})",
                number + 1,
                step.action,
                step.reason
            );
        }
    }
    for refusal in &plan.refusals {
        let _infallible = writeln!(text, "refused: {}\n  -> {}", refusal.text, refusal.fix);
    }
    for lack in &plan.lacks {
        let _infallible = writeln!(text, "warning: {lack}");
    }
    let _infallible = writeln!(text, "{}", summary(plan));
    text
}

/// `doctor`.
pub(crate) fn findings(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let word = match finding.verdict {
            Verdict::Good => "good",
            Verdict::Unknown => "open",
            Verdict::Slow => "SLOW",
            Verdict::Bad => "BAD ",
        };
        let _infallible = writeln!(text, "{word}  {}", finding.text);
        if !finding.fix.is_empty() {
            let _infallible = writeln!(text, "      -> {}", finding.fix);
        }
    }
    text
}

/// `status`.
pub(crate) fn overview(overview: &Overview, description: &str) -> String {
    let mut text = format!(
        "{description}\nversion {}, process {}, up {} s\n",
        overview.version, overview.pid, overview.uptime_seconds
    );
    for failure in &overview.failures {
        let _infallible = writeln!(text, "failed: {failure}");
    }
    for lack in &overview.lacks {
        let _infallible = writeln!(text, "degraded: {lack}");
    }
    text
}

/// `lease list`.
pub(crate) fn leases(leases: &[Shown]) -> String {
    let header = ["VF", "POOL", "OWNER", "PROCESS", "USER", "PHASE"];
    let rows = leases.iter().map(|shown| {
        let lease = &shown.lease;
        [
            shown.address.to_string(),
            lease.pool.to_string(),
            lease.owner.to_string(),
            lease.process.pid.to_string(),
            lease.uid.to_string(),
            lease.phase.to_string(),
        ]
    });
    table(header, rows)
}

/// `lease get`.
pub(crate) fn granted(granted: &Granted) -> String {
    format!(
        "{}: group {}, VF {} of {}\n  QEMU: -device vfio-pci,host={}\n  Cloud Hypervisor: \
         --device path=/sys/bus/pci/devices/{}/\n",
        granted.address, granted.group, granted.index, granted.pf, granted.address, granted.address
    )
}

/// One sentence about an apply.
pub(crate) fn outcome(applied: &Applied) -> String {
    let failed = |failure: &Failure| {
        format!(
            "{}: {}: {}",
            failure.step.pf, failure.step.action, failure.error
        )
    };
    match &applied.outcome {
        Outcome::Nothing if !applied.plan.refusals.is_empty() => {
            "refused; nothing was changed".to_owned()
        }
        Outcome::Nothing => "nothing to do".to_owned(),
        Outcome::Applied { steps, lacks } if lacks.is_empty() => {
            format!("applied: {steps} steps")
        }
        Outcome::Applied { steps, lacks } => {
            let lacks: Vec<String> = lacks.iter().map(ToString::to_string).collect();
            format!("applied: {steps} steps; {}", lacks.join("; "))
        }
        Outcome::RolledBack { failure } => {
            format!("failed, and everything is as it was: {}", failed(failure))
        }
        Outcome::Stuck { failure, because } => {
            format!(
                "failed: {}; not everything is as it was: {because}",
                failed(failure)
            )
        }
    }
}

/// `apply`.
pub(crate) fn applied(applied: &Applied, inventory: &Inventory) -> String {
    let mut text = String::new();
    if let Some(recovered) = &applied.recovered {
        let _infallible = writeln!(text, "{recovered}");
    }
    if !applied.plan.is_empty() {
        text.push_str(&plan(&applied.plan, inventory));
    }
    let _infallible = writeln!(text, "{}", outcome(applied));
    text
}
