//! The newstyle handshake, on a thread that may wait: what an export is, and how to talk to it.
//!
//! The server is not trusted: every length it names has a limit, and a read that takes too long
//! ends the attempt (timeouts are set on the socket).

use std::io::{Read, Write};

use super::proto::{flag, magic, u16_at, u32_at, u64_at};

/// What an export can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Bytes.
    pub size: u64,
    /// Transmission flags ([`flag`]).
    pub flags: u16,
    /// Replies to reads come in chunks.
    pub structured: bool,
    /// Unit of offsets and lengths, in bytes.
    pub min_block: u32,
    /// Unit the server likes best.
    pub preferred_block: u32,
    /// Most data in one request.
    pub max_block: u32,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// It speaks something else.
    #[error("not an NBD server that speaks the newstyle handshake: {0}")]
    NotNbd(&'static str),
    /// The server refused the export.
    #[error("the server refuses export {export:?}: {message}")]
    Refused {
        /// Its name.
        export: String,
        /// What the server said.
        message: String,
    },
    /// It has no TLS, and was to be reached through it.
    #[error("the server has no TLS; give it certificates, or write nbd: where you trust the way")]
    NoTls,
    /// TLS failed, or the server is somebody else.
    #[error("TLS: {0}")]
    Tls(String),
    /// The server broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(&'static str),
}

const FIXED_NEWSTYLE: u16 = 1 << 0;
const NO_ZEROES: u16 = 1 << 1;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_STARTTLS: u32 = 5;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;

const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const REP_ERR_UNSUP: u32 = REP_ERROR | 1;
const REP_ERR_POLICY: u32 = REP_ERROR | 2;
const REP_ERR_TLS_REQD: u32 = REP_ERROR | 5;
const REP_ERR_UNKNOWN: u32 = REP_ERROR | 6;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// What to do about a server that wants TLS.
const WANTS_TLS: &str = "it wants TLS: write nbds: and ?tls-certs=DIR";

/// Longest option reply that is read: the longest string the protocol has, and a little.
const MAX_REPLY: u32 = 8192;
/// Most replies to one option.
const MAX_REPLIES: usize = 64;
/// The largest request a server that says nothing must take.
const DEFAULT_MAX_BLOCK: u32 = 32 << 20;

fn protocol(what: &'static str) -> HandshakeError {
    HandshakeError::Protocol(what)
}

/// Shake hands about `export`; the connection is ready for requests then.
///
/// # Errors
/// [`HandshakeError`]; the connection is of no use then.
pub fn shake(stream: &mut (impl Read + Write), export: &str) -> Result<Info, HandshakeError> {
    let no_zeroes = greet(stream)?;
    choose(stream, export, no_zeroes)
}

/// Greet the server, and ask it to go on in TLS; the next bytes are those of TLS. What it says goes
/// to [`choose`].
///
/// # Errors
/// [`HandshakeError`]; the connection is of no use then.
pub fn start_tls(stream: &mut (impl Read + Write)) -> Result<u16, HandshakeError> {
    let no_zeroes = greet(stream)?;
    option(stream, OPT_STARTTLS, &[])?;
    let (kind, data) = reply(stream, OPT_STARTTLS)?;
    match kind {
        REP_ACK if data.is_empty() => Ok(no_zeroes),
        REP_ERR_UNSUP | REP_ERR_POLICY => Err(HandshakeError::NoTls),
        _ => Err(protocol("an unknown reply to NBD_OPT_STARTTLS")),
    }
}

fn greet(stream: &mut (impl Read + Write)) -> Result<u16, HandshakeError> {
    let mut hello = [0; 18];
    stream.read_exact(&mut hello)?;
    if u64_at(&hello, 0) != magic::SERVER {
        return Err(HandshakeError::NotNbd("no NBDMAGIC"));
    }
    if u64_at(&hello, 8) != magic::OPTION {
        return Err(HandshakeError::NotNbd("an oldstyle server"));
    }
    let flags = u16_at(&hello, 16);
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(HandshakeError::NotNbd("no fixed newstyle"));
    }
    let no_zeroes = flags & NO_ZEROES;
    stream.write_all(&u32::from(FIXED_NEWSTYLE | no_zeroes).to_be_bytes())?;
    Ok(no_zeroes)
}

/// Choose `export`; the connection is ready for requests then.
///
/// # Errors
/// [`HandshakeError`]; the connection is of no use then.
pub fn choose(
    stream: &mut (impl Read + Write),
    export: &str,
    no_zeroes: u16,
) -> Result<Info, HandshakeError> {
    let structured = structured(stream, export)?;
    let mut info = Info {
        size: 0,
        flags: 0,
        structured,
        min_block: 1,
        preferred_block: 4096,
        max_block: DEFAULT_MAX_BLOCK,
    };
    if !go(stream, export, &mut info)? {
        // A server without NBD_OPT_GO; it hangs up if it does not like the name.
        option(stream, OPT_EXPORT_NAME, export.as_bytes())?;
        let mut answer = [0; 10];
        stream.read_exact(&mut answer)?;
        (info.size, info.flags) = (u64_at(&answer, 0), u16_at(&answer, 8));
        if no_zeroes == 0 {
            stream.read_exact(&mut [0; 124])?;
        }
    }
    check(&info)?;
    Ok(info)
}

fn check(info: &Info) -> Result<(), HandshakeError> {
    if info.flags & flag::HAS_FLAGS == 0 {
        return Err(protocol("transmission flags without HAS_FLAGS"));
    }
    let power = |n: u32, most: u32| n.is_power_of_two() && n <= most;
    if !power(info.min_block, 65536) {
        return Err(protocol(
            "a minimum block that is no power of two up to 64 KiB",
        ));
    }
    if info.max_block < info.min_block || info.max_block < 4096 {
        return Err(protocol(
            "a maximum block smaller than a page or than the minimum",
        ));
    }
    if info.size > i64::MAX.unsigned_abs() {
        return Err(protocol("a size beyond 8 EiB"));
    }
    Ok(())
}

fn option(stream: &mut impl Write, kind: u32, data: &[u8]) -> Result<(), HandshakeError> {
    let mut message = magic::OPTION.to_be_bytes().to_vec();
    message.extend(kind.to_be_bytes());
    message.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    message.extend(data);
    Ok(stream.write_all(&message)?)
}

/// The next reply to `kind`: its type and its data.
fn reply(stream: &mut impl Read, kind: u32) -> Result<(u32, Vec<u8>), HandshakeError> {
    let mut head = [0; 20];
    stream.read_exact(&mut head)?;
    if u64_at(&head, 0) != magic::OPTION_REPLY {
        return Err(protocol("an option reply without its magic number"));
    }
    if u32_at(&head, 8) != kind {
        return Err(protocol("a reply to another option"));
    }
    let len = u32_at(&head, 16);
    if len > MAX_REPLY {
        return Err(protocol("an option reply of more than 8 KiB"));
    }
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data)?;
    Ok((u32_at(&head, 12), data))
}

fn structured(stream: &mut (impl Read + Write), export: &str) -> Result<bool, HandshakeError> {
    option(stream, OPT_STRUCTURED_REPLY, &[])?;
    match reply(stream, OPT_STRUCTURED_REPLY)?.0 {
        REP_ACK => Ok(true),
        REP_ERR_TLS_REQD => Err(HandshakeError::Refused {
            export: export.to_owned(),
            message: WANTS_TLS.to_owned(),
        }),
        error if error & REP_ERROR != 0 => Ok(false),
        _ => Err(protocol("an unknown reply to NBD_OPT_STRUCTURED_REPLY")),
    }
}

/// NBD_OPT_GO; false if the server does not know it.
fn go(
    stream: &mut (impl Read + Write),
    export: &str,
    info: &mut Info,
) -> Result<bool, HandshakeError> {
    let mut data = u32::try_from(export.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes()
        .to_vec();
    data.extend(export.as_bytes());
    data.extend(1u16.to_be_bytes());
    data.extend(INFO_BLOCK_SIZE.to_be_bytes());
    option(stream, OPT_GO, &data)?;
    let mut described = false;
    for _ in 0..MAX_REPLIES {
        let (kind, data) = reply(stream, OPT_GO)?;
        match kind {
            REP_ACK if described => return Ok(true),
            REP_ACK => return Err(protocol("an export without NBD_INFO_EXPORT")),
            REP_INFO if data.len() >= 12 && u16_at(&data, 0) == INFO_EXPORT => {
                (info.size, info.flags) = (u64_at(&data, 2), u16_at(&data, 10));
                described = true;
            }
            REP_INFO if data.len() >= 14 && u16_at(&data, 0) == INFO_BLOCK_SIZE => {
                info.min_block = u32_at(&data, 2);
                info.preferred_block = u32_at(&data, 6);
                info.max_block = u32_at(&data, 10);
            }
            REP_INFO => {}
            REP_ERR_UNSUP => return Ok(false),
            error if error & REP_ERROR != 0 => {
                let said = String::from_utf8_lossy(&data);
                let message = match (error, said.trim()) {
                    (REP_ERR_UNKNOWN, "") => "there is no such export".to_owned(),
                    (REP_ERR_POLICY, "") => "its policy does not allow it".to_owned(),
                    (REP_ERR_TLS_REQD, _) => WANTS_TLS.to_owned(),
                    (code, "") => format!("error {:#x}", code & !REP_ERROR),
                    (_, said) => said.chars().filter(|c| !c.is_control()).take(200).collect(),
                };
                let export = export.to_owned();
                return Err(HandshakeError::Refused { export, message });
            }
            _ => return Err(protocol("an unknown reply to NBD_OPT_GO")),
        }
    }
    Err(protocol("more than 64 replies to NBD_OPT_GO"))
}

#[cfg(test)]
mod tests;
