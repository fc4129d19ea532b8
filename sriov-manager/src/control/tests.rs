//! The API over a real socket, of a daemon that is told to change nothing, on whatever host this
//! is.

use std::path::Path;
use std::time::Instant;
use std::{fs, thread};

use towpath_common::control::ControlSocket;
use towpath_common::control::server::{self, Patience};
use towpath_common::testing::api::{Document, Probe, ask};

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
fn whatever_is_asked_is_answered_as_the_document_says() {
    let dir = tempfile::tempdir().unwrap();
    let socket = start(dir.path());
    let served = Document::fetch(socket.path()).unwrap();
    let printed = document();
    assert_eq!(
        *served.value(),
        printed,
        "the program prints what is served"
    );
    let probe = Probe {
        socket: socket.path(),
        document: &served,
        parts: &["0000:7f:1e.7", "nonsense"],
        words: &[],
        cases: 10,
    };
    let seen = probe.run().unwrap_or_else(|wrong| panic!("{wrong}"));
    for ((method, path), codes) in seen {
        let codes: Vec<u16> = codes.into_keys().collect();
        // Nothing is leased.
        let released = path.ends_with("/release");
        let expected: &[u16] = if released { &[400, 404] } else { &[200] };
        assert_eq!(codes, expected, "{method} {path}");
    }
    fs::write(dir.path().join("sriov-manager.toml"), "vfs = many").unwrap();
    let reply = ask(socket.path(), "POST", "/v1/reload", None).unwrap();
    assert_eq!(reply.code, 422);
    assert_eq!(served.gives("post", "/v1/reload", &reply), Ok(()));
}
