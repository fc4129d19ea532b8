//! Every route over the socket, with requests made from the document and answers held against it.

use serde_json::json;
use towpath_common::testing::api::{Document, Probe};

use super::*;

const CASES: u32 = 60;
const PARTS: [&str; 3] = ["a", "b", "zz"];
const WORDS: [&str; 4] = ["a", "10M", "500K", "/srv/b.img"];

/// What the made-up data plane cannot do: it has no groups, mirrors or quarantined sessions, and
/// makes no backups.
const NEVER: [(&str, &str); 6] = [
    ("get", "/v1/disks/{name}/backup"),
    ("post", "/v1/disks/{name}/backup"),
    ("post", "/v1/disks/{name}/backup/cancel"),
    ("post", "/v1/disks/{name}/mirror"),
    ("post", "/v1/disks/{name}/release"),
    ("post", "/v1/groups/{name}"),
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
fn what_a_route_does_not_take_the_document_does_not_either() {
    let document = Document::new(document());
    for (path, body) in [
        ("/v1/disks/{name}", json!({"size": 1})),
        ("/v1/disks/{name}", json!({"iops": "many"})),
        ("/v1/disks/{name}/snapshot", json!({})),
        ("/v1/reload", json!({"dry_run": 1})),
    ] {
        let verdict = document.takes("post", path, &body);
        assert!(verdict.is_err(), "{path} {body}");
    }
}
