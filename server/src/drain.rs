//! How far a node is on its way out, as seen from outside its shards: what `/readyz`, `/drain/status` and the end of the
//! process go by. The closing itself is each shard's affair.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest window a drain may have.
pub const WINDOW_MAX: Duration = Duration::from_secs(3600);

/// How far a node is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It takes connections.
    Serving,
    /// It takes none and closes those it has.
    Draining,
    /// It takes none and has none.
    Drained,
    /// It closes everything at once and ends.
    Stopping,
}

impl Phase {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Stopping => "stopping",
        }
    }
}

/// A drain that has begun.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    /// When.
    pub at: Instant,
    /// Over which the closing is spread.
    pub window: Duration,
    /// Connections that were open then.
    pub connections: u64,
}

/// The one drain of a node's life.
#[derive(Debug, Default)]
pub struct Drain {
    begun: Mutex<Option<Begun>>,
    is_stopping: AtomicBool,
}

impl Drain {
    /// Notes the beginning; false when there was one already, which goes on as it is.
    pub(crate) fn begin(&self, begun: Begun) -> bool {
        let mut slot = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = slot.is_none();
        slot.get_or_insert(begun);
        is_first
    }

    /// Notes that the node stops at once.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
    }

    /// The drain, if it has begun.
    pub fn begun(&self) -> Option<Begun> {
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it is, with so many connections open.
    pub fn phase(&self, connections: u64) -> Phase {
        match (self.is_stopping.load(Ordering::Acquire), self.begun(), connections) {
            (true, ..) => Phase::Stopping,
            (false, None, _) => Phase::Serving,
            (false, Some(_), 0) => Phase::Drained,
            (false, Some(_), _) => Phase::Draining,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_begins_once_and_is_over_when_nobody_is_left() {
        let drain = Drain::default();
        assert_eq!(drain.phase(0), Phase::Serving);
        let begun = Begun { at: Instant::now(), window: Duration::from_secs(1), connections: 3 };
        assert!(drain.begin(begun));
        assert!(!drain.begin(Begun { connections: 9, ..begun }));
        assert_eq!(drain.begun().map(|begun| begun.connections), Some(3));
        assert_eq!(drain.phase(3), Phase::Draining);
        assert_eq!(drain.phase(0), Phase::Drained);
        drain.stop();
        assert_eq!(drain.phase(3), Phase::Stopping);
    }
}
