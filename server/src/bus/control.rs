//! Follows the control topics, where the balancer announces rings and asks nodes to drain: a thread of its own hands on
//! each message that can be used. It belongs to no group and commits nothing; it begins with the last message there is.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::sync::{Parker, Unparker};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use ring::control::{DrainRequest, RingUpdate};
use ring::{ControlError, NodeId};

use super::kafka::counters::ControlCounters;
use super::kafka::silence::{self, Silence};
use super::kafka::{Config, DRAIN_TOPIC, KafkaBus, RING_TOPIC, StartError};

/// The longest the thread sleeps; messages and its end wake it.
const NAP: Duration = Duration::from_secs(1);
/// How long a fetch waits for a message: nothing is ever paused here, so that it costs nothing to wait.
const FETCH_WAIT: Duration = Duration::from_secs(5);
/// The library hides events of its own behind an empty answer: it has nothing more after so many.
const EMPTY_ANSWERS: usize = 4;
/// How often the topics are looked for while they are missing.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How soon topics that are missing are asked for again.
const TOPICS_INTERVAL: Duration = Duration::from_secs(2);
/// Control topics have one partition: their messages are in one order.
const PARTITION: i32 = 0;

/// Something the balancer says.
#[derive(Debug, Clone, PartialEq)]
pub enum Control {
    /// A ring. It may be old: whoever takes it compares versions.
    Ring(RingUpdate),
    /// Some node, perhaps this one, is to drain; its deadline has not passed.
    Drain(DrainRequest),
}

/// Reads one message of a control topic, at `now_ms` milliseconds since 1970; none for a drain that is over.
///
/// # Errors
/// When it cannot be used.
pub fn decode(topic: &str, value: &[u8], now_ms: u64) -> Result<Option<Control>, ControlError> {
    if topic == DRAIN_TOPIC {
        let request = DrainRequest::decode(value)?;
        // The last request is still there when a node starts, long after it was meant.
        return Ok((request.deadline >= now_ms).then_some(Control::Drain(request)));
    }
    RingUpdate::decode(value).map(|update| Some(Control::Ring(update)))
}

struct FollowContext;

impl ClientContext for FollowContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        tracing::debug!(client = "control", ?level, facility, line, "kafka client");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // The bus tells a person that Kafka is away.
        tracing::debug!(%error, reason, "kafka control topics");
    }
}

impl ConsumerContext for FollowContext {}

/// Follows until it is dropped.
pub struct Follower {
    is_stopping: Arc<AtomicBool>,
    ender: Unparker,
    thread: Option<JoinHandle<()>>,
    counters: Arc<ControlCounters>,
}

impl Follower {
    /// Starts to follow. `on_control` runs on the follower's thread and may take its time, as building a ring does.
    ///
    /// # Errors
    /// When the thread cannot be had or the client library refuses its settings.
    pub fn start(
        config: &Config,
        node: &NodeId,
        bus: KafkaBus,
        on_control: impl FnMut(Control) + Send + 'static,
    ) -> Result<Self, StartError> {
        // The library wants a group of whoever is told its partitions; nothing is ever committed to this one.
        let settings = config.consumer(node, &format!("rtc-control-{node}"), FETCH_WAIT);
        let mut consumer: BaseConsumer<FollowContext> =
            settings.create_with_context(FollowContext).map_err(|error| StartError::Settings(error.to_string()))?;
        let parker = Parker::new();
        let (waker, ender) = (parker.unparker().clone(), parker.unparker().clone());
        consumer.set_nonempty_callback(move || waker.unpark());
        let is_stopping = Arc::new(AtomicBool::new(false));
        let counters = Arc::new(ControlCounters::default());
        let mut following = Following {
            consumer,
            parker,
            bus,
            brokers: config.bootstrap().to_owned(),
            silence: Silence::new(config.silence_max, Instant::now()),
            on_control,
            counters: Arc::clone(&counters),
            is_stopping: Arc::clone(&is_stopping),
        };
        let thread = std::thread::Builder::new().name("kafka-control".to_owned()).spawn(move || following.run());
        let thread = thread.map_err(|error: io::Error| StartError::Thread(error))?;
        Ok(Self { is_stopping, ender, thread: Some(thread), counters })
    }

    /// What is counted.
    pub fn counters(&self) -> &Arc<ControlCounters> {
        &self.counters
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        self.ender.unpark();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Following<F> {
    consumer: BaseConsumer<FollowContext>,
    parker: Parker,
    bus: KafkaBus,
    brokers: String,
    silence: Silence,
    on_control: F,
    counters: Arc<ControlCounters>,
    is_stopping: Arc<AtomicBool>,
}

impl<F: FnMut(Control)> Following<F> {
    fn run(&mut self) {
        if !self.await_topics() || !self.assign() {
            return;
        }
        let mut empty_answers = 0;
        while !self.is_stopping.load(Ordering::Relaxed) {
            match self.consumer.poll(Duration::ZERO) {
                Some(Ok(message)) => {
                    self.silence.end(Instant::now());
                    Self::take(&message, &self.counters, &mut self.on_control);
                }
                Some(Err(error)) => tracing::debug!(%error, "kafka control topics"),
                None if empty_answers < EMPTY_ANSWERS => {
                    empty_answers += 1;
                    continue;
                }
                None => {
                    self.break_silence();
                    self.parker.park_timeout(NAP);
                }
            }
            empty_answers = 0;
        }
    }

    /// The balancer may have nothing to say, or this client nobody to hear it from: only a question tells.
    fn break_silence(&mut self) {
        if self.bus.is_up() && self.silence.is_long(Instant::now()) {
            let given = &self.bus.counters().rebootstraps.control;
            silence::revive(self.consumer.client(), "control", RING_TOPIC, &self.brokers, given);
        }
    }

    /// Has the topics created, for one that is not there cannot be followed. False when the end came first.
    fn await_topics(&self) -> bool {
        let mut asked_at: Option<Instant> = None;
        loop {
            if self.is_stopping.load(Ordering::Relaxed) {
                return false;
            }
            let missing: Vec<&str> =
                [RING_TOPIC, DRAIN_TOPIC].into_iter().filter(|topic| !self.bus.is_found(topic)).collect();
            if missing.is_empty() {
                return true;
            }
            if asked_at.is_none_or(|asked_at| asked_at.elapsed() >= TOPICS_INTERVAL) {
                asked_at = Some(Instant::now());
                for topic in missing {
                    self.bus.want_topic(topic, 1);
                }
            }
            self.parker.park_timeout(LOOK_INTERVAL);
        }
    }

    fn assign(&self) -> bool {
        let mut list = TopicPartitionList::new();
        let result = [RING_TOPIC, DRAIN_TOPIC]
            .into_iter()
            .try_for_each(|topic| list.add_partition_offset(topic, PARTITION, Offset::OffsetTail(1)))
            .and_then(|()| self.consumer.assign(&list));
        if let Err(error) = &result {
            tracing::error!(%error, "the control topics cannot be followed");
        }
        result.is_ok()
    }

    fn take(message: &BorrowedMessage<'_>, counters: &ControlCounters, on_control: &mut F) {
        let topic = message.topic();
        let Some(value) = message.payload() else {
            counters.refuse("empty");
            return;
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        match decode(topic, value, u64::try_from(now.as_millis()).unwrap_or(u64::MAX)) {
            Ok(Some(control)) => {
                match control {
                    Control::Ring(_) => counters.rings.add(1),
                    Control::Drain(_) => counters.drains.add(1),
                }
                on_control(control);
            }
            Ok(None) => counters.drains_over.add(1),
            Err(error) => {
                counters.refuse(error.cause());
                tracing::warn!(topic, offset = message.offset(), %error, "a control message was refused");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(deadline: u64) -> Vec<u8> {
        let request = DrainRequest {
            node_id: NodeId::new("a").unwrap(),
            deadline,
            max_disconnects: 100,
            reason: "test".to_owned(),
            ts: 1,
            incarnation: None,
        };
        request.encode().unwrap()
    }

    #[test]
    fn a_drain_counts_until_its_deadline() {
        assert!(matches!(decode(DRAIN_TOPIC, &drain(1000), 1000), Ok(Some(Control::Drain(_)))));
        assert_eq!(decode(DRAIN_TOPIC, &drain(1000), 1001), Ok(None));
    }

    #[test]
    fn what_is_no_control_message_is_refused_with_its_cause() {
        for (topic, value, cause) in [
            (RING_TOPIC, b"{}".to_vec(), "malformed"),
            (RING_TOPIC, vec![b' '; 10_000_000], "too_large"),
            (RING_TOPIC, "[".repeat(1000).into_bytes(), "too_deep"),
            (RING_TOPIC, drain(1), "malformed"),
            (DRAIN_TOPIC, b"\xff".to_vec(), "malformed"),
        ] {
            assert_eq!(decode(topic, &value, 0).unwrap_err().cause(), cause);
        }
    }
}
