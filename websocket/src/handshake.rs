//! The opening handshake (RFC 6455 §4) as values: the server reads a request and writes its answer, the client writes
//! the request and judges the answer.
//!
//! Header lines are read by `httparse`; the caller caps the bytes it gathers for one request. Nothing allocates but
//! the buffer written to and a query value that is percent-encoded.

mod client;
mod query;
mod request;
mod response;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

pub use client::{ClientKey, encode_upgrade_request, parse_upgrade_response};
pub use query::{QUERY_PAIRS_MAX, QueryPairs, percent_decode, query_pairs};
pub use request::{Request, Upgrade};
pub use response::{encode_response, encode_switching_protocols};

/// Header lines read from one request or response.
pub const HEADERS_MAX: usize = 64;

/// Length of a `Sec-WebSocket-Key`: base64 of [`KEY_NONCE_BYTES`].
pub const KEY_BYTES: usize = 24;

/// Random bytes behind a `Sec-WebSocket-Key`.
pub const KEY_NONCE_BYTES: usize = 16;

/// Length of a `Sec-WebSocket-Accept`: base64 of a SHA-1 digest.
pub const ACCEPT_BYTES: usize = 28;

/// RFC 6455 §1.3.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The only version of the protocol (§4.1).
const VERSION: &str = "13";

/// The `Sec-WebSocket-Accept` that belongs to a `Sec-WebSocket-Key` (§4.2.2).
#[expect(clippy::missing_panics_doc, reason = "base64 of a fixed length always fits")]
pub fn accept_key(key: &str) -> [u8; ACCEPT_BYTES] {
    let digest = Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize();
    let mut accept = [0; ACCEPT_BYTES];
    let len = STANDARD.encode_slice(digest, &mut accept).expect("20 bytes are 28 in base64");
    debug_assert!(len == ACCEPT_BYTES);
    accept
}

/// Whether a comma-separated header value names `token`, in any case (RFC 9110 §5.6.1).
fn names_token(value: &[u8], token: &str) -> bool {
    value.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// Appends `name: value` as a header line. Bytes that would end the line become spaces, so that no value, wherever it
/// came from, can add a header or a second response.
fn push_header(out: &mut Vec<u8>, name: &str, value: &str) {
    push_line_part(out, name);
    out.extend_from_slice(b": ");
    push_line_part(out, value);
    out.extend_from_slice(b"\r\n");
}

fn push_line_part(out: &mut Vec<u8>, text: &str) {
    out.extend(text.bytes().map(|byte| if matches!(byte, b'\r' | b'\n' | 0) { b' ' } else { byte }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_of_rfc_6455_section_1_3() {
        assert_eq!(&accept_key("dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn tokens_are_found_in_lists_whatever_their_case() {
        assert!(names_token(b"keep-alive, Upgrade", "upgrade"));
        assert!(names_token(b"\tUPGRADE ,", "upgrade"));
        assert!(!names_token(b"upgraded", "upgrade"));
        assert!(!names_token(b"", "upgrade"));
    }

    #[test]
    fn a_header_value_cannot_end_its_line() {
        let mut out = Vec::new();
        push_header(&mut out, "Location", "/a\r\nSet-Cookie: b");
        assert_eq!(out, b"Location: /a  Set-Cookie: b\r\n");
    }
}
