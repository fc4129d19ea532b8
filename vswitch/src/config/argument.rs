//! `--port NAME,socket=S,…` and `--uplink TAP,…`: the keys of `[[port]]` and `[[uplink]]`.

use serde::de::DeserializeOwned;
use towpath_common::config::argument::{Flag, Syntax, read};
use towpath_common::config::{ConfigError, Place};

/// `--port`.
pub const PORT: Syntax = Syntax {
    first: "name",
    texts: &[
        "name",
        "socket",
        "mode",
        "trunk",
        "mac",
        "guards.mac_limit",
        "guards.broadcast_limit",
        "guards.multicast_limit",
        "guards.unknown_limit",
        "guards.packet_rate",
        "guards.packet_burst",
        "guards.byte_rate",
        "guards.byte_burst",
    ],
    lists: &["macs"],
    numbers: &["access", "native", "queues", "mtu", "weight", "cap"],
    switches: &["guards.bpdu_guard", "guards.source_guard"],
    flags: &[
        ("client", "mode", Flag::Text("client")),
        ("isolated", "isolated", Flag::Bool(true)),
        ("no-offloads", "offloads", Flag::Bool(false)),
    ],
};

/// `--uplink`.
pub const UPLINK: Syntax = Syntax {
    first: "tap",
    texts: &[
        "tap",
        "name",
        "trunk",
        "guards.mac_limit",
        "guards.broadcast_limit",
        "guards.multicast_limit",
        "guards.unknown_limit",
        "guards.packet_rate",
        "guards.packet_burst",
        "guards.byte_rate",
        "guards.byte_burst",
    ],
    lists: &[],
    numbers: &["access", "native", "queues", "mtu", "weight", "cap"],
    switches: &["guards.bpdu_guard"],
    flags: &[("no-offloads", "offloads", Flag::Bool(false))],
};

/// Parses all uses of one option.
pub(super) fn parse_all<T: DeserializeOwned>(
    option: &'static str,
    syntax: &Syntax,
    arguments: &[String],
) -> Result<Vec<(Place, T)>, ConfigError> {
    let one = |(index, argument): (usize, &String)| {
        let place = Place::Argument {
            option,
            ordinal: index + 1,
        };
        let value = syntax.table(argument).and_then(read);
        match value {
            Ok(value) => Ok((place, value)),
            Err(message) => Err(ConfigError::Invalid { place, message }),
        }
    };
    arguments.iter().enumerate().map(one).collect()
}
