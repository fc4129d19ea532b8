//! What a reload or a change would do, for people and for the API.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::config::{Changes, Name, changed_keys, table_lines};
use towpath_common::control::compare::Difference;

use super::{Config, Port, Uplink};

/// The difference between the running configuration and another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// Keys of `[daemon]` and `[landlock]` and the `fdb_size` that changed, and take effect at the
    /// next start only.
    pub needs_restart: Vec<String>,
    /// Ports that go or are set up anew while a machine uses them: its session ends.
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
        [
            self.ports.lines("port", &self.disturbed),
            self.uplinks.lines("uplink", &[]),
            self.fdb.lines("fdb", &[]),
            self.mirrors.lines("mirror", &[]),
            table_lines("switch", &self.switch),
            table_lines("daemon, after a restart", &self.needs_restart),
        ]
        .concat()
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
        let landlock = changed_keys(&self.landlock, &new.landlock);
        needs_restart.extend(landlock.iter().map(|key| format!("landlock {key}")));
        needs_restart.extend(restart.iter().map(|key| format!("switch {key}")));
        Diff {
            ports: Changes::between_running(
                &self.ports,
                &new.ports,
                |port| port.name.clone(),
                Port::same_session,
            ),
            uplinks: Changes::between_running(
                &self.uplinks,
                &new.uplinks,
                |up| up.name.clone(),
                Uplink::same_interface,
            ),
            fdb: Changes::between(&self.fdb, &new.fdb, |entry| {
                format!("{} vlan {}", entry.mac, entry.vlan)
            }),
            mirrors: Changes::between(&self.mirrors, &new.mirrors, |one| one.name.clone()),
            switch,
            needs_restart,
            disturbed: Vec::new(),
        }
    }
}

impl Port {
    /// Whether one can become the other without touching the session.
    pub(crate) fn same_session(&self, other: &Self) -> bool {
        let session = |p: &Self| {
            (
                p.name.clone(),
                p.socket.clone(),
                p.mode,
                p.queues,
                p.mtu,
                p.offloads,
                // The card shows it.
                p.mac,
            )
        };
        session(self) == session(other)
    }
}

impl Uplink {
    /// Whether one can become the other without opening the interface again.
    pub(crate) fn same_interface(&self, other: &Self) -> bool {
        let interface = |u: &Self| (u.name.clone(), u.tap.clone(), u.queues, u.offloads);
        interface(self) == interface(other)
    }
}
