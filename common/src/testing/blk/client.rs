//! A whole disk as a test sees it: one session, its queues, blocking calls on the first of them.

use std::path::Path;
use std::time::Duration;

use super::{BlkQueue, Done, ID_LEN, OK, Op, Shape, range};
use crate::testing::{
    Driver, Error, Frontend, GuestMemory, RawFrontend, Result, SplitDriver, Wanted,
};

/// A whole disk as a test sees it: one session, its queues, blocking calls on the first of them.
#[derive(Debug)]
pub struct BlkClient {
    memory: GuestMemory,
    frontend: Frontend,
    queues: Vec<BlkQueue>,
    patience: Duration,
}

/// How [`BlkClient`] sets a session up.
#[derive(Debug, Clone, Copy)]
pub struct ClientOptions {
    /// Features to ask for.
    pub wanted: Wanted,
    /// Queues to start.
    pub queues: u32,
    /// Entries of each.
    pub queue_size: u16,
    /// Their slots.
    pub shape: Shape,
    /// Longest wait for an answer or a completion.
    pub patience: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            wanted: Wanted::default(),
            queues: 1,
            queue_size: 128,
            shape: Shape::default(),
            patience: Duration::from_secs(10),
        }
    }
}

impl BlkClient {
    /// Connects to a listening back-end with fresh memory.
    pub fn connect(path: &Path, options: ClientOptions) -> Result<Self> {
        Self::over(RawFrontend::connect(path, options.patience)?, options)
    }

    /// Sets a session up over a connection, with fresh memory.
    pub fn over(raw: RawFrontend, options: ClientOptions) -> Result<Self> {
        let shape = options.shape;
        // Data on whole pages, a line and a table a slot, three parts a ring, and slack.
        let slot = u64::from(shape.buffer).next_multiple_of(4096) + 4096;
        let ring = u64::from(options.queue_size) * 32 + (64 << 10);
        let each = slot * u64::from(shape.slots) + ring;
        let memory = GuestMemory::new((each * u64::from(options.queues)).next_multiple_of(4096))?;
        Self::with_memory(raw, &memory, options)
    }

    /// Sets a session up over a connection, in memory of the caller's.
    pub fn with_memory(
        raw: RawFrontend,
        memory: &GuestMemory,
        options: ClientOptions,
    ) -> Result<Self> {
        let mut frontend = Frontend::handshake(raw, options.wanted)?;
        frontend.set_memory(memory)?;
        let mut queues = Vec::new();
        for index in 0..options.queues {
            let driver = SplitDriver::new(memory, options.queue_size, frontend.features())?;
            frontend.start_queue(index, memory, &driver.setup())?;
            queues.push(BlkQueue::new(driver, memory, options.shape)?);
        }
        Ok(Self {
            memory: memory.clone(),
            frontend,
            queues,
            patience: options.patience,
        })
    }

    /// The session.
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The queues.
    pub fn queues(&mut self) -> &mut [BlkQueue] {
        &mut self.queues
    }

    /// Takes the queues out; the session lives on, without its blocking calls.
    pub fn take_queues(&mut self) -> Vec<BlkQueue> {
        std::mem::take(&mut self.queues)
    }

    /// Takes the client apart, e.g. to reconnect with the same memory and queues.
    #[must_use]
    pub fn into_parts(self) -> (Frontend, GuestMemory, Vec<BlkQueue>) {
        (self.frontend, self.memory, self.queues)
    }

    /// `capacity` of the configuration space, in sectors.
    pub fn capacity(&mut self) -> Result<u64> {
        let bytes = self.frontend.config(0, 8)?;
        let word = bytes
            .try_into()
            .map_err(|_| Error::Usage("capacity of no u64".into()))?;
        Ok(u64::from_le_bytes(word))
    }

    /// One request without data, e.g. FLUSH; its status.
    pub fn request(&mut self, op: Op, sector: u64, len: u32) -> Result<Done> {
        let patience = self.patience;
        self.first()?.call(op, sector, len, patience)
    }

    /// Reads from `sector` on.
    pub fn read(&mut self, sector: u64, bytes: &mut [u8]) -> Result<()> {
        let len = length(bytes.len())?;
        let done = self.request(Op::In, sector, len)?;
        expect_ok(done)?;
        if done.written != len + 1 {
            return Err(Error::Usage(format!(
                "read of {len} bytes wrote {}",
                done.written
            )));
        }
        let gpa = self.first()?.data(0);
        self.memory.read(gpa, bytes)
    }

    /// Writes from `sector` on.
    pub fn write(&mut self, sector: u64, bytes: &[u8]) -> Result<()> {
        self.send(Op::Out, sector, bytes)
    }

    /// Makes everything written durable.
    pub fn flush(&mut self) -> Result<()> {
        expect_ok(self.request(Op::Flush, 0, 0)?)
    }

    /// The identification string, without trailing zeroes.
    pub fn id(&mut self) -> Result<Vec<u8>> {
        expect_ok(self.request(Op::GetId, 0, ID_LEN)?)?;
        let gpa = self.first()?.data(0);
        let mut id = vec![0; ID_LEN as usize];
        self.memory.read(gpa, &mut id)?;
        id.truncate(id.iter().position(|byte| *byte == 0).unwrap_or(id.len()));
        Ok(id)
    }

    /// Gives `sectors` from `sector` on back.
    pub fn discard(&mut self, sector: u64, sectors: u32) -> Result<()> {
        self.send(Op::Discard, 0, &range(sector, sectors, 0))
    }

    /// Makes `sectors` from `sector` on read as zero; `flags` may be [`super::UNMAP`].
    pub fn write_zeroes(&mut self, sector: u64, sectors: u32, flags: u32) -> Result<()> {
        self.send(Op::WriteZeroes, 0, &range(sector, sectors, flags))
    }

    fn send(&mut self, op: Op, sector: u64, bytes: &[u8]) -> Result<()> {
        let gpa = self.first()?.data(0);
        let len = length(bytes.len())?;
        if len > self.first()?.shape.buffer {
            return Err(Error::Usage(format!(
                "{len} bytes are more than a slot holds"
            )));
        }
        self.memory.write(gpa, bytes)?;
        expect_ok(self.request(op, sector, len)?)
    }

    fn first(&mut self) -> Result<&mut BlkQueue> {
        self.queues
            .first_mut()
            .ok_or_else(|| Error::Usage("a disk without queues".into()))
    }
}

fn length(len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_| Error::Usage(format!("{len} bytes in one request")))
}

fn expect_ok(done: Done) -> Result<()> {
    if done.status == OK {
        Ok(())
    } else {
        Err(Error::Status(done.status))
    }
}
