//! Room: how many bytes there are behind a disk, found by a new look, and made more or fewer.
//!
//! A disk stands on parts: itself, or the disks it is made of. A part that is a file is given a
//! length; any other has the size its own tools gave it, a device in its system, an export on its
//! server. The disk can have a size if each part has its share of it, or is given it. Either all
//! parts get theirs or none does.

use std::sync::Arc;

use rustix::fs::{SeekFrom, fsync, ftruncate, seek};
use rustix::io::Errno;

use super::Storage;
use super::mirror::{Mirror, MirrorError};
use super::nbd::Export;
use super::stripe::Stripe;
use crate::config::Source;
use crate::disk::{BlockSize, Disk};

/// Why a disk cannot have a size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum RoomError {
    /// Of no storage of this kind.
    #[error("{0}")]
    Unable(&'static str),
    /// The length of a part cannot be found or set.
    #[error("{name}: its length cannot be {what}: {errno}")]
    Length {
        name: String,
        what: &'static str,
        errno: Errno,
    },
    /// Blocks are whole.
    #[error("{size} bytes are not whole blocks of {block}")]
    Blocks { size: u64, block: u32 },
    /// Chunks are whole on each disk of a stripe.
    #[error(
        "{size} bytes are not whole chunks of {chunk} on each of {count} disks: name a multiple of \
         {granule}"
    )]
    Chunks {
        size: u64,
        chunk: u64,
        count: usize,
        granule: u64,
    },
    /// A device is as it is.
    #[error(
        "the device has {has} bytes, not {size}: resize it first (lvextend, …), then say `vblk \
         disk resize` without a size"
    )]
    Device { has: u64, size: u64 },
    /// Devices are as they are.
    #[error(
        "its disks have room for {room} bytes, not {size}, and none is a file that can be given \
         another length: resize them first (lvextend, …), then say `vblk disk resize` without a \
         size"
    )]
    Devices { room: u64, size: u64 },
    /// An export is as it is.
    #[error(
        "the export has {has} bytes, not {size}: resize it on its server first, then say \
         `vblk disk resize` without a size"
    )]
    Export { has: u64, size: u64 },
    /// What its server says now.
    #[error("{name}: {why}")]
    Server { name: String, why: String },
    /// An export that lost what is being served.
    #[error(
        "{name} has {has} bytes now, and had {had} when it was opened: an export that became \
         smaller is another image"
    )]
    Smaller { name: String, has: u64, had: u64 },
    /// A part is too small for its share.
    #[error(
        "{name} has {has} bytes and needs {needs}: extend it first (lvextend, …), then say this \
         again"
    )]
    Share { name: String, has: u64, needs: u64 },
    /// Its record, or a disk that has not all.
    #[error("{0}")]
    Mirror(String),
    /// A file that is not to be written.
    #[error("it is served read-only: grow its file by other means")]
    ReadOnly,
}

/// A part of a disk.
#[derive(Debug)]
struct Part {
    /// What the configuration calls it.
    name: String,
    disk: Arc<Disk>,
    /// Bytes it has.
    has: u64,
}

impl Part {
    fn look(name: String, disk: &Arc<Disk>) -> Result<Part, RoomError> {
        if let Storage::Nbd(export) = disk.storage() {
            let (disk, had) = (Arc::clone(disk), export.shared().size());
            return match export.look() {
                Ok(has) if has < had => Err(RoomError::Smaller { name, has, had }),
                Ok(has) => Ok(Part { name, disk, has }),
                Err(why) => Err(RoomError::Server { name, why }),
            };
        }
        let file = disk.file().ok_or_else(|| unable(disk.storage()))?;
        let (disk, what) = (Arc::clone(disk), "found");
        match seek(file, SeekFrom::End(0)) {
            Ok(has) => Ok(Part { name, disk, has }),
            Err(errno) => Err(RoomError::Length { name, what, errno }),
        }
    }

    /// True if it is given a length here.
    fn is_given(&self) -> bool {
        matches!(self.disk.storage(), Storage::File(_)) && !self.disk.read_only()
    }

    /// The export it is, if its connections must be made anew for it to have `needs` bytes.
    fn renews(&self, needs: u64) -> Option<&Export> {
        match self.disk.storage() {
            Storage::Nbd(export) if needs > export.shared().size() => Some(export),
            _ => None,
        }
    }

    /// It has `has` bytes now, as a part of `whole`.
    fn settle(&self, has: u64, whole: &Arc<Disk>) {
        let has = match self.disk.storage() {
            Storage::Nbd(export) => export.shared().size(),
            _ => has,
        };
        if !Arc::ptr_eq(&self.disk, whole) {
            self.disk.set_size(self.disk.block().floor(has));
        }
    }

    fn set_length(&self, len: u64, durable: bool) -> Result<(), RoomError> {
        let Some(file) = self.disk.file() else {
            return Ok(());
        };
        let set = ftruncate(file, len);
        let kept = set.and_then(|()| if durable { fsync(file) } else { Ok(()) });
        kept.map_err(|errno| RoomError::Length {
            name: self.name.clone(),
            what: "set",
            errno,
        })
    }
}

/// Why storage of this kind has the size it has.
fn unable(storage: &Storage) -> RoomError {
    RoomError::Unable(match storage {
        Storage::Pinned(_) => {
            "its extents were pinned when it was opened, and a part that is added has none: stop \
             serving it, extend the file with written blocks (dd, not truncate), and serve it anew"
        }
        Storage::Segments(_) => {
            "its segments were read when it was opened: after lvextend, restart vblk, which guests \
             do not notice; the one that follows reads them anew and tells the guest"
        }
        _ => "nothing is known of its size but what was found when it was opened",
    })
}

/// What there is behind a disk.
#[derive(Debug)]
pub(crate) struct Room {
    disk: Arc<Disk>,
    /// Bytes of it.
    was: u64,
    /// None of a null disk, which has any size.
    parts: Vec<Part>,
}

impl Room {
    /// Look at what is behind `disk`, which the configuration calls `source`.
    ///
    /// # Errors
    /// [`RoomError`] if that cannot be found, or cannot change.
    pub(crate) fn of(disk: &Arc<Disk>, source: &Source) -> Result<Room, RoomError> {
        let parts = match (disk.storage(), source) {
            (Storage::Null, _) => Vec::new(),
            (Storage::Stripe(stripe), Source::Stripe { of, .. }) => {
                let all = of.iter().zip(stripe.children());
                let parts = all.map(|(one, child)| Part::look(one.to_string(), child));
                parts.collect::<Result<_, _>>()?
            }
            (Storage::Mirror(mirror), Source::Mirror(of)) => {
                let refused = |e: MirrorError| RoomError::Mirror(e.to_string());
                mirror.expect_whole().map_err(refused)?;
                let all = of.iter().zip(mirror.disks());
                let parts = all.map(|(one, member)| match member {
                    Some(member) => Part::look(one.to_string(), &member),
                    None => Err(RoomError::Mirror(format!("{one} is not there"))),
                });
                parts.collect::<Result<_, _>>()?
            }
            _ => vec![Part::look(source.to_string(), disk)?],
        };
        let (disk, was) = (Arc::clone(disk), disk.size());
        Ok(Room { disk, was, parts })
    }

    fn stripe(&self) -> Option<&Stripe> {
        match self.disk.storage() {
            Storage::Stripe(stripe) => Some(stripe),
            _ => None,
        }
    }

    fn mirror(&self) -> Option<&Mirror> {
        match self.disk.storage() {
            Storage::Mirror(mirror) => Some(mirror),
            _ => None,
        }
    }

    /// What a size is a multiple of, in bytes.
    fn block(&self) -> BlockSize {
        let block = self.disk.block();
        // A mirror's disks may be opened with other blocks later, and its record knows its size.
        self.mirror().map_or(block, |_| block.max(BlockSize::PAGE))
    }

    /// The largest size there is room for now.
    pub(crate) fn size(&self) -> u64 {
        let smallest = self.parts.iter().map(|part| part.has).min();
        match (smallest, self.stripe()) {
            (None, _) => self.disk.size(),
            (Some(has), Some(stripe)) => stripe.size_over(has),
            (Some(has), None) => self.block().floor(has),
        }
    }

    /// Bytes of each part that a disk of `size` bytes needs.
    fn share(&self, size: u64) -> u64 {
        if self.stripe().is_some() {
            size / self.parts.len().max(1) as u64
        } else {
            size
        }
    }

    /// See whether the disk can have `size` bytes.
    ///
    /// # Errors
    /// [`RoomError`] that says why not, and what to do.
    pub(crate) fn check(&self, size: u64) -> Result<(), RoomError> {
        self.check_granule(size)?;
        let room = self.size();
        let needs = self.share(size);
        let small = |part: &&Part| part.has < needs && !part.is_given();
        let is_file = |part: &Part| matches!(part.disk.storage(), Storage::File(_));
        if self.parts.is_empty() || size == room {
            return Ok(());
        }
        match (self.parts.as_slice(), self.disk.storage()) {
            ([Part { has, .. }], Storage::Device(_)) => {
                return Err(RoomError::Device { has: *has, size });
            }
            ([Part { has, .. }], Storage::Nbd(_)) => {
                return Err(RoomError::Export { has: *has, size });
            }
            _ => {}
        }
        match self.parts.iter().find(small) {
            Some(part) if is_file(part) => return Err(RoomError::ReadOnly),
            Some(Part { name, has, .. }) => {
                let (name, has) = (name.clone(), *has);
                return Err(RoomError::Share { name, has, needs });
            }
            None => {}
        }
        // The record of a mirror says how much of its disks is used.
        if self.mirror().is_none() && !self.parts.iter().any(is_file) {
            return Err(RoomError::Devices { room, size });
        }
        Ok(())
    }

    fn check_granule(&self, size: u64) -> Result<(), RoomError> {
        let block = self.block();
        if let Some(stripe) = self.stripe() {
            let (chunk, count) = (stripe.chunk(), self.parts.len());
            let granule = stripe.granule();
            if size == 0 || !size.is_multiple_of(granule) {
                return Err(RoomError::Chunks {
                    size,
                    chunk,
                    count,
                    granule,
                });
            }
        } else if size == 0 || !block.divides(size) {
            let block = block.bytes();
            return Err(RoomError::Blocks { size, block });
        }
        Ok(())
    }

    /// The exports among its parts whose connections must be made anew for a disk of `size` bytes,
    /// and what they have.
    fn renewed(&self, size: u64) -> impl Iterator<Item = (&Export, u64)> {
        let needs = self.share(size);
        let all = self.parts.iter();
        all.filter_map(move |part| Some((part.renews(needs)?, part.has)))
    }

    /// Expect the exports that must be connected to anew for `size` bytes to have what they have
    /// now: a connection that broke comes back for that alone. None if there is none; then nothing
    /// has to be at rest for the disk to grow.
    pub(crate) fn expect(&self, size: u64) -> Option<Expected<'_>> {
        let expected = self.renewed(size).map(|(export, has)| {
            let had = export.shared().size();
            export.expect(has);
            (export, had)
        });
        let expected: Vec<_> = expected.collect();
        (!expected.is_empty()).then_some(Expected(expected))
    }

    /// Make room for `size` bytes, which are more than there were.
    ///
    /// # Errors
    /// [`RoomError`]; the disk has the size it had then.
    pub(crate) fn grow(&self, size: u64) -> Result<(), RoomError> {
        self.make(size)?;
        self.note(size)
    }

    /// Cut off what lies past `size` bytes, which nobody asks for any more.
    ///
    /// # Errors
    /// [`RoomError`]; the disk has the size it had then.
    pub(crate) fn cut(&self, size: u64) -> Result<(), RoomError> {
        self.note(size)?;
        match self.make(size) {
            Err(error) if self.mirror().is_some() => {
                // Its record knows the size.
                tracing::warn!(%error, "a file of a mirror is longer than it need be");
                Ok(())
            }
            made => made,
        }
    }

    /// Have a mirror write down its size, durably.
    fn note(&self, size: u64) -> Result<(), RoomError> {
        let Some(mirror) = self.mirror() else {
            return Ok(());
        };
        // Files that ended where the mirror did were extended by zeroes.
        let ended = |part: &Part| part.is_given() && part.has == self.was;
        let noted = mirror.resize(size, self.parts.iter().all(ended));
        noted.map_err(|e| RoomError::Mirror(e.to_string()))
    }

    /// Give the parts that are files the length that a disk of `size` bytes needs: those that are
    /// shorter, or, where all have more than that, all. A mirror that grows leaves them longer.
    ///
    /// # Errors
    /// [`RoomError`]; all are as they were then.
    fn make(&self, size: u64) -> Result<(), RoomError> {
        let needs = self.share(size);
        let cut = self.size() > size && (self.mirror().is_none() || size < self.was);
        let wrong = |part: &&Part| {
            if cut {
                part.has > needs
            } else {
                part.has < needs
            }
        };
        let given = self.parts.iter().filter(|part| part.is_given());
        let mut done: Vec<&Part> = Vec::new();
        for part in given.filter(wrong) {
            done.push(part);
            // A mirror's record must not know of bytes that a power cut takes away.
            if let Err(error) = part.set_length(needs, self.mirror().is_some()) {
                for part in done {
                    if let Err(error) = part.set_length(part.has, false) {
                        tracing::warn!(disk = part.name, %error, "it has another length now");
                    }
                }
                return Err(error);
            }
        }
        for part in &self.parts {
            let is_given = done.iter().any(|given| std::ptr::eq(*given, part));
            part.settle(if is_given { needs } else { part.has }, &self.disk);
        }
        Ok(())
    }
}

/// Exports that are expected to have another size than they had; what they had is expected again
/// when this is dropped.
#[derive(Debug)]
pub(crate) struct Expected<'a>(Vec<(&'a Export, u64)>);

impl Expected<'_> {
    /// The disk is at rest and flushed: connect to them anew.
    pub(crate) fn renew(mut self) {
        for (export, _) in std::mem::take(&mut self.0) {
            export.renew();
        }
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        for (export, had) in &self.0 {
            export.expect(*had);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, memfd_create};

    use super::*;
    use crate::disk::Serial;
    use crate::storage::Shape;

    const CHUNK: u64 = 64 << 10;

    /// A file of `len` bytes in memory, which cannot be done what is sealed.
    fn file(len: u64, seals: SealFlags) -> Arc<Disk> {
        let file = memfd_create("part", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, len).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        let shape = Shape {
            size: len & !511,
            ..*Disk::ram(len).shape()
        };
        Arc::new(Disk::of(
            Storage::File(file),
            shape,
            Serial::new("part").unwrap(),
        ))
    }

    fn plain(len: u64) -> Arc<Disk> {
        file(len, SealFlags::empty())
    }

    fn device() -> Arc<Disk> {
        // /dev/null, which has no bytes.
        Arc::new(Disk::ram(1 << 20).like_a_device())
    }

    fn stripe(parts: &[&Arc<Disk>]) -> Arc<Disk> {
        let parts = parts.iter().map(|part| Arc::clone(part)).collect();
        let serial = Serial::new("stripe").unwrap();
        Arc::new(Stripe::disk(parts, CHUNK, serial).unwrap())
    }

    fn room(disk: &Arc<Disk>) -> Room {
        let source = match disk.storage() {
            Storage::Stripe(_) => "stripe:64K:/a|/b",
            _ => "/a",
        };
        Room::of(disk, &source.parse().unwrap()).unwrap()
    }

    fn lengths(parts: &[&Arc<Disk>]) -> Vec<u64> {
        let length = |part: &&Arc<Disk>| fstat(part.file().unwrap().as_fd()).unwrap().st_size;
        let lengths = parts.iter().map(length);
        lengths.map(|len| u64::try_from(len).unwrap()).collect()
    }

    #[test]
    fn a_stripe_has_room_for_as_many_chunks_as_its_smallest_part() {
        let (a, b) = (plain(10 * CHUNK + 5), plain(7 * CHUNK + 512));
        let disk = stripe(&[&a, &b]);
        assert_eq!(room(&disk).size(), disk.size());
        ftruncate(b.file().unwrap(), 12 * CHUNK - 1).unwrap();
        assert_eq!(room(&disk).size(), 20 * CHUNK);
        room(&disk).check(20 * CHUNK).unwrap();
        room(&disk).make(20 * CHUNK).unwrap();
        assert_eq!(lengths(&[&a, &b]), [655_365, 786_431], "as they were");
        assert_eq!((a.size(), b.size()), (655_360, 785_920));
    }

    #[test]
    fn files_of_a_stripe_are_extended_and_cut() {
        let (a, b) = (plain(10 * CHUNK), plain(20 * CHUNK));
        let disk = stripe(&[&a, &b]);
        for (size, is) in [(30, [15, 20]), (40, [20, 20]), (60, [30, 30]), (2, [1, 1])] {
            room(&disk).check(size * CHUNK).unwrap();
            room(&disk).make(size * CHUNK).unwrap();
            let is = is.map(|chunks| chunks * 65_536);
            assert_eq!(lengths(&[&a, &b]), is);
            assert_eq!(room(&disk).size(), size * CHUNK);
            assert_eq!((a.size(), b.size()), (is[0], is[1]));
        }
    }

    #[test]
    fn a_part_that_cannot_grow_leaves_the_others_as_they_were() {
        let (a, b) = (plain(CHUNK), file(CHUNK, SealFlags::GROW));
        let disk = stripe(&[&a, &b]);
        room(&disk).check(6 * CHUNK).unwrap();
        let error = room(&disk).make(6 * CHUNK).unwrap_err().to_string();
        assert!(error.starts_with("/b: its length cannot be set"), "{error}");
        assert_eq!(lengths(&[&a, &b]), [65_536; 2]);
        assert_eq!((a.size(), b.size()), (CHUNK, CHUNK));

        let (a, b) = (plain(4 * CHUNK), file(4 * CHUNK, SealFlags::SHRINK));
        let disk = stripe(&[&a, &b]);
        assert!(room(&disk).make(2 * CHUNK).is_err());
        assert_eq!(lengths(&[&a, &b]), [4 * 65_536; 2]);
    }

    #[test]
    fn sizes_that_cannot_be_say_what_can() {
        let (a, b) = (plain(CHUNK), plain(CHUNK));
        let disk = stripe(&[&a, &b]);
        for size in [0, 1, CHUNK, 3 * CHUNK, u64::MAX, u64::MAX - 511] {
            let error = room(&disk).check(size).unwrap_err();
            let granule = 2 * CHUNK;
            assert!(matches!(error, RoomError::Chunks { granule: g, .. } if g == granule));
            assert!(
                error.to_string().contains("a multiple of 131072"),
                "{error}"
            );
        }
        // The most that is a multiple is as much as two files can have.
        let most = u64::MAX / (2 * CHUNK) * (2 * CHUNK);
        room(&disk).check(most).unwrap();
        room(&disk).make(most).unwrap();
        assert_eq!(room(&disk).size(), most);

        let one = plain(CHUNK);
        let blocks = room(&one).check(CHUNK + 1).unwrap_err();
        assert_eq!(
            blocks.to_string(),
            "65537 bytes are not whole blocks of 512"
        );
        assert!(room(&one).check(u64::MAX - 511).is_ok());
        assert!(room(&one).make(u64::MAX - 511).is_err());
    }

    #[test]
    fn a_device_must_have_its_share() {
        let (a, dev) = (plain(CHUNK), device());
        let disk = stripe(&[&a, &dev]);
        let error = room(&disk).check(4 * CHUNK).unwrap_err().to_string();
        let expected = "/b has 0 bytes and needs 131072: extend it first";
        assert!(error.starts_with(expected), "{error}");
        let error = room(&dev).check(CHUNK).unwrap_err().to_string();
        assert!(
            error.starts_with("the device has 0 bytes, not 65536"),
            "{error}"
        );
    }

    #[test]
    fn what_has_any_size_or_none_of_its_own() {
        let null = Arc::new(Disk::null(CHUNK));
        let room = |disk: &Arc<Disk>| Room::of(disk, &"null:4K".parse().unwrap());
        assert_eq!(room(&null).unwrap().size(), CHUNK);
        room(&null).unwrap().check(u64::MAX - 511).unwrap();
        room(&null).unwrap().make(u64::MAX - 511).unwrap();
        assert!(room(&null).unwrap().check(5).is_err());
        let ram = Arc::new(Disk::ram(CHUNK));
        assert!(matches!(room(&ram), Err(RoomError::Unable(_))));
    }
}
