//! Real front-ends on vswitch: QEMU guests, DPDK's virtio-user, the host's own bridge.
//!
//! Guests of a scenario boot together and are told what to do a command at a time; scenarios run
//! one after another (see `towpath_tests::vm`), about 10 s each without KVM.

mod harness;
