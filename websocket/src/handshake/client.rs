//! The client's side: writing the request and judging the answer (§4.1).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{HEADERS_MAX, KEY_BYTES, KEY_NONCE_BYTES, accept_key, names_token, push_header, push_line_part};
use crate::error::ResponseError;

/// A `Sec-WebSocket-Key`, made from bytes that the caller draws at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientKey([u8; KEY_BYTES]);

impl ClientKey {
    /// The key of this nonce.
    #[expect(clippy::missing_panics_doc, reason = "base64 of a fixed length always fits")]
    pub fn new(nonce: [u8; KEY_NONCE_BYTES]) -> Self {
        let mut key = [0; KEY_BYTES];
        let len = STANDARD.encode_slice(nonce, &mut key).expect("16 bytes are 24 in base64");
        debug_assert!(len == KEY_BYTES);
        Self(key)
    }

    /// The header's value.
    #[expect(clippy::missing_panics_doc, reason = "base64 is ASCII")]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("base64 is ASCII")
    }
}

/// Appends an upgrade request. `host` carries the port where it is not the scheme's own; `path_and_query` begins with
/// `/` and is percent-encoded already; `subprotocol` may list several, separated by commas.
pub fn encode_upgrade_request(
    out: &mut Vec<u8>,
    host: &str,
    path_and_query: &str,
    key: &str,
    subprotocol: Option<&str>,
    headers: &[(&str, &str)],
) {
    out.extend_from_slice(b"GET ");
    push_line_part(out, path_and_query);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    push_header(out, "Host", host);
    out.extend_from_slice(b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n");
    push_header(out, "Sec-WebSocket-Key", key);
    if let Some(subprotocol) = subprotocol {
        push_header(out, "Sec-WebSocket-Protocol", subprotocol);
    }
    for (name, value) in headers {
        push_header(out, name, value);
    }
    out.extend_from_slice(b"\r\n");
}

/// Reads the server's answer from the front of `bytes`: its length once the connection is a WebSocket (the bytes behind
/// it are frames), or `None` until more bytes arrive. Which subprotocol the server chose is not looked at.
///
/// # Errors
///
/// Any other answer than the 101 that belongs to `key`; a refusal carries its status and `Retry-After`.
pub fn parse_upgrade_response(bytes: &[u8], key: &str) -> Result<Option<usize>, ResponseError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let consumed = match response.parse(bytes) {
        Ok(httparse::Status::Complete(consumed)) => consumed,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(ResponseError::TooManyHeaders { limit: HEADERS_MAX });
        }
        Err(_) => return Err(ResponseError::Malformed),
    };
    let status = response.code.ok_or(ResponseError::Malformed)?;
    let mut upgrades_to_websocket = false;
    let mut connection_upgrades = false;
    let mut accept = None;
    let mut retry_after = None;
    let mut has_extension = false;
    for header in response.headers.iter() {
        let name = header.name;
        if name.eq_ignore_ascii_case("upgrade") {
            upgrades_to_websocket |= names_token(header.value, "websocket");
        } else if name.eq_ignore_ascii_case("connection") {
            connection_upgrades |= names_token(header.value, "upgrade");
        } else if name.eq_ignore_ascii_case("sec-websocket-accept") {
            accept = Some(header.value);
        } else if name.eq_ignore_ascii_case("sec-websocket-extensions") {
            has_extension |= !header.value.is_empty();
        } else if name.eq_ignore_ascii_case("retry-after") {
            retry_after = parse_seconds(header.value);
        }
    }
    if status != 101 {
        return Err(ResponseError::Refused { status, retry_after });
    }
    if !(upgrades_to_websocket && connection_upgrades) {
        return Err(ResponseError::NotWebSocket);
    }
    if accept != Some(&accept_key(key)) {
        return Err(ResponseError::WrongAccept);
    }
    if has_extension {
        return Err(ResponseError::UnexpectedExtension);
    }
    Ok(Some(consumed))
}

/// `Retry-After` in seconds; its other form, a date, would need a clock.
fn parse_seconds(value: &[u8]) -> Option<Duration> {
    let seconds: u32 = std::str::from_utf8(value).ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::{Request, encode_response, encode_switching_protocols};

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn check(response: &str, expected: Result<Option<usize>, ResponseError>) {
        assert_eq!(parse_upgrade_response(response.as_bytes(), KEY), expected, "{response}");
    }

    #[test]
    fn a_request_is_accepted_by_the_server_and_its_answer_by_the_client() {
        let key = ClientKey::new(*b"the sample nonce");
        assert_eq!(key.as_str(), KEY);
        let mut sent = Vec::new();
        encode_upgrade_request(&mut sent, "localhost:80", "/ws?a=1", KEY, Some("x, y"), &[("Origin", "http://a")]);
        let (request, consumed) = Request::parse(&sent).unwrap().unwrap();
        assert_eq!(consumed, sent.len());
        assert_eq!((request.path(), request.query(), request.origin()), ("/ws", "a=1", Some("http://a")));
        let upgrade = request.upgrade().unwrap();
        assert_eq!(upgrade.subprotocols().collect::<Vec<_>>(), ["x", "y"]);
        let mut answer = Vec::new();
        encode_switching_protocols(&mut answer, upgrade.key(), upgrade.subprotocols().next());
        let answer_len = answer.len();
        for len in 0..answer_len {
            assert_eq!(parse_upgrade_response(&answer[..len], KEY), Ok(None));
        }
        answer.extend_from_slice(b"\x81\x05Hello");
        assert_eq!(parse_upgrade_response(&answer, KEY), Ok(Some(answer_len)));
    }

    #[test]
    fn a_refusal_tells_its_status_and_when_to_come_back() {
        let mut out = Vec::new();
        encode_response(&mut out, 503, &[("Retry-After", "2")], b"draining");
        let retry_after = Some(Duration::from_secs(2));
        assert_eq!(parse_upgrade_response(&out, KEY), Err(ResponseError::Refused { status: 503, retry_after }));
        check("HTTP/1.1 400 Bad Request\r\n\r\n", Err(ResponseError::Refused { status: 400, retry_after: None }));
    }

    #[test]
    fn another_answer_than_the_one_to_our_key_is_refused() {
        let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n";
        let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        check(&format!("{switch}\r\n"), Err(ResponseError::WrongAccept));
        check(&format!("{switch}Sec-WebSocket-Accept: AAAA\r\n\r\n"), Err(ResponseError::WrongAccept));
        check(&format!("HTTP/1.1 101 OK\r\n{accept}\r\n"), Err(ResponseError::NotWebSocket));
        check(
            &format!("{switch}{accept}Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
            Err(ResponseError::UnexpectedExtension),
        );
        check("SSH-2.0-OpenSSH\r\n", Err(ResponseError::Malformed));
        let many = "a: b\r\n".repeat(HEADERS_MAX + 1);
        check(&format!("{switch}{many}\r\n"), Err(ResponseError::TooManyHeaders { limit: HEADERS_MAX }));
    }
}
