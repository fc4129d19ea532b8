//! Writes a [`Change`] into the text of a configuration file; comments, order and everything else
//! stay as they are.

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml_edit::{ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};
use towpath_common::config::Name;

use super::change::{Change, PortEdit};

/// Why a file cannot be edited.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// It is not TOML.
    #[error("the file cannot be read: {0}")]
    Syntax(#[from] toml_edit::TomlError),
    /// It has something else where a list of tables is expected.
    #[error("{0} in the file is not a list of tables; write it as [[{0}]]")]
    NotTables(&'static str),
    /// What is to change or go is not in the file.
    #[error(
        "{0} is not in the file: it came from the command line or from a change that was not kept"
    )]
    NotThere(String),
    /// A value that TOML cannot express.
    #[error("it cannot be written as TOML: {0}")]
    Value(#[from] toml::ser::Error),
}

/// The text of the file with `change`.
///
/// # Errors
/// [`EditError`].
pub fn edit(text: &str, change: &Change) -> Result<String, EditError> {
    let mut document: DocumentMut = text.parse()?;
    let root = document.as_table_mut();
    match change {
        Change::PortAdd(port) => append(root, "port", port)?,
        Change::UplinkAdd(uplink) => append(root, "uplink", uplink)?,
        Change::PortSet(edit) => set(root, edit)?,
        Change::PortRemove(name) => {
            let port = |table: &Table| is_port(table, name);
            let uplink = |table: &Table| is_uplink(table, name);
            if !remove(root, "port", port)? && !remove(root, "uplink", uplink)? {
                return Err(EditError::NotThere(format!("port {name}")));
            }
        }
        Change::FdbAdd(entry) => append(root, "fdb", &plain(entry)?)?,
        Change::FdbDel(key) => {
            let is_it = |table: &Table| {
                let mac = table.get("mac").and_then(Item::as_str);
                let vlan = table.get("vlan").map_or(Some(1), Item::as_integer);
                mac.and_then(|mac| mac.parse().ok()) == Some(key.mac)
                    && vlan == Some(key.vlan.get().into())
            };
            if !remove(root, "fdb", is_it)? {
                return Err(EditError::NotThere(format!(
                    "{} vlan {}",
                    key.mac, key.vlan
                )));
            }
        }
        Change::MirrorAdd(mirror) => append(root, "mirror", &plain(mirror)?)?,
        Change::MirrorDel(name) => {
            if !remove(root, "mirror", |table| named(table, "name", name))? {
                return Err(EditError::NotThere(format!("mirror {name}")));
            }
        }
    }
    Ok(document.to_string())
}

/// The keys of `value` without those that mean the same if they are left out.
fn plain<T>(value: &T) -> Result<toml::Table, EditError>
where
    T: Serialize + DeserializeOwned + PartialEq,
{
    let all = toml::Table::try_from(value)?;
    let mut kept = all.clone();
    for (key, written) in all {
        kept.remove(&key);
        if kept.clone().try_into::<T>().ok().as_ref() != Some(value) {
            kept.insert(key, written);
        }
    }
    Ok(kept)
}

/// The tables `[[key]]`, if there are any.
fn tables<'a>(
    root: &'a mut Table,
    key: &'static str,
) -> Result<Option<&'a mut ArrayOfTables>, EditError> {
    match root.get_mut(key) {
        None => Ok(None),
        Some(item) => match item.as_array_of_tables_mut() {
            Some(tables) => Ok(Some(tables)),
            None => Err(EditError::NotTables(key)),
        },
    }
}

fn named(table: &Table, key: &str, name: &Name) -> bool {
    table.get(key).and_then(Item::as_str) == Some(name.as_str())
}

fn is_port(table: &Table, name: &Name) -> bool {
    named(table, "name", name)
}

/// An uplink is called like its interface, unless it says otherwise.
fn is_uplink(table: &Table, name: &Name) -> bool {
    if table.contains_key("name") {
        return named(table, "name", name);
    }
    let tap = table.get("tap").and_then(Item::as_str);
    tap.map(Name::sanitized).as_ref() == Some(name)
}

/// Adds `[[key]]` at the end.
fn append(root: &mut Table, key: &'static str, keys: &toml::Table) -> Result<(), EditError> {
    let mut table = Table::new();
    // What it is first, as one writes it.
    let first = |(key, _): &(&String, _)| *key == "name" || *key == "tap";
    let (name, rest): (Vec<_>, Vec<_>) = keys.iter().partition(first);
    for (key, value) in name.into_iter().chain(rest) {
        table.insert(key, Item::Value(value_of(value)));
    }
    if let Some(tables) = tables(root, key)? {
        tables.push(table);
        return Ok(());
    }
    // A blank line before what stands there for the first time; toml_edit adds it for the rest.
    let mut tables = ArrayOfTables::new();
    tables.push(table);
    root.insert(key, Item::ArrayOfTables(tables));
    Ok(())
}

/// Removes the first `[[key]]` that `is_it`; says whether there was one.
fn remove(
    root: &mut Table,
    key: &'static str,
    is_it: impl Fn(&Table) -> bool,
) -> Result<bool, EditError> {
    let Some(tables) = tables(root, key)? else {
        return Ok(false);
    };
    let Some(index) = tables.iter().position(is_it) else {
        return Ok(false);
    };
    tables.remove(index);
    Ok(true)
}

fn set(root: &mut Table, edit: &PortEdit) -> Result<(), EditError> {
    let name = &edit.name;
    let mut kind = "uplink";
    if let Some(ports) = tables(root, "port")?
        && ports.iter().any(|table| is_port(table, name))
    {
        kind = "port";
    }
    let is_it = |table: &&mut Table| match kind {
        "port" => is_port(table, name),
        _ => is_uplink(table, name),
    };
    let found = tables(root, kind)?.and_then(|tables| tables.iter_mut().find(is_it));
    let missing = || EditError::NotThere(format!("port {name}"));
    let table = found.ok_or_else(missing)?;
    for key in edit.gone() {
        match key.split_once('.') {
            None => drop(table.remove(key)),
            Some((outer, inner)) => {
                if let Some(within) = table.get_mut(outer).and_then(Item::as_table_like_mut) {
                    within.remove(inner);
                }
            }
        }
    }
    for (key, value) in &edit.set {
        let within = table.get_mut(key).and_then(Item::as_table_like_mut);
        match (within, value) {
            (Some(within), toml::Value::Table(values)) => {
                values
                    .iter()
                    .for_each(|(key, value)| put(within, key, value));
            }
            _ => put(table, key, value),
        }
    }
    Ok(())
}

/// Gives a key its value; the comment behind the old one stays.
fn put(table: &mut dyn TableLike, key: &str, value: &toml::Value) {
    let mut value = value_of(value);
    if let Some(old) = table.get(key).and_then(Item::as_value) {
        *value.decor_mut() = old.decor().clone();
    }
    table.insert(key, Item::Value(value));
}

fn value_of(value: &toml::Value) -> Value {
    match value {
        toml::Value::String(text) => text.as_str().into(),
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Float(number) => (*number).into(),
        toml::Value::Boolean(yes) => (*yes).into(),
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(items) => items.iter().map(value_of).collect(),
        toml::Value::Table(table) => {
            let mut inline = InlineTable::new();
            for (key, value) in table {
                inline.insert(key, value_of(value));
            }
            Value::InlineTable(inline)
        }
    }
}
