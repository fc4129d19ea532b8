//! What is understood, and what is refused with which words.

use super::*;
use clap::CommandFactory;
use towpath_common::config::Poll;
use vswitch::config::Sources;
use vswitch::service::FdbFilter;

pub(super) fn parse(line: &str) -> Result<Command, String> {
    let words = std::iter::once("vswitch").chain(line.split_whitespace());
    Cli::try_parse_from(words)
        .map(|cli| cli.command)
        .map_err(|error| error.to_string())
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn serve_takes_ports_uplinks_and_everything_of_the_daemon() {
    let line = "serve --config f --port a,socket=s --port b,socket=t --uplink tap0 --cpu 2,4-5 \
                --poll busy --control c --log debug";
    let Ok(Command::Serve { sources: args, .. }) = parse(line) else {
        panic!("not serve")
    };
    let sources = Sources::from(args);
    assert_eq!(sources.ports, ["a,socket=s", "b,socket=t"]);
    assert_eq!(sources.uplinks, ["tap0"]);
    assert_eq!(sources.daemon.cpus, Some("2,4,5".parse().unwrap()));
    assert_eq!(sources.daemon.poll, Some(Poll::Busy));
}

#[test]
fn values_are_checked_at_once() {
    for (line, message) in [
        ("serve --poll lazy", "use adaptive, busy or interrupt"),
        ("serve --cpu 1,1", "name each CPU once"),
        (
            "fdb show --vlan 4095",
            "\"4095\" is not a VLAN id; use 1 to 4094",
        ),
        ("fdb show --mac 1:2", "\"1:2\" is not a MAC address"),
        ("port show -a", "unexpected argument '-a'"),
        (
            "mirror add m --to a --from b --direction in",
            "use rx, tx or both",
        ),
        ("mirror add m --to a", "--from <FROM>"),
        ("prt", "a similar subcommand exists: 'port'"),
    ] {
        let error = parse(line).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn clients_connect_to_the_default_socket() {
    let Ok(Command::Fdb(FdbCommand::Show { filter, target })) = parse("fdb show --port p --json")
    else {
        panic!("not a table of addresses")
    };
    assert!(target.json);
    assert_eq!(target.control, vswitch::config::default_control());
    let expected = FdbFilter {
        port: Some("p".parse().unwrap()),
        ..FdbFilter::default()
    };
    assert_eq!(FdbFilter::from(filter), expected);
}

#[test]
fn help_names_every_key_of_port_and_uplink() {
    let help = Cli::command()
        .find_subcommand_mut("serve")
        .unwrap()
        .render_long_help();
    let help = help.to_string();
    for key in vswitch::config::PORT
        .keys()
        .chain(vswitch::config::UPLINK.keys())
    {
        assert!(help.contains(key), "{key}");
    }
}
