//! Messages between clients through a real process: order, acks, resume, take-over, slow consumers, leaving.

#![expect(clippy::unwrap_used, reason = "a test stops where it is wrong")]

mod support;

use std::io::Write as _;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sonic_rs::{JsonValueTrait, Value};
use support::{Client, Incoming, Server, get, post};

/// Every test of a promise runs on one shard and on two, through the ring and without it.
const SHAPES: [&[&str]; 3] = [&["--shards", "1"], &["--shards", "2"], &["--shards", "2", "--io", "direct"]];

/// Where a message is to count as delivered: however long the test takes to ack it.
const PATIENT: [&str; 2] = ["--ack-wait", "1h"];

fn message(msg_id: &str, to: &str, payload: &str) -> String {
    format!(r#"{{"type":"message","msgId":"{msg_id}","toClientId":"{to}","payload":{payload}}}"#)
}

fn ack(offset: u64) -> String {
    format!(r#"{{"type":"ack","offset":{offset}}}"#)
}

#[track_caller]
fn expect_message(client: &mut Client, msg_id: &str) -> Value {
    let value = client.json();
    assert_eq!(value["type"].as_str(), Some("message"), "{value:?}");
    assert_eq!(value["msgId"].as_str(), Some(msg_id), "{value:?}");
    value
}

#[track_caller]
fn expect_ack(client: &mut Client, msg_id: &str, status: &str) {
    let value = client.json();
    assert_eq!(value["type"].as_str(), Some("ack"), "{value:?}");
    assert_eq!(value["msgId"].as_str(), Some(msg_id), "{value:?}");
    assert_eq!(value["status"].as_str(), Some(status), "{value:?}");
}

fn offset(message: &Value) -> u64 {
    message["offset"].as_u64().unwrap()
}

#[test]
fn messages_arrive_in_order_and_the_sender_learns_of_each() {
    for shape in SHAPES {
        let server = Server::start(&[shape, &PATIENT].concat());
        for pair in 0..8 {
            let (sender, recipient) = (format!("sender-{pair}"), format!("recipient-{pair}"));
            let (mut a, _) = Client::log_in(server.listen, &format!("clientId={sender}&acks=1"));
            let (mut b, _) = Client::log_in(server.listen, &format!("clientId={recipient}&recvAck=1"));
            for number in 0..100 {
                a.send(&message(&format!("m{number}"), &recipient, r#"{"a":"é"}"#));
            }
            let mut last = 0;
            for number in 0..100 {
                let value = expect_message(&mut b, &format!("m{number}"));
                assert_eq!(value["from"].as_str(), Some(&*sender));
                assert_eq!(value["payload"]["a"].as_str(), Some("é"));
                assert!(offset(&value) > last);
                last = offset(&value);
            }
            b.send(&ack(last));
            for number in 0..100 {
                expect_ack(&mut a, &format!("m{number}"), "delivered");
            }
        }
    }
}

#[test]
fn who_is_away_gets_all_of_it_on_return_and_from_where_it_was() {
    for shape in SHAPES {
        let server = Server::start(shape);
        let (mut a, _) = Client::log_in(server.listen, "clientId=a&acks=1");
        for number in 0..50 {
            a.send(&message(&format!("m{number}"), "b", "1"));
            expect_ack(&mut a, &format!("m{number}"), "held");
        }
        let (mut b, welcome) = Client::log_in(server.listen, "clientId=b&recvAck=1");
        assert_eq!(welcome["recovered"].as_bool(), Some(true));
        let mut tenth = 0;
        for number in 0..50 {
            let value = expect_message(&mut b, &format!("m{number}"));
            assert!(offset(&value) > welcome["offset"].as_u64().unwrap());
            if number == 9 {
                tenth = offset(&value);
            }
        }
        drop(b);
        let (mut b, welcome) = Client::log_in(server.listen, &format!("clientId=b&resumeOffset={tenth}"));
        assert_eq!(welcome["recovered"].as_bool(), Some(true));
        assert_eq!(welcome["offset"].as_u64(), Some(tenth));
        for number in 10..50 {
            expect_message(&mut b, &format!("m{number}"));
        }
        let (_, welcome) = Client::log_in(server.listen, "clientId=c&resumeOffset=77");
        assert_eq!(welcome["recovered"].as_bool(), Some(false), "a position this node never gave");
    }
}

#[test]
fn the_newest_login_wins_and_nothing_is_lost_between_the_two() {
    for shape in SHAPES {
        let server = Server::start(shape);
        let (mut a, _) = Client::log_in(server.listen, "clientId=a&acks=1");
        let (mut old, _) = Client::log_in(server.listen, "clientId=b&recvAck=1");
        a.send(&message("m1", "b", "1"));
        let first = offset(&expect_message(&mut old, "m1"));
        let (mut new, _) = Client::log_in(server.listen, &format!("clientId=b&resumeOffset={}", first - 1));
        assert_eq!(old.await_close(), Some((4001, "replaced".to_owned())));
        let again = expect_message(&mut new, "m1");
        assert_eq!(offset(&again), first);
        a.send(&message("m2", "b", "2"));
        let second = expect_message(&mut new, "m2");
        new.send(&ack(offset(&second)));
        let mut seen = Vec::new();
        for _ in 0..2 {
            seen.push(a.json()["msgId"].as_str().unwrap().to_owned());
        }
        seen.sort();
        assert_eq!(seen, ["m1", "m2"], "each is answered once");
    }
}

#[test]
fn a_silent_recipient_leaves_the_message_held_and_a_repeat_is_not_delivered_twice() {
    let server = Server::start(&["--shards", "2", "--ack-wait", "100ms"]);
    let (mut a, _) = Client::log_in(server.listen, "clientId=a&acks=1");
    let (mut b, _) = Client::log_in(server.listen, "clientId=b&recvAck=1");
    a.send(&message("m1", "b", "1"));
    let value = expect_message(&mut b, "m1");
    expect_ack(&mut a, "m1", "held");
    a.send(&message("m1", "b", "1"));
    expect_ack(&mut a, "m1", "held");
    b.send(&ack(offset(&value)));
    b.send(r#"{"type":"ping"}"#);
    assert_eq!(b.json()["type"].as_str(), Some("pong"));
    a.send(&message("m1", "b", "1"));
    expect_ack(&mut a, "m1", "delivered");
    a.send(&message("m2", "b", "1"));
    expect_message(&mut b, "m2");
}

#[test]
fn a_recipient_that_does_not_ack_is_sent_to() {
    let server = Server::start(&["--shards", "1"]);
    let (mut a, _) = Client::log_in(server.listen, "clientId=a");
    let (mut b, _) = Client::log_in(server.listen, "clientId=b");
    a.send(r#"{"type":"message","msgId":"x","toClientId":"b","payloadJson":"{\"n\":1}","ack":true}"#);
    assert_eq!(expect_message(&mut b, "x")["payloadJson"].as_str(), Some(r#"{"n":1}"#));
    expect_ack(&mut a, "x", "sent");
}

#[test]
fn a_message_to_oneself_arrives() {
    for shape in SHAPES {
        let server = Server::start(&[shape, &PATIENT].concat());
        let (mut a, _) = Client::log_in(server.listen, "clientId=a&acks=1&recvAck=1");
        a.send(&message("m", "a", "1"));
        let value = expect_message(&mut a, "m");
        a.send(&ack(offset(&value)));
        expect_ack(&mut a, "m", "delivered");
    }
}

#[test]
fn a_client_without_an_id_is_given_one() {
    let server = Server::start(&["--shards", "2"]);
    let (mut a, welcome) = Client::log_in(server.listen, "");
    let id = welcome["clientId"].as_str().unwrap().to_owned();
    let (mut b, other) = Client::log_in(server.listen, "");
    assert_ne!(other["clientId"].as_str(), Some(&*id));
    b.send(&message("m", &id, "1"));
    expect_message(&mut a, "m");
}

#[test]
fn a_slow_consumer_is_spilled_and_closed_and_finds_everything_on_return() {
    // Long enough for the test to read what it wants to read; it reads nothing at first.
    let flags = ["--shards", "1", "--outbox-messages-max", "64", "--stall-timeout", "5s"];
    let server = Server::start(&flags);
    let (mut a, _) = Client::log_in(server.listen, "clientId=a&acks=1");
    let (mut b, _) = Client::log_in(server.listen, "clientId=b&recvAck=1");
    // It reads nothing and acks nothing: the outbox fills, the rest goes behind it.
    for number in 0..200 {
        a.send(&message(&format!("m{number}"), "b", "\"x\""));
    }
    let mut answered = 0;
    while answered < 200 {
        assert_eq!(a.json()["status"].as_str(), Some("held"));
        answered += 1;
    }
    assert_eq!(b.await_close(), Some((4100, "slow-consumer".to_owned())));
    let (mut b, _) = Client::log_in(server.listen, "clientId=b&recvAck=1");
    for number in 0..200 {
        let value = expect_message(&mut b, &format!("m{number}"));
        b.send(&ack(offset(&value)));
    }
}

#[test]
fn a_full_replay_buffer_refuses_the_new_message_with_its_name() {
    let flags = ["--shards", "1", "--buffer-recipient-messages-max", "10"];
    let server = Server::start(&flags);
    let (mut a, _) = Client::log_in(server.listen, "clientId=a&acks=1");
    for number in 0..10 {
        a.send(&message(&format!("m{number}"), "b", "1"));
        expect_ack(&mut a, &format!("m{number}"), "held");
    }
    a.send(&message("m10", "b", "1"));
    let error = a.json();
    assert_eq!(error["code"].as_str(), Some("buffer_full"));
    assert_eq!(error["msgId"].as_str(), Some("m10"));
    let (mut b, _) = Client::log_in(server.listen, "clientId=b&recvAck=1");
    for number in 0..10 {
        expect_message(&mut b, &format!("m{number}"));
    }
}

#[test]
fn expired_messages_are_counted_and_the_gap_is_told() {
    let server = Server::start(&["--shards", "1"]);
    let (mut a, _) = Client::log_in(server.listen, "clientId=a&acks=1");
    let (b, welcome) = Client::log_in(server.listen, "clientId=b&recvAck=1");
    let position = welcome["offset"].as_u64().unwrap();
    drop(b);
    support::eventually("b is gone", || get(server.admin, "/metrics").body.contains("rtc_socket_sessions 1\n"));
    a.send(r#"{"type":"message","msgId":"m","toClientId":"b","payload":1,"ttlMs":1}"#);
    expect_ack(&mut a, "m", "held");
    support::eventually("the message has expired", || {
        get(server.admin, "/metrics").body.contains("rtc_socket_expired_total 1\n")
    });
    let (_, welcome) = Client::log_in(server.listen, &format!("clientId=b&resumeOffset={position}"));
    assert_eq!(welcome["recovered"].as_bool(), Some(false));
}

#[test]
fn the_silent_are_pinged_and_closed_when_they_stay_silent() {
    let flags = ["--shards", "1", "--ping-interval", "200ms", "--pong-timeout", "3s", "--echo"];
    let server = Server::start(&flags);
    // `next_within` answers pings: this one stays, until it leaves. Unless the machine stands still for as long as a pong
    // may take: then it is another's turn.
    let stays = |attempt: u32| {
        let (mut quiet, _) = Client::log_in(server.listen, &format!("clientId=quiet-{attempt}"));
        quiet.next_within(Duration::from_secs(5)).is_none()
    };
    assert!((0..10).any(stays), "none of those that answer stays");
    let closed = || -> u64 {
        let page = get(server.admin, "/metrics").body;
        let count = page.lines().find_map(|line| line.strip_prefix("rtc_socket_closed_total{cause=\"no_pong\"} "));
        count.unwrap().parse().unwrap()
    };
    let before = closed();
    let deaf = Client::connect(server.listen, "/ws/connect?clientId=deaf").unwrap();
    // It does not read for a while, so that no ping is answered; then the Close frame is there.
    support::eventually("the deaf one is closed", || closed() > before);
    let mut deaf = deaf;
    assert_eq!(deaf.await_close().map(|(code, _)| code), Some(4202));
}

#[test]
fn a_node_that_stood_still_does_not_take_pongs_it_could_not_read_for_silence() {
    let server = Server::start(&["--shards", "1", "--ping-interval", "500ms", "--pong-timeout", "2s"]);
    let log_in = |number| Client::log_in(server.listen, &format!("clientId=c{number}")).0;
    let mut clients: Vec<_> = (0..30).map(log_in).collect();
    support::eventually("all are pinged", || clients.iter().all(|client| client.stream.peek(&mut [0]).is_ok()));
    server.signal(Signal::STOP);
    // They answer one after the other, in more time than they had.
    for client in &mut clients {
        assert_eq!(client.next_within(Duration::from_millis(100)), None);
    }
    server.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.next_within(Duration::from_millis(20)), None);
    }
    let metrics = get(server.admin, "/metrics").body;
    assert!(metrics.contains("rtc_socket_closed_total{cause=\"no_pong\"} 0\n"), "{metrics}");
}

#[test]
fn connections_past_the_limit_are_told_when_to_come_back() {
    let server = Server::start(&["--shards", "1", "--connections-max", "3"]);
    let clients: Vec<_> = (0..3).map(|id| Client::log_in(server.listen, &format!("clientId=c{id}"))).collect();
    let refused = Client::connect(server.listen, "/ws/connect?clientId=c3").err().unwrap();
    assert!(matches!(refused, websocket::ResponseError::Refused { status: 503, retry_after: Some(_) }), "{refused:?}");
    drop(clients);
    support::eventually("there is room again", || Client::connect(server.listen, "/ws/connect?clientId=c3").is_ok());
}

#[test]
fn a_drain_advises_closes_1012_and_refuses_new_connections() {
    let server = Server::start(&["--shards", "2"]);
    let mut clients: Vec<_> =
        (0..6).map(|id| Client::log_in(server.listen, &format!("clientId=c{id}&recvAck=1")).0).collect();
    let answer = post(server.admin, "/drain", "", r#"{"windowMs":200}"#);
    assert!(answer.status < 300, "{answer:?}");
    for client in &mut clients {
        let advice = client.json();
        assert_eq!(advice["type"].as_str(), Some("reconnect"), "{advice:?}");
        assert_eq!(advice["reason"].as_str(), Some("drain"));
        assert!(advice["afterMs"].as_u64().unwrap() <= 200);
        assert!(advice["resumeOffset"].as_u64().is_some());
        assert_eq!(client.await_close().map(|(code, _)| code), Some(1012));
    }
    assert_eq!(get(server.admin, "/readyz").status, 503);
    assert_eq!(get(server.admin, "/livez").status, 200);
    let refused = Client::connect(server.listen, "/ws/connect?clientId=late").err().unwrap();
    assert!(matches!(refused, websocket::ResponseError::Refused { status: 503, .. }), "{refused:?}");
}

#[test]
fn a_drain_disconnects_no_more_a_second_than_it_may() {
    const CLIENTS: u32 = 12;
    const PER_SECOND: u32 = 6;
    const SHARDS: u32 = 3;
    // How long a client may take after its advised moment.
    const GRACE: f64 = 1.0;
    let server = Server::start(&["--shards", &SHARDS.to_string()]);
    let mut clients: Vec<_> =
        (0..CLIENTS).map(|id| Client::log_in(server.listen, &format!("clientId=c{id}&recvAck=1")).0).collect();
    let begun = Instant::now();
    let order = format!(r#"{{"windowMs":0,"maxDisconnects":{PER_SECOND}}}"#);
    let status = post(server.admin, "/drain", "", &order).json();
    assert_eq!(status["windowMs"].as_u64(), Some(2000), "the window gives way: {status:?}");
    assert_eq!(status["maxDisconnects"].as_u64(), Some(u64::from(PER_SECOND)));
    // Each shard closes its own evenly, so that their sum may be ahead by one for each.
    let allowed = |after_s: f64| f64::from(PER_SECOND) * after_s.max(0.0) + f64::from(SHARDS);
    let mut advised: Vec<_> = clients.iter_mut().map(|client| client.json()["afterMs"].as_u64().unwrap()).collect();
    advised.sort_unstable();
    for (before, after_ms) in advised.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "a few clients, a few seconds")]
        let (before, after_s) = (before as f64, *after_ms as f64 / 1000.0);
        assert!(before <= allowed(after_s), "{advised:?}");
    }
    support::eventually("all are closed", || {
        let page = get(server.admin, "/metrics").body;
        let closed = page.lines().find_map(|line| line.strip_prefix(r#"rtc_socket_closed_total{cause="drain"} "#));
        let closed: f64 = closed.unwrap().parse().unwrap();
        let passed = begun.elapsed().as_secs_f64();
        assert!(closed <= allowed(passed - GRACE), "{closed} closed after {passed} s");
        closed >= f64::from(CLIENTS)
    });
}

#[test]
fn a_sender_that_outruns_its_acks_is_slowed_then_refused_never_cut() {
    let server = Server::start(&["--shards", "1", "--ack-wait", "60s"]);
    let (mut a, _) = Client::log_in(server.listen, "clientId=a&acks=1");
    let (_b, _) = Client::log_in(server.listen, "clientId=b&recvAck=1");
    for number in 0..400 {
        a.send(&message(&format!("m{number}"), "b", "1"));
    }
    let started = Instant::now();
    for number in 256..400 {
        let error = a.json();
        assert_eq!(error["code"].as_str(), Some("overloaded"), "{error:?}");
        assert_eq!(error["msgId"].as_str(), Some(&*format!("m{number}")));
    }
    assert!(started.elapsed() > Duration::from_secs(1), "reading paused before anything was refused");
    a.send(r#"{"type":"ping"}"#);
    assert_eq!(a.json()["type"].as_str(), Some("pong"));
}

#[test]
fn frames_in_any_pieces_are_the_same_messages() {
    let server = Server::start(&["--shards", "1"]);
    let (mut a, _) = Client::log_in(server.listen, "clientId=a");
    let (mut b, _) = Client::log_in(server.listen, "clientId=b");
    let mut frame = Vec::new();
    let text = message("pieces", "b", &format!("\"{}\"", "é".repeat(300)));
    websocket::encode_masked_frame(&mut frame, websocket::Opcode::Text, text.as_bytes(), [1, 2, 3, 4]);
    for byte in &frame {
        a.stream.write_all(std::slice::from_ref(byte)).unwrap();
    }
    let value = expect_message(&mut b, "pieces");
    assert_eq!(value["payload"].as_str(), Some(&*"é".repeat(300)));
}

#[test]
fn large_messages_and_echoes_pass_whole() {
    let server = Server::start(&["--shards", "1", "--echo"]);
    let (mut a, _) = Client::log_in(server.listen, "clientId=a");
    let (mut b, _) = Client::log_in(server.listen, "clientId=b");
    let payload = format!("\"{}\"", "x".repeat(256 * 1024 - 2));
    a.send(&message("large", "b", &payload));
    assert_eq!(expect_message(&mut b, "large")["payload"].as_str().map(str::len), Some(payload.len() - 2));
    let mut echo = Client::connect(server.listen, "/ws/echo").unwrap();
    let text = "é".repeat(4 << 20);
    let mut sender = echo.stream.try_clone().unwrap();
    let mut frame = Vec::new();
    websocket::encode_masked_frame(&mut frame, websocket::Opcode::Text, text.as_bytes(), [1, 2, 3, 4]);
    let writer = std::thread::spawn(move || sender.write_all(&frame).unwrap());
    assert_eq!(echo.next(), Incoming::Text(text));
    writer.join().unwrap();
}
