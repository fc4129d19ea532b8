//! The stage: one vblk, a victim, an honest client, and what must be the same afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use towpath_common::testing::blk::{self, BlkClient, ClientOptions, Op, UNTOUCHED};
use towpath_common::testing::split::{self, Desc};
use towpath_common::testing::{
    Driver, Form, Frontend, GuestMemory, Segment, SplitDriver, Wanted, feature,
};
use towpath_tests::daemon::Vblk;

/// Guards against hanging; nothing here takes a hundredth of it on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const MIB: u64 = 1 << 20;
/// Bytes of each disk.
pub(crate) const DISK: u64 = 8 * MIB;
/// Sectors of each disk.
pub(crate) const CAPACITY: u64 = DISK / blk::SECTOR;
/// Entries of a victim's ring.
pub(crate) const QUEUE: u16 = 64;
/// Bytes of a victim's data buffer.
pub(crate) const DATA: u32 = 64 << 10;
/// The victim's ring, among its device's.
pub(crate) const RING: u32 = 0;
/// A ring that the victim does not use.
pub(crate) const SPARE: u32 = 1;
/// The first ring that its device does not have.
pub(crate) const BEYOND: u32 = 2;
/// A feature that its device does not offer.
pub(crate) const FOREIGN: u64 = feature::BLK_RO;
/// How far the honest client must get after an attack.
const PROGRESS: u64 = 20;
/// Anonymous memory the daemon may keep after an attack, in KiB: allocator slack.
const GROWTH: u64 = 8 << 10;
const TICK: Duration = Duration::from_millis(5);
const DISKS: [&str; 3] = ["victim", "honest", "readonly"];

/// Polls until `done` gives something, or fails with what it waited for.
pub(crate) fn until<T>(what: &str, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("{what}: not within {PATIENCE:?}");
        }
        sleep(TICK);
    }
}

/// What front-ends ask for.
pub(crate) fn wanted() -> Wanted {
    Wanted::default()
}

/// A vblk with its victim and its honest client.
pub(crate) struct Scene {
    vblk: Vblk,
    honest: Option<Honest>,
    fds: usize,
    anonymous_kib: u64,
}

impl Scene {
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        for name in DISKS {
            fs::write(dir.path().join(name), image())?;
        }
        let disk = |name, more| {
            format!(
                "{{dir}}/{name},socket={{dir}}/{name}.sock,name={name},serial={name},\
                 cache=buffered,block-size=512{more}"
            )
        };
        let disks = [
            disk("victim", ",queues=2"),
            disk("honest", ""),
            disk("readonly", ",ro"),
        ];
        let disks = disks.each_ref().map(String::as_str);
        let vblk = Vblk::serve(dir, &disks, &[])?;
        let mut scene = Self {
            vblk,
            honest: None,
            fds: 0,
            anonymous_kib: 0,
        };
        // One session each first: what the daemon makes once and keeps is no growth.
        let mut warm = Vec::new();
        for (name, queues) in DISKS.into_iter().zip([2, 1, 1]) {
            let options = ClientOptions {
                queues,
                ..ClientOptions::default()
            };
            let mut client = BlkClient::connect(&scene.socket(name), options)?;
            client.read(0, &mut [0; 512])?;
            warm.push(client);
        }
        drop(warm);
        scene.settle()?;
        scene.fds = scene.vblk.daemon().process().open_fds()?;
        scene.anonymous_kib = scene.vblk.daemon().process().anonymous_kib()?;
        scene.honest = Some(Honest::start(&scene.socket("honest"))?);
        Ok(scene)
    }

    pub(crate) fn socket(&self, disk: &str) -> PathBuf {
        self.vblk.path(&format!("{disk}.sock"))
    }

    /// The file behind a disk.
    pub(crate) fn file(&self, disk: &str) -> PathBuf {
        self.vblk.path(disk)
    }

    /// What the API says about a disk.
    pub(crate) fn disk(&self, name: &str) -> Result<Value> {
        self.vblk.get(&format!("/v1/disks/{name}"))
    }

    /// What the API says about the victim's disk.
    pub(crate) fn status(&self) -> Result<Value> {
        self.disk("victim")
    }

    /// A front-end on the victim's disk, well behaved so far.
    pub(crate) fn victim(&self) -> Result<Victim> {
        self.victim_on("victim", &GuestMemory::new(MIB)?)
    }

    pub(crate) fn victim_on(&self, disk: &str, memory: &GuestMemory) -> Result<Victim> {
        Victim::connect(&self.socket(disk), memory, Wanted::default())
    }

    /// A front-end that has connected, and shaken hands.
    pub(crate) fn frontend(&self) -> Result<Frontend> {
        let socket = self.socket("victim");
        Ok(Frontend::connect(&socket, Wanted::default(), PATIENCE)?)
    }

    /// Runs an attack that must break the victim's first ring, for `reason`.
    pub(crate) fn breaks(
        &self,
        reason: &str,
        attack: impl FnOnce(&mut Victim) -> Result<()>,
    ) -> Result<()> {
        let mut victim = self.victim()?;
        attack(&mut victim)?;
        self.is_broken(&victim, reason)
    }

    /// The victim's first ring is broken for `reason`, and front-end and operator are told.
    pub(crate) fn is_broken(&self, victim: &Victim, reason: &str) -> Result<()> {
        let told = victim.ring.events().broken(PATIENCE)?;
        ensure!(told, "not broken, and should be for {reason}");
        until(&format!("ring broken for {reason}"), || {
            let disk = self.disk("victim")?;
            let count = disk["stats"]["ring_broken"][reason].as_u64();
            let now = &disk["session"]["queues"][0]["broken"];
            ensure!(*now == Value::Null || now == reason, "broken for {now}");
            Ok((now == reason && count > Some(0)).then_some(()))
        })
    }

    /// The API says that the victim's ring is broken for `reason`.
    pub(crate) fn is_latched(&self, reason: &str) -> Result<()> {
        until("ring broken", || {
            let disk = self.disk("victim")?;
            Ok((disk["session"]["queues"][0]["broken"] == reason).then_some(()))
        })
    }

    /// The API says that the last session of the victim's disk met an error with `text` in it.
    pub(crate) fn error_says(&self, text: &str) -> Result<()> {
        let mut last = Value::Null;
        until(text, || {
            last = self.disk("victim")?["last_error"].take();
            Ok(last.as_str().filter(|why| why.contains(text)).map(drop))
        })
        .with_context(|| format!("the last error was {last}"))
    }

    /// The honest client still gets on.
    pub(crate) fn unaffected(&self) -> Result<()> {
        let honest = self.honest.as_ref().context("an honest client runs")?;
        let goal = honest.rounds() + PROGRESS;
        until("the honest client's progress", || {
            ensure!(!honest.thread.is_finished(), "the honest client failed");
            Ok((honest.rounds() >= goal).then_some(()))
        })
    }

    /// All that must hold after an attack; every front-end of the test is gone by now.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.unaffected()?;
        self.honest.take().context("an honest client ran")?.stop()?;
        self.settle()?;
        let fds = self.fds;
        until("file descriptors as before", || {
            let now = self.vblk.daemon().process().open_fds()?;
            Ok((now <= fds).then_some(()))
        })
        .with_context(|| format!("more than {fds} are open"))?;
        let kib = self.vblk.daemon().process().anonymous_kib()?;
        let most = self.anonymous_kib + GROWTH;
        ensure!(kib <= most, "{kib} KiB of anonymous memory, at most {most}");
        for disk in DISKS {
            let size = fs::metadata(self.file(disk))?.len();
            ensure!(size == DISK, "the file of {disk} has {size} bytes now");
        }
        let readonly = fs::read(self.file("readonly"))?;
        ensure!(readonly == image(), "the read-only disk was written");
        self.vblk.daemon().stop()
    }

    /// Waits until no front-end is connected.
    pub(crate) fn settle(&self) -> Result<()> {
        for name in DISKS {
            until("disconnected", || {
                Ok((self.disk(name)?["connected"] == false).then_some(()))
            })?;
        }
        Ok(())
    }
}

/// What every disk holds at first: each byte depends on its place.
pub(crate) fn image() -> Vec<u8> {
    let word = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..DISK / 8).flat_map(word).collect()
}

/// A client that writes, reads back and compares until it is stopped.
struct Honest {
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Honest {
    fn start(socket: &Path) -> Result<Self> {
        let options = ClientOptions {
            patience: PATIENCE,
            ..ClientOptions::default()
        };
        let mut client = BlkClient::connect(socket, options)?;
        let (rounds, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, end) = (Arc::clone(&rounds), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut read = [0; 4096];
            while !end.load(Ordering::Relaxed) {
                let round = count.fetch_add(1, Ordering::Relaxed);
                let sector = (round * 8) % CAPACITY;
                let written = round.to_le_bytes().repeat(read.len() / 8);
                client.write(sector, &written)?;
                client.read(sector, &mut read)?;
                ensure!(
                    read[..] == written[..],
                    "sector {sector}: read something else"
                );
            }
            Ok(())
        });
        Ok(Self {
            rounds,
            stop,
            thread,
        })
    }

    fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(result) => result.context("the honest client"),
            Err(_) => bail!("the honest client panicked"),
        }
    }
}

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u8,
    pub(crate) written: u32,
}

/// A front-end with one queue, a header, a status byte and a data buffer, to be misused.
pub(crate) struct Victim {
    pub(crate) frontend: Frontend,
    pub(crate) memory: GuestMemory,
    pub(crate) ring: SplitDriver,
    /// Guest address of the 16-byte header; the status byte follows.
    pub(crate) line: u64,
    /// Guest address of [`DATA`] bytes.
    pub(crate) data: u64,
}

impl Victim {
    pub(crate) fn connect(socket: &Path, memory: &GuestMemory, wanted: Wanted) -> Result<Self> {
        let mut frontend = Frontend::connect(socket, wanted, PATIENCE)?;
        frontend.set_memory(memory)?;
        let ring = SplitDriver::new(memory, QUEUE, frontend.features())?;
        frontend.start_queue(0, memory, &ring.setup())?;
        Ok(Self {
            frontend,
            memory: memory.clone(),
            ring,
            line: memory.alloc(64, 64)?,
            data: memory.alloc_pages(DATA.into())?,
        })
    }

    pub(crate) fn aim(&self, op: Op, sector: u64) -> Result<()> {
        Ok(self
            .memory
            .write(self.line, &blk::header(op.code(), sector))?)
    }

    /// The whole header.
    pub(crate) fn header(&self) -> Segment {
        Segment::readable(self.line, 16)
    }

    pub(crate) fn status(&self) -> Segment {
        Segment::writable(self.line + 16, 1)
    }

    /// Offers a chain and waits for its answer.
    pub(crate) fn ask(&mut self, segments: &[Segment], form: Form) -> Result<Answer> {
        let last = segments.iter().rev().find(|s| s.writable && s.len > 0);
        let last = last.context("a chain without room for a status")?;
        let status = last.gpa + u64::from(last.len - 1);
        self.memory.write(status, &[UNTOUCHED])?;
        let token = self.ring.chain(segments, form)?;
        self.ring.post(token);
        self.ring.publish()?;
        let mut done = Vec::new();
        while self.ring.reap(&mut done)? == 0 {
            ensure!(self.ring.wait(PATIENCE)?, "no answer");
        }
        self.ring.free(token);
        let mut byte = [0];
        self.memory.read(status, &mut byte)?;
        Ok(Answer {
            status: byte[0],
            written: done[0].written,
        })
    }

    /// A request with `data` between header and status; its status.
    pub(crate) fn request(&mut self, op: Op, sector: u64, data: &[Segment]) -> Result<u8> {
        self.aim(op, sector)?;
        let segments = [&[self.header()], data, &[self.status()]].concat();
        Ok(self.ask(&segments, Form::Indirect)?.status)
    }

    /// A request that works, to show that nothing is wrong so far.
    pub(crate) fn works(&mut self) -> Result<()> {
        let (data, mut bytes) = (Segment::writable(self.data, 512), [0; 512]);
        let status = self.request(Op::In, 1, &[data])?;
        ensure!(status == blk::OK, "a plain read answered {status}");
        self.memory.read(self.data, &mut bytes)?;
        ensure!(
            bytes[..] == image()[512..1024],
            "a plain read gave another sector"
        );
        Ok(())
    }

    /// Has a request in flight, which takes its time in the kernel.
    pub(crate) fn busy(&mut self) -> Result<()> {
        self.aim(Op::Flush, 0)?;
        let status = desc(self.line + 16, 1, split::WRITE, 0);
        self.offer(&[self.header_desc(1), status], &[0])
    }

    /// A read, answered without anybody waiting for the call.
    pub(crate) fn quietly(&mut self) -> Result<()> {
        self.aim(Op::In, 1)?;
        let before = self.ring.used_idx();
        let chain = [
            self.header_desc(1),
            desc(self.data, 512, split::NEXT | split::WRITE, 2),
            desc(self.line + 16, 1, split::WRITE, 0),
        ];
        self.offer(&chain, &[0])?;
        self.ring.events().kick()?;
        until("an answer", || {
            Ok((self.ring.used_idx() != before).then_some(()))
        })
    }

    /// Writes descriptors from index 0 on and makes `heads` available, all at once.
    pub(crate) fn offer(&mut self, descs: &[Desc], heads: &[u16]) -> Result<()> {
        for (index, desc) in (0..).zip(descs) {
            self.ring.poke_desc(index, *desc);
        }
        for head in heads {
            self.ring.poke_head(*head);
        }
        self.ring.publish()?;
        Ok(())
    }

    /// A descriptor of the header that says that `next` follows.
    pub(crate) fn header_desc(&self, next: u16) -> Desc {
        desc(self.line, 16, split::NEXT, next)
    }
}

pub(crate) fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc {
        addr,
        len,
        flags,
        next,
    }
}
