//! How Kafka is spoken to: where it is, the settings that all clients share, and topics of one partition that must be there.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use tracing::warn;

/// How long Kafka may take to tell of a topic.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// A client that has heard nothing for so long is asked whether it hears at all, see [`another`].
pub const SILENCE_MAX: Duration = Duration::from_secs(10);
/// The replication of a new topic is the brokers' default.
const REPLICATION_DEFAULT: i32 = -1;

/// Where Kafka is, and what an operator wants of its clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kafka {
    /// `HOST:PORT,…`.
    pub brokers: String,
    /// More settings of the client library, such as `security.protocol`; they come last and win.
    pub options: Vec<(String, String)>,
}

impl Kafka {
    /// Without any settings of an operator's.
    pub fn new(brokers: &str) -> Self {
        Self { brokers: brokers.to_owned(), options: Vec::new() }
    }

    /// A client's settings: those that all share, its own, the operator's.
    pub fn client(&self, name: &str, own: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", name)
            // A topic that springs into being by being named would have the wrong number of partitions.
            .set("allow.auto.create.topics", "false")
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "1000")
            .set_log_level(RDKafkaLogLevel::Warning);
        for (key, value) in own {
            config.set(*key, *value);
        }
        for (key, value) in &self.options {
            config.set(key, value);
        }
        config
    }

    /// Makes sure that a topic is there, with one partition where it has to be made. Returns how many it has.
    ///
    /// # Errors
    /// When it is not there and cannot be created, or Kafka does not tell.
    pub fn need_topic<C: ClientContext>(&self, asking: &Client<C>, topic: &str) -> anyhow::Result<u16> {
        if let Some(partitions) = partitions_of(asking, topic)? {
            return Ok(partitions);
        }
        let admin: AdminClient<DefaultClientContext> = self.client("rtc-balancer-topics", &[]).create()?;
        let new = NewTopic::new(topic, 1, TopicReplication::Fixed(REPLICATION_DEFAULT));
        let options = AdminOptions::new().operation_timeout(Some(ANSWER_TIMEOUT)).request_timeout(Some(ANSWER_TIMEOUT));
        for result in wait_for(admin.create_topics([&new], &options))? {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => {
                    bail!("topic {topic} cannot be created: {code}: create it by hand or allow this client to")
                }
            }
        }
        partitions_of(asking, topic)?.ok_or_else(|| anyhow!("topic {topic} is not there yet"))
    }
}

/// Whether Kafka answers this client about a topic, and names a broker.
pub fn is_answered<C: ClientContext>(asking: &Client<C>, topic: &str) -> bool {
    asking.fetch_metadata(Some(topic), ANSWER_TIMEOUT).is_ok_and(|metadata| !metadata.brokers().is_empty())
}

/// Another client for the place of one that is not answered, where the other is: the library can forget every broker, the
/// configured ones too, when one that was away names none. Where neither is answered Kafka is away, and the old one will do.
pub fn another<T, C: ClientContext>(
    old: &T,
    client: impl Fn(&T) -> &Client<C>,
    topic: &str,
    make: impl FnOnce() -> KafkaResult<T>,
) -> Option<T> {
    if is_answered(client(old), topic) {
        return None;
    }
    let another = make().ok().filter(|another| is_answered(client(another), topic))?;
    warn!(topic, "a kafka client is not answered, and another is: it takes its place");
    Some(another)
}

/// How many partitions a topic has; `None` where there is no such topic.
///
/// # Errors
/// When Kafka does not tell.
pub fn partitions_of<C: ClientContext>(asking: &Client<C>, topic: &str) -> anyhow::Result<Option<u16>> {
    let metadata = asking
        .fetch_metadata(Some(topic), ANSWER_TIMEOUT)
        .with_context(|| format!("kafka does not tell of topic {topic}"))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
    let partitions = found.map(|found| found.partitions().len()).filter(|partitions| *partitions > 0);
    Ok(partitions.map(|partitions| u16::try_from(partitions).unwrap_or(u16::MAX)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operators_settings_win() {
        let options = vec![("client.id".to_owned(), "theirs".to_owned()), ("acks".to_owned(), "1".to_owned())];
        let kafka = Kafka { options, ..Kafka::new("x:1") };
        let config = kafka.client("ours", &[("acks", "all"), ("linger.ms", "0")]);
        let value = |key| config.get(key);
        assert_eq!((value("client.id"), value("acks"), value("linger.ms")), (Some("theirs"), Some("1"), Some("0")));
        assert_eq!(value("bootstrap.servers"), Some("x:1"));
    }
}
