//! A virtual machine's front-ends, without the machine: what stays attached while daemons restart.
//!
//! ```text
//! tenant disk SOCKET STOP      writes and reads blocks, checks each
//! tenant ports SOCKET SOCKET STOP   sends numbered frames from the first port to the second
//! tenant fill SOCKET SEED [BLOCKS]  writes all of a disk, or its beginning, and flushes it
//! tenant verify SOCKET SEED [BLOCKS]   reads that
//! tenant trim SOCKET                discards its first half, and flushes
//! tenant refused SOCKET             sees that a write fails
//! tenant pattern SEED BYTES         prints what `fill` writes
//! tenant replay LOG MARK BYTES      prints what a log of dm-log-writes has before a mark
//! ```
//!
//! The first two go on until the file STOP exists, then print what they saw. The exit code is 1
//! when a connection was closed, an answer was wrong, or nothing came for [`PATIENCE`].

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use towpath_common::testing::blk::{BlkClient, ClientOptions, Op};
use towpath_common::testing::net::{NetClient, NetOptions};
use towpath_tests::logwrites;

/// As long as a daemon may be away.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two frames or requests: a machine that works, not one that floods.
const PAUSE: Duration = Duration::from_millis(2);
/// A frame that takes longer than this is lost.
const LATE: Duration = Duration::from_secs(10);
const SECTORS: u64 = 8;
/// VIRTIO_BLK_S_IOERR.
const IOERR: u8 = 1;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["disk", socket, stop] => disk(Path::new(socket), Path::new(stop)),
        ["ports", from, to, stop] => ports(Path::new(from), Path::new(to), Path::new(stop)),
        ["fill", socket, seed, ref blocks @ ..] => fill(socket, seed, blocks),
        ["verify", socket, seed, ref blocks @ ..] => verify(socket, seed, blocks),
        ["trim", socket] => trim(socket),
        ["refused", socket] => refused(socket),
        ["pattern", seed, bytes] => show(seed, bytes),
        ["replay", log, mark, bytes] => replay(log, mark, bytes),
        _ => Err(anyhow::anyhow!("unknown words: {words:?}")),
    };
    match result {
        Ok(text) => {
            if !text.is_empty() {
                println!("{text}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("tenant: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn disk(socket: &Path, stop: &Path) -> Result<String> {
    let options = ClientOptions {
        patience: PATIENCE,
        ..ClientOptions::default()
    };
    let mut client = BlkClient::connect(socket, options)?;
    let blocks = client.capacity()? / SECTORS;
    ensure!(blocks > 0, "a disk of nothing");
    let (mut requests, mut longest) = (0u64, Duration::ZERO);
    println!("attached");
    while !stop.exists() {
        let sector = requests / 2 % blocks * SECTORS;
        let wanted: Vec<u8> = requests.to_le_bytes().repeat(512);
        let begin = Instant::now();
        client.write(sector, &wanted).context("a write")?;
        longest = longest.max(begin.elapsed());
        let mut bytes = vec![0; wanted.len()];
        let begin = Instant::now();
        client.read(sector, &mut bytes).context("a read")?;
        longest = longest.max(begin.elapsed());
        ensure!(bytes == wanted, "sector {sector} reads {:?}", &bytes[..8]);
        requests += 2;
        std::thread::sleep(PAUSE);
    }
    client.flush()?;
    open(client.frontend().raw().closes_within(Duration::ZERO)?)?;
    let ms = longest.as_millis();
    Ok(format!(
        "disk: {requests} requests, the longest took {ms} ms"
    ))
}

fn attach(socket: &str) -> Result<(BlkClient, u64)> {
    let options = ClientOptions {
        patience: PATIENCE,
        ..ClientOptions::default()
    };
    let mut client = BlkClient::connect(Path::new(socket), options)?;
    let blocks = client.capacity()? / SECTORS;
    ensure!(blocks > 0, "a disk of nothing");
    Ok((client, blocks))
}

/// What block `number` is filled with.
fn pattern(seed: &str, number: u64) -> Result<Vec<u8>> {
    let seed: u64 = seed.parse()?;
    Ok((seed << 32 | number).to_le_bytes().repeat(512))
}

/// Of a disk of `blocks`: as many as are asked for.
fn wanted(blocks: u64, asked: &[&str]) -> Result<u64> {
    match asked {
        [] => Ok(blocks),
        [some] => Ok(some.parse::<u64>()?.min(blocks)),
        more => bail!("unknown words: {more:?}"),
    }
}

fn fill(socket: &str, seed: &str, asked: &[&str]) -> Result<String> {
    let (mut client, blocks) = attach(socket)?;
    let blocks = wanted(blocks, asked)?;
    for number in 0..blocks {
        let block = pattern(seed, number)?;
        client
            .write(number * SECTORS, &block)
            .with_context(|| format!("block {number}"))?;
    }
    client.flush()?;
    Ok(format!("filled {blocks} blocks"))
}

fn verify(socket: &str, seed: &str, asked: &[&str]) -> Result<String> {
    let (mut client, blocks) = attach(socket)?;
    let blocks = wanted(blocks, asked)?;
    let mut bytes = vec![0; 4096];
    for number in 0..blocks {
        client.read(number * SECTORS, &mut bytes)?;
        let right = bytes == pattern(seed, number)?;
        ensure!(right, "block {number} reads {:?}", &bytes[..8]);
    }
    Ok(format!("verified {blocks} blocks"))
}

fn trim(socket: &str) -> Result<String> {
    let (mut client, blocks) = attach(socket)?;
    let sectors = u32::try_from(blocks / 2 * SECTORS)?;
    client.discard(0, sectors)?;
    client.flush()?;
    Ok(format!("trimmed {sectors} sectors"))
}

fn refused(socket: &str) -> Result<String> {
    let (mut client, _) = attach(socket)?;
    let done = client.request(Op::Out, 0, 4096)?;
    ensure!(done.status == IOERR, "a write was answered {}", done.status);
    Ok("refused".to_owned())
}

fn show(seed: &str, bytes: &str) -> Result<String> {
    let mut out = std::io::stdout().lock();
    for number in 0..bytes.parse::<u64>()? / 4096 {
        out.write_all(&pattern(seed, number)?)?;
    }
    Ok(String::new())
}

fn replay(log: &str, mark: &str, bytes: &str) -> Result<String> {
    let (model, _) = logwrites::replay(Path::new(log), Some(mark))?;
    let mut out = std::io::stdout().lock();
    for sector in 0..bytes.parse::<u64>()? / 512 {
        out.write_all(model.get(&sector).unwrap_or(&[0; 512]))?;
    }
    Ok(String::new())
}

fn open(closed: bool) -> Result<()> {
    if closed {
        bail!("the connection was closed");
    }
    Ok(())
}

fn ports(from: &Path, to: &Path, stop: &Path) -> Result<String> {
    let options = NetOptions {
        patience: PATIENCE,
        ..NetOptions::default()
    };
    let mut sender = NetClient::connect(from, options)?;
    let mut receiver = NetClient::connect(to, options)?;
    let (mut sent, mut longest) = (0u64, Duration::ZERO);
    let mut missing = BTreeSet::new();
    println!("attached");
    while !stop.exists() {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
        frame.extend(sent.to_le_bytes());
        frame.resize(60, 0);
        let begin = Instant::now();
        missing.insert(sent);
        sender.pairs()[0]
            .send(&frame, PATIENCE)
            .context("a frame is not taken")?;
        while let Some(got) = receiver.pairs()[0].receive(LATE)? {
            let number = got.frame.get(14..22).context("a short frame")?;
            let number = u64::from_le_bytes(number.try_into()?);
            if number == sent {
                longest = longest.max(begin.elapsed());
                missing.remove(&number);
                break;
            }
            // One that was given up may still come, once.
            ensure!(
                missing.remove(&number),
                "frame {number} arrived twice, or was never sent"
            );
        }
        sent += 1;
        std::thread::sleep(PAUSE);
    }
    for client in [&mut sender, &mut receiver] {
        open(client.frontend().raw().closes_within(Duration::ZERO)?)?;
    }
    let ms = longest.as_millis();
    let lost = missing.len();
    Ok(format!(
        "ports: {sent} frames, {lost} lost, the longest took {ms} ms"
    ))
}
