//! What a client may send: parsed once, lazily, with the payload left as it is.

use std::borrow::Cow;

use serde::Deserialize;
use sonic_rs::LazyValue;

use super::envelope::PayloadField;
use super::json;
use super::scan::scan;
use super::{ClientId, ErrorCode};

/// The longest `msgId`, in bytes of UTF-8.
pub const MSG_ID_BYTES_MAX: usize = 128;

/// What is said of a text that cannot be read as far as its `msgId`.
pub(super) const UNREADABLE: &str =
    "not a JSON object, or a field of this protocol is there twice or has the wrong type";

/// A client's message, understood.
#[derive(Debug, PartialEq)]
pub enum ClientRequest<'a> {
    /// A message for another client.
    Message(Outgoing<'a>),
    /// Everything up to this offset has been received.
    AckOffset(u64),
    /// This one message has been received.
    AckMessage(Cow<'a, str>),
    /// An application-level ping.
    Ping,
}

/// A message as its sender wrote it.
#[derive(Debug, PartialEq)]
pub struct Outgoing<'a> {
    /// The sender's own name for it; without one the node gives one.
    pub msg_id: Option<Cow<'a, str>>,
    /// The recipient.
    pub to: Cow<'a, str>,
    /// Under which name the payload came.
    pub field: PayloadField,
    /// The payload's bytes, a whole JSON value.
    pub payload: Cow<'a, str>,
    /// True when the sender asks for an ack of this one message.
    pub wants_ack: bool,
    /// How long it is worth delivering, in milliseconds.
    pub ttl_ms: Option<u64>,
}

/// Why a text was refused: what the client is told.
#[derive(Debug, PartialEq)]
pub struct Refusal<'a> {
    /// The code in the `error` message.
    pub code: ErrorCode,
    /// What is wrong, for a person.
    pub reason: &'static str,
    /// The message it was about, where that could be read.
    pub msg_id: Option<Cow<'a, str>>,
}

/// The fields of a client's message as they stand in its text, not yet judged. Values are raw JSON.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Fields<'a> {
    pub kind: Cow<'a, str>,
    pub msg_id: Option<Cow<'a, str>>,
    pub to: Option<Cow<'a, str>>,
    pub payload_json: Option<Cow<'a, str>>,
    pub payload: Option<Cow<'a, str>>,
    pub ack: Option<Cow<'a, str>>,
    pub ttl_ms: Option<u64>,
    pub offset: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PlainFields<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    msg_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    to_client_id: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    payload_json: Option<LazyValue<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    payload: Option<LazyValue<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    ack: Option<LazyValue<'a>>,
    #[serde(default)]
    ttl_ms: Option<u64>,
    #[serde(default)]
    offset: Option<u64>,
}

/// A value that is there, `null` included: a payload may be that.
pub(super) fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<LazyValue<'de>>, D::Error> {
    LazyValue::deserialize(deserializer).map(Some)
}

/// The fields of `text` by the plain way; the text must not nest too deep.
pub(super) fn plain_fields(text: &str) -> Option<Fields<'_>> {
    let fields: PlainFields<'_> = sonic_rs::from_str(text).ok()?;
    Some(Fields {
        kind: fields.kind,
        msg_id: fields.msg_id,
        to: fields.to_client_id,
        payload_json: fields.payload_json.map(|value| value.as_raw_cow()),
        payload: fields.payload.map(|value| value.as_raw_cow()),
        ack: fields.ack.map(|value| value.as_raw_cow()),
        ttl_ms: fields.ttl_ms,
        offset: fields.offset,
    })
}

/// Reads one text message of a client. `payload_bytes_max` caps the payload.
///
/// # Errors
/// Says what the client is told; the connection lives on.
pub fn parse(text: &str, payload_bytes_max: usize) -> Result<ClientRequest<'_>, Refusal<'_>> {
    let fields = match scan(text) {
        Some(fields) => fields,
        None if json::is_too_deep(text) => return Err(malformed("nested too deep")),
        None => {
            let fields = plain_fields(text).ok_or_else(|| malformed(UNREADABLE))?;
            if json::has_lone_surrogate(text) {
                return Err(Refusal { msg_id: fields.msg_id, ..malformed("lone surrogate in a string") });
            }
            fields
        }
    };
    match &*fields.kind {
        "message" => parse_message(fields, payload_bytes_max).map(ClientRequest::Message),
        "ack" => match (fields.offset, fields.msg_id) {
            (Some(offset), _) => Ok(ClientRequest::AckOffset(offset)),
            (None, Some(msg_id)) => Ok(ClientRequest::AckMessage(msg_id)),
            (None, None) => Err(malformed("ack names neither offset nor msgId")),
        },
        "ping" => Ok(ClientRequest::Ping),
        _ => Err(malformed("unknown type")),
    }
}

pub(super) fn parse_message(fields: Fields<'_>, payload_bytes_max: usize) -> Result<Outgoing<'_>, Refusal<'_>> {
    let msg_id = fields.msg_id;
    let refuse = |code, reason, msg_id| Err(Refusal { code, reason, msg_id });
    if msg_id.as_ref().is_some_and(|id| id.is_empty() || id.len() > MSG_ID_BYTES_MAX) {
        return Err(malformed("msgId is not 1 to 128 bytes"));
    }
    let Some(to) = fields.to else {
        return refuse(ErrorCode::Malformed, "toClientId is missing", msg_id);
    };
    if ClientId::check(&to).is_err() {
        return refuse(ErrorCode::Malformed, "toClientId is not 1 to 128 bytes without control characters", msg_id);
    }
    let (field, payload) = match (fields.payload_json, fields.payload) {
        (Some(text), None) if text.starts_with('"') => (PayloadField::PayloadJson, text),
        (Some(_), None) => return refuse(ErrorCode::Malformed, "payloadJson is not a string", msg_id),
        (None, Some(value)) => (PayloadField::Payload, value),
        (None, None) => return refuse(ErrorCode::Malformed, "payload is missing", msg_id),
        (Some(_), Some(_)) => return refuse(ErrorCode::Malformed, "both payload and payloadJson", msg_id),
    };
    if payload.len() > payload_bytes_max {
        return refuse(ErrorCode::TooLarge, "payload is over the message limit", msg_id);
    }
    let wants_ack = match fields.ack.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return refuse(ErrorCode::Malformed, "ack is neither true nor false", msg_id),
    };
    Ok(Outgoing { msg_id, to, field, payload, wants_ack, ttl_ms: fields.ttl_ms })
}

pub(super) fn malformed(reason: &'static str) -> Refusal<'static> {
    Refusal { code: ErrorCode::Malformed, reason, msg_id: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1000;

    fn refused(text: &str) -> ErrorCode {
        parse(text, LIMIT).expect_err(text).code
    }

    #[test]
    fn messages_are_read_in_any_order_with_the_payload_untouched() {
        let text = r#"{"toClientId":"b","payload": {"a" : [1,"\u00e9"]} ,"msgId":"m-1","type":"message","ack":true,"ttlMs":5,"x":[{}]}"#;
        let Ok(ClientRequest::Message(message)) = parse(text, LIMIT) else { panic!("refused") };
        assert_eq!(message.msg_id.as_deref(), Some("m-1"));
        assert_eq!(message.to, "b");
        assert_eq!(message.field, PayloadField::Payload);
        assert_eq!(message.payload, r#"{"a" : [1,"\u00e9"]}"#);
        assert!(message.wants_ack);
        assert_eq!(message.ttl_ms, Some(5));
    }

    #[test]
    fn null_is_a_payload_like_any_other() {
        for text in [
            r#"{"type":"message","toClientId":"b","payload":null}"#,
            r#"{"type":"message","toClientId":"b","payload":null,"x":"\u0041"}"#,
        ] {
            let Ok(ClientRequest::Message(message)) = parse(text, LIMIT) else { panic!("refused") };
            assert_eq!(message.payload, "null");
        }
    }

    #[test]
    fn the_other_requests_are_read() {
        assert_eq!(parse(r#"{"type":"ack","offset":7}"#, LIMIT), Ok(ClientRequest::AckOffset(7)));
        assert_eq!(parse(r#"{"type":"ack","msgId":"m"}"#, LIMIT), Ok(ClientRequest::AckMessage("m".into())));
        assert_eq!(parse(r#"{"type":"ping"}"#, LIMIT), Ok(ClientRequest::Ping));
        let Ok(ClientRequest::Message(message)) =
            parse(r#"{"type":"message","toClientId":"b\u0022","payloadJson":"{\"a\":1}"}"#, LIMIT)
        else {
            panic!("refused")
        };
        assert_eq!(message.to, "b\"");
        assert_eq!(message.field, PayloadField::PayloadJson);
        assert_eq!(message.payload, r#""{\"a\":1}""#);
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_code() {
        for text in [
            "",
            "nonsense",
            "[]",
            "null",
            "{}",
            r#"{"type":1}"#,
            r#"{"type":"dance"}"#,
            r#"{"type":"ack"}"#,
            r#"{"type":"ack","offset":-1}"#,
            r#"{"type":"ack","offset":1.5}"#,
            r#"{"type":"message","payload":1}"#,
            r#"{"type":"message","toClientId":"","payload":1}"#,
            r#"{"type":"message","toClientId":"a\u0001","payload":1}"#,
            r#"{"type":"message","toClientId":7,"payload":1}"#,
            r#"{"type":"message","toClientId":"b"}"#,
            r#"{"type":"message","toClientId":"b","payloadJson":1}"#,
            r#"{"type":"message","toClientId":"b","payload":1,"payloadJson":"1"}"#,
            r#"{"type":"message","toClientId":"b","payload":1,"ack":"yes"}"#,
            r#"{"type":"message","toClientId":"b","payload":1,"ack":null}"#,
            r#"{"type":"message","toClientId":"b","payloadJson":null}"#,
            r#"{"type":"message","toClientId":"b","payload":"\ud800"}"#,
            r#"{"type":"message","toClientId":"b","payload":01}"#,
            r#"{"type":"message","toClientId":"b","payload":[1,]}"#,
            r#"{"type":"message","toClientId":"b","payload":1,"msgId":""}"#,
            "{\"type\":\"message\",\"toClientId\":\"b\",\"payload\":1,\"msgId\":\"a\nb\"}",
            "{\"type\":\"message\",\"toClientId\":\"b\",\"payload\":\"a\u{1}b\"}",
            r#"{"type":"message","toClientId":"b","payload":1} x"#,
            r#"{"type":"message","toClientId":"b","payload":1"#,
        ] {
            assert_eq!(refused(text), ErrorCode::Malformed, "{text}");
        }
        let deep = format!(
            r#"{{"type":"message","toClientId":"b","payload":{}{}}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        assert_eq!(refused(&deep), ErrorCode::Malformed);
        let large = format!(r#"{{"type":"message","msgId":"m","toClientId":"b","payload":"{}"}}"#, "x".repeat(LIMIT));
        let refusal = parse(&large, LIMIT).unwrap_err();
        assert_eq!((refusal.code, refusal.msg_id.as_deref()), (ErrorCode::TooLarge, Some("m")));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in r#"[\\"{}\[\]:,a-du0-9 ]{0,80}|.{0,60}"#) {
            let _ = parse(&text, LIMIT);
        }
    }
}
