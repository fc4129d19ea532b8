//! Reads documents for tests that hold them against the program.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

/// The fenced blocks of `text` whose fence is followed by `mark`.
#[must_use]
pub fn blocks<'a>(text: &'a str, mark: &str) -> Vec<&'a str> {
    let fence = format!("```{mark}\n");
    let rest = text.split(&fence).skip(1);
    rest.filter_map(|rest| rest.split("```").next()).collect()
}

/// The cells of every table row of `text` that begins with code, without ticks, of tables
/// `columns` wide.
#[must_use]
pub fn rows(text: &str, columns: usize) -> Vec<Vec<String>> {
    let lines = text.lines().filter(|line| line.starts_with("| `"));
    let cells = lines.map(|line| {
        let line = line.trim_matches('|');
        line.split(" | ")
            .map(|cell| cell.replace('`', "").trim().to_owned())
            .collect::<Vec<_>>()
    });
    cells.filter(|row| row.len() == columns).collect()
}

/// The routes that `text` names, such as `GET /v1/status` in ticks: method, in small letters, and
/// path, without what follows a `?`.
#[must_use]
pub fn routes(text: &str) -> BTreeSet<(String, String)> {
    let code = text.split('`').skip(1).step_by(2);
    let routes = code.filter_map(|code| {
        let (method, target) = code.split_once(" /")?;
        let path = target.split('?').next().unwrap_or(target);
        let known = ["GET", "POST", "DELETE"].contains(&method);
        known.then(|| (method.to_ascii_lowercase(), format!("/{path}")))
    });
    routes.collect()
}

/// Every key of a configuration value with its default, as JSON.
#[must_use]
pub fn keys(value: &impl Serialize) -> BTreeMap<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(keys)) => keys.into_iter().collect(),
        _ => BTreeMap::new(),
    }
}

/// A value as a document writes it: JSON and TOML agree on these. Null if it is told in words.
#[must_use]
pub fn literal(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

/// An example in which what is commented out is spelled out: `# key = value`.
#[must_use]
pub fn spelled_out(example: &str) -> String {
    let line = |line: &str| match line.strip_prefix("# ") {
        Some(key) if key.contains(" = ") => format!("{key}\n"),
        _ => format!("{line}\n"),
    };
    example.lines().map(line).collect()
}

/// Whether a line of an example shows `key`, commented out or not.
#[must_use]
pub fn shows(example: &str, key: &str) -> bool {
    let start = format!("{key} = ");
    let shown = |line: &str| line.trim_start_matches("# ").starts_with(&start);
    example.lines().any(shown)
}
