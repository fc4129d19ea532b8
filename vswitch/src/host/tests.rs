//! The whole data plane in this process: real sockets, real workers, guests played by tests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use towpath_common::keep::Keeper;
use towpath_common::testing::bed::{Scratch, eventually};
use towpath_common::testing::net::frame::{BROADCAST, Frame, station};
use towpath_common::testing::net::{NetClient, NetOptions};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use super::*;
use crate::config::Sources;

struct Bed {
    host: Host,
    scratch: Scratch,
}

fn load(dir: &Path, text: &str) -> Config {
    let file = dir.join("vswitch.toml");
    let text = text.replace('@', dir.to_str().unwrap());
    std::fs::write(&file, text).unwrap();
    let sources = Sources {
        file: Some(file),
        ..Sources::default()
    };
    Config::load(&sources).unwrap()
}

const A: &str = "[[port]]\nname = \"a\"\nsocket = \"@/a.sock\"\n";
const B: &str = "[[port]]\nname = \"b\"\nsocket = \"@/b.sock\"\n";
const C: &str = "[[port]]\nname = \"c\"\nsocket = \"@/c.sock\"\n";

impl Bed {
    fn new(text: &str) -> Bed {
        let scratch = Scratch::new();
        let config = load(scratch.path(), text);
        let host = Host::start(&config, Keeper::nobody()).unwrap();
        host.apply(&config).unwrap();
        Bed { host, scratch }
    }

    fn apply(&self, text: &str) -> Result<Report, ServiceError> {
        self.host.apply(&load(self.scratch.path(), text))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(format!("{name}.sock"))
    }

    fn guest(&self, name: &str, pairs: u32) -> NetClient {
        let options = NetOptions {
            pairs,
            ..NetOptions::default()
        };
        let client = NetClient::connect(&self.path(name), options).unwrap();
        eventually("the port's link", || self.port(name).link);
        client
    }

    fn port(&self, name: &str) -> PortStatus {
        let mut ports = self.host.ports().into_iter();
        ports.find(|p| p.name.as_str() == name).unwrap()
    }

    fn received(&self, name: &str) -> u64 {
        let stats = self.port(name).stats;
        stats.queues.iter().map(|q| q.rx.packets).sum()
    }
}

fn frame(to: u32, from: u32, number: u64) -> Vec<u8> {
    let frame = Frame::new(station(to), station(from));
    frame.numbered(number, 60).bytes()
}

fn number(client: &mut NetClient) -> u64 {
    let received = client.expect().unwrap();
    let frame = Frame::parse(&received.frame).unwrap();
    frame.number().expect("whole")
}

/// Each tells the other that it is there.
fn meet(a: &mut NetClient, b: &mut NetClient) {
    a.send(&frame(2, 1, 1)).unwrap();
    assert_eq!(number(b), 1);
    b.send(&frame(1, 2, 2)).unwrap();
    assert_eq!(number(a), 2);
}

#[test]
fn guests_come_go_and_come_back() {
    let bed = Bed::new(&[A, B].concat());
    let mut a = bed.guest("a", 1);
    let mut b = bed.guest("b", 1);
    meet(&mut a, &mut b);
    drop(b);
    eventually("b is gone", || !bed.port("b").connected);
    a.send(&frame(2, 1, 9)).unwrap();
    eventually("its frames are dropped", || {
        bed.port("b").stats.discards.get("port_down") == Some(&1)
    });
    let mut b = bed.guest("b", 1);
    meet(&mut a, &mut b);
    assert_eq!(bed.port("b").stats.connections, 2);
}

#[test]
fn a_reload_touches_what_it_changes_and_nothing_else() {
    let bed = Bed::new(&[A, B].concat());
    let mut a = bed.guest("a", 1);
    let mut b = bed.guest("b", 1);
    meet(&mut a, &mut b);
    eventually("counted", || {
        bed.received("a") == 1 && bed.received("b") == 1
    });
    let addresses = || bed.host.fdb(&FdbFilter::default()).len();
    // The same again, and then another MTU for b.
    bed.apply(&[A, B].concat()).unwrap();
    assert_eq!(addresses(), 2);
    meet(&mut a, &mut b);
    bed.apply(&[A, B, "mtu = 2000\n"].concat()).unwrap();
    assert!(bed.port("a").connected && !bed.port("b").connected);
    assert_eq!(bed.port("a").stats.connections, 1);
    assert_eq!(addresses(), 1, "a's");
    let mut b = bed.guest("b", 1);
    meet(&mut a, &mut b);
    eventually("counters go on", || {
        bed.received("a") == 3 && bed.received("b") == 3
    });
    // Another VLAN needs no new session, but what was learned is gone.
    bed.apply(&[A, B, "mtu = 2000\naccess = 7\n"].concat())
        .unwrap();
    assert!(bed.port("b").connected);
    assert_eq!(addresses(), 1);
    a.send(&frame(2, 1, 5)).unwrap();
    eventually("nobody else is there", || {
        bed.port("a").stats.discards.get("no_member") == Some(&1)
    });
}

#[test]
fn another_address_of_a_card_is_shown_to_its_driver() {
    let with = |mac: &str| [A, "mac = \"02:00:00:00:00:", mac, "\"\n"].concat();
    let bed = Bed::new(&with("01"));
    assert_eq!(bed.guest("a", 1).mac().unwrap()[5], 1);
    bed.apply(&with("02")).unwrap();
    assert_eq!(bed.guest("a", 1).mac().unwrap()[5], 2);
}

#[test]
fn a_reload_that_cannot_be_prepared_changes_nothing() {
    let bed = Bed::new(&[A, B].concat());
    let mut a = bed.guest("a", 1);
    let mut b = bed.guest("b", 1);
    meet(&mut a, &mut b);
    let before: Vec<_> = bed.host.ports().into_iter().map(|p| p.name).collect();
    let bad = C.replace("@/", "@/nowhere/");
    assert!(bed.apply(&[&bad, A, "mtu = 3000\n"].concat()).is_err());
    let after: Vec<_> = bed.host.ports().into_iter().map(|p| p.name).collect();
    assert_eq!(before, after);
    assert!(bed.port("a").connected && bed.port("b").connected);
    meet(&mut a, &mut b);
}

/// What fails after ports were stopped: a directory that vanished under its socket.
#[test]
fn what_a_failed_reload_puts_back_has_its_guards_and_addresses() {
    let a = [A, "mac = \"02:54:00:00:00:01\"\n"].concat();
    let gone = C.replace("@/", "@/sub/");
    let entry = "[[fdb]]\nmac = \"02:54:00:00:00:01\"\nport = \"a\"\nvlan = 1\n";
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path().join("sub")).unwrap();
    let config = load(scratch.path(), &[&a, B, &gone, entry].concat());
    let host = Host::start(&config, Keeper::nobody()).unwrap();
    host.apply(&config).unwrap();
    let bed = Bed { host, scratch };
    std::fs::remove_dir_all(bed.scratch.path().join("sub")).unwrap();
    let other = "mtu = 2000\n";
    assert!(
        bed.apply(&[&a, other, B, &gone, other, entry].concat())
            .is_err()
    );
    assert_eq!(bed.port("a").mtu, 1500);
    let entries = bed.host.fdb(&FdbFilter::default());
    assert!(
        entries
            .iter()
            .any(|e| e.is_static && e.port.as_str() == "a")
    );
    let mut a = bed.guest("a", 1);
    a.send(&frame(2, 77, 1)).unwrap();
    eventually("a foreign source is refused", || {
        bed.port("a").stats.discards.get("source_guard") == Some(&1)
    });
}

#[test]
fn ports_come_and_go_while_two_workers_carry_the_traffic_of_others() {
    let workers = "[daemon]\ncpus = [0, 1]\n";
    let queues = "queues = 2\n";
    let base = [workers, A, queues, B, queues].concat();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let base = if cpus < 2 {
        base.replace(", 1]", "]")
    } else {
        base
    };
    let bed = Bed::new(&base);
    let mut a = bed.guest("a", 2);
    let mut b = bed.guest("b", 2);
    meet(&mut a, &mut b);
    let mut guests = [(a, 2u32, 1u32), (b, 1, 2)];
    let mut third = None;
    // By guest and by pair it was sent on: frames sent, frames that came from there.
    let (mut sent, mut got) = ([[0u64; 2]; 2], [[0u64; 2]; 2]);
    for round in 0..40 {
        for (who, (guest, to, from)) in guests.iter_mut().enumerate() {
            for flow in 0..2u32 {
                let pair = &mut guest.pairs()[flow as usize];
                for _ in 0..12 {
                    let count = &mut sent[who][flow as usize];
                    let number = *count << 8 | u64::from(flow);
                    *count += 1;
                    // The address tells the flow too.
                    let from = station(*from + 100 * flow);
                    let frame = Frame::new(station(*to), from).numbered(number, 300).bytes();
                    pair.send(&frame, Duration::from_secs(10)).unwrap();
                }
            }
        }
        match round % 4 {
            0 => drop(bed.apply(&[&base, C].concat()).unwrap()),
            1 => third = Some(bed.guest("c", 1)),
            2 => third
                .as_mut()
                .unwrap()
                .send(&Frame::new(BROADCAST, station(3)).bytes())
                .unwrap(),
            _ => {
                third = None;
                bed.apply(&base).unwrap();
            }
        }
        for (who, (guest, _, _)) in guests.iter_mut().enumerate() {
            let from = 1 - who;
            eventually("all of a round", || {
                for pair in guest.pairs() {
                    while let Some(received) = pair.poll().unwrap() {
                        let frame = Frame::parse(&received.frame).unwrap();
                        let Some(number) = frame.number() else {
                            continue;
                        };
                        let flow = usize::try_from(number & 0xff).unwrap();
                        assert_eq!(number >> 8, got[from][flow], "lost, doubled or reordered");
                        got[from][flow] += 1;
                    }
                }
                got[from] == sent[from]
            });
        }
    }
    let dropped = |name: &str| bed.port(name).stats.discards;
    assert!(dropped("a").is_empty() && dropped("b").is_empty());
}

/// The RARP request in the name of a guest that moved here and cannot ask itself.
#[test]
fn a_guest_that_moved_here_is_announced_in_each_of_its_vlans() {
    let trunk = "[[port]]\nname = \"t\"\nsocket = \"@/t.sock\"\ntrunk = [1, 7]\n";
    let bed = Bed::new(&[A, B, C, "access = 7\n", trunk].concat());
    let (mut b, mut c) = (bed.guest("b", 1), bed.guest("c", 1));
    let moved = |name: &str| {
        let mut options = NetOptions::default();
        options.wanted.protocol |= Protocol::RARP;
        let guest = NetClient::connect(&bed.path(name), options).unwrap();
        eventually("the port's link", || bed.port(name).link);
        guest
    };
    let heard = |guest: &mut NetClient, from: u32| {
        let frame = Frame::parse(&guest.expect().unwrap().frame).unwrap();
        assert_eq!((frame.to, frame.from), (BROADCAST, station(from)));
        assert_eq!((frame.ethertype, &frame.tags[..]), (0x8035, &[][..]));
        assert_eq!(frame.payload[..8], [0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(frame.payload[8..14], station(from));
        assert_eq!(frame.payload[18..24], station(from));
    };
    let (mut a, mut trunk) = (moved("a"), moved("t"));
    a.frontend().send_rarp(station(1)).unwrap();
    heard(&mut b, 1);
    trunk.frontend().send_rarp(station(9)).unwrap();
    heard(&mut b, 9);
    heard(&mut c, 9);
    assert!(b.poll().unwrap().is_none() && c.poll().unwrap().is_none());
    let known = bed.host.fdb(&FdbFilter::default()).into_iter();
    let known: Vec<_> = known.map(|e| (e.vlan.get(), e.port.to_string())).collect();
    for entry in [(1, "a"), (1, "t"), (7, "t")] {
        assert!(known.contains(&(entry.0, entry.1.to_owned())), "{known:?}");
    }
    assert!(bed.port("t").stats.discards.is_empty());
}
