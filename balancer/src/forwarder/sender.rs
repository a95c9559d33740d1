//! The way into other nodes' topics: every record is confirmed by all replicas, in order per partition, or too large for
//! its topic and given back, or the reading ends without having committed it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use ring::NodeId;
use tracing::debug;

use super::plan::OwnHeader;
use crate::kafka::{Kafka, is_answered, partitions_of};

/// Where records go that nobody can use.
pub const DEAD_LETTER_TOPIC: &str = "rtc.dead-letter";
/// The topic of a node is called this and its id.
pub const NODE_TOPIC_PREFIX: &str = "delivery_node_";

/// How long it may take until it is told which record a producer has given up.
const BLAME_TIMEOUT: Duration = Duration::from_secs(1);
/// One look for that.
const BLAME_POLL: Duration = Duration::from_millis(10);
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

impl Outgoing {
    fn bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Vec::len)
    }
}

fn producer(kafka: &Kafka, is_single: bool) -> anyhow::Result<BaseProducer<Reports>> {
    let batch = if is_single { "1" } else { "10000" };
    let own = [
        ("acks", "all"),
        ("enable.idempotence", "true"),
        // A batch that fails for good is a fatal error, so that nothing behind it gets through before it.
        ("enable.gapless.guarantee", "true"),
        // No record ever times out: while Kafka is away the reading waits.
        ("message.timeout.ms", "0"),
        ("linger.ms", "2"),
        ("batch.num.messages", batch),
        ("message.max.bytes", REQUEST_BYTES_MAX),
    ];
    Ok(kafka.client("rtc-forwarder", &own).create_with_context(Reports::default())?)
}

#[derive(Debug, Default)]
struct Said {
    reports: Vec<(usize, Option<RDKafkaErrorCode>)>,
    fatal: Option<String>,
}

impl Said {
    fn has_too_large(&self) -> bool {
        self.reports.iter().any(|(_, failure)| *failure == Some(RDKafkaErrorCode::MessageSizeTooLarge))
    }
}

/// Hears the library on the thread that polls it.
#[derive(Debug, Default)]
struct Reports(Mutex<Said>);

impl Reports {
    fn take(&self) -> Said {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

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

/// What became of an attempt to send a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Yes,
    /// The library has no room now.
    NotNow,
    /// It is larger than any record may be.
    TooLarge,
}

/// What Kafka has said.
#[derive(Debug, Default)]
pub struct Heard {
    /// Records that it has.
    pub confirmed: Vec<Place>,
    /// Records that it does not take for their size.
    pub too_large: Vec<Outgoing>,
    /// Records that must be sent once more, in this order and before any other.
    pub again: Vec<Outgoing>,
}

/// A producer and what it has not confirmed.
pub struct Sender {
    kafka: Kafka,
    producer: BaseProducer<Reports>,
    partitions: HashMap<String, u16>,
    // By number, and so in the order in which they were sent.
    in_flight: BTreeMap<usize, Outgoing>,
    in_flight_bytes: usize,
    next_number: usize,
    // Every record is a batch of its own: then it is certain which one is refused for its size.
    is_single: bool,
}

impl Sender {
    /// Makes the producer; Kafka need not be there.
    ///
    /// # Errors
    /// When the client library refuses its settings.
    pub fn new(kafka: &Kafka) -> anyhow::Result<Self> {
        Ok(Self {
            kafka: kafka.clone(),
            producer: producer(kafka, false)?,
            partitions: HashMap::new(),
            in_flight: BTreeMap::new(),
            in_flight_bytes: 0,
            next_number: 0,
            is_single: false,
        })
    }

    /// Sends a record.
    ///
    /// # Errors
    /// When it will never be sent.
    pub fn send(&mut self, outgoing: &Outgoing) -> anyhow::Result<Sent> {
        let Outgoing { topic, partition, key, value, headers, .. } = outgoing;
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
                self.next_number += 1;
                self.in_flight_bytes += outgoing.bytes();
                self.in_flight.insert(number, outgoing.clone());
                Ok(Sent::Yes)
            }
            Err((error, _)) => match error.rdkafka_error_code() {
                // Why it takes no more is told by what is heard next.
                Some(RDKafkaErrorCode::QueueFull | RDKafkaErrorCode::Fatal) => Ok(Sent::NotNow),
                Some(RDKafkaErrorCode::MessageSizeTooLarge) => Ok(Sent::TooLarge),
                _ => Err(error).with_context(|| format!("a record for {topic} cannot be sent")),
            },
        }
    }

    /// Takes what Kafka has said.
    ///
    /// # Errors
    /// When a record has failed for good, and not for its size: nothing behind it gets through either.
    pub fn hear(&mut self) -> anyhow::Result<Heard> {
        self.producer.poll(Duration::ZERO);
        let mut said = self.producer.context().take();
        said.fatal = said.fatal.or_else(|| self.producer.client().fatal_error().map(|(_, reason)| reason));
        if said.fatal.is_some() {
            // Which record is to blame is told a moment later.
            let deadline = Instant::now() + BLAME_TIMEOUT;
            while !said.has_too_large() && said.reports.len() < self.in_flight.len() && Instant::now() < deadline {
                self.producer.poll(BLAME_POLL);
                said.reports.extend(self.producer.context().take().reports);
            }
        }
        let (mut heard, mut failed, mut refused) = (Heard::default(), None, Vec::new());
        for (number, failure) in said.reports {
            match failure {
                None => heard.confirmed.extend(self.forget(number).map(|outgoing| outgoing.place)),
                Some(RDKafkaErrorCode::MessageSizeTooLarge) => refused.push(number),
                Some(code) => failed = Some(code),
            }
        }
        if !refused.is_empty() {
            self.go_on_without(&refused, &mut heard)?;
            return Ok(heard);
        }
        match (said.fatal, failed) {
            (Some(reason), _) => bail!("kafka takes no more from this producer: {reason}"),
            (None, Some(code)) => bail!("kafka does not take a record: {code}"),
            (None, None) => Ok(heard),
        }
    }

    /// Brokers refuse a whole batch. A record that was one by itself is left out; of several it is not known which, and
    /// each is tried alone. The producer lets nothing pass behind a batch that has failed: another takes its place.
    fn go_on_without(&mut self, refused: &[usize], heard: &mut Heard) -> anyhow::Result<()> {
        if self.is_single || refused.len() == 1 {
            heard.too_large = refused.iter().filter_map(|number| self.forget(*number)).collect();
        } else {
            self.is_single = true;
        }
        self.producer = producer(&self.kafka, self.is_single)?;
        heard.again = std::mem::take(&mut self.in_flight).into_values().collect();
        self.in_flight_bytes = 0;
        Ok(())
    }

    fn forget(&mut self, number: usize) -> Option<Outgoing> {
        let outgoing = self.in_flight.remove(&number)?;
        self.in_flight_bytes -= outgoing.bytes();
        Some(outgoing)
    }

    /// Records that are not confirmed, and the bytes of their values.
    pub fn in_flight(&self) -> (usize, usize) {
        (self.in_flight.len(), self.in_flight_bytes)
    }

    /// Whether Kafka answers the producer.
    pub fn is_answered(&self, topic: &str) -> bool {
        is_answered(self.producer.client(), topic)
    }

    /// How many partitions a node's topic has; `None` where there is no such topic.
    ///
    /// # Errors
    /// When Kafka does not tell.
    pub fn partitions(&mut self, node: &NodeId) -> anyhow::Result<Option<u16>> {
        let topic = format!("{NODE_TOPIC_PREFIX}{node}");
        if let Some(partitions) = self.partitions.get(&topic) {
            return Ok(Some(*partitions));
        }
        let found = partitions_of(self.producer.client(), &topic)?;
        // At most one entry for each node whose topic exists.
        self.partitions.extend(found.map(|partitions| (topic, partitions)));
        Ok(found)
    }

    /// Makes sure that there is a topic for dead letters.
    ///
    /// # Errors
    /// When it is not there and cannot be created.
    pub fn need_dead_letters(&mut self) -> anyhow::Result<()> {
        if !self.partitions.contains_key(DEAD_LETTER_TOPIC) {
            let partitions = self.kafka.need_topic(self.producer.client(), DEAD_LETTER_TOPIC)?;
            self.partitions.insert(DEAD_LETTER_TOPIC.to_owned(), partitions);
        }
        Ok(())
    }
}

fn owned(headers: &[OwnHeader]) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(headers.len());
    headers.iter().fold(empty, |owned, (key, value)| owned.insert(Header { key, value: value.as_ref() }))
}
