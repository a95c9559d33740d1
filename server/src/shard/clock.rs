//! A shard's two clocks, read once per turn: ticks for deadlines, which never step back, and the wall for stamps.
//!
//! Ticks are the shard's own time: they stand still while it does not run. What it could not hear meanwhile was not its
//! peers' silence, and what would have been due then becomes due one after the other, not all at once.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::routing::Now;

/// Length of a tick.
pub const TICK: Duration = Duration::from_millis(TICK_MS);
const TICK_MS: u64 = 50;

/// The most ticks that pass in one turn, however long it was.
const TICKS_PER_TURN_MAX: u64 = 10;

/// Ticks that the shard has run: enough for six years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Tick(u32);

impl Tick {
    /// No moment that will come.
    pub const NEVER: Tick = Tick(u32::MAX);

    /// How long ago `earlier` was.
    pub fn since(self, earlier: Tick) -> Duration {
        TICK.saturating_mul(self.0.saturating_sub(earlier.0))
    }

    /// So much later, in whole ticks: no later than that.
    pub fn after(self, time: Duration) -> Tick {
        let ticks = u32::try_from(time.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX);
        Tick(self.0.saturating_add(ticks))
    }
}

/// The time of this turn.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    // Up to where time has been turned into ticks, in milliseconds since the shard started.
    ticked_ms: u64,
    /// Ticks that the shard has run.
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
        let tick = Tick::default();
        Self { started: Instant::now(), ticked_ms: 0, tick, wall_ms, steady_ms: 0, started_ms: wall_ms }
    }

    /// Both readings, for the pure parts.
    pub fn now(&self) -> Now {
        Now { wall_ms: self.wall_ms, steady_ms: self.steady_ms }
    }

    /// Reads both clocks.
    pub fn refresh(&mut self) {
        self.move_on(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.wall_ms = self.wall_ms.max(wall_ms());
    }

    fn move_on(&mut self, steady_ms: u64) {
        self.steady_ms = steady_ms;
        let passed = steady_ms.saturating_sub(self.ticked_ms) / TICK_MS;
        self.ticked_ms += passed * TICK_MS;
        let ticks = u32::try_from(passed.min(TICKS_PER_TURN_MAX)).unwrap_or(u32::MAX);
        self.tick = Tick(self.tick.0.saturating_add(ticks));
    }
}

fn wall_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ticks at each of these moments, in milliseconds since the start.
    fn ticks(moments: &[u64]) -> Vec<u32> {
        let mut clock = Clock::start();
        let tick = |moment: &u64| {
            clock.move_on(*moment);
            clock.tick.0
        };
        moments.iter().map(tick).collect()
    }

    #[test]
    fn ticks_follow_the_time_without_losing_parts_of_one() {
        assert_eq!(ticks(&[0, 49, 50, 99, 120, 149, 150, 500]), [0, 0, 1, 1, 2, 2, 3, 10]);
    }

    #[test]
    fn a_stalled_shard_takes_no_more_than_half_a_second_for_the_others_silence() {
        assert_eq!(ticks(&[100, 60_130, 60_149, 60_150, 60_200]), [2, 12, 12, 13, 14]);
    }
}
