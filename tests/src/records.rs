//! Numbered, checksummed records: what a guest writes while its disk comes and goes.
//!
//! [`LANES`] writers have one write each in flight. Lane `l` writes records 0, 1, 2 … one after
//! the other, each a block of 4 KiB whose bytes all follow from (lane, sequence number), into its
//! own region. Even lanes append: no record is ever overwritten, so each one that was acknowledged
//! must be there (nothing lost). Odd lanes overwrite windows of 1, 4, 16 and 64 blocks, so a write
//! that takes effect a second time, late, leaves an older record where a newer one was
//! acknowledged (nothing duplicated). The checksum covers the block (nothing torn).

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

/// Writers, and writes in flight.
pub const LANES: u64 = 8;
/// Records each lane writes.
pub const RECORDS: u64 = 1024;
/// Bytes of a record: a page, and the largest logical block we serve.
pub const BLOCK: usize = 4096;
/// Bytes of disk the records need.
pub const DISK_BYTES: u64 = LANES * RECORDS * BLOCK as u64;

const MAGIC: u64 = u64::from_le_bytes(*b"towpath\n");
const CHECKSUM: usize = BLOCK - 8;

/// One block in memory that direct I/O accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(align(4096))]
pub struct Block(pub [u8; BLOCK]);

impl Default for Block {
    fn default() -> Self {
        Self([0; BLOCK])
    }
}

/// How many blocks lane `lane` uses before it starts again at its first.
#[must_use]
pub fn window(lane: u64) -> u64 {
    match lane % 8 {
        1 => 1,
        3 => 4,
        5 => 16,
        7 => 64,
        _ => RECORDS,
    }
}

/// Where record `seq` of `lane` goes, in bytes from the disk's start.
#[must_use]
pub fn offset(lane: u64, seq: u64) -> u64 {
    (lane * RECORDS + seq % window(lane)) * BLOCK as u64
}

/// The bytes of record `seq` of `lane`.
#[must_use]
pub fn record(lane: u64, seq: u64) -> Block {
    let mut block = Block::default();
    let mut word = lane << 32 | seq;
    for (index, bytes) in block.0[..CHECKSUM].chunks_exact_mut(8).enumerate() {
        let value = match index {
            0 => MAGIC,
            1 => lane,
            2 => seq,
            _ => {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                word
            }
        };
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    let sum = checksum(&block.0[..CHECKSUM]);
    block.0[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
    block
}

/// FNV-1a, 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What `block` is, in words: for the message about one that should be something else.
fn describe(block: &Block) -> String {
    let word = |index: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&block.0[index * 8..index * 8 + 8]);
        u64::from_le_bytes(bytes)
    };
    if block.0.iter().all(|byte| *byte == 0) {
        "zeroes".into()
    } else if word(0) != MAGIC {
        "not a record".into()
    } else if word(CHECKSUM / 8) != checksum(&block.0[..CHECKSUM]) {
        format!("a torn record (lane {}, sequence {})", word(1), word(2))
    } else {
        format!("record {} of lane {}", word(2), word(1))
    }
}

/// Checks every record that must be there when `acknowledged` records of `lane` are.
///
/// With `at_rest` no write is in flight, and the lane must hold exactly these records; without,
/// blocks that a later record may be overwriting are left out.
///
/// # Errors
/// The first block that holds something else, and what it holds.
pub fn check_lane(disk: &File, lane: u64, acknowledged: u64, at_rest: bool) -> Result<()> {
    let window = window(lane);
    if !at_rest && window < RECORDS {
        return Ok(());
    }
    let mut block = Block::default();
    for seq in acknowledged.saturating_sub(window)..acknowledged {
        let offset = offset(lane, seq);
        disk.read_exact_at(&mut block.0, offset)
            .with_context(|| format!("cannot read the block at byte {offset}"))?;
        ensure!(
            block == record(lane, seq),
            "lane {lane}, byte {offset}: record {seq} was acknowledged, found {}",
            describe(&block)
        );
    }
    if at_rest && acknowledged < window {
        disk.read_exact_at(&mut block.0, offset(lane, acknowledged))?;
        ensure!(
            block == Block::default(),
            "lane {lane}: {acknowledged} records were written, then found {}",
            describe(&block)
        );
    }
    Ok(())
}

/// Acknowledged records by lane, from the writer's lines `ack LANE COUNT`.
#[must_use]
pub fn acknowledged(lines: &[String]) -> Vec<u64> {
    let mut counts = vec![0; usize::try_from(LANES).unwrap_or(0)];
    for line in lines {
        let mut words = line.split(' ');
        if words.next() != Some("ack") {
            continue;
        }
        let mut number = || words.next()?.parse::<u64>().ok();
        if let (Some(lane), Some(count)) = (number(), number())
            && let Some(slot) = usize::try_from(lane)
                .ok()
                .and_then(|lane| counts.get_mut(lane))
        {
            *slot = count.max(*slot);
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(written: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(DISK_BYTES).unwrap();
        for lane in 0..LANES {
            for seq in 0..written {
                file.write_all_at(&record(lane, seq).0, offset(lane, seq))
                    .unwrap();
            }
        }
        file
    }

    fn check(disk: &File, written: u64) -> Result<()> {
        (0..LANES).try_for_each(|lane| check_lane(disk, lane, written, true))
    }

    #[test]
    fn what_was_written_passes() {
        check(&disk(100), 100).unwrap();
        check(&disk(3), 3).unwrap();
    }

    #[test]
    fn lost_torn_late_and_surplus_records_are_found() {
        let lost = disk(100);
        lost.write_all_at(&Block::default().0, offset(2, 50))
            .unwrap();
        assert!(
            check(&lost, 100)
                .unwrap_err()
                .to_string()
                .contains("zeroes")
        );

        let torn = disk(100);
        torn.write_all_at(&record(2, 51).0[2048..], offset(2, 50) + 2048)
            .unwrap();
        assert!(check(&torn, 100).unwrap_err().to_string().contains("torn"));

        let late = disk(100);
        late.write_all_at(&record(3, 95).0, offset(3, 95)).unwrap();
        assert!(
            check(&late, 100)
                .unwrap_err()
                .to_string()
                .contains("record 95 of lane 3")
        );

        assert!(check(&disk(101), 100).is_err(), "a record nobody wrote");
    }

    #[test]
    fn acknowledgements_are_read_from_lines() {
        let lines = ["ack 0 16", "noise", "ack 7 32", "ack 0 48", "ack 9 1"].map(str::to_owned);
        assert_eq!(acknowledged(&lines), [48, 0, 0, 0, 0, 0, 0, 32]);
    }
}
