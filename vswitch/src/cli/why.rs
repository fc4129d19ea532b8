//! `vswitch why`: what becomes of frames from and to an address, and what became of recent ones.

use std::io::Write;

use anyhow::Result;
use clap::Args;
use towpath_common::config::Name;
use towpath_common::control::print::print;
use towpath_common::control::{Answer, Client};
use vswitch::mac::Mac;
use vswitch::vlan::Vid;
use vswitch::why::ask::Why;
use vswitch::why::text::text;

use super::Target;

pub(crate) const EXAMPLES: &str = "\
Examples:
  vswitch why 52:54:00:12:34:56
  vswitch why 52:54:00:12:34:56 --vlan 10 --port web

Rates and storm limits depend on the moment: what they dropped lately is among the recent frames. \
To see all that is dropped from now on, use `vswitch capture MAC --discards`.";

/// Which frames.
#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// The address that frames come from or go to.
    mac: Mac,
    /// In this VLAN; without it, in all where the address is known.
    #[arg(long)]
    vlan: Option<Vid>,
    /// Received from this port; without it, from where the address is known, and from any.
    #[arg(long)]
    port: Option<Name>,
    #[command(flatten)]
    target: Target,
}

/// Asks and prints.
pub(crate) fn run(args: &WhyArgs, out: &mut impl Write) -> Result<()> {
    let client = Client::new(args.target.control.as_path());
    let answer: Answer<Why> = client.get(&path(args))?;
    Ok(print(&answer, args.target.json, out, text)?)
}

/// Nothing in an address, a number or a name needs escaping.
fn path(args: &WhyArgs) -> String {
    let mut path = format!("/v1/why?mac={}", args.mac);
    if let Some(vlan) = args.vlan {
        path += &format!("&vlan={vlan}");
    }
    if let Some(port) = &args.port {
        path += &format!("&port={port}");
    }
    path
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::super::tests::parse;
    use super::*;

    #[test]
    fn the_question_is_what_the_line_says() {
        let Ok(Command::Why(args)) = parse("why 52:54:00:12:34:56 --vlan 10 --port web") else {
            panic!("not a question")
        };
        let expected = "/v1/why?mac=52:54:00:12:34:56&vlan=10&port=web";
        assert_eq!(path(&args), expected);
        assert!(parse("why web").is_err());
    }
}
