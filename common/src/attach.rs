//! How a virtual machine gets a disk or port: the words each VMM wants, and plugging one into a
//! QEMU that runs.
//!
//! Guest memory must be shared with the daemon, so the words for it are part of the answer: of a
//! machine that runs already it cannot be changed.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::json;

use crate::config::SocketMode;
use crate::qmp::{Qmp, QmpError};

/// Pause before QEMU connects again, in ms: a daemon that restarts is back after a few.
const RECONNECT_MS: u32 = 200;

/// A virtual machine monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Vmm {
    /// QEMU, 9.2 or newer.
    Qemu,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// crosvm.
    Crosvm,
    /// A piece of libvirt's domain XML.
    Libvirt,
}

/// What is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disk.
    Disk,
    /// A network interface.
    Interface {
        /// Its address, if it is known.
        mac: Option<String>,
    },
}

/// A disk or port, as a VMM meets it.
#[derive(Clone, Debug)]
pub struct Device {
    /// Disk or interface.
    pub kind: Kind,
    /// Its name: what its parts are called in the VMM.
    pub name: String,
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// Which end of it the daemon is.
    pub mode: SocketMode,
    /// Queues of a disk, or pairs of queues of an interface, that the machine is to have.
    pub queues: u16,
}

/// Why there are no words, or a machine could not be given the device.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The VMM always connects.
    #[error(
        "{vmm} only connects to a socket, and {name} does so too: take `client` out of its \
         configuration"
    )]
    BothConnect {
        /// The VMM.
        vmm: &'static str,
        /// The device.
        name: String,
    },
    /// QEMU refused, or cannot be talked to.
    #[error(transparent)]
    Qmp(#[from] QmpError),
}

impl Device {
    /// The words that give a new machine this device, one option a line.
    ///
    /// # Errors
    /// [`AttachError::BothConnect`].
    pub fn lines(&self, vmm: Vmm) -> Result<String, AttachError> {
        let listens = self.mode == SocketMode::Client;
        let disk = self.kind == Kind::Disk;
        let alone = match vmm {
            Vmm::Crosvm => Some("crosvm"),
            Vmm::CloudHypervisor if disk => Some("Cloud Hypervisor"),
            _ => None,
        };
        if let (true, Some(vmm)) = (listens, alone) {
            let name = self.name.clone();
            return Err(AttachError::BothConnect { vmm, name });
        }
        Ok(match vmm {
            Vmm::Qemu => self.qemu(listens),
            Vmm::CloudHypervisor => self.cloud_hypervisor(listens),
            Vmm::Crosvm => self.crosvm(),
            Vmm::Libvirt => self.libvirt(listens),
        })
    }

    fn qemu(&self, listens: bool) -> String {
        let end = match listens {
            true => "server=on,wait=off".to_owned(),
            false => format!("reconnect-ms={RECONNECT_MS}"),
        };
        let (name, socket) = (&self.name, twice(&self.socket));
        let device = match &self.kind {
            Kind::Disk => format!(
                "-device vhost-user-blk-pci,id={name},chardev=char-{name},num-queues={}\n",
                self.queues
            ),
            Kind::Interface { mac } => {
                let mut device = format!("-device virtio-net-pci,id={name},netdev=net-{name}");
                if let Some(mac) = mac {
                    let _ = write!(device, ",mac={mac}");
                }
                if self.queues > 1 {
                    let _ = write!(device, ",mq=on,vectors={}", self.vectors());
                }
                format!(
                    "-netdev vhost-user,id=net-{name},chardev=char-{name},queues={}\n{device}\n",
                    self.queues
                )
            }
        };
        format!(
            "-object memory-backend-memfd,id=mem,size=4G,share=on -machine memory-backend=mem\n\
             -chardev socket,id=char-{name},path={socket},{end}\n{device}"
        )
    }

    /// Interrupts of an interface: one a queue, for the control queue and for changes.
    fn vectors(&self) -> u32 {
        2 * u32::from(self.queues) + 2
    }

    fn cloud_hypervisor(&self, listens: bool) -> String {
        let socket = self.socket.display();
        let device = match &self.kind {
            Kind::Disk => format!(
                "--disk vhost_user=true,socket={socket},num_queues={},queue_size=128\n",
                self.queues
            ),
            Kind::Interface { mac } => {
                let mac = mac
                    .as_ref()
                    .map_or(String::new(), |mac| format!(",mac={mac}"));
                let mode = if listens { "server" } else { "client" };
                format!(
                    "--net vhost_user=true,socket={socket},num_queues={},queue_size=256,\
                     vhost_mode={mode}{mac}\n",
                    2 * self.queues
                )
            }
        };
        format!("--memory size=4G,shared=on\n{device}")
    }

    fn crosvm(&self) -> String {
        let kind = match self.kind {
            Kind::Disk => "block",
            Kind::Interface { .. } => "net",
        };
        format!(
            "--vhost-user type={kind},socket={}\n",
            self.socket.display()
        )
    }

    fn libvirt(&self, listens: bool) -> String {
        let path = escaped(&self.socket);
        let again = match listens {
            true => String::new(),
            false => "<reconnect enabled='yes' timeout='1'/>".to_owned(),
        };
        let memory = "\
<!-- in <domain>: the guest's memory, shared -->
<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
<!-- in <devices> -->
";
        let queues = self.queues;
        let device = match &self.kind {
            Kind::Disk => format!(
                "<disk type='vhostuser' device='disk'>\n  \
                   <driver name='qemu' type='raw' queues='{queues}'/>\n  \
                   <source type='unix' path='{path}'>{again}</source>\n  \
                   <target dev='vda' bus='virtio'/>\n</disk>\n"
            ),
            Kind::Interface { mac } => {
                let mac = mac
                    .as_ref()
                    .map_or(String::new(), |mac| format!("  <mac address='{mac}'/>\n"));
                let mode = if listens { "server" } else { "client" };
                format!(
                    "<interface type='vhostuser'>\n{mac}  \
                       <source type='unix' path='{path}' mode='{mode}'>{again}</source>\n  \
                       <model type='virtio'/>\n  <driver queues='{queues}'/>\n</interface>\n"
                )
            }
        };
        format!("{memory}{device}")
    }

    /// Plug the device into the QEMU behind the monitor `qmp`, at `bus`, an empty PCI Express port
    /// of it, if one is named. What was made of it is taken back if QEMU refuses a later part.
    ///
    /// # Errors
    /// [`QmpError`], with QEMU's reason.
    pub fn plug(&self, qmp: &Path, bus: Option<&str>) -> Result<(), AttachError> {
        let mut monitor = Qmp::connect(qmp)?;
        let (name, character) = (&self.name, format!("char-{}", self.name));
        let listens = self.mode == SocketMode::Client;
        let mut socket = json!({
            "addr": { "type": "unix", "data": { "path": self.socket } }, "server": listens,
        });
        match listens {
            true => socket["wait"] = json!(false),
            false => socket["reconnect-ms"] = json!(RECONNECT_MS),
        }
        let backend = json!({ "type": "socket", "data": socket });
        monitor.execute(
            "chardev-add",
            json!({ "id": character, "backend": backend }),
        )?;
        let made = self.plug_device(&mut monitor, &character, bus);
        if made.is_err() {
            // Of an interface it may be gone with its other half.
            let _ = monitor.execute("netdev_del", json!({ "id": format!("net-{name}") }));
            let _ = monitor.execute("chardev-remove", json!({ "id": character }));
        }
        Ok(made?)
    }

    fn plug_device(
        &self,
        monitor: &mut Qmp,
        character: &str,
        bus: Option<&str>,
    ) -> Result<(), QmpError> {
        let mut device = json!({ "id": self.name });
        match &self.kind {
            Kind::Disk => {
                device["driver"] = json!("vhost-user-blk-pci");
                device["chardev"] = json!(character);
                device["num-queues"] = json!(self.queues);
            }
            Kind::Interface { mac } => {
                let netdev = format!("net-{}", self.name);
                monitor.execute(
                    "netdev_add",
                    json!({
                        "type": "vhost-user", "id": netdev, "chardev": character,
                        "queues": self.queues,
                    }),
                )?;
                device["driver"] = json!("virtio-net-pci");
                device["netdev"] = json!(netdev);
                if let Some(mac) = mac {
                    device["mac"] = json!(mac);
                }
                if self.queues > 1 {
                    device["mq"] = json!(true);
                    device["vectors"] = json!(self.vectors());
                }
            }
        }
        if let Some(bus) = bus {
            device["bus"] = json!(bus);
        }
        monitor.execute("device_add", device)?;
        Ok(())
    }
}

/// A path in an option of QEMU's, where a comma is written twice.
fn twice(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A path in an attribute of XML.
fn escaped(path: &Path) -> String {
    let path = path.display().to_string();
    path.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('\'', "&apos;")
}

#[cfg(test)]
mod tests;
