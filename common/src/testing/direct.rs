//! A guest's memory and rings as a device has them, without a session between the two: for tests
//! that drive a ring or a plane by hand.

use std::sync::Arc;

use super::{Driver, Error, GuestMemory, Result, SplitDriver};
use crate::mem::{Mem, Region, RegionSpec};
use crate::ring::{Ring, Setup};
use crate::session::{Alarm, Attach};

fn usage(error: impl std::fmt::Display) -> Error {
    Error::Usage(error.to_string())
}

/// `memory`, mapped by the device.
///
/// # Errors
/// If it cannot be mapped.
pub fn mem(memory: &GuestMemory) -> Result<Arc<Mem>> {
    let regions = memory.regions().iter().map(|region| {
        let spec = RegionSpec {
            gpa: region.gpa(),
            len: region.size(),
            uva: region.uva(),
            offset: 0,
        };
        let file = region.file().try_clone_to_owned().map_err(usage)?;
        Region::map(spec, file).map_err(usage)
    });
    let mem = Mem::new(regions.collect::<Result<_>>()?);
    Ok(Arc::new(mem.map_err(usage)?))
}

/// The device's side of an empty ring, whose driver is in `memory`, which is `mem` for the device.
///
/// # Errors
/// If the ring breaks a rule.
pub fn ring(
    driver: &SplitDriver,
    memory: &GuestMemory,
    mem: &Arc<Mem>,
    features: u64,
) -> Result<Ring> {
    let setup = driver.setup();
    let setup = Setup {
        size: setup.size,
        desc: memory.uva(setup.desc)?,
        avail: memory.uva(setup.avail)?,
        used: memory.uva(setup.used)?,
        base: Some(0),
        features,
        log: None,
        log_addr: None,
        inflight: None,
    };
    Ring::new(setup, Arc::clone(mem)).map_err(usage)
}

/// The same, as a session hands it to a worker, without file descriptors.
///
/// # Errors
/// If the ring breaks a rule, or there is no socket to be had.
pub fn attach(
    driver: &SplitDriver,
    memory: &GuestMemory,
    mem: &Arc<Mem>,
    features: u64,
) -> Result<Attach> {
    let (stream, _) = std::os::unix::net::UnixStream::pair().map_err(usage)?;
    Ok(Attach {
        ring: ring(driver, memory, mem, features)?,
        kick: None,
        call: None,
        err: None,
        enabled: true,
        alarm: Arc::new(Alarm::new(stream)),
        cell: None,
    })
}
