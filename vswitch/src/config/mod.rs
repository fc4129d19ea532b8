//! vswitch's configuration: a file, `--port` and `--uplink` arguments, or both, as one validated
//! [`Config`].
//!
//! [`Config::load`] is the only way in. What it returns is free of conflicts: no two ports share a
//! name, a socket, an interface or an address, and whatever names a port names one that exists. A
//! reload loads again and compares ([`diff`](Config::diff)); a change at run time makes a new
//! configuration of the one in force, by the same rules.

mod argument;
mod change;
mod check;
mod diff;
mod edit;
mod guards;
mod port;
mod switch;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::Spanned;
use towpath_common::config::{
    ConfigError, Daemon, DaemonTable, Document, Landlock, Place, SocketPath, chosen_file,
};
use towpath_common::control::Access;

pub use argument::{PORT, UPLINK};
pub use change::{Change, ChangeError, FdbKey, PortEdit};
pub use diff::Diff;
pub use edit::{EditError, edit};
pub use guards::{Bound, GuardConfig, GuardTable, MAX_SOURCES, Side};
pub use port::{Mtu, Port, QueuePairs, Uplink};
pub use switch::{Direction, Mirror, StaticEntry, Switch};

/// Read when the command line names neither a file nor a port.
pub const DEFAULT_FILE: &str = "/etc/towpath/vswitch.toml";
/// Where the daemon listens and the client subcommands connect, unless told otherwise.
pub const DEFAULT_CONTROL: &str = "/run/towpath/vswitch.sock";
/// Most ports and uplinks together: a bound for tables; each costs little while nobody uses it.
pub const MAX_PORTS: usize = 1024;

const NOTHING_TO_SERVE: &str = "\
nothing to serve: name ports, such as
    vswitch serve --port p0,socket=/run/towpath/p0.sock --port p1,socket=/run/towpath/p1.sock
or describe them in /etc/towpath/vswitch.toml (or another file, with --config):
    [[port]]
    name = \"p0\"
    socket = \"/run/towpath/p0.sock\"";

/// Everything the daemon is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// What concerns the process; does not change while it runs.
    pub daemon: Daemon,
    /// What concerns all ports.
    pub switch: Switch,
    /// The ports, in the order of the file, then of the command line.
    pub ports: Vec<Port>,
    /// The uplinks, in the same order.
    pub uplinks: Vec<Uplink>,
    /// Addresses that are not learned.
    pub fdb: Vec<StaticEntry>,
    /// Copies of traffic.
    pub mirrors: Vec<Mirror>,
    /// What files may be reached.
    pub landlock: Landlock,
}

/// [`DEFAULT_CONTROL`], typed.
pub fn default_control() -> SocketPath {
    SocketPath::literal(DEFAULT_CONTROL)
}

/// What the command line says; where both speak, it overrides the file.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file to read.
    pub file: Option<PathBuf>,
    /// The values of `--port`, unparsed.
    pub ports: Vec<String>,
    /// The values of `--uplink`, unparsed.
    pub uplinks: Vec<String>,
    /// Overrides `[daemon]`.
    pub daemon: DaemonTable,
}

/// A file as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    daemon: DaemonTable,
    #[serde(default)]
    control: Access,
    #[serde(default)]
    landlock: Landlock,
    #[serde(default)]
    switch: Switch,
    #[serde(default, rename = "port")]
    ports: Vec<Spanned<Port>>,
    #[serde(default, rename = "uplink")]
    uplinks: Vec<Spanned<Uplink>>,
    #[serde(default)]
    fdb: Vec<Spanned<StaticEntry>>,
    #[serde(default, rename = "mirror")]
    mirrors: Vec<Spanned<Mirror>>,
}

/// Everything as written, and where.
#[derive(Debug, Default)]
struct Written {
    ports: Vec<(Place, Port)>,
    uplinks: Vec<(Place, Uplink)>,
    fdb: Vec<(Place, StaticEntry)>,
    mirrors: Vec<(Place, Mirror)>,
    landlock: Landlock,
}

impl Sources {
    /// The file to read, if any.
    pub fn chosen_file(&self) -> Option<PathBuf> {
        let arguments = !(self.ports.is_empty() && self.uplinks.is_empty());
        chosen_file(self.file.as_ref(), arguments, DEFAULT_FILE)
    }
}

impl Config {
    /// Reads and validates everything; changes nothing.
    ///
    /// # Errors
    /// [`ConfigError`]: the first mistake, with its place.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let document = sources.chosen_file().map(|path| Document::read(&path));
        Self::load_from(sources, document.transpose()?.as_ref())
    }

    /// As [`Config::load`], with the text of the file that `sources` choose.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_from(sources: &Sources, file: Option<&Document>) -> Result<Self, ConfigError> {
        if file.is_none() && sources.ports.is_empty() && sources.uplinks.is_empty() {
            return Err(ConfigError::Empty(NOTHING_TO_SERVE));
        }
        let (mut daemon, mut switch) = (DaemonTable::default(), Switch::default());
        let mut written = Written::default();
        if let Some(document) = file {
            let file: File = document.parse()?;
            (daemon, switch) = (file.daemon, file.switch);
            daemon.access = file.control;
            written = Written {
                ports: place_all(document, file.ports),
                uplinks: place_all(document, file.uplinks),
                fdb: place_all(document, file.fdb),
                mirrors: place_all(document, file.mirrors),
                landlock: file.landlock,
            };
        }
        let ports = argument::parse_all("--port", &PORT, &sources.ports)?;
        let uplinks = argument::parse_all("--uplink", &UPLINK, &sources.uplinks)?;
        written.ports.extend(ports);
        written.uplinks.extend(uplinks);
        let daemon = daemon.complete(&sources.daemon, DEFAULT_CONTROL);
        check::check(&daemon, &written)?;
        Ok(Self::of(daemon, switch, written))
    }

    /// This configuration, if it holds together.
    fn checked(self) -> Result<Self, ConfigError> {
        let running = |what: String| Place::Running(what);
        let ports = self.ports.into_iter();
        let uplinks = self.uplinks.into_iter();
        let fdb = self.fdb.into_iter();
        let mirrors = self.mirrors.into_iter();
        let written = Written {
            ports: ports
                .map(|one| (running(format!("port {}", one.name)), one))
                .collect(),
            uplinks: uplinks
                .map(|one| (running(format!("uplink {}", one.name)), one))
                .collect(),
            fdb: fdb
                .map(|one| (running(format!("fdb {}", one.mac)), one))
                .collect(),
            mirrors: mirrors
                .map(|one| (running(format!("mirror {}", one.name)), one))
                .collect(),
            landlock: self.landlock,
        };
        check::check(&self.daemon, &written)?;
        Ok(Self::of(self.daemon, self.switch, written))
    }

    fn of(daemon: Daemon, switch: Switch, written: Written) -> Self {
        let Written {
            ports,
            uplinks,
            fdb,
            mirrors,
            landlock,
        } = written;
        Self {
            daemon,
            switch,
            ports: values(ports),
            uplinks: values(uplinks),
            fdb: values(fdb),
            mirrors: values(mirrors),
            landlock,
        }
    }

    /// The guards of a port: the usual ones, changed by the switch's, changed by its own.
    pub fn guards(&self, port: &Port) -> GuardConfig {
        guards::overlay(&self.switch.guards, &port.guards).complete(Side::Guest)
    }

    /// Takes over from `running` what changes at a start only.
    pub fn keep_what_needs_a_restart(&mut self, running: &Self) {
        self.daemon = running.daemon.clone();
        self.switch.fdb_size = running.switch.fdb_size;
        self.landlock = running.landlock.clone();
    }
}

fn place_all<T>(document: &Document, items: Vec<Spanned<T>>) -> Vec<(Place, T)> {
    let place = |item: Spanned<T>| (document.place(item.span()), item.into_inner());
    items.into_iter().map(place).collect()
}

fn values<T>(placed: Vec<(Place, T)>) -> Vec<T> {
    placed.into_iter().map(|(_, value)| value).collect()
}

#[cfg(test)]
mod tests;
