//! Every route over the socket, with requests made from the document and answers held against it.

use serde_json::{Value, json};
use towpath_common::testing::api::{Document, Probe};

use super::*;

const CASES: u32 = 60;
const PARTS: [&str; 4] = ["a", "b", "1", "zz"];
const WORDS: [&str; 8] = [
    "a",
    "b",
    "c",
    "/run/c",
    "52:54:00:00:00:09",
    "10M",
    "10,20-30",
    "off",
];

/// What the made-up data plane cannot do: it has no quarantined sessions, and nobody guesses the
/// number of a capture.
const NEVER: [(&str, &str); 3] = [
    ("delete", "/v1/captures/{id}"),
    ("get", "/v1/captures/{id}"),
    ("post", "/v1/ports/{name}/release"),
];

#[test]
fn whatever_is_asked_is_answered_as_the_document_says() {
    let running = Running::start();
    let socket = running.dir.path().join("c.sock");
    let served = Document::fetch(&socket).unwrap();
    let printed = document();
    assert_eq!(
        *served.value(),
        printed,
        "the program prints what is served"
    );
    let probe = Probe {
        socket: &socket,
        document: &served,
        parts: &PARTS,
        words: &WORDS,
        cases: CASES,
    };
    let seen = probe.run().unwrap_or_else(|wrong| panic!("{wrong}"));
    let never = seen.iter().filter(|(_, codes)| !codes.contains_key(&200));
    let never = never.map(|((method, path), _)| (method.as_str(), path.as_str()));
    assert_eq!(never.collect::<Vec<_>>(), NEVER);
}

#[test]
fn what_a_route_takes_the_document_takes_and_no_more() {
    let document = Document::new(document());
    let change = |change: Value| document.takes("post", "/v1/change", &json!({"change": change}));
    for good in [
        json!({"port_add": {"name": "c", "socket": "/run/c", "trunk": [10, "20-30"]}}),
        json!({"port_add": {"name": "c", "socket": "/run/c", "guards": {"mac_limit": "off"}}}),
        json!({"uplink_add": {"tap": "tap0"}}),
        json!({"fdb_add": {"mac": "52:54:00:00:00:09", "vlan": 1, "port": "a"}}),
        json!({"port_remove": "a"}),
    ] {
        assert_eq!(change(good.clone()), Ok(()), "{good}");
    }
    for bad in [
        json!({"port_add": {"name": "c"}}),
        json!({"port_add": {"name": "c", "socket": "/run/c", "queues": 0}}),
        json!({"port_grow": "a"}),
        json!({"port_remove": 7}),
    ] {
        assert!(change(bad.clone()).is_err(), "{bad}");
    }
    assert!(
        document
            .takes("post", "/v1/fdb/flush", &json!({"mtu": 1}))
            .is_err()
    );
}
