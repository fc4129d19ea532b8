//! One step, done and read back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::address::PciAddr;
use crate::attribute::{Attribute, Key};
use crate::inventory::{controller_of, pci, vf_addresses};
use crate::kernel::{Kernel, Link, Machine, WriteError, link_name, number, text};
use crate::nvme::{Family, Kind, Order, Resources};
use crate::plan::{Action, Step};
use crate::values::{DriverName, GroupType, VfIndex};

/// Asks the kernel to find a driver for a device.
const PROBE: &str = "/sys/bus/pci/drivers_probe";

/// How often, and how long apart, a rate is tried: a link takes seconds to come up again.
const RATE_TRIES: usize = 300;
const RATE_PAUSE: Duration = Duration::from_millis(20);
/// The carrier may be shown a little after, or before, the card itself sees its link: so many
/// tries are left when it is believed.
const SURE: usize = 250;

/// How often, and how long apart, a controller is looked at after its reset.
const RESET_TRIES: usize = 50;
const RESET_PAUSE: Duration = Duration::from_millis(100);

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The kernel did not take it.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The kernel took it, and it is not so.
    #[error("the kernel accepted it, but {what} is {found} and not {wanted}")]
    NotSo {
        /// What was read back.
        what: &'static str,
        /// What was found.
        found: String,
        /// What should be.
        wanted: String,
    },
    /// The kernel took the number, and the driver made fewer.
    #[error(
        "the kernel accepted it, but the driver made {found} VFs of {wanted}; the kernel's log \
         says why: some drivers (bnxt_en) make VFs only while the PF's interface is up"
    )]
    Fewer {
        /// What was made.
        found: usize,
        /// What was asked for.
        wanted: u16,
    },
    /// The driver lacks it.
    #[error(
        "the driver does not support {key} ({error}); leave {key} out for this PF, or out of \
         required"
    )]
    Unsupported {
        /// The key of the specification.
        key: Key,
        /// What it said.
        error: WriteError,
    },
    /// The driver does not take a rate.
    #[error(
        "the driver does not take this rate ({error}): many cards take a maximum only while the \
         link is up and no minimum; leave min_rate out, or bring the link up"
    )]
    Rate {
        /// What it said.
        error: WriteError,
    },
    /// What it is about is not there.
    #[error("{0}")]
    Gone(String),
}

/// Does one step and reads back what came of it.
///
/// # Errors
/// [`StepError`].
pub fn carry_out(machine: Machine<'_>, step: &Step) -> Result<(), StepError> {
    let kernel = machine.kernel;
    let pf = step.pf;
    match &step.action {
        Action::Autoprobe { on } => {
            let path = pf.file("sriov_drivers_autoprobe");
            kernel.write(&path, if *on { "1" } else { "0" })?;
            read_back("autoprobe", number(kernel, &path), Some(u64::from(*on)))
        }
        Action::Count { to, .. } => count(kernel, pf, *to),
        Action::Eswitch { mode } => {
            machine.network.set_eswitch(pf, *mode)?;
            let now = machine.network.eswitch(pf).map_err(WriteError::from)?;
            let now = now.map_or("unknown", crate::values::EswitchMode::word);
            read_back("the eswitch", now, mode.word())
        }
        Action::Primary { keep } => self::keep(machine, pf, *keep),
        Action::Resources { vf, resources } => give(machine, pf, *vf, *resources),
        Action::Msix { vf, count } => {
            let vf = address(kernel, pf, *vf)?;
            kernel.write(&vf.file("sriov_vf_msix_count"), &count.to_string())?;
            let found = pci::msix(kernel, vf);
            read_back("the number of interrupts", found, Some(*count))
        }
        Action::Attribute { vf, attribute } => tell(machine, pf, *vf, attribute),
        Action::Unbind { vf, .. } => unbind(kernel, address(kernel, pf, *vf)?),
        Action::GroupType { vf, kind } => group_type(kernel, address(kernel, pf, *vf)?, *kind),
        Action::Override { vf, driver } => {
            let path = address(kernel, pf, *vf)?.file("driver_override");
            let name = driver.as_ref().map(DriverName::as_str);
            kernel.write(&path, name.unwrap_or("\n"))?;
            let now = text(kernel, &path).filter(|name| !name.is_empty() && name != "(null)");
            read_back("the only driver", now.as_deref(), name)
        }
        Action::Bind { vf, driver } => bind(kernel, address(kernel, pf, *vf)?, driver.as_ref()),
    }
}

fn read_back<T: PartialEq + std::fmt::Debug>(
    what: &'static str,
    found: T,
    wanted: T,
) -> Result<(), StepError> {
    if found == wanted {
        return Ok(());
    }
    let (found, wanted) = (format!("{found:?}"), format!("{wanted:?}"));
    Err(StepError::NotSo {
        what,
        found,
        wanted,
    })
}

/// Where VF `index` is now.
fn address(kernel: &dyn Kernel, pf: PciAddr, index: u16) -> Result<PciAddr, StepError> {
    let path = pf.file(&format!("virtfn{index}"));
    link_name(kernel, &path)
        .and_then(|name| name.parse().ok())
        .ok_or_else(|| StepError::Gone(format!("{pf} has no VF {index}")))
}

fn count(kernel: &dyn Kernel, pf: PciAddr, to: u16) -> Result<(), StepError> {
    kernel.write(&pf.file("sriov_numvfs"), &to.to_string())?;
    match vf_addresses(kernel, pf).len() {
        found if found == usize::from(to) => Ok(()),
        found => Err(StepError::Fewer { found, wanted: to }),
    }
}

/// The controller at `pf`, and its family.
fn family(machine: Machine<'_>, pf: PciAddr) -> Result<(PathBuf, Family), StepError> {
    let controller = controller_of(machine.kernel, pf)
        .ok_or_else(|| StepError::Gone(format!("{pf} is no NVMe controller with its driver")))?;
    let family = machine.controllers.family(&controller);
    Ok((controller, family.map_err(WriteError::from)?))
}

/// What the primary controller keeps counts from its reset on, after which its driver needs a
/// moment.
fn keep(machine: Machine<'_>, pf: PciAddr, keep: Resources) -> Result<(), StepError> {
    let (controller, now) = family(machine, pf)?;
    let order = |keep: Resources| {
        let vq = Order::Keep(Kind::Vq, keep.vq);
        let vi = Order::Keep(Kind::Vi, keep.vi);
        let id = now.pool.id;
        machine.controllers.order(&controller, id, vq)?;
        machine.controllers.order(&controller, id, vi)
    };
    let reset = || machine.kernel.write(&pf.file("reset"), "1");
    if let Err(error) = order(keep).and_then(|()| reset()) {
        // What was ordered would count from somebody else's reset on.
        let _as_it_was = order(now.pool.primary());
        return Err(error.into());
    }
    let mut tries = RESET_TRIES;
    loop {
        tries -= 1;
        match family(machine, pf) {
            Ok((_, now)) if now.pool.primary() == keep => return Ok(()),
            Ok((_, now)) if tries == 0 => {
                let (what, found) = ("what the controller keeps", now.pool.primary());
                return read_back(what, found, keep);
            }
            Err(error) if tries == 0 => return Err(error),
            _ => machine.kernel.pause(RESET_PAUSE),
        }
    }
}

/// Off line, everything, on line: in no other order does a controller take it.
fn give(machine: Machine<'_>, pf: PciAddr, vf: u16, resources: Resources) -> Result<(), StepError> {
    let (controller, now) = family(machine, pf)?;
    let id = now.of_vf(vf).map(|secondary| secondary.id);
    let id = id.ok_or_else(|| StepError::Gone(format!("{pf} has no controller for VF {vf}")))?;
    let mut orders = vec![Order::Offline];
    if resources != Resources::NONE {
        orders.extend([
            Order::Assign(Kind::Vq, resources.vq),
            Order::Assign(Kind::Vi, resources.vi),
            Order::Online,
        ]);
    }
    for order in orders {
        machine.controllers.order(&controller, id, order)?;
    }
    let (_, now) = family(machine, pf)?;
    read_back("what the VF has", now.resources(vf), Some(resources))
}

/// The interface of the device at `address`, by what the device says now.
fn link_of(machine: Machine<'_>, address: PciAddr) -> Result<Link, StepError> {
    let names = machine
        .kernel
        .list(&address.file("net"))
        .unwrap_or_default();
    for name in names {
        let links = machine.network.links(Some(&name));
        if let Some(link) = links.map_err(WriteError::from)?.pop() {
            return Ok(link);
        }
    }
    Err(StepError::Gone(format!("{address} has no interface here")))
}

/// The number of the interface of the device at `address`.
fn number_of(kernel: &dyn Kernel, address: PciAddr) -> Result<u32, StepError> {
    let net = address.file("net");
    let names = kernel.list(&net).unwrap_or_default();
    let index = names.first().map(|name| net.join(name).join("ifindex"));
    let index = index.and_then(|path| number(kernel, &path));
    index
        .and_then(|index| u32::try_from(index).ok())
        .ok_or_else(|| StepError::Gone(format!("{address} has no interface here")))
}

/// Tells the PF's driver. Some set rates only while the link is up, and making VFs takes the link
/// down for a moment: without a carrier, a rate is tried again for a while.
fn set(
    machine: Machine<'_>,
    pf: PciAddr,
    vf: VfIndex,
    attribute: &Attribute,
) -> Result<Result<(), WriteError>, StepError> {
    let rate = matches!(attribute, Attribute::Rates(_));
    let mut tries = if rate { RATE_TRIES } else { 1 };
    let link = number_of(machine.kernel, pf)?;
    loop {
        tries -= 1;
        match machine.network.set_vf(link, vf, attribute) {
            Err(error @ WriteError::Refused { .. }) if tries > 0 && !error.is_unsupported() => {
                if tries < SURE && link_of(machine, pf)?.carrier {
                    return Ok(Err(error));
                }
                machine.kernel.pause(RATE_PAUSE);
            }
            told => return Ok(told),
        }
    }
}

/// One order and one look, whatever the number of VFs and interfaces.
fn tell(
    machine: Machine<'_>,
    pf: PciAddr,
    vf: u16,
    attribute: &Attribute,
) -> Result<(), StepError> {
    let index = VfIndex::try_from(i64::from(vf));
    let index = index.map_err(|error| StepError::Gone(error.to_string()))?;
    let told = set(machine, pf, index, attribute)?;
    let link = link_of(machine, pf)?;
    let report = link.vfs.iter().find(|report| report.index == vf);
    // Drivers that lack an attribute may still report its usual value.
    if report.is_some_and(|report| report.attributes.holds(attribute)) {
        return Ok(());
    }
    match told {
        Err(error) if error.is_unsupported() => {
            let key = attribute.key();
            return Err(StepError::Unsupported { key, error });
        }
        Err(error) if matches!(attribute, Attribute::Rates(_)) => {
            return Err(StepError::Rate { error });
        }
        told => told?,
    }
    let Some(report) = report else {
        return Err(StepError::Gone(format!("{} reports no VF {vf}", link.name)));
    };
    let now = report.attributes.reported(attribute);
    Err(StepError::NotSo {
        what: attribute.key().word(),
        found: now.map_or("not reported".to_owned(), |now| now.to_string()),
        wanted: attribute.to_string(),
    })
}

/// Takes a device from its driver, if it has one.
pub(crate) fn unbind(kernel: &dyn Kernel, vf: PciAddr) -> Result<(), StepError> {
    let driver = vf.file("driver");
    if link_name(kernel, &driver).is_none() {
        return Ok(());
    }
    kernel.write(&driver.join("unbind"), &vf.to_string())?;
    read_back("the driver", link_name(kernel, &driver), None)
}

fn group_type(kernel: &dyn Kernel, vf: PciAddr, kind: GroupType) -> Result<(), StepError> {
    let group = link_name(kernel, &vf.file("iommu_group"))
        .ok_or_else(|| StepError::Gone(format!("{vf} is in no IOMMU group")))?;
    let path = PathBuf::from(format!("/sys/kernel/iommu_groups/{group}/type"));
    kernel.write(&path, kind.word())?;
    read_back(
        "the group's type",
        text(kernel, &path).as_deref(),
        Some(kind.word()),
    )
}

/// Binds a device to `driver`, which is already the only one that may have it, or to whichever the
/// kernel finds. The write succeeds also when the driver refuses the device.
pub(crate) fn bind(
    kernel: &dyn Kernel,
    vf: PciAddr,
    driver: Option<&DriverName>,
) -> Result<(), StepError> {
    let link = vf.file("driver");
    let now = || link_name(kernel, &link);
    let wanted = driver.map(DriverName::as_str);
    if now().is_some() && now().as_deref() != wanted {
        unbind(kernel, vf)?;
    }
    if now().is_none() {
        kernel.write(Path::new(PROBE), &vf.to_string())?;
    }
    let found = now();
    match wanted {
        Some(wanted) => read_back("the driver", found.as_deref(), Some(wanted)),
        None if found.is_some() => Ok(()),
        None => Err(StepError::NotSo {
            what: "the driver",
            found: "none".to_owned(),
            wanted: "the VF's own; load its module".to_owned(),
        }),
    }
}
