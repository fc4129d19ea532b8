//! Which VF of a pool: one that is there, free, given to VFIO or nobody, and not on a PF that is
//! wedged. Near the wanted NUMA node first; then from the PF that has the fewest VFs out, so that
//! machines share links evenly; then by address, so that the same question has the same answer.

use crate::inventory::{Inventory, Pf, Vf};
use crate::target::Target;

/// What makes one VF a better choice than another: less is better.
type Rank = (bool, usize, u16);

/// The VF, and how many of the pool there are.
pub(super) fn pick<'a>(
    inventory: &'a Inventory,
    target: &Target,
    pool: &str,
    numa: Option<u32>,
) -> (Option<(&'a Pf, &'a Vf)>, usize) {
    let in_pool = |pf: &Pf, index: u16| {
        let wanted = target.pf(pf.address).and_then(|pf| pf.vfs.get(&index));
        wanted
            .and_then(|vf| vf.pool.as_ref())
            .is_some_and(|name| name.as_str() == pool)
    };
    let mut members = 0;
    let mut best: Option<(Rank, (&Pf, &Vf))> = None;
    for pf in &inventory.pfs {
        let out = pf.vfs.iter().filter(|vf| vf.is_used()).count();
        for vf in pf.vfs.iter().filter(|vf| in_pool(pf, vf.index)) {
            members += 1;
            if pf.wedged.is_some() || vf.is_used() {
                continue;
            }
            let far = numa.is_some() && vf.numa.or(pf.numa) != numa;
            let rank = (far, out, vf.index);
            if best.as_ref().is_none_or(|(known, _)| rank < *known) {
                best = Some((rank, (pf, vf)));
            }
        }
    }
    (best.map(|(_, vf)| vf), members)
}
