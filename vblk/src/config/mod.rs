//! vblk's configuration: a file, `--disk` arguments, or both, as one validated [`Config`].
//!
//! [`Config::load`] is the only way in. What it returns is complete (every disk has a name and a
//! serial) and free of conflicts: no two disks share a name, a socket, or a path that one of them
//! may write, under whatever names the file system knows that path. A reload loads again and
//! compares ([`diff`](Config::diff)).

mod argument;
mod catalogue;
mod diff;
mod disk;
mod process;
mod qos;
mod source;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Spanned;
use towpath_common::config::{
    ConfigError, DaemonTable, Document, Name, Place, SocketPath, chosen_file,
};
use towpath_common::control::Access;

pub use argument::argument_keys;
pub use catalogue::{Content, Storage, Uuid};
pub use diff::Diff;
use disk::DiskTable;
pub use disk::{
    BlockSize, Cache, Connections, Disk, FileLock, FileMap, GuestMemory, MirrorDisk, MirrorTimeout,
    OnError, Polling, QueueCount, Serial,
};
pub use process::{EngineChoice, Process, ProcessTable};
use qos::GroupTable;
pub use qos::{Bandwidth, Group, Iops, Limit};
pub use source::Source;
pub use towpath_common::config::{Daemon, Landlock};

/// Read when the command line names neither a file nor a disk.
pub const DEFAULT_FILE: &str = "/etc/towpath/vblk.toml";
/// Where the daemon listens and the client subcommands connect, unless told otherwise.
pub const DEFAULT_CONTROL: &str = "/run/towpath/vblk.sock";

const NOTHING_TO_SERVE: &str = "\
nothing to serve: name a disk, such as
    vblk serve --disk /var/lib/vm/disk.img,socket=/run/towpath/disk.sock
or describe disks in /etc/towpath/vblk.toml (or another file, with --config):
    [[disk]]
    path = \"/var/lib/vm/disk.img\"
    socket = \"/run/towpath/disk.sock\"
`vblk create PATH SIZE` makes an empty image.";

/// Everything the daemon is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// What concerns the process.
    pub daemon: Daemon,
    /// The same, of a daemon of disks.
    pub process: Process,
    /// Where disks and images may be.
    pub storages: Vec<Storage>,
    /// The disks, in the order of the file, then of the command line.
    pub disks: Vec<Disk>,
    /// Limits that disks share.
    pub groups: Vec<Group>,
}

/// [`DEFAULT_CONTROL`], typed.
pub fn default_control() -> SocketPath {
    SocketPath::literal(DEFAULT_CONTROL)
}

/// What the command line says; where both speak, it overrides the file.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file to read.
    pub file: Option<PathBuf>,
    /// The values of `--disk`, unparsed.
    pub disks: Vec<String>,
    /// The values of `--group`, unparsed.
    pub groups: Vec<String>,
    /// Overrides `[daemon]`.
    pub daemon: DaemonTable,
    /// Overrides the top-level keys.
    pub process: ProcessTable,
}

/// A file as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    engine: Option<EngineChoice>,
    #[serde(default)]
    daemon: DaemonTable,
    #[serde(default)]
    control: Access,
    #[serde(default)]
    landlock: Landlock,
    #[serde(default, rename = "storage")]
    storages: Vec<Spanned<Storage>>,
    #[serde(default, rename = "disk")]
    disks: Vec<Spanned<DiskTable>>,
    #[serde(default, rename = "group")]
    groups: Vec<Spanned<GroupTable>>,
}

/// A disk as written, and where.
type Placed = (Place, DiskTable);

/// All that a file says, with the places of its tables.
type Written = (
    (DaemonTable, ProcessTable),
    Vec<(Place, Storage)>,
    Vec<Placed>,
    Vec<(Place, GroupTable)>,
);

impl Config {
    /// Reads and validates everything; changes nothing.
    ///
    /// # Errors
    /// [`ConfigError`]: the first mistake, with its place.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let document = sources.chosen_file().map(|path| Document::read(&path));
        Self::load_from(sources, document.transpose()?.as_ref())
    }

    /// As [`Config::load`], with the text of the file that `sources` choose.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_from(sources: &Sources, file: Option<&Document>) -> Result<Self, ConfigError> {
        if file.is_none() && sources.disks.is_empty() {
            return Err(ConfigError::Empty(NOTHING_TO_SERVE));
        }
        let ((daemon, process), storages, mut disks, mut groups) = match file {
            Some(document) => read_file(document)?,
            None => Default::default(),
        };
        for (index, argument) in sources.disks.iter().enumerate() {
            let place = Place::Argument {
                option: "--disk",
                ordinal: index + 1,
            };
            disks.push((place.clone(), argument::parse(argument, place)?));
        }
        for (index, argument) in sources.groups.iter().enumerate() {
            let place = Place::Argument {
                option: "--group",
                ordinal: index + 1,
            };
            groups.push((place.clone(), argument::parse_group(argument, place)?));
        }
        refuse_bad_groups(&groups, &disks)?;
        let daemon = daemon.complete(&sources.daemon, DEFAULT_CONTROL);
        let storages = catalogue::check(storages)?;
        for (place, disk) in &mut disks {
            catalogue::place(disk, &storages).map_err(|message| invalid(place, message))?;
        }
        refuse_conflicts(&daemon, &disks)?;
        Ok(Self {
            daemon,
            process: process.complete(&sources.process),
            storages,
            disks: name_all(disks),
            groups: groups.into_iter().map(|(_, g)| g.complete()).collect(),
        })
    }
}

impl Sources {
    /// The file to read, if any.
    fn chosen_file(&self) -> Option<PathBuf> {
        chosen_file(self.file.as_ref(), !self.disks.is_empty(), DEFAULT_FILE)
    }
}

fn read_file(document: &Document) -> Result<Written, ConfigError> {
    let file: File = document.parse()?;
    let place = |disk: Spanned<DiskTable>| (document.place(disk.span()), disk.into_inner());
    let disks = file.disks.into_iter().map(place).collect();
    let place = |group: Spanned<GroupTable>| (document.place(group.span()), group.into_inner());
    let groups = file.groups.into_iter().map(place).collect();
    let place = |storage: Spanned<Storage>| (document.place(storage.span()), storage.into_inner());
    let storages = file.storages.into_iter().map(place).collect();
    let process = ProcessTable {
        engine: file.engine,
        landlock: file.landlock,
    };
    let mut daemon = file.daemon;
    daemon.access = file.control;
    Ok(((daemon, process), storages, disks, groups))
}

/// Refuses groups of one name, and disks in groups that are not there.
fn refuse_bad_groups(groups: &[(Place, GroupTable)], disks: &[Placed]) -> Result<(), ConfigError> {
    for (index, (place, group)) in groups.iter().enumerate() {
        if let Some((first, _)) = groups[..index].iter().find(|(_, g)| g.name == group.name) {
            return Err(ConfigError::Conflict {
                what: format!("group name \"{}\"", group.name),
                first: first.clone(),
                second: place.clone(),
                fix: "give each group its own name",
            });
        }
    }
    let limits = groups.iter().map(|(place, group)| (place, group.limit()));
    let limits = limits.chain(disks.iter().map(|(place, disk)| (place, disk.limit())));
    for (place, limit) in limits {
        if let Some(mistake) = limit.mistake() {
            return Err(invalid(place, mistake.to_owned()));
        }
    }
    for (place, disk) in disks {
        if let Some(name) = &disk.group
            && !groups.iter().any(|(_, group)| group.name == *name)
        {
            let fix = "describe it in a [[group]] table, or with --group";
            return Err(invalid(
                place,
                format!("there is no group \"{name}\"; {fix}"),
            ));
        }
    }
    Ok(())
}

/// Refuses disks that contend with each other or with the daemon.
fn refuse_conflicts(daemon: &Daemon, disks: &[Placed]) -> Result<(), ConfigError> {
    let mut seen: Vec<(&Placed, Vec<Identity>)> = Vec::with_capacity(disks.len());
    for disk in disks {
        let (place, table) = disk;
        if table.socket == daemon.control {
            let message = format!("socket \"{}\" is the daemon's control socket", table.socket);
            return Err(invalid(place, message));
        }
        if table.map == FileMap::Extents
            && (table.cache == Cache::Buffered || !matches!(table.path, Source::File(_)))
        {
            let message = "map = \"extents\" is for a file, with cache = \"direct\"".to_owned();
            return Err(invalid(place, message));
        }
        if table.map == FileMap::Segments && !matches!(table.path, Source::Lvm(_)) {
            let message = "map = \"segments\" is for a logical volume (lvm:GROUP/VOLUME)";
            return Err(invalid(place, message.to_owned()));
        }
        if let Some(message) = table.lock_mistake() {
            return Err(invalid(place, message.to_owned()));
        }
        if let Some(message) = mirror_mistake(table) {
            return Err(invalid(place, message.to_owned()));
        }
        if let Some(message) = table.bitmap_mistake() {
            return Err(invalid(place, message));
        }
        let identities = identify(&table.path).map_err(|message| invalid(place, message))?;
        for ((first, other), taken) in &seen {
            let same_storage = identities.iter().any(|id| taken.contains(id));
            if let Some((what, fix)) = clash(table, other, same_storage) {
                let (first, second) = (first.clone(), place.clone());
                return Err(ConfigError::Conflict {
                    what,
                    first,
                    second,
                    fix,
                });
            }
        }
        seen.push((disk, identities));
    }
    Ok(())
}

/// What is wrong with what is said about a mirror, if anything.
fn mirror_mistake(table: &DiskTable) -> Option<&'static str> {
    let Source::Mirror(of) = &table.path else {
        let said = table.record.is_some() || table.prefer.is_some();
        return said.then_some("record and prefer are for a mirror (path = \"mirror:…\")");
    };
    let beyond = |n: MirrorDisk| usize::from(n.get()) > of.len();
    if table.prefer.is_some_and(beyond) {
        Some("prefer names a disk that the mirror does not have")
    } else if table.read_only {
        Some("a mirror cannot be read-only; serve one of its disks")
    } else {
        None
    }
}

/// What two disks contend for, if anything, and how to resolve it.
fn clash(a: &DiskTable, b: &DiskTable, same_storage: bool) -> Option<(String, &'static str)> {
    if a.socket == b.socket {
        Some((
            format!("socket \"{}\"", a.socket),
            "give each disk its own socket",
        ))
    } else if let Some(name) = a.name.as_ref().filter(|name| b.name.as_ref() == Some(name)) {
        Some((format!("name \"{name}\""), "give each disk its own name"))
    } else if let Some(uuid) = a.uuid.as_ref().filter(|uuid| b.uuid.as_ref() == Some(uuid)) {
        Some((format!("uuid {uuid}"), "give each disk its own uuid"))
    } else if let Some(bitmap) = a.bitmap.as_ref().filter(|_| a.bitmap == b.bitmap) {
        let what = format!("bitmap {bitmap:?}");
        Some((what, "give each disk its own bitmap"))
    } else if let Some(record) = a.record.as_ref().filter(|_| a.record == b.record) {
        let what = format!("record {record:?}");
        Some((what, "give each mirror its own record"))
    } else if same_storage && !(a.read_only && b.read_only) {
        Some((
            format!("path \"{}\"", a.path),
            "only read-only disks may share a path",
        ))
    } else {
        None
    }
}

/// What the kernel knows a file (device, inode) or block device by, under whatever path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Identity {
    File(u64, u64),
    Device(u64),
    Export(String),
}

/// All storage behind `source`, which must exist; nothing for the null back-end.
fn identify(source: &Source) -> Result<Vec<Identity>, String> {
    let mut all = Vec::new();
    for leaf in source.leaves() {
        let identity = match leaf {
            // A mirror does without disks that are gone.
            Source::File(path)
                if matches!(source, Source::Mirror(_)) && !path.try_exists().unwrap_or(true) =>
            {
                continue;
            }
            Source::File(path) => identify_file(path)?,
            Source::Lvm(volume) => {
                let path = PathBuf::from(format!("/dev/{volume}"));
                // Where it is active, it is also a device.
                identify_file(&path).unwrap_or_else(|_| Identity::Export(leaf.to_string()))
            }
            // Spelled otherwise, the same export is not noticed.
            Source::Nbd(address) => Identity::Export(address.to_string()),
            Source::Null { .. } | Source::Stripe { .. } | Source::Mirror(_) => continue,
        };
        if all.contains(&identity) {
            return Err(format!("path \"{source}\" names one storage twice"));
        }
        all.push(identity);
    }
    Ok(all)
}

fn identify_file(path: &Path) -> Result<Identity, String> {
    let metadata = fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!(
                "path {path:?} does not exist; `vblk create {} SIZE` makes an image",
                path.display()
            )
        }
        _ => format!("path {path:?}: {error}"),
    })?;
    let kind = metadata.file_type();
    if kind.is_block_device() {
        Ok(Identity::Device(metadata.rdev()))
    } else if kind.is_file() {
        Ok(Identity::File(metadata.dev(), metadata.ino()))
    } else {
        Err(format!(
            "path {path:?} is neither a file nor a block device"
        ))
    }
}

/// Gives every disk a name: its own, or its file's stem, numbered where that is taken.
fn name_all(disks: Vec<Placed>) -> Vec<Disk> {
    let mut taken: Vec<Name> = disks
        .iter()
        .filter_map(|(_, disk)| disk.name.clone())
        .collect();
    let named = disks.into_iter().map(|(_, disk)| {
        let name = disk.name.clone().unwrap_or_else(|| {
            let stem = disk.path.stem();
            let mut names = std::iter::once(stem.clone()).chain((2..).map(|n| stem.numbered(n)));
            let name = names.find(|name| !taken.contains(name)).unwrap_or(stem);
            taken.push(name.clone());
            name
        });
        disk.complete(name)
    });
    named.collect()
}

fn invalid(place: &Place, message: String) -> ConfigError {
    ConfigError::Invalid {
        place: place.clone(),
        message,
    }
}

#[cfg(test)]
mod tests;
