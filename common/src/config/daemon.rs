//! What concerns the process, the same in every daemon: the table `[daemon]` and the options that
//! override it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{CpuList, Poll, SocketPath};
use crate::control::Access;
use crate::logging::LogFilter;
use crate::sandbox::Seccomp;

/// The settings of the process. None of them changes while the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Daemon {
    /// CPUs to pin workers to, one worker each; empty: one worker, not pinned.
    pub cpus: CpuList,
    /// What workers do when idle.
    pub poll: Poll,
    /// The control socket.
    pub control: SocketPath,
    /// Which lines to log; without it `RUST_LOG` decides, then "info".
    pub log: Option<LogFilter>,
    /// What becomes of system calls that are not declared.
    pub seccomp: Seccomp,
    /// Who is answered: the table `[control]`.
    #[serde(skip_serializing_if = "Access::is_open")]
    pub access: Access,
}

/// The table `[daemon]` as written, or what the command line says of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DaemonTable {
    /// See [`Daemon::cpus`].
    pub cpus: Option<CpuList>,
    /// See [`Daemon::poll`].
    pub poll: Option<Poll>,
    /// See [`Daemon::control`].
    pub control: Option<SocketPath>,
    /// See [`Daemon::log`].
    pub log: Option<LogFilter>,
    /// See [`Daemon::seccomp`].
    pub seccomp: Option<Seccomp>,
    /// See [`Daemon::access`]; a table of its own.
    #[serde(skip)]
    pub access: Access,
}

impl DaemonTable {
    /// The settings: those of `over` where it speaks, else these, else the defaults.
    #[must_use]
    pub fn complete(self, over: &DaemonTable, control: &'static str) -> Daemon {
        let over = over.clone();
        Daemon {
            cpus: over.cpus.or(self.cpus).unwrap_or_default(),
            poll: over.poll.or(self.poll).unwrap_or_default(),
            control: over
                .control
                .or(self.control)
                .unwrap_or_else(|| SocketPath::literal(control)),
            log: over.log.or(self.log),
            seccomp: over.seccomp.or(self.seccomp).unwrap_or_default(),
            access: self.access,
        }
    }
}

/// The file to read: as told, or `default` if nothing is served by arguments and it exists.
#[must_use]
pub fn chosen_file(told: Option<&PathBuf>, arguments: bool, default: &str) -> Option<PathBuf> {
    let default = PathBuf::from(default);
    told.cloned()
        .or_else(|| (!arguments && default.exists()).then_some(default))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_overrides_the_file_and_the_file_the_defaults() {
        let file: DaemonTable =
            toml::from_str("poll = \"busy\"\nlog = \"warn\"\nseccomp = \"log\"").unwrap();
        let line = DaemonTable {
            poll: Some(Poll::Interrupt),
            cpus: Some("7".parse().unwrap()),
            ..DaemonTable::default()
        };
        let daemon = file.complete(&line, "/run/c.sock");
        assert_eq!(daemon.poll, Poll::Interrupt);
        assert_eq!(daemon.cpus, "7".parse().unwrap());
        assert_eq!(daemon.seccomp, Seccomp::Log);
        assert_eq!(daemon.log, Some("warn".parse().unwrap()));
        assert_eq!(daemon.control.to_string(), "/run/c.sock");
    }
}
