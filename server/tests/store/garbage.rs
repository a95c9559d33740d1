//! Whatever stands in the keys: it is refused and counted, and stands in nobody's way.

use redis::Connection;
use rtc_server::protocol::ClientId;
use rtc_server::store::request::{Author, ClaimKind, StoreAnswer, StoreRequest};
use rtc_server::store::{Kept, Room};

use crate::redis_server::Redis;
use crate::running::{Running, append, client, message};

const TTL_MS: u64 = 600_000;

fn tell(connection: &mut Connection, args: &[&[u8]]) {
    let mut command = redis::Cmd::new();
    for arg in args {
        command.arg(*arg);
    }
    command.exec(connection).unwrap();
}

fn claim(client: &ClientId) -> StoreRequest {
    StoreRequest::Claim { client: client.clone(), generation: 7, kind: ClaimKind::Fresh, ceiling: 1000 }
}

/// Puts something into the keys of a client with one message, and expects claim, append and page to go on.
fn survives(redis: &Redis, name: &str, mut spoil: impl FnMut(&mut Connection, &[u8], &[u8])) {
    // What was counted in a reply that was lost is not found again: then it is another client's turn.
    let is_counted = (0..10).any(|attempt| survives_once(redis, &format!("{name}-{attempt}"), &mut spoil));
    assert!(is_counted, "{name}: not counted");
}

/// False when it was not counted, and a reply may have been lost with the count.
fn survives_once(redis: &Redis, name: &str, spoil: &mut impl FnMut(&mut Connection, &[u8], &[u8])) -> bool {
    let mut connection = redis::Client::open(redis.url.as_str()).unwrap().get_connection().unwrap();
    let mut running = Running::start(&redis.url);
    let who = client(name);
    running.ask(append(&who, vec![message(1, TTL_MS)]));
    let (sess, buf) = (format!("sess:{{{}}}", who.as_str()), format!("buf:{{{}}}", who.as_str()));
    spoil(&mut connection, sess.as_bytes(), buf.as_bytes());
    let answer = running.ask(claim(&who));
    assert!(matches!(answer, StoreAnswer::Claimed { generation: 7.., .. }), "{name}: {answer:?}");
    let answer = running.ask(append(&who, vec![message(2, TTL_MS)]));
    assert!(matches!(answer, StoreAnswer::Appended { .. }), "{name}: {answer:?}");
    let kept: Vec<u64> = running.kept(&who).iter().map(|kept| kept.identity).collect();
    assert!(kept.ends_with(&[2]), "{name}: {kept:?}");
    assert_eq!(running.counters.refused.value(), 0, "{name}");
    let is_counted = running.counters.malformed.value() > 0;
    assert!(is_counted || running.counters.retried.value() > 0, "{name}: not counted");
    is_counted
}

#[test]
fn keys_of_another_type_are_put_out_of_the_way() {
    let Some(redis) = Redis::any() else { return };
    survives(&redis, "string", |connection, sess, buf| {
        tell(connection, &[b"SET", sess, b"x"]);
        tell(connection, &[b"SET", buf, b"x"]);
    });
    survives(&redis, "list", |connection, sess, buf| {
        tell(connection, &[b"DEL", sess, buf]);
        tell(connection, &[b"RPUSH", sess, b"x"]);
        tell(connection, &[b"RPUSH", buf, b"x"]);
    });
}

#[test]
fn fields_of_a_session_that_make_no_sense_are_left_out() {
    let Some(redis) = Redis::any() else { return };
    let large = vec![b'9'; 10 << 20];
    let values: [&[u8]; 9] = [b"", b"x", b"-1", b"1.5", b"nan", b"inf", b"99999999999999999999", b"0x", &large];
    for (at, value) in values.into_iter().enumerate() {
        for field in ["generation", "ceiling", "lastOffset", "keptOffset", "lostOffset", "bytes", "incarnation"] {
            survives(&redis, &format!("field-{field}-{at}"), |connection, sess, _| {
                tell(connection, &[b"HSET", sess, b"nodeId", b"n0", b"incarnation", b"1", b"generation", b"3"]);
                tell(connection, &[b"HSET", sess, field.as_bytes(), value]);
            });
        }
    }
    for value in [&b""[..], b"no node!", &large] {
        survives(&redis, &format!("node-{}", value.len()), |connection, sess, _| {
            tell(connection, &[b"HSET", sess, b"nodeId", value, b"incarnation", b"1", b"generation", b"3"]);
        });
    }
    let lives = "n1 1 2,".repeat(9);
    let lists =
        ["", ",", "no node!", "n1 1", "n1 1 -2", "n! 1 2", "n1 1 2;n2 1 2", "n1 1 99999999999999999999", &lives];
    for (at, value) in lists.map(str::as_bytes).into_iter().chain([&large[..]]).enumerate() {
        survives(&redis, &format!("unreleased-{at}"), |connection, sess, _| {
            tell(connection, &[b"HSET", sess, b"unreleased", value]);
        });
    }
}

#[test]
fn of_a_list_of_former_holders_the_good_ones_stay() {
    let Some(redis) = Redis::any() else { return };
    let mut connection = redis::Client::open(redis.url.as_str()).unwrap().get_connection().unwrap();
    let mut running = Running::start(&redis.url);
    let who = client("former");
    let sess = format!("sess:{{{}}}", who.as_str());
    tell(&mut connection, &[b"HSET", sess.as_bytes(), b"generation", b"3", b"unreleased", b"n1 1 2,x,n0 1 2,n2 5 3"]);
    let StoreAnswer::Claimed { unreleased, .. } = running.ask(claim(&who)) else { panic!("not claimed") };
    let lives: Vec<_> = unreleased.iter().map(|held| (held.node.as_str(), held.incarnation, held.generation)).collect();
    assert_eq!(lives, [("n1", 1, 2), ("n2", 5, 3)], "the caller's own life is left out");
    assert_eq!(running.counters.malformed.value(), 1);
    // What made no sense is gone: it is counted once.
    running.ask(claim(&who));
    assert_eq!(running.counters.malformed.value(), 1);
}

#[test]
fn messages_that_make_no_sense_are_dropped() {
    let Some(redis) = Redis::any() else { return };
    let large = vec![b'{'; 10 << 20];
    let metas: [&[u8]; 5] = [b"", b"1 2 3", b"a b c d", b"1 2 3 4 5", &large];
    for (at, meta) in metas.into_iter().enumerate() {
        survives(&redis, &format!("meta-{at}"), |connection, _, buf| {
            tell(connection, &[b"XADD", buf, b"9007199254740000-0", b"m", meta, b"b", b"{"]);
        });
    }
    for (at, body) in [&b""[..], b"x", b"{\xff", &large].into_iter().enumerate() {
        survives(&redis, &format!("body-{at}"), |connection, _, buf| {
            tell(connection, &[b"XADD", buf, b"9007199254740000-0", b"m", b"1 2 3 9000000000000000", b"b", body]);
        });
    }
}

#[test]
fn a_stream_that_somebody_else_wrote_to_takes_messages_again() {
    let Some(redis) = Redis::any() else { return };
    // Its own ids are above ours, and one can never be reached.
    survives(&redis, "foreign-id", |connection, _, buf| {
        tell(connection, &[b"XADD", buf, b"18446744073709551615-18446744073709551615", b"x", b"y"]);
    });
    survives(&redis, "foreign-only", |connection, sess, buf| {
        tell(connection, &[b"DEL", sess, buf]);
        tell(connection, &[b"XADD", buf, b"18446744073709551615-5", b"x", b"y"]);
    });
}

#[test]
fn a_lost_session_is_found_again_by_its_stream() {
    let Some(redis) = Redis::any() else { return };
    let mut connection = redis::Client::open(redis.url.as_str()).unwrap().get_connection().unwrap();
    let mut running = Running::start(&redis.url);
    let who = client("lost");
    let StoreAnswer::Appended { last_offset: before } = running.ask(append(&who, vec![message(1, TTL_MS)])) else {
        panic!("not kept")
    };
    tell(&mut connection, &[b"DEL", format!("sess:{{{}}}", who.as_str()).as_bytes()]);
    let StoreAnswer::Claimed { last_offset, is_known: true, has_messages: true, .. } = running.ask(claim(&who)) else {
        panic!("not claimed")
    };
    assert_eq!(last_offset, before);
    let StoreAnswer::Appended { last_offset } = running.ask(append(&who, vec![message(2, TTL_MS)])) else {
        panic!("not kept")
    };
    assert!(last_offset > before);
    assert_eq!(running.kept(&who).len(), 2);
}

#[test]
fn a_spill_that_is_sent_again_after_its_trim_is_not_kept_again() {
    let Some(redis) = Redis::any() else { return };
    let mut running = Running::start(&redis.url);
    let who = client("spill");
    running.ask(claim(&who));
    let spill = StoreRequest::Append {
        client: who.clone(),
        author: Author::Holder { generation: 7 },
        messages: vec![Kept { offset: 50, ..message(1, TTL_MS) }],
        room: Room::Owed,
    };
    assert_eq!(running.ask(spill.clone()), StoreAnswer::Appended { last_offset: 50 });
    running.ask(StoreRequest::Trim { client: who.clone(), generation: 7, offset: 50 });
    assert_eq!(running.ask(spill), StoreAnswer::Appended { last_offset: 50 });
    assert_eq!(running.kept(&who), []);
}
