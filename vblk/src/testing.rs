//! What this crate's tests share: a guest's memory with room to lay out requests in.

use std::path::Path;
use std::sync::Arc;

use towpath_common::chain::Chain;
use towpath_common::mem::{Mem, Region, RegionSpec, Segment};

use crate::disk::Disk;
use crate::engine::{DiskId, Engine, Guest, MemId};
use crate::io::{Cycles, Finished, Io, Origin, Started};
use crate::request::{Kind, Ranges, Reject, Request, Status};

/// Types on the wire.
pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;
pub(crate) const DISCARD: u32 = 11;
pub(crate) const WRITE_ZEROES: u32 = 13;

/// A memory map of one region for each of `sizes`, one right after the other.
pub(crate) fn map(sizes: &[u64]) -> Arc<Mem> {
    let mut gpa = 0;
    let regions = sizes.iter().map(|len| {
        let file =
            rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, *len).unwrap();
        let spec = RegionSpec {
            gpa,
            len: *len,
            uva: gpa,
            offset: 0,
        };
        gpa += len;
        Region::map(spec, file).unwrap()
    });
    let regions = regions.collect();
    Arc::new(Mem::new(regions).unwrap())
}

/// A guest's memory, handed out from the bottom up.
pub(crate) struct Ram {
    pub(crate) mem: Arc<Mem>,
    next: u64,
}

/// A chain with its segments.
#[derive(Debug, Clone, Default)]
pub(crate) struct Laid {
    pub(crate) readable: Vec<Segment>,
    pub(crate) writable: Vec<Segment>,
}

impl Laid {
    pub(crate) fn chain(&self) -> Chain<'_> {
        let sum = |s: &[Segment]| s.iter().map(|s| u64::from(s.len())).sum();
        Chain {
            id: 7,
            readable: &self.readable,
            writable: &self.writable,
            readable_len: sum(&self.readable),
            writable_len: sum(&self.writable),
        }
    }
}

impl Ram {
    pub(crate) fn new(size: u64) -> Ram {
        Ram::of(map(&[size]))
    }

    pub(crate) fn of(mem: Arc<Mem>) -> Ram {
        Ram { mem, next: 0 }
    }

    /// The segment at `gpa`, which must be in one region.
    pub(crate) fn at(&self, gpa: u64, len: u32) -> Segment {
        let seg = self.mem.lookup(gpa, len, &mut 0).unwrap();
        assert_eq!(seg.len(), len);
        seg
    }

    /// `len` fresh bytes at a multiple of `align`, plus `odd`.
    pub(crate) fn place(&mut self, len: u32, align: u64, odd: u64) -> Segment {
        let gpa = self.next.next_multiple_of(align) + odd;
        self.next = gpa + u64::from(len);
        self.at(gpa, len)
    }

    /// Fresh bytes that hold `bytes`.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Segment {
        let seg = self.place(u32::try_from(bytes.len()).unwrap(), 1, 0);
        assert!(self.mem.write(seg, bytes));
        seg
    }

    /// All bytes of `segs`.
    pub(crate) fn bytes(&self, segs: &[Segment]) -> Vec<u8> {
        let mut all = Vec::new();
        for seg in segs {
            let mut buf = vec![0; seg.len() as usize];
            assert!(self.mem.read(*seg, &mut buf));
            all.extend(buf);
        }
        all
    }

    /// Write `bytes` over `segs`.
    pub(crate) fn fill(&self, segs: &[Segment], mut bytes: &[u8]) {
        for seg in segs {
            let (now, rest) = bytes.split_at(seg.len() as usize);
            assert!(self.mem.write(*seg, now));
            bytes = rest;
        }
    }

    /// A request with `data` where its type has it.
    pub(crate) fn request(&mut self, kind: u32, sector: u64, data: &[Segment]) -> Laid {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let mut laid = Laid::default();
        laid.readable.push(self.put(&header));
        if matches!(kind, IN | GET_ID) {
            laid.writable.extend(data);
        } else {
            laid.readable.extend(data);
        }
        laid.writable.push(self.put(&[0xff]));
        laid
    }

    /// A DISCARD or WRITE_ZEROES of (sector, sectors, flags).
    pub(crate) fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> Laid {
        let mut bytes = Vec::new();
        for (sector, sectors, flags) in ranges {
            bytes.extend(sector.to_le_bytes());
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
        }
        let data = self.put(&bytes);
        self.request(kind, 0, &[data])
    }
}

/// A request's end, as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) origin: Origin,
    pub(crate) kind: Kind,
    pub(crate) status: Status,
    pub(crate) written: u32,
    pub(crate) bytes: u64,
    pub(crate) errno: Option<i32>,
}

impl From<Finished<'_>> for End {
    fn from(f: Finished<'_>) -> End {
        assert!(f.mem.write(f.status_at, &[f.status as u8]));
        End {
            origin: f.origin,
            kind: f.kind,
            status: f.status,
            written: f.written,
            bytes: f.bytes,
            errno: f.errno.map(rustix::io::Errno::raw_os_error),
        }
    }
}

/// One guest, one disk, one worker.
pub(crate) struct Bench<E: Engine> {
    pub(crate) io: Io<E>,
    pub(crate) ram: Ram,
    pub(crate) target: Arc<Disk>,
    pub(crate) disk: DiskId,
    pub(crate) mem: MemId,
    started: u16,
    /// Reads carried out by copying.
    pub(crate) copied: u64,
}

impl<E: Engine> Bench<E> {
    pub(crate) fn new(engine: E, target: Disk, capacity: u32) -> Bench<E> {
        let ram = Ram::new(64 << 20);
        let guest = Guest::plain(Arc::clone(&ram.mem));
        Bench::with(engine, target, capacity, ram, &guest)
    }

    /// With memory of its own, prepared in some way.
    pub(crate) fn with(
        engine: E,
        target: Disk,
        capacity: u32,
        ram: Ram,
        guest: &Guest,
    ) -> Bench<E> {
        let mut io = Io::new(engine, capacity).unwrap();
        let target = Arc::new(target);
        let disk = io.attach(&target).unwrap();
        let mem = io.adopt(guest).unwrap();
        Bench {
            io,
            ram,
            target,
            disk,
            mem,
            started: 0,
            copied: 0,
        }
    }

    /// Start a request; its end, if that was at once.
    pub(crate) fn start(&mut self, laid: &Laid) -> Result<Option<End>, Reject> {
        let mut ranges = Ranges::new();
        let limits = self.target.limits();
        let request = Request::parse(&laid.chain(), &self.ram.mem, &limits, &mut ranges)?;
        let origin = Origin {
            queue: 3,
            id: self.started,
        };
        self.started += 1;
        Ok(
            match self
                .io
                .start(&request, origin, self.mem, self.disk, Cycles(42))
            {
                Started::Done(f) => Some(f.into()),
                Started::Copied(f) => {
                    self.copied += 1;
                    Some(f.into())
                }
                Started::InFlight => None,
            },
        )
    }

    /// Step until nothing is in flight.
    pub(crate) fn drain(&mut self) -> Vec<End> {
        let mut ends = Vec::new();
        while self.io.in_flight() > 0 {
            self.io.submit();
            self.io.reap(|f| ends.push(f.into()));
            std::thread::yield_now();
        }
        ends
    }

    /// Run one request to its end.
    pub(crate) fn run(&mut self, laid: &Laid) -> End {
        match self.start(laid).unwrap() {
            Some(end) => end,
            None => {
                let ends = self.drain();
                assert_eq!(ends.len(), 1);
                ends[0]
            }
        }
    }
}

/// A loop device over a file, taken apart again when dropped; None where there are none.
pub(crate) struct Loop(String);

impl Loop {
    pub(crate) fn new(image: &Path, sector: u32) -> Option<Loop> {
        let out = std::process::Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &sector.to_string()])
            .arg(image)
            .output();
        match out {
            Ok(out) if out.status.success() => Some(Loop(
                String::from_utf8(out.stdout).unwrap().trim().to_owned(),
            )),
            other => {
                println!("skipped: no loop device here: {other:?}");
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let status = std::process::Command::new("losetup")
            .args(["-d", &self.0])
            .status();
        assert!(status.is_ok_and(|s| s.success()) || std::thread::panicking());
    }
}
