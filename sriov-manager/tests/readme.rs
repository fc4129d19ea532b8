//! What the operator's pages say is what the program does.

#![allow(clippy::unwrap_used, reason = "a page that cannot be read has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use sriov_manager::metrics::FAMILIES;
use sriov_manager::plan::Why;
use sriov_manager::spec::Spec;
use towpath_common::config;
use towpath_common::testing::api::Document;
use towpath_common::testing::document::routes;

fn read(path: &str) -> String {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(manifest.join(path)).unwrap()
}

#[test]
fn every_metric_is_described() {
    let readme = read("README.md");
    for family in FAMILIES {
        assert!(
            readme.contains(&format!("`{}`", family.name)),
            "{}",
            family.name
        );
    }
}

#[test]
fn the_example_is_valid_as_it_is_and_with_every_default_written_out() {
    let example = read("../systemd/examples/sriov-manager.toml");
    let plain = Spec::parse(&config::Document::new("example", example.as_str())).unwrap();
    let lines = example.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest)
            if rest
                .split_once(" = ")
                .is_some_and(|(key, _)| !key.contains(' ')) =>
        {
            rest
        }
        _ => line,
    });
    let full: Vec<&str> = lines.collect();
    assert_ne!(full.join("\n"), example.trim_end());
    let full = Spec::parse(&config::Document::new("example", full.join("\n"))).unwrap();
    assert_eq!(
        full.daemon.control, plain.daemon.control,
        "a default is what it says"
    );
    assert_eq!(full.daemon.drift_interval, plain.daemon.drift_interval);
    assert_eq!(full.daemon.write_deadline, plain.daemon.write_deadline);
    assert_eq!(
        (full.daemon.leases, full.daemon.state),
        (plain.daemon.leases, plain.daemon.state)
    );
}

/// Words by which the README's table knows each reason.
#[test]
fn every_refusal_has_a_remedy_in_the_readme() {
    let readme = read("README.md");
    for (why, words) in [
        (Why::NoMatch, "no PF matches"),
        (Why::SeveralMatches, "PFs match"),
        (Why::MatchedTwice, "is already described"),
        (Why::Wedged, "a write never returned"),
        (Why::InUse, "in use are VF"),
        (Why::DefaultRoute, "the default route goes through it"),
        (Why::SystemDisk, "is mounted from a disk behind it"),
        (Why::ForeignManager, "sets its number of VFs"),
        (Why::NoDriver, "no driver has it"),
        (Why::TooMany, "and it can have"),
        (Why::NoResources, "would have a driver and no queues"),
        (Why::NoMemory, "not enough MMIO"),
        (Why::NoBus, "bus number out of range"),
        (Why::NoInterface, "it has no network interface here"),
        (Why::Unsupported, "no eswitch that can be switched"),
        (Why::NoIommu, "no IOMMU translates DMA"),
        (Why::NoRemapping, "interrupts are not remapped"),
        (Why::UnsafeInterrupts, "allow_unsafe_interrupts is set"),
        (Why::DriverMissing, "vfio-pci is not there"),
        (
            Why::NotViable,
            "share an IOMMU group with what the host uses",
        ),
    ] {
        assert!(readme.contains(words), "{why:?}");
    }
}

/// Every test's name that the table of failures speaks of is that of a test.
#[test]
fn every_failure_has_its_test() {
    let mut sources = String::new();
    let mut open = vec![
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tests/sriov"),
    ];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|one| one.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&fs::read_to_string(path).unwrap());
        }
    }
    let table = read("tests/failures.md");
    let rows = table.lines().filter(|line| line.starts_with("| "));
    let mut shown = 0;
    for row in rows.skip(1) {
        let column = row.split('|').nth(3).unwrap();
        for name in column.split('`').skip(1).step_by(2) {
            assert!(sources.contains(&format!("fn {name}(")), "{name}: {row}");
            shown += 1;
        }
        assert!(column.contains('`'), "no test: {row}");
    }
    assert!(shown > 30, "{shown}");
}

/// The README is written by hand: a route that is in no document would still stand there.
#[test]
fn the_readme_has_the_routes_of_the_document() {
    let document = Document::new(sriov_manager::control::document());
    let described: BTreeSet<_> = document.operations().into_iter().collect();
    assert_eq!(routes(&read("README.md")), described);
}
