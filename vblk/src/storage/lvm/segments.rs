//! A linear or striped volume on its physical volumes, past device-mapper.
//!
//! Its segments are fetched when it is opened, and are right as long as nobody changes the volume:
//! moves it (pvmove), takes a snapshot of it, puts a cache before it. Each of these loads another
//! table into device-mapper, and each changes the group's metadata, whose number (`vg_seqno`) is
//! the map's generation. A thread looks ten times a second at what the volume stands on by sysfs,
//! and every ten seconds at the number. Where the segments are as before, as when another volume of
//! the group was changed, a new number is all that changes. Else the disk goes on through
//! device-mapper, and says so; where the kernel has none, its requests fail.
//!
//! Nothing new is done by segments that do not hold any more; what is in flight by them ends first,
//! and is made durable where it is (`crate::host::settle`). LVM asks nobody before it changes a
//! volume, so it cannot be made to wait for that.
//!
//! Between a change and the next look there is a tenth of a second in which a block may be written
//! that is not the volume's any more. That is why it is an option; `vblk snapshot` knows the disk
//! and has no such gap.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::report::{self, Lv, Pv, Report, Seg};
use super::{LvmError, Volume, check, has_device_mapper, open_active, unfit};
use crate::disk::{Disk, Serial, Spec};
use crate::events::MAP_BROKEN;
use crate::storage::map::{Leg, Map, Piece, Run};
use crate::storage::pinned::Watch;
use crate::storage::{Shape, Storage};

/// Time between two looks at what the volume stands on, and looks at it between two looks at the
/// group's number.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: u32 = 100;
/// Most segments of a volume.
const MAX_SEGMENTS: usize = 4096;

/// A volume served by its segments.
#[derive(Debug)]
pub struct Segments {
    volume: Volume,
    /// The physical volumes, and, last, the volume itself where it is active.
    disks: Box<[Arc<Disk>]>,
    physical: usize,
    map: Map,
    watch: Arc<Watch>,
    generation: Arc<AtomicU64>,
}

impl Segments {
    /// A disk of the segments of `volume`.
    ///
    /// # Errors
    /// [`LvmError`].
    pub(super) fn disk(volume: &Volume, spec: &Spec, serial: Serial) -> Result<Disk, LvmError> {
        let report = report::fetch(&volume.vg)?;
        let layout = Layout::of(&report, volume)?;
        let (vg, lv) = report.find(volume)?;
        let mut disks = Vec::new();
        for path in &layout.devices {
            disks.push(Arc::new(Disk::open_shared(path)?));
        }
        let physical = disks.len();
        let shapes = disks.iter().map(|d| *d.shape());
        let none = || unfit(volume, "it stands on nothing");
        let all = Shape::of_all(shapes).ok_or_else(none)?;
        let whole = layout.pieces.iter().all(|p| {
            let aligned = |leg: &Leg| all.block.divides(leg.offset);
            p.legs.iter().all(aligned) && all.block.divides(p.chunk)
        });
        if !whole {
            let why = "its segments are not in whole blocks; serve it with map = \"file\"";
            return Err(unfit(volume, why));
        }
        if has_device_mapper() {
            // Held exclusively: no mount, no other daemon.
            if lv.lv_active != "active" {
                return Err(LvmError::Inactive(volume.clone()));
            }
            disks.push(Arc::new(open_active(lv, spec)?));
        }
        let shape = Shape {
            size: layout.size(),
            ..all
        };
        let segments = Segments {
            volume: volume.clone(),
            disks: disks.into(),
            physical,
            map: Map::Volume(layout.pieces.clone().into()),
            watch: Arc::default(),
            generation: Arc::new(AtomicU64::new(vg.vg_seqno)),
        };
        segments.start_watch(layout, Path::new(&lv.lv_dm_path))?;
        Ok(Disk::of(Storage::Segments(segments), shape, serial))
    }

    /// The physical volumes, and the volume itself where it is active.
    #[must_use]
    pub fn disks(&self) -> &[Arc<Disk>] {
        &self.disks
    }

    /// How many of them are physical volumes.
    #[must_use]
    pub fn physical(&self) -> usize {
        self.physical
    }

    /// Where its bytes are on them.
    #[must_use]
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// Where its bytes are once that does not hold any more.
    #[must_use]
    pub fn fallback(&self, size: u64) -> Map {
        let whole = Run {
            child: self.physical,
            offset: 0,
            len: size,
        };
        Map::table((self.disks.len() > self.physical).then_some(whole))
    }

    /// Whether that still holds.
    #[must_use]
    pub fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Nothing is in flight by the map that broke: make what was written by it durable, so that it
    /// is not left to a device that the volume may have nothing to do with any more.
    pub(crate) fn settle(&self) -> io::Result<()> {
        self.watch.settle();
        let physical = self.disks.iter().take(self.physical);
        let files = physical.filter_map(|disk| disk.file());
        let mut synced = Ok(());
        for file in files {
            synced = synced.and(rustix::fs::fdatasync(file));
        }
        Ok(synced?)
    }

    /// The group's number when the map was last looked at.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// What is wrong, if something is.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let how = if self.disks.len() > self.physical {
            "it is served through device-mapper"
        } else {
            "its requests fail"
        };
        let volume = &self.volume;
        let broken = self.watch.is_broken();
        broken.then(|| format!("the segments of {volume} changed; {how}"))
    }

    fn start_watch(&self, layout: Layout, dm: &Path) -> Result<(), LvmError> {
        // The thread must not keep the devices open, and ends with the disk.
        let alive = Arc::downgrade(&self.generation);
        let (watch, volume) = (Arc::clone(&self.watch), self.volume.clone());
        let dm = sysfs_of(dm);
        let stands_on = dm.as_deref().map(slaves);
        let thread = std::thread::Builder::new().name("lvm-watch".to_owned());
        let started = thread.spawn(move || {
            for look in 1u32.. {
                std::thread::sleep(LOOK);
                let Some(generation) = alive.upgrade() else {
                    return;
                };
                let moved = dm.as_deref().map(slaves) != stands_on;
                if !moved && look % LOOKS != 0 {
                    continue;
                }
                match still_holds(&volume, &layout) {
                    Ok(number) if !moved => {
                        let before = generation.swap(number, Ordering::Relaxed);
                        if before != number {
                            tracing::info!(%volume, before, number, "the group changed, and the \
                                volume's segments did not");
                        }
                    }
                    other => {
                        let why = match other {
                            Ok(_) => "it stands on something else".to_owned(),
                            Err(error) => error.to_string(),
                        };
                        watch.break_off();
                        tracing::error!(name: MAP_BROKEN, %volume, why, "the volume's segments do \
                            not hold any more; it is served through device-mapper from now on, \
                            where there is one");
                        return;
                    }
                }
            }
        });
        let failed = |e| LvmError::Watch(self.volume.clone(), e);
        started.map(drop).map_err(failed)
    }
}

/// The group's number, if the segments are as they were.
pub(super) fn still_holds(volume: &Volume, layout: &Layout) -> Result<u64, LvmError> {
    let report = report::fetch(&volume.vg)?;
    let now = Layout::of(&report, volume)?;
    let (vg, _) = report.find(volume)?;
    // A volume that was extended keeps what it had.
    let kept = now.devices.starts_with(&layout.devices) && now.covers(layout);
    if kept && now.lv_uuid == layout.lv_uuid {
        Ok(vg.vg_seqno)
    } else {
        Err(unfit(volume, "its segments moved"))
    }
}

fn sysfs_of(dm: &Path) -> Option<PathBuf> {
    let device = std::fs::canonicalize(dm).ok()?;
    let name = device.file_name()?;
    let path = Path::new("/sys/block").join(name);
    path.exists().then_some(path)
}

/// What a device-mapper device stands on, by name.
fn slaves(sysfs: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(sysfs.join("slaves"))
        .into_iter()
        .flatten();
    let names = entries.flatten().map(|e| e.file_name());
    names.map(|n| n.to_string_lossy().into_owned()).collect()
}

/// Where a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    lv_uuid: String,
    pub(super) devices: Vec<PathBuf>,
    pub(super) pieces: Vec<Piece>,
}

impl Layout {
    /// Where `volume` is, if every condition is met.
    pub(super) fn of(report: &Report, volume: &Volume) -> Result<Layout, LvmError> {
        let (vg, lv) = report.find(volume)?;
        check(volume, vg, lv)?;
        if let Some(why) = obstacle(lv) {
            let why = format!("{why}; serve it with map = \"file\"");
            return Err(unfit(volume, why));
        }
        if !vg.vg_lock_type.is_empty() || !vg.vg_clustered.is_empty() {
            return Err(unfit(volume, "other hosts may change its group"));
        }
        let mut segments: Vec<&Seg> = report
            .seg
            .iter()
            .filter(|seg| seg.lv_uuid == lv.lv_uuid)
            .collect();
        segments.sort_by_key(|seg| seg.seg_start);
        if segments.len() > MAX_SEGMENTS {
            let why = format!("it has more than {MAX_SEGMENTS} segments");
            return Err(unfit(volume, why));
        }
        let mut layout = Layout {
            lv_uuid: lv.lv_uuid.clone(),
            devices: Vec::new(),
            pieces: Vec::new(),
        };
        for segment in segments {
            let piece = layout.piece(report, segment, vg.vg_extent_size);
            layout.pieces.push(piece.map_err(|why| unfit(volume, why))?);
        }
        if layout.size() == lv.lv_size && lv.lv_size > 0 {
            Ok(layout)
        } else {
            Err(unfit(volume, "its segments do not make up its size"))
        }
    }

    fn size(&self) -> u64 {
        self.pieces.iter().map(|p| p.len).sum()
    }

    /// True if all that `before` has is where it was.
    fn covers(&self, before: &Layout) -> bool {
        // The last segment may have grown.
        let mut pairs = self.pieces.iter().zip(&before.pieces);
        let same = pairs.all(|(now, then)| {
            let same_place = now.legs == then.legs && now.start == then.start;
            let same_chunks = now.chunk == then.chunk || then.legs.len() == 1;
            same_place && same_chunks && now.len >= then.len
        });
        let joined = |i: usize| {
            let (now, then) = (self.pieces.get(i), before.pieces.get(i));
            let last = i + 1 == before.pieces.len();
            now.zip(then).is_some_and(|(n, t)| last || n.len == t.len)
        };
        same && (0..before.pieces.len()).all(joined)
    }

    fn piece(&mut self, report: &Report, seg: &Seg, extent: u64) -> Result<Piece, String> {
        if !["linear", "striped"].contains(&seg.segtype.as_str()) {
            return Err(format!("a segment of it is {}", seg.segtype));
        }
        if seg.seg_start != self.size() || seg.seg_size == 0 {
            return Err(format!("there is a gap at {}", self.size()));
        }
        let mut legs = Vec::new();
        let mut total = 0;
        for range in seg.seg_le_ranges.split(',') {
            let (pv, first, count) = place(report, range, &seg.lv_uuid)?;
            let path = PathBuf::from(&pv.pv_name);
            let child = self.devices.iter().position(|d| *d == path);
            let child = child.unwrap_or_else(|| {
                self.devices.push(path);
                self.devices.len() - 1
            });
            let offset = first
                .checked_mul(extent)
                .and_then(|at| at.checked_add(pv.pe_start));
            let offset = offset.ok_or_else(|| format!("{range:?} is beyond all devices"))?;
            legs.push(Leg { child, offset });
            total += count * extent;
        }
        let striped = legs.len() > 1;
        let chunk = if striped {
            seg.stripe_size
        } else {
            seg.seg_size
        };
        let fits = legs.len() as u64 == seg.stripes && total == seg.seg_size && chunk > 0;
        if !fits || !seg.seg_size.is_multiple_of(chunk * seg.stripes) {
            return Err(format!(
                "its segment at {} is not understood",
                seg.seg_start
            ));
        }
        Ok(Piece {
            start: seg.seg_start,
            len: seg.seg_size,
            chunk,
            legs: legs.into(),
        })
    }
}

/// The physical volume that a range of extents is on, the first extent and how many: by the range,
/// and by what the physical volume says of it.
fn place<'a>(report: &'a Report, range: &str, lv_uuid: &str) -> Result<(&'a Pv, u64, u64), String> {
    let odd = || format!("{range:?} is no range of extents");
    let (name, extents) = range.rsplit_once(':').ok_or_else(odd)?;
    let (first, last) = extents.split_once('-').ok_or_else(odd)?;
    let first: u64 = first.parse().map_err(|_| odd())?;
    let last: u64 = last.parse().map_err(|_| odd())?;
    let count = last.checked_sub(first).ok_or_else(odd)? + 1;
    let Some(pv) = report.pv.iter().find(|pv| pv.pv_name == name) else {
        return Err(format!(
            "a segment of it is on {name}, no physical volume: a pvmove is under way, or it is \
             made of other volumes"
        ));
    };
    if !pv.pv_missing.is_empty() || !pv.pv_duplicate.is_empty() {
        return Err(format!(
            "physical volume {name} is missing, or there are two of it"
        ));
    }
    let held = report.pvseg.iter().any(|seg| {
        let same = seg.pv_uuid == pv.pv_uuid && seg.lv_uuid == lv_uuid;
        same && seg.pvseg_start <= first && first + count <= seg.pvseg_start + seg.pvseg_size
    });
    if held {
        Ok((pv, first, count))
    } else {
        Err(format!(
            "{name} does not know of its extents {first} to {last}"
        ))
    }
}

/// What makes the segments of a volume unsafe to use.
fn obstacle(lv: &Lv) -> Option<String> {
    let origin = lv.plays("origin") || lv.plays("thickorigin") || lv.plays("thinorigin");
    if origin {
        return Some("it has snapshots, which must be told of what is written".to_owned());
    }
    if !lv.origin.is_empty() || !lv.pool_lv.is_empty() {
        return Some("it is a snapshot, or in a pool".to_owned());
    }
    if !lv.move_pv.is_empty() {
        return Some("a pvmove of it is under way".to_owned());
    }
    if !lv.lv_converting.is_empty() {
        return Some("it is being converted".to_owned());
    }
    if !["linear", "striped"].contains(&lv.lv_layout.as_str()) {
        return Some(format!(
            "its layout is {}, not linear or striped",
            lv.lv_layout
        ));
    }
    if lv.lv_attr.get(1..2) != Some("w") {
        return Some("it may not be written".to_owned());
    }
    None
}

#[cfg(test)]
impl Segments {
    /// A disk of `pieces` of all `disks` but the last, which is the volume itself.
    pub(crate) fn over(disks: Vec<Arc<Disk>>, pieces: Vec<Piece>) -> Disk {
        let shape = *disks.last().unwrap().shape();
        let segments = Segments {
            volume: Volume::parse("group/volume").unwrap(),
            physical: disks.len() - 1,
            disks: disks.into(),
            map: Map::Volume(pieces.into()),
            watch: Arc::default(),
            generation: Arc::default(),
        };
        Disk::of(
            Storage::Segments(segments),
            shape,
            Serial::new("v").unwrap(),
        )
    }
}
