//! What differs between two configurations, key by key, by way of JSON, which knows all keys.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Name;

/// What changes in a list of named things. They are matched by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Changes<N = Name> {
    /// New ones.
    pub added: Vec<N>,
    /// Those that are gone.
    pub removed: Vec<N>,
    /// Those that stay and change.
    pub changed: Vec<Change<N>>,
}

/// One thing that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Change<N = Name> {
    /// Which.
    pub name: N,
    /// `key: old -> new`, for each key.
    pub keys: Vec<String>,
    /// Whether it is taken down and set up anew, which ends its session; else it is changed as it
    /// runs.
    #[serde(default)]
    pub restarts: bool,
}

impl<N> Default for Changes<N> {
    fn default() -> Self {
        Self {
            added: Vec::new(),
            removed: Vec::new(),
            changed: Vec::new(),
        }
    }
}

impl<N: Clone + PartialEq + fmt::Display> Changes<N> {
    /// What changes if `new` takes the place of `old`, all of it as things run.
    pub fn between<T: Serialize>(old: &[T], new: &[T], name: impl Fn(&T) -> N) -> Self {
        Self::between_running(old, new, name, |_, _| true)
    }

    /// The same of things that are set up anew unless they can `stay`.
    pub fn between_running<T: Serialize>(
        old: &[T],
        new: &[T],
        name: impl Fn(&T) -> N,
        stay: impl Fn(&T, &T) -> bool,
    ) -> Self {
        let find = |list: &[T], wanted: &N| list.iter().position(|item| name(item) == *wanted);
        let missing_in = |there: &[T], here: &[T]| -> Vec<N> {
            let names = here.iter().map(&name);
            names.filter(|n| find(there, n).is_none()).collect()
        };
        let changed = new.iter().filter_map(|item| {
            let name = name(item);
            let before = old.get(find(old, &name)?)?;
            let (keys, restarts) = (changed_keys(before, item), !stay(before, item));
            (!keys.is_empty()).then_some(Change {
                name,
                keys,
                restarts,
            })
        });
        Self {
            added: missing_in(old, new),
            removed: missing_in(new, old),
            changed: changed.collect(),
        }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }

    /// Those that are taken down, for good or to be set up anew.
    pub fn taken_down(&self) -> impl Iterator<Item = &N> {
        let anew = self.changed.iter().filter(|one| one.restarts);
        self.removed.iter().chain(anew.map(|one| &one.name))
    }

    /// A line for each, and one for each key: `+ disk new`. Of those in `disturbed` the line says
    /// that a machine's session ends.
    pub fn lines(&self, kind: &str, disturbed: &[N]) -> String {
        let ends = |name: &N, otherwise| {
            let ends = disturbed.contains(name);
            if ends {
                ": ends its session"
            } else {
                otherwise
            }
        };
        let added = self.added.iter().map(|name| format!("+ {kind} {name}\n"));
        let removed = self.removed.iter();
        let removed = removed.map(|name| format!("- {kind} {name}{}\n", ends(name, "")));
        let changed = self.changed.iter().map(|one| {
            let quietly = if one.restarts { ": set up anew" } else { "" };
            let how = ends(&one.name, quietly);
            format!("~ {kind} {}{how}\n{}", one.name, indented(&one.keys))
        });
        added.chain(removed).chain(changed).collect()
    }

    /// `+new`, `-gone`, `changed (key: old -> new)`; `kind` stands before each name.
    pub fn sentences(&self, kind: &str) -> Vec<String> {
        let added = self.added.iter().map(|name| format!("+{kind}{name}"));
        let removed = self.removed.iter().map(|name| format!("-{kind}{name}"));
        let changed = self
            .changed
            .iter()
            .map(|one| format!("{kind}{} ({})", one.name, one.keys.join(", ")));
        added.chain(removed).chain(changed).collect()
    }
}

/// What changes in a table that is there once.
pub fn table_lines(title: &str, keys: &[String]) -> String {
    if keys.is_empty() {
        return String::new();
    }
    format!("~ {title}\n{}", indented(keys))
}

fn indented(keys: &[String]) -> String {
    keys.iter().map(|key| format!("    {key}\n")).collect()
}

/// `key: old -> new` for every key that differs.
pub fn changed_keys<T: Serialize>(old: &T, new: &T) -> Vec<String> {
    let json = |value| match serde_json::to_value(value) {
        Ok(Value::Object(keys)) => keys,
        _ => serde_json::Map::new(),
    };
    let (old, new) = (json(old), json(new));
    let null = &Value::Null;
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    let keys = new.keys().chain(gone);
    let pairs = keys.map(|key| {
        (
            key,
            old.get(key).unwrap_or(null),
            new.get(key).unwrap_or(null),
        )
    });
    pairs
        .filter(|(_, old, new)| old != new)
        .map(|(key, old, new)| format!("{key}: {old} -> {new}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_difference_names_things_and_keys() {
        let name = |item: &Value| item["name"].as_str().unwrap_or_default().to_owned();
        let old = [json!({"name": "a", "w": 1, "x": 1}), json!({"name": "b"})];
        let new = [json!({"name": "a", "w": 2, "y": 1}), json!({"name": "c"})];
        let changes = Changes::between(&old, &new, name);
        let expected = [
            "+port c",
            "-port b",
            "port a (w: 1 -> 2, y: null -> 1, x: 1 -> null)",
        ];
        assert_eq!(changes.sentences("port "), expected);
        assert!(Changes::between(&old, &old, name).is_empty());
    }
    #[test]
    fn what_cannot_stay_is_said_to_end_a_session_if_there_is_one() {
        let name = |item: &Value| item["name"].as_str().unwrap_or_default().to_owned();
        let old = [
            json!({"name": "a", "size": 1, "w": 1}),
            json!({"name": "b", "size": 1}),
            json!({"name": "c", "w": 1}),
            json!({"name": "d"}),
        ];
        let new = [
            json!({"name": "a", "size": 2, "w": 1}),
            json!({"name": "b", "size": 2}),
            json!({"name": "c", "w": 2}),
            json!({"name": "e"}),
        ];
        let stay = |old: &Value, new: &Value| old["size"] == new["size"];
        let changes = Changes::between_running(&old, &new, name, stay);
        assert_eq!(changes.taken_down().collect::<Vec<_>>(), ["d", "a", "b"]);
        let connected = ["a", "d"].map(str::to_owned);
        let expected = "+ disk e\n- disk d: ends its session\n\
                        ~ disk a: ends its session\n    size: 1 -> 2\n\
                        ~ disk b: set up anew\n    size: 1 -> 2\n~ disk c\n    w: 1 -> 2\n";
        assert_eq!(changes.lines("disk", &connected), expected);
        assert_eq!(table_lines("daemon", &[]), "");
        assert_eq!(
            table_lines("x", &["k: 1 -> 2".to_owned()]),
            "~ x\n    k: 1 -> 2\n"
        );
    }
}
