//! What concerns the process and only a daemon of disks has: top-level keys, and options that
//! override them. Like `[daemon]`, they take effect at a start only.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use towpath_common::config::{Landlock, ValueError};

/// Who does the I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineChoice {
    /// io_uring, or threads where the host forbids it.
    #[default]
    Auto,
    /// io_uring, or no start.
    IoUring,
    /// Threads.
    Threads,
}

impl FromStr for EngineChoice {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "auto" => Ok(Self::Auto),
            "io_uring" => Ok(Self::IoUring),
            "threads" => Ok(Self::Threads),
            _ => {
                let fix = "use auto, io_uring or threads";
                Err(ValueError::form("engine", text, fix))
            }
        }
    }
}

/// The settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Who does the I/O.
    pub engine: EngineChoice,
    /// What may be reached.
    pub landlock: Landlock,
}

/// The settings as written, or what the command line says of them.
#[derive(Clone, Debug, Default)]
pub struct ProcessTable {
    /// See [`Process::engine`].
    pub engine: Option<EngineChoice>,
    /// See [`Process::landlock`]; only a file has it.
    pub landlock: Landlock,
}

impl ProcessTable {
    /// The settings: those of `over` where it speaks, else these, else the defaults.
    pub(super) fn complete(self, over: &ProcessTable) -> Process {
        Process {
            engine: over.engine.or(self.engine).unwrap_or_default(),
            landlock: self.landlock,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_overrides_the_file() {
        let file = ProcessTable {
            engine: Some(EngineChoice::IoUring),
            ..ProcessTable::default()
        };
        let line = ProcessTable {
            engine: "threads".parse().ok(),
            ..ProcessTable::default()
        };
        assert_eq!(file.clone().complete(&line).engine, EngineChoice::Threads);
        let nothing = ProcessTable::default();
        assert_eq!(file.complete(&nothing).engine, EngineChoice::IoUring);
        assert_eq!(nothing.clone().complete(&nothing), Process::default());
        let error = "aio".parse::<EngineChoice>().unwrap_err().to_string();
        assert!(error.contains("use auto, io_uring or threads"), "{error}");
    }
}
