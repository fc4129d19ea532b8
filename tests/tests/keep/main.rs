//! A daemon's death is invisible: killed under full load, again and again, on the same connections.
//!
//! `make test` kills some forty times a test; `TOWPATH_KILLS=1000` in the environment is the long
//! run: so often, and 50 times where real guests run.

mod deaf;
mod disk;
mod fio;
mod harness;
mod model;
mod newer;
mod ports;
mod switch;
mod switch_model;
mod trouble;
mod uplinks;
mod vm;
