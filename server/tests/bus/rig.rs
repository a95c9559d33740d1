//! Nodes that consist of a bus and mailboxes: what the shards would do, the tests do.

use std::collections::VecDeque;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ring::{NodeId, SharedRing};
use rtc_server::bus::kafka::{Config, Kafka, KafkaBus, Lease, PARTITIONS, Setup};
use rtc_server::bus::{Address, Arrived, Bus, Lane, Parcel, Record, RecordRef};
use rtc_server::protocol::PayloadField;
use rtc_server::routing::paths::Paths;
use rtc_server::shard::handover::{Mail, Posted};
use rtc_server::shard::mailbox::{Receiver, mailbox};
use rtc_server::shard::origin::Origin;

/// How long anything may take before a test gives up: generous, for busy machines.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The mailboxes of a node of the tests.
pub const MAILBOX: usize = 1024;

/// The brokers to test against; says so and returns nothing where there are none.
///
/// # Panics
/// Where there must be some.
pub fn brokers(test: &str) -> Option<String> {
    match std::env::var("RTC_KAFKA") {
        Ok(brokers) if !brokers.is_empty() => Some(brokers),
        _ => {
            let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
            assert!(!in_ci, "RTC_KAFKA is not set, and here it must be");
            // Past the test runner, which keeps the output of tests that pass to itself.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: RTC_KAFKA is not set (scripts/services.sh up)");
            None
        }
    }
}

/// A node id that no test has used before.
pub fn fresh_id(name: &str) -> NodeId {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let millis = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    NodeId::new(&format!("{name}-{millis}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))).unwrap()
}

/// A lease that the test gives and takes; 0 is none.
#[derive(Default)]
pub struct TestLease(AtomicU64);

impl TestLease {
    /// Gives it with this token, or takes it with 0.
    pub fn set(&self, token: u64) {
        self.0.store(token, Ordering::Relaxed);
    }
}

impl Lease for TestLease {
    fn token(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|token| *token > 0)
    }
}

/// A node without shards.
pub struct Node {
    pub id: NodeId,
    pub kafka: Kafka,
    pub lease: Arc<TestLease>,
    ends: Vec<Receiver<Mail>>,
    arrived: VecDeque<(usize, Arrived)>,
    produced: Vec<u64>,
}

impl Node {
    /// Starts one that may read from the start.
    pub fn start(brokers: &str, id: &NodeId, shards: usize, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(brokers, 256 << 10);
        change(&mut config);
        let (mailboxes, ends) = (0..shards).map(|_| mailbox(MAILBOX).unwrap()).unzip();
        let lease = Arc::new(TestLease::default());
        lease.set(1);
        let setup = Setup {
            config,
            node: id.clone(),
            incarnation: 77,
            mailboxes,
            ring: SharedRing::new(),
            lease: Arc::clone(&lease) as Arc<dyn Lease>,
        };
        let kafka = Kafka::start(setup).unwrap();
        Self { id: id.clone(), kafka, lease, ends, arrived: VecDeque::new(), produced: Vec::new() }
    }

    pub fn bus(&self) -> &KafkaBus {
        self.kafka.bus()
    }

    /// Empties the mailboxes.
    pub fn collect(&mut self) {
        for (shard, end) in self.ends.iter().enumerate() {
            end.begin();
            while let Some(mail) = end.next() {
                match mail {
                    Mail::Record(arrived) => self.arrived.push_back((shard, *arrived)),
                    Mail::Produced(ticket) => self.produced.push(ticket),
                    other => panic!("no mail of the bus: {other:?}"),
                }
            }
        }
    }

    /// The next record, with the shard it came to; none when nothing comes for `patience`.
    pub fn next_within(&mut self, patience: Duration) -> Option<(usize, Arrived)> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(arrived) = self.arrived.pop_front() {
                return Some(arrived);
            }
            if Instant::now() >= deadline {
                return None;
            }
            self.wait();
        }
    }

    /// The next record.
    #[track_caller]
    pub fn next(&mut self) -> (usize, Arrived) {
        self.next_within(PATIENCE).expect("no record came")
    }

    /// Waits until these many confirmations have come, and takes them.
    #[track_caller]
    pub fn produced(&mut self, count: usize) -> Vec<u64> {
        let deadline = Instant::now() + PATIENCE;
        while self.produced.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} records were confirmed", self.produced.len());
            self.wait();
        }
        std::mem::take(&mut self.produced)
    }

    fn wait(&mut self) {
        self.collect();
        if self.arrived.is_empty() {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Publishes, trying again while the bus is full.
    pub fn publish(&self, to: &NodeId, lane: Lane, record: Record, ticket: Option<u64>) {
        let origin = Address { node: self.id.clone(), incarnation: 77, shard: 0 };
        let mut parcel = Box::new(Parcel { to: to.clone(), lane, origin, record, ticket });
        while let Err(back) = self.bus().publish(parcel) {
            parcel = back;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends message number `number` to `client`, whose home is `to`.
    pub fn send(&self, to: &NodeId, client: &str, number: u64) {
        let posted = message(client, number);
        self.publish(to, lane_of(&posted), Record::Message(Box::new(posted)), Some(number));
    }
}

/// Where a message goes in the topic of its recipient's node.
pub fn lane_of(posted: &Posted) -> Lane {
    Lane::Partition(Paths::new(PARTITIONS - 1).lane_of(posted.hash))
}

/// A message whose name is its number.
pub fn message(client: &str, number: u64) -> Posted {
    Posted {
        msg_id: number.to_string().into(),
        from: "sender".into(),
        sender: ring::hash_key(b"sender", 0),
        to: client.into(),
        hash: ring::hash_key(client.as_bytes(), 0),
        field: PayloadField::Payload,
        payload: format!("{{\"n\":{number}}}").into(),
        origin: Origin::NOBODY,
        wants_ack: true,
        ts_ms: 1_700_000_000_000 + number,
        ttl_ms: None,
        hops: 1,
        trail: Vec::new(),
        login: 0,
    }
}

/// The recipient and the number of a message.
#[track_caller]
pub fn read(arrived: &Arrived) -> (String, u64) {
    let Record::Message(posted) = &arrived.record else { panic!("no message: {arrived:?}") };
    (posted.to.to_string(), posted.msg_id.parse().unwrap())
}

pub fn home(client: &str, shards: usize) -> usize {
    ring::shard_of(ring::hash_key(client.as_bytes(), 0), NonZeroUsize::new(shards).unwrap())
}

pub fn finish(node: &Node, at: RecordRef) {
    node.bus().finish(&[at]);
}

/// Asks again and again until the answer is yes.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
