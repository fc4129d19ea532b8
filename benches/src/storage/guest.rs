//! Rows of logical volumes in a guest, where this machine's kernel has no device-mapper.
//!
//! The guest has two processors, two disks in its memory (`brd`), and this program, which measures
//! there as it does here. Without KVM its instructions are translated: what a request takes is
//! instructions then, of the kernel's and of ours. Disks of QEMU's would not do on a machine of two
//! processors: the guest keeps both, and QEMU's threads behind the disks wait for a turn.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use towpath_tests::accel::{self, Accel};
use towpath_tests::vm::Vm;

use super::plan::Row;
use super::volumes::device_size;
use crate::plan::{Effort, Entry};

/// For the guest to boot, and for a measurement to begin and end beside the time it takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// How much longer a measurement may take than it was told, and start-up of a back-end.
const SLOWNESS: u32 = 8;
/// MiB of the guest: programs, and buffers of what is in flight.
const MEMORY: u32 = 768;
/// Tries, for QEMU may die (`Accel::TcgThreads`).
const TRIES: usize = 2;

/// What the guest's lines begin with: of its table, and of its report for machines.
const MARKS: [&str; 2] = ["table:", "json:"];

/// What is done in it; `WORDS` stands for the program's arguments.
const SCENARIO: &str = r#"
mkdir -p /etc/lvm /run/lock /dev/mapper /dev/shm
# Its pages are there from the first write on.
for disk in /dev/ram0 /dev/ram1; do dd if=/dev/zero of=$disk bs=1M 2>/dev/null || true; done
cat >/etc/lvm/lvm.conf <<END
activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 }
devices { use_devicesfile=0 }
backup { backup=0 archive=0 }
END
exec 4>&1
storage --devices /dev/ram0,/dev/ram1 --dir /tmp --json /tmp/json WORDS 2>&4 >/tmp/table
sed 's/^/table:/' /tmp/table
sed 's/^/json:/' /tmp/json
# The report ends without the end of a line.
echo
"#;

/// Whether this kernel has device-mapper, loaded if need be.
#[must_use]
pub fn has_device_mapper() -> bool {
    let there = || Path::new("/sys/class/misc/device-mapper").exists();
    if !there() {
        // No module, no root, no modprobe: all the same.
        let _ = Command::new("modprobe").args(["-q", "dm-mod"]).output();
    }
    there()
}

/// What was measured in a guest.
#[derive(Debug)]
pub struct Told {
    /// For people: where it was, and the table.
    pub text: String,
    /// For machines.
    pub json: Value,
}

/// Measures `rows` on disks of `size` bytes in a guest.
///
/// # Errors
/// When there is no guest, or the program fails in it; what it said was printed.
pub fn measure(rows: &[Row], effort: Effort, size: u64) -> Result<Told> {
    let mut tries = 0;
    loop {
        tries += 1;
        match once(rows, effort, size) {
            Err(error) if tries < TRIES => eprintln!("{error:#}; once more"),
            other => return other,
        }
    }
}

fn once(rows: &[Row], effort: Effort, size: u64) -> Result<Told> {
    let disk = device_size(size);
    let disks = u32::try_from((2 * disk) >> 20)?;
    let accelerator = accel::best()?.threads();
    let only = rows.iter().map(|row| format!("--only {} ", row.name));
    let words = format!(
        "{}--seconds {} --reps {} --size {}",
        only.collect::<String>(),
        effort.seconds,
        effort.reps,
        size >> 20
    );
    eprintln!("no device-mapper here: rows of logical volumes run in a guest ({accelerator})");
    let mut vm = Vm::builder("volumes-measured")
        .measured_volumes(disk)
        .memory(&[MEMORY + disks])
        .cpus(2)
        .accelerator(accelerator)
        .echo(progress)
        .script(&SCENARIO.replace("WORDS", &words))
        .boot()?;
    let runs: usize = rows.iter().map(|row| row.contenders().len()).sum();
    let runs = u32::try_from(runs * effort.reps)?;
    let each = (effort.duration() + effort.warm_up() + Duration::from_secs(2)) * SLOWNESS;
    let printed = vm.finish(PATIENCE + each * runs)?;
    told(&printed, accelerator)
}

/// Passes on what the program says meanwhile.
fn progress(line: &str) {
    if !MARKS.iter().any(|mark| line.starts_with(mark)) {
        eprintln!("guest: {line}");
    }
}

/// What is in the guest's lines.
fn told(printed: &[String], accelerator: Accel) -> Result<Told> {
    let [table, json] = MARKS.map(|mark| {
        let lines = printed.iter().filter_map(|line| line.strip_prefix(mark));
        lines.collect::<Vec<_>>().join("\n")
    });
    let place = match accelerator {
        Accel::Kvm => "in a guest (kvm)".to_owned(),
        _ => format!(
            "in an emulated guest ({accelerator}): ratios of instructions more than of devices"
        ),
    };
    let reports: Vec<Value> = serde_json::from_str(&json).context("the guest's report")?;
    let mut json = reports.into_iter().next().context("an empty report")?;
    ensure!(
        json.is_object() && !table.is_empty(),
        "the guest told nothing"
    );
    json["where"] = Value::from(place.as_str());
    Ok(Told {
        text: format!("{place}\n{}\n", table.trim_end()),
        json,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_and_a_report_are_told_apart_from_progress() {
        let lines = [
            " 1 segments/read/1     vblk          100/s, foreign 0.00",
            "table:row  raw",
            "table:segments/read/1  1",
            "json:[{",
            "json:\"rows\": []},{}]",
            "exit: 0",
        ];
        let lines = lines.map(str::to_owned);
        let told = told(&lines, Accel::TcgThreads).unwrap();
        let text = "in an emulated guest (tcg,thread=multi): ratios of instructions more than of \
                    devices\nrow  raw\nsegments/read/1  1\n";
        assert_eq!(told.text, text);
        assert!(told.json["rows"].is_array() && told.json["where"].is_string());
        assert!(super::told(&lines[..3], Accel::Kvm).is_err());
    }
}
