//! The messages the `vhost` crate parses, turned into calls on [`Session`].

use std::fs::File;
use std::os::fd::OwnedFd;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::error::SessionError;
use super::state::Session;
use super::vring::Addresses;
use super::{Device, F_PROTOCOL_FEATURES};
use crate::mem::{MAX_REGIONS, Region, RegionSpec};
use crate::ring::inflight::InflightTable;

/// Some front-ends address configuration space by its offset in legacy PCI register space.
const LEGACY_CONFIG: u32 = 0x100;

impl From<SessionError> for Error {
    fn from(e: SessionError) -> Error {
        Error::ReqHandlerError(std::io::Error::other(e))
    }
}

fn spec(r: &VhostUserMemoryRegion) -> RegionSpec {
    let r = *r;
    RegionSpec {
        gpa: r.guest_phys_addr,
        len: r.memory_size,
        uva: r.user_addr,
        offset: r.mmap_offset,
    }
}

fn map(r: &VhostUserMemoryRegion, file: File) -> Result<Region> {
    Ok(Region::map(spec(r), OwnedFd::from(file)).map_err(SessionError::from)?)
}

fn bad_inflight(queues: u16, size: u16, offset: u64, why: String) -> SessionError {
    SessionError::BadInflight {
        queues,
        size,
        offset,
        why,
    }
}

fn no(what: &'static str) -> Error {
    SessionError::Unsupported(what).into()
}

impl<D: Device> VhostUserBackendReqHandlerMut for Session<D> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Ok(self.changed(Session::reset)?)
    }

    fn reset_device(&mut self) -> Result<()> {
        Ok(self.changed(Session::reset)?)
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        Ok(self.changed(|s| s.set_features(features))?)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mapped: Result<Vec<Region>> =
            regions.iter().zip(files).map(|(r, f)| map(r, f)).collect();
        let mapped = mapped?;
        self.changed(|s| s.set_memory(mapped))?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let index = self.index(index)?;
        Ok(self.changed(|s| s.set_size(index, num))?)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let index = self.index(index)?;
        let logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        let log = logged.then_some(log);
        let addresses = Addresses {
            desc: descriptor,
            avail: available,
            used,
            log,
        };
        Ok(self.changed(|s| s.set_addresses(index, addresses))?)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let index = self.index(index)?;
        Ok(self.changed(|s| s.set_base(index, base))?)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let small = self.index(index)?;
        let base = self.changed(|s| s.stop(small))?;
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.index(index.into())?;
        Ok(self.changed(|s| s.set_kick(index, fd.map(OwnedFd::from)))?)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.index(index.into())?;
        Ok(self.changed(|s| s.set_call(index, fd.map(OwnedFd::from)))?)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.index(index.into())?;
        Ok(self.changed(|s| s.set_err(index, fd.map(OwnedFd::from)))?)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(self.protocol_offered())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        Ok(self.changed(|s| s.set_protocol_features(features))?)
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.device.max_queues().into())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let index = self.index(index)?;
        if self.features & F_PROTOCOL_FEATURES == 0 {
            return Err(no(
                "SET_VRING_ENABLE without VHOST_USER_F_PROTOCOL_FEATURES",
            ));
        }
        Ok(self.changed(|s| s.set_enabled(index, enable))?)
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        // The crate bounds offset + size by its 4 KiB of configuration space.
        let offset = if offset >= LEGACY_CONFIG {
            offset - LEGACY_CONFIG
        } else {
            offset
        };
        let mut buf = vec![0; size as usize];
        if self.device.read_config(offset, &mut buf) {
            Ok(buf)
        } else {
            let len = size as usize;
            Err(SessionError::BadConfig {
                what: "readable",
                offset,
                len,
            }
            .into())
        }
    }

    fn set_config(&mut self, offset: u32, buf: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        let offset = if offset >= LEGACY_CONFIG {
            offset - LEGACY_CONFIG
        } else {
            offset
        };
        if self.device.write_config(offset, buf) {
            self.commit();
            Ok(())
        } else {
            Err(SessionError::BadConfig {
                what: "writable",
                offset,
                len: buf.len(),
            }
            .into())
        }
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(no("GPU_SET_SOCKET"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(no("GET_SHARED_OBJECT"))
    }

    fn get_inflight_fd(
        &mut self,
        inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        // Not remembered: the front-end hands it back by SET_INFLIGHT_FD before it starts a ring.
        let (queues, size) = (inflight.num_queues, inflight.queue_size);
        let table = InflightTable::create(queues, size)
            .map_err(|e| bad_inflight(queues, size, 0, e.to_string()))?;
        let file = table.file().try_clone().map_err(Error::ReqHandlerError)?;
        let len = InflightTable::bytes(queues, size);
        Ok((
            VhostUserInflight::new(len, 0, queues, size),
            File::from(file),
        ))
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let VhostUserInflight {
            mmap_offset,
            num_queues,
            queue_size,
            ..
        } = *inflight;
        let file = OwnedFd::from(file);
        let bad = |why| bad_inflight(num_queues, queue_size, mmap_offset, why);
        if mmap_offset % 8 != 0 {
            return Err(bad("the offset is not a multiple of 8".to_owned()).into());
        }
        let table = InflightTable::adopt(file, mmap_offset, num_queues, queue_size)
            .map_err(|e| bad(e.to_string()))?;
        Ok(self.changed(|s| s.set_inflight(table))?)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let region = map(region, file)?;
        self.changed(|s| s.add_region(region))?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Ok(self.changed(|s| s.remove_region(&spec(region)))?)
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(no("SET_DEVICE_STATE_FD"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(no("CHECK_DEVICE_STATE"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(no("GET_SHMEM_CONFIG"))
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let VhostUserLog {
            mmap_size,
            mmap_offset,
        } = *log;
        Ok(self.changed(|s| s.set_log(OwnedFd::from(file), mmap_offset, mmap_size))?)
    }
}
