//! The in-process guest against a back-end that is not ours: QEMU's storage daemon.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use super::*;
use crate::testing::memory::{GuestRegion, Sealing};
use crate::testing::{Frontend, Wanted};

const IMAGE: u64 = 8 << 20;

/// qemu-storage-daemon serving a scratch image; ends with the test.
struct Peer {
    child: Child,
    socket: PathBuf,
    image: PathBuf,
    _dir: tempfile::TempDir,
}

impl Peer {
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (image, socket) = (dir.path().join("disk.raw"), dir.path().join("disk.sock"));
        std::fs::File::create(&image)
            .unwrap()
            .set_len(IMAGE)
            .unwrap();
        let file = format!(
            "file,node-name=d,discard=unmap,filename={}",
            image.display()
        );
        let export = format!(
            "vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path={},writable=on,num-queues=4",
            socket.display()
        );
        let child = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &file, "--export", &export])
            .stdin(Stdio::null())
            .spawn();
        match child {
            Ok(child) => Some(Self {
                child,
                socket,
                image,
                _dir: dir,
            }),
            Err(error) => {
                println!("skipped: qemu-storage-daemon does not start here: {error}");
                None
            }
        }
    }

    fn client(&self, options: ClientOptions) -> BlkClient {
        BlkClient::connect(&self.socket, options).unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((seed + i) % 251).unwrap())
        .collect()
}

#[test]
fn every_operation_works_against_a_peer() {
    let Some(peer) = Peer::start() else { return };
    let mut client = peer.client(ClientOptions::default());
    assert_eq!(client.capacity().unwrap(), IMAGE / SECTOR);
    let text = pattern(7, 64 << 10);
    client.write(8, &text).unwrap();
    client.flush().unwrap();
    let mut back = vec![0; text.len()];
    client.read(8, &mut back).unwrap();
    assert_eq!(back, text);
    let file = std::fs::read(&peer.image).unwrap();
    assert_eq!(file[8 * 512..][..text.len()], text);
    client.write_zeroes(8, 16, UNMAP).unwrap();
    client.discard(64, 64).unwrap();
    client.read(8, &mut back).unwrap();
    assert!(back[..16 * 512].iter().all(|byte| *byte == 0));
    assert!(client.id().unwrap().len() <= ID_LEN as usize);
    assert_eq!(client.request(Op::Other(99), 0, 0).unwrap().status, UNSUPP);
    assert_eq!(
        client.request(Op::In, IMAGE / SECTOR, 512).unwrap().status,
        IOERR
    );
}

#[test]
fn many_requests_in_flight_on_several_queues_come_back_once() {
    let Some(peer) = Peer::start() else { return };
    for form in [Form::Direct, Form::Indirect] {
        let shape = Shape {
            slots: 32,
            buffer: 8192,
            piece: 1024,
            form,
        };
        let options = ClientOptions {
            queues: 4,
            queue_size: 512,
            shape,
            ..ClientOptions::default()
        };
        let mut client = peer.client(options);
        let memory = client.memory().clone();
        for (q, queue) in client.queues().iter_mut().enumerate() {
            for slot in 0..queue.slots() {
                let block = q * 32 + slot;
                memory
                    .write(queue.data(slot), &pattern(block, 8192))
                    .unwrap();
                queue
                    .prepare(slot, Op::Out, block as u64 * 16, 8192)
                    .unwrap();
                queue.post(slot);
            }
            queue.publish().unwrap();
        }
        for queue in client.queues() {
            let mut done = Vec::new();
            while done.len() < queue.slots() {
                if queue.reap(&mut done).unwrap() == 0 {
                    assert!(queue.driver_mut().wait(Duration::from_secs(10)).unwrap());
                }
            }
            let mut slots: Vec<_> = done.iter().map(|d| d.slot).collect();
            slots.sort_unstable();
            assert_eq!(slots, (0..32).collect::<Vec<_>>());
            assert!(done.iter().all(|d| d.status == OK));
        }
        let file = std::fs::read(&peer.image).unwrap();
        for block in 0..128 {
            assert_eq!(file[block * 8192..][..8192], pattern(block, 8192));
        }
    }
}

#[test]
fn a_session_goes_on_over_a_second_connection() {
    let Some(peer) = Peer::start() else { return };
    let options = ClientOptions::default();
    let mut client = peer.client(options);
    client.write(0, &pattern(1, 4096)).unwrap();
    let base = client.frontend().stop_queue(0).unwrap();
    assert_eq!(base, 1);
    let (frontend, memory, queues) = client.into_parts();
    drop(frontend);
    let mut frontend = Frontend::connect(&peer.socket, options.wanted, options.patience).unwrap();
    frontend.set_memory(&memory).unwrap();
    let mut queue = queues.into_iter().next().unwrap();
    frontend
        .start_queue(0, &memory, &queue.driver().setup())
        .unwrap();
    let done = queue.call(Op::In, 0, 4096, options.patience).unwrap();
    assert_eq!((done.status, done.written), (OK, 4097));
    let mut back = vec![0; 4096];
    memory.read(queue.data(0), &mut back).unwrap();
    assert_eq!(back, pattern(1, 4096));
}

#[test]
fn memory_is_plugged_and_unplugged_while_queues_run() {
    let Some(peer) = Peer::start() else { return };
    let mut client = peer.client(ClientOptions::default());
    assert!(client.frontend().max_mem_slots().unwrap() >= 8);
    client.write(0, &pattern(5, 512)).unwrap();
    let region = GuestRegion::new(1 << 32, 1 << 20, 7, Sealing::Allowed).unwrap();
    client.frontend().add_region(&region).unwrap();
    let region = Arc::new(region);
    let memory = client.memory().with(Arc::clone(&region));
    // A read whose data lands in the new region.
    let line = memory.alloc(64, 64).unwrap();
    let data = memory.alloc_in(1, 512, 512).unwrap();
    memory.write(line, &header(Op::In.code(), 0)).unwrap();
    let queue = &mut client.queues()[0];
    let segments = [
        Segment::readable(line, HEADER_LEN),
        Segment::writable(data, 512),
        Segment::writable(line + 16, 1),
    ];
    let driver = queue.driver_mut();
    let token = driver.chain(&segments, Form::Direct).unwrap();
    driver.post(token);
    driver.publish().unwrap();
    assert!(driver.wait(Duration::from_secs(10)).unwrap());
    let mut done = Vec::new();
    driver.reap(&mut done).unwrap();
    assert_eq!(
        done,
        [Completion {
            token,
            written: 513
        }]
    );
    let mut back = vec![0; 512];
    memory.read(data, &mut back).unwrap();
    assert_eq!(back, pattern(5, 512));
    client.frontend().remove_region(&region).unwrap();
    client.flush().unwrap();
}

#[test]
fn what_was_not_offered_cannot_be_asked_for() {
    let Some(peer) = Peer::start() else { return };
    let wanted = Wanted {
        protocol: Protocol::CONFIG,
        ..Wanted::default()
    };
    let mut client = peer.client(ClientOptions {
        wanted,
        ..ClientOptions::default()
    });
    assert!(matches!(
        client.frontend().reset(),
        Err(Error::NotOffered(_))
    ));
    assert!(matches!(
        client.frontend().get_inflight(1, 128),
        Err(Error::NotOffered(_))
    ));
    assert!(client.capacity().is_ok());
}
