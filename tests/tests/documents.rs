//! Documents that run: what README and the other pages tell a reader to type, typed.
//!
//! The word after the language of a fenced block says what to do with it; the page looks the same.
//! In every `.md`, each `sh`, `console` and `toml` block must carry one, so none is forgotten:
//!
//! - `sh test`: run.
//! - `console test`: lines that start with `$ ` are run, and what each prints must be the lines
//!   that follow; `...` in an expected line stands for anything, as a line of its own for any
//!   number of lines.
//! - `toml vblk`, `toml vswitch`, `toml sriov-manager`: must pass `vblk check --config`, or the
//!   other's. `toml test` must parse.
//! - `manual`: for a reader only (what needs hardware, a VM, minutes, or another machine).
//!
//! Code is fenced: a block that is only indented cannot be marked, and is refused.
//!
//! All of a page's blocks run in page order in one `bash -eu`, in one scratch directory, with the
//! programs of this workspace in `PATH` and an empty `/run` of their own, so that the default
//! sockets are free. Background jobs end with the page; after `vblk serve … &` or
//! `vswitch serve … &` the page goes on when the daemon answers. `toml` blocks are written to
//! `example-N.toml`, N counting from 1, just before they are checked.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a page that cannot run has failed"
)]

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use towpath_tests::{cargo, paths};

/// Held against the program by a test of its own, `vblk/tests/readme.rs`.
const TESTED_ELSEWHERE: &str = "vblk/README.md";

/// Long enough for any page on a loaded machine; a hang is a failure, not a wait.
const SECONDS: u32 = 120;

const PROLOGUE: &str = r#"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
answers() {
    set +x
    for attempt in $(seq 200); do
        if "$@" >/dev/null 2>&1; then set -x; return; fi
        kill -0 $! || return
        sleep 0.05
    done
    echo "$1 does not answer" >&2
    return 1
}
"#;

struct Block {
    /// `README.md:12`
    place: String,
    language: String,
    action: String,
    body: Vec<String>,
}

/// One command of a console block and what it should print.
struct Step {
    place: String,
    expected: Vec<String>,
}

fn pages() -> Vec<PathBuf> {
    let files = paths::tracked().unwrap().into_iter();
    files
        .filter(|path| path.ends_with(".md") && path != TESTED_ELSEWHERE)
        .map(PathBuf::from)
        .collect()
}

fn blocks(page: &Path, text: &str) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    let (mut blank, mut in_list) = (true, false);
    let mut open: Option<Block> = None;
    for (index, line) in text.lines().enumerate() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(info)) => {
                let mut words = info.split_whitespace().map(str::to_owned);
                open = Some(Block {
                    place: format!("{}:{}", page.display(), index + 1),
                    language: words.next().unwrap_or_default(),
                    action: words.next().unwrap_or_default(),
                    body: Vec::new(),
                });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.body.push(line.to_owned()),
            (None, None) => {
                if blank && !in_list && line.starts_with("    ") {
                    return Err(format!(
                        "{}:{}: code without a fence",
                        page.display(),
                        index + 1
                    ));
                }
                blank = line.trim().is_empty();
                in_list = is_item(line) || in_list && (blank || line.starts_with(' '));
            }
        }
    }
    Ok(blocks)
}

/// Whether `line` begins an item of a list.
fn is_item(line: &str) -> bool {
    let rest = line
        .trim_start()
        .trim_start_matches(|c: char| c.is_ascii_digit());
    ["- ", "* ", "+ ", ". ", ") "]
        .iter()
        .any(|mark| rest.starts_with(mark))
}

/// The page as a shell script, and the console steps whose output it leaves in `out.N`.
fn script(blocks: &[Block]) -> Result<(String, Vec<Step>), String> {
    let mut script = String::from(PROLOGUE);
    let mut steps: Vec<Step> = Vec::new();
    let mut examples = 0;
    for block in blocks {
        let place = &block.place;
        // The place goes to the trace, for whoever reads about a failure.
        writeln!(script, ": {place}").unwrap();
        let body = block.body.join("\n");
        match (block.language.as_str(), block.action.as_str()) {
            ("sh", "test") => {
                for line in &block.body {
                    writeln!(script, "{line}{}", wait(line)).unwrap();
                }
            }
            ("console", "test") => console(block, &mut script, &mut steps)?,
            ("toml", action @ ("test" | "vblk" | "vswitch" | "sriov-manager")) => {
                body.parse::<toml::Table>()
                    .map_err(|error| format!("{place}: {error}"))?;
                examples += 1;
                let name = format!("example-{examples}.toml");
                writeln!(
                    script,
                    "cat >{name} <<'END-OF-EXAMPLE'\n{body}\nEND-OF-EXAMPLE"
                )
                .unwrap();
                if action != "test" {
                    writeln!(script, "{action} check --config {name}").unwrap();
                }
            }
            ("sh" | "console" | "toml", "manual") => {}
            ("sh" | "console" | "toml", other) => {
                return Err(format!(
                    "{place}: `{other}` is not test, vblk, vswitch or manual"
                ));
            }
            _ => {}
        }
    }
    Ok((script, steps))
}

/// What to append to a line so that the next finds a daemon serving, if the line starts one.
fn wait(line: &str) -> String {
    let words: Vec<_> = line.split_whitespace().collect();
    let list = match words.as_slice() {
        ["vblk", "serve", .., "&"] => "vblk disk list",
        ["vswitch", "serve", .., "&"] => "vswitch port show",
        _ => return String::new(),
    };
    let control = words.windows(2).find(|pair| pair[0] == "--control");
    format!(
        "\nanswers {list} {}",
        control.map(|pair| pair.join(" ")).unwrap_or_default()
    )
}

fn console(block: &Block, script: &mut String, steps: &mut Vec<Step>) -> Result<(), String> {
    for line in &block.body {
        if let Some(command) = line.strip_prefix("$ ") {
            let (number, wait) = (steps.len(), wait(command));
            writeln!(script, "{{ {command}\n}} >out.{number} 2>&1{wait}").unwrap();
            steps.push(Step {
                place: format!("{}: {line}", block.place),
                expected: Vec::new(),
            });
        } else {
            let step = steps.last_mut();
            let step = step.ok_or(format!("{}: output before a command", block.place))?;
            step.expected.push(line.clone());
        }
    }
    Ok(())
}

/// Whether `lines` are what `expected` says, `...` standing for anything.
fn matches(expected: &[String], lines: &[&str]) -> bool {
    match (expected.split_first(), lines.split_first()) {
        (None, rest) => rest.is_none(),
        (Some((first, rest)), _) if first.trim() == "..." => {
            (0..=lines.len()).any(|skipped| matches(rest, &lines[skipped..]))
        }
        (Some((first, rest)), Some((line, lines))) => {
            line_matches(first, line) && matches(rest, lines)
        }
        (Some(_), None) => false,
    }
}

fn line_matches(expected: &str, line: &str) -> bool {
    let mut parts = expected.split("...");
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.trim_end().is_empty();
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.trim_end().ends_with(last)
}

fn run(page: &Path) -> Result<(), String> {
    let text = fs::read_to_string(paths::repository().join(page)).map_err(|e| e.to_string())?;
    let (script, steps) = script(&blocks(page, &text)?)?;
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    fs::write(dir.path().join("page.sh"), &script).map_err(|e| e.to_string())?;
    cargo::program("vswitch", "vswitch").map_err(|e| format!("{e:#}"))?;
    cargo::program("sriov-manager", "sriov-manager").map_err(|e| format!("{e:#}"))?;
    let programs = cargo::program("vblk", "vblk").map_err(|e| format!("{e:#}"))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("timeout")
        .arg(SECONDS.to_string())
        .args(["unshare", "--mount", "--map-root-user", "bash", "-c"])
        // The trace has a descriptor of its own: it must not mix with what a step prints.
        .arg("mount -t tmpfs none /run && BASH_XTRACEFD=9 exec bash -eux -o pipefail page.sh 9>&2")
        .current_dir(dir.path())
        .env(
            "PATH",
            format!("{}:{path}", programs.parent().unwrap().display()),
        )
        .output()
        .map_err(|e| e.to_string())?;
    let trace = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{}: {}\n{trace}", page.display(), output.status));
    }
    for (index, step) in steps.iter().enumerate() {
        let printed = fs::read_to_string(dir.path().join(format!("out.{index}"))).unwrap();
        if !matches(&step.expected, &printed.lines().collect::<Vec<_>>()) {
            return Err(format!(
                "{}\nshould print\n{}\nand prints\n{printed}",
                step.place,
                step.expected.join("\n")
            ));
        }
    }
    Ok(())
}

#[test]
fn pages_do_what_they_say() {
    let failures: Vec<_> = pages().iter().filter_map(|page| run(page).err()).collect();
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n\n"));
}

#[test]
fn blocks_are_found_and_must_be_marked() {
    let text = "a\n```sh test\ntrue\n```\n```text\nx\n```\n```console test\n$ echo a\na\n```\n";
    let found = blocks(Path::new("p.md"), text).unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(found[2].place, "p.md:8");
    let (page, steps) = script(&found).unwrap();
    assert!(page.contains("{ echo a\n} >out.0 2>&1"));
    assert_eq!(steps[0].expected, ["a"]);

    let unmarked = blocks(Path::new("p.md"), "```sh\nrm -rf /\n```\n").unwrap();
    assert!(script(&unmarked).is_err_and(|error| error.contains("p.md:1")));
    assert!(blocks(Path::new("p.md"), "a:\n\n    make\n").is_err_and(|e| e.contains("p.md:3")));
    assert!(blocks(Path::new("p.md"), "1. a\n\n    more of a\n").is_ok());
}

#[test]
fn a_page_waits_for_what_it_starts() {
    assert_eq!(
        wait("vblk serve --disk a,socket=b &"),
        "\nanswers vblk disk list "
    );
    assert_eq!(
        wait("vswitch serve --control c --port d &"),
        "\nanswers vswitch port show --control c"
    );
    assert_eq!(wait("vblk serve --disk a"), "");
}

#[test]
fn dots_stand_for_anything() {
    assert!(line_matches("a ... c", "a b c"));
    assert!(line_matches("...", ""));
    assert!(!line_matches("a ... c", "a b d"));
    assert!(!line_matches("a", "ab"));
    let expected = ["one", "...", "four"].map(str::to_owned);
    assert!(matches(&expected, &["one", "two", "three", "four"]));
    assert!(matches(&expected, &["one", "four"]));
    assert!(!matches(&expected, &["one", "two"]));
}
