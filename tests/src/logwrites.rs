//! Logs of dm-log-writes: what reached a device, in the order in which it became durable.
//!
//! A write is in the log once a FLUSH after it has been asked for, one with FUA once it is done
//! (Documentation/admin-guide/device-mapper/log-writes.rst, drivers/md/dm-log-writes.c). So what
//! comes before a mark is what a power cut at that moment would have left at least.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, bail, ensure};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
const SECTOR: usize = 512;

/// Sectors that were written, by number.
pub type Sectors = BTreeMap<u64, [u8; SECTOR]>;

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// What the log at `path` says up to the mark `until`, or all of it; and how many entries that are.
///
/// # Errors
/// When it is no log, or has no such mark.
pub fn replay(path: &Path, until: Option<&str>) -> Result<(Sectors, u64)> {
    let log = File::open(path)?;
    let mut head = [0; 32];
    log.read_exact_at(&mut head, 0)?;
    let (magic, version, entries) = (word(&head, 0), word(&head, 8), word(&head, 16));
    ensure!(
        magic == MAGIC && version == 1,
        "no log: {magic:#x} version {version}"
    );
    // Units of the log are blocks of its device.
    let unit = word(&head, 24) & u64::from(u32::MAX);
    ensure!(
        unit >= 512 && unit.is_power_of_two(),
        "units of {unit} bytes"
    );
    let scale = unit / SECTOR as u64;
    let mut model = Sectors::new();
    let mut at = unit;
    for entry in 0..entries {
        log.read_exact_at(&mut head, at)?;
        let (sector, sectors) = (word(&head, 0) * scale, word(&head, 8) * scale);
        let (flags, len) = (word(&head, 16), word(&head, 24));
        if flags & MARK != 0 {
            let mut name = vec![0; usize::try_from(len.min(unit - 32))?];
            log.read_exact_at(&mut name, at + 32)?;
            let name = String::from_utf8_lossy(&name);
            let name = name.trim_end_matches('\0');
            // The device's own, when it goes away.
            if Some(name) == until || (until.is_none() && name == "dm-log-writes-end") {
                return Ok((model, entry));
            }
            at += unit;
            continue;
        }
        at += unit;
        for n in 0..sectors {
            let mut bytes = [0; SECTOR];
            if flags & DISCARD == 0 {
                log.read_exact_at(&mut bytes, at)?;
                at += SECTOR as u64;
            }
            model.insert(sector + n, bytes);
        }
    }
    match until {
        None => Ok((model, entries)),
        Some(mark) => bail!("{entries} entries, and no mark {mark}"),
    }
}
