//! Balancers with a real Redis and a broker of librdkafka's own: who leads, what is
//! published, what happens when a node, a leader or Redis goes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::{Message as _, Offset, TopicPartitionList};
use ring::control::{DrainRequest, RingUpdate, ScaleSignal};
use ring::{NodeId, RingVersion, Weight};
use rtc_balancer::store::{Lease, Published, Store};
use rustix::process::Signal;
use sonic_rs::{JsonContainerTrait as _, JsonValueTrait as _};
use support::{Balancer, Fleet, Process, RedisServer, eventually, get, post, try_get, try_request};

const JSON: &str = "Content-Type: application/json\r\n";
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(6);

/// A broker that lives in this process.
struct Broker {
    brokers: String,
    _mock: MockCluster<'static, DefaultProducerContext>,
}

impl Broker {
    fn start() -> Self {
        let mock = MockCluster::new(1).unwrap();
        for topic in ["rtc.control.ring", "rtc.control.scale", "rtc.control.drain"] {
            mock.create_topic(topic, 1, 1).unwrap();
        }
        Self { brokers: mock.bootstrap_servers(), _mock: mock }
    }

    /// Follows a topic from here on.
    fn follow(&self, topic: &str) -> BaseConsumer {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", "test")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let (_, end) = consumer.fetch_watermarks(topic, 0, support::PATIENCE).unwrap_or((0, 0));
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, 0, Offset::Offset(end)).unwrap();
        consumer.assign(&list).unwrap();
        consumer
    }
}

/// The next message for which `read` finds something.
fn next<T>(consumer: &BaseConsumer, mut read: impl FnMut(&[u8]) -> Option<T>) -> T {
    eventually("a control message comes", || {
        let message = consumer.poll(Duration::from_millis(500))?.ok()?;
        read(message.payload()?)
    })
}

fn in_redis(redis: &RedisServer) -> Option<RingUpdate> {
    let json: Option<Vec<u8>> = redis::cmd("GET").arg("{rtc}:ring-version").query(&mut redis.connect()).unwrap();
    json.map(|json| RingUpdate::decode(&json).unwrap())
}

#[test]
fn nodes_that_report_get_a_ring_and_clients_an_address() {
    let Some(redis) = RedisServer::start("nodes_that_report_get_a_ring_and_clients_an_address") else { return };
    let broker = Broker::start();
    let rings = broker.follow("rtc.control.ring");
    let balancer = Balancer::start("b1", &redis, Some(&broker.brokers), &[]);
    assert_eq!(get(balancer.listen, "/livez").status, 200);
    eventually("it has looked", || balancer.get("/healthz")["redis"].as_bool().filter(|up| *up));
    let early = get(balancer.listen, "/readyz");
    assert_eq!((early.status, early.body.contains("no_ring")), (503, true), "{early:?}");
    assert_eq!(get(balancer.listen, "/api/v1/resolve?clientId=a").status, 503);

    let fleet = Fleet::start(&redis, &["a", "b", "c"]);
    let version = balancer.await_ring(&["a", "b", "c"]);
    let announced =
        next(&rings, |json| RingUpdate::decode(json).ok().filter(|ring| ring.version.version.get() == version));
    assert_eq!(announced.node_weights.total(), 300);
    assert!(announced.has_right_hash());
    assert_eq!(in_redis(&redis).unwrap().version.version.get(), version);
    assert_eq!(get(balancer.listen, "/readyz").status, 200);

    let ring = ring::Ring::from_update(&announced);
    for client in ["alice", "bob", "c%20d"] {
        let owner = ring.owner(client.replace("%20", " ").as_bytes());
        let home = balancer.get(&format!("/api/v1/resolve?clientId={client}"));
        assert_eq!(home["nodeId"].as_str(), Some(owner.as_str()));
        assert_eq!(home["wsUrl"].as_str(), Some(&*format!("ws://{owner}.example:8080/ws/connect")));
        assert_eq!(home["ringVersion"].as_u64(), Some(version));
        let redirect = get(balancer.listen, &format!("/api/v1/connect?clientId={client}&acks=1"));
        assert_eq!(redirect.status, 307);
        let location = format!("\r\nLocation: ws://{owner}.example:8080/ws/connect?clientId={client}&acks=1\r\n");
        assert!(redirect.head.contains(&location), "{}", redirect.head);
    }
    for (path, status) in [
        ("/api/v1/resolve", 400),
        ("/api/v1/resolve?clientId=", 400),
        ("/api/v1/resolve?clientId=%00", 400),
        (&*format!("/api/v1/resolve?clientId={}", "x".repeat(129)), 400),
        ("/nothing", 404),
        ("/", 200),
        ("/page.js", 200),
    ] {
        assert_eq!(get(balancer.listen, path).status, status, "{path}");
    }
    for name in ["rtc_lb_ring_nodes", "rtc_lb_weight_recalculations_total", "rtc_lb_node_weight{node_id=\"a\"}"] {
        assert!(balancer.metric(name) > 0.0, "{name}");
    }
    balancer.await_log("topology changed");
    balancer.await_log("ring recomputed");

    // One that is overloaded loses weight at once, and more nodes are asked for.
    let scales = broker.follow("rtc.control.scale");
    fleet.set_cpu("a", 0.95);
    let lighter =
        next(&rings, |json| RingUpdate::decode(json).ok().filter(|ring| ring.version.version.get() > version));
    assert_eq!(lighter.reason, "weights-rebalanced");
    assert!(lighter.node_weights.weight(&NodeId::new("a").unwrap()).unwrap().get() < 100);
    let signal = next(&scales, |json| ScaleSignal::decode(json).ok());
    assert!(signal.reason.starts_with("SCALE_OUT recommended: nodes=3->6 (+3), cpu="), "{}", signal.reason);
}

#[test]
fn a_node_that_cannot_be_understood_keeps_its_weight() {
    let Some(redis) = RedisServer::start("a_node_that_cannot_be_understood_keeps_its_weight") else { return };
    let fleet = Fleet::start(&redis, &["a", "b", "c"]);
    let balancer = Balancer::start("b1", &redis, None, &[]);
    let version = balancer.await_ring(&["a", "b", "c"]);
    fleet.set_body("b", r#"{"nodeId":"b","cpu":1e308}"#);
    eventually("it is refused", || {
        (balancer.metric("rtc_lb_refused_heartbeats_total{cause=\"unreadable\"}") > 3.0).then_some(())
    });
    assert_eq!(balancer.ring(), (version, ["a", "b", "c"].map(str::to_owned).into()));
    balancer.await_log("heartbeat refused");
    assert_eq!(balancer.log().matches("heartbeat refused").count(), 1);
}

#[test]
fn a_node_that_is_killed_leaves_the_ring_and_no_earlier_than_it_may() {
    const TEST: &str = "a_node_that_is_killed_leaves_the_ring_and_no_earlier_than_it_may";
    let Some(redis) = RedisServer::start(TEST) else { return };
    let fleet = Fleet::start(&redis, &["a", "b", "c", "d"]);
    let leader = Balancer::start("b1", &redis, None, &[]);
    leader.await_ring(&["a", "b", "c", "d"]);
    let follower = Balancer::start("b2", &redis, None, &[]);
    follower.await_ring(&["a", "b", "c", "d"]);
    // Until Redis has answered for one timeout nobody is declared gone.
    std::thread::sleep(HEARTBEAT_TIMEOUT);
    fleet.kill("d");
    let killed = Instant::now();
    let mut connection = redis.connect();
    let heard_ms: f64 = redis::cmd("ZSCORE").arg("{rtc}:heartbeats").arg("d").query(&mut connection).unwrap();
    let version = leader.await_ring(&["a", "b", "c"]);
    // How soon is the machine's affair; that Redis had not heard of it for long enough is not.
    let (seconds, micros): (f64, f64) = redis::cmd("TIME").query(&mut connection).unwrap();
    let silent = Duration::from_secs_f64(seconds + micros / 1e6 - heard_ms / 1e3);
    println!("node killed, ring without it after {:.2?}, heard of {silent:.2?} before", killed.elapsed());
    assert!(silent >= HEARTBEAT_TIMEOUT, "{silent:?}");
    assert_eq!(follower.await_ring(&["a", "b", "c"]), version);
    assert!(!follower.is_leader());
}

#[test]
fn when_the_leader_is_killed_the_other_publishes_on_with_higher_versions() {
    let Some(redis) = RedisServer::start("when_the_leader_is_killed_the_other_publishes_on") else { return };
    let fleet = Fleet::start(&redis, &["a", "b", "c"]);
    let first = Balancer::start("b1", &redis, None, &[]);
    let before = first.await_ring(&["a", "b", "c"]);
    let second = Balancer::start("b2", &redis, None, &[]);
    assert_eq!(second.await_ring(&["a", "b", "c"]), before);
    assert!(first.is_leader() && !second.is_leader());

    fleet.add("d");
    let joined = first.await_ring(&["a", "b", "c", "d"]);
    assert!(joined > before);
    let killed = Instant::now();
    first.signal(Signal::KILL);
    eventually("the other leads", || second.is_leader().then_some(()));
    println!("leader killed, the other leads after {:.2?}", killed.elapsed());
    fleet.add("e");
    assert!(second.await_ring(&["a", "b", "c", "d", "e"]) > joined);
}

#[test]
fn a_leader_that_ends_gives_its_lease_back() {
    let Some(redis) = RedisServer::start("a_leader_that_ends_gives_its_lease_back") else { return };
    let _fleet = Fleet::start(&redis, &["a", "b"]);
    let mut first = Balancer::start("b1", &redis, None, &["--lease", "1h"]);
    first.await_ring(&["a", "b"]);
    let second = Balancer::start("b2", &redis, None, &["--lease", "1h"]);
    second.await_ring(&["a", "b"]);
    first.signal(Signal::TERM);
    assert!(first.wait().success());
    eventually("the other leads", || second.is_leader().then_some(()));
}

#[test]
fn a_paused_leader_that_wakes_publishes_nothing() {
    let Some(redis) = RedisServer::start("a_paused_leader_that_wakes_publishes_nothing") else { return };
    let fleet = Fleet::start(&redis, &["a", "b", "c"]);
    let first = Balancer::start("b1", &redis, None, &[]);
    first.await_ring(&["a", "b", "c"]);
    let second = Balancer::start("b2", &redis, None, &[]);
    second.await_ring(&["a", "b", "c"]);
    first.signal(Signal::STOP);
    eventually("the other leads", || second.is_leader().then_some(()));
    fleet.add("d");
    let version = second.await_ring(&["a", "b", "c", "d"]);
    first.signal(Signal::CONT);
    eventually("it has noticed", || first.log().contains("leading no more").then_some(()));
    assert_eq!(first.await_ring(&["a", "b", "c", "d"]), version);
    assert!(second.is_leader() && !first.is_leader());
    assert_eq!(in_redis(&redis).unwrap().version.version.get(), version);
}

/// An update of one node.
fn update(version: u64) -> (RingUpdate, Vec<u8>) {
    let weights = ring::NodeWeights::new([(NodeId::new("a").unwrap(), Weight::new(100).unwrap())]).unwrap();
    let update = RingUpdate::new(RingVersion::new(version).unwrap(), weights, 0, "test".to_owned(), 1);
    let json = update.encode().unwrap();
    (update, json)
}

#[test]
fn an_older_token_or_version_is_refused_by_redis_itself() {
    let Some(redis) = RedisServer::start("an_older_token_or_version_is_refused_by_redis_itself") else { return };
    let (mut old, mut new) = (Store::new(&redis.url).unwrap(), Store::new(&redis.url).unwrap());
    let (one, two) = (NodeId::new("b1").unwrap(), NodeId::new("b2").unwrap());
    let publish = |store: &mut Store, token, version| {
        let (update, json) = update(version);
        store.publish(token, &update, &json, b"{}").unwrap()
    };
    let lease = Duration::from_secs(600);
    assert_eq!(old.lead(&one, 0, lease).unwrap(), Lease::Ours(1));
    assert_eq!(old.lead(&one, 1, lease).unwrap(), Lease::Ours(1));
    assert_eq!(new.lead(&two, 0, lease).unwrap(), Lease::Theirs("b1".to_owned()));
    assert_eq!(publish(&mut old, 1, 5), Published::Ours);
    assert_eq!(publish(&mut old, 1, 5), Published::Stale("5".to_owned()));
    assert_eq!(publish(&mut old, 1, 4), Published::Stale("5".to_owned()));
    // The lease runs out; nobody has led since, so the last leader may still write.
    assert_eq!(old.lead(&one, 1, Duration::from_millis(1)).unwrap(), Lease::Ours(1));
    eventually("the lease is over", || (new.lead(&two, 0, lease).unwrap() == Lease::Ours(2)).then_some(()));
    assert_eq!(publish(&mut old, 1, 6), Published::Fenced);
    assert_eq!(publish(&mut new, 2, 6), Published::Ours);
    assert_eq!(old.lead(&one, 1, lease).unwrap(), Lease::Theirs("b2".to_owned()));
    // A lease that is not ours any more cannot be given back.
    old.resign(&one, 1).unwrap();
    assert_eq!(new.lead(&two, 2, lease).unwrap(), Lease::Ours(2));
    // Exact up to the last version there can be, and a value that is no ring does not stop anyone.
    let last = RingVersion::MAX.get();
    assert_eq!(publish(&mut new, 2, last), Published::Ours);
    assert_eq!(publish(&mut new, 2, last), Published::Stale(last.to_string()));
    let _: () = redis::cmd("SET").arg("{rtc}:ring-version").arg("nonsense").query(&mut redis.connect()).unwrap();
    assert_eq!(publish(&mut new, 2, 7), Published::Ours);
}

#[test]
fn versions_go_on_above_what_kafka_and_redis_know() {
    let Some(redis) = RedisServer::start("versions_go_on_above_what_kafka_and_redis_know") else { return };
    let (_, json) = update(41);
    let _: () = redis::cmd("SET").arg("{rtc}:ring-version").arg(json).query(&mut redis.connect()).unwrap();
    let _fleet = Fleet::start(&redis, &["a", "b"]);
    let balancer = Balancer::start("b1", &redis, None, &[]);
    assert_eq!(balancer.await_ring(&["a", "b"]), 42);
    // Redis loses everything: the ring is written again, as it was.
    let _: () = redis::cmd("DEL").arg("{rtc}:ring-version").query(&mut redis.connect()).unwrap();
    let again = eventually("the ring is back", || in_redis(&redis));
    assert_eq!(again.version.version.get(), 42);
}

/// Waits until the balancer shows a node so. A ring is served as soon as it is published, what is known of the nodes a
/// moment later.
#[track_caller]
fn await_state(balancer: &Balancer, node: &str, state: &str) {
    eventually(state, || {
        let all = balancer.get("/api/v1/nodes");
        let found = all["nodes"].as_array()?.iter().find(|found| found["nodeId"].as_str() == Some(node))?;
        (found["state"].as_str() == Some(state)).then_some(())
    });
}

#[test]
fn a_drained_node_leaves_the_ring_until_it_is_started_anew() {
    let Some(redis) = RedisServer::start("a_drained_node_leaves_the_ring_until_it_is_started_anew") else { return };
    let broker = Broker::start();
    let drains = broker.follow("rtc.control.drain");
    let fleet = Fleet::start(&redis, &["a", "b", "c"]);
    let balancer = Balancer::start("b1", &redis, Some(&broker.brokers), &[]);
    balancer.await_ring(&["a", "b", "c"]);
    await_state(&balancer, "b", "up");
    let path = "/api/v1/nodes/b/drain";
    for (path, headers, body, status) in [
        (path, "", "", 415),
        (path, JSON, "{", 400),
        (path, JSON, r#"{"windowMs":-1}"#, 400),
        (path, JSON, r#"{"windowMs":3600001}"#, 400),
        (path, JSON, r#"{"maxDisconnects":-1}"#, 400),
        (path, JSON, r#"{"maxDisconnects":9007199254740992}"#, 400),
        (path, JSON, r#"{"maxDisconnect":7}"#, 400),
        (path, JSON, &*"[".repeat(4000), 413),
        ("/api/v1/nodes/z/drain", JSON, "", 404),
        ("/api/v1/nodes/a%20b/drain", JSON, "", 400),
        ("/api/v1/ring", JSON, "", 405),
    ] {
        let answer = post(balancer.listen, path, headers, body);
        assert_eq!(answer.status, status, "{path} {body:.20}: {answer:?}");
    }
    assert_eq!(get(balancer.listen, path).status, 405);
    let answer = post(balancer.listen, path, JSON, r#"{"windowMs":30000,"maxDisconnects":7,"reason":"new kernel"}"#);
    assert_eq!(answer.status, 202, "{answer:?}");
    let drain = next(&drains, |json| DrainRequest::decode(json).ok().filter(|drain| drain.reason == "new kernel"));
    assert_eq!((drain.node_id.as_str(), drain.max_disconnects, drain.deadline - drain.ts), ("b", 7, 30_000));
    assert_eq!(drain.incarnation, Some(1));
    balancer.await_ring(&["a", "c"]);
    await_state(&balancer, "b", "draining");
    fleet.restart("b");
    balancer.await_ring(&["a", "b", "c"]);
    await_state(&balancer, "b", "up");
    // One that names nothing is held to the configuration, and means the life that there is now.
    assert_eq!(post(balancer.listen, path, JSON, "").status, 202);
    let drain = next(&drains, |json| DrainRequest::decode(json).ok());
    assert_eq!((drain.max_disconnects, drain.deadline - drain.ts, drain.incarnation), (200, 60_000, Some(2)));
}

#[test]
fn with_redis_away_look_ups_go_on() {
    let Some(redis) = RedisServer::start("with_redis_away_look_ups_go_on") else { return };
    let Some(child) = redis.child() else { return };
    let _fleet = Fleet::start(&redis, &["a", "b", "c"]);
    let balancer = Balancer::start("b1", &redis, None, &[]);
    let version = balancer.await_ring(&["a", "b", "c"]);
    // From here on it knows the nodes' addresses, too.
    for node in ["a", "b", "c"] {
        await_state(&balancer, node, "up");
    }
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    eventually("it notices", || (get(balancer.listen, "/readyz").status == 503).then_some(()));
    let home = balancer.get("/api/v1/resolve?clientId=a");
    assert_eq!(home["ringVersion"].as_u64(), Some(version), "{home:?}, nodes {:?}", balancer.get("/api/v1/nodes"));
    assert_eq!(get(balancer.listen, "/livez").status, 200);
    balancer.await_log("redis does not answer");
    eventually("it leads no more", || (!balancer.is_leader()).then_some(()));
    rustix::process::kill_process(pid, Signal::CONT).unwrap();
    eventually("it goes on", || (get(balancer.listen, "/readyz").status == 200).then_some(()));
    // The beats that were missing are no reason to take a node out.
    assert_eq!(balancer.ring().1, ["a", "b", "c"]);
}

#[test]
fn requests_that_promise_more_than_they_bring_hold_nobody_up() {
    let Some(redis) = RedisServer::start("requests_that_promise_more_than_they_bring_hold_nobody_up") else { return };
    let balancer = Balancer::start("b1", &redis, None, &[]);
    for promised in [u64::MAX, u64::MAX / 2, 1 << 40, 4097] {
        let request = format!("GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: {promised}\r\n\r\n");
        assert_eq!(try_request(balancer.listen, &request).unwrap().status, 413, "{promised}");
        assert_eq!(get(balancer.listen, "/livez").status, 200, "after {promised}");
    }

    let held = |text: &str| {
        let mut stream = TcpStream::connect(balancer.listen).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let slow: Vec<_> =
        (0..64).map(|_| held("POST /api/v1/nodes/a/drain HTTP/1.1\r\nContent-Length: 100\r\n\r\n")).collect();
    assert_eq!(get(balancer.listen, "/livez").status, 200);

    // More than there is room for: whoever comes now is told so at once.
    let many: Vec<_> = (0..600).map(|_| held("G")).collect();
    let refused = eventually("it is full", || try_get(balancer.listen, "/livez").filter(|answer| answer.status == 503));
    assert!(refused.head.contains("\r\nRetry-After: 1\r\n"), "{refused:?}");
    drop((slow, many));
    eventually("there is room again", || try_get(balancer.listen, "/livez").filter(|answer| answer.status == 200));
    let metrics = get(balancer.listen, "/metrics").body;
    assert!(metrics.contains("rtc_lb_http_refused_total{cause=\"body_too_large\"} 4\n"), "{metrics}");
    assert!(metrics.contains("rtc_lb_http_refused_total{cause=\"connections\"}"), "{metrics}");
}

#[test]
fn while_all_nodes_are_held_for_missing_beats_look_ups_go_on() {
    let Some(redis) = RedisServer::start("while_all_nodes_are_held_for_missing_beats_look_ups_go_on") else { return };
    let Some(child) = redis.child() else { return };
    let fleet = Fleet::start(&redis, &["a", "b", "c"]);
    let balancer = Balancer::start("b1", &redis, None, &[]);
    let version = balancer.await_ring(&["a", "b", "c"]);
    // From here on nobody beats, and for a while Redis does not answer either.
    drop(fleet);
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    eventually("it leads no more", || (!balancer.is_leader()).then_some(()));
    rustix::process::kill_process(pid, Signal::CONT).unwrap();
    let are_held = || balancer.get("/api/v1/nodes")["nodes"][0]["state"].as_str() == Some("held");
    let home = eventually("they are held", || {
        let home = are_held().then(|| balancer.get("/api/v1/resolve?clientId=a"))?;
        are_held().then_some(home)
    });
    assert_eq!(home["ringVersion"].as_u64(), Some(version), "{home:?}");
}

/// Set where this test has started itself, to be killed.
const HELD: &str = "RTC_TEST_HOLDS_A_SERVER";

#[test]
fn a_server_ends_with_the_test_that_started_it_however_that_ends() {
    const TEST: &str = "a_server_ends_with_the_test_that_started_it_however_that_ends";
    let Some(redis) = RedisServer::start(TEST) else { return };
    if std::env::var_os(HELD).is_some() {
        println!("\n{HELD} {}", redis.url);
        // Until it is killed.
        loop {
            std::thread::park();
        }
    }
    if redis.child().is_none() {
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", TEST, "--nocapture"]).env(HELD, "yes").stdout(Stdio::piped());
    let mut test = Process::spawn(&mut command).unwrap();
    let mut lines = BufReader::new(test.child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let url = lines.find_map(|line| line.strip_prefix(HELD).map(|url| url.trim().to_owned())).unwrap();
    let answers = || redis::Client::open(&*url).unwrap().get_connection().is_ok();
    assert!(answers());
    test.signal(Signal::KILL);
    eventually("its server has ended", || (!answers()).then_some(()));
}
