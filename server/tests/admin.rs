//! The operators' port of a running node.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use sonic_rs::{JsonContainerTrait as _, JsonValueTrait as _, Value};
use support::{Answer, Client, PATIENCE, Server, eventually, get, post, request};

/// After which the port closes a connection that says nothing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

#[track_caller]
fn publish(server: &Server, body: &str) -> Answer {
    post(server.admin, "/api/v1/publish", "", body)
}

#[track_caller]
fn metric(server: &Server, name: &str) -> f64 {
    let page = get(server.admin, "/metrics").body;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or("0").parse().unwrap()
}

fn error_code(answer: &Answer) -> String {
    answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn health_ring_and_metrics_are_served() {
    let server = Server::start(&["--node-id", "n1"]);
    assert_eq!(get(server.admin, "/livez").status, 200);
    assert_eq!(get(server.admin, "/readyz").json()["ready"].as_bool(), Some(true));
    let health = get(server.admin, "/healthz").json();
    assert_eq!(health["status"].as_str(), Some("serving"));
    let ring = get(server.admin, "/api/v1/ring").json();
    assert_eq!(ring["isInitialized"].as_bool(), Some(true));
    assert_eq!(ring["version"].as_u64(), Some(1));
    assert_eq!(ring["weights"]["n1"].as_u64(), Some(100));
    let status = get(server.admin, "/drain/status").json();
    assert_eq!(status["draining"].as_bool(), Some(false));
    let (_client, _) = Client::log_in(server.listen, "clientId=a");
    let metrics = get(server.admin, "/metrics");
    assert!(metrics.head.contains("text/plain; version=0.0.4"), "{}", metrics.head);
    for line in [
        "rtc_socket_sessions 1",
        "rtc_socket_connections 1",
        "rtc_socket_ring_version{node_id=\"n1\"} 1",
        "rtc_socket_draining 0",
    ] {
        assert!(metrics.body.lines().any(|found| found == line), "no {line} in {}", metrics.body);
    }
    // This test takes some of both; the processors' share is known after the first two seconds.
    for share in ["rtc_socket_cpu_ratio", "rtc_socket_memory_ratio"] {
        eventually(share, || metric(&server, share) > 0.0);
        assert!(metric(&server, share) <= 1.0, "{share}");
    }
    for name in ["process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"] {
        assert!(metric(&server, name) > 0.0, "{name}");
    }
}

#[test]
fn a_published_message_is_delivered_and_its_ack_told() {
    let server = Server::start(&["--shards", "2", "--ack-wait", "1h"]);
    let (mut client, _) = Client::log_in(server.listen, "clientId=zo%C3%AB%2B1&recvAck=1");
    let publisher = std::thread::spawn({
        let admin = server.admin;
        move || {
            let body = r#"{"toClientId":"zoë+1","from":"shop","msgId":"m1","payload":{"a" : [1]}}"#;
            post(admin, "/api/v1/publish", "", body)
        }
    });
    let message = client.json();
    assert_eq!(message["from"].as_str(), Some("shop"));
    assert_eq!(message["msgId"].as_str(), Some("m1"));
    assert_eq!(message["payload"]["a"][0].as_u64(), Some(1));
    let view = get(server.admin, "/api/v1/clients/zo%C3%AB+1").json();
    assert_eq!(view["clientId"].as_str(), Some("zoë+1"));
    assert_eq!(view["connected"].as_bool(), Some(true));
    assert_eq!(view["lastOffset"].as_u64(), message["offset"].as_u64());
    client.send(&format!(r#"{{"type":"ack","offset":{}}}"#, message["offset"]));
    let answer = publisher.join().unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json(), sonic_rs::json!({"msgId": "m1", "status": "delivered"}));
}

#[test]
fn messages_for_the_absent_are_held_in_order_and_found_at_login() {
    let server = Server::start(&["--shards", "2"]);
    assert_eq!(error_code(&get(server.admin, "/api/v1/clients/a")), "unknown_client");
    let body = r#"[{"toClientId":"a","payload":1,"msgId":"m1"},
        {"toClientId":"a","payload":2},
        {"toClientId":"","payload":3,"msgId":"m3"},
        {"toClientId":"a","payload":1,"msgId":"m1"},
        {"toClientId":"b","payloadJson":"4"}]"#;
    let answer = publish(&server, body);
    assert_eq!(answer.status, 200);
    let results = answer.json()["results"].clone();
    let statuses: Vec<_> = results.as_array().unwrap().iter().map(|item| item["status"].as_str()).collect();
    assert_eq!(statuses, [Some("held"), Some("held"), None, Some("held"), Some("held")]);
    assert_eq!(
        results[2],
        sonic_rs::json!({"msgId": "m3", "error": {"code": "malformed", "reason":
        "toClientId is not 1 to 128 bytes without control characters"}})
    );
    assert!(results[1]["msgId"].as_str().is_some_and(|id| !id.is_empty()));
    let view = get(server.admin, "/api/v1/clients/a").json();
    assert_eq!(view["connected"].as_bool(), Some(false));
    assert_eq!(view["kept"]["messages"].as_u64(), Some(2), "the repeated message is kept once");
    let (mut client, _) = Client::log_in(server.listen, "clientId=a&recvAck=1");
    assert_eq!(client.json()["payload"].as_u64(), Some(1));
    assert_eq!(client.json()["payload"].as_u64(), Some(2));
    assert!(metric(&server, "rtc_admin_refused_total{cause=\"message_malformed\"}") >= 1.0);
}

#[test]
fn a_message_that_is_not_acknowledged_is_held_after_the_ack_wait() {
    let server = Server::start(&["--ack-wait", "50ms"]);
    let (_silent, _) = Client::log_in(server.listen, "clientId=a&recvAck=1");
    let (_plain, _) = Client::log_in(server.listen, "clientId=b");
    let status =
        |to: &str| publish(&server, &format!(r#"{{"toClientId":"{to}","payload":1}}"#)).json()["status"].clone();
    assert_eq!(status("a").as_str(), Some("held"));
    assert_eq!(status("b").as_str(), Some("sent"));
}

#[test]
fn a_message_published_twice_is_delivered_once_and_answered_twice() {
    let server = Server::start(&["--ack-wait", "1h"]);
    let (mut client, _) = Client::log_in(server.listen, "clientId=a&recvAck=1");
    let publisher = std::thread::spawn({
        let admin = server.admin;
        let item = r#"{"toClientId":"a","payload":1,"msgId":"m1"}"#;
        move || post(admin, "/api/v1/publish", "", &format!("[{item},{item}]"))
    });
    let message = client.json();
    client.send(&format!(r#"{{"type":"ack","offset":{}}}"#, message["offset"]));
    let results = publisher.join().unwrap().json()["results"].clone();
    for index in 0..2 {
        assert_eq!(results[index]["status"].as_str(), Some("delivered"), "{results:?}");
    }
    client.send(r#"{"type":"ping"}"#);
    assert_eq!(client.json()["type"].as_str(), Some("pong"), "nothing came twice");
}

#[test]
fn an_idempotency_key_is_answered_once() {
    let server = Server::start(&[]);
    let key = "Idempotency-Key: order-17\r\n";
    let body = r#"{"toClientId":"a","payload":1}"#;
    let first = post(server.admin, "/api/v1/publish", key, body);
    let second = post(server.admin, "/api/v1/publish", key, body);
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!(first.body, second.body);
    assert!(second.head.contains("Idempotency-Replayed: true"), "{}", second.head);
    let other = post(server.admin, "/api/v1/publish", key, r#"{"toClientId":"b","payload":1}"#);
    assert_eq!((other.status, error_code(&other).as_str()), (422, "idempotency_key_reused"));
    let view = get(server.admin, "/api/v1/clients/a").json();
    assert_eq!(view["kept"]["messages"].as_u64(), Some(1));
    // What was refused may be tried again under the same key; what was accepted beside it is not sent twice.
    let key = "Idempotency-Key: order-18\r\n";
    let body = r#"[{"toClientId":"c","payload":1},{"toClientId":"c"}]"#;
    for _ in 0..2 {
        let answer = post(server.admin, "/api/v1/publish", key, body);
        assert!(!answer.head.contains("Idempotency-Replayed"), "{}", answer.head);
        assert_eq!(answer.json()["results"][0]["status"].as_str(), Some("held"));
    }
    let view = get(server.admin, "/api/v1/clients/c").json();
    assert_eq!(view["kept"]["messages"].as_u64(), Some(1));
}

#[test]
fn what_cannot_be_served_is_refused_with_its_status_and_counted() {
    let server = Server::start(&["--message-bytes-max", "1KiB"]);
    let admin = server.admin;
    let large = format!(r#"{{"toClientId":"a","payload":"{}"}}"#, "x".repeat(2000));
    let deep = format!(r#"{{"toClientId":"a","payload":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let many = format!("[{}0]", "0,".repeat(2000));
    let head = |line: &str, headers: &str| format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    let table: Vec<(Answer, u16, &str)> = vec![
        (get(admin, "/nothing"), 404, "unknown_path"),
        (get(admin, "/api/v1/clients/nobody"), 404, "unknown_client"),
        (get(admin, "/api/v1/clients/"), 400, "client_id"),
        (get(admin, "/api/v1/clients/%ff"), 400, "client_id"),
        (get(admin, "/api/v1/publish"), 405, "method"),
        (request(admin, &head("DELETE /livez", "")), 405, "method"),
        (post(admin, "/livez", "", "{}"), 405, "method"),
        (request(admin, &head("POST /drain", "")), 415, "media_type"),
        (request(admin, &head("POST /api/v1/publish", "Content-Type: text/plain\r\n")), 415, "media_type"),
        (post(admin, "/drain", "Origin: http://evil.example\r\n", ""), 403, "origin"),
        (post(admin, "/drain", "", "{\"windowMs\":-1}"), 400, "malformed"),
        (post(admin, "/drain", "", "{\"windowMs\":99999999}"), 400, "malformed"),
        (post(admin, "/drain", "", "{\"window\":1}"), 400, "malformed"),
        (post(admin, "/drain", "", "{\"maxDisconnects\":-1}"), 400, "malformed"),
        (publish(&server, "nonsense"), 400, "malformed"),
        (publish(&server, &deep), 400, "malformed"),
        (publish(&server, &many), 413, "too_large"),
        (publish(&server, &large), 413, "too_large"),
        (publish(&server, r#"{"payload":1}"#), 400, "malformed"),
        (request(admin, &head("POST /drain", "Content-Length: 99999999\r\n")), 413, "body_too_large"),
        (request(admin, &head("POST /drain", "Transfer-Encoding: chunked\r\n")), 411, "length_required"),
        (request(admin, "nonsense\r\n\r\n"), 400, "bad_request"),
        (request(admin, &head("GET /livez", &"a: b\r\n".repeat(100))), 431, "bad_request"),
        (request(admin, &head("GET /livez", &format!("a: {}\r\n", "b".repeat(40_000)))), 431, "head_too_long"),
    ];
    for (answer, status, code) in &table {
        assert_eq!((answer.status, error_code(answer).as_str()), (*status, *code), "{answer:?}");
    }
    assert_eq!(get(admin, "/readyz").status, 200, "nothing of it drains the node");
    for cause in ["unknown_path", "method", "media_type", "origin", "body_too_large", "head_too_long"] {
        assert!(metric(&server, &format!("rtc_admin_refused_total{{cause=\"{cause}\"}}")) >= 1.0, "{cause}");
    }
}

#[test]
fn a_connection_carries_several_requests_and_a_body_that_waits_to_be_asked_for() {
    let server = Server::start(&[]);
    let mut stream = TcpStream::connect(server.admin).unwrap();
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\nHEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let body = br#"{"toClientId":"a","payload":1}"#;
    let head = format!(
        "POST /api/v1/publish HTTP/1.1\r\nHost: a\r\nContent-Type: application/json; charset=utf-8\r\n\
         Expect: 100-continue\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut text = String::new();
    let mut buf = [0; 4096];
    while !text.contains("100 Continue") {
        let count = stream.read(&mut buf).unwrap();
        assert!(count > 0, "{text}");
        text.push_str(std::str::from_utf8(&buf[..count]).unwrap());
    }
    stream.write_all(body).unwrap();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
    assert!(text.contains("\"status\":\"held\"") && !text.contains("nodeId"), "{text}");
}

#[test]
fn connections_past_the_limit_are_told_so_and_hinder_nobody_for_long() {
    let server = Server::start(&[]);
    let idle: Vec<TcpStream> = (0..128).map(|_| TcpStream::connect(server.admin).unwrap()).collect();
    // Those above are taken in before this one.
    let refused = get(server.admin, "/livez");
    assert_eq!((refused.status, error_code(&refused).as_str()), (503, "connections"));
    // However many come and say nothing, none is waited for: one after the other these would take minutes.
    let begun = Instant::now();
    let silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(server.admin).unwrap()).collect();
    for mut stream in silent {
        let mut text = String::new();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 503 "), "{text:?}");
    }
    assert!(begun.elapsed() < IDLE_TIMEOUT, "{:?}", begun.elapsed());
    drop(idle);
    eventually("there is room again", || get(server.admin, "/livez").status == 200);
    assert!(metric(&server, "rtc_admin_refused_total{cause=\"connections\"}") >= 201.0);
}

#[test]
fn publishers_at_once_lose_nothing() {
    const PUBLISHERS: usize = 8;
    const REQUESTS: usize = 20;
    let server = Server::start(&["--shards", "2"]);
    let (mut client, _) = Client::log_in(server.listen, "clientId=a");
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|publisher| {
            let admin = server.admin;
            std::thread::spawn(move || {
                for number in 0..REQUESTS {
                    let body = format!(r#"{{"toClientId":"a","from":"p{publisher}","payload":{number}}}"#);
                    let answer = post(admin, "/api/v1/publish", "", &body);
                    assert_eq!(answer.json()["status"].as_str(), Some("sent"), "{answer:?}");
                }
            })
        })
        .collect();
    let mut next = [0; PUBLISHERS];
    for _ in 0..PUBLISHERS * REQUESTS {
        let message: Value = client.json();
        let publisher: usize = message["from"].as_str().unwrap().trim_start_matches('p').parse().unwrap();
        assert_eq!(message["payload"].as_u64(), Some(next[publisher]), "in order per sender");
        next[publisher] += 1;
    }
    for publisher in publishers {
        publisher.join().unwrap();
    }
}

#[test]
fn the_document_names_every_path_and_every_metric_with_its_causes() {
    let server = Server::start(&[]);
    // Whatever is there only once something has been refused.
    let paths = get(server.admin, "/nothing").json()["error"]["reason"].as_str().unwrap_or_default().to_owned();
    let document = include_str!("../../docs/admin.md");
    let paths: Vec<&str> = paths.split([' ', ',']).filter(|word| word.starts_with('/')).collect();
    assert!(paths.len() >= 9, "{paths:?}");
    for path in paths {
        assert!(document.contains(path), "{path}");
    }
    let page = get(server.admin, "/metrics").body;
    let numbers: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(numbers.len() > 50, "{page}");
    for number in numbers {
        let name = number.split(['{', ' ']).next().unwrap_or_default();
        assert!(document.contains(&format!("`{name}`")), "{name}");
        for label in ["cause", "path"] {
            let value = number.split_once(&format!("{label}=\"")).and_then(|(_, rest)| rest.split('"').next());
            assert!(value.is_none_or(|value| document.contains(&format!("`{value}`"))), "{number}");
        }
    }
}
