//! A guest that moves to another host with its disk and its port: another vblk on the same image,
//! another vswitch, joined to the first by a bridge. It writes, reads and talks all the while.
//!
//! ```text
//! vblk 0, vswitch 0 ── tap0 ─┐
//!        ▲ guest             br0
//!        ▼                   │
//! vblk 1, vswitch 1 ── tap1 ─┘
//!            └── peer
//! ```

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use towpath_tests::daemon::{Vblk, Vswitch};
use towpath_tests::guest::{Guest, PATIENCE};
use towpath_tests::netns::Netns;
use towpath_tests::paths;
use towpath_tests::vm::{Builder, Drive, Nic, Turn, Vm};

use crate::until;

const MAC: &str = "52:54:00:00:00:0a";
const IMAGE: u64 = 128 << 20;

/// A host: what serves the guest there.
struct Place {
    vblk: Vblk,
    vswitch: Vswitch,
}

impl Place {
    fn new(image: &Path, between: &Netns, number: usize) -> Result<Place> {
        let dir = tempfile::tempdir()?;
        let disk = format!("{},socket={{dir}}/disk,lock=running", image.display());
        let spare = "{dir}/hot.img,socket={dir}/hot,name=hot,queues=2";
        File::create(dir.path().join("hot.img"))?.set_len(IMAGE / 2)?;
        let ports = ["guest,socket={dir}/guest", "peer,socket={dir}/peer"];
        let uplink = format!("tap{number}");
        let more = ["--uplink", &uplink];
        Ok(Place {
            vblk: Vblk::serve(dir, &[&disk, spare], &[])?,
            vswitch: Vswitch::serve_in(between, tempfile::tempdir()?, &ports, &more)?,
        })
    }

    fn machine(&self, name: &str) -> Builder {
        Vm::builder(name)
            .nic(Nic::new(self.vswitch.path("guest"), MAC))
            .drive(Drive::new(self.vblk.path("disk")))
            .whole()
    }

    /// The port behind which the guest is.
    fn sees(&self) -> Result<String> {
        let known = self.vswitch.get(&format!("/v1/fdb?mac={MAC}"))?;
        let port = known["entries"][0]["port"].as_str();
        Ok(port.unwrap_or("nowhere").to_owned())
    }

    fn writes(&self) -> Result<u64> {
        let shown = self.vblk.get("/v1/disks/image")?;
        let queues = shown["stats"]["queues"].as_array().context("queues")?;
        let counts = queues.iter().map(|q| q["requests"]["write"].as_u64());
        counts.sum::<Option<u64>>().context("no counts")
    }

    fn nothing_broke(&self) -> Result<()> {
        let disk = self.vblk.get("/v1/disks/image")?;
        let port = self.vswitch.get("/v1/ports/guest")?;
        for shown in [disk, port] {
            let broken = &shown["stats"]["ring_broken"];
            ensure!(broken.as_object().is_none_or(|b| b.is_empty()), "{shown}");
        }
        Ok(())
    }
}

/// A disk comes while the peer runs, by `vblk attach`, and goes again.
fn a_disk_comes_and_goes(place: &Place, peer: &mut Guest) -> Result<()> {
    let monitor = peer.vm().monitor_path().display().to_string();
    let plug = ["attach", "hot", "--qmp", &monitor, "--bus", "slot0"];
    place.vblk.client(&plug)?;
    peer.run(
        "until [ -b /dev/vda ]; do sleep 0.1; done
         mkfs.ext4 -q -F /dev/vda; mount -t ext4 /dev/vda /mnt
         exercise file /mnt/hot 200 7; umount /mnt",
    )?;
    let again = place.vblk.client(&plug).err().context("plugged twice")?;
    println!("{again:#}");
    let mut monitor = peer.vm().monitor()?;
    monitor.execute("device_del", json!({ "id": "hot" }))?;
    monitor.event("DEVICE_DELETED", |data| data["device"] == "hot")?;
    peer.run("while [ -b /dev/vda ]; do sleep 0.1; done")?;
    monitor.execute("chardev-remove", json!({ "id": "char-hot" }))?;
    until("nobody at the disk", || {
        let shown = place.vblk.get("/v1/disks/hot")?;
        Ok((shown["connected"] == false).then_some(()))
    })?;
    clean(&place.vblk.path("hot.img"))
}

fn clean(image: &Path) -> Result<()> {
    let mut check = Command::new(paths::program("e2fsck")?);
    let check = check.args(["-f", "-n"]).arg(image).output()?;
    let said = String::from_utf8_lossy(&check.stdout);
    ensure!(check.status.success(), "{said}");
    Ok(())
}

#[test]
fn a_guest_moves_with_its_disk_and_its_port() -> Result<()> {
    let turn = Turn::take()?;
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    File::create(&image)?.set_len(IMAGE)?;
    let between = Netns::create("between")?;
    let places = [
        Place::new(&image, &between, 0)?,
        Place::new(&image, &between, 1)?,
    ];
    between.run(
        "ip link add br0 type bridge
         for name in tap0 tap1; do ip link set $name master br0; done
         for name in tap0 tap1 br0; do ip link set $name up; done",
    )?;
    let nic = Nic::new(places[1].vswitch.path("peer"), "52:54:00:00:00:0b");
    let mut peer = Guest::boot_as(Vm::builder("peer").nic(nic).whole(), &turn)?;
    let mut guest = Guest::boot_as(places[0].machine("guest"), &turn)?;
    peer.up()?;
    peer.run("ip link set eth0 up; ip addr add 10.0.0.9/24 dev eth0")?;
    a_disk_comes_and_goes(&places[1], &mut peer)?;
    guest.up()?;
    guest.run(
        "ip link set eth0 up; ip addr add 10.0.0.1/24 dev eth0
         mkfs.ext4 -q -F /dev/vda; mount -t ext4 /dev/vda /mnt; ping -q -c 1 10.0.0.9",
    )?;
    ensure!(places[0].sees()? == "guest", "{}", places[0].sees()?);
    ensure!(places[1].sees()? == "tap1", "{}", places[1].sees()?);

    for (round, (from, to)) in [(0, 1), (1, 0)].into_iter().enumerate() {
        let (from, to): (usize, usize) = (from, to);
        let meeting = dir.path().join(format!("meeting{round}"));
        let there = places[to].machine("there").incoming(&meeting);
        let there = Guest::boot_as(there, &turn)?;
        let before = places[to].writes()?;
        // What is read is compared with what was written, and what is heard with what was said.
        let call = peer.start("talk tcp 10.0.0.1 7 4000000 4000000")?;
        let load = guest.start(&format!(
            "talk tcp 10.0.0.9 7 4000000 4000000 & talk=$!
             exercise file /mnt/{round} 400 {round}; wait $talk"
        ))?;
        guest.migrate(there, &meeting)?;
        println!("{:?}", guest.end(load)?);
        println!("{:?}", peer.end(call)?);
        guest.run("sync")?;
        ensure!(places[to].writes()? > before, "nothing is written at {to}");
        until("both switches know where it is", || {
            let sees = (places[to].sees()?, places[from].sees()?);
            Ok((sees == ("guest".to_owned(), format!("tap{from}"))).then_some(()))
        })?;
        let left = places[from].vblk.get("/v1/disks/image")?;
        ensure!(left["connected"] == false, "still there: {left}");
    }
    guest.run("umount /mnt")?;
    guest.quit(PATIENCE)?;
    clean(&image)?;
    places.iter().try_for_each(Place::nothing_broke)
}
