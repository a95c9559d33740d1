//! Kafka: a thread that writes the control messages, and one that follows the ring's topic. Neither ever keeps the
//! balancer waiting: with Kafka away the newest ring is tried again until it is delivered or a newer one takes its place.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{Message, Offset, TopicPartitionList};
use ring::RingVersion;
use ring::control::RingUpdate;
use tracing::{debug, info, warn};

/// Announces rings.
pub const RING_TOPIC: &str = "rtc.control.ring";
/// Recommends more nodes or fewer.
pub const SCALE_TOPIC: &str = "rtc.control.scale";
/// Asks a node to send its clients elsewhere.
pub const DRAIN_TOPIC: &str = "rtc.control.drain";

/// Messages that wait to be written.
const WAITING_MAX: usize = 64;
/// How long one attempt to deliver may take.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a message other than a ring is tried before it is given up: it would be old news.
const NEWS_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long the follower waits for a message, or for the topic to exist.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);

/// A control message on its way.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where to.
    pub topic: &'static str,
    /// One key per stream of messages that must stay in order.
    pub key: String,
    /// The message.
    pub payload: Vec<u8>,
}

/// What is known of Kafka.
#[derive(Debug, Default)]
pub struct Progress {
    /// Messages delivered.
    pub delivered: AtomicU64,
    /// Attempts that failed.
    pub failed: AtomicU64,
    /// Messages given up.
    pub dropped: AtomicU64,
    /// The newest version seen on the ring's topic.
    newest: AtomicU64,
}

impl Progress {
    /// Returns the newest ring version seen on the topic.
    pub fn newest(&self) -> RingVersion {
        RingVersion::new(self.newest.load(Ordering::Relaxed)).unwrap_or(RingVersion::FIRST)
    }
}

/// The way to Kafka.
#[derive(Debug, Clone)]
pub struct Publisher {
    outgoing: SyncSender<Outgoing>,
    progress: Arc<Progress>,
}

impl Publisher {
    /// Starts the threads. Kafka need not be there yet.
    ///
    /// # Errors
    /// When a client cannot be made or a thread cannot be had.
    pub fn start(brokers: &str) -> anyhow::Result<Self> {
        let progress = Arc::new(Progress::default());
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers);
        let context = Reports { failure: Mutex::default() };
        let producer: BaseProducer<Reports> = config
            .clone()
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .set("message.max.bytes", "1000000")
            .set("message.timeout.ms", DELIVERY_TIMEOUT.as_millis().to_string())
            .create_with_context(context)?;
        let consumer: BaseConsumer = config
            .set("group.id", "rtc-balancer-unused")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "latest")
            .create()?;
        let (outgoing, waiting) = sync_channel(WAITING_MAX);
        let writing = Arc::clone(&progress);
        std::thread::Builder::new().name("kafka-out".to_owned()).spawn(move || write(&producer, &waiting, &writing))?;
        let following = Arc::clone(&progress);
        std::thread::Builder::new().name("kafka-in".to_owned()).spawn(move || follow(&consumer, &following))?;
        Ok(Self { outgoing, progress })
    }

    /// Hands a message over; false where too many wait, which is counted.
    pub fn send(&self, message: Outgoing) -> bool {
        match self.outgoing.try_send(message) {
            Ok(()) => true,
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => {
                self.progress.dropped.fetch_add(1, Ordering::Relaxed);
                warn!(topic = message.topic, "too many control messages wait for kafka: one is dropped");
                false
            }
        }
    }

    /// Returns what is known of Kafka.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }
}

struct Reports {
    failure: Mutex<Option<String>>,
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        }
    }
}

/// Writes messages in order, one at a time: they are rare, and each should be known to have arrived.
fn write(producer: &BaseProducer<Reports>, waiting: &Receiver<Outgoing>, progress: &Progress) {
    let mut next: Option<Outgoing> = None;
    let mut is_failing = false;
    loop {
        let message = match next.take().map_or_else(|| waiting.recv(), Ok) {
            Ok(message) => message,
            Err(_) => return,
        };
        let begun = Instant::now();
        loop {
            match deliver(producer, &message) {
                Ok(()) => {
                    progress.delivered.fetch_add(1, Ordering::Relaxed);
                    if std::mem::take(&mut is_failing) {
                        info!(topic = message.topic, "kafka takes control messages again");
                    }
                    break;
                }
                Err(reason) => {
                    progress.failed.fetch_add(1, Ordering::Relaxed);
                    if !std::mem::replace(&mut is_failing, true) {
                        warn!(topic = message.topic, reason, "kafka does not take a control message: trying on");
                    }
                }
            }
            let is_ring = message.topic == RING_TOPIC;
            if !is_ring && begun.elapsed() > NEWS_TIMEOUT {
                progress.dropped.fetch_add(1, Ordering::Relaxed);
                break;
            }
            match waiting.recv_timeout(RETRY_PAUSE) {
                // A newer ring takes this one's place; anything else waits its turn behind the ring.
                Ok(newer) if is_ring && newer.topic == RING_TOPIC => {
                    next = Some(newer);
                    break;
                }
                Ok(other) if is_ring => {
                    // A ring outlives news: what came behind it while Kafka was away is tried once.
                    if deliver(producer, &other).is_err() {
                        progress.dropped.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(newer) => {
                    progress.dropped.fetch_add(1, Ordering::Relaxed);
                    next = Some(newer);
                    break;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

fn deliver(producer: &BaseProducer<Reports>, message: &Outgoing) -> Result<(), String> {
    let failure = &producer.context().failure;
    *failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
    let record = BaseRecord::to(message.topic).key(&message.key).payload(&message.payload);
    producer.send(record).map_err(|(error, _)| error.to_string())?;
    producer.flush(DELIVERY_TIMEOUT + RETRY_PAUSE).map_err(|error| error.to_string())?;
    match failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
        None => Ok(()),
        Some(reason) => Err(reason),
    }
}

/// Follows the ring's topic from its last message on, for the newest version anyone has announced.
fn follow(consumer: &BaseConsumer, progress: &Progress) {
    while let Err(error) = assign(consumer) {
        debug!(%error, "the ring's topic cannot be followed yet");
        std::thread::sleep(FOLLOW_PAUSE);
    }
    loop {
        match consumer.poll(FOLLOW_PAUSE) {
            Some(Ok(message)) => {
                if let Some(update) = message.payload().and_then(|payload| RingUpdate::decode(payload).ok()) {
                    progress.newest.fetch_max(update.version.version.get(), Ordering::Relaxed);
                }
            }
            Some(Err(error)) => {
                debug!(%error, "the ring's topic cannot be read");
                std::thread::sleep(FOLLOW_PAUSE);
            }
            None => {}
        }
    }
}

fn assign(consumer: &BaseConsumer) -> KafkaResult<()> {
    let metadata = consumer.fetch_metadata(Some(RING_TOPIC), DELIVERY_TIMEOUT)?;
    let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition_offset(RING_TOPIC, partition.id(), Offset::OffsetTail(1))?;
    }
    if list.count() == 0 {
        return Err(rdkafka::error::KafkaError::MetadataFetch(rdkafka::types::RDKafkaErrorCode::UnknownTopic));
    }
    consumer.assign(&list)
}
