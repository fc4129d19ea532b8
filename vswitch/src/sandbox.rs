//! What vswitch keeps of its rights once it knows what it serves; `towpath_common::sandbox` says
//! how.

use std::path::Path;
use std::sync::Arc;

use towpath_common::keep::Keeper;
use towpath_common::sandbox::landlock::{self, Reach, beside};
use towpath_common::sandbox::{self, Argument, Call, only};

use crate::config::Config;
use crate::host;
use crate::port::tap::TUN;
use crate::service::{Service, ServiceError};

/// Requests of ioctl(2) (include/uapi/linux/if_tun.h, sockios.h), as `port/tap_sys.rs` has them.
const TUNSETIFF: u32 = 0x4004_54ca;
const TUNGETFEATURES: u32 = 0x8004_54cf;
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
const TUNSETVNETLE: u32 = 0x4004_54dc;
const SIOCGIFFLAGS: u32 = 0x8913;
const SIOCSIFFLAGS: u32 = 0x8914;
const SIOCGIFMTU: u32 = 0x8921;
const SIOCSIFMTU: u32 = 0x8922;

/// The system calls that vswitch makes and not every daemon does.
const CALLS: &[Call] = &[
    only(
        libc::SYS_ioctl,
        &[
            &[Argument::is(1, TUNSETIFF)],
            &[Argument::is(1, TUNGETFEATURES)],
            &[Argument::is(1, TUNSETOFFLOAD)],
            &[Argument::is(1, TUNSETVNETHDRSZ)],
            &[Argument::is(1, TUNSETVNETLE)],
            &[Argument::is(1, SIOCGIFFLAGS)],
            &[Argument::is(1, SIOCSIFFLAGS)],
            &[Argument::is(1, SIOCGIFMTU)],
            &[Argument::is(1, SIOCSIFMTU)],
        ],
        "TAP interfaces of uplinks: made, set up, brought up",
    ),
    only(
        libc::SYS_socket,
        &[&[
            Argument::is(0, libc::AF_INET as u32),
            Argument::bits(1, 0xf, libc::SOCK_DGRAM as u32),
        ]],
        "what those ioctls are asked of; nothing is sent",
    ),
];

/// What of [`start`] needs nothing that a predecessor has.
pub fn prepare(config: &Config) {
    sandbox::prepare_calls(config.daemon.seccomp, CALLS);
}

/// [`host::start`] with no more rights than `config`, read from `file`, needs from now on.
///
/// # Errors
/// As there, and [`ServiceError::Sandbox`].
pub fn start(
    config: &Config,
    keeper: Keeper,
    file: Option<&Path>,
) -> Result<Arc<dyn Service>, ServiceError> {
    if let Some(reach) = reach(config, file) {
        landlock::limit(&reach)?;
    }
    sandbox::check_bell()?;
    sandbox::limit_calls(config.daemon.seccomp, CALLS)?;
    host::start(config, keeper)
}

/// What files the daemon may reach, if it is limited: what is named in `[landlock]`, where the
/// sockets are that it serves now, and where a change is kept in its configuration.
fn reach(config: &Config, file: Option<&Path>) -> Option<Reach> {
    if config.landlock.paths.is_empty() {
        return None;
    }
    let mut reach = Reach {
        all: config.landlock.paths.clone(),
        read: Vec::new(),
    };
    // An uplink may come at any time.
    reach.all.push(TUN.into());
    reach.all.extend(beside(config.daemon.control.as_path()));
    let sockets = config.ports.iter().map(|port| port.socket.as_path());
    reach.all.extend(sockets.filter_map(beside));
    // What a link names is replaced, not the link.
    let named = file.and_then(|file| std::fs::canonicalize(file).ok());
    reach.all.extend(file.and_then(beside));
    reach.all.extend(named.as_deref().and_then(beside));
    Some(reach.tidied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    #[test]
    fn what_is_served_is_reached_and_nothing_without_a_word() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for made in ["etc", "real"] {
            std::fs::create_dir(at(made)).unwrap();
        }
        let (file, real) = (at("etc/vswitch.toml"), at("real/vswitch.toml"));
        std::fs::write(&real, "").unwrap();
        std::os::unix::fs::symlink(&real, &file).unwrap();
        let load = |head: &str| {
            let (a, b) = (at("a/port"), at("b/port"));
            let ports = [("a", a), ("b", b)]
                .map(|(name, socket)| format!("[[port]]\nname = {name:?}\nsocket = {socket:?}\n"));
            std::fs::write(&real, format!("{head}\n{}", ports.concat())).unwrap();
            let sources = Sources {
                file: Some(file.clone()),
                ..Sources::default()
            };
            Config::load(&sources).unwrap()
        };
        assert!(reach(&load(""), Some(&file)).is_none());
        let confined = load("[landlock]\npaths = [\"/srv/ports\"]");
        let reach = reach(&confined, Some(&file)).unwrap();
        let mut expected = vec![TUN.into(), "/run/towpath".into(), "/srv/ports".into()];
        let real = std::fs::canonicalize(at("real")).unwrap();
        expected.extend(["a", "b", "etc"].map(at));
        expected.push(real);
        expected.sort();
        assert_eq!(reach.all, expected);
    }
}
