//! What the node and the balancer do alike at their rim: flags over environment over file over defaults, values with units,
//! log lines, a port for operators and the files of its page, the rules of a lease in Redis.
//!
//! What a flag, a key or a request means stays with the program that has it.

pub mod file;
pub mod flags;
pub mod http;
pub mod lease;
pub mod listen;
pub mod logging;
pub mod millis;
pub mod page;
pub mod start;
pub mod values;
