//! The way into other nodes' topics: every record is confirmed by all replicas, in order per partition, or the reading
//! ends without having committed it.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use ring::NodeId;
use tracing::debug;

use super::plan::OwnHeader;

/// Where records go that nobody can use.
pub const DEAD_LETTER_TOPIC: &str = "rtc.dead-letter";
/// The topic of a node is called this and its id.
pub const NODE_TOPIC_PREFIX: &str = "delivery_node_";

/// How long Kafka may take to tell of a topic.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Larger than any record that is read.
const REQUEST_BYTES_MAX: &str = "67108864";

/// Where a record stood in the dead node's topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The partition.
    pub partition: u16,
    /// The offset in it.
    pub offset: u64,
}

/// A record on its way.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// What it stands for: that is finished when this is confirmed.
    pub place: Place,
    /// Where to.
    pub topic: String,
    /// In which partition.
    pub partition: i32,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers.
    pub headers: Vec<OwnHeader>,
}

/// Settings that all clients share.
pub fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", "rtc-forwarder")
        // A topic that springs into being by being named would have the wrong number of partitions.
        .set("allow.auto.create.topics", "false")
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.ms", "100")
        .set("reconnect.backoff.max.ms", "1000")
        .set_log_level(RDKafkaLogLevel::Warning);
    config
}

#[derive(Debug, Default)]
struct Heard {
    reports: Vec<(usize, Option<RDKafkaErrorCode>)>,
    fatal: Option<String>,
}

/// Hears the library on the thread that polls it.
#[derive(Debug, Default)]
struct Reports(Mutex<Heard>);

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        debug!(?level, facility, line, "kafka, forwarding");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "kafka has trouble with forwarding");
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).fatal = Some(reason.to_owned());
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let failure = match result {
            Ok(_) => None,
            Err((error, _)) => Some(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).reports.push((number, failure));
    }
}

/// A producer and what it has not confirmed.
pub struct Sender {
    producer: BaseProducer<Reports>,
    brokers: String,
    partitions: HashMap<String, u16>,
    in_flight: HashMap<usize, (Place, usize)>,
    in_flight_bytes: usize,
    next_number: usize,
}

impl Sender {
    /// Makes the producer; Kafka need not be there.
    ///
    /// # Errors
    /// When the client library refuses its settings.
    pub fn new(brokers: &str) -> anyhow::Result<Self> {
        let producer = client(brokers)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            // A batch that fails for good is a fatal error, so that nothing behind it gets through before it.
            .set("enable.gapless.guarantee", "true")
            // No record ever times out: while Kafka is away the reading waits.
            .set("message.timeout.ms", "0")
            .set("linger.ms", "2")
            .set("message.max.bytes", REQUEST_BYTES_MAX)
            .create_with_context(Reports::default())?;
        Ok(Self {
            producer,
            brokers: brokers.to_owned(),
            partitions: HashMap::new(),
            in_flight: HashMap::new(),
            in_flight_bytes: 0,
            next_number: 0,
        })
    }

    /// Sends a record; false where the library has no room now.
    ///
    /// # Errors
    /// When it will never be sent.
    pub fn send(&mut self, outgoing: &Outgoing) -> anyhow::Result<bool> {
        let Outgoing { place, topic, partition, key, value, headers } = outgoing;
        let number = self.next_number;
        let mut record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(topic, number).partition(*partition).headers(owned(headers));
        if let Some(key) = key {
            record = record.key(key);
        }
        if let Some(value) = value {
            record = record.payload(value);
        }
        match self.producer.send(record) {
            Ok(()) => {
                let bytes = value.as_ref().map_or(0, Vec::len);
                self.next_number += 1;
                self.in_flight.insert(number, (*place, bytes));
                self.in_flight_bytes += bytes;
                Ok(true)
            }
            Err((error, _)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) => Ok(false),
            Err((error, _)) => Err(error).with_context(|| format!("a record for {topic} cannot be sent")),
        }
    }

    /// Takes what Kafka has confirmed.
    ///
    /// # Errors
    /// When a record has failed for good: nothing behind it gets through either.
    pub fn confirmed(&mut self) -> anyhow::Result<Vec<Place>> {
        self.producer.poll(Duration::ZERO);
        let heard = std::mem::take(&mut *self.producer.context().0.lock().unwrap_or_else(PoisonError::into_inner));
        let (mut places, mut failed) = (Vec::with_capacity(heard.reports.len()), None);
        for (number, failure) in heard.reports {
            let Some((place, bytes)) = self.in_flight.remove(&number) else { continue };
            self.in_flight_bytes -= bytes;
            match failure {
                None => places.push(place),
                Some(code) => failed = Some(code),
            }
        }
        match (heard.fatal, failed) {
            (Some(reason), _) => bail!("kafka takes no more from this producer: {reason}"),
            (None, Some(code)) => bail!("kafka does not take a record: {code}"),
            (None, None) => Ok(places),
        }
    }

    /// Records that are not confirmed, and the bytes of their values.
    pub fn in_flight(&self) -> (usize, usize) {
        (self.in_flight.len(), self.in_flight_bytes)
    }

    /// How many partitions a node's topic has; `None` where there is no such topic.
    ///
    /// # Errors
    /// When Kafka does not tell.
    pub fn partitions<C: ConsumerContext>(
        &mut self,
        asking: &BaseConsumer<C>,
        node: &NodeId,
    ) -> anyhow::Result<Option<u16>> {
        let topic = format!("{NODE_TOPIC_PREFIX}{node}");
        if let Some(partitions) = self.partitions.get(&topic) {
            return Ok(Some(*partitions));
        }
        let found = partitions_of(asking, &topic)?;
        // At most one entry for each node whose topic exists.
        self.partitions.extend(found.map(|partitions| (topic, partitions)));
        Ok(found)
    }

    /// Makes sure that there is a topic for dead letters.
    ///
    /// # Errors
    /// When it is not there and cannot be created.
    pub fn need_dead_letters<C: ConsumerContext>(&mut self, asking: &BaseConsumer<C>) -> anyhow::Result<()> {
        if self.partitions.contains_key(DEAD_LETTER_TOPIC) {
            return Ok(());
        }
        let mut partitions = partitions_of(asking, DEAD_LETTER_TOPIC)?;
        if partitions.is_none() {
            let admin: AdminClient<_> = client(&self.brokers).create()?;
            let topic = NewTopic::new(DEAD_LETTER_TOPIC, 1, TopicReplication::Fixed(-1));
            let options =
                AdminOptions::new().operation_timeout(Some(ANSWER_TIMEOUT)).request_timeout(Some(ANSWER_TIMEOUT));
            for result in wait_for(admin.create_topics([&topic], &options))? {
                match result {
                    Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                    Err((topic, code)) => bail!("topic {topic} cannot be created: {code}"),
                }
            }
            partitions = partitions_of(asking, DEAD_LETTER_TOPIC)?;
        }
        let partitions = partitions.ok_or_else(|| anyhow!("topic {DEAD_LETTER_TOPIC} is not there yet"))?;
        self.partitions.insert(DEAD_LETTER_TOPIC.to_owned(), partitions);
        Ok(())
    }
}

/// How many partitions a topic has; `None` where there is no such topic.
///
/// # Errors
/// When Kafka does not tell.
pub fn partitions_of<C: ConsumerContext>(asking: &BaseConsumer<C>, topic: &str) -> anyhow::Result<Option<u16>> {
    let metadata = asking
        .fetch_metadata(Some(topic), ANSWER_TIMEOUT)
        .with_context(|| format!("kafka does not tell of topic {topic}"))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
    let partitions = found.map(|found| found.partitions().len()).filter(|partitions| *partitions > 0);
    Ok(partitions.map(|partitions| u16::try_from(partitions).unwrap_or(u16::MAX)))
}

fn owned(headers: &[OwnHeader]) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(headers.len());
    headers.iter().fold(empty, |owned, (key, value)| owned.insert(Header { key, value: value.as_ref() }))
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for an answer of the library, which has a limit of its own for it.
fn wait_for<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
