//! KVM where a guest really boots with it, TCG elsewhere.
//!
//! `/dev/kvm` can exist, open, and still not run a stock kernel (a paravirtual KVM without VMX):
//! QEMU then stops the guest with "KVM internal error", or the guest spins for ever. So a guest is
//! booted once, with a deadline; only one that reaches user space makes the answer KVM. The answer
//! holds for this boot of the machine and this QEMU, and is kept in cargo's target directory.

use std::fmt;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::paths;
use crate::vm::Vm;

/// With KVM a guest is up in a second or two; a machine under load is given ten times that.
const PROBE: Duration = Duration::from_secs(20);

/// How QEMU runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// In hardware.
    Kvm,
    /// Translated, some 20 times slower, everywhere; one processor of the guest runs at a time.
    Tcg,
    /// The same, with a thread for each processor of the guest: for what measures them beside each
    /// other, and may be run once more when QEMU dies (see [`fmt::Display`]).
    TcgThreads,
}

impl Accel {
    /// What runs processors of a guest beside each other.
    #[must_use]
    pub fn threads(self) -> Self {
        match self {
            Self::Tcg => Self::TcgThreads,
            other => other,
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            // One thread for all processors: with several, QEMU 10.0 now and then dies on a race of
            // its own while memory regions change (iotlb_to_section).
            Self::Tcg => "tcg,thread=single",
            Self::TcgThreads => "tcg,thread=multi",
        })
    }
}

/// The best accelerator that works here.
///
/// # Errors
/// When QEMU is missing.
pub fn best() -> Result<Accel> {
    let usable = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    if !usable {
        return Ok(Accel::Tcg);
    }
    let kept = paths::profile_dir()?.join("accelerator");
    let key = key()?;
    if let Ok(text) = fs::read_to_string(&kept)
        && let Some(answer) = text.strip_prefix(&key)
    {
        return Ok(if answer == "kvm" {
            Accel::Kvm
        } else {
            Accel::Tcg
        });
    }
    let answer = if boots_with_kvm() {
        Accel::Kvm
    } else {
        Accel::Tcg
    };
    fs::write(&kept, format!("{key}{answer}"))
        .with_context(|| format!("cannot write {}", kept.display()))?;
    Ok(answer)
}

fn boots_with_kvm() -> bool {
    Vm::builder("kvm-probe")
        .script("echo up")
        .accelerator(Accel::Kvm)
        .boot()
        .and_then(|mut vm| vm.finish(PROBE))
        .is_ok()
}

/// Changes with the machine's boot and with QEMU.
fn key() -> Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let qemu = Command::new(paths::program("qemu-system-x86_64")?)
        .arg("--version")
        .output()?;
    let qemu = String::from_utf8_lossy(&qemu.stdout);
    Ok(format!(
        "{} {}\n",
        boot.trim(),
        qemu.lines().next().unwrap_or_default()
    ))
}
