//! `--disk PATH,socket=S,…`, `--port NAME,socket=S,…`: a table of the file, in one argument.
//!
//! The syntax is QEMU's: `key=value` or a flag, separated by commas; a comma within a value is
//! written twice. What comes first without a known key is the [`Syntax::first`] field. Keys become
//! those of the table and go through the same types, so a value fails with the same words in both.
//! A key with a dot is one of a table within the table, as in TOML.

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// What one option takes.
#[derive(Clone, Copy, Debug)]
pub struct Syntax {
    /// The field that may come first without its key, such as `path`.
    pub first: &'static str,
    /// Keys that take a text; the field has the same name, with `_` for `-`.
    pub texts: &'static [&'static str],
    /// Keys that take a whole number.
    pub numbers: &'static [&'static str],
    /// Keys that take several texts, with `+` between them.
    pub lists: &'static [&'static str],
    /// Keys that take true or false.
    pub switches: &'static [&'static str],
    /// Flags, and the field and value each stands for.
    pub flags: &'static [(&'static str, &'static str, Flag)],
}

/// What a flag stands for.
#[derive(Clone, Copy, Debug)]
pub enum Flag {
    /// A text.
    Text(&'static str),
    /// A truth value.
    Bool(bool),
}

/// What an argument does to a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edit {
    /// Fields and their new values.
    pub set: Table,
    /// Fields that go back to their defaults.
    pub unset: Vec<String>,
}

impl Syntax {
    /// Every key and flag.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        let flags = self.flags.iter().map(|(flag, ..)| *flag);
        self.with_values().chain(flags)
    }

    /// Every key that takes a value.
    fn with_values(&self) -> impl Iterator<Item = &'static str> {
        let keys = self.texts.iter().chain(self.lists).chain(self.numbers);
        keys.chain(self.switches).copied()
    }

    /// The fields that `argument` sets.
    ///
    /// # Errors
    /// A sentence that names the item and what is known here.
    pub fn table(&self, argument: &str) -> Result<Table, String> {
        self.edit(argument)
            .and_then(|edit| match edit.unset.first() {
                Some(field) => Err(format!("{field} has no value; write one, or leave it out")),
                None => Ok(edit.set),
            })
    }

    /// The fields that `argument` sets and, by `key=`, takes away.
    ///
    /// # Errors
    /// As [`Syntax::table`].
    pub fn edit(&self, argument: &str) -> Result<Edit, String> {
        let mut table = Table::new();
        let mut unset = Vec::new();
        for (index, item) in split(argument).into_iter().enumerate() {
            let key = item.strip_suffix('=');
            if let Some(key) = key.filter(|key| self.keys().any(|known| known == *key)) {
                unset.push(key.replace('-', "_"));
                continue;
            }
            let first = || (self.first.to_owned(), Value::String(item.clone()));
            let (field, value) = match item.split_once('=') {
                None if index == 0 => first(),
                Some((key, _)) if index == 0 && !self.keys().any(|known| known == key) => first(),
                _ => self.setting(&item)?,
            };
            if !insert(&mut table, &field, value) {
                return Err(format!("{field} is given twice"));
            }
        }
        Ok(Edit { set: table, unset })
    }

    /// One `key=value` or flag as a field.
    fn setting(&self, item: &str) -> Result<(String, Value), String> {
        let Some((key, text)) = item.split_once('=') else {
            let flag = self.flags.iter().find(|(flag, ..)| *flag == item);
            let (_, field, value) = flag.ok_or_else(|| self.unknown(item))?;
            let value = match value {
                Flag::Text(text) => Value::String((*text).to_owned()),
                Flag::Bool(yes) => Value::Boolean(*yes),
            };
            return Ok(((*field).to_owned(), value));
        };
        let value = if self.texts.contains(&key) {
            Value::String(text.to_owned())
        } else if self.lists.contains(&key) {
            let parts = text.split('+').map(|part| Value::String(part.to_owned()));
            Value::Array(parts.collect())
        } else if self.numbers.contains(&key) {
            let number = text
                .parse()
                .map_err(|_| format!("{key}={text}: write a whole number"))?;
            Value::Integer(number)
        } else if self.switches.contains(&key) {
            let yes = text
                .parse()
                .map_err(|_| format!("{key}={text}: write true or false"))?;
            Value::Boolean(yes)
        } else {
            return Err(self.unknown(item));
        };
        Ok((key.replace('-', "_"), value))
    }

    fn unknown(&self, item: &str) -> String {
        // Those of one table are many, and one of them tells where to look for the others.
        let mut keys: Vec<&str> = self.with_values().collect();
        keys.dedup_by_key(|key| key.split_once('.').map_or(*key, |(table, _)| table));
        let keys = keys.join("=, ");
        let flags = self.flags.iter().map(|(flag, ..)| *flag);
        let flags = flags.collect::<Vec<_>>().join(", ");
        format!(
            "{item:?} is not known here; use {keys}=, {flags} (a comma in a value is written ,,)"
        )
    }
}

/// Puts a field into the table, or into the table within it that a dot in its name speaks of; false
/// if it is there already.
fn insert(table: &mut Table, field: &str, value: Value) -> bool {
    let Some((outer, inner)) = field.split_once('.') else {
        return table.insert(field.to_owned(), value).is_none();
    };
    let within = table
        .entry(outer)
        .or_insert_with(|| Value::Table(Table::new()));
    match within {
        Value::Table(within) => within.insert(inner.to_owned(), value).is_none(),
        _ => false,
    }
}

/// The fields as a value of the file's type.
///
/// # Errors
/// The sentence that the file would be refused with.
pub fn read<T: DeserializeOwned>(table: Table) -> Result<T, String> {
    T::deserialize(Value::Table(table)).map_err(|error| error.message().trim().to_owned())
}

/// Splits at single commas; two commas are one comma of the text.
fn split(argument: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut rest = argument.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            items.push(String::new());
        } else if let Some(item) = items.last_mut() {
            item.push(c);
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNTAX: Syntax = Syntax {
        first: "name",
        texts: &["name", "guest-memory"],
        lists: &["macs"],
        numbers: &["queues"],
        switches: &["guards.bpdu", "guards.mac-limit"],
        flags: &[
            ("client", "mode", Flag::Text("client")),
            ("ro", "read_only", Flag::Bool(true)),
        ],
    };

    #[test]
    fn an_argument_becomes_a_table() {
        let table = SYNTAX.table("a,,b=c,guest-memory=auto,queues=2,client,ro,macs=1:2+3:4");
        let expected = "name = \"a,b=c\"\nguest_memory = \"auto\"\nqueues = 2\n\
                        mode = \"client\"\nread_only = true\n\
                        macs = [\"1:2\", \"3:4\"]";
        assert_eq!(table.unwrap(), toml::from_str(expected).unwrap());
    }

    #[test]
    fn a_key_with_a_dot_is_in_a_table_within() {
        let edit = SYNTAX
            .edit("a,guards.bpdu=false,guards.mac-limit=")
            .unwrap();
        let expected = "name = \"a\"\nguards.bpdu = false";
        assert_eq!(edit.set, toml::from_str(expected).unwrap());
        assert_eq!(edit.unset, ["guards.mac_limit"]);
    }

    #[test]
    fn a_key_without_a_value_is_taken_away() {
        let edit = SYNTAX.edit("a,queues=,client").unwrap();
        assert_eq!(edit.unset, ["queues"]);
        assert_eq!(edit.set.len(), 2);
    }

    #[test]
    fn what_is_not_known_is_answered_with_what_is() {
        for (argument, message) in [
            (
                "a,que=1",
                "\"que=1\" is not known here; use name=, guest-memory=, macs=, \
                 queues=, guards.bpdu=, client, ro (a comma in a value is written ,,)",
            ),
            ("a,name=b", "name is given twice"),
            ("a,queues=two", "queues=two: write a whole number"),
            ("a,guards.bpdu=no", "guards.bpdu=no: write true or false"),
            (
                "a,guards.bpdu=true,guards.bpdu=true",
                "guards.bpdu is given twice",
            ),
            (
                "a,queues=",
                "queues has no value; write one, or leave it out",
            ),
        ] {
            assert_eq!(SYNTAX.table(argument).unwrap_err(), message);
        }
    }
}
