//! DPDK's `dpdk-testpmd` at its prompt: as a front-end (virtio-user) or a back-end (`net_vhost`)
//! that shares no code with ours.
//!
//! It needs neither hugepages nor a PCI device. Its forwarding thread polls without rest, so that a
//! processor is gone while it forwards, and a burst is what a burst can be.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lines::{Gone, Lines};
use crate::paths;
use crate::process::{Process, command};

/// From start to prompt, and from command to answer: a second on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How much of what it said an error shows.
const TAIL: usize = 60;
const PROMPT: &str = "testpmd> ";

/// A port of testpmd's: DPDK makes a network device of it.
#[derive(Debug, Clone)]
pub struct Vdev(String);

impl Vdev {
    /// A front-end on `socket`, of one pair of queues, with what DPDK has by default.
    #[must_use]
    pub fn virtio_user(index: usize, socket: &Path, mac: &str) -> Self {
        let path = socket.display();
        Self(format!("net_virtio_user{index},path={path},mac={mac}"))
    }

    /// A back-end on `socket`, of one pair of queues.
    #[must_use]
    pub fn vhost(index: usize, socket: &Path) -> Self {
        Self(format!(
            "net_vhost{index},iface={},queues=1",
            socket.display()
        ))
    }

    /// One more argument of the device, as `server=1`.
    #[must_use]
    pub fn with(mut self, argument: &str) -> Self {
        self.0.push(',');
        self.0.push_str(argument);
        self
    }
}

/// What a port has counted since it was started, in frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Taken out of receive queues.
    pub received: u64,
    /// Put into transmit queues. What found no room there is not counted.
    pub sent: u64,
}

/// A running testpmd. Dropping it kills it.
#[derive(Debug)]
pub struct Testpmd {
    process: Process,
    output: Lines,
    errors: Lines,
    ports: usize,
}

impl Testpmd {
    /// Starts it with these ports and waits for its prompt. `name` tells it from others that run
    /// at the same time; `arguments` are testpmd's own.
    ///
    /// # Errors
    /// When it ends before, as it does when a port cannot be made.
    pub fn start(name: &str, ports: &[Vdev], arguments: &str) -> Result<Self> {
        // stdbuf: its lines would stay in its buffer otherwise, since a pipe is no terminal.
        let mut dpdk = command(&paths::program("stdbuf")?);
        dpdk.arg("-oL").arg(paths::program("dpdk-testpmd")?);
        dpdk.args("--lcores 0@(0-1),1@(0-1) --no-huge -m 256 --no-pci --no-telemetry".split(' '));
        dpdk.arg(format!(
            "--file-prefix=towpath-{}-{name}",
            std::process::id()
        ));
        dpdk.args(ports.iter().map(|port| format!("--vdev={}", port.0)));
        dpdk.arg("--").arg("-i");
        dpdk.arg(format!("--total-num-mbufs={}", MBUFS * ports.len().max(2)));
        dpdk.args(arguments.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Process::start(&mut dpdk)?;
        let output = process.child().stdout.take().context("piped")?;
        let errors = process.child().stderr.take().context("piped")?;
        let mut testpmd = Self {
            process,
            output: Lines::follow(output, None),
            errors: Lines::follow(errors, None),
            ports: ports.len(),
        };
        // The prompt itself ends no line, but an answer does.
        testpmd.ask("show port summary all", "Number of available ports:")?;
        Ok(testpmd)
    }

    /// Gives a command, without waiting for anything.
    ///
    /// # Errors
    /// When it has ended.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        let input = self.process.child().stdin.as_mut().context("piped")?;
        writeln!(input, "{command}").with_context(|| format!("testpmd is gone before {command}"))
    }

    /// Gives a command and waits for one more line that starts with `answer` than there were.
    ///
    /// # Errors
    /// When that does not come, with what testpmd said.
    pub fn ask(&mut self, command: &str, answer: &str) -> Result<()> {
        let before = count(&self.output.all(), answer);
        // A testpmd that has ended says why in what it printed.
        let told = self.tell(command);
        let seen = self.output.wait(PATIENCE, |lines| {
            (count(lines, answer) > before).then_some(())
        });
        let why = match seen {
            Ok(()) => return told,
            Err(Gone::Ended) => "ended",
            Err(Gone::Late) => "did not answer",
        };
        bail!(
            "testpmd {why} at {command:?}:\n{}{}",
            self.output.tail(TAIL),
            self.errors.tail(TAIL)
        )
    }

    /// Starts forwarding; each port first sends `bursts` of 32 frames, from its own address to its
    /// `--eth-peer`.
    ///
    /// # Errors
    /// As [`Testpmd::ask`].
    pub fn go(&mut self, mode: &str, bursts: u32) -> Result<()> {
        self.tell(&format!("set fwd {mode}"))?;
        let first = match bursts {
            0 => String::new(),
            n => format!(" tx_first {n}"),
        };
        self.ask(
            &format!("start{first}"),
            &format!("{mode} packet forwarding"),
        )
    }

    /// Ends forwarding.
    ///
    /// # Errors
    /// As [`Testpmd::ask`].
    pub fn stop(&mut self) -> Result<()> {
        self.ask("stop", "Done.")
    }

    /// What each port has counted.
    ///
    /// # Errors
    /// As [`Testpmd::ask`].
    pub fn counts(&mut self) -> Result<Vec<Counts>> {
        let last = format!(
            "  ######################## NIC statistics for port {}",
            self.ports - 1
        );
        self.ask("show port stats all", &last)?;
        // The table of the last port is complete when the next answer begins.
        self.ask("show port summary all", "Number of available ports:")?;
        let counts = tables(&self.output.all());
        (0..self.ports)
            .map(|port| counts.get(&port).copied())
            .collect::<Option<_>>()
            .with_context(|| format!("not all ports show counters:\n{}", self.output.tail(TAIL)))
    }

    /// What it said.
    #[must_use]
    pub fn said(&self) -> String {
        let mut said = self.output.tail(usize::MAX);
        let _ = write!(said, "{}", self.errors.tail(usize::MAX));
        said
    }

    /// Ends it in an orderly way: its ports disconnect.
    ///
    /// # Errors
    /// When it does not end.
    pub fn quit(mut self) -> Result<()> {
        self.tell("quit")?;
        self.process.wait(PATIENCE)?;
        Ok(())
    }
}

/// Frame buffers a port: both its rings full, and some bursts.
const MBUFS: usize = 1536;

fn count(lines: &[String], start: &str) -> usize {
    lines
        .iter()
        .filter(|line| said(line).starts_with(start))
        .count()
}

/// A line without the prompt before it.
fn said(mut line: &str) -> &str {
    while let Some(rest) = line.strip_prefix(PROMPT) {
        line = rest;
    }
    line
}

/// The newest table of each port.
fn tables(lines: &[String]) -> BTreeMap<usize, Counts> {
    let mut tables: BTreeMap<usize, Counts> = BTreeMap::new();
    let mut port = None;
    for line in lines {
        let words: Vec<&str> = said(line).split_whitespace().collect();
        match words[..] {
            [_, "NIC", "statistics", "for", "port", number, _] => port = number.parse().ok(),
            ["RX-packets:", value, "RX-missed:", ..] => {
                if let (Some(port), Ok(value)) = (port, value.parse()) {
                    tables.entry(port).or_default().received = value;
                }
            }
            ["TX-packets:", value, "TX-errors:", ..] => {
                if let (Some(port), Ok(value)) = (port, value.parse()) {
                    tables.entry(port).or_default().sent = value;
                }
            }
            _ => {}
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_table_of_each_port_counts() {
        let text = "testpmd> testpmd>   ######################## NIC statistics for port 0  ####\n\
                    \x20 RX-packets: 1          RX-missed: 0          RX-bytes:  0\n\
                    \x20 TX-packets: 2          TX-errors: 0          TX-bytes:  0\n\
                    \x20 ######################## NIC statistics for port 1  ####\n\
                    \x20 RX-packets: 3          RX-missed: 0          RX-bytes:  0\n\
                    \x20 ######################## NIC statistics for port 0  ####\n\
                    \x20 RX-packets: 9          RX-missed: 0          RX-bytes:  0\n\
                    \x20 RX-packets: 77         RX-dropped: 0         RX-total: 77\n";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let tables = tables(&lines);
        assert_eq!(
            tables[&0],
            Counts {
                received: 9,
                sent: 2
            }
        );
        assert_eq!(
            tables[&1],
            Counts {
                received: 3,
                sent: 0
            }
        );
    }
}
