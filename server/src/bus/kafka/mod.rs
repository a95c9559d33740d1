//! The bus over Kafka: one thread sends, one reads, one looks after topics; none of them ever makes a shard wait.
//!
//! | file | what it owns |
//! |---|---|
//! | `config` | names, settings, and what follows from them for the client library |
//! | `intake` | the way to the sending thread, and its bound |
//! | `producer` | the thread that sends, in order, until Kafka has confirmed |
//! | `reader` | the thread that reads this node's topic and commits what is finished |
//! | [`watermark`], [`fences`] | what of a partition is finished; which fences are under way (pure) |
//! | `topics` | the thread that finds and creates topics, and knows whether Kafka answers |
//! | `mailing` | mail to the shards, in order, past full mailboxes |
//! | `silence` | clients that have lost their brokers, and how they get them back |
//! | `health`, [`counters`] | what is told to a person, and what is counted |

mod config;
pub mod counters;
pub mod fences;
mod health;
mod intake;
mod mailing;
mod producer;
mod reader;
pub(in crate::bus) mod silence;
mod topics;
pub mod watermark;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded, unbounded};
use crossbeam::queue::SegQueue;
use crossbeam::sync::{Parker, Unparker};
use ring::{NodeId, SharedRing};
use thiserror::Error;

pub use config::{
    Config, DEAD_LETTER_TOPIC, DRAIN_TOPIC, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_RECORDS_MAX, NODE_TOPIC_PREFIX, PARTITIONS,
    REPLICATION_DEFAULT, RING_TOPIC, node_group, node_topic,
};

use crate::shard::handover::Mail;
use crate::shard::mailbox;

use super::record::{Parcel, RecordRef};
use counters::KafkaCounters;
use health::Health;
use intake::{Intake, Item};
use mailing::Mailing;
use topics::Wanted;

/// The right to read this node's topic, held by one process at a time.
pub trait Lease: Send + Sync {
    /// The fencing token while the right is held; a higher one each time it is taken. Asked often: must be cheap.
    fn token(&self) -> Option<u64>;
}

/// What a bus is started with.
pub struct Setup {
    /// How Kafka is spoken to.
    pub config: Config,
    /// This node.
    pub node: NodeId,
    /// Which life of it.
    pub incarnation: u64,
    /// The shards.
    pub mailboxes: Vec<mailbox::Sender<Mail>>,
    /// The ring, by whose seed clients are hashed.
    pub ring: SharedRing,
    /// The right to read.
    pub lease: Arc<dyn Lease>,
}

/// Why a bus cannot be started, or used as it is configured.
#[derive(Debug, Error)]
pub enum StartError {
    /// A thread cannot be had.
    #[error("a thread for kafka cannot be started: {0}")]
    Thread(#[from] io::Error),
    /// The client library refuses its settings.
    #[error("kafka client: {0}")]
    Settings(String),
    /// This node's topic does not fit; says why, with the cure.
    #[error("{0}")]
    Misfit(String),
}

/// What the threads of the bus share with each other and with the shards.
pub struct Shared {
    health: Arc<Health>,
    counters: Arc<KafkaCounters>,
    intake: Intake,
    // Bounded by what may be unfinished: a record is finished once, and read again only after that much was forgotten.
    finished: SegQueue<RecordRef>,
    passed: SegQueue<RecordRef>,
    reader: Unparker,
    // Whether the reader waits for records to be finished.
    is_reader_waiting: AtomicBool,
    // Partitions of this node's topic; 0 until it is known to be there.
    own_partitions: AtomicU16,
    // Topics that are neither this node's nor sent to, and are there.
    found: Mutex<Vec<String>>,
    topics: Sender<Wanted>,
}

impl Shared {
    fn finish(&self, record: RecordRef) {
        self.finished.push(record);
    }
}

/// The way to the bus for shards and others. Cheap to clone.
#[derive(Clone)]
pub struct KafkaBus {
    shared: Arc<Shared>,
}

impl super::Bus for KafkaBus {
    fn publish(&self, parcel: Box<Parcel>) -> Result<(), Box<Parcel>> {
        self.shared.intake.take(Item::Parcel(parcel)).map_err(|item| match item {
            Item::Parcel(parcel) | Item::Echo { parcel, .. } => {
                self.shared.counters.count_full();
                parcel
            }
            Item::DeadLetter(_) => unreachable!("a parcel was handed in"),
        })
    }

    fn finish(&self, records: &[RecordRef]) {
        for record in records {
            self.shared.finish(*record);
        }
        if self.shared.is_reader_waiting.load(Ordering::Relaxed) {
            self.shared.reader.unpark();
        }
    }

    fn pass(&self, fence: RecordRef) {
        self.shared.passed.push(fence);
        self.shared.reader.unpark();
    }
}

impl KafkaBus {
    /// True while the brokers answer.
    pub fn is_up(&self) -> bool {
        self.shared.health.is_up()
    }

    /// What the client library complained of last; empty for nothing.
    pub fn last_error(&self) -> String {
        self.shared.health.last_error()
    }

    /// Has a topic looked for, and created if it is missing. May be lost where very many are: ask again.
    pub(super) fn want_topic(&self, topic: &str, partitions: u16) {
        let _ = self.shared.topics.try_send(Wanted { topic: topic.to_owned(), partitions, takes_batches: false });
    }

    /// True when a control topic that was asked for is there.
    pub(super) fn is_found(&self, topic: &str) -> bool {
        self.shared.found.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|found| found == topic)
    }

    /// What is counted.
    pub fn counters(&self) -> &KafkaCounters {
        &self.shared.counters
    }

    /// The age of what is being read from this node's topic, for the heartbeat.
    pub fn lag(&self) -> Duration {
        Duration::from_millis(self.shared.counters.reader.lag_ms.value())
    }
}

/// A running bus: whoever holds it stops it.
pub struct Kafka {
    bus: KafkaBus,
    is_stopping: Arc<AtomicBool>,
    orders: Sender<producer::Order>,
    producer: Option<JoinHandle<usize>>,
    reader: Option<JoinHandle<()>>,
    topics: Option<JoinHandle<()>>,
    // What the thread that looks after topics is woken with.
    own: Wanted,
}

impl Kafka {
    /// Starts the threads. Does not wait for Kafka: where it is away, it is tried until it is there.
    ///
    /// # Errors
    /// When a thread cannot be had, or the client library refuses its settings.
    pub fn start(setup: Setup) -> Result<Self, StartError> {
        let Setup { mut config, node, incarnation, mailboxes, ring, lease } = setup;
        config.partitions = config.partitions.max(1);
        let health = Arc::new(Health::default());
        let counters = Arc::new(KafkaCounters::default());
        let (intake, items) = Intake::new(config.in_flight_records, config.in_flight_bytes);
        let (wanted, wanted_end) = bounded(topics::WANTED_MAX);
        let parker = Parker::new();
        let shared = Arc::new(Shared {
            health: Arc::clone(&health),
            counters: Arc::clone(&counters),
            intake,
            finished: SegQueue::new(),
            passed: SegQueue::new(),
            reader: parker.unparker().clone(),
            is_reader_waiting: AtomicBool::new(false),
            own_partitions: AtomicU16::new(0),
            found: Mutex::default(),
            topics: wanted.clone(),
        });
        let is_stopping = Arc::new(AtomicBool::new(false));
        // One order per topic asked for, and those are bounded.
        let (orders, orders_end) = unbounded();
        let own = Wanted { topic: node_topic(&node), partitions: config.partitions, takes_batches: true };

        let reading = reader::Parts {
            config: config.clone(),
            node: node.clone(),
            incarnation,
            mailing: Mailing::new(mailboxes.clone()),
            ring,
            lease,
            parker,
            shared: Arc::clone(&shared),
            is_stopping: Arc::clone(&is_stopping),
        };
        let reading = reader::prepare(reading).map_err(|error| StartError::Settings(error.to_string()))?;
        let on_found = {
            let (orders, shared, own) = (orders.clone(), Arc::clone(&shared), own.topic.clone());
            move |topic: &str, partitions: u16| {
                if topic == own {
                    shared.own_partitions.store(partitions, Ordering::Relaxed);
                    shared.reader.unpark();
                } else if topic == RING_TOPIC || topic == DRAIN_TOPIC {
                    let mut found = shared.found.lock().unwrap_or_else(PoisonError::into_inner);
                    if !found.iter().any(|found| found == topic) {
                        found.push(topic.to_owned());
                    }
                }
                let _ = orders.send(producer::Order::Found(topic.to_owned(), partitions));
            }
        };
        let topics = topics::Parts {
            config: config.clone(),
            node: node.clone(),
            own: own.clone(),
            wanted: wanted_end,
            on_found: Box::new(on_found),
            health,
            counters,
            is_stopping: Arc::clone(&is_stopping),
        };
        let topics = topics::prepare(topics).map_err(|error| StartError::Settings(error.to_string()))?;
        let sending = producer::Parts {
            config,
            node,
            items,
            orders: orders_end,
            topics: wanted,
            mailing: Mailing::new(mailboxes),
            shared: Arc::clone(&shared),
        };
        let mut kafka =
            Self { bus: KafkaBus { shared }, is_stopping, orders, producer: None, reader: None, topics: None, own };
        kafka.producer = Some(thread("kafka-out", move || producer::run(sending))?);
        kafka.reader = Some(thread("kafka-in", move || reading.run())?);
        kafka.topics = Some(thread("kafka-topics", move || topics.run())?);
        Ok(kafka)
    }

    /// The way to it.
    pub fn bus(&self) -> &KafkaBus {
        &self.bus
    }

    /// Waits for the first answer about this node's topic, at most so long. False when there was none: the bus goes on
    /// trying.
    ///
    /// # Errors
    /// When the topic does not fit the configuration.
    pub fn wait(&self, timeout: Duration) -> Result<bool, StartError> {
        const INTERVAL: Duration = Duration::from_millis(10);
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(misfit) = self.bus.shared.health.misfit() {
                return Err(StartError::Misfit(misfit));
            }
            if self.bus.shared.own_partitions.load(Ordering::Relaxed) > 0 {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(INTERVAL);
        }
    }

    /// Ends the reading, commits what is finished, sends what is on its way, and ends; at most about `timeout`. The shards
    /// must have ended, or publish no more. Returns how many records are unconfirmed.
    pub fn stop(mut self, timeout: Duration) -> usize {
        self.end(Instant::now() + timeout)
    }

    fn end(&mut self, deadline: Instant) -> usize {
        self.is_stopping.store(true, Ordering::Relaxed);
        self.bus.shared.reader.unpark();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let _ = self.orders.send(producer::Order::Stop(deadline));
        let unconfirmed = self.producer.take().map_or(0, |producer| producer.join().unwrap_or(0));
        if unconfirmed > 0 {
            tracing::warn!(unconfirmed, "records were not confirmed by kafka before the end");
        }
        // Full, it is awake.
        let _ = self.bus.shared.topics.try_send(self.own.clone());
        if let Some(topics) = self.topics.take() {
            let _ = topics.join();
        }
        unconfirmed
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.end(Instant::now());
    }
}

fn thread<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run)
}
