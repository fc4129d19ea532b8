//! The metrics and labels that READMEs list, and those that an expression of PromQL names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::{DAEMONS, root};

/// What Prometheus itself adds to every time series.
const ADDED: [&str; 2] = ["instance", "job"];

/// Labels by metric.
pub(crate) struct Known(BTreeMap<String, BTreeSet<String>>);

/// What stands between backticks in a cell of a table.
fn quoted(cell: &str) -> impl Iterator<Item = String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned)
}

impl Known {
    /// All metrics of all daemons. Columns differ: the labels are in the one that is headed so.
    pub(crate) fn read() -> Self {
        let mut known = BTreeMap::new();
        for daemon in DAEMONS {
            let text = fs::read_to_string(root().join(daemon).join("README.md")).unwrap();
            let mut labels = None;
            for line in text.lines() {
                let cells: Vec<&str> = line.split('|').map(str::trim).collect();
                if cells.get(1) == Some(&"metric") {
                    labels = cells.iter().position(|cell| *cell == "labels");
                } else if line.starts_with("| `towpath_") {
                    let labels: BTreeSet<String> = quoted(cells[labels.unwrap()]).collect();
                    let type_is_histogram = cells[2] == "histogram";
                    for name in quoted(cells[1]) {
                        if type_is_histogram {
                            let mut labels = labels.clone();
                            known.insert(format!("{name}_sum"), labels.clone());
                            known.insert(format!("{name}_count"), labels.clone());
                            labels.insert("le".to_owned());
                            known.insert(format!("{name}_bucket"), labels);
                        } else {
                            known.insert(name, labels.clone());
                        }
                    }
                }
            }
        }
        assert!(known.len() > 50, "the READMEs' tables were not understood");
        Self(known)
    }

    /// Adds what a rule records, with the labels that it keeps.
    pub(crate) fn record(&mut self, name: &str, expr: &str) {
        self.0.insert(name.to_owned(), kept(expr));
    }

    /// What is wrong with `expr`.
    pub(crate) fn judge(&self, expr: &str) -> Result<(), String> {
        let mut all: BTreeSet<&str> = ADDED.into();
        let mut metrics = 0;
        let of_up = BTreeSet::new();
        for (name, labels) in series(expr) {
            let of_metric = match (self.0.get(name), name) {
                (Some(labels), _) => labels,
                (None, "up") => &of_up,
                (None, _) => return Err(format!("no daemon has the metric {name}")),
            };
            metrics += 1;
            all.extend(of_metric.iter().map(String::as_str));
            for label in labels {
                if !of_metric.contains(label) && !ADDED.contains(&label) {
                    return Err(format!("{name} has no label {label}"));
                }
            }
        }
        if metrics == 0 {
            return Err("names no metric".to_owned());
        }
        match kept(expr)
            .iter()
            .find(|label| !all.contains(label.as_str()))
        {
            Some(label) => Err(format!("no metric of it has the label {label}")),
            None => Ok(()),
        }
    }
}

/// Every metric that `expr` names, with the labels it is matched by.
fn series(expr: &str) -> Vec<(&str, Vec<&str>)> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    let mut rest = expr;
    while let Some(start) = rest.find(word) {
        rest = &rest[start..];
        let (name, behind) = rest.split_at(rest.find(|c| !word(c)).unwrap_or(rest.len()));
        let braced = behind.strip_prefix('{').and_then(|of| of.split_once('}'));
        let (matchers, behind) = braced.unwrap_or(("", behind));
        if name.starts_with("towpath_") || name.contains(":towpath_") || name == "up" {
            // Values are between quotes, and may hold commas.
            let outside = matchers.split('"').step_by(2);
            let labels = outside.map(|part| part.trim_matches([',', ' ', '=', '~', '!']));
            found.push((name, labels.filter(|label| !label.is_empty()).collect()));
        }
        rest = behind;
    }
    found
}

/// The labels by which `expr` groups or joins.
fn kept(expr: &str) -> BTreeSet<String> {
    let lists = ["by (", "on ("].into_iter().flat_map(|opens| {
        let behind = expr.split(opens).skip(1);
        behind.map(|behind| behind.split(')').next().unwrap_or_default())
    });
    let labels = lists.flat_map(|list| list.split(',').map(|label| label.trim().to_owned()));
    labels.collect()
}

#[test]
fn what_does_not_exist_is_found() {
    let known = Known::read();
    let good = r#"max by (disk) (rate(towpath_vblk_errors_total{errno!~"a,b",disk="x"}[5m])) > 0"#;
    assert_eq!(known.judge(good), Ok(()));
    for (bad, why) in [
        (
            "towpath_vblk_error_total > 0",
            "no daemon has the metric towpath_vblk_error_total",
        ),
        (
            r#"towpath_vblk_held{disk="x",port!="y"}"#,
            "towpath_vblk_held has no label port",
        ),
        (
            "max by (port) (towpath_vblk_held)",
            "no metric of it has the label port",
        ),
        (
            "towpath_vblk_request_seconds",
            "no daemon has the metric towpath_vblk_request_seconds",
        ),
        ("vector(1)", "names no metric"),
    ] {
        assert_eq!(known.judge(bad), Err(why.to_owned()), "{bad}");
    }
}
