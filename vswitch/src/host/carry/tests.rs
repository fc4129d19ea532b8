//! What predecessors of this build left, byte for byte, and what one to come may leave.

use std::path::Path;

use serde_json::{Value, json};
use towpath_common::testing::bed::{Scratch, eventually};
use towpath_common::testing::net::{NetClient, NetOptions};

use super::*;
use crate::config::{Config, Sources};
use crate::service::{FdbFilter, Service};

/// The ledger `counters` of a switch of version 0.1 with two ports of a pair of queues each.
const COUNTERS_1: &str = include_str!("counters-1.json");
/// Its ledger `addresses`.
const ADDRESSES_1: &str = include_str!("addresses-1.json");

const PORTS: [&str; 2] = ["a", "b"];

fn load(dir: &Path) -> Config {
    let file = dir.join("vswitch.toml");
    let port = |name: &str| {
        let socket = dir.join(name);
        format!("[[port]]\nname = {name:?}\nsocket = {socket:?}\nqueues = 1\n")
    };
    std::fs::write(&file, PORTS.map(port).concat()).unwrap();
    let sources = Sources {
        file: Some(file),
        ..Sources::default()
    };
    Config::load(&sources).unwrap()
}

/// Who keeps what a predecessor wrote into its ledgers.
fn left(counters: &[u8], addresses: &[u8]) -> Keeper {
    let keeper = Keeper::here(Vec::new());
    for (name, text) in [("counters", counters), ("addresses", addresses)] {
        let (mut ledger, _) = Ledger::open(&keeper, name).unwrap().unwrap();
        ledger.write(text).unwrap();
    }
    Keeper::here(keeper.shelf())
}

/// What is in a ledger now.
fn written(keeper: &Keeper, name: &str) -> Value {
    let next = Keeper::here(keeper.shelf());
    let (_, text) = Ledger::open(&next, name).unwrap().unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// A switch that goes on with that, and serves both ports.
fn follow(scratch: &Scratch, counters: &[u8], addresses: &[u8]) -> (Host, Keeper) {
    let config = load(scratch.path());
    let keeper = left(counters, addresses);
    let host = Host::start(&config, keeper.clone()).unwrap();
    host.apply(&config).unwrap();
    for name in PORTS {
        let options = NetOptions::default();
        let guest = NetClient::connect(&scratch.path().join(name), options).unwrap();
        let linked = || {
            let ports = host.ports();
            ports.iter().any(|p| p.name.as_str() == name && p.link)
        };
        eventually("the port's link", linked);
        drop(guest);
        eventually("its end", || !linked());
    }
    (host, keeper)
}

fn known(host: &Host) -> Vec<(u16, String, String)> {
    let all = host.fdb(&FdbFilter::default()).into_iter();
    all.map(|e| (e.vlan.get(), e.mac.to_string(), e.port.to_string()))
        .collect()
}

#[test]
fn ledgers_of_the_first_build_are_read() {
    let scratch = Scratch::new();
    let (host, keeper) = follow(&scratch, COUNTERS_1.as_bytes(), ADDRESSES_1.as_bytes());
    let ports = host.ports();
    let a = &ports[0].stats;
    // Those of the predecessor, and one of this test.
    assert_eq!(a.connections, 3);
    assert_eq!((a.queues[0].rx.packets, a.queues[0].rx.bytes), (17, 1088));
    assert_eq!((a.queues[0].tx.packets, a.queues[0].tx.notified), (5, 2));
    assert_eq!(a.discards["port_down"], 3);
    assert_eq!(a.ring_broken["bad_head"], 1);
    let vlan = a.vlans[0];
    let flow = (
        vlan.rx_packets,
        vlan.rx_bytes,
        vlan.tx_packets,
        vlan.tx_bytes,
    );
    assert_eq!((vlan.vlan.get(), flow), (1, (17, 1088, 5, 320)));
    assert_eq!(host.fdb_stats().learned, 9);
    assert_eq!(host.fdb_stats().moved, 4);
    let expected = [
        (1, "02:54:00:00:00:01".to_owned(), "a".to_owned()),
        (1, "02:54:00:00:00:02".to_owned(), "b".to_owned()),
        (7, "02:54:00:00:00:01".to_owned(), "b".to_owned()),
    ];
    assert_eq!(known(&host), expected);
    // What is written now is the same with a version: another shape would be another version.
    host.ports();
    let mut before: Value = serde_json::from_str(COUNTERS_1).unwrap();
    before["version"] = VERSION.into();
    for port in before["ports"].as_object_mut().unwrap().values_mut() {
        let connections = port["connections"].as_u64().unwrap();
        port["connections"] = (connections + 1).into();
    }
    let mut now = written(&keeper, "counters");
    for book in [&mut before, &mut now] {
        for port in PORTS {
            // Where the rings of this test's guest stand.
            for queue in book["ports"][port]["queues"].as_array_mut().unwrap() {
                let queue = queue.as_object_mut().unwrap();
                for position in ["next_avail", "next_used"] {
                    assert!(queue.remove(position).is_some());
                }
            }
        }
    }
    assert_eq!(now, before);
    drop(host);
    let mut before: Value = serde_json::from_str(ADDRESSES_1).unwrap();
    before["version"] = VERSION.into();
    let mut now = written(&keeper, "addresses");
    for book in [&mut before, &mut now] {
        let entries = book["entries"].as_array_mut().unwrap();
        for entry in entries.iter_mut() {
            entry[3] = json!("its age");
        }
        entries.sort_by_key(Value::to_string);
    }
    assert_eq!(now, before);
}

#[test]
fn ledgers_of_a_later_version_are_refused_and_no_port_is_lost() {
    let later = json!({"version": VERSION + 1, "ports": "said in another way"}).to_string();
    let why = read::<Book>(later.as_bytes()).unwrap_err().to_string();
    let expected = format!(
        "it has version {}, this build reads up to {VERSION}",
        VERSION + 1
    );
    assert!(why.contains(&expected), "{why}");
    // Nor does one that is damaged harm anybody.
    for text in [later.as_bytes(), b"{\"ports\": 7}", b"\xff"] {
        let scratch = Scratch::new();
        let (host, keeper) = follow(&scratch, text, text);
        let ports = host.ports();
        assert!(ports.iter().all(|port| port.stats.connections == 1));
        assert_eq!(known(&host), []);
        assert_eq!(written(&keeper, "counters")["version"], VERSION);
    }
}

#[test]
fn what_a_ledger_says_beyond_what_is_known_is_left() {
    let more = json!({"version": VERSION, "fdb": {"learned": 3, "dreamt": 5}, "news": []});
    let book = read::<Book>(more.to_string().as_bytes()).unwrap();
    assert_eq!(counters_of(&book.fdb).learned, 3);
}
