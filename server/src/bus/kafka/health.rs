//! Whether Kafka answers, what it last complained of, and how a person is told: one line every few seconds, not one per
//! attempt.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;

/// How often the same trouble is told again.
pub const COMPLAINT_INTERVAL: Duration = Duration::from_secs(5);

/// Shared by all that speak to Kafka.
#[derive(Debug, Default)]
pub struct Health {
    is_up: AtomicBool,
    last_error: Mutex<String>,
    misfit: Mutex<Option<String>>,
}

impl Health {
    /// True while the brokers answer.
    pub fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    /// The brokers have answered, or not. Returns whether that is news.
    pub fn set_up(&self, is_up: bool) -> bool {
        self.is_up.swap(is_up, Ordering::Relaxed) != is_up
    }

    /// Notes what a client complained of, for the next line to a person.
    pub fn note_error(&self, error: String) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    /// What a client complained of last.
    pub fn last_error(&self) -> String {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// This node's own topic does not fit its configuration, until somebody corrects it; none when it does.
    pub fn set_misfit(&self, misfit: Option<String>) {
        *self.misfit.lock().unwrap_or_else(PoisonError::into_inner) = misfit;
    }

    /// Why this node's own topic cannot be used, with the cure.
    pub fn misfit(&self) -> Option<String> {
        self.misfit.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Lets something through at most every [`COMPLAINT_INTERVAL`].
#[derive(Debug, Default)]
pub struct Complaint {
    last: Option<Instant>,
}

impl Complaint {
    /// True when it is time to complain again.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.last.is_none_or(|last| now.duration_since(last) >= COMPLAINT_INTERVAL);
        if is_due {
            self.last = Some(now);
        }
        is_due
    }

    /// All is well: the next complaint is due at once.
    pub fn reset(&mut self) {
        self.last = None;
    }
}

/// A line of the client library's own log. It repeats itself with every attempt: a matter for debugging.
pub fn log_line(client: &'static str, level: RDKafkaLogLevel, facility: &str, line: &str) {
    tracing::debug!(client, ?level, facility, line, "kafka client");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_made_at_once_and_then_seldom() {
        let start = Instant::now();
        let mut complaint = Complaint::default();
        assert!(complaint.is_due(start));
        assert!(!complaint.is_due(start + COMPLAINT_INTERVAL / 2));
        assert!(complaint.is_due(start + COMPLAINT_INTERVAL));
        complaint.reset();
        assert!(complaint.is_due(start + COMPLAINT_INTERVAL));
    }
}
