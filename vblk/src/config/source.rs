//! Where a disk's bytes are, as one string: `/path`, `null:4G`, `stripe:64K:/dev/a|/dev/b`,
//! `mirror:/dev/a|/dev/b`.
//!
//! What is before the first colon says which kind it is; nothing else does, least of all content.
//! A file whose name begins like that is written `./null:…`.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use towpath_common::config::{ByteSize, Name, ValueError};

use crate::storage::lvm::Volume;
use crate::storage::nbd::address::{Address, Endpoint, is_address};

/// Where a disk's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// A file or a block device, which must exist.
    File(PathBuf),
    /// Nowhere: reads give zeroes, writes vanish. For measuring the path to the disk.
    Null {
        /// The capacity it shows.
        size: ByteSize,
    },
    /// An export of an NBD server: `nbd:unix:/path[:export]` or `nbd://host[:port][/export]`.
    Nbd(Address),
    /// A logical volume: `lvm:vg/lv`.
    Lvm(Volume),
    /// Chunks in turn on several disks.
    Stripe {
        /// Bytes on one disk before the next one's turn.
        chunk: ByteSize,
        /// The disks.
        of: Vec<Source>,
    },
    /// The same on several disks.
    Mirror(Vec<Source>),
}

/// Announces the null back-end.
const NULL: &str = "null:";
/// The null back-end's capacity is a multiple of this, the largest block size.
const NULL_ALIGN_BYTES: u64 = 4096;
/// Announces a logical volume.
const LVM: &str = "lvm:";
/// Announces a stripe.
const STRIPE: &str = "stripe:";
/// Announces a mirror.
const MIRROR: &str = "mirror:";
/// Between the disks of a composed one.
const BETWEEN: char = '|';

fn invalid(text: &str, rule: &'static str) -> ValueError {
    ValueError::form("path", text, rule)
}

impl Source {
    /// The name of a disk that was not given one.
    pub(super) fn stem(&self) -> Name {
        match self {
            Self::File(path) => {
                Name::sanitized(&path.file_stem().unwrap_or_default().to_string_lossy())
            }
            Self::Null { .. } => Name::sanitized("null"),
            Self::Nbd(address) if address.export.is_empty() => match &address.endpoint {
                Endpoint::Unix(path) => {
                    Name::sanitized(&path.file_stem().unwrap_or_default().to_string_lossy())
                }
                Endpoint::Tcp { host, .. } => Name::sanitized(host),
            },
            Self::Nbd(address) => Name::sanitized(&address.export),
            Self::Lvm(volume) => Name::sanitized(&volume.lv),
            Self::Stripe { .. } => Name::sanitized("stripe"),
            Self::Mirror(_) => Name::sanitized("mirror"),
        }
    }

    /// The storages it stands on that are not composed of others.
    pub(crate) fn leaves(&self) -> Vec<&Source> {
        match self {
            Self::Stripe { of, .. } | Self::Mirror(of) => {
                of.iter().flat_map(Source::leaves).collect()
            }
            leaf => vec![leaf],
        }
    }

    fn null(size: &str, text: &str) -> Result<Self, ValueError> {
        let size: ByteSize = size.parse()?;
        if size.bytes() == 0 || !size.bytes().is_multiple_of(NULL_ALIGN_BYTES) {
            let rule = "the size of the null back-end must be a positive multiple of 4096";
            return Err(invalid(text, rule));
        }
        Ok(Self::Null { size })
    }

    fn stripe(rest: &str, text: &str) -> Result<Self, ValueError> {
        let Some((chunk, of)) = rest.split_once(':') else {
            return Err(invalid(
                text,
                "write stripe:CHUNK:DISK|DISK, such as stripe:64K:/dev/a|/dev/b",
            ));
        };
        Ok(Self::Stripe {
            chunk: chunk.parse()?,
            of: children(of, text)?,
        })
    }
}

/// The disks of a composed one.
fn children(of: &str, text: &str) -> Result<Vec<Source>, ValueError> {
    let all: Result<Vec<Source>, _> = of
        .split(BETWEEN)
        .map(|s| Source::try_from(s.to_owned()))
        .collect();
    let all = all?;
    if all.len() < 2 {
        return Err(invalid(text, "name two disks or more, with | between them"));
    }
    if !all
        .iter()
        .all(|s| matches!(s, Source::File(_) | Source::Nbd(_) | Source::Lvm(_)))
    {
        let rule = "a part of a disk is a file, a block device, a logical volume or an NBD export";
        return Err(invalid(text, rule));
    }
    Ok(all)
}

impl std::str::FromStr for Source {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Source::try_from(text.to_owned())
    }
}

impl TryFrom<String> for Source {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        if let Some(size) = text.strip_prefix(NULL) {
            Self::null(size, &text)
        } else if let Some(rest) = text.strip_prefix(STRIPE) {
            Self::stripe(rest, &text)
        } else if let Some(name) = text.strip_prefix(LVM) {
            let rule = "write lvm:GROUP/VOLUME";
            let volume = Volume::parse(name).ok_or_else(|| invalid(&text, rule))?;
            Ok(Self::Lvm(volume))
        } else if let Some(of) = text.strip_prefix(MIRROR) {
            Ok(Self::Mirror(children(of, &text)?))
        } else if is_address(&text) {
            let address = text.parse::<Address>();
            address.map(Self::Nbd).map_err(|rule| invalid(&text, rule))
        } else if text.is_empty() || text.contains('\0') {
            let rule = "name a file or block device, or write null:SIZE";
            Err(invalid(&text, rule))
        } else {
            Ok(Self::File(text.into()))
        }
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Null { size } => write!(f, "{NULL}{size}"),
            Self::Nbd(address) => address.fmt(f),
            Self::Lvm(volume) => write!(f, "{LVM}{volume}"),
            Self::Stripe { chunk, of } => {
                write!(f, "{STRIPE}{chunk}:")?;
                list(f, of)
            }
            Self::Mirror(of) => {
                f.write_str(MIRROR)?;
                list(f, of)
            }
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, of: &[Source]) -> fmt::Result {
    for (i, source) in of.iter().enumerate() {
        if i > 0 {
            write!(f, "{BETWEEN}")?;
        }
        write!(f, "{source}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Source, ValueError> {
        Source::try_from(text.to_owned())
    }

    #[test]
    fn every_kind_is_written_as_it_is_read() {
        for text in [
            "/a/b.img",
            "null:4G",
            "./null:x",
            "stripe:64K:/dev/a|b.img",
            "nbd:unix:/a:e",
            "mirror:/dev/a|nbd://h:10809/e",
            "lvm:vg-0/a.b_c+1",
            "mirror:lvm:vg/a|lvm:vg/b",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        let stripe = parse("stripe:64K:/a|/b|/c").unwrap();
        assert_eq!(stripe.leaves().len(), 3);
    }

    #[test]
    fn what_is_no_storage_says_how_to_write_one() {
        for (text, part) in [
            ("", "name a file"),
            ("null:5", "multiple of 4096"),
            ("stripe:/a|/b", "stripe:CHUNK:DISK"),
            ("stripe:64K:/a", "two disks"),
            ("mirror:/a", "two disks"),
            ("mirror:/a|null:4K", "a part of a disk"),
            ("stripe:64K:/a|", "name a file"),
            ("stripe:64K:/a|null:4K", "an NBD export"),
            ("nbd:/x", "nbd:unix:/path"),
            ("lvm:vg", "lvm:GROUP/VOLUME"),
            ("lvm:vg/-x", "lvm:GROUP/VOLUME"),
            ("lvm:vg/..", "lvm:GROUP/VOLUME"),
            ("lvm:v g/a", "lvm:GROUP/VOLUME"),
            ("lvm:a/b/c", "lvm:GROUP/VOLUME"),
            ("stripe:x:/a|/b", "x"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
