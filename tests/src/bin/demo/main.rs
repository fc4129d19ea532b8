//! `make demo`: a virtual machine on a disk that vblk serves, then two that talk through vswitch,
//! and what both sides say about it.
//!
//! vblk gets one scratch image and no configuration file. A small guest formats the disk, writes
//! files, syncs, and reads them back after dropping all it had cached. Everything ends with this
//! program; only the image stays.
//!
//! vswitch gets three ports, two on VLAN 10 and one on VLAN 20, and a guest for each.

mod network;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use towpath_tests::cargo;
use towpath_tests::daemon::Vblk;
use towpath_tests::paths;
use towpath_tests::vm::{Drive, Vm};

const SIZE: &str = "512M";
/// The whole guest takes 15 s without KVM on an idle machine.
const PATIENCE: Duration = Duration::from_secs(150);

const GUEST: &str = r#"
mib=$(($(cat /sys/block/vda/size) / 2048))
echo "there is a disk of $mib MiB, serial number $(cat /sys/block/vda/serial)"
echo "making an ext4 file system"
mkfs.ext4 -q -F /dev/vda
mount -t ext4 /dev/vda /mnt
echo "writing 48 files, 48 MiB"
mkdir /mnt/files
for n in $(seq 48); do
    head -c 1048576 /dev/urandom >/mnt/files/$n
done
cd /mnt/files
sha256sum * >../sums
cd /
echo "sync"
sync
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/vda /mnt
echo "reading them back from the disk"
cd /mnt/files
sha256sum -c ../sums >/tmp/checked
cd /
echo "checksums of $(grep -c OK /tmp/checked) files are right"
rm -r /mnt/files/1*
fstrim /mnt
umount /mnt
"#;

fn main() -> ExitCode {
    match disk().and_then(|()| network::talk()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo: failed: {error:#}");
            eprintln!("\nThe lines above say what is missing or wrong. `make packages` installs");
            eprintln!(
                "what the demo needs; `make test` tells whether towpath works on this machine."
            );
            ExitCode::FAILURE
        }
    }
}

fn disk() -> Result<()> {
    let image = scratch_image()?;
    let dir = tempfile::Builder::new().prefix("towpath-demo-").tempdir()?;
    let disk = format!(
        "{},socket={{dir}}/disk,name=demo,serial=towpath-demo",
        image.display()
    );
    let started = Instant::now();
    let mut vblk = Vblk::serve(dir, &[&disk], &[])?;
    say(&format!(
        "vblk serves {} after {} ms",
        image.display(),
        started.elapsed().as_millis()
    ));

    say("booting a guest on it (where KVM does not work this takes a few seconds)");
    let booted = Instant::now();
    let mut vm = Vm::builder("demo")
        .drive(Drive::new(vblk.path("disk")))
        .script(GUEST)
        .echo(|line| {
            if !line.starts_with("exit: ") {
                println!("  guest: {line}");
            }
        })
        .boot()?;
    vm.finish(PATIENCE).context("the guest did not succeed")?;
    let seconds = booted.elapsed().as_secs_f32();
    say(&format!(
        "the guest is done, {seconds:.1} s on {}",
        vm.accelerator()
    ));

    let stats = vblk
        .get("/v1/disks/demo")
        .context("no answer from vblk's control API")?;
    let resident = vblk.daemon().process().resident_kib()? / 1024;
    println!("\nvblk counted\n");
    print!("{}", table(&stats["stats"])?);
    vblk.daemon().stop()?;
    println!("\nvblk had {resident} MiB resident, and has ended.");
    println!("The image is {}; look at it with", image.display());
    println!("    mount -o loop,ro {} /mnt", image.display());
    Ok(())
}

fn say(line: &str) {
    println!("demo: {line}");
}

/// A fresh image in cargo's target directory, made by vblk itself.
fn scratch_image() -> Result<PathBuf> {
    let profile = paths::profile_dir()?;
    let dir = profile.parent().unwrap_or(&profile).join("demo");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let image = dir.join("disk.img");
    if image.exists() {
        fs::remove_file(&image).with_context(|| format!("cannot replace {}", image.display()))?;
    }
    let vblk = cargo::program("vblk", "vblk")?;
    create(&vblk, &image)?;
    Ok(image)
}

fn create(vblk: &Path, image: &Path) -> Result<()> {
    let output = Command::new(vblk)
        .arg("create")
        .arg(image)
        .arg(SIZE)
        .output()?;
    ensure!(
        output.status.success(),
        "vblk create {} {SIZE}: {}",
        image.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Requests, bytes and latency by type, as a table.
fn table(stats: &Value) -> Result<String> {
    let queues = stats["queues"]
        .as_array()
        .context("the API shows no queues")?;
    let total = |group: &str, name: &str| -> u64 {
        queues
            .iter()
            .filter_map(|queue| queue[group][name].as_u64())
            .sum()
    };
    let mut table = format!(
        "  {:<13}{:>9}{:>12}{:>12}{:>12}{:>12}\n",
        "request", "count", "bytes", "p50", "p99", "max"
    );
    let types = [
        ("read", "read"),
        ("write", "written"),
        ("flush", ""),
        ("discard", "discarded"),
        ("write_zeroes", "zeroed"),
        ("get_id", ""),
        ("unsupported", ""),
    ];
    for (name, direction) in types {
        let count = total("requests", name);
        if count == 0 {
            continue;
        }
        let bytes = match direction {
            "" => String::new(),
            _ => mib(total("bytes", direction)),
        };
        let latency = |percentile: &str| {
            stats["latency"][name][percentile]
                .as_u64()
                .map_or(String::new(), microseconds)
        };
        table += &format!(
            "  {name:<13}{count:>9}{bytes:>12}{:>12}{:>12}{:>12}\n",
            latency("p50_ns"),
            latency("p99_ns"),
            latency("max_ns")
        );
    }
    ensure!(
        total("requests", "write") > 0,
        "vblk counted no write at all"
    );
    Ok(table)
}

fn mib(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes % (1 << 20)) * 10) >> 20)
}

fn microseconds(ns: u64) -> String {
    format!("{}.{} µs", ns / 1000, ns % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_sums_queues_and_leaves_out_what_never_happened() {
        let stats = serde_json::json!({
            "queues": [
                { "requests": { "write": 2, "flush": 1 }, "bytes": { "written": 1_572_864 } },
                { "requests": { "write": 3 }, "bytes": { "written": 0 } },
            ],
            "latency": { "write": { "p50_ns": 12_340, "p99_ns": 99_000, "max_ns": 99_000 } },
        });
        let table = table(&stats).unwrap();
        let write: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            write,
            [
                "write", "5", "1.5", "MiB", "12.3", "µs", "99.0", "µs", "99.0", "µs"
            ]
        );
        assert!(table.contains("flush") && !table.contains("discard"));
    }

    #[test]
    fn a_daemon_that_counted_nothing_is_an_error() {
        assert!(table(&serde_json::json!({ "queues": [] })).is_err());
    }
}
