//! How far a node is on its way out, as seen from outside its shards: what `/readyz`, `/drain/status` and the end of the
//! process go by. The closing itself is each shard's affair.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest window a drain may be asked for; the number of disconnects may make it longer.
pub const WINDOW_MAX: Duration = Duration::from_secs(3600);

/// How quickly a drain may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Over which the closing is spread, unless that would be too quick.
    pub window: Duration,
    /// The most disconnects per second; none leaves it to the window.
    pub disconnects_max: Option<NonZeroU64>,
}

impl Pace {
    /// The window alone.
    pub fn over(window: Duration) -> Self {
        Self { window, disconnects_max: None }
    }

    /// How long it takes to close so many: the window gives way to the number of disconnects, for they are what the
    /// other nodes have to take in.
    pub fn length(self, connections: u64) -> Duration {
        let shortest = self
            .disconnects_max
            .map_or(Duration::ZERO, |max| Duration::from_millis(connections.saturating_mul(1000).div_ceil(max.get())));
        self.window.max(shortest)
    }
}

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
    /// Over which the closing is spread: what was asked for, or longer.
    pub window: Duration,
    /// The most disconnects per second, where it was named.
    pub disconnects_max: Option<NonZeroU64>,
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
        let window = Duration::from_secs(1);
        let begun = Begun { at: Instant::now(), window, disconnects_max: None, connections: 3 };
        assert!(drain.begin(begun));
        assert!(!drain.begin(Begun { connections: 9, ..begun }));
        assert_eq!(drain.begun().map(|begun| begun.connections), Some(3));
        assert_eq!(drain.phase(3), Phase::Draining);
        assert_eq!(drain.phase(0), Phase::Drained);
        drain.stop();
        assert_eq!(drain.phase(3), Phase::Stopping);
    }

    #[test]
    fn the_window_gives_way_to_the_number_of_disconnects() {
        for (window_ms, disconnects_max, connections, expected_ms) in [
            (60_000, 0, 1_000_000, 60_000),
            (60_000, 200, 0, 60_000),
            (60_000, 200, 12_000, 60_000),
            (60_000, 200, 12_001, 60_005),
            (0, 3, 1, 334),
            (0, 10, 100_000, 10_000_000),
            (0, u64::MAX, u64::MAX, 1),
        ] {
            let window = Duration::from_millis(window_ms);
            let pace = Pace { window, disconnects_max: NonZeroU64::new(disconnects_max) };
            let length = pace.length(connections);
            assert_eq!(length, Duration::from_millis(expected_ms), "{window_ms} {disconnects_max} {connections}");
        }
    }
}
