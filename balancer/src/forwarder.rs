//! The forwarder: while a node is gone, what stands in its topic goes on to the nodes that own its clients now.
//!
//! The leader's loop tells what it sees ([`Forwarder::see`]) and is never kept waiting; a thread of its own asks Kafka
//! which topics are whose, and each reading has a thread. What is sent where is decided in `plan`, whose topic is read
//! when in `watch`; both are pure. That a topic is drained is told by its offsets, never by a clock alone.

mod lease;
pub mod plan;
mod reading;
mod sender;
pub mod watch;
mod watermark;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};
use ring::{NODES_MAX, NodeId, RingVersion};
use tracing::{debug, warn};

use plan::{Kind, Poison};
use reading::Task;
use sender::NODE_TOPIC_PREFIX;
use watch::{Ending, Ends, Orders, Sight, Watch};

use crate::kafka::{ANSWER_TIMEOUT, Kafka, another};
use crate::publisher::RING_TOPIC;

/// How often Kafka is asked for topics of nodes that are gone, and for late records in them.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);
/// How soon a node's return, or the loss of the lead, is acted upon.
const TICK: Duration = Duration::from_millis(100);
/// What the leader saw so long ago says nothing of now.
const SIGHT_MAX: Duration = Duration::from_secs(3);
/// Topics of nodes that are gone which are looked after.
const TOPICS_MAX: usize = 2 * NODES_MAX;

/// How the forwarder behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This balancer.
    pub name: NodeId,
    /// Where the topics are.
    pub kafka: Kafka,
    /// A URL.
    pub redis: String,
    /// Silence after which a node is gone.
    pub heartbeat_timeout: Duration,
}

/// What the forwarder counts.
#[derive(Debug, Default)]
pub struct Forwarded {
    sent: [AtomicU64; Kind::ALL.len()],
    dropped: [AtomicU64; Kind::ALL.len()],
    buried: [AtomicU64; Poison::CAUSES.len()],
    /// Readings that could not go on.
    pub failures: AtomicU64,
    /// Clients that were no longer answered, and replaced.
    pub replaced: AtomicU64,
    /// Topics that are being read.
    pub topics: AtomicU64,
    // Whether Kafka has answered the last question: then a reading that hears nothing has lost its way there.
    is_answered: AtomicBool,
}

impl Forwarded {
    fn count(&self, kind: Kind) {
        self.sent[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn count_dropped(&self, kind: Kind) {
        self.dropped[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn count_buried(&self, poison: &Poison) {
        let counters = Poison::CAUSES.iter().zip(&self.buried);
        for (_, counter) in counters.filter(|(cause, _)| **cause == poison.cause()) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records that cannot be forwarded and went to the dead letters, by cause.
    pub fn buried(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Poison::CAUSES.into_iter().zip(&self.buried).map(|(cause, count)| (cause, count.load(Ordering::Relaxed)))
    }

    /// Records that went on, or were answered, by kind.
    pub fn sent(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Kind::ALL.into_iter().map(|kind| (kind.as_str(), self.sent[kind as usize].load(Ordering::Relaxed)))
    }

    /// Records that were for the memory of a process that is gone, by kind.
    pub fn dropped(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Kind::ALL.into_iter().map(|kind| (kind.as_str(), self.dropped[kind as usize].load(Ordering::Relaxed)))
    }
}

/// The way to the forwarder's thread; dropping it ends all readings.
pub struct Forwarder {
    sight: Arc<Mutex<Option<(Sight, Instant)>>>,
    is_stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Forwarder {
    /// Starts the thread. Neither Kafka nor Redis need be there yet.
    ///
    /// # Errors
    /// When a client cannot be made or a thread cannot be had.
    pub fn start(settings: Settings, counted: Arc<Forwarded>) -> anyhow::Result<Self> {
        let redis = redis::Client::open(settings.redis.as_str()).context("redis is not a URL")?;
        let consumer = asking(&settings.kafka)?;
        let (sight, is_stopping) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
        let (ended, endings) = channel();
        let office = Office {
            settings,
            redis,
            consumer,
            counted,
            sight: Arc::clone(&sight),
            ended,
            endings,
            watch: Watch::default(),
            topics: BTreeMap::new(),
            look_at: Instant::now(),
            looked_by: RingVersion::FIRST,
            readings: BTreeMap::new(),
            started: 0,
        };
        let stopping = Arc::clone(&is_stopping);
        let thread = std::thread::Builder::new().name("forwarder".to_owned()).spawn(move || office.run(&stopping))?;
        Ok(Self { sight, is_stopping, thread: Some(thread) })
    }

    /// Tells what the leader sees now.
    pub fn see(&self, sight: Sight) {
        *self.sight.lock().unwrap_or_else(PoisonError::into_inner) = Some((sight, Instant::now()));
    }

    /// This balancer does not lead, or does not know: nothing is forwarded.
    pub fn rest(&self) {
        *self.sight.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What asks for topics and their ends only, and is in no group.
fn asking(kafka: &Kafka) -> KafkaResult<BaseConsumer> {
    kafka.client("rtc-forwarder", &[("group.id", "rtc-balancer-unused")]).create()
}

struct Running {
    is_stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

type Ended = (NodeId, Ending, bool);

/// The thread that looks after all readings.
struct Office {
    settings: Settings,
    redis: redis::Client,
    consumer: BaseConsumer,
    counted: Arc<Forwarded>,
    sight: Arc<Mutex<Option<(Sight, Instant)>>>,
    ended: Sender<Ended>,
    endings: Receiver<Ended>,
    watch: Watch,
    topics: BTreeMap<NodeId, Ends>,
    look_at: Instant,
    // A ring without some node is a reason to look at once.
    looked_by: RingVersion,
    readings: BTreeMap<NodeId, Running>,
    started: u64,
}

impl Office {
    fn run(mut self, is_stopping: &AtomicBool) {
        while !is_stopping.load(Ordering::Relaxed) {
            self.turn();
            match self.endings.recv_timeout(TICK) {
                Ok(ended) => self.end(ended),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
        for running in self.readings.values() {
            running.is_stopping.store(true, Ordering::Relaxed);
        }
        for (_, running) in std::mem::take(&mut self.readings) {
            let _ = running.thread.join();
        }
        self.counted.topics.store(0, Ordering::Relaxed);
    }

    fn turn(&mut self) {
        let sight = self.sight.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now = Instant::now();
        let Some((sight, _)) = sight.filter(|(_, at)| now.duration_since(*at) < SIGHT_MAX) else {
            let stop = self.watch.forget();
            return self.obey(Orders { start: Vec::new(), stop });
        };
        if now >= self.look_at || self.looked_by != sight.ring.version() {
            self.looked_by = sight.ring.version();
            let looked = self.look(&sight);
            self.counted.is_answered.store(looked.is_ok(), Ordering::Relaxed);
            match looked {
                Ok(topics) => self.topics = topics,
                Err(error) => {
                    debug!(error = format!("{error:#}"), "kafka does not tell of topics of nodes that are gone");
                    self.replace_if_deaf();
                }
            }
            self.look_at = Instant::now() + LOOK_INTERVAL;
        }
        let orders = self.watch.look(&sight, &self.topics, self.settings.heartbeat_timeout, Instant::now());
        self.obey(orders);
    }

    fn replace_if_deaf(&mut self) {
        let make = || asking(&self.settings.kafka);
        if let Some(another) = another(&self.consumer, |consumer| consumer.client(), RING_TOPIC, make) {
            self.consumer = another;
            self.counted.replaced.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The topics of nodes that are neither alive nor in the ring, and where they end.
    fn look(&self, sight: &Sight) -> anyhow::Result<BTreeMap<NodeId, Ends>> {
        let metadata = self.consumer.fetch_metadata(None, ANSWER_TIMEOUT)?;
        ensure!(!metadata.brokers().is_empty(), "no broker is named");
        let mut list = TopicPartitionList::new();
        let mut topics = BTreeMap::new();
        for topic in metadata.topics().iter().filter(|topic| topic.error().is_none()) {
            let node = topic.name().strip_prefix(NODE_TOPIC_PREFIX).and_then(|name| NodeId::new(name).ok());
            let Some(node) = node else { continue };
            let is_gone = !sight.alive.contains(&node) && sight.ring.weights().index(&node).is_none();
            if !is_gone || topics.len() >= TOPICS_MAX {
                continue;
            }
            for partition in topic.partitions() {
                list.add_partition_offset(topic.name(), partition.id(), Offset::End)?;
            }
            topics.insert(node, vec![0; topic.partitions().len()]);
        }
        if topics.is_empty() {
            return Ok(topics);
        }
        let list = self.consumer.offsets_for_times(list, ANSWER_TIMEOUT)?;
        for element in list.elements() {
            let node = element.topic().strip_prefix(NODE_TOPIC_PREFIX).and_then(|name| NodeId::new(name).ok());
            let ends = node.and_then(|node| topics.get_mut(&node));
            let index = usize::try_from(element.partition()).ok();
            let end = ends.zip(index).and_then(|(ends, index)| ends.get_mut(index));
            if let (Some(end), Ok(()), Offset::Offset(offset)) = (end, element.error(), element.offset()) {
                *end = offset;
            }
        }
        Ok(topics)
    }

    fn obey(&mut self, orders: Orders) {
        for node in orders.stop {
            if let Some(running) = self.readings.get(&node) {
                running.is_stopping.store(true, Ordering::Relaxed);
            }
        }
        for (node, ring) in orders.start {
            if let Err(error) = self.start(&node, ring) {
                warn!(%node, %error, "no thread can be had for a dead node's topic");
                self.watch.ended(&node, Ending::Stopped, false, Instant::now());
            }
        }
        self.counted.topics.store(self.watch.reading() as u64, Ordering::Relaxed);
    }

    fn start(&mut self, node: &NodeId, ring: Arc<ring::Ring>) -> std::io::Result<()> {
        self.started += 1;
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let is_stopping = Arc::new(AtomicBool::new(false));
        let task = Task {
            kafka: self.settings.kafka.clone(),
            redis: self.redis.clone(),
            dead: node.clone(),
            ring,
            owner: format!(
                "balancer/{}/{}-{}-{}",
                self.settings.name,
                since_1970.as_millis(),
                std::process::id(),
                self.started
            ),
            is_stopping: Arc::clone(&is_stopping),
            counted: Arc::clone(&self.counted),
        };
        let (ended, dead) = (self.ended.clone(), node.clone());
        let thread = std::thread::Builder::new().name("forward".to_owned()).spawn(move || {
            let (ending, has_carried) = reading::run(task);
            // Nobody hears of it when the balancer ends.
            let _ = ended.send((dead, ending, has_carried));
        })?;
        self.readings.insert(node.clone(), Running { is_stopping, thread });
        Ok(())
    }

    fn end(&mut self, (node, ending, has_carried): Ended) {
        if let Some(running) = self.readings.remove(&node) {
            let _ = running.thread.join();
        }
        self.watch.ended(&node, ending, has_carried, Instant::now());
    }
}
