//! When messages were overdue, lost or repeated: counts per tenth of a second, for the time after a fault and for the
//! plot of the backlog.
//!
//! Unlike the recorder's series it goes on while the run drains, which is when a backlog shrinks. Knows no faults.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    clock::{Nanos, nanos},
    recorder::Window,
};

/// A message this long after it was due is overdue.
pub(crate) const OVERDUE_AFTER: Nanos = 1_000_000_000;
/// The precision of what is told about a fault.
pub(crate) const BUCKET_NANOS: Nanos = 100_000_000;
/// Longer runs have it all in their last bucket from there on.
const BUCKETS_MAX: u64 = 1 << 20;
/// Connections are closed after the drain.
const MARGIN: Duration = Duration::from_secs(5);

/// Counts over the time of a run, from its start to the end of its drain.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Timeline {
    start: Nanos,
    /// How many more messages are overdue in a bucket than in the one before it.
    overdue_changes: Vec<i64>,
    lost: Vec<u64>,
    repeats: Vec<u64>,
}

/// The sums over a part of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Period {
    /// From the part's start to the end of the last bucket with an overdue message; zero if there is none, `None` if it
    /// is the part's last.
    pub(crate) overdue_until: Option<Duration>,
    pub(crate) lost: u64,
    pub(crate) repeats: u64,
}

impl Timeline {
    /// A timeline for a run with this window and drain.
    pub(crate) fn for_window(window: Window, drain: Duration) -> Self {
        let end = window.end.saturating_add(nanos(drain + MARGIN));
        let buckets = end.saturating_sub(window.start).div_ceil(BUCKET_NANOS).clamp(1, BUCKETS_MAX);
        let buckets = usize::try_from(buckets).unwrap_or(1);
        Self {
            start: window.start,
            overdue_changes: vec![0; buckets],
            lost: vec![0; buckets],
            repeats: vec![0; buckets],
        }
    }

    /// A message that was due at `due` arrived.
    pub(crate) fn record_arrival(&mut self, due: Nanos, now: Nanos) {
        let overdue_at = due.saturating_add(OVERDUE_AFTER);
        if now <= overdue_at || self.overdue_changes.is_empty() {
            return;
        }
        let (first, last) = (self.bucket(overdue_at), self.bucket(now));
        self.overdue_changes[first] += 1;
        if let Some(change) = self.overdue_changes.get_mut(last + 1) {
            *change -= 1;
        }
    }

    /// A message that was due at `due` was never confirmed and never arrived.
    pub(crate) fn record_undelivered(&mut self, due: Nanos) {
        if !self.overdue_changes.is_empty() {
            let bucket = self.bucket(due.saturating_add(OVERDUE_AFTER));
            self.overdue_changes[bucket] += 1;
        }
    }

    /// A message that was due at `due` was confirmed and never arrived.
    pub(crate) fn record_lost(&mut self, due: Nanos) {
        if !self.lost.is_empty() {
            let bucket = self.bucket(due.saturating_add(OVERDUE_AFTER));
            self.lost[bucket] += 1;
        }
        self.record_undelivered(due);
    }

    /// A client dropped a repeat.
    pub(crate) fn record_repeat(&mut self, now: Nanos) {
        if !self.repeats.is_empty() {
            let bucket = self.bucket(now);
            self.repeats[bucket] += 1;
        }
    }

    /// Adds another worker's counts. Their clocks may differ, their runs started together.
    pub(crate) fn add(&mut self, other: &Self) {
        add(&mut self.overdue_changes, &other.overdue_changes);
        add(&mut self.lost, &other.lost);
        add(&mut self.repeats, &other.repeats);
    }

    /// Messages overdue, by bucket since the start.
    pub(crate) fn overdue(&self) -> Vec<u64> {
        let sum = |overdue: &mut i64, change: &i64| {
            *overdue += change;
            Some(u64::try_from(*overdue).unwrap_or(0))
        };
        self.overdue_changes.iter().scan(0, sum).collect()
    }

    /// What lies between two times since the start; without an `end`, up to the end of all.
    pub(crate) fn period(&self, start: Duration, end: Option<Duration>) -> Period {
        let len = self.lost.len();
        let bucket = |at: Duration| usize::try_from(nanos(at) / BUCKET_NANOS).unwrap_or(usize::MAX).min(len);
        let first = bucket(start);
        let last = end.map_or(len, bucket).max(first);
        let overdue = self.overdue();
        let overdue_until = match overdue[first..last].iter().rposition(|count| *count > 0) {
            None => Some(Duration::ZERO),
            Some(at) if first + at + 1 == last => None,
            Some(at) => {
                let until = u64::try_from(first + at + 1).unwrap_or(u64::MAX).saturating_mul(BUCKET_NANOS);
                Some(Duration::from_nanos(until).saturating_sub(start))
            }
        };
        Period {
            overdue_until,
            lost: self.lost[first..last].iter().sum(),
            repeats: self.repeats[first..last].iter().sum(),
        }
    }

    fn bucket(&self, at: Nanos) -> usize {
        let bucket = usize::try_from(at.saturating_sub(self.start) / BUCKET_NANOS).unwrap_or(usize::MAX);
        bucket.min(self.lost.len() - 1)
    }
}

fn add<T: Copy + Default + std::ops::AddAssign>(mine: &mut Vec<T>, theirs: &[T]) {
    mine.resize(mine.len().max(theirs.len()), T::default());
    for (mine, theirs) in mine.iter_mut().zip(theirs) {
        *mine += *theirs;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn timeline() -> Timeline {
        Timeline::for_window(Window { start: SECOND, measure: SECOND, end: 6 * SECOND }, Duration::from_secs(5))
    }

    #[test]
    fn a_message_is_overdue_from_a_second_after_its_time_until_it_arrives() {
        let mut timeline = timeline();
        timeline.record_arrival(2 * SECOND, 3 * SECOND);
        assert!(timeline.overdue().iter().all(|count| *count == 0), "just in time");
        timeline.record_arrival(2 * SECOND, 3 * SECOND + SECOND / 2);
        timeline.record_arrival(2 * SECOND, 3 * SECOND + SECOND / 4);
        let overdue = timeline.overdue();
        assert_eq!(overdue[19..27], [0, 2, 2, 2, 1, 1, 1, 0]);
    }

    #[test]
    fn times_past_the_end_are_kept_in_the_last_bucket() {
        let mut timeline = timeline();
        timeline.record_arrival(2 * SECOND, 3000 * SECOND);
        timeline.record_lost(3000 * SECOND);
        timeline.record_repeat(u64::MAX);
        let all = timeline.period(Duration::ZERO, None);
        assert_eq!(all, Period { overdue_until: None, lost: 1, repeats: 1 });
    }

    #[test]
    fn a_run_without_a_window_counts_nothing() {
        let mut empty = Timeline::default();
        empty.record_arrival(0, 5 * SECOND);
        empty.record_lost(0);
        empty.record_repeat(0);
        let nothing = Period { overdue_until: Some(Duration::ZERO), lost: 0, repeats: 0 };
        assert_eq!(empty.period(Duration::from_secs(3), None), nothing);
    }

    #[test]
    fn workers_add_up() {
        let (mut sum, mut other) = (Timeline::default(), timeline());
        other.record_repeat(2 * SECOND);
        sum.add(&other);
        sum.add(&other);
        assert_eq!(sum.period(Duration::ZERO, None).repeats, 2);
    }
}
