//! A switch with its control socket, and guests.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use towpath_common::control::server::{self, Patience};
use towpath_common::control::{Answer, Client, ControlSocket};
use towpath_common::keep::Keeper;
use towpath_common::testing::net::frame::{Frame, Mac};
use towpath_common::testing::net::{NetClient, NetOptions};
use vswitch::config::{Config, Sources};
use vswitch::serve::Daemon;
use vswitch::service::PortStatus;
use vswitch::{control, host};

/// What has not happened by then will never happen.
pub(crate) const HANG: Duration = Duration::from_secs(30);

/// A daemon in this process; it ends with it.
pub(crate) struct Bed {
    dir: tempfile::TempDir,
    pub(crate) client: Client,
}

impl Bed {
    /// Ports are described as in a file; the socket of each is added.
    pub(crate) fn start(ports: &[(&str, &str)], more: &str) -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("c.sock");
        let mut text = format!("[daemon]\ncontrol = {control:?}\npoll = \"interrupt\"\n");
        for (name, keys) in ports {
            let socket = dir.path().join(name);
            text += &format!("[[port]]\nname = {name:?}\nsocket = {socket:?}\n{keys}\n");
        }
        let file = dir.path().join("vswitch.toml");
        std::fs::write(&file, text + more).unwrap();
        let sources = Sources {
            file: Some(file),
            ..Sources::default()
        };
        let config = Config::load(&sources).unwrap();
        let service = host::start(&config, Keeper::nobody()).unwrap();
        service.apply(&config).unwrap();
        let daemon = Arc::new(Daemon::new(sources, service, config));
        let socket = ControlSocket::bind(&control).unwrap();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let _entered = runtime.enter();
            let listener = socket.listener().unwrap();
            let serve = server::serve(listener, control::routes(daemon), Patience::default());
            runtime.block_on(serve).unwrap();
        });
        let client = Client::new(&control);
        Bed { dir, client }
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.dir.path().join("c.sock")
    }

    /// A guest on a port, once frames can pass.
    pub(crate) fn guest(&self, port: &str) -> NetClient {
        self.guest_with(port, NetOptions::default())
    }

    pub(crate) fn guest_with(&self, port: &str, options: NetOptions) -> NetClient {
        let guest = NetClient::connect(&self.dir.path().join(port), options).unwrap();
        eventually(|| self.port(port).link);
        guest
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, target: &str) -> T {
        let answer: Answer<T> = self.client.get(target).unwrap();
        answer.data.unwrap()
    }

    pub(crate) fn port(&self, name: &str) -> PortStatus {
        self.get(&format!("/v1/ports/{name}"))
    }

    /// How often a port dropped for a reason.
    pub(crate) fn discards(&self, port: &str, reason: &str) -> u64 {
        let stats = self.port(port).stats;
        stats.discards.get(reason).copied().unwrap_or(0)
    }
}

/// Waits until it is so.
pub(crate) fn eventually(mut so: impl FnMut() -> bool) {
    let end = Instant::now() + HANG;
    while !so() {
        assert!(Instant::now() < end, "it never happened");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A frame with a number, `len` bytes of payload.
pub(crate) fn frame(to: Mac, from: Mac, number: u64, len: usize) -> Vec<u8> {
    Frame::new(to, from).numbered(number, len).bytes()
}

/// As the API writes it.
pub(crate) fn text(mac: Mac) -> String {
    vswitch::mac::Mac(mac).to_string()
}
