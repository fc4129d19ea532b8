//! The victim: a front-end with one pair of rings, honest until a test says otherwise.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use towpath_common::testing::net::frame::{BROADCAST, station};
use towpath_common::testing::net::{Cut, Frame, HEADER, Header, Mac, NetClient, framed};
use towpath_common::testing::split::Desc;
use towpath_common::testing::{
    Completion, Driver, Form, Frontend, GuestMemory, Segment, SplitDriver, Token,
};

use crate::harness::{DATA, PATIENCE, QUEUE, RX_BUFFER, VICTIM, WITNESS, until};

/// Receive buffers that it keeps on offer.
const RX_BUFFERS: usize = 32;

/// A front-end with one pair of rings and a buffer for frames, to be misused.
pub(crate) struct Victim {
    pub(crate) frontend: Frontend,
    pub(crate) memory: GuestMemory,
    /// The transmit ring.
    pub(crate) ring: SplitDriver,
    /// The receive ring, with buffers on offer.
    pub(crate) rx: SplitDriver,
    /// Guest address of 64 bytes with an empty header.
    pub(crate) line: u64,
    /// Guest address of [`DATA`] bytes.
    pub(crate) data: u64,
    /// Addresses of receive buffers, by token.
    buffers: BTreeMap<Token, u64>,
    /// Frames that were received and not looked at.
    inbox: VecDeque<Vec<u8>>,
    witness: Rc<RefCell<NetClient>>,
    number: u64,
}

impl Victim {
    pub(crate) fn over(
        mut frontend: Frontend,
        memory: &GuestMemory,
        witness: Rc<RefCell<NetClient>>,
    ) -> Result<Self> {
        frontend.set_memory(memory)?;
        let mut rx = SplitDriver::new(memory, QUEUE, frontend.features())?;
        let ring = SplitDriver::new(memory, QUEUE, frontend.features())?;
        let mut buffers = BTreeMap::new();
        for _ in 0..RX_BUFFERS {
            let gpa = memory.alloc_pages(RX_BUFFER.into())?;
            let token = rx.chain(&[Segment::writable(gpa, RX_BUFFER)], Form::Direct)?;
            rx.post(token);
            buffers.insert(token, gpa);
        }
        rx.publish()?;
        frontend.start_queue(0, memory, &rx.setup())?;
        frontend.start_queue(1, memory, &ring.setup())?;
        Ok(Self {
            frontend,
            memory: memory.clone(),
            line: memory.alloc(64, 64)?,
            data: memory.alloc_pages(DATA.into())?,
            ring,
            rx,
            buffers,
            inbox: VecDeque::new(),
            witness,
            number: 0,
        })
    }

    /// Gives the receive ring a fresh one in its place, without buffers.
    pub(crate) fn withdraw(&mut self) -> Result<()> {
        self.frontend.stop_queue(0)?;
        self.rx = SplitDriver::new(&self.memory, QUEUE, self.frontend.features())?;
        self.buffers.clear();
        let setup = self.rx.setup();
        Ok(self.frontend.start_queue(0, &self.memory, &setup)?)
    }

    /// Offers a chain on the transmit ring and waits until it is back.
    pub(crate) fn post(&mut self, segments: &[Segment], form: Form) -> Result<()> {
        let token = self.ring.chain(segments, form)?;
        self.ring.post(token);
        self.ring.publish()?;
        let done = self.returned()?;
        ensure!(
            done.len() == 1 && done[0].written == 0,
            "a frame sent came back as {done:?}"
        );
        self.ring.free(token);
        Ok(())
    }

    /// Waits for chains on the transmit ring to come back.
    fn returned(&mut self) -> Result<Vec<Completion>> {
        let mut done = Vec::new();
        while self.ring.reap(&mut done)? == 0 {
            ensure!(self.ring.wait(PATIENCE)?, "a frame sent did not come back");
        }
        Ok(done)
    }

    /// Writes header and frame to the data buffer; their length.
    pub(crate) fn write(&self, header: Header, frame: &[u8]) -> Result<u32> {
        let bytes = [&header.bytes()[..], frame].concat();
        self.memory.write(self.data, &bytes)?;
        Ok(u32::try_from(bytes.len())?)
    }

    /// Sends any bytes as a frame with an empty header, and waits until they were taken.
    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.send_with(Header::default(), frame)
    }

    pub(crate) fn send_with(&mut self, header: Header, frame: &[u8]) -> Result<()> {
        let len = self.write(header, frame)?;
        self.post(&framed(self.data, len, Cut::Whole), Form::Direct)
    }

    /// A frame of the victim's own, with the next number.
    pub(crate) fn frame(&mut self, to: Mac) -> Frame {
        self.number += 1;
        Frame::new(to, station(VICTIM)).numbered(self.number, 100)
    }

    /// A frame of the victim's arrives at the witness.
    pub(crate) fn transmits(&mut self) -> Result<()> {
        // What came before may have left it no buffers.
        while self.witness.borrow_mut().poll()?.is_some() {}
        let frame = self.frame(station(WITNESS));
        self.send(&frame.bytes())?;
        self.arrives(&frame)
    }

    /// The witness gets this frame, whatever else it gets first.
    pub(crate) fn arrives(&self, frame: &Frame) -> Result<()> {
        let bytes = frame.bytes();
        loop {
            let got = self.witness.borrow_mut().expect();
            let got = got.with_context(|| format!("waiting for {frame:02x?}"))?;
            if got.frame == bytes {
                return Ok(());
            }
        }
    }

    /// Frames pass in both directions: nothing is wrong so far.
    pub(crate) fn works(&mut self) -> Result<()> {
        self.transmits()?;
        self.number += 1;
        let answer = Frame::new(station(VICTIM), station(WITNESS)).numbered(self.number, 200);
        self.witness.borrow_mut().send(&answer.bytes())?;
        loop {
            let got = self.receive(PATIENCE)?.context("no frame was received")?;
            if got == answer.bytes() {
                return Ok(());
            }
        }
    }

    /// The next frame on the receive ring, which is in one buffer.
    pub(crate) fn receive(&mut self, patience: Duration) -> Result<Option<Vec<u8>>> {
        if self.inbox.is_empty() && self.rx.wait(patience)? {
            let mut done = Vec::new();
            self.rx.reap(&mut done)?;
            for Completion { token, written } in done {
                let mut bytes = vec![0; usize::try_from(written)?];
                self.memory.read(self.buffers[&token], &mut bytes)?;
                ensure!(bytes.len() >= HEADER, "{written} bytes received");
                self.inbox.push_back(bytes.split_off(HEADER));
                self.rx.post(token);
            }
            self.rx.publish()?;
        }
        Ok(self.inbox.pop_front())
    }

    /// Has frames on their way.
    pub(crate) fn busy(&mut self) -> Result<()> {
        let frame = self.frame(BROADCAST).bytes();
        let len = self.write(Header::default(), &frame)?;
        let one = desc(self.data, len, 0, 0);
        let heads: Vec<u16> = (0..QUEUE).collect();
        self.offer(&vec![one; heads.len()], &heads)
    }

    /// A frame, taken without anybody waiting for the call.
    pub(crate) fn quietly(&mut self) -> Result<()> {
        let before = self.ring.used_idx();
        let frame = self.frame(BROADCAST).bytes();
        let len = self.write(Header::default(), &frame)?;
        self.offer(&[desc(self.data, len, 0, 0)], &[0])?;
        self.ring.events().kick()?;
        until("a frame taken", || {
            Ok((self.ring.used_idx() != before).then_some(()))
        })
    }

    /// Writes descriptors of the transmit ring from index 0 on and makes `heads` available, all at
    /// once.
    pub(crate) fn offer(&mut self, descs: &[Desc], heads: &[u16]) -> Result<()> {
        offer(&mut self.ring, descs, heads)
    }

    /// The same on the receive ring.
    pub(crate) fn offer_receive(&mut self, descs: &[Desc], heads: &[u16]) -> Result<()> {
        offer(&mut self.rx, descs, heads)
    }
}

fn offer(ring: &mut SplitDriver, descs: &[Desc], heads: &[u16]) -> Result<()> {
    for (index, desc) in (0..).zip(descs) {
        ring.poke_desc(index, *desc);
    }
    for head in heads {
        ring.poke_head(*head);
    }
    ring.publish()?;
    Ok(())
}

pub(crate) fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc {
        addr,
        len,
        flags,
        next,
    }
}
