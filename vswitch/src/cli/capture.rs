//! `vswitch capture`: frames as they pass, into a file, into a pipe, or as lines.

use std::fs::File;
use std::future::pending;
use std::io::{self, IsTerminal, Write, stderr, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use towpath_common::control::print::print;
use towpath_common::notify::{Signal, Signals};
use vswitch::capture::client::{self, CaptureClientError};
use vswitch::capture::lines::Lines;
use vswitch::capture::{CaptureStatus, Direction, End, Order, OrderError};

use super::Target;

pub(crate) const EXAMPLES: &str = "\
Examples:
  vswitch capture web                            a line for each frame from and to port web
  vswitch capture web -w web.pcapng              into a file, for Wireshark
  vswitch capture vlan:10 -w - | tcpdump -nr -   into another program
  vswitch capture 52:54:00:12:34:56 --discards   only what is dropped, and why

A capture never slows the switch: what it cannot take is counted as missed. Offloads are on \
between virtual machines, so frames may be longer than the MTU and their checksums incomplete.";

/// What to capture, and where to.
#[derive(Debug, Args)]
pub(crate) struct CaptureArgs {
    /// Ports by name (any of them), a VLAN as vlan:10, a MAC address; without any, all frames.
    #[arg(value_name = "PORT|vlan:VLAN|MAC")]
    targets: Vec<String>,
    /// Write pcapng to FILE, or to standard output if it is -; without it, print lines.
    #[arg(short = 'w', long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Only frames that pass the port this way, as seen by the switch [ports: both; else rx].
    #[arg(long, value_name = "rx|tx|both", value_parser = way)]
    direction: Option<Way>,
    /// Only frames that are dropped.
    #[arg(long)]
    discards: bool,
    /// Bytes to keep of a frame [2048].
    #[arg(long, value_name = "BYTES")]
    snaplen: Option<u32>,
    /// End after so many frames.
    #[arg(short = 'c', long, value_name = "N")]
    count: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Capture nothing: show the captures that run, and the last that ended.
    #[arg(long, conflicts_with_all = ["targets", "write"])]
    list: bool,
    #[command(flatten)]
    target: Target,
}

/// A direction, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way(Option<Direction>);

fn way(text: &str) -> Result<Way, String> {
    match text {
        "rx" => Ok(Way(Some(Direction::Rx))),
        "tx" => Ok(Way(Some(Direction::Tx))),
        "both" => Ok(Way(None)),
        _ => Err("use rx, tx or both".to_owned()),
    }
}

impl CaptureArgs {
    fn order(&self) -> Result<Order, OrderError> {
        let mut order = Order {
            direction: self.direction.and_then(|way| way.0),
            discards: self.discards,
            snaplen: self.snaplen,
            count: self.count,
            seconds: self.seconds,
            ..Order::default()
        };
        let mut targets = self.targets.iter();
        targets.try_for_each(|target| order.add(target))?;
        Ok(order)
    }
}

/// Captures, and says on standard error how it went.
pub(crate) fn run(args: &CaptureArgs, out: &mut impl Write) -> Result<()> {
    let control = args.target.control.as_path();
    if args.list {
        let answer = client::list(control)?;
        return Ok(print(&answer, args.target.json, out, |captures| {
            captures.iter().map(describe).collect()
        })?);
    }
    let order = args.order()?;
    let outcome = match &args.write {
        None => client::capture(control, &order, &mut Lines::new(out), interrupted()),
        Some(path) if path == Path::new("-") => {
            if stdout().is_terminal() {
                bail!("pcapng is not for a terminal: redirect it, or leave out -w for lines");
            }
            client::capture(control, &order, out, interrupted())
        }
        Some(path) => {
            let file = File::create(path);
            let mut file = file.with_context(|| format!("cannot create {}", path.display()))?;
            client::capture(control, &order, &mut file, interrupted())
        }
    };
    let status = match outcome {
        Err(CaptureClientError::Write(e)) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        outcome => outcome?,
    };
    if args.target.json {
        serde_json::to_writer(stderr(), &status)?;
        eprintln!();
    } else {
        eprint!("{}", describe(&status));
    }
    match status.end {
        Some(End::ClientStuck | End::Broken) => bail!("the capture is not complete"),
        _ => Ok(()),
    }
}

/// Completes at SIGINT and SIGTERM.
async fn interrupted() {
    let Ok(mut signals) = Signals::new() else {
        return pending().await;
    };
    while signals.next().await != Signal::Stop {}
}

/// `capture 3: 1042 frames captured, 0 missed, in 12.3 s`.
fn describe(status: &CaptureStatus) -> String {
    let CaptureStatus {
        id,
        captured,
        missed,
        seconds,
        ..
    } = status;
    let end = match status.end {
        None => ", running",
        Some(End::Count | End::Time | End::Stopped) => "",
        Some(End::ClientGone) => ", the client left",
        Some(End::ClientStuck) => ", the client did not read",
        Some(End::Broken) => ", broken off",
    };
    format!("capture {id}: {captured} frames captured, {missed} missed, in {seconds:.1} s{end}\n")
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use super::super::{Cli, Command};
    use super::*;
    use clap::CommandFactory;

    fn order(line: &str) -> Order {
        let Ok(Command::Capture(args)) = parse(line) else {
            panic!("not a capture: {line}")
        };
        args.order().unwrap()
    }

    #[test]
    fn an_order_is_what_the_line_says() {
        let line = "capture p0 p1 vlan:10 52:54:00:12:34:56 --discards --direction rx -c 5 \
                    --seconds 9 --snaplen 64 -w x";
        let expected = Order {
            ports: vec!["p0".to_owned(), "p1".to_owned()],
            direction: Some(Direction::Rx),
            vlan: vswitch::vlan::Vid::new(10),
            mac: Some("52:54:00:12:34:56".parse().unwrap()),
            discards: true,
            snaplen: Some(64),
            count: Some(5),
            seconds: Some(9),
        };
        assert_eq!(order(line), expected);
        assert_eq!(order("capture --direction both"), Order::default());
        assert!(parse("capture --direction up").is_err());
        assert!(parse("capture p0 --list").is_err());
    }

    #[test]
    fn a_summary_says_what_was_missed() {
        let status = CaptureStatus {
            id: 3,
            order: Order::default(),
            seconds: 1.25,
            captured: 10,
            missed: 2,
            bytes: 99,
            end: Some(End::ClientGone),
        };
        let text = "capture 3: 10 frames captured, 2 missed, in 1.2 s, the client left\n";
        assert_eq!(describe(&status), text);
    }

    #[test]
    fn examples_parse() {
        Cli::command().debug_assert();
        for line in EXAMPLES
            .lines()
            .filter(|line| line.starts_with("  vswitch"))
        {
            let words = line.trim().split("  ").next().unwrap();
            let words = words.split('|').next().unwrap();
            assert!(
                parse(words.trim_start_matches("vswitch ")).is_ok(),
                "{line}"
            );
        }
    }
}
