//! A change at run time: one thing added, set or removed, applied to the configuration in force
//! ([`Config::changed`]) and, to keep it, to the text of the file ([`edit`](super::edit::edit)).

use serde::{Deserialize, Serialize};
use toml::Table;
use towpath_common::config::argument::{Edit, read};
use towpath_common::config::{ConfigError, Name};

use super::{Config, Mirror, PORT, Port, StaticEntry};
use crate::mac::Mac;
use crate::vlan::Vid;

/// What is to change. Ports are tables with the keys of `[[port]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// A new port.
    PortAdd(Table),
    /// Some keys of a port.
    PortSet(PortEdit),
    /// A port or an uplink goes.
    PortRemove(Name),
    /// A new static address.
    FdbAdd(StaticEntry),
    /// A static address goes.
    FdbDel(FdbKey),
    /// A new mirror.
    MirrorAdd(Mirror),
    /// A mirror goes.
    MirrorDel(Name),
}

/// Changes to a port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortEdit {
    /// The port.
    pub name: Name,
    /// Keys and their new values. `access` takes `trunk` and `native` away, `trunk` takes `access`.
    #[serde(default)]
    pub set: Table,
    /// Keys that go back to their defaults.
    #[serde(default)]
    pub unset: Vec<String>,
}

/// What names a static address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdbKey {
    /// The address.
    pub mac: Mac,
    /// Its VLAN.
    pub vlan: Vid,
}

/// Why a change was refused.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// What would be in force does not hold together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The keys or values of a port are wrong.
    #[error("{0}")]
    Port(String),
    /// What is to change or go is not there.
    #[error("there is no {what}; {known}")]
    Unknown {
        /// What was named.
        what: String,
        /// What there is.
        known: String,
    },
}

impl ChangeError {
    fn unknown(kind: &str, name: impl std::fmt::Display, known: Vec<String>) -> Self {
        let known = match known.len() {
            0 => "there are none".to_owned(),
            _ => format!("there are: {}", known.join(", ")),
        };
        Self::Unknown {
            what: format!("{kind} {name}"),
            known,
        }
    }
}

impl PortEdit {
    /// What `port set NAME,…` asks for.
    ///
    /// # Errors
    /// A sentence that names the item and what is known.
    pub fn parse(argument: &str) -> Result<Self, String> {
        let Edit { mut set, unset } = PORT.edit(argument)?;
        let name = set
            .remove("name")
            .ok_or("there is no name; write NAME,OPTIONS")?;
        let name = name
            .try_into()
            .map_err(|error: toml::de::Error| error.message().to_owned())?;
        if set.is_empty() && unset.is_empty() {
            return Err("nothing is to change; write NAME,KEY=VALUE".to_owned());
        }
        Ok(Self { name, set, unset })
    }

    /// All keys that go: those named, and those that exclude the ones set.
    pub(super) fn gone(&self) -> Vec<&str> {
        let mut gone: Vec<&str> = self.unset.iter().map(String::as_str).collect();
        if self.set.contains_key("access") {
            gone.extend(["trunk", "native"]);
        }
        if self.set.contains_key("trunk") {
            gone.push("access");
        }
        if gone.contains(&"trunk") {
            gone.push("native");
        }
        gone
    }
}

impl Config {
    /// This configuration with `change`, if it is valid.
    ///
    /// # Errors
    /// [`ChangeError`]; then nothing is to change.
    pub fn changed(&self, change: &Change) -> Result<Self, ChangeError> {
        let mut new = self.clone();
        match change {
            Change::PortAdd(table) => new.ports.push(port(table.clone())?),
            Change::PortSet(edit) => new.set_port(edit)?,
            Change::PortRemove(name) => new.remove_port(name)?,
            Change::FdbAdd(entry) => new.fdb.push(entry.clone()),
            Change::FdbDel(key) => new.remove_entry(*key)?,
            Change::MirrorAdd(mirror) => new.mirrors.push(mirror.clone()),
            Change::MirrorDel(name) => new.remove_mirror(name)?,
        }
        Ok(new.checked()?)
    }

    fn set_port(&mut self, edit: &PortEdit) -> Result<(), ChangeError> {
        let known = self.port_names();
        let found = self.ports.iter_mut().find(|port| port.name == edit.name);
        let old = found.ok_or_else(|| ChangeError::unknown("port", &edit.name, known))?;
        let wrong = |error: toml::ser::Error| ChangeError::Port(error.to_string());
        let mut table = Table::try_from(&*old).map_err(wrong)?;
        for key in edit.gone() {
            table.remove(key);
        }
        table.extend(edit.set.clone());
        let new = port(table)?;
        if new.name != edit.name {
            let message = format!("port {} cannot change its name; add another", edit.name);
            return Err(ChangeError::Port(message));
        }
        *old = new;
        Ok(())
    }

    fn remove_port(&mut self, name: &Name) -> Result<(), ChangeError> {
        let known = self.port_names();
        let before = known.len();
        self.ports.retain(|port| port.name != *name);
        self.uplinks.retain(|uplink| uplink.name != *name);
        if self.ports.len() + self.uplinks.len() == before {
            return Err(ChangeError::unknown("port", name, known));
        }
        Ok(())
    }

    fn remove_entry(&mut self, key: FdbKey) -> Result<(), ChangeError> {
        let text = |mac: Mac, vlan: Vid| format!("{mac} vlan {vlan}");
        let known = self.fdb.iter().map(|entry| text(entry.mac, entry.vlan));
        let known: Vec<String> = known.collect();
        let keep = |entry: &StaticEntry| entry.mac != key.mac || entry.vlan != key.vlan;
        self.fdb.retain(keep);
        if self.fdb.len() == known.len() {
            let name = text(key.mac, key.vlan);
            return Err(ChangeError::unknown("static address", name, known));
        }
        Ok(())
    }

    fn remove_mirror(&mut self, name: &Name) -> Result<(), ChangeError> {
        let known = self.mirrors.iter().map(|mirror| mirror.name.to_string());
        let known: Vec<String> = known.collect();
        self.mirrors.retain(|mirror| mirror.name != *name);
        if self.mirrors.len() == known.len() {
            return Err(ChangeError::unknown("mirror", name, known));
        }
        Ok(())
    }

    fn port_names(&self) -> Vec<String> {
        let ports = self.ports.iter().map(|port| port.name.to_string());
        let uplinks = self.uplinks.iter().map(|uplink| uplink.name.to_string());
        ports.chain(uplinks).collect()
    }
}

/// A port of the keys of `[[port]]`.
fn port(table: Table) -> Result<Port, ChangeError> {
    read(table).map_err(ChangeError::Port)
}
