//! How Kafka is spoken to: what may be configured, and the settings of the clients that follow from it.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use ring::NodeId;

use super::silence::SILENCE_MAX;
use super::watermark::Bound;
use crate::bus::codec::ENVELOPE_BYTES_MAX;

/// The topic of a node is called this and its id, as in the system this replaces.
pub const NODE_TOPIC_PREFIX: &str = "delivery_node_";
/// Where records go that nobody can use.
pub const DEAD_LETTER_TOPIC: &str = "rtc.dead-letter";
/// Where rings are announced.
pub const RING_TOPIC: &str = "rtc.control.ring";
/// Where nodes are asked to drain.
pub const DRAIN_TOPIC: &str = "rtc.control.drain";

/// Partitions of a new node topic: one for what others wait for, eight for messages.
pub const PARTITIONS: u16 = 9;
/// The replication of a new topic is the brokers' default.
pub const REPLICATION_DEFAULT: i32 = -1;
/// Records that may be on their way to Kafka at once.
pub const IN_FLIGHT_RECORDS_MAX: usize = 65_536;
/// Bytes of values that may be on their way to Kafka at once.
pub const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;
/// Beside its value: key, headers, and what Kafka puts around a record and a batch.
const FRAMING_BYTES_MAX: usize = 16 << 10;
/// Batches of this size at least are worth having, whatever the message limit.
const BATCH_BYTES_MIN: usize = 1_000_000;
/// How long a record may wait for company, in milliseconds. With the producer's own pace of 2 ms this halves the processor
/// time of a record at 10,000/s against no wait, here and at the broker: a request takes one partition's records only.
const LINGER_MS: &str = "2";

/// What may be configured.
#[derive(Debug, Clone)]
pub struct Config {
    /// `HOST:PORT,…`.
    pub brokers: String,
    /// The most bytes of a payload.
    pub payload_bytes_max: usize,
    /// Partitions of a topic that is created for a node; at least 1.
    pub partitions: u16,
    /// Replicas of a topic that is created; -1 leaves it to the brokers.
    pub replication: i32,
    /// What may be unfinished in a partition of this node's topic.
    pub bound: Bound,
    /// Records that may be on their way to Kafka.
    pub in_flight_records: usize,
    /// Bytes that may be on their way to Kafka.
    pub in_flight_bytes: usize,
    /// How long a client may hear nothing before it is asked whether it still has brokers.
    pub silence_max: Duration,
    /// More settings of the client library, such as `security.protocol`; they come last and win.
    pub options: Vec<(String, String)>,
}

impl Config {
    /// The defaults for these brokers and this message limit.
    pub fn new(brokers: &str, payload_bytes_max: usize) -> Self {
        Self {
            brokers: brokers.to_owned(),
            payload_bytes_max,
            partitions: PARTITIONS,
            replication: REPLICATION_DEFAULT,
            bound: Bound::default(),
            in_flight_records: IN_FLIGHT_RECORDS_MAX,
            in_flight_bytes: IN_FLIGHT_BYTES_MAX,
            silence_max: SILENCE_MAX,
            options: Vec::new(),
        }
    }

    /// The brokers that a client begins with: an operator's setting wins here too.
    pub(in crate::bus) fn bootstrap(&self) -> &str {
        let names = ["bootstrap.servers", "metadata.broker.list"];
        let given = self.options.iter().rev().find(|(name, _)| names.contains(&name.as_str()));
        given.map_or(&self.brokers, |(_, brokers)| brokers)
    }

    /// The most bytes that a record's value may have.
    pub fn value_bytes_max(&self) -> usize {
        self.payload_bytes_max.saturating_add(ENVELOPE_BYTES_MAX)
    }

    /// The most bytes of a request to produce, and of a batch.
    fn batch_bytes_max(&self) -> usize {
        self.value_bytes_max().saturating_add(FRAMING_BYTES_MAX).max(BATCH_BYTES_MIN)
    }

    /// What a topic must take (`max.message.bytes`); Kafka counts whole batches.
    pub fn topic_bytes_max(&self) -> usize {
        self.batch_bytes_max().saturating_add(FRAMING_BYTES_MAX)
    }

    /// Settings that all clients share.
    pub(super) fn client(&self, node: &NodeId) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", format!("rtc-{node}"))
            // A topic that springs into being by being named would have the wrong number of partitions.
            .set("allow.auto.create.topics", "false")
            .set("socket.keepalive.enable", "true")
            .set("socket.nagle.disable", "true")
            .set("socket.timeout.ms", "15000")
            // A broker that is back must be found within a second or two.
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "1000")
            .set("retry.backoff.ms", "100")
            .set("retry.backoff.max.ms", "1000")
            // Nobody at the brokers asks how the clients are: what is counted is on the page of metrics.
            .set("enable.metrics.push", "false")
            .set_log_level(RDKafkaLogLevel::Warning);
        client
    }

    /// Puts the operator's own settings on top.
    fn with_options(&self, mut client: ClientConfig) -> ClientConfig {
        for (name, value) in &self.options {
            client.set(name, value);
        }
        client
    }

    /// Settings of the client that asks for topics.
    pub(super) fn topics(&self, node: &NodeId) -> ClientConfig {
        self.with_options(self.client(node))
    }

    /// Settings of the producer: it never gives up on a record by itself and never lets a later one overtake.
    pub(super) fn producer(&self, node: &NodeId) -> ClientConfig {
        let mut client = self.client(node);
        let batch_bytes_max = self.batch_bytes_max().to_string();
        client
            .set("acks", "all")
            .set("enable.idempotence", "true")
            // A batch that fails for good is a fatal error, so that nothing behind it gets through before it.
            .set("enable.gapless.guarantee", "true")
            // No record ever times out.
            .set("message.timeout.ms", "0")
            .set("linger.ms", LINGER_MS)
            .set("message.max.bytes", &batch_bytes_max)
            .set("batch.size", &batch_bytes_max)
            // What may be in flight is bounded before it gets here.
            .set("queue.buffering.max.messages", (self.in_flight_records + 1000).min(10_000_000).to_string())
            .set("queue.buffering.max.kbytes", (self.in_flight_bytes / 512 + 65_536).min(2_147_483_647).to_string());
        self.with_options(client)
    }

    /// Settings of a consumer that is told its partitions and commits when told to. A fetch is answered as soon as there is
    /// anything, and after `fetch_wait` with nothing: only a partition that is resumed meanwhile must wait for the next one.
    pub(in crate::bus) fn consumer(&self, node: &NodeId, group: &str, fetch_wait: Duration) -> ClientConfig {
        let mut client = self.client(node);
        client
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "false")
            .set("isolation.level", "read_committed")
            .set("fetch.min.bytes", "1")
            .set("fetch.wait.max.ms", fetch_wait.as_millis().to_string())
            .set("fetch.error.backoff.ms", "100")
            .set("fetch.queue.backoff.ms", "10")
            .set("queued.min.messages", "10000")
            .set("queued.max.messages.kbytes", "16384");
        self.with_options(client)
    }
}

/// The topic of `node`.
pub fn node_topic(node: &NodeId) -> String {
    format!("{NODE_TOPIC_PREFIX}{node}")
}

/// The group under which `node`'s topic is read, whoever reads it.
pub fn node_group(node: &NodeId) -> String {
    format!("rtc-delivery-{node}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_begins_with_the_brokers_that_an_operators_setting_names() {
        let mut config = Config::new("x:1", 0);
        assert_eq!(config.bootstrap(), "x:1");
        config.options.push(("bootstrap.servers".to_owned(), "y:2".to_owned()));
        assert_eq!(config.bootstrap(), "y:2");
    }

    #[test]
    fn a_topic_with_kafkas_default_limit_takes_what_the_default_message_limit_needs() {
        const KAFKA_DEFAULT: usize = 1_048_588;
        assert!(Config::new("x:1", 256 << 10).topic_bytes_max() <= KAFKA_DEFAULT);
        assert!(Config::new("x:1", 4 << 20).topic_bytes_max() > 4 << 20);
    }
}
