//! Events as operators know them: identifiers that never change, each used in the code and
//! explained in the catalogue.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a table that cannot be read has failed"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use towpath_common::logging::events::{self, Event};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Every event of every table, and the crate that it is of.
fn all() -> Vec<(&'static str, Event)> {
    let tables = [
        ("common", events::EVENTS),
        ("vblk", vblk::events::EVENTS),
        ("vswitch", vswitch::events::EVENTS),
        ("sriov-manager", sriov_manager::events::EVENTS),
    ];
    let of = |(home, table): (_, &'static [Event])| table.iter().map(move |event| (home, *event));
    tables.into_iter().flat_map(of).collect()
}

#[test]
fn identifiers_are_128_bits_and_nobody_shares_one() {
    let (mut ids, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (_, event) in all() {
        let digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        assert!(
            event.id.len() == 32 && event.id.chars().all(digit),
            "{event:?}"
        );
        assert!(ids.insert(event.id), "{event:?} shares its identifier");
        assert!(names.insert(event.name), "{event:?} shares its name");
    }
}

#[test]
fn identifiers_never_change() {
    let recorded = read("tests/data/events.txt");
    let mut known = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for line in recorded.lines().filter(|line| !line.starts_with('#')) {
        let (retired, line) = match line.strip_prefix("retired ") {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let (id, name) = line.split_once(' ').expect(line);
        assert!(ids.insert(id), "{id} stands there twice");
        if !retired {
            known.insert(name, id);
        }
    }
    let now: BTreeMap<_, _> = all()
        .into_iter()
        .map(|(_, event)| (event.name, event.id))
        .collect();
    assert_eq!(now, known, "see the head of tests/data/events.txt");
}

/// The catalogue's entries: subject and text by identifier.
fn catalogue() -> BTreeMap<String, (String, String)> {
    let text = read("systemd/towpath.catalog");
    let mut entries = BTreeMap::new();
    for entry in text.split("\n-- ").skip(1) {
        let (id, entry) = entry.split_once('\n').unwrap();
        let (head, body) = entry.split_once("\n\n").expect(id);
        assert!(head.contains("\nDefined-By: towpath"), "{id}");
        let subject = head.lines().find_map(|line| line.strip_prefix("Subject: "));
        let both = (subject.expect(id).to_owned(), body.trim().to_owned());
        assert!(
            entries.insert(id.to_owned(), both).is_none(),
            "{id} is explained twice"
        );
    }
    entries
}

#[test]
fn every_event_is_explained_and_nothing_else_is() {
    let entries = catalogue();
    let explained: BTreeSet<&str> = entries.keys().map(String::as_str).collect();
    let events = all();
    let there: BTreeSet<&str> = events.iter().map(|(_, event)| event.id).collect();
    assert_eq!(explained, there);
    for (id, (subject, body)) in &entries {
        assert!(!subject.is_empty() && !body.is_empty(), "{id}");
    }
}

/// All Rust sources below `dir`.
fn sources(dir: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &sources(&path);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            text += &fs::read_to_string(path).unwrap();
        }
    }
    text
}

#[test]
fn every_event_happens_and_has_no_other_name() {
    let homes = ["common", "vblk", "vswitch", "sriov-manager"];
    let texts = homes.map(|home| sources(&root().join(home).join("src")));
    let everything = texts.concat();
    // `name: path::to::CONSTANT` in a call of tracing's.
    let used: BTreeSet<String> = everything
        .split("(name: ")
        .skip(1)
        .filter_map(|rest| rest.split([',', ')', '\n']).next())
        .filter_map(|path| path.rsplit("::").next())
        .map(str::to_lowercase)
        .collect();
    for (home, event) in all() {
        assert!(
            used.contains(event.name),
            "{home}: {} never happens",
            event.name
        );
    }
    let known: BTreeSet<&str> = all().into_iter().map(|(_, event)| event.name).collect();
    let calls = ["info!(name: ", "warn!(name: ", "error!(name: "];
    for call in calls {
        for rest in everything.split(call).skip(1) {
            let path = rest.split(',').next().unwrap();
            let name = path.rsplit("::").next().unwrap().to_lowercase();
            assert!(known.contains(&*name), "{call}{path}: not in a table");
        }
    }
}

#[test]
fn journalctl_understands_the_catalogue() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("usr/lib/systemd/catalog");
    fs::create_dir_all(&home).unwrap();
    fs::write(
        home.join("towpath.catalog"),
        read("systemd/towpath.catalog"),
    )
    .unwrap();
    let run = |word: &str| {
        let mut command = Command::new("journalctl");
        command.arg("--root").arg(dir.path()).arg(word).output()
    };
    let Ok(updated) = run("--update-catalog") else {
        println!("skipped: there is no journalctl here");
        return;
    };
    let said = String::from_utf8_lossy(&updated.stderr).into_owned();
    assert!(updated.status.success() && said.is_empty(), "{said}");
    let listed = run("--dump-catalog").unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for (id, (subject, _)) in catalogue() {
        assert!(
            listed.contains(&id) && listed.contains(&subject),
            "{id} in {listed}"
        );
    }
}
