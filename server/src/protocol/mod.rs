//! The client protocol `rtc.v1.json` as values: text in, requests out; answers and envelopes as frames.
//! What it means is `shard::session`'s affair; a payload is passed on byte for byte and never looked into.

mod client_id;
mod envelope;
mod json;
mod publication;
mod replies;
mod request;
mod scan;

pub use client_id::{CLIENT_ID_BYTES_MAX, ClientId, InvalidClientId};
pub use envelope::{Envelope, PayloadField};
pub use json::DEPTH_MAX;
pub(crate) use json::{escape, escape_found, has_lone_surrogate, is_too_deep, write_number, write_string};
pub use publication::{PUBLISHER, Publication, Publications, parse_publications};
pub use replies::{AckStatus, ErrorCode, ReconnectAdvice, Replies, Welcome};
pub use request::{ClientRequest, MSG_ID_BYTES_MAX, Outgoing, Refusal, parse};

/// The WebSocket subprotocol's name.
pub const SUBPROTOCOL: &str = "rtc.v1.json";
