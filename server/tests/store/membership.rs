//! Heartbeats, who is alive, and leases.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use ring::control::Heartbeat;
use ring::{NodeId, NodeWeights, RingVersion};
use rtc_server::load::Load;
use rtc_server::store::redis::membership::{
    Claimed, Event, Figures, Identity, Members, claim_node_id, new_incarnation,
};
use rtc_server::store::redis::{StoreCounters, keys};

use crate::redis_server::{Disk, RedisServer};
use crate::running::eventually;

pub struct Node {
    members: Members,
    events: Receiver<Event>,
    counters: Arc<StoreCounters>,
    pub incarnation: u64,
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub fn start(url: &str, name: &str) -> Node {
    let incarnation = match claim_node_id(url, &id(name), new_incarnation()).unwrap() {
        Claimed::Yes { incarnation } => incarnation,
        other => panic!("{other:?}"),
    };
    start_as(url, name, incarnation)
}

fn start_as(url: &str, name: &str, incarnation: u64) -> Node {
    let identity =
        Identity { node: id(name), incarnation, url: Some(format!("ws://{name}:1")), zone: Some("z".to_owned()) };
    let (sender, events) = channel();
    let counters = Arc::new(StoreCounters::default());
    let load = Load { cpu: 0.25, mem: 0.5 };
    let figures = move || Figures {
        active_conn: 3,
        load,
        mps: 1.5,
        ring_version: RingVersion::new(7).ok(),
        ..Figures::default()
    };
    let report = move |event| drop(sender.send(event));
    let members = Members::start(url, identity, Arc::clone(&counters), figures, report).unwrap();
    Node { members, events, counters, incarnation }
}

impl Node {
    pub fn sees(&self, name: &str, incarnation: u64) -> bool {
        self.members.membership().load().is_alive(&id(name), incarnation)
    }

    #[track_caller]
    pub fn event(&self) -> Event {
        self.events.recv_timeout(Duration::from_secs(20)).expect("no event")
    }
}

fn tell(server: &RedisServer, args: &[&str]) -> redis::Value {
    let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    redis::cmd(args[0]).arg(&args[1..]).query(&mut connection).unwrap()
}

fn signal(pid: u32, name: &str) {
    let status = std::process::Command::new("kill").args([name, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn nodes_see_each_other_come_and_go() {
    let Some(server) = RedisServer::start(Disk::Lazy) else { return };
    let a = start(&server.url(), "a");
    assert_eq!(a.event(), Event::Joined);
    let b = start(&server.url(), "b");
    eventually("both see both", || {
        [&a, &b].iter().all(|node| node.sees("a", a.incarnation) && node.sees("b", b.incarnation))
    });
    let membership = b.members.membership().load();
    let member = membership.member(&id("a")).unwrap();
    assert_eq!((member.url.as_deref(), member.zone.as_deref()), (Some("ws://a:1"), Some("z")));
    assert_eq!(member.ring_version, RingVersion::new(7).ok());
    let redis::Value::BulkString(json) = tell(&server, &["GET", "{rtc}:node:a"]) else { panic!("no heartbeat") };
    let heartbeat = Heartbeat::decode(&json).unwrap();
    assert_eq!(heartbeat.active_conn, 3);
    assert_eq!((heartbeat.cpu, heartbeat.mem), (0.25, 0.5));

    // In good order: its next life need not wait.
    let former = b.incarnation;
    drop(b);
    let started = Instant::now();
    let b = start(&server.url(), "b");
    assert!(started.elapsed() < Duration::from_secs(3), "it waited for itself");
    assert!(b.incarnation > former);
    eventually("its next life is seen", || a.sees("b", b.incarnation) && !a.sees("b", former));
    assert_eq!(a.counters.malformed_members.value(), 0);
}

#[test]
fn an_id_that_is_in_use_is_not_given_twice() {
    let Some(server) = RedisServer::start(Disk::Lazy) else { return };
    let node = start(&server.url(), "a");
    assert!(matches!(claim_node_id(&server.url(), &id("a"), new_incarnation()), Ok(Claimed::InUse)));
    // One that comes up while the store is away hears of it later.
    let second = start_as(&server.url(), "a", new_incarnation());
    assert_eq!(second.event(), Event::IdInUse);
    assert!(!second.members.is_joined());
    drop(second);
    // A life that was taken for dead and has been replaced.
    tell(&server, &["SET", &keys::life(&id("a")), &(node.incarnation + 1).to_string()]);
    assert_eq!(node.event(), Event::Joined);
    assert_eq!(node.event(), Event::IdInUse);
    assert!(matches!(claim_node_id("redis://127.0.0.1:1", &id("a"), 1), Ok(Claimed::Unknown(_))));
}

#[test]
fn an_outage_of_the_store_kills_nobody_and_the_silent_hear_of_it() {
    let Some(server) = RedisServer::start(Disk::Lazy) else { return };
    let (a, b) = (start(&server.url(), "a"), start(&server.url(), "b"));
    eventually("both see both", || a.sees("b", b.incarnation) && b.sees("a", a.incarnation));
    assert_eq!(a.event(), Event::Joined);
    signal(server.pid(), "-STOP");
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        assert!(a.sees("b", b.incarnation), "declared dead while the store was away");
        std::thread::sleep(Duration::from_millis(20));
    }
    signal(server.pid(), "-CONT");
    let Event::Silent { silent_ms } = a.event() else { panic!("not told") };
    assert!(silent_ms > 6000);
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        assert!(a.sees("b", b.incarnation), "declared dead when the store came back");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn heartbeats_that_make_no_sense_are_refused_and_counted() {
    let Some(server) = RedisServer::start(Disk::Lazy) else { return };
    let far = "{rtc}:heartbeats";
    let node = start(&server.url(), "a");
    let redis::Value::Array(time) = tell(&server, &["TIME"]) else { panic!("no time") };
    let redis::Value::BulkString(seconds) = &time[0] else { panic!("no time") };
    let now = format!("{}000", String::from_utf8_lossy(seconds));
    let large = format!("{{\"nodeId\":\"{}\"}}", "x".repeat(10 << 20));
    for (at, json) in ["", "x", "[[[[[[[[[[[[[[[[[[[[", "{}", "{\"nodeId\":7}", &large].iter().enumerate() {
        let name = format!("bad{at}");
        tell(&server, &["ZADD", far, &now, &name]);
        tell(&server, &["SET", &format!("{{rtc}}:node:{name}"), json]);
    }
    tell(&server, &["ZADD", far, &now, "no node!"]);
    tell(&server, &["SET", "{rtc}:node:no node!", "{}"]);
    tell(&server, &["ZADD", far, &now, "list"]);
    tell(&server, &["RPUSH", "{rtc}:node:list", "x"]);
    eventually("they are counted", || node.counters.malformed_members.value() >= 7);
    assert!(node.sees("a", node.incarnation));
    assert_eq!(node.members.membership().load().len(), 1);
    // The whole set is somebody else's.
    tell(&server, &["SET", far, "x"]);
    let beats = node.counters.beats.value();
    eventually("it goes on", || node.counters.beats.value() > beats + 1);
    assert!(node.sees("a", node.incarnation));
}

#[test]
fn the_last_ring_is_read_at_the_start() {
    let Some(server) = RedisServer::start(Disk::Lazy) else { return };
    let weights = NodeWeights::new([(id("a"), ring::Weight::MIN)]).unwrap();
    let update = ring::control::RingUpdate::new(RingVersion::new(3).unwrap(), weights, 0, "test".into(), 1);
    let json = String::from_utf8(update.encode().unwrap()).unwrap();
    tell(&server, &["SET", keys::RING_VERSION, &json]);
    assert_eq!(start(&server.url(), "a").event(), Event::Ring(json.into_bytes()));
    // Too long or of another type: it is for the reader to refuse, or counted here.
    tell(&server, &["SET", keys::RING_VERSION, &"x".repeat(10 << 20)]);
    let Event::Ring(bytes) = start(&server.url(), "b").event() else { panic!("no ring") };
    assert_eq!(bytes.len(), ring::control::RING_UPDATE_BYTES_MAX + 1);
    tell(&server, &["DEL", keys::RING_VERSION]);
    tell(&server, &["RPUSH", keys::RING_VERSION, "x"]);
    let node = start(&server.url(), "c");
    assert_eq!(node.event(), Event::Joined);
    assert_eq!(node.counters.malformed_members.value(), 1);
}

#[test]
fn a_lease_has_one_holder_and_its_token_rises() {
    let Some(server) = RedisServer::start(Disk::Lazy) else { return };
    let (a, b) = (start(&server.url(), "a"), start(&server.url(), "b"));
    let key = rim::lease::topic_key("a");
    let of_a = a.members.lease(key.clone()).unwrap();
    eventually("a holds it", || of_a.token().is_some());
    let of_b = b.members.lease(key.clone()).unwrap();
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert!(of_a.token().is_some() && of_b.token().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    let first = of_a.token().unwrap();
    drop(of_a);
    eventually("b holds it", || of_b.token().is_some());
    assert!(of_b.token().unwrap() > first);
    // A value that is no lease is in nobody's way.
    drop(of_b);
    let redis::Value::Int(_) = tell(&server, &["DEL", &key]) else { panic!("no number") };
    tell(&server, &["RPUSH", &key, "x"]);
    let of_a = a.members.lease(key).unwrap();
    eventually("a holds it again", || of_a.token().is_some_and(|token| token > first));
}

#[test]
fn a_leases_token_rises_though_the_store_has_lost_what_it_counted() {
    let Some(server) = RedisServer::start(Disk::Lazy) else { return };
    let node = start(&server.url(), "a");
    let key = rim::lease::topic_key("a");
    let lease = node.members.lease(key.clone()).unwrap();
    eventually("it is held", || lease.token().is_some());
    let mut last = lease.token().unwrap();
    let counter = format!("{key}:token");
    for loss in
        [&["FLUSHALL"][..], &["SET", &counter, "1"], &["SET", &counter, "x"], &["SET", &counter, "9223372036854775806"]]
    {
        tell(&server, loss);
        tell(&server, &["DEL", &key]);
        eventually("it is held anew", || lease.token().is_some_and(|token| token > last));
        last = lease.token().unwrap();
    }
    assert!(last < 1 << 53, "{last}");
}

#[test]
fn a_lease_ends_by_its_holders_own_clock_when_the_store_is_away() {
    let Some(mut server) = RedisServer::start(Disk::Lazy) else { return };
    let node = start(&server.url(), "a");
    let lease = node.members.lease(keys::LEADER.to_owned()).unwrap();
    eventually("it is held", || lease.token().is_some());
    server.kill();
    assert!(lease.token().is_some(), "it has time left");
    eventually("its time is up", || lease.token().is_none());
    server.restart();
    eventually("it is held again", || lease.token().is_some());
}
