//! Files, directories and links of the model, and what writing to them does.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use super::{State, told_nothing};
use crate::address::PciAddr;
use crate::kernel::WriteError;
use crate::values::is_vfio;

#[derive(Clone, Debug)]
enum Node {
    Dir,
    File(Vec<u8>),
    Link(PathBuf),
}

/// A tree of them, by real path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files(BTreeMap<PathBuf, Node>);

impl Files {
    fn put(&mut self, path: &str, node: Node) {
        let path = Path::new(path);
        let parent = path.parent().unwrap();
        let real = self.resolve(parent).unwrap_or_else(|_| parent.to_owned());
        for parent in real.ancestors() {
            self.0.entry(parent.to_owned()).or_insert(Node::Dir);
        }
        self.0.insert(real.join(path.file_name().unwrap()), node);
    }

    pub(crate) fn dir(&mut self, path: &str) {
        self.put(path, Node::Dir);
    }

    pub(crate) fn file(&mut self, path: &str, text: &str) {
        self.bytes(path, text.as_bytes().to_vec());
    }

    pub(crate) fn bytes(&mut self, path: &str, bytes: Vec<u8>) {
        self.put(path, Node::File(bytes));
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.put(path, Node::Link(target.into()));
    }

    /// Removes a file, a link, or a directory with all that is in it.
    pub(crate) fn remove(&mut self, path: &str) {
        let path = Path::new(path);
        let parent = self.resolve(path.parent().unwrap()).unwrap();
        let real = parent.join(path.file_name().unwrap());
        self.0.retain(|other, _| !other.starts_with(&real));
    }

    pub(crate) fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let mut real = PathBuf::from("/");
        for part in path.components() {
            let Component::Normal(name) = part else {
                continue;
            };
            real.push(name);
            for _ in 0..8 {
                match self.0.get(&real) {
                    Some(Node::Link(target)) => real = self.resolve(target)?,
                    Some(_) => break,
                    None => return Err(Errno::NOENT.into()),
                }
            }
        }
        Ok(real)
    }

    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match self.0.get(&self.resolve(path)?) {
            Some(Node::File(bytes)) => Ok(bytes.clone()),
            _ => Err(Errno::ISDIR.into()),
        }
    }

    pub(crate) fn text(&self, path: &str) -> String {
        let bytes = self.read(Path::new(path)).unwrap_or_default();
        String::from_utf8(bytes).unwrap().trim().to_owned()
    }

    pub(crate) fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let real = self.resolve(path)?;
        if !matches!(self.0.get(&real), Some(Node::Dir)) {
            return Err(Errno::NOTDIR.into());
        }
        let inside = self.0.range(real.clone()..).skip(1);
        let inside = inside.take_while(|(path, _)| path.starts_with(&real));
        let own = inside.filter(|(path, _)| path.parent() == Some(&real));
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        Ok(own.map(|(path, _)| name(path)).collect())
    }

    /// Where a link leads, by the last part of the name.
    fn target(&self, path: &str) -> Option<String> {
        let real = self.resolve(Path::new(path)).ok()?;
        Some(real.file_name()?.to_str()?.to_owned())
    }
}

fn refuse<T>(errno: Errno) -> Result<T, WriteError> {
    Err(WriteError::refused(errno.raw_os_error()))
}

/// Configuration space of a VF with so many interrupts.
fn config(interrupts: u16) -> Vec<u8> {
    let mut config = vec![0; 64];
    config[0x06] = 0x10;
    config[0x34] = 0x40;
    config.extend([0x11, 0]);
    config.extend((interrupts - 1).to_le_bytes());
    config
}

impl State {
    /// Writes, with all that follows from it.
    pub(super) fn write(&mut self, path: &Path, text: &str) -> Result<(), WriteError> {
        let real = self.files.resolve(path)?;
        let name = real.file_name().unwrap().to_str().unwrap().to_owned();
        let place = real.to_str().unwrap().to_owned();
        let device = real
            .parent()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str());
        let device: Option<PciAddr> = device.and_then(|name| name.parse().ok());
        match (name.as_str(), device) {
            ("sriov_numvfs", Some(pf)) => self.set_count(pf, text),
            ("sriov_drivers_autoprobe", Some(_)) if matches!(text, "0" | "1") => {
                self.files.file(&place, text);
                Ok(())
            }
            ("driver_override", Some(vf)) => {
                self.touched.insert(vf);
                self.files
                    .file(&place, if text == "\n" { "(null)" } else { text });
                Ok(())
            }
            ("sriov_vf_msix_count", Some(vf)) => self.set_msix(vf, text),
            ("type", _) if place.starts_with("/sys/kernel/iommu_groups") => {
                self.files.file(&place, text);
                Ok(())
            }
            ("reset", Some(function)) => {
                self.reset(function);
                Ok(())
            }
            ("drivers_probe", _) => self.probe(text),
            ("unbind", _) => self.unbind(text),
            _ => refuse(Errno::INVAL),
        }
    }

    fn set_count(&mut self, pf: PciAddr, text: &str) -> Result<(), WriteError> {
        let Ok(count) = text.parse::<u16>() else {
            return refuse(Errno::INVAL);
        };
        if self.wedged.contains(&pf) {
            return Err(WriteError::Wedged { writer: 4242 });
        }
        let card = self.cards[&pf].clone();
        let now = self.vfs(pf).len();
        if count > card.total {
            return refuse(Errno::RANGE);
        }
        if usize::from(count) == now {
            return Ok(());
        }
        let driver = self.files.target(&format!("{}/driver", pf.dir().display()));
        if driver.is_none_or(|name| is_vfio(&name)) {
            return refuse(Errno::NOENT);
        }
        if count == 0 {
            return self.remove_all(pf);
        }
        if now != 0 {
            return refuse(Errno::BUSY);
        }
        let last = pf.vf(card.offset, card.stride, count - 1);
        if !card.room || last.is_none_or(|last| last.bus() > card.last_bus) {
            return refuse(Errno::NOMEM);
        }
        for index in 0..count.min(card.grants) {
            self.make(pf, index);
        }
        // The card is reset, and its link comes up again later.
        let names = self.files.list(&pf.file("net")).unwrap_or_default();
        for link in self
            .links
            .iter_mut()
            .filter(|link| names.contains(&link.name))
        {
            link.carrier = false;
        }
        Ok(())
    }

    /// The VFs of `pf`, by index.
    pub(crate) fn vfs(&self, pf: PciAddr) -> Vec<PciAddr> {
        let dir = pf.dir();
        let mut names = self.files.list(&dir).unwrap_or_default();
        names.retain(|name| name.starts_with("virtfn"));
        names.sort_by_key(|name| name[6..].parse::<u16>().unwrap());
        let target = |name| {
            self.files
                .target(&format!("{}/{name}", dir.display()))
                .unwrap()
        };
        names
            .into_iter()
            .map(|name| target(name).parse().unwrap())
            .collect()
    }

    fn make(&mut self, pf: PciAddr, index: u16) {
        let card = self.cards[&pf].clone();
        let vf = pf.vf(card.offset, card.stride, index).unwrap();
        let pf_dir = self.files.resolve(&pf.dir()).unwrap();
        let dir = format!("{}/{vf}", pf_dir.parent().unwrap().display());
        let own = self
            .files
            .target(&format!("{}/iommu_group", pf_dir.display()))
            .unwrap();
        let group = if card.acs {
            self.next_group += 1;
            self.next_group
        } else {
            own.parse().unwrap()
        };
        self.function(vf, &dir, 0x02_0000, "", group);
        self.files
            .link(&format!("{dir}/physfn"), pf_dir.to_str().unwrap());
        self.files.file(&format!("{dir}/device"), "0x10ca");
        self.files.file(&format!("{dir}/reset"), "");
        self.files.file(&format!("{dir}/reset_method"), "flr");
        self.files.file(&format!("{dir}/sriov_vf_msix_count"), "");
        self.files.bytes(&format!("{dir}/config"), config(3));
        self.files
            .link(&format!("{}/virtfn{index}", pf_dir.display()), &dir);
        if !card.keeps && card.nvme.is_none() {
            self.told.get_mut(&pf).unwrap()[usize::from(index)] = told_nothing();
        }
        if self
            .files
            .text(&format!("{}/sriov_drivers_autoprobe", pf_dir.display()))
            == "1"
        {
            self.attach_own(vf);
        }
    }

    /// Gives a VF interrupts.
    fn set_msix(&mut self, vf: PciAddr, text: &str) -> Result<(), WriteError> {
        let Ok(count) = text.parse::<u16>() else {
            return refuse(Errno::INVAL);
        };
        self.touched.insert(vf);
        let dir = vf.dir().display().to_string();
        let pf = self.files.target(&format!("{dir}/physfn")).unwrap();
        if !self.cards[&pf.parse::<PciAddr>().unwrap()].msix {
            return refuse(Errno::OPNOTSUPP);
        }
        if self.files.target(&format!("{dir}/driver")).is_some() {
            return refuse(Errno::BUSY);
        }
        self.files.bytes(&format!("{dir}/config"), config(count));
        Ok(())
    }

    /// Binds a VF to whatever takes such VFs; NVMe's does not take one without queues.
    fn attach_own(&mut self, vf: PciAddr) {
        let pf = self.files.target(&format!("{}/physfn", vf.dir().display()));
        let pf: PciAddr = pf.unwrap().parse().unwrap();
        match self.cards[&pf].nvme {
            None => self.attach(vf, "igbvf"),
            Some(_) if self.is_online(pf, vf) => self.attach(vf, "nvme"),
            Some(_) => {}
        }
    }

    /// Removes VFs in order; stops for ever at one that is held.
    fn remove_all(&mut self, pf: PciAddr) -> Result<(), WriteError> {
        for (index, vf) in self.vfs(pf).into_iter().enumerate() {
            self.touched.insert(vf);
            if self.held.contains(&vf) {
                let names = [
                    format!("{}/virtfn{index}", pf.dir().display()),
                    format!("{}/physfn", vf.dir().display()),
                ];
                names.iter().for_each(|name| self.files.remove(name));
                self.wedged.insert(pf);
                return Err(WriteError::Wedged { writer: 4242 });
            }
            self.detach(vf);
            self.offline(pf, index);
            let group = self
                .files
                .target(&format!("{}/iommu_group", vf.dir().display()));
            let group = format!("/sys/kernel/iommu_groups/{}", group.unwrap());
            self.files.remove(&format!("{group}/devices/{vf}"));
            let dir = self.files.resolve(&vf.dir()).unwrap();
            self.files.remove(dir.to_str().unwrap());
            self.files.remove(vf.dir().to_str().unwrap());
            self.files
                .remove(&format!("{}/virtfn{index}", pf.dir().display()));
        }
        Ok(())
    }

    fn probe(&mut self, text: &str) -> Result<(), WriteError> {
        let Ok(vf) = text.parse::<PciAddr>() else {
            return refuse(Errno::NODEV);
        };
        self.touched.insert(vf);
        let file = |name: &str| self.files.text(&format!("{}/{name}", vf.dir().display()));
        let only = file("driver_override");
        let autoprobe = file("physfn/sriov_drivers_autoprobe") != "0";
        let iommu = self
            .files
            .list(Path::new("/sys/kernel/iommu_groups"))
            .is_ok();
        let known = self
            .files
            .list(Path::new(&format!("/sys/bus/pci/drivers/{only}")))
            .is_ok();
        match only.as_str() {
            _ if self.probe_lies => {}
            "(null)" if autoprobe => self.attach_own(vf),
            "(null)" => {}
            name if known && (iommu || !is_vfio(name)) => self.attach(vf, name),
            _ => {}
        }
        Ok(())
    }

    fn unbind(&mut self, text: &str) -> Result<(), WriteError> {
        let Ok(vf) = text.parse::<PciAddr>() else {
            return refuse(Errno::NODEV);
        };
        self.touched.insert(vf);
        if self.held.contains(&vf) {
            return Err(WriteError::Wedged { writer: 4242 });
        }
        self.detach(vf);
        Ok(())
    }

    fn attach(&mut self, vf: PciAddr, driver: &str) {
        let dir = vf.dir().display().to_string();
        self.files.link(
            &format!("{dir}/driver"),
            &format!("/sys/bus/pci/drivers/{driver}"),
        );
        if is_vfio(driver) {
            let group = self.files.target(&format!("{dir}/iommu_group")).unwrap();
            self.files.file(&format!("/dev/vfio/{group}"), "");
        } else if driver == "igbvf" {
            let name = format!("v{}", vf.to_string().replace([':', '.'], ""));
            self.interface(vf, &name);
        }
    }

    fn detach(&mut self, vf: PciAddr) {
        let dir = vf.dir().display().to_string();
        if self.files.target(&format!("{dir}/driver")).is_none() {
            return;
        }
        self.files.remove(&format!("{dir}/driver"));
        let group = self.files.target(&format!("{dir}/iommu_group")).unwrap();
        self.files.remove(&format!("/dev/vfio/{group}"));
        let names = self.files.list(&vf.file("net")).unwrap_or_default();
        self.links.retain(|link| !names.contains(&link.name));
        if !names.is_empty() {
            self.files.remove(&format!("{dir}/net"));
        }
    }
}
