//! Configurations, documents and orders with mistakes in them.

use serde_json::{Value, json};

use crate::bodies::api::api;
use crate::bodies::configs::configs;
use crate::bodies::keep::{NAME, keep_records};
use crate::numbers::Numbers;

/// The files that the README and the packages show.
const EXAMPLES: [&str; 3] = [
    include_str!("../../../systemd/examples/vblk.toml"),
    include_str!("../../../systemd/examples/vswitch.toml"),
    include_str!("../../../systemd/examples/sriov-manager.toml"),
];
/// What `--disk`, `--port` and `--uplink` take.
const ARGUMENTS: [&str; 3] = [
    "/srv/a.img,socket=/run/a,name=a,serial=x,queues=4,cache=buffered,iops=1000,weight=200",
    "p0,socket=/run/p0,trunk=10:20:30-40,native=1,mac=52:54:00:00:00:01,queues=2",
    "tap0,trunk=10:20,native=1,queues=2,mtu=9000",
];
/// Orders that are carried out.
const ORDERS: [&str; 6] = [
    r#"{"iops":"1k","bandwidth":"10M","weight":200,"cap":null}"#,
    r#"{"size":"8G","shrink":false}"#,
    r#"{"target":"/nowhere/x.img"}"#,
    r#"{"dry_run":true}"#,
    r#"{"add_port":{"name":"c","socket":"/run/c"},"persist":false}"#,
    r#"{"vlan":10,"port":"a"}"#,
];

/// `text` with a few mistakes.
fn mutilated(text: &str, n: &mut Numbers) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..n.below(4) {
        let at = usize::try_from(n.below(bytes.len() as u64 + 1)).unwrap();
        let byte = n.one(b"\"'=[]{},.:#\n -0189aZ\0\xff");
        match n.below(4) {
            0 => bytes.insert(at, byte),
            1 if at < bytes.len() => bytes[at] = byte,
            2 if at < bytes.len() => drop(bytes.remove(at)),
            _ => {
                let long = n.one(&["99999999999999999999", "-1", "🐧", "\"\"", "\u{202e}"]);
                bytes.splice(at..at, long.bytes());
            }
        }
    }
    bytes
}

/// An example without the signs that make its lines comments, so that all of its keys count.
fn bare(example: &str) -> String {
    let line = |line: &str| {
        let bare = line.trim_start_matches("# ").trim_start_matches('#');
        if bare.contains(" = ") || bare.starts_with('[') {
            format!("{bare}\n")
        } else {
            String::new()
        }
    };
    example.lines().map(line).collect()
}

#[test]
fn configurations_of_fixed_seeds() {
    for seed in 0..6000 {
        let mut n = Numbers(seed * 2 + 1);
        let choice = usize::try_from(n.below(6)).unwrap();
        let text = match EXAMPLES.get(choice) {
            Some(example) if n.below(2) == 0 => bare(example),
            Some(example) => (*example).to_owned(),
            None => ARGUMENTS[choice - 3].to_owned(),
        };
        let mut input = vec![u8::try_from(choice).unwrap()];
        input.extend(mutilated(&text, &mut n));
        configs(&input);
    }
}

#[test]
fn configurations_of_the_corpus() {
    for choice in 0..7 {
        for text in ["", "\0", "[[disk]]", "a=", "{}", "🐧=🐧,🐧"] {
            configs(&[&[choice], text.as_bytes()].concat());
        }
    }
}

/// A session as a predecessor leaves it.
fn record(n: &mut Numbers) -> Value {
    let ring = |n: &mut Numbers| {
        let addresses = json!({
            "desc": n.one(&[0u64, 0x1000, 0x2001, u64::MAX]),
            "used": n.one(&[0x4000u64, 0x1000, 0xf_fff0]),
            "avail": n.one(&[0x3000u64, 0, 1 << 40]),
            "log": null, "flags": 0
        });
        json!({
            "size": n.one(&[Some(16u16), Some(0), Some(3), None, Some(65535)]),
            "base": n.one(&[None, Some(7u16)]),
            "addresses": n.one(&[true, true, false]).then_some(addresses),
            "started": n.one(&[true, false]), "enabled": n.one(&[true, false]),
            "inflight": null
        })
    };
    let vrings: Vec<Value> = (0..n.below(6)).map(|_| ring(n)).collect();
    let mut fds = vec!["connection".to_owned(), "journal".into(), "mem.0".into()];
    for vring in 0..vrings.len() {
        fds.push(format!("vring.{vring}.kick"));
        fds.push(format!("vring.{vring}.call"));
    }
    json!({
        "version": n.one(&[3, 3, 3, 3, 2, 4, 0]),
        "kind": "session", "name": NAME, "fds": fds,
        "body": {
            "identity": n.one(&["", "echo", "other"]),
            "features": n.one(&[1u64 << 32 | 1 << 30, 0, u64::MAX]),
            "protocol": n.one(&[0u64, 0xffff, u64::MAX]),
            "device_status": n.one(&[0u8, 15, 255]),
            "regions": [{
                "gpa": n.one(&[0u64, 1 << 63]), "len": n.one(&[1u64 << 20, 0, 1 << 40, u64::MAX]),
                "uva": n.one(&[0u64, 0x7000_0000_0000, u64::MAX]), "offset": n.one(&[0u64, 4096, 7])
            }],
            "log": null, "inflight": null, "vrings": vrings, "settings": {}
        }
    })
}

#[test]
fn kept_records_of_fixed_seeds() {
    for seed in 0..250 {
        let mut n = Numbers(seed * 2 + 1);
        let text = record(&mut n).to_string();
        let odd = n.one(&[0u8, 0, 0, 1, 2, 3, 4, 5, 255]);
        let text = match n.below(3) {
            0 => mutilated(&text, &mut n),
            _ => text.into_bytes(),
        };
        keep_records(&[&[odd][..], &text].concat());
    }
}

#[test]
fn kept_records_of_the_corpus() {
    for text in ["", "{}", "[]", "{\"version\":3}", "null"] {
        keep_records(&[&[0][..], text.as_bytes()].concat());
    }
}

#[test]
fn orders_of_fixed_seeds() {
    for seed in 0..1500 {
        let mut n = Numbers(seed * 2 + 1);
        let order = n.one(&ORDERS);
        let choice = n.one(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 250]);
        api(&[&[choice][..], &mutilated(order, &mut n)].concat());
    }
}

#[test]
fn orders_of_the_corpus() {
    for choice in 0..14 {
        // Some orders have no body, and what comes all the same is not read.
        for body in ["", "{}", "[]", "null", "\0", "{\"a\":", "\"\""] {
            api(&[&[choice][..], body.as_bytes()].concat());
        }
    }
}
