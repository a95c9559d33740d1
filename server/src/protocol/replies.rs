//! What the node says for itself: welcome, acks, errors, advice; each appended to an outbox as one text frame.

use websocket::{Opcode, begin_frame};

use super::json;

/// What a sender learns of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckStatus {
    /// The recipient acknowledged it.
    Delivered,
    /// Kafka or the store confirmed it.
    Stored,
    /// This node alone holds it: it survives connections, not the process.
    Held,
    /// It was written to the socket of a recipient that does not acknowledge.
    Sent,
}

impl AckStatus {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Stored => "stored",
            Self::Held => "held",
            Self::Sent => "sent",
        }
    }
}

/// The codes of `error` messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// Not what this protocol allows.
    Malformed,
    /// Over the message limit.
    TooLarge,
    /// Sent faster than allowed.
    RateLimited,
    /// The node, or the sender's window of unconfirmed messages, is full for now.
    Overloaded,
    /// The recipient's replay buffer is full.
    BufferFull,
    /// No confirmation came in time: send again under the same `msgId`.
    Unconfirmed,
}

impl ErrorCode {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::BufferFull => "buffer_full",
            Self::Unconfirmed => "unconfirmed",
        }
    }
}

/// The first message a client gets.
#[derive(Debug)]
pub struct Welcome<'a> {
    /// This node.
    pub node_id: &'a str,
    /// The client's id, as given or assigned.
    pub client_id: &'a str,
    /// Version of the ring this node has.
    pub ring_version: u64,
    /// The position after which delivery continues.
    pub offset: u64,
    /// False when something after the client's position is gone.
    pub recovered: bool,
    /// How often the node pings a silent client.
    pub ping_interval_ms: u64,
}

/// Advice to open a connection elsewhere, sent before this one is closed.
#[derive(Debug)]
pub struct ReconnectAdvice<'a> {
    /// `drain`, `rebalance` or `recycle`.
    pub reason: &'a str,
    /// The node to go to; empty when any will do.
    pub node_id: &'a str,
    /// Its URL; empty when the client's own will do.
    pub url: &'a str,
    /// How long to wait first, in milliseconds.
    pub after_ms: u64,
    /// The position to resume from.
    pub resume_offset: u64,
}

/// Appends the frames of the node's own messages to an output buffer.
pub struct Replies;

impl Replies {
    /// `welcome`.
    pub fn welcome(out: &mut Vec<u8>, welcome: &Welcome<'_>) {
        text_frame(out, |out| {
            out.extend_from_slice(br#"{"type":"welcome","nodeId":"#);
            json::write_string(out, welcome.node_id);
            out.extend_from_slice(br#","clientId":"#);
            json::write_string(out, welcome.client_id);
            out.extend_from_slice(br#","ringVersion":"#);
            json::write_number(out, welcome.ring_version);
            out.extend_from_slice(br#","offset":"#);
            json::write_number(out, welcome.offset);
            out.extend_from_slice(if welcome.recovered { br#","recovered":true"# } else { br#","recovered":false"# });
            out.extend_from_slice(br#","pingIntervalMs":"#);
            json::write_number(out, welcome.ping_interval_ms);
            out.push(b'}');
        });
    }

    /// `ack` to a sender; the message's name comes as it stands in JSON, escapes and all.
    pub fn ack(out: &mut Vec<u8>, escaped_msg_id: &str, status: AckStatus) {
        text_frame(out, |out| {
            out.extend_from_slice(br#"{"type":"ack","msgId":""#);
            out.extend_from_slice(escaped_msg_id.as_bytes());
            out.extend_from_slice(br#"","status":""#);
            out.extend_from_slice(status.as_str().as_bytes());
            out.extend_from_slice(br#""}"#);
        });
    }

    /// `error`, about a message if its name is given: as it stands in JSON, escapes and all.
    pub fn error(out: &mut Vec<u8>, code: ErrorCode, reason: &str, escaped_msg_id: Option<&str>) {
        text_frame(out, |out| {
            out.extend_from_slice(br#"{"type":"error","code":""#);
            out.extend_from_slice(code.as_str().as_bytes());
            out.extend_from_slice(br#"","reason":"#);
            json::write_string(out, reason);
            if let Some(escaped_msg_id) = escaped_msg_id {
                out.extend_from_slice(br#","msgId":""#);
                out.extend_from_slice(escaped_msg_id.as_bytes());
                out.push(b'"');
            }
            out.push(b'}');
        });
    }

    /// `pong`.
    pub fn pong(out: &mut Vec<u8>) {
        text_frame(out, |out| out.extend_from_slice(br#"{"type":"pong"}"#));
    }

    /// `reconnect`.
    pub fn reconnect(out: &mut Vec<u8>, advice: &ReconnectAdvice<'_>) {
        text_frame(out, |out| {
            out.extend_from_slice(br#"{"type":"reconnect","reason":"#);
            json::write_string(out, advice.reason);
            out.extend_from_slice(br#","nodeId":"#);
            json::write_string(out, advice.node_id);
            out.extend_from_slice(br#","url":"#);
            json::write_string(out, advice.url);
            out.extend_from_slice(br#","afterMs":"#);
            json::write_number(out, advice.after_ms);
            out.extend_from_slice(br#","resumeOffset":"#);
            json::write_number(out, advice.resume_offset);
            out.push(b'}');
        });
    }
}

/// Writes the text, then puts the header that fits in front of it.
fn text_frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    // Nearly all of these are short: the two bytes of a short header are kept free, a longer one moves the text.
    out.extend_from_slice(&[0; 2]);
    write(out);
    let payload_bytes = out.len() - start - 2;
    let mut header = Vec::with_capacity(10);
    begin_frame(&mut header, Opcode::Text, payload_bytes);
    out.splice(start..start + 2, header);
}

#[cfg(test)]
mod tests {
    use super::*;
    use websocket::{Decoder, Event, Role};

    fn check(write: impl FnOnce(&mut Vec<u8>), expected: &str) {
        let mut out = b"before".to_vec();
        write(&mut out);
        let mut decoder = Decoder::new(Role::Client, 10_000);
        let frame = decoder.decode(&mut out[6..]).unwrap();
        assert_eq!(frame.event, Some(Event::Text(expected)));
    }

    #[test]
    fn replies_are_the_frames_they_should_be() {
        check(Replies::pong, r#"{"type":"pong"}"#);
        check(|out| Replies::ack(out, r#"m\"1"#, AckStatus::Held), r#"{"type":"ack","msgId":"m\"1","status":"held"}"#);
        check(
            |out| Replies::error(out, ErrorCode::Malformed, "no", None),
            r#"{"type":"error","code":"malformed","reason":"no"}"#,
        );
        let long = "x".repeat(300);
        check(
            |out| Replies::error(out, ErrorCode::TooLarge, &long, Some("m")),
            &format!(r#"{{"type":"error","code":"too_large","reason":"{long}","msgId":"m"}}"#),
        );
    }
}
