//! The API over a real socket, of a daemon that is told to change nothing, on whatever host this
//! is.

use std::path::Path;
use std::time::Instant;
use std::{fs, thread};

use serde_json::json;
use towpath_common::control::ControlSocket;
use towpath_common::control::server::{self, Patience};
use towpath_common::testing::api::{Document, ask};

use super::*;
use crate::spec::Spec;

/// A daemon on a thread of its own, which ends with the test process.
fn start(dir: &Path) -> ControlSocket {
    let file = dir.join("sriov-manager.toml");
    fs::write(
        &file,
        format!("[daemon]\nstate = {:?}\n", dir.join("state")),
    )
    .unwrap();
    let spec = Spec::load(&file).unwrap();
    let daemon = Arc::new(Daemon::new(&file, spec, Instant::now()).unwrap());
    let socket = ControlSocket::bind(&dir.join("c.sock")).unwrap();
    let listener = socket.listener().unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let serve = server::serve(listener, routes(daemon), Patience::default());
        runtime.block_on(serve).unwrap();
    });
    socket
}

#[test]
fn every_route_of_the_document_answers_as_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let socket = start(dir.path());
    let served = Document::fetch(socket.path()).unwrap();
    assert_eq!(
        served.0,
        document(),
        "the program prints what the daemon serves"
    );
    let operations = served.operations();
    assert_eq!(operations.len(), 9);
    for (method, path) in operations {
        for (address, code) in [("0000:7f:1e.7", 404), ("nonsense", 400), ("%ff", 400)] {
            let target = path.replace("{address}", address);
            let reply = ask(socket.path(), &method, &target, None).unwrap();
            let code = if path.contains('{') { code } else { 200 };
            assert_eq!(reply.code, code, "{method} {target}: {}", reply.body);
            let verdict = served.gives(&method, &path, &reply);
            assert_eq!(verdict, Ok(()), "{method} {target}: {}", reply.body);
        }
    }
    fs::write(dir.path().join("sriov-manager.toml"), "vfs = many").unwrap();
    let reply = ask(socket.path(), "POST", "/v1/reload", Some(&json!({}))).unwrap();
    assert_eq!(reply.code, 422);
    assert_eq!(served.gives("post", "/v1/reload", &reply), Ok(()));
}
