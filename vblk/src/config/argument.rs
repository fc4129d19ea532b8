//! `--disk PATH,socket=S,…`: the same disk as in a file, in one argument.
//!
//! The syntax is QEMU's: `key=value` or a flag, separated by commas; a comma within a value is
//! written twice. What comes first without a known key is
//! the path. Keys become those of `[[disk]]` and
//! go through the same types, so a value fails with the same words in both.

use serde::Deserialize;
use toml::{Table, Value};
use towpath_common::config::{ConfigError, Place};

use super::disk::DiskTable;

/// Flags, and the field and value of `[[disk]]` each stands for.
const FLAGS: [(&str, &str, Flag); 2] = [
    ("client", "mode", Flag::Text("client")),
    ("ro", "read_only", Flag::True),
];
/// Keys that take a text; the field has the same name, with `_` for `-`.
const TEXTS: [&str; 6] = ["path", "socket", "name", "serial", "cache", "guest-memory"];
/// Keys that take a whole number.
const NUMBERS: [&str; 4] = ["queues", "block-size", "weight", "cap"];

#[derive(Clone, Copy, Debug)]
enum Flag {
    Text(&'static str),
    True,
}

/// Every key and flag of `--disk`.
pub fn argument_keys() -> impl Iterator<Item = &'static str> {
    TEXTS
        .into_iter()
        .chain(NUMBERS)
        .chain(FLAGS.map(|(flag, ..)| flag))
}

/// Parses one `--disk` argument; `place` says which, for errors.
pub(super) fn parse(argument: &str, place: Place) -> Result<DiskTable, ConfigError> {
    let invalid = |message| ConfigError::Invalid {
        place: place.clone(),
        message,
    };
    let mut table = Table::new();
    for (index, item) in split(argument).into_iter().enumerate() {
        let (field, value) = match item.split_once('=') {
            None if index == 0 => ("path".to_owned(), Value::String(item)),
            Some((key, _)) if index == 0 && !argument_keys().any(|known| known == key) => {
                ("path".to_owned(), Value::String(item))
            }
            _ => setting(&item).map_err(invalid)?,
        };
        if table.insert(field.clone(), value).is_some() {
            return Err(invalid(format!("{field} is given twice")));
        }
    }
    if !table.contains_key("socket") {
        return Err(invalid(
            "there is no socket; write PATH,socket=SOCKET".to_owned(),
        ));
    }
    DiskTable::deserialize(Value::Table(table))
        .map_err(|error| invalid(error.message().trim().to_owned()))
}

/// One `key=value` or flag as a field of `[[disk]]`.
fn setting(item: &str) -> Result<(String, Value), String> {
    let Some((key, text)) = item.split_once('=') else {
        let flag = FLAGS.iter().find(|(flag, ..)| *flag == item);
        let (_, field, value) = flag.ok_or_else(|| unknown(item))?;
        let value = match value {
            Flag::Text(text) => Value::String((*text).to_owned()),
            Flag::True => Value::Boolean(true),
        };
        return Ok(((*field).to_owned(), value));
    };
    let value = if TEXTS.contains(&key) {
        Value::String(text.to_owned())
    } else if NUMBERS.contains(&key) {
        let number = text
            .parse()
            .map_err(|_| format!("{key}={text}: write a whole number"))?;
        Value::Integer(number)
    } else {
        return Err(unknown(item));
    };
    Ok((key.replace('-', "_"), value))
}

fn unknown(item: &str) -> String {
    let flags = FLAGS.map(|(flag, ..)| flag).join(", ");
    let keys = [&TEXTS[..], &NUMBERS[..]].concat().join("=, ");
    format!("{item:?} is not known here; use {keys}=, {flags} (a comma in a value is written ,,)")
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
