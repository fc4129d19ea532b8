//! fio writes and verifies in a guest while the daemon of its disks is killed over and over.
//!
//! One job writes the raw disk, one a file on an ext4, one a file on an xfs, each with the blocks
//! of a pass in another random order, and each reads back what it wrote, with the checksums in it:
//! a hundred blocks later, and all of it at the end of a pass. Passes follow each other until all
//! kills are done, so every kill finds requests in flight. QEMU's connections stay, fio and the
//! guest's kernel see no error, and both file systems are clean in the end. Before the first kill,
//! as many requests go by without one: what they wait for is not the kills' doing.
//!
//! fsx is in no package of Debian's: what it does to a file, `vm/proof.rs` does by `exercise`.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use towpath_tests::daemon::Vblk;
use towpath_tests::paths;
use towpath_tests::vm::{Drive, Vm};

use crate::harness::{child, kills, resumed, until};

/// Many times what a phase of the scenario takes on an idle machine without KVM.
const PATIENCE: Duration = Duration::from_secs(300);

/// Requests of all disks that a daemon completes before it is killed: of a pass's some 1,500.
const STRETCH: u64 = 100;

const DISKS: [(&str, u64); 3] = [("raw", 8), ("ext4", 48), ("xfs", 320)];

const SCRIPT: &str = r"
mkfs.ext4 -q -F /dev/vdb
mkfs.xfs -q /dev/vdc
mkdir /e /x
mount -t ext4 /dev/vdb /e
mount -t xfs /dev/vdc /x
cat >/tmp/job <<END
[global]
thread
direct=1
ioengine=io_uring
iodepth=8
rw=randwrite
bs=4k
size=1m
fsync=64
verify=crc32c
verify_fatal=1
verify_backlog=100
do_verify=1
verify_state_save=0
randrepeat=0
[raw]
filename=/dev/vda
[ext4]
filename=/e/file
[xfs]
filename=/x/file
END
passes() {
    until [ -e /tmp/stop ]; do
        fio --minimal --terse-version=3 /tmp/job >/tmp/out 2>&1 ||
            { cat /tmp/out; echo 'fio failed'; return 1; }
        grep '^3;' /tmp/out
        echo pass
    done
}
passes &
fio=$!
echo begun
read -r line
touch /tmp/stop
wait $fio
umount /e
umount /x
if dmesg | grep -iE 'i/o error|corrupt|(ext4|xfs).*error'; then exit 4; fi
echo verified
";

/// Requests completed by the daemon that runs now, if it answers.
fn completed(vblk: &Vblk) -> Option<u64> {
    let disks = DISKS.map(|(name, _)| {
        let shown = vblk.get(&format!("/v1/disks/{name}")).ok()?;
        let queues = shown["stats"]["queues"].as_array()?;
        let counts = queues.iter().filter_map(|q| q["requests"].as_object());
        Some(
            counts
                .flat_map(|c| c.values())
                .filter_map(|n| n.as_u64())
                .sum::<u64>(),
        )
    });
    disks.into_iter().sum()
}

/// The longest time from a read or a write to its end that jobs have printed, in the guest's
/// microseconds. Fields 38 and 79, from 0, of fio's terse format 3 have it.
fn longest(printed: &[String]) -> Option<u64> {
    let jobs = printed.iter().filter(|line| line.starts_with("3;"));
    let times = jobs.flat_map(|line| {
        let fields = line.split(';').enumerate();
        fields.filter_map(|(at, field)| [38, 79].contains(&at).then_some(field))
    });
    times.filter_map(|field| field.parse().ok()).max()
}

/// Whole passes that `printed` has the end of.
fn passes(printed: &[String]) -> usize {
    printed.iter().filter(|line| *line == "pass").count()
}

/// What was seen of the load, for people to read: `printed`, since `began`.
fn report(what: &str, printed: &[String], began: Instant) -> Result<()> {
    let longest = longest(printed).context("fio has not said how long requests took")?;
    println!(
        "fio: {what} in {} passes, {:.0} s; the longest read or write in the guest {} ms",
        passes(printed),
        began.elapsed().as_secs_f32(),
        longest / 1000
    );
    Ok(())
}

/// Whole passes without a kill, of at least as many requests as there are with kills; what was
/// printed until then.
fn passes_without_kills(vblk: &Vblk, vm: &Vm, stretches: usize) -> Result<Vec<String>> {
    let began = Instant::now();
    let mut enough = completed(vblk).context("the daemon does not answer")?;
    for _ in 0..stretches {
        enough += STRETCH;
        until("requests without a kill", || {
            let failed = vm.printed().iter().any(|line| line == "fio failed");
            ensure!(!failed, "{}", vm.failure("fio failed"));
            Ok(completed(vblk).filter(|now| *now >= enough))
        })?;
    }
    let printed = vm.wait("pass", PATIENCE, |lines| {
        (passes(lines) > 0).then(|| lines.to_vec())
    })?;
    report("no kill", &printed, began)?;
    Ok(printed)
}

fn check(program: &str, arguments: &[&str], image: &Path) -> Result<()> {
    let mut command = Command::new(paths::program(program)?);
    let output = command.args(arguments).arg(image).output()?;
    ensure!(output.status.success(), "{program}: {output:?}");
    Ok(())
}

#[test]
fn fio_verifies_what_it_wrote_while_its_vblk_is_killed() -> Result<()> {
    let times = kills(8).min(50);
    let dir = tempfile::tempdir()?;
    for (name, mib) in DISKS {
        File::create(dir.path().join(name))?.set_len(mib << 20)?;
    }
    let disks =
        DISKS.map(|(name, _)| format!("{{dir}}/{name},socket={{dir}}/{name}.sock,queues=2"));
    let disks: Vec<&str> = disks.iter().map(String::as_str).collect();
    let mut vblk = Vblk::serve(dir, &disks, &["--keep"])?;
    let keeper = vblk.daemon().process().child().id();
    let mut vm = Vm::builder("kept-fio").fio().cpus(2).memory(&[768]);
    for (name, _) in DISKS {
        vm = vm.drive(Drive::new(vblk.path(&format!("{name}.sock"))).queues(2));
    }
    let mut vm = vm.script(SCRIPT).boot()?;
    vm.wait_for("begun", PATIENCE)?;
    let quiet = passes_without_kills(&vblk, &vm, times)?.len();
    let began = Instant::now();
    let mut killed = None;
    for time in 0..times {
        // The first life has made the file systems, and is counted from here.
        let from = completed(&vblk).filter(|_| killed.is_none()).unwrap_or(0);
        let served = until("requests after a kill", || {
            let failed = vm.printed().iter().any(|line| line == "fio failed");
            ensure!(!failed, "{}", vm.failure("fio failed"));
            let anew = child(keeper).filter(|pid| Some(*pid) != killed);
            let enough = completed(&vblk).filter(|now| *now >= from + STRETCH);
            Ok(anew.filter(|_| enough.is_some()))
        });
        let pid = served.with_context(|| vm.failure(&format!("kill {time}")).to_string())?;
        kill_process(pid, Signal::KILL)?;
        killed = Some(pid);
    }
    for (name, _) in DISKS {
        let shown = resumed(&vblk, &format!("/v1/disks/{name}"), || Ok(()))?;
        // A front-end that had connected anew would be counted.
        ensure!(shown["stats"]["connections"] == 0, "{shown}");
    }
    vm.send("stop")?;
    vm.wait_for("verified", PATIENCE)?;
    let printed = vm.finish(PATIENCE)?;
    // A pass that had begun before the first kill is among these.
    report(&format!("{times} kills"), &printed[quiet..], began)?;
    vblk.daemon().stop()?;
    check("e2fsck", &["-f", "-n"], &vblk.path("ext4"))?;
    check("xfs_repair", &["-n"], &vblk.path("xfs"))
}
