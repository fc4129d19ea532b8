//! M05: front-ends that lie about the guest's memory. `hostile_net` has this file too.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use towpath_common::testing::memory::{PAGE, Sealing};
use towpath_common::testing::{Error, GuestMemory, GuestRegion};

use crate::harness::{MIB, Scene};

#[test]
fn m05_memory_tables_that_lie() -> Result<()> {
    let scene = Scene::new()?;
    let page = |gpa, slot| GuestRegion::new(gpa, MIB, slot, Sealing::Allowed).map(Arc::new);
    // Regions that overlap, in guest addresses and then in the front-end's.
    for regions in [
        vec![page(0, 0)?, page(MIB / 2, 3)?],
        vec![page(0, 0)?, page(0, 0)?],
    ] {
        let mut frontend = scene.frontend()?;
        let answer = frontend.set_memory(&GuestMemory::of(regions));
        refused(answer)?;
        scene.error_says("overlaps")?;
    }
    // Words of a region: gpa, size, uva, offset.
    let whole = [0, MIB, 1 << 40, 0];
    let lies = [
        ([0, 0, 1 << 40, 0], ""),
        ([u64::MAX - 10, MIB, 1 << 40, 0], ""),
        ([0, MIB, u64::MAX - 10, 0], ""),
        ([0, MIB, 1 << 40, u64::MAX - 10], ""),
        ([0, MIB + 1, 1 << 40, 0], "has 1048576 bytes"),
        ([0, MIB, 1 << 40, PAGE], "has 1048576 bytes"),
        ([0, u64::MAX, 0, 0], ""),
    ];
    for (words, text) in lies {
        let mut frontend = scene.frontend()?;
        let region = page(0, 0)?;
        refused(table(&mut frontend, 1, &[words], &[region.file()]))?;
        if !text.is_empty() {
            scene.error_says(text)?;
        }
    }
    // Counts that do not fit, and fds that are none of memory.
    for count in [0, 2, 9, 33, u32::MAX] {
        let mut frontend = scene.frontend()?;
        let region = page(0, 0)?;
        let answer = table(&mut frontend, count, &[whole], &[region.file()]);
        ensure!(
            !matches!(answer, Err(Error::Timeout(_))),
            "{count} regions: no answer"
        );
    }
    for path in ["/dev/null", "/", "/dev/zero"] {
        use std::os::fd::AsFd;
        let file = std::fs::File::open(path)?;
        let mut frontend = scene.frontend()?;
        refused(table(&mut frontend, 1, &[whole], &[file.as_fd()]))?;
        scene.error_says("not a regular file")?;
    }
    scene.victim()?.works()?;
    scene.finish()
}

/// SET_MEM_TABLE with any words.
fn table(
    frontend: &mut towpath_common::testing::Frontend,
    count: u32,
    regions: &[[u64; 4]],
    fds: &[std::os::fd::BorrowedFd<'_>],
) -> towpath_common::testing::Result<()> {
    let mut payload = [count.to_ne_bytes(), [0; 4]].concat();
    payload.extend(regions.concat().iter().flat_map(|word| word.to_ne_bytes()));
    let request = vhost::vhost_user::message::FrontendReq::SET_MEM_TABLE;
    frontend.tell(request, &payload, fds)
}

/// The back-end said no, or hung up.
pub(crate) fn refused<T: std::fmt::Debug>(
    answer: towpath_common::testing::Result<T>,
) -> Result<()> {
    match answer {
        Err(Error::Refused { .. } | Error::Closed) => Ok(()),
        other => bail!("not refused: {other:?}"),
    }
}
