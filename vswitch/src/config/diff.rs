//! What a reload or a change would do, for people and for the API.

use std::fmt;

use serde::{Deserialize, Serialize};
use towpath_common::config::{Changes, changed_keys};

use super::Config;

/// The difference between the running configuration and another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// Ports.
    pub ports: Changes,
    /// Uplinks.
    pub uplinks: Changes,
    /// Static addresses, by address and VLAN.
    pub fdb: Changes<String>,
    /// Mirrors.
    pub mirrors: Changes,
    /// Keys of `[switch]`: `key: old -> new`.
    pub switch: Vec<String>,
    /// Keys of `[daemon]` and the `fdb_size` that changed, and take effect at the next start only.
    pub needs_restart: Vec<String>,
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
        let mut parts = self.ports.sentences("port ");
        parts.extend(self.uplinks.sentences("uplink "));
        parts.extend(self.fdb.sentences("fdb "));
        parts.extend(self.mirrors.sentences("mirror "));
        parts.extend(self.switch.iter().map(|key| format!("switch {key}")));
        let restart = self.needs_restart.iter();
        parts.extend(restart.map(|key| format!("{key} after a restart")));
        f.write_str(&parts.join("; "))
    }
}

impl Config {
    /// What changes if `new` takes the place of this configuration.
    pub fn diff(&self, new: &Self) -> Diff {
        let switch = changed_keys(&self.switch, &new.switch);
        let at_start = |key: &String| key.starts_with("fdb_size:");
        let (restart, switch): (Vec<_>, _) = switch.into_iter().partition(at_start);
        let mut needs_restart = changed_keys(&self.daemon, &new.daemon);
        needs_restart.extend(restart.iter().map(|key| format!("switch {key}")));
        Diff {
            ports: Changes::between(&self.ports, &new.ports, |port| port.name.clone()),
            uplinks: Changes::between(&self.uplinks, &new.uplinks, |up| up.name.clone()),
            fdb: Changes::between(&self.fdb, &new.fdb, |entry| {
                format!("{} vlan {}", entry.mac, entry.vlan)
            }),
            mirrors: Changes::between(&self.mirrors, &new.mirrors, |one| one.name.clone()),
            switch,
            needs_restart,
        }
    }
}
