//! Rings and block requests; what is said on a vhost-user socket.

use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use towpath_common::chain::{BURST, Burst};
use towpath_common::mem::{Mem, Region, RegionSpec};
use towpath_common::ring::{F_EVENT_IDX, F_INDIRECT_DESC, Ring, Setup};
use towpath_common::testing::bed::Bed;
use towpath_common::testing::{GuestMemory, RawFrontend};
use vblk::disk::BlockSize;
use vblk::request::{Command, Limits, Ranges, Reject, Request};

/// Entries of the ring that the first body walks.
pub(crate) const QUEUE: u16 = 16;
/// Where its parts are: the descriptor table at 0, then these. The used ring is out of reach of
/// the input.
pub(crate) const AVAIL: u64 = 256;
const USED: u64 = 0x1_0000;
/// Bytes of guest memory, in two regions that adjoin.
const MEMORY: u64 = 0x1_1000;
/// Where the second region starts.
const EDGE: u64 = 0x8000;
const CAPACITY: u64 = 1 << 20;

fn memory(image: &[u8]) -> Arc<Mem> {
    let guest = GuestMemory::with_regions(&[(0, EDGE), (EDGE, MEMORY - EDGE)]).unwrap();
    let room = usize::try_from(USED).unwrap().min(image.len());
    guest.write(0, &image[..room]).unwrap();
    let region = |r: &Arc<towpath_common::testing::GuestRegion>| {
        let spec = RegionSpec {
            gpa: r.gpa(),
            len: r.size(),
            uva: r.gpa(),
            offset: 0,
        };
        Region::map(spec, r.file().try_clone_to_owned().unwrap()).unwrap()
    };
    Arc::new(Mem::new(guest.regions().iter().map(region).collect()).unwrap())
}

/// A ring on memory whose first 64 KiB are `image`: every chain is popped, parsed and put.
pub(crate) fn chain_and_request(image: &[u8]) {
    let mem = memory(image);
    let setup = Setup {
        size: QUEUE,
        desc: 0,
        avail: AVAIL,
        used: USED,
        base: Some(0),
        features: F_INDIRECT_DESC | F_EVENT_IDX,
        log: None,
        log_addr: None,
        inflight: None,
    };
    let mut ring = Ring::new(setup, Arc::clone(&mem)).unwrap();
    let limits = Limits {
        capacity: CAPACITY,
        block: BlockSize::SECTOR,
        read_only: image.len().is_multiple_of(2),
        discard: true,
        write_zeroes: true,
    };
    let (mut burst, mut ranges) = (Burst::new(), Ranges::new());
    // The index says at most a queue's worth more than was popped, and it does not change.
    let mut popped = 0;
    while ring.pop(&mut burst, BURST) > 0 {
        popped += burst.len();
        assert!(popped <= usize::from(QUEUE), "{popped} chains of {QUEUE}");
        assert_eq!(usize::from(ring.in_flight()), burst.len());
        for chain in burst.iter() {
            match Request::parse(&chain, &mem, &limits, &mut ranges) {
                Ok(request) => check(&request, &limits),
                Err(Reject::Status { at, .. }) => assert_eq!(at.len(), 1),
                Err(Reject::Broken(_)) => {}
            }
            ring.put(chain.id, 0);
        }
        let _ = ring.publish();
    }
    assert_eq!(ring.in_flight(), 0);
}

/// A request that was accepted keeps to the disk, and to its word.
fn check(request: &Request<'_>, limits: &Limits) {
    let inside = |offset: u64, len: u64| {
        assert!(offset.checked_add(len).is_some_and(|end| end <= CAPACITY));
        assert!(offset.is_multiple_of(512) && len.is_multiple_of(512));
    };
    assert_eq!(request.status.len(), 1);
    match request.command {
        Command::Read { offset, data } | Command::Write { offset, data } => {
            inside(offset, data.len());
            let sum: u64 = data.iter().map(|s| u64::from(s.len())).sum();
            assert_eq!(sum, data.len());
        }
        Command::Discard(ranges) | Command::WriteZeroes(ranges) => {
            assert!(!ranges.is_empty());
            for range in ranges {
                assert!(range.len > 0);
                inside(range.offset, range.len.into());
            }
        }
        Command::Flush | Command::GetId { .. } => {}
    }
    let writes = !matches!(
        request.command,
        Command::Read { .. } | Command::Flush | Command::GetId { .. }
    );
    assert!(!(writes && limits.read_only), "a write to a read-only disk");
}

/// A session that hears `script`: a byte each for request, flags, fds and length of the payload,
/// and the payload, again and again. Afterwards the next front-end must be answered.
pub(crate) fn session_messages(script: &[u8]) {
    static BED: OnceLock<Bed> = OnceLock::new();
    let bed = BED.get_or_init(|| Bed::new(2));
    let memory = GuestMemory::new(1 << 16).unwrap();
    let event = towpath_common::testing::driver::Events::new().unwrap();
    let raw = bed.raw();
    let mut rest = script;
    while let [request, flags, fds, len, tail @ ..] = rest {
        let (payload, more) = tail.split_at(tail.len().min(usize::from(*len)));
        rest = more;
        let file = memory.regions()[0].file();
        let kinds = [file.as_fd(), event.call_fd(), event.kick_fd()];
        let attached: Vec<_> = kinds
            .into_iter()
            .cycle()
            .take(usize::from(fds % 4))
            .collect();
        let flags = u32::from(*flags & 0x0f);
        if raw
            .send((*request).into(), flags, payload, &attached)
            .is_err()
        {
            break;
        }
    }
    drop(raw);
    answered(&bed.raw());
}

/// The session behind this connection answers `GET_FEATURES`.
pub(crate) fn answered(raw: &RawFrontend) {
    raw.send(1, 1, &[], &[]).unwrap();
    raw.recv().unwrap();
    // Nothing is left of it when the next input comes.
    let _ = raw.closes_within(Duration::ZERO);
}
