//! What a backup consists of, as text beside its data: a line of JSON, then a line a block.
//!
//! ```text
//! {"format":"towpath-backup-1","id":"6f…","parent":null,"disk":"web","size":21474836480,…}
//! 0 9f86d081884c7d659a2feaa0c55ad015
//! 1 zero
//! - 1
//! end 1 4e07408562bedb8b60ce05c1decfe3ad
//! ```
//!
//! A block's line says that its bytes stand in the data at their own place, and what they hash to
//! (BLAKE3, the first 128 bits), or that they are all zero. `-` takes a line back: the block
//! changed before an interrupted backup was resumed. `end` counts the blocks and hashes all lines
//! before it.
//!
//! The same file is the journal of a backup that is being made, under another name
//! (`….manifest.part`) and without its end; a torn last line is ignored.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::BackupError;
use super::bitmap::{BLOCK, Made};
use crate::storage::nbd::address::is_address;

/// The first line names it.
const FORMAT: &str = "towpath-backup-1";
/// Longest line: a header with two paths.
const MAX_LINE: u64 = 16 * 1024;
/// Most blocks: 64 TiB.
const MAX_BLOCKS: u64 = 1 << 28;
/// Most backups in a chain.
const MAX_CHAIN: usize = 1000;

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    /// Nothing but zeroes; the data has a hole, or whatever was there.
    Zero,
    /// Bytes with this hash.
    Hash([u8; 16]),
}

impl Sum {
    /// Of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Sum {
        if bytes.iter().all(|b| *b == 0) {
            return Sum::Zero;
        }
        Sum::Hash(short(blake3::hash(bytes)))
    }

    fn parse(text: &str) -> Option<Sum> {
        if text == "zero" {
            return Some(Sum::Zero);
        }
        let number = u128::from_str_radix(text, 16).ok()?;
        (text.len() == 32).then_some(Sum::Hash(number.to_be_bytes()))
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Sum::Zero => f.write_str("zero"),
            Sum::Hash(hash) => write!(f, "{:032x}", u128::from_be_bytes(*hash)),
        }
    }
}

fn short(hash: blake3::Hash) -> [u8; 16] {
    let mut out = [0; 16];
    out.iter_mut()
        .zip(hash.as_bytes())
        .for_each(|(to, from)| *to = *from);
    out
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// `towpath-backup-1`.
    pub format: String,
    /// Random, of 32 hexadecimal digits.
    pub id: String,
    /// What it is an increment of; none: it is a full backup.
    pub parent: Option<Made>,
    /// The disk's name.
    pub disk: String,
    /// The disk's size in bytes.
    pub size: u64,
    /// Bytes of a block.
    pub block: u64,
    /// A file beside the manifest by its name, or an NBD export.
    pub data: String,
    /// When it began, in seconds since 1970.
    pub began: u64,
}

impl Header {
    /// A header with a new identity.
    ///
    /// # Errors
    /// If there are no random numbers.
    pub fn new(
        disk: &str,
        size: u64,
        data: String,
        parent: Option<Made>,
    ) -> Result<Header, BackupError> {
        let mut random = [0; 16];
        let source = Path::new("/dev/urandom");
        File::open(source)
            .and_then(|mut f| f.read_exact(&mut random))
            .map_err(|e| BackupError::file("read", source, e))?;
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed();
        Ok(Header {
            format: FORMAT.to_owned(),
            id: format!("{:032x}", u128::from_be_bytes(random)),
            parent,
            disk: disk.to_owned(),
            size,
            block: BLOCK,
            data,
            began: now.map_or(0, |n| n.as_secs()),
        })
    }

    /// Blocks of the disk.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK)
    }

    /// Bytes of block `block`, of which the last may have fewer.
    #[must_use]
    pub fn len(&self, block: u64) -> u64 {
        self.size.saturating_sub(block * BLOCK).min(BLOCK)
    }
}

/// A manifest that was read.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Where it is.
    pub path: PathBuf,
    /// The first line.
    pub header: Header,
    /// Its blocks.
    pub blocks: BTreeMap<u64, Sum>,
    /// It has its end.
    pub complete: bool,
}

/// The manifest of the backup to the file `data`.
#[must_use]
pub fn beside(data: &Path) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(".manifest");
    name.into()
}

/// The journal of a manifest that is being written.
#[must_use]
pub fn journal_of(manifest: &Path) -> PathBuf {
    let mut name = manifest.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

impl Manifest {
    /// Read the manifest or journal `path`.
    ///
    /// # Errors
    /// If it cannot be read, or is no manifest, or (having an end) is damaged.
    pub fn read(path: &Path) -> Result<Manifest, BackupError> {
        let failed = |e| BackupError::file("read", path, e);
        let damaged = |what: &'static str| BackupError::Manifest {
            path: path.to_owned(),
            what,
        };
        let mut reader = BufReader::new(File::open(path).map_err(failed)?);
        let mut hash = blake3::Hasher::new();
        let mut line = String::new();
        let mut next = |line: &mut String| -> Result<bool, BackupError> {
            line.clear();
            let mut limited = (&mut reader).take(MAX_LINE);
            limited.read_line(line).map_err(failed)?;
            Ok(line.ends_with('\n'))
        };
        if !next(&mut line)? {
            return Err(damaged("it has no first line"));
        }
        let header: Header =
            serde_json::from_str(&line).map_err(|_| damaged("its first line is no header"))?;
        let known = header.format == FORMAT && header.block == BLOCK;
        if !known || header.blocks() > MAX_BLOCKS || header.size == 0 {
            return Err(damaged("it is of another format, or of another program"));
        }
        let mut manifest = Manifest {
            path: path.to_owned(),
            header,
            blocks: BTreeMap::new(),
            complete: false,
        };
        hash.update(line.as_bytes());
        while next(&mut line)? {
            if manifest.complete {
                return Err(damaged("something follows its end"));
            }
            if let Some(end) = line.trim_end().strip_prefix("end ") {
                let count = manifest.blocks.len();
                let sum = Sum::Hash(short(hash.finalize()));
                if end != format!("{count} {sum}") {
                    return Err(damaged("its lines do not hash to what its end says"));
                }
                manifest.complete = true;
                continue;
            }
            hash.update(line.as_bytes());
            manifest
                .take(line.trim_end())
                .ok_or_else(|| damaged("a line that says nothing"))?;
        }
        Ok(manifest)
    }

    /// Take one line about a block.
    fn take(&mut self, line: &str) -> Option<()> {
        let (first, second) = line.split_once(' ')?;
        if first == "-" {
            let block: u64 = second.parse().ok()?;
            self.blocks.remove(&block);
            return Some(());
        }
        let block: u64 = first.parse().ok()?;
        let sum = Sum::parse(second)?;
        (block < self.header.blocks()).then(|| self.blocks.insert(block, sum))?;
        Some(())
    }

    /// Where the data is: a path, or an NBD export.
    #[must_use]
    pub fn data(&self) -> String {
        let data = &self.header.data;
        if is_address(data) {
            return data.clone();
        }
        let beside = self.path.parent().map(|dir| dir.join(data));
        beside.map_or_else(|| data.clone(), |path| path.display().to_string())
    }

    /// This backup and all it is built upon, the newest first; each is complete.
    ///
    /// # Errors
    /// If one is missing, another one, or damaged.
    pub fn chain(path: &Path) -> Result<Vec<Manifest>, BackupError> {
        let mut chain = vec![Manifest::read(path)?];
        loop {
            let last = chain
                .last()
                .map(|m| (m.path.clone(), m.complete, m.header.parent.clone()));
            let Some((path, complete, parent)) = last else {
                return Ok(chain);
            };
            if !complete {
                let what = "it has no end: the backup was cut off (`vblk backup … --resume`)";
                return Err(BackupError::Manifest { path, what });
            }
            let Some(parent) = parent else {
                return Ok(chain);
            };
            if chain.len() >= MAX_CHAIN {
                let what = "more than 1000 increments are built upon each other";
                return Err(BackupError::Manifest { path, what });
            }
            let found = Manifest::read(&find(&path, &parent))?;
            if found.header.id != parent.id {
                return Err(BackupError::WrongParent {
                    path,
                    parent: found.path,
                });
            }
            chain.push(found);
        }
    }
}

/// The parent beside the increment, if it was moved there; else where it was.
fn find(increment: &Path, parent: &Made) -> PathBuf {
    let dir = increment.parent().unwrap_or(Path::new("."));
    let name = parent.manifest.file_name();
    let beside = name.map(|name| dir.join(name)).filter(|p| p.exists());
    beside.unwrap_or_else(|| dir.join(&parent.manifest))
}

/// A manifest in the making.
#[derive(Debug)]
pub struct Journal {
    file: BufWriter<File>,
    path: PathBuf,
    manifest: PathBuf,
}

impl Journal {
    /// Begin one for `manifest`, or go on with the one there is.
    ///
    /// # Errors
    /// If there is a manifest or journal already, or the file cannot be written.
    pub fn begin(manifest: &Path, header: &Header) -> Result<Journal, BackupError> {
        let path = journal_of(manifest);
        if manifest.exists() || path.exists() {
            let there = if manifest.exists() { manifest } else { &path };
            return Err(BackupError::Exists(there.to_owned()));
        }
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o600);
        let file = options.open(&path);
        let file = file.map_err(|e| BackupError::file("create", &path, e))?;
        let mut journal = Journal {
            file: BufWriter::new(file),
            path,
            manifest: manifest.to_owned(),
        };
        let header = serde_json::to_string(header).unwrap_or_default();
        journal.line(&header)?;
        Ok(journal)
    }

    /// Go on with the journal that `read` was read from; lines of blocks that are in it no more are
    /// taken back. A torn line at its end is cut off.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn resume(manifest: &Path, read: &Manifest, gone: &[u64]) -> Result<Journal, BackupError> {
        let path = journal_of(manifest);
        let failed = |e| BackupError::file("write", &path, e);
        let text = std::fs::read(&path).map_err(failed)?;
        let whole = text
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |at| at + 1);
        debug_assert!(whole > 0 && read.path == path);
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(failed)?;
        file.set_len(whole as u64).map_err(failed)?;
        let mut journal = Journal {
            file: BufWriter::new(file),
            path: path.clone(),
            manifest: manifest.to_owned(),
        };
        for block in gone {
            journal.line(&format!("- {block}"))?;
        }
        journal.flush()?;
        Ok(journal)
    }

    fn line(&mut self, text: &str) -> Result<(), BackupError> {
        let written = writeln!(self.file, "{text}");
        written.map_err(|e| BackupError::file("write", &self.path, e))
    }

    /// `block` is in the data.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn add(&mut self, block: u64, sum: Sum) -> Result<(), BackupError> {
        self.line(&format!("{block} {sum}"))
    }

    /// What was added outlives this process.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn flush(&mut self) -> Result<(), BackupError> {
        let flushed = self.file.flush();
        flushed.map_err(|e| BackupError::file("write", &self.path, e))
    }

    /// It is complete, and the data durable: write its end, and give it its name.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self) -> Result<(), BackupError> {
        self.flush()?;
        let path = self.path.clone();
        let failed = |e| BackupError::file("finish", &path, e);
        let whole = Manifest::read(&self.path)?;
        let mut hash = blake3::Hasher::new();
        let mut reader = File::open(&self.path).map_err(failed)?;
        std::io::copy(&mut reader, &mut hash).map_err(failed)?;
        let sum = Sum::Hash(short(hash.finalize()));
        let end = format!("end {} {sum}", whole.blocks.len());
        self.line(&end)?;
        self.flush()?;
        self.file.get_ref().sync_all().map_err(failed)?;
        std::fs::rename(&self.path, &self.manifest).map_err(failed)?;
        let dir = self.manifest.parent().filter(|p| !p.as_os_str().is_empty());
        let dir = File::open(dir.unwrap_or(Path::new("."))).map_err(failed)?;
        dir.sync_all().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(size: u64, parent: Option<Made>) -> Header {
        Header::new("web", size, "d".to_owned(), parent).unwrap()
    }

    #[test]
    fn a_journal_becomes_the_manifest_it_was_written_as() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.manifest");
        let head = header(3 * BLOCK + 512, None);
        let mut journal = Journal::begin(&path, &head).unwrap();
        journal.add(0, Sum::of(b"hello")).unwrap();
        journal.add(2, Sum::Zero).unwrap();
        journal.add(3, Sum::of(b"x")).unwrap();
        journal.flush().unwrap();
        let part = Manifest::read(&journal_of(&path)).unwrap();
        assert!(!part.complete);
        assert!(Journal::begin(&path, &head).is_err(), "one is there");
        let mut journal = Journal::resume(&path, &part, &[2]).unwrap();
        journal.add(1, Sum::Zero).unwrap();
        journal.finish().unwrap();
        let read = Manifest::read(&path).unwrap();
        assert_eq!((read.complete, &read.header), (true, &head));
        let wanted = [(0, Sum::of(b"hello")), (1, Sum::Zero), (3, Sum::of(b"x"))];
        assert_eq!(read.blocks.into_iter().collect::<Vec<_>>(), wanted);
        assert_eq!((head.blocks(), head.len(3), head.len(0)), (4, 512, BLOCK));
    }

    #[test]
    fn a_torn_line_is_forgotten_and_a_changed_one_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.manifest");
        let mut journal = Journal::begin(&path, &header(4 * BLOCK, None)).unwrap();
        journal.add(1, Sum::Zero).unwrap();
        journal.flush().unwrap();
        let part = journal_of(&path);
        let mut text = std::fs::read(&part).unwrap();
        text.extend(b"2 ze");
        std::fs::write(&part, &text).unwrap();
        let read = Manifest::read(&part).unwrap();
        assert_eq!(read.blocks.len(), 1);
        let journal = Journal::resume(&path, &read, &[]).unwrap();
        journal.finish().unwrap();
        assert_eq!(Manifest::read(&path).unwrap().blocks.len(), 1);
        let text = std::fs::read_to_string(&path)
            .unwrap()
            .replace("1 zero", "3 zero");
        std::fs::write(&path, text).unwrap();
        let error = Manifest::read(&path).unwrap_err().to_string();
        assert!(error.contains("do not hash"), "{error}");
    }

    #[test]
    fn a_chain_is_followed_to_the_full_backup_and_no_further() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, parent| {
            let path = dir.path().join(name);
            let head = header(BLOCK, parent);
            Journal::begin(&path, &head).unwrap().finish().unwrap();
            Made {
                id: head.id,
                manifest: path,
            }
        };
        let full = make("full", None);
        let one = make("one", Some(full.clone()));
        let two = make("two", Some(one));
        let chain = Manifest::chain(&two.manifest).unwrap();
        let names: Vec<_> = chain.iter().map(|m| m.path.file_name().unwrap()).collect();
        assert_eq!(names, ["two", "one", "full"]);
        std::fs::remove_file(&full.manifest).unwrap();
        make("full", None);
        let error = Manifest::chain(&two.manifest).unwrap_err();
        assert!(matches!(error, BackupError::WrongParent { .. }), "{error}");
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let good = serde_json::to_string(&header(BLOCK, None)).unwrap();
        let texts = [
            "",
            "x\n",
            "{}\n",
            &good.replace("backup-1", "backup-9"),
            &format!("{good}\n9 zero\n"),
            &format!("{good}\n0 abc\n"),
            &format!("{good}\nend 0 00\n"),
        ];
        for text in texts {
            std::fs::write(&path, text).unwrap();
            assert!(Manifest::read(&path).is_err(), "{text}");
        }
    }
}
