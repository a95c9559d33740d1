//! Nodes that know each other, and the servers between them.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use ring::control::RingUpdate;
use ring::{NodeId, NodeWeights, RingVersion, Weight};
use sonic_rs::{JsonValueTrait, Value};

use crate::support::{PATIENCE, Server, eventually, get};

pub const RING_TOPIC: &str = "rtc.control.ring";
const NODES: usize = 3;

/// Where the two servers are.
#[derive(Clone)]
pub struct Services {
    pub kafka: String,
    pub redis: String,
}

impl Services {
    /// Those that the environment names; says so and returns nothing where there are none.
    ///
    /// # Panics
    /// Where there must be some.
    pub fn find(test: &str) -> Option<Self> {
        let named = |variable: &str| std::env::var(variable).ok().filter(|value| !value.is_empty());
        match (named("RTC_KAFKA"), named("RTC_REDIS")) {
            (Some(kafka), Some(redis)) => Some(Self { kafka, redis }),
            (kafka, redis) => {
                let missing = match (kafka, redis) {
                    (None, None) => "RTC_KAFKA and RTC_REDIS are not set",
                    (None, _) => "RTC_KAFKA is not set",
                    _ => "RTC_REDIS is not set",
                };
                let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
                assert!(!in_ci, "{missing}, and here they must be");
                // Past the test runner, which keeps the output of tests that pass to itself.
                let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {missing} (scripts/services.sh up)");
                None
            }
        }
    }

    /// Starts a node between them and waits until it is ready for others.
    pub fn node(&self, id: &str) -> Server {
        let node = self.starting_node(id);
        eventually("the node has joined", || get(node.admin, "/readyz").status == 200);
        node
    }

    /// Starts a node between them and waits no longer than for its first line.
    pub fn starting_node(&self, id: &str) -> Server {
        Server::start(&["--node-id", id, "--shards", "2", "--kafka", &self.kafka, "--redis", &self.redis])
    }

    /// Puts one record into a topic.
    pub fn produce(&self, topic: &str, value: &[u8], headers: OwnedHeaders) {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.kafka).set("message.max.bytes", "20000000");
        let producer: BaseProducer = config.create().unwrap();
        let record = BaseRecord::<str, [u8]>::to(topic).payload(value).key("").headers(headers).partition(0);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(PATIENCE).unwrap();
    }

    /// One command to Redis.
    pub fn redis<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let mut connection = redis::Client::open(&*self.redis).unwrap().get_connection().unwrap();
        let mut words = redis::cmd(command[0]);
        words.arg(&command[1..]);
        words.query(&mut connection).unwrap()
    }
}

/// A pair of servers that a test may kill.
pub struct Pair {
    pub services: Services,
    run: PathBuf,
}

impl Pair {
    /// Starts one, where the environment has servers at all.
    pub fn start(test: &str) -> Option<Self> {
        Services::find(test)?;
        #[allow(clippy::items_after_statements, reason = "it belongs to the next line")]
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rtc-pair-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // From here on it is ended, whatever happens.
        let services = Services { kafka: String::new(), redis: String::new() };
        let mut pair = Self { services, run: std::env::temp_dir().join(name) };
        let output = pair.control(&["up"]);
        let value = |name: &str| {
            let value = output.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_else(|| panic!("no {name} in {output:?}")).to_owned()
        };
        pair.services = Services { kafka: value("RTC_KAFKA"), redis: value("RTC_REDIS") };
        Some(pair)
    }

    /// `kill redis`, `start kafka`: what the script does.
    pub fn control(&self, arguments: &[&str]) -> String {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/services.sh");
        let mut command = Command::new(script);
        command.args(arguments).env("RTC_SERVICES_RUN", &self.run).env_remove("RTC_KAFKA").env_remove("RTC_REDIS");
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || std::thread::panicking(), "{arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.control(&["down"]);
        let _ = std::fs::remove_dir_all(&self.run);
    }
}

/// Three nodes with a ring of them all.
pub struct Fleet {
    pub services: Services,
    pub nodes: Vec<Server>,
}

impl Fleet {
    /// The fleet that tests share while any of them runs; each has clients of its own.
    pub fn shared(test: &str) -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Fleet>> = Mutex::new(Weak::new());
        let services = Services::find(test)?;
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fleet) = shared.upgrade() {
            return Some(fleet);
        }
        let fleet = Arc::new(Self::start(services));
        *shared = Arc::downgrade(&fleet);
        Some(fleet)
    }

    /// Starts three nodes and announces a ring of them.
    pub fn start(services: Services) -> Self {
        let nodes = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..NODES).map(|_| scope.spawn(|| services.node(&fresh("n")))).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        let fleet = Self { services, nodes };
        fleet.announce([100; NODES]);
        fleet
    }

    /// Announces a ring with these weights and waits until every node has it.
    pub fn announce(&self, weights: [u64; NODES]) -> u64 {
        let (version, update) = self.update(weights);
        self.services.produce(RING_TOPIC, &update, OwnedHeaders::new());
        eventually("every node has the ring", || self.ring_versions().iter().all(|has| *has >= version));
        version
    }

    /// A ring that is newer than any before it, and its version.
    pub fn update(&self, weights: [u64; NODES]) -> (u64, Vec<u8>) {
        let ids = self.nodes.iter().map(|node| NodeId::new(&node.node_id).unwrap());
        let weights = ids.zip(weights).map(|(id, weight)| (id, Weight::new(weight).unwrap()));
        let version = next_version();
        let weights = NodeWeights::new(weights).unwrap();
        let update = RingUpdate::new(RingVersion::new(version).unwrap(), weights, 0, "test".to_owned(), version);
        (version, update.encode().unwrap())
    }

    pub fn ring_versions(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| ring_of(node)["version"].as_u64().unwrap()).collect()
    }
}

/// The ring a node goes by, as it says.
pub fn ring_of(node: &Server) -> Value {
    get(node.admin, "/api/v1/ring").json()
}

/// The sum of a metric over its labels, or over those that begin as `metric` does.
pub fn metric(node: &Server, metric: &str) -> u64 {
    let page = get(node.admin, "/metrics").body;
    let lines = page.lines().filter(|line| line.starts_with(metric));
    let values: Vec<u64> = lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(!values.is_empty(), "no {metric} in {page}");
    values.iter().sum()
}

/// A name that no test has used before, nor will.
pub fn fresh(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{name}-{}-{}-{}", now_ms(), std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Versions grow with the clock, so that a ring of this run is newer than those of earlier ones.
fn next_version() -> u64 {
    static LAST: Mutex<u64> = Mutex::new(0);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    *last = now_ms().max(*last + 1);
    *last
}

pub fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis()).unwrap()
}
