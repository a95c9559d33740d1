//! When each message of an open loop is due: a pure function of its index.
//!
//! Knows no clock and no connection. All workers of all processes share one schedule by taking every n-th index, so
//! that their messages interleave evenly instead of leaving together.

use crate::clock::Nanos;

const NANOS_PER_SECOND: u128 = 1_000_000_000;
/// Rates are kept in thousandths of a message per second, so that 0.5/s is exact.
const MILLI: f64 = 1000.0;

/// The rate of a whole run: message `k` is due `k / rate` seconds after the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    per_second_milli: u64,
}

impl Rate {
    pub(crate) const PER_SECOND_MAX: f64 = 1e9;

    /// `per_second` from 0.001 to 10⁹; `None` outside.
    pub(crate) fn new(per_second: f64) -> Option<Self> {
        if !(0.001..=Self::PER_SECOND_MAX).contains(&per_second) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be 1 to 10^12")]
        let per_second_milli = (per_second * MILLI).round() as u64;
        Some(Self { per_second_milli })
    }

    /// When message `index` is due, counted from the start. Exact for every index: no error accumulates.
    pub(crate) fn due(self, index: u64) -> Nanos {
        let due = u128::from(index) * NANOS_PER_SECOND * 1000 / u128::from(self.per_second_milli);
        u64::try_from(due).unwrap_or(u64::MAX)
    }
}

/// One worker's part of the schedule: indexes `first`, `first + step`, … that are due before the end.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    rate: Rate,
    start: Nanos,
    end: Nanos,
    next_index: u64,
    step: u64,
}

impl Schedule {
    /// The part of worker `first` of `step` workers, from `start` to `end` on this process's clock.
    pub(crate) fn new(rate: Rate, start: Nanos, end: Nanos, first: u32, step: u32) -> Self {
        assert!(first < step);
        Self { rate, start, end, next_index: u64::from(first), step: u64::from(step) }
    }

    /// When the next message is due, or `None` when the schedule is over.
    pub(crate) fn peek(&self) -> Option<Nanos> {
        let due = self.start.saturating_add(self.rate.due(self.next_index));
        (due < self.end).then_some(due)
    }

    /// Takes the next message if it is due at `now`: its intended time.
    pub(crate) fn take_due(&mut self, now: Nanos) -> Option<Nanos> {
        let due = self.peek()?;
        if due > now {
            return None;
        }
        self.next_index += self.step;
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_outside_the_range_are_refused() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 0.000_1, 1e10] {
            assert_eq!(Rate::new(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_slow_rate_is_exact_after_a_day() {
        let rate = Rate::new(0.5).unwrap();
        assert_eq!(rate.due(43_200), 86_400 * 1_000_000_000);
    }

    #[test]
    fn nothing_is_taken_before_it_is_due() {
        let mut schedule = Schedule::new(Rate::new(1000.0).unwrap(), 500, 10_000_000, 0, 1);
        assert_eq!(schedule.take_due(499), None);
        assert_eq!(schedule.take_due(500), Some(500));
        assert_eq!(schedule.take_due(500), None);
        assert_eq!(schedule.peek(), Some(1_000_500));
    }

    #[test]
    fn what_is_due_at_the_end_is_not_sent() {
        let mut schedule = Schedule::new(Rate::new(1000.0).unwrap(), 0, 10_000_000, 0, 1);
        let sent = std::iter::from_fn(|| schedule.take_due(u64::MAX)).count();
        assert_eq!((sent, schedule.peek()), (10, None));
    }

    proptest! {
        /// However many workers share a rate, together they send what one would have sent, at the same times.
        #[test]
        fn workers_share_one_schedule(rate in 0.1f64..50_000.0, workers in 1u32..9, end_ms in 1u64..200) {
            let rate = Rate::new(rate).unwrap();
            let end = end_ms * 1_000_000;
            let part = |first, step| {
                let mut schedule = Schedule::new(rate, 0, end, first, step);
                let mut times = Vec::new();
                while let Some(due) = schedule.take_due(u64::MAX) {
                    times.push(due);
                }
                times
            };
            let whole = part(0, 1);
            let mut shared: Vec<_> = (0..workers).flat_map(|worker| part(worker, workers)).collect();
            shared.sort_unstable();
            prop_assert_eq!(whole, shared);
        }
    }
}
