//! `top` of real daemons: as lines for scripts, and on a terminal, which it leaves as it was.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;
use towpath_common::testing::blk::{BlkClient, ClientOptions};
use towpath_common::testing::net::frame::station;
use towpath_common::testing::net::{Frame, NetClient, NetOptions};
use towpath_tests::daemon::{Vblk, Vswitch, program};
use towpath_tests::lines::Lines;
use towpath_tests::process::{Process, command};

/// Guards against hanging, no more.
const PATIENCE: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_millis(20);

fn vblk() -> Result<Vblk> {
    let disks = ["null:16M,socket={dir}/d0,name=d0"];
    Vblk::serve(tempfile::tempdir()?, &disks, &[])
}

/// Starts `top` of the daemon behind `control`, and follows what it prints.
fn follow(name: &str, control: &Path, words: &[&str]) -> Result<(Process, Lines)> {
    let mut top = Process::start(
        command(&program(name)?)
            .arg("top")
            .args(words)
            .arg("--control")
            .arg(control)
            .stdout(Stdio::piped()),
    )?;
    let stdout = top.child().stdout.take().context("piped")?;
    Ok((top, Lines::follow(stdout, None)))
}

/// The objects that were printed from line `from` on.
fn objects(lines: &[String], from: usize) -> Vec<Value> {
    let lines = lines.iter().skip(from);
    lines
        .map(|line| serde_json::from_str(line).expect(line))
        .collect()
}

#[test]
fn lines_tell_what_passed_the_switch() -> Result<()> {
    let ports = ["p0,socket={dir}/p0", "p1,socket={dir}/p1"];
    let vswitch = Vswitch::serve(tempfile::tempdir()?, &ports, &[])?;
    let connect = |port| NetClient::connect(&vswitch.path(port), NetOptions::default());
    let (mut sender, mut receiver) = (connect("p0")?, connect("p1")?);
    // The switch knows who is where: a flood of frames to a stranger would be a storm.
    receiver.send(&Frame::new(station(1), station(2)).numbered(0, 200).bytes())?;
    sender.expect()?;
    let words = ["--json", "--interval", "0.3", "-n", "4"];
    let (mut top, lines) = follow("vswitch", &vswitch.path("control"), &words)?;
    let mut sent: u32 = 0;
    while top.ended()?.is_none() {
        let frame = Frame::new(station(2), station(1)).numbered(sent.into(), 200);
        sender.send(&frame.bytes())?;
        receiver.expect()?;
        sent += 1;
    }
    ensure!(top.wait(PATIENCE)?.success(), "it failed");
    let _ = lines.wait(PATIENCE, |_| None::<()>);
    let seen = objects(&lines.all(), 0);
    ensure!(seen.len() == 4, "{seen:?}");
    let mut counted = 0.0;
    for sample in &seen {
        let (from, to) = (&sample["ports"][0], &sample["ports"][1]);
        ensure!(from["name"] == "p0" && to["name"] == "p1", "{sample}");
        let seconds = sample["seconds"].as_f64().context("seconds")?;
        counted += from["rx_packets"].as_f64().context("rx_packets")? * seconds;
        let busy = sample["workers"][0]["busy"].as_f64().context("busy")?;
        ensure!((0.0..=1.0).contains(&busy), "{sample}");
    }
    println!(
        "{sent} frames sent, {counted:.1} seen; the last sample: {}",
        seen[3]
    );
    ensure!(
        counted > 0.0 && counted <= f64::from(sent) + 0.5,
        "{counted} of {sent}"
    );
    let once = vswitch.client(&["top", "--once", "--interval", "0.1", "--sort", "name"])?;
    println!("{once}");
    ensure!(once.starts_with("PORT") && once.contains("\np0 "), "{once}");
    Ok(())
}

#[test]
fn lines_say_that_the_daemon_is_away_and_go_on_when_it_is_back() -> Result<()> {
    let mut vblk = vblk()?;
    let words = ["--json", "--interval", "0.1"];
    let (_top, lines) = follow("vblk", &vblk.path("control"), &words)?;
    let mut disk = BlkClient::connect(&vblk.path("d0"), ClientOptions::default())?;
    let block = vec![7; 4096];
    let deadline = Instant::now() + PATIENCE;
    let moved = |all: &[String]| {
        let rates = objects(all, 0).into_iter();
        rates
            .filter_map(|one| one["disks"][0]["written_bytes"].as_f64())
            .any(|rate| rate > 0.0)
    };
    while !moved(&lines.all()) {
        disk.write(0, &block)?;
        ensure!(Instant::now() < deadline, "{:?}", lines.all());
    }
    drop(disk);
    vblk.daemon().kill()?;
    let gone = lines.wait(PATIENCE, |all| {
        let at = objects(all, 0)
            .iter()
            .position(|one| one["error"].is_string())?;
        Some((at, all[at].clone()))
    });
    let (gone, why) = gone.ok().context("it never said that the daemon is away")?;
    ensure!(why.contains("no daemon is listening"), "{why}");
    vblk.start_again()?;
    let back = lines.wait(PATIENCE, |all| {
        let since = objects(all, gone).into_iter();
        let mut rates = since.filter_map(|one| one["disks"][0]["requests"].as_f64());
        rates.next()
    });
    ensure!(
        back == Ok(0.0),
        "nothing was asked of the new one: {back:?}"
    );
    Ok(())
}

#[test]
fn mistakes_end_it_at_once() -> Result<()> {
    let run = |words: &[&str]| {
        let output = Command::new(program("vblk")?)
            .arg("top")
            .args(words)
            .output()?;
        let said = String::from_utf8(output.stderr)?;
        Ok::<_, anyhow::Error>((output.status.code(), said))
    };
    let (code, said) = run(&["--once", "--control", "/nowhere/control"])?;
    ensure!(
        code == Some(1) && said.contains("no daemon is listening on /nowhere"),
        "{said}"
    );
    let (code, said) = run(&["--sort", "size"])?;
    ensure!(
        code == Some(2) && said.contains("there is no such column; use one of req"),
        "{said}"
    );
    Ok(())
}

/// A terminal of 100 columns and 20 lines, and what was written to it so far.
struct Pty {
    keyboard: File,
    terminal: OwnedFd,
    written: Receiver<Vec<u8>>,
    seen: String,
}

impl Pty {
    fn open() -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let terminal = rustix::fs::open(name, flags, Mode::empty())?;
        let size = Winsize {
            ws_row: 20,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&terminal, size)?;
        let keyboard = File::from(master);
        let mut output = keyboard.try_clone()?;
        let (tell, written) = channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                if tell.send(bytes[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            keyboard,
            terminal,
            written,
            seen: String::new(),
        })
    }

    /// Starts `vblk top` on it.
    fn top(&self, control: &Path) -> Result<Process> {
        let mut command = command(&program("vblk")?);
        let end = || Ok::<_, anyhow::Error>(Stdio::from(self.terminal.try_clone()?));
        command
            .args(["top", "--interval", "0.1", "--control"])
            .arg(control);
        command.env("TERM", "xterm-256color");
        command.stdin(end()?).stdout(end()?).stderr(end()?);
        Process::start(&mut command)
    }

    /// Waits until `text` was written since the last wait.
    fn until(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            if let Ok(bytes) = self.written.recv_timeout(TICK) {
                self.seen += &String::from_utf8_lossy(&bytes);
            }
            ensure!(Instant::now() < deadline, "no {text:?} in {:?}", self.seen);
        }
    }

    fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.keyboard.write_all(keys.as_bytes())?)
    }

    /// Whether lines are edited and echoed, as for a shell.
    fn is_plain(&self) -> Result<bool> {
        let plain = LocalModes::ICANON | LocalModes::ECHO;
        Ok(tcgetattr(&self.terminal)?.local_modes.contains(plain))
    }
}

/// Sequences of xterm's that open and leave its other screen.
const OPENED: &str = "\x1b[?1049h";
const LEFT: &str = "\x1b[?1049l";

#[test]
fn a_terminal_is_drawn_on_and_left_as_it_was() -> Result<()> {
    let mut vblk = vblk()?;
    let mut pty = Pty::open()?;
    ensure!(pty.is_plain()?, "a new terminal");
    let mut top = pty.top(&vblk.path("control"))?;
    pty.until(OPENED)?;
    ensure!(!pty.is_plain()?, "keys come one by one");
    pty.until("IO/s▼")?;
    pty.until("d0")?;
    // The order is turned round, and by another column.
    pty.press("r")?;
    pty.until("▲")?;
    pty.press("\x1b[C")?;
    pty.until("READ/s▲")?;
    vblk.daemon().kill()?;
    pty.until("listening")?;
    vblk.start_again()?;
    pty.until("quit")?;
    pty.press("q")?;
    pty.until(LEFT)?;
    ensure!(top.wait(PATIENCE)?.success(), "it failed");
    ensure!(pty.is_plain()?, "as it was");
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut top = pty.top(&vblk.path("control"))?;
        pty.until(OPENED)?;
        pty.until("IO/s▼")?;
        top.signal(signal)?;
        pty.until(LEFT)?;
        ensure!(top.wait(PATIENCE)?.success(), "{signal:?}");
        ensure!(pty.is_plain()?, "as it was after {signal:?}");
    }
    Ok(())
}
