//! The benches are under `benches/`, what they cannot measure under `examples/`. This crate holds the clock they share.
#![forbid(unsafe_code)]

mod cpu_clock;

pub use cpu_clock::{CpuClock, criterion_by_cpu};
