//! The NBD protocol's numbers and frames (github.com/NetworkBlockDevice/nbd, doc/proto.md).

use rustix::io::Errno;

/// Bytes of a request without its data.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply without its data.
pub const SIMPLE_BYTES: usize = 16;
/// Bytes of a structured reply's chunk without its payload.
pub const CHUNK_BYTES: usize = 20;

/// Magic numbers.
pub(super) mod magic {
    pub(in super::super) const SERVER: u64 = 0x4e42_444d_4147_4943;
    pub(in super::super) const OPTION: u64 = 0x4948_4156_454f_5054;
    pub(in super::super) const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
    pub(super) const REQUEST: u32 = 0x2560_9513;
    pub(super) const SIMPLE: u32 = 0x6744_6698;
    pub(super) const CHUNK: u32 = 0x668e_33ef;
}

/// Transmission flags: what an export can do.
pub mod flag {
    /// The flags are valid.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Nothing may be written.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// Force unit access.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// A FLUSH on one connection is about what was written on all of them.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// Read.
    Read = 0,
    /// Write.
    Write = 1,
    /// End of the connection; it has no reply.
    Disconnect = 2,
    /// Make durable what was written.
    Flush = 3,
    /// Give back to the storage.
    Trim = 4,
    /// Zero.
    WriteZeroes = 6,
}

/// Command flag: durable when it completes.
pub const FUA: u16 = 1 << 0;
/// Command flag of WRITE_ZEROES: keep the space allocated.
pub const NO_HOLE: u16 = 1 << 1;

/// A request.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// What.
    pub command: Command,
    /// [`FUA`], [`NO_HOLE`].
    pub flags: u16,
    /// Comes back in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

impl Request {
    /// As it is sent.
    #[must_use]
    pub fn bytes(&self) -> [u8; REQUEST_BYTES] {
        let mut out = [0; REQUEST_BYTES];
        let fields: [&[u8]; 6] = [
            &magic::REQUEST.to_be_bytes(),
            &self.flags.to_be_bytes(),
            &(self.command as u16).to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.len.to_be_bytes(),
        ];
        let bytes = fields.into_iter().flatten();
        out.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        out
    }
}

/// The head of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// A simple reply: of a successful read, the data follows.
    Simple {
        /// Zero if it succeeded.
        error: u32,
        /// Of the request.
        cookie: u64,
    },
    /// A chunk of a structured reply; so many bytes follow.
    Chunk {
        /// The last one of its reply.
        last: bool,
        /// What follows.
        kind: u16,
        /// Of the request.
        cookie: u64,
        /// Bytes that follow.
        len: u32,
    },
}

/// Chunk: nothing follows.
pub const CHUNK_NONE: u16 = 0;
/// Chunk: an offset of 8 bytes, and data.
pub const CHUNK_DATA: u16 = 1;
/// Chunk: an offset of 8 bytes, and a length of 4 bytes: zeroes.
pub const CHUNK_HOLE: u16 = 2;
/// Chunks with this bit are errors: 4 bytes of error, 2 of length, a message.
pub const CHUNK_ERROR: u16 = 1 << 15;

/// A big-endian number in the first bytes of `bytes`, which lacks none of them.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let part = bytes.get(at..at + len).unwrap_or_default();
    part.iter().fold(0, |sum, b| sum << 8 | u64::from(*b))
}

/// The first 4 bytes of `bytes`.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::try_from(number(bytes, at, 4)).unwrap_or(0)
}

/// The first 8 bytes of `bytes`.
#[must_use]
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    number(bytes, at, 8)
}

/// The first 2 bytes of `bytes`.
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::try_from(number(bytes, at, 2)).unwrap_or(0)
}

impl Reply {
    /// The head of the reply in `bytes`, and how long the head is; None if more bytes are needed.
    ///
    /// # Errors
    /// The number that is no magic number.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Reply, usize)>, u32> {
        if bytes.len() < SIMPLE_BYTES {
            return Ok(None);
        }
        match u32_at(bytes, 0) {
            magic::SIMPLE => {
                let reply = Reply::Simple {
                    error: u32_at(bytes, 4),
                    cookie: u64_at(bytes, 8),
                };
                Ok(Some((reply, SIMPLE_BYTES)))
            }
            magic::CHUNK if bytes.len() < CHUNK_BYTES => Ok(None),
            magic::CHUNK => {
                let reply = Reply::Chunk {
                    last: u16_at(bytes, 4) & 1 != 0,
                    kind: u16_at(bytes, 6),
                    cookie: u64_at(bytes, 8),
                    len: u32_at(bytes, 16),
                };
                Ok(Some((reply, CHUNK_BYTES)))
            }
            other => Err(other),
        }
    }
}

/// The errno of an NBD error: the protocol has a few numbers, those of Linux; any other is EINVAL,
/// says the specification, and here EIO, as a disk has it.
#[must_use]
pub fn errno(error: u32) -> Errno {
    match error {
        1 => Errno::PERM,
        12 => Errno::NOMEM,
        22 => Errno::INVAL,
        28 => Errno::NOSPC,
        75 => Errno::OVERFLOW,
        95 => Errno::OPNOTSUPP,
        108 => Errno::SHUTDOWN,
        _ => Errno::IO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_protocol_says() {
        let request = Request {
            command: Command::WriteZeroes,
            flags: FUA | NO_HOLE,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1000,
            len: 0x200,
        };
        let hex: String = request.bytes().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "25609513000300060102030405060708000000000000100000000200"
        );
    }

    #[test]
    fn replies_are_told_apart_and_partial_ones_wait() {
        let mut simple = vec![0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5];
        simple.extend(9u64.to_be_bytes());
        let parsed = Reply::parse(&simple).unwrap();
        let (error, cookie) = (5, 9);
        assert_eq!(parsed, Some((Reply::Simple { error, cookie }, 16)));
        assert_eq!(Reply::parse(&simple[..15]), Ok(None));
        let mut chunk = vec![0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 2];
        chunk.extend(9u64.to_be_bytes());
        assert_eq!(Reply::parse(&chunk), Ok(None));
        chunk.extend(77u32.to_be_bytes());
        let reply = Reply::Chunk {
            last: true,
            kind: 0x8002,
            cookie,
            len: 77,
        };
        assert_eq!(Reply::parse(&chunk), Ok(Some((reply, 20))));
        assert_eq!(Reply::parse(&[1; 16]), Err(0x0101_0101));
    }
}
