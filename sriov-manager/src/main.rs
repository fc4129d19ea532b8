//! sriov-manager: the commands that look and change at once, the daemon, and its client.
//!
//! Exit codes: 0 success, or nothing to do; 1 failure; 2 wrong usage or configuration; of `plan`
//! also 3 there is something to do, 4 something is refused. `apply` gives 4 when it refuses.

mod cli;
mod client;
mod local;
mod report;

use std::io::{stdin, stdout};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use sriov_manager::kernel::obey;
use sriov_manager::serve::{self, ServeError};
use towpath_common::config::{ConfigError, ValueError};
use towpath_common::control::print::{PrintError, sentence};

use cli::{Cli, Command, LeaseCommand};

const FAILURE: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let error = match run(Cli::parse().command) {
        Ok(code) => return code,
        Err(error) => error,
    };
    if error.downcast_ref().is_some_and(PrintError::is_closed_pipe) {
        return ExitCode::SUCCESS;
    }
    eprintln!("sriov-manager: {}", sentence(&*error));
    ExitCode::from(if is_usage(&error) { USAGE } else { FAILURE })
}

fn run(command: Command) -> Result<ExitCode> {
    let out = &mut stdout().lock();
    match command {
        Command::Extra(extra) => {
            extra.run::<Cli>(sriov_manager::control::document, out)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Scan { json, source } => local::scan(&source, json, out),
        Command::Plan { json, source } => local::plan(&source, json, out),
        Command::Apply {
            json,
            partial,
            source,
        } => local::apply(&source, partial, json, out),
        Command::Check { json, source } => local::check(&source, json, out),
        Command::Doctor { json, source } => local::doctor(&source, json, out),
        Command::Serve { source } => {
            serve::serve(&source.config)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Status { target } => client::status(&target, out),
        Command::Lease(LeaseCommand::Get { json, args }) => client::get(&args, json, out),
        Command::Lease(LeaseCommand::List { target }) => client::leases(&target, out),
        Command::Lease(LeaseCommand::Release { address, target }) => {
            client::release(&target, address, out)
        }
        Command::Exec { args, command } => client::exec(&args, &command),
        Command::Repair { target } => client::repair(&target, out),
        Command::Reload { target } => client::reload(&target, out),
        Command::WriteOrders => {
            obey(stdin().lock(), out)?;
            Ok(ExitCode::SUCCESS)
        }
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
