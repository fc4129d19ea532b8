//! Every route over the socket, held against the document.

use serde_json::{Value, json};
use towpath_common::testing::api::{Document, Reply, ask};

use super::*;

/// A body that `path` takes, if it takes one.
fn order(method: &str, path: &str) -> Option<Value> {
    Some(match (method, path) {
        ("post", "/v1/change") => {
            json!({"change": {"port_set": {"name": "a", "set": {"access": 7}}}})
        }
        ("post", "/v1/fdb/flush") => json!({"vlan": 1, "port": "a"}),
        ("post", "/v1/reload") => json!({"dry_run": true}),
        _ => return None,
    })
}

/// Asks for `path` with its variable filled in; the answer is as the document says.
fn asked(running: &Running, document: &Document, method: &str, path: &str, part: &str) -> Reply {
    let target = path.replace("{name}", part);
    let body = order(method, path);
    if let Some(body) = &body {
        assert_eq!(
            document.takes(method, path, body),
            Ok(()),
            "{method} {path}"
        );
    }
    let socket = running.dir.path().join("c.sock");
    let reply = ask(&socket, method, &target, body.as_ref()).unwrap();
    let verdict = document.gives(method, path, &reply);
    assert_eq!(
        verdict,
        Ok(()),
        "{method} {target}: {} {}",
        reply.code,
        reply.body
    );
    reply
}

#[test]
fn every_route_of_the_document_answers_as_it_says() {
    let running = Running::start();
    let served = Document::fetch(&running.dir.path().join("c.sock")).unwrap();
    for (method, path) in served.operations() {
        let reply = asked(&running, &served, &method, &path, "a");
        if path.contains('{') {
            let unknown = asked(&running, &served, &method, &path, "zz");
            assert_eq!(unknown.code, 404, "{method} {path}: {}", unknown.body);
            let broken = asked(&running, &served, &method, &path, "%ff");
            assert_eq!(broken.code, 400, "{method} {path}: {}", broken.body);
        }
        // No session is quarantined.
        let code = if path.ends_with("/release") { 404 } else { 200 };
        assert_eq!(reply.code, code, "{method} {path}: {}", reply.body);
    }
    let reply = ask(
        &running.dir.path().join("c.sock"),
        "GET",
        "/v1/fdb?vlan=x",
        None,
    )
    .unwrap();
    assert_eq!(reply.code, 400);
    assert_eq!(
        served.gives("get", "/v1/fdb", &reply),
        Ok(()),
        "{}",
        reply.body
    );
}

/// What looks at frames has tests of its own ([`crate::host`]); here is what the program prints.
#[test]
fn the_document_is_of_all_routes() {
    let running = Running::start();
    let served = Document::fetch(&running.dir.path().join("c.sock")).unwrap();
    let printed = Document(document());
    let mut more = printed.operations();
    more.retain(|operation| !served.operations().contains(operation));
    more.sort();
    let expected = [
        ("delete", "/v1/captures/{id}"),
        ("get", "/v1/captures"),
        ("get", "/v1/captures/{id}"),
        ("get", "/v1/why"),
        ("post", "/v1/captures"),
    ];
    assert_eq!(more, expected.map(|(m, p)| (m.to_owned(), p.to_owned())));
}

#[test]
fn what_a_route_takes_the_document_takes_and_no_more() {
    let document = Document(document());
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
