//! The thread that sends. It keeps every record until Kafka has confirmed it, and never lets a later one of a partition
//! overtake: the client library neither gives up on a record nor goes on behind one that failed. Where it fails for good,
//! a new producer takes its place and is given all that is unconfirmed, in the order in which it came.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TryRecvError};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use ring::NodeId;

use crate::bus::codec::{self, HOPS_HEADER, KIND_HEADER, ORIGIN_HEADER, TRAIL_HEADER};
use crate::bus::record::{Lane, Parcel};
use crate::shard::handover::Mail;

use super::Shared;
use super::config::{Config, DEAD_LETTER_TOPIC, node_topic};
use super::health::{self, Complaint};
use super::intake::Item;
use super::mailing::Mailing;
use super::silence::{self, Silence};
use super::topics::Wanted;

/// Items taken from the queue before reports are looked at again.
const ITEMS_PER_TURN: usize = 512;
/// Records are handed over at most this often, unless there are very many of them.
const PACE: Duration = Duration::from_millis(2);
/// How soon reports are looked for while any are outstanding; the library cannot wake this thread for them.
const REPORT_INTERVAL: Duration = Duration::from_millis(1);
/// The same when none have come for a while.
const REPORT_INTERVAL_MAX: Duration = Duration::from_millis(16);
/// The longest it sleeps with nothing to do: items and orders wake it, only what the library complains of does not.
const NAP: Duration = Duration::from_millis(500);
/// Producers are not rebuilt more often than this.
const REBUILD_INTERVAL: Duration = Duration::from_secs(1);
/// How long before a topic that could not be asked for is asked for again.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// Confirmations that may wait for room in the shards' mailboxes before nothing more is taken in.
const WAITING_MAX: usize = 65_536;
/// How many events of the library are handled before looking at what they said.
const EVENTS_PER_TURN: usize = 64;

/// What other threads tell this one.
#[derive(Debug)]
pub enum Order {
    /// A topic is there, with so many partitions.
    Found(String, u16),
    /// Send what there is, until then, and end.
    Stop(Instant),
}

/// What the thread is made of.
pub struct Parts {
    /// How Kafka is spoken to.
    pub config: Config,
    /// This node.
    pub node: NodeId,
    /// What is to be sent.
    pub items: Receiver<Item>,
    /// What it is told.
    pub orders: Receiver<Order>,
    /// Whom it asks for topics.
    pub topics: Sender<Wanted>,
    /// Whom it tells of confirmations.
    pub mailing: Mailing,
    /// What the bus shares.
    pub shared: Arc<Shared>,
}

/// What the library says of a record: its number, and why it failed if it did.
type Report = (usize, Option<RDKafkaErrorCode>);

/// Hears the library on the thread that polls it.
pub struct SendContext {
    shared: Arc<Shared>,
    heard: Mutex<Heard>,
}

#[derive(Default)]
struct Heard {
    reports: Vec<Report>,
    is_fatal: bool,
}

impl SendContext {
    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for SendContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        health::log_line("producer", level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.heard().is_fatal = true;
        }
        self.shared.health.note_error(format!("{error}: {reason}"));
    }
}

impl ProducerContext for SendContext {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let failure = match result {
            Ok(_) => None,
            Err((error, _)) => Some(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)),
        };
        self.heard().reports.push((number, failure));
    }
}

/// A record that Kafka has not confirmed.
struct Unconfirmed {
    item: Item,
    destination: usize,
    bytes: usize,
    since: Instant,
    was_sent: bool,
}

/// A topic that is sent to.
struct Destination {
    topic: String,
    wanted: Wanted,
    // None until it is known to be there and fit.
    partitions: Option<u16>,
    asked_at: Option<Instant>,
    // Numbers of the records that wait for it, in order.
    held: VecDeque<usize>,
}

/// Whose topic it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Owner {
    Node(NodeId),
    DeadLetters,
}

struct Producer {
    parts: Parts,
    client: Option<BaseProducer<SendContext>>,
    build_at: Instant,
    // Invariant: every number in `backlog` or in a destination's `held` is in `unconfirmed`, and in one of them only.
    unconfirmed: BTreeMap<usize, Unconfirmed>,
    backlog: VecDeque<usize>,
    held: usize,
    next_number: usize,
    destinations: Vec<Destination>,
    by_owner: HashMap<Owner, usize>,
    value: Vec<u8>,
    reports: Vec<Report>,
    interval: Duration,
    has_sent: bool,
    paced_until: Instant,
    stop_at: Option<Instant>,
    silence: Silence,
    trouble: Complaint,
}

/// What became of an attempt to hand a record to the library.
enum Handed {
    Over,
    /// The library has no room now.
    NotNow,
    /// It is larger than any record may be.
    TooLarge,
    /// The topic is not what it was.
    TopicChanged,
    /// This producer will never send it.
    Broken(KafkaError),
}

/// Runs until it is told to stop and all is sent, or its time is up. Returns how many records are unconfirmed then.
pub fn run(parts: Parts) -> usize {
    let silence = Silence::new(parts.config.silence_max, Instant::now());
    let mut producer = Producer {
        parts,
        client: None,
        build_at: Instant::now(),
        unconfirmed: BTreeMap::new(),
        backlog: VecDeque::new(),
        held: 0,
        next_number: 0,
        destinations: Vec::new(),
        by_owner: HashMap::new(),
        value: Vec::new(),
        reports: Vec::new(),
        interval: REPORT_INTERVAL,
        has_sent: false,
        paced_until: Instant::now(),
        stop_at: None,
        silence,
        trouble: Complaint::default(),
    };
    while !producer.is_done() {
        producer.turn();
    }
    producer.unconfirmed.len()
}

impl Producer {
    fn is_done(&self) -> bool {
        let is_idle = self.unconfirmed.is_empty() && self.parts.items.is_empty() && self.parts.mailing.waiting() == 0;
        self.stop_at.is_some_and(|stop_at| is_idle || Instant::now() >= stop_at)
    }

    fn turn(&mut self) {
        let now = Instant::now();
        self.build(now);
        let has_heard = self.hear();
        if has_heard {
            self.silence.end(now);
        }
        self.break_silence(now);
        self.parts.mailing.flush();
        while let Ok(order) = self.parts.orders.try_recv() {
            self.obey(order);
        }
        let taken = self.take_items(now);
        let (has_taken, is_full_turn) = (taken > 0, taken == ITEMS_PER_TURN);
        self.ask_again(now);
        self.send_backlog();
        if std::mem::take(&mut self.has_sent) {
            self.paced_until = now + PACE;
        }
        self.count(now);
        if has_taken || has_heard {
            self.interval = REPORT_INTERVAL;
        }
        if !is_full_turn {
            self.sleep();
        }
    }

    fn sleep(&mut self) {
        // A record that comes alone leaves at once. While more come, they leave together: what a request costs, here and
        // at the broker, is far more than what a record in it does.
        let pace = self.paced_until.saturating_duration_since(Instant::now());
        if !pace.is_zero() {
            std::thread::sleep(pace);
            return;
        }
        let is_waiting = !self.unconfirmed.is_empty() || self.parts.mailing.waiting() > 0;
        let pause = if is_waiting { self.interval } else { NAP };
        self.interval = (self.interval * 2).min(REPORT_INTERVAL_MAX);
        if self.parts.mailing.waiting() >= WAITING_MAX {
            std::thread::sleep(REPORT_INTERVAL);
            return;
        }
        crossbeam::channel::select_biased! {
            recv(self.parts.items) -> item => match item {
                Ok(item) => self.take(item, Instant::now()),
                // All ways in are gone: only what is under way is left.
                Err(_) => std::thread::sleep(pause),
            },
            recv(self.parts.orders) -> order => match order {
                Ok(order) => self.obey(order),
                Err(_) => std::thread::sleep(pause),
            },
            default(pause) => {}
        }
        self.send_backlog();
    }

    /// With nothing to send it is asked all the same: the next record shall not be the one that finds out.
    fn break_silence(&mut self, now: Instant) {
        let Some(client) = &self.client else { return };
        let shared = &self.parts.shared;
        if shared.health.is_up() && self.silence.is_long(now) {
            let (topic, brokers) = (node_topic(&self.parts.node), self.parts.config.bootstrap());
            let given = &shared.counters.rebootstraps.producer;
            silence::revive(client.client(), "producer", &topic, brokers, given);
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Found(topic, partitions) => {
                let Some(destination) = self.destinations.iter_mut().find(|found| found.topic == topic) else { return };
                destination.partitions = Some(partitions);
                self.held -= destination.held.len();
                // They are older than whatever of this topic is in the backlog.
                while let Some(number) = destination.held.pop_back() {
                    self.backlog.push_front(number);
                }
            }
            Order::Stop(stop_at) => self.stop_at = Some(stop_at),
        }
    }

    /// How many it has taken.
    fn take_items(&mut self, now: Instant) -> usize {
        if self.parts.mailing.waiting() >= WAITING_MAX {
            return 0;
        }
        for count in 0..ITEMS_PER_TURN {
            match self.parts.items.try_recv() {
                Ok(item) => self.take(item, now),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return count,
            }
        }
        ITEMS_PER_TURN
    }

    fn take(&mut self, item: Item, now: Instant) {
        let (bytes, destination) = (item.bytes(), self.destination(&item));
        let number = self.next_number;
        self.next_number = self.next_number.wrapping_add(1);
        self.unconfirmed.insert(number, Unconfirmed { item, destination, bytes, since: now, was_sent: false });
        self.backlog.push_back(number);
    }

    fn destination(&mut self, item: &Item) -> usize {
        let owner = match item {
            Item::Parcel(parcel) | Item::Echo { parcel, .. } => Owner::Node(parcel.to.clone()),
            Item::DeadLetter(_) => Owner::DeadLetters,
        };
        if let Some(index) = self.by_owner.get(&owner) {
            return *index;
        }
        let (topic, partitions) = match &owner {
            Owner::Node(node) => (node_topic(node), self.parts.config.partitions),
            Owner::DeadLetters => (DEAD_LETTER_TOPIC.to_owned(), 1),
        };
        let wanted = Wanted { topic: topic.clone(), partitions, takes_batches: true };
        let index = self.destinations.len();
        self.destinations.push(Destination { topic, wanted, partitions: None, asked_at: None, held: VecDeque::new() });
        self.by_owner.insert(owner, index);
        index
    }

    /// Asks for the topics that records wait for; again after a while, for a request may have been lost in a full queue.
    fn ask_again(&mut self, now: Instant) {
        if self.held == 0 {
            return;
        }
        for destination in &mut self.destinations {
            let is_due = destination.asked_at.is_none_or(|asked_at| now.duration_since(asked_at) >= ASK_INTERVAL);
            if !destination.held.is_empty() && is_due {
                destination.asked_at = Some(now);
                let _ = self.parts.topics.try_send(destination.wanted.clone());
            }
        }
    }

    fn send_backlog(&mut self) {
        while self.client.is_some() {
            let Some(number) = self.backlog.pop_front() else { return };
            match self.hand_over(number) {
                Handed::Over => {}
                Handed::NotNow => {
                    self.backlog.push_front(number);
                    return;
                }
                Handed::TooLarge => self.refuse(number),
                Handed::TopicChanged => self.hold(number),
                Handed::Broken(error) => {
                    self.backlog.push_front(number);
                    self.give_up_client(&error.to_string());
                }
            }
        }
    }

    fn hand_over(&mut self, number: usize) -> Handed {
        let (Some(client), Some(unconfirmed)) = (&self.client, self.unconfirmed.get_mut(&number)) else {
            return Handed::Over;
        };
        let Some(destination) = self.destinations.get(unconfirmed.destination) else { return Handed::Over };
        let Some(partitions) = destination.partitions else { return Handed::TopicChanged };
        let result = match &unconfirmed.item {
            Item::Parcel(parcel) | Item::Echo { parcel, .. } => {
                self.value.clear();
                let headers = codec::encode(parcel, &mut self.value);
                if self.value.len() > self.parts.config.value_bytes_max() {
                    return Handed::TooLarge;
                }
                let record = BaseRecord::with_opaque_to(&destination.topic, number)
                    .partition(partition_of(parcel, partitions))
                    .key(codec::key_of(&parcel.record))
                    .payload(&self.value)
                    .headers(headers_of(&headers));
                client.send(record).map_err(|(error, _)| error)
            }
            Item::DeadLetter(letter) => {
                let mut record = BaseRecord::with_opaque_to(&destination.topic, number).headers(letter.headers.clone());
                (record.key, record.payload) = (letter.key.as_ref(), letter.value.as_ref());
                client.send(record).map_err(|(error, _)| error)
            }
        };
        match result {
            Ok(()) => {
                self.has_sent = true;
                let counters = &self.parts.shared.counters.producer;
                counters.produced_bytes.add(unconfirmed.bytes as u64);
                counters.resent.add(u64::from(std::mem::replace(&mut unconfirmed.was_sent, true)));
                Handed::Over
            }
            Err(error) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => Handed::NotNow,
                Some(RDKafkaErrorCode::MessageSizeTooLarge) => Handed::TooLarge,
                Some(
                    RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownPartition,
                ) => Handed::TopicChanged,
                _ => Handed::Broken(error),
            },
        }
    }

    /// The record waits until its topic is there.
    fn hold(&mut self, number: usize) {
        let Some(unconfirmed) = self.unconfirmed.get(&number) else { return };
        let Some(destination) = self.destinations.get_mut(unconfirmed.destination) else { return };
        destination.partitions = None;
        destination.held.push_back(number);
        self.held += 1;
        self.ask_again(Instant::now());
    }

    /// The record can never be sent. Its sender hears that it is unconfirmed; what this node read is finished.
    fn refuse(&mut self, number: usize) {
        let Some(unconfirmed) = self.unconfirmed.remove(&number) else { return };
        self.parts.shared.counters.producer.too_large.add(1);
        if self.trouble.is_due(Instant::now()) {
            let limit = self.parts.config.value_bytes_max();
            tracing::error!(bytes = unconfirmed.bytes, limit, "a record is over the limit and was not sent");
        }
        match unconfirmed.item {
            Item::Parcel(_) => {}
            Item::Echo { at, .. } => self.parts.shared.finish(at),
            Item::DeadLetter(letter) => self.parts.shared.finish(letter.at),
        }
        self.parts.shared.intake.release(1, unconfirmed.bytes);
    }

    /// Takes in what the library has to say. True if it had anything.
    fn hear(&mut self) -> bool {
        let Some(client) = &self.client else { return false };
        let mut reports = std::mem::take(&mut self.reports);
        for _ in 0..EVENTS_PER_TURN {
            client.poll(Duration::ZERO);
            let mut heard = client.context().heard();
            if heard.reports.is_empty() {
                break;
            }
            reports.append(&mut heard.reports);
        }
        let is_fatal = client.context().heard().is_fatal || client.client().fatal_error().is_some();
        let mut failure = is_fatal.then_some(RDKafkaErrorCode::Fatal);
        let mut is_topics_fault = false;
        for (number, failed) in &reports {
            match failed {
                None => self.confirm(*number),
                Some(code) => {
                    failure = failure.or(Some(*code));
                    is_topics_fault |= is_topic_trouble(*code);
                }
            }
        }
        let has_heard = !reports.is_empty();
        reports.clear();
        self.reports = reports;
        if is_topics_fault {
            // Ask again for all of them: which ones have changed is in no report that could be trusted to come.
            self.destinations.iter_mut().for_each(|destination| destination.partitions = None);
        }
        if let Some(code) = failure {
            self.give_up_client(&code.to_string());
        }
        has_heard
    }

    fn confirm(&mut self, number: usize) {
        let Some(unconfirmed) = self.unconfirmed.remove(&number) else { return };
        let shared = &self.parts.shared;
        shared.counters.producer.produced.add(1);
        match unconfirmed.item {
            Item::Parcel(parcel) => {
                if let Some(ticket) = parcel.ticket
                    && !self.parts.mailing.post(usize::from(parcel.origin.shard), Mail::Produced(ticket))
                {
                    shared.counters.producer.no_shard.add(1);
                }
            }
            Item::Echo { at, .. } => shared.finish(at),
            Item::DeadLetter(letter) => shared.finish(letter.at),
        }
        shared.intake.release(1, unconfirmed.bytes);
    }

    /// The producer is of no more use. All that is unconfirmed goes to the next one, in its order.
    fn give_up_client(&mut self, cause: &str) {
        let Some(client) = self.client.take() else { return };
        self.parts.shared.counters.producer.rebuilds.add(1);
        let last = self.parts.shared.health.last_error();
        tracing::warn!(cause, last, unconfirmed = self.unconfirmed.len(), "kafka producer failed and is rebuilt");
        // What it has confirmed need not be sent again.
        client.poll(Duration::ZERO);
        let reports = std::mem::take(&mut client.context().heard().reports);
        for (number, failed) in reports {
            if failed.is_none() {
                self.confirm(number);
            }
        }
        drop(client);
        self.backlog = self.unconfirmed.keys().copied().collect();
        self.destinations.iter_mut().for_each(|destination| destination.held.clear());
        self.held = 0;
    }

    fn build(&mut self, now: Instant) {
        if self.client.is_some() || now < self.build_at {
            return;
        }
        self.build_at = now + REBUILD_INTERVAL;
        let context = SendContext { shared: Arc::clone(&self.parts.shared), heard: Mutex::default() };
        match self.parts.config.producer(&self.parts.node).create_with_context(context) {
            Ok(client) => self.client = Some(client),
            Err(error) => {
                if self.trouble.is_due(now) {
                    tracing::error!(%error, "a kafka producer cannot be made: check the settings");
                }
            }
        }
    }

    fn count(&mut self, now: Instant) {
        let counters = &self.parts.shared.counters.producer;
        counters.unconfirmed.set(self.parts.shared.intake.records() as u64);
        counters.held.set(self.held as u64);
        let oldest = self.unconfirmed.first_key_value().map(|(_, oldest)| now.duration_since(oldest.since));
        counters.oldest_ms.set(oldest.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
    }
}

/// Errors after which a topic must be looked at again.
fn is_topic_trouble(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::InvalidMessageSize
    )
}

/// Where in its topic a parcel goes.
fn partition_of(parcel: &Parcel, partitions: u16) -> i32 {
    let partitions = partitions.max(1);
    let partition = match parcel.lane {
        Lane::Control => 0,
        Lane::Partition(partition) => partition % partitions,
    };
    i32::from(partition)
}

fn headers_of(headers: &codec::Headers) -> OwnedHeaders {
    let mut owned = OwnedHeaders::new_with_capacity(3)
        .insert(Header { key: KIND_HEADER, value: Some(headers.kind) })
        .insert(Header { key: ORIGIN_HEADER, value: Some(&headers.origin) });
    if let Some(trail) = &headers.trail {
        owned = owned.insert(Header { key: TRAIL_HEADER, value: Some(trail) });
    }
    if let Some(hops) = headers.hops {
        owned = owned.insert(Header { key: HOPS_HEADER, value: Some(itoa::Buffer::new().format(hops)) });
    }
    owned
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::record::{Address, Record};

    #[test]
    fn a_lane_is_a_partition_that_the_topic_has() {
        let check = |lane, partitions, expected| {
            let node = NodeId::new("a").unwrap();
            let origin = Address { node: node.clone(), incarnation: 1, shard: 0 };
            let parcel = Parcel { to: node, lane, origin, record: Record::Nudge { client: "c".into() }, ticket: None };
            assert_eq!(partition_of(&parcel, partitions), expected, "{lane:?} of {partitions}");
        };
        check(Lane::Control, 9, 0);
        check(Lane::Partition(1), 9, 1);
        check(Lane::Partition(8), 9, 8);
        // Its topic was made anew with fewer.
        check(Lane::Partition(8), 4, 0);
        check(Lane::Control, 0, 0);
    }
}
