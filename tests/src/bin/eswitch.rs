//! The eswitch of a devlink device that is no PCI function, by sriov-manager's own means: netdevsim
//! has one that can be switched, and no card that QEMU emulates does.
//!
//! `eswitch NAME` prints how `netdevsim/NAME` is run; `eswitch NAME MODE` switches it first.

use std::env::args;

use anyhow::{Context, Result, bail};
use sriov_manager::netlink::devlink::{Device, eswitch, set_eswitch};
use sriov_manager::values::EswitchMode;

fn main() -> Result<()> {
    let mut words = args().skip(1);
    let name = words.next().context("usage: eswitch NAME [MODE]")?;
    let device = Device {
        bus: "netdevsim",
        name,
    };
    if let Some(mode) = words.next() {
        let mode = match mode.as_str() {
            "legacy" => EswitchMode::Legacy,
            "switchdev" => EswitchMode::Switchdev,
            other => bail!("{other} is no mode"),
        };
        set_eswitch(&device, mode)?;
    }
    let now = eswitch(&device)?;
    println!("{}", now.map_or("none", EswitchMode::word));
    Ok(())
}
