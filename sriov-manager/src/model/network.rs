//! Interfaces of the model.

use rustix::io::Errno;

use super::State;
use crate::address::PciAddr;
use crate::attribute::{Attribute, Rates};
use crate::kernel::{Link, VfReport, WriteError};
use crate::values::{Rate, VlanProtocol};

impl State {
    /// The card whose interface has this number.
    fn card_of(&self, link: u32) -> Option<PciAddr> {
        let link = self.links.iter().find(|one| one.index == link)?;
        let has = |pf: &PciAddr| {
            let names = self.files.list(&pf.file("net")).unwrap_or_default();
            names.contains(&link.name)
        };
        self.cards.keys().copied().find(has)
    }

    pub(super) fn links_now(&self) -> Vec<Link> {
        let mut links = self.links.clone();
        for link in &mut links {
            if let Some(pf) = self.card_of(link.index) {
                let told = &self.told[&pf];
                let vfs = (0..).zip(told).take(self.vfs(pf).len());
                link.vfs = vfs
                    .map(|(index, attributes)| VfReport {
                        index,
                        attributes: *attributes,
                        counters: None,
                    })
                    .collect();
            }
        }
        links
    }

    fn has_carrier(&self, link: u32) -> bool {
        self.links
            .iter()
            .any(|one| one.index == link && one.carrier)
    }

    pub(super) fn tell(
        &mut self,
        link: u32,
        vf: u16,
        attribute: &Attribute,
    ) -> Result<(), WriteError> {
        let refused = |errno: Errno| Err(WriteError::refused(errno.raw_os_error()));
        let Some(pf) = self.card_of(link) else {
            return refused(Errno::NODEV);
        };
        let Some(address) = self.vfs(pf).get(usize::from(vf)).copied() else {
            return refused(Errno::INVAL);
        };
        let card = &self.cards[&pf];
        if card.lacks.contains(&attribute.key().word()) {
            return refused(Errno::OPNOTSUPP);
        }
        match attribute {
            Attribute::Tag(tag) if tag.protocol == VlanProtocol::Service && !card.keeps => {
                return refused(Errno::PROTONOSUPPORT);
            }
            Attribute::Rates(Rates { min, .. }) if *min != Rate::MIN && !card.keeps => {
                return refused(Errno::INVAL);
            }
            Attribute::Rates(_) if !self.has_carrier(link) && !card.keeps => {
                return refused(Errno::INVAL);
            }
            _ => {}
        }
        self.touched.insert(address);
        self.told.get_mut(&pf).unwrap()[usize::from(vf)].set(*attribute);
        Ok(())
    }
}
