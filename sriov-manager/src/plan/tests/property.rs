//! Whatever the host and whatever is wanted: no plan touches a VF in use; a plan that was carried
//! out leaves nothing to plan; a fault at any point ends in the old state or the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proptest::prelude::*;

use super::look;
use crate::address::PciAddr;
use crate::apply::{Journal, Outcome, State, apply, recover};
use crate::attribute::{Attributes, Rates, Tag};
use crate::kernel::{Controllers, Kernel};
use crate::model::{Card, Fault, Model};
use crate::nvme::{Kind, Order, Resources};
use crate::plan::plan;
use crate::target::{PfTarget, Target, VfTarget};
use crate::values::{Driver, GroupType, Mac, Qos, Rate, Vlan, VlanProtocol};

/// A host and what is wanted of it.
#[derive(Clone, Debug)]
struct Case {
    cards: Vec<(Card, u16, Vec<Life>)>,
    /// How many VFs of the NVMe controller, the last card, have queues.
    dealt: u16,
    target: Target,
}

/// What a VF that is there is doing.
#[derive(Clone, Copy, Debug)]
enum Life {
    Idle,
    /// Its interface is up and has an address.
    Host,
    /// Given to VFIO, nobody has it.
    Given,
    /// A process has it.
    Held,
}

fn life() -> impl Strategy<Value = Life> {
    prop_oneof![
        4 => Just(Life::Idle),
        1 => Just(Life::Host),
        2 => Just(Life::Given),
        1 => Just(Life::Held),
    ]
}

prop_compose! {
    fn card(bus: u8)(
        keeps in any::<bool>(), grants in prop_oneof![9 => Just(7_u16), 1 => 0..7_u16],
        room in prop::bool::weighted(0.9), acs in prop::bool::weighted(0.8),
        msix in any::<bool>(), count in 0..=7_u16, lives in prop::collection::vec(life(), 7)
    ) -> (Card, u16, Vec<Life>) {
        let card = Card { keeps, grants, room, acs, msix, ..Card::new(bus) };
        let count = if room { count.min(grants) } else { 0 };
        (card, count, lives)
    }
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let mac = prop::option::of((1..u64::MAX).prop_map(Mac::local));
    let tag = prop::option::of((0..4095_i64, 0..8_i64, any::<bool>()));
    let rates = prop::option::of((0..3_i64, 3..99_i64));
    (
        mac,
        tag,
        rates,
        any::<Option<bool>>(),
        any::<Option<bool>>(),
    )
        .prop_map(|(mac, tag, rates, spoof_check, trust)| Attributes {
            mac,
            tag: tag.map(|(vlan, qos, service)| Tag {
                vlan: Vlan::try_from(vlan).unwrap(),
                qos: Qos::try_from(qos).unwrap(),
                protocol: if service {
                    VlanProtocol::Service
                } else {
                    VlanProtocol::Customer
                },
            }),
            rates: rates.map(|(min, max)| Rates {
                min: Rate::try_from(min).unwrap(),
                max: Rate::try_from(max).unwrap(),
            }),
            spoof_check,
            trust,
            ..Attributes::default()
        })
}

fn driver() -> impl Strategy<Value = Option<Driver>> {
    let named = |name: &str| Some(Driver::try_from(name.to_owned()).unwrap());
    prop_oneof![
        Just(None),
        Just(Some(Driver::Native)),
        Just(named("vfio-pci")),
        Just(named("igbvf")),
        Just(Some(Driver::Unbound)),
    ]
}

fn resources() -> impl Strategy<Value = Option<Resources>> {
    prop::option::of((2..5_u16, 1..4_u16).prop_map(|(vq, vi)| Resources { vq, vi }))
}

prop_compose! {
    /// An NVMe controller: its number of VFs, and what they do.
    fn controller(bus: u8)(
        vq in 0..20_u16, vi in 0..20_u16, count in 0..=4_u16,
        lives in prop::collection::vec(life(), 4)
    ) -> (Card, u16, Vec<Life>) {
        let nvme = Some(Resources { vq, vi });
        (Card { nvme, total: 4, ..Card::new(bus) }, count, lives)
    }
}

prop_compose! {
    fn controller_target(bus: u8)(
        count in 0..=4_u16, autoprobe in any::<Option<bool>>(),
        primary in prop::option::of((0..3_u16, 0..3_u16)),
        vfs in prop::collection::btree_map(0..4_u16, (resources(), driver()), 0..4)
    ) -> PfTarget {
        let vfs = vfs.into_iter().filter(|(index, _)| *index < count);
        let vfs = vfs.map(|(index, (resources, driver))| {
            let driver = driver.filter(|driver| driver.to_string() != "igbvf");
            (index, VfTarget { resources, driver, ..VfTarget::default() })
        });
        PfTarget {
            address: PciAddr::new(0, bus, 0, 0),
            count,
            autoprobe,
            eswitch: None,
            group_type: None,
            primary: primary.map(|(vq, vi)| Resources { vq, vi }),
            required: BTreeSet::new(),
            vfs: vfs.collect(),
        }
    }
}

prop_compose! {
    fn pf_target(bus: u8)(
        count in 0..=8_u16, autoprobe in any::<Option<bool>>(),
        group_type in prop_oneof![3 => Just(None), 1 => Just(Some(GroupType::Dma))],
        vfs in prop::collection::btree_map(
            0..7_u16, (attributes(), driver(), prop::option::of(2..5_u16)), 0..5,
        )
    ) -> PfTarget {
        let vfs: BTreeMap<u16, VfTarget> = vfs
            .into_iter()
            .filter(|(index, _)| *index < count)
            .map(|(index, (attributes, driver, msix))| {
                let target = VfTarget { attributes, driver, msix, ..VfTarget::default() };
                (index, target)
            })
            .collect();
        let address = PciAddr::new(0, bus, 0, 0);
        PfTarget {
            address, count, autoprobe, eswitch: None, group_type, primary: None,
            required: BTreeSet::new(), vfs,
        }
    }
}

fn case() -> impl Strategy<Value = Case> {
    let cards = (card(1), card(2), controller(3)).prop_map(|(a, b, c)| vec![a, b, c]);
    let targets = (pf_target(1), pf_target(2), controller_target(3));
    (cards, targets, 0..3_u16).prop_map(|(cards, (a, b, c), dealt)| Case {
        cards,
        dealt,
        target: Target { pfs: vec![a, b, c] },
    })
}

/// Deals out to VFs of the controller what it can, and binds them.
fn deal(model: &Model, card: &Card, vfs: &[PciAddr], dealt: u16) {
    let controller = format!("/dev/nvme{}", card.address.bus());
    let order = |id, order| model.order(Path::new(&controller), id, order);
    for (id, vf) in (1..=dealt).zip(vfs) {
        let given = [
            Order::Assign(Kind::Vq, 2),
            Order::Assign(Kind::Vi, 1),
            Order::Online,
        ];
        if given.into_iter().all(|one| order(id, one).is_ok()) {
            let at = vf.to_string();
            model
                .write(Path::new("/sys/bus/pci/drivers_probe"), &at)
                .unwrap();
        } else {
            order(id, Order::Offline).unwrap();
        }
    }
}

/// The host, and its VFs in use.
fn build(case: &Case) -> (Model, BTreeSet<PciAddr>) {
    let model = Model::new(case.cards.iter().map(|(card, ..)| card.clone()));
    let mut used = BTreeSet::new();
    for (card, count, lives) in &case.cards {
        let nvme = card.nvme.is_some();
        if nvme {
            model.keep(card.address, Resources { vq: 4, vi: 4 });
        }
        if *count > 0 {
            let path = card.address.file("sriov_numvfs");
            model.write(&path, &count.to_string()).unwrap();
        }
        let vfs = model.state().vfs(card.address);
        if nvme {
            deal(&model, card, &vfs, case.dealt);
        }
        for (vf, life) in vfs.into_iter().zip(lives) {
            match life {
                Life::Idle => {}
                Life::Host if nvme => {}
                Life::Host => {
                    let mut state = model.state();
                    let names = state.files.list(&vf.file("net")).unwrap();
                    let link = state
                        .links
                        .iter_mut()
                        .find(|link| link.name == names[0])
                        .unwrap();
                    (link.up, link.addressed) = (true, true);
                    used.insert(vf);
                }
                Life::Given | Life::Held => {
                    let at = vf.to_string();
                    let _it_may_have_none = model.write(&vf.file("driver/unbind"), &at);
                    model
                        .write(&vf.file("driver_override"), "vfio-pci")
                        .unwrap();
                    model
                        .write(Path::new("/sys/bus/pci/drivers_probe"), &at)
                        .unwrap();
                    if matches!(life, Life::Held) {
                        model.state().held.insert(vf);
                        used.insert(vf);
                    }
                }
            }
        }
    }
    model.state().touched.clear();
    // Whoever holds a VF of a shared group holds the group.
    for pf in &look(&model).pfs {
        used.extend(pf.vfs.iter().filter(|vf| vf.is_used()).map(|vf| vf.address));
    }
    (model, used)
}

/// What can be compared before and after.
fn state_of(model: &Model) -> Target {
    let inventory = look(model);
    let addresses: Vec<PciAddr> = inventory.pfs.iter().map(|pf| pf.address).collect();
    Target::of(&inventory, &addresses)
}

/// What is wanted of `pfs`.
fn of_those(target: &Target, pfs: &[PciAddr]) -> Target {
    let own = target.pfs.iter().filter(|pf| pfs.contains(&pf.address));
    Target {
        pfs: own.cloned().collect(),
    }
}

fn untouched(model: &Model, used: &BTreeSet<PciAddr>) -> Result<(), TestCaseError> {
    let state = model.state();
    let touched: Vec<_> = state.touched.intersection(used).collect();
    prop_assert!(touched.is_empty(), "touched {touched:?}");
    prop_assert!(state.wedged.is_empty());
    Ok(())
}

/// Old, or new: nothing between.
fn old_or_new(model: &Model, old: &Target, target: &Target) -> Result<(), TestCaseError> {
    let now = state_of(model);
    let rest = plan(&look(model), target);
    let is_new = rest.steps.is_empty();
    prop_assert!(
        now == *old || is_new,
        "now {now:?}\nold {old:?}\nleft {rest:?}"
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn plans_touch_nothing_in_use_and_leave_nothing_to_plan(case in case()) {
        let (model, used) = build(&case);
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let old = state_of(&model);
        let inventory = look(&model);
        let made = plan(&inventory, &case.target);
        let outcome = apply(model.machine(), &state, &inventory, &made, &case.target).unwrap();
        untouched(&model, &used)?;
        match outcome {
            Outcome::Nothing | Outcome::Applied { .. } => {
                let again = plan(&look(&model), &case.target);
                prop_assert!(again.steps.is_empty(), "left: {again:?}");
                prop_assert_eq!(again.refusals.len(), made.refusals.len());
            }
            Outcome::RolledBack { .. } => prop_assert_eq!(state_of(&model), old),
            Outcome::Stuck { .. } => prop_assert!(false, "{outcome:?}"),
        }
        prop_assert_eq!(Journal::unfinished(state.journal()).unwrap(), None);
    }

    #[test]
    fn a_fault_ends_in_the_old_state_or_the_new(case in case(), at in 0..40_usize) {
        let (model, used) = build(&case);
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let old = state_of(&model);
        let inventory = look(&model);
        let made = plan(&inventory, &case.target);
        let target = of_those(&case.target, &made.pfs());
        model.fault(Some(Fault::Once(at)));
        let outcome = apply(model.machine(), &state, &inventory, &made, &target).unwrap();
        model.fault(None);
        untouched(&model, &used)?;
        prop_assert!(!matches!(outcome, Outcome::Stuck { .. }), "{outcome:?}");
        old_or_new(&model, &old, &target)?;
    }

    #[test]
    fn a_process_that_dies_is_finished_or_undone_by_the_next(case in case(), at in 0..40_usize) {
        let (model, used) = build(&case);
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let old = state_of(&model);
        let inventory = look(&model);
        let made = plan(&inventory, &case.target);
        let target = of_those(&case.target, &made.pfs());
        model.fault(Some(Fault::Dead(at)));
        apply(model.machine(), &state, &inventory, &made, &target).unwrap();
        model.fault(None);
        recover(model.machine(), &state).unwrap();
        untouched(&model, &used)?;
        prop_assert_eq!(Journal::unfinished(state.journal()).unwrap(), None);
        old_or_new(&model, &old, &target)?;
    }
}
