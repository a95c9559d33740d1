//! How long to wait before the next attempt.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);
/// A failure so long after the last wait is another trouble's first: where there is always something under way there is
/// no moment at which all of it is done.
const QUIET: Duration = Duration::from_secs(5);
/// A trouble that lasts is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Doubles the wait with each failure in a row, and says when there is something to log.
#[derive(Debug, Default)]
pub struct Backoff {
    wait: Duration,
    failed_at: Option<Instant>,
    logged_at: Option<Instant>,
}

impl Backoff {
    /// How long to wait after one more failure.
    pub fn fail(&mut self, now: Instant) -> Duration {
        if self.failed_at.is_some_and(|at| now.saturating_duration_since(at) > self.wait + QUIET) {
            self.succeed();
        }
        self.failed_at = Some(now);
        self.wait = (self.wait * 2).clamp(FIRST, LONGEST);
        self.wait
    }

    /// It works again.
    pub fn succeed(&mut self) {
        self.wait = Duration::ZERO;
        self.logged_at = None;
    }

    /// True at the first failure and then every few seconds.
    pub fn should_log(&mut self, now: Instant) -> bool {
        let is_due = self.logged_at.is_none_or(|at| now.duration_since(at) >= LOG_INTERVAL);
        if is_due {
            self.logged_at = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_limit_and_starts_over() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        assert_eq!(backoff.fail(now), FIRST);
        assert_eq!(backoff.fail(now), FIRST * 2);
        for _ in 0..20 {
            backoff.fail(now);
        }
        assert_eq!(backoff.fail(now), LONGEST);
        assert!(backoff.should_log(now));
        assert!(!backoff.should_log(now + LOG_INTERVAL / 2));
        assert!(backoff.should_log(now + LOG_INTERVAL));
        backoff.succeed();
        assert_eq!(backoff.fail(now), FIRST);
        assert!(backoff.should_log(now));
    }

    #[test]
    fn a_failure_long_after_the_last_is_a_first_one() {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        for _ in 0..20 {
            // Each soon after the wait for the one before.
            now += backoff.fail(now) + QUIET;
        }
        assert_eq!(backoff.fail(now), LONGEST);
        now += LONGEST + QUIET + FIRST;
        assert!(backoff.should_log(now));
        assert_eq!(backoff.fail(now), FIRST);
    }
}
