//! The honest front-end: one vhost-user session as a VMM would lead it.
//!
//! [`Frontend`] does the handshake and then says what it is asked to say, in any order the test
//! likes. Requests that have no answer are sent with `NEED_REPLY` once `REPLY_ACK` is negotiated,
//! and a refusal is an [`Error::Refused`]; without it they go unanswered, as in the protocol.
//!
//! Memory, drivers and in-flight table belong to the caller: to reconnect, make a new [`Frontend`]
//! and give it the old ones. Request numbers and feature names are the `vhost` crate's; the
//! messages are our own, so that this is an independent reading of the protocol.
//!
//! Source: QEMU `docs/interop/vhost-user.rst`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vhost::vhost_user::message::{FrontendReq as Request, VhostUserProtocolFeatures as Protocol};

use super::driver::Setup;
use super::memory::{GuestMemory, GuestRegion};
use super::wire::{Message, NEED_REPLY, REPLY, RawFrontend, VERSION};
use super::{Error, Result, feature};

/// `SET_VRING_KICK` and its like: no descriptor follows, the device must poll.
const NO_FD: u64 = 1 << 8;

/// What the front-end would like; it gets the part of it that the back-end offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Virtio and device features ([`feature`]).
    pub features: u64,
    /// Protocol features.
    pub protocol: Protocol,
}

impl Default for Wanted {
    /// What QEMU's vhost-user-blk asks for with a Linux guest.
    fn default() -> Self {
        Self {
            features: feature::MODERN | feature::INDIRECT_DESC | feature::EVENT_IDX,
            protocol: Protocol::MQ
                | Protocol::REPLY_ACK
                | Protocol::CONFIG
                | Protocol::INFLIGHT_SHMFD
                | Protocol::CONFIGURE_MEM_SLOTS
                | Protocol::RESET_DEVICE,
        }
    }
}

/// A shared in-flight table as the back-end made it (`GET_INFLIGHT_FD`).
#[derive(Debug)]
pub struct Inflight {
    /// Bytes of the table.
    pub size: u64,
    /// Where it starts in the file.
    pub offset: u64,
    /// Queues it covers.
    pub queues: u16,
    /// Entries of each.
    pub queue_size: u16,
    /// The file.
    pub file: OwnedFd,
}

/// One vhost-user session.
#[derive(Debug)]
pub struct Frontend {
    raw: RawFrontend,
    offered: u64,
    features: u64,
    protocol: Protocol,
    queues: u64,
}

impl Frontend {
    /// Connects to a listening back-end and shakes hands; `timeout` holds for every answer.
    pub fn connect(path: &Path, wanted: Wanted, timeout: Duration) -> Result<Self> {
        Self::handshake(RawFrontend::connect(path, timeout)?, wanted)
    }

    /// Shakes hands on a fresh connection: owner, features, protocol features, queue count.
    pub fn handshake(raw: RawFrontend, wanted: Wanted) -> Result<Self> {
        let mut this = Self {
            raw,
            offered: 0,
            features: 0,
            protocol: Protocol::empty(),
            queues: 1,
        };
        this.tell(Request::SET_OWNER, &[], &[])?;
        this.offered = this.ask_u64(Request::GET_FEATURES)?;
        if this.offered & feature::PROTOCOL != 0 {
            let offered = this.ask_u64(Request::GET_PROTOCOL_FEATURES)?;
            let chosen = wanted.protocol & Protocol::from_bits_truncate(offered);
            this.tell_u64(Request::SET_PROTOCOL_FEATURES, chosen.bits())?;
            this.protocol = chosen;
            if chosen.contains(Protocol::MQ) {
                this.queues = this.ask_u64(Request::GET_QUEUE_NUM)?;
            }
        }
        this.set_features(wanted.features)?;
        Ok(this)
    }

    /// Features the back-end offered.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Features negotiated.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Protocol features negotiated.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Queues the back-end serves.
    #[must_use]
    pub fn queues(&self) -> u64 {
        self.queues
    }

    /// The connection itself, for messages that no honest front-end sends.
    #[must_use]
    pub fn raw(&self) -> &RawFrontend {
        &self.raw
    }

    /// `SET_FEATURES` with the offered part of `wanted`.
    pub fn set_features(&mut self, wanted: u64) -> Result<()> {
        self.features = self.offered & (wanted | feature::PROTOCOL);
        self.tell_u64(Request::SET_FEATURES, self.features)
    }

    /// `SET_MEM_TABLE`: the whole map at once.
    pub fn set_memory(&mut self, memory: &GuestMemory) -> Result<()> {
        let regions = memory.regions();
        let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
        let mut payload = [count.to_ne_bytes(), [0; 4]].concat();
        let mut fds = Vec::with_capacity(regions.len());
        for region in regions {
            payload.extend_from_slice(&describe(region));
            fds.push(region.file());
        }
        self.tell(Request::SET_MEM_TABLE, &payload, &fds)
    }

    /// `ADD_MEM_REG`.
    pub fn add_region(&mut self, region: &GuestRegion) -> Result<()> {
        self.need(Protocol::CONFIGURE_MEM_SLOTS)?;
        let payload = [&[0; 8][..], &describe(region)].concat();
        self.tell(Request::ADD_MEM_REG, &payload, &[region.file()])
    }

    /// `REM_MEM_REG`.
    pub fn remove_region(&mut self, region: &GuestRegion) -> Result<()> {
        self.need(Protocol::CONFIGURE_MEM_SLOTS)?;
        let payload = [&[0; 8][..], &describe(region)].concat();
        self.tell(Request::REM_MEM_REG, &payload, &[])
    }

    /// `GET_MAX_MEM_SLOTS`.
    pub fn max_mem_slots(&mut self) -> Result<u64> {
        self.need(Protocol::CONFIGURE_MEM_SLOTS)?;
        self.ask_u64(Request::GET_MAX_MEM_SLOTS)
    }

    /// Hands over a queue, starts and enables it: size, base, addresses, call, err, kick, enable.
    pub fn start_queue(
        &mut self,
        queue: u32,
        memory: &GuestMemory,
        setup: &Setup<'_>,
    ) -> Result<()> {
        self.set_vring(Request::SET_VRING_NUM, queue, setup.size.into())?;
        self.set_vring(Request::SET_VRING_BASE, queue, setup.base)?;
        self.set_vring_addr(queue, memory, setup)?;
        self.set_vring_fd(Request::SET_VRING_ERR, queue, Some(setup.err))?;
        self.set_vring_fd(Request::SET_VRING_CALL, queue, Some(setup.call))?;
        self.set_vring_fd(Request::SET_VRING_KICK, queue, Some(setup.kick))?;
        self.enable(queue, true)
    }

    /// `SET_VRING_NUM`, `SET_VRING_BASE` and others whose payload is a queue and a number.
    pub fn set_vring(&mut self, request: Request, queue: u32, value: u32) -> Result<()> {
        self.tell(request, &pair(queue, value), &[])
    }

    /// `SET_VRING_ADDR`, without dirty logging of the used ring.
    pub fn set_vring_addr(
        &mut self,
        queue: u32,
        memory: &GuestMemory,
        setup: &Setup<'_>,
    ) -> Result<()> {
        self.set_vring_addr_log(queue, memory, setup, None)
    }

    /// `SET_VRING_ADDR`; `log` is the guest address at which used-ring writes are logged.
    pub fn set_vring_addr_log(
        &mut self,
        queue: u32,
        memory: &GuestMemory,
        setup: &Setup<'_>,
        log: Option<u64>,
    ) -> Result<()> {
        let mut payload = pair(queue, log.is_some().into());
        let (desc, used) = (memory.uva(setup.desc)?, memory.uva(setup.used)?);
        for address in [desc, used, memory.uva(setup.avail)?, log.unwrap_or(0)] {
            payload.extend_from_slice(&address.to_ne_bytes());
        }
        self.tell(Request::SET_VRING_ADDR, &payload, &[])
    }

    /// `SET_VRING_KICK`, `_CALL` or `_ERR`; no descriptor means that the device polls.
    pub fn set_vring_fd(
        &mut self,
        request: Request,
        queue: u32,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        let word = u64::from(queue) | if fd.is_none() { NO_FD } else { 0 };
        self.tell(request, &word.to_ne_bytes(), fd.as_slice())
    }

    /// `SET_VRING_ENABLE`.
    pub fn enable(&mut self, queue: u32, on: bool) -> Result<()> {
        self.set_vring(Request::SET_VRING_ENABLE, queue, on.into())
    }

    /// `GET_VRING_BASE`: stops the queue; where it would go on.
    pub fn stop_queue(&mut self, queue: u32) -> Result<u32> {
        let answer = self.ask(Request::GET_VRING_BASE, &pair(queue, 0), &[])?;
        if answer.payload.len() != 8 || answer.payload[..4] != queue.to_ne_bytes() {
            return Err(protocol(&answer, "not this queue's base"));
        }
        word(&answer, 4)
    }

    /// `GET_CONFIG`: `len` bytes of the device's configuration space at `offset`.
    pub fn config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>> {
        self.need(Protocol::CONFIG)?;
        let room = usize::try_from(len).unwrap_or(usize::MAX);
        let mut payload = config_header(offset, len);
        payload.resize(payload.len() + room, 0);
        let answer = self.ask(Request::GET_CONFIG, &payload, &[])?;
        if answer.payload.len() != 12 + room {
            return Err(protocol(&answer, "configuration space of another length"));
        }
        Ok(answer.payload[12..].to_vec())
    }

    /// `SET_CONFIG`: writes the device's configuration space at `offset`.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<()> {
        self.need(Protocol::CONFIG)?;
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let payload = [&config_header(offset, len)[..], bytes].concat();
        self.tell(Request::SET_CONFIG, &payload, &[])
    }

    /// `GET_INFLIGHT_FD`: a fresh in-flight table.
    pub fn get_inflight(&mut self, queues: u16, queue_size: u16) -> Result<Inflight> {
        self.need(Protocol::INFLIGHT_SHMFD)?;
        let payload = inflight_payload(0, 0, queues, queue_size);
        let mut answer = self.ask(Request::GET_INFLIGHT_FD, &payload, &[])?;
        let (size, offset) = (dword(&answer, 0)?, dword(&answer, 8)?);
        let Some(file) = answer.fds.pop() else {
            return Err(protocol(&answer, "no in-flight descriptor"));
        };
        Ok(Inflight {
            size,
            offset,
            queues,
            queue_size,
            file,
        })
    }

    /// `SET_INFLIGHT_FD`: gives a table back, before the queues start.
    pub fn set_inflight(&mut self, table: &Inflight) -> Result<()> {
        self.need(Protocol::INFLIGHT_SHMFD)?;
        let payload = inflight_payload(table.size, table.offset, table.queues, table.queue_size);
        self.tell(Request::SET_INFLIGHT_FD, &payload, &[table.file.as_fd()])
    }

    /// `SET_LOG_BASE`: `size` bytes of `file` at `offset` are the dirty log.
    pub fn set_log(&mut self, file: BorrowedFd<'_>, size: u64, offset: u64) -> Result<()> {
        self.need(Protocol::LOG_SHMFD)?;
        let payload = [size.to_ne_bytes(), offset.to_ne_bytes()].concat();
        // Answered even without REPLY_ACK, by an empty or a u64 message.
        self.ask(Request::SET_LOG_BASE, &payload, &[file]).map(drop)
    }

    /// `SET_BACKEND_REQ_FD`: the channel on which the back-end speaks first.
    pub fn backend_channel(&mut self, timeout: Duration) -> Result<RawFrontend> {
        self.need(Protocol::BACKEND_REQ)?;
        let (ours, theirs) = UnixStream::pair().map_err(Error::io("socketpair"))?;
        self.tell(Request::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
        RawFrontend::new(ours, timeout)
    }

    /// `SEND_RARP`: announce the guest with this address.
    pub fn send_rarp(&mut self, mac: [u8; 6]) -> Result<()> {
        self.need(Protocol::RARP)?;
        // The address as it is, in a 64-bit word of the sender's byte order.
        let payload = [&mac[..], &[0; 2]].concat();
        self.tell(Request::SEND_RARP, &payload, &[])
    }

    /// `NET_SET_MTU`: the MTU that the guest is told, in bytes.
    pub fn set_mtu(&mut self, mtu: u64) -> Result<()> {
        self.need(Protocol::MTU)?;
        self.tell_u64(Request::NET_SET_MTU, mtu)
    }

    /// `RESET_DEVICE`.
    pub fn reset(&mut self) -> Result<()> {
        self.need(Protocol::RESET_DEVICE)?;
        self.tell(Request::RESET_DEVICE, &[], &[])
    }

    /// `SET_STATUS`: the virtio device status.
    pub fn set_status(&mut self, status: u8) -> Result<()> {
        self.need(Protocol::STATUS)?;
        self.tell_u64(Request::SET_STATUS, status.into())
    }

    /// `GET_STATUS`.
    pub fn status(&mut self) -> Result<u64> {
        self.need(Protocol::STATUS)?;
        self.ask_u64(Request::GET_STATUS)
    }

    /// Sends a request that has no answer of its own; waits for its acknowledgement if negotiated.
    pub fn tell(&mut self, request: Request, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        if !self.protocol.contains(Protocol::REPLY_ACK) {
            return self.raw.send(request.into(), VERSION, payload, fds);
        }
        self.raw
            .send(request.into(), VERSION | NEED_REPLY, payload, fds)?;
        match self.answer(request)?.u64()? {
            0 => Ok(()),
            code => Err(Error::Refused {
                request: request.into(),
                code,
            }),
        }
    }

    /// Sends a request and returns its answer.
    pub fn ask(
        &mut self,
        request: Request,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Message> {
        self.raw.send(request.into(), VERSION, payload, fds)?;
        self.answer(request)
    }

    fn ask_u64(&mut self, request: Request) -> Result<u64> {
        self.ask(request, &[], &[])?.u64()
    }

    fn tell_u64(&mut self, request: Request, value: u64) -> Result<()> {
        self.tell(request, &value.to_ne_bytes(), &[])
    }

    fn answer(&self, request: Request) -> Result<Message> {
        let answer = self.raw.recv()?;
        if answer.request != u32::from(request)
            || answer.flags & (VERSION | REPLY) != VERSION | REPLY
        {
            let what = format!(
                "answered by {} with flags {:#x}",
                answer.request, answer.flags
            );
            return Err(Error::Protocol {
                request: request.into(),
                what,
            });
        }
        Ok(answer)
    }

    fn need(&self, feature: Protocol) -> Result<()> {
        if self.protocol.contains(feature) {
            return Ok(());
        }
        Err(Error::NotOffered(format!("protocol feature {feature:?}")))
    }
}

/// "Memory region description": gpa, size, uva, offset in the file.
#[must_use]
pub fn describe(region: &GuestRegion) -> Vec<u8> {
    let words = [region.gpa(), region.size(), region.uva(), 0];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn pair(queue: u32, value: u32) -> Vec<u8> {
    [queue.to_ne_bytes(), value.to_ne_bytes()].concat()
}

/// "Virtio device config space": offset, size, flags.
fn config_header(offset: u32, len: u32) -> Vec<u8> {
    [offset.to_ne_bytes(), len.to_ne_bytes(), [0; 4]].concat()
}

/// "Inflight description": size, offset, queues, queue size, padded to 24 bytes.
fn inflight_payload(size: u64, offset: u64, queues: u16, queue_size: u16) -> Vec<u8> {
    let mut payload = [size.to_ne_bytes(), offset.to_ne_bytes()].concat();
    payload.extend_from_slice(&queues.to_ne_bytes());
    payload.extend_from_slice(&queue_size.to_ne_bytes());
    payload.extend_from_slice(&[0; 4]);
    payload
}

fn dword(answer: &Message, at: usize) -> Result<u64> {
    let low = u64::from(word(answer, at)?);
    Ok(low | u64::from(word(answer, at + 4)?) << 32)
}

fn word(answer: &Message, at: usize) -> Result<u32> {
    let bytes = answer
        .payload
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok());
    bytes
        .map(u32::from_ne_bytes)
        .ok_or_else(|| protocol(answer, "an answer too short"))
}

fn protocol(answer: &Message, what: &str) -> Error {
    Error::Protocol {
        request: answer.request,
        what: format!("{what} ({} bytes)", answer.payload.len()),
    }
}

#[cfg(test)]
mod tests;
