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

/// The fields of a message to deliver. Ids are plain text, the payload is JSON already.
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
            + json::escaped_bytes(self.msg_id)
            + FROM.len()
            + json::escaped_bytes(self.from)
            + TO.len()
            + json::escaped_bytes(self.to)
            + self.field.key().len()
            + self.payload.len()
            + OFFSET.len()
            + json::number_bytes(offset)
            + TS.len()
            + json::number_bytes(self.ts_ms)
            + 1;
        begin_frame(out, Opcode::Text, json_bytes);
        let start = out.len();
        out.extend_from_slice(HEAD);
        json::write_escaped(out, self.msg_id);
        out.extend_from_slice(FROM);
        json::write_escaped(out, self.from);
        out.extend_from_slice(TO);
        json::write_escaped(out, self.to);
        out.extend_from_slice(self.field.key());
        out.extend_from_slice(self.payload.as_bytes());
        out.extend_from_slice(OFFSET);
        json::write_number(out, offset);
        out.extend_from_slice(TS);
        json::write_number(out, self.ts_ms);
        out.push(b'}');
        debug_assert_eq!(out.len() - start, json_bytes, "the frame header promised another length");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_holds_the_envelope_whatever_the_ids() {
        for (msg_id, from, to) in [("m1", "a", "b"), ("\"", "a\\", "zoë"), ("m", "a\"\"", "😀")] {
            for payload in ["1", "\"x\\ny\"", r#"{"k":[true,null]}"#] {
                let envelope =
                    Envelope { msg_id, from, to, field: PayloadField::Payload, payload, ts_ms: 1_700_000_000_000 };
                let mut frame = Vec::new();
                envelope.write_frame(&mut frame, 42);
                let header = websocket::header_bytes(frame.len() - 2);
                let value: sonic_rs::Value = sonic_rs::from_slice(&frame[header..]).unwrap();
                use sonic_rs::{JsonContainerTrait, JsonValueTrait};
                assert_eq!(value["type"].as_str(), Some("message"));
                assert_eq!(value["msgId"].as_str(), Some(msg_id));
                assert_eq!(value["from"].as_str(), Some(from));
                assert_eq!(value["toClientId"].as_str(), Some(to));
                assert_eq!(value["offset"].as_u64(), Some(42));
                assert_eq!(value["ts"].as_u64(), Some(1_700_000_000_000));
                assert_eq!(value.as_object().unwrap().len(), 7);
                assert!(std::str::from_utf8(&frame).is_err() || String::from_utf8_lossy(&frame).contains(payload));
            }
        }
    }
}
