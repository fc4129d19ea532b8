//! A session that goes on in another process: written out as a [`Kept`], read back, and put on its
//! old connection without the front-end noticing.

// UNSAFETY: one dup3 onto the file descriptor inside the `vhost` crate's handler, see `adopt`.
#![expect(
    unsafe_code,
    reason = "the crate's handler has no way to be given acknowledged features"
)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use rustix::net::{SendFlags, send};
use vhost::vhost_user::BackendReqHandler;

use super::error::SessionError;
use super::kept::Kept as Keeping;
use super::state::{Log, Session, Status};
use super::vring::Vring;
use super::{Alarm, Device};
use crate::keep::{KeepError, Kept, Record, SESSION, Table, VringRecord};
use crate::mem::{DirtyLog, Mapping, Mem, Region};
use crate::ring::inflight::InflightTable;

impl From<SessionError> for KeepError {
    fn from(e: SessionError) -> KeepError {
        KeepError::Unfit(e.to_string())
    }
}

fn table_record(table: &InflightTable) -> Table {
    Table {
        offset: table.offset,
        queues: table.queues,
        size: table.size,
    }
}

fn table(fd: OwnedFd, at: Table) -> Result<InflightTable, KeepError> {
    Ok(InflightTable::adopt(fd, at.offset, at.queues, at.size)?)
}

impl<D: Device> Session<D> {
    /// All a successor needs. Valid while the session runs and after the process was killed: what
    /// changes with each request is in guest memory and the in-flight tables.
    ///
    /// # Errors
    /// If there are no file descriptors left.
    pub fn keep(&self) -> Result<Kept, KeepError> {
        let regions = self.mem.regions();
        let record = Record {
            identity: self.device.identity(),
            features: self.features,
            protocol: self.protocol,
            device_status: self.device_status,
            regions: regions.iter().map(Region::spec).collect(),
            log: self.log.as_ref().map(|l| (l.offset, l.len)),
            inflight: self.inflight.as_ref().map(table_record),
            vrings: self.vrings.iter().map(vring_record).collect(),
            settings: self.device.settings(),
        };
        let mut kept = Kept::new(SESSION, self.device.name(), &record)?;
        for (i, region) in regions.iter().enumerate() {
            kept.keep(format!("mem.{i}"), region.file())?;
        }
        if let Some(log) = &self.log {
            kept.keep("log", &log.file)?;
        }
        if let Some(table) = &self.inflight {
            kept.keep("inflight", table.file())?;
        }
        if let Some(channel) = &self.backend_req {
            kept.keep("backend_req", channel)?;
        }
        for (i, v) in self.vrings.iter().enumerate() {
            let own = v.own_inflight.as_ref().map(InflightTable::file);
            let fds = [
                ("kick", v.kick.as_ref()),
                ("call", v.call.as_ref()),
                ("err", v.err.as_ref()),
                ("inflight", own),
            ];
            for (what, fd) in fds {
                if let Some(fd) = fd {
                    kept.keep(format!("vring.{i}.{what}"), fd)?;
                }
            }
        }
        Ok(kept)
    }

    /// Go on where another process stopped: the rings are attached again, and hand out first what
    /// was in flight. `keeping` keeps it from now on.
    ///
    /// # Errors
    /// [`KeepError`]; nothing is attached then.
    pub fn restore(
        device: Arc<D>,
        alarm: Arc<Alarm>,
        status: Arc<Mutex<Status>>,
        kept: Kept,
        keeping: Option<Keeping>,
    ) -> Result<Session<D>, KeepError> {
        let mut session = Session::new(device, alarm, status);
        session.keeping = keeping;
        match session.take_over(kept) {
            Ok(()) => {
                session.report();
                Ok(session)
            }
            Err(error) => {
                session.forget();
                Err(error)
            }
        }
    }

    fn take_over(&mut self, mut kept: Kept) -> Result<(), KeepError> {
        let record: Record = kept.body()?;
        let identity = self.device.identity();
        if record.identity != identity {
            let was = record.identity;
            return Err(KeepError::Unfit(format!(
                "the device was {was:?} and is {identity:?} now"
            )));
        }
        if record.vrings.len() > self.vrings.len() {
            let (kept, have) = (record.vrings.len(), self.vrings.len());
            return Err(KeepError::Unfit(format!(
                "{kept} vrings, the device has {have}"
            )));
        }
        self.set_features(record.features)?;
        self.set_protocol_features(record.protocol)?;
        self.device_status = record.device_status;
        let mut regions = Vec::new();
        for (i, spec) in record.regions.into_iter().enumerate() {
            regions.push(Region::map(spec, kept.need(&format!("mem.{i}"))?)?);
        }
        self.mem = Arc::new(Mem::new(regions)?);
        if let Some((offset, len)) = record.log {
            let file = kept.need("log")?;
            let mapping = Mapping::of_file(std::os::fd::AsFd::as_fd(&file), offset, len)?;
            let log = DirtyLog::new(mapping, self.mem.end())?;
            self.log = Some(Log {
                log,
                file,
                offset,
                len,
            });
        }
        if let Some(at) = record.inflight {
            self.inflight = Some(table(kept.need("inflight")?, at)?);
        }
        self.backend_req = kept.take("backend_req").map(UnixStream::from);
        for (i, (vring, r)) in self.vrings.iter_mut().zip(record.vrings).enumerate() {
            *vring = restore_vring(i, r, &mut kept)?;
        }
        let mut settings = record.settings;
        let journal = self.keeping.as_ref().map(|keeping| keeping.failed());
        settings.failed |= journal.unwrap_or(0);
        let changed = self.device.restore(&settings);
        self.device.memory(&self.mem);
        self.restoring = true;
        let resumed = self.resume_in_order();
        self.restoring = false;
        if let Err(e) = resumed {
            self.end();
            return Err(e.into());
        }
        if changed {
            self.notify_config_change();
        }
        Ok(())
    }
}

fn vring_record(v: &Vring) -> VringRecord {
    VringRecord {
        size: v.size,
        // Where a running ring stands is what its used index and its in-flight table say.
        base: if v.attached { None } else { v.base },
        addresses: v.addresses,
        started: v.started,
        enabled: v.enabled,
        inflight: v.own_inflight.as_ref().map(table_record),
    }
}

fn restore_vring(i: usize, r: VringRecord, kept: &mut Kept) -> Result<Vring, KeepError> {
    let mut fd = |what: &str| kept.take(&format!("vring.{i}.{what}"));
    let (kick, call, err) = (fd("kick"), fd("call"), fd("err"));
    let own_inflight = match r.inflight {
        Some(at) => Some(table(kept.need(&format!("vring.{i}.inflight"))?, at)?),
        None => None,
    };
    let VringRecord {
        size,
        base,
        addresses,
        started,
        enabled,
        ..
    } = r;
    let attached = false;
    Ok(Vring {
        size,
        base,
        addresses,
        kick,
        call,
        err,
        started,
        enabled,
        attached,
        own_inflight,
    })
}

/// The `vhost` crate's handler for a connection in mid-life.
///
/// The crate refuses messages of features it has not seen acknowledged, and a new handler has seen
/// none. So it first handles the front-end's old acknowledgements again, on a socket pair of ours,
/// and then the connection is put under its file descriptor.
///
/// # Errors
/// If a system call fails, or the crate refuses what the front-end once said.
pub fn adopt<D: Device>(
    connection: &UnixStream,
    session: &Arc<Mutex<Session<D>>>,
) -> Result<BackendReqHandler<Mutex<Session<D>>>, KeepError> {
    const GET_FEATURES: u32 = 1;
    const SET_FEATURES: u32 = 2;
    const SET_PROTOCOL_FEATURES: u32 = 16;
    let (features, protocol) = {
        let s = session
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        (s.features, s.protocol)
    };
    let (ours, theirs) = UnixStream::pair()?;
    let mut handler = BackendReqHandler::from_stream(theirs, Arc::clone(session));
    let said = [
        (GET_FEATURES, None),
        (SET_FEATURES, Some(features)),
        (SET_PROTOCOL_FEATURES, Some(protocol)),
    ];
    for (request, value) in said {
        let payload = value.map(u64::to_le_bytes);
        let payload = payload.as_ref().map_or(&[][..], |p| &p[..]);
        let size = if value.is_some() { 8u32 } else { 0 };
        let header = [request, 1, size].into_iter().flat_map(u32::to_le_bytes);
        let message: Vec<u8> = header.chain(payload.iter().copied()).collect();
        send(&ours, &message, SendFlags::NOSIGNAL).map_err(std::io::Error::from)?;
        handler
            .handle_request()
            .map_err(|e| KeepError::Unfit(e.to_string()))?;
    }
    let (from, to) = (connection.as_raw_fd(), handler.as_raw_fd());
    // SAFETY: `to` is the handler's own socket, open as long as the handler lives; dup3 replaces
    // what it refers to and leaves its ownership where it is. `from` is open: it is borrowed.
    let rc = unsafe { libc::dup3(from, to, libc::O_CLOEXEC) };
    if rc < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(handler)
}
