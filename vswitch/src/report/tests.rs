//! Golden texts, from one sample of everything.

use std::collections::BTreeMap;

use super::*;
use towpath_common::config::SocketMode;
use vswitch::config::Sources;
use vswitch::control::NamedStats;
use vswitch::guard::{GuardConfig, Side};
use vswitch::mirror::MirrorRole;
use vswitch::service::{FdbEntry, FdbStats, QueueStats, SessionStatus, VlanFlow, WorkerStatus};

fn vid(vid: u16) -> Vid {
    Vid::new(vid).unwrap()
}

/// A trunk port with two pairs of queues, `packets` frames from each and one broken ring.
pub(crate) fn sample_port(packets: u64) -> PortStatus {
    let flow = |packets: u64| Flow {
        packets,
        bytes: packets * 125_000,
        bursts: 2,
        notified: 3,
        suppressed: 4,
    };
    let queue = |index| QueueStats {
        index,
        rx: flow(packets),
        tx: flow(0),
    };
    let ring = RingStatus {
        size: 256,
        enabled: true,
        ..RingStatus::default()
    };
    PortStatus {
        name: "fw".parse().unwrap(),
        attachment: Attachment::VhostUser {
            socket: "/run/fw.sock".parse().unwrap(),
            mode: SocketMode::Client,
        },
        access: None,
        trunk: Some("10,20-30".parse().unwrap()),
        native: Some(Vid::DEFAULT),
        macs: vec!["52:54:00:00:00:01".parse().unwrap()],
        isolated: false,
        guards: GuardConfig::default(),
        mirror: MirrorRole::None,
        mtu: 1500,
        queues: 16,
        connected: true,
        link: true,
        session: Some(SessionStatus {
            virtio_features: vec!["CSUM".into(), "MRG_RXBUF".into()],
            protocol_features: vec!["MQ".into()],
            memory_bytes: 512 << 20,
            rings: vec![
                RingStatus {
                    running: true,
                    ..ring.clone()
                },
                RingStatus {
                    index: 1,
                    worker: Some(1),
                    broken: Some("chain loops".into()),
                    ..ring
                },
            ],
            ..SessionStatus::default()
        }),
        last_error: None,
        learned: 1,
        stats: PortStats {
            connections: 1,
            queues: vec![queue(0), queue(1)],
            discards: BTreeMap::from([("receiver_full".to_owned(), 5)]),
            vlans: vec![VlanFlow {
                vlan: vid(10),
                rx_packets: 1,
                rx_bytes: 60,
                tx_packets: 2,
                tx_bytes: 120,
            }],
            ring_broken: BTreeMap::from([("loop".to_owned(), 1)]),
        },
    }
}

fn uplink() -> PortStatus {
    PortStatus {
        name: "net".parse().unwrap(),
        attachment: Attachment::Tap {
            tap: "tap0".parse().unwrap(),
        },
        trunk: None,
        native: None,
        link: false,
        session: None,
        stats: PortStats::default(),
        ..sample_port(0)
    }
}

fn sample(packets: u64) -> Stats {
    let PortStatus { name, stats, .. } = sample_port(packets);
    let state = None;
    let worker = WorkerStatus {
        busy_ratio: 0.125,
        queues: 2,
        ..WorkerStatus::default()
    };
    Stats {
        ports: vec![NamedStats { name, state, stats }],
        vlans: Vec::new(),
        fdb: FdbStats {
            entries: 2,
            capacity: 1024,
            learned: 9,
            ..FdbStats::default()
        },
        workers: vec![worker],
    }
}

#[test]
fn a_port_in_one_line() {
    let expected = "\
NAME  ATTACHED TO            VLANS                     CONNECTED  LINK  RX  TX  DROPPED
fw    /run/fw.sock (client)  trunk 10,20-30, native 1  yes        up    20  0   5
net   tap tap0               access 1                  yes        down  0   0   0
";
    assert_eq!(port_list(&[sample_port(10), uplink()]), expected);
}

#[test]
fn a_port_in_full() {
    let expected = "\
port fw
  attached to /run/fw.sock (client)
  vlans       trunk 10,20-30, native 1
  mtu         1500, at most 16 queue pairs
  addresses   1 known; may send from 52:54:00:00:00:01
  isolated    no
  mirror      no
  guards      bpdu_guard, source_guard, mac_limit 64, broadcast_limit 1000, \
multicast_limit 10000, unknown_limit 10000
  connected   yes, link up
  memory      512M
  virtio      CSUM MRG_RXBUF
  protocol    MQ
  ring 0      tx 0, size 256, running, next avail 0, next used 0
  ring 1      rx 0, size 256, BROKEN: chain loops, worker 1, next avail 0, next used 0
        PACKETS  BYTES    BURSTS  NOTIFIED  SUPPRESSED
  rx    20       2500000  4       6         8
  tx    0        0        4       6         8
  rx 0  10       1250000  2       3         4
  rx 1  10       1250000  2       3         4
  vlan 10: rx 1 packets, 60 bytes; tx 2 packets, 120 bytes
  dropped receiver_full: 5
  rings broken by loop: 1
";
    assert_eq!(port(&sample_port(10)), expected);
}

#[test]
fn a_port_without_guards_and_one_that_gets_copies_say_so() {
    let mut port = uplink();
    port.guards = GuardConfig::usual(Side::Uplink);
    port.mirror = MirrorRole::Output;
    let text = super::port(&port);
    assert!(text.contains("  guards      none\n"), "{text}");
    assert!(
        text.contains("  mirror      gets copies, and nothing else\n"),
        "{text}"
    );
}

#[test]
fn a_port_nobody_is_connected_to_says_so() {
    let mut idle = sample_port(0);
    (idle.connected, idle.link, idle.session) = (false, false, None);
    idle.last_error = Some("the front-end hung up".into());
    let text = port(&idle);
    assert!(text.contains("  connected   no, link down\n"), "{text}");
    assert!(
        text.contains("  last error  the front-end hung up\n"),
        "{text}"
    );
}

#[test]
fn a_configuration_in_a_few_lines() {
    let config = Config::load(&Sources {
        ports: vec!["p0,socket=/run/p0,access=10".into()],
        uplinks: vec!["tap0".into()],
        ..Sources::default()
    });
    let expected = "\
NAME  VLANS                   QUEUES  MTU   ATTACHED TO
p0    access 10               16      1500  /run/p0 (server)
tap0  trunk 1-4094, native 1  1       -     tap tap0
";
    assert_eq!(super::config(&config.unwrap()), expected);
}

#[test]
fn addresses_say_how_old_they_are() {
    let entry = |port: &str, age_seconds, is_static, held| FdbEntry {
        vlan: vid(10),
        mac: "52:54:00:00:00:01".parse().unwrap(),
        port: port.parse().unwrap(),
        is_static,
        age_seconds,
        held,
    };
    let known = FdbTable {
        entries: vec![
            entry("a", 7, false, false),
            entry("b", 0, true, false),
            entry("c", 1, false, true),
        ],
        stats: sample(0).fdb,
    };
    let expected = "\
VLAN  ADDRESS            PORT  AGE
10    52:54:00:00:00:01  a     7 s
10    52:54:00:00:00:01  b     static
10    52:54:00:00:00:01  c     1 s, held: it moved too often
3 shown, 2 known of at most 1024
";
    assert_eq!(fdb(&known), expected);
}

#[test]
fn a_vlan_in_one_line() {
    let vlan = VlanStatus {
        untagged: vec!["a".parse().unwrap(), "b".parse().unwrap()],
        tagged: Vec::new(),
        addresses: 3,
        flow: sample_port(0).stats.vlans[0],
    };
    let expected = "\
VLAN  UNTAGGED  TAGGED  ADDRESSES  RX  TX
10    a,b       -       3          1   2
";
    assert_eq!(vlans(&[vlan]), expected);
}

#[test]
fn a_mirror_in_one_line() {
    let mirror = Mirror {
        name: "m".parse().unwrap(),
        from: vec!["a".parse().unwrap()],
        vlans: Some("10".parse().unwrap()),
        to: "b".parse().unwrap(),
        direction: Direction::Rx,
        member: false,
    };
    let expected = "\
NAME  FROM        TO  DIRECTION
m     a, vlan 10  b   rx
";
    assert_eq!(mirrors(&[mirror]), expected);
}

#[test]
fn totals_name_addresses_and_workers() {
    let text = stats(&sample(1));
    assert!(text.starts_with("port fw\n"), "{text}");
    let end = "addresses: 2 of at most 1024; 9 learned, 0 moved, 0 aged, 0 displaced, 0 refused\n\
               worker 0 on any CPU: 12.5 % busy, 2 queues\n";
    assert!(text.ends_with(end), "{text}");
}

#[test]
fn rates_are_differences() {
    let expected = "\
PORT  RX/s  Mbit/s  TX/s  Mbit/s  DROPPED/s
fw    10    10.0    0     0.0     0
";
    let period = Duration::from_secs(2);
    assert_eq!(rates(&sample(5), &sample(15), period), expected);
    let restarted = rates(&sample(15), &sample(5), period);
    assert!(restarted.contains("fw    0 "), "{restarted}");
}
