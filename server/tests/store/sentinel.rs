//! The store behind a Sentinel: it goes on with the replica that was promoted, and waits for no sentinel for ever.

use std::net::TcpListener;
use std::sync::mpsc::channel;
use std::time::Duration;

use rtc_server::store::redis::link::Address;
use rtc_server::store::request::StoreAnswer;

use crate::redis_server::{Disk, RedisServer, Role};
use crate::running::{PATIENCE, Running, append, client, eventually, live, message};

const TTL_MS: u64 = 600_000;
const MESSAGES: u64 = 400;

struct Watched {
    primary: RedisServer,
    replica: RedisServer,
    sentinel: RedisServer,
}

impl Watched {
    /// A primary and a replica that follows it, and a sentinel that knows both.
    fn start() -> Option<Self> {
        let primary = RedisServer::start(Disk::Synced)?;
        let replica = RedisServer::start_as(Role::Replica(primary.port()), Disk::Synced)?;
        eventually("the replica follows", || {
            let info: String = redis::cmd("INFO").arg("replication").query(&mut open(&replica)).unwrap_or_default();
            info.contains("master_link_status:up")
        });
        let sentinel = RedisServer::start_as(Role::Sentinel(primary.port()), Disk::Lazy)?;
        // One that finds its machine to have stood still does nothing for half a minute, which is not what is tested here.
        // Before 7.0 there is no such word.
        let _: Result<redis::Value, _> =
            redis::cmd("SENTINEL").arg(&["DEBUG", "TILT-PERIOD", "2000"]).query(&mut open(&sentinel));
        eventually("the sentinel knows both", || {
            let info: String = redis::cmd("INFO").arg("sentinel").query(&mut open(&sentinel)).unwrap_or_default();
            info.contains("status=ok") && info.contains("slaves=1")
        });
        Some(Self { primary, replica, sentinel })
    }

    fn url(&self) -> String {
        format!("redis+sentinel://127.0.0.1:1,127.0.0.1:{}/main", self.sentinel.port())
    }
}

fn open(server: &RedisServer) -> redis::Connection {
    redis::Client::open(server.url()).unwrap().get_connection().unwrap()
}

fn is_primary(server: &RedisServer) -> bool {
    let info: String = redis::cmd("INFO").arg("replication").query(&mut open(server)).unwrap_or_default();
    info.contains("role:master")
}

/// Half of the messages are kept and copied, then `fail_over` acts, then the others come.
fn keeps_all(watched: &mut Watched, name: &str, fail_over: impl FnOnce(&mut Watched)) {
    let mut running = Running::start(&watched.url());
    let who = client(name);
    let half = MESSAGES / 2;
    for at in 0..half {
        running.post(append(&who, vec![message(at, TTL_MS)]));
    }
    for _ in 0..half {
        let (_, answer) = running.answer();
        assert!(matches!(answer, StoreAnswer::Appended { .. }), "{answer:?}");
    }
    // Redis answers before its replica has a copy: what is confirmed in the moment before the end may be lost. Not this.
    eventually("the replica has all", || {
        let length: u64 =
            redis::cmd("XLEN").arg(format!("buf:{{{}}}", who.as_str())).query(&mut open(&watched.replica)).unwrap();
        length == half
    });
    fail_over(watched);
    for at in half..MESSAGES {
        running.post(append(&who, vec![message(at, TTL_MS)]));
    }
    for _ in half..MESSAGES {
        let (_, answer) = running.answer();
        assert!(matches!(answer, StoreAnswer::Appended { .. }), "{answer:?}");
    }
    let kept: Vec<u64> = running.kept(&who).iter().map(|kept| kept.identity).collect();
    assert_eq!(kept, (0..MESSAGES).collect::<Vec<_>>(), "kept once, in order");
    live(&mut running, &client(&format!("{name}-after")), 7);
    assert!(is_primary(&watched.replica), "the replica was not promoted");
    assert_eq!(running.counters.refused.value(), 0);
}

#[test]
fn the_store_goes_on_with_the_replica_when_the_primary_is_killed() {
    let Some(mut watched) = Watched::start() else { return };
    keeps_all(&mut watched, "sentinel-kill", |watched| watched.primary.kill());
}

#[test]
fn the_store_leaves_a_primary_that_became_a_replica() {
    let Some(mut watched) = Watched::start() else { return };
    keeps_all(&mut watched, "sentinel-demoted", |watched| {
        // As an operator may do: connections stay open, and get READONLY.
        let port = watched.replica.port().to_string();
        redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec(&mut open(&watched.replica)).unwrap();
        redis::cmd("REPLICAOF").arg("127.0.0.1").arg(&port).exec(&mut open(&watched.primary)).unwrap();
        let mut sentinel = open(&watched.sentinel);
        redis::cmd("SENTINEL").arg("REMOVE").arg("main").exec(&mut sentinel).unwrap();
        redis::cmd("SENTINEL").arg(&["MONITOR", "main", "127.0.0.1", &port, "1"]).exec(&mut sentinel).unwrap();
    });
}

/// Takes connections, and never answers.
struct BlackHole(TcpListener);

impl BlackHole {
    fn open() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn address(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }
}

#[test]
fn whoever_never_answers_is_given_up() {
    let (hole, other) = (BlackHole::open(), BlackHole::open());
    for url in [
        format!("redis+sentinel://{},{}/main", hole.address(), other.address()),
        format!("redis://{}", hole.address()),
        format!("redis-cluster://{}", hole.address()),
    ] {
        let (sender, ended) = channel();
        let mut address = Address::parse(&url).unwrap();
        // On a thread that may be left behind: the test must end where it does not.
        std::thread::spawn(move || {
            sender.send(address.connect(Duration::from_secs(1)).err().map(|err| err.to_string()))
        });
        let result = ended.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{url} is waited for without end"));
        assert!(result.is_some(), "{url}: nobody has answered");
    }
}

#[test]
fn a_sentinel_that_never_answers_does_not_hide_one_that_does() {
    let Some(watched) = Watched::start() else { return };
    let hole = BlackHole::open();
    let url = format!("redis+sentinel://{},127.0.0.1:{}/main", hole.address(), watched.sentinel.port());
    let mut running = Running::start(&url);
    live(&mut running, &client("black-hole"), 7);
    assert_eq!(running.counters.refused.value(), 0);
    // Whoever does not know the name is no better.
    let unknown = url.replace("/main", "/another");
    let error = Address::parse(&unknown).unwrap().connect(Duration::from_secs(1)).err().unwrap();
    assert!(error.to_string().contains("does not know the master"), "{error}");
}
