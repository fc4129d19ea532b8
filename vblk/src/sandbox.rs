//! What vblk keeps of its rights once it knows what it serves; `towpath_common::sandbox` says how.

use std::path::Path;
use std::sync::Arc;

use towpath_common::config::Name;
use towpath_common::keep::Keeper;
use towpath_common::sandbox::landlock::{self, Reach, beside};
use towpath_common::sandbox::{self, Argument, Call, Seccomp, call, only};

use crate::config::{Config, Source};
use crate::host;
use crate::mortal;
use crate::service::{Service, ServiceError};
use crate::storage::lvm::helper;

/// Requests of ioctl(2) (include/uapi/linux/fs.h, fiemap.h).
const BLKSSZGET: u32 = 0x1268;
const BLKPBSZGET: u32 = 0x127b;
const BLKGETSIZE64: u32 = 0x8008_1272;
const FICLONE: u32 = 0x4004_9409;
const FIEMAP: u32 = 0xc020_660b;
const GETFLAGS: u32 = 0x8008_6601;
const SETFLAGS: u32 = 0x4008_6602;

/// The system calls that vblk makes and not every daemon does.
const CALLS: &[Call] = &[
    only(
        libc::SYS_ioctl,
        &[
            &[Argument::is(1, BLKSSZGET)],
            &[Argument::is(1, BLKPBSZGET)],
            &[Argument::is(1, BLKGETSIZE64)],
            &[Argument::is(1, FICLONE)],
            &[Argument::is(1, FIEMAP)],
            &[Argument::is(1, GETFLAGS)],
            &[Argument::is(1, SETFLAGS)],
        ],
        "sizes of devices, snapshots by cloning, pinned extents",
    ),
    only(
        libc::SYS_socket,
        &[
            &[Argument::is(0, libc::AF_INET as u32)],
            &[Argument::is(0, libc::AF_INET6 as u32)],
            &[Argument::is(0, libc::AF_NETLINK as u32)],
        ],
        "NBD servers, and the resolver that finds them",
    ),
    call(libc::SYS_sendmmsg, "the resolver"),
    call(libc::SYS_fadvise64, "backups do not fill the page cache"),
    call(libc::SYS_sync_file_range, "the same"),
    call(libc::SYS_fsetxattr, "pinned extents say whose flag it is"),
    call(libc::SYS_fgetxattr, "the same"),
    call(libc::SYS_fremovexattr, "the same"),
];

/// All system calls that this process makes.
fn calls() -> Vec<Call> {
    let mut calls = CALLS.to_vec();
    if std::env::var_os(mortal::VARIABLE).is_some() {
        calls.push(call(libc::SYS_kill, "a test has the daemon kill itself"));
    }
    calls
}

/// What of [`start`] needs nothing that a predecessor has.
pub fn prepare(config: &Config) {
    sandbox::prepare_calls(config.daemon.seccomp, &calls());
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
    let mode = config.daemon.seccomp;
    let volume = |source: &Source| source.leaves().iter().any(|l| matches!(l, Source::Lvm(_)));
    let volume = config.disks.iter().find(|disk| volume(&disk.path));
    if let (Seccomp::Enforce, Some(disk)) = (mode, volume) {
        let name: &Name = &disk.name;
        helper::begin().map_err(|source| ServiceError::Disk {
            name: name.clone(),
            source: format!("no process to run lvm: {source}").into(),
        })?;
    }
    if let Some(mut reach) = reach(config) {
        reach.read.extend(file.and_then(beside));
        landlock::limit(&reach)?;
    }
    sandbox::check_bell()?;
    sandbox::limit_calls(mode, &calls())?;
    host::start(config, keeper)
}

/// What files the daemon may reach, if it is limited: what is named in `[landlock]`, its storages,
/// and what it serves now, as that may change beside them: sockets, images, records, bitmaps.
fn reach(config: &Config) -> Option<Reach> {
    if config.process.landlock.paths.is_empty() {
        return None;
    }
    let mut reach = Reach {
        all: config.process.landlock.paths.clone(),
        read: Vec::new(),
    };
    let storages = config.storages.iter().map(|storage| storage.path.clone());
    reach.all.extend(storages);
    reach.all.extend(beside(config.daemon.control.as_path()));
    for disk in &config.disks {
        reach.all.extend(beside(disk.socket.as_path()));
        reach.all.extend(disk.bitmap.as_deref().and_then(beside));
        reach.all.extend(disk.record.as_deref().and_then(beside));
        for leaf in disk.path.leaves() {
            match leaf {
                // A device alone, not all of /dev.
                Source::File(path) if path.starts_with("/dev") => reach.all.push(path.clone()),
                Source::File(path) => reach.all.extend(beside(path)),
                Source::Lvm(_) => reach.all.push("/dev".into()),
                Source::Nbd(address) => {
                    let certs = address.tls.as_ref().map(|tls| tls.certs.clone());
                    reach.read.extend(certs);
                }
                Source::Null { .. } | Source::Stripe { .. } | Source::Mirror(_) => {}
            }
        }
    }
    // Where the configuration is read again. What is relative is so to a directory that is reached.
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
        std::fs::create_dir(at("images")).unwrap();
        std::fs::write(at("images/a"), [0; 4096]).unwrap();
        let file = at("vblk.toml");
        let load = |head: &str| {
            let text = format!(
                "{head}\n[[disk]]\npath = {:?}\nsocket = {:?}\nbitmap = {:?}\n\
                 [[disk]]\npath = \"null:1M\"\nsocket = {:?}\n",
                at("images/a"),
                at("sockets/a"),
                at("bitmaps/a"),
                at("sockets/b"),
            );
            std::fs::write(&file, text).unwrap();
            let sources = Sources {
                file: Some(file.clone()),
                ..Sources::default()
            };
            Config::load(&sources).unwrap()
        };
        assert!(reach(&load("")).is_none());
        let reach = reach(&load("[landlock]\npaths = [\"/srv/backup\"]")).unwrap();
        let mut expected = vec!["/run/towpath".into(), "/srv/backup".into()];
        expected.extend(["bitmaps", "images", "sockets"].map(at));
        expected.sort();
        assert_eq!(reach.all, expected);
    }
}
