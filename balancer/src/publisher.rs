//! Kafka: a thread that writes rings, one that writes news, and one that follows the ring's topic. None ever keeps the
//! balancer waiting, and no ring waits for news: with Kafka away the newest ring is tried again until it is delivered or a
//! newer one takes its place.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{Message, Offset, TopicPartitionList};
use ring::RingVersion;
use ring::control::RingUpdate;
use tracing::{debug, info, warn};

use crate::kafka::{Kafka, SILENCE_MAX, another};

/// Announces rings.
pub const RING_TOPIC: &str = "rtc.control.ring";
/// Recommends more nodes or fewer.
pub const SCALE_TOPIC: &str = "rtc.control.scale";
/// Asks a node to send its clients elsewhere.
pub const DRAIN_TOPIC: &str = "rtc.control.drain";

/// Rings that wait to be written, and as much news.
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
    /// Clients that were no longer answered, and replaced.
    pub replaced: AtomicU64,
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
    rings: SyncSender<Outgoing>,
    news: SyncSender<Outgoing>,
    progress: Arc<Progress>,
}

impl Publisher {
    /// Starts the threads. Kafka need not be there yet.
    ///
    /// # Errors
    /// When a client cannot be made or a thread cannot be had.
    pub fn start(kafka: &Kafka) -> anyhow::Result<Self> {
        let progress = Arc::new(Progress::default());
        let (rings, news) = (writer(kafka, "kafka-rings", &progress)?, writer(kafka, "kafka-news", &progress)?);
        let mut consumer = follower(kafka)?;
        let (kafka, following) = (kafka.clone(), Arc::clone(&progress));
        std::thread::Builder::new().name("kafka-in".to_owned()).spawn(move || {
            loop {
                consumer = follow(&consumer, &kafka, &following);
                following.replaced.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        Ok(Self { rings, news, progress })
    }

    /// Hands a message over; false where too many wait, which is counted.
    pub fn send(&self, message: Outgoing) -> bool {
        let outgoing = if message.topic == RING_TOPIC { &self.rings } else { &self.news };
        match outgoing.try_send(message) {
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

/// What follows the ring's topic.
fn follower(kafka: &Kafka) -> KafkaResult<BaseConsumer> {
    let own = [("group.id", "rtc-balancer-unused"), ("enable.auto.commit", "false"), ("auto.offset.reset", "latest")];
    kafka.client("rtc-balancer", &own).create()
}

fn producer(kafka: &Kafka) -> KafkaResult<BaseProducer<Reports>> {
    let timeout = DELIVERY_TIMEOUT.as_millis().to_string();
    let own = [
        ("acks", "all"),
        ("enable.idempotence", "true"),
        ("linger.ms", "0"),
        ("message.max.bytes", "1000000"),
        ("message.timeout.ms", timeout.as_str()),
    ];
    kafka.client("rtc-balancer", &own).create_with_context(Reports { failure: Mutex::default() })
}

/// Starts a thread that writes what it is given.
fn writer(kafka: &Kafka, name: &str, progress: &Arc<Progress>) -> anyhow::Result<SyncSender<Outgoing>> {
    let (outgoing, waiting) = sync_channel(WAITING_MAX);
    let (producer, progress) = (producer(kafka)?, Arc::clone(progress));
    let mut writer = Writer { kafka: kafka.clone(), producer, found: BTreeSet::new(), progress };
    std::thread::Builder::new().name(name.to_owned()).spawn(move || writer.run(&waiting))?;
    Ok(outgoing)
}

/// Writes messages in order, one at a time: they are rare, and each should be known to have arrived.
struct Writer {
    kafka: Kafka,
    producer: BaseProducer<Reports>,
    // Topics that are known to be there.
    found: BTreeSet<&'static str>,
    progress: Arc<Progress>,
}

impl Writer {
    fn run(&mut self, waiting: &Receiver<Outgoing>) {
        let mut next: Option<Outgoing> = None;
        let mut is_failing = false;
        loop {
            let Some(message) = next.take().or_else(|| self.await_message(waiting)) else { return };
            let begun = Instant::now();
            loop {
                match self.deliver(&message) {
                    Ok(()) => {
                        self.progress.delivered.fetch_add(1, Ordering::Relaxed);
                        if std::mem::take(&mut is_failing) {
                            info!(topic = message.topic, "kafka takes control messages again");
                        }
                        break;
                    }
                    Err(error) => {
                        self.progress.failed.fetch_add(1, Ordering::Relaxed);
                        if !std::mem::replace(&mut is_failing, true) {
                            let reason = format!("{error:#}");
                            warn!(topic = message.topic, reason, "kafka does not take a control message: trying on");
                        }
                        self.replace_if_deaf(message.topic);
                    }
                }
                let is_ring = message.topic == RING_TOPIC;
                if !is_ring && begun.elapsed() > NEWS_TIMEOUT {
                    self.progress.dropped.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                match waiting.recv_timeout(RETRY_PAUSE) {
                    // A newer one takes its place. A ring says all that the older one said; of news one is given up.
                    Ok(newer) => {
                        self.progress.dropped.fetch_add(u64::from(!is_ring), Ordering::Relaxed);
                        next = Some(newer);
                        break;
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        }
    }

    /// The next message; none when there will never be one. The producer is tried meanwhile, so that a message is not what
    /// finds out.
    fn await_message(&mut self, waiting: &Receiver<Outgoing>) -> Option<Outgoing> {
        loop {
            match waiting.recv_timeout(SILENCE_MAX) {
                Ok(message) => return Some(message),
                Err(RecvTimeoutError::Timeout) => self.replace_if_deaf(RING_TOPIC),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn replace_if_deaf(&mut self, topic: &str) {
        if let Some(another) = another(&self.producer, |producer| producer.client(), topic, || producer(&self.kafka)) {
            self.producer = another;
            self.progress.replaced.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn deliver(&mut self, message: &Outgoing) -> anyhow::Result<()> {
        if !self.found.contains(message.topic) {
            self.kafka.need_topic(self.producer.client(), message.topic)?;
            self.found.insert(message.topic);
        }
        let failure = &self.producer.context().failure;
        *failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let record = BaseRecord::to(message.topic).key(&message.key).payload(&message.payload);
        let outcome = self.producer.send(record).map_err(|(error, _)| anyhow!(error)).and_then(|()| {
            self.producer.flush(DELIVERY_TIMEOUT + RETRY_PAUSE)?;
            match failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
                None => Ok(()),
                Some(reason) => bail!(reason),
            }
        });
        if outcome.is_err() {
            // It may have been deleted.
            self.found.remove(message.topic);
        }
        outcome
    }
}

/// Follows the ring's topic from its last message on, for the newest version anyone has announced; until this client is not
/// answered and another is, which it returns.
fn follow(consumer: &BaseConsumer, kafka: &Kafka, progress: &Progress) -> BaseConsumer {
    let mut heard_at = Instant::now();
    // Rings are rare: after a silence only a question tells whether this client hears anything.
    let replacement = |heard_at: &mut Instant| {
        if heard_at.elapsed() < SILENCE_MAX {
            return None;
        }
        *heard_at = Instant::now();
        another(consumer, |consumer| consumer.client(), RING_TOPIC, || follower(kafka))
    };
    while let Err(error) = assign(consumer) {
        debug!(%error, "the ring's topic cannot be followed yet");
        std::thread::sleep(FOLLOW_PAUSE);
        if let Some(another) = replacement(&mut heard_at) {
            return another;
        }
    }
    loop {
        match consumer.poll(FOLLOW_PAUSE) {
            Some(Ok(message)) => {
                heard_at = Instant::now();
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
        if let Some(another) = replacement(&mut heard_at) {
            return another;
        }
    }
}

fn assign(consumer: &BaseConsumer) -> KafkaResult<()> {
    let metadata = consumer.fetch_metadata(Some(RING_TOPIC), DELIVERY_TIMEOUT)?;
    let partitions = metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions);
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition_offset(RING_TOPIC, partition.id(), Offset::OffsetTail(1))?;
    }
    if list.count() == 0 {
        return Err(rdkafka::error::KafkaError::MetadataFetch(rdkafka::types::RDKafkaErrorCode::UnknownTopic));
    }
    consumer.assign(&list)
}
