//! The vblk daemon and its client: one binary, chosen by subcommand.
//!
//! Exit codes: 0 success; 1 failure at run time; 2 wrong usage or configuration.

mod backups;
mod cli;
mod client;
mod local;
mod report;

use std::io::{Write, stdin, stdout};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use towpath_common::config::{ByteSize, ConfigError, ValueError};
use towpath_common::control::compare::exit_code;
use towpath_common::control::print::{PrintError, sentence};
use towpath_common::keep::supervise;
use towpath_common::top::TopError;
use vblk::config::Sources;
use vblk::control::{self, Resize};
use vblk::image::ImageError;
use vblk::mirror::MirrorOrder;
use vblk::serve::{self, ServeError};
use vblk::storage::lvm::helper;

use cli::{Cli, Command, ConfigCommand, DiskCommand, GroupCommand, MirrorCommand};

const FAILURE: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if let Command::Serve { keep: true, .. } = command {
        return supervise::main("vblk");
    }
    if let Command::Config(ConfigCommand::Diff { target }) = &command {
        return exit_code("vblk", client::config_diff(target, &mut stdout().lock()));
    }
    let Err(error) = run(command) else {
        return ExitCode::SUCCESS;
    };
    let closed = error.downcast_ref().is_some_and(PrintError::is_closed_pipe)
        || error.downcast_ref().is_some_and(TopError::is_closed_pipe);
    if closed {
        return ExitCode::SUCCESS;
    }
    eprintln!("vblk: {}", sentence(&*error));
    ExitCode::from(if is_usage(&error) { USAGE } else { FAILURE })
}

fn run_daemon(sources: Sources) -> Result<(), ServeError> {
    let file = sources.file.clone();
    let start = |config: &_, keeper| vblk::sandbox::start(config, keeper, file.as_deref());
    serve::serve(sources, start)
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
        Command::Serve { sources, .. } => Ok(run_daemon(sources.into())?),
        Command::LvmHelper => Ok(helper::serve(stdin().lock(), out)?),
        Command::Create { path, size, json } => local::create(&path, size, json, out),
        Command::Disk(DiskCommand::List { target }) => client::disk_list(&target, out),
        Command::Disk(DiskCommand::Show { name, target }) => {
            client::disk_show(&target, name.as_deref(), out)
        }
        Command::Disk(DiskCommand::Resize {
            name,
            size,
            shrink,
            target,
        }) => {
            let size_bytes = size.map(ByteSize::bytes);
            client::disk_resize(&target, &name, Resize { size_bytes, shrink }, out)
        }
        Command::Disk(DiskCommand::Clear { name, target }) => {
            client::disk_clear(&target, &name, out)
        }
        Command::Disk(DiskCommand::Set {
            name,
            settings,
            target,
        }) => client::disk_set(&target, &name, &settings, out),
        Command::Group(GroupCommand::List { target }) => client::group_list(&target, out),
        Command::Group(GroupCommand::Set {
            name,
            settings,
            target,
        }) => client::group_set(&target, &name, &settings, out),
        Command::Mirror(command) => mirror(command, out),
        Command::Snapshot { name, path, target } => client::snapshot(&target, &name, &path, out),
        Command::Attach {
            name,
            place,
            queues,
            bus,
            target,
        } => client::attach(&target, &name, &place, (queues, bus.as_deref()), out),
        Command::Extra(extra) => Ok(extra.run::<Cli>(control::document, out)?),
        Command::Backup {
            name,
            backup,
            target,
        } => backups::backup(&target, &name, backup, out),
        Command::Restore {
            backup,
            to,
            overwrite,
            json,
        } => backups::restore(&backup, &to, overwrite, json, out),
        Command::Verify { backup, json } => backups::verify(&backup, json, out),
        Command::Slow {
            name,
            count,
            target,
        } => client::slow(&target, name.as_ref(), count, out),
        Command::Disk(DiskCommand::Release { name, target }) => {
            client::disk_release(&target, &name, out)
        }
        Command::Stats { watch, target } => client::stats(&target, watch, out),
        Command::Check { sources, json } => client::check(&Sources::from(sources), json, out),
        Command::Reload { dry_run, target } => client::reload(&target, dry_run, out),
    }
}

/// `vblk mirror …`.
fn mirror(command: MirrorCommand, out: &mut impl Write) -> Result<()> {
    match command {
        MirrorCommand::Create {
            source,
            record,
            assume_clean,
            json,
        } => local::mirror_create(&source, record.as_deref(), assume_clean, json, out),
        MirrorCommand::Show { name, target } => client::mirror(&target, &name, None, out),
        MirrorCommand::Fail { name, disk, target } => {
            client::mirror(&target, &name, Some(&MirrorOrder::Fail(disk)), out)
        }
        MirrorCommand::Add {
            name,
            disk,
            full,
            target,
        } => {
            let order = if full {
                MirrorOrder::AddFull(disk)
            } else {
                MirrorOrder::Add(disk)
            };
            client::mirror(&target, &name, Some(&order), out)
        }
    }
}

/// Whether the user, not the machine, has to change something.
fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<ConfigError>()
        || error.is::<ValueError>()
        || error.downcast_ref().is_some_and(TopError::is_usage)
        || error.is::<client::Usage>()
        || matches!(error.downcast_ref(), Some(ImageError::Size { .. }))
        || matches!(
            error.downcast_ref(),
            Some(ServeError::Config(_) | ServeError::Log(_))
        )
}
