//! The API over a real socket, with a data plane that is not there.

mod api;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::{fs, thread};

use towpath_common::control::compare::compare;
use towpath_common::control::server::{self, Patience};
use towpath_common::control::{Client, ControlSocket, Status};

use super::*;
use crate::config::{Config, FdbKey, PORT, PortEdit, Sources, StaticEntry};
use crate::fake::FakeService;
use crate::service::Service;
use crate::vlan::Vid;

const TWO_PORTS: &str = "\
[[port]]
name = \"a\"
socket = \"/run/a\"
[[port]]
name = \"b\" # stays
socket = \"/run/b\"
";

struct Running {
    dir: tempfile::TempDir,
    client: Client,
}

impl Running {
    fn start() -> Self {
        Self::with(|dir| Sources {
            file: Some(dir.join("vswitch.toml")),
            ..Sources::default()
        })
    }

    /// A daemon on a thread of its own, which ends with the test process.
    fn with(sources: impl FnOnce(&std::path::Path) -> Sources) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vswitch.toml"), TWO_PORTS).unwrap();
        let sources = sources(dir.path());
        let config = Config::load(&sources).unwrap();
        let service = Arc::new(FakeService::default());
        service.apply(&config).unwrap();
        let daemon = Arc::new(Daemon::new(sources, service, config));
        let socket = ControlSocket::bind(&dir.path().join("c.sock")).unwrap();
        let client = Client::new(socket.path());
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let listener = socket.listener().unwrap();
            let serve = server::serve(listener, routes(daemon), Patience::default());
            runtime.block_on(serve).unwrap();
        });
        Self { dir, client }
    }

    fn file(&self) -> String {
        fs::read_to_string(self.dir.path().join("vswitch.toml")).unwrap()
    }

    fn rewrite(&self, text: &str) {
        fs::write(self.dir.path().join("vswitch.toml"), text).unwrap();
    }

    fn reload(&self, dry_run: bool) -> Answer<Diff> {
        self.client.post("/v1/reload", &Reload { dry_run }).unwrap()
    }

    fn change(&self, change: Change, persist: bool) -> Answer<Diff> {
        let order = Order { change, persist };
        self.client.post("/v1/change", &order).unwrap()
    }

    fn add(&self, port: &str, persist: bool) -> Answer<Diff> {
        self.change(Change::PortAdd(PORT.table(port).unwrap()), persist)
    }

    fn ports(&self) -> Vec<String> {
        let ports: Answer<Vec<PortStatus>> = self.client.get("/v1/ports").unwrap();
        let names = ports.data.unwrap().into_iter();
        names.map(|port| port.name.to_string()).collect()
    }

    /// The response to a GET as it comes over the socket.
    fn raw(&self, path: &str) -> String {
        let mut stream = UnixStream::connect(self.dir.path().join("c.sock")).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

#[test]
fn the_status_counts() {
    let answer: Answer<Overview> = Running::start().client.get("/v1/status").unwrap();
    assert_eq!(answer.status, Status::Success);
    assert_eq!(answer.description, "2 ports, 2 connected");
    let overview = answer.data.unwrap();
    assert_eq!(
        (overview.ports, overview.connected, overview.workers.len()),
        (2, 2, 2)
    );
    assert_eq!(
        (overview.pid, overview.fdb.entries),
        (std::process::id(), 1)
    );
}

#[test]
fn ports_are_listed_and_shown() {
    let running = Running::start();
    assert_eq!(running.ports(), ["a", "b"]);
    let port: Answer<PortStatus> = running.client.get("/v1/ports/b").unwrap();
    assert_eq!(port.data.unwrap().session.unwrap().rings[0].size, 256);
    let text = running.raw("/v1/ports/b");
    let attachment = "\"kind\":\"vhost-user\",\"socket\":\"/run/b\",\"mode\":\"server\"";
    assert!(text.contains(attachment), "{text}");
    assert!(
        text.contains("\"discards\":{\"receiver_full\":5}"),
        "{text}"
    );
}

#[test]
fn an_unknown_port_is_answered_with_the_known_ones() {
    let running = Running::start();
    let answer: Answer<PortStatus> = running.client.get("/v1/ports/c").unwrap();
    assert_eq!(answer.status, Status::Failed);
    assert_eq!(answer.description, "there is no port \"c\"; ports: a, b");
    assert!(running.raw("/v1/ports/c").starts_with("HTTP/1.1 404"));
    assert!(
        running
            .raw("/v1/ports/%ff")
            .contains("\"status\":\"failed\"")
    );
}

#[test]
fn addresses_are_filtered_and_flushed() {
    let running = Running::start();
    let get = |query: &str| -> Answer<FdbTable> {
        running.client.get(&format!("/v1/fdb{query}")).unwrap()
    };
    assert_eq!(get("").data.unwrap().entries[0].age_seconds, 7);
    assert_eq!(get("?port=b").description, "0 addresses");
    assert_eq!(
        get("?vlan=1&port=a&mac=52:54:00:00:00:01").description,
        "1 address"
    );
    assert_eq!(get("?vlan=0").status, Status::Failed);
    assert_eq!(get("?color=1").status, Status::Failed);
    let flush = |filter: FdbFilter| -> Answer<u64> {
        running.client.post("/v1/fdb/flush", &filter).unwrap()
    };
    let elsewhere = FdbFilter {
        vlan: Vid::new(9),
        ..FdbFilter::default()
    };
    assert_eq!(flush(elsewhere).description, "0 addresses forgotten");
    assert_eq!(
        flush(FdbFilter::default()).description,
        "1 address forgotten"
    );
    assert_eq!(get("").data.unwrap().entries, []);
}

#[test]
fn vlans_and_totals_are_shown() {
    let running = Running::start();
    let vlans: Answer<Vec<VlanStatus>> = running.client.get("/v1/vlans").unwrap();
    let vlan = &vlans.data.unwrap()[0];
    assert_eq!(
        (vlan.flow.vlan, vlan.untagged.len(), vlan.addresses),
        (Vid::DEFAULT, 2, 1)
    );
    let stats: Answer<Stats> = running.client.get("/v1/stats").unwrap();
    let stats = stats.data.unwrap();
    assert_eq!(stats.ports[1].stats.rx().packets, 10);
    assert_eq!(stats.vlans[0].tx_packets, 7);
    assert_eq!(stats.ports[1].state, Some(PortState::Up));
}

#[test]
fn a_port_is_the_worst_that_holds() {
    let ports: Answer<Vec<PortStatus>> = Running::start().client.get("/v1/ports").unwrap();
    let mut port = ports.data.unwrap().swap_remove(0);
    let session = port.session.as_mut().unwrap();
    session.quarantined = true;
    session.rings[0].broken = Some("loop".to_owned());
    let mut seen = vec![PortState::of(&port)];
    let changes: [fn(&mut PortStatus); 6] = [
        |port| port.session.as_mut().unwrap().quarantined = false,
        |port| port.session.as_mut().unwrap().rings[0].broken = None,
        |port| port.link = false,
        |port| (port.connected, port.session) = (false, None),
        |port| {
            let tap = "tap0".parse().unwrap();
            port.attachment = crate::service::Attachment::Tap { tap };
        },
        |port| port.link = true,
    ];
    for change in changes {
        change(&mut port);
        seen.push(PortState::of(&port));
    }
    use PortState::*;
    let expected = [Quarantined, Broken, Up, NoLink, NoGuest, Down, Up];
    assert_eq!(seen, expected);
}

#[test]
fn metrics_follow_from_the_status() {
    let running = Running::start();
    running.add("c,socket=/run/c", false);
    let text = running.raw("/metrics");
    assert!(
        text.contains("content-type: text/plain; version=0.0.4"),
        "{text}"
    );
    for line in [
        "port_rx_packets_total{port=\"a\",queue=\"0\"} 10",
        "port_tx_bytes_total{port=\"b\",queue=\"0\"} 1280",
        "port_tx_bursts_total{port=\"b\",queue=\"0\"} 2",
        "port_notifications_total{port=\"c\",queue=\"0\",direction=\"rx\",outcome=\"sent\"} 3",
        "port_discards_total{port=\"a\",reason=\"receiver_full\"} 5",
        "port_ring_broken_total{port=\"a\",reason=\"loop\"} 1",
        "port_connected{port=\"a\"} 1",
        "port_mtu_bytes{port=\"a\"} 1500",
        "vlan_rx_packets_total{vlan=\"1\"} 6",
        "fdb_entries{kind=\"learned\"} 1",
        "fdb_events_total{event=\"moved\"} 2",
    ] {
        let line = format!("towpath_vswitch_{line}\n");
        assert!(text.contains(&line), "{line} not in\n{text}");
    }
    assert!(
        text.contains("towpath_worker_busy_ratio{worker=\"1\"} 0.25\n"),
        "{text}"
    );
    for family in metrics::FAMILIES {
        let line = format!("# TYPE {} ", family.name);
        assert!(text.contains(&line), "{line}");
    }
}

#[test]
fn a_reload_says_what_it_changes() {
    let running = Running::start();
    assert_eq!(running.reload(false).description, "nothing changes");
    let text = TWO_PORTS
        .replace("\"b\"", "\"c\"")
        .replace("/run/a\"", "/run/a\"\nmtu = 9000");
    running.rewrite(&text);
    let rehearsal = running.reload(true);
    assert_eq!(running.ports(), ["a", "b"], "a rehearsal changes nothing");
    let answer = running.reload(false);
    assert_eq!(answer, rehearsal);
    assert_eq!(answer.status, Status::Success);
    assert_eq!(
        answer.description,
        "+port c; -port b; port a (mtu: 1500 -> 9000)"
    );
    assert_eq!(running.ports(), ["a", "c"]);
}

/// What `config diff` says of the file, or why it says nothing.
fn compared(running: &Running) -> (Result<bool, String>, String) {
    let (control, mut out) = (running.dir.path().join("c.sock"), Vec::new());
    let outcome = compare::<Diff>(&control, false, &mut out).map_err(|error| error.to_string());
    (outcome, String::from_utf8(out).unwrap())
}

#[test]
fn a_comparison_says_whose_sessions_would_end() {
    let running = Running::start();
    assert_eq!(compared(&running), (Ok(false), String::new()));
    let text = TWO_PORTS
        .replace("\"b\"", "\"c\"")
        .replace("/run/a\"", "/run/a\"\nmtu = 9000");
    running.rewrite(&format!("[daemon]\npoll = \"busy\"\n{text}"));
    let expected = "+ port c\n- port b: ends its session\n\
                    ~ port a: ends its session\n    mtu: 1500 -> 9000\n\
                    ~ daemon, after a restart\n    poll: \"adaptive\" -> \"busy\"\n";
    assert_eq!(compared(&running), (Ok(true), expected.to_owned()));
    assert_eq!(running.ports(), ["a", "b"], "a comparison changes nothing");
    running.rewrite(&TWO_PORTS.replace("/run/a\"", "/run/a\"\naccess = 7"));
    let expected = "~ port a\n    access: null -> 7\n";
    assert_eq!(compared(&running), (Ok(true), expected.to_owned()));
    assert!(running.reload(true).data.unwrap().disturbed.is_empty());
    running.rewrite("[[port]]\nqueues = 0");
    let (outcome, text) = compared(&running);
    assert!(outcome.unwrap_err().contains("queues must be 1 to 64"));
    assert_eq!(text, "");
}

#[test]
fn a_refused_reload_changes_nothing() {
    let running = Running::start();
    running.rewrite("[[port]]\nqueues = 0");
    let answer = running.reload(false);
    assert_eq!(answer.status, Status::Failed);
    let expected = "vswitch.toml:2:10: queues must be 1 to 64, not 0";
    assert!(
        answer.description.ends_with(expected),
        "{}",
        answer.description
    );
    running.rewrite(&TWO_PORTS.replace("\"b\"", &format!("\"{}\"", FakeService::REFUSED)));
    assert_eq!(running.reload(false).description, "port refused: no");
    assert_eq!(running.ports(), ["a", "b"]);
    running.rewrite(TWO_PORTS);
    assert_eq!(running.reload(false).description, "nothing changes");
}

#[test]
fn what_a_reload_cannot_do_is_a_warning() {
    let running = Running::start();
    running.rewrite(&format!("[daemon]\npoll = \"busy\"\n{TWO_PORTS}"));
    for _ in 0..2 {
        let answer = running.reload(false);
        assert_eq!(answer.status, Status::Warning);
        let expected = "poll: \"adaptive\" -> \"busy\" after a restart";
        assert_eq!(
            answer.description, expected,
            "said each time until it is true"
        );
    }
    running.rewrite(&TWO_PORTS.replace("\"b\"", &format!("\"{}\"", FakeService::ODD)));
    let answer = running.reload(false);
    assert_eq!(answer.description, "+port odd; -port b; port odd is odd");
    assert_eq!(answer.status, Status::Warning);
}

#[test]
fn a_change_is_applied_and_forgotten_by_the_next_reload() {
    let running = Running::start();
    assert_eq!(running.add("c,socket=/run/c", false).description, "+port c");
    assert_eq!(running.ports(), ["a", "b", "c"]);
    assert_eq!(running.file(), TWO_PORTS);
    assert_eq!(running.reload(false).description, "-port c");
    assert_eq!(running.ports(), ["a", "b"]);
}

#[test]
fn a_kept_change_stays() {
    let running = Running::start();
    let edit = PortEdit::parse("b,access=20").unwrap();
    let answer = running.change(Change::PortSet(edit), true);
    assert_eq!(answer.description, "port b (access: null -> 20)");
    let expected = TWO_PORTS.replace("/run/b\"\n", "/run/b\"\naccess = 20\n");
    assert_eq!(running.file(), expected, "the comment is still there");
    assert_eq!(running.reload(false).description, "nothing changes");
    let answer = running.change(Change::PortRemove("a".parse().unwrap()), true);
    assert_eq!(answer.description, "-port a");
    assert_eq!(running.reload(false).description, "nothing changes");
    assert_eq!(running.ports(), ["b"]);
}

#[test]
fn static_addresses_and_mirrors_are_changes() {
    let running = Running::start();
    let mac = "52:54:00:00:00:09".parse().unwrap();
    let vlan = Vid::DEFAULT;
    let port = "b".parse().unwrap();
    let answer = running.change(Change::FdbAdd(StaticEntry { mac, vlan, port }), false);
    assert_eq!(answer.description, "+fdb 52:54:00:00:00:09 vlan 1");
    let table: Answer<FdbTable> = running.client.get("/v1/fdb?port=b").unwrap();
    assert!(table.data.unwrap().entries[0].is_static);
    let answer = running.change(Change::FdbDel(FdbKey { mac, vlan }), false);
    assert_eq!(answer.description, "-fdb 52:54:00:00:00:09 vlan 1");
    let mirror = Mirror {
        name: "m".parse().unwrap(),
        from: vec!["a".parse().unwrap()],
        vlans: None,
        to: "b".parse().unwrap(),
        direction: Default::default(),
        member: false,
    };
    let answer = running.change(Change::MirrorAdd(mirror.clone()), false);
    assert_eq!(answer.description, "+mirror m");
    let mirrors: Answer<Vec<Mirror>> = running.client.get("/v1/mirrors").unwrap();
    assert_eq!(mirrors.data.unwrap(), [mirror]);
    let answer = running.change(Change::PortRemove("a".parse().unwrap()), false);
    assert_eq!(
        answer.description,
        "mirror m: there is no port \"a\"; ports: b"
    );
}

#[test]
fn a_refused_change_changes_nothing() {
    let running = Running::start();
    for (port, message) in [
        (
            "c,socket=/run/a",
            "port c: socket \"/run/a\" is already used at port a; \
                             give each port its own socket",
        ),
        ("refused,socket=/run/c", "port refused: no"),
    ] {
        let answer = running.add(port, true);
        assert_eq!(
            (answer.status, answer.description.as_str()),
            (Status::Failed, message)
        );
    }
    assert_eq!(
        running.file(),
        TWO_PORTS,
        "nothing is kept that is not in force"
    );
    running.rewrite("[[port]]\n");
    let answer = running.add("c,socket=/run/c", true);
    let broken = "with the change in the file, ";
    assert!(
        answer.description.starts_with(broken),
        "{}",
        answer.description
    );
    assert_eq!(
        running.ports(),
        ["a", "b"],
        "what cannot be kept is not applied"
    );
}

#[test]
fn without_a_file_nothing_can_be_kept() {
    let running = Running::with(|_| Sources {
        ports: vec!["a,socket=/run/a".to_owned()],
        ..Sources::default()
    });
    let answer = running.add("c,socket=/run/c", true);
    let expected = "there is no configuration file to keep it in: ";
    assert!(
        answer.description.starts_with(expected),
        "{}",
        answer.description
    );
    assert_eq!(
        running.add("c,socket=/run/c", false).status,
        Status::Success
    );
    assert_eq!(running.ports(), ["a", "c"]);
}

#[test]
fn an_order_with_a_mistake_is_explained() {
    let running = Running::start();
    let body = serde_json::json!({"change": {"port_grow": "a"}});
    let answer: Answer<Diff> = running.client.post("/v1/change", &body).unwrap();
    let expected =
        "the request body is wrong: change: unknown variant `port_grow`, expected one of";
    assert!(
        answer.description.starts_with(expected),
        "{}",
        answer.description
    );
}
