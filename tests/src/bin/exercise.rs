//! Exercises a file system inside a guest, as fsx does.
//!
//! `exercise file PATH OPERATIONS SEED` writes, reads, cuts, punches and syncs a file at random and
//! compares what it reads with a copy in memory; caches are dropped now and then, so that reads are
//! the disk's. It prints `tick N` now and then.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FallocateFlags, fallocate};

/// Most bytes of the file.
const MOST: u64 = 1 << 20;
/// Operations between two lines.
const TICK: u64 = 20;

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

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["file", path, operations, seed] => Exercise::new(path, seed.parse()?)?
            .run(operations.parse()?)
            .with_context(|| format!("{path}, seed {seed}"))?,
        _ => bail!("usage: exercise file PATH OPERATIONS SEED"),
    }
    println!("exercise file ok");
    Ok(())
}

struct Exercise {
    file: File,
    model: Vec<u8>,
    random: Random,
}

impl Exercise {
    fn new(path: &str, seed: u64) -> Result<Exercise> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true);
        Ok(Exercise {
            file: options.open(path)?,
            model: Vec::new(),
            random: Random(seed),
        })
    }

    /// A range within `end` bytes, mostly small.
    fn range(&mut self, end: u64) -> (u64, u64) {
        let at = self.random.below(end.max(1));
        let most = 1 << self.random.below(18);
        let len = self.random.below(most) + 1;
        (at, len.min(end.saturating_sub(at)))
    }

    fn run(&mut self, operations: u64) -> Result<()> {
        for n in 1..=operations {
            let what = self.random.below(100);
            let done = match what {
                0..45 => self.write(),
                45..70 => self.read(),
                70..80 => self.cut(),
                80..88 => self.punch(),
                88..97 => self.file.sync_data().context("fdatasync"),
                _ => self.forget(),
            };
            done.with_context(|| format!("operation {n} ({what})"))?;
            if n % TICK == 0 {
                println!("tick {n}");
            }
        }
        self.forget()?;
        self.compare(0, self.model.len() as u64)
    }

    fn write(&mut self) -> Result<()> {
        let (at, len) = self.range(MOST);
        let first = self.random.below(256);
        let bytes: Vec<u8> = (0..len)
            .map(|i| (first + i * 7 + (i >> 8)).to_le_bytes()[0])
            .collect();
        self.file.write_all_at(&bytes, at).context("write")?;
        let (at, end) = (usize::try_from(at)?, usize::try_from(at + len)?);
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[at..end].copy_from_slice(&bytes);
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let (at, len) = self.range(self.model.len() as u64);
        self.compare(at, len)
    }

    fn cut(&mut self) -> Result<()> {
        let len = self.random.below(MOST);
        self.file.set_len(len).context("truncate")?;
        self.model.resize(usize::try_from(len)?, 0);
        Ok(())
    }

    fn punch(&mut self) -> Result<()> {
        let (at, len) = self.range(self.model.len() as u64);
        if len == 0 {
            return Ok(());
        }
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, mode, at, len).context("punch")?;
        self.model[usize::try_from(at)?..usize::try_from(at + len)?].fill(0);
        Ok(())
    }

    /// What comes next is read from the disk.
    fn forget(&mut self) -> Result<()> {
        self.file.sync_all().context("fsync")?;
        std::fs::write("/proc/sys/vm/drop_caches", "3").context("drop caches")
    }

    fn compare(&self, at: u64, len: u64) -> Result<()> {
        let there = self.file.metadata()?.len();
        let known = self.model.len();
        ensure!(there == known as u64, "{there} bytes long, not {known}");
        let mut bytes = vec![0; usize::try_from(len)?];
        self.file.read_exact_at(&mut bytes, at).context("read")?;
        let from = usize::try_from(at)?;
        let model = &self.model[from..from + bytes.len()];
        let wrong = bytes.iter().zip(model).position(|(a, b)| a != b);
        match wrong {
            None => Ok(()),
            Some(n) => bail!("byte {} is {:#x}, not {:#x}", from + n, bytes[n], model[n]),
        }
    }
}
