//! What `talk` says, and how its hearer knows that it is right.
//!
//! Byte N of a stream is a function of N and the stream's seed, so a byte that is wrong, missing,
//! doubled or out of place is seen where it happens. A connection carries both directions at once:
//! [`Offer`], then the caller's bytes one way and the answerer's the other, then [`GOOD`] from the
//! answerer, which so vouches for what it received.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// The last byte of a connection in which everything was right.
pub const GOOD: u8 = b'+';
/// Seed of the caller's bytes.
pub const CALLER: u64 = 0x6361_6c6c;
/// Seed of the answerer's bytes.
pub const ANSWERER: u64 = 0x616e_7377;

const CHUNK: usize = 64 << 10;

/// How much goes each way in a connection: what a caller sends first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Bytes from the caller.
    pub up: u64,
    /// Bytes to the caller.
    pub down: u64,
}

impl Offer {
    /// Writes it.
    ///
    /// # Errors
    /// As the stream's.
    pub fn send(self, stream: &mut impl Write) -> Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.up.to_be_bytes());
        bytes[8..].copy_from_slice(&self.down.to_be_bytes());
        stream.write_all(&bytes)?;
        Ok(())
    }

    /// Reads one.
    ///
    /// # Errors
    /// As the stream's.
    pub fn receive(stream: &mut impl Read) -> Result<Self> {
        let (mut up, mut down) = ([0; 8], [0; 8]);
        stream.read_exact(&mut up)?;
        stream.read_exact(&mut down)?;
        Ok(Self {
            up: u64::from_be_bytes(up),
            down: u64::from_be_bytes(down),
        })
    }
}

/// Fills `bytes` with those of stream `seed` from word `word` on; a word is 8 bytes.
pub fn fill(bytes: &mut [u8], seed: u64, mut word: u64) {
    for chunk in bytes.chunks_mut(8) {
        // splitmix64 (Steele, Lea, Flood, 2014): neighbours and seeds differ in all bytes.
        let mut z = seed.wrapping_add(word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        word = word.wrapping_add(1);
    }
}

/// Writes the first `length` bytes of stream `seed`.
///
/// # Errors
/// As the stream's.
pub fn speak(stream: &mut impl Write, seed: u64, length: u64) -> Result<()> {
    chunks(seed, length, |chunk| Ok(stream.write_all(chunk)?))
}

/// Reads the first `length` bytes of stream `seed`; the longest time 64 KiB of it took.
///
/// # Errors
/// As the stream's, and at the first byte that is wrong.
pub fn hear(stream: &mut impl Read, seed: u64, length: u64) -> Result<Duration> {
    let mut heard = vec![0; CHUNK];
    let mut at = 0;
    let mut longest = Duration::ZERO;
    chunks(seed, length, |chunk| {
        let heard = &mut heard[..chunk.len()];
        let began = Instant::now();
        stream.read_exact(heard)?;
        longest = longest.max(began.elapsed());
        if heard != chunk {
            let wrong = heard.iter().zip(chunk).position(|(a, b)| a != b);
            let wrong = at + wrong.unwrap_or_default();
            ensure!(false, "byte {wrong} of {length} is wrong");
        }
        at += chunk.len();
        Ok(())
    })?;
    Ok(longest)
}

/// Hands out the first `length` bytes of stream `seed`, in pieces.
fn chunks(seed: u64, length: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    let (mut at, mut word) = (0, 0);
    while at < length {
        let size = usize::try_from(length - at).map_or(CHUNK, |left| left.min(CHUNK));
        fill(&mut chunk[..size], seed, word);
        each(&chunk[..size])?;
        at += size as u64;
        word += CHUNK as u64 / 8;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: u64 = 2 * CHUNK as u64 + 13;

    #[test]
    fn what_is_spoken_is_heard() {
        let mut bytes = Vec::new();
        speak(&mut bytes, CALLER, LENGTH).unwrap();
        assert_eq!(bytes.len() as u64, LENGTH);
        hear(&mut bytes.as_slice(), CALLER, LENGTH).unwrap();
        assert!(hear(&mut bytes.as_slice(), ANSWERER, LENGTH).is_err());
        assert!(hear(&mut bytes.as_slice(), CALLER, LENGTH + 1).is_err());
    }

    #[test]
    fn a_changed_byte_is_named() {
        let mut bytes = Vec::new();
        speak(&mut bytes, CALLER, LENGTH).unwrap();
        let at = CHUNK + 5;
        bytes[at] ^= 1;
        let error = hear(&mut bytes.as_slice(), CALLER, LENGTH).unwrap_err();
        assert!(
            error.to_string().contains(&format!("byte {at} of")),
            "{error}"
        );
    }

    #[test]
    fn an_offer_arrives() {
        let offer = Offer {
            up: 3,
            down: u64::MAX,
        };
        let mut bytes = Vec::new();
        offer.send(&mut bytes).unwrap();
        assert_eq!(Offer::receive(&mut bytes.as_slice()).unwrap(), offer);
    }
}
