//! Captured frames as lines for a person: a sink for pcapng that prints what comes in.
//!
//! What stands in frames beyond their addresses is for `tcpdump -r -` and Wireshark to tell.

use std::io::{self, Write};

use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::blocks::opt_common::CommonOption;
use pcap_file::pcapng::{Block, PcapNgParseError, PcapNgParser};

use crate::mac::Mac;
use crate::vlan::{TPID, TPID_SERVICE};

/// Prints the frames of the pcapng that is written to it, a line each, to `out`.
#[derive(Debug)]
pub struct Lines<W> {
    out: W,
    parser: Option<PcapNgParser>,
    /// What does not make a whole block yet.
    rest: Vec<u8>,
}

impl<W: Write> Lines<W> {
    /// Prints to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            parser: None,
            rest: Vec::new(),
        }
    }

    /// Prints the next block, if there is a whole one.
    fn step(&mut self) -> io::Result<bool> {
        let Some(parser) = &mut self.parser else {
            return match PcapNgParser::new(&self.rest) {
                Ok((after, parser)) => {
                    let used = self.rest.len() - after.len();
                    self.parser = Some(parser);
                    self.rest.drain(..used);
                    Ok(true)
                }
                Err(PcapNgParseError::IncompleteBuffer(..)) => Ok(false),
                Err(error) => Err(io::Error::other(error)),
            };
        };
        let (used, line) = match parser.next_block(&self.rest) {
            Ok((after, block)) => {
                let used = self.rest.len() - after.len();
                let line = match block {
                    Block::EnhancedPacket(packet) => Some(line(parser, &packet)),
                    _ => None,
                };
                (used, line)
            }
            Err(PcapNgParseError::IncompleteBuffer(..)) => return Ok(false),
            Err(error) => return Err(io::Error::other(error)),
        };
        self.rest.drain(..used);
        if let Some(line) = line {
            writeln!(self.out, "{line}")?;
        }
        Ok(true)
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.rest.extend_from_slice(bytes);
        while self.step()? {}
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// `12:00:00.123456 p0 rx 52:54:00:00:00:01 > ff:ff:ff:ff:ff:ff vlan 10 0x0806 60 bytes`, and why
/// it was dropped, if it was.
fn line(parser: &PcapNgParser, packet: &EnhancedPacketBlock<'_>) -> String {
    let seconds = packet.timestamp.as_secs() % 86_400;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let micros = packet.timestamp.subsec_micros();
    let interface = parser.packet_interface(packet);
    let name = interface.and_then(|interface| {
        interface.options.iter().find_map(|option| match option {
            InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
            _ => None,
        })
    });
    let (mut way, mut comment) = ("", String::new());
    for option in &packet.options {
        match option {
            EnhancedPacketOption::Flags(flags) => {
                way = if flags & 3 == 2 { "tx" } else { "rx" };
            }
            EnhancedPacketOption::Common(CommonOption::Comment(text)) => {
                comment = format!("  {text}");
            }
            _ => {}
        }
    }
    format!(
        "{hour:02}:{minute:02}:{second:02}.{micros:06} {} {way} {} {} bytes{comment}",
        name.as_deref().unwrap_or("?"),
        header(&packet.data),
        packet.original_len,
    )
}

/// Addresses, VLAN tags and EtherType.
fn header(data: &[u8]) -> String {
    let mac = |at: usize| data.get(at..at + 6)?.try_into().ok().map(Mac);
    let word = |at: usize| Some(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?));
    let (Some(destination), Some(source)) = (mac(0), mac(6)) else {
        return "(cut short)".to_owned();
    };
    let mut text = format!("{source} > {destination}");
    // Two tags at most are told apart; what follows them is an EtherType for our purposes.
    let mut at = 12;
    for _ in 0..2 {
        let Some(TPID | TPID_SERVICE) = word(at) else {
            break;
        };
        let Some(tci) = word(at + 2) else {
            break;
        };
        text += &format!(" vlan {}", tci & 0x0fff);
        at += 4;
    }
    if let Some(ethertype) = word(at) {
        text += &format!(" {ethertype:#06x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use towpath_common::clock::Cycles;

    use super::super::pcapng::Pcapng;
    use super::super::{Captured, Direction};
    use super::*;
    use crate::discard::Discard;
    use crate::table::PortNo;
    use crate::vlan::Vid;

    fn file(frames: &[(&[u8], Option<Discard>)]) -> Vec<u8> {
        let mut file = Pcapng::new(2048).unwrap();
        for (data, discard) in frames {
            let frame = Captured {
                time: Cycles::ZERO,
                port: PortNo(0),
                direction: Direction::Tx,
                vid: Vid::new(10),
                discard: discard.map(Discard::index),
                len: 60,
                data,
            };
            let time = Duration::new(86_400 + 3_661, 5_000);
            file.frame(&frame, time, |_| "web".to_owned()).unwrap();
        }
        file.end(Duration::ZERO, 0).unwrap();
        file.take()
    }

    fn tagged() -> Vec<u8> {
        let mut bytes = vec![0xff; 6];
        bytes.extend([2, 0, 0, 0, 0, 1, 0x81, 0, 0x20, 10, 8, 6]);
        bytes
    }

    #[test]
    fn blocks_are_printed_however_they_arrive() {
        let tagged = tagged();
        let bytes = file(&[(&tagged, None), (&tagged[..9], Some(Discard::Runt))]);
        let expected = "\
01:01:01.000005 web tx 02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff vlan 10 0x0806 60 bytes
01:01:01.000005 web tx (cut short) 60 bytes  discarded: runt (in vlan 10)
";
        for size in [1, 7, 100, bytes.len()] {
            let mut lines = Lines::new(Vec::new());
            for part in bytes.chunks(size) {
                lines.write_all(part).unwrap();
            }
            assert_eq!(String::from_utf8(lines.out).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_not_pcapng_is_refused() {
        let mut lines = Lines::new(Vec::new());
        assert!(lines.write_all(&[0x55; 64]).is_err());
    }

    #[test]
    fn headers_cut_anywhere_are_printed() {
        let tagged = tagged();
        for len in 0..=tagged.len() {
            header(&tagged[..len]);
        }
        assert!(header(&tagged[..16]).ends_with("vlan 10"));
    }
}
