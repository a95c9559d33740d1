//! How long Redis remembers a client: as long as was promised, and never shorter than its messages live.

use redis::Connection;
use rtc_server::store::request::{ClaimKind, StoreRequest};

use crate::redis_server::Redis;
use crate::running::{Running, append, client, message};

/// What `running::settings` remembers a client for.
const MEMORY_MS: i64 = 900_000;
/// A test may take so long between what it asks for and what it sees.
const SLACK_MS: i64 = 60_000;

fn left_ms(connection: &mut Connection, key: &str) -> i64 {
    redis::cmd("PTTL").arg(key).query(connection).unwrap()
}

#[test]
fn a_client_is_remembered_for_as_long_as_was_promised_and_renewed_in_time() {
    let Some(redis) = Redis::any() else { return };
    let mut connection = redis::Client::open(redis.url.as_str()).unwrap().get_connection().unwrap();
    let mut running = Running::start(&redis.url);
    let who = client("remembered");
    let sess = format!("sess:{{{}}}", who.as_str());
    let mut claim = |generation: u64, kind: ClaimKind| {
        let ceiling = 1_000_000 + generation;
        running.ask(StoreRequest::Claim { client: who.clone(), generation, kind, ceiling })
    };
    claim(1, ClaimKind::Fresh);
    assert!((MEMORY_MS - SLACK_MS..=MEMORY_MS).contains(&left_ms(&mut connection, &sess)));
    for (generation, kind) in [(1, ClaimKind::Again), (2, ClaimKind::Again), (3, ClaimKind::Fresh)] {
        let _: () = redis::cmd("PEXPIRE").arg(&sess).arg(MEMORY_MS / 2).query(&mut connection).unwrap();
        claim(generation, kind);
        let left = left_ms(&mut connection, &sess);
        assert!((MEMORY_MS..=MEMORY_MS * 9 / 8).contains(&left), "{left} ms are left");
        claim(generation, kind);
        assert!(left_ms(&mut connection, &sess) <= left, "said again while enough is left");
    }
}

#[test]
fn neither_a_claim_nor_a_release_forgets_a_client_before_its_messages() {
    let Some(redis) = Redis::any() else { return };
    let mut connection = redis::Client::open(redis.url.as_str()).unwrap().get_connection().unwrap();
    let mut running = Running::start(&redis.url);
    let who = client("long-lived");
    let (sess, buf) = (format!("sess:{{{}}}", who.as_str()), format!("buf:{{{}}}", who.as_str()));
    let age_ms = 10 * MEMORY_MS;
    running.ask(append(&who, vec![message(1, age_ms.unsigned_abs())]));
    let claim = StoreRequest::Claim { client: who.clone(), generation: 1, kind: ClaimKind::Fresh, ceiling: 1 };
    for request in [claim, StoreRequest::Release { client: who.clone(), generation: 1, last_offset: 0 }] {
        running.ask(request.clone());
        for key in [&sess, &buf] {
            assert!(left_ms(&mut connection, key) > age_ms, "{key} ends before its message does, after {request:?}");
        }
    }
}
