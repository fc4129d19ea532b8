//! The vswitch daemon and its client: one binary, chosen by subcommand.
//!
//! Exit codes: 0 success; 1 failure at run time; 2 wrong usage or configuration.

mod cli;
mod client;
mod report;

use std::io::stdout;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use towpath_common::config::{ConfigError, ValueError};
use towpath_common::control::compare::exit_code;
use towpath_common::control::print::{PrintError, sentence};
use towpath_common::keep::supervise;
use towpath_common::top::TopError;
use vswitch::capture::OrderError;
use vswitch::config::Sources;
use vswitch::serve::{self, ServeError};

use cli::{Cli, Command, ConfigCommand};

const FAILURE: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if let Command::Serve { keep: true, .. } = command {
        return supervise::main("vswitch");
    }
    if let Command::Config(ConfigCommand::Diff { target }) = &command {
        return exit_code("vswitch", client::config_diff(target, &mut stdout().lock()));
    }
    let Err(error) = run(command) else {
        return ExitCode::SUCCESS;
    };
    let closed = error.downcast_ref().is_some_and(PrintError::is_closed_pipe)
        || error.downcast_ref().is_some_and(TopError::is_closed_pipe);
    if closed {
        return ExitCode::SUCCESS;
    }
    eprintln!("vswitch: {}", sentence(&*error));
    ExitCode::from(if is_usage(&error) { USAGE } else { FAILURE })
}

fn run(command: Command) -> Result<()> {
    if let Command::Top(top) = &command {
        // It locks the output itself, or draws.
        return Ok(cli::top::top(top)?);
    }
    let out = &mut stdout().lock();
    match command {
        // Done above.
        Command::Config(_) | Command::Top(_) => Ok(()),
        Command::Serve { sources, .. } => {
            let sources: Sources = sources.into();
            let file = sources.chosen_file();
            Ok(serve::serve(sources, |config, keeper| {
                vswitch::sandbox::start(config, keeper, file.as_deref())
            })?)
        }
        Command::Port(command) => client::port(command, out),
        Command::Attach {
            name,
            place,
            queues,
            bus,
            target,
        } => client::attach(&target, &name, &place, (queues, bus.as_deref()), out),
        Command::Extra(extra) => Ok(extra.run::<Cli>(vswitch::control::document, out)?),
        Command::Uplink(command) => client::uplink(command, out),
        Command::Fdb(command) => client::fdb(command, out),
        Command::Vlan(command) => client::vlan(command, out),
        Command::Mirror(command) => client::mirror(command, out),
        Command::Capture(args) => cli::capture::run(&args, out),
        Command::Why(args) => cli::why::run(&args, out),
        Command::Stats { watch, target } => client::stats(&target, watch, out),
        Command::Check { sources, json } => client::check(&Sources::from(sources), json, out),
        Command::Reload { dry_run, target } => client::reload(&target, dry_run, out),
    }
}

/// Whether the user, not the machine, has to change something.
fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<ConfigError>()
        || error.is::<ValueError>()
        || error.downcast_ref().is_some_and(TopError::is_usage)
        || error.is::<client::Wrong>()
        || error.is::<OrderError>()
        || matches!(
            error.downcast_ref(),
            Some(ServeError::Config(_) | ServeError::Log(_))
        )
}
