//! The store's thread: what was answered is kept, each request is answered once and in order, whatever happens to the
//! server meanwhile.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use rtc_server::store::request::{ClaimKind, StoreAnswer, StoreRequest, Ticket};

use crate::redis_server::{Disk, Redis, RedisServer};
use crate::running::{PATIENCE, Running, append, client, eventually, message, settings};

const TTL_MS: u64 = 600_000;

/// Posts `messages` appends spread over some clients, lets `disturb` act now and then, and checks all answers and all
/// that is kept.
fn keeps_all(server: &mut RedisServer, messages: u64, mut disturb: impl FnMut(&mut RedisServer, u64)) {
    const CLIENTS: u64 = 20;
    let mut running = Running::start(&server.url());
    let clients: Vec<_> = (0..CLIENTS).map(|at| client(&format!("load-{at}"))).collect();
    let mut asked: HashMap<u64, u64> = HashMap::new();
    let mut answered: Vec<Vec<u64>> = vec![Vec::new(); clients.len()];
    let mut take = |(ticket, answer): (Ticket, StoreAnswer), asked: &mut HashMap<u64, u64>| {
        let at = asked.remove(&ticket.0).expect("answered once");
        assert!(matches!(answer, StoreAnswer::Appended { .. }), "{answer:?}");
        answered[usize::try_from(at % CLIENTS).unwrap()].push(at);
    };
    for at in 0..messages {
        // The server is at work when it is disturbed.
        while at % 300 == 0 && asked.len() > 100 {
            let answer = running.answer();
            take(answer, &mut asked);
        }
        let client = &clients[usize::try_from(at % CLIENTS).unwrap()];
        let ticket = running.post(append(client, vec![message(at, TTL_MS)]));
        asked.insert(ticket.0, at);
        while let Some(answer) = running.try_answer() {
            take(answer, &mut asked);
        }
        disturb(server, at);
    }
    while !asked.is_empty() {
        let answer = running.answer();
        take(answer, &mut asked);
    }
    for (at, client) in (0..).zip(&clients) {
        let expected: Vec<u64> = (0..messages).filter(|message| message % CLIENTS == at).collect();
        assert_eq!(answered[usize::try_from(at).unwrap()], expected, "answered in order");
        let kept: Vec<u64> = running.kept(client).iter().map(|kept| kept.identity).collect();
        assert_eq!(kept, expected, "kept once, in order");
    }
    assert!(running.counters.retried.value() > 0, "nothing was disturbed");
    let counters = Arc::clone(&running.counters);
    eventually("the gauge says that all is answered", || counters.unanswered.value() == 0);
}

#[test]
fn a_server_that_is_killed_and_started_again_loses_nothing() {
    let Some(mut server) = RedisServer::start(Disk::Synced) else { return };
    keeps_all(&mut server, 6000, |server, at| {
        if at % 1500 == 900 {
            server.kill();
        } else if at % 1500 == 1100 {
            server.restart();
        }
    });
}

#[test]
fn a_server_that_forgets_its_scripts_or_is_out_of_memory_is_asked_again() {
    let Some(mut server) = RedisServer::start(Disk::Lazy) else { return };
    let mut operator = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let mut tell = |args: &[&str]| redis::cmd(args[0]).arg(&args[1..]).exec(&mut operator).unwrap();
    keeps_all(&mut server, 4500, |_, at| match at % 1500 {
        300 => tell(&["SCRIPT", "FLUSH"]),
        600 => tell(&["CONFIG", "SET", "maxmemory", "1"]),
        800 => tell(&["CONFIG", "SET", "maxmemory", "0"]),
        1200 => tell(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]),
        _ => {}
    });
}

#[test]
fn what_there_was_no_memory_for_is_not_overtaken_by_what_there_is_memory_for() {
    const MESSAGES: u64 = 1000;
    let Some(server) = RedisServer::start(Disk::Lazy) else { return };
    for round in 0..3 {
        let clients: Vec<_> = (0..5).map(|at| client(&format!("memory-{round}-{at}"))).collect();
        let mut operator = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        let mut reply = [0; 5];
        operator.write_all(b"CONFIG SET maxmemory 1\r\n").unwrap();
        operator.read_exact(&mut reply).unwrap();
        // Until the server answers, the requests gather. It gets them in one go, and the operator's word amid them: how
        // many it refuses depends on the pace.
        server.signal("STOP");
        let mut running = Running::start(&server.url());
        for at in 0..MESSAGES {
            let mut large = message(at, TTL_MS);
            large.body = vec![b'{'; 4096].into();
            running.post(append(&clients[usize::try_from(at).unwrap() % clients.len()], vec![large]));
        }
        server.signal("CONT");
        let counters = Arc::clone(&running.counters);
        while counters.retried.value() == 0 && counters.unanswered.value() < MESSAGES {
            std::hint::spin_loop();
        }
        operator.write_all(b"CONFIG SET maxmemory 0\r\n").unwrap();
        for _ in 0..MESSAGES {
            let (_, answer) = running.answer();
            assert!(matches!(answer, StoreAnswer::Appended { .. }), "{answer:?}");
        }
        for (at, client) in (0..).zip(&clients) {
            let kept: Vec<u64> = running.kept(client).iter().map(|kept| kept.identity).collect();
            let expected: Vec<u64> = (0..MESSAGES).filter(|message| message % 5 == at).collect();
            assert_eq!(kept, expected, "kept once, in order");
        }
    }
}

#[test]
fn a_full_queue_gives_the_request_back() {
    // Nobody listens on this port: nothing is ever answered.
    let settings = rtc_server::store::redis::StoreSettings {
        queue_requests: 10,
        queue_bytes: 1 << 20,
        ..settings("redis://127.0.0.1:1")
    };
    let running = Running::start_with(settings.clone(), 16);
    let who = client("queue");
    let taken = (0..20_000).filter(|at| running.handle.post(0, Ticket(*at), append(&who, vec![message(1, 1)])).is_ok());
    assert!(taken.count() < 4096 + 10 + 1);
    let mut large = message(1, 1);
    large.body = vec![b'{'; 600 * 1024].into();
    let running = Running::start_with(settings, 16);
    assert!(running.handle.post(0, Ticket(1), append(&who, vec![large.clone()])).is_ok());
    assert!(running.handle.post(0, Ticket(2), append(&who, vec![large])).is_err());
    assert!(!running.handle.is_up());
}

#[test]
fn a_shard_without_room_gets_its_answers_later() {
    let Some(redis) = Redis::any() else { return };
    let mut running = Running::start_with(settings(&redis.url), 2);
    let who = client("slow");
    let tickets: Vec<Ticket> = (0..50).map(|at| running.post(append(&who, vec![message(at, TTL_MS)]))).collect();
    eventually("all are answered", || running.counters.appends.value() == 50);
    for ticket in tickets {
        assert_eq!(running.answer().0, ticket);
    }
}

#[test]
fn what_nobody_waits_for_is_done_without_an_answer() {
    let Some(redis) = Redis::any() else { return };
    let mut running = Running::start(&redis.url);
    let who = client("nobody");
    running.handle.post(0, Ticket::NOBODY, append(&who, vec![message(1, TTL_MS)])).unwrap();
    // The first answer is that to the page, and the message is in it.
    let kept: Vec<u64> = running.kept(&who).iter().map(|kept| kept.identity).collect();
    assert_eq!(kept, [1]);
    assert_eq!(running.counters.appends.value(), 1);
}

#[test]
fn what_nobody_asks_for_expires_and_is_counted() {
    // Not one that is shared: any store on it sweeps, and counts, for all.
    let Some(server) = RedisServer::start(Disk::Lazy) else { return };
    let mut running = Running::start(&server.url());
    let who = client("age");
    running.ask(append(&who, vec![message(1, 300), message(2, TTL_MS), message(3, 301)]));
    let counters = running.counters.clone();
    eventually("both are swept", || counters.expired_swept.value() >= 2);
    let kept: Vec<u64> = running.kept(&who).iter().map(|kept| kept.identity).collect();
    assert_eq!(kept, [2]);
    let claim = StoreRequest::Claim { client: who, generation: 1, kind: ClaimKind::Fresh, ceiling: 1 };
    let StoreAnswer::Claimed { lost_offset, .. } = running.ask(claim) else { panic!("not claimed") };
    assert!(lost_offset > 0);
}

#[test]
fn a_server_that_promises_less_is_told_about() {
    let Some(server) = RedisServer::start(Disk::Lazy) else { return };
    let mut running = Running::start(&server.url());
    running.kept(&client("weak"));
    let weakness = running.handle.weakness().expect("appendfsync is `no`");
    assert!(weakness.contains("appendfsync is `no`, not `always`"), "{weakness}");
    assert!(!weakness.contains("appendonly"), "{weakness}");
    drop(running);
    let Some(server) = RedisServer::start(Disk::Synced) else { return };
    let mut running = Running::start(&server.url());
    running.kept(&client("strong"));
    assert_eq!(running.handle.weakness(), None);
    assert!(running.handle.is_up());
}

#[test]
fn a_stop_waits_for_what_was_taken() {
    let Some(redis) = Redis::any() else { return };
    let counters = std::sync::Arc::new(rtc_server::store::redis::StoreCounters::default());
    let (sender, _mail) = rtc_server::shard::mailbox::mailbox(4096).unwrap();
    let store = rtc_server::store::redis::RedisStore::start(&settings(&redis.url), vec![sender], counters.clone());
    let store = store.unwrap();
    let (handle, who) = (store.handle(), client("stop"));
    for at in 0..1000 {
        handle.post(0, Ticket(at), append(&who, vec![message(at, TTL_MS)])).unwrap();
    }
    assert!(store.stop(PATIENCE));
    assert_eq!(counters.appends.value(), 1000);
    assert!(handle.post(0, Ticket(0), append(&who, vec![message(0, TTL_MS)])).is_err());
}
