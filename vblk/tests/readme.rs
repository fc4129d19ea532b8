//! The README, the examples and the units, held against the program: what they say is true.
//!
//! Paths below `/var/lib/vm` become a scratch directory with empty images in it.
#![expect(
    clippy::unwrap_used,
    reason = "a test program: a surprise is a failure"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use towpath_common::testing::api::Document;
use towpath_common::testing::document::{blocks, keys, literal, routes, rows, shows, spelled_out};
use vblk::config::{Config, Sources, argument_keys};
use vblk::metrics::FAMILIES;

const VBLK: &str = env!("CARGO_BIN_EXE_vblk");
const IMAGES: &str = "/var/lib/vm";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn readme() -> String {
    fs::read_to_string(root().join("vblk/README.md")).unwrap()
}

/// Loads a configuration in a place where the images it names exist.
fn load(text: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    for image in text.split(IMAGES).skip(1) {
        let name = image.split('"').next().unwrap().trim_start_matches('/');
        fs::write(dir.path().join(name), "").unwrap();
    }
    let file = dir.path().join("vblk.toml");
    fs::write(&file, text.replace(IMAGES, dir.path().to_str().unwrap())).unwrap();
    Config::load(&Sources {
        file: Some(file),
        ..Sources::default()
    })
    .unwrap()
}

fn default_config() -> Config {
    let disks = vec!["null:4K,socket=s".to_owned()];
    Config::load(&Sources {
        disks,
        ..Sources::default()
    })
    .unwrap()
}

#[test]
fn configurations_in_the_readme_are_valid() {
    let readme = readme();
    let configs: Vec<Config> = blocks(&readme, "toml").into_iter().map(load).collect();
    assert_eq!(configs.len(), 1);
    assert_eq!(configs[0].disks.len(), 2);
}

#[test]
fn the_example_shows_every_key_and_its_default() {
    let example = fs::read_to_string(root().join("systemd/examples/vblk.toml")).unwrap();
    let config = load(&example);
    let names: Vec<&str> = config.disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["web", "archive", "vault", "install"]);
    for key in keys(&config.daemon)
        .keys()
        .chain(keys(&config.disks[0]).keys())
        // A table of its own.
        .filter(|key| *key != "access")
        .chain([&"read".to_owned(), &"write".to_owned()])
    {
        assert!(shows(&example, key), "{key}");
    }
    // What is commented out is the default: taking the signs away changes nothing but the log.
    let spelled_out = load(&spelled_out(&example));
    let changed = config.diff(&spelled_out);
    assert_eq!(changed.needs_restart, ["log: null -> \"info\""]);
    let keys: Vec<&String> = changed
        .disks
        .changed
        .iter()
        .flat_map(|disk| &disk.keys)
        // Of each, images and what is kept beside them are made anew.
        .filter(|key| !key.starts_with("path") && !key.starts_with("bitmap"))
        .collect();
    let without_default = [
        "bandwidth_burst: null -> \"20M\"",
        "block_size: null -> 512",
        "iops_burst: null -> 200",
    ];
    assert_eq!(keys, without_default);
}

#[test]
fn tables_of_keys_say_what_the_program_does() {
    let (readme, config) = (readme(), default_config());
    let described = |columns, default: usize| -> BTreeMap<String, String> {
        let rows = rows(&readme, columns).into_iter();
        rows.map(|row| (row[0].clone(), row[default].clone()))
            .collect()
    };
    let check = |described: &BTreeMap<String, String>,
                 actual: BTreeMap<String, serde_json::Value>| {
        for (key, default) in actual {
            let told = described
                .get(&key)
                .unwrap_or_else(|| panic!("{key} is not described"));
            // Defaults that depend on other things are told in words.
            let in_words = [
                "none",
                "required",
                "the name",
                "the file's stem",
                "that of the storage",
            ];
            assert!(
                in_words.contains(&told.as_str()) || default == literal(told),
                "{key}"
            );
        }
    };
    check(&described(3, 1), keys(&config.daemon));
    let metrics_and_disks = described(4, 2);
    check(&metrics_and_disks, keys(&config.disks[0]));
    for key in argument_keys() {
        let spelled = |row: &Vec<String>| {
            row[1].trim_end_matches('=') == key || (row[0] == key && row[1] == "first")
        };
        assert!(rows(&readme, 4).iter().any(spelled), "{key}");
    }
    let of_disks = keys(&config.disks[0]);
    for row in rows(&readme, 4) {
        let words = (row[1].as_str() != "first").then(|| row[1].trim_end_matches('='));
        if let Some(word) = words.filter(|_| of_disks.contains_key(&row[0])) {
            assert!(argument_keys().any(|key| key == word), "{word} is refused");
        }
    }
}

#[test]
fn the_table_of_metrics_is_complete() {
    let described: Vec<Vec<String>> = rows(&readme(), 4)
        .into_iter()
        .filter(|row| row[0].starts_with("towpath_"))
        .collect();
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
fn the_sessions_in_the_readme_really_go_that_way() {
    let readme = readme();
    let sessions = blocks(&readme, "console");
    assert_eq!(sessions.len(), 1);
    for session in sessions {
        let dir = tempfile::tempdir().unwrap();
        let scratch = dir.path().to_str().unwrap();
        for exchange in session.split("$ ").skip(1) {
            let (line, expected) = exchange.split_once('\n').unwrap();
            let mut words = line
                .split_whitespace()
                .map(|word| word.replace(IMAGES, scratch));
            assert_eq!(words.next().unwrap(), "vblk");
            let output = Command::new(VBLK).args(words).output().unwrap();
            assert!(output.status.success(), "{line}: {output:?}");
            let printed = String::from_utf8(output.stdout)
                .unwrap()
                .replace(scratch, IMAGES);
            // Columns are as wide as the path of the scratch directory.
            let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(squeeze(&printed), squeeze(expected), "{line}");
        }
    }
}

#[test]
fn systemd_finds_little_to_blame_in_the_unit() {
    let unit = root().join("systemd/vblk.service");
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
fn units_are_understood_by_systemd() {
    let dir = tempfile::tempdir().unwrap();
    for unit in ["vblk.service", "vblk@.service"] {
        let text = fs::read_to_string(root().join("systemd").join(unit)).unwrap();
        fs::write(dir.path().join(unit), text.replace("/usr/bin/vblk", VBLK)).unwrap();
    }
    let instance = dir.path().join("vblk@x.service");
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args([&dir.path().join("vblk.service"), &instance])
        .output();
    match verify {
        Err(error) => println!("skipped: systemd-analyze cannot be run: {error}"),
        Ok(output) => assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        ),
    }
}

#[test]
fn the_instance_unit_is_the_unit_with_an_instance() {
    let read = |unit| fs::read_to_string(root().join("systemd").join(unit)).unwrap();
    let expected = read("vblk.service")
        .replace("(vhost-user-blk)", "(vhost-user-blk), instance %i")
        .replace("/etc/towpath/vblk.toml", "/etc/towpath/vblk/%i.toml")
        .replace("/run/towpath/vblk.sock", "/run/towpath/vblk-%i.sock");
    assert_eq!(read("vblk@.service"), expected);
}

/// The README is written by hand: a route that is in no document would still stand there.
#[test]
fn the_readme_has_the_routes_of_the_document() {
    let document = Document::new(vblk::control::document());
    let described: BTreeSet<_> = document.operations().into_iter().collect();
    assert_eq!(routes(&readme()), described);
}
