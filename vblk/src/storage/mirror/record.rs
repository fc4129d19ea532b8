//! What a mirror writes down: which disks are current, and where they may differ.
//!
//! ```text
//!  0        4096     8192
//!  │ head 0 │ head 1 │ one bit a region …
//! ```
//!
//! A head fits into one sector and has a sum; the two take turns, and the one with the higher
//! number counts, so that a power cut while one is written leaves the other. A disk is known by the
//! hash of its name in the configuration: one that is not in the head is a stranger, whose every
//! byte must be copied.
//!
//! A mirror that was left with nothing in flight says so in its head, for each disk by a number
//! that names the disk and the boot (`rest`): where that number is still the same, the disks are
//! equal, marked or not.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::bits::Bits;

/// Most disks of a mirror.
pub const MAX_MEMBERS: usize = 8;

/// Bytes of a page of bits, and of the place of a head.
pub const PAGE: u32 = 4096;

/// Regions a page of bits is about.
pub const PAGE_REGIONS: usize = PAGE as usize * 8;

/// Where the bits begin.
pub const BITS_AT: u64 = 2 * PAGE as u64;

/// Bytes of a head: one sector.
pub const HEAD: usize = 512;

/// Smallest region, as a power of two: 1 MiB.
const MIN_SHIFT: u32 = 20;
/// Largest region, as a power of two.
const MAX_SHIFT: u32 = 40;
/// Most regions.
const MAX_REGIONS: u64 = 1 << 16;

/// Most bytes of a mirror: as many regions as there may be, of the largest kind.
pub const MAX_SIZE: u64 = MAX_REGIONS << MAX_SHIFT;

/// Logarithm of the size of the regions of a new mirror of `size` bytes.
#[must_use]
pub fn shift_for(size: u64) -> u32 {
    let mut shift = MIN_SHIFT;
    while size.div_ceil(1 << shift) > MAX_REGIONS {
        shift += 1;
    }
    shift
}

const MAGIC: u64 = u64::from_le_bytes(*b"tpmirr01");

/// Why there is no usable record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is there already.
    #[error("{} exists already; remove it if no mirror needs it any more", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// It is something else, or broken.
    #[error("{} is no mirror's record, or both of its heads are broken; a copy of it helps, or \
             `vblk mirror create` for a new one after the disks were looked at", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
    },
}

/// A disk as a head knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Of its name.
    pub hash: u64,
    /// It has all that was acknowledged.
    pub current: bool,
    /// Nothing is known about it: every byte must be copied.
    pub stranger: bool,
    /// Not 0: it was left with all that the others have, and this is what it was.
    pub rest: u64,
}

/// A head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Grows with each head that is written.
    pub number: u64,
    /// Bytes of the mirror.
    pub size: u64,
    /// Logarithm of a region's size.
    pub shift: u32,
    /// The disks.
    pub known: Vec<Known>,
}

/// FNV-1a, which is enough to tell a torn sector and one name from another.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl Head {
    /// The first head of a mirror of `size` bytes over disks of these names.
    #[must_use]
    pub fn first(size: u64, names: &[String], equal: bool) -> Head {
        let known = |(i, name): (usize, &String)| Known {
            hash: hash(name.as_bytes()),
            current: equal || i == 0,
            stranger: !equal && i > 0,
            rest: 0,
        };
        Head {
            number: 1,
            size,
            shift: shift_for(size),
            known: names.iter().enumerate().map(known).collect(),
        }
    }

    /// How many regions there are.
    #[must_use]
    pub fn regions(&self) -> usize {
        usize::try_from(self.size.div_ceil(1 << self.shift)).unwrap_or(0)
    }

    /// Bytes of the file.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        let pages = self.regions().div_ceil(PAGE_REGIONS) as u64;
        BITS_AT + pages * u64::from(PAGE)
    }

    /// Where it belongs in the file.
    #[must_use]
    pub fn place(&self) -> u64 {
        (self.number & 1) * u64::from(PAGE)
    }

    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEAD] {
        let mut words = vec![MAGIC, self.number, self.size, u64::from(self.shift)];
        words.push(self.known.len() as u64);
        for known in &self.known {
            words.push(known.hash);
            words.push(u64::from(known.current) | u64::from(known.stranger) << 1);
        }
        // Behind what there was first: older daemons do not look here, and write zeroes.
        words.extend(self.known.iter().map(|known| known.rest));
        let mut bytes = [0; HEAD];
        let (body, sum) = bytes.split_at_mut(HEAD - 8);
        for (to, word) in body.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        sum.copy_from_slice(&hash(body).to_le_bytes());
        bytes
    }

    /// What [`Head::encode`] made; None if it is something else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Head> {
        let (body, sum) = bytes.get(..HEAD)?.split_at(HEAD - 8);
        if hash(body).to_le_bytes() != *sum {
            return None;
        }
        let mut words = body
            .chunks_exact(8)
            .map(|b| u64::from_le_bytes(b.try_into().unwrap_or_default()));
        let mut next = || words.next();
        if next()? != MAGIC {
            return None;
        }
        let (number, size) = (next()?, next()?);
        let shift = u32::try_from(next()?).ok()?;
        let count = usize::try_from(next()?).ok()?;
        if !(MIN_SHIFT..=MAX_SHIFT).contains(&shift) || count > MAX_MEMBERS || size == 0 {
            return None;
        }
        let mut known = Vec::new();
        for _ in 0..count {
            let (hash, flags) = (next()?, next()?);
            known.push(Known {
                hash,
                current: flags & 1 != 0,
                stranger: flags & 2 != 0,
                rest: 0,
            });
        }
        for known in &mut known {
            known.rest = next()?;
        }
        Some(Head {
            number,
            size,
            shift,
            known,
        })
    }
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The head that counts.
    pub head: Head,
    /// Regions in which the disks may differ.
    pub dirty: Bits,
}

impl Record {
    /// The first record of a mirror; the disks are `equal` already, or all must be copied.
    #[must_use]
    pub fn first(size: u64, names: &[String], equal: bool) -> Record {
        let head = Head::first(size, names, equal);
        let regions = head.regions();
        let dirty = if equal {
            Bits::new(regions)
        } else {
            Bits::all(regions)
        };
        Record { head, dirty }
    }

    /// What `bytes` of a file say.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Record> {
        let at = |place: usize| bytes.get(place..).and_then(Head::decode);
        let (a, b) = (at(0), at(PAGE as usize));
        let head = a.into_iter().chain(b).max_by_key(|head| head.number)?;
        if (bytes.len() as u64) < head.file_len() {
            return None;
        }
        let bits = bytes.get(usize::try_from(BITS_AT).ok()?..)?;
        let dirty = Bits::of_bytes(bits, head.regions());
        Some(Record { head, dirty })
    }

    /// The whole file.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.head.file_len()).unwrap_or(0)];
        let mut put = |at: u64, from: &[u8]| {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            if let Some(to) = bytes.get_mut(at..at.saturating_add(from.len())) {
                to.copy_from_slice(from);
            }
        };
        put(self.head.place(), &self.head.encode());
        put(BITS_AT, &self.bits());
        bytes
    }

    /// Its bits as they are in the file: whole pages.
    #[must_use]
    pub fn bits(&self) -> Vec<u8> {
        let words = self.dirty.words(0, usize::MAX).iter();
        let mut bytes: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(PAGE as usize), 0);
        bytes
    }

    /// Make the file `path` of it, which must not exist.
    ///
    /// # Errors
    /// [`RecordError`]; there is no new file then.
    pub fn create(&self, path: &Path) -> Result<(), RecordError> {
        let failed = |source: io::Error| RecordError::Io {
            what: "create",
            path: path.to_owned(),
            source,
        };
        let mut options = OpenOptions::new();
        let made = options.write(true).create_new(true).mode(0o600).open(path);
        let mut file = match made {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let path = path.to_owned();
                return Err(RecordError::Exists { path });
            }
            other => other.map_err(failed)?,
        };
        let written = file.write_all(&self.bytes()).and_then(|()| file.sync_all());
        written.map_err(|error| {
            let _the_first_error_counts = std::fs::remove_file(path);
            failed(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        vec!["/a".to_owned(), "/b".to_owned()]
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        for equal in [true, false] {
            let mut record = Record::first(100 << 20, &names(), equal);
            record.dirty.set(77);
            assert_eq!(Record::parse(&record.bytes()), Some(record.clone()));
            record.head.number += 1;
            assert_eq!(record.head.place(), 0);
            assert_eq!(Record::parse(&record.bytes()), Some(record));
        }
        let large = Head::first(1 << 44, &names(), true);
        assert_eq!((large.regions(), large.shift), (1 << 16, 28));
        assert_eq!(large.file_len(), 8192 + 8192);
    }

    #[test]
    fn a_torn_head_leaves_the_one_before() {
        let old = Record::first(10 << 20, &names(), true);
        let mut new = old.clone();
        new.head.number = 2;
        new.head.known[1].current = false;
        new.head.known[0].rest = 99;
        let mut bytes = old.bytes();
        bytes[..HEAD].copy_from_slice(&new.head.encode());
        assert_eq!(Record::parse(&bytes), Some(new));
        for at in [0, 9, 40, 511] {
            let mut torn = bytes.clone();
            torn[at] ^= 1;
            assert_eq!(Record::parse(&torn), Some(old.clone()));
        }
        assert_eq!(Record::parse(&bytes[..8192]), None);
        assert_eq!(Record::parse(&[0; 16384]), None);
    }

    #[test]
    fn a_record_is_created_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let record = Record::first(10 << 20, &names(), false);
        record.create(&path).unwrap();
        assert!(matches!(
            record.create(&path),
            Err(RecordError::Exists { .. })
        ));
        assert_eq!(Record::parse(&std::fs::read(&path).unwrap()), Some(record));
    }
}
