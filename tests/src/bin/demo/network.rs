//! The demo's second half: three guests on one switch, two of them on the same VLAN.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use towpath_tests::cargo;
use towpath_tests::daemon::Vswitch;
use towpath_tests::guest::Guest;
use towpath_tests::vm::{Nic, Turn, Vm};

use crate::{mib, say};

/// Name, VLAN and number of each guest.
const GUESTS: [(&str, u16, u8); 3] = [("ann", 10, 1), ("bob", 10, 2), ("eve", 20, 3)];
/// Bytes of the transfer, each way.
const TRANSFER: u64 = 8 << 20;

/// Boots the guests, lets the first two talk, and prints what was counted.
///
/// # Errors
/// When a part is missing, a guest fails, or a frame is heard where it must not be.
pub(crate) fn talk() -> Result<()> {
    println!();
    let turn = Turn::take()?;
    let dir = tempfile::Builder::new().prefix("towpath-demo-").tempdir()?;
    let ports = GUESTS.map(|(name, vlan, _)| format!("{name},socket={{dir}}/{name},access={vlan}"));
    cargo::program("vswitch", "vswitch")?;
    let started = Instant::now();
    let mut vswitch = Vswitch::serve(dir, &ports.each_ref().map(String::as_str), &[])?;
    say(&format!(
        "vswitch serves three ports after {} ms: ann and bob on VLAN 10, eve on VLAN 20",
        started.elapsed().as_millis()
    ));
    say("booting a guest on each (where KVM does not work this takes ten or twenty seconds)");
    let mut guests = GUESTS
        .map(|(name, _, number)| {
            let nic = Nic::new(vswitch.path(name), &format!("52:54:00:00:00:0{number}"));
            Guest::boot(Vm::builder(name).nic(nic), &turn)
        })
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    for ((name, _, number), guest) in GUESTS.iter().zip(&mut guests) {
        guest.up()?;
        guest.run(&format!(
            "ip link set eth0 up; ip addr add 10.0.0.{number}/24 dev eth0"
        ))?;
        say(&format!("{name} is up and has 10.0.0.{number}"));
    }
    let [ann, _, eve] = &mut guests[..] else {
        bail!("there are three guests");
    };
    converse(ann)?;
    println!("  ann: ping 10.0.0.3 (eve, on another VLAN)");
    ann.run("! ping -q -c 1 -W 1 10.0.0.3")
        .context("eve answered from another VLAN")?;
    println!("    no answer");
    let heard = eve.heard("eth0")?;
    ensure!(heard == 0, "eve heard {heard} frames of another VLAN");
    say("eve heard nothing at all");

    let table = table(&vswitch)?;
    let resident = vswitch.daemon().process().resident_kib()? / 1024;
    drop(guests);
    println!("\nvswitch counted\n\n{table}");
    vswitch.daemon().stop()?;
    println!("vswitch had {resident} MiB resident, guests' memory included, and has ended.");
    Ok(())
}

fn converse(ann: &mut Guest) -> Result<()> {
    println!("  ann: ping 10.0.0.2 (bob)");
    for line in ann.run("ping -q -c 5 -i 0.2 10.0.0.2 | tail -2")? {
        println!("    {line}");
    }
    println!(
        "  ann: {} to bob and as much back, each byte checked",
        mib(TRANSFER)
    );
    for line in ann.run(&format!("talk tcp 10.0.0.2 7 {TRANSFER} {TRANSFER}"))? {
        println!("    {line}");
    }
    Ok(())
}

/// Frames and bytes of each port, and why frames were dropped.
fn table(vswitch: &Vswitch) -> Result<String> {
    let mut table = format!(
        "  {:<6}{:>6}{:>14}{:>12}{:>14}{:>12}  dropped\n",
        "port", "VLAN", "frames from", "bytes", "frames to", "bytes"
    );
    for (name, vlan, _) in GUESTS {
        let port = vswitch
            .get(&format!("/v1/ports/{name}"))
            .context("no answer from vswitch's control API")?;
        table += &row(name, vlan, &port["stats"]);
    }
    Ok(table)
}

fn row(name: &str, vlan: u16, stats: &Value) -> String {
    let total = |direction: &str, what: &str| -> u64 {
        let queues = stats["queues"].as_array().into_iter().flatten();
        queues
            .filter_map(|queue| queue[direction][what].as_u64())
            .sum()
    };
    let discards = stats["discards"].as_object().into_iter().flatten();
    let dropped: Vec<_> = discards
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    format!(
        "  {name:<6}{vlan:>6}{:>14}{:>12}{:>14}{:>12}  {}\n",
        total("rx", "packets"),
        mib(total("rx", "bytes")),
        total("tx", "packets"),
        mib(total("tx", "bytes")),
        dropped.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_sums_queues_and_names_what_was_dropped() {
        let stats = serde_json::json!({
            "queues": [
                { "rx": { "packets": 2, "bytes": 1_048_576 }, "tx": { "packets": 1, "bytes": 0 } },
                { "rx": { "packets": 3, "bytes": 0 }, "tx": { "packets": 0, "bytes": 0 } },
            ],
            "discards": { "no_member": 4 },
        });
        let row = row("ann", 10, &stats);
        let words: Vec<_> = row.split_whitespace().collect();
        assert_eq!(
            words,
            [
                "ann",
                "10",
                "5",
                "1.0",
                "MiB",
                "1",
                "0.0",
                "MiB",
                "4",
                "no_member"
            ]
        );
    }
}
