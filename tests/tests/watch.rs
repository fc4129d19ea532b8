//! What is shipped for those who watch the daemons: Prometheus' rules.
//!
//! The rules pass promtool and their own unit tests, and name no metric that no daemon has.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "rules that cannot be read have failed"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/prometheus")
}

fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(folder())
        .output()
        .expect("promtool: tests/packages.sh installs it");
    assert!(
        output.status.success(),
        "promtool {arguments:?}: {output:?}"
    );
}

#[test]
fn rules_are_well_formed_and_pass_their_unit_tests() {
    promtool(&["check", "rules", "vblk.rules.yml", "vswitch.rules.yml"]);
    promtool(&["test", "rules", "rules.test.yml"]);
}

#[test]
fn rules_name_only_metrics_that_the_daemon_has() {
    for (daemon, families) in [
        ("vblk", vblk::metrics::FAMILIES),
        ("vswitch", vswitch::metrics::FAMILIES),
    ] {
        let text = fs::read_to_string(folder().join(format!("{daemon}.rules.yml"))).unwrap();
        // A recorded series has the name of its rule: not a daemon's.
        let lines = text.lines().filter(|line| !line.contains("record:"));
        let named: BTreeSet<&str> = lines
            .flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
            .filter(|word| word.starts_with("towpath_"))
            .collect();
        assert!(!named.is_empty(), "{daemon}.rules.yml names no metric");
        for name in named {
            let known = families.iter().any(|family| family.name == name);
            assert!(known, "{daemon}.rules.yml: {daemon} has no metric {name}");
        }
    }
}
