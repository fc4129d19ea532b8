//! The API over a real socket, with a data plane that is not there.

mod api;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::{fs, thread};

use towpath_common::control::compare::compare;
use towpath_common::control::server::{self, Patience};
use towpath_common::control::{Client, ControlSocket, Status};

use super::*;
use crate::config::{Config, Sources};
use crate::fake::{FakeService, names};
use crate::service::{RequestType, Service};

const TWO_DISKS: &str = "\
[[disk]]
name = \"a\"
path = \"null:4G\"
socket = \"/run/a\"
[[disk]]
name = \"b\"
path = \"null:4G\"
socket = \"/run/b\"
";

struct Running {
    dir: tempfile::TempDir,
    client: Client,
}

impl Running {
    /// A daemon on a thread of its own, which ends with the test process.
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vblk.toml");
        fs::write(&file, TWO_DISKS).unwrap();
        let sources = Sources {
            file: Some(file),
            ..Sources::default()
        };
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

    fn rewrite(&self, text: &str) {
        fs::write(self.dir.path().join("vblk.toml"), text).unwrap();
    }

    fn reload(&self, dry_run: bool) -> Answer<Diff> {
        self.client.post("/v1/reload", &Reload { dry_run }).unwrap()
    }

    fn disks(&self) -> Vec<Name> {
        let disks: Answer<Vec<DiskStatus>> = self.client.get("/v1/disks").unwrap();
        disks
            .data
            .unwrap()
            .into_iter()
            .map(|disk| disk.name)
            .collect()
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
    assert_eq!(answer.description, "2 disks, 2 connected");
    let overview = answer.data.unwrap();
    assert_eq!(
        (overview.disks, overview.connected, overview.workers.len()),
        (2, 2, 2)
    );
    assert_eq!(overview.pid, std::process::id());
}

#[test]
fn disks_are_listed_and_shown() {
    let running = Running::start();
    assert_eq!(running.disks(), names(&["a", "b"]));
    let disk: Answer<DiskStatus> = running.client.get("/v1/disks/b").unwrap();
    let disk = disk.data.unwrap();
    assert_eq!(disk.path, "null:4G");
    assert_eq!(disk.session.unwrap().queues[0].size, 128);
}

#[test]
fn an_unknown_disk_is_answered_with_the_known_ones() {
    let running = Running::start();
    let answer: Answer<DiskStatus> = running.client.get("/v1/disks/c").unwrap();
    assert_eq!(answer.status, Status::Failed);
    assert_eq!(answer.description, "there is no disk \"c\"; disks: a, b");
    assert!(running.raw("/v1/disks/c").starts_with("HTTP/1.1 404"));
    assert!(
        running
            .raw("/v1/disks/%ff")
            .contains("\"status\":\"failed\"")
    );
}

#[test]
fn a_disk_is_changed_by_what_is_posted_to_it() {
    let running = Running::start();
    let set = |body: &serde_json::Value| -> Answer<DiskStatus> {
        running.client.post("/v1/disks/a", body).unwrap()
    };
    let disk = set(&serde_json::json!({"iops": 500, "bandwidth": "10M"})).data;
    assert_eq!(disk.unwrap().limit.iops.unwrap().get(), 500);
    let disk = set(&serde_json::json!({"unset": ["iops"]})).data.unwrap();
    assert!(disk.limit.iops.is_none() && disk.limit.bandwidth.is_some());
    for (body, message) in [
        (serde_json::json!({"iops_burst": 5}), "set iops, too"),
        (serde_json::json!({"iops": 0}), "iops must be 1 to"),
        (serde_json::json!({"size": 1}), "unknown field `size`"),
    ] {
        let answer = set(&body);
        assert_eq!(answer.status, Status::Failed);
        assert!(
            answer.description.contains(message),
            "{}",
            answer.description
        );
    }
    for (path, message) in [
        ("/v1/disks/c/clear", "there is no disk \"c\""),
        ("/v1/groups/c", "there is no group \"c\""),
    ] {
        let answer: Answer<serde_json::Value> =
            running.client.post(path, &Settings::default()).unwrap();
        assert!(
            answer.description.contains(message),
            "{}",
            answer.description
        );
    }
}

#[test]
fn a_resize_that_nobody_was_told_of_is_a_warning() {
    let running = Running::start();
    let resize = |size_bytes, shrink| -> Answer<Resized> {
        let order = Resize { size_bytes, shrink };
        running.client.post("/v1/disks/a/resize", &order).unwrap()
    };
    assert_eq!(resize(Some(8 << 30), false).status, Status::Warning);
    assert_eq!(resize(None, false).status, Status::Success);
    assert_eq!(resize(Some(1 << 30), false).status, Status::Failed);
    assert_eq!(resize(Some(1 << 30), true).data.unwrap().new_bytes, 1 << 30);
}

#[test]
fn statistics_keep_their_names_in_json() {
    let running = Running::start();
    let stats: Answer<Stats> = running.client.get("/v1/stats").unwrap();
    let stats = stats.data.unwrap();
    assert_eq!(
        stats.disks[1].stats.queues[0].requests[&RequestType::Read],
        4
    );
    assert_eq!(stats.disks[1].state, Some(DiskState::Failed));
    let text = running.raw("/v1/stats");
    assert!(text.contains("\"state\":\"failed\""), "{text}");
    assert!(
        text.contains("\"requests\":{\"read\":4,\"flush\":1}"),
        "{text}"
    );
    assert!(text.contains("\"errors\":{\"5\":2,\"999\":1}"), "{text}");
}

#[test]
fn a_disk_is_the_worst_that_holds() {
    let disks: Answer<Vec<DiskStatus>> = Running::start().client.get("/v1/disks").unwrap();
    let mut disk = disks.data.unwrap().swap_remove(0);
    let session = disk.session.as_mut().unwrap();
    session.quarantined = true;
    session.queues[0].broken = Some("loop".to_owned());
    disk.trouble = Some("its server is away".to_owned());
    disk.size_bytes = 0;
    let mut seen = vec![DiskState::of(&disk)];
    let cures: [fn(&mut DiskStatus); 7] = [
        |disk| disk.size_bytes = 1,
        |disk| disk.failed = None,
        |disk| disk.session.as_mut().unwrap().quarantined = false,
        |disk| disk.session.as_mut().unwrap().queues[0].broken = None,
        |disk| disk.held = 0,
        |disk| disk.trouble = None,
        |disk| (disk.connected, disk.session) = (false, None),
    ];
    for cure in cures {
        cure(&mut disk);
        seen.push(DiskState::of(&disk));
    }
    use DiskState::*;
    let expected = [
        NotServed,
        Failed,
        Quarantined,
        Broken,
        Held,
        Degraded,
        Up,
        NoGuest,
    ];
    assert_eq!(seen, expected);
}

#[test]
fn metrics_follow_from_the_status() {
    let text = Running::start().raw("/metrics");
    assert!(
        text.contains("content-type: text/plain; version=0.0.4"),
        "{text}"
    );
    for line in [
        "towpath_vblk_requests_total{disk=\"a\",queue=\"0\",type=\"read\"} 4",
        "towpath_vblk_bytes_total{disk=\"b\",queue=\"0\",direction=\"read\"} 16384",
        "towpath_vblk_errors_total{disk=\"a\",errno=\"EIO\"} 2",
        "towpath_vblk_errors_total{disk=\"a\",errno=\"999\"} 1",
        "towpath_vblk_ring_broken_total{disk=\"a\",reason=\"loop\"} 1",
        "towpath_vblk_connected{disk=\"a\"} 1",
        "towpath_vblk_in_flight{disk=\"a\",queue=\"0\"} 3",
        "towpath_vblk_notifications_total{disk=\"a\",queue=\"0\",outcome=\"suppressed\"} 9",
        "towpath_vblk_request_seconds_bucket{disk=\"a\",type=\"read\",le=\"0.000001024\"} 3",
        "towpath_vblk_request_seconds_count{disk=\"a\",type=\"read\"} 4",
        "towpath_vblk_stage_seconds_count{disk=\"a\",stage=\"device\"} 4",
        "towpath_vblk_throttled_seconds_total{disk=\"a\"} 0.003",
        "towpath_vblk_held{disk=\"a\"} 2",
        "towpath_vblk_holds_total{disk=\"a\"} 5",
        "towpath_vblk_failed{disk=\"a\"} 1",
        "towpath_vblk_mirror_disk_current{disk=\"a\",path=\"/dev/a\"} 1",
        "towpath_vblk_mirror_disk_current{disk=\"a\",path=\"/dev/b\"} 0",
        "towpath_vblk_mirror_behind_bytes{disk=\"a\",path=\"/dev/b\"} 1048576",
        "towpath_vblk_mirror_errors_total{disk=\"a\",path=\"/dev/b\"} 3",
        "towpath_worker_busy_ratio{worker=\"1\"} 0.25",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line} not in\n{text}");
    }
    for family in metrics::FAMILIES {
        assert!(
            text.contains(&format!("# TYPE {} ", family.name)),
            "{}",
            family.name
        );
    }
}

#[test]
fn a_reload_says_what_it_changes() {
    let running = Running::start();
    assert_eq!(running.reload(false).description, "nothing changes");
    running.rewrite(&TWO_DISKS.replace("\"b\"", "\"c\"").replace("4G", "8G"));
    let rehearsal = running.reload(true);
    assert_eq!(
        running.disks(),
        names(&["a", "b"]),
        "a rehearsal changes nothing"
    );
    let answer = running.reload(false);
    assert_eq!(answer, rehearsal);
    assert_eq!(answer.status, Status::Success);
    assert_eq!(
        answer.description,
        "+c; -b; a (path: \"null:4G\" -> \"null:8G\")"
    );
    assert_eq!(running.disks(), names(&["a", "c"]));
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
    let text = TWO_DISKS.replace("\"b\"", "\"c\"").replace("4G", "8G");
    running.rewrite(&format!("[daemon]\npoll = \"busy\"\n{text}"));
    let expected = "+ disk c\n- disk b: ends its session\n\
                    ~ disk a: ends its session\n    path: \"null:4G\" -> \"null:8G\"\n\
                    ~ daemon, after a restart\n    poll: \"adaptive\" -> \"busy\"\n";
    assert_eq!(compared(&running), (Ok(true), expected.to_owned()));
    running.rewrite(&TWO_DISKS.replacen("[[disk]]\n", "[[disk]]\nweight = 7\n", 1));
    let expected = "~ disk a\n    weight: 100 -> 7\n";
    assert_eq!(compared(&running), (Ok(true), expected.to_owned()));
    assert!(running.reload(true).data.unwrap().disturbed.is_empty());
    running.rewrite("[[disk]]\nqueues = 0");
    let (outcome, text) = compared(&running);
    assert!(outcome.unwrap_err().contains("queues must be 1 to 64"));
    assert_eq!(text, "");
}

#[test]
fn a_refused_reload_changes_nothing() {
    let running = Running::start();
    running.rewrite("[[disk]]\nqueues = 0");
    let answer = running.reload(false);
    assert_eq!(answer.status, Status::Failed);
    assert!(
        answer
            .description
            .ends_with("vblk.toml:2:10: queues must be 1 to 64, not 0")
    );
    running.rewrite(&TWO_DISKS.replace("\"b\"", &format!("\"{}\"", FakeService::REFUSED)));
    assert_eq!(running.reload(false).description, "disk refused: no");
    assert_eq!(running.disks(), names(&["a", "b"]));
    running.rewrite(TWO_DISKS);
    assert_eq!(running.reload(false).description, "nothing changes");
}

#[test]
fn what_a_reload_cannot_do_is_a_warning() {
    let running = Running::start();
    running.rewrite(&format!("[daemon]\npoll = \"busy\"\n{TWO_DISKS}"));
    for _ in 0..2 {
        let answer = running.reload(false);
        assert_eq!(answer.status, Status::Warning);
        let expected = "poll: \"adaptive\" -> \"busy\" after a restart";
        assert_eq!(
            answer.description, expected,
            "said each time until it is true"
        );
    }
    running.rewrite(&TWO_DISKS.replace("\"b\"", &format!("\"{}\"", FakeService::ODD)));
    let answer = running.reload(false);
    assert_eq!(answer.description, "+odd; -b; disk odd is odd");
    assert_eq!(answer.status, Status::Warning);
}
