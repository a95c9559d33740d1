//! Time as this program measures it: nanoseconds since the process began.
//!
//! One `Nanos` fits in a message, subtracts in one instruction and means the same on every worker of a process.

use std::time::{Duration, Instant};

/// Nanoseconds since the [`Clock`] of this process was made.
pub(crate) type Nanos = u64;

/// The zero from which every worker of this process counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    zero: Instant,
}

impl Clock {
    /// A clock that reads 0 now.
    pub(crate) fn start() -> Self {
        Self { zero: Instant::now() }
    }

    /// Nanoseconds since [`Clock::start`].
    pub(crate) fn now(self) -> Nanos {
        nanos(self.zero.elapsed())
    }
}

/// A length of time in nanoseconds, at most 584 years.
pub(crate) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
