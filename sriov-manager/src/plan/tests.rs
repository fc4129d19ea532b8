//! Plans made from the model of the kernel: the order of steps, and every refusal.

mod property;

use super::*;
use crate::inventory::{Known, scan};
use crate::model::{Card, Model};
use crate::nvme::Resources;
use crate::spec::tests::spec;

pub(crate) const PF: PciAddr = PciAddr::new(0, 1, 0, 0);

pub(crate) fn look(model: &Model) -> Inventory {
    scan(model.machine(), &Known::default()).unwrap()
}

fn made(model: &Model, text: &str) -> Plan {
    Plan::make(&look(model), &spec(text).unwrap()).0
}

/// Of one PF, so many VFs, and more about them.
fn wanted(count: u16, more: &str) -> String {
    format!("[[pf]]\nmatch = {{ address = \"{PF}\" }}\nvfs = {count}\n{more}")
}

fn lines(plan: &Plan) -> Vec<String> {
    plan.steps
        .iter()
        .map(|step| step.action.to_string())
        .collect()
}

fn why(plan: &Plan) -> Vec<Why> {
    assert!(plan.steps.is_empty() || !plan.refusals.is_empty());
    plan.refusals.iter().map(|refusal| refusal.why).collect()
}

/// Makes VFs with the kernel's own means.
pub(crate) fn make(model: &Model, count: u16) -> Vec<PciAddr> {
    use crate::kernel::Kernel;
    model
        .write(&PF.file("sriov_numvfs"), &count.to_string())
        .unwrap();
    let mut state = model.state();
    state.touched.clear();
    state.vfs(PF)
}

const VFIO: &str =
    "[[pf.vf]]\nrange = \"0-1\"\ndriver = \"vfio-pci\"\nmac = \"derived\"\ntrust = true\n";

#[test]
fn vfs_are_made_without_drivers_told_and_then_bound() {
    let model = Model::new([Card::new(1)]);
    let plan = made(&model, &wanted(3, VFIO));
    let lines = lines(&plan);
    assert_eq!(plan.refusals, []);
    assert_eq!(lines[0], "let new VFs have no driver");
    assert_eq!(lines[1], "make 3 VFs");
    assert!(lines[2].starts_with("VF 0: mac "), "{lines:?}");
    assert_eq!(lines[3], "VF 0: trust on");
    assert_eq!(lines[4], "VF 0: only vfio-pci may have it");
    let rest = &lines[8..];
    let expected = [
        "VF 0: bind to vfio-pci",
        "VF 1: bind to vfio-pci",
        "let new VFs get a driver at once",
        "VF 2: bind to its own driver",
    ];
    assert_eq!(rest, expected);
}

#[test]
fn what_is_as_wanted_takes_nothing() {
    let model = Model::new([Card::new(1)]);
    make(&model, 2);
    let plan = made(&model, &wanted(2, ""));
    assert!(plan.is_empty(), "{plan:?}");
}

#[test]
fn another_number_goes_through_none() {
    let model = Model::new([Card::new(1)]);
    make(&model, 2);
    let plan = made(&model, &wanted(3, ""));
    let lines = lines(&plan);
    assert_eq!(lines[0], "remove all 2 VFs");
    assert!(lines.contains(&"make 3 VFs".to_owned()));
    let reason = plan.steps[0].reason.to_string();
    assert!(
        reason.ends_with("free, and gone then: 0000:01:10.0, 0000:01:10.2"),
        "{reason}"
    );
}

#[test]
fn derived_addresses_stay_the_same_and_differ_from_each_other() {
    let (first, second) = (Model::new([Card::new(1)]), Model::new([Card::new(1)]));
    let text = wanted(2, VFIO);
    let (first, second) = (made(&first, &text), made(&second, &text));
    assert_eq!(first, second);
    assert_ne!(
        first.steps[2].action.to_string()[6..],
        first.steps[5].action.to_string()[6..]
    );
}

#[test]
fn a_vf_that_a_vm_has_is_not_touched() {
    let model = Model::new([Card::new(1)]);
    let vfs = make(&model, 2);
    let state = |model: &Model| model.state().held.insert(vfs[1]);
    use crate::kernel::Kernel;
    let at = vfs[1].to_string();
    model.write(&vfs[1].file("driver/unbind"), &at).unwrap();
    model
        .write(&vfs[1].file("driver_override"), "vfio-pci")
        .unwrap();
    model
        .write(std::path::Path::new("/sys/bus/pci/drivers_probe"), &at)
        .unwrap();
    state(&model);
    for more in [
        wanted(3, ""),
        wanted(0, ""),
        wanted(2, "[[pf.vf]]\nindex = 1\ndriver = \"native\"\n"),
        wanted(2, "[[pf.vf]]\nindex = 1\ntrust = true\n"),
    ] {
        let plan = made(&model, &more);
        assert_eq!(why(&plan), [Why::InUse], "{more}");
        assert!(
            plan.refusals[0]
                .text
                .contains("VF 1 (0000:01:10.2): its VFIO group is open")
        );
    }
    // The other one is free, and as wanted is as wanted.
    let other = made(&model, &wanted(2, "[[pf.vf]]\nindex = 0\ntrust = true\n"));
    assert_eq!(lines(&other), ["VF 0: trust on"]);
    let same = made(
        &model,
        &wanted(2, "[[pf.vf]]\nindex = 1\ndriver = \"vfio-pci\"\n"),
    );
    assert!(same.is_empty(), "{same:?}");
}

#[test]
fn a_vf_in_another_namespace_is_in_use() {
    let model = Model::new([Card::new(1)]);
    let vfs = make(&model, 1);
    {
        let mut state = model.state();
        let name = state.files.list(&vfs[0].file("net")).unwrap().remove(0);
        state.links.retain(|link| link.name != name);
        state
            .files
            .remove(&format!("{}/net/{name}", vfs[0].dir().display()));
    }
    let plan = made(&model, &wanted(0, ""));
    assert_eq!(why(&plan), [Why::InUse]);
    assert!(plan.refusals[0].text.contains("another network namespace"));
}

#[test]
fn a_vf_with_an_address_or_a_bridge_is_in_use() {
    let model = Model::new([Card::new(1)]);
    let vfs = make(&model, 1);
    let name = model
        .state()
        .files
        .list(&vfs[0].file("net"))
        .unwrap()
        .remove(0);
    let change = |up: bool, addressed: bool, master: Option<u32>| {
        let mut state = model.state();
        let link = state
            .links
            .iter_mut()
            .find(|link| link.name == name)
            .unwrap();
        (link.up, link.addressed, link.master) = (up, addressed, master);
    };
    for (up, addressed, master, used) in [
        (false, true, None, false),
        (true, false, None, false),
        (true, true, None, true),
        (false, false, Some(2), true),
    ] {
        change(up, addressed, master);
        let plan = made(&model, &wanted(0, ""));
        assert_eq!(
            plan.refusals.len(),
            usize::from(used),
            "{up} {addressed} {master:?}"
        );
    }
}

#[test]
fn a_vf_whose_disk_is_mounted_or_open_is_in_use() {
    let mount = "40 1 259:1 / /srv rw - ext4 /dev/nvme7n1p1 rw\n";
    let swap = "Filename Type Size Used Priority\n/dev/nvme7n1p1 partition 8 0 -2\n";
    for (file, text, what) in [
        (
            "/proc/self/mountinfo",
            mount,
            "/srv is mounted from a disk of it",
        ),
        ("/proc/swaps", swap, "swap is mounted from a disk of it"),
        ("/proc/77/comm", "fio\n", "open in fio, process 77"),
        (
            "/proc/88/comm",
            "ib_send_bw\n",
            "open in ib_send_bw, process 88",
        ),
    ] {
        let model = Model::new([Card::new(1)]);
        let vf = make(&model, 2)[1];
        {
            let mut state = model.state();
            let dir = state.files.resolve(&vf.dir()).unwrap();
            let part = dir.join("nvme/nvme7/nvme7n1/nvme7n1p1");
            let part = part.to_str().unwrap();
            state.files.dir(part);
            state.files.link("/sys/class/block/nvme7n1p1", part);
            state.files.file("/dev/nvme7n1p1", "");
            let verbs = dir.join("infiniband_verbs/uverbs3");
            state.files.dir(verbs.to_str().unwrap());
            state.files.file("/dev/infiniband/uverbs3", "");
            match what.rsplit_once("process ") {
                Some((_, "77")) => state.files.link("/proc/77/fd/3", "/dev/nvme7n1p1"),
                Some(_) => state.files.link("/proc/88/fd/3", "/dev/infiniband/uverbs3"),
                None => {}
            }
            state.files.file(file, text);
        }
        let plan = made(&model, &wanted(1, ""));
        assert_eq!(why(&plan), [Why::InUse], "{what}");
        let culprit = format!("in use are VF 1 ({vf}): {what}");
        let said = &plan.refusals[0].text;
        assert!(said.ends_with(&culprit), "{said}");
    }
}

#[test]
fn a_leased_vf_is_in_use() {
    let model = Model::new([Card::new(1)]);
    let vfs = make(&model, 1);
    let known = Known {
        leases: [(vfs[0], "vm42".to_owned())].into(),
        ..Known::default()
    };
    let inventory = scan(model.machine(), &known).unwrap();
    let (plan, _) = Plan::make(&inventory, &spec(&wanted(0, "")).unwrap());
    assert_eq!(why(&plan), [Why::InUse]);
    assert!(plan.refusals[0].text.contains("leased to vm42"));
}

#[test]
fn a_wedged_pf_is_left_alone() {
    let model = Model::new([Card::new(1)]);
    let known = Known {
        wedged: [(PF, 4242)].into(),
        ..Known::default()
    };
    let inventory = scan(model.machine(), &known).unwrap();
    let (plan, _) = Plan::make(&inventory, &spec(&wanted(1, "")).unwrap());
    assert_eq!(why(&plan), [Why::Wedged]);
    assert!(plan.refusals[0].text.contains("process 4242"));
}

#[test]
fn the_default_route_and_the_systems_disk_are_guarded() {
    let model = Model::new([Card::new(1)]);
    let index = model.state().links[0].index;
    model.state().routes.push(index);
    assert_eq!(why(&made(&model, &wanted(1, ""))), [Why::DefaultRoute]);
    model.state().routes.clear();
    let disk = "/sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/host0/block/sda";
    {
        let mut state = model.state();
        state.files.dir(disk);
        state.files.link("/sys/class/block/sda", disk);
        state.files.file("/dev/sda", "");
        let mounts = "22 1 8:0 / / rw,relatime shared:1 - ext4 /dev/sda rw\n";
        state.files.file("/proc/self/mountinfo", mounts);
    }
    assert_eq!(why(&made(&model, &wanted(1, ""))), [Why::SystemDisk]);
    // What changes nothing is not refused.
    assert!(made(&model, &wanted(0, "")).is_empty());
}

#[test]
fn pfs_of_other_managers_are_refused() {
    for (path, text) in [
        (
            "/etc/NetworkManager/system-connections/a.nmconnection",
            "[connection]\ninterface-name=eth1\n[sriov]\ntotal-vfs=2\n",
        ),
        (
            "/etc/systemd/network/a.link",
            "[Match]\nOriginalName=eth*\n[Link]\nSR-IOVVirtualFunctions=2\n",
        ),
        (
            "/run/systemd/network/a.network",
            "[Match]\nPath=pci-0000:01:00.0\n[SR-IOV]\nVirtualFunction=0\n",
        ),
    ] {
        let model = Model::new([Card::new(1)]);
        model.state().files.file(path, text);
        let plan = made(&model, &wanted(1, ""));
        assert_eq!(why(&plan), [Why::ForeignManager], "{path}");
        assert!(plan.refusals[0].text.contains(path));
        let other = text
            .replace("eth1", "eth9")
            .replace("eth*", "ens*")
            .replace("01:00", "02:00");
        model.state().files.file(path, &other);
        assert!(
            made(&model, &wanted(1, "")).refusals.is_empty(),
            "{path}: another's"
        );
    }
}

#[test]
fn what_cannot_be_is_said_before_anything_is_written() {
    let card = Card::new(1);
    let far = Card {
        offset: 384,
        ..card.clone()
    };
    let buses = Card { last_bus: 1, ..far };
    let memory = Card {
        room: false,
        ..card.clone()
    };
    for (card, count, expected) in [
        (card.clone(), 8, Why::TooMany),
        (buses, 1, Why::NoBus),
        (memory, 1, Why::NoMemory),
    ] {
        let model = Model::new([card]);
        let before = model.state().changes;
        assert_eq!(why(&made(&model, &wanted(count, ""))), [expected]);
        // The kernel would have said the same.
        use crate::kernel::Kernel;
        assert_eq!(model.state().changes, before);
        model
            .write(&PF.file("sriov_numvfs"), &count.to_string())
            .unwrap_err();
    }
}

#[test]
fn a_pf_needs_a_driver_that_makes_vfs() {
    for driver in ["", "vfio-pci"] {
        let model = Model::new([Card::new(1)]);
        let link = format!("{}/driver", PF.dir().display());
        model.state().files.remove(&link);
        if !driver.is_empty() {
            model
                .state()
                .files
                .link(&link, &format!("/sys/bus/pci/drivers/{driver}"));
        }
        assert_eq!(why(&made(&model, &wanted(1, ""))), [Why::NoDriver]);
    }
    let model = Model::new([Card::new(1)]);
    let dir = PF.dir().display().to_string();
    model.state().files.remove(&format!("{dir}/driver"));
    model
        .state()
        .files
        .file(&format!("{dir}/modalias"), "pci:v8086");
    let table = "/lib/modules/modules.alias";
    model.state().files.file(table, "alias pci:v8086* igb\n");
    let plan = made(&model, &wanted(1, ""));
    assert_eq!(plan.refusals[0].fix, "load the card's driver: modprobe igb");
}

/// Such a PF has no interface, and so nothing can be told to its VFs; it makes them all the same.
#[test]
fn a_stub_makes_vfs_that_cannot_be_told_anything() {
    let model = Model::new([Card::new(1)]);
    {
        let mut state = model.state();
        let dir = PF.dir().display().to_string();
        state.files.remove(&format!("{dir}/driver"));
        state.files.remove(&format!("{dir}/net"));
        state.links.clear();
        let stub = "/sys/bus/pci/drivers/pci-pf-stub";
        state.files.dir(stub);
        state.files.link(&format!("{dir}/driver"), stub);
    }
    let plain = "[[pf.vf]]\nindex = 0\ndriver = \"vfio-pci\"\n";
    assert_eq!(made(&model, &wanted(2, plain)).refusals, []);
    let told = wanted(2, "[[pf.vf]]\nindex = 0\ntrust = true\n");
    assert_eq!(why(&made(&model, &told)), [Why::NoInterface]);
}

/// The namespace that a VF was in is deleted: it comes back with another name.
#[test]
fn a_vf_that_comes_back_with_another_name_is_the_same() {
    let model = Model::new([Card::new(1)]);
    let vfs = make(&model, 1);
    {
        let mut state = model.state();
        let dir = vfs[0].dir().display().to_string();
        let old = state.files.list(&vfs[0].file("net")).unwrap().remove(0);
        state.files.remove(&format!("{dir}/net/{old}"));
        state.files.dir(&format!("{dir}/net/dev7"));
        state.files.file(&format!("{dir}/net/dev7/ifindex"), "77");
        let link = state
            .links
            .iter_mut()
            .find(|link| link.name == old)
            .unwrap();
        (link.name, link.index) = ("dev7".to_owned(), 77);
    }
    let inventory = look(&model);
    let vf = &inventory.pfs[0].vfs[0];
    assert_eq!(vf.interface.as_ref().unwrap().name, "dev7");
    assert!(!vf.is_used(), "{vf:?}");
    let trusted = wanted(1, "[[pf.vf]]\nindex = 0\ntrust = true\n");
    assert_eq!(lines(&made(&model, &trusted)), ["VF 0: trust on"]);
}

#[test]
fn rates_in_switchdev_mode_are_devlinks() {
    let model = Model::new([Card {
        eswitch: Some(EswitchMode::Switchdev),
        ..Card::new(1)
    }]);
    let text = wanted(1, "[[pf.vf]]\nindex = 0\nmax_rate = 100\n");
    let plan = made(&model, &text);
    assert_eq!(why(&plan), [Why::Unsupported]);
    assert!(
        plan.refusals[0]
            .fix
            .contains("devlink port function rate set")
    );
    let back = made(
        &model,
        &text.replace("vfs = 1", "vfs = 1\neswitch = \"legacy\""),
    );
    assert_eq!(back.refusals, []);
}

/// Kernels that lack files, and devices that say what is no text.
#[test]
fn what_cannot_be_read_is_absent_and_everything_else_is_there() {
    let model = Model::new([Card::new(1)]);
    make(&model, 1);
    {
        let mut state = model.state();
        let dir = PF.dir().display().to_string();
        for name in [
            "sriov_drivers_autoprobe",
            "config",
            "resource",
            "iommu_group",
            "numa_node",
        ] {
            state.files.remove(&format!("{dir}/{name}"));
        }
        let real = state.files.resolve(&PF.dir()).unwrap();
        state
            .files
            .bytes(&format!("{}/vendor", real.display()), vec![0xff, 0xfe]);
        state.files.remove("/proc/interrupts");
        state.files.remove("/etc/machine-id");
    }
    let inventory = look(&model);
    let pf = &inventory.pfs[0];
    assert_eq!((pf.count(), pf.vendor, pf.numa), (1, 0, None));
    assert_eq!((pf.autoprobe, pf.group), (None, None));
    assert!(!inventory.host.interrupt_remapping);
    let plan = made(&model, &wanted(2, ""));
    assert_eq!(plan.refusals, []);
    assert!(
        !lines(&plan)
            .iter()
            .any(|line| line.contains("get a driver at once"))
    );
}

/// The card was pulled while somebody has its VF 1: the interface and the other VFs are gone.
#[test]
fn what_is_left_of_a_pulled_card_is_not_touched() {
    let model = Model::new([Card::new(1)]);
    let vfs = make(&model, 2);
    {
        let mut state = model.state();
        let dir = PF.dir().display().to_string();
        state.files.remove(&format!("{dir}/net"));
        state.files.remove(&format!("{dir}/driver"));
        state.files.remove(&format!("{dir}/virtfn0"));
        state.files.remove(&format!("{dir}/virtfn1"));
        state
            .files
            .remove(&format!("{}/physfn", vfs[1].dir().display()));
        state
            .files
            .remove(&format!("{}/device", vfs[0].dir().display()));
        state.links.clear();
    }
    let known = Known {
        leases: [(vfs[1], "vm42".to_owned())].into(),
        ..Known::default()
    };
    let inventory = scan(model.machine(), &known).unwrap();
    assert_eq!(inventory.pfs[0].count(), 1);
    for text in [wanted(2, ""), wanted(0, "")] {
        let (plan, _) = Plan::make(&inventory, &spec(&text).unwrap());
        assert_eq!(plan.steps, []);
        assert!(why(&plan).contains(&Why::InUse), "{plan:?}");
    }
}

#[test]
fn vfio_needs_an_iommu_remapping_and_a_driver() {
    let text = wanted(2, VFIO);
    let changed = |change: fn(&mut crate::model::State)| {
        let model = Model::new([Card::new(1)]);
        change(&mut model.state());
        why(&made(&model, &text))
    };
    assert_eq!(
        changed(|state| state.files.remove("/sys/kernel/iommu_groups")),
        [Why::NoIommu]
    );
    assert_eq!(
        changed(|state| state.files.file("/proc/interrupts", "1: 0 IO-APIC\n")),
        [Why::NoRemapping]
    );
    assert_eq!(
        changed(|state| state.files.file(
            "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
            "Y"
        )),
        [Why::UnsafeInterrupts]
    );
    assert_eq!(
        changed(|state| state.files.remove("/sys/bus/pci/drivers/vfio-pci")),
        [Why::DriverMissing]
    );
    // What stays with the host needs none of them.
    let model = Model::new([Card::new(1)]);
    model.state().files.file("/proc/interrupts", "");
    assert!(made(&model, &wanted(2, "")).refusals.is_empty());
}

#[test]
fn a_group_with_the_hosts_devices_names_them() {
    let model = Model::new([Card {
        acs: false,
        ..Card::new(1)
    }]);
    let plan = made(&model, &wanted(2, VFIO));
    assert_eq!(why(&plan), [Why::NotViable]);
    assert!(
        plan.refusals[0].text.ends_with("0000:01:00.0 (igb)"),
        "{plan:?}"
    );
    // The same once they are there.
    make(&model, 2);
    let plan = made(&model, &wanted(2, VFIO));
    assert_eq!(why(&plan), [Why::NotViable]);
    assert!(
        plan.refusals[0].text.ends_with("0000:01:00.0 (igb)"),
        "{plan:?}"
    );
}

#[test]
fn the_eswitch_is_switched_without_vfs() {
    let mode = Some(EswitchMode::Legacy);
    let model = Model::new([Card {
        eswitch: mode,
        ..Card::new(1)
    }]);
    make(&model, 2);
    let plan = made(&model, &wanted(2, "eswitch = \"switchdev\"\n"));
    let lines = lines(&plan);
    assert_eq!(
        lines[..2],
        ["remove all 2 VFs", "switch the eswitch to switchdev"]
    );
    let plain = Model::new([Card::new(1)]);
    let plan = made(&plain, &wanted(2, "eswitch = \"switchdev\"\n"));
    assert_eq!(why(&plan), [Why::Unsupported]);
}

#[test]
fn matches_must_mean_one_pf() {
    let model = Model::new([Card::new(1), Card::new(2)]);
    let plan = made(&model, "[[pf]]\nmatch = { driver = \"igb\" }\nvfs = 1\n");
    assert_eq!(why(&plan), [Why::SeveralMatches]);
    assert!(
        plan.refusals[0]
            .fix
            .contains("0000:02:00.0 (8086:10c9 igb eth2"),
        "{plan:?}"
    );
    let plan = made(&model, "[[pf]]\nmatch = { name = \"eth7\" }\nvfs = 1\n");
    assert_eq!(why(&plan), [Why::NoMatch]);
    assert!(plan.refusals[0].fix.contains("0000:01:00.0"));
    let twice = "[[pf]]\nmatch = { name = \"eth1\" }\nvfs = 1\n\
                 [[pf]]\nmatch = { address = \"01:00.0\" }\nvfs = 2\n";
    let plan = made(&model, twice);
    assert_eq!(why(&plan), [Why::MatchedTwice]);
    assert!(
        plan.refusals[0]
            .text
            .starts_with("t:4:1: 0000:01:00.0 (eth1) is already")
    );
    let by_mac = look(&model).pfs[1]
        .interface
        .as_ref()
        .unwrap()
        .permanent
        .unwrap();
    let plan = made(
        &model,
        &format!("[[pf]]\nmatch = {{ mac = \"{by_mac}\" }}\nvfs = 1\n"),
    );
    assert_eq!(plan.pfs(), [PciAddr::new(0, 2, 0, 0)]);
}

/// The kernel takes it from nobody else than a PF whose driver can, and for a VF that has none.
#[test]
fn interrupts_are_dealt_out_while_no_driver_has_the_vf() {
    let text = wanted(2, "[[pf.vf]]\nindex = 1\nmsix = 8\n");
    let model = Model::new([Card::new(1)]);
    assert_eq!(why(&made(&model, &text)), [Why::Unsupported]);
    let model = Model::new([Card {
        msix: true,
        ..Card::new(1)
    }]);
    make(&model, 2);
    let plan = made(&model, &text);
    assert_eq!(
        lines(&plan),
        [
            "VF 1: take it from igbvf",
            "VF 1: 8 interrupts",
            "VF 1: bind to its own driver",
        ]
    );
    assert_eq!(plan.steps[1].reason.to_string(), "it has 3");
}

#[test]
fn one_pfs_refusal_is_not_anothers() {
    let model = Model::new([Card::new(1), Card::new(2)]);
    let both = wanted(9, "") + &wanted(1, "").replace("01:00", "02:00");
    let plan = made(&model, &both);
    assert_eq!(plan.refusals.len(), 1);
    assert_eq!(plan.pfs(), [PciAddr::new(0, 2, 0, 0)]);
}

/// An NVMe controller with this to deal out, wanted with two VFs and `more`.
fn nvme(vq: u16, vi: u16, more: &str) -> (Model, Plan) {
    let nvme = Some(Resources { vq, vi });
    let model = Model::new([Card {
        nvme,
        ..Card::new(1)
    }]);
    let plan = made(&model, &wanted(2, more));
    (model, plan)
}

const DEALT: &str = "[[pf.vf]]\nrange = \"0-1\"\nvq = 2\nvi = 1\ndriver = \"native\"\n";

#[test]
fn nvme_vfs_are_given_queues_before_a_driver_has_them() {
    let (_, plan) = nvme(8, 8, DEALT);
    assert_eq!(plan.refusals, []);
    let expected = [
        "keep 4 queue pairs, 6 interrupts, and reset the controller",
        "let new VFs have no driver",
        "make 2 VFs",
        "VF 0: 2 queue pairs, 1 interrupts",
        "VF 1: 2 queue pairs, 1 interrupts",
        "let new VFs get a driver at once",
        "VF 0: bind to its own driver",
        "VF 1: bind to its own driver",
    ];
    assert_eq!(lines(&plan), expected);
    // Without any, no driver takes them, and none is tried.
    let (_, plan) = nvme(8, 8, "");
    assert!(!lines(&plan).iter().any(|line| line.contains("bind")));
}

#[test]
fn nvme_vfs_without_queues_or_with_more_than_there_are_are_refused() {
    for (vq, vi, more, said) in [
        (
            8,
            8,
            "driver = \"native\"",
            "VF 0 would have a driver and no queues",
        ),
        (
            8,
            8,
            "driver = \"vfio-pci\"",
            "VF 0 would have a driver and no queues",
        ),
        (
            8,
            8,
            "vq = 9\nvi = 1",
            "18 queue pairs are wanted, and 8 are flexible",
        ),
        (
            8,
            8,
            "vq = 4\nvi = 5",
            "10 interrupts are wanted, and 8 are flexible",
        ),
        (0, 0, "vq = 2\nvi = 1", "it has no flexible resources"),
    ] {
        let (model, plan) = nvme(vq, vi, &format!("[[pf.vf]]\nrange = \"0-1\"\n{more}\n"));
        assert_eq!(model.state().changes, 0);
        let texts: Vec<_> = plan.refusals.iter().map(|one| one.text.as_str()).collect();
        assert!(
            texts.iter().any(|text| text.contains(said)),
            "{more}: {texts:?}"
        );
    }
    let card = Model::new([Card::new(1)]);
    assert_eq!(why(&made(&card, &wanted(2, DEALT))), [Why::Unsupported]);
}

/// The reset of a controller takes all of its VFs along.
#[test]
fn a_controller_with_a_vf_in_use_is_not_reset() {
    let (model, _) = nvme(8, 8, "");
    let vfs = make(&model, 2);
    let known = Known {
        leases: [(vfs[1], "vm42".to_owned())].into(),
        ..Known::default()
    };
    let inventory = scan(model.machine(), &known).unwrap();
    let (plan, _) = Plan::make(&inventory, &spec(&wanted(2, DEALT)).unwrap());
    assert_eq!(why(&plan), [Why::InUse]);
}
