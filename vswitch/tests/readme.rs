//! The README, the example and the unit, held against the program: what they say is true. What the
//! README tells a reader to type is typed by `tests/tests/documents.rs`.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test program: a surprise is a failure"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use towpath_common::testing::api::Document;
use towpath_common::testing::document::{keys, literal, routes, rows, shows, spelled_out};
use vswitch::config::{Config, GuardConfig, PORT, Side, Sources, UPLINK};
use vswitch::discard::Discard;
use vswitch::metrics::FAMILIES;

const VSWITCH: &str = env!("CARGO_BIN_EXE_vswitch");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn readme() -> String {
    fs::read_to_string(root().join("vswitch/README.md")).unwrap()
}

fn load(text: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vswitch.toml");
    fs::write(&file, text).unwrap();
    Config::load(&Sources {
        file: Some(file),
        ..Sources::default()
    })
    .unwrap()
}

fn default_config() -> Config {
    load(
        "[[port]]\nname = \"a\"\nsocket = \"s\"\n[[uplink]]\ntap = \"t\"\n\
         [[fdb]]\nmac = \"52:54:00:00:00:01\"\nport = \"a\"\n\
         [[mirror]]\nname = \"m\"\nfrom = [\"a\"]\nto = \"t\"",
    )
}

/// The part of the README under a heading.
fn section(heading: &str) -> String {
    let readme = readme();
    let part = readme.split("\n##").find(|part| {
        let title = part.lines().next().unwrap_or_default();
        title.replace(['#', '`'], "").trim().starts_with(heading)
    });
    part.unwrap_or_else(|| panic!("no {heading}")).to_owned()
}

/// What a table says of each key: the cell in column `default`. A row may name several keys.
fn described(heading: &str, columns: usize, default: usize) -> BTreeMap<String, String> {
    let rows = rows(&section(heading), columns).into_iter();
    let each = rows.flat_map(|row| {
        let told = row[default].clone();
        let keys: Vec<String> = row[0].split(", ").map(str::to_owned).collect();
        keys.into_iter().map(move |key| (key, told.clone()))
    });
    each.collect()
}

/// Every key is described, with its default unless that is told in words.
fn check(described: &BTreeMap<String, String>, actual: &BTreeMap<String, Value>, words: &[&str]) {
    for (key, default) in actual {
        let told = described
            .get(key)
            .unwrap_or_else(|| panic!("{key} is not described"));
        let in_words = words.contains(&told.as_str());
        assert!(in_words || *default == literal(told), "{key}: {told}");
    }
}

#[test]
fn tables_of_keys_say_what_the_program_does() {
    let config = default_config();
    check(
        &described("[daemon]", 3, 1),
        &keys(&config.daemon),
        &["none"],
    );
    check(
        &described("[switch]", 3, 1),
        &keys(&config.switch),
        &["usual"],
    );
    let words = ["none", "required", "usual", "VLAN 1"];
    check(
        &described("[[port]]", 4, 2),
        &keys(&config.ports[0]),
        &words,
    );
    let words = [
        "required",
        "the interface's",
        "all, native 1",
        "as it is",
        "as a port's",
    ];
    check(
        &described("[[uplink]]", 4, 2),
        &keys(&config.uplinks[0]),
        &words,
    );
    let (ports, uplinks) = (described("Guards", 4, 1), described("Guards", 4, 2));
    check(&ports, &keys(&GuardConfig::usual(Side::Guest)), &[]);
    check(&uplinks, &keys(&GuardConfig::usual(Side::Uplink)), &[]);
}

#[test]
fn the_keys_of_arguments_are_described() {
    let (text, guards) = (section("[[port]]"), section("Guards"));
    for key in PORT.keys() {
        if let Some(guard) = key.strip_prefix("guards.") {
            assert!(text.contains("`guards.GUARD=`") && guards.contains(&format!("`{guard}`")));
            continue;
        }
        let as_text = [
            format!("| `{key}=` |"),
            format!("| `{key}` |"),
            format!("`{key}="),
        ];
        let first = key == PORT.first;
        assert!(
            first || as_text.iter().any(|form| text.contains(form)),
            "{key}"
        );
    }
    for key in UPLINK.keys() {
        let key = if key.starts_with("guards.") {
            "guards"
        } else {
            key
        };
        let (all, key) = (section("[[uplink]]"), key.replace("no-", ""));
        assert!(all.contains(&format!("`{key}`")), "{key}");
    }
}

#[test]
fn every_reason_to_drop_is_explained() {
    let rows = rows(&section("Why a frame was dropped"), 4);
    let reasons: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(reasons, Discard::NAMES);
    assert!(
        rows.iter()
            .all(|row| ["sender", "receiver"].contains(&row[1].as_str()))
    );
}

#[test]
fn the_table_of_metrics_is_complete() {
    let described = rows(&section("Metrics"), 4);
    assert_eq!(described.len(), FAMILIES.len());
    for (row, family) in described.iter().zip(FAMILIES) {
        let kind = format!("{:?}", family.kind).to_lowercase();
        assert_eq!(
            [&row[0], &row[1], &row[3]],
            [family.name, &kind, family.help]
        );
    }
}

#[test]
fn the_example_shows_every_key_and_its_default() {
    let example = fs::read_to_string(root().join("systemd/examples/vswitch.toml")).unwrap();
    let config = load(&example);
    let default = default_config();
    let tables = [
        keys(&config.daemon),
        keys(&config.switch),
        keys(&default.ports[0]),
        keys(&default.fdb[0]),
        keys(&default.mirrors[0]),
    ];
    for key in tables.iter().flat_map(BTreeMap::keys) {
        let or = key == "vlans" && example.contains("vlans = ");
        assert!(or || shows(&example, key), "{key}");
    }
    // What is commented out is the default: taking the signs away changes nothing but the log.
    let diff = config.diff(&load(&spelled_out(&example)));
    assert_eq!(diff.to_string(), "log: null -> \"info\" after a restart");
}

#[test]
fn systemd_finds_little_to_blame_in_the_unit() {
    let unit = root().join("systemd/vswitch.service");
    // The exposure times ten: at most 2.0.
    let analysis = Command::new("systemd-analyze")
        .args(["security", "--offline=yes", "--no-pager", "--threshold=20"])
        .arg(unit)
        .output();
    match analysis {
        Err(error) => println!("skipped: systemd-analyze cannot be run: {error}"),
        Ok(output) => assert!(output.status.success(), "{output:?}"),
    }
}

#[test]
fn the_unit_is_understood_by_systemd() {
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("vswitch.service");
    let text = fs::read_to_string(root().join("systemd/vswitch.service")).unwrap();
    fs::write(&unit, text.replace("/usr/bin/vswitch", VSWITCH)).unwrap();
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&unit)
        .output();
    match verify {
        Err(error) => println!("skipped: systemd-analyze cannot be run: {error}"),
        Ok(output) => assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        ),
    }
}

/// The README is written by hand: a route that is in no document would still stand there.
#[test]
fn the_readme_has_the_routes_of_the_document() {
    let document = Document::new(vswitch::control::document());
    let described: BTreeSet<_> = document.operations().into_iter().collect();
    assert_eq!(routes(&readme()), described);
}
