//! A shard's two clocks, read once per turn: ticks for deadlines, which never step back, and the wall for stamps.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::routing::Now;

/// Length of a tick.
pub const TICK: Duration = Duration::from_millis(50);

/// Ticks since the shard started: enough for six years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Tick(u32);

impl Tick {
    /// How long ago `earlier` was.
    pub fn since(self, earlier: Tick) -> Duration {
        TICK.saturating_mul(self.0.saturating_sub(earlier.0))
    }

    /// So much later.
    #[cfg(test)]
    pub fn after(self, time: Duration) -> Tick {
        Tick(self.0 + u32::try_from(time.as_millis() / TICK.as_millis()).unwrap())
    }
}

/// The time of this turn.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    /// Ticks since the shard started.
    pub tick: Tick,
    /// Milliseconds since 1970; never below an earlier reading.
    pub wall_ms: u64,
    /// Milliseconds since the shard started.
    pub steady_ms: u64,
    /// The wall clock when the shard started.
    pub started_ms: u64,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        let wall_ms = wall_ms();
        Self { started: Instant::now(), tick: Tick::default(), wall_ms, steady_ms: 0, started_ms: wall_ms }
    }

    /// Both readings, for the pure parts.
    pub fn now(&self) -> Now {
        Now { wall_ms: self.wall_ms, steady_ms: self.steady_ms }
    }

    /// Reads both clocks.
    pub fn refresh(&mut self) {
        let elapsed = self.started.elapsed().as_millis();
        self.steady_ms = u64::try_from(elapsed).unwrap_or(u64::MAX);
        let ticks = elapsed / TICK.as_millis();
        self.tick = Tick(u32::try_from(ticks).unwrap_or(u32::MAX));
        self.wall_ms = self.wall_ms.max(wall_ms());
    }
}

fn wall_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
