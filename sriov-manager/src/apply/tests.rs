//! Applies on the model of the kernel: success, failure, and writes that never return.

use super::*;
use crate::attribute::Key;
use crate::inventory::Known;
use crate::kernel::Kernel;
use crate::model::{Card, Model};
use crate::plan::tests::{PF, look, make};
use crate::spec::tests::spec;

fn wanted(count: u16, more: &str) -> String {
    format!("[[pf]]\nmatch = {{ address = \"{PF}\" }}\nvfs = {count}\n{more}")
}

/// Applies `text`, and says how it ended.
fn run(model: &Model, dir: &std::path::Path, text: &str) -> Outcome {
    let state = State::open(dir).unwrap();
    let inventory = look(model);
    let (plan, target) = Plan::make(&inventory, &spec(text).unwrap());
    assert_eq!(plan.refusals, []);
    apply(model.machine(), &state, &inventory, &plan, &target).unwrap()
}

#[test]
fn applying_twice_does_nothing() {
    let model = Model::new([Card::new(1)]);
    let dir = tempfile::tempdir().unwrap();
    let text = wanted(
        4,
        "[[pf.vf]]\nrange = \"0-2\"\ndriver = \"vfio-pci\"\nvlan = 5\n",
    );
    assert!(matches!(
        run(&model, dir.path(), &text),
        Outcome::Applied { .. }
    ));
    let changes = model.state().changes;
    assert_eq!(run(&model, dir.path(), &text), Outcome::Nothing);
    assert_eq!(model.state().changes, changes);
}

#[test]
fn an_attribute_that_the_driver_lacks_is_named_and_all_is_as_it_was() {
    let model = Model::new([Card::new(1)]);
    let dir = tempfile::tempdir().unwrap();
    make(&model, 2);
    let before = Target::of(&look(&model), &[PF]);
    let text = wanted(4, "[[pf.vf]]\nindex = 1\nlink_state = \"up\"\n")
        .replace("vfs = 4", "vfs = 4\nrequired = [\"link_state\"]");
    let Outcome::RolledBack { failure } = run(&model, dir.path(), &text) else {
        panic!("not rolled back")
    };
    assert!(
        failure
            .error
            .starts_with("the driver does not support link_state"),
        "{failure:?}"
    );
    assert_eq!(Target::of(&look(&model), &[PF]), before);
}

/// What is not required is done without, said, and not asked for again.
#[test]
fn vfs_are_without_what_the_driver_lacks() {
    let model = Model::new([Card::new(1)]);
    let dir = tempfile::tempdir().unwrap();
    let text = wanted(
        3,
        "[[pf.vf]]\nrange = \"0-2\"\nvlan = 5\nlink_state = \"up\"\nrss_query = true\n",
    );
    let Outcome::Applied { lacks, .. } = run(&model, dir.path(), &text) else {
        panic!("not applied")
    };
    let lack = |key| Lack { pf: PF, key };
    assert_eq!(lacks, [lack(Key::LinkState), lack(Key::RssQuery)]);
    let known = State::open(dir.path()).unwrap().known().unwrap();
    let inventory = scan(model.machine(), &known).unwrap();
    let (plan, _) = Plan::make(&inventory, &spec(&text).unwrap());
    assert!(plan.is_empty(), "{plan:?}");
    assert_eq!(plan.lacks, lacks);
    let tag = inventory.pfs[0].vfs[2].attributes.tag.unwrap();
    assert_eq!(tag.vlan.get(), 5);
    // Required from now on, it is refused before anything is written.
    let text = text.replace("vfs = 3", "vfs = 3\nrequired = [\"rss_query\"]");
    let (plan, _) = Plan::make(&inventory, &spec(&text).unwrap());
    assert_eq!(plan.steps, []);
    assert!(
        plan.refusals[0]
            .text
            .contains("rss_query, which is required")
    );
}

/// A VF without its VLAN would be in another network.
#[test]
fn nothing_is_done_without_an_address_or_a_vlan() {
    for (lacks, vf) in [("vlan", "vlan = 5"), ("mac", "mac = \"derived\"")] {
        let model = Model::new([Card {
            lacks: vec![lacks],
            ..Card::new(1)
        }]);
        let dir = tempfile::tempdir().unwrap();
        let text = wanted(1, &format!("[[pf.vf]]\nindex = 0\n{vf}\n"));
        let outcome = run(&model, dir.path(), &text);
        assert!(matches!(outcome, Outcome::RolledBack { .. }), "{outcome:?}");
    }
}

/// Another driver, and another kernel, are asked again.
#[test]
fn what_a_driver_lacks_is_not_said_of_another() {
    let model = Model::new([Card::new(1)]);
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    state.remember_lack(PF, "other", Key::Trust).unwrap();
    let lacks = || {
        let known = state.known().unwrap();
        scan(model.machine(), &known).unwrap().pfs[0].lacks.clone()
    };
    assert!(lacks().is_empty());
    state.remember_lack(PF, "igb", Key::Trust).unwrap();
    assert_eq!(lacks(), [Key::Trust].into());
    let text = std::fs::read_to_string(dir.path().join("lacks.json")).unwrap();
    let text = text.replacen("\"boot\": \"", "\"boot\": \"before ", 1);
    std::fs::write(dir.path().join("lacks.json"), text).unwrap();
    assert!(lacks().is_empty());
}

#[test]
fn a_value_that_is_reported_already_needs_no_support() {
    let model = Model::new([Card::new(1)]);
    let dir = tempfile::tempdir().unwrap();
    let text = wanted(1, "[[pf.vf]]\nindex = 0\nlink_state = \"auto\"\n");
    assert!(matches!(
        run(&model, dir.path(), &text),
        Outcome::Applied { .. }
    ));
}

#[test]
fn a_driver_that_makes_fewer_than_asked_is_found_out() {
    let model = Model::new([Card {
        grants: 2,
        ..Card::new(1)
    }]);
    let dir = tempfile::tempdir().unwrap();
    let Outcome::RolledBack { failure } = run(&model, dir.path(), &wanted(4, "")) else {
        panic!("not rolled back")
    };
    assert_eq!(
        failure.error,
        "the kernel accepted it, but the driver made 2 VFs of 4; the kernel's log says why: some \
         drivers (bnxt_en) make VFs only while the PF's interface is up"
    );
    assert_eq!(look(&model).pfs[0].count(), 0);
}

#[test]
fn a_probe_that_lies_is_found_out() {
    let model = Model::new([Card::new(1)]);
    let dir = tempfile::tempdir().unwrap();
    model.state().probe_lies = true;
    let text = wanted(1, "[[pf.vf]]\nindex = 0\ndriver = \"vfio-pci\"\n");
    let Outcome::RolledBack { failure } = run(&model, dir.path(), &text) else {
        panic!("not rolled back")
    };
    assert!(
        failure
            .error
            .contains("the driver is None and not Some(\"vfio-pci\")")
    );
}

/// A VM opens a VF after the plan was made and before it was carried out.
#[test]
fn a_write_that_never_returns_leaves_the_pf_alone() {
    let model = Model::new([Card::new(1), Card::new(2)]);
    let other = PciAddr::new(0, 2, 0, 0);
    let dir = tempfile::tempdir().unwrap();
    let vfs = make(&model, 2);
    let state = State::open(dir.path()).unwrap();
    let inventory = look(&model);
    let text = wanted(1, "").replace("01:00", "02:00") + &wanted(0, "");
    let spec = spec(&text).unwrap();
    let (mut plan, target) = Plan::make(&inventory, &spec);
    plan.steps.sort_by_key(|step| std::cmp::Reverse(step.pf));
    model.state().held.insert(vfs[1]);
    let outcome = apply(model.machine(), &state, &inventory, &plan, &target).unwrap();
    let Outcome::Stuck { failure, because } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((failure.step.pf, failure.wedged), (PF, Some(4242)));
    assert!(because.contains("process 4242 is stuck"), "{because}");
    let holder = format!("in use are VF 1 ({}): ", vfs[1]);
    assert!(because.contains(&holder), "{because}");
    assert_eq!(
        look(&model).pf(other).unwrap().count(),
        0,
        "the other card went back"
    );
    assert_eq!(Journal::unfinished(state.journal()).unwrap(), None);
}

#[test]
fn what_was_left_by_a_dead_process_is_undone_if_it_cannot_be_finished() {
    let model = Model::new([Card::new(1)]);
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    let inventory = look(&model);
    let text = wanted(2, "[[pf.vf]]\nindex = 0\nlink_state = \"up\"\n")
        .replace("vfs = 2", "vfs = 2\nrequired = [\"link_state\"]");
    let (plan, target) = Plan::make(&inventory, &spec(&text).unwrap());
    let before = Target::of(&inventory, &[PF]);
    Journal::begin(state.journal(), &before, &target).unwrap();
    // It got as far as the VFs.
    model
        .write(&PF.file("sriov_drivers_autoprobe"), "0")
        .unwrap();
    model.write(&PF.file("sriov_numvfs"), "2").unwrap();
    assert!(plan.steps.len() > 2);
    let said = recover(model.machine(), &state).unwrap().unwrap();
    assert_eq!(said, "an apply that was interrupted is rolled back");
    assert_eq!(Target::of(&look(&model), &[PF]), before);
    assert_eq!(recover(model.machine(), &state).unwrap(), None);
}

#[test]
fn a_card_that_was_pulled_keeps_nobody_from_recovering() {
    let model = Model::new([Card::new(1)]);
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    let gone = Target::of(
        &look(&Model::new([Card::new(9)])),
        &[PciAddr::new(0, 9, 0, 0)],
    );
    Journal::begin(state.journal(), &gone, &gone).unwrap();
    assert!(
        recover(model.machine(), &state)
            .unwrap()
            .unwrap()
            .ends_with("is finished")
    );
}

#[test]
fn a_scan_of_vfs_reads_what_the_driver_says() {
    let model = Model::new([Card::new(1)]);
    make(&model, 1);
    let inventory = crate::inventory::scan(model.machine(), &Known::default()).unwrap();
    let vf = &inventory.pfs[0].vfs[0];
    assert_eq!(vf.driver.as_deref(), Some("igbvf"));
    assert_eq!(vf.attributes.spoof_check, Some(true));
    assert!(vf.interface.is_some() && vf.uses.is_empty());
}

/// Making VFs takes the link down for a moment, and igb sets rates only while it is up.
#[test]
fn a_rate_waits_for_the_link() {
    let model = Model::new([Card::new(1)]);
    let dir = tempfile::tempdir().unwrap();
    let text = wanted(2, "[[pf.vf]]\nrange = \"0-1\"\nmax_rate = 200\n");
    assert!(matches!(
        run(&model, dir.path(), &text),
        Outcome::Applied { .. }
    ));
    let rates = look(&model).pfs[0].vfs[1].attributes.rates.unwrap();
    assert_eq!(rates.max.get(), 200);
}

#[test]
fn a_rate_that_the_card_does_not_take_names_the_attribute() {
    let model = Model::new([Card::new(1)]);
    let dir = tempfile::tempdir().unwrap();
    let text = wanted(1, "[[pf.vf]]\nindex = 0\nmin_rate = 10\n");
    let Outcome::RolledBack { failure } = run(&model, dir.path(), &text) else {
        panic!("not rolled back")
    };
    assert!(failure.error.contains("leave min_rate out"), "{failure:?}");
    assert_eq!(look(&model).pfs[0].count(), 0);
}

/// igb forgets what its VFs were told with every change of their number, netdevsim does not: what
/// is there is read, and set where it differs.
#[test]
fn another_number_of_vfs_keeps_what_is_written_whatever_the_driver_forgets() {
    for keeps in [false, true] {
        let model = Model::new([Card {
            keeps,
            ..Card::new(1)
        }]);
        let dir = tempfile::tempdir().unwrap();
        let vf = "[[pf.vf]]\nindex = 0\nvlan = 7\ntrust = true\n";
        run(&model, dir.path(), &wanted(2, vf));
        run(&model, dir.path(), &wanted(3, vf));
        let attributes = look(&model).pfs[0].vfs[0].attributes;
        assert_eq!(attributes.tag.unwrap().vlan.get(), 7, "{keeps}");
        assert_eq!(attributes.trust, Some(true), "{keeps}");
        // And what is not written any more does not come back by itself.
        let none = wanted(3, "[[pf.vf]]\nindex = 0\nvlan = 0\n");
        run(&model, dir.path(), &none);
        assert_eq!(
            look(&model).pfs[0].vfs[0]
                .attributes
                .tag
                .unwrap()
                .vlan
                .get(),
            0
        );
    }
}

#[test]
fn nvme_vfs_get_what_is_written_and_give_it_back() {
    let nvme = Some(crate::nvme::Resources { vq: 8, vi: 8 });
    let model = Model::new([Card {
        nvme,
        ..Card::new(1)
    }]);
    let dir = tempfile::tempdir().unwrap();
    let dealt = |vq: u16| {
        let vf = format!("[[pf.vf]]\nrange = \"0-1\"\nvq = {vq}\nvi = 1\ndriver = \"native\"\n");
        wanted(2, &vf)
    };
    for vq in [2, 3, 2] {
        assert!(matches!(
            run(&model, dir.path(), &dealt(vq)),
            Outcome::Applied { .. }
        ));
        let inventory = look(&model);
        let vf = &inventory.pfs[0].vfs[1];
        assert_eq!(vf.driver.as_deref(), Some("nvme"));
        assert_eq!(vf.resources.unwrap().vq, vq);
        assert_eq!(run(&model, dir.path(), &dealt(vq)), Outcome::Nothing);
    }
}
