//! Measurements: what a request costs, beside the machine's own limit and beside peers.
//!
//! `bench` (the binary behind `make bench`) drives every vhost-user back-end by the same load
//! generator ([`load`]) pinned to one core, with the back-end pinned to the other ([`backend`]);
//! the limit is [`raw`] io_uring and [`fio`] on the same file in one thread. [`plan`] names rows
//! and goals, [`cpu`] tells how much of the machine something else used meanwhile, [`idle`]
//! measures what a daemon costs when nothing happens, [`report`] prints and writes JSON.
//! `ring` measures the virtqueue alone ([`chains`]), `fdb` the forwarding database ([`fdb`]).
//!
//! Rules that make the figures worth quoting: repetitions are the outer loop, so drift falls on
//! all rows alike; ratios are medians of ratios within a repetition; a run that something else
//! disturbed is repeated, and marked if it stays so.

pub mod backend;
pub mod chains;
pub mod cpu;
pub mod echo;
pub mod fdb;
pub mod fio;
pub mod forward;
pub mod idle;
pub mod load;
pub mod net;
pub mod options;
pub mod outage;
pub mod plan;
pub mod process;
pub mod raw;
pub mod report;
pub mod runner;
pub mod sriov;
pub mod storage;
