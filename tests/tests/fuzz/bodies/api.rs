//! Orders to the control API of vblk and vswitch, over a socket, with a data plane that is not
//! there.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread;

use axum::Router;
use serde_json::Value;
use towpath_common::control::ControlSocket;
use towpath_common::control::server::{self, Patience};
use towpath_common::testing::bed::{SOON, Scratch};

const DISKS: &str = "[[disk]]\nname = \"a\"\npath = \"null:4G\"\nsocket = \"/run/a\"\n\
                     [[disk]]\nname = \"b\"\npath = \"null:4G\"\nsocket = \"/run/b\"\n";
const PORTS: &str = "[[port]]\nname = \"a\"\nsocket = \"/run/a\"\n\
                     [[port]]\nname = \"b\"\nsocket = \"/run/b\"\n";

/// Where orders go: the daemon, the method, the path.
const TARGETS: &[(usize, &str, &str)] = &[
    (0, "POST", "/v1/disks/a"),
    (0, "POST", "/v1/disks/a/resize"),
    (0, "POST", "/v1/disks/a/snapshot"),
    (0, "POST", "/v1/disks/a/mirror"),
    (0, "POST", "/v1/disks/a/backup"),
    (0, "POST", "/v1/disks/a/backup/cancel"),
    (0, "POST", "/v1/disks/a/clear"),
    (0, "POST", "/v1/disks/a/release"),
    (0, "POST", "/v1/groups/g"),
    (0, "POST", "/v1/reload"),
    (1, "POST", "/v1/change"),
    (1, "POST", "/v1/fdb/flush"),
    (1, "POST", "/v1/ports/a/release"),
    (1, "POST", "/v1/reload"),
];

/// Sockets of the two daemons, which live as long as the process.
struct Daemons {
    sockets: [PathBuf; 2],
    _dir: Scratch,
}

fn serve(socket: ControlSocket, routes: Router) {
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = socket.listener().unwrap();
            server::serve(listener, routes, Patience::default())
                .await
                .unwrap();
        });
    });
}

fn start() -> Daemons {
    let dir = Scratch::new();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    };
    let sockets = ["vblk", "vswitch"].map(|name| dir.path().join(name));
    let bind = |at: usize| ControlSocket::bind(&sockets[at]).unwrap();
    {
        use vblk::service::Service;
        let sources = vblk::config::Sources {
            file: file("vblk.toml", DISKS),
            ..Default::default()
        };
        let config = vblk::config::Config::load(&sources).unwrap();
        let service = Arc::new(vblk::fake::FakeService::default());
        service.apply(&config).unwrap();
        let daemon = Arc::new(vblk::serve::Daemon::new(sources, service, config));
        serve(bind(0), vblk::control::routes(daemon));
    }
    {
        use vswitch::service::Service;
        let sources = vswitch::config::Sources {
            file: file("vswitch.toml", PORTS),
            ..Default::default()
        };
        let config = vswitch::config::Config::load(&sources).unwrap();
        let service = Arc::new(vswitch::fake::FakeService::default());
        service.apply(&config).unwrap();
        let daemon = Arc::new(vswitch::serve::Daemon::new(sources, service, config));
        serve(bind(1), vswitch::control::routes(daemon));
    }
    Daemons { sockets, _dir: dir }
}

/// The first byte chooses where the order goes, the rest is its body; from 240 on the rest is
/// sent as it is, without HTTP's manners.
pub(crate) fn api(input: &[u8]) {
    static DAEMONS: OnceLock<Daemons> = OnceLock::new();
    let daemons = DAEMONS.get_or_init(start);
    let Some((choice, body)) = input.split_first() else {
        return;
    };
    let raw = *choice >= 240;
    let (daemon, method, path) = TARGETS[usize::from(*choice) % TARGETS.len()];
    let mut stream = UnixStream::connect(&daemons.sockets[daemon]).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: fuzz\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    // It may answer, and hang up, before it has read everything.
    let head = if raw { "" } else { &head };
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body));
    if raw {
        // There may be nothing to answer.
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    if raw {
        return;
    }
    // A body that nobody asked for is not read: after the answer comes a reset.
    if let Err(error) = read {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, text) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let code = head.split(' ').nth(1).unwrap_or_default();
    assert!(!code.is_empty() && code != "500", "{head}: {text}");
    let said: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
    let status = said["status"].as_str().unwrap_or_default();
    assert!(["success", "warning", "failed"].contains(&status), "{text}");
    let words = said["description"].as_str().unwrap_or_default();
    assert!(!words.trim().is_empty(), "no description: {text}");
    assert_eq!(status == "failed", !code.starts_with('2'), "{code}: {text}");
}
