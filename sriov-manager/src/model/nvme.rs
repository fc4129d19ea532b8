//! NVMe controllers of the model: what was seen of QEMU's.
//!
//! Off line, a secondary controller forgets what it had; on line, nothing can be changed, and
//! without two queue pairs and an interrupt it does not get there. What the primary keeps counts
//! from its reset on, which takes all of its family off line.

use std::io;
use std::path::Path;

use rustix::io::Errno;

use super::{Card, Model, State};
use crate::address::PciAddr;
use crate::kernel::{Controllers, WriteError};
use crate::nvme::{Family, Flexible, Kind, Order, Pool, Resources, Secondary};

/// A controller that has everything itself.
pub(super) fn family(card: &Card, all: Resources) -> (Family, Resources) {
    let flexible = |count: u16| Flexible {
        total: u32::from(count),
        primary: count,
        most: count,
        step: 1,
    };
    let secondary = (1..=card.total).map(|number| Secondary {
        id: number,
        vf: number,
        ..Secondary::default()
    });
    let pool = Pool {
        id: 0,
        vq: flexible(all.vq),
        vi: flexible(all.vi),
    };
    let secondary = secondary.collect();
    (Family { pool, secondary }, all)
}

impl State {
    fn controller(&self, path: &Path) -> io::Result<PciAddr> {
        let bus = path
            .to_str()
            .and_then(|path| path.strip_prefix("/dev/nvme"));
        let bus = bus.and_then(|bus| bus.parse().ok()).ok_or(Errno::NOENT)?;
        Ok(PciAddr::new(0, bus, 0, 0))
    }

    pub(super) fn is_online(&self, pf: PciAddr, vf: PciAddr) -> bool {
        let index = self.vfs(pf).iter().position(|one| *one == vf).unwrap();
        self.families[&pf].0.secondary[index].online
    }

    pub(super) fn offline(&mut self, pf: PciAddr, index: usize) {
        if let Some((family, _)) = self.families.get_mut(&pf) {
            let one = &mut family.secondary[index];
            (one.online, one.has) = (false, Resources::NONE);
        }
    }

    pub(super) fn reset(&mut self, pf: PciAddr) {
        if let Some((family, next)) = self.families.get_mut(&pf) {
            (family.pool.vq.primary, family.pool.vi.primary) = (next.vq, next.vi);
            for index in 0..family.secondary.len() {
                self.offline(pf, index);
            }
        }
    }
}

fn assign(family: &mut Family, next: Resources, id: u16, kind: Kind, count: u16) -> bool {
    let of = |has: &Resources| match kind {
        Kind::Vq => has.vq,
        Kind::Vi => has.vi,
    };
    let others = family.secondary.iter().filter(|one| one.id != id);
    let taken: u32 = others.map(|one| u32::from(of(&one.has))).sum();
    let primary = family.pool.primary();
    let kept = u32::from(of(&primary).max(of(&next)));
    let total = match kind {
        Kind::Vq => family.pool.vq.total,
        Kind::Vi => family.pool.vi.total,
    };
    let one = family
        .secondary
        .iter_mut()
        .find(|one| one.id == id)
        .unwrap();
    let fits = !one.online && taken + kept + u32::from(count) <= total;
    if fits {
        match kind {
            Kind::Vq => one.has.vq = count,
            Kind::Vi => one.has.vi = count,
        }
    }
    fits
}

impl Model {
    /// The primary controller has so much, at most.
    pub(crate) fn keep(&self, pf: PciAddr, most: Resources) {
        let mut state = self.state();
        let (_, next) = state.families.get_mut(&pf).unwrap();
        (next.vq, next.vi) = (next.vq.min(most.vq), next.vi.min(most.vi));
        state.reset(pf);
    }
}

impl Controllers for Model {
    fn family(&self, controller: &Path) -> io::Result<Family> {
        let state = self.state();
        let pf = state.controller(controller)?;
        Ok(state.families.get(&pf).ok_or(Errno::NODEV)?.0.clone())
    }

    fn order(&self, controller: &Path, id: u16, order: Order) -> Result<(), WriteError> {
        let mut state = self.state();
        state.change()?;
        let pf = state.controller(controller)?;
        let vf = usize::from(id).checked_sub(1);
        let vf = vf.and_then(|index| state.vfs(pf).get(index).copied());
        state.touched.extend(vf);
        let (family, next) = state.families.get_mut(&pf).ok_or(WriteError::refused(19))?;
        let done = match order {
            Order::Keep(Kind::Vq, count) => {
                next.vq = count;
                true
            }
            Order::Keep(Kind::Vi, count) => {
                next.vi = count;
                true
            }
            Order::Assign(kind, count) => assign(family, *next, id, kind, count),
            Order::Offline => {
                state.offline(pf, usize::from(id) - 1);
                true
            }
            Order::Online => {
                let one = family
                    .secondary
                    .iter_mut()
                    .find(|one| one.id == id)
                    .unwrap();
                one.online = one.has.vq >= 2 && one.has.vi >= 1 && vf.is_some();
                one.online
            }
        };
        if done {
            return Ok(());
        }
        Err(WriteError::refused(Errno::IO.raw_os_error()))
    }
}
