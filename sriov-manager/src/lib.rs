//! `sriov-manager` will bring a host's SR-IOV virtual functions and IOMMU groups to a stated
//! configuration (scan, plan, apply, verify) and lease virtual functions to virtual machines.
//!
//! Nothing of it is built yet and this crate exports nothing; ARCHITECTURE.md has the plan.
