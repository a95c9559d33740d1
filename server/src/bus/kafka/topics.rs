//! One thread that asks Kafka about topics and creates those that are missing, so that the threads that send and read
//! never wait for an answer; and that finds out whether Kafka answers at all.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError};
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer as _, ProducerContext};
use ring::NodeId;

use super::config::Config;
use super::counters::KafkaCounters;
use super::health::{self, Complaint, Health};
use super::silence::Silence;

/// Topics that may be asked for and not yet found at once.
pub const WANTED_MAX: usize = 4096;
/// How long Kafka may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How often Kafka is asked whether it is there, while it is.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// How soon it is asked again while it is not.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How soon a topic that was just created is looked for again.
const CREATED_INTERVAL: Duration = Duration::from_millis(50);
/// At most one topic is created in so long.
const CREATE_INTERVAL: Duration = Duration::from_millis(100);
/// How long the client that creates topics is kept when nothing more is asked of it: the binding gives it a thread that
/// looks for answers ten times a second.
const ADMIN_IDLE: Duration = Duration::from_secs(10);
/// How soon the thread notices that it is to end when nobody can tell it.
const NAP: Duration = Duration::from_millis(200);

/// A topic somebody needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub topic: String,
    /// Partitions it gets if it must be created.
    pub partitions: u16,
    /// Whether it must take the largest batch.
    pub takes_batches: bool,
}

/// Hears of a topic, and how many partitions it has.
pub type OnFound = dyn Fn(&str, u16) + Send;

/// What the thread is made of.
pub struct Parts {
    /// How Kafka is spoken to.
    pub config: Config,
    /// This node.
    pub node: NodeId,
    /// This node's own topic: where it does not fit, nothing works.
    pub own: Wanted,
    /// Topics that somebody needs. To be woken for its end the thread is asked for one.
    pub wanted: Receiver<Wanted>,
    /// Is told of each topic that is there, and how many partitions it has. Must not wait.
    pub on_found: Box<OnFound>,
    /// Shared by all that speak to Kafka.
    pub health: Arc<Health>,
    /// What is counted.
    pub counters: Arc<KafkaCounters>,
    /// Set when the thread is to end.
    pub is_stopping: Arc<AtomicBool>,
}

#[derive(Clone)]
struct TopicsContext {
    health: Arc<Health>,
}

impl ClientContext for TopicsContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        health::log_line("topics", level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.health.note_error(format!("{error}: {reason}"));
    }
}

// It asks, and sends nothing.
impl ProducerContext for TopicsContext {
    type DeliveryOpaque = ();

    fn delivery(&self, _result: &DeliveryResult<'_>, (): ()) {}
}

/// The thread's state, ready to run.
pub struct Topics {
    parts: Parts,
    client: BaseProducer<TopicsContext>,
    // Only while topics are created or looked at closely.
    admin: Option<AdminClient<TopicsContext>>,
    admin_used_at: Instant,
    pending: VecDeque<(Wanted, Instant)>,
    probe_at: Instant,
    silence: Silence,
    create_at: Instant,
    down: Complaint,
    misfit: Complaint,
}

/// Makes what the thread needs.
///
/// # Errors
/// When the client library refuses its settings.
pub fn prepare(parts: Parts) -> Result<Topics, KafkaError> {
    let client = client(&parts)?;
    let now = Instant::now();
    let silence = Silence::new(parts.config.silence_max, now);
    let pending = VecDeque::from([(parts.own.clone(), now)]);
    let (down, misfit) = (Complaint::default(), Complaint::default());
    let (admin, admin_used_at) = (None, now);
    Ok(Topics { parts, client, admin, admin_used_at, pending, probe_at: now, silence, create_at: now, down, misfit })
}

fn client(parts: &Parts) -> Result<BaseProducer<TopicsContext>, KafkaError> {
    parts.config.topics(&parts.node).create_with_context(TopicsContext { health: Arc::clone(&parts.health) })
}

fn ask(client: &BaseProducer<TopicsContext>, topic: &str) -> Result<Metadata, KafkaError> {
    let metadata = client.client().fetch_metadata(Some(topic), ANSWER_TIMEOUT)?;
    if metadata.brokers().is_empty() {
        // Its own controller takes it for dead, as after a pause: nothing can be sent or read.
        return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::BrokerNotAvailable));
    }
    Ok(metadata)
}

/// How it stands with a topic.
enum Standing {
    Ready(u16),
    Missing,
    /// It is there, and not all of its partitions have a leader yet.
    Settling,
    /// Kafka answers, but not this: it may not be asked for, or its name is none.
    Refused(RDKafkaErrorCode),
}

impl Topics {
    /// Runs until it is told to end.
    pub fn run(mut self) {
        while !self.parts.is_stopping.load(Ordering::Relaxed) {
            self.turn();
        }
    }

    fn turn(&mut self) {
        let now = Instant::now();
        let due = self.pending.iter().map(|(_, due)| *due).min();
        let wake_at = due.unwrap_or(self.probe_at).min(self.probe_at);
        match self.parts.wanted.recv_timeout(wake_at.saturating_duration_since(now)) {
            Ok(wanted) => self.take(wanted),
            Err(RecvTimeoutError::Timeout) => {}
            // Nobody will ever want anything again; the probes go on until the end is told.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(NAP),
        }
        while let Ok(wanted) = self.parts.wanted.try_recv() {
            self.take(wanted);
        }
        for _ in 0..self.pending.len() {
            let Some((wanted, due)) = self.pending.pop_front() else { break };
            if due > Instant::now() || self.parts.is_stopping.load(Ordering::Relaxed) {
                self.pending.push_back((wanted, due));
                continue;
            }
            if let Some(pause) = self.look_for(&wanted) {
                self.pending.push_back((wanted, Instant::now() + pause));
                if !self.parts.health.is_up() {
                    // The others would only wait as long for the same answer.
                    break;
                }
            }
        }
        if Instant::now() >= self.probe_at {
            self.probe();
        }
        // What the library complains of is heard here.
        self.client.poll(Duration::ZERO);
        if self.pending.is_empty() && self.admin_used_at.elapsed() >= ADMIN_IDLE {
            self.admin = None;
        }
    }

    fn admin(&mut self) -> Result<&AdminClient<TopicsContext>, KafkaError> {
        self.admin_used_at = Instant::now();
        if self.admin.is_none() {
            let context = TopicsContext { health: Arc::clone(&self.parts.health) };
            self.admin = Some(self.parts.config.topics(&self.parts.node).create_with_context(context)?);
        }
        self.admin.as_ref().ok_or(KafkaError::Canceled)
    }

    fn take(&mut self, wanted: Wanted) {
        if self.pending.len() < WANTED_MAX && !self.pending.iter().any(|(pending, _)| *pending == wanted) {
            self.pending.push_back((wanted, Instant::now()));
        }
    }

    fn probe(&mut self) {
        let answer = self.ask(&self.parts.own.topic).map(|_| ());
        self.note(answer);
    }

    fn ask(&self, topic: &str) -> Result<Metadata, KafkaError> {
        ask(&self.client, topic)
    }

    /// Looks for a topic, creates it if it must; says after what time to look again, or nothing when it was found.
    fn look_for(&mut self, wanted: &Wanted) -> Option<Duration> {
        let standing = self.standing(&wanted.topic);
        let standing = match standing {
            Ok(standing) => {
                self.note(Ok(()));
                standing
            }
            Err(error) => {
                self.note(Err(error));
                return Some(RETRY_INTERVAL);
            }
        };
        match standing {
            Standing::Ready(partitions) => {
                if let Some(misfit) = self.misfit_of(wanted) {
                    self.complain_of_misfit(wanted, misfit);
                    return Some(PROBE_INTERVAL);
                }
                if wanted.topic == self.parts.own.topic {
                    self.parts.health.set_misfit(None);
                }
                (self.parts.on_found)(&wanted.topic, partitions);
                None
            }
            Standing::Settling => Some(CREATED_INTERVAL),
            Standing::Refused(error) => {
                if self.misfit.is_due(Instant::now()) {
                    tracing::error!(topic = wanted.topic, %error, "kafka refuses a topic: check its access rules");
                }
                Some(RETRY_INTERVAL)
            }
            Standing::Missing => {
                let now = Instant::now();
                if now < self.create_at {
                    return Some(self.create_at - now);
                }
                self.create_at = now + CREATE_INTERVAL;
                match self.create(wanted) {
                    Ok(()) => Some(CREATED_INTERVAL),
                    Err(error) => {
                        if self.misfit.is_due(now) {
                            tracing::error!(
                                topic = wanted.topic, error = %error,
                                "a kafka topic cannot be created: create it by hand or allow this client to"
                            );
                        }
                        Some(RETRY_INTERVAL)
                    }
                }
            }
        }
    }

    fn standing(&self, topic: &str) -> Result<Standing, KafkaError> {
        let metadata = self.ask(topic)?;
        let Some(found) = metadata.topics().first() else { return Ok(Standing::Missing) };
        if let Some(error) = found.error() {
            return match RDKafkaErrorCode::from(error) {
                RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => Ok(Standing::Missing),
                RDKafkaErrorCode::LeaderNotAvailable => Ok(Standing::Settling),
                error => Ok(Standing::Refused(error)),
            };
        }
        let partitions = found.partitions();
        if partitions.is_empty() {
            return Ok(Standing::Missing);
        }
        if partitions.iter().any(|partition| partition.leader() < 0) {
            return Ok(Standing::Settling);
        }
        Ok(Standing::Ready(u16::try_from(partitions.len()).unwrap_or(u16::MAX)))
    }

    fn create(&mut self, wanted: &Wanted) -> Result<(), KafkaError> {
        let replication = TopicReplication::Fixed(self.parts.config.replication);
        let bytes_max = self.parts.config.topic_bytes_max().to_string();
        let mut topic = NewTopic::new(&wanted.topic, i32::from(wanted.partitions), replication);
        if wanted.takes_batches {
            topic = topic.set("max.message.bytes", &bytes_max);
        }
        let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT)).operation_timeout(Some(ANSWER_TIMEOUT));
        let results = block_on(self.admin()?.create_topics([&topic], &options));
        if results.is_err() {
            // It may have lost its brokers.
            self.admin = None;
        }
        let results = results?;
        match results.into_iter().next() {
            None | Some(Ok(_)) => {
                self.parts.counters.topics.created.add(1);
                tracing::info!(topic = wanted.topic, partitions = wanted.partitions, "kafka topic created");
                Ok(())
            }
            // Another node was quicker.
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
            Some(Err((_, error))) => Err(KafkaError::AdminOp(error)),
        }
    }

    /// Why a topic that is there cannot be used, with the cure.
    fn misfit_of(&mut self, wanted: &Wanted) -> Option<String> {
        if !wanted.takes_batches {
            return None;
        }
        let needed = self.parts.config.topic_bytes_max();
        let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
        let specifier = ResourceSpecifier::Topic(&wanted.topic);
        let described = self.admin().and_then(|admin| block_on(admin.describe_configs([&specifier], &options)));
        let value = match described.map(|resources| resources.into_iter().next()) {
            Ok(Some(Ok(resource))) => resource.get("max.message.bytes").and_then(|entry| entry.value.clone()),
            // Not everybody may ask. Then a record that is too large is told by the one that has to send it.
            other => {
                self.admin = None;
                tracing::debug!(topic = wanted.topic, answer = ?other.err(), "the limit of a kafka topic is not told");
                return None;
            }
        };
        let limit: usize = value?.parse().ok()?;
        (limit < needed).then(|| {
            format!(
                "kafka topic {} takes {limit} bytes a batch, the message limit needs {needed}: \
                 kafka-configs.sh --alter --topic {} --add-config max.message.bytes={needed}, or lower the message limit",
                wanted.topic, wanted.topic
            )
        })
    }

    fn complain_of_misfit(&mut self, wanted: &Wanted, misfit: String) {
        if self.misfit.is_due(Instant::now()) {
            tracing::error!("{misfit}");
        }
        if wanted.topic == self.parts.own.topic {
            self.parts.health.set_misfit(Some(misfit));
        }
    }

    /// Where another client is answered this one has lost its brokers; where none is, Kafka is away.
    fn try_another(&mut self) {
        let another = client(&self.parts).ok().filter(|another| ask(another, &self.parts.own.topic).is_ok());
        if let Some(another) = another {
            (self.client, self.admin) = (another, None);
            self.parts.counters.rebootstraps.topics.add(1);
            tracing::warn!(client = "topics", "a kafka client is not answered, and another is: it takes its place");
            // The next probe tells that Kafka answers.
            self.probe_at = Instant::now();
        }
    }

    /// Notes whether Kafka has answered, and tells a person of it now and then.
    fn note(&mut self, answer: Result<(), KafkaError>) {
        let now = Instant::now();
        let is_up = answer.is_ok();
        self.probe_at = now + if is_up { PROBE_INTERVAL } else { RETRY_INTERVAL };
        let is_news = self.parts.health.set_up(is_up);
        self.parts.counters.topics.up.set(u64::from(is_up));
        if is_up {
            self.silence.end(now);
        }
        match answer {
            Ok(()) if is_news => {
                self.down.reset();
                tracing::info!(brokers = self.parts.config.brokers, "kafka answers");
            }
            Ok(()) => {}
            Err(error) => {
                self.parts.counters.topics.probe_failures.add(1);
                if self.down.is_due(now) {
                    let last = self.parts.health.last_error();
                    let brokers = &self.parts.config.brokers;
                    tracing::warn!(brokers, %error, last, "kafka does not answer: trying again");
                }
            }
        }
        if !is_up && self.silence.is_long(now) {
            self.try_another();
        }
    }
}

/// Waits for a future that another thread completes.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}
