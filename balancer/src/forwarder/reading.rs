//! One reading of one dead node's topic, under its lease: from the committed offset until it is drained or must stop.
//!
//! Nothing is committed that is not confirmed where it went; what was sent and not committed is read once more by
//! whoever comes next, and its recipients know it by its message id.
//!
//! | file | what it owns |
//! |---|---|
//! | `offsets` | where the topic is committed to and where it ends |
//! | `commit` | how far it has come, told to Kafka |
//! | `dead_letters` | what cannot go on |

mod commit;
mod dead_letters;
mod offsets;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use ring::{NodeId, Ring};
use tracing::{debug, info, warn};

use super::Forwarded;
use super::lease::Lease;
use super::plan::{self, Kind, OwnHeader, Plan, Raw};
use super::sender::{Heard, NODE_TOPIC_PREFIX, Outgoing, Place, Sender, Sent};
use super::watch::{Ending, Ends};
use super::watermark::Watermark;
use crate::kafka::{Kafka, SILENCE_MAX, is_answered, partitions_of};
use crate::sys;
use dead_letters::Content;
use offsets::{ReadContext, committed, ends_of, is_drained};

/// Records read before other things are looked at.
const RECORDS_PER_TURN: usize = 512;
/// Records that may be unconfirmed before no more are read.
const IN_FLIGHT_RECORDS_MAX: usize = 4096;
/// Bytes of values that may be unconfirmed before no more are read.
const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// Records read and not finished before no more are read: claims wait without being in flight.
const UNFINISHED_MAX: usize = 4 * IN_FLIGHT_RECORDS_MAX;
/// How long the reading waits for a record, and so how soon it notices anything else.
const NAP: Duration = Duration::from_millis(20);
/// The same while confirmations are outstanding.
const REPORT_INTERVAL: Duration = Duration::from_millis(2);
/// Between two questions for a lease that somebody else holds.
const LEASE_POLL: Duration = Duration::from_millis(50);
/// Kafka counts places that no reader ever sees; when nothing has come for so long before one, nothing will.
const GAP_PATIENCE: Duration = Duration::from_secs(10);

/// What a reading is made of.
pub struct Task {
    /// Where the topics are.
    pub kafka: Kafka,
    /// Where the lease is.
    pub redis: redis::Client,
    /// Whose topic it is.
    pub dead: NodeId,
    /// By which ring: one for the whole reading, for a recipient's records must not take two paths at once.
    pub ring: Arc<Ring>,
    /// Who reads, once.
    pub owner: String,
    /// Set when the reading is to end.
    pub is_stopping: Arc<AtomicBool>,
    /// What is counted.
    pub counted: Arc<Forwarded>,
}

/// Reads until the topic is drained or the task is to end. Tells how it ended, and whether anything was sent on.
pub fn run(task: Task) -> (Ending, bool) {
    let (dead, is_stopping) = (task.dead.clone(), Arc::clone(&task.is_stopping));
    let counted = Arc::clone(&task.counted);
    let mut has_carried = false;
    let ending = forward(task, &mut has_carried).unwrap_or_else(|error| {
        counted.failures.fetch_add(1, Ordering::Relaxed);
        let error = format!("{error:#}");
        if is_stopping.load(Ordering::Relaxed) {
            debug!(node = %dead, error, "forwarding ends");
        } else {
            warn!(node = %dead, error, "a dead node's topic cannot be forwarded now: trying again");
        }
        Ending::Stopped
    });
    (ending, has_carried)
}

/// Who is told that the dead node has nothing more of a client.
struct Claim {
    offset: u64,
    to: NodeId,
    client: String,
    generation: u64,
}

struct Partition {
    watermark: Watermark,
    // Places of what was sent on and is not confirmed; claims wait for those ahead of them, not for each other.
    copies: BTreeSet<u64>,
    claims: VecDeque<Claim>,
    committed: Option<u64>,
    is_at_end: bool,
}

struct Reading {
    task: Task,
    topic: String,
    consumer: BaseConsumer<ReadContext>,
    sender: Sender,
    partitions: Vec<Partition>,
    // What the producer has no room for. Nothing more is read while any wait.
    waiting: VecDeque<Outgoing>,
    token: u64,
    commit_at: Instant,
    commits_failed: u64,
    read_at: Instant,
    // When the library last said anything, or was last asked to.
    heard_at: Instant,
    records: u64,
    has_told_of_size: bool,
}

fn forward(task: Task, has_carried: &mut bool) -> anyhow::Result<Ending> {
    let topic = format!("{NODE_TOPIC_PREFIX}{}", task.dead);
    let own = [
        ("group.id", &*format!("rtc-delivery-{}", task.dead)),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("auto.offset.reset", "earliest"),
        ("enable.partition.eof", "true"),
        ("isolation.level", "read_committed"),
        ("fetch.wait.max.ms", "100"),
        ("queued.max.messages.kbytes", "8192"),
    ];
    let consumer: BaseConsumer<ReadContext> =
        task.kafka.client("rtc-forwarder", &own).create_with_context(ReadContext::default())?;
    let count =
        partitions_of(consumer.client(), &topic)?.ok_or_else(|| anyhow!("there is no topic {topic} any more"))?;
    let (positions, _) = committed(&consumer, &topic, count)?;
    let ends = ends_of(&consumer, &topic, count)?;
    if is_drained(&positions, &ends) {
        return Ok(Ending::Drained(ends));
    }
    let mut lease = Lease::new(task.redis.clone(), &task.dead, task.owner.clone());
    let Some(token) = await_lease(&task, &mut lease) else {
        return Ok(Ending::Stopped);
    };
    let (node, ring_version) = (task.dead.clone(), task.ring.version());
    let sender = Sender::new(&task.kafka)?;
    let now = Instant::now();
    let mut reading = Reading {
        task,
        topic,
        consumer,
        sender,
        partitions: Vec::new(),
        waiting: VecDeque::new(),
        token,
        commit_at: now,
        commits_failed: 0,
        read_at: now,
        heard_at: now,
        records: 0,
        has_told_of_size: false,
    };
    let outcome = reading.begin(count).and_then(|behind| {
        info!(%node, token, behind, %ring_version, "forwarding a dead node's topic");
        reading.read_all(&mut lease)
    });
    *has_carried = reading.records > 0;
    let outcome = reading.end(&mut lease, outcome);
    let how = match &outcome {
        Ok(Ending::Drained(_)) => "drained",
        Ok(Ending::Stopped) => "stopped",
        Err(_) => "failed",
    };
    info!(%node, token, records = reading.records, how, "forwarding has ended");
    if let Err(error) = lease.end() {
        debug!(%error, "a topic's lease is not given back: it ends by itself");
    }
    outcome
}

/// Waits for the lease: its last holder may have died with it.
fn await_lease(task: &Task, lease: &mut Lease) -> Option<u64> {
    while !task.is_stopping.load(Ordering::Relaxed) {
        if let Err(error) = lease.keep() {
            debug!(%error, "redis does not answer for a topic's lease");
        }
        if let Some(token) = lease.token() {
            return Some(token);
        }
        std::thread::sleep(LEASE_POLL);
    }
    // It may have been taken by a question whose answer was lost.
    None
}

impl Reading {
    /// Begins at the committed offsets. Returns how many places are behind them.
    fn begin(&mut self, count: u16) -> anyhow::Result<u64> {
        // Again, under the lease: its last holder may have committed since.
        let (positions, highest) = committed(&self.consumer, &self.topic, count)?;
        if highest > self.token {
            bail!("it was read by the right of token {highest}, and ours is {}", self.token);
        }
        let ends = ends_of(&self.consumer, &self.topic, count)?;
        let mut assignment = TopicPartitionList::new();
        let mut behind = 0;
        for ((partition, position), end) in (0..).zip(&positions).zip(&ends) {
            let offset = position.and_then(|position| i64::try_from(position).ok());
            let start = offset.map_or(Offset::Beginning, Offset::Offset);
            assignment.add_partition_offset(&self.topic, partition, start)?;
            behind += u64::try_from(end.saturating_sub(offset.unwrap_or(0))).unwrap_or(0);
            self.partitions.push(Partition {
                watermark: Watermark::new(position.unwrap_or(0)),
                copies: BTreeSet::new(),
                claims: VecDeque::new(),
                committed: Some(position.unwrap_or(0)),
                is_at_end: false,
            });
        }
        self.consumer.assign(&assignment).context("the topic cannot be read")?;
        Ok(behind)
    }

    fn read_all(&mut self, lease: &mut Lease) -> anyhow::Result<Ending> {
        while !self.task.is_stopping.load(Ordering::Relaxed) {
            if let Err(error) = lease.keep() {
                debug!(%error, "redis does not answer for a topic's lease");
            }
            if lease.token() != Some(self.token) {
                bail!("the lease on the topic is lost");
            }
            self.hear()?;
            self.answer_claims()?;
            self.send_waiting()?;
            self.read()?;
            self.break_silence()?;
            self.commit_if_due();
            if let Some(ends) = self.drained()? {
                return Ok(Ending::Drained(ends));
            }
        }
        Ok(Ending::Stopped)
    }

    fn hear(&mut self) -> anyhow::Result<()> {
        let Heard { confirmed, too_large, again } = self.sender.hear()?;
        if !confirmed.is_empty() {
            self.heard_at = Instant::now();
        }
        for place in confirmed {
            self.finish(place);
        }
        for outgoing in again.into_iter().rev() {
            self.waiting.push_front(outgoing);
        }
        for outgoing in too_large {
            self.bury_too_large(outgoing)?;
        }
        Ok(())
    }

    fn finish(&mut self, place: Place) {
        if let Some(partition) = self.partitions.get_mut(usize::from(place.partition)) {
            partition.copies.remove(&place.offset);
            partition.watermark.finish(place.offset);
        }
    }

    /// Answers the claims that have nothing unconfirmed ahead of them.
    fn answer_claims(&mut self) -> anyhow::Result<()> {
        for index in 0..self.partitions.len() {
            while let Some(partition) = self.partitions.get_mut(index) {
                let first = partition.copies.first().copied();
                let is_ready = |claim: &Claim| first.is_none_or(|first| first > claim.offset);
                if !partition.claims.front().is_some_and(is_ready) {
                    break;
                }
                let Some(claim) = partition.claims.pop_front() else { break };
                let place = Place { partition: u16::try_from(index).unwrap_or(u16::MAX), offset: claim.offset };
                self.answer(place, &claim)?;
            }
        }
        Ok(())
    }

    fn answer(&mut self, place: Place, claim: &Claim) -> anyhow::Result<()> {
        let Some(partitions) = self.sender.partitions(&claim.to)? else {
            // A claimant without a topic hears nothing from anybody.
            self.task.counted.count_dropped(Kind::Claimed);
            self.finish(place);
            return Ok(());
        };
        self.task.counted.count(Kind::Claimed);
        self.waiting.push_back(Outgoing {
            place,
            topic: format!("{NODE_TOPIC_PREFIX}{}", claim.to),
            partition: i32::from(place.partition % partitions),
            key: Some(claim.client.clone().into_bytes()),
            value: Some(plan::released(&claim.client, claim.generation)),
            headers: plan::notice_headers(Kind::Released, &self.task.dead),
        });
        Ok(())
    }

    fn send_waiting(&mut self) -> anyhow::Result<()> {
        while let Some(outgoing) = self.waiting.pop_front() {
            match self.sender.send(&outgoing)? {
                Sent::Yes => self.records += 1,
                Sent::NotNow => {
                    self.waiting.push_front(outgoing);
                    break;
                }
                Sent::TooLarge => self.bury_too_large(outgoing)?,
            }
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        let (records, bytes) = self.sender.in_flight();
        let unfinished: usize = self.partitions.iter().map(|partition| partition.watermark.unfinished()).sum();
        self.waiting.is_empty()
            && records < IN_FLIGHT_RECORDS_MAX
            && bytes < IN_FLIGHT_BYTES_MAX
            && unfinished < UNFINISHED_MAX
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let is_waiting = self.sender.in_flight().0 > 0;
        let mut pause = if is_waiting { REPORT_INTERVAL } else { NAP };
        for _ in 0..RECORDS_PER_TURN {
            if !self.has_room() {
                std::thread::sleep(REPORT_INTERVAL);
                return Ok(());
            }
            // The library's message borrows the consumer, and taking it changes the rest.
            let taken = match self.consumer.poll(std::mem::take(&mut pause)) {
                None => return Ok(()),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    let found = usize::try_from(partition).ok().and_then(|index| self.partitions.get_mut(index));
                    if let Some(partition) = found {
                        partition.is_at_end = true;
                    }
                    continue;
                }
                Some(Err(error)) => {
                    // The library goes on by itself; what ends a reading is the lease, or the node's return.
                    debug!(%error, topic = self.topic, "kafka has trouble with a dead node's topic");
                    continue;
                }
                Some(Ok(message)) => take(&message, &self.task.dead, &self.task.ring),
            };
            if let Some(taken) = taken {
                self.follow(taken)?;
                self.send_waiting()?;
            }
        }
        Ok(())
    }

    fn follow(&mut self, taken: Taken) -> anyhow::Result<()> {
        let Taken { place, key, value, plan, headers } = taken;
        self.read_at = Instant::now();
        self.heard_at = self.read_at;
        let Some(partition) = self.partitions.get_mut(usize::from(place.partition)) else { return Ok(()) };
        partition.is_at_end = false;
        partition.watermark.read(place.offset);
        match plan {
            Plan::Copy { kind, to, headers } => {
                partition.copies.insert(place.offset);
                self.send_on(place, kind, &to, Content { key, value, headers })?;
            }
            Plan::Echo { to, value } => {
                partition.copies.insert(place.offset);
                let headers = plan::notice_headers(Kind::Fenced, &self.task.dead);
                self.send_on(place, Kind::Fence, &to, Content { key, value: Some(value), headers })?;
            }
            Plan::Release { to, client, generation } => {
                partition.claims.push_back(Claim { offset: place.offset, to, client, generation });
            }
            Plan::Drop(kind) => {
                self.task.counted.count_dropped(kind);
                self.finish(place);
            }
            Plan::Bury(poison) => {
                partition.copies.insert(place.offset);
                self.bury(place, &poison, Content { key, value, headers })?;
            }
        }
        Ok(())
    }

    fn send_on(&mut self, place: Place, kind: Kind, to: &NodeId, content: Content) -> anyhow::Result<()> {
        let partitions = self.sender.partitions(to)?;
        let partitions = partitions.ok_or_else(|| anyhow!("{to} owns its clients and has no topic"))?;
        self.task.counted.count(kind);
        let (topic, partition) = (format!("{NODE_TOPIC_PREFIX}{to}"), i32::from(place.partition % partitions));
        let Content { key, value, headers } = content;
        self.waiting.push_back(Outgoing { place, topic, partition, key, value, headers });
        Ok(())
    }

    /// The ends up to which all is forwarded and confirmed, if there is nothing beyond.
    fn drained(&mut self) -> anyhow::Result<Option<Ends>> {
        let is_done = |partition: &Partition| partition.is_at_end && partition.watermark.is_done();
        if !self.waiting.is_empty() || !self.partitions.iter().all(is_done) {
            return Ok(None);
        }
        let count = u16::try_from(self.partitions.len()).unwrap_or(u16::MAX);
        let ends = ends_of(&self.consumer, &self.topic, count)?;
        let positions: Vec<_> = self.partitions.iter().map(|partition| Some(partition.watermark.position())).collect();
        let is_drained = is_drained(&positions, &ends) || self.read_at.elapsed() >= GAP_PATIENCE;
        Ok(is_drained.then_some(ends))
    }

    /// While Kafka is away the reading waits. While only its own clients are not answered it ends, and the next one has others.
    fn break_silence(&mut self) -> anyhow::Result<()> {
        if self.heard_at.elapsed() < SILENCE_MAX || !self.task.counted.is_answered.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.heard_at = Instant::now();
        if !is_answered(self.consumer.client(), &self.topic) || !self.sender.is_answered(&self.topic) {
            self.task.counted.replaced.fetch_add(1, Ordering::Relaxed);
            bail!("its kafka clients are not answered: others take their place");
        }
        Ok(())
    }
}

/// A record, read and planned for.
struct Taken {
    place: Place,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    plan: Plan,
    // Those of one that is buried; none of all others.
    headers: Vec<OwnHeader>,
}

fn take(message: &BorrowedMessage<'_>, dead: &NodeId, ring: &Ring) -> Option<Taken> {
    let (Ok(partition), Ok(offset)) = (u16::try_from(message.partition()), u64::try_from(message.offset())) else {
        return None;
    };
    let raw = Raw { value: message.payload(), headers: sys::kafka_headers(message) };
    let plan = plan::plan(&raw, dead, ring);
    let headers = if matches!(plan, Plan::Bury(_)) { raw.copied(|_| true) } else { Vec::new() };
    let (key, value) = (message.key().map(<[u8]>::to_vec), message.payload().map(<[u8]>::to_vec));
    Some(Taken { place: Place { partition, offset }, key, value, plan, headers })
}
