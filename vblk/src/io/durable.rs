//! What FLUSH promises, against a record of what reached the storage: after a power cut at any
//! moment, everything acknowledged before the last acknowledged FLUSH began is there; and without a
//! write cache, everything acknowledged at all. Requests are reordered, cut short, retried and
//! failed meanwhile, and many flushes are in flight at once.

use std::collections::HashMap;

use proptest::prelude::*;

use crate::disk::Disk;
use crate::engine::faulty::{Chances, Faulty};
use crate::engine::memory::Memory;
use crate::engine::recording::Recording;
use crate::request::Status;
use crate::testing::{Bench, FLUSH, Laid, OUT};

const SECTORS: usize = 24;
const SIZE: usize = SECTORS * 512;

/// A write or a flush that was acknowledged as done, at a moment of the record.
#[derive(Clone, Copy)]
enum Acknowledged {
    /// Version `.1` of sector `.0`.
    Write(u64, u64),
    /// One that began when so many acknowledgements had been given.
    Flush(usize),
}

struct Run {
    bench: Bench<Recording<Faulty<Memory>>>,
    /// By the number of the request: the sector and its version, or when the flush began.
    flying: HashMap<u16, Acknowledged>,
    /// In their order, with the moment.
    told: Vec<(usize, Acknowledged)>,
    /// Sectors that are being written.
    taken: Vec<u64>,
    started: u16,
}

impl Run {
    fn start(&mut self, laid: &Laid, what: Acknowledged) {
        let id = self.started;
        self.started += 1;
        match self.bench.start(laid).unwrap() {
            None => drop(self.flying.insert(id, what)),
            Some(end) => {
                assert_ne!(end.status, Status::Ok, "nothing is done at once");
                self.ended(what);
            }
        }
    }

    fn ended(&mut self, what: Acknowledged) {
        if let Acknowledged::Write(sector, _) = what {
            self.taken.retain(|s| *s != sector);
        }
    }

    fn step(&mut self) {
        self.bench.io.submit();
        let mut ends = Vec::new();
        self.bench.io.reap(|f| ends.push((f.origin.id, f.status)));
        let moment = self.bench.io.engine().moments.len();
        for (id, status) in ends {
            let what = self.flying.remove(&id).unwrap();
            self.ended(what);
            if status == Status::Ok {
                self.told.push((moment, what));
            }
        }
    }
}

/// Does what `script` says: a byte is a sector to write, a flush, or a step.
fn run(script: &[u8], chances: Chances, seed: u64, write_through: bool) -> Run {
    let engine = Recording::new(Faulty::new(Memory::new()).chances(chances, seed));
    let disk = Disk::ram(SIZE as u64);
    disk.set_write_through(write_through);
    let mut run = Run {
        bench: Bench::new(engine, disk, 32),
        flying: HashMap::new(),
        told: Vec::new(),
        taken: Vec::new(),
        started: 0,
    };
    for (version, byte) in (1_u64..).zip(script) {
        let sector = u64::from(*byte) % SECTORS as u64;
        match byte {
            0..160 if !run.taken.contains(&sector) && run.bench.io.room() > 1 => {
                let data = run.bench.ram.put(&version.to_le_bytes().repeat(64));
                let laid = run.bench.ram.request(OUT, sector, &[data]);
                run.taken.push(sector);
                run.start(&laid, Acknowledged::Write(sector, version));
            }
            160..190 if run.bench.io.room() > 1 => {
                let laid = run.bench.ram.request(FLUSH, 0, &[]);
                let began = run.told.len();
                run.start(&laid, Acknowledged::Flush(began));
            }
            _ => run.step(),
        }
    }
    while run.bench.io.in_flight() > 0 {
        run.step();
    }
    run
}

/// For every moment: what must be there after a power cut, and is it?
fn check(run: &Run, write_through: bool) -> Result<(), TestCaseError> {
    let record = run.bench.io.engine();
    for end in 0..=record.moments.len() {
        let told = run.told.partition_point(|(moment, _)| *moment <= end);
        let flushed = run.told[..told]
            .iter()
            .rev()
            .find_map(|(_, what)| match what {
                Acknowledged::Flush(began) => Some(*began),
                Acknowledged::Write(..) => None,
            });
        let promised = if write_through {
            told
        } else {
            flushed.unwrap_or(0)
        };
        let disk = record.after_a_power_cut(end, SIZE);
        for (_, what) in &run.told[..promised] {
            let Acknowledged::Write(sector, version) = *what else {
                continue;
            };
            let at = usize::try_from(sector).unwrap() * 512;
            let bytes = &disk[at..at + 512];
            let found = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            prop_assert!(
                found >= version && bytes.chunks(8).all(|word| word == &bytes[..8]),
                "moment {end}: version {version} of sector {sector} was promised, found {found}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_record_without_a_sync_keeps_nothing() {
    // The model itself: it loses what it may lose.
    let run = run(&[1, 2, 255, 255], Chances::default(), 1, false);
    assert_eq!(run.told.len(), 2);
    let record = run.bench.io.engine();
    let end = record.moments.len();
    assert!(record.after_a_power_cut(end, SIZE).iter().all(|b| *b == 0));
    let synced = self::run(&[1, 2, 255, 180, 255], Chances::default(), 1, false);
    let record = synced.bench.io.engine();
    let end = record.moments.len();
    assert_eq!(record.after_a_power_cut(end, SIZE)[512], 1);
    assert_eq!(record.after_a_power_cut(end - 1, SIZE)[512], 0);
}

proptest! {
    #[test]
    fn flush_and_write_through_keep_their_promise_at_every_moment(
        script in proptest::collection::vec(any::<u8>(), 1..400),
        seed in any::<u64>(), write_through in any::<bool>(), hard in 0_u8..20,
    ) {
        let chances = Chances { short: 0, transient: 20, hard, refuse: 20, delay: 120 };
        let run = run(&script, chances, seed, write_through);
        check(&run, write_through)?;
    }
}
