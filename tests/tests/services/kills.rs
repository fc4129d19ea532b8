//! vblk is killed over and over in mid-write, at each of its fail points and at random; a front-end
//! with the in-flight table reconnects. Every acknowledged write is there, none takes effect a
//! second time over a newer one, and the guest sees no error.
//!
//! Lane `l` has one request in flight and writes records 0, 1, 2 … into a window of blocks, so a
//! write that takes effect late leaves an older record where a newer one was acknowledged. Every
//! eighth request of a lane is a FLUSH, every fifth a read of what was acknowledged last.
//!
//! `TOWPATH_KILLS=10000` makes it the long run; `make test` does some hundred.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use towpath_common::testing::blk::{BlkQueue, Done, OK, Op, Shape};
use towpath_common::testing::frontend::Inflight;
use towpath_common::testing::{Driver, Frontend, GuestMemory, RawFrontend, SplitDriver, Wanted};
use towpath_tests::daemon::Vblk;
use towpath_tests::records::{BLOCK, Block, record};

use crate::{PATIENCE, create_image};

/// Kills, unless `TOWPATH_KILLS` says otherwise: a multiple of the five ways.
const KILLS: u64 = 250;
pub(crate) const LANES: u16 = 16;
const QUEUE_SIZE: u16 = 128;
/// Blocks of each lane's region; its window is some of them.
const REGION: u64 = 64;
/// What the lanes need.
pub(crate) const IMAGE_BYTES: u64 = LANES as u64 * REGION * BLOCK as u64;
const DIE: &str = "TOWPATH_VBLK_DIE";
const POINTS: [&str; 4] = ["fetched", "submitted", "completed", "used"];

pub(crate) fn window(lane: u16) -> u64 {
    [1, 4, 16, 64][usize::from(lane) % 4]
}

/// First byte of a record.
pub(crate) fn place(lane: u16, seq: u64) -> u64 {
    (u64::from(lane) * REGION + seq % window(lane)) * BLOCK as u64
}

fn kills() -> u64 {
    let asked = std::env::var("TOWPATH_KILLS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(KILLS)
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

#[derive(Clone, Copy, Default)]
struct Lane {
    /// Records acknowledged.
    written: u64,
    /// Requests made.
    made: u64,
    /// What is in flight.
    now: Option<Op>,
}

pub(crate) struct Guest {
    memory: GuestMemory,
    queue: BlkQueue,
    table: Option<Inflight>,
    frontend: Option<Frontend>,
    lanes: Vec<Lane>,
    done: Vec<Done>,
}

impl Guest {
    pub(crate) fn connect(vblk: &Vblk) -> Result<Guest> {
        Guest::connect_to(vblk, "disk")
    }

    pub(crate) fn connect_to(vblk: &Vblk, socket: &str) -> Result<Guest> {
        let wanted = Wanted::default();
        let memory = GuestMemory::new(8 << 20)?;
        let raw = RawFrontend::connect(&vblk.path(socket), PATIENCE)?;
        let mut frontend = Frontend::handshake(raw, wanted)?;
        let shape = Shape {
            slots: LANES,
            buffer: u32::try_from(BLOCK)?,
            ..Shape::default()
        };
        let table = frontend.get_inflight(1, QUEUE_SIZE)?;
        let driver = SplitDriver::new(&memory, QUEUE_SIZE, frontend.features())?;
        let queue = BlkQueue::new(driver, &memory, shape)?;
        let mut guest = Guest {
            memory,
            queue,
            table: Some(table),
            frontend: Some(frontend),
            lanes: vec![Lane::default(); LANES.into()],
            done: Vec::new(),
        };
        guest.start()?;
        Ok(guest)
    }

    /// Give vblk memory, table and ring, of the first time or of all later ones.
    fn start(&mut self) -> Result<()> {
        let frontend = self.frontend.as_mut().context("not connected")?;
        frontend.set_memory(&self.memory)?;
        let table = self.table.as_ref().context("no in-flight table")?;
        frontend.set_inflight(table)?;
        frontend.start_queue(0, &self.memory, &self.queue.driver().setup())?;
        Ok(())
    }

    pub(crate) fn reconnect(&mut self, vblk: &Vblk) -> Result<()> {
        self.frontend = None;
        let raw = RawFrontend::connect(&vblk.path("disk"), PATIENCE)?;
        self.frontend = Some(Frontend::handshake(raw, Wanted::default())?);
        self.start()
    }

    /// Post what idle lanes do next.
    pub(crate) fn post(&mut self) -> Result<()> {
        for lane in 0..LANES {
            let slot = usize::from(lane);
            let state = &mut self.lanes[slot];
            if state.now.is_some() {
                continue;
            }
            state.made += 1;
            let len = u32::try_from(BLOCK)?;
            let (op, seq, len) = match state.made {
                n if n % 8 == 0 => (Op::Flush, 0, 0),
                n if n % 5 == 0 && state.written > 0 => (Op::In, state.written - 1, len),
                _ => (Op::Out, state.written, len),
            };
            state.now = Some(op);
            if op == Op::Out {
                let gpa = self.queue.data(slot);
                self.memory.write(gpa, &record(lane.into(), seq).0)?;
            }
            let sector = if len == 0 { 0 } else { place(lane, seq) / 512 };
            self.queue.prepare(slot, op, sector, len)?;
            self.queue.post(slot);
        }
        self.queue.publish()?;
        Ok(())
    }

    /// Take what came back; how much.
    pub(crate) fn reap(&mut self) -> Result<usize> {
        self.done.clear();
        self.queue.reap(&mut self.done)?;
        for done in &self.done {
            let lane = &mut self.lanes[done.slot];
            let op = lane.now.take();
            ensure!(
                done.status == OK,
                "{op:?} of lane {}: {}",
                done.slot,
                done.status
            );
            match op {
                Some(Op::Out) => lane.written += 1,
                Some(Op::In) => {
                    let mut block = Block::default();
                    self.memory.read(self.queue.data(done.slot), &mut block.0)?;
                    let wanted = record(done.slot as u64, lane.written - 1);
                    ensure!(block == wanted, "lane {} read something else", done.slot);
                }
                Some(_) => {}
                None => anyhow::bail!("lane {} was answered twice", done.slot),
            }
        }
        Ok(self.done.len())
    }

    /// Wait until nothing is in flight.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while self.lanes.iter().any(|lane| lane.now.is_some()) {
            if self.reap()? == 0 {
                let stuck = self.lanes.iter().filter(|l| l.now.is_some()).count();
                ensure!(
                    Instant::now() < until,
                    "{stuck} requests were never answered"
                );
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Records acknowledged, by lane.
    pub(crate) fn written(&self) -> Vec<u64> {
        self.lanes.iter().map(|lane| lane.written).collect()
    }

    /// With nothing in flight, each block holds the last record acknowledged there.
    pub(crate) fn check(&self, image: &File) -> Result<()> {
        let mut block = Block::default();
        for (lane, state) in (0..).zip(&self.lanes) {
            for seq in state.written.saturating_sub(window(lane))..state.written {
                image.read_exact_at(&mut block.0, place(lane, seq))?;
                ensure!(
                    block == record(lane.into(), seq),
                    "lane {lane} of {} records: record {seq} is not there",
                    state.written
                );
            }
        }
        Ok(())
    }
}

/// Work until vblk is dead: by its own hand, or ours after `alive`.
fn work_until_dead(guest: &mut Guest, vblk: &mut Vblk, alive: Option<Duration>) -> Result<()> {
    let began = Instant::now();
    let mut rounds = 0_u32;
    loop {
        guest.post()?;
        if guest.reap()? == 0 {
            std::thread::yield_now();
        }
        rounds += 1;
        match alive {
            Some(alive) if began.elapsed() >= alive => return vblk.daemon().kill(),
            None if rounds.is_multiple_of(64) => {
                if vblk.daemon().process().ended()?.is_some() {
                    return Ok(());
                }
                ensure!(began.elapsed() < PATIENCE, "vblk did not die");
            }
            _ => {}
        }
    }
}

#[test]
fn nothing_is_lost_or_doubled_wherever_vblk_is_killed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    create_image(&image, IMAGE_BYTES)?;
    let images = [File::open(&image)?];
    let vblk = Vblk::serve(dir, &["{dir}/image,socket={dir}/disk,queues=1"], &[])?;
    kill_over_and_over(vblk, &images, kills())
}

/// The same with a mirror: after each life both disks have all that was acknowledged, and in the
/// end, once the second has caught up, they are equal.
#[test]
fn a_mirrors_disks_both_have_everything_wherever_vblk_is_killed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let paths = ["image", "other"].map(|name| dir.path().join(name));
    for path in &paths {
        create_image(path, IMAGE_BYTES)?;
    }
    let images = [File::open(&paths[0])?, File::open(&paths[1])?];
    let mirror = format!("mirror:{}|{}", paths[0].display(), paths[1].display());
    let made = std::process::Command::new(towpath_tests::cargo::program("vblk", "vblk")?)
        .args(["mirror", "create", &mirror, "--assume-clean"])
        .output()?;
    ensure!(made.status.success(), "{made:?}");
    let disk = format!("{mirror},socket={{dir}}/disk,queues=1");
    let vblk = Vblk::serve(dir, &[&disk], &[])?;
    kill_over_and_over(vblk, &images, kills() / 5)
}

/// Kill it, start it again, reconnect, and look; `images` are what it serves, each all of it.
fn kill_over_and_over(mut vblk: Vblk, images: &[File], kills: u64) -> Result<()> {
    let seed = u64::from(std::process::id());
    println!("seed {seed}, {kills} kills");
    let mut random = Random(seed);
    let mut guest = Guest::connect(&vblk)?;
    let mut resubmitted = 0_u64;
    for kill in 0..kills {
        // The first life was begun without a death in its environment.
        let way = if kill == 0 { 4 } else { kill % 5 };
        let alive = (way == 4).then(|| Duration::from_micros(random.below(5_000)));
        work_until_dead(&mut guest, &mut vblk, alive)?;
        guest.reap()?;
        resubmitted += guest.lanes.iter().filter(|lane| lane.now.is_some()).count() as u64;
        let next = usize::try_from((kill + 1) % 5)?;
        let death = POINTS
            .get(next)
            .map(|point| format!("{point}:{}", 1 + random.below(60)));
        vblk.set_variable(DIE, None);
        // Every fourth time what was in flight is let finish and looked at, in a life of its own.
        if kill % 4 == 0 {
            vblk.start_again()?;
            guest.reconnect(&vblk)?;
            guest
                .settle()
                .with_context(|| format!("after kill {kill}"))?;
            for image in images {
                let checked = guest.check(image);
                checked.with_context(|| format!("after kill {kill}"))?;
            }
            vblk.daemon().kill()?;
        }
        let mortal = death.is_some();
        vblk.set_variable(DIE, death);
        vblk.start_again()?;
        // It may die of what is left in flight, before the last ring is set up.
        if let Err(error) = guest.reconnect(&vblk) {
            ensure!(mortal, "{error}");
            vblk.daemon().ended(PATIENCE)?;
        }
    }
    vblk.daemon()
        .kill()
        .or_else(|_| vblk.daemon().ended(PATIENCE).map(drop))?;
    vblk.set_variable(DIE, None);
    vblk.start_again()?;
    guest.reconnect(&vblk)?;
    guest.settle()?;
    for image in images {
        guest.check(image)?;
    }
    equal_in_time(images)?;
    let written: u64 = guest.lanes.iter().map(|lane| lane.written).sum();
    println!("{written} records acknowledged, {resubmitted} requests outlived their daemon");
    ensure!(resubmitted > 0, "no request was in flight at any kill");
    vblk.daemon().stop()
}

/// What a mirror's disks do after a crash: one catches up with the other.
fn equal_in_time(images: &[File]) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    let read = |file: &File| -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(IMAGE_BYTES)?];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    for pair in images.windows(2) {
        while read(&pair[0])? != read(&pair[1])? {
            ensure!(Instant::now() < until, "the disks do not become equal");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}
