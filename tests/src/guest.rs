//! A guest that does what it is told, a shell command at a time.
//!
//! Its scenario is a loop over lines of the second serial port: `N COMMAND`. Each command is run by
//! a shell of its own that ends at the first failure; `done N STATUS` follows what it printed. So
//! several guests can be told different things at once, and one guest one thing after another.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::vm::{Builder, Turn, Vm};

/// From power-on to the loop, and from command to end: several guests boot in 10 s on an idle
/// machine without KVM, and one under load is given twenty times that.
pub const PATIENCE: Duration = Duration::from_secs(200);

const LOOP: &str = r#"
ip link set lo up
for conf in /proc/sys/net/ipv6/conf/*; do
    echo 1 >$conf/disable_ipv6
done
# A machine answers only for the addresses of the interface that was asked.
echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore
if [ -x /bin/talk ]; then
    talk serve 7 >/tmp/served 2>&1 &
    until [ -s /tmp/served ]; do sleep 0.1; done
fi
set +e
echo ready
while read -r number command; do
    [ "$command" = quit ] && break
    sh -euxc "$command" </dev/null
    echo "done $number $?"
done
"#;

/// A running guest that takes commands. Dropping it kills it.
#[derive(Debug)]
pub struct Guest {
    vm: Vm,
    asked: usize,
    boots: usize,
}

/// A command that was sent to a guest and not waited for yet.
#[derive(Debug)]
#[must_use = "nobody knows yet how the command ended"]
pub struct Pending(usize);

impl Guest {
    /// Starts the guest; it boots while the caller does other things. `talk serve` answers on
    /// port 7. IPv6 is off (but see [`Guest::six`]), so that an interface without an address says
    /// nothing by itself.
    ///
    /// # Errors
    /// As [`Builder::boot`].
    pub fn boot(builder: Builder, turn: &Turn) -> Result<Self> {
        Self::boot_as(builder.network(), turn)
    }

    /// The same with whatever kit the builder says.
    ///
    /// # Errors
    /// As [`Builder::boot`].
    pub fn boot_as(builder: Builder, turn: &Turn) -> Result<Self> {
        let vm = builder.turn(turn).script(LOOP).boot()?;
        Ok(Self {
            vm,
            asked: 0,
            boots: 0,
        })
    }

    /// Waits until it takes commands, once for each time it boots.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn up(&mut self) -> Result<()> {
        self.boots += 1;
        let boots = self.boots;
        self.vm.wait("ready", PATIENCE, |lines| {
            let ready = lines.iter().filter(|line| *line == "ready").count();
            (ready >= boots).then_some(())
        })
    }

    /// Runs a command to its end; returns what it printed.
    ///
    /// # Errors
    /// When it fails or takes longer than [`PATIENCE`].
    pub fn run(&mut self, command: &str) -> Result<Vec<String>> {
        let pending = self.start(command)?;
        self.end(pending)
    }

    /// Sends a command without waiting for its end. Commands of one guest run one after another.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn start(&mut self, command: &str) -> Result<Pending> {
        self.asked += 1;
        // One line: what is several lines here is several commands.
        let command: Vec<_> = command.lines().map(str::trim).collect();
        let command = command.join("; ");
        self.vm.send(&format!("{} {command}", self.asked))?;
        Ok(Pending(self.asked))
    }

    /// Waits for the end of a command; returns what it printed.
    ///
    /// # Errors
    /// As [`Guest::run`].
    #[expect(clippy::needless_pass_by_value, reason = "a command ends once")]
    pub fn end(&mut self, pending: Pending) -> Result<Vec<String>> {
        let mark = format!("done {} ", pending.0);
        let (status, printed) = self.vm.wait(mark.trim(), PATIENCE, |lines| {
            let end = lines.iter().rposition(|line| line.starts_with(&mark))?;
            let before = lines[..end]
                .iter()
                .rposition(|line| line.starts_with("done ") || line == "ready");
            let start = before.map_or(0, |at| at + 1);
            Some((
                lines[end][mark.len()..].to_owned(),
                lines[start..end].to_vec(),
            ))
        })?;
        if status == "0" {
            Ok(printed)
        } else {
            Err(self.vm.failure(&format!("a command ended with {status}")))
        }
    }

    /// Runs a command that prints a number.
    ///
    /// # Errors
    /// As [`Guest::run`], and when it prints something else.
    pub fn number(&mut self, command: &str) -> Result<u64> {
        let printed = self.run(command)?;
        let last = printed
            .last()
            .with_context(|| format!("{command}: silent"))?;
        last.parse()
            .with_context(|| format!("{command}: {last:?} is no number"))
    }

    /// Gives interface `name` an address of IPv6, which it takes without asking around first.
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub fn six(&mut self, name: &str, address: &str) -> Result<()> {
        let conf = format!("/proc/sys/net/ipv6/conf/{name}");
        self.run(&format!(
            "echo 0 >{conf}/accept_dad; echo 0 >{conf}/disable_ipv6; \
             ip -6 addr add {address} dev {name}"
        ))?;
        Ok(())
    }

    /// Frames that interface `name` has received since the guest booted.
    ///
    /// # Errors
    /// As [`Guest::number`].
    pub fn heard(&mut self, name: &str) -> Result<u64> {
        self.number(&format!("cat /sys/class/net/{name}/statistics/rx_packets"))
    }

    /// Resets the machine. [`Guest::up`] waits for it to be back.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn reboot(&mut self) -> Result<()> {
        let _ = self.start("reboot -f")?;
        Ok(())
    }

    /// Waits for the guest to power off by itself, as told.
    ///
    /// # Errors
    /// When it does not within `patience`.
    pub fn quit(&mut self, patience: Duration) -> Result<()> {
        let _ = self.start("quit")?;
        self.vm.finish(patience)?;
        Ok(())
    }

    /// Moves the running guest to the QEMU of `there`, which was built the same but for
    /// [`Builder::incoming`] with `socket`; the one it leaves is killed. Commands that run go on.
    ///
    /// # Errors
    /// When one of the two says that it failed, or it takes longer than [`PATIENCE`].
    pub fn migrate(&mut self, there: Self, socket: &Path) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !socket.exists() {
            if Instant::now() > deadline {
                return Err(there.vm.failure("it waits for nobody"));
            }
            thread::sleep(Duration::from_millis(50));
        }
        let mut monitor = self.vm.monitor()?;
        let limits = json!({ "max-bandwidth": 1u64 << 32, "downtime-limit": 2000 });
        monitor.execute("migrate-set-parameters", limits)?;
        let uri = format!("unix:{}", socket.display());
        monitor.execute("migrate", json!({ "uri": uri }))?;
        loop {
            let state = monitor.execute("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some("completed") => break,
                Some("failed" | "cancelled") => {
                    let why = there.vm.failure("nobody arrived");
                    return Err(self
                        .vm
                        .failure(&format!("it did not leave: {state}; {why:#}")));
                }
                _ if Instant::now() > deadline => {
                    return Err(self.vm.failure(&format!("it does not leave: {state}")));
                }
                _ => thread::sleep(Duration::from_millis(50)),
            }
        }
        let mut left = std::mem::replace(&mut self.vm, there.vm);
        left.kill()?;
        Ok(())
    }

    /// The machine.
    pub fn vm(&mut self) -> &mut Vm {
        &mut self.vm
    }
}
