//! The vswitch daemon and its client: one binary, chosen by subcommand.
//!
//! Exit codes: 0 success; 1 failure at run time; 2 wrong usage or configuration.

mod cli;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use clap::Parser;
use towpath_common::config::{ConfigError, Daemon, ValueError};
use vswitch::serve::{self, ServeError};
use vswitch::service::{Service, ServiceError};

use cli::{Cli, Command};

const FAILURE: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let Err(error) = run(Cli::parse().command) else {
        return ExitCode::SUCCESS;
    };
    eprintln!("vswitch: {error:#}");
    ExitCode::from(if is_usage(&error) { USAGE } else { FAILURE })
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Serve(args) => Ok(serve::serve(args.into(), vswitch::host::start)?),
        _ => bail!("not there yet"),
    }
}

/// Whether the user, not the machine, has to change something.
fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<ConfigError>()
        || error.is::<ValueError>()
        || matches!(
            error.downcast_ref(),
            Some(ServeError::Config(_) | ServeError::Log(_))
        )
}
