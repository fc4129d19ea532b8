//! What vswitch keeps of its rights once it knows what it serves; `towpath_common::sandbox` says
//! how.

use std::sync::Arc;

use towpath_common::keep::Keeper;
use towpath_common::sandbox::{self, Argument, Call, only};

use crate::config::Config;
use crate::host;
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

/// [`host::start`] with no more rights than are needed from now on.
///
/// # Errors
/// As there, and [`ServiceError::Sandbox`].
pub fn start(config: &Config, keeper: Keeper) -> Result<Arc<dyn Service>, ServiceError> {
    sandbox::check_bell()?;
    sandbox::limit_calls(config.daemon.seccomp, CALLS)?;
    host::start(config, keeper)
}
