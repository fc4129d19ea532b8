//! The unit comes at boot where it has to: VFs are there before anybody configures networks or
//! starts machines, and nothing that it waits for waits for it.

#![allow(clippy::unwrap_used, reason = "a unit that cannot be read has failed")]

use std::fs;
use std::path::Path;
use std::process::Command;

fn unit() -> String {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(manifest.join("../systemd/sriov-manager.service")).unwrap()
}

/// All words of the lines `key=…`.
fn words<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let lines = unit
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.flat_map(str::split_whitespace).collect()
}

#[test]
fn it_comes_after_devices_and_before_networks_and_machines() {
    let unit = unit();
    let (after, before) = (words(&unit, "After"), words(&unit, "Before"));
    for name in [
        "systemd-udevd.service",
        "systemd-modules-load.service",
        "local-fs.target",
    ] {
        assert!(after.contains(&name), "After={name}");
    }
    for name in [
        "network-pre.target",
        "NetworkManager.service",
        "systemd-networkd.service",
        "libvirtd.service",
        "virtqemud.service",
    ] {
        assert!(before.contains(&name), "Before={name}");
    }
    // Nothing is ordered by a target that nobody starts.
    assert!(words(&unit, "Wants").contains(&"network-pre.target"));
    // By default a service waits for the whole system's beginning, sockets and networks with it.
    assert_eq!(words(&unit, "DefaultDependencies"), ["no"]);
    assert_eq!(words(&unit, "Type"), ["notify"]);
}

/// What systemd says about a unit, and whether it is content.
fn verified(text: &str) -> Option<(bool, String)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sriov-manager.service");
    // It looks for the program as well, which need not be installed.
    fs::write(&path, text.replace("/usr/bin/sriov-manager", "/bin/true")).unwrap();
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&path)
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: systemd-analyze does not run here: {error}");
            return None;
        }
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Some((output.status.success(), said))
}

#[test]
fn systemd_finds_no_fault_and_no_cycle() {
    let Some((content, said)) = verified(&unit()) else {
        return;
    };
    assert!(content && said.is_empty(), "{said}");
    let both = unit().replace("After=local-fs", "After=network-pre.target local-fs");
    // It breaks the cycle by itself, and says so.
    let (_, said) = verified(&both).unwrap();
    assert!(said.contains("ordering cycle"), "{said}");
}
