//! What strangers may send: each is refused by the rules, counted with its cause, and noticed by nobody else.

#![expect(clippy::unwrap_used, reason = "a test stops where it is wrong")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use sonic_rs::JsonValueTrait;
use support::{Client, Server, eventually, get};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A pair of clients that must notice nothing.
struct Bystanders {
    a: Client,
    b: Client,
    sent: u32,
}

impl Bystanders {
    fn new(server: &Server) -> Self {
        let (a, _) = Client::log_in(server.listen, "clientId=bystander-a");
        let (b, _) = Client::log_in(server.listen, "clientId=bystander-b");
        Self { a, b, sent: 0 }
    }

    #[track_caller]
    fn notice_nothing(&mut self) {
        self.sent += 1;
        let msg_id = format!("b{}", self.sent);
        self.a.send(&format!(r#"{{"type":"message","msgId":"{msg_id}","toClientId":"bystander-b","payload":1}}"#));
        assert_eq!(self.b.json()["msgId"].as_str(), Some(&*msg_id));
    }
}

/// Sends `text` and returns all that comes back until the end.
#[track_caller]
fn raw(server: &Server, text: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.listen).unwrap();
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    // The server may answer and close before all is sent.
    let _ = stream.write_all(text);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn upgrade(path: &str, extra: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: node\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{extra}\r\n"
    )
    .into_bytes()
}

#[track_caller]
fn counts(server: &Server, metric: &str) -> u64 {
    let metrics = get(server.admin, "/metrics").body;
    let line = metrics.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {metric} in\n{metrics}")).parse().unwrap()
}

#[test]
fn requests_that_are_none_are_refused_by_status() {
    let server = Server::start(&["--shards", "2"]);
    let mut bystanders = Bystanders::new(&server);
    let long = format!("GET /ws/connect?x={} HTTP/1.1\r\n", "x".repeat(20_000));
    let many = format!("GET /ws/connect HTTP/1.1\r\nHost: node\r\n{}\r\n", "X-Y: z\r\n".repeat(200));
    let plain = b"GET /ws/connect HTTP/1.1\r\nHost: node\r\n\r\n".to_vec();
    let old = String::from_utf8(upgrade("/ws/connect", "")).unwrap().replace("Version: 13", "Version: 8").into_bytes();
    let id = |id: &str| upgrade(&format!("/ws/connect?clientId={id}"), "");
    for (what, bytes, status, cause) in [
        ("garbage", b"\x16\x03\x01\x02\x00\x01\r\n\r\n".to_vec(), 400, "bad_request"),
        ("no http", b"HELLO\r\n\r\n".to_vec(), 400, "bad_request"),
        ("a long request", long.into_bytes(), 431, "request_too_long"),
        ("many headers", many.into_bytes(), 431, "bad_request"),
        ("no upgrade", plain, 426, "bad_upgrade"),
        ("an old version", old, 426, "bad_upgrade"),
        ("an unknown path", upgrade("/elsewhere", ""), 404, "unknown_path"),
        ("the echo, which is off", upgrade("/ws/echo", ""), 404, "unknown_path"),
        ("an empty id", id(""), 400, "client_id"),
        ("an id with a newline", id("a%0Ab"), 400, "client_id"),
        ("a long id", id(&"x".repeat(129)), 400, "client_id"),
        ("an id that is not UTF-8", id("%ff"), 400, "client_id"),
        ("a resume offset that is no number", id("a&resumeOffset=x"), 400, "client_id"),
        ("an id there twice", id("a&clientId=b"), 400, "client_id"),
        ("a parameter there twice, once escaped", id("a&acks=1&%61cks=1"), 400, "client_id"),
        ("another site's page", upgrade("/ws/connect", "Origin: https://evil.example\r\n"), 403, "origin"),
    ] {
        let metric = format!("rtc_socket_refused_total{{cause=\"{cause}\"}}");
        let before = counts(&server, &metric);
        let answer = raw(&server, &bytes);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer:?}");
        eventually(&format!("{what} is counted"), || counts(&server, &metric) == before + 1);
        bystanders.notice_nothing();
    }
    let own = raw(&server, b"GET / HTTP/1.1\r\nHost: node\r\nOrigin: http://node\r\n\r\n");
    assert!(own.starts_with("HTTP/1.1 200 "), "{own:?}");
}

#[test]
fn half_a_request_is_given_up_at_its_deadline() {
    // Long enough for those who do send all of it.
    let server = Server::start(&["--shards", "1", "--handshake-timeout", "3s"]);
    let mut bystanders = Bystanders::new(&server);
    std::thread::scope(|scope| {
        for half in [&b"GET /ws/connect HTTP/1.1\r\nHost: n"[..], b""] {
            scope.spawn(|| assert_eq!(raw(&server, half), ""));
        }
    });
    let metric = "rtc_socket_refused_total{cause=\"handshake_deadline\"}";
    eventually("both are counted", || counts(&server, metric) == 2);
    bystanders.notice_nothing();
}

#[test]
fn frames_against_the_rules_get_the_close_code_of_the_rfc() {
    let server = Server::start(&["--shards", "2"]);
    let mut bystanders = Bystanders::new(&server);
    let mut huge = vec![0x81, 0xff];
    huge.extend_from_slice(&(1u64 << 40).to_be_bytes());
    huge.extend_from_slice(&[0; 4]);
    let mut endless = vec![0x81, 0xff];
    endless.extend_from_slice(&u64::MAX.to_be_bytes());
    for (what, bytes, code) in [
        ("unmasked", vec![0x81, 0x02, b'{', b'}'], 1002),
        ("reserved bits", vec![0xf1, 0x80, 0, 0, 0, 0], 1002),
        ("an unknown opcode", vec![0x83, 0x80, 0, 0, 0, 0], 1002),
        ("a fragmented ping", vec![0x09, 0x80, 0, 0, 0, 0], 1002),
        ("a long ping", vec![0x89, 0xfe, 0x00, 0x7e, 0, 0, 0, 0], 1002),
        ("a continuation of nothing", vec![0x80, 0x80, 0, 0, 0, 0], 1002),
        ("bad UTF-8", vec![0x81, 0x82, 0, 0, 0, 0, 0xc3, 0x28], 1007),
        ("bad UTF-8 in a frame that has not ended", vec![0x81, 0xfe, 0x40, 0x00, 0, 0, 0, 0, 0xff], 1007),
        ("2^40 bytes", huge, 1009),
        ("2^64 - 1 bytes", endless, 1002),
        ("a binary message", vec![0x82, 0x81, 0, 0, 0, 0, 1], 1003),
    ] {
        let (mut client, _) = Client::log_in(server.listen, "clientId=rude");
        client.stream.write_all(&bytes).unwrap();
        assert_eq!(client.await_close().map(|(code, _)| code), Some(code), "{what}");
        bystanders.notice_nothing();
    }
    eventually("all are counted", || counts(&server, "rtc_socket_closed_total{cause=\"protocol\"}") == 11);
}

#[test]
fn half_a_message_is_given_up_at_its_deadline_however_lively_the_connection() {
    let server = Server::start(&["--shards", "1", "--message-timeout", "600ms"]);
    let mut bystanders = Bystanders::new(&server);
    let (mut client, _) = Client::log_in(server.listen, "clientId=slow");
    // The first fragment of a text, and then nothing but pings.
    client.stream.write_all(&[0x01, 0x81, 0, 0, 0, 0, b'{']).unwrap();
    eventually("it is closed for its message", || {
        let _ = client.stream.write_all(&[0x89, 0x80, 0, 0, 0, 0]);
        matches!(
            client.next_within(std::time::Duration::from_millis(50)),
            Some(support::Incoming::Close(Some((1008, reason)))) if reason == "message-timeout"
        )
    });
    eventually("it is counted", || counts(&server, "rtc_socket_closed_total{cause=\"message_timeout\"}") == 1);
    bystanders.notice_nothing();
}

#[test]
fn texts_against_the_protocol_get_an_error_and_the_connection_lives() {
    let server = Server::start(&["--shards", "2"]);
    let mut bystanders = Bystanders::new(&server);
    let (mut client, _) = Client::log_in(server.listen, "clientId=clumsy&acks=1");
    let deep =
        format!(r#"{{"type":"message","toClientId":"b","payload":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let large = format!(r#"{{"type":"message","msgId":"m","toClientId":"b","payload":"{}"}}"#, "x".repeat(256 * 1024));
    for (what, text, code) in [
        ("nonsense", "nonsense".to_owned(), "malformed"),
        ("an unknown type", r#"{"type":"dance"}"#.to_owned(), "malformed"),
        ("no recipient", r#"{"type":"message","payload":1}"#.to_owned(), "malformed"),
        ("deep nesting", deep, "malformed"),
        ("a lone surrogate", r#"{"type":"message","toClientId":"b","payload":"\ud800"}"#.to_owned(), "malformed"),
        ("a payload over the limit", large, "too_large"),
    ] {
        client.send(&text);
        let error = client.json();
        assert_eq!(error["type"].as_str(), Some("error"), "{what}: {error:?}");
        assert_eq!(error["code"].as_str(), Some(code), "{what}: {error:?}");
        bystanders.notice_nothing();
    }
    client.send(r#"{"type":"ping"}"#);
    assert_eq!(client.json()["type"].as_str(), Some("pong"));
    assert_eq!(counts(&server, "rtc_socket_message_refused_total{cause=\"malformed\"}"), 5);
    assert_eq!(counts(&server, "rtc_socket_message_refused_total{cause=\"too_large\"}"), 1);
}

#[test]
fn connections_that_vanish_leave_nothing_behind() {
    let server = Server::start(&["--shards", "2"]);
    let mut bystanders = Bystanders::new(&server);
    for round in 0..200u32 {
        let mut stream = TcpStream::connect(server.listen).unwrap();
        let request = upgrade(&format!("/ws/connect?clientId=ghost-{round}&recvAck=1"), "");
        let cut = (round as usize * 7) % (request.len() + 20);
        let _ = stream.write_all(&request[..cut.min(request.len())]);
        if cut > request.len() {
            let _ = stream.write_all(&[0x81, 0xfe, 0x10]);
        }
    }
    for gauge in ["rtc_socket_connections", "rtc_socket_sessions"] {
        eventually("they are all gone", || counts(&server, gauge) == 2);
    }
    bystanders.notice_nothing();
}
