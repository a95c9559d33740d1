//! What the bus counts: one set per thread, each with one writer.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::{Counter, Kind, Page};

macro_rules! counters {
    ($name:ident: $doc:literal; $($field:ident: $kind:ident $metric:literal $labels:literal $help:literal,)*) => {
        #[doc = $doc]
        #[derive(Debug, Default)]
        pub struct $name {
            $(#[doc = $help] pub $field: Counter,)*
        }

        impl $name {
            fn add_to(&self, page: &mut Page) {
                $(page.add($metric, $labels, Kind::$kind, $help, self.$field.value());)*
            }
        }
    };
}

counters! { ProducerCounters: "Counted by the thread that sends.";
    produced: Counter "rtc_socket_kafka_produced_total" "" "Records that Kafka has confirmed.",
    produced_bytes: Counter "rtc_socket_kafka_produced_bytes_total" "" "Bytes of values handed to the Kafka client.",
    resent: Counter "rtc_socket_kafka_resent_total" "" "Records sent again after a producer was rebuilt.",
    rebuilds: Counter "rtc_socket_kafka_producer_rebuilds_total" "" "Producers rebuilt after an error that theirs could not get over.",
    too_large: Counter "rtc_socket_kafka_refused_total" "cause=\"too_large\"" "Records that were not sent, by cause.",
    no_shard: Counter "rtc_socket_kafka_unclaimed_total" "" "Confirmations for a shard that does not exist.",
    unconfirmed: Gauge "rtc_socket_kafka_unconfirmed_records" "" "Records on their way to Kafka.",
    held: Gauge "rtc_socket_kafka_held_records" "" "Records that wait for a topic to be created or corrected.",
    oldest_ms: Gauge "rtc_socket_kafka_unconfirmed_oldest_milliseconds" "" "Age of the oldest record on its way to Kafka, 0 for none.",
}

counters! { ReaderCounters: "Counted by the thread that reads.";
    consumed: Counter "rtc_socket_kafka_consumed_total" "" "Records read from this node's topic.",
    consumed_bytes: Counter "rtc_socket_kafka_consumed_bytes_total" "" "Bytes of the values read from this node's topic.",
    poison_empty: Counter "rtc_socket_kafka_poison_total" "cause=\"empty\"" "Records that nobody can use, sent to the dead letters, by cause.",
    poison_too_large: Counter "rtc_socket_kafka_poison_total" "cause=\"too_large\"" "Records that nobody can use, sent to the dead letters, by cause.",
    poison_malformed: Counter "rtc_socket_kafka_poison_total" "cause=\"malformed\"" "Records that nobody can use, sent to the dead letters, by cause.",
    poison_client_id: Counter "rtc_socket_kafka_poison_total" "cause=\"client_id\"" "Records that nobody can use, sent to the dead letters, by cause.",
    poison_header: Counter "rtc_socket_kafka_poison_total" "cause=\"header\"" "Records that nobody can use, sent to the dead letters, by cause.",
    poison_unknown_kind: Counter "rtc_socket_kafka_poison_total" "cause=\"unknown_kind\"" "Records that nobody can use, sent to the dead letters, by cause.",
    no_shard: Counter "rtc_socket_kafka_misdirected_total" "" "Echoes for a shard that does not exist.",
    fences: Counter "rtc_socket_kafka_fences_total" "" "Fences echoed.",
    pauses: Counter "rtc_socket_kafka_pauses_total" "" "Times a partition was paused because too much of it was unfinished.",
    paused: Gauge "rtc_socket_kafka_paused_partitions" "" "Partitions that are paused.",
    unfinished: Gauge "rtc_socket_kafka_unfinished_records" "" "Records read and not finished.",
    unfinished_bytes: Gauge "rtc_socket_kafka_unfinished_bytes" "" "Bytes of the records read and not finished.",
    waiting_mail: Gauge "rtc_socket_kafka_waiting_records" "" "Records read that wait for room in a shard's mailbox.",
    commits: Counter "rtc_socket_kafka_commits_total" "" "Commits asked for.",
    commit_failures: Counter "rtc_socket_kafka_commit_failures_total" "" "Commits that failed and are tried again.",
    read_errors: Counter "rtc_socket_kafka_read_errors_total" "" "Errors while reading.",
    assignments: Counter "rtc_socket_kafka_assignments_total" "" "Times the reading of this node's topic began.",
    reading: Gauge "rtc_socket_kafka_reading" "" "1 while this node's topic is read.",
    lag_ms: Gauge "rtc_socket_kafka_lag_milliseconds" "" "Age of what is being read from this node's topic.",
}

counters! { TopicsCounters: "Counted by the thread that looks after topics.";
    created: Counter "rtc_socket_kafka_topics_created_total" "" "Topics created.",
    probe_failures: Counter "rtc_socket_kafka_probe_failures_total" "" "Times the brokers did not answer.",
    up: Gauge "rtc_socket_kafka_up" "" "1 while the brokers answer.",
}

counters! { Rebootstraps: "Clients that had lost their brokers, each counted by the thread that owns it.";
    topics: Counter "rtc_socket_kafka_rebootstraps_total" "client=\"topics\"" "Times a client had no broker any more and was given its own again, by client.",
    producer: Counter "rtc_socket_kafka_rebootstraps_total" "client=\"producer\"" "Times a client had no broker any more and was given its own again, by client.",
    reader: Counter "rtc_socket_kafka_rebootstraps_total" "client=\"reader\"" "Times a client had no broker any more and was given its own again, by client.",
    control: Counter "rtc_socket_kafka_rebootstraps_total" "client=\"control\"" "Times a client had no broker any more and was given its own again, by client.",
}

counters! { ControlCounters: "Counted by the thread that follows the control topics.";
    rings: Counter "rtc_socket_kafka_control_total" "kind=\"ring\"" "Control messages taken, by kind.",
    drains: Counter "rtc_socket_kafka_control_total" "kind=\"drain\"" "Control messages taken, by kind.",
    drains_over: Counter "rtc_socket_kafka_control_total" "kind=\"drain_over\"" "Control messages taken, by kind.",
    too_large: Counter "rtc_socket_kafka_control_refused_total" "cause=\"too_large\"" "Control messages refused, by cause.",
    too_deep: Counter "rtc_socket_kafka_control_refused_total" "cause=\"too_deep\"" "Control messages refused, by cause.",
    malformed: Counter "rtc_socket_kafka_control_refused_total" "cause=\"malformed\"" "Control messages refused, by cause.",
    out_of_range: Counter "rtc_socket_kafka_control_refused_total" "cause=\"out_of_range\"" "Control messages refused, by cause.",
    empty: Counter "rtc_socket_kafka_control_refused_total" "cause=\"empty\"" "Control messages refused, by cause.",
}

/// All that the bus counts.
#[derive(Debug, Default)]
pub struct KafkaCounters {
    /// By the thread that sends.
    pub producer: ProducerCounters,
    /// By the thread that reads.
    pub reader: ReaderCounters,
    /// By the thread that looks after topics.
    pub topics: TopicsCounters,
    /// By whoever owns a client.
    pub rebootstraps: Rebootstraps,
    // Every shard counts here, seldom: it is full only where Kafka is away or too slow.
    full: AtomicU64,
}

impl KafkaCounters {
    /// A shard was given its parcel back.
    pub fn count_full(&self) {
        self.full.fetch_add(1, Ordering::Relaxed);
    }

    /// How often a shard was given its parcel back.
    pub fn full(&self) -> u64 {
        self.full.load(Ordering::Relaxed)
    }

    /// Writes all of it to a page.
    pub fn add_to(&self, page: &mut Page) {
        self.topics.add_to(page);
        self.rebootstraps.add_to(page);
        self.producer.add_to(page);
        let help = "Times a shard was given its parcel back because too many were on their way.";
        page.add("rtc_socket_kafka_full_total", "", Kind::Counter, help, self.full());
        self.reader.add_to(page);
    }
}

impl ControlCounters {
    /// Writes all of it to a page.
    pub fn write_to(&self, page: &mut Page) {
        self.add_to(page);
    }

    /// Counts a refused message by the word that says why.
    pub fn refuse(&self, cause: &str) {
        let counter = match cause {
            "too_large" => &self.too_large,
            "too_deep" => &self.too_deep,
            "out_of_range" => &self.out_of_range,
            "empty" => &self.empty,
            _ => &self.malformed,
        };
        counter.add(1);
    }
}

impl ReaderCounters {
    /// Counts a record that nobody can use by the word that says why.
    pub fn poison(&self, cause: &str) {
        let counter = match cause {
            "empty" => &self.poison_empty,
            "too_large" => &self.poison_too_large,
            "client_id" => &self.poison_client_id,
            "header" => &self.poison_header,
            "unknown_kind" => &self.poison_unknown_kind,
            _ => &self.poison_malformed,
        };
        counter.add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_one_metric_stand_together() {
        let counters = KafkaCounters::default();
        counters.reader.poison("header");
        counters.count_full();
        let mut page = Page::default();
        counters.add_to(&mut page);
        ControlCounters::default().write_to(&mut page);
        let text = page.into_text();
        assert!(text.contains("rtc_socket_kafka_poison_total{cause=\"header\"} 1\n"), "{text}");
        assert!(text.contains("rtc_socket_kafka_full_total 1\n"), "{text}");
        let mut explained: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
        let count = explained.len();
        explained.sort_unstable();
        explained.dedup();
        assert_eq!(explained.len(), count);
    }
}
