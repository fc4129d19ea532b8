//! What a reload would change, for people and for the API.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::config::{Changes, Name, changed_keys, table_lines};
use towpath_common::control::compare::Difference;

use super::{Config, Disk};

/// The difference between the running configuration and another one. Disks are matched by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Diff {
    /// Disks that are new, gone or changed.
    #[serde(flatten)]
    pub disks: Changes,
    /// Groups that are new, gone or changed.
    #[serde(default)]
    pub groups: Changes,
    /// Keys of `[daemon]` and beside it that changed, and take effect at the next start only.
    pub needs_restart: Vec<String>,
    /// Disks that go or are set up anew while a machine uses them: its session ends.
    #[serde(default)]
    pub disturbed: Vec<Name>,
}

impl Diff {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Difference for Diff {
    fn is_empty(&self) -> bool {
        Diff::is_empty(self)
    }

    fn lines(&self) -> String {
        let groups = self.groups.lines("group", &[]);
        let restart = table_lines("daemon, after a restart", &self.needs_restart);
        self.disks.lines("disk", &self.disturbed) + &groups + &restart
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
            disks: Changes::between_running(
                &self.disks,
                &new.disks,
                |disk| disk.name.clone(),
                Disk::same_session,
            ),
            groups: Changes::between(&self.groups, &new.groups, |group| group.name.clone()),
            needs_restart: [
                changed_keys(&self.daemon, &new.daemon),
                changed_keys(&self.process, &new.process),
            ]
            .concat(),
            disturbed: Vec::new(),
        }
    }
}

impl Disk {
    /// What concerns the open file: two configurations that agree here can share it.
    pub(crate) fn same_file(&self, other: &Self) -> bool {
        let file = |d: &Self| {
            (
                d.path.clone(),
                d.read_only,
                d.cache,
                d.block_size,
                d.serial.clone(),
                d.connections,
                (d.map, d.lock),
                d.bitmap.clone(),
                d.record.clone(),
                d.polling,
            )
        };
        file(self) == file(other)
    }

    /// Whether one can become the other without touching the session.
    pub(crate) fn same_session(&self, other: &Self) -> bool {
        let session = |d: &Self| (d.name.clone(), d.socket.clone(), d.mode, d.queues);
        self.same_file(other)
            && session(self) == session(other)
            && self.guest_memory == other.guest_memory
    }
}
