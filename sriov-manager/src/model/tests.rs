//! The model is what was probed: each rule of the real kernel, on the model.

use super::*;
use crate::kernel::text;

fn errno(error: WriteError) -> i32 {
    match error {
        WriteError::Refused { errno, .. } => errno,
        WriteError::Wedged { .. } => panic!("wedged"),
    }
}

fn write(model: &Model, name: &str, text: &str) -> Result<(), i32> {
    let pf = PciAddr::new(0, 1, 0, 0);
    model.write(&pf.file(name), text).map_err(errno)
}

#[test]
fn numbers_of_vfs_follow_the_rules() {
    let model = Model::new([Card::new(1)]);
    let code = |error: Errno| Err(error.raw_os_error());
    for bad in ["abc", "-1", "65536"] {
        assert_eq!(write(&model, "sriov_numvfs", bad), code(Errno::INVAL));
    }
    assert_eq!(write(&model, "sriov_numvfs", "8"), code(Errno::RANGE));
    assert_eq!(write(&model, "sriov_numvfs", "4"), Ok(()));
    assert_eq!(write(&model, "sriov_numvfs", "4"), Ok(()));
    assert_eq!(write(&model, "sriov_numvfs", "5"), code(Errno::BUSY));
    let vfs = model.state().vfs(PciAddr::new(0, 1, 0, 0));
    assert_eq!(vfs.len(), 4);
    assert_eq!(vfs[3].to_string(), "0000:01:10.6");
    assert_eq!(write(&model, "sriov_numvfs", "0"), Ok(()));
    assert!(model.state().vfs(PciAddr::new(0, 1, 0, 0)).is_empty());
}

#[test]
fn a_held_vf_makes_the_write_block_after_those_before_it_are_gone() {
    let model = Model::new([Card::new(1)]);
    let pf = PciAddr::new(0, 1, 0, 0);
    write(&model, "sriov_numvfs", "3").unwrap();
    let vfs = model.state().vfs(pf);
    model.state().held.insert(vfs[1]);
    let blocked = model.write(&pf.file("sriov_numvfs"), "0").unwrap_err();
    assert!(matches!(blocked, WriteError::Wedged { .. }));
    // The held one is still a device, and no VF of its PF any more.
    assert_eq!(model.state().vfs(pf), vfs[2..]);
    let inventory = crate::plan::tests::look(&model);
    let left: Vec<_> = inventory.pfs[0]
        .vfs
        .iter()
        .map(|vf| vf.is_leaving())
        .collect();
    assert_eq!(left, [true, false]);
}

#[test]
fn a_probe_succeeds_and_need_not_have_bound() {
    let model = Model::new([Card::new(1)]);
    write(&model, "sriov_drivers_autoprobe", "0").unwrap();
    write(&model, "sriov_numvfs", "1").unwrap();
    let vf = model.state().vfs(PciAddr::new(0, 1, 0, 0))[0];
    let probe = || {
        model
            .write(Path::new("/sys/bus/pci/drivers_probe"), &vf.to_string())
            .unwrap()
    };
    let driver = || crate::kernel::link_name(&model, &vf.file("driver"));
    probe();
    assert_eq!(driver(), None, "without autoprobe only an override binds");
    model
        .write(&vf.file("driver_override"), "vfio-pci")
        .unwrap();
    probe();
    assert_eq!(driver().as_deref(), Some("vfio-pci"));
    assert_eq!(
        text(&model, &vf.file("driver_override")).as_deref(),
        Some("vfio-pci")
    );
}
