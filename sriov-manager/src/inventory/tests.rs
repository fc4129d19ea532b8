//! Groups and labels; scans are tested on the model of the kernel.

use super::*;

fn member(address: &str, driver: Option<&str>, bridge: bool) -> Member {
    Member {
        address: address.parse().unwrap(),
        driver: driver.map(str::to_owned),
        bridge,
    }
}

#[test]
fn a_group_is_viable_without_drivers_of_the_host() {
    let group = Group {
        number: 7,
        kind: "DMA-FQ".to_owned(),
        members: vec![
            member("00:01.0", Some("pcieport"), true),
            member("01:00.0", Some("igb"), false),
            member("01:10.0", Some("vfio-pci"), false),
            member("01:10.2", None, false),
            member("01:10.4", Some("pci-stub"), false),
        ],
    };
    let culprits = group.culprits(&[]);
    assert_eq!(culprits.len(), 1);
    assert_eq!(culprits[0].driver.as_deref(), Some("igb"));
    assert!(group.culprits(&["01:00.0".parse().unwrap()]).is_empty());
}

#[test]
fn an_inventory_survives_json() {
    let inventory = Inventory::default();
    let json = serde_json::to_string(&inventory).unwrap();
    assert_eq!(serde_json::from_str::<Inventory>(&json).unwrap(), inventory);
}
