//! Network namespaces: a host of its own, as far as interfaces and addresses go.
//!
//! Made and entered with iproute2, by root. Dropping a [`Netns`] removes it with all that is in it.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::paths;
use crate::process::command;

/// A namespace that is removed when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes one with its loopback up; `name` is made unique.
    ///
    /// # Errors
    /// Without iproute2, or without root.
    pub fn create(name: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("towpath-{}-{count}-{name}", std::process::id());
        done(
            Command::new(paths::program("ip")?).args(["netns", "add", &name]),
            "ip netns add (needs root)",
        )?;
        let netns = Self { name };
        netns.run("ip link set lo up")?;
        Ok(netns)
    }

    /// Its name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a shell script in it, ended by the first command that fails; returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn run(&self, script: &str) -> Result<String> {
        let mut shell = Command::new(paths::program("ip")?);
        shell.args(["netns", "exec", &self.name, "sh", "-euc", script]);
        let output = done(&mut shell, script)?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A command that runs `program` in it and is killed when the calling thread ends.
    ///
    /// # Errors
    /// Without iproute2.
    pub fn command(&self, program: &Path) -> Result<Command> {
        let mut ip = command(&paths::program("ip")?);
        ip.args(["netns", "exec", &self.name]).arg(program);
        Ok(ip)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // What still runs in it keeps it alive, and dies with its own owner.
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

/// The output of `command`, which must succeed.
fn done(command: &mut Command, what: &str) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {what}"))?;
    ensure!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_its_own_interfaces_and_goes_away() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root makes namespaces");
            return;
        }
        let netns = Netns::create("unit").unwrap();
        netns
            .run("ip link add name v0 type veth peer name v1")
            .unwrap();
        let links = netns.run("ip -brief link").unwrap();
        assert_eq!(links.lines().count(), 3, "{links}");
        let name = netns.name().to_owned();
        assert!(netns.run("exit 3").is_err());
        drop(netns);
        let left = Command::new("ip").args(["netns", "list"]).output().unwrap();
        assert!(!String::from_utf8_lossy(&left.stdout).contains(&name));
    }
}
