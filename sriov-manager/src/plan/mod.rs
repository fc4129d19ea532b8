//! What has to be done so that a host becomes what is wanted, and what will not be done and why.
//!
//! [`plan`] is a pure function of an [`Inventory`] and a [`Target`]. It promises:
//! no step concerns a VF in use; what a step needs was done by a step before it; carried out, the
//! next plan is empty. A PF of which anything is refused gets no steps at all.
//!
//! The kernel makes the order: VFs are made without drivers, told what they are to be, and only
//! then bound, because a VF's driver reads its address when it is bound, and because everything
//! told to a VF is gone with it when the number of VFs changes, which can only go through none.

mod order;
mod reason;
mod refuse;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::PciAddr;
use crate::attribute::{Attribute, Key};
use crate::inventory::Inventory;
use crate::nvme::Resources;
use crate::spec::Spec;
use crate::target::Target;
use crate::values::{DriverName, EswitchMode, GroupType};

pub use reason::Reason;

/// Steps that a new VF takes, about.
const STEPS: usize = 8;

/// Steps and refusals.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// What is to be done, in order; those of one PF stand together.
    pub steps: Vec<Step>,
    /// What will not be done.
    pub refusals: Vec<Refusal>,
    /// What is done without.
    #[serde(default)]
    pub lacks: Vec<Lack>,
}

/// An attribute that is wanted, not required, and not known to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lack {
    /// The PF.
    pub pf: PciAddr,
    /// The attribute.
    pub key: Key,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pf, key } = self;
        write!(
            f,
            "{pf}: its driver does not support {key}; its VFs are without"
        )
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// The PF it concerns.
    pub pf: PciAddr,
    /// What is done.
    pub action: Action,
    /// Why.
    pub reason: Reason,
}

/// What is done to a PF, or to its VF `vf`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// New VFs get a driver at once, or not.
    Autoprobe {
        /// Whether they do.
        on: bool,
    },
    /// The number of VFs is changed.
    Count {
        /// How many there are.
        from: u16,
        /// How many there will be.
        to: u16,
    },
    /// The embedded switch is run in another way.
    Eswitch {
        /// How.
        mode: EswitchMode,
    },
    /// An NVMe controller keeps so much of its flexible resources, and is reset.
    Primary {
        /// How much.
        keep: Resources,
    },
    /// A VF of an NVMe controller is given queue pairs and interrupts.
    Resources {
        /// The VF.
        vf: u16,
        /// How many.
        resources: Resources,
    },
    /// A VF gets interrupts.
    Msix {
        /// The VF.
        vf: u16,
        /// How many.
        count: u16,
    },
    /// The PF's driver is told something about a VF.
    Attribute {
        /// The VF.
        vf: u16,
        /// What.
        attribute: Attribute,
    },
    /// A VF loses its driver.
    Unbind {
        /// The VF.
        vf: u16,
        /// The driver.
        driver: Box<str>,
    },
    /// The DMA of a VF's group is translated in another way.
    GroupType {
        /// The VF.
        vf: u16,
        /// How.
        kind: GroupType,
    },
    /// A VF may only be bound to one driver, or again to any.
    Override {
        /// The VF.
        vf: u16,
        /// The driver.
        driver: Option<DriverName>,
    },
    /// A VF is bound: to its only driver, or to whichever the kernel chooses.
    Bind {
        /// The VF.
        vf: u16,
        /// The driver.
        driver: Option<DriverName>,
    },
}

impl Action {
    /// Whether all VFs go with it.
    pub fn remakes(&self) -> bool {
        matches!(
            self,
            Self::Count { .. } | Self::Eswitch { .. } | Self::Primary { .. }
        )
    }

    /// The VF it concerns; of those that [remake](Action::remakes) it is all of them.
    pub fn vf(&self) -> Option<u16> {
        match self {
            Self::Autoprobe { .. }
            | Self::Count { .. }
            | Self::Eswitch { .. }
            | Self::Primary { .. } => None,
            Self::Msix { vf, .. }
            | Self::Resources { vf, .. }
            | Self::Attribute { vf, .. }
            | Self::Unbind { vf, .. }
            | Self::GroupType { vf, .. }
            | Self::Override { vf, .. }
            | Self::Bind { vf, .. } => Some(*vf),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Autoprobe { on: true } => f.write_str("let new VFs get a driver at once"),
            Self::Autoprobe { on: false } => f.write_str("let new VFs have no driver"),
            Self::Count { from, to: 0 } => write!(f, "remove all {from} VFs"),
            Self::Count { to, .. } => write!(f, "make {to} VFs"),
            Self::Eswitch { mode } => write!(f, "switch the eswitch to {mode}"),
            Self::Primary { keep } => write!(f, "keep {keep}, and reset the controller"),
            Self::Resources { vf, resources } => write!(f, "VF {vf}: {resources}"),
            Self::Msix { vf, count } => write!(f, "VF {vf}: {count} interrupts"),
            Self::Attribute { vf, attribute } => write!(f, "VF {vf}: {attribute}"),
            Self::Unbind { vf, driver } => write!(f, "VF {vf}: take it from {driver}"),
            Self::GroupType { vf, kind } => write!(f, "VF {vf}: IOMMU group type {kind}"),
            Self::Override {
                vf,
                driver: Some(name),
            } => write!(f, "VF {vf}: only {name} may have it"),
            Self::Override { vf, driver: None } => write!(f, "VF {vf}: any driver may have it"),
            Self::Bind {
                vf,
                driver: Some(name),
            } => write!(f, "VF {vf}: bind to {name}"),
            Self::Bind { vf, driver: None } => write!(f, "VF {vf}: bind to its own driver"),
        }
    }
}

/// Something that will not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// The PF it concerns, if it is known.
    pub pf: Option<PciAddr>,
    /// Why, in one word.
    pub why: Why,
    /// Why, in a sentence that names the culprits.
    pub text: String,
    /// What can be done about it.
    pub fix: String,
}

/// Why something is refused.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// No PF is meant.
    NoMatch,
    /// Several could be meant.
    SeveralMatches,
    /// One is described twice.
    MatchedTwice,
    /// A write to it never returned.
    Wedged,
    /// A VF is in use.
    InUse,
    /// The default route goes through it.
    DefaultRoute,
    /// The system's disk is behind it.
    SystemDisk,
    /// Somebody else manages it.
    ForeignManager,
    /// It has no driver, or one that makes no VFs.
    NoDriver,
    /// It cannot have so many.
    TooMany,
    /// VFs of an NVMe controller would have no queues, or more than there are.
    NoResources,
    /// There is no room for the memory of VFs.
    NoMemory,
    /// There are no bus numbers for them.
    NoBus,
    /// Its driver is told about VFs through an interface, and it has none.
    NoInterface,
    /// It cannot be asked for what is wanted.
    Unsupported,
    /// The host has no IOMMU.
    NoIommu,
    /// The host does not remap interrupts.
    NoRemapping,
    /// VFIO was told to do without remapping.
    UnsafeInterrupts,
    /// The driver is not there.
    DriverMissing,
    /// A driver of the host has something in the same group.
    NotViable,
}

impl Plan {
    /// What `spec` takes on this host.
    pub fn make(inventory: &Inventory, spec: &Spec) -> (Self, Target) {
        let (target, refusals) = Target::resolve(spec, inventory);
        let mut made = plan(inventory, &target);
        made.refusals.splice(0..0, refusals);
        (made, target)
    }

    /// Whether there is nothing to do and nothing refused.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.refusals.is_empty()
    }

    /// PFs that get steps, in order.
    pub fn pfs(&self) -> Vec<PciAddr> {
        let mut pfs: Vec<PciAddr> = self.steps.iter().map(|step| step.pf).collect();
        pfs.dedup();
        pfs
    }

    /// The steps of the PF at `address`.
    pub fn of(&self, address: PciAddr) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(move |step| step.pf == address)
    }
}

impl Why {
    /// Whether it also speaks against going back to what was there before: only what would hurt
    /// somebody does. What was there need not be what would be granted today.
    fn forbids_going_back(self) -> bool {
        matches!(self, Self::InUse | Self::Wedged | Self::NoMatch)
    }
}

/// What has to be done on the way from `inventory` to `target`.
pub fn plan(inventory: &Inventory, target: &Target) -> Plan {
    plan_unless(inventory, target, |_| true)
}

/// What has to be done on the way back to `before`, which was there.
pub fn plan_back(inventory: &Inventory, before: &Target) -> Plan {
    plan_unless(inventory, before, Why::forbids_going_back)
}

fn plan_unless(inventory: &Inventory, target: &Target, counts: fn(Why) -> bool) -> Plan {
    let mut plan = Plan::default();
    let made = target.pfs.iter().filter(|wanted| {
        let now = inventory.pf(wanted.address);
        now.is_some_and(|pf| pf.count() != wanted.count)
    });
    let vfs: usize = made.map(|wanted| usize::from(wanted.count)).sum();
    plan.steps.reserve(vfs * STEPS);
    for wanted in &target.pfs {
        let Some(pf) = inventory.pf(wanted.address) else {
            plan.refusals.push(Refusal {
                pf: Some(wanted.address),
                why: Why::NoMatch,
                text: format!("there is no PF at {}", wanted.address),
                fix: "see `sriov-manager scan`".to_owned(),
            });
            continue;
        };
        let first = plan.steps.len();
        let lacks = order::steps(inventory, pf, wanted, &mut plan.steps);
        let steps = plan.steps.get(first..).unwrap_or_default();
        let mut refusals = refuse::refusals(inventory, pf, wanted, steps);
        refusals.retain(|refusal| counts(refusal.why));
        let pf = pf.address;
        plan.lacks
            .extend(lacks.into_iter().map(|key| Lack { pf, key }));
        if !refusals.is_empty() {
            plan.steps.truncate(first);
            plan.refusals.extend(refusals);
        }
    }
    plan
}

#[cfg(test)]
pub(crate) mod tests;
