//! Files read back: by the library's reader, by tcpdump and by Wireshark.

use std::io::Write;
use std::process::Command;

use pcap_file::pcapng::{Block, PcapNgReader};
use towpath_common::clock::Cycles;

use super::*;
use crate::vlan::Vid;

const TIME: Duration = Duration::new(1_700_000_000, 123_456_789);

/// An ARP request, untagged and padded.
fn arp() -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend([0x52, 0x54, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend([0x52, 0x54, 0, 0, 0, 1, 10, 0, 0, 1]);
    bytes.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
    bytes.resize(60, 0);
    bytes
}

fn frame(data: &[u8], port: u16, direction: Direction) -> Captured<'_> {
    Captured {
        time: Cycles::ZERO,
        port: PortNo(port),
        direction,
        vid: Vid::new(10),
        discard: None,
        len: 60,
        data,
    }
}

/// Three frames of two ports: one in, one cut short on its way out, one dropped.
fn file() -> Vec<u8> {
    let name = |port: PortNo| format!("web{}", port.0);
    let arp = arp();
    let mut file = Pcapng::new(2048).unwrap();
    let mut bytes = file.take();
    file.frame(&frame(&arp, 7, Direction::Rx), TIME, name)
        .unwrap();
    bytes.append(&mut file.take());
    let short = frame(&arp[..42], 9, Direction::Tx);
    file.frame(&short, TIME + Duration::from_nanos(1), name)
        .unwrap();
    let dropped = Captured {
        discard: Some(Discard::SourceGuard.index()),
        ..frame(&arp, 7, Direction::Rx)
    };
    file.frame(&dropped, TIME + Duration::from_nanos(2), name)
        .unwrap();
    file.end(TIME + Duration::from_secs(1), 41).unwrap();
    bytes.append(&mut file.take());
    assert_eq!(file.captured(), 3);
    bytes
}

#[test]
fn the_library_reads_back_what_it_wrote() {
    let bytes = file();
    let mut reader = PcapNgReader::new(&bytes[..]).unwrap();
    let (mut names, mut frames, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(block) = reader.next_block() {
        match block.unwrap().0 {
            Block::InterfaceDescription(b) => names.push(b.options[0].clone().into_owned()),
            Block::EnhancedPacket(b) => frames.push(b.into_owned()),
            Block::InterfaceStatistics(b) => ends.push(b.into_owned()),
            _ => {}
        }
    }
    let name = |name: &str| InterfaceDescriptionOption::IfName(Cow::Owned(name.to_owned()));
    assert_eq!(names, [name("web7"), name("web9")]);
    let seen: Vec<_> = frames
        .iter()
        .map(|f| (f.interface_id, f.timestamp, f.original_len, f.data.len()))
        .collect();
    let at = |ns| TIME + Duration::from_nanos(ns);
    assert_eq!(
        seen,
        [(0, at(0), 60, 60), (1, at(1), 60, 42), (0, at(2), 60, 60)]
    );
    assert_eq!(frames[0].data, arp());
    let comment = |text: &'static str| CommonOption::Comment(Cow::Borrowed(text));
    let dropped = comment("discarded: source_guard (in vlan 10)");
    assert_eq!(
        frames[2].options,
        [
            EnhancedPacketOption::Flags(INBOUND),
            EnhancedPacketOption::Common(dropped)
        ]
    );
    assert_eq!(frames[1].options, [EnhancedPacketOption::Flags(OUTBOUND)]);
    let summary = comment("3 frames captured, 41 missed (all ports)");
    assert_eq!(
        ends[0].options,
        [
            InterfaceStatisticsOption::IsbUsrDeliv(2),
            InterfaceStatisticsOption::IsbOsDrop(41),
            InterfaceStatisticsOption::Common(summary)
        ]
    );
    assert_eq!(ends[1].options, [InterfaceStatisticsOption::IsbUsrDeliv(1)]);
}

/// What a program prints about the file; none, and a reason, where it is not installed.
#[test]
fn a_number_that_another_port_got_is_another_interface() {
    let arp = arp();
    let mut file = Pcapng::new(2048).unwrap();
    let mut add = |name: &str| {
        let known = |_| Some(name.to_owned());
        file.rename(known);
        let frame = frame(&arp, 7, Direction::Rx);
        file.frame(&frame, TIME, |_| name.to_owned()).unwrap();
    };
    ["old", "old", "new"].into_iter().for_each(&mut add);
    file.rename(|_| None);
    file.end(TIME, 0).unwrap();
    assert_eq!(file.captured(), 3);
    let bytes = file.take();
    let mut reader = PcapNgReader::new(&bytes[..]).unwrap();
    let (mut frames, mut ends) = (Vec::new(), 0);
    while let Some(block) = reader.next_block() {
        match block.unwrap().0 {
            Block::EnhancedPacket(b) => frames.push(b.interface_id),
            Block::InterfaceStatistics(_) => ends += 1,
            _ => {}
        }
    }
    assert_eq!((frames, ends), (vec![0, 0, 1], 2));
}

fn ask(program: &str, before: &[&str], after: &[&str]) -> Option<String> {
    let mut path = tempfile::NamedTempFile::new().unwrap();
    path.write_all(&file()).unwrap();
    // Root's tcpdump reads files as a user of its own.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(path.path(), open).unwrap();
    let output = Command::new(program)
        .args(before)
        .arg(path.path())
        .args(after)
        .output();
    match output {
        Ok(output) => {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{errors}");
            Some(String::from_utf8(output.stdout).unwrap())
        }
        Err(error) => {
            println!("skipped: cannot run {program}: {error}");
            None
        }
    }
}

#[test]
fn tcpdump_reads_it() {
    let options = ["--time-stamp-precision=nano", "-tt"];
    let Some(text) = ask("tcpdump", &["-nn", "-e", "-r"], &options) else {
        return;
    };
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("1700000000.123456789 "), "{text}");
    assert!(lines[0].contains("52:54:00:00:00:01 > ff:ff:ff:ff:ff:ff"));
    assert!(lines[2].contains("Request who-has 10.0.0.2 tell 10.0.0.1"));
}

#[test]
fn wireshark_reads_it_with_ports_directions_and_reasons() {
    let fields = [
        "frame.interface_name",
        "frame.packet_flags_direction",
        "frame.len",
        "frame.cap_len",
        "frame.comment",
    ];
    let mut options = vec!["-T", "fields", "-E", "separator=|"];
    options.extend(fields.iter().flat_map(|field| ["-e", field]));
    let Some(text) = ask("tshark", &["-r"], &options) else {
        return;
    };
    let lines: Vec<_> = text.lines().collect();
    let field = |line: usize, at: usize| lines[line].split('|').nth(at).unwrap().to_owned();
    let column = |at: usize| (0..3).map(|line| field(line, at)).collect::<Vec<_>>();
    assert_eq!(column(0), ["web7", "web9", "web7"], "{text}");
    assert_eq!(column(1), ["0x00000001", "0x00000002", "0x00000001"]);
    assert_eq!(column(3), ["60", "42", "60"]);
    assert_eq!(column(4), ["", "", "discarded: source_guard (in vlan 10)"]);
}
