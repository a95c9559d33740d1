//! The server's answers: the switch to WebSocket, and plain responses for everything else.

use std::io::Write as _;

use super::{accept_key, push_header, push_line_part};

/// Appends the 101 that completes the handshake (§4.2.2). `key` is the request's `Sec-WebSocket-Key`; a subprotocol
/// must be one of those offered.
pub fn encode_switching_protocols(out: &mut Vec<u8>, key: &str, subprotocol: Option<&str>) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(&accept_key(key));
    out.extend_from_slice(b"\r\n");
    if let Some(subprotocol) = subprotocol {
        push_header(out, "Sec-WebSocket-Protocol", subprotocol);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a whole response. `Content-Length` is added, and `Connection: close` unless `headers` say otherwise.
pub fn encode_response(out: &mut Vec<u8>, status: u16, headers: &[(&str, &str)], body: &[u8]) {
    // Writing to a `Vec` cannot fail.
    let _ = write!(out, "HTTP/1.1 {status} {}\r\n", reason_phrase(status));
    for (name, value) in headers {
        push_header(out, name, value);
    }
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("connection")) {
        push_line_part(out, "Connection: close");
        out.extend_from_slice(b"\r\n");
    }
    let _ = write!(out, "Content-Length: {}\r\n\r\n", body.len());
    out.extend_from_slice(body);
}

/// RFC 9110 §15: for people; software goes by the number.
const fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_rfc_6455_section_1_2() {
        let mut out = Vec::new();
        encode_switching_protocols(&mut out, "dGhlIHNhbXBsZSBub25jZQ==", Some("chat"));
        let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n";
        assert_eq!(out, expected.as_bytes());
    }

    #[test]
    fn a_refusal_says_how_long_it_is_and_that_it_is_the_last() {
        let mut out = Vec::new();
        encode_response(&mut out, 503, &[("Retry-After", "2")], b"draining\n");
        let expected = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nConnection: close\r\n\
            Content-Length: 9\r\n\r\ndraining\n";
        assert_eq!(out, expected.as_bytes());
    }
}
