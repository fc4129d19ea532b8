//! What a reload would change, for people and for the API.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use towpath_common::config::Name;

use super::{Config, Disk};

/// The difference between the running configuration and another one. Disks are matched by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// Disks that are new.
    pub added: Vec<Name>,
    /// Disks that are gone.
    pub removed: Vec<Name>,
    /// Disks that stay and change.
    pub changed: Vec<Change>,
    /// Keys of `[daemon]` that changed, and take effect at the next start only.
    pub needs_restart: Vec<String>,
}

/// One disk that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The disk.
    pub name: Name,
    /// `key: old -> new`, for each key.
    pub keys: Vec<String>,
}

impl Diff {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing changes");
        }
        let added = self.added.iter().map(|name| format!("+{name}"));
        let removed = self.removed.iter().map(|name| format!("-{name}"));
        let changed = self
            .changed
            .iter()
            .map(|disk| format!("{} ({})", disk.name, disk.keys.join(", ")));
        let restart = self
            .needs_restart
            .iter()
            .map(|key| format!("{key} after a restart"));
        let parts: Vec<String> = added.chain(removed).chain(changed).chain(restart).collect();
        f.write_str(&parts.join("; "))
    }
}

impl Config {
    /// What changes if `new` takes the place of this configuration.
    pub fn diff(&self, new: &Self) -> Diff {
        let find = |disks: &[Disk], name: &Name| disks.iter().find(|d| d.name == *name).cloned();
        let missing_in = |there: &[Disk], here: &[Disk]| -> Vec<Name> {
            here.iter()
                .map(|d| d.name.clone())
                .filter(|n| find(there, n).is_none())
                .collect()
        };
        let changed = new.disks.iter().filter_map(|disk| {
            let keys = changed_keys(&find(&self.disks, &disk.name)?, disk);
            (!keys.is_empty()).then(|| Change {
                name: disk.name.clone(),
                keys,
            })
        });
        Diff {
            added: missing_in(&self.disks, &new.disks),
            removed: missing_in(&new.disks, &self.disks),
            changed: changed.collect(),
            needs_restart: changed_keys(&self.daemon, &new.daemon),
        }
    }
}

/// `key: old -> new` for every key that differs, by way of JSON, which knows all keys.
fn changed_keys<T: Serialize>(old: &T, new: &T) -> Vec<String> {
    let json = |value| match serde_json::to_value(value) {
        Ok(Value::Object(keys)) => keys,
        _ => serde_json::Map::new(),
    };
    let old = json(old);
    let differing = json(new)
        .into_iter()
        .filter(|(key, value)| old.get(key) != Some(value));
    differing
        .map(|(key, new)| format!("{key}: {} -> {new}", old.get(&key).unwrap_or(&Value::Null)))
        .collect()
}
