//! Asking a balancer where a client belongs: `GET /api/v1/resolve?clientId=…`, and the `wsUrl` of its answer.
//!
//! Pure: what is written and read here is carried by `open.rs`. The request is of HTTP/1.0, so that the answer is never
//! chunked and ends with the connection.

use std::{fmt, io};

use serde::Deserialize;

/// An answer is a node's name, its address and a number.
pub(super) const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Why a balancer has not told where a client belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResolveError {
    /// It could not be reached, or hung up.
    Connect(io::ErrorKind),
    TimedOut,
    /// It answered with another status than 200: without a ring, or a node that is up, with 503.
    Refused(u16),
    /// Its answer is longer than [`ANSWER_BYTES_MAX`].
    TooLong,
    /// Its answer is no HTTP, or does not hold a `wsUrl`.
    Malformed,
    /// The `wsUrl` is not `ws://HOST:PORT[/PATH]` of a host with an address.
    BadUrl,
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(kind) => write!(f, "balancer: connect: {kind}"),
            Self::TimedOut => f.write_str("balancer: timed out"),
            Self::Refused(status) => write!(f, "balancer: refused: {status}"),
            Self::TooLong => f.write_str("balancer: its answer is too long"),
            Self::Malformed => f.write_str("balancer: its answer holds no wsUrl"),
            Self::BadUrl => f.write_str("balancer: its wsUrl is not ws://HOST:PORT"),
        }
    }
}

/// The request for the client that a connection's `query` begins with.
pub(super) fn request(authority: &str, path: &str, query: &str) -> Vec<u8> {
    let client = query.split('&').next().unwrap_or_default();
    format!("GET {path}{client} HTTP/1.0\r\nHost: {authority}\r\nConnection: close\r\n\r\n").into_bytes()
}

/// The `wsUrl` of a whole answer.
pub(super) fn ws_url(answer: &[u8]) -> Result<String, ResolveError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        ws_url: String,
    }
    let text = std::str::from_utf8(answer).map_err(|_| ResolveError::Malformed)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(ResolveError::Malformed)?;
    let mut words = head.split(' ');
    if !words.next().is_some_and(|version| version.starts_with("HTTP/1.")) {
        return Err(ResolveError::Malformed);
    }
    match words.next().and_then(|status| status.get(..3)?.parse().ok()) {
        Some(200) => {}
        Some(status) => return Err(ResolveError::Refused(status)),
        None => return Err(ResolveError::Malformed),
    }
    let answer: Answer = sonic_rs::from_str(body).map_err(|_| ResolveError::Malformed)?;
    Ok(answer.ws_url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_names_the_client_alone() {
        let request = String::from_utf8(request("b:1", "/api/v1/resolve", "?clientId=c-7&acks=1")).unwrap();
        assert!(request.starts_with("GET /api/v1/resolve?clientId=c-7 HTTP/1.0\r\nHost: b:1\r\n"), "{request}");
        assert!(request.ends_with("\r\n\r\n"), "{request}");
    }

    #[test]
    fn an_answer_holds_the_url_or_names_what_is_wrong() {
        let body = r#"{"nodeId":"n1","wsUrl":"ws://n1:8080/ws/connect","ringVersion":7}"#;
        for (answer, expected) in [
            (format!("HTTP/1.1 200 OK\r\nServer: x\r\n\r\n{body}"), Ok("ws://n1:8080/ws/connect")),
            (format!("HTTP/1.0 200\r\n\r\n{body}"), Ok("ws://n1:8080/ws/connect")),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n{}".to_owned(), Err(ResolveError::Refused(503))),
            (format!("HTTP/1.1 200 OK\r\n\r\n{}", &body[..30]), Err(ResolveError::Malformed)),
            ("HTTP/1.1 200 OK\r\n\r\n{}".to_owned(), Err(ResolveError::Malformed)),
            ("HTTP/1.1 200 OK\r\nServer: x".to_owned(), Err(ResolveError::Malformed)),
            (format!("200 OK\r\n\r\n{body}"), Err(ResolveError::Malformed)),
            ("HTTP/1.1 ok\r\n\r\n".to_owned(), Err(ResolveError::Malformed)),
            (String::new(), Err(ResolveError::Malformed)),
        ] {
            assert_eq!(ws_url(answer.as_bytes()).as_deref(), expected.as_ref().map(|url| *url), "{answer}");
        }
        assert_eq!(ws_url(b"HTTP/1.1 200 OK\r\n\r\n\xff"), Err(ResolveError::Malformed));
    }
}
