//! Golden messages: what is refused, where, and with which advice.

use std::fs;
use std::path::Path;

use super::*;
use towpath_common::config::{Name, Poll, SocketMode, Weight};

use crate::mac::Mac;
use crate::vlan::{Mode, Vid, VlanSet};

/// A directory for a configuration file.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn load(&self, text: Option<&str>, ports: &[&str]) -> Result<Config, ConfigError> {
        let file = text.map(|text| {
            let path = self.0.path().join("vswitch.toml");
            fs::write(&path, text).unwrap();
            path
        });
        Config::load(&Sources {
            file,
            ports: ports.iter().map(|port| (*port).to_owned()).collect(),
            ..Sources::default()
        })
    }

    /// The error's text with the directory shortened to `@`.
    fn text(&self, error: &ConfigError) -> String {
        let dir = self.0.path().to_str().unwrap();
        error.to_string().replace(dir, "@")
    }

    fn refuse(&self, text: &str) -> String {
        self.text(&self.load(Some(text), &[]).unwrap_err())
    }
}

fn file(text: &str) -> Config {
    Scratch::new().load(Some(text), &[]).unwrap()
}

fn ports(ports: &[&str]) -> Result<Config, ConfigError> {
    Scratch::new().load(None, ports)
}

fn vid(vid: u16) -> Vid {
    Vid::new(vid).unwrap()
}

fn name(name: &str) -> Name {
    name.parse().unwrap()
}

const EVERYTHING: &str = r#"
    [daemon]
    cpus = [1, 3]
    poll = "busy"
    control = "/run/c.sock"
    log = "debug"
    [switch]
    fdb_size = 4096
    ageing = 60
    guards = { bpdu_guard = false, byte_rate = "10M", mac_limit = "off" }
    [[port]]
    name = "fw"
    socket = "/run/fw.sock"
    mode = "client"
    trunk = [10, "20-30"]
    native = 1
    mac = "52:54:00:00:00:01"
    macs = ["52:54:00:00:00:02"]
    isolated = true
    queues = 4
    mtu = 9000
    offloads = false
    weight = 200
    cap = 50
    guards = { mac_limit = 7 }
    [[uplink]]
    tap = "tap0"
    name = "net"
    access = 10
    queues = 2
    mtu = 9000
    [[fdb]]
    mac = "52:54:00:00:00:09"
    vlan = 10
    port = "net"
    [[mirror]]
    name = "m"
    from = ["fw"]
    vlans = "10"
    to = "net"
    direction = "rx"
"#;

#[test]
fn a_file_with_everything() {
    let config = file(EVERYTHING);
    assert_eq!(config.daemon.poll, Poll::Busy);
    assert_eq!(
        (config.switch.fdb_size.get(), config.switch.ageing.get()),
        (4096, 60)
    );
    let port = &config.ports[0];
    let trunk = Mode::Trunk {
        allowed: "10,20-30".parse().unwrap(),
        native: Some(vid(1)),
    };
    assert_eq!((port.mode, port.vlans()), (SocketMode::Client, trunk));
    assert_eq!(
        port.addresses().map(Mac::to_u64).collect::<Vec<_>>(),
        [0x5254_0000_0001, 0x5254_0000_0002]
    );
    assert!(port.isolated && !port.offloads);
    let guards = config.guards(port);
    assert!(!guards.bpdu_guard && guards.source_guard && guards.byte_rate.get() == Some(10 << 20));
    assert_eq!(guards.mac_limit.get(), Some(7));
    let uplink = &config.uplinks[0];
    assert_eq!((uplink.tap.as_str(), uplink.name.as_str()), ("tap0", "net"));
    assert_eq!(uplink.vlans(), Mode::Access { pvid: vid(10) });
    assert_eq!(config.fdb[0].port, name("net"));
    assert_eq!(config.mirrors[0].direction, Direction::Rx);
}

#[test]
fn what_is_not_said_has_its_default() {
    let config = file(
        "[[port]]\nname = \"a\"\nsocket = \"s\"\n[[uplink]]\ntap = \"tap0\"\n\
         [[fdb]]\nmac = \"52:54:00:00:00:09\"\nport = \"a\"",
    );
    let port = &config.ports[0];
    assert_eq!(port.vlans(), Mode::Access { pvid: Vid::DEFAULT });
    assert_eq!(
        (port.queues.get(), port.mtu.get(), port.weight),
        (16, 1500, Weight::default())
    );
    assert!(port.offloads && !port.isolated);
    assert_eq!(config.guards(port), GuardConfig::usual(Side::Guest));
    let uplink = &config.uplinks[0];
    assert_eq!(
        (uplink.name.as_str(), uplink.queues.get(), uplink.mtu),
        ("tap0", 1, None)
    );
    let all = Mode::Trunk {
        allowed: VlanSet::all(),
        native: Some(Vid::DEFAULT),
    };
    assert_eq!(uplink.vlans(), all);
    assert_eq!(config.fdb[0].vlan, Vid::DEFAULT);
    assert_eq!(config.daemon.control.as_path(), Path::new(DEFAULT_CONTROL));
}

#[test]
fn an_argument_means_what_the_file_means() {
    let line = "fw,socket=/run/fw.sock,client,trunk=10:20-30,native=1,mac=52:54:00:00:00:01,\
                isolated,queues=4,mtu=9000,no-offloads,weight=200,cap=50";
    let mut written = file(EVERYTHING).ports.remove(0);
    written.macs.clear();
    written.guards = GuardTable::default();
    assert_eq!(ports(&[line]).unwrap().ports, [written]);
}

#[test]
fn values_are_refused_with_their_place() {
    let scratch = Scratch::new();
    for (line, message) in [
        ("queues = 65", "4:10: queues must be 1 to 64, not 65"),
        ("mtu = 9217", "4:7: mtu must be 68 to 9216, not 9217"),
        (
            "access = 4095",
            "4:10: \"4095\" is not a VLAN id; use 1 to 4094",
        ),
        (
            "mac = \"1:2\"",
            "4:7: \"1:2\" is not a MAC address; write six hexadecimal bytes, \
                           as in 52:54:00:12:34:56",
        ),
        (
            "native = 5",
            "1:1: native 5 is for trunks; add trunk, or write access 5",
        ),
        (
            "access = 5\ntrunk = [6]",
            "1:1: access 5 and trunk exclude each other; leave one out",
        ),
        (
            "mac = \"01:00:5e:00:00:01\"",
            "1:1: mac 01:00:5e:00:00:01 is not the address of one \
             station; the first byte must be even, and not all may be zero",
        ),
        (
            "macs = [\"00:00:00:00:00:00\"]",
            "1:1: mac 00:00:00:00:00:00 is not the address of one \
             station; the first byte must be even, and not all may be zero",
        ),
        (
            "guards = { mac_limit = 0, x = 1 }",
            "4:24: limit \"0\" is not valid: write a number from 1 to 10^12",
        ),
        (
            "guards = { bpdu = true }",
            "4:12: unknown field `bpdu`, expected one of `bpdu_guard`",
        ),
        (
            "vlan = 5",
            "4:1: unknown field `vlan`, expected one of `name`, `socket`, `mode`, \
                      `access`, `trunk`, `native`, `mac`, `macs`, `isolated`, `queues`, `mtu`, \
                      `offloads`, `guards`, `weight`, `cap`",
        ),
    ] {
        let text = format!("[[port]]\nname = \"a\"\nsocket = \"s\"\n{line}\n");
        let refused = scratch.refuse(&text);
        assert!(
            refused.starts_with(&format!("@/vswitch.toml:{message}")),
            "{line}: {refused}"
        );
    }
}

#[test]
fn tables_are_refused_with_their_place() {
    let scratch = Scratch::new();
    assert_eq!(
        scratch.refuse("[[port]]\nname = \"a\"\n"),
        "@/vswitch.toml:1:1: missing field `socket`"
    );
    assert_eq!(
        scratch.refuse("[[uplink]]\ntap = \"sixteen-letters-\"\n"),
        "@/vswitch.toml:2:7: \"sixteen-letters-\" cannot be an interface's name; \
         use 1 to 15 letters, digits, '-', '_' or '.'"
    );
    assert!(
        scratch
            .refuse("[[ports]]\n")
            .starts_with("@/vswitch.toml:1:3: unknown field `ports`")
    );
    assert!(
        scratch
            .refuse("[[port]]\ntrunk = \"\"")
            .contains("VLAN list \"\" is not valid")
    );
}

#[test]
fn arguments_are_refused_with_the_keys_that_exist() {
    for (argument, message) in [
        (
            "a,socket=s,vlan=1",
            "--port number 1: \"vlan=1\" is not known here; use name=, socket=, mode=, trunk=, \
             mac=, guards.mac_limit=, macs=, access=, native=, queues=, mtu=, weight=, cap=, \
             guards.bpdu_guard=, client, isolated, no-offloads \
             (a comma in a value is written ,,)",
        ),
        ("a", "--port number 1: missing field `socket`"),
        ("socket=s", "--port number 1: missing field `name`"),
        (
            "a,socket=s,access=x",
            "--port number 1: access=x: write a whole number",
        ),
        (
            "a,socket=s,queues=0",
            "--port number 1: queues must be 1 to 64, not 0",
        ),
        (
            "a,socket=s,mode=both",
            "--port number 1: unknown variant `both`, expected `server` or \
                                  `client`",
        ),
        (
            "a b,socket=s",
            "--port number 1: name \"a b\" is not valid: use 1 to 64 letters, digits, \
                          '.', '_' or '-', starting with a letter or digit",
        ),
    ] {
        assert_eq!(ports(&[argument]).unwrap_err().to_string(), message);
    }
}

#[test]
fn conflicts_name_both_places() {
    let scratch = Scratch::new();
    let text = "[[port]]\nname = \"a\"\nsocket = \"/run/s\"\nmac = \"52:54:00:00:00:01\"\n";
    let with = |port: &str| scratch.text(&scratch.load(Some(text), &[port]).unwrap_err());
    assert_eq!(
        with("b,socket=/run/s"),
        "--port number 1: socket \"/run/s\" is already used at @/vswitch.toml:1:1; \
         give each port its own socket"
    );
    assert_eq!(
        with("a,socket=/run/t"),
        "--port number 1: name \"a\" is already used at @/vswitch.toml:1:1; \
         give each port and uplink its own name"
    );
    assert_eq!(
        with("b,socket=/run/t,mac=52-54-00-00-00-01"),
        "--port number 1: mac \"52:54:00:00:00:01\" is already used at @/vswitch.toml:1:1; \
         give each port its own addresses"
    );
    assert_eq!(
        with(&format!("b,socket={DEFAULT_CONTROL}")),
        format!("--port number 1: socket \"{DEFAULT_CONTROL}\" is the daemon's control socket")
    );
    let uplinks = "[[uplink]]\ntap = \"t\"\n[[uplink]]\ntap = \"t\"\nname = \"u\"";
    assert_eq!(
        scratch.refuse(uplinks),
        "@/vswitch.toml:3:1: tap \"t\" is already used at @/vswitch.toml:1:1; \
         give each uplink its own interface"
    );
}

#[test]
fn what_names_a_port_names_one_that_exists() {
    let scratch = Scratch::new();
    let port = "[[port]]\nname = \"a\"\nsocket = \"s\"\naccess = 5\n";
    for (text, message) in [
        (
            "[[fdb]]\nmac = \"52:54:00:00:00:01\"\nport = \"b\"",
            "there is no port \"b\"; ports: a",
        ),
        (
            "[[fdb]]\nmac = \"52:54:00:00:00:01\"\nport = \"a\"",
            "port \"a\" does not carry VLAN 1; add it to the port, or name another VLAN",
        ),
        (
            "[[mirror]]\nname = \"m\"\nto = \"a\"",
            "mirror \"m\" copies nothing; name from or vlans",
        ),
        (
            "[[mirror]]\nname = \"m\"\nfrom = [\"b\"]\nto = \"a\"",
            "there is no port \"b\"; ports: a",
        ),
        (
            "[[mirror]]\nname = \"m\"\nfrom = [\"a\"]\nto = \"a\"",
            "mirror \"m\" copies port \"a\" to itself; choose another port for to",
        ),
    ] {
        let refused = scratch.refuse(&format!("{port}{text}"));
        assert_eq!(refused, format!("@/vswitch.toml:5:1: {message}"));
    }
}

#[test]
fn there_is_a_limit_to_ports() {
    let port = |n: usize| format!("p{n},socket=s{n}");
    let many: Vec<String> = (0..=MAX_PORTS).map(port).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let error = ports(&many).unwrap_err().to_string();
    let expected = "--port number 1025: more than 1024 ports and uplinks; leave some out";
    assert_eq!(error, expected);
    ports(&many[1..]).unwrap();
}

#[test]
fn nothing_to_serve_teaches() {
    if Path::new(DEFAULT_FILE).exists() {
        println!("skipped: {DEFAULT_FILE} exists on this machine");
        return;
    }
    let error = Config::load(&Sources::default()).unwrap_err().to_string();
    assert!(error.contains("vswitch serve --port p0,socket="), "{error}");
}

#[test]
fn a_difference_names_things_and_keys() {
    let old = file(
        "[[port]]\nname = \"a\"\nsocket = \"1\"\n[[port]]\nname = \"b\"\nsocket = \"2\"\n\
         [[uplink]]\ntap = \"t\"",
    );
    let new = file(
        "[daemon]\npoll = \"busy\"\n[switch]\nageing = 60\nfdb_size = 4096\n\
         [[port]]\nname = \"a\"\nsocket = \"1\"\ntrunk = [7]\n\
         [[port]]\nname = \"c\"\nsocket = \"3\"\n[[uplink]]\ntap = \"t\"\n\
         [[fdb]]\nmac = \"52:54:00:00:00:01\"\nport = \"c\"",
    );
    assert!(old.diff(&old).is_empty());
    assert_eq!(
        old.diff(&new).to_string(),
        "+port c; -port b; port a (trunk: null -> \"7\"); +fdb 52:54:00:00:00:01 vlan 1; \
         switch ageing: 300 -> 60; poll: \"adaptive\" -> \"busy\" after a restart; \
         switch fdb_size: 65536 -> 4096 after a restart"
    );
}

mod changes {
    use super::*;

    const FILE: &str = "\
# our switch
[[port]]
name = \"a\"      # the first
socket = \"/a\"
access = 10       # blue
mtu = 9000        # jumbo

# the second
[[port]]
name = \"b\"
socket = \"/b\"

[[uplink]]
tap = \"tap0\"
";

    fn set(argument: &str) -> Change {
        Change::PortSet(PortEdit::parse(argument).unwrap())
    }

    fn add(argument: &str) -> Change {
        Change::PortAdd(PORT.table(argument).unwrap())
    }

    /// Both ways of applying a change, which must agree; the text of the file.
    fn apply(change: &Change) -> String {
        let text = edit(FILE, change).unwrap();
        assert_eq!(file(FILE).changed(change).unwrap(), file(&text), "{text}");
        text
    }

    #[test]
    fn a_key_is_set_and_comments_stay() {
        let text = apply(&set("a,access=20,isolated,mtu="));
        let expected = FILE
            .replace("access = 10 ", "access = 20 ")
            .replace("mtu = 9000        # jumbo\n", "isolated = true\n");
        assert_eq!(text, expected);
    }

    #[test]
    fn access_and_trunk_take_each_others_place() {
        let text = apply(&set("a,trunk=10:20,native=1"));
        assert!(!text.contains("access"), "{text}");
        assert!(text.contains("trunk = \"10:20\"\n"), "{text}");
        let back = edit(&text, &set("a,access=5")).unwrap();
        assert!(
            !back.contains("trunk") && !back.contains("native"),
            "{back}"
        );
    }

    #[test]
    fn a_port_is_added_after_the_others() {
        let text = apply(&add("c,socket=/c,client,access=7"));
        let added = "\n[[port]]\nname = \"c\"\naccess = 7\nmode = \"client\"\nsocket = \"/c\"\n";
        assert_eq!(text.replace(added, ""), FILE, "{text}");
    }

    #[test]
    fn guards_change_one_by_one() {
        let one = set("b,guards.mac_limit=3,guards.bpdu_guard=false");
        let text = apply(&one);
        let added = "guards = { bpdu_guard = false, mac_limit = \"3\" }\n";
        assert_eq!(text.replace(added, ""), FILE, "{text}");
        // Wherever they stand, the others stay.
        let written = [
            "guards = { mac_limit = 7, unknown_limit = \"off\" } # few",
            "guards.mac_limit = 7 # few\nguards.unknown_limit = \"off\"",
            "[port.guards] # few\nmac_limit = 7\nunknown_limit = \"off\"",
        ];
        for guards in written {
            let before = FILE.replace("socket = \"/b\"", &format!("socket = \"/b\"\n{guards}"));
            for change in [&one, &set("b,guards.mac_limit=,guards.byte_rate=2M")] {
                let text = edit(&before, change).unwrap();
                let after = file(&before).changed(change).unwrap();
                assert_eq!(after, file(&text), "{text}");
                assert_eq!(after.ports[1].guards.unknown_limit, Some(Bound::OFF));
                let seven = "7".parse::<Bound>().unwrap();
                assert_ne!(after.ports[1].guards.mac_limit, Some(seven));
                let stays = text.contains("# few") || guards.starts_with("guards.mac");
                assert!(stays, "{text}");
            }
        }
        let none = apply(&set("b,mtu=1400"));
        assert!(!none.contains("guards"), "{none}");
    }

    #[test]
    fn addresses_are_a_list_in_the_file() {
        let macs = apply(&set("b,macs=52:54:00:00:00:07+52:54:00:00:00:08"));
        let added = "macs = [\"52:54:00:00:00:07\", \"52:54:00:00:00:08\"]\n";
        assert_eq!(macs.replace(added, ""), FILE, "{macs}");
    }

    #[test]
    fn uplinks_come_and_change() {
        let new = Change::UplinkAdd(UPLINK.table("tap1,name=out,trunk=10").unwrap());
        let text = apply(&new);
        let added = "\n[[uplink]]\ntap = \"tap1\"\nname = \"out\"\ntrunk = \"10\"\n";
        let sorted = "\n[[uplink]]\nname = \"out\"\ntap = \"tap1\"\ntrunk = \"10\"\n";
        assert!(text.ends_with(added) || text.ends_with(sorted), "{text}");
        let text = edit(&text, &set("out,access=7,guards.packet_rate=9K")).unwrap();
        assert!(
            text.contains("access = 7") && !text.contains("trunk"),
            "{text}"
        );
        assert_eq!(file(&text).uplinks[1].access, Vid::new(7));
        let text = apply(&set("tap0,mtu=9000"));
        assert!(text.ends_with("tap = \"tap0\"\nmtu = 9000\n"), "{text}");
        let text = edit(&text, &Change::PortRemove(name("tap0"))).unwrap();
        assert!(!text.contains("uplink"), "{text}");
    }

    #[test]
    fn ports_and_uplinks_are_removed() {
        let text = apply(&Change::PortRemove(name("a")));
        assert!(
            text.contains("# the second\n[[port]]\nname = \"b\""),
            "{text}"
        );
        assert!(!text.contains("\"/a\""), "{text}");
        let text = apply(&Change::PortRemove(name("tap0")));
        assert!(!text.contains("uplink"), "{text}");
    }

    #[test]
    fn addresses_and_mirrors_come_and_go() {
        let mac = "52:54:00:00:00:01".parse().unwrap();
        let entry = StaticEntry {
            mac,
            vlan: Vid::DEFAULT,
            port: name("b"),
        };
        let mirror = Mirror {
            name: name("m"),
            from: vec![name("a")],
            vlans: None,
            to: name("b"),
            direction: Direction::Both,
            member: true,
        };
        let with = apply(&Change::FdbAdd(entry));
        let with = edit(&with, &Change::MirrorAdd(mirror)).unwrap();
        let config = file(&with);
        assert_eq!((config.fdb.len(), config.mirrors.len()), (1, 1));
        let vlan = Vid::DEFAULT;
        let without = edit(&with, &Change::FdbDel(FdbKey { mac, vlan })).unwrap();
        let without = edit(&without, &Change::MirrorDel(name("m"))).unwrap();
        assert_eq!(file(&without), file(FILE));
    }

    #[test]
    fn what_is_as_usual_is_not_written() {
        let mac = "52:54:00:00:00:01".parse().unwrap();
        let entry = |vlan| StaticEntry {
            mac,
            vlan: Vid::new(vlan).unwrap(),
            port: name("b"),
        };
        let mirror = |direction| Mirror {
            name: name("m"),
            from: vec![],
            vlans: Some("10".parse().unwrap()),
            to: name("b"),
            direction,
            member: false,
        };
        let said = "\n[[fdb]]\nmac = \"52:54:00:00:00:01\"\nport = \"b\"\n";
        let tagged = format!("{said}vlan = 7\n");
        let plain = "\n[[mirror]]\nname = \"m\"\nto = \"b\"\nvlans = \"10\"\n";
        let one_way = plain.replace("to =", "direction = \"rx\"\nto =");
        for (change, added) in [
            (Change::FdbAdd(entry(1)), said),
            (Change::FdbAdd(entry(7)), &tagged),
            (Change::MirrorAdd(mirror(Direction::Both)), plain),
            (Change::MirrorAdd(mirror(Direction::Rx)), &one_way),
        ] {
            let text = edit(FILE, &change).unwrap();
            assert_eq!(text, [FILE, added].concat());
        }
    }

    #[test]
    fn guards_show_what_is_written_of_them() {
        let guards = |text: &str| file(&FILE.replace("mtu = 9000 ", text));
        let one = guards("guards = { mac_limit = 3 } ");
        let written = toml::Table::try_from(&one.ports[0]).unwrap();
        assert_eq!(written["guards"].to_string(), "{ mac_limit = 3 }");
        assert_eq!(
            guards("").diff(&one).to_string(),
            "port a (guards: {} -> {\"mac_limit\":3})"
        );
    }

    #[test]
    fn what_does_not_hold_together_is_refused() {
        let config = file(FILE);
        let refuse = |change: &Change| config.changed(change).unwrap_err().to_string();
        for (change, message) in [
            (
                add("c,socket=/a"),
                "port c: socket \"/a\" is already used at port a; give each port its own socket",
            ),
            (add("c"), "missing field `socket`"),
            (
                set("c,mtu=1500"),
                "there is no port c; there are: a, b, tap0",
            ),
            (
                set("a,native=3"),
                "port a: native 3 is for trunks; add trunk, or write access 3",
            ),
            (set("a,mtu=1"), "mtu must be 68 to 9216, not 1"),
            (
                Change::UplinkAdd(UPLINK.table("tap0").unwrap()),
                "uplink tap0: name \"tap0\" is already used at uplink tap0; \
                 give each port and uplink its own name",
            ),
            (set("a,socket="), "missing field `socket`"),
            (
                Change::MirrorDel(name("m")),
                "there is no mirror m; there are none",
            ),
        ] {
            assert_eq!(refuse(&change), message);
        }
        assert_eq!(
            PortEdit::parse("a").unwrap_err(),
            "nothing is to change; write NAME,KEY=VALUE"
        );
        assert_eq!(
            PortEdit::parse("mtu=1").unwrap_err(),
            "there is no name; write NAME,OPTIONS"
        );
    }

    #[test]
    fn what_is_not_in_the_file_cannot_be_changed_there() {
        let error = edit(FILE, &set("c,mtu=1500")).unwrap_err().to_string();
        let expected = "port c is not in the file: \
                        it came from the command line or from a change that was not kept";
        assert_eq!(error, expected);
        let inline = "port = [{ name = \"a\", socket = \"s\" }]";
        let error = edit(inline, &add("c,socket=/c")).unwrap_err().to_string();
        let expected = "port in the file is not a list of tables; write it as [[port]]";
        assert_eq!(error, expected);
    }

    #[test]
    fn every_change_survives_its_journey_as_json() {
        for change in [
            set("a,access=20,mtu="),
            add("c,socket=/c"),
            Change::UplinkAdd(UPLINK.table("tap1,no-offloads").unwrap()),
            Change::PortRemove(name("a")),
        ] {
            let json = serde_json::to_string(&change).unwrap();
            assert_eq!(
                serde_json::from_str::<Change>(&json).unwrap(),
                change,
                "{json}"
            );
        }
    }
}
