//! The catalogue: storages by name, and what may live on each.
//!
//! A storage is a directory. A disk on it is written `@NAME/file`; one that is written by its path
//! and lies in the directory is on it all the same. A storage says what it holds: disks, which may
//! be written, or images, which may not.

use std::collections::HashSet;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use towpath_common::config::{ConfigError, Name, Place, ValueError};

use super::disk::DiskTable;
use super::source::Source;

/// Announces a file on a storage.
const ON: char = '@';

/// A universally unique identifier, as text in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uuid(String);

impl TryFrom<String> for Uuid {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        let parts: Vec<&str> = text.split('-').collect();
        let lengths = [8, 4, 4, 4, 12];
        let hex = |p: &&str| p.bytes().all(|b| b.is_ascii_hexdigit());
        let fits = parts.len() == lengths.len()
            && parts
                .iter()
                .zip(lengths)
                .all(|(p, n)| p.len() == n && hex(p));
        if fits {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            let rule = "write 8-4-4-4-12 hexadecimal digits, as uuidgen does";
            Err(ValueError::form("uuid", text, rule))
        }
    }
}

impl From<Uuid> for String {
    fn from(uuid: Uuid) -> Self {
        uuid.0
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What may live on a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Disks, which guests may write.
    Disks,
    /// Images, which nobody writes.
    Images,
}

/// The table `[[storage]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    /// What disks call it.
    pub name: Name,
    /// What it is called wherever it moves.
    pub uuid: Option<Uuid>,
    /// Its directory.
    pub path: PathBuf,
    /// What may live there.
    #[serde(default = "everything")]
    pub content: Vec<Content>,
}

fn everything() -> Vec<Content> {
    vec![Content::Disks, Content::Images]
}

/// Check storages against each other.
pub(super) fn check(storages: Vec<(Place, Storage)>) -> Result<Vec<Storage>, ConfigError> {
    let mut names = HashSet::new();
    let mut uuids = HashSet::new();
    for (place, storage) in &storages {
        let name = storage.name.as_str();
        let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
        let message = if !names.insert(name) {
            format!("there are two storages of the name \"{name}\"")
        } else if storage.uuid.as_ref().is_some_and(|u| !uuids.insert(u)) {
            format!("storage \"{name}\" has the uuid of another one")
        } else if !storage.path.is_absolute() || !storage.path.components().all(plain) {
            format!("storage \"{name}\": its path must be absolute, without \"..\"")
        } else if storage.content.is_empty() {
            format!("storage \"{name}\": content = [] lets nothing live there")
        } else {
            continue;
        };
        let place = place.clone();
        return Err(ConfigError::Invalid { place, message });
    }
    Ok(storages.into_iter().map(|(_, storage)| storage).collect())
}

/// Find the files of `disk` that are on a storage, and refuse what may not live there.
pub(super) fn place(disk: &mut DiskTable, storages: &[Storage]) -> Result<(), String> {
    for path in disk.path.files_mut() {
        if let Some(rest) = path.to_str().and_then(|p| p.strip_prefix(ON)) {
            *path = find(rest, storages)?;
        }
        let Some(storage) = storages.iter().find(|s| path.starts_with(&s.path)) else {
            continue;
        };
        let (name, content) = (&storage.name, &storage.content);
        if !disk.read_only && !content.contains(&Content::Disks) {
            return Err(format!(
                "path {path:?}: storage \"{name}\" holds images only; write read_only = true, or \
                 let content name \"disks\""
            ));
        }
    }
    Ok(())
}

fn find(rest: &str, storages: &[Storage]) -> Result<PathBuf, String> {
    let (name, file) = rest.split_once('/').unwrap_or((rest, ""));
    let names = || {
        let names: Vec<&str> = storages.iter().map(|s| s.name.as_str()).collect();
        names.join(", ")
    };
    let storage = storages
        .iter()
        .find(|s| s.name.as_str() == name)
        .ok_or_else(|| {
            format!(
                "path \"@{rest}\": no storage \"{name}\"; there are: {}",
                names()
            )
        })?;
    let file = Path::new(file);
    let inside = |c: Component<'_>| matches!(c, Component::Normal(_));
    if file.as_os_str().is_empty() || !file.components().all(inside) {
        return Err(format!(
            "path \"@{rest}\": write @STORAGE/FILE, without \"..\""
        ));
    }
    Ok(storage.path.join(file))
}

impl Source {
    /// The files it names.
    fn files_mut(&mut self) -> Vec<&mut PathBuf> {
        match self {
            Source::File(path) => vec![path],
            Source::Stripe { of, .. } | Source::Mirror(of) => {
                of.iter_mut().flat_map(Source::files_mut).collect()
            }
            Source::Null { .. } | Source::Nbd(_) | Source::Lvm(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};

    fn load(dir: &Path, text: &str) -> Result<Config, String> {
        let file = dir.join("vblk.toml");
        let text = text.replace("DIR", dir.to_str().unwrap());
        std::fs::write(&file, text).unwrap();
        let sources = Sources {
            file: Some(file),
            ..Sources::default()
        };
        Config::load(&sources).map_err(|e| e.to_string())
    }

    const ISOS: &str = "[[storage]]\nname = \"isos\"\npath = \"DIR\"\ncontent = [\"images\"]\n\
                        uuid = \"01234567-89AB-cdef-0123-456789abcdef\"\n";

    #[test]
    fn a_disk_is_found_on_its_storage_and_only_what_may_live_there() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.iso"), [0; 512]).unwrap();
        let disk = |path: &str, more: &str| {
            let text = format!("{ISOS}[[disk]]\npath = \"{path}\"\nsocket = \"/run/a\"\n{more}");
            load(dir.path(), &text)
        };
        let config = disk("@isos/a.iso", "read_only = true").unwrap();
        let path = dir.path().join("a.iso");
        assert_eq!(config.disks[0].path, Source::File(path));
        let uuid = config.storages[0].uuid.as_ref().unwrap().to_string();
        assert_eq!(uuid, "01234567-89ab-cdef-0123-456789abcdef");
        for path in ["@isos/a.iso", "DIR/a.iso"] {
            let error = disk(path, "").unwrap_err();
            assert!(
                error.contains("holds images only; write read_only = true"),
                "{error}"
            );
        }
        for path in ["@isos", "@isos/", "@isos/../a.iso", "@isos//a.iso/.."] {
            let error = disk(path, "read_only = true").unwrap_err();
            assert!(error.contains("write @STORAGE/FILE"), "{path}: {error}");
        }
        let error = disk("@iso/a.iso", "read_only = true").unwrap_err();
        assert!(
            error.contains("no storage \"iso\"; there are: isos"),
            "{error}"
        );
    }

    #[test]
    fn storages_and_disks_are_told_apart_by_name_and_uuid() {
        let dir = tempfile::tempdir().unwrap();
        let error = |text: &str| load(dir.path(), text).unwrap_err();
        assert!(error(&ISOS.repeat(2)).contains("two storages of the name"));
        let other = ISOS.replace("\"isos\"", "\"others\"");
        assert!(error(&format!("{ISOS}{other}")).contains("the uuid of another one"));
        let nothing = ISOS.replace("[\"images\"]", "[]");
        assert!(error(&nothing).contains("lets nothing live there"));
        assert!(error(&ISOS.replace("DIR", "rel")).contains("must be absolute"));
        assert!(error(&ISOS.replace("89AB", "89AX")).contains("hexadecimal"));
        let disk = "[[disk]]\npath = \"null:1M\"\nsocket = \"/run/N\"\n\
                    uuid = \"01234567-89ab-cdef-0123-456789abcdef\"\n";
        let two = format!("{}{}", disk.replace('N', "1"), disk.replace('N', "2"));
        assert!(error(&two).contains("give each disk its own uuid"));
    }
}
