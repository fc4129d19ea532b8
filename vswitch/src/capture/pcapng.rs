//! Captured frames as pcapng (draft-ietf-opsawg-pcapng): readable by tcpdump and Wireshark.
//!
//! Each port is an interface, described when its first frame comes by, so that a port added later
//! has one too. All have the same link type and snapshot length: libpcap refuses anything else.
//! Time is in nanoseconds. A frame says which way it went (`epb_flags`) and, if it was dropped,
//! why (`opt_comment`, Wireshark's "Packet comments"). The end is a statistics block a port, the
//! first with what was missed (`isb_osdrop`; `capinfos` shows it).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use pcap_file::DataLink;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption, InterfaceTsResolution,
};
use pcap_file::pcapng::blocks::interface_statistics::{
    InterfaceStatisticsBlock, InterfaceStatisticsOption,
};
use pcap_file::pcapng::blocks::opt_common::CommonOption;
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::pcapng::{PcapNgWriteError, PcapNgWriter};

use super::filter::Direction;
use super::tap::Captured;
use crate::discard::Discard;
use crate::table::PortNo;

/// `epb_flags`: the frame was received.
const INBOUND: u32 = 1;
/// `epb_flags`: the frame was sent.
const OUTBOUND: u32 = 2;

struct Interface {
    id: u32,
    name: String,
    frames: u64,
}

/// A file in the making: blocks are collected until [`Pcapng::take`].
pub struct Pcapng {
    writer: PcapNgWriter<Vec<u8>>,
    snaplen: u32,
    interfaces: BTreeMap<PortNo, Interface>,
    /// Those of ports whose number another port has now.
    former: Vec<Interface>,
}

impl Pcapng {
    /// A file whose frames are cut at `snaplen` bytes.
    ///
    /// # Errors
    /// None in practice: that of the encoder.
    pub fn new(snaplen: u32) -> Result<Pcapng, PcapNgWriteError> {
        let program = concat!("vswitch ", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            options: vec![
                SectionHeaderOption::OS(Cow::Borrowed("Linux")),
                SectionHeaderOption::UserApplication(Cow::Borrowed(program)),
            ],
            ..SectionHeaderBlock::default()
        };
        Ok(Pcapng {
            writer: PcapNgWriter::with_section_header(Vec::new(), section)?,
            snaplen,
            interfaces: BTreeMap::new(),
            former: Vec::new(),
        })
    }

    /// Adds a frame seen at `time` (since 1970-01-01 00:00:00 UTC); `name` tells what its port is
    /// called.
    ///
    /// # Errors
    /// That of the encoder; the file is of no more use then.
    pub fn frame(
        &mut self,
        frame: &Captured<'_>,
        time: Duration,
        name: impl FnOnce(PortNo) -> String,
    ) -> Result<(), PcapNgWriteError> {
        if !self.interfaces.contains_key(&frame.port) {
            self.describe(frame.port, name(frame.port))?;
        }
        let Some(interface) = self.interfaces.get_mut(&frame.port) else {
            return Ok(());
        };
        interface.frames += 1;
        let way = match frame.direction {
            Direction::Rx => INBOUND,
            Direction::Tx => OUTBOUND,
        };
        let mut options = vec![EnhancedPacketOption::Flags(way)];
        options.extend(
            comment(frame)
                .map(|text| EnhancedPacketOption::Common(CommonOption::Comment(Cow::Owned(text)))),
        );
        let captured = u32::try_from(frame.data.len()).unwrap_or(u32::MAX);
        self.writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id: interface.id,
            timestamp: time,
            original_len: frame.len.max(captured),
            data: Cow::Borrowed(frame.data),
            options,
        })?;
        Ok(())
    }

    /// Ports may have been exchanged: `name` tells what a port is called now, if it is there.
    pub fn rename(&mut self, name: impl Fn(PortNo) -> Option<String>) {
        let other =
            |port: &PortNo, known: &mut Interface| name(*port).is_some_and(|now| now != known.name);
        let gone = self.interfaces.extract_if(.., other);
        self.former.extend(gone.map(|(_, interface)| interface));
    }

    /// Interfaces described so far.
    fn described(&self) -> usize {
        self.interfaces.len() + self.former.len()
    }

    fn describe(&mut self, port: PortNo, name: String) -> Result<(), PcapNgWriteError> {
        self.writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: self.snaplen,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(name.clone())),
                InterfaceDescriptionOption::IfTsResol(InterfaceTsResolution::NANO),
            ],
        })?;
        let id = u32::try_from(self.described()).unwrap_or(u32::MAX);
        let interface = Interface {
            id,
            name,
            frames: 0,
        };
        self.interfaces.insert(port, interface);
        Ok(())
    }

    /// Ends the file at `time`, of which `missed` frames could not be taken.
    ///
    /// # Errors
    /// That of the encoder.
    pub fn end(&mut self, time: Duration, missed: u64) -> Result<(), PcapNgWriteError> {
        let captured = self.captured();
        for interface in self.interfaces.values().chain(&self.former) {
            let mut options = vec![InterfaceStatisticsOption::IsbUsrDeliv(interface.frames)];
            if interface.id == 0 {
                let text = format!("{captured} frames captured, {missed} missed (all ports)");
                options.push(InterfaceStatisticsOption::IsbOsDrop(missed));
                options.push(InterfaceStatisticsOption::Common(CommonOption::Comment(
                    Cow::Owned(text),
                )));
            }
            self.writer.write_pcapng_block(InterfaceStatisticsBlock {
                interface_id: interface.id,
                timestamp: time,
                options,
            })?;
        }
        Ok(())
    }

    /// Frames added so far.
    #[must_use]
    pub fn captured(&self) -> u64 {
        let all = self.interfaces.values().chain(&self.former);
        all.map(|i| i.frames).sum()
    }

    /// What was written since the last call.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.writer.get_mut())
    }
}

impl std::fmt::Debug for Pcapng {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pcapng")
            .field("interfaces", &self.described())
            .field("captured", &self.captured())
            .finish_non_exhaustive()
    }
}

/// `discarded: source_guard (in vlan 10)`.
fn comment(frame: &Captured<'_>) -> Option<String> {
    let reason = Discard::NAMES.get(frame.discard?)?;
    let place = match frame.vid {
        Some(vid) => format!(" (in vlan {vid})"),
        None => String::new(),
    };
    Some(format!("discarded: {reason}{place}"))
}

#[cfg(test)]
mod tests;
