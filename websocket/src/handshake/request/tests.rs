//! Requests as browsers, tools and attackers send them.

use super::*;
use proptest::prelude::*;

const GOOD: &[&str] = &[
    "Host: localhost:8080",
    "Upgrade: websocket",
    "Connection: keep-alive, Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

fn text(line: &str, headers: &[&str]) -> String {
    format!("{line}\r\n{}\r\n\r\n", headers.join("\r\n"))
}

/// Judges a good request in which `replace` (a header's first letters) gave way to `with`.
fn check(line: &str, replace: &str, with: &[&str], expected: Option<UpgradeError>) {
    let mut headers: Vec<&str> =
        GOOD.iter().copied().filter(|header| replace.is_empty() || !header.starts_with(replace)).collect();
    headers.extend(with);
    let bytes = text(line, &headers);
    let (request, consumed) = Request::parse(bytes.as_bytes()).unwrap().unwrap();
    assert_eq!(consumed, bytes.len());
    assert_eq!(request.upgrade().err(), expected, "{bytes}");
}

#[test]
fn an_upgrade_must_meet_every_condition() {
    let get = "GET /ws HTTP/1.1";
    for (line, replace, with, expected) in [
        (get, "", &[][..], None),
        (get, "Upgrade", &["upgrade: h2c, WebSocket"], None),
        (get, "Connection", &["connection: close", "connection: UPGRADE"], None),
        (get, "", &["content-length: 0"], None),
        ("POST /ws HTTP/1.1", "", &[], Some(UpgradeError::MethodNotGet)),
        ("get /ws HTTP/1.1", "", &[], Some(UpgradeError::MethodNotGet)),
        ("GET /ws HTTP/1.0", "", &[], Some(UpgradeError::VersionNotHttp11)),
        (get, "Host", &[], Some(UpgradeError::MissingHost)),
        (get, "Host", &["Host:"], Some(UpgradeError::MissingHost)),
        (get, "Upgrade", &[], Some(UpgradeError::NotAnUpgrade)),
        (get, "Upgrade", &["Upgrade: websockets"], Some(UpgradeError::NotAnUpgrade)),
        (get, "Connection", &[], Some(UpgradeError::NotAnUpgrade)),
        (get, "Connection", &["Connection: keep-alive"], Some(UpgradeError::NotAnUpgrade)),
        (get, "Sec-WebSocket-Version", &[], Some(UpgradeError::UnsupportedVersion)),
        (get, "Sec-WebSocket-Version", &["Sec-WebSocket-Version: 8"], Some(UpgradeError::UnsupportedVersion)),
        (get, "", &["Sec-WebSocket-Version: 13"], Some(UpgradeError::DuplicateHeader("sec-websocket-version"))),
        (get, "Sec-WebSocket-Key", &[], Some(UpgradeError::InvalidKey)),
        (get, "Sec-WebSocket-Key", &["Sec-WebSocket-Key: AAAA"], Some(UpgradeError::InvalidKey)),
        (get, "Sec-WebSocket-Key", &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZSEh"], Some(UpgradeError::InvalidKey)),
        (get, "Sec-WebSocket-Key", &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j*Q=="], Some(UpgradeError::InvalidKey)),
        (
            get,
            "",
            &["sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="],
            Some(UpgradeError::DuplicateHeader("sec-websocket-key")),
        ),
        (get, "", &["Content-Length: 5"], Some(UpgradeError::HasBody)),
        (get, "", &["Transfer-Encoding: chunked"], Some(UpgradeError::HasBody)),
    ] {
        check(line, replace, with, expected);
    }
}

#[test]
fn every_refusal_has_its_status() {
    for (error, status) in [
        (UpgradeError::MethodNotGet, 405),
        (UpgradeError::NotAnUpgrade, 426),
        (UpgradeError::UnsupportedVersion, 426),
        (UpgradeError::MissingHost, 400),
        (UpgradeError::InvalidKey, 400),
    ] {
        assert_eq!(error.status(), status);
        assert_eq!(error.headers().contains(&("Sec-WebSocket-Version", "13")), status == 426);
    }
    assert_eq!(RequestError::Malformed.status(), 400);
    assert_eq!(RequestError::TooManyHeaders { limit: HEADERS_MAX }.status(), 431);
}

#[test]
fn what_is_no_request_is_refused() {
    let refused = |bytes: &[u8]| Request::parse(bytes).err();
    assert_eq!(refused(b"\x16\x03\x01\x02\x00"), Some(RequestError::Malformed));
    assert_eq!(refused(b"GET / HTTP/2.0\r\n\r\n"), Some(RequestError::Malformed));
    assert_eq!(refused(b"GET / HTTP/1.1\r\nno colon\r\n\r\n"), Some(RequestError::Malformed));
    let twice = |header| text("GET / HTTP/1.1", &[header, header]);
    assert_eq!(refused(twice("Host: a").as_bytes()), Some(RequestError::DuplicateHeader("host")));
    assert_eq!(refused(twice("ORIGIN: a").as_bytes()), Some(RequestError::DuplicateHeader("origin")));
    assert_eq!(refused(b"GET / HTTP/1.1\r\nOrigin: \xff\r\n\r\n"), Some(RequestError::HeaderNotText("origin")));
    let limit = RequestError::TooManyHeaders { limit: HEADERS_MAX };
    assert_eq!(refused(text("GET / HTTP/1.1", &["a: b"; HEADERS_MAX + 1]).as_bytes()), Some(limit));
    assert_eq!(refused(text("GET / HTTP/1.1", &["a: b"; HEADERS_MAX]).as_bytes()), None);
}

#[test]
fn targets_are_split_into_path_and_query() {
    for (target, path, query) in [
        ("/", "/", ""),
        ("/ws/connect?clientId=a", "/ws/connect", "clientId=a"),
        ("/a?b?c", "/a", "b?c"),
        ("http://node:8080/ws?x=1", "/ws", "x=1"),
        ("ws://node", "/", ""),
        ("ws://node?x=1", "/", "x=1"),
        ("*", "*", ""),
    ] {
        assert_eq!(split_target(target), (path, query), "{target}");
    }
}

#[test]
fn headers_are_found_whatever_their_case() {
    let bytes = text("GET / HTTP/1.1", &["X-One: 1", "x-two: 2", "X-ONE: 3"]);
    let (request, _) = Request::parse(bytes.as_bytes()).unwrap().unwrap();
    assert_eq!(request.header("x-one"), Some(&b"1"[..]));
    assert_eq!(request.headers("x-One").collect::<Vec<_>>(), [b"1", b"3"]);
    assert_eq!(request.header("x-three"), None);
}

#[test]
fn half_a_request_waits_for_the_rest() {
    let bytes = text("GET /ws HTTP/1.1", GOOD);
    for len in 0..bytes.len() {
        assert!(Request::parse(&bytes.as_bytes()[..len]).unwrap().is_none(), "{len}");
    }
}

#[test]
fn what_follows_the_request_is_left_alone() {
    let bytes = text("GET /ws HTTP/1.1", GOOD);
    let with_frames = [bytes.as_bytes(), b"\x81\x80\0\0\0\0"].concat();
    assert_eq!(Request::parse(&with_frames).unwrap().unwrap().1, bytes.len());
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        if let Ok(Some((request, _))) = Request::parse(&bytes) {
            let _ = request.upgrade();
        }
    }

    #[test]
    fn a_request_with_any_byte_changed_does_not_panic(index: prop::sample::Index, byte: u8) {
        let mut bytes = text("GET /ws?a=%41 HTTP/1.1", GOOD).into_bytes();
        let index = index.index(bytes.len());
        bytes[index] = byte;
        if let Ok(Some((request, _))) = Request::parse(&bytes) {
            let _ = (request.upgrade(), request.query_pairs().count());
        }
    }
}
