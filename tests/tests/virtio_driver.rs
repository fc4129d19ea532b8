//! A second, independent front-end: the `virtio-driver` crate (of libblkio) drives vblk.
//!
//! The crate writes its own rings and speaks its own vhost-user; nothing of it is ours. It only
//! computes with the addresses of data buffers and never looks into them, so the test lends it the
//! addresses of an ordinary vector and reads and writes the memory behind them, a memfd, as a
//! file. That is how this needs no mapping, and no unsafe code.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use towpath_tests::daemon::{Daemon, Vblk};
use towpath_tests::records::{BLOCK, Block, DISK_BYTES, LANES, offset, record};
use virtio_driver::{VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};

const QUEUES: usize = 2;
const QUEUE_SIZE: u16 = 64;
/// Requests in flight on a queue; each takes three descriptors.
const DEPTH: usize = 16;
/// A request that takes longer is a failure.
const PATIENCE: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

/// The driver's memory: addresses, and what is behind them.
struct Memory {
    addresses: Vec<Block>,
    content: File,
}

struct Driver {
    transport: Box<VirtioBlkTransport>,
    queues: Vec<VirtioBlkQueue<'static, usize>>,
    memory: Memory,
}

impl Driver {
    fn connect(socket: &Path, features: VirtioFeatureFlags) -> Result<Self> {
        let socket = socket.to_str().context("the socket's path is text")?;
        let wanted = features | VirtioFeatureFlags::VERSION_1;
        // Every virtio-blk feature the crate has, as libblkio asks for them.
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::new(socket, wanted.bits() | 0x7fff)?);
        let queues = VirtioBlkQueue::setup_queues(&mut *transport, QUEUES, QUEUE_SIZE)?;
        let memory = Memory {
            addresses: vec![Block::default(); DEPTH],
            content: memfd_create("buffers", MemfdFlags::CLOEXEC)?.into(),
        };
        let bytes = DEPTH * BLOCK;
        memory.content.set_len(bytes as u64)?;
        let start = memory.addresses.as_ptr().addr();
        transport.map_mem_region(start, bytes, memory.content.as_raw_fd(), 0)?;
        Ok(Self {
            transport,
            queues,
            memory,
        })
    }

    /// Rings the doorbell of `queue` and waits for `count` completions; returns what failed.
    fn complete(&mut self, queue: usize, count: usize) -> Result<Vec<(usize, i32)>> {
        self.transport.get_submission_notifier(queue).notify()?;
        let called = self.transport.get_completion_fd(queue);
        let (mut done, mut failed) = (0, Vec::new());
        while done < count {
            // Ask to be called before looking, so that nothing completes unseen in between.
            self.queues[queue].set_used_notif_enabled(true);
            let before = done;
            for completion in self.queues[queue].completions() {
                done += 1;
                if completion.ret != 0 {
                    failed.push((completion.context, completion.ret));
                }
            }
            if done == before {
                let mut fds = [PollFd::new(&called, PollFlags::IN)];
                ensure!(
                    poll(&mut fds, Some(&PATIENCE))? == 1,
                    "{done} of {count} completed"
                );
                called.read()?;
            }
        }
        Ok(failed)
    }

    /// Writes record `seq` of each lane through `queue`, then reads all back.
    fn round_trip(&mut self, queue: usize, seq: u64) -> Result<()> {
        for (lane, slot) in (0..LANES).zip(0..) {
            self.memory
                .content
                .write_all_at(&record(lane, seq).0, (slot * BLOCK) as u64)?;
            let buffer = &self.memory.addresses[slot].0;
            self.queues[queue].write(offset(lane, seq), buffer, slot)?;
        }
        let lanes = usize::try_from(LANES)?;
        ensure!(self.complete(queue, lanes)?.is_empty(), "a write failed");
        for (lane, slot) in (0..LANES).zip(0..) {
            let slot = slot + DEPTH / 2;
            let buffer = &mut self.memory.addresses[slot].0;
            self.queues[queue].read(offset(lane, seq), buffer, slot)?;
        }
        ensure!(self.complete(queue, lanes)?.is_empty(), "a read failed");
        let mut block = Block::default();
        for (lane, slot) in (0..LANES).zip(0..) {
            let at = (slot + DEPTH / 2) * BLOCK;
            self.memory.content.read_exact_at(&mut block.0, at as u64)?;
            ensure!(
                block == record(lane, seq),
                "lane {lane}: read something else"
            );
        }
        Ok(())
    }
}

fn served() -> Result<(Vblk, File)> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    File::create(&image)?.set_len(DISK_BYTES)?;
    let vblk = Vblk::serve(
        dir,
        &[&format!(
            "{{dir}}/image,socket={{dir}}/disk,queues={QUEUES}"
        )],
        &[],
    )?;
    Ok((vblk, File::open(image)?))
}

fn records_pass(features: VirtioFeatureFlags) -> Result<()> {
    let (vblk, image) = served()?;
    let mut driver = Driver::connect(&vblk.path("disk"), features)?;
    // More rounds than the ring has places, so that it wraps.
    for seq in 0..40 {
        driver.round_trip(usize::try_from(seq)? % QUEUES, seq)?;
    }
    driver.queues[0].flush(0)?;
    ensure!(driver.complete(0, 1)?.is_empty(), "the flush failed");
    let mut block = Block::default();
    for lane in 0..LANES {
        image.read_exact_at(&mut block.0, offset(lane, 39))?;
        ensure!(
            block == record(lane, 39),
            "lane {lane}: the file holds something else"
        );
    }
    Ok(())
}

#[test]
fn records_pass_with_plain_rings() -> Result<()> {
    records_pass(VirtioFeatureFlags::empty())
}

#[test]
fn records_pass_with_indirect_descriptors_and_event_index() -> Result<()> {
    records_pass(VirtioFeatureFlags::RING_INDIRECT_DESC | VirtioFeatureFlags::RING_EVENT_IDX)
}

/// A disk of `path`, in a directory with two files `a` and `b` of the disk's size.
fn served_from(path: &str) -> Result<Vblk> {
    let dir = tempfile::tempdir()?;
    for name in ["a", "b"] {
        File::create(dir.path().join(name))?.set_len(DISK_BYTES)?;
    }
    Vblk::serve(
        dir,
        &[&format!("{path},socket={{dir}}/disk,queues={QUEUES}")],
        &[],
    )
}

fn rounds(vblk: &Vblk) -> Result<()> {
    let features = VirtioFeatureFlags::RING_INDIRECT_DESC | VirtioFeatureFlags::RING_EVENT_IDX;
    let mut driver = Driver::connect(&vblk.path("disk"), features)?;
    for seq in 0..40 {
        driver.round_trip(usize::try_from(seq)? % QUEUES, seq)?;
    }
    driver.queues[0].flush(0)?;
    ensure!(driver.complete(0, 1)?.is_empty(), "the flush failed");
    Ok(())
}

#[test]
fn a_stripe_serves_like_a_file() -> Result<()> {
    rounds(&served_from("stripe:64K:{dir}/a|{dir}/b")?)
}

#[test]
fn an_nbd_export_serves_like_a_file_and_a_stopped_server_does_not_hold_the_daemon() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (socket, image) = (dir.path().join("nbd"), dir.path().join("image"));
    File::create(&image)?.set_len(DISK_BYTES)?;
    let mut command = std::process::Command::new("qemu-nbd");
    command
        .args(["-t", "-e", "8", "-f", "raw", "-k"])
        .arg(&socket)
        .arg(&image);
    let server = Daemon::listening("qemu-nbd", &mut command, &socket)?;
    let mut vblk = served_from(&format!("nbd:unix:{}", socket.display()))?;
    rounds(&vblk)?;
    let mut block = Block::default();
    File::open(&image)?.read_exact_at(&mut block.0, offset(3, 39))?;
    ensure!(block == record(3, 39), "the file holds something else");
    let mut driver = Driver::connect(&vblk.path("disk"), VirtioFeatureFlags::empty())?;
    drop(server);
    driver.queues[0].write(0, &driver.memory.addresses[1].0, 8)?;
    driver.transport.get_submission_notifier(0).notify()?;
    vblk.daemon().stop()
}

#[test]
fn zeroes_are_written_and_blocks_discarded() -> Result<()> {
    let (vblk, image) = served()?;
    let mut driver = Driver::connect(&vblk.path("disk"), VirtioFeatureFlags::empty())?;
    driver.round_trip(0, 0)?;
    driver.queues[0].write_zeroes(offset(0, 0), BLOCK as u64, false, 0)?;
    driver.queues[0].discard(offset(1, 0), BLOCK as u64, 1)?;
    ensure!(
        driver.complete(0, 2)?.is_empty(),
        "write zeroes or discard failed"
    );
    let mut block = Block::default();
    image.read_exact_at(&mut block.0, offset(0, 0))?;
    ensure!(block == Block::default(), "zeroed, and not zero");
    image.read_exact_at(&mut block.0, offset(2, 0))?;
    ensure!(
        block == record(2, 0),
        "a block that nobody discarded changed"
    );
    Ok(())
}

#[test]
fn a_request_past_the_end_fails_alone() -> Result<()> {
    let (vblk, _image) = served()?;
    let mut driver = Driver::connect(&vblk.path("disk"), VirtioFeatureFlags::empty())?;
    driver.queues[0].write(DISK_BYTES - 512, &driver.memory.addresses[0].0, 7)?;
    driver.queues[0].write(0, &driver.memory.addresses[1].0, 8)?;
    let failed = driver.complete(0, 2)?;
    ensure!(
        failed == [(7, -rustix::io::Errno::IO.raw_os_error())],
        "failed: {failed:?}"
    );
    driver.round_trip(0, 1)
}
