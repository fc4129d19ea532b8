//! Prometheus' rules.

use std::fs;
use std::process::Command;

use crate::names::Known;
use crate::{DAEMONS, root};

/// A rule as its file has it.
struct Rule {
    file: String,
    alerts: bool,
    name: String,
    expr: String,
}

/// Every rule that is shipped. The files are ours: an `expr` stands in its line, or is folded into
/// the lines below it that are indented further.
fn rules() -> Vec<Rule> {
    let files = DAEMONS.iter().chain(&["towpath"]);
    files
        .flat_map(|daemon| read(&format!("{daemon}.rules.yml")))
        .collect()
}

fn read(file: &str) -> Vec<Rule> {
    let text = fs::read_to_string(root().join("systemd/prometheus").join(file)).unwrap();
    let mut rules: Vec<Rule> = Vec::new();
    let mut inside = false;
    for line in text.lines().filter(|line| !line.trim().starts_with('#')) {
        let (key, value) = line.trim().split_once(": ").unwrap_or((line.trim(), ""));
        match key {
            "- alert" | "- record" => rules.push(Rule {
                file: file.to_owned(),
                alerts: key == "- alert",
                name: value.to_owned(),
                expr: String::new(),
            }),
            "expr" => {
                let rule = rules.last_mut().expect("an expr without a rule");
                rule.expr.push_str(value.trim_start_matches(">-"));
                inside = true;
                continue;
            }
            _ if inside && line.starts_with("          ") => {
                let rule = rules.last_mut().expect("an expr without a rule");
                rule.expr.push(' ');
                rule.expr.push_str(line.trim());
                continue;
            }
            _ => {}
        }
        inside = false;
    }
    rules
}

fn promtool(arguments: &[&str]) -> String {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(root().join("systemd/prometheus"))
        .output()
        .expect("promtool: tests/packages.sh installs it");
    assert!(
        output.status.success(),
        "promtool {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn rules_are_well_formed_and_pass_their_unit_tests() {
    for daemon in DAEMONS.iter().chain(&["towpath"]) {
        let file = format!("{daemon}.rules.yml");
        let said = promtool(&["check", "rules", &file]);
        let count = read(&file).len();
        assert!(said.contains(&format!("{count} rules found")), "{said}");
    }
    promtool(&["test", "rules", "rules.test.yml"]);
}

#[test]
fn every_alert_is_seen_to_fire_and_to_be_silent_and_says_what_to_do() {
    let guide = fs::read_to_string(root().join("systemd/prometheus/README.md")).unwrap();
    let tests = fs::read_to_string(root().join("systemd/prometheus/rules.test.yml")).unwrap();
    for rule in rules().iter().filter(|rule| rule.alerts) {
        let fires = format!("alertname: {}\n        exp_alerts:", rule.name);
        let silent = format!("alertname: {} }}", rule.name);
        assert!(tests.contains(&fires), "{} is not seen to fire", rule.name);
        let told = guide.contains(&format!("`{}`", rule.name));
        assert!(
            told,
            "the README does not say what to do about {}",
            rule.name
        );
        assert!(tests.contains(&silent), "{} is not seen silent", rule.name);
    }
}

#[test]
fn rules_name_metrics_and_labels_that_exist() {
    let mut known = Known::read();
    let rules = rules();
    assert!(rules.len() > 25, "the rules' files were not understood");
    for rule in rules.iter().filter(|rule| !rule.alerts) {
        known.record(&rule.name, &rule.expr);
    }
    for rule in rules {
        let judged = known.judge(&rule.expr);
        assert_eq!(judged, Ok(()), "{}: {}", rule.file, rule.name);
    }
}
