//! The forwarder against real servers: `RTC_KAFKA=HOST:PORT` and `RTC_REDIS=URL` (`scripts/services.sh up` prints them).
//! Without them the tests say SKIPPED, and fail where `CI=true`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(
    clippy::similar_names,
    clippy::needless_for_each,
    clippy::maybe_infinite_iter,
    reason = "the names of the wire, and a number that is there"
)]

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use ring::{NodeId, NodeWeights, Ring, RingVersion, Weight};
use rtc_balancer::forwarder::plan::node_mark;
use rtc_balancer::forwarder::watch::Sight;
use rtc_balancer::forwarder::{Forwarded, Forwarder, Settings};
use rtc_balancer::kafka::Kafka;

/// How long anything may take before a test gives up: generous, for busy machines.
const PATIENCE: Duration = Duration::from_secs(120);
const PARTITIONS: i32 = 3;
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes that a topic takes which takes more than others.
const MANY: &str = "4000000";

struct Record {
    partition: i32,
    key: String,
    value: String,
    headers: BTreeMap<String, String>,
}

/// Servers, and a cluster of two nodes that live and one that is dead.
struct Rig {
    kafka: String,
    redis: String,
    dead: NodeId,
    living: [NodeId; 2],
    ring: Arc<Ring>,
    producer: BaseProducer,
    asking: BaseConsumer,
}

fn fresh_id(name: &str) -> NodeId {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let millis = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    NodeId::new(&format!("{name}-{millis}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))).unwrap()
}

fn topic(node: &NodeId) -> String {
    format!("delivery_node_{node}")
}

fn wait_for<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::sleep(PAUSE),
        }
    }
}

impl Rig {
    fn start(test: &str) -> Option<Self> {
        Self::start_with(test, None)
    }

    /// The same where the living nodes' topics take no more bytes at once than this, and the dead one's very many.
    fn start_with(test: &str, bytes_max: Option<&str>) -> Option<Self> {
        let (Ok(kafka), Ok(redis)) = (std::env::var("RTC_KAFKA"), std::env::var("RTC_REDIS")) else {
            let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
            assert!(!in_ci, "RTC_KAFKA and RTC_REDIS are not set, and here they must be");
            // Past the test runner, which keeps the output of tests that pass to itself.
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: {test}: RTC_KAFKA or RTC_REDIS is not set (scripts/services.sh up)"
            );
            return None;
        };
        let (dead, living) = (fresh_id("dead"), [fresh_id("one"), fresh_id("two")]);
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &kafka);
        let admin: AdminClient<DefaultClientContext> = client.create().unwrap();
        let names = [topic(&dead), topic(&living[0]), topic(&living[1])];
        let mut topics = names.each_ref().map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1)));
        if let Some(bytes_max) = bytes_max {
            topics = topics.map(|topic| topic.set("max.message.bytes", bytes_max));
            topics[0] = NewTopic::new(&names[0], PARTITIONS, TopicReplication::Fixed(1)).set("max.message.bytes", MANY);
        }
        for result in wait_for(admin.create_topics(&topics, &AdminOptions::new())).unwrap() {
            result.unwrap();
        }
        let weights = living.clone().map(|node| (node, Weight::new(100).unwrap()));
        let ring = Arc::new(Ring::from_weights(RingVersion::FIRST, 0, NodeWeights::new(weights).unwrap()));
        let producer =
            client.clone().set("enable.idempotence", "true").set("message.max.bytes", MANY).create().unwrap();
        let asking = client.set("group.id", "rtc-forwarder-test").create().unwrap();
        Some(Self { kafka, redis, dead, living, ring, producer, asking })
    }

    fn forwarder(&self) -> (Forwarder, Arc<Forwarded>) {
        let counted = Arc::new(Forwarded::default());
        let settings = Settings {
            name: NodeId::new("balancer").unwrap(),
            kafka: Kafka::new(&self.kafka),
            redis: self.redis.clone(),
            heartbeat_timeout: Duration::from_millis(500),
        };
        (Forwarder::start(settings, Arc::clone(&counted)).unwrap(), counted)
    }

    fn sight(&self, dead_is_back: bool) -> Sight {
        // Other tests have nodes of their own on these servers.
        let metadata = self.asking.fetch_metadata(None, PATIENCE).unwrap();
        let nodes = metadata.topics().iter().filter_map(|topic| topic.name().strip_prefix("delivery_node_"));
        let alive = nodes.filter_map(|name| NodeId::new(name).ok()).filter(|node| dead_is_back || *node != self.dead);
        Sight { alive: alive.collect(), ring: Arc::clone(&self.ring) }
    }

    /// Lets the leader look, again and again, until something holds.
    fn until(&self, forwarder: &Forwarder, dead_is_back: bool, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            forwarder.see(self.sight(dead_is_back));
            if holds() {
                return;
            }
            assert!(Instant::now() < deadline, "in vain: {what}");
            std::thread::sleep(PAUSE);
        }
    }

    fn produce(&self, partition: i32, key: &str, value: &str, headers: &[(&str, &str)]) {
        let topic = topic(&self.dead);
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(*value) }));
        let mut record = BaseRecord::to(&topic).partition(partition).key(key).payload(value).headers(headers);
        while let Err((_, back)) = self.producer.send(record) {
            record = back;
            self.producer.poll(PAUSE);
        }
    }

    fn message(&self, partition: i32, client: &str, number: u32) {
        self.message_of(partition, client, number, 0);
    }

    /// A message with so many bytes more than it needs.
    fn message_of(&self, partition: i32, client: &str, number: u32, bytes: usize) {
        let payload = "x".repeat(bytes);
        let value = format!(
            r#"{{"type":"message","msgId":"{number}","from":"x","toClientId":"{client}","payload":"{payload}","ts":1,"ttlMs":1}}"#
        );
        self.produce(partition, client, &value, &[("rtc-kind", "message"), ("rtc-origin", "far/9/0"), ("trace", "t")]);
    }

    fn flush(&self) {
        self.producer.flush(PATIENCE).unwrap();
    }

    fn consumer(&self, group: &str) -> BaseConsumer {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.kafka).set("group.id", group).set("auto.offset.reset", "earliest");
        client.set("enable.auto.commit", "false").create().unwrap()
    }

    fn reader(&self, topic: &str, partitions: i32) -> BaseConsumer {
        let consumer = self.consumer("rtc-forwarder-test");
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&list).unwrap();
        consumer
    }

    /// As the dead node did while it lived.
    fn commit(&self, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic(&self.dead), partition, Offset::Offset(offset)).unwrap();
        let consumer = self.consumer(&format!("rtc-delivery-{}", self.dead));
        let deadline = Instant::now() + PATIENCE;
        // The group's coordinator may have to find itself first.
        while let Err(error) = consumer.commit(&list, CommitMode::Sync) {
            assert!(Instant::now() < deadline, "{error}");
            std::thread::sleep(PAUSE);
        }
    }

    fn committed(&self) -> Vec<i64> {
        let consumer = self.consumer(&format!("rtc-delivery-{}", self.dead));
        let mut list = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            list.add_partition(&topic(&self.dead), partition);
        }
        let list = consumer.committed_offsets(list, PATIENCE).unwrap();
        list.elements().iter().map(|element| element.offset().to_raw().unwrap_or(0).max(0)).collect()
    }

    fn ends(&self, node: &NodeId) -> Vec<i64> {
        let consumer = self.consumer("rtc-forwarder-test");
        (0..PARTITIONS).map(|index| consumer.fetch_watermarks(&topic(node), index, PATIENCE).unwrap().1).collect()
    }

    fn lease(&self) -> Option<String> {
        let mut connection = redis::Client::open(self.redis.as_str()).unwrap().get_connection().unwrap();
        redis::cmd("GET").arg(format!("{{rtc}}:consume:{}", self.dead)).query(&mut connection).unwrap()
    }
}

fn collect(consumer: &BaseConsumer, found: &mut Vec<Record>) {
    while let Some(message) = consumer.poll(PAUSE) {
        let Ok(message) = message else { continue };
        let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
        let headers = message.headers().map(|headers| {
            headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect::<BTreeMap<_, _>>()
        });
        found.push(Record {
            partition: message.partition(),
            key: text(message.key()),
            value: text(message.payload()),
            headers: headers.unwrap_or_default(),
        });
    }
}

fn number_in(record: &Record) -> u32 {
    let rest = record.value.split("\"msgId\":\"").nth(1).unwrap();
    rest.split('"').next().unwrap().parse().unwrap()
}

#[test]
fn what_stands_in_a_dead_nodes_topic_arrives_in_order_where_its_recipients_live_now() {
    let Some(rig) = Rig::start("what_stands_in_a_dead_nodes_topic_arrives") else { return };
    let clients: Vec<String> = (0..8).map(|number| format!("client-{number}")).collect();
    for number in 0..200 {
        rig.message(1, &clients[number as usize % clients.len()], number);
    }
    let fenced = &clients[3];
    let fence =
        format!(r#"{{"type":"fence","id":5,"hash":{},"pair":8,"trail":[4]}}"#, rig.ring.hash(fenced.as_bytes()));
    rig.produce(1, "", &fence, &[("rtc-kind", "fence"), ("rtc-origin", "far/9/1")]);
    let claimant = &rig.living[0];
    let origin = format!("{claimant}/3/0");
    let claim = r#"{"type":"claimed","clientId":"client-3","generation":77}"#;
    rig.produce(1, fenced, claim, &[("rtc-kind", "claimed"), ("rtc-origin", &origin)]);
    rig.produce(1, "", r#"{"type":"nudge","clientId":"client-3"}"#, &[("rtc-kind", "nudge"), ("rtc-origin", &origin)]);
    let poison = format!("poison for {}", rig.dead);
    rig.produce(1, "k", &poison, &[("rtc-origin", "far/9/0")]);
    for number in 200..300 {
        rig.message(2, &clients[number as usize % clients.len()], number);
    }
    rig.flush();
    // The first eight were finished while the node lived.
    rig.commit(1, 8);

    let readers = rig.living.each_ref().map(|node| rig.reader(&topic(node), PARTITIONS));
    let (forwarder, counted) = rig.forwarder();
    let mut found = [Vec::new(), Vec::new()];
    // 292 messages, the fence, the answer.
    rig.until(&forwarder, false, "all records arrive", || {
        readers.iter().zip(&mut found).for_each(|(reader, found)| collect(reader, found));
        found[0].len() + found[1].len() >= 294
    });
    let ends = rig.ends(&rig.dead);
    rig.until(&forwarder, false, "the committed offsets move to the ends", || rig.committed() == ends);
    rig.until(&forwarder, false, "the lease is free", || rig.lease().is_none());

    let mark = format!("{:016x}", node_mark(&rig.dead));
    let mut next: BTreeMap<(i32, &str), u32> = BTreeMap::new();
    for (node, records) in rig.living.iter().zip(&found) {
        for record in records.iter().filter(|record| record.headers.get("rtc-kind").unwrap() == "message") {
            let (client, number) = (record.key.as_str(), number_in(record));
            assert_eq!(rig.ring.owner(client.as_bytes()), node);
            assert_eq!(record.partition, if number < 200 { 1 } else { 2 });
            let headers = [("rtc-hops", "1"), ("rtc-trail", &mark), ("rtc-origin", "far/9/0"), ("trace", "t")];
            headers.iter().for_each(|(name, value)| assert_eq!(record.headers.get(*name).unwrap(), value));
            let expected = next.entry((record.partition, client)).or_insert_with(|| {
                let first = if number < 200 { 8 } else { 200 };
                (first..).find(|number| clients[*number as usize % clients.len()] == client).unwrap()
            });
            assert_eq!(number, *expected, "{client} in partition {}", record.partition);
            *expected += 8;
        }
    }
    assert!(next.iter().all(|((partition, _), next)| *next >= if *partition == 1 { 200 } else { 300 }));

    let of_kind = |kind: &str| -> Vec<(usize, usize, &Record)> {
        let all = found.iter().enumerate();
        let all =
            all.flat_map(|(node, records)| records.iter().enumerate().map(move |(at, record)| (node, at, record)));
        all.filter(|(.., record)| record.headers.get("rtc-kind").unwrap() == kind).collect()
    };
    let fences = of_kind("fence");
    let [(node, at, record)] = fences.as_slice() else { panic!("{} fences", fences.len()) };
    assert_eq!(&rig.living[*node], rig.ring.owner(fenced.as_bytes()));
    assert_eq!((record.partition, record.value.as_str()), (1, fence.as_str()));
    assert_eq!(record.headers.get("rtc-origin").unwrap(), "far/9/1");
    let behind = found[*node].iter().skip(at + 1);
    assert!(
        behind
            .filter(|record| record.partition == 1)
            .all(|record| record.key != *fenced || record.headers["rtc-kind"] == "released")
    );
    let answers = of_kind("released");
    let [(0, _, record)] = answers.as_slice() else { panic!("{} answers", answers.len()) };
    assert_eq!((record.partition, record.key.as_str()), (1, "client-3"));
    assert_eq!(record.value, r#"{"type":"released","clientId":"client-3","generation":77}"#);
    assert_eq!(record.headers.get("rtc-origin").unwrap(), &format!("{}/0/0", rig.dead));

    let letters = rig.reader("rtc.dead-letter", 1);
    let mut found = Vec::new();
    rig.until(&forwarder, false, "the poison is among the dead letters", || {
        collect(&letters, &mut found);
        found.iter().any(|letter| {
            letter.value == poison
                && letter.headers.get("rtc-cause").is_some_and(|cause| cause == "malformed")
                && letter
                    .headers
                    .get("rtc-source")
                    .is_some_and(|source| *source == format!("{}/1/203", topic(&rig.dead)))
        })
    });
    let sent: BTreeMap<_, _> = counted.sent().collect();
    assert_eq!((sent["message"], sent["fence"], sent["claimed"]), (292, 1, 1));
    assert_eq!(counted.dropped().find(|(kind, _)| *kind == "nudge"), Some(("nudge", 1)));
    let buried: BTreeMap<_, _> = counted.buried().filter(|(_, count)| *count > 0).collect();
    assert_eq!(buried, [("malformed", 1)].into());

    // While the node stays away late records follow.
    rig.message(2, &clients[0], 300);
    rig.flush();
    let owner = rig.living.iter().position(|node| node == rig.ring.owner(clients[0].as_bytes())).unwrap();
    let mut found = Vec::new();
    rig.until(&forwarder, false, "a late record arrives", || {
        collect(&readers[owner], &mut found);
        found.iter().any(|record| number_in(record) == 300)
    });
    rig.until(&forwarder, false, "the lease is free again", || rig.lease().is_none());
}

#[test]
fn what_a_topic_does_not_take_goes_to_the_dead_letters_and_the_others_flow() {
    /// A broker counts a whole batch: of these each is taken alone, and no two together.
    const BYTES: usize = 1500;
    const LARGE: [(u32, usize); 2] = [(20, 3_000_000), (33, 10_000)];
    const NUMBERS: u32 = 50;
    let name = "what_a_topic_does_not_take_goes_to_the_dead_letters";
    let Some(rig) = Rig::start_with(name, Some("2500")) else { return };
    for number in 0..NUMBERS {
        let large = LARGE.iter().find(|(large, _)| *large == number);
        rig.message_of(1, "anna", number, large.map_or(BYTES, |(_, bytes)| *bytes));
        // A batch of its own each: else the library would hold the large one to what a batch may have.
        rig.flush();
    }
    let owner = rig.ring.owner(b"anna");
    let reader = rig.reader(&topic(owner), PARTITIONS);
    let (forwarder, counted) = rig.forwarder();
    let mut found = Vec::new();
    let arrived = NUMBERS as usize - LARGE.len();
    rig.until(&forwarder, false, "all but the large ones arrive", || {
        collect(&reader, &mut found);
        found.len() >= arrived
    });
    rig.until(&forwarder, false, "the large ones count as done", || rig.committed()[1] == i64::from(NUMBERS));
    // What was under way when one was refused is sent again, and its reader knows it by its name; never in another order.
    let mut numbers: Vec<u32> = found.iter().map(number_in).collect();
    let mut seen = std::collections::BTreeSet::new();
    numbers.retain(|number| seen.insert(*number));
    let expected: Vec<u32> = (0..NUMBERS).filter(|number| LARGE.iter().all(|(large, _)| large != number)).collect();
    assert_eq!(numbers, expected);
    let buried: BTreeMap<_, _> = counted.buried().filter(|(_, count)| *count > 0).collect();
    assert_eq!(buried, [("too_large", LARGE.len() as u64)].into());
    assert_eq!(counted.failures.load(Ordering::Relaxed), 0);

    let letters = rig.reader("rtc.dead-letter", 1);
    let mut found = Vec::new();
    for (number, bytes) in LARGE {
        let source = format!("{}/1/{number}", topic(&rig.dead));
        rig.until(&forwarder, false, "it is among the dead letters", || {
            collect(&letters, &mut found);
            found.iter().any(|letter| letter.headers.get("rtc-source") == Some(&source))
        });
        let letter = found.iter().find(|letter| letter.headers.get("rtc-source") == Some(&source)).unwrap();
        assert_eq!((letter.headers["rtc-cause"].as_str(), letter.key.as_str()), ("too_large", "anna"));
        assert!(letter.value.len() <= 256 << 10 && letter.value.len() >= bytes.min(256 << 10));
        let whole = letter.headers.get("rtc-length").map(|len| len.parse::<usize>().unwrap());
        assert_eq!(whole.is_some_and(|whole| whole > bytes), bytes > 256 << 10);
    }
}

#[test]
fn a_node_that_is_back_gets_its_topic_back() {
    const RECORDS: u32 = 150_000;
    let Some(rig) = Rig::start("a_node_that_is_back_gets_its_topic_back") else { return };
    for number in 0..RECORDS {
        rig.message(1, "anna", number);
    }
    rig.flush();
    let owner = rig.ring.owner(b"anna");
    let (forwarder, counted) = rig.forwarder();
    rig.until(&forwarder, false, "the reading begins", || counted.topics.load(Ordering::Relaxed) == 1);
    let deadline = Instant::now() + PATIENCE;
    while counted.sent().all(|(_, count)| count == 0) {
        assert!(Instant::now() < deadline, "nothing is sent on");
        std::thread::yield_now();
    }
    rig.until(&forwarder, true, "the lease is given back", || rig.lease().is_none());
    let (committed, arrived) = (rig.committed()[1], rig.ends(owner)[1]);
    assert!(committed > 0 && committed < i64::from(RECORDS), "{committed} are committed");
    // The node reads on from there: what was sent on is confirmed, and nothing else is committed.
    assert!(arrived >= committed, "{arrived} arrived, {committed} are committed");
    // It is gone once more, and the rest follows.
    rig.until(&forwarder, false, "the topic is drained", || rig.committed()[1] == i64::from(RECORDS));
    assert!(rig.ends(owner)[1] >= i64::from(RECORDS));
    drop(forwarder);
    assert_eq!(rig.lease(), None);
}

#[test]
fn a_leader_no_more_lets_go_and_a_topic_that_another_holds_is_left_alone() {
    let Some(rig) = Rig::start("a_leader_no_more_lets_go") else { return };
    rig.message(1, "anna", 0);
    rig.flush();
    let owner = rig.ring.owner(b"anna");
    let mut connection = redis::Client::open(rig.redis.as_str()).unwrap().get_connection().unwrap();
    let key = format!("{{rtc}}:consume:{}", rig.dead);
    let () = redis::cmd("SET").arg(&key).arg("1 somebody").arg("PX").arg(600_000).query(&mut connection).unwrap();
    let (forwarder, counted) = rig.forwarder();
    rig.until(&forwarder, false, "a reading waits for the lease", || counted.topics.load(Ordering::Relaxed) == 1);
    assert_eq!(rig.ends(owner)[1], 0);
    forwarder.rest();
    let deadline = Instant::now() + PATIENCE;
    while counted.topics.load(Ordering::Relaxed) > 0 {
        assert!(Instant::now() < deadline, "the reading goes on without the lead");
        std::thread::sleep(PAUSE);
    }
    assert_eq!(rig.lease().as_deref(), Some("1 somebody"));
    let () = redis::cmd("DEL").arg(&key).query(&mut connection).unwrap();
    rig.until(&forwarder, false, "the record arrives", || rig.ends(owner)[1] == 1);
}
