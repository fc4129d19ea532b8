//! House rules that a program can check, over the whole repository.
//!
//! A rule lists every violation it finds, as `file:line: what is wrong`, so that one run is
//! enough. What cannot be checked here is in CONTRIBUTING.md, marked "by review".

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a rule that cannot run has failed"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use towpath_tests::paths::{repository, tracked};

/// Lines before the first test-only item: what a reader must hold to understand a file.
const PROD_LINES: usize = 500;
const COLUMNS: usize = 100;

/// Where `unsafe` may be written: files, or beginnings of their names. Each argues for it at its
/// top, and ARCHITECTURE.md says what for.
const UNSAFE_ALLOWED: &[&str] = &[
    "benches/src/raw.rs",
    "common/src/bell.rs",
    "common/src/bell/aio.rs",
    "common/src/control/peer.rs",
    "common/src/keep/crash.rs",
    "common/src/keep/pass.rs",
    "common/src/mem/mapping.rs",
    "common/src/mem/sigbus.rs",
    "common/src/mem/cells.rs",
    "common/src/mem/pages.rs",
    "common/src/mem/window.rs",
    "common/src/nvme.rs",
    "common/src/sandbox/seccomp.rs",
    "common/src/session/adopt.rs",
    "vblk/src/engine/threads_sys.rs",
    "vblk/src/engine/uring",
    "vblk/src/storage/fiemap.rs",
    "vswitch/src/port/tap_sys.rs",
];

/// The top level, complete: what is not named here belongs in one of the directories.
const TOP_LEVEL: [&str; 21] = [
    ".ci",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "benches",
    "clippy.toml",
    "common",
    "deny.toml",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "sriov-manager",
    "systemd",
    "tests",
    "vblk",
    "vswitch",
];

struct Source {
    /// Relative to the repository, with `/`.
    path: String,
    text: String,
}

impl Source {
    fn lines(&self) -> impl Iterator<Item = (String, &str)> {
        let place = |index: usize| format!("{}:{}", self.path, index + 1);
        self.text
            .lines()
            .enumerate()
            .map(move |(index, line)| (place(index), line))
    }
}

fn sources() -> Vec<Source> {
    let rust = tracked()
        .unwrap()
        .into_iter()
        .filter(|path| path.ends_with(".rs"));
    rust.map(|path| Source {
        text: fs::read_to_string(repository().join(&path)).unwrap(),
        path,
    })
    .collect()
}

fn assert_none(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn every_file_opens_with_its_theory() {
    let without = sources()
        .into_iter()
        .filter(|source| !source.text.starts_with("//!"));
    assert_none(
        &without
            .map(|s| format!("{}:1: does not open with //!", s.path))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn files_and_lines_are_short() {
    let mut violations = Vec::new();
    for source in sources() {
        let prod = source
            .text
            .lines()
            .take_while(|line| !line.starts_with("#[cfg(test)]"))
            .count();
        let is_test = source.path.contains("/tests/") || source.path.ends_with("/tests.rs");
        if prod > PROD_LINES && !is_test {
            violations.push(format!(
                "{}: {prod} lines, at most {PROD_LINES}",
                source.path
            ));
        }
        for (place, line) in source
            .lines()
            .filter(|(_, line)| line.chars().count() > COLUMNS)
        {
            let columns = line.chars().count();
            violations.push(format!("{place}: {columns} columns, at most {COLUMNS}"));
        }
    }
    assert_none(&violations);
}

#[test]
fn unsafe_stays_where_it_is_argued_for() {
    // Split, so that this file does not find itself.
    let needles = [
        ["un", "safe {"],
        ["un", "safe fn"],
        ["un", "safe impl"],
        ["un", "safe extern"],
    ]
    .map(|parts| parts.concat());
    let lint = ["un", "safe_code"].concat();
    let mut violations = Vec::new();
    for source in sources() {
        if UNSAFE_ALLOWED
            .iter()
            .any(|allowed| source.path.starts_with(allowed))
        {
            continue;
        }
        for (place, line) in source.lines() {
            let code = line.split("//").next().unwrap_or_default();
            let opened = code.contains(&lint) && !code.contains("forbid") && !code.contains("deny");
            if opened || needles.iter().any(|needle| code.contains(needle)) {
                violations.push(format!("{place}: unsafe outside {UNSAFE_ALLOWED:?}"));
            }
        }
    }
    assert_none(&violations);
}

/// A route that is added past [`Routes`](towpath_common::control::Routes) is in no document.
#[test]
fn routes_describe_themselves() {
    let mut violations = Vec::new();
    for source in sources() {
        let exempt = ["common/src/control/routes.rs", file!()].contains(&source.path.as_str());
        if exempt || source.path.split(['/', '.']).any(|part| part == "tests") {
            continue;
        }
        let tests = source
            .text
            .find("#[cfg(test)]")
            .unwrap_or(source.text.len());
        let end = source.text[..tests].lines().count();
        for (place, line) in source.lines().take(end) {
            let needles = ["routing::", ".route_service(", ".nest_service("];
            if needles.iter().any(|needle| line.contains(needle)) {
                violations.push(format!("{place}: a route that no document describes"));
            }
        }
    }
    assert_none(&violations);
}

#[test]
fn no_debris() {
    let needles = [
        ["to", "do!"],
        ["d", "bg!"],
        ["unimpl", "emented!"],
        ["FIX", "ME"],
    ]
    .map(|parts| parts.concat());
    let mut violations = Vec::new();
    for source in sources() {
        for (place, line) in source.lines() {
            for needle in needles.iter().filter(|needle| line.contains(*needle)) {
                violations.push(format!("{place}: {needle}"));
            }
        }
    }
    assert_none(&violations);
}

/// Every `.rs` is a target of its crate or a module of one.
#[test]
fn no_orphans() {
    let all: BTreeSet<PathBuf> = sources().into_iter().map(|s| s.path.into()).collect();
    let mut reached: BTreeSet<PathBuf> = BTreeSet::new();
    let mut open: Vec<PathBuf> = all.iter().filter(|path| is_target(path)).cloned().collect();
    while let Some(path) = open.pop() {
        if !all.contains(&path) || !reached.insert(path.clone()) {
            continue;
        }
        let text = fs::read_to_string(repository().join(&path)).unwrap();
        for name in text.lines().filter_map(declared_module) {
            let dir = path.parent().unwrap();
            let stem = path.file_stem().unwrap();
            let owns_dir = stem == "mod" || is_target(&path);
            let dir = if owns_dir {
                dir.to_path_buf()
            } else {
                dir.join(stem)
            };
            open.push(dir.join(format!("{name}.rs")));
            open.push(dir.join(name).join("mod.rs"));
        }
    }
    let orphans = all.difference(&reached);
    assert_none(
        &orphans
            .map(|p| format!("{}: no `mod` names it", p.display()))
            .collect::<Vec<_>>(),
    );
}

/// The file layouts cargo itself discovers.
fn is_target(path: &Path) -> bool {
    let parts: Vec<_> = path.iter().map(|part| part.to_str().unwrap()).collect();
    matches!(
        parts.as_slice(),
        [_, "src", "lib.rs" | "main.rs"]
            | [_, "build.rs"]
            | [_, "src", "bin", _]
            | [_, "src", "bin", _, "main.rs"]
            | [_, "tests" | "benches" | "examples", _]
            | [_, "tests" | "benches" | "examples", _, "main.rs"]
            | [.., "fuzz_targets", _]
    )
}

/// `x` of a line `mod x;`, at any visibility.
fn declared_module(line: &str) -> Option<&str> {
    let line = line.trim().strip_suffix(';')?;
    let (before, name) = line.rsplit_once("mod ")?;
    let plain = before.is_empty() || before.starts_with("pub");
    (plain && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).then_some(name)
}

#[test]
fn every_dependency_says_why() {
    let manifest = fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    let (_, section) = manifest.split_once("[workspace.dependencies]\n").unwrap();
    let section = section.split("\n[").next().unwrap();
    let mut violations = Vec::new();
    for line in section
        .lines()
        .filter(|line| line.contains('=') && !line.starts_with('#'))
    {
        let ours = line.contains("path =");
        let reason = line
            .rsplit_once('#')
            .map_or("", |(_, reason)| reason.trim());
        if !ours && reason.len() < 10 {
            violations.push(format!("Cargo.toml: no reason beside: {line}"));
        }
    }
    for path in tracked()
        .unwrap()
        .into_iter()
        // The fuzzers' is no member of the workspace and inherits nothing.
        .filter(|path| path.ends_with("/Cargo.toml") && path != "tests/fuzz/Cargo.toml")
    {
        let text = fs::read_to_string(repository().join(&path)).unwrap();
        let versions = text.lines().filter(|line| line.contains("version = \""));
        violations.extend(versions.map(|line| format!("{path}: not from the workspace: {line}")));
    }
    assert_none(&violations);
}

#[test]
fn the_top_level_is_complete_and_nothing_else() {
    let top = |path: &String| path.split('/').next().unwrap().to_owned();
    let found: BTreeSet<String> = tracked().unwrap().iter().map(top).collect();
    let wanted: BTreeSet<String> = TOP_LEVEL.into_iter().map(str::to_owned).collect();
    let missing = wanted
        .difference(&found)
        .map(|name| format!("{name}: missing"));
    let surplus = found
        .difference(&wanted)
        .map(|name| format!("{name}: not at the top level"));
    assert_none(&missing.chain(surplus).collect::<Vec<_>>());
}

/// Documents speak of files that exist: every path into a crate, in any document.
#[test]
fn documents_name_files_that_exist() {
    let crates = [
        "common/",
        "vblk/",
        "vswitch/",
        "sriov-manager/",
        "tests/",
        "benches/",
        "systemd/",
    ];
    let mut violations = Vec::new();
    for document in tracked()
        .unwrap()
        .into_iter()
        .filter(|path| path.ends_with(".md"))
    {
        let text = fs::read_to_string(repository().join(&document)).unwrap();
        for (index, line) in text.lines().enumerate() {
            for word in line.split(|c: char| c.is_whitespace() || "`()[]|,;:\"<>".contains(c)) {
                let word = word.trim_end_matches('.');
                let is_path = crates.iter().any(|name| word.starts_with(name));
                let is_pattern = word.contains(['*', '{', '…']);
                if is_path && !is_pattern && !exists(word) {
                    violations.push(format!("{document}:{}: {word} does not exist", index + 1));
                }
            }
        }
    }
    assert_none(&violations);
}

/// Whether `path` is there; `src/` after the crate's name may be left out, to be short.
fn exists(path: &str) -> bool {
    let (member, rest) = path.split_once('/').unwrap();
    [path.to_owned(), format!("{member}/src/{rest}")]
        .iter()
        .any(|path| repository().join(path).exists())
}

#[test]
fn module_lines_are_understood() {
    assert_eq!(declared_module("    mod tests;"), Some("tests"));
    assert_eq!(declared_module("pub(crate) mod ring;"), Some("ring"));
    assert_eq!(declared_module("mod inline {"), None);
    assert_eq!(declared_module("// the mod x;y;"), None);
}
