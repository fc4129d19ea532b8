//! A real Prometheus, which scrapes a running switch and a running disk, and knows what passed.
//!
//! It cannot scrape a unix socket, so a bridge takes it there from loopback, as
//! `systemd-socket-proxyd` does for an operator.

use std::fs;
use std::io::{Read, Write, copy};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use towpath_common::testing::blk::{BlkClient, ClientOptions};
use towpath_common::testing::net::frame::station;
use towpath_common::testing::net::{Frame, NetClient, NetOptions};
use towpath_tests::daemon::{Vblk, Vswitch};
use towpath_tests::paths;
use towpath_tests::process::{Process, command};

use crate::root;

/// Guards against hanging, no more.
const PATIENCE: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_millis(100);
/// Frames that are sent, of this many bytes, and blocks that are written.
const FRAMES: u32 = 37;
const LENGTH: usize = 200;
const WRITES: u32 = 23;
const BLOCK: u32 = 4096;

/// Leads who connects to the address it returns to the unix socket `to`, until the test ends.
fn bridge(to: PathBuf) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            let Ok(unix) = UnixStream::connect(&to) else {
                continue; // a scrape that fails
            };
            let ends = (tcp.try_clone(), unix.try_clone());
            if let (Ok(from_tcp), Ok(to_unix)) = ends {
                thread::spawn(move || {
                    let _ = copy(&mut &from_tcp, &mut &to_unix);
                    let _ = to_unix.shutdown(Shutdown::Write);
                });
            }
            thread::spawn(move || {
                let _ = copy(&mut &unix, &mut &tcp);
                let _ = tcp.shutdown(Shutdown::Both);
            });
        }
    });
    Ok(address)
}

/// A running Prometheus and where it answers.
struct Prometheus {
    process: Process,
    log: PathBuf,
    address: SocketAddr,
}

impl Prometheus {
    /// Scrapes `targets` and evaluates the rules that are shipped, with its files in `dir`.
    fn start(dir: &Path, targets: &[(&str, SocketAddr)]) -> Result<Self> {
        let rules = fs::canonicalize(root())?.join("systemd/prometheus/*.rules.yml");
        let mut config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: [\"{}\"]\nscrape_configs:\n",
            rules.display()
        );
        for (job, address) in targets {
            config += &format!(
                "  - job_name: {job}\n    static_configs: [{{ targets: [\"{address}\"] }}]\n"
            );
        }
        let file = dir.join("prometheus.yml");
        fs::write(&file, config)?;
        // A port that is free: taken and given back, as Prometheus does not say which it chose.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let log = dir.join("prometheus.log");
        let process = Process::start(
            command(&paths::program("prometheus")?)
                .arg(format!("--config.file={}", file.display()))
                .arg(format!("--storage.tsdb.path={}", dir.join("db").display()))
                .arg(format!("--web.listen-address={address}"))
                .stdout(Stdio::null())
                .stderr(fs::File::create(&log)?),
        )?;
        Ok(Self {
            process,
            log,
            address,
        })
    }

    fn get(&self, path: &str) -> Result<Value> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n",
            self.address
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
        serde_json::from_str(body).with_context(|| answer.clone())
    }

    /// The one value of `query`; `None` while there is none.
    fn value(&self, query: &str) -> Result<Option<f64>> {
        let words: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={words}"))?;
        ensure!(answer["status"] == "success", "{query}: {answer}");
        let value = answer["data"]["result"][0]["value"][1].as_str();
        Ok(value.map(str::parse).transpose()?)
    }

    /// Waits until `query` has the value `wanted`.
    fn until(&mut self, query: &str, wanted: f64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.value(query);
            if seen.as_ref().is_ok_and(|value| *value == Some(wanted)) {
                return Ok(());
            }
            ensure!(
                self.process.ended()?.is_none() && Instant::now() < deadline,
                "{query} is {seen:?} and not {wanted}:\n{}",
                fs::read_to_string(&self.log)?
            );
            thread::sleep(TICK);
        }
    }
}

fn connect(vswitch: &Vswitch, port: &str) -> Result<NetClient> {
    let path = vswitch.path(port);
    Ok(NetClient::connect(&path, NetOptions::default())?)
}

/// What a daemon shows is what Prometheus and its conventions want: `promtool check metrics`.
fn is_clean(text: &str) -> Result<()> {
    let promtool = paths::program("promtool")?;
    let mut check = command(&promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = check.stdin.take().context("no stdin")?;
    input.write_all(text.as_bytes())?;
    drop(input);
    let said = check.wait_with_output()?;
    let clean = said.status.success() && said.stdout.is_empty() && said.stderr.is_empty();
    ensure!(clean, "promtool check metrics: {said:?}");
    Ok(())
}

#[test]
fn prometheus_knows_the_traffic_that_was_sent() -> Result<()> {
    let ports = ["p0,socket={dir}/p0", "p1,socket={dir}/p1"];
    let vswitch = Vswitch::serve(tempfile::tempdir()?, &ports, &[])?;
    let vblk = Vblk::serve(
        tempfile::tempdir()?,
        &["null:16M,socket={dir}/d0,name=d0"],
        &[],
    )?;
    let dir = tempfile::tempdir()?;
    let targets = [
        ("switches", bridge(vswitch.path("control"))?),
        ("disks", bridge(vblk.path("control"))?),
    ];
    let mut prometheus = Prometheus::start(dir.path(), &targets)?;
    prometheus.until("sum(up)", 2.0)?;
    let (mut sender, mut receiver) = (connect(&vswitch, "p0")?, connect(&vswitch, "p1")?);
    prometheus.until("sum(towpath_vswitch_port_connected)", 2.0)?;
    for number in 0..FRAMES {
        let payload = Frame::new(station(2), station(1)).numbered(number.into(), LENGTH);
        sender.send(&payload.bytes())?;
        receiver.expect()?;
    }
    let mut disk = BlkClient::connect(&vblk.path("d0"), ClientOptions::default())?;
    let data = vec![7; BLOCK as usize];
    for block in 0..WRITES {
        disk.write((block * BLOCK / 512).into(), &data)?;
    }
    for (query, wanted) in [
        (
            r#"sum(towpath_vswitch_port_rx_packets_total{port="p0"})"#,
            FRAMES,
        ),
        (
            r#"sum(towpath_vswitch_port_tx_packets_total{port="p1"})"#,
            FRAMES,
        ),
        (
            r#"sum(towpath_vblk_requests_total{disk="d0",type="write"})"#,
            WRITES,
        ),
        (
            r#"sum(towpath_vblk_bytes_total{disk="d0",direction="written"})"#,
            WRITES * BLOCK,
        ),
        // The rules that are shipped, over what was really scraped.
        (r#"count(disk:towpath_vblk_bytes:rate1m{disk="d0"})"#, 1),
        (
            r#"count(port:towpath_vswitch_rx_bytes:rate1m{port="p0"})"#,
            1,
        ),
    ] {
        prometheus.until(query, wanted.into())?;
    }
    is_clean(&vswitch.metrics()?)?;
    is_clean(&vblk.metrics()?)?;
    ensure!(
        prometheus
            .value(r#"ALERTS{alertstate="firing"}"#)?
            .is_none(),
        "there is an alert"
    );
    drop(vswitch);
    prometheus.until(
        r#"count(ALERTS{alertname="TowpathDown",job="switches"})"#,
        1.0,
    )
}
