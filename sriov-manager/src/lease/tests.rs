//! Which VF is leased, and what a request may say. Leases on a real kernel are scenarios.

use super::pick::pick;
use super::*;
use crate::inventory::{Inventory, Known, scan};
use crate::kernel::Kernel;
use crate::model::{Card, Model};
use crate::spec::tests::spec;
use crate::target::Target;

const SPEC: &str = r#"
[[pool]]
name = "fast"
[[pf]]
match = { name = "eth1" }
vfs = 3
[[pf.vf]]
range = "1-2"
pool = "fast"
[[pf]]
match = { name = "eth2" }
vfs = 2
[[pf.vf]]
range = "0-1"
pool = "fast"
"#;

fn host() -> (Model, Inventory, Target) {
    let model = Model::new([Card::new(1), Card::new(2)]);
    for (bus, count) in [(1, "3"), (2, "2")] {
        let pf = PciAddr::new(0, bus, 0, 0);
        model.write(&pf.file("sriov_numvfs"), count).unwrap();
    }
    let inventory = scan(model.machine(), &Known::default()).unwrap();
    let (target, refusals) = Target::resolve(&spec(SPEC).unwrap(), &inventory);
    assert_eq!(refusals, []);
    (model, inventory, target)
}

fn picked(inventory: &Inventory, target: &Target, numa: Option<u32>) -> Option<String> {
    pick(inventory, target, "fast", numa)
        .0
        .map(|(_, vf)| vf.address.to_string())
}

#[test]
fn a_vf_of_the_pool_from_the_card_with_the_fewest_out() {
    let (_model, mut inventory, target) = host();
    assert_eq!(pick(&inventory, &target, "fast", None).1, 4);
    assert_eq!(pick(&inventory, &target, "slow", None), (None, 0));
    let order: Vec<String> = (0..4)
        .map(|_| {
            let address = picked(&inventory, &target, None).unwrap();
            let vfs = inventory.pfs.iter_mut().flat_map(|pf| &mut pf.vfs);
            let vf = vfs
                .into_iter()
                .find(|vf| vf.address.to_string() == address)
                .unwrap();
            vf.uses.push(crate::inventory::Use::Held);
            address
        })
        .collect();
    assert_eq!(
        order,
        [
            "0000:02:10.0",
            "0000:01:10.2",
            "0000:02:10.2",
            "0000:01:10.4"
        ]
    );
    assert_eq!(picked(&inventory, &target, None), None);
}

#[test]
fn a_near_card_comes_first_and_a_wedged_one_never() {
    let (_model, mut inventory, target) = host();
    inventory.pfs[0].numa = Some(1);
    assert_eq!(
        picked(&inventory, &target, Some(1)).unwrap(),
        "0000:01:10.2"
    );
    assert_eq!(
        picked(&inventory, &target, Some(7)).unwrap(),
        "0000:02:10.0",
        "else any"
    );
    inventory.pfs[1].wedged = Some(1);
    assert_eq!(picked(&inventory, &target, None).unwrap(), "0000:01:10.2");
}

#[test]
fn a_request_says_no_more_than_it_may() {
    let request: Request = serde_json::from_str(r#"{"pool":"fast","owner":"vm"}"#).unwrap();
    assert_eq!(request.how, How::Fds);
    for bad in [
        r#"{"pool":"fast"}"#,
        r#"{"pool":"../x","owner":"vm"}"#,
        r#"{"pool":"fast","owner":"vm","uid":0}"#,
        r#"{"pool":"fast","owner":"vm","vlan":5000}"#,
        "[]",
    ] {
        assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
    }
}
