//! The thread that reads this node's topic, under the lease: each record goes to its shard, in order, and is committed
//! when all before it are finished. What a full mailbox or a bound refuses makes the partition wait, never the thread.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crossbeam::sync::Parker;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Header, Message, OwnedHeaders};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use ring::{NodeId, RingReader, SharedRing, hash_key, shard_of};

use crate::bus::codec::{Decoder, Poison, Raw};
use crate::bus::record::{Address, Arrived, Lane, Parcel, Record, RecordRef};
use crate::shard::handover::Mail;
use crate::sys;

use super::config::{Config, node_group, node_topic};
use super::fences::Fences;
use super::health::{self, Complaint};
use super::intake::{DeadLetter, Item};
use super::mailing::Mailing;
use super::silence::{self, Silence};
use super::watermark::Watermark;
use super::{Lease, Shared};

/// Records taken before other things are looked at.
const RECORDS_PER_TURN: usize = 512;
/// Records that may wait for room in mailboxes before no more are read.
const WAITING_MAX: usize = 4096;
/// The library hides events of its own behind an empty answer: it has nothing more after so many.
const EMPTY_ANSWERS: usize = 4;
/// The longest the thread sleeps while it reads: what is finished is committed that much later. Records, finished fences
/// and, where the bound is reached, finished records wake it. A nap costs this thread some 40 us.
const NAP: Duration = Duration::from_millis(250);
/// The longest it sleeps before it reads: nobody tells it that it has the lease.
const WAITING_NAP: Duration = Duration::from_millis(50);
/// How long a fetch waits for a record. One that comes back empty costs the library's thread some 100 us, as it asks for
/// each partition anew.
const FETCH_WAIT: Duration = Duration::from_millis(500);
/// How soon a full mailbox is tried again.
const MAILBOX_RETRY: Duration = Duration::from_millis(1);
/// How often the watermark is committed while it moves.
const COMMIT_INTERVAL: Duration = Duration::from_millis(500);
/// Over how long the age of what is read is told.
const LAG_INTERVAL: Duration = Duration::from_secs(1);
/// How long the committed offsets may take to come, and how soon they are asked for again.
const POSITION_TIMEOUT: Duration = Duration::from_secs(2);
const POSITION_INTERVAL: Duration = Duration::from_millis(200);
/// How long the last commit may take, and how often it is looked for.
const LAST_COMMIT_TIMEOUT: Duration = Duration::from_secs(2);
const COMMIT_LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// The control partition is never paused for ordinary reasons, but a flood is one: so many times the bound of the others.
const CONTROL_BOUND_FACTOR: usize = 10;
/// The longest value that is kept among the dead letters.
const DEAD_LETTER_BYTES_MAX: usize = 256 << 10;

/// What the library calls a failed commit in its log.
const COMMIT_FAILED: &str = "COMMITFAIL";

/// Says why a dead letter is one.
const CAUSE_HEADER: &str = "rtc-cause";
/// The same in words.
const REASON_HEADER: &str = "rtc-reason";
/// Where it stood: `topic/partition/offset`.
const SOURCE_HEADER: &str = "rtc-source";
/// How long it was, where its value was cut.
const LENGTH_HEADER: &str = "rtc-length";

/// What the thread is made of.
pub struct Parts {
    /// How Kafka is spoken to.
    pub config: Config,
    /// This node.
    pub node: NodeId,
    /// Which life of it.
    pub incarnation: u64,
    /// The way to the shards.
    pub mailing: Mailing,
    /// The ring, by whose seed clients are hashed.
    pub ring: SharedRing,
    /// The right to read.
    pub lease: Arc<dyn Lease>,
    /// What the thread sleeps on.
    pub parker: Parker,
    /// What the bus shares.
    pub shared: Arc<Shared>,
    /// Set when the thread is to end.
    pub is_stopping: Arc<AtomicBool>,
}

/// Hears the library on the thread that polls it.
struct ReadContext {
    shared: Arc<Shared>,
    commit_failures: AtomicU64,
}

impl ClientContext for ReadContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        // The binding has a callback for this that is never called: the library's log is the only place that tells.
        if facility == COMMIT_FAILED {
            self.commit_failures.fetch_add(1, Ordering::Relaxed);
        }
        health::log_line("reader", level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.shared.health.note_error(format!("{error}: {reason}"));
    }
}

impl ConsumerContext for ReadContext {}

/// One partition that is being read.
struct Partition {
    watermark: Watermark,
    // What was last asked to be committed; none after a failure.
    committed: Option<u64>,
    is_paused: bool,
    last_taken_ms: u64,
}

/// How far the thread is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The topic is not there yet, or somebody else has the lease.
    Waiting,
    /// It reads, by the right of this token.
    Reading(u64),
}

/// The thread's state, ready to run.
pub struct Reader {
    parts: Parts,
    topic: String,
    decoder: Decoder,
    ring: RingReader,
    shards: NonZeroUsize,
    consumer: Arc<BaseConsumer<ReadContext>>,
    phase: Phase,
    // By whose right it last read.
    last_token: Option<u64>,
    position_at: Instant,
    partitions: Vec<Partition>,
    fences: Fences,
    // Echoes and dead letters that the producer had no room for. Nothing more is read while any wait.
    outgoing: VecDeque<Item>,
    commit_at: Instant,
    commits_failed: u64,
    // The oldest record read in the present interval.
    lag_ms: u64,
    lag_at: Instant,
    silence: Silence,
    trouble: Complaint,
}

/// Makes what the thread needs.
///
/// # Errors
/// When the client library refuses its settings.
pub fn prepare(parts: Parts) -> Result<Reader, KafkaError> {
    let context = ReadContext { shared: Arc::clone(&parts.shared), commit_failures: AtomicU64::new(0) };
    let settings = parts.config.consumer(&parts.node, &node_group(&parts.node), FETCH_WAIT);
    let mut consumer: BaseConsumer<ReadContext> = settings.create_with_context(context)?;
    let waker = parts.parker.unparker().clone();
    consumer.set_nonempty_callback(move || waker.unpark());
    let shards = NonZeroUsize::new(parts.mailing.shards()).unwrap_or(NonZeroUsize::MIN);
    let now = Instant::now();
    Ok(Reader {
        topic: node_topic(&parts.node),
        decoder: Decoder { node: parts.node.clone(), value_bytes_max: parts.config.value_bytes_max() },
        ring: parts.ring.reader(),
        shards,
        consumer: Arc::new(consumer),
        phase: Phase::Waiting,
        last_token: None,
        position_at: now,
        partitions: Vec::new(),
        fences: Fences::default(),
        outgoing: VecDeque::new(),
        commit_at: now,
        commits_failed: 0,
        lag_ms: 0,
        lag_at: now,
        silence: Silence::new(parts.config.silence_max, now),
        trouble: Complaint::default(),
        parts,
    })
}

impl Reader {
    /// Runs until it is told to end, then commits once more.
    pub fn run(mut self) {
        while !self.parts.is_stopping.load(Ordering::Relaxed) {
            let is_drained = self.turn();
            if is_drained {
                let is_held_up = self.parts.mailing.waiting() > 0 || !self.outgoing.is_empty();
                let pause = match self.phase {
                    _ if is_held_up => MAILBOX_RETRY,
                    Phase::Waiting => WAITING_NAP,
                    Phase::Reading(_) => NAP,
                };
                self.parts.parker.park_timeout(pause);
            }
        }
        self.take_finished();
        self.end_reading();
    }

    /// Does what there is to do. False when there may be more at once.
    fn turn(&mut self) -> bool {
        self.parts.mailing.flush();
        self.send_outgoing();
        self.take_finished();
        self.take_passes();
        self.follow_lease();
        let is_drained = self.read();
        self.break_silence();
        self.pause_and_resume();
        self.commit_if_due();
        self.count();
        is_drained
    }

    fn take_finished(&mut self) {
        while let Some(record) = self.parts.shared.finished.pop() {
            if let Some(partition) = self.partitions.get_mut(usize::from(record.partition)) {
                partition.watermark.finish(record.offset);
            }
        }
    }

    fn take_passes(&mut self) {
        while let Some(at) = self.parts.shared.passed.pop() {
            let Some(passed) = self.fences.pass(at) else { continue };
            self.parts.shared.counters.reader.fences.add(1);
            let Address { node, incarnation, shard } = passed.origin;
            let parcel = Parcel {
                to: node,
                // Behind whatever was sent back from ahead of it.
                lane: Lane::Partition(passed.at.partition),
                origin: Address { node: self.parts.node.clone(), incarnation: self.parts.incarnation, shard: 0 },
                record: Record::Fenced { id: passed.id, shard, incarnation },
                ticket: None,
            };
            self.send(Item::Echo { parcel: Box::new(parcel), at: passed.at });
        }
    }

    fn send(&mut self, item: Item) {
        if !self.outgoing.is_empty() {
            self.outgoing.push_back(item);
        } else if let Err(item) = self.parts.shared.intake.take(item) {
            self.outgoing.push_back(item);
        }
    }

    fn send_outgoing(&mut self) {
        while let Some(item) = self.outgoing.pop_front() {
            if let Err(item) = self.parts.shared.intake.take(item) {
                self.outgoing.push_front(item);
                return;
            }
        }
    }

    /// Begins to read when the topic is there and the lease is held; ends when it is not.
    fn follow_lease(&mut self) {
        let token = self.parts.lease.token();
        match (self.phase, token) {
            (Phase::Reading(current), Some(token)) if current == token => {}
            (Phase::Reading(_), _) => {
                tracing::warn!(topic = self.topic, "the lease on this node's topic is lost: reading pauses");
                self.end_reading();
            }
            (Phase::Waiting, Some(token)) => {
                let partitions = self.parts.shared.own_partitions.load(Ordering::Relaxed);
                let now = Instant::now();
                if partitions > 0 && now >= self.position_at {
                    let begun = self.begin_reading(partitions, token);
                    self.position_at = Instant::now() + POSITION_INTERVAL;
                    match begun {
                        Ok(()) => self.trouble.reset(),
                        Err(reason) => {
                            if self.trouble.is_due(now) {
                                tracing::warn!(topic = self.topic, reason, "this node's topic is not read yet");
                            }
                        }
                    }
                }
            }
            (Phase::Waiting, None) => {}
        }
    }

    fn begin_reading(&mut self, partitions: u16, token: u64) -> Result<(), String> {
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition(&self.topic, i32::from(partition));
        }
        let committed = self.consumer.committed_offsets(list, POSITION_TIMEOUT).map_err(|error| error.to_string())?;
        let mut positions = vec![None; usize::from(partitions)];
        for (index, element) in committed.elements().iter().enumerate() {
            element.error().map_err(|error| error.to_string())?;
            let highest = std::str::from_utf8(sys::committed_metadata(&committed, index)).ok();
            if let Some(highest) = highest.and_then(|highest| highest.parse::<u64>().ok())
                && highest > token
            {
                return Err(format!("it was read by the right of token {highest}, and ours is {token}"));
            }
            let position = usize::try_from(element.partition()).ok().and_then(|index| positions.get_mut(index));
            if let (Some(position), Offset::Offset(offset)) = (position, element.offset()) {
                *position = u64::try_from(offset).ok();
            }
        }
        let mut assignment = TopicPartitionList::new();
        for (partition, position) in (0..).zip(&positions) {
            let offset =
                position.and_then(|position| i64::try_from(position).ok()).map_or(Offset::Beginning, Offset::Offset);
            assignment.add_partition_offset(&self.topic, partition, offset).map_err(|error| error.to_string())?;
        }
        self.consumer.assign(&assignment).map_err(|error| error.to_string())?;
        self.partitions = (positions.iter().enumerate())
            .map(|(index, position)| self.partition(index, *position, partitions))
            .collect();
        self.fences.clear();
        // Each change of hands takes one more.
        if self.last_token.replace(token).is_some_and(|former| token > former + 1) {
            for shard in 0..self.parts.mailing.shards() {
                self.parts.mailing.post(shard, Mail::ReadAgain);
            }
        }
        self.phase = Phase::Reading(token);
        self.parts.shared.counters.reader.assignments.add(1);
        self.parts.shared.counters.reader.reading.set(1);
        tracing::info!(topic = self.topic, partitions, token, "this node's topic is read");
        Ok(())
    }

    fn partition(&self, index: usize, position: Option<u64>, partitions: u16) -> Partition {
        let mut bound = self.parts.config.bound;
        // With a single partition there is no control lane apart.
        if index == 0 && partitions > 1 {
            bound.records = bound.records.saturating_mul(CONTROL_BOUND_FACTOR);
            bound.bytes = bound.bytes.saturating_mul(CONTROL_BOUND_FACTOR);
            bound.span = bound.span.saturating_mul(CONTROL_BOUND_FACTOR);
        }
        let next = position.unwrap_or(0);
        Partition { watermark: Watermark::new(next, bound), committed: Some(next), is_paused: false, last_taken_ms: 0 }
    }

    /// Lets go of the topic. What the shards still have is finished into the void, and read again by whoever reads next.
    fn end_reading(&mut self) {
        let Phase::Reading(token) = self.phase else { return };
        // Without the lease somebody else may read already, and commit further on.
        if self.parts.lease.token() == Some(token) {
            self.commit(token);
            self.await_commit();
        }
        if let Err(error) = self.consumer.unassign() {
            tracing::debug!(%error, "kafka unassign");
        }
        self.phase = Phase::Waiting;
        self.parts.shared.counters.reader.reading.set(0);
        self.position_at = Instant::now();
        self.partitions.clear();
        self.fences.clear();
        self.parts.shared.is_reader_waiting.store(false, Ordering::Relaxed);
    }

    /// Waits until what was committed is what Kafka has: nothing else tells when an asynchronous commit is done.
    fn await_commit(&self) {
        let deadline = Instant::now() + LAST_COMMIT_TIMEOUT;
        while Instant::now() < deadline {
            let mut list = TopicPartitionList::new();
            let expected = self.partitions.iter().map(|partition| partition.committed.unwrap_or(0));
            for (index, _) in (0..).zip(&self.partitions) {
                list.add_partition(&self.topic, index);
            }
            let Ok(committed) = self.consumer.committed_offsets(list, deadline.duration_since(Instant::now())) else {
                return;
            };
            let is_there = committed.elements().iter().zip(expected).all(|(element, expected)| {
                // Where nothing was ever committed there is nothing to wait for.
                element.offset().to_raw().and_then(|offset| u64::try_from(offset).ok()).unwrap_or(0) == expected
            });
            if is_there {
                return;
            }
            std::thread::sleep(COMMIT_LOOK_INTERVAL);
        }
    }

    /// Takes in what has come. True when there is nothing more for now, or no room for it.
    fn read(&mut self) -> bool {
        let consumer = Arc::clone(&self.consumer);
        let mut empty_answers = 0;
        for _ in 0..RECORDS_PER_TURN {
            if self.parts.mailing.waiting() >= WAITING_MAX || !self.outgoing.is_empty() {
                return true;
            }
            match consumer.poll(Duration::ZERO) {
                Some(Ok(message)) => {
                    empty_answers = 0;
                    self.silence.end(Instant::now());
                    self.take(&message);
                    let partition = usize::try_from(message.partition()).ok();
                    let partition = partition.and_then(|partition| self.partitions.get(partition));
                    if partition.is_some_and(|partition| !partition.is_paused && partition.watermark.is_full()) {
                        self.pause_and_resume();
                    }
                }
                Some(Err(error)) => {
                    self.parts.shared.counters.reader.read_errors.add(1);
                    if self.trouble.is_due(Instant::now()) {
                        tracing::warn!(topic = self.topic, %error, "kafka has trouble with this node's topic");
                    }
                }
                None => {
                    empty_answers += 1;
                    if empty_answers >= EMPTY_ANSWERS {
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Nothing to read, or nobody to read from: only a question tells.
    fn break_silence(&mut self) {
        let shared = &self.parts.shared;
        if shared.health.is_up() && self.silence.is_long(Instant::now()) {
            let brokers = self.parts.config.bootstrap();
            let given = &shared.counters.rebootstraps.reader;
            let is_answered = silence::revive(self.consumer.client(), "reader", &self.topic, brokers, given);
            let is_reading = is_answered && matches!(self.phase, Phase::Reading(_));
            shared.counters.reader.reading.set(u64::from(is_reading));
        }
    }

    fn take(&mut self, message: &BorrowedMessage<'_>) {
        let (Ok(partition), Ok(offset)) = (u16::try_from(message.partition()), u64::try_from(message.offset())) else {
            return;
        };
        let at = RecordRef { partition, offset };
        let taken_ms = message.timestamp().to_millis().and_then(|millis| u64::try_from(millis).ok()).unwrap_or(0);
        let Some(read) = self.partitions.get_mut(usize::from(partition)) else { return };
        let bytes = message.payload_len() + message.key_len();
        read.watermark.read(offset, bytes);
        read.last_taken_ms = taken_ms;
        self.lag_ms = self.lag_ms.max(now_ms().saturating_sub(taken_ms));
        let counters = &self.parts.shared.counters.reader;
        counters.reading.set(1);
        counters.consumed.add(1);
        counters.consumed_bytes.add(bytes as u64);
        let raw = Raw {
            value: message.payload(),
            kind: sys::kafka_header(message, c"rtc-kind"),
            origin: sys::kafka_header(message, c"rtc-origin"),
            hops: sys::kafka_header(message, c"rtc-hops"),
            trail: sys::kafka_header(message, c"rtc-trail"),
            taken_ms,
        };
        let seed = self.ring.load().map_or(0, |ring| ring.seed());
        match self.decoder.decode(&raw, seed) {
            Ok((origin, record)) => self.deliver(at, origin, record, seed),
            Err(poison) => self.bury(at, message, &poison),
        }
    }

    fn deliver(&mut self, at: RecordRef, origin: Address, record: Record, seed: u64) {
        let shard = match &record {
            Record::Message(posted) => shard_of(posted.hash, self.shards),
            Record::Claimed { client, .. }
            | Record::Released { client, .. }
            | Record::Moved { client, .. }
            | Record::Nudge { client } => shard_of(hash_key(client.as_bytes(), seed), self.shards),
            Record::Fenced { shard, .. } => usize::from(*shard),
            Record::Fence { id, hash, .. } => {
                self.fences.begin(at, *id, origin.clone());
                shard_of(*hash, self.shards)
            }
        };
        if !self.parts.mailing.post(shard, Mail::Record(Box::new(Arrived { at, origin, record }))) {
            self.parts.shared.counters.reader.no_shard.add(1);
            self.parts.shared.finish(at);
        }
    }

    /// Sends a record that nobody can use to the dead letters; it is finished when it is there.
    fn bury(&mut self, at: RecordRef, message: &BorrowedMessage<'_>, poison: &Poison) {
        self.parts.shared.counters.reader.poison(poison.cause());
        if self.trouble.is_due(Instant::now()) {
            let RecordRef { partition, offset } = at;
            tracing::warn!(topic = self.topic, partition, offset, reason = %poison, "a record is poison: see the dead letters");
        }
        let source = format!("{}/{}/{}", self.topic, at.partition, at.offset);
        let mut headers = message.headers().map_or_else(OwnedHeaders::new, BorrowedHeaders::detach);
        headers = headers
            .insert(Header { key: CAUSE_HEADER, value: Some(poison.cause()) })
            .insert(Header { key: REASON_HEADER, value: Some(&poison.to_string()) })
            .insert(Header { key: SOURCE_HEADER, value: Some(&source) });
        let mut value = message.payload();
        if let Some(whole) = value.filter(|whole| whole.len() > DEAD_LETTER_BYTES_MAX) {
            value = whole.get(..DEAD_LETTER_BYTES_MAX);
            headers = headers.insert(Header { key: LENGTH_HEADER, value: Some(&whole.len().to_string()) });
        }
        let key = message.key().filter(|key| key.len() <= DEAD_LETTER_BYTES_MAX);
        let letter = DeadLetter { at, key: key.map(<[u8]>::to_vec), value: value.map(<[u8]>::to_vec), headers };
        self.send(Item::DeadLetter(Box::new(letter)));
    }

    fn pause_and_resume(&mut self) {
        let mut paused = 0;
        for (index, partition) in (0..).zip(&mut self.partitions) {
            let is_full = partition.watermark.is_full();
            let turns = if partition.is_paused { partition.watermark.has_room() } else { is_full };
            if turns {
                let mut list = TopicPartitionList::new();
                list.add_partition(&self.topic, index);
                let result = if partition.is_paused { self.consumer.resume(&list) } else { self.consumer.pause(&list) };
                match result {
                    Ok(()) => {
                        partition.is_paused = !partition.is_paused;
                        self.parts.shared.counters.reader.pauses.add(u64::from(partition.is_paused));
                    }
                    Err(error) => tracing::debug!(%error, "kafka pause or resume"),
                }
            }
            paused += u64::from(partition.is_paused);
        }
        self.parts.shared.counters.reader.paused.set(paused);
        self.parts.shared.is_reader_waiting.store(paused > 0, Ordering::Relaxed);
    }

    fn commit_if_due(&mut self) {
        let now = Instant::now();
        if let Phase::Reading(token) = self.phase
            && now >= self.commit_at
        {
            self.commit_at = now + COMMIT_INTERVAL;
            self.hear_of_commits();
            self.commit(token);
        }
    }

    fn commit(&mut self, token: u64) {
        let mut list = TopicPartitionList::new();
        for (index, partition) in (0..).zip(&mut self.partitions) {
            let position = partition.watermark.position();
            let Ok(offset) = i64::try_from(position) else { continue };
            if partition.committed == Some(position) {
                continue;
            }
            let mut element = list.add_partition(&self.topic, index);
            element.set_metadata(token.to_string());
            if element.set_offset(Offset::Offset(offset)).is_ok() {
                partition.committed = Some(position);
            }
        }
        if list.count() == 0 {
            return;
        }
        match self.consumer.commit(&list, CommitMode::Async) {
            Ok(()) => self.parts.shared.counters.reader.commits.add(1),
            Err(error) => {
                tracing::debug!(%error, "kafka commit failed");
                self.forget_committed();
            }
        }
    }

    /// A commit has failed, and which one does not matter: all of them are made again.
    fn forget_committed(&mut self) {
        self.parts.shared.counters.reader.commit_failures.add(1);
        self.partitions.iter_mut().for_each(|partition| partition.committed = None);
    }

    fn hear_of_commits(&mut self) {
        let failures = self.consumer.context().commit_failures.load(Ordering::Relaxed);
        if failures > self.commits_failed {
            self.commits_failed = failures;
            self.forget_committed();
        }
    }

    fn count(&mut self) {
        let counters = &self.parts.shared.counters.reader;
        let unfinished =
            self.partitions.iter().map(|partition| partition.watermark.unfinished_records()).sum::<usize>();
        let bytes = self.partitions.iter().map(|partition| partition.watermark.unfinished_bytes()).sum::<usize>();
        counters.unfinished.set(unfinished as u64);
        counters.unfinished_bytes.set(bytes as u64);
        counters.waiting_mail.set(self.parts.mailing.waiting() as u64);
        let now = Instant::now();
        if now >= self.lag_at {
            self.lag_at = now + LAG_INTERVAL;
            // What is paused gets older without being read.
            let paused = self.partitions.iter().filter(|partition| partition.is_paused);
            let oldest = paused.map(|partition| partition.last_taken_ms).min();
            let waiting_ms = oldest.map_or(0, |taken_ms| now_ms().saturating_sub(taken_ms));
            counters.lag_ms.set(std::mem::take(&mut self.lag_ms).max(waiting_ms));
        }
    }
}

fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
