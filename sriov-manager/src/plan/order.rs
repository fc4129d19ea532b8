//! The steps for one PF, in the order that the kernel demands.

use std::collections::BTreeSet;

use crate::attribute::{Attribute, Attributes, Key};
use crate::inventory::{Inventory, Pf};
use crate::nvme::Resources;
use crate::plan::{Action, Reason, Step};
use crate::target::{PfTarget, VfTarget};
use crate::values::{Driver, DriverName};

/// How many VFs a sentence names.
const NAMED: usize = 4;

/// What is known of a VF at the moment its steps are made.
struct Now<'a> {
    driver: Option<&'a str>,
    only: Option<&'a str>,
    attributes: Attributes,
    msix: Option<u16>,
    resources: Option<Resources>,
    group: Option<&'a str>,
    fresh: bool,
}

impl Now<'_> {
    /// Its driver, to be bound to again.
    fn as_was(&self, name: &str) -> Option<Driver> {
        if self.only.is_none() && !crate::values::is_vfio(name) {
            return Some(Driver::Native);
        }
        DriverName::try_from(name.to_owned())
            .ok()
            .map(Driver::Named)
    }
}

/// Steps as they are collected.
struct Steps<'a> {
    pf: &'a Pf,
    list: &'a mut Vec<Step>,
    /// What the attribute will be at this point.
    autoprobe: Option<bool>,
    /// What is wanted and done without.
    lacks: BTreeSet<Key>,
}

impl Steps<'_> {
    fn push(&mut self, action: Action, reason: impl Into<Reason>) {
        let (pf, reason) = (self.pf.address, reason.into());
        self.list.push(Step { pf, action, reason });
    }

    /// Changes the attribute if it is there and different.
    fn autoprobe(&mut self, on: bool, reason: &'static str) {
        if self.autoprobe.is_some_and(|now| now != on) {
            self.autoprobe = Some(on);
            self.push(Action::Autoprobe { on }, reason);
        }
    }
}

/// Adds to `list` what it takes to make `pf` what `wanted` says; returns what is done without.
pub(super) fn steps(
    inventory: &Inventory,
    pf: &Pf,
    wanted: &PfTarget,
    list: &mut Vec<Step>,
) -> BTreeSet<Key> {
    let mut steps = Steps {
        pf,
        list,
        autoprobe: pf.autoprobe,
        lacks: BTreeSet::new(),
    };
    let count = pf.count();
    let eswitch = wanted.eswitch.filter(|mode| pf.eswitch != Some(*mode));
    let keep = wanted
        .primary
        .filter(|keep| pf.nvme.is_some_and(|now| now.primary() != *keep));
    let anew = eswitch.is_some() || keep.is_some();
    let remake = count != wanted.count || (anew && count > 0);
    if remake && count > 0 {
        let victims = victims(pf);
        let reason = match eswitch {
            Some(mode) if count == wanted.count => {
                format!("the eswitch is to be {mode}; {victims}")
            }
            None if count == wanted.count => format!("the controller is to be reset; {victims}"),
            _ => format!(
                "{} are wanted, and the number can only change through none; {victims}",
                wanted.count
            ),
        };
        steps.push(Action::Count { from: count, to: 0 }, reason);
    }
    if let Some(mode) = eswitch {
        let now = pf
            .eswitch
            .map_or("unknown", crate::values::EswitchMode::word);
        steps.push(Action::Eswitch { mode }, format!("it is {now}"));
    }
    if let Some(keep) = keep {
        let now = pf.nvme.map(|now| now.primary()).unwrap_or_default();
        let reason = format!("it has {now} that its VFs are to get");
        steps.push(Action::Primary { keep }, reason);
    }
    if remake && wanted.count > 0 {
        steps.autoprobe(false, "VFs are told what they are before a driver has them");
        let reason = format!("{} are wanted", wanted.count);
        let (from, to) = (0, wanted.count);
        steps.push(Action::Count { from, to }, reason);
    }
    let last = wanted.autoprobe.or(pf.autoprobe);
    vfs(inventory, wanted, remake, last, &mut steps);
    if let Some(on) = last {
        steps.autoprobe(on, "as it is to be for VFs that others make");
    }
    steps.lacks
}

/// Which VFs go.
fn victims(pf: &Pf) -> String {
    let named = pf.vfs.iter().take(NAMED);
    let mut names: Vec<String> = named.map(|vf| vf.address.to_string()).collect();
    if pf.vfs.len() > NAMED {
        names.push(format!("{} more", pf.vfs.len() - NAMED));
    }
    format!("free, and gone then: {}", names.join(", "))
}

fn vfs(
    inventory: &Inventory,
    wanted: &PfTarget,
    remake: bool,
    last: Option<bool>,
    steps: &mut Steps<'_>,
) {
    let pf = steps.pf;
    let nothing = VfTarget::default();
    let mut native = Vec::new();
    let mut named = Vec::new();
    let mut late = Vec::new();
    let mut owns = wanted.vfs.iter().peekable();
    for index in 0..wanted.count {
        let vf = pf.vf(index).filter(|_| !remake);
        let own = owns.next_if(|(own, _)| **own == index).map(|(_, own)| own);
        if vf.is_some() && own.is_none() && wanted.group_type.is_none() {
            continue;
        }
        let own = own.unwrap_or(&nothing);
        // Nobody asks for it unless a type is wanted.
        let typed = vf.filter(|_| wanted.group_type.is_some());
        let group = typed.and_then(|vf| inventory.group(vf.group?));
        let now = Now {
            driver: vf.and_then(|vf| vf.driver.as_deref()),
            only: vf.and_then(|vf| vf.driver_override.as_deref()),
            attributes: vf.map(|vf| vf.attributes).unwrap_or_default(),
            msix: vf.and_then(|vf| vf.msix),
            resources: match vf {
                Some(vf) => vf.resources,
                None => pf.nvme.map(|_| Resources::NONE),
            },
            group: group.map(|group| group.kind.as_str()),
            fresh: vf.is_none(),
        };
        told(index, own, wanted, &now, steps, &mut late);
        match binding(index, own, wanted, &now, last, steps) {
            Some(Some(driver)) => named.push((index, driver)),
            Some(None) => native.push(index),
            None => {}
        }
    }
    for (vf, driver) in named {
        let driver = Some(driver);
        steps.push(Action::Bind { vf, driver }, "this driver is wanted");
    }
    if !native.is_empty() {
        steps.autoprobe(true, "without it no driver takes a VF by itself");
    }
    for vf in native {
        steps.push(
            Action::Bind { vf, driver: None },
            "its own driver is wanted",
        );
    }
    // Many cards set rates only while the link is up, and new VFs take it down for a moment: there
    // is the most time for it to come back.
    steps.list.append(&mut late);
}

/// What the VF's PF, or its own controller, is told.
fn told(
    vf: u16,
    own: &VfTarget,
    wanted: &PfTarget,
    now: &Now<'_>,
    steps: &mut Steps<'_>,
    late: &mut Vec<Step>,
) {
    for attribute in own.attributes.missing_in(&now.attributes) {
        let key = attribute.key();
        if steps.pf.lacks.contains(&key) && !wanted.requires(key) {
            steps.lacks.insert(key);
            continue;
        }
        let reason = if now.fresh {
            Reason::Fixed("it is new")
        } else {
            let reported = now.attributes.reported(&attribute);
            reported.map_or(Reason::Fixed("it is not known"), Reason::Now)
        };
        let action = Action::Attribute { vf, attribute };
        let step = Step {
            pf: steps.pf.address,
            action,
            reason,
        };
        match attribute {
            Attribute::Rates(_) => late.push(step),
            _ => steps.list.push(step),
        }
    }
}

/// What a VF without a driver is given to drive it with.
fn dealt(
    vf: u16,
    msix: Option<u16>,
    resources: Option<Resources>,
    now: &Now<'_>,
    steps: &mut Steps<'_>,
) {
    if let Some(count) = msix {
        let reason = match now.msix {
            Some(now) => format!("it has {now}"),
            None => "it is new".to_owned(),
        };
        steps.push(Action::Msix { vf, count }, reason);
    }
    if let Some(resources) = resources {
        let now = now.resources.unwrap_or_default();
        let reason = match now {
            Resources::NONE => "it has none".to_owned(),
            now => format!("it has {now}"),
        };
        steps.push(Action::Resources { vf, resources }, reason);
    }
}

/// Makes the steps up to the binding itself; returns what to bind to, `Some(None)` being whatever
/// the kernel chooses.
fn binding(
    vf: u16,
    own: &VfTarget,
    wanted: &PfTarget,
    now: &Now<'_>,
    last: Option<bool>,
    steps: &mut Steps<'_>,
) -> Option<Option<DriverName>> {
    let resources = own
        .resources
        .filter(|wanted| now.resources != Some(*wanted));
    let msix = own.msix.filter(|wanted| now.msix != Some(*wanted));
    // Without queues no driver takes it.
    let idle = now.resources == Some(Resources::NONE) && resources.is_none();
    let as_new = if now.fresh && last == Some(true) && !idle {
        Some(Driver::Native)
    } else {
        None
    };
    let as_was = now
        .driver
        .filter(|_| resources.is_some() || msix.is_some())
        .and_then(|name| now.as_was(name));
    let driver = own.driver.clone().or(as_new).or(as_was);
    let kept = |driver: &Driver| match driver {
        Driver::Native => now.driver.is_some_and(|name| {
            !crate::values::is_vfio(name) && now.only.is_none_or(|only| only == name)
        }),
        Driver::Named(name) => now.driver == Some(name.as_str()),
        Driver::Unbound => now.driver.is_none() && now.only.is_none(),
    };
    // What a controller has, and a VF's interrupts, can only be changed while nobody drives it.
    let moved = (resources.is_some() || msix.is_some()) && now.driver.is_some();
    let rebind = driver.as_ref().is_some_and(|driver| moved || !kept(driver));
    // VFIO has domains of its own; the type matters to drivers of the host, and to devices at rest.
    let kind = wanted.group_type.filter(|kind| {
        let differs = now.group.map_or(now.fresh, |group| group != kind.word());
        differs && (rebind || now.driver.is_none())
    });
    if let Some(driver) = now.driver.filter(|_| rebind) {
        let driver = driver.into();
        let reason = match &own.driver {
            Some(wanted) => format!("{wanted} is wanted"),
            None if moved => "what it has is to change".to_owned(),
            None => "the group's type is to change".to_owned(),
        };
        steps.push(Action::Unbind { vf, driver }, reason);
    }
    if let Some(kind) = kind {
        let reason = format!("it is {}", now.group.unwrap_or("not known yet"));
        steps.push(Action::GroupType { vf, kind }, reason);
    }
    dealt(vf, msix, resources, now, steps);
    let driver = driver.filter(|_| rebind)?;
    let only = match &driver {
        Driver::Named(name) => Some(name.clone()),
        Driver::Native | Driver::Unbound => None,
    };
    if now.only != only.as_ref().map(DriverName::as_str) {
        let reason = match &only {
            Some(_) => "no other driver is wanted",
            None => "no single driver is wanted",
        };
        let driver = only;
        steps.push(Action::Override { vf, driver }, reason);
    }
    match driver {
        Driver::Unbound => None,
        Driver::Named(name) => Some(Some(name)),
        Driver::Native => Some(None),
    }
}
