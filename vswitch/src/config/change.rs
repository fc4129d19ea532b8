//! A change at run time: one thing added, set or removed, applied to the configuration in force
//! ([`Config::changed`]) and, to keep it, to the text of the file ([`edit`](super::edit::edit)).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use towpath_common::config::argument::{Edit, read};
use towpath_common::config::{ConfigError, Name};

use super::{Config, Mirror, PORT, Port, StaticEntry, Uplink};
use crate::mac::Mac;
use crate::vlan::Vid;

/// What is to change. Ports are tables with the keys of `[[port]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// A new port.
    PortAdd(#[schemars(with = "Port")] Table),
    /// A new uplink; a table with the keys of `[[uplink]]`.
    UplinkAdd(#[schemars(with = "Uplink")] Table),
    /// Some keys of a port or an uplink.
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

/// Changes to a port or an uplink.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortEdit {
    /// The port.
    pub name: Name,
    /// Keys and their new values; of a table, such as `guards`, those that are named. `access`
    /// takes `trunk` and `native` away, `trunk` takes `access`.
    #[serde(default)]
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    pub set: Table,
    /// Keys that go back to their defaults, such as `mac` or `guards.mac_limit`.
    #[serde(default)]
    pub unset: Vec<String>,
}

/// What names a static address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

impl PortEdit {
    /// The keys of a port or an uplink after the change.
    fn apply(&self, old: &impl Serialize) -> Result<Table, ChangeError> {
        let wrong = |error: toml::ser::Error| ChangeError::Port(error.to_string());
        let mut table = Table::try_from(old).map_err(wrong)?;
        for key in self.gone() {
            match key.split_once('.') {
                None => drop(table.remove(key)),
                Some((outer, inner)) => {
                    if let Some(Value::Table(within)) = table.get_mut(outer) {
                        within.remove(inner);
                    }
                }
            }
        }
        for (key, value) in &self.set {
            match (table.get_mut(key), value) {
                (Some(Value::Table(old)), Value::Table(new)) => old.extend(new.clone()),
                _ => drop(table.insert(key.clone(), value.clone())),
            }
        }
        Ok(table)
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
            Change::UplinkAdd(table) => new.uplinks.push(uplink(table.clone())?),
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
        let name = &edit.name;
        let found = if let Some(old) = self.ports.iter_mut().find(|p| p.name == *name) {
            *old = port(edit.apply(&*old)?)?;
            &old.name
        } else if let Some(old) = self.uplinks.iter_mut().find(|u| u.name == *name) {
            *old = uplink(edit.apply(&*old)?)?;
            &old.name
        } else {
            return Err(ChangeError::unknown("port", name, known));
        };
        if found != name {
            let message = format!("port {name} cannot change its name; add another");
            return Err(ChangeError::Port(message));
        }
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

/// An uplink of the keys of `[[uplink]]`.
fn uplink(table: Table) -> Result<Uplink, ChangeError> {
    read(table).map_err(ChangeError::Port)
}
