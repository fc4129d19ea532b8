//! What differs between two configurations, key by key, by way of JSON, which knows all keys.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Name;

/// What changes in a list of named things. They are matched by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes<N = Name> {
    /// New ones.
    pub added: Vec<N>,
    /// Those that are gone.
    pub removed: Vec<N>,
    /// Those that stay and change.
    pub changed: Vec<Change<N>>,
}

/// One thing that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change<N = Name> {
    /// Which.
    pub name: N,
    /// `key: old -> new`, for each key.
    pub keys: Vec<String>,
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
    /// What changes if `new` takes the place of `old`.
    pub fn between<T: Serialize>(old: &[T], new: &[T], name: impl Fn(&T) -> N) -> Self {
        let find = |list: &[T], wanted: &N| list.iter().position(|item| name(item) == *wanted);
        let missing_in = |there: &[T], here: &[T]| -> Vec<N> {
            let names = here.iter().map(&name);
            names.filter(|n| find(there, n).is_none()).collect()
        };
        let changed = new.iter().filter_map(|item| {
            let name = name(item);
            let keys = changed_keys(old.get(find(old, &name)?)?, item);
            (!keys.is_empty()).then_some(Change { name, keys })
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
}
