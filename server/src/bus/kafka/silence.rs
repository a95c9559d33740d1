//! The client library can forget every broker, the configured ones too, and then asks nobody anything ever again: a broker
//! that was away for a while names none, not even itself, until its controller has heard of it. So a client that has heard
//! nothing for a while is asked something, and given its brokers again where it cannot answer.

use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::client::Client;

use crate::metrics::Counter;
use crate::sys;

/// How long a client may hear nothing before it is asked, and how often it is asked while it does not. A request costs some
/// 100 us.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long the answer may take. Whoever owns the client waits for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// When a client has last heard something.
#[derive(Debug)]
pub struct Silence {
    max: Duration,
    since: Instant,
}

impl Silence {
    /// Begins now, and is long after `max`.
    pub fn new(max: Duration, now: Instant) -> Self {
        Self { max, since: now }
    }

    /// Something was heard.
    pub fn end(&mut self, now: Instant) {
        self.since = now;
    }

    /// True when it has been long; then it begins anew.
    pub fn is_long(&mut self, now: Instant) -> bool {
        let is_long = now.duration_since(self.since) >= self.max;
        if is_long {
            self.since = now;
        }
        is_long
    }
}

/// Asks for `topic`, and gives the client its brokers again where no answer comes or none that names a broker. To be called
/// while another client is answered: the library keeps what it is given. True when this one was answered.
pub fn revive<C: ClientContext>(client: &Client<C>, name: &str, topic: &str, brokers: &str, given: &Counter) -> bool {
    let reason = match client.fetch_metadata(Some(topic), ANSWER_TIMEOUT) {
        Ok(metadata) if !metadata.brokers().is_empty() => return true,
        Ok(_) => "kafka names no broker".to_owned(),
        Err(error) => error.to_string(),
    };
    sys::add_kafka_brokers(client, brokers);
    given.add(1);
    tracing::warn!(
        client = name,
        reason,
        "a kafka client has no broker any more: it is given those that are configured"
    );
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_long_once_in_its_length_and_ends_with_whatever_is_heard() {
        let start = Instant::now();
        let mut silence = Silence::new(SILENCE_MAX, start);
        assert!(!silence.is_long(start + SILENCE_MAX / 2));
        assert!(silence.is_long(start + SILENCE_MAX));
        assert!(!silence.is_long(start + SILENCE_MAX + SILENCE_MAX / 2));
        silence.end(start + SILENCE_MAX + SILENCE_MAX / 2);
        assert!(!silence.is_long(start + 2 * SILENCE_MAX));
        assert!(silence.is_long(start + 3 * SILENCE_MAX));
    }
}
