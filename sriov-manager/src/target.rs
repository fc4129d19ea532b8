//! What a host is to become: a [`Spec`] with names replaced by the functions they stand for.
//!
//! A state that was ([`Target::of`]) has the same form, so that rolling back is nothing else than
//! planning and applying what was there before.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::config::Name;

use crate::address::PciAddr;
use crate::attribute::{Attributes, Key};
use crate::inventory::{Inventory, Pf, Vf};
use crate::nvme::{Flexible, Resources};
use crate::plan::{Refusal, Why};
use crate::spec::{Match, PfSpec, Spec, VfSpec};
use crate::values::{Driver, DriverName, EswitchMode, GroupType, Mac};

/// What PFs are to become, by address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Target {
    /// The PFs.
    pub pfs: Vec<PfTarget>,
}

/// What one PF is to become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PfTarget {
    /// The PF.
    pub address: PciAddr,
    /// How many VFs.
    pub count: u16,
    /// See [`PfSpec::autoprobe`].
    pub autoprobe: Option<bool>,
    /// See [`PfSpec::eswitch`].
    pub eswitch: Option<EswitchMode>,
    /// See [`Spec::group_type`].
    pub group_type: Option<GroupType>,
    /// What an NVMe controller keeps of its flexible resources; `None`: what it has.
    #[serde(default)]
    pub primary: Option<Resources>,
    /// See [`PfSpec::required`].
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub required: BTreeSet<Key>,
    /// VFs of which something is wanted, by index.
    pub vfs: BTreeMap<u16, VfTarget>,
}

/// What one VF is to become.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VfTarget {
    /// What its PF's driver is told.
    pub attributes: Attributes,
    /// See [`VfSpec::msix`].
    pub msix: Option<u16>,
    /// What it gets of its controller's flexible resources; `None`: what it has.
    #[serde(default)]
    pub resources: Option<Resources>,
    /// Its driver; `None`: as it is.
    pub driver: Option<Driver>,
    /// The pool it is leased from.
    pub pool: Option<Name>,
}

impl Target {
    /// The target for the PF at `address`.
    pub fn pf(&self, address: PciAddr) -> Option<&PfTarget> {
        self.pfs.iter().find(|pf| pf.address == address)
    }

    /// The state that `addresses` are in.
    pub fn of(inventory: &Inventory, addresses: &[PciAddr]) -> Self {
        let pfs = addresses
            .iter()
            .filter_map(|address| inventory.pf(*address));
        let pfs = pfs.map(PfTarget::of).collect();
        Self { pfs }
    }

    /// Finds the PFs that `spec` means. Those that cannot be told are refused, the others found.
    pub fn resolve(spec: &Spec, inventory: &Inventory) -> (Self, Vec<Refusal>) {
        let (mut found, mut refusals) = (BTreeMap::new(), Vec::new());
        for wanted in &spec.pfs {
            let pf = match find(wanted, inventory) {
                Ok(pf) => pf,
                Err(refusal) => {
                    refusals.push(refusal);
                    continue;
                }
            };
            let target = PfTarget::wanted(wanted, pf, spec, inventory);
            if let Some((other, _)) = found.insert(pf.address, (wanted, target)) {
                refusals.push(Refusal {
                    pf: Some(pf.address),
                    why: Why::MatchedTwice,
                    text: format!(
                        "{}: {} is already described at {}",
                        wanted.place,
                        pf.label(),
                        other.place
                    ),
                    fix: "describe each PF once".to_owned(),
                });
            }
        }
        let twice: Vec<PciAddr> = refusals.iter().filter_map(|refusal| refusal.pf).collect();
        let targets = found.into_values().map(|(_, target)| target);
        let pfs = targets
            .filter(|target| !twice.contains(&target.address))
            .collect();
        (Self { pfs }, refusals)
    }
}

impl PfTarget {
    /// Whether VFs may not be without it.
    pub fn requires(&self, key: Key) -> bool {
        key.is_identity() || self.required.contains(&key)
    }

    /// The state that `pf` is in.
    fn of(pf: &Pf) -> Self {
        let vfs = pf.vfs.iter().map(|vf| {
            let named = |name: &String| DriverName::try_from(name.clone()).ok().map(Driver::Named);
            let driver = match (&vf.driver, &vf.driver_override) {
                (None, _) => Some(Driver::Unbound),
                (Some(name), Some(_)) => named(name),
                (Some(name), None) if crate::values::is_vfio(name) => named(name),
                (Some(_), None) => Some(Driver::Native),
            };
            let target = VfTarget {
                attributes: vf.attributes,
                msix: vf.msix.filter(|count| *count > 0),
                resources: vf.resources,
                driver,
                pool: None,
            };
            (vf.index, target)
        });
        Self {
            address: pf.address,
            count: pf.count(),
            autoprobe: pf.autoprobe,
            eswitch: pf.eswitch,
            group_type: None,
            primary: pf.nvme.map(|pool| pool.primary()),
            required: BTreeSet::new(),
            vfs: vfs.collect(),
        }
    }

    /// What `wanted` makes of `pf`.
    fn wanted(wanted: &PfSpec, pf: &Pf, spec: &Spec, inventory: &Inventory) -> Self {
        // A leased VF is what its lease says; the broker brings it back to what is written here.
        let leased = |index| pf.vf(index).is_some_and(Vf::is_leased);
        let free = wanted.vf.iter().filter(|vf| !leased(vf.index.get()));
        let seed = Seed::of(&inventory.host.id, pf);
        let vfs = free.map(|vf| {
            let index = vf.index.get();
            (index, vf_wanted(vf, index, seed))
        });
        Self {
            address: pf.address,
            count: wanted.vfs.get(),
            autoprobe: wanted.autoprobe,
            eswitch: wanted.eswitch,
            group_type: spec.group_type,
            primary: kept(wanted, pf),
            required: wanted.required.clone(),
            vfs: vfs.collect(),
        }
    }
}

fn vf_wanted(vf: &VfSpec, index: u16, seed: Seed) -> VfTarget {
    let mut attributes = vf.attributes;
    if vf.derived_mac {
        attributes.mac = Some(seed.mac(index));
    }
    VfTarget {
        attributes,
        msix: vf.msix.map(crate::values::MsixCount::get),
        resources: vf.resources,
        driver: vf.driver.clone(),
        pool: vf.pool.clone(),
    }
}

/// What the controller may keep so that its VFs find enough; `None` if nothing is to be dealt out.
fn kept(wanted: &PfSpec, pf: &Pf) -> Option<Resources> {
    let pool = pf.nvme?;
    wanted.vf.iter().find_map(|vf| vf.resources)?;
    let (mut vq, mut vi) = (0_u32, 0_u32);
    for index in 0..wanted.vfs.get() {
        let own = wanted.vf.iter().find(|vf| vf.index.get() == index);
        let now = || pf.vf(index).and_then(|vf| vf.resources);
        let own = own.and_then(|vf| vf.resources).or_else(now);
        let own = own.unwrap_or_default();
        (vq, vi) = (vq + u32::from(own.vq), vi + u32::from(own.vi));
    }
    let left = |flexible: Flexible, taken: u32| {
        let left = flexible.total.saturating_sub(taken);
        u16::try_from(left)
            .unwrap_or(u16::MAX)
            .min(flexible.primary)
    };
    Some(Resources {
        vq: left(pool.vq, vq),
        vi: left(pool.vi, vi),
    })
}

/// What all addresses that are derived for the VFs of one PF have in common.
#[derive(Clone, Copy)]
struct Seed(u64);

impl Seed {
    /// FNV-1a and a last mix: any hash that never changes would do.
    const START: u64 = 0xcbf2_9ce4_8422_2325;

    fn of(host: &str, pf: &Pf) -> Self {
        let permanent = pf
            .interface
            .as_ref()
            .and_then(|interface| interface.permanent);
        let card = permanent.map_or_else(|| pf.address.to_string(), |mac| mac.to_string());
        Self(Self::START).and(format!("{host}/{card}/").as_bytes())
    }

    fn and(self, bytes: &[u8]) -> Self {
        let hash = bytes.iter().fold(self.0, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(hash)
    }

    /// An address that stays the same as long as the host, the card and the index do.
    fn mac(self, index: u16) -> Mac {
        let Self(hash) = self.and(index.to_string().as_bytes());
        Mac::local(hash ^ (hash >> 29))
    }
}

/// The one PF that is meant.
fn find<'a>(wanted: &PfSpec, inventory: &'a Inventory) -> Result<&'a Pf, Refusal> {
    let matching = |pf: &&Pf| matches(&wanted.matching, pf);
    let found: Vec<&Pf> = inventory.pfs.iter().filter(matching).collect();
    let list = |pfs: &[&Pf]| {
        let labels: Vec<String> = pfs.iter().map(|pf| candidate(pf)).collect();
        labels.join(", ")
    };
    match found.as_slice() {
        [pf] => Ok(pf),
        [] => Err(Refusal {
            pf: None,
            why: Why::NoMatch,
            text: format!("{}: no PF matches", wanted.place),
            fix: match inventory.pfs.as_slice() {
                [] => "this host has no PF: enable SR-IOV in the firmware".to_owned(),
                all => format!("candidates: {}", list(&all.iter().collect::<Vec<_>>())),
            },
        }),
        several => Err(Refusal {
            pf: None,
            why: Why::SeveralMatches,
            text: format!("{}: {} PFs match", wanted.place, several.len()),
            fix: format!("add to match what tells them apart: {}", list(several)),
        }),
    }
}

/// A PF with all that tells it from others.
fn candidate(pf: &Pf) -> String {
    let mut parts = vec![format!("{:04x}:{:04x}", pf.vendor, pf.device)];
    parts.extend(pf.driver.clone());
    if let Some(interface) = &pf.interface {
        parts.push(interface.name.clone());
        parts.extend(interface.permanent.map(|mac| mac.to_string()));
    }
    format!("{} ({})", pf.address, parts.join(" "))
}

fn matches(matching: &Match, pf: &Pf) -> bool {
    let interface = pf.interface.as_ref();
    let given = |wanted: Option<bool>| wanted.unwrap_or(true);
    given(matching.address.map(|address| address == pf.address))
        && given(
            matching
                .mac
                .map(|mac| interface.and_then(|i| i.permanent) == Some(mac.get())),
        )
        && given(matching.vendor.map(|vendor| vendor.get() == pf.vendor))
        && given(matching.device.map(|device| device.get() == pf.device))
        && given(
            matching
                .driver
                .as_ref()
                .map(|driver| pf.driver.as_ref() == Some(driver)),
        )
        && given(
            matching
                .name
                .as_ref()
                .map(|name| interface.is_some_and(|i| i.name == *name)),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_addresses_are_those_of_the_whole_text() {
        let text = "host-id/52:54:00:00:01:00/255";
        let seed = Seed(Seed::START).and(b"host-id/52:54:00:00:01:00/");
        let Seed(whole) = Seed(Seed::START).and(text.as_bytes());
        assert_eq!(seed.mac(255), Mac::local(whole ^ (whole >> 29)));
        // Written down: a VF keeps its address from one version to the next.
        assert_eq!(seed.mac(0).to_string(), "96:46:ae:64:54:33");
        assert_ne!(seed.mac(0), seed.mac(1));
    }
}
