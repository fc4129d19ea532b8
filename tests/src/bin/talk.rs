//! Talks TCP, UDP and plain frames, inside guests and on the host; see `towpath_tests::talk`.
//!
//! ```text
//! talk serve PORT                      answers calls and echoes datagrams until killed
//! talk tcp ADDRESS PORT UP DOWN        one call: UP bytes there, DOWN bytes back, at once
//! talk udp ADDRESS PORT COUNT SIZE     datagrams, each sent when the last one's echo is back
//! talk uso ADDRESS PORT COUNT SIZE CUT the same, each given to the kernel whole and cut on its way
//! talk flood ADDRESS PORT SIZE         datagrams as fast as they go, until killed
//! talk frame INTERFACE HEX [COUNT]     sends a frame as it stands
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::sockopt::UdpGsoSegment;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, sendto, setsockopt, socket,
};
use std::os::fd::AsRawFd;
use towpath_tests::talk::{ANSWERER, CALLER, GOOD, Offer, fill, hear, speak};

const USAGE: &str = "usage: talk serve|tcp|udp|uso|flood|frame ...";

/// A call that makes no progress for this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an echo is waited for before its datagram counts as lost.
const ECHO: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", port] => serve(port.parse()?),
        ["tcp", address, port, up, down] => call(
            to(address, port)?,
            Offer {
                up: up.parse()?,
                down: down.parse()?,
            },
        ),
        ["udp", address, port, count, size] => {
            echoes(to(address, port)?, count.parse()?, size.parse()?)
        }
        ["uso", address, port, count, size, cut] => cut_echoes(
            to(address, port)?,
            count.parse()?,
            size.parse()?,
            cut.parse()?,
        ),
        ["flood", address, port, size] => flood(to(address, port)?, size.parse()?),
        ["frame", interface, hex] => frame(interface, hex, 1),
        ["frame", interface, hex, count] => frame(interface, hex, count.parse()?),
        _ => bail!(USAGE),
    }
}

fn to(address: &str, port: &str) -> Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse()?, port.parse()?))
}

/// All addresses of this machine, of both families unless it has only one.
fn anywhere(port: u16) -> [SocketAddr; 2] {
    let both: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
    both.map(|address| SocketAddr::new(address, port))
}

/// A socket for datagrams to `address`.
fn datagrams(address: SocketAddr) -> Result<UdpSocket> {
    let [six, four] = anywhere(0);
    let socket = UdpSocket::bind(if address.is_ipv6() { six } else { four })?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(ECHO))?;
    Ok(socket)
}

fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind(&anywhere(port)[..])?;
    let datagrams = UdpSocket::bind(&anywhere(port)[..])?;
    println!("serving");
    thread::spawn(move || -> Result<()> {
        let mut bytes = vec![0; 65536];
        loop {
            let (size, from) = datagrams.recv_from(&mut bytes)?;
            // A full queue is the network's business: the caller counts what is lost.
            let _ = datagrams.send_to(&bytes[..size], from);
        }
    });
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = answer(stream) {
                eprintln!("talk: a call failed: {error:#}");
            }
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let offer = Offer::receive(&mut stream)?;
    both(&stream, (ANSWERER, offer.down), (CALLER, offer.up))?;
    stream.write_all(&[GOOD])?;
    Ok(())
}

fn call(address: SocketAddr, offer: Offer) -> Result<()> {
    let started = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)
        .with_context(|| format!("cannot call {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    offer.send(&mut stream)?;
    let stall = both(&stream, (CALLER, offer.up), (ANSWERER, offer.down))?;
    let mut verdict = [0];
    stream.read_exact(&mut verdict)?;
    ensure!(verdict[0] == GOOD, "the other end heard something wrong");
    println!(
        "tcp ok up={} down={} ms={} stall={}",
        offer.up,
        offer.down,
        started.elapsed().as_millis(),
        stall.as_millis()
    );
    Ok(())
}

/// Speaks and hears at once: (seed, length) of each. The longest time 64 KiB took to be heard.
fn both(stream: &TcpStream, (says, length): (u64, u64), heard: (u64, u64)) -> Result<Duration> {
    let mut writer = stream.try_clone()?;
    let speaker = thread::spawn(move || speak(&mut writer, says, length));
    let stall = hear(&mut &*stream, heard.0, heard.1)?;
    let spoken = speaker.join();
    spoken.map_err(|_| anyhow!("the speaker panicked"))??;
    Ok(stall)
}

fn echoes(address: SocketAddr, count: u64, size: usize) -> Result<()> {
    let socket = datagrams(address)?;
    let (mut said, mut heard) = (vec![0; size], vec![0; 65536]);
    let (mut lost, mut doubled) = (0, 0);
    for number in 0..count {
        fill(&mut said, number, 0);
        socket.send(&said)?;
        loop {
            match socket.recv(&mut heard) {
                Ok(size) if heard[..size] == said => break,
                // An earlier one once more, or late; anything else has been changed on its way.
                Ok(size) => {
                    let mut earlier = vec![0; size];
                    let known = (0..number).any(|number| {
                        fill(&mut earlier, number, 0);
                        earlier == heard[..size]
                    });
                    ensure!(known, "the echo of datagram {number} is wrong");
                    doubled += 1;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    lost += 1;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    println!("udp ok sent={count} lost={lost} doubled={doubled}");
    Ok(())
}

/// Each datagram becomes several of `cut` bytes, and as many echoes must come back, in order.
fn cut_echoes(address: SocketAddr, count: u64, size: usize, cut: u16) -> Result<()> {
    let socket = datagrams(address)?;
    setsockopt(&socket, UdpGsoSegment, &cut.into())?;
    let (mut said, mut heard) = (vec![0; size], vec![0; 65536]);
    for number in 0..count {
        fill(&mut said, number, 0);
        socket.send(&said)?;
        for (part, bytes) in said.chunks(cut.into()).enumerate() {
            let size = socket.recv(&mut heard);
            let size = size.with_context(|| format!("no echo of part {part} of {number}"))?;
            ensure!(
                heard[..size] == *bytes,
                "the echo of part {part} of datagram {number} is wrong"
            );
        }
    }
    println!("uso ok sent={count}");
    Ok(())
}

fn flood(address: SocketAddr, size: usize) -> Result<()> {
    let socket = datagrams(address)?;
    let mut bytes = vec![0; size];
    fill(&mut bytes, CALLER, 0);
    loop {
        // Nobody there, or a full queue: that is what a flood meets.
        let _ = socket.send(&bytes);
    }
}

fn frame(interface: &str, hex: &str, count: usize) -> Result<()> {
    let frame = unhex(hex)?;
    let address = getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .with_context(|| format!("no interface {interface}"))?;
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::empty(),
        SockProtocol::EthAll,
    )?;
    for _ in 0..count {
        let sent = sendto(socket.as_raw_fd(), &frame, &address, MsgFlags::empty())?;
        ensure!(sent == frame.len(), "{sent} bytes were sent");
    }
    println!("frames ok sent={count}");
    Ok(())
}

fn unhex(hex: &str) -> Result<Vec<u8>> {
    let digits: Vec<u8> = hex
        .chars()
        .filter(|c| !matches!(c, ' ' | ':'))
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()
        .with_context(|| format!("{hex:?} is not hexadecimal"))?;
    ensure!(
        digits.len().is_multiple_of(2),
        "{hex:?} ends in half a byte"
    );
    Ok(digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect())
}
