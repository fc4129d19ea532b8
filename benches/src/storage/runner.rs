//! Measures one row of one kind of storage by one contender.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::plan::{Kind, Row, Who};

use super::scene::{Scene, open_direct, tool};
use crate::backend::{Backend, Launcher};
use crate::cpu;
use crate::fio::On;
use crate::plan::{Effort, Entrant};
use crate::raw::Raw;
use crate::runner::{Figure, Load, by_fio, limit, quietest};

/// Everything a run needs.
#[derive(Debug)]
pub struct Runner {
    /// How back-ends start.
    pub launcher: Launcher,
    /// The processor of the load generator.
    pub front: usize,
    /// How long.
    pub effort: Effort,
    /// On what.
    pub scene: Scene,
}

impl Runner {
    /// The quietest of a few runs of `row` by `who`.
    pub fn measure(&mut self, row: &Row, who: Who) -> Result<Figure> {
        quietest(|| self.once(row, who)).with_context(|| row.name.clone())
    }

    fn once(&mut self, row: &Row, who: Who) -> Result<Figure> {
        if who == Who::Raw {
            return cpu::on_cpu(self.launcher.cpu, || self.raw(row))?;
        }
        if who == Who::Fio {
            // This starts the server.
            self.scene.address(row.kind)?;
            return cpu::on_cpu(self.launcher.cpu, || self.fio(row))?;
        }
        let backend = self.backend(row.kind, who)?;
        let load = Load {
            workload: row.workload,
            front: self.front,
            effort: self.effort,
            yields: true,
            server: self.scene.server(),
        };
        load.drive(&backend, backend.sockets())
    }

    fn raw(&mut self, row: &Row) -> Result<Figure> {
        let (paths, layout) = self.scene.files(row.kind)?;
        let files = paths.iter().map(|path| open_direct(path));
        let files = files.collect::<Result<Vec<_>>>()?;
        let fds: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let raw = Raw::over(&fds, layout, self.scene.size(), row.workload)?;
        limit(raw, &self.effort)
    }

    fn fio(&self, row: &Row) -> Result<Figure> {
        let socket = self.scene.socket();
        let (size, server) = (self.scene.size(), self.scene.server());
        by_fio(
            On::Export(&socket),
            size,
            &row.workload,
            &self.effort,
            server,
        )
    }

    fn backend(&mut self, kind: Kind, who: Who) -> Result<Backend> {
        let dir = tempfile::tempdir().context("scratch directory")?;
        let socket = dir.path().join("disk.sock");
        let mut command = match who {
            Who::Qsd => self.qsd(kind, &socket)?,
            Who::File | Who::Vblk => self.vblk(kind, who, &socket)?,
            Who::Raw | Who::Fio => bail!("{} is no back-end", who.name()),
        };
        self.launcher.run(&mut command, vec![socket], dir)
    }

    fn qsd(&mut self, kind: Kind, socket: &Path) -> Result<Command> {
        // This also starts the NBD server; of the other kinds it is the name of a file.
        let file = self.scene.address(kind)?;
        let aio = &self.launcher.qsd_aio;
        let node = match kind {
            Kind::Device => format!("driver=host_device,filename={file},cache.direct=on,aio={aio}"),
            Kind::Extents => format!("driver=file,filename={file},cache.direct=on,aio={aio}"),
            Kind::Nbd => {
                let server = self.scene.socket();
                format!(
                    "driver=nbd,server.type=unix,server.path={}",
                    server.display()
                )
            }
            Kind::Segments | Kind::StripedSegments | Kind::Stripe | Kind::Mirror => {
                bail!("qemu-storage-daemon has no {}", kind.name())
            }
        };
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--object", "iothread,id=t0", "--blockdev"]);
        command.arg(format!("{node},node-name=d0"));
        command.arg("--export").arg(format!(
            "vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={},writable=on,iothread=t0",
            socket.display()
        ));
        Ok(command)
    }

    fn vblk(&mut self, kind: Kind, who: Who, socket: &Path) -> Result<Command> {
        let address = self.scene.address(kind)?;
        let more = match kind {
            Kind::Extents if who == Who::Vblk => ",cache=direct,map=extents".to_owned(),
            Kind::Segments | Kind::StripedSegments if who == Who::Vblk => {
                ",cache=direct,map=segments".to_owned()
            }
            Kind::Device
            | Kind::Extents
            | Kind::Segments
            | Kind::StripedSegments
            | Kind::Stripe => ",cache=direct".to_owned(),
            Kind::Mirror => format!(",cache=direct,record={}", self.record(&address)?),
            Kind::Nbd => String::new(),
        };
        let mut command = Command::new(&self.launcher.vblk);
        command
            .arg("serve")
            .arg("--cpu")
            .arg(self.launcher.cpu.to_string());
        command
            .arg("--control")
            .arg(socket.with_file_name("control.sock"));
        let disk = format!("{address},socket={}{more}", socket.display());
        command.arg("--disk").arg(disk);
        Ok(command)
    }

    /// A new record of the mirror, which says that both files are equal: after a run, regions would
    /// be marked still, and copied during the next one.
    fn record(&self, address: &str) -> Result<String> {
        let record = self.scene.at("record");
        if record.exists() {
            std::fs::remove_file(&record)?;
        }
        let mut create = Command::new(&self.launcher.vblk);
        create.args(["mirror", "create", address, "--assume-clean", "--record"]);
        tool(create.arg(&record))?;
        Ok(record.display().to_string())
    }
}
