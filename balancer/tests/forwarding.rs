//! A dead node's topic from end to end: a real balancer forwards what stands in it, behind what was committed, to real
//! nodes and their clients; a record that is too large does not stop it, and the node's return does.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use rdkafka::Offset;
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use sonic_rs::JsonValueTrait as _;
use support::{Balancer, Client, Incoming, Node, PATIENCE, Services, eventually, eventually_or};

const TEST: &str = "a_dead_nodes_topic_is_forwarded_from_where_it_had_come_to";
const TOPIC: &str = "delivery_node_gone";
const GROUP: &str = "rtc-delivery-gone";
/// As nodes make them: one for what others wait for, eight for messages.
const PARTITIONS: i32 = 9;
const CLIENTS: usize = 8;
/// Of each client: so many before the node died, and of these so many that it had finished.
const MESSAGES: u64 = 40;
const FINISHED: u64 = 15;
/// More than a topic takes as nodes make it, and less than this one does.
const LARGE: usize = 2_000_000;

/// A client that follows what it is sent.
struct Inbox {
    client: Client,
    next: u64,
}

impl Inbox {
    /// Reads until number `end` is next. Each comes once, in its order.
    #[track_caller]
    fn read_to(&mut self, end: u64) {
        while self.next < end {
            let incoming = self.client.next_within(PATIENCE);
            let Some(Incoming::Text(text)) = incoming else { panic!("{incoming:?} instead of {}", self.next) };
            let message: sonic_rs::Value = sonic_rs::from_str(&text).unwrap();
            // A node that has joined owns clients of others, who are advised to move and need not at once.
            if message["type"].as_str() == Some("message") {
                assert_eq!(message["payload"]["n"].as_u64(), Some(self.next), "{text}");
                self.next += 1;
                self.client.send(&format!(r#"{{"type":"ack","offset":{}}}"#, message["offset"].as_u64().unwrap()));
            }
        }
    }

    /// Nothing more comes in a moment: for what must not happen, after what must has.
    #[track_caller]
    fn is_quiet(&mut self) -> bool {
        match self.client.next_within(Duration::from_millis(100)) {
            Some(Incoming::Text(text)) => text.contains(r#""type":"reconnect""#),
            Some(other) => panic!("{other:?}"),
            None => true,
        }
    }
}

struct Topic {
    producer: BaseProducer,
    consumer: BaseConsumer,
}

impl Topic {
    fn create(kafka: &str) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", kafka).set("group.id", GROUP).set("enable.auto.commit", "false");
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        let topic = NewTopic::new(TOPIC, PARTITIONS, TopicReplication::Fixed(1)).set("max.message.bytes", "4000000");
        for result in wait_for(admin.create_topics([&topic], &AdminOptions::new())).unwrap() {
            result.unwrap();
        }
        // A batch that a broker does not take yet is not overtaken by the next.
        let mut ordered = config.clone();
        ordered.set("message.max.bytes", "4000000").set("enable.idempotence", "true");
        let producer = ordered.create().unwrap();
        Self { producer, consumer: config.create().unwrap() }
    }

    /// One message, with `bytes` more than it needs.
    fn produce(&self, client: usize, number: u64, bytes: usize) {
        let now_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
        let (name, filling) = (name(client), "x".repeat(bytes));
        let value = format!(
            r#"{{"type":"message","msgId":"{number}","from":"x","toClientId":"{name}","payload":{{"n":{number},"x":"{filling}"}},"ts":{now_ms}}}"#
        );
        let headers = OwnedHeaders::new().insert(Header { key: "rtc-kind", value: Some("message") });
        let record = BaseRecord::to(TOPIC).partition(partition(client)).key(&name).payload(&value).headers(headers);
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
    }

    fn flush(&self) {
        self.producer.flush(PATIENCE).unwrap();
    }

    fn commit(&self, offset: u64) {
        let mut list = TopicPartitionList::new();
        for client in 0..CLIENTS {
            let offset = Offset::Offset(i64::try_from(offset).unwrap());
            list.add_partition_offset(TOPIC, partition(client), offset).unwrap();
        }
        // The group's coordinator may have to find itself first.
        eventually("it is committed", || self.consumer.commit(&list, CommitMode::Sync).ok());
    }

    /// Whether all is committed.
    fn is_done(&self) -> bool {
        let mut list = TopicPartitionList::new();
        (0..CLIENTS).for_each(|client| _ = list.add_partition(TOPIC, partition(client)));
        let committed = self.consumer.committed_offsets(list, PATIENCE).unwrap();
        committed.elements().iter().all(|element| {
            let (_, end) = self.consumer.fetch_watermarks(TOPIC, element.partition(), PATIENCE).unwrap();
            element.offset() == Offset::Offset(end)
        })
    }
}

fn name(client: usize) -> String {
    format!("client-{client}")
}

/// Each client has one of its own.
fn partition(client: usize) -> i32 {
    1 + i32::try_from(client).unwrap()
}

fn wait_for<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

#[test]
fn a_dead_nodes_topic_is_forwarded_from_where_it_had_come_to() {
    let Some(services) = Services::start(TEST) else { return };
    let topic = Topic::create(&services.kafka);
    for number in 0..MESSAGES {
        (0..CLIENTS).for_each(|client| topic.produce(client, number, 0));
        if number == FINISHED + 5 {
            topic.produce(0, u64::MAX, LARGE);
        }
    }
    topic.flush();
    topic.commit(FINISHED);

    let flags = ["--kafka", &*services.kafka, "--redis", &*services.redis.url, "--shards", "2"];
    let nodes = ["a", "b"].map(|id| Node::start(id, &flags));
    for node in &nodes {
        eventually("the node has joined", || node.is_ready().then_some(()));
    }
    let balancer = Balancer::start("b1", &services.redis, Some(&services.kafka), &[]);
    let version = balancer.await_ring(&["a", "b"]);
    let homes: BTreeMap<_, _> = nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let mut inboxes: Vec<Inbox> = (0..CLIENTS)
        .map(|client| {
            let home = balancer.get(&format!("/api/v1/resolve?clientId={}", name(client)));
            let node = homes[home["nodeId"].as_str().unwrap()];
            eventually("the node has the ring", || (node.ring()["version"].as_u64()? >= version).then_some(()));
            let (client, _) = Client::log_in(node.listen, &format!("clientId={}&recvAck=1", name(client)));
            Inbox { client, next: FINISHED }
        })
        .collect();

    for inbox in &mut inboxes {
        inbox.read_to(MESSAGES);
    }
    eventually_or(|| topic.is_done().then_some(()), || format!("all is committed; log: {}", balancer.log()));
    assert!(inboxes.iter_mut().all(Inbox::is_quiet));
    let forwarded = || balancer.metric("rtc_lb_forwarded_total{kind=\"message\"}");
    // The large one as well, before it turned out to be that.
    let sent = CLIENTS as u64 * (MESSAGES - FINISHED) + 1;
    #[allow(clippy::cast_precision_loss, reason = "a small count")]
    let is_all = (forwarded() - sent as f64).abs() < 0.5;
    assert!(is_all, "{} of {sent}", forwarded());
    assert!((balancer.metric("rtc_lb_forwarder_poison_total{cause=\"too_large\"}") - 1.0).abs() < 0.5);
    assert!(balancer.metric("rtc_lb_forwarder_failures_total") < 0.5, "{}", balancer.log());
    balancer.await_log("kafka takes no record of this size");

    // The node is back: it reads on itself, and the forwarder is out of it.
    let gone = Node::start("gone", &flags);
    eventually("the node has joined", || gone.is_ready().then_some(()));
    balancer.await_ring(&["a", "b", "gone"]);
    let before = forwarded();
    for number in MESSAGES..2 * MESSAGES {
        (0..CLIENTS).for_each(|client| topic.produce(client, number, 0));
    }
    topic.flush();
    for inbox in &mut inboxes {
        inbox.read_to(2 * MESSAGES);
    }
    eventually("the node has finished them", || topic.is_done().then_some(()));
    assert!(inboxes.iter_mut().all(Inbox::is_quiet));
    assert!((forwarded() - before).abs() < 0.5, "{}", balancer.log());
    #[allow(clippy::cast_precision_loss, reason = "a small count")]
    let own = CLIENTS as f64 * MESSAGES as f64;
    assert!(gone.metric("rtc_socket_kafka_consumed_total") >= own, "{}", gone.log());
}
