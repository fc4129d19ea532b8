//! What a guest is made of, and the command line that starts it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result};

use super::devices::{Drive, Nic};
use super::{Turn, Vm, console, monitor};
use crate::accel::{self, Accel};
use crate::initramfs::{self, Kit};
use crate::lines::Lines;
use crate::paths;
use crate::process::{Process, command};

/// PCI Express ports that stand empty, `slot0` and on, in guests for networks.
const HOT_PLUG_SLOTS: usize = 2;

/// A guest yet to be booted.
#[derive(Debug)]
pub struct Builder {
    name: String,
    memory: Vec<u32>,
    cpus: u32,
    drives: Vec<Drive>,
    nics: Vec<Nic>,
    kit: Kit,
    devices: Vec<String>,
    turn: Option<Turn>,
    kernel_arguments: String,
    script: String,
    accelerator: Option<Accel>,
    echo: Option<fn(&str)>,
    incoming: Option<PathBuf>,
}

impl Builder {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            memory: vec![256],
            cpus: 1,
            drives: Vec::new(),
            nics: Vec::new(),
            kit: Kit::Disk,
            devices: Vec::new(),
            turn: None,
            kernel_arguments: String::new(),
            script: String::new(),
            accelerator: None,
            echo: None,
            incoming: None,
        }
    }

    /// Sizes of the memory back-ends in MiB. With more than one, each is a NUMA node and a memfd
    /// of its own, and so a region of its own in the vhost-user memory table.
    #[must_use]
    pub fn memory(mut self, mib: &[u32]) -> Self {
        self.memory = mib.to_vec();
        self
    }

    /// Number of virtual processors.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Adds a disk: the first is `/dev/vda`, the next `/dev/vdb`.
    #[must_use]
    pub fn drive(mut self, drive: Drive) -> Self {
        self.drives.push(drive);
        self
    }

    /// Adds a network interface: the first is `eth0`, the next `eth1`.
    #[must_use]
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nics.push(nic);
        self.network()
    }

    /// The guest is for scenarios about networks, though it may have no interface yet.
    #[must_use]
    pub fn network(mut self) -> Self {
        self.kit = Kit::Net;
        self
    }

    /// The guest is for scenarios about its disks and its networks at once, whatever it has so far.
    #[must_use]
    pub fn whole(mut self) -> Self {
        self.kit = Kit::Whole;
        self
    }

    /// The guest is for scenarios about file systems under stress ([`Kit::Proof`]).
    #[must_use]
    pub fn proof(mut self) -> Self {
        self.kit = Kit::Proof;
        self
    }

    /// The guest is for scenarios about cards with VFs. `devices` are more words for QEMU. The
    /// card is to be at `slot0` or `slot1`, ports that a device may also be plugged into later.
    #[must_use]
    pub fn sriov(mut self, devices: &[&str]) -> Self {
        self.kit = Kit::Sriov;
        self.devices = devices.iter().map(|words| (*words).to_owned()).collect();
        self
    }

    /// The same, on the kernel of [`initramfs::modern`].
    #[must_use]
    pub fn iommufd(mut self, devices: &[&str]) -> Self {
        self = self.sriov(devices);
        self.kit = Kit::Iommufd;
        self
    }

    /// A guest with `fio`.
    #[must_use]
    pub fn fio(mut self) -> Self {
        self.kit = Kit::Fio;
        self
    }

    /// A guest that serves storage itself ([`Kit::Storage`]). `devices` are more words for QEMU.
    #[must_use]
    pub fn storage(mut self, devices: &[&str]) -> Self {
        self.kit = Kit::Storage;
        self.devices = devices.iter().map(|words| (*words).to_owned()).collect();
        self
    }

    /// A guest that serves files to itself over NFS.
    #[must_use]
    pub fn nfs(mut self) -> Self {
        self.kit = Kit::Nfs;
        self
    }

    /// A guest for logical volumes.
    #[must_use]
    pub fn volumes(mut self) -> Self {
        self.kit = Kit::Lvm;
        self
    }

    /// A guest that measures logical volumes ([`Kit::Volumes`]) on two disks of `size` bytes in its
    /// memory, `/dev/ram0` and `/dev/ram1`.
    #[must_use]
    pub fn measured_volumes(mut self, size: u64) -> Self {
        self.kit = Kit::Volumes;
        self.kernel_arguments = format!("brd.rd_nr=2 brd.rd_size={}", size >> 10);
        self
    }

    /// The guest is a Debian: `image` is its disk, which it does not change, and `files` the
    /// archive on its second one, as [`crate::debian`] makes them.
    #[must_use]
    pub fn debian(mut self, image: &Path, files: &Path) -> Self {
        self.kit = Kit::Debian;
        let disk = |path: &Path, more: &str| {
            format!("-drive file={},format=raw,if=virtio,{more}", path.display())
        };
        self.devices = vec![disk(image, "snapshot=on"), disk(files, "readonly=on")];
        self
    }

    /// Runs beside the other guests of `turn`, instead of alone.
    #[must_use]
    pub fn turn(mut self, turn: &Turn) -> Self {
        self.turn = Some(turn.clone());
        self
    }

    /// More arguments for the guest's kernel.
    #[must_use]
    pub fn kernel_arguments(mut self, arguments: &str) -> Self {
        arguments.clone_into(&mut self.kernel_arguments);
        self
    }

    /// What the guest runs: a shell script, ended by the first command that fails.
    #[must_use]
    pub fn script(mut self, script: &str) -> Self {
        script.clone_into(&mut self.script);
        self
    }

    /// Uses this accelerator instead of the best one.
    #[must_use]
    pub fn accelerator(mut self, accelerator: Accel) -> Self {
        self.accelerator = Some(accelerator);
        self
    }

    /// Hands each line the scenario prints to `echo` as well.
    #[must_use]
    pub fn echo(mut self, echo: fn(&str)) -> Self {
        self.echo = Some(echo);
        self
    }

    /// The guest does not boot but arrives, from a QEMU that is told to migrate to this socket.
    #[must_use]
    pub fn incoming(mut self, socket: &Path) -> Self {
        self.incoming = Some(socket.into());
        self
    }

    /// Starts QEMU. The guest boots while the caller does other things.
    ///
    /// # Errors
    /// When QEMU or a part of the guest is missing, with the remedy.
    pub fn boot(self) -> Result<Vm> {
        // The probe for KVM is a guest itself: it must come before the lock.
        let accelerator = match self.accelerator {
            Some(accelerator) => accelerator,
            None => accel::best()?,
        };
        let turn = match &self.turn {
            Some(turn) => turn.clone(),
            None => Turn::lock()?,
        };
        let dir = tempfile::Builder::new().prefix("towpath-vm-").tempdir()?;
        fs::write(
            dir.path().join("initramfs"),
            initramfs::with_scenario(self.kit, &self.script)?,
        )?;
        let mut qemu = command(&paths::program("qemu-system-x86_64")?);
        qemu.args(self.arguments(accelerator, dir.path())?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Process::start(&mut qemu)?;
        let output = process
            .child()
            .stdout
            .take()
            .context("QEMU's output is piped")?;
        let errors = process
            .child()
            .stderr
            .take()
            .context("QEMU's errors are piped")?;
        Ok(Vm {
            name: self.name,
            started: Instant::now(),
            accelerator,
            output: Lines::follow(output, self.echo),
            errors: Lines::follow(errors, None),
            process,
            dir,
            _turn: turn,
        })
    }

    /// IOMMUs, and everything else.
    fn devices(&self) -> (Vec<&str>, Vec<&str>) {
        let devices = self.devices.iter().map(String::as_str);
        devices.partition(|words| words.contains("-iommu"))
    }

    fn arguments(&self, accelerator: Accel, dir: &Path) -> Result<Vec<OsString>> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |words: &str| arguments.extend(words.split(' ').map(OsString::from));
        add("-nodefaults -no-user-config -display none -nic none -M q35");
        add(&format!(
            "-accel {accelerator} -smp {0},sockets={0}",
            self.cpus
        ));
        add(&format!("-m {}M", self.memory.iter().sum::<u32>()));
        for (node, mib) in self.memory.iter().enumerate() {
            add(&format!(
                "-object memory-backend-memfd,id=mem{node},size={mib}M,share=on"
            ));
        }
        if self.memory.len() == 1 {
            add("-machine memory-backend=mem0");
        } else {
            // Processor N is of node N, the rest of node 0: what runs there allocates there.
            for node in 0..self.memory.len() {
                add(&format!("-numa node,nodeid={node},memdev=mem{node}"));
            }
            for cpu in 0..self.cpus {
                let node = if (cpu as usize) < self.memory.len() {
                    cpu
                } else {
                    0
                };
                add(&format!("-numa cpu,node-id={node},socket-id={cpu}"));
            }
        }
        for (index, drive) in self.drives.iter().enumerate() {
            let end = if drive.listens {
                "server=on,wait=off"
            } else {
                "reconnect-ms=200"
            };
            let path = drive.socket.display();
            add(&format!("-chardev socket,id=disk{index},path={path},{end}"));
            add(&format!(
                "-device vhost-user-blk-pci,chardev=disk{index},num-queues={},queue-size={},\
                 disable-legacy=on",
                drive.queues, drive.queue_size
            ));
        }
        let nics = self.nics.iter().enumerate();
        nics.for_each(|(index, nic)| add(&nic.arguments(&format!("nic{index}"))));
        let (iommus, devices) = self.devices();
        // An IOMMU must come before what is behind it.
        iommus.into_iter().for_each(&mut add);
        if self.kit != Kit::Disk {
            // A port each for devices that are plugged in while the guest runs.
            for slot in 0..HOT_PLUG_SLOTS {
                add(&format!(
                    "-device pcie-root-port,id=slot{slot},chassis={slot}"
                ));
            }
            let monitor = monitor(dir).display().to_string();
            add(&format!("-qmp unix:{monitor},server=on,wait=off"));
        }
        devices.into_iter().for_each(&mut add);
        if let Some(socket) = &self.incoming {
            add(&format!("-incoming unix:{}", socket.display()));
        }
        add(&format!("-serial file:{}", console(dir).display()));
        add("-chardev stdio,id=scenario,signal=off -serial chardev:scenario");
        add(&format!(
            "-kernel {} -initrd {}",
            initramfs::kernel(self.kit)?.display(),
            dir.join("initramfs").display()
        ));
        arguments.push("-append".into());
        // An emulated timer may be late on a busy machine, which is not what the check is for.
        let base = "console=ttyS0 loglevel=4 panic=0 no_timer_check";
        arguments.push(format!("{base} {}", self.kernel_arguments).into());
        Ok(arguments)
    }
}
