//! Real virtual machines on real disks: QEMU, a Debian kernel, busybox, and vblk.
//!
//! Each scenario is one guest, or one guest booted twice. They run one at a time (see
//! `towpath_tests::vm`), about 5 s each without KVM.

mod block;
mod boot;
mod device;
mod devices;
mod filesystem;
mod harness;
mod migrate;
mod nfs;
mod proof;
mod resize;
mod restart;
mod volumes;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use towpath_tests::vm::Vm;

const MIB: u64 = 1 << 20;

/// A sparse image of `bytes`, all zeroes.
fn create_image(path: &Path, bytes: u64) -> Result<()> {
    File::create(path)?.set_len(bytes)?;
    Ok(())
}

/// Many times what a scenario takes on an idle machine without KVM.
const LONG: Duration = Duration::from_secs(400);

/// What scenarios begin with that are run step by step: `is STATUS WANTED`, `code COMMAND` for an
/// exit code, `said TEXT` of the last command.
const FUNCTIONS: &str = r#"
mkdir -p /run/lock /run/towpath /dev/mapper
code() { set +e; "$@" >/tmp/out 2>&1; status=$?; set -e; cat /tmp/out >&2; echo $status; }
is() { [ "$1" = "$2" ] || { echo "is $1, not $2"; cat /tmp/out; exit 9; }; }
said() { grep -q -- "$1" /tmp/out || { echo "did not say: $1"; cat /tmp/out; exit 9; }; }
"#;

/// The guest ends well, and got as far as each of `marks`.
fn finish(mut vm: Vm, marks: &[&str]) -> Result<()> {
    let printed = vm.finish(LONG)?;
    for mark in marks {
        ensure!(
            printed.iter().any(|line| line == mark),
            "{mark}: {printed:?}"
        );
    }
    Ok(())
}
