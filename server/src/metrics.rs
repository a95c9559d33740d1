//! What is counted: one set of counters per shard, each with one writer, summed when somebody asks.

use std::fmt::{Display, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

mod latency;

pub use latency::{BOUNDS_MS, Latencies, Latency};

/// A number with one writer: plain load and store, no locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only ever called by the one writer.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// Sets a gauge. Only ever called by the one writer.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whether a number only rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only rises.
    Counter,
    /// It rises and falls.
    Gauge,
}

impl Kind {
    /// Prometheus' word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// A page of numbers in Prometheus' text format, written metric by metric.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    current: String,
}

impl Page {
    /// Adds one number. Those of one metric must follow each other; `labels` come as `name="value",…` or empty.
    pub fn add(&mut self, metric: &str, labels: &str, kind: Kind, help: &str, value: impl Display) {
        // Writing to a `String` cannot fail.
        if self.current != metric {
            metric.clone_into(&mut self.current);
            let _ = write!(self.text, "# HELP {metric} {help}\n# TYPE {metric} {}\n", kind.as_str());
        }
        let _ = match labels {
            "" => writeln!(self.text, "{metric} {value}"),
            labels => writeln!(self.text, "{metric}{{{labels}}} {value}"),
        };
    }

    /// Adds all that the shards count, summed over them.
    pub fn add_counters(&mut self, shards: &[Arc<Counters>]) {
        let mut sums = vec![0u64; DESCRIPTIONS.len()];
        for shard in shards {
            for (sum, value) in sums.iter_mut().zip(shard.values()) {
                *sum = sum.wrapping_add(value);
            }
        }
        for ((metric, labels, kind, help), sum) in DESCRIPTIONS.iter().zip(sums) {
            self.add(metric, labels, *kind, help, sum);
        }
    }

    /// Adds a histogram of what took milliseconds, in seconds.
    pub fn add_histogram(&mut self, metric: &str, help: &str, all: &Latencies) {
        metric.clone_into(&mut self.current);
        let _ = write!(self.text, "# HELP {metric} {help}\n# TYPE {metric} histogram\n");
        let mut count = 0u64;
        let bounds = BOUNDS_MS.iter().map(|ms| format!("{}.{:03}", ms / 1000, ms % 1000));
        for (of_bucket, bound) in all.counts.iter().zip(bounds.chain(["+Inf".to_owned()])) {
            count = count.wrapping_add(*of_bucket);
            let _ = writeln!(self.text, "{metric}_bucket{{le=\"{bound}\"}} {count}");
        }
        let (seconds, millis) = (all.sum_ms / 1000, all.sum_ms % 1000);
        let _ = writeln!(self.text, "{metric}_sum {seconds}.{millis:03}\n{metric}_count {count}");
    }

    /// The whole page.
    pub fn into_text(self) -> String {
        self.text
    }
}

macro_rules! counters {
    ($($field:ident: $kind:ident $metric:literal $labels:literal $help:literal,)*) => {
        /// One shard's counters.
        #[derive(Debug, Default)]
        pub struct Counters {
            $(#[doc = $help] pub $field: Counter,)*
            /// How long live deliveries took: a histogram, not one of [`DESCRIPTIONS`].
            pub delivery_latency: Latency,
        }

        /// Name, labels, kind and help of every number in [`Counters`], in the order of [`Counters::values`].
        pub const DESCRIPTIONS: &[(&str, &str, Kind, &str)] = &[$(($metric, $labels, Kind::$kind, $help),)*];

        impl Counters {
            /// All values, in the order of [`DESCRIPTIONS`].
            pub fn values(&self) -> impl Iterator<Item = u64> {
                [$(self.$field.value(),)*].into_iter()
            }
        }
    };
}

// Lines of one metric stand together: the text format wants them so.
counters! {
    connections: Gauge "rtc_socket_connections" "" "Connections that are open.",
    sessions: Gauge "rtc_socket_sessions" "" "Clients that are logged in.",
    accepted: Counter "rtc_socket_accepted_total" "" "Connections accepted.",
    logins: Counter "rtc_socket_logins_total" "" "Clients logged in.",
    refused_request: Counter "rtc_socket_refused_total" "cause=\"bad_request\"" "Connections or upgrades refused, by cause.",
    refused_upgrade: Counter "rtc_socket_refused_total" "cause=\"bad_upgrade\"" "Connections or upgrades refused, by cause.",
    refused_too_long: Counter "rtc_socket_refused_total" "cause=\"request_too_long\"" "Connections or upgrades refused, by cause.",
    refused_client_id: Counter "rtc_socket_refused_total" "cause=\"client_id\"" "Connections or upgrades refused, by cause.",
    refused_origin: Counter "rtc_socket_refused_total" "cause=\"origin\"" "Connections or upgrades refused, by cause.",
    refused_unknown_path: Counter "rtc_socket_refused_total" "cause=\"unknown_path\"" "Connections or upgrades refused, by cause.",
    refused_draining: Counter "rtc_socket_refused_total" "cause=\"draining\"" "Connections or upgrades refused, by cause.",
    refused_limit: Counter "rtc_socket_refused_total" "cause=\"connection_limit\"" "Connections or upgrades refused, by cause.",
    refused_rate: Counter "rtc_socket_refused_total" "cause=\"accept_rate\"" "Connections or upgrades refused, by cause.",
    refused_mailbox: Counter "rtc_socket_refused_total" "cause=\"mailbox_full\"" "Connections or upgrades refused, by cause.",
    refused_deadline: Counter "rtc_socket_refused_total" "cause=\"handshake_deadline\"" "Connections or upgrades refused, by cause.",
    refused_descriptors: Counter "rtc_socket_refused_total" "cause=\"descriptors\"" "Connections or upgrades refused, by cause.",
    closed_peer: Counter "rtc_socket_closed_total" "cause=\"peer\"" "Connections ended, by cause.",
    closed_protocol: Counter "rtc_socket_closed_total" "cause=\"protocol\"" "Connections ended, by cause.",
    closed_io: Counter "rtc_socket_closed_total" "cause=\"io\"" "Connections ended, by cause.",
    closed_no_pong: Counter "rtc_socket_closed_total" "cause=\"no_pong\"" "Connections ended, by cause.",
    closed_message_timeout: Counter "rtc_socket_closed_total" "cause=\"message_timeout\"" "Connections ended, by cause.",
    closed_slow: Counter "rtc_socket_closed_total" "cause=\"slow_consumer\"" "Connections ended, by cause.",
    closed_replaced: Counter "rtc_socket_closed_total" "cause=\"replaced\"" "Connections ended, by cause.",
    closed_drain: Counter "rtc_socket_closed_total" "cause=\"drain\"" "Connections ended, by cause.",
    closed_moved: Counter "rtc_socket_closed_total" "cause=\"move\"" "Connections ended, by cause.",
    closed_shutdown: Counter "rtc_socket_closed_total" "cause=\"shutdown\"" "Connections ended, by cause.",
    closed_handshake: Counter "rtc_socket_closed_total" "cause=\"handshake\"" "Connections ended, by cause.",
    advised_moves: Counter "rtc_socket_moves_advised_total" "" "Clients advised to go to the node that owns them.",
    redirected: Counter "rtc_socket_redirected_total" "" "Upgrade requests that were sent to the node that owns their client.",
    bytes_in: Counter "rtc_socket_received_bytes_total" "" "Bytes read from clients.",
    bytes_out: Counter "rtc_socket_sent_bytes_total" "" "Bytes written to clients.",
    echoed: Counter "rtc_socket_echoed_total" "" "Messages echoed.",
    messages_in: Counter "rtc_socket_messages_total" "" "Messages that clients and publishers sent.",
    delivered_queued: Counter "rtc_socket_deliveries_total" "path=\"local\"" "Messages accepted, by the path they took.",
    delivered_kept: Counter "rtc_socket_deliveries_total" "path=\"buffer\"" "Messages accepted, by the path they took.",
    delivered_repeat: Counter "rtc_socket_deliveries_total" "path=\"repeated\"" "Messages accepted, by the path they took.",
    delivered_relayed: Counter "rtc_socket_deliveries_total" "path=\"bus\"" "Messages accepted, by the path they took.",
    dropped_malformed: Counter "rtc_socket_message_refused_total" "cause=\"malformed\"" "Messages refused, each with an error to its sender, by cause.",
    dropped_too_large: Counter "rtc_socket_message_refused_total" "cause=\"too_large\"" "Messages refused, each with an error to its sender, by cause.",
    dropped_overloaded: Counter "rtc_socket_message_refused_total" "cause=\"overloaded\"" "Messages refused, each with an error to its sender, by cause.",
    dropped_buffer_recipient: Counter "rtc_socket_message_refused_total" "cause=\"buffer_full_recipient\"" "Messages refused, each with an error to its sender, by cause.",
    dropped_buffer_sender: Counter "rtc_socket_message_refused_total" "cause=\"buffer_full_sender\"" "Messages refused, each with an error to its sender, by cause.",
    dropped_buffer_node: Counter "rtc_socket_message_refused_total" "cause=\"buffer_full_node\"" "Messages refused, each with an error to its sender, by cause.",
    expired: Counter "rtc_socket_expired_total" "" "Accepted messages that reached their age limit undelivered.",
    acks_sent: Counter "rtc_socket_sender_acks_total" "" "Acks sent to senders.",
    acks_unclaimed: Counter "rtc_socket_sender_acks_unclaimed_total" "" "Acks whose sender was gone; it is answered when it asks again.",
    resolved: Counter "rtc_socket_target_resolution_success_total" "" "Absent recipients whose node the ring knew.",
    unresolved_no_ring: Counter "rtc_socket_target_resolution_failure_total" "cause=\"no_ring\"" "Absent recipients kept here for want of a node, by cause.",
    unresolved_hops: Counter "rtc_socket_target_resolution_failure_total" "cause=\"hops\"" "Absent recipients kept here for want of a node, by cause.",
    fences: Counter "rtc_socket_fences_total" "" "Fences written behind the last message of an old path.",
    fences_given_up: Counter "rtc_socket_order_given_up_total" "cause=\"fence\"" "Waits that ended without what they waited for, by what that was.",
    takeovers_given_up: Counter "rtc_socket_order_given_up_total" "cause=\"takeover\"" "Waits that ended without what they waited for, by what that was.",
    unclaimed: Counter "rtc_socket_logins_unclaimed_total" "" "Logins that went on without the store.",
    claims_lost: Counter "rtc_socket_claims_lost_total" "" "Sessions that ended because another node holds their client.",
    unconfirmed: Counter "rtc_socket_unconfirmed_total" "" "Messages whose sender was told that nothing is known of them.",
    owed_refused: Counter "rtc_store_owed_refused_total" "" "Times the store did not keep a message that was accepted before: it is asked again.",
    unexpected_answers: Counter "rtc_store_unexpected_answers_total" "" "Answers of the store that fit no question.",
    kept_messages: Gauge "rtc_store_messages" "" "Messages in replay buffers.",
    kept_bytes: Gauge "rtc_store_bytes" "" "Bytes that replay buffers take.",
    mailbox_full: Counter "rtc_shard_mailbox_full_total" "" "Times a shard's mailbox was full and the source paused.",
    mailbox_len: Gauge "rtc_shard_mailbox_length" "" "Messages that wait in the shards' mailboxes.",
    turns: Counter "rtc_shard_turns_total" "" "Times a shard was woken.",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_explains_each_metric_once_and_sums_over_the_shards() {
        let shards = [Arc::new(Counters::default()), Arc::new(Counters::default())];
        shards[0].connections.set(2);
        shards[1].connections.set(3);
        shards[1].refused_origin.add(7);
        let mut page = Page::default();
        page.add_counters(&shards);
        let text = page.into_text();
        assert!(text.contains("rtc_socket_connections 5\n"));
        assert!(text.contains("rtc_socket_refused_total{cause=\"origin\"} 7\n"));
        let mut explained: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
        let count = explained.len();
        explained.sort_unstable();
        explained.dedup();
        assert_eq!(explained.len(), count, "the numbers of one metric do not stand together");
        assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), DESCRIPTIONS.len());
    }

    #[test]
    fn a_histogram_is_cumulative_and_in_seconds() {
        let shard = Arc::new(Counters::default());
        for ms in [0, 1, 1500, 90_000] {
            shard.delivery_latency.record(ms);
        }
        let mut page = Page::default();
        page.add_histogram("some_seconds", "Some.", &Latencies::of(&[shard]));
        let text = page.into_text();
        assert!(text.starts_with("# HELP some_seconds Some.\n# TYPE some_seconds histogram\n"));
        for line in [
            "some_seconds_bucket{le=\"0.001\"} 2",
            "some_seconds_bucket{le=\"1.024\"} 2",
            "some_seconds_bucket{le=\"1.536\"} 3",
            "some_seconds_bucket{le=\"65.536\"} 3",
            "some_seconds_bucket{le=\"+Inf\"} 4",
            "some_seconds_sum 91.501",
            "some_seconds_count 4",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
    }
}
