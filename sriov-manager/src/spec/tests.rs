//! Files that are right become values; files that are wrong are refused with the place.

use super::*;

/// Parses a file named `t`.
pub(crate) fn spec(text: &str) -> Result<Spec, String> {
    Spec::parse(&Document::new("t", text)).map_err(|error| error.to_string())
}

const FULL: &str = r#"
[daemon]
drift = "repair"
write_deadline = 5

[iommu]
group_type = "DMA-FQ"

[[pool]]
name = "fast"
allow = ["user:107", "group:root"]

[[pf]]
match = { address = "0000:01:00.0", vendor = 0x8086 }
vfs = 7
eswitch = "legacy"

[[pf.vf]]
range = "0-3"
mac = "derived"
vlan = 100
qos = 3
vlan_protocol = "802.1ad"
max_rate = 200
pool = "fast"

[[pf.vf]]
index = 4
mac = "52:54:00:00:00:04"
spoof_check = true
trust = false
driver = "native"
"#;

#[test]
fn everything_becomes_values() {
    let spec = spec(FULL).unwrap();
    let pf = &spec.pfs[0];
    assert_eq!((pf.vfs.get(), pf.vf.len()), (7, 5));
    assert!(pf.vf[3].derived_mac && pf.vf[3].driver.as_ref().unwrap().is_vfio());
    assert_eq!(pf.vf[3].attributes.tag.unwrap().qos.get(), 3);
    assert_eq!(pf.vf[4].driver, Some(Driver::Native));
    assert_eq!(spec.daemon.deadline(), Duration::from_secs(5));
    assert_eq!(spec.daemon.drift, Drift::Repair);
}

#[test]
fn windows_line_ends_are_no_mistake() {
    assert_eq!(spec(&FULL.replace('\n', "\r\n")), spec(FULL));
}

/// As some editors save it, and as some systems install it.
#[test]
fn a_byte_order_mark_and_a_link_are_no_mistakes() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    std::fs::write(&file, format!("\u{feff}{FULL}")).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    assert_eq!(Spec::load(&link).unwrap().pfs.len(), 1);
}

#[test]
fn a_file_may_say_nothing() {
    let spec = spec("").unwrap();
    assert_eq!(spec.daemon.write_deadline.get(), 120);
    assert_eq!(spec.daemon.drift_interval.get(), 30);
}

#[test]
fn mistakes_are_refused_with_their_place() {
    let pf = "[[pf]]\nmatch = { name = \"a\" }\nvfs = 4\n";
    for (text, message) in [
        ("[[pf]]\nvfs = 1", "t:1:1: missing field `match`"),
        ("[[pf]]\nmatch = {}\nvfs = 1", "t:2:9: match is empty"),
        (
            "[[pf]]\nmatch = { name = \"a\" }\nvfs = 65536",
            "t:3:7: vfs must be 0 to 65535",
        ),
        (
            "[[pf]]\nmatch = { name = \"a\" }\nvfs = -1",
            "t:3:7: vfs must be 0 to 65535",
        ),
        (
            "[[pf]]\nmatch = { name = \"a\" }\nvfs = \"abc\"",
            "t:3:7: invalid type",
        ),
        (
            "[[pf]]\nmatch = { nome = \"a\" }\nvfs = 1",
            "t:2:11: unknown field `nome`",
        ),
        (&format!("{pf}{pf}"), "t:4:1: match"),
        (
            "[iommu]\ngroup_type = \"fast\"",
            "t:2:14: unknown variant `fast`",
        ),
        (
            "[[pf]]\nmatch = { name = \"a\" }\nvfs = 1_000_000",
            "t:3:7: vfs must be 0 to 65535, not 1000000",
        ),
        (
            "[[pf]]\nmatch = { mac = \"ff:ff:ff:ff:ff:ff\" }\nvfs = 1",
            "t:2:17: mac \"ff:ff:ff:ff:ff:ff\" is not valid",
        ),
        (
            "[daemon]\ncontrol = \"/run/a\"\nleases = \"/run/a\"",
            "t:1:1: control and leases are both",
        ),
    ] {
        refused_with(text, message);
    }
}

#[test]
fn the_right_form_is_said_of_identities_paths_and_users() {
    for (text, message) in [
        (
            "[[pf]]\nmatch = { vendor = \"8086\" }\nvfs = 1",
            "t:2:20: PCI identity \"8086\" is not valid: write a number",
        ),
        (
            "[[pf]]\nmatch = { device = 70000 }\nvfs = 1",
            "t:2:20: PCI identity \"70000\" is not valid",
        ),
        (
            "[[pf]]\nmatch = { device = true }\nvfs = 1",
            "t:2:20: write the number, such as 0x8086",
        ),
        (
            "[daemon]\nstate = \"state\"",
            "t:2:9: state \"state\" is not absolute",
        ),
        (
            "[daemon]\ncontrol = \"a.sock\"",
            "t:2:11: control \"a.sock\" is not absolute",
        ),
        (
            "[daemon]\nleases = \"./a\"",
            "t:2:10: leases \"./a\" is not absolute",
        ),
        (
            "[[pool]]\nname = \"a\"\nallow = [\"kvm\"]",
            "t:3:9: user or group \"kvm\" is not valid: write user:NAME",
        ),
        (
            "[control]\nread = [\"group:\"]",
            "t:2:8: user or group \"group:\" is not valid",
        ),
    ] {
        refused_with(text, message);
    }
}

fn refused_with(text: &str, message: &str) {
    let refused = spec(text).unwrap_err();
    assert!(refused.starts_with(message), "{refused}\nnot\n{message}");
}

#[test]
fn mistakes_about_vfs_are_refused_with_their_place() {
    let pf = "[[pf]]\nmatch = { name = \"a\" }\nvfs = 4\n";
    for (text, message) in [
        (
            &format!("{pf}[[pf.vf]]\nindex = 4"),
            "t:4:1: VF 4 does not exist: vfs = 4",
        ),
        (
            &format!("{pf}[[pf.vf]]\nrange = \"3-1\""),
            "t:5:9: range \"3-1\" is not valid",
        ),
        (
            &format!("{pf}[[pf.vf]]\nvlan = 1"),
            "t:4:1: give either index or range",
        ),
        (
            &format!("{pf}[[pf.vf]]\nindex = 0\nvlan = 5000"),
            "t:6:8: vlan must be 0 to 4094",
        ),
        (
            &format!("{pf}[[pf.vf]]\nindex = 0\nqos = 1"),
            "t:6:7: qos and vlan_protocol",
        ),
        (
            &format!("{pf}[[pf.vf]]\nindex = 0\nmac = \"01:00:5e:00:00:01\""),
            "t:6:7: mac \"01:00:5e:00:00:01\" is not valid",
        ),
        (
            &format!("{pf}[[pf.vf]]\nindex = 0\nmin_rate = 2\nmax_rate = 1"),
            "t:6:12: min_rate 2 is more than max_rate 1",
        ),
        (
            &format!("{pf}[[pf.vf]]\nrange = \"0-1\"\nmac = \"52:54:00:00:00:01\""),
            "t:6:7: one mac for a range",
        ),
        (
            &format!("{pf}[[pf.vf]]\nrange = \"0-2\"\n[[pf.vf]]\nindex = 2"),
            "t:6:1: VF 2 is already used at t:4:1",
        ),
        (
            &format!("{pf}[[pf.vf]]\nindex = 0\nvq = 2"),
            "t:6:6: vq and vi belong together",
        ),
        (
            &format!("{pf}[[pf.vf]]\nindex = 0\nvq = 1\nvi = 1"),
            "t:6:6: vq must be 2 to 65535, not 1",
        ),
        (
            &format!("{pf}[[pf.vf]]\nindex = 0\npool = \"x\""),
            "t:6:8: there is no pool \"x\"",
        ),
        (
            &format!(
                "[[pool]]\nname = \"x\"\n{pf}[[pf.vf]]\nindex = 0\npool = \"x\"\n\
                 driver = \"native\""
            ),
            "t:9:10: driver \"native\" cannot be leased",
        ),
    ] {
        refused_with(text, message);
    }
}

#[test]
fn an_address_is_given_once_across_pfs() {
    let pf = |name: &str| {
        format!(
            "[[pf]]\nmatch = {{ name = \"{name}\" }}\nvfs = 1\n[[pf.vf]]\nindex = 0\n\
             mac = \"52:54:00:00:00:01\"\n"
        )
    };
    let refused = spec(&(pf("a") + &pf("b"))).unwrap_err();
    assert_eq!(
        refused,
        "t:12:7: mac 52:54:00:00:00:01 is already used at t:6:7; give each VF its own address"
    );
}
