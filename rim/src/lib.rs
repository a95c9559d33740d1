//! What the node and the balancer do alike at their rim: flags over environment over file over defaults, values with units,
//! log lines, a port that may be open to strangers, the files of a page, the rules of a lease in Redis.
//!
//! What a flag or a key means stays with the program that has it. Nothing here opens a socket or starts a thread, but for
//! the one that writes log lines.

pub mod file;
pub mod flags;
pub mod lease;
pub mod listen;
pub mod logging;
pub mod millis;
pub mod page;
pub mod start;
pub mod values;
