//! `vswitch` will be a polling L2 switch for virtual machines: vhost-user-net ports, MAC learning,
//! 802.1Q VLANs, spanning tree, and TAP, `AF_XDP` and DPDK uplinks, on the rings and sessions of
//! `towpath-common`.
//!
//! Nothing of it is built yet and this crate exports nothing; ARCHITECTURE.md has the plan.
