//! Tests of translation, access, sealing and truncation.

use std::os::fd::OwnedFd;

use super::*;

fn memfd(len: u64, sealing: bool) -> OwnedFd {
    use rustix::fs::MemfdFlags;
    let flags = if sealing {
        MemfdFlags::ALLOW_SEALING
    } else {
        MemfdFlags::empty()
    };
    let fd = rustix::fs::memfd_create("test", flags | MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    fd
}

fn region(gpa: u64, len: u64) -> Region {
    let spec = RegionSpec {
        gpa,
        len,
        uva: gpa + 0x7f00_0000_0000,
        offset: 0,
    };
    Region::map(spec, memfd(len, true)).unwrap()
}

#[test]
fn lookup_finds_the_region_and_stops_at_its_end() {
    let mem = Mem::new(vec![region(0x10000, 0x4000), region(0, 0x8000)]).unwrap();
    let mut hint = 0;
    assert_eq!(
        mem.lookup(0x10, 16, &mut hint)
            .map(|s| (s.region(), s.len())),
        Some((0, 16))
    );
    assert_eq!(mem.lookup(0x7ff0, 32, &mut hint).map(|s| s.len()), Some(16));
    assert!(mem.lookup(0x8000, 1, &mut hint).is_none());
    assert_eq!(
        mem.lookup(0x10000, 16, &mut hint).map(|s| s.region()),
        Some(1)
    );
    assert_eq!(hint, 1);
    assert!(mem.lookup(0x14000, 1, &mut hint).is_none());
    assert!(mem.lookup(u64::MAX, u32::MAX, &mut hint).is_none());
}

#[test]
fn bytes_written_are_read_back_and_stay_inside() {
    let mem = Mem::new(vec![region(0, 0x2000)]).unwrap();
    let mut hint = 0;
    let seg = mem.lookup(0x1ff8, 8, &mut hint).unwrap();
    assert!(mem.write(seg, b"12345678"));
    let mut buf = [0; 8];
    assert!(mem.read(seg, &mut buf));
    assert_eq!(&buf, b"12345678");
    assert!(!mem.write(seg, &[0; 9]));
    let forged = Segment::new(0, 0x1ffc, 8);
    assert!(!mem.write(forged, &[0; 8]));
    assert!(mem.host(Segment::new(7, 0, 8)).is_null());
}

#[test]
fn overlapping_empty_wrapping_and_short_regions_are_refused() {
    let overlap = Mem::new(vec![region(0, 0x2000), region(0x1000, 0x2000)]);
    assert!(matches!(
        overlap,
        Err(MemError::Overlap { gpa: 0x1000, .. })
    ));
    let spec = RegionSpec {
        gpa: 0,
        len: 0x3000,
        uva: 0,
        offset: 0,
    };
    let short = Region::map(spec, memfd(0x2000, true));
    assert!(matches!(
        short,
        Err(MemError::FileTooSmall {
            end: 0x3000,
            size: 0x2000
        })
    ));
    let wrap = RegionSpec {
        gpa: u64::MAX,
        len: 0x1000,
        uva: 0,
        offset: 0,
    };
    assert!(matches!(
        Region::map(wrap, memfd(0x2000, true)),
        Err(MemError::BadRange { .. })
    ));
    let empty = RegionSpec { len: 0, ..spec };
    assert!(matches!(
        Region::map(empty, memfd(0x2000, true)),
        Err(MemError::BadRange { .. })
    ));
    let dir = rustix::fs::open("/", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    assert!(matches!(Region::map(spec, dir), Err(MemError::NotAFile)));
}

#[test]
fn regions_are_added_and_removed_in_new_snapshots() {
    let one = Mem::new(vec![region(0, 0x1000)]).unwrap();
    let two = one.with(region(0x1000, 0x1000)).unwrap();
    assert_eq!((one.regions().len(), two.regions().len()), (1, 2));
    let back = two.without(&two.regions()[0].spec()).unwrap();
    assert_eq!(back.regions()[0].spec().gpa, 0x1000);
    assert!(matches!(
        back.without(&one.regions()[0].spec()),
        Err(MemError::NoSuchRegion { .. })
    ));
}

#[test]
fn a_memfd_that_accepts_seals_can_no_longer_shrink() {
    let fd = memfd(0x2000, true);
    let other = fd.try_clone().unwrap();
    let _region = Region::map(
        RegionSpec {
            gpa: 0,
            len: 0x2000,
            uva: 0,
            offset: 0,
        },
        fd,
    )
    .unwrap();
    assert!(rustix::fs::ftruncate(&other, 0).is_err());
}

#[test]
fn a_truncated_file_poisons_its_own_snapshot_only() {
    let fd = memfd(0x2000, false);
    let other = fd.try_clone().unwrap();
    let spec = RegionSpec {
        gpa: 0,
        len: 0x2000,
        uva: 0,
        offset: 0,
    };
    let mem = Mem::new(vec![Region::map(spec, fd).unwrap()]).unwrap();
    let neighbour = Mem::new(vec![region(0, 0x1000)]).unwrap();
    rustix::fs::ftruncate(&other, 0).unwrap();
    let seg = mem.lookup(0x1000, 8, &mut 0).unwrap();
    let mut buf = [1; 8];
    assert!(mem.read(seg, &mut buf));
    assert_eq!(buf, [0; 8]);
    assert!(mem.write(seg, &buf));
    assert!(mem.poisoned());
    assert!(!neighbour.poisoned());
}

#[test]
fn ring_addresses_must_lie_in_one_region_and_be_aligned() {
    let mem = Mem::new(vec![region(0, 0x1000), region(0x1000, 0x1000)]).unwrap();
    let base = 0x7f00_0000_0000;
    assert!(mem.view_user(base, 0x1000, 16).is_ok());
    assert!(mem.view_user(base + 0xff0, 0x20, 16).is_err());
    assert!(mem.view_user(base + 8, 0x10, 16).is_err());
    assert!(mem.view_user(0, 0x10, 16).is_err());
    assert!(mem.view_user(u64::MAX, 0x10, 16).is_err());
}

#[test]
fn the_dirty_log_sets_the_bits_of_the_pages_written() {
    let (mapping, _fd) = Mapping::memfd("log", 4096).unwrap();
    let log = DirtyLog::new(mapping, 4096 * 8 * 4096).unwrap();
    log.mark(0x2fff, 2);
    assert!(!log.is_marked(0x1000));
    assert!(log.is_marked(0x2000) && log.is_marked(0x3000));
    log.mark(u64::MAX, 9);
    let (small, _fd) = Mapping::memfd("log", 1).unwrap();
    assert!(matches!(
        DirtyLog::new(small, 0x10_0000),
        Err(MemError::FileTooSmall { .. })
    ));
}

#[test]
fn copies_of_every_short_length_move_just_these_bytes_wherever_they_lie() {
    let size = 0x1000u32;
    let from = Mem::new(vec![region(0, size.into())]).unwrap();
    let to = Mem::new(vec![region(0, size.into())]).unwrap();
    let seg = |mem: &Mem, at: u32, len: u32| mem.lookup(at.into(), len, &mut 0).unwrap();
    let source: Vec<u8> = (0..size)
        .map(|i| u8::try_from(i * 7 % 255).unwrap())
        .collect();
    assert!(from.write(seg(&from, 0, size), &source));
    let clean = vec![0xaa; 512];
    for len in 0..=300u32 {
        for (a, b) in [
            (0, 0),
            (1, 0),
            (0, 1),
            (3, 5),
            (15, 16),
            (63, 33),
            (64, 127),
        ] {
            let into = seg(&to, 0, 512);
            assert!(to.write(into, &clean));
            // An empty segment is nowhere, so there is one more byte to look up.
            let part = seg(&from, a, len + 1).take(len);
            assert!(from.copy_to(part, &to, seg(&to, b, len + 1)));
            let mut got = vec![0; 512];
            assert!(to.read(into, &mut got));
            let (a, b, n) = (a as usize, b as usize, len as usize);
            assert_eq!(got[b..b + n], source[a..a + n], "{len} from {a} to {b}");
            assert!(got[..b].iter().chain(&got[b + n..]).all(|x| *x == 0xaa));
            // The same by way of private memory.
            let mut own = vec![0x55; n + 2];
            assert!(from.read(part, &mut own[1..=n]));
            assert_eq!(
                (own[0], &own[1..=n], own[n + 1]),
                (0x55, &source[a..a + n], 0x55)
            );
            assert!(to.write(into, &clean));
            assert!(to.write(seg(&to, u32::try_from(b).unwrap(), len + 1), &own[1..=n]));
            assert!(to.read(into, &mut got));
            assert_eq!(got[b..b + n], source[a..a + n]);
            assert!(got[..b].iter().chain(&got[b + n..]).all(|x| *x == 0xaa));
        }
    }
    let (long, short) = (seg(&from, 0, 9), seg(&to, 0, 8));
    assert!(!from.copy_to(long, &to, short), "no room");
    let far = to.lookup(u64::from(size) - 8, 8, &mut 0).unwrap();
    assert!(from.copy_to(seg(&from, 1, 8), &to, far), "the last bytes");
}

#[test]
fn a_copy_within_one_memory_may_overlap() {
    let mem = Mem::new(vec![region(0, 0x1000)]).unwrap();
    let seg = |at: u64, len: u32| mem.lookup(at, len, &mut 0).unwrap();
    for len in [1u32, 7, 8, 31, 64, 200, 300] {
        for (a, b) in [(0u64, 1u64), (1, 0), (0, 40), (40, 0), (5, 5)] {
            let bytes: Vec<u8> = (0..400u32)
                .map(|i| u8::try_from(i % 251).unwrap())
                .collect();
            assert!(mem.write(seg(0, 400), &bytes));
            assert!(mem.copy_to(seg(a, len), &mem, seg(b, len)));
            let mut got = vec![0; len as usize];
            assert!(mem.read(seg(b, len), &mut got));
            let a = usize::try_from(a).unwrap();
            assert_eq!(got, bytes[a..a + len as usize], "{len} from {a} to {b}");
        }
    }
}
