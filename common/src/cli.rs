//! What every command line has: completions for shells, man pages, the API's document, and how a
//! device is attached.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, CommandFactory, Subcommand};
use clap_complete::Shell;
use serde_json::Value;

use crate::attach::{AttachError, Device, Vmm};

/// Subcommands about the command line itself.
#[derive(Clone, Debug, Subcommand)]
pub enum Extra {
    /// Print completions for a shell, to be read by it at its start.
    #[command(after_help = "\
Examples:
  source <(COMMAND completion bash)                          for this shell
  COMMAND completion fish >~/.config/fish/completions/COMMAND.fish

The Debian package installs them for bash, zsh and fish.")]
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Print what the control socket answers, as an OpenAPI document. A running daemon gives the
    /// same at `/openapi.json`.
    #[command(after_help = "\
Example:
  COMMAND api >COMMAND.json")]
    Api,
    /// Write a man page for each command into a directory.
    #[command(hide = true)]
    Man {
        /// The directory; it must exist.
        directory: PathBuf,
    },
}

impl Extra {
    /// Does it, for the command line `C` of a daemon whose API `document` describes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn run<C: CommandFactory>(
        &self,
        document: impl FnOnce() -> Value,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let mut command = C::command();
        match self {
            Self::Completion { shell } => {
                let name = command.get_name().to_owned();
                // The generator panics if its writer fails.
                let mut text = Vec::new();
                clap_complete::generate(*shell, &mut command, name, &mut text);
                out.write_all(&text)
            }
            Self::Api => writeln!(out, "{:#}", document()),
            Self::Man { directory } => clap_mangen::generate_to(command, directory),
        }
    }
}

/// Where a device goes.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false, id = "where")]
pub struct Place {
    /// Print the words that give a new machine this device.
    #[arg(long, value_name = "VMM", value_enum)]
    pub print: Option<Vmm>,
    /// Plug it into the running QEMU whose monitor (`-qmp unix:SOCK,server=on,wait=off`) is here.
    #[arg(long, value_name = "SOCK")]
    pub qmp: Option<PathBuf>,
}

impl Place {
    /// Prints the words for `device`, or plugs it in at `bus`; says what was done.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(&self, device: &Device, bus: Option<&str>) -> Result<String, AttachError> {
        if let Some(qmp) = &self.qmp {
            device.plug(qmp, bus)?;
            let (name, qmp) = (&device.name, qmp.display());
            return Ok(format!(
                "{name} is plugged in; to take it out again, send device_del {name} to {qmp}\n"
            ));
        }
        device.lines(self.print.unwrap_or(Vmm::Qemu))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "thing")]
    struct Cli {
        #[command(subcommand)]
        command: Extra,
    }

    #[test]
    fn completions_and_pages_know_the_commands() {
        for shell in ["bash", "zsh", "fish"] {
            let cli = Cli::parse_from(["thing", "completion", shell]);
            let mut text = Vec::new();
            cli.command.run::<Cli>(|| Value::Null, &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            assert!(
                text.contains("thing") && text.contains("completion"),
                "{text}"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let words = ["thing", "man", dir.path().to_str().unwrap()];
        Cli::parse_from(words)
            .command
            .run::<Cli>(|| Value::Null, &mut io::sink())
            .unwrap();
        let page = std::fs::read_to_string(dir.path().join("thing-completion.1")).unwrap();
        assert!(page.contains("Print completions"), "{page}");
        let mut text = Vec::new();
        let api = Cli::parse_from(["thing", "api"]).command;
        api.run::<Cli>(|| serde_json::json!({"a": 1}), &mut text)
            .unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), "{\n  \"a\": 1\n}\n");
        // Hidden, and so without a page.
        assert!(!dir.path().join("thing-man.1").exists());
    }
}
