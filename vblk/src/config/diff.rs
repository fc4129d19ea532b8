//! What a reload would change, for people and for the API.

use std::fmt;

use serde::{Deserialize, Serialize};
use towpath_common::config::{Changes, changed_keys};

use super::Config;

/// The difference between the running configuration and another one. Disks are matched by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// Disks that are new, gone or changed.
    #[serde(flatten)]
    pub disks: Changes,
    /// Groups that are new, gone or changed.
    #[serde(default)]
    pub groups: Changes,
    /// Keys of `[daemon]` and beside it that changed, and take effect at the next start only.
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
        let mut parts = self.disks.sentences("");
        parts.extend(self.groups.sentences("group "));
        let restart = self.needs_restart.iter();
        parts.extend(restart.map(|key| format!("{key} after a restart")));
        f.write_str(&parts.join("; "))
    }
}

impl Config {
    /// What changes if `new` takes the place of this configuration.
    pub fn diff(&self, new: &Self) -> Diff {
        Diff {
            disks: Changes::between(&self.disks, &new.disks, |disk| disk.name.clone()),
            groups: Changes::between(&self.groups, &new.groups, |group| group.name.clone()),
            needs_restart: [
                changed_keys(&self.daemon, &new.daemon),
                changed_keys(&self.process, &new.process),
            ]
            .concat(),
        }
    }
}
