//! A whole network card as a test sees it: one session and its queue pairs.

use std::path::Path;
use std::time::Duration;

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use super::{Header, NetPair, Received, Shape};
use crate::testing::{
    Driver, Error, Form, Frontend, GuestMemory, RawFrontend, Result, Segment, SplitDriver, Wanted,
    feature,
};

/// Guest memory for rings, tables of descriptors and what a test adds.
const SLACK: u64 = 1 << 20;

/// How [`NetClient`] sets a session up.
#[derive(Debug, Clone, Copy)]
pub struct NetOptions {
    /// Features to ask for.
    pub wanted: Wanted,
    /// Queue pairs to start.
    pub pairs: u32,
    /// Entries of each queue.
    pub queue_size: u16,
    /// Buffers of each pair.
    pub shape: Shape,
    /// Index of the control queue to start, if one is wanted: twice the device's pairs with `MQ`,
    /// else 2 (section 5.1.2).
    pub control: Option<u32>,
    /// Longest wait for an answer, a buffer, or a frame.
    pub patience: Duration,
}

impl Default for NetOptions {
    /// A Linux guest without offloads, as QEMU presents it.
    fn default() -> Self {
        Self {
            wanted: Wanted {
                features: (feature::NET_MODERN & !feature::NET_CTRL_VQ)
                    | feature::INDIRECT_DESC
                    | feature::EVENT_IDX,
                protocol: Protocol::MQ
                    | Protocol::REPLY_ACK
                    | Protocol::CONFIG
                    | Protocol::INFLIGHT_SHMFD
                    | Protocol::CONFIGURE_MEM_SLOTS
                    | Protocol::RESET_DEVICE,
            },
            pairs: 1,
            queue_size: 256,
            shape: Shape::default(),
            control: None,
            patience: Duration::from_secs(10),
        }
    }
}

impl NetOptions {
    /// These features besides.
    #[must_use]
    pub fn with(mut self, features: u64) -> Self {
        self.wanted.features |= features;
        self
    }

    /// All but these features.
    #[must_use]
    pub fn without(mut self, features: u64) -> Self {
        self.wanted.features &= !features;
        self
    }
}

/// A whole network card as a test sees it: one session, its pairs, calls on the first of them.
#[derive(Debug)]
pub struct NetClient {
    memory: GuestMemory,
    frontend: Frontend,
    pairs: Vec<NetPair>,
    control: Option<(u32, Control)>,
    options: NetOptions,
}

impl NetClient {
    /// Connects to a listening back-end with fresh memory.
    pub fn connect(path: &Path, options: NetOptions) -> Result<Self> {
        Self::over(RawFrontend::connect(path, options.patience)?, options)
    }

    /// Sets a session up over a connection (that of a [`crate::testing::Listener`], if the back-end
    /// is the client), with fresh memory.
    pub fn over(raw: RawFrontend, options: NetOptions) -> Result<Self> {
        let each = options.shape.memory() + u64::from(options.queue_size) * 128 + SLACK;
        let pairs = u64::from(options.pairs) + 1;
        let memory = GuestMemory::new((each * pairs).next_multiple_of(4096))?;
        Self::with_memory(raw, &memory, options)
    }

    /// Sets a session up over a connection, in memory of the caller's.
    pub fn with_memory(
        raw: RawFrontend,
        memory: &GuestMemory,
        options: NetOptions,
    ) -> Result<Self> {
        let frontend = Frontend::handshake(raw, options.wanted)?;
        let features = frontend.features();
        let ring = || SplitDriver::new(memory, options.queue_size, features);
        let mut pairs = Vec::new();
        for _ in 0..options.pairs {
            let drivers = [ring()?, ring()?];
            pairs.push(NetPair::new(drivers, memory, features, options.shape)?);
        }
        let control = match options.control {
            Some(index) => Some((index, Control::new(ring()?, memory)?)),
            None => None,
        };
        let mut client = Self {
            memory: memory.clone(),
            frontend,
            pairs,
            control,
            options,
        };
        client.start()?;
        Ok(client)
    }

    /// Tells the back-end of memory and queues.
    fn start(&mut self) -> Result<()> {
        let Self {
            memory,
            frontend,
            pairs,
            control,
            ..
        } = self;
        frontend.set_memory(memory)?;
        for (index, pair) in (0..).zip(pairs) {
            frontend.start_queue(2 * index, memory, &pair.rx.setup())?;
            frontend.start_queue(2 * index + 1, memory, &pair.tx.setup())?;
        }
        if let Some((index, control)) = control {
            frontend.start_queue(*index, memory, &control.driver.setup())?;
        }
        Ok(())
    }

    /// Hangs up, and goes on over the connection that `next` gives with the same memory and rings.
    pub fn reconnect(self, next: impl FnOnce() -> Result<RawFrontend>) -> Result<Self> {
        let Self {
            memory,
            frontend,
            pairs,
            control,
            options,
        } = self;
        let features = frontend.features();
        drop(frontend);
        let frontend = Frontend::handshake(next()?, options.wanted)?;
        if frontend.features() != features {
            let now = frontend.features();
            return Err(Error::Usage(format!(
                "features were {features:#x} and are {now:#x} now"
            )));
        }
        let mut client = Self {
            memory,
            frontend,
            pairs,
            control,
            options,
        };
        client.start()?;
        Ok(client)
    }

    /// The session.
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// The session and the queue pairs, to stop and start rings.
    pub fn parts(&mut self) -> (&mut Frontend, &mut [NetPair]) {
        (&mut self.frontend, &mut self.pairs)
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The queue pairs.
    pub fn pairs(&mut self) -> &mut [NetPair] {
        &mut self.pairs
    }

    /// Takes the pairs out; the session lives on, without its own calls.
    pub fn take_pairs(&mut self) -> Vec<NetPair> {
        std::mem::take(&mut self.pairs)
    }

    /// The control queue, if there is one.
    pub fn control(&mut self) -> Option<&mut Control> {
        self.control.as_mut().map(|(_, control)| control)
    }

    /// Takes the client apart, e.g. to go on without the session's manners.
    #[must_use]
    pub fn into_parts(self) -> (Frontend, GuestMemory, Vec<NetPair>) {
        (self.frontend, self.memory, self.pairs)
    }

    /// The first pair.
    pub fn pair(&mut self) -> Result<&mut NetPair> {
        self.pairs
            .first_mut()
            .ok_or_else(|| Error::Usage("a card without queues".into()))
    }

    /// Sends a frame with an empty header.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.send_with(Header::default(), frame)
    }

    /// Sends a frame.
    pub fn send_with(&mut self, header: Header, frame: &[u8]) -> Result<()> {
        let patience = self.options.patience;
        self.pair()?.send_with(header, frame, patience)
    }

    /// Waits until the device took every frame that was sent on any pair.
    pub fn flush(&mut self) -> Result<()> {
        let patience = self.options.patience;
        self.pairs
            .iter_mut()
            .try_for_each(|pair| pair.flush(patience))
    }

    /// The next frame on the first pair, or none within `patience`.
    pub fn receive(&mut self, patience: Duration) -> Result<Option<Received>> {
        self.pair()?.receive(patience)
    }

    /// The next frame on the first pair, which must come.
    pub fn expect(&mut self) -> Result<Received> {
        let patience = self.options.patience;
        self.receive(patience)?.ok_or(Error::Timeout(patience))
    }

    /// The next frame on any pair that has one, without waiting.
    pub fn poll(&mut self) -> Result<Option<Received>> {
        for pair in &mut self.pairs {
            if let Some(frame) = pair.poll()? {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// `mac` of the configuration space (section 5.1.4).
    pub fn mac(&mut self) -> Result<super::Mac> {
        let bytes = self.frontend.config(0, 6)?;
        bytes
            .try_into()
            .map_err(|_| Error::Usage("an address of other than 6 bytes".into()))
    }

    /// `max_virtqueue_pairs` of the configuration space.
    pub fn max_pairs(&mut self) -> Result<u16> {
        self.config_word(8)
    }

    /// `mtu` of the configuration space.
    pub fn mtu(&mut self) -> Result<u16> {
        self.config_word(10)
    }

    fn config_word(&mut self, offset: u32) -> Result<u16> {
        let bytes = self.frontend.config(offset, 2)?;
        let word = bytes
            .try_into()
            .map_err(|_| Error::Usage("a word of other than 2 bytes".into()))?;
        Ok(u16::from_le_bytes(word))
    }
}

/// The control queue (section 5.1.6.5).
#[derive(Debug)]
pub struct Control {
    driver: SplitDriver,
    memory: GuestMemory,
    /// A page for the command, and one for its answer.
    command: u64,
    answer: u64,
}

impl Control {
    /// What the answer holds before the device writes it.
    const UNTOUCHED: u8 = 0xa5;

    /// Over a ring in this memory.
    pub fn new(driver: SplitDriver, memory: &GuestMemory) -> Result<Self> {
        Ok(Self {
            driver,
            memory: memory.clone(),
            command: memory.alloc_pages(4096)?,
            answer: memory.alloc_pages(4096)?,
        })
    }

    /// The ring underneath, to poke.
    pub fn driver(&mut self) -> &mut SplitDriver {
        &mut self.driver
    }

    /// Gives a command of class and number, with its data; the acknowledgement (0 is well, 1 is an
    /// error).
    pub fn command(&mut self, class: u8, command: u8, data: &[u8]) -> Result<u8> {
        let patience = Duration::from_secs(10);
        let answer = self.ask(&[&[class, command], data].concat(), 1, patience)?;
        match answer {
            Some(ack) if ack != Self::UNTOUCHED => Ok(ack),
            Some(_) => Err(Error::Device("wrote no acknowledgement".into())),
            None => Err(Error::Timeout(patience)),
        }
    }

    /// `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`: use this many pairs.
    pub fn use_pairs(&mut self, pairs: u16) -> Result<u8> {
        self.command(4, 0, &pairs.to_le_bytes())
    }

    /// Any bytes as a command, with `room` (at most a page) for an answer; the last byte of it, or
    /// none if nothing came back within `patience`.
    pub fn ask(&mut self, bytes: &[u8], room: u32, patience: Duration) -> Result<Option<u8>> {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.memory.write(self.command, bytes)?;
        self.memory.write(self.answer, &[Self::UNTOUCHED; 4096])?;
        let mut segments = Vec::new();
        if len > 0 {
            segments.push(Segment::readable(self.command, len));
        }
        if room > 0 {
            segments.push(Segment::writable(self.answer, room));
        }
        let token = self.driver.chain(&segments, Form::Indirect)?;
        self.driver.post(token);
        self.driver.publish()?;
        let mut done = Vec::new();
        while self.driver.reap(&mut done)? == 0 {
            if !self.driver.wait(patience)? {
                return Ok(None);
            }
        }
        self.driver.free(token);
        let mut byte = [Self::UNTOUCHED];
        if let Some(written) = done[0].written.checked_sub(1) {
            self.memory
                .read(self.answer + u64::from(written), &mut byte)?;
        }
        Ok(Some(byte[0]))
    }
}
