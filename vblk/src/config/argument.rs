//! `--disk PATH,socket=S,…`, `--group NAME,…`: the same disk or group as in a file, in one
//! argument.

use towpath_common::config::argument::{Flag, Syntax, read};
use towpath_common::config::{ConfigError, Place};

use super::disk::DiskTable;
use super::qos::GroupTable;

/// `--disk`.
const DISK: Syntax = Syntax {
    first: "path",
    texts: &[
        "path",
        "socket",
        "name",
        "uuid",
        "serial",
        "cache",
        "resident",
        "guest-memory",
        "map",
        "lock",
        "bitmap",
        "record",
        "resync-rate",
        "bandwidth",
        "bandwidth-burst",
        "group",
        "on-error",
        "polling",
    ],
    lists: &[],
    numbers: &[
        "queues",
        "connections",
        "block-size",
        "weight",
        "cap",
        "iops",
        "iops-burst",
        "prefer",
        "mirror-timeout",
    ],
    switches: &[],
    flags: &[
        ("client", "mode", Flag::Text("client")),
        ("ro", "read_only", Flag::Bool(true)),
        ("shrink", "shrink", Flag::Bool(true)),
    ],
};

/// `--group`.
const GROUP: Syntax = Syntax {
    first: "name",
    texts: &["name", "bandwidth", "bandwidth-burst"],
    lists: &[],
    numbers: &["iops", "iops-burst"],
    switches: &[],
    flags: &[],
};

/// Parses one `--group` argument; `place` says which, for errors.
pub(super) fn parse_group(argument: &str, place: Place) -> Result<GroupTable, ConfigError> {
    let table = GROUP.table(argument).and_then(read);
    table.map_err(|message| ConfigError::Invalid { place, message })
}

/// Every key and flag of `--disk`.
pub fn argument_keys() -> impl Iterator<Item = &'static str> {
    DISK.keys()
}

/// Parses one `--disk` argument; `place` says which, for errors.
pub(super) fn parse(argument: &str, place: Place) -> Result<DiskTable, ConfigError> {
    let table = DISK.table(argument).and_then(|table| {
        if !table.contains_key("socket") {
            return Err("there is no socket; write PATH,socket=SOCKET".to_owned());
        }
        read(table)
    });
    table.map_err(|message| ConfigError::Invalid { place, message })
}
