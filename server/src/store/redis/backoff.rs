//! How long to wait before the next attempt.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);
/// A trouble that lasts is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Doubles the wait with each failure in a row, and says when there is something to log.
#[derive(Debug, Default)]
pub struct Backoff {
    wait: Duration,
    logged_at: Option<Instant>,
}

impl Backoff {
    /// How long to wait after one more failure.
    pub fn fail(&mut self) -> Duration {
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
        assert_eq!(backoff.fail(), FIRST);
        assert_eq!(backoff.fail(), FIRST * 2);
        for _ in 0..20 {
            backoff.fail();
        }
        assert_eq!(backoff.fail(), LONGEST);
        let now = Instant::now();
        assert!(backoff.should_log(now));
        assert!(!backoff.should_log(now + LOG_INTERVAL / 2));
        assert!(backoff.should_log(now + LOG_INTERVAL));
        backoff.succeed();
        assert_eq!(backoff.fail(), FIRST);
        assert!(backoff.should_log(now));
    }
}
