//! One reading of one dead node's topic, under its lease: from the committed offset until it is drained or must stop.
//!
//! Nothing is committed that is not confirmed where it went; what was sent and not committed is read once more by
//! whoever comes next, and its recipients know it by its message id.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use ring::{NodeId, Ring};
use tracing::{debug, info, warn};

use super::Forwarded;
use super::lease::Lease;
use super::plan::{self, Kind, OwnHeader, Plan, Poison, Raw};
use super::sender::{DEAD_LETTER_TOPIC, Heard, NODE_TOPIC_PREFIX, Outgoing, Place, Sender, Sent};
use super::watch::{Ending, Ends};
use super::watermark::Watermark;
use crate::kafka::{ANSWER_TIMEOUT, Kafka, SILENCE_MAX, is_answered, partitions_of};
use crate::sys;

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
/// How often the watermark is committed while it moves.
const COMMIT_INTERVAL: Duration = Duration::from_millis(500);
/// How long the last confirmations and the last commit may take.
const LAST_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the last commit is looked for.
const COMMIT_LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// Between two questions for a lease that somebody else holds.
const LEASE_POLL: Duration = Duration::from_millis(50);
/// Kafka counts places that no reader ever sees; when nothing has come for so long before one, nothing will.
const GAP_PATIENCE: Duration = Duration::from_secs(10);
/// The longest value that is kept among the dead letters.
const DEAD_LETTER_BYTES_MAX: usize = 256 << 10;

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

/// Hears the library on the thread that polls it.
#[derive(Debug, Default)]
struct ReadContext {
    commit_failures: AtomicU64,
}

impl ClientContext for ReadContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        // The library's log is the only place that tells of a failed commit.
        if facility == "COMMITFAIL" {
            self.commit_failures.fetch_add(1, Ordering::Relaxed);
        }
        debug!(?level, facility, line, "kafka, reading a dead node's topic");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "kafka has trouble with a dead node's topic");
    }
}

impl ConsumerContext for ReadContext {}

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

/// The committed offset of each partition, and the highest token that any was committed by.
fn committed(consumer: &BaseConsumer<ReadContext>, topic: &str, count: u16) -> anyhow::Result<(Vec<Option<u64>>, u64)> {
    let mut list = TopicPartitionList::new();
    for partition in 0..count {
        list.add_partition(topic, i32::from(partition));
    }
    let list = consumer.committed_offsets(list, ANSWER_TIMEOUT).context("kafka does not tell what is committed")?;
    let (mut positions, mut highest) = (vec![None; usize::from(count)], 0);
    for (index, element) in list.elements().iter().enumerate() {
        element.error().context("kafka does not tell what is committed")?;
        let token = std::str::from_utf8(sys::committed_metadata(&list, index)).ok().and_then(|text| text.parse().ok());
        highest = highest.max(token.unwrap_or(0));
        let position = usize::try_from(element.partition()).ok().and_then(|index| positions.get_mut(index));
        if let (Some(position), Offset::Offset(offset)) = (position, element.offset()) {
            *position = u64::try_from(offset).ok();
        }
    }
    Ok((positions, highest))
}

/// Where the partitions end now.
fn ends_of(consumer: &BaseConsumer<ReadContext>, topic: &str, count: u16) -> anyhow::Result<Ends> {
    let mut list = TopicPartitionList::new();
    for partition in 0..count {
        list.add_partition_offset(topic, i32::from(partition), Offset::End)?;
    }
    let list = consumer.offsets_for_times(list, ANSWER_TIMEOUT).context("kafka does not tell where a topic ends")?;
    let mut ends = vec![0; usize::from(count)];
    for element in list.elements() {
        element.error().context("kafka does not tell where a topic ends")?;
        let end = usize::try_from(element.partition()).ok().and_then(|index| ends.get_mut(index));
        if let (Some(end), Offset::Offset(offset)) = (end, element.offset()) {
            *end = offset;
        }
    }
    Ok(ends)
}

fn is_drained(positions: &[Option<u64>], ends: &[i64]) -> bool {
    let reaches = |(position, end): (&Option<u64>, &i64)| {
        u64::try_from(*end).is_ok_and(|end| end == 0 || position.is_some_and(|position| position >= end))
    };
    positions.len() == ends.len() && positions.iter().zip(ends).all(reaches)
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

    /// A record that its topic does not take goes to the dead letters, shortened; a letter that is not taken either is
    /// given up.
    fn bury_too_large(&mut self, outgoing: Outgoing) -> anyhow::Result<()> {
        let Outgoing { place, topic, key, value, headers, .. } = outgoing;
        let (node, bytes) = (&self.task.dead, value.as_ref().map_or(0, Vec::len));
        if topic == DEAD_LETTER_TOPIC {
            warn!(%node, ?place, bytes, "kafka takes no dead letter of this size: its record is given up");
            self.finish(place);
            return Ok(());
        }
        if !std::mem::replace(&mut self.has_told_of_size, true) {
            warn!(
                %node, ?place, bytes, topic,
                "kafka takes no record of this size: it goes to the dead letters, and the others on; \
                 raise max.message.bytes of the topic to what the dead node's takes"
            );
        }
        let poison = Poison::Refused { bytes };
        self.bury(place, &poison, Content { key, value, headers })
    }

    fn bury(&mut self, place: Place, poison: &Poison, content: Content) -> anyhow::Result<()> {
        self.sender.need_dead_letters()?;
        self.task.counted.count_buried(poison);
        debug!(topic = self.topic, ?place, reason = %poison, "a record cannot be forwarded: see the dead letters");
        let source = format!("{}/{}/{}", self.topic, place.partition, place.offset);
        let (topic, letter) = (DEAD_LETTER_TOPIC.to_owned(), content.letter(poison, source));
        let Content { key, value, headers } = letter;
        self.waiting.push_back(Outgoing { place, topic, partition: 0, key, value, headers });
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

    fn commit_if_due(&mut self) {
        let now = Instant::now();
        if now >= self.commit_at {
            self.commit_at = now + COMMIT_INTERVAL;
            self.commit();
        }
    }

    fn commit(&mut self) {
        let failures = self.consumer.context().commit_failures.load(Ordering::Relaxed);
        if failures > self.commits_failed {
            // Which one does not matter: all of them are made again.
            self.commits_failed = failures;
            self.partitions.iter_mut().for_each(|partition| partition.committed = None);
        }
        let mut list = TopicPartitionList::new();
        for (index, partition) in (0..).zip(&mut self.partitions) {
            let position = partition.watermark.position();
            let Ok(offset) = i64::try_from(position) else { continue };
            if partition.committed == Some(position) {
                continue;
            }
            let mut element = list.add_partition(&self.topic, index);
            element.set_metadata(self.token.to_string());
            if element.set_offset(Offset::Offset(offset)).is_ok() {
                partition.committed = Some(position);
            }
        }
        if list.count() == 0 {
            return;
        }
        if let Err(error) = self.consumer.commit(&list, CommitMode::Async) {
            debug!(%error, "kafka commit failed");
            self.partitions.iter_mut().for_each(|partition| partition.committed = None);
        }
    }

    /// Waits a little for what is under way, commits, and lets go of the topic.
    fn end(&mut self, lease: &mut Lease, outcome: anyhow::Result<Ending>) -> anyhow::Result<Ending> {
        let deadline = Instant::now() + LAST_TIMEOUT;
        let has_lease = |lease: &Lease, token| lease.token() == Some(token);
        if outcome.is_ok() {
            while self.sender.in_flight().0 > 0 && Instant::now() < deadline && has_lease(lease, self.token) {
                std::thread::sleep(REPORT_INTERVAL);
                self.hear()?;
            }
        }
        let mut is_committed = false;
        // Without the lease somebody else may read already, and commit further on.
        if has_lease(lease, self.token) {
            self.commit();
            is_committed = self.await_commit(deadline);
        }
        if let Err(error) = self.consumer.unassign() {
            debug!(%error, "kafka unassign");
        }
        if !is_committed && matches!(outcome, Ok(Ending::Drained(_))) {
            bail!("the last commit is not confirmed");
        }
        outcome
    }

    /// Waits until what was committed is what Kafka has: nothing else tells when an asynchronous commit is done.
    fn await_commit(&self, deadline: Instant) -> bool {
        let count = u16::try_from(self.partitions.len()).unwrap_or(u16::MAX);
        while Instant::now() < deadline {
            let Ok((positions, _)) = committed(&self.consumer, &self.topic, count) else { continue };
            let wanted = self.partitions.iter().map(|partition| partition.watermark.position());
            if positions.iter().zip(wanted).all(|(position, wanted)| position.unwrap_or(0) >= wanted) {
                return true;
            }
            std::thread::sleep(COMMIT_LOOK_INTERVAL);
        }
        false
    }
}

/// What a record is made of.
struct Content {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<OwnHeader>,
}

impl Content {
    /// A dead letter, as the nodes write them: so much of a record as is kept, and what is wrong with it.
    fn letter(self, poison: &Poison, source: String) -> Self {
        let Self { mut key, mut value, mut headers } = self;
        let mut add = |name: &str, text: String| headers.push((name.to_owned(), Some(text.into_bytes())));
        add("rtc-cause", poison.cause().to_owned());
        add("rtc-reason", poison.to_string());
        add("rtc-source", source);
        if let Some(whole) = value.as_mut().filter(|whole| whole.len() > DEAD_LETTER_BYTES_MAX) {
            add("rtc-length", whole.len().to_string());
            whole.truncate(DEAD_LETTER_BYTES_MAX);
        }
        key = key.filter(|key| key.len() <= DEAD_LETTER_BYTES_MAX);
        Self { key, value, headers }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_drained_when_each_partition_is_committed_to_its_end() {
        let check = |positions: &[Option<u64>], ends: &[i64], expected| {
            assert_eq!(is_drained(positions, ends), expected, "{positions:?} {ends:?}");
        };
        check(&[None, None], &[0, 0], true);
        check(&[None, Some(3)], &[0, 3], true);
        check(&[None, Some(2)], &[0, 3], false);
        check(&[None, None], &[0, 3], false);
        check(&[Some(4)], &[3], true);
        check(&[Some(3)], &[3, 0], false);
    }
}
