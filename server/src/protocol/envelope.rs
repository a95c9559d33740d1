//! A message on its way to its recipient, written once as the frame that leaves the socket.

use websocket::{Opcode, begin_frame};

use super::json;

/// Under which name a payload travels: the recipient gets it as the sender wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadField {
    /// `payload`: any JSON value.
    Payload,
    /// `payloadJson`: a string.
    PayloadJson,
}

impl PayloadField {
    fn key(self) -> &'static [u8] {
        match self {
            Self::Payload => b"\",\"payload\":",
            Self::PayloadJson => b"\",\"payloadJson\":",
        }
    }
}

/// The fields of a message to deliver, all of them JSON already: names and ids are the insides of strings.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// The sender's name for the message.
    pub msg_id: &'a str,
    /// Who sent it: set by the node, whatever the client wrote.
    pub from: &'a str,
    /// Who is to get it.
    pub to: &'a str,
    /// Under which name the payload came.
    pub field: PayloadField,
    /// A whole JSON value.
    pub payload: &'a str,
    /// When it was accepted, in milliseconds since 1970.
    pub ts_ms: u64,
}

const HEAD: &[u8] = br#"{"type":"message","msgId":""#;
const FROM: &[u8] = br#"","from":""#;
const TO: &[u8] = br#"","toClientId":""#;
const OFFSET: &[u8] = br#","offset":"#;
const TS: &[u8] = br#","ts":"#;

impl Envelope<'_> {
    /// Appends the whole WebSocket frame that delivers this message at `offset`.
    pub fn write_frame(&self, out: &mut Vec<u8>, offset: u64) {
        let json_bytes = HEAD.len()
            + self.msg_id.len()
            + FROM.len()
            + self.from.len()
            + TO.len()
            + self.to.len()
            + self.field.key().len()
            + self.payload.len()
            + OFFSET.len()
            + json::number_bytes(offset)
            + TS.len()
            + json::number_bytes(self.ts_ms)
            + 1;
        begin_frame(out, Opcode::Text, json_bytes);
        let start = out.len();
        self.write_body(out);
        write_tail(out, offset, self.ts_ms);
        debug_assert_eq!(out.len() - start, json_bytes, "the frame header promised another length");
    }
}

/// Envelopes that were written already: as frames in an outbox, as bodies in a store.
impl Envelope<'_> {
    /// The message's name as it stands in a frame of [`Envelope::write_frame`], JSON escapes and all.
    pub(crate) fn msg_id_of_frame(frame: &[u8]) -> &str {
        let text = text_of_frame(frame).get(HEAD.len()..).unwrap_or_default();
        let mut is_escaped = false;
        let end = text.iter().position(|byte| {
            let ends = *byte == b'"' && !is_escaped;
            is_escaped = *byte == b'\\' && !is_escaped;
            ends
        });
        text.get(..end.unwrap_or(0)).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default()
    }

    /// The JSON of such a frame up to where its offset stands.
    pub(crate) fn body_of_frame(frame: &[u8], offset: u64, ts_ms: u64) -> &[u8] {
        let text = text_of_frame(frame);
        let tail = OFFSET.len() + json::number_bytes(offset) + TS.len() + json::number_bytes(ts_ms) + 1;
        text.get(..text.len().saturating_sub(tail)).unwrap_or_default()
    }

    /// Appends what [`Envelope::body_of_frame`] would find in the frame of this message.
    pub(crate) fn write_body(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(HEAD);
        out.extend_from_slice(self.msg_id.as_bytes());
        out.extend_from_slice(FROM);
        out.extend_from_slice(self.from.as_bytes());
        out.extend_from_slice(TO);
        out.extend_from_slice(self.to.as_bytes());
        out.extend_from_slice(self.field.key());
        out.extend_from_slice(self.payload.as_bytes());
    }

    /// Appends the frame of a message whose body was kept.
    pub(crate) fn frame_of_body(body: &[u8], offset: u64, ts_ms: u64, out: &mut Vec<u8>) {
        let tail = OFFSET.len() + json::number_bytes(offset) + TS.len() + json::number_bytes(ts_ms) + 1;
        begin_frame(out, Opcode::Text, body.len() + tail);
        out.extend_from_slice(body);
        write_tail(out, offset, ts_ms);
    }
}

fn write_tail(out: &mut Vec<u8>, offset: u64, ts_ms: u64) {
    out.extend_from_slice(OFFSET);
    json::write_number(out, offset);
    out.extend_from_slice(TS);
    json::write_number(out, ts_ms);
    out.push(b'}');
}

/// The text of one whole unmasked frame.
fn text_of_frame(frame: &[u8]) -> &[u8] {
    // RFC 6455 §5.2: the length is in the second byte, or in the two or eight bytes that it announces.
    let header_bytes = match frame.get(1) {
        Some(126) => 4,
        Some(127) => 10,
        _ => 2,
    };
    frame.get(header_bytes..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use sonic_rs::{JsonContainerTrait, JsonValueTrait};

    use super::*;

    #[test]
    fn the_frame_holds_the_envelope_whatever_the_ids() {
        for (msg_id, from, to) in [("m1", "a", "b"), ("\"", "a\\", "zoë"), ("m", "a\"\"", "😀")] {
            for payload in ["1", "\"x\\ny\"", r#"{"k":[true,null]}"#] {
                let (escaped_msg_id, escaped_from, escaped_to) =
                    (json::escape(msg_id), json::escape(from), json::escape(to));
                let envelope = Envelope {
                    msg_id: &escaped_msg_id,
                    from: &escaped_from,
                    to: &escaped_to,
                    field: PayloadField::Payload,
                    payload,
                    ts_ms: 1_700_000_000_000,
                };
                let mut frame = Vec::new();
                envelope.write_frame(&mut frame, 42);
                let value: sonic_rs::Value = sonic_rs::from_slice(text_of_frame(&frame)).unwrap();
                assert_eq!(value["type"].as_str(), Some("message"));
                assert_eq!(value["msgId"].as_str(), Some(msg_id));
                assert_eq!(value["from"].as_str(), Some(from));
                assert_eq!(value["toClientId"].as_str(), Some(to));
                assert_eq!(value["offset"].as_u64(), Some(42));
                assert_eq!(value["ts"].as_u64(), Some(1_700_000_000_000));
                assert_eq!(value.as_object().unwrap().len(), 7);
                let body = Envelope::body_of_frame(&frame, 42, envelope.ts_ms);
                assert!(body.ends_with(payload.as_bytes()));
                let mut again = Vec::new();
                Envelope::frame_of_body(body, 42, envelope.ts_ms, &mut again);
                assert_eq!(again, frame);
                assert_eq!(Envelope::msg_id_of_frame(&frame), escaped_msg_id);
            }
        }
    }
}
