//! Every route over the socket, held against the document.

use serde_json::{Value, json};
use towpath_common::testing::api::{Document, Reply, ask};

use super::*;

/// A body that `path` takes, if it takes one.
fn order(method: &str, path: &str) -> Option<Value> {
    Some(match (method, path) {
        ("post", "/v1/disks/{name}" | "/v1/groups/{name}") => json!({"iops": 500}),
        ("post", "/v1/disks/{name}/resize") => json!({"size_bytes": 8_589_934_592_u64}),
        ("post", "/v1/disks/{name}/snapshot") => json!({"path": "/srv/copy.img"}),
        ("post", "/v1/disks/{name}/mirror") => json!({"fail": "2"}),
        ("post", "/v1/disks/{name}/backup") => json!({"to": "/srv/b.img"}),
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
    assert_eq!(
        served.0,
        document(),
        "the program prints what the daemon serves"
    );
    let mut done = 0;
    for (method, path) in served.operations() {
        let reply = asked(&running, &served, &method, &path, "a");
        done += usize::from(reply.code == 200);
        if path.contains('{') {
            asked(&running, &served, &method, &path, "zz");
            let broken = asked(&running, &served, &method, &path, "%ff");
            assert_eq!(broken.code, 400, "{method} {path}: {}", broken.body);
        }
    }
    // The made-up data plane has no groups, quarantined sessions or mirrors, and makes no copies.
    assert!(done >= 12, "{done} routes had something to show");
}

#[test]
fn what_a_route_does_not_take_the_document_does_not_either() {
    let document = Document(document());
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
