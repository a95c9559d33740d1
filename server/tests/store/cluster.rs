//! The store on a Redis Cluster: three servers, each with a third of the slots; in one test each with a replica.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use redis::{Connection, Value};
use rtc_server::store::redis::keys;
use rtc_server::store::redis::membership::Event;
use rtc_server::store::request::StoreAnswer;

use crate::membership;
use crate::redis_server::{Disk, RedisServer, Role};
use crate::running::{Running, append, client, eventually, live, message};

const SLOTS: u16 = 16_384;
const TTL_MS: u64 = 600_000;

struct Cluster {
    /// The primaries.
    servers: Vec<RedisServer>,
    /// One of each, in the same order, or none at all.
    replicas: Vec<RedisServer>,
}

impl Cluster {
    /// Three servers that have met and serve all slots.
    fn start() -> Option<Self> {
        let servers: Option<Vec<_>> = (0..3).map(|_| RedisServer::start_as(Role::OfCluster, Disk::Synced)).collect();
        let cluster = Self { servers: servers?, replicas: Vec::new() };
        let first = cluster.servers[0].port().to_string();
        for (at, server) in (0..).zip(&cluster.servers) {
            let (from, to) = (at * SLOTS / 3, (at + 1) * SLOTS / 3 - 1);
            let mut connection = open(server);
            ask(&mut connection, &["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]);
            ask(&mut connection, &["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]);
            ask(&mut connection, &["CLUSTER", "MEET", "127.0.0.1", &first]);
        }
        eventually("the cluster is formed", || {
            cluster.servers.iter().all(|server| {
                let mut connection = open(server);
                let info = text(ask(&mut connection, &["CLUSTER", "INFO"]));
                info.contains("cluster_state:ok") && info.contains("cluster_size:3")
            })
        });
        // From here on none is taken for dead because the machine stands still for a moment.
        cluster.set_timeout_ms(60_000);
        Some(cluster)
    }

    /// The same with a replica of each, which has a copy of it.
    fn start_with_replicas() -> Option<Self> {
        let mut cluster = Self::start()?;
        let first = cluster.servers[0].port().to_string();
        for _ in &cluster.servers {
            let replica = RedisServer::start_as(Role::OfCluster, Disk::Synced)?;
            let mut connection = open(&replica);
            ask(&mut connection, &["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
            ask(&mut connection, &["CLUSTER", "MEET", "127.0.0.1", &first]);
            cluster.replicas.push(replica);
        }
        for (primary, replica) in cluster.servers.iter().zip(&cluster.replicas) {
            let id = text(ask(&mut open(primary), &["CLUSTER", "MYID"]));
            // Not before it has heard of its primary, and that it is one.
            eventually("it is a replica", || {
                let asked: Result<Value, _> = redis::cmd("CLUSTER").arg("REPLICATE").arg(&id).query(&mut open(replica));
                asked.is_ok()
            });
        }
        for replica in &cluster.replicas {
            eventually("it has a copy", || {
                text(ask(&mut open(replica), &["INFO", "replication"])).contains("master_link_status:up")
            });
        }
        eventually("everybody knows everybody", || {
            cluster.all().all(|server| {
                let nodes = text(ask(&mut open(server), &["CLUSTER", "NODES"]));
                nodes.matches(" connected").count() == 6 && nodes.matches("slave").count() == 3
            })
        });
        Some(cluster)
    }

    fn all(&self) -> impl Iterator<Item = &RedisServer> {
        self.servers.iter().chain(&self.replicas)
    }

    /// How long a server may be silent before the others take it for dead.
    fn set_timeout_ms(&self, timeout_ms: u64) {
        for server in self.all() {
            ask(&mut open(server), &["CONFIG", "SET", "cluster-node-timeout", &timeout_ms.to_string()]);
        }
    }

    /// One of them is enough to find the others, while it lives.
    fn url(&self) -> String {
        format!("redis-cluster://127.0.0.1:{}", self.servers[0].port())
    }
}

fn open(server: &RedisServer) -> Connection {
    redis::Client::open(server.url()).unwrap().get_connection().unwrap()
}

fn ask(connection: &mut Connection, args: &[&str]) -> Value {
    redis::cmd(args[0]).arg(&args[1..]).query(connection).unwrap()
}

fn text(value: Value) -> String {
    redis::from_redis_value(value).unwrap()
}

#[test]
fn clients_live_on_all_servers_of_a_cluster() {
    let Some(cluster) = Cluster::start() else { return };
    let mut running = Running::start(&cluster.url());
    for at in 0..40 {
        live(&mut running, &client(&format!("cluster-{at}")), 7);
    }
    for server in &cluster.servers {
        let size: u64 = redis::cmd("DBSIZE").query(&mut open(server)).unwrap();
        assert!(size > 0, "a server has none of them");
    }
    assert_eq!(running.counters.refused.value(), 0);
    assert_eq!(running.counters.retried.value(), 0);
    assert_eq!(running.handle.weakness(), None);
}

#[test]
fn what_is_too_old_is_swept_and_one_weak_server_of_a_cluster_is_told_about() {
    let Some(cluster) = Cluster::start() else { return };
    ask(&mut open(&cluster.servers[2]), &["CONFIG", "SET", "appendfsync", "no"]);
    let mut running = Running::start(&cluster.url());
    for at in 0..6 {
        running.ask(append(&client(&format!("cluster-age-{at}")), vec![message(1, 200), message(2, TTL_MS)]));
    }
    let counters = Arc::clone(&running.counters);
    eventually("all are swept", || counters.expired_swept.value() == 6);
    let weakness = running.handle.weakness().expect("one has appendfsync `no`");
    assert!(weakness.contains("appendfsync is `no`"), "{weakness}");
}

#[test]
fn nodes_see_each_other_and_the_ring_in_a_cluster() {
    let Some(cluster) = Cluster::start() else { return };
    let a = membership::start(&cluster.url(), "a");
    assert_eq!(a.event(), Event::Joined);
    let b = membership::start(&cluster.url(), "b");
    eventually("both see both", || {
        [&a, &b].iter().all(|node| node.sees("a", a.incarnation) && node.sees("b", b.incarnation))
    });
    // One that comes later starts from the ring that is noted.
    let mut writer =
        redis::cluster::ClusterClient::new(vec![cluster.servers[1].url()]).unwrap().get_connection().unwrap();
    redis::cmd("SET").arg(keys::RING_VERSION).arg("a ring").exec(&mut writer).unwrap();
    let c = membership::start(&cluster.url(), "c");
    let events = [c.event(), c.event()];
    assert!(events.contains(&Event::Ring(b"a ring".to_vec())), "{events:?}");
}

#[test]
fn nothing_is_lost_or_reordered_while_a_slot_moves_and_scripts_are_forgotten() {
    const MESSAGES: u64 = 1200;
    const CLIENTS: u64 = 10;
    let Some(cluster) = Cluster::start() else { return };
    let mut running = Running::start(&cluster.url());
    let clients: Vec<_> = (0..CLIENTS).map(|at| client(&format!("moving-{at}"))).collect();
    let mut asked: HashMap<u64, u64> = HashMap::new();
    let mut answered = vec![Vec::new(); clients.len()];
    let mut take = |running: &mut Running, asked: &mut HashMap<u64, u64>| {
        let (ticket, answer) = running.answer();
        assert!(matches!(answer, StoreAnswer::Appended { .. }), "{answer:?}");
        let at = asked.remove(&ticket.0).expect("answered once");
        answered[usize::try_from(at % CLIENTS).unwrap()].push(at);
    };
    for at in 0..MESSAGES {
        let who = &clients[usize::try_from(at % CLIENTS).unwrap()];
        let ticket = running.post(append(who, vec![message(at, TTL_MS)]));
        asked.insert(ticket.0, at);
        if at == MESSAGES / 3 {
            while asked.len() > 50 {
                take(&mut running, &mut asked);
            }
            cluster.servers.iter().for_each(|server| drop(ask(&mut open(server), &["SCRIPT", "FLUSH"])));
        }
        if at == MESSAGES * 2 / 3 {
            while asked.len() > 50 {
                take(&mut running, &mut asked);
            }
            // One only: several in a row without a pause for the servers' gossip leave them at odds over who has which.
            move_slot(&cluster, &format!("buf:{{{}}}", clients[0].as_str()));
        }
    }
    while !asked.is_empty() {
        take(&mut running, &mut asked);
    }
    for (at, who) in (0..).zip(&clients) {
        let expected: Vec<u64> = (0..MESSAGES).filter(|message| message % CLIENTS == at).collect();
        assert_eq!(answered[usize::try_from(at).unwrap()], expected, "answered in order");
        let kept: Vec<u64> = running.kept(who).iter().map(|kept| kept.identity).collect();
        assert_eq!(kept, expected, "kept once, in order");
    }
    assert!(running.counters.retried.value() > 0, "nothing was disturbed");
    assert_eq!(running.counters.refused.value(), 0);
}

#[test]
fn what_was_accepted_is_still_there_when_a_primary_is_killed_and_its_replica_takes_over() {
    const MESSAGES: u64 = 1600;
    const CLIENTS: u64 = 40;
    // Longer than a machine stands still: what is confirmed in the moment before a fail-over may be lost.
    const TIMEOUT_MS: u64 = 4_000;
    let started = Instant::now();
    let Some(mut cluster) = Cluster::start_with_replicas() else { return };
    println!("six servers are one cluster after {:.1?}", started.elapsed());
    let mut running = Running::start(&cluster.url());
    let clients: Vec<_> = (0..CLIENTS).map(|at| client(&format!("failing-{at}"))).collect();
    let post = |running: &mut Running, at: u64| {
        let who = &clients[usize::try_from(at % CLIENTS).unwrap()];
        running.post(append(who, vec![message(at, TTL_MS)]));
    };
    let await_answers = |running: &mut Running, count: u64| {
        for _ in 0..count {
            let (_, answer) = running.answer();
            assert!(matches!(answer, StoreAnswer::Appended { .. }), "{answer:?}");
        }
    };
    let half = MESSAGES / 2;
    (0..half).for_each(|at| post(&mut running, at));
    await_answers(&mut running, half);
    // A primary answers before its replica has a copy.
    for (primary, replica) in cluster.servers.iter().zip(&cluster.replicas) {
        eventually("the replica has all", || {
            let sizes =
                [primary, replica].map(|server| -> u64 { redis::cmd("DBSIZE").query(&mut open(server)).unwrap() });
            let offset = |server: &RedisServer, field: &str| -> u64 {
                let info = text(ask(&mut open(server), &["INFO", "replication"]));
                let value = info.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_else(|| panic!("{info}"));
                value.trim().parse().unwrap()
            };
            sizes[0] == sizes[1] && offset(primary, "master_repl_offset:") <= offset(replica, "slave_repl_offset:")
        });
    }
    cluster.set_timeout_ms(TIMEOUT_MS);
    // Not the one that the URL names.
    let killed = Instant::now();
    cluster.servers[1].kill();
    (half..MESSAGES).for_each(|at| post(&mut running, at));
    await_answers(&mut running, MESSAGES - half);
    println!("all are kept {:.1?} after a primary was killed", killed.elapsed());
    let role = text(ask(&mut open(&cluster.replicas[1]), &["INFO", "replication"]));
    assert!(role.contains("role:master"), "{role}");
    for (at, who) in (0..).zip(&clients) {
        let expected: Vec<u64> = (0..MESSAGES).filter(|message| message % CLIENTS == at).collect();
        let kept: Vec<u64> = running.kept(who).iter().map(|kept| kept.identity).collect();
        assert_eq!(kept, expected, "kept once, in order");
    }
    assert!(running.counters.retried.value() > 0, "nothing was disturbed");
    assert_eq!(running.counters.refused.value(), 0);
}

/// Moves the slot of `key` with all that is in it to another server.
fn move_slot(cluster: &Cluster, key: &str) {
    let mut connections: Vec<Connection> = cluster.servers.iter().map(open).collect();
    let ids: Vec<String> = connections.iter_mut().map(|link| text(ask(link, &["CLUSTER", "MYID"]))).collect();
    let slot: u16 = redis::from_redis_value(ask(&mut connections[0], &["CLUSTER", "KEYSLOT", key])).unwrap();
    let source = (0..3).find(|at| is_served_by(&mut connections[*at], slot)).expect("a slot that nobody serves");
    let target = (source + 1) % 3;
    let slot = slot.to_string();
    ask(&mut connections[target], &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &ids[source]]);
    ask(&mut connections[source], &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &ids[target]]);
    let port = cluster.servers[target].port().to_string();
    loop {
        let keys: Vec<String> =
            redis::from_redis_value(ask(&mut connections[source], &["CLUSTER", "GETKEYSINSLOT", &slot, "100"]))
                .unwrap();
        if keys.is_empty() {
            break;
        }
        let mut migrate = redis::cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(&port).arg("").arg(0).arg(5000).arg("KEYS").arg(&keys);
        let _: Value = migrate.query(&mut connections[source]).unwrap();
    }
    for at in [target, source, (source + 2) % 3] {
        ask(&mut connections[at], &["CLUSTER", "SETSLOT", &slot, "NODE", &ids[target]]);
    }
}

/// Whether the server behind `connection` has the slot, by its own word.
fn is_served_by(connection: &mut Connection, slot: u16) -> bool {
    let nodes = text(ask(connection, &["CLUSTER", "NODES"]));
    let own = nodes.lines().find(|line| line.contains("myself")).unwrap_or_default();
    own.split(' ').skip(8).any(|range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        from.parse().is_ok_and(|from: u16| from <= slot) && to.parse().is_ok_and(|to: u16| slot <= to)
    })
}
