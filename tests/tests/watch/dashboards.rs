//! Grafana's dashboards.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::names::Known;
use crate::{DAEMONS, root};

fn items<'a>(value: &'a Value, what: &str) -> &'a Vec<Value> {
    let list = value.as_array().filter(|list| !list.is_empty());
    list.unwrap_or_else(|| panic!("no {what}"))
}

fn text<'a>(value: &'a Value, what: &str) -> &'a str {
    value.as_str().unwrap_or_else(|| panic!("no {what}"))
}

#[test]
fn dashboards_show_what_the_daemons_export() {
    let known = Known::read();
    let mut uids = BTreeSet::new();
    for daemon in DAEMONS {
        let path = root().join(format!("systemd/grafana/{daemon}.json"));
        let board: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        assert!(uids.insert(text(&board["uid"], "uid").to_owned()));
        let (mut ids, mut titles) = (BTreeSet::new(), BTreeSet::new());
        for panel in items(&board["panels"], "panels") {
            let title = text(&panel["title"], "title");
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id");
            assert!(titles.insert(title), "two panels are called {title}");
            for target in items(&panel["targets"], "targets") {
                let expr = text(&target["expr"], "expr");
                assert_eq!(known.judge(expr), Ok(()), "{daemon}: {title}: {expr}");
            }
        }
        for variable in items(&board["templating"]["list"], "variables") {
            let query = text(&variable["query"], "query");
            let Some(inner) = query.strip_prefix("label_values(") else {
                assert_eq!(query, "prometheus");
                continue;
            };
            let (series, label) = inner.trim_end_matches(')').rsplit_once(", ").unwrap();
            let asked = format!("max by ({label}) ({series})");
            assert_eq!(known.judge(&asked), Ok(()), "{daemon}: {query}");
        }
    }
}

#[test]
fn panels_do_not_overlap() {
    for daemon in DAEMONS {
        let path = root().join(format!("systemd/grafana/{daemon}.json"));
        let board: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let mut taken = BTreeSet::new();
        for panel in items(&board["panels"], "panels") {
            let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{}: too wide", panel["title"]);
            for x in at("x")..at("x") + at("w") {
                for y in at("y")..at("y") + at("h") {
                    assert!(taken.insert((x, y)), "{}: overlaps", panel["title"]);
                }
            }
        }
    }
}
