//! What a session knows, and what each message does to it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use super::error::SessionError;
use super::kept::{Kept, take_up};
use super::vring::{Addresses, Vring};
use super::{Alarm, Attach, Device, Update};
use super::{F_LOG_ALL, F_PROTOCOL_FEATURES, P_NET_MTU, P_RARP};
use crate::bell::Bell;
use crate::mem::{DirtyLog, Mapping, Mem, Region};
use crate::ring::inflight::InflightTable;
use crate::ring::{MAX_SIZE, Ring, RingError};

/// What the control plane sees of a session.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// A front-end is connected.
    pub connected: bool,
    /// Negotiated virtio features.
    pub features: u64,
    /// Negotiated protocol features.
    pub protocol: u64,
    /// Virtio device status byte, where the front-end sends it.
    pub device_status: u8,
    /// Bytes of guest memory shared with us.
    pub memory: u64,
    /// Memory regions.
    pub regions: usize,
    /// Vring by vring: size (0: unknown), started, enabled, attached.
    pub vrings: Vec<(u16, bool, bool, bool)>,
    /// Sessions so far, this one included.
    pub sessions: u64,
    /// Times a session went on that a predecessor of this process began.
    pub resumed: u64,
    /// It goes on in a successor, should this process end.
    pub kept: bool,
    /// It ended this process too often, and is not served: its connection is held, its requests
    /// wait. [`super::Server::release`] tries it again.
    pub quarantined: bool,
    /// Why no front-end can connect, else why the last session ended or a message was refused.
    pub last_error: Option<String>,
}

/// One connection's state.
#[derive(Debug)]
pub struct Session<D: Device> {
    pub(super) device: Arc<D>,
    pub(super) alarm: Arc<Alarm>,
    /// Acknowledged virtio features, with the vhost-user bits.
    pub(super) features: u64,
    pub(super) protocol: u64,
    pub(super) device_status: u8,
    pub(super) mem: Arc<Mem>,
    pub(super) log: Option<Log>,
    pub(super) inflight: Option<InflightTable>,
    pub(super) vrings: Vec<Vring>,
    /// Channel for our own requests (SET_BACKEND_REQ_FD).
    pub(super) backend_req: Option<UnixStream>,
    /// Calls drivers from this thread; made when first needed.
    bell: Option<Bell>,
    /// What keeps it for a successor.
    pub(super) keeping: Option<Kept>,
    /// Rings are attached for the first time after a predecessor had them.
    pub(super) restoring: bool,
    pub(super) status: Arc<Mutex<Status>>,
}

/// The dirty log and the file it lives in, kept for a successor process.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) log: DirtyLog,
    pub(super) file: OwnedFd,
    pub(super) offset: u64,
    pub(super) len: u64,
}

type Result<T> = std::result::Result<T, SessionError>;

/// Protocol features of every session. REPLY_ACK is the `vhost` crate's.
fn protocol_of_all() -> Protocol {
    Protocol::MQ
        | Protocol::LOG_SHMFD
        | Protocol::REPLY_ACK
        | Protocol::BACKEND_REQ
        | Protocol::CONFIG
        | Protocol::INFLIGHT_SHMFD
        | Protocol::RESET_DEVICE
        | Protocol::CONFIGURE_MEM_SLOTS
        | Protocol::STATUS
}

impl<D: Device> Session<D> {
    /// A fresh session for `device`; `alarm` hangs up its connection.
    pub fn new(device: Arc<D>, alarm: Arc<Alarm>, status: Arc<Mutex<Status>>) -> Session<D> {
        let vrings = (0..device.max_queues()).map(|_| Vring::default()).collect();
        Session {
            device,
            alarm,
            features: 0,
            protocol: 0,
            device_status: 0,
            mem: Arc::new(Mem::default()),
            log: None,
            inflight: None,
            vrings,
            backend_req: None,
            bell: None,
            keeping: None,
            restoring: false,
            status,
        }
    }

    pub(super) fn offered(&self) -> u64 {
        self.device.features() | F_PROTOCOL_FEATURES | F_LOG_ALL
    }

    pub(super) fn protocol_offered(&self) -> Protocol {
        let own = self.device.protocol_features() & (P_RARP | P_NET_MTU);
        protocol_of_all() | Protocol::from_bits_truncate(own)
    }

    pub(super) fn index(&self, index: u32) -> Result<u16> {
        let queues = self.device.max_queues();
        let small = u16::try_from(index).ok().filter(|i| *i < queues);
        small.ok_or(SessionError::BadVring { index, queues })
    }

    pub(super) fn vring(&mut self, index: u16) -> Result<&mut Vring> {
        let queues = self.device.max_queues();
        let bad = SessionError::BadVring {
            index: index.into(),
            queues,
        };
        self.vrings.get_mut(usize::from(index)).ok_or(bad)
    }

    fn stopped(&mut self, index: u16) -> Result<&mut Vring> {
        let vring = self.vring(index)?;
        if vring.attached {
            Err(SessionError::Running(index))
        } else {
            Ok(vring)
        }
    }

    fn is_enabled(&self, vring: &Vring) -> bool {
        self.features & F_PROTOCOL_FEATURES == 0 || vring.enabled
    }

    /// Give every complete vring that no worker has to the device. One that cannot run does not
    /// keep the others from running; the first error is returned.
    pub(super) fn resume(&mut self) -> Result<()> {
        (0..self.device.max_queues())
            .map(|index| self.resume_one(index))
            .fold(Ok(()), Result::and)
    }

    pub(super) fn resume_one(&mut self, index: u16) -> Result<()> {
        if self.mem.regions().is_empty() {
            return Ok(());
        }
        let logging = self.features & F_LOG_ALL != 0;
        let log = self.log.as_ref().filter(|_| logging).map(|l| l.log.clone());
        let bad = |source| SessionError::Ring { index, source };
        let (features, mem) = (self.features, Arc::clone(&self.mem));
        let alarm = Arc::clone(&self.alarm);
        let (cell, restoring) = (self.cell(index), self.restoring);
        let table = self.inflight.clone();
        let own = self.device.keeps_in_flight();
        let vring = self.vring(index)?;
        if vring.attached || !vring.is_complete() {
            return Ok(());
        }
        let setup = vring
            .setup(index, features, log.as_ref(), table.as_ref(), own)
            .map_err(bad)?;
        let Some(setup) = setup else { return Ok(()) };
        let mut ring = Ring::new(setup, mem).map_err(bad)?;
        if let Some(cell) = &cell {
            take_up(cell, &mut ring, restoring);
        }
        let (kick, call, err) = (dup(&vring.kick)?, dup(&vring.call)?, dup(&vring.err)?);
        let enabled = self
            .vrings
            .get(usize::from(index))
            .is_some_and(|v| self.is_enabled(v));
        self.device.attach(
            index,
            Attach {
                ring,
                kick,
                call,
                err,
                enabled,
                alarm,
                cell,
            },
        )?;
        self.vring(index)?.attached = true;
        // What was used before (by a process that died, on an eventfd since replaced) may not have
        // been told; a call too many does no harm.
        self.call(index)
    }

    /// Call the driver. Not by write(2), which could wait for ever: the front-end shares the
    /// eventfd, may have filled it, and may make it blocking at any time.
    fn call(&mut self, index: u16) -> Result<()> {
        let vring = self.vrings.get(usize::from(index));
        let Some(call) = vring.and_then(|v| v.call.as_ref()) else {
            return Ok(());
        };
        let bell = match &mut self.bell {
            Some(bell) => bell,
            none => none.insert(Bell::new().map_err(SessionError::NoBell)?),
        };
        bell.aim(Some(call.as_fd())).map_err(SessionError::NoBell)?;
        bell.ring();
        bell.aim(None).map_err(SessionError::NoBell)
    }

    /// Take a vring back from its worker, drained.
    pub(super) fn pause_one(&mut self, index: u16) -> Result<()> {
        if !self.vring(index)?.attached {
            return Ok(());
        }
        let ring = self.device.detach(index);
        let vring = self.vring(index)?;
        vring.attached = false;
        // If the worker died with it, the in-flight table knows where it stood.
        vring.base = ring.map(|r| r.next_avail());
        Ok(())
    }

    pub(super) fn pause(&mut self) -> Result<()> {
        (0..self.device.max_queues()).try_for_each(|index| self.pause_one(index))
    }

    /// Detach every ring, change something, attach them again.
    fn rebuild<T>(&mut self, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.pause()?;
        let changed = change(self);
        self.resume()?;
        changed
    }

    pub(super) fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            return Err(SessionError::NotOffered(unknown));
        }
        if features == self.features {
            // A driver that begins anew may accept what the one before it did; where the front-end
            // sends no status, this is all that is seen of it.
            let runs = self.vrings.iter().any(|vring| vring.started);
            if !runs && !self.speaks(Protocol::STATUS) {
                self.device.reset();
            }
            return Ok(());
        }
        self.rebuild(|s| {
            s.features = features;
            s.device.negotiated(features);
            Ok(())
        })
    }

    pub(super) fn set_protocol_features(&mut self, bits: u64) -> Result<()> {
        let unknown = bits & !self.protocol_offered().bits();
        if unknown != 0 {
            return Err(SessionError::NotOffered(unknown));
        }
        self.protocol = bits;
        Ok(())
    }

    /// SET_MEM_TABLE: the regions are mapped before anything changes, so a bad table changes
    /// nothing.
    pub(super) fn set_memory(&mut self, regions: Vec<Region>) -> Result<()> {
        let mem = Mem::new(regions)?;
        self.swap_memory(mem)
    }

    pub(super) fn add_region(&mut self, region: Region) -> Result<()> {
        let mem = self.mem.with(region)?;
        self.swap_memory(mem)
    }

    pub(super) fn remove_region(&mut self, spec: &crate::mem::RegionSpec) -> Result<()> {
        let mem = self.mem.without(spec)?;
        self.swap_memory(mem)
    }

    fn swap_memory(&mut self, mem: Mem) -> Result<()> {
        self.rebuild(|s| {
            s.mem = Arc::new(mem);
            s.device.memory(&s.mem);
            Ok(())
        })
    }

    pub(super) fn set_log(&mut self, file: OwnedFd, offset: u64, len: u64) -> Result<()> {
        let mapping = Mapping::of_file(std::os::fd::AsFd::as_fd(&file), offset, len)?;
        let log = DirtyLog::new(mapping, self.mem.end())?;
        self.rebuild(|s| {
            s.log = Some(Log {
                log,
                file,
                offset,
                len,
            });
            Ok(())
        })
    }

    pub(super) fn set_inflight(&mut self, table: InflightTable) -> Result<()> {
        self.rebuild(|s| {
            s.inflight = Some(table);
            Ok(())
        })
    }

    pub(super) fn set_size(&mut self, index: u16, size: u32) -> Result<()> {
        let good = u16::try_from(size)
            .ok()
            .filter(|s| s.is_power_of_two() && *s <= MAX_SIZE);
        let bad = SessionError::Ring {
            index,
            source: RingError::BadSize(size),
        };
        let good = good.ok_or(bad)?;
        if self.vring(index)?.size == Some(good) {
            return Ok(());
        }
        self.stopped(index)?.size = Some(good);
        self.resume_one(index)
    }

    pub(super) fn set_base(&mut self, index: u16, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| SessionError::BadBase(base))?;
        // It may come last, when the vring runs already: messages come in any order.
        self.pause_one(index)?;
        self.vring(index)?.base = Some(base);
        self.resume_one(index)
    }

    pub(super) fn set_addresses(&mut self, index: u16, addresses: Addresses) -> Result<()> {
        self.pause_one(index)?;
        self.vring(index)?.addresses = Some(addresses);
        self.resume_one(index)
    }

    /// GET_VRING_BASE: stop the vring and say where it stands.
    pub(super) fn stop(&mut self, index: u16) -> Result<u16> {
        self.pause_one(index)?;
        let vring = self.vring(index)?;
        vring.started = false;
        vring.kick = None;
        Ok(vring.base.unwrap_or(0))
    }

    pub(super) fn set_kick(&mut self, index: u16, fd: Option<OwnedFd>) -> Result<()> {
        check_eventfd(index, "kick", fd.as_ref())?;
        self.pause_one(index)?;
        let vring = self.vring(index)?;
        vring.kick = fd;
        vring.started = true;
        self.resume_one(index)
    }

    pub(super) fn set_call(&mut self, index: u16, fd: Option<OwnedFd>) -> Result<()> {
        check_eventfd(index, "call", fd.as_ref())?;
        let dup = dup(&fd)?;
        let vring = self.vring(index)?;
        vring.call = fd;
        if vring.attached {
            self.device.update(index, Update::Call(dup));
            // What came back meanwhile was told on the old one, which the front-end may have
            // stopped watching.
            self.call(index)?;
        }
        Ok(())
    }

    pub(super) fn set_err(&mut self, index: u16, fd: Option<OwnedFd>) -> Result<()> {
        check_eventfd(index, "error", fd.as_ref())?;
        let dup = dup(&fd)?;
        let vring = self.vring(index)?;
        vring.err = fd;
        if vring.attached {
            self.device.update(index, Update::Err(dup));
        }
        Ok(())
    }

    pub(super) fn set_enabled(&mut self, index: u16, enabled: bool) -> Result<()> {
        let vring = self.vring(index)?;
        vring.enabled = enabled;
        if vring.attached {
            self.device.update(index, Update::Enabled(enabled));
        }
        Ok(())
    }

    /// RESET_DEVICE, RESET_OWNER, and a device status of zero: every vring stops and forgets where
    /// it stood; memory stays, as the specification asks.
    pub(super) fn reset(&mut self) -> Result<()> {
        self.pause()?;
        for vring in &mut self.vrings {
            vring.started = false;
            vring.enabled = false;
            vring.base = None;
            vring.kick = None;
        }
        self.device_status = 0;
        self.device.reset();
        Ok(())
    }

    /// The connection is over: take every ring back. The in-flight tables keep what they say.
    pub(super) fn end(&mut self) {
        // Only an index out of range could fail, and these are not.
        let _ = self.pause();
        self.device.disconnected();
    }

    /// Remember why a message was refused, for the control plane.
    pub(super) fn note(&self, why: String) {
        lock(&self.status).last_error = Some(why);
    }

    /// Publish what the control plane sees.
    pub(super) fn report(&self) {
        let mut status = lock(&self.status);
        status.connected = true;
        status.features = self.features;
        status.protocol = self.protocol;
        status.device_status = self.device_status;
        status.regions = self.mem.regions().len();
        status.memory = self.mem.regions().iter().map(|r| r.spec().len).sum();
        let seen = |v: &Vring| {
            (
                v.size.unwrap_or(0),
                v.started,
                self.is_enabled(v),
                v.attached,
            )
        };
        status.vrings = self.vrings.iter().map(seen).collect();
        status.kept = self.is_kept();
    }
}

/// A poisoned lock only means that some thread panicked while it copied a status.
pub(super) fn lock(status: &Mutex<Status>) -> MutexGuard<'_, Status> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A second handle for the worker.
fn dup(fd: &Option<OwnedFd>) -> Result<Option<OwnedFd>> {
    fd.as_ref()
        .map(OwnedFd::try_clone)
        .transpose()
        .map_err(SessionError::NoFds)
}

/// Refuse what is not an eventfd: a bell can signal nothing else, and polling anything else could
/// wake a worker for ever. Whether it blocks does not matter: nobody reads it or writes to it.
fn check_eventfd(index: u16, what: &'static str, fd: Option<&OwnedFd>) -> Result<()> {
    use std::os::fd::AsRawFd;
    let Some(fd) = fd else { return Ok(()) };
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let target = rustix::fs::readlink(link.as_str(), Vec::new());
    let is_eventfd = target.is_ok_and(|t| t.to_bytes() == b"anon_inode:[eventfd]");
    if !is_eventfd {
        return Err(SessionError::NotEventFd { index, what });
    }
    Ok(())
}
