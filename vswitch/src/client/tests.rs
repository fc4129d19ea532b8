//! What the client commands ask for and print, against a daemon of a few routes.

use std::thread;

use axum::extract::{Json, Path, RawQuery};
use axum::http::StatusCode;
use axum::{Router, routing::get, routing::post};
use clap::Parser;
use serde_json::json;
use towpath_common::control::server::{self, Patience};
use towpath_common::control::{ControlSocket, Status};

use super::*;
use crate::cli::{Cli, Command};
use crate::report::tests::sample_port;

async fn one(Path(name): Path<String>) -> Answer<PortStatus> {
    match name.as_str() {
        "fw" => Answer::warning("odd", sample_port(1)),
        _ => Answer::failed(StatusCode::NOT_FOUND, "there is no such port"),
    }
}

/// Refuses each change and each look at addresses, and says what was asked.
async fn echo(Json(order): Json<serde_json::Value>) -> Answer<Diff> {
    Answer::failed(StatusCode::CONFLICT, order.to_string())
}

async fn asked(RawQuery(query): RawQuery) -> Answer<FdbTable> {
    Answer::failed(StatusCode::CONFLICT, query.unwrap_or_default())
}

/// A daemon on a thread that ends with the test process.
struct Running(tempfile::TempDir);

impl Running {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = ControlSocket::bind(&dir.path().join("c.sock")).unwrap();
        thread::spawn(move || {
            let list = || async { Answer::success("1 port", vec![sample_port(1)]) };
            let reload = || async { Answer::success("nothing changes", Diff::default()) };
            let routes = Router::new()
                .route("/v1/ports", get(list))
                .route("/v1/ports/{name}", get(one))
                .route("/v1/fdb", get(asked))
                .route("/v1/reload", post(reload))
                .route("/v1/change", post(echo));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let listener = socket.listener().unwrap();
            runtime
                .block_on(server::serve(listener, routes, Patience::default()))
                .unwrap();
        });
        Self(dir)
    }

    /// What a command prints, and how it ends.
    fn run(&self, line: &str) -> (String, Result<()>) {
        let control = self.0.path().join("c.sock");
        let words = ["vswitch"].into_iter().chain(line.split_whitespace());
        let words = words.chain(["--control", control.to_str().unwrap()]);
        let mut out = Vec::new();
        let result = match Cli::parse_from(words).command {
            Command::Port(command) => port(command, &mut out),
            Command::Uplink(command) => uplink(command, &mut out),
            Command::Fdb(command) => fdb(command, &mut out),
            Command::Mirror(command) => mirror(command, &mut out),
            Command::Reload { dry_run, target } => reload(&target, dry_run, &mut out),
            other => panic!("{other:?}"),
        };
        (String::from_utf8(out).unwrap(), result)
    }

    fn prints(&self, line: &str) -> String {
        let (text, result) = self.run(line);
        result.unwrap();
        text
    }

    fn fails(&self, line: &str) -> String {
        self.run(line).1.unwrap_err().to_string()
    }
}

#[test]
fn people_see_text() {
    let daemon = Running::start();
    assert_eq!(
        daemon.prints("port show"),
        report::port_list(&[sample_port(1)])
    );
    assert_eq!(daemon.prints("port show fw"), report::port(&sample_port(1)));
    assert_eq!(daemon.prints("reload"), "nothing changes\n");
    assert_eq!(daemon.fails("port show db"), "there is no such port");
}

#[test]
fn json_is_the_answer_whatever_it_says() {
    let daemon = Running::start();
    let answer: Answer<PortStatus> =
        serde_json::from_str(&daemon.prints("port show fw --json")).unwrap();
    assert_eq!(
        (answer.status, answer.data),
        (Status::Warning, Some(sample_port(1)))
    );
    let (text, result) = daemon.run("port show db --json");
    assert!(result.is_err());
    let answer: Answer<PortStatus> = serde_json::from_str(&text).unwrap();
    assert_eq!(answer.status, Status::Failed);
}

#[test]
fn orders_arrive_as_they_were_given() {
    let daemon = Running::start();
    let mac = "52:54:00:00:00:01";
    for (line, change) in [
        (
            "port add p,socket=/s,access=10",
            json!({"port_add": {"access": 10, "name": "p", "socket": "/s"}}),
        ),
        (
            "port set p,trunk=10:20,mac=",
            json!({"port_set": {"name": "p", "set": {"trunk": "10:20"}, "unset": ["mac"]}}),
        ),
        (
            "port set p,guards.mac_limit=off,guards.bpdu_guard=false,guards.byte_rate=",
            json!({"port_set": {
                "name": "p", "set": {"guards": {"bpdu_guard": false, "mac_limit": "off"}},
                "unset": ["guards.byte_rate"]
            }}),
        ),
        (
            "uplink add tap0,trunk=10:20,no-offloads",
            json!({"uplink_add": {"offloads": false, "tap": "tap0", "trunk": "10:20"}}),
        ),
        ("port remove p", json!({"port_remove": "p"})),
        (
            "fdb add 52:54:00:00:00:01 --port p",
            json!({"fdb_add": {"mac": mac, "port": "p", "vlan": 1}}),
        ),
        (
            "fdb del 52:54:00:00:00:01 --vlan 7",
            json!({"fdb_del": {"mac": mac, "vlan": 7}}),
        ),
        (
            "mirror add m --from a,b --to c --direction tx",
            json!({"mirror_add": {
                "direction": "tx", "from": ["a", "b"], "member": false, "name": "m", "to": "c",
                "vlans": null
            }}),
        ),
        ("mirror del m", json!({"mirror_del": "m"})),
    ] {
        let order = json!({"change": change, "persist": false}).to_string();
        assert_eq!(daemon.fails(line), order);
        let kept = json!({"change": change, "persist": true}).to_string();
        assert_eq!(daemon.fails(&format!("{line} --persist")), kept);
    }
    assert_eq!(
        daemon.fails("fdb show --vlan 7 --port p --mac 52:54:00:00:00:01"),
        "vlan=7&port=p&mac=52:54:00:00:00:01"
    );
}

#[test]
fn a_port_that_cannot_be_read_never_reaches_the_daemon() {
    let daemon = Running::start();
    let (_, result) = daemon.run("port add p,sock=/s");
    let error = result.unwrap_err();
    assert!(error.is::<Wrong>());
    let expected = "port \"p,sock=/s\": \"sock=/s\" is not known here; use name=";
    assert!(error.to_string().starts_with(expected), "{error}");
}

#[test]
fn a_daemon_that_is_not_there_is_named() {
    let words = "vswitch port show --control /nonexistent/c.sock".split(' ');
    let Command::Port(command) = Cli::parse_from(words).command else {
        panic!("not a port")
    };
    let error = port(command, &mut Vec::new()).unwrap_err().to_string();
    assert!(
        error.starts_with("no daemon is listening on /nonexistent/c.sock"),
        "{error}"
    );
}
