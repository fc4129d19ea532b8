//! One question to the kernel, and its answer.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;

use crate::kernel::WriteError;

/// What a question is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To change one thing; the kernel only says whether it did.
    Change,
    /// To get one thing.
    Get,
    /// To get all things of a kind.
    Dump,
}

/// A dump that the kernel says was disturbed is asked for again, so often at most.
const DUMPS: usize = 4;
/// Datagrams in an answer: ten thousand interfaces fit.
const MAX_DATAGRAMS: usize = 10_000;
/// The kernel's words about a refusal (include/uapi/linux/netlink.h).
const NLMSGERR_ATTR_MSG: u16 = 1;
/// A netlink header, which an answer that says "no" carries instead of the whole question.
const HEADER_BYTES: usize = 16;

/// Asks and returns what came back.
///
/// # Errors
/// [`WriteError::Refused`]: what the kernel says, in its own words where it has some.
pub(super) fn talk<I>(protocol: isize, question: I, purpose: Purpose) -> Result<Vec<I>, WriteError>
where
    I: NetlinkSerializable + NetlinkDeserializable + Clone,
{
    for _ in 0..DUMPS {
        if let Some(answer) = once(protocol, question.clone(), purpose)? {
            return Ok(answer);
        }
    }
    Err(WriteError::refused(Errno::AGAIN.raw_os_error()))
}

/// `None`: the dump was disturbed.
fn once<I>(protocol: isize, question: I, purpose: Purpose) -> Result<Option<Vec<I>>, WriteError>
where
    I: NetlinkSerializable + NetlinkDeserializable,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    // The kernel's words; an answer without a copy of the question. Old kernels know neither.
    let _words = socket.set_ext_ack(true);
    let _short = socket.set_cap_ack(true);
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST
        | match purpose {
            Purpose::Change => NLM_F_ACK,
            Purpose::Get => 0,
            Purpose::Dump => NLM_F_DUMP,
        };
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answers = Vec::new();
    let mut disturbed = false;
    for _ in 0..MAX_DATAGRAMS {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while let Some((message, after)) = split(rest) {
            rest = after;
            match read::<I>(message)? {
                Read::Answer(answer) => answers.push(answer),
                Read::Nothing => {}
                Read::Disturbed => disturbed = true,
                Read::End => return Ok((!disturbed).then_some(answers)),
            }
            if purpose == Purpose::Get && !answers.is_empty() {
                return Ok(Some(answers));
            }
        }
    }
    Err(io::Error::other("an answer without an end").into())
}

enum Read<I> {
    Answer(I),
    Nothing,
    Disturbed,
    End,
}

/// The first message of `bytes`, and the rest.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
    let length = usize::try_from(length)
        .ok()
        .filter(|length| *length >= HEADER_BYTES)?;
    let message = bytes.get(..length)?;
    let next = length.next_multiple_of(4).min(bytes.len());
    Some((message, &bytes[next..]))
}

fn read<I: NetlinkDeserializable>(bytes: &[u8]) -> Result<Read<I>, WriteError> {
    let message = match NetlinkMessage::<I>::deserialize(bytes) {
        Ok(message) => message,
        Err(error) => {
            tracing::warn!(%error, "a netlink message is not understood and was skipped");
            return Ok(Read::Nothing);
        }
    };
    if message.header.flags & NLM_F_DUMP_INTR != 0 {
        return Ok(Read::Disturbed);
    }
    match message.payload {
        NetlinkPayload::InnerMessage(answer) => Ok(Read::Answer(answer)),
        NetlinkPayload::Done(_) => Ok(Read::End),
        NetlinkPayload::Error(error) => match error.code {
            None => Ok(Read::End),
            Some(code) => Err(WriteError::Refused {
                errno: -code.get(),
                said: words(&error.header),
            }),
        },
        _ => Ok(Read::Nothing),
    }
}

/// The kernel's words behind the header in `tail`.
fn words(tail: &[u8]) -> String {
    let attributes = NlasIterator::new(tail.get(HEADER_BYTES..).unwrap_or_default());
    let said = attributes
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG);
    said.map_or_else(String::new, |attribute| {
        let text = String::from_utf8_lossy(attribute.value());
        text.trim_end_matches('\0').to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_and_padding_is_skipped() {
        let mut bytes = vec![0; 20];
        bytes[..4].copy_from_slice(&18_u32.to_ne_bytes());
        let (message, rest) = split(&bytes).unwrap();
        assert_eq!((message.len(), rest.len()), (18, 0));
        assert!(split(&bytes[..12]).is_none());
        assert!(
            split(&[3, 0, 0, 0]).is_none(),
            "a message shorter than its header"
        );
    }

    #[test]
    fn the_kernels_words_are_read() {
        let mut tail = vec![0; HEADER_BYTES];
        tail.extend_from_slice(&[9, 0, 1, 0, b'o', b'd', b'd', b'!', 0, 0, 0, 0]);
        assert_eq!(words(&tail), "odd!");
        assert_eq!(words(&[]), "");
    }
}
