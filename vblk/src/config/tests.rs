//! Golden messages: what is refused, where, and with which advice.

use std::path::Path;

use super::*;
use towpath_common::config::{Cap, Poll, SocketMode, Weight};

/// A directory with images `a.img` and `b.img`, and a file to write a configuration to.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for image in ["a.img", "b.img"] {
            fs::File::create(dir.path().join(image))
                .unwrap()
                .set_len(1 << 20)
                .unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Loads `text`, in which `@` stands for the directory.
    fn file(&self, text: &str) -> Result<Config, ConfigError> {
        self.load(Some(text), &[])
    }

    fn disks(&self, disks: &[&str]) -> Result<Config, ConfigError> {
        self.load(None, disks)
    }

    fn load(&self, text: Option<&str>, disks: &[&str]) -> Result<Config, ConfigError> {
        let dir = self.0.path().to_str().unwrap();
        let file = text.map(|text| {
            let path = self.0.path().join("vblk.toml");
            fs::write(&path, text.replace('@', dir)).unwrap();
            path
        });
        let disks = disks.iter().map(|disk| disk.replace('@', dir)).collect();
        Config::load(&Sources {
            file,
            disks,
            ..Sources::default()
        })
    }

    /// The error's text with the directory shortened to `@`.
    fn text(&self, error: &ConfigError) -> String {
        error
            .to_string()
            .replace(self.0.path().to_str().unwrap(), "@")
    }

    fn refuse_file(&self, text: &str) -> String {
        self.text(&self.file(text).unwrap_err())
    }

    fn refuse_disk(&self, disk: &str) -> String {
        self.text(&self.disks(&[disk]).unwrap_err())
    }
}

const EVERYTHING: &str = r#"
            [daemon]
            cpus = [1, 3]
            poll = "busy"
            control = "/run/c.sock"
            log = "debug"
            [[disk]]
            name = "web"
            path = "@/a.img"
            socket = "/run/web.sock"
            mode = "client"
            read_only = true
            queues = 4
            serial = "S 1"
            cache = "buffered"
            resident = "64M"
            block_size = 4096
            weight = 200
            cap = 50
            guest_memory = "plain"
            iops = 500
            iops_burst = 1000
            bandwidth = "20M"
            bandwidth_burst = "40M"
            group = "gold"
            on_error = "hold"
            shrink = true

            [[group]]
            name = "gold"
            iops = 3000
"#;

#[test]
fn a_file_with_everything() {
    let scratch = Scratch::new();
    let config = scratch.file(EVERYTHING).unwrap();
    assert_eq!(config.daemon.cpus, "1,3".parse().unwrap());
    assert_eq!(config.daemon.poll, Poll::Busy);
    assert_eq!(config.daemon.control, "/run/c.sock".parse().unwrap());
    let expected = Disk {
        name: "web".parse().unwrap(),
        uuid: None,
        path: Source::File(scratch.path("a.img").into()),
        socket: "/run/web.sock".parse().unwrap(),
        mode: SocketMode::Client,
        read_only: true,
        queues: 4.try_into().unwrap(),
        serial: "S 1".to_owned().try_into().unwrap(),
        cache: Cache::Buffered,
        resident: "64M".parse().unwrap(),
        block_size: Some(BlockSize::B4096),
        weight: Weight::try_from(200).unwrap(),
        cap: Some(Cap::try_from(50).unwrap()),
        guest_memory: GuestMemory::Plain,
        limit: Limit {
            iops: Some(Iops::try_from(500).unwrap()),
            iops_burst: Some(Iops::try_from(1000).unwrap()),
            bandwidth: Some("20M".parse().unwrap()),
            bandwidth_burst: Some("40M".parse().unwrap()),
        },
        group: Some("gold".parse().unwrap()),
        on_error: OnError::Hold,
        shrink: true,
        connections: Connections::default(),
        map: FileMap::File,
        lock: FileLock::Open,
        bitmap: None,
        record: None,
        prefer: None,
        resync_rate: "100M".parse().unwrap(),
        mirror_timeout: MirrorTimeout::default(),
        polling: Polling::Off,
    };
    assert_eq!(config.disks, [expected]);
    let gold = Limit {
        iops: Some(Iops::try_from(3000).unwrap()),
        ..Limit::default()
    };
    assert_eq!(config.groups[0].limit, gold);
}

#[test]
fn limits_that_limit_nothing_and_groups_that_are_not_there_are_refused() {
    let scratch = Scratch::new();
    for (disk, group, message) in [
        ("iops_burst = 5", "name = \"gold\"", "set iops, too"),
        (
            "",
            "name = \"gold\"\nbandwidth_burst = \"1M\"",
            "set bandwidth, too",
        ),
        ("bandwidth = \"1\"", "name = \"gold\"", "write at least 4K"),
        (
            "iops = 0",
            "name = \"gold\"",
            "iops must be 1 to 100000000, not 0",
        ),
        (
            "group = \"silver\"",
            "name = \"gold\"",
            "there is no group \"silver\"",
        ),
        (
            "",
            "name = \"gold\"\n[[group]]\nname = \"gold\"",
            "group name \"gold\"",
        ),
    ] {
        let text = format!(
            "[[disk]]\npath = \"@/a.img\"\nsocket = \"/run/s\"\n{disk}\n[[group]]\n{group}\n"
        );
        let error = scratch.file(&text).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn an_argument_says_the_same_as_a_file() {
    let scratch = Scratch::new();
    let from_file = scratch
        .file(
            r#"
            [[disk]]
            path = "@/a.img"
            socket = "/run/a,b.sock"
            mode = "client"
            read_only = true
            queues = 2
            serial = "x"
            cache = "buffered"
            resident = "0"
            block_size = 512
            weight = 3
            cap = 4
            guest_memory = "plain"
            "#,
        )
        .unwrap();
    let argument = "@/a.img,socket=/run/a,,b.sock,client,ro,queues=2,serial=x,cache=buffered,\
                    resident=0,block-size=512,weight=3,cap=4,guest-memory=plain";
    assert_eq!(scratch.disks(&[argument]).unwrap(), from_file);
}

#[test]
fn defaults_are_what_the_readme_says() {
    let config = Scratch::new().disks(&["null:4G,socket=s"]).unwrap();
    let disk = &config.disks[0];
    assert_eq!((disk.name.as_str(), disk.serial.as_str()), ("null", "null"));
    assert_eq!(disk.queues.get(), 16);
    assert_eq!(disk.weight.get(), 100);
    assert_eq!((disk.cap, disk.block_size), (None, None));
    assert_eq!((disk.cache, disk.mode), (Cache::Direct, SocketMode::Server));
    assert_eq!(disk.resident.to_string(), "0");
    assert_eq!(config.daemon.control.as_path(), Path::new(DEFAULT_CONTROL));
}

#[test]
fn values_are_refused_with_their_place() {
    let scratch = Scratch::new();
    for (line, message) in [
        (
            "queues = 65",
            "@/vblk.toml:4:10: queues must be 1 to 64, not 65",
        ),
        ("cap = 0", "@/vblk.toml:4:7: cap must be 1 to 6400, not 0"),
        (
            "block_size = 1024",
            "@/vblk.toml:4:14: block size \"1024\" is not valid: use 512 or 4096",
        ),
        (
            "serial = \"123456789012345678901\"",
            "@/vblk.toml:4:10: serial \"123456789012345678901\" is not valid: \
             use at most 20 printable ASCII bytes",
        ),
        (
            "cache = \"none\"",
            "@/vblk.toml:4:9: unknown variant `none`, expected `direct` or `buffered`",
        ),
        (
            "readonly = true",
            "@/vblk.toml:4:1: unknown field `readonly`, expected one of `name`, `uuid`, `path`, \
             `socket`, `mode`, `read_only`, `queues`, `serial`, `cache`, `resident`, `block_size`, \
             `weight`, `cap`, `guest_memory`, `iops`, `iops_burst`, `bandwidth`, \
             `bandwidth_burst`, `group`, `on_error`, `shrink`, `connections`, `map`, `lock`, \
             `bitmap`, `record`, `prefer`, `resync_rate`, `mirror_timeout`, `polling`",
        ),
    ] {
        let text = format!("[[disk]]\npath = \"@/a.img\"\nsocket = \"s\"\n{line}\n");
        assert_eq!(scratch.refuse_file(&text), message);
    }
    assert_eq!(
        scratch.refuse_file("[[disk]]\npath = \"@/a.img\"\n"),
        "@/vblk.toml:1:1: missing field `socket`"
    );
    assert_eq!(
        scratch.refuse_file("[[disks]]\n"),
        "@/vblk.toml:1:3: unknown field `disks`, expected one of `engine`, `daemon`, \
         `control`, `landlock`, `storage`, `disk`, `group`"
    );
    assert_eq!(
        scratch.refuse_file("[daemon]\ncpus = [1, 1]\n"),
        "@/vblk.toml:2:8: cpu \"1\" is not valid: name each CPU once"
    );
}

#[test]
fn arguments_are_refused_with_the_keys_that_exist() {
    let scratch = Scratch::new();
    for (argument, message) in [
        (
            "@/a.img,socket=s,que=1",
            "--disk number 1: \"que=1\" is not known here; use path=, socket=, name=, uuid=, \
             serial=, cache=, resident=, guest-memory=, map=, lock=, bitmap=, record=, \
             resync-rate=, bandwidth=, bandwidth-burst=, group=, on-error=, polling=, queues=, \
             connections=, block-size=, weight=, \
             cap=, iops=, iops-burst=, prefer=, mirror-timeout=, client, ro, shrink \
             (a comma in a value is written ,,)",
        ),
        (
            "@/a.img",
            "--disk number 1: there is no socket; write PATH,socket=SOCKET",
        ),
        (
            "@/a.img,socket=s,queues=two",
            "--disk number 1: queues=two: write a whole number",
        ),
        (
            "@/a.img,socket=s,queues=0",
            "--disk number 1: queues must be 1 to 64, not 0",
        ),
        (
            "@/a.img,socket=s,socket=t",
            "--disk number 1: socket is given twice",
        ),
        (
            "null:1000,socket=s",
            "--disk number 1: path \"null:1000\" is not valid: \
             the size of the null back-end must be a positive multiple of 4096",
        ),
        (
            "@/c.img,socket=s",
            "--disk number 1: path \"@/c.img\" does not exist; \
             `vblk create @/c.img SIZE` makes an image",
        ),
        (
            "@,socket=s",
            "--disk number 1: path \"@\" is neither a file nor a block device",
        ),
    ] {
        assert_eq!(scratch.refuse_disk(argument), message);
    }
}

#[test]
fn the_path_comes_first_unless_it_has_its_key() {
    let scratch = Scratch::new();
    fs::write(scratch.path("x=1"), "").unwrap();
    for argument in [
        "@/x=1,socket=s",
        "socket=s,path=@/x=1",
        "path=@/x=1,socket=s",
    ] {
        let config = scratch.disks(&[argument]).unwrap();
        assert_eq!(
            config.disks[0].path,
            Source::File(scratch.path("x=1").into())
        );
    }
}

#[test]
fn a_file_may_have_no_disks_yet() {
    assert_eq!(Scratch::new().file("").unwrap().disks, []);
}

#[test]
fn conflicts_name_both_places() {
    let scratch = Scratch::new();
    let file = "[[disk]]\npath = \"@/a.img\"\nsocket = \"/run/s\"\nname = \"x\"\n";
    let with = |disk: &str| scratch.text(&scratch.load(Some(file), &[disk]).unwrap_err());
    assert_eq!(
        with("@/b.img,socket=/run/s"),
        "--disk number 1: socket \"/run/s\" is already used at @/vblk.toml:1:1; \
         give each disk its own socket"
    );
    assert_eq!(
        with("@/b.img,socket=/run/t,name=x"),
        "--disk number 1: name \"x\" is already used at @/vblk.toml:1:1; \
         give each disk its own name"
    );
    assert_eq!(
        with("@/a.img,socket=/run/t,ro"),
        "--disk number 1: path \"@/a.img\" is already used at @/vblk.toml:1:1; \
         only read-only disks may share a path"
    );
    let control = format!("null:4K,socket={DEFAULT_CONTROL}");
    assert_eq!(
        scratch.refuse_disk(&control),
        format!("--disk number 1: socket \"{DEFAULT_CONTROL}\" is the daemon's control socket")
    );
}

#[test]
fn a_file_is_known_under_all_its_names() {
    let scratch = Scratch::new();
    std::os::unix::fs::symlink(scratch.path("a.img"), scratch.path("symbolic")).unwrap();
    fs::hard_link(scratch.path("a.img"), scratch.path("hard")).unwrap();
    for alias in ["@/symbolic", "@/hard", "@/./a.img"] {
        let (writer, reader) = ("@/a.img,socket=s", format!("{alias},socket=t,ro"));
        let error = scratch.disks(&[writer, &reader]).unwrap_err();
        assert!(
            matches!(error, ConfigError::Conflict { .. }),
            "{alias}: {error}"
        );
        scratch.disks(&["@/a.img,socket=s,ro", &reader]).unwrap();
    }
}

#[test]
fn names_come_from_files_and_are_made_unique() {
    let scratch = Scratch::new();
    let disks = [
        "null:4K,socket=1",
        "null:4K,socket=2",
        "@/a.img,socket=3,name=null-2",
    ];
    let config = scratch.disks(&disks).unwrap();
    let names: Vec<&str> = config.disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["null", "null-3", "null-2"]);
}

#[test]
fn nothing_to_serve_teaches() {
    if Path::new(DEFAULT_FILE).exists() {
        println!("skipped: {DEFAULT_FILE} exists on this machine");
        return;
    }
    let error = Config::load(&Sources::default()).unwrap_err().to_string();
    assert!(
        error.contains("vblk serve --disk /var/lib/vm/disk.img,socket="),
        "{error}"
    );
}

#[test]
fn a_difference_names_disks_and_keys() {
    let scratch = Scratch::new();
    let old = scratch
        .disks(&["@/a.img,socket=1", "@/b.img,socket=2"])
        .unwrap();
    let mut new = scratch
        .disks(&["@/a.img,socket=1,weight=7", "null:4K,socket=3"])
        .unwrap();
    new.daemon.poll = Poll::Busy;
    assert!(old.diff(&old).is_empty());
    assert_eq!(
        old.diff(&new).to_string(),
        "+null; -b; a (weight: 100 -> 7); poll: \"adaptive\" -> \"busy\" after a restart"
    );
}
