//! The vhost-user devices of a guest, as QEMU is told of them.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use crate::qmp::Qmp;

/// A vhost-user-blk device of the guest.
#[derive(Debug, Clone)]
pub struct Drive {
    pub(super) socket: PathBuf,
    pub(super) queues: u16,
    pub(super) queue_size: u16,
    pub(super) listens: bool,
}

impl Drive {
    /// A disk served on `socket`: one queue of 128.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            queues: 1,
            queue_size: 128,
            listens: false,
        }
    }

    /// Number of request queues.
    #[must_use]
    pub fn queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    /// The guest's end listens and the back-end connects to it.
    #[must_use]
    pub fn listens(mut self) -> Self {
        self.listens = true;
        self
    }

    /// Descriptors a queue.
    #[must_use]
    pub fn queue_size(mut self, size: u16) -> Self {
        self.queue_size = size;
        self
    }
}

/// A virtio-net device of the guest, on vhost-user.
#[derive(Debug, Clone)]
pub struct Nic {
    socket: PathBuf,
    mac: String,
    queues: u16,
    properties: String,
    listens: bool,
}

/// Device properties that leave out every offload.
pub const NO_OFFLOADS: &str = "csum=off,guest_csum=off,gso=off,host_tso4=off,host_tso6=off,\
     host_ecn=off,host_ufo=off,host_uso=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,\
     guest_ufo=off,guest_uso4=off,guest_uso6=off";

/// Device properties that leave out segmentation and keep checksums.
pub const NO_SEGMENTATION: &str = "gso=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off,\
     host_uso=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,guest_uso4=off,\
     guest_uso6=off";

impl Nic {
    /// A port served on `socket`, one pair of queues, all that QEMU and the back-end can do.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>, mac: &str) -> Self {
        Self {
            socket: socket.into(),
            mac: mac.into(),
            queues: 1,
            properties: String::new(),
            listens: false,
        }
    }

    /// Number of pairs of queues.
    #[must_use]
    pub fn queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    /// More properties of the device, as QEMU writes them: `host_mtu=9216`, or [`NO_OFFLOADS`].
    #[must_use]
    pub fn properties(mut self, properties: &str) -> Self {
        self.properties = format!("{},{properties}", self.properties);
        self
    }

    /// The guest's end listens and the back-end connects to it.
    #[must_use]
    pub fn listens(mut self) -> Self {
        self.listens = true;
        self
    }

    /// Words of QEMU's command line; `name` makes the parts' names.
    pub(super) fn arguments(&self, name: &str) -> String {
        let end = if self.listens {
            "server=on,wait=off"
        } else {
            "reconnect-ms=200"
        };
        let path = self.socket.display();
        let (queues, vectors) = match self.queues {
            1 => (String::new(), String::new()),
            // One for each queue, one for the control queue, one for changes of configuration.
            n => (
                format!(",queues={n}"),
                format!(",mq=on,vectors={}", 2 * n + 2),
            ),
        };
        format!(
            "-chardev socket,id={name},path={path},{end} \
             -netdev vhost-user,id=net-{name},chardev={name}{queues} \
             -device {},netdev=net-{name}{vectors}",
            self.device()
        )
    }

    /// Unplugs what `vswitch attach --qmp` plugged in, and waits until the guest has let go of it.
    ///
    /// # Errors
    /// When QEMU refuses, or the guest does not let go.
    pub fn unplug(&self, monitor: &mut Qmp, name: &str) -> Result<()> {
        monitor.execute("device_del", json!({ "id": name }))?;
        monitor.event("DEVICE_DELETED", |data| data["device"] == name)?;
        // QEMU removes the chardev with it.
        monitor.execute("netdev_del", json!({ "id": format!("net-{name}") }))?;
        Ok(())
    }

    /// The device with its own properties. It brings no ROM to boot from.
    fn device(&self) -> String {
        format!(
            "virtio-net-pci,mac={},disable-legacy=on,romfile={}",
            self.mac, self.properties
        )
    }
}
