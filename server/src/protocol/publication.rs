//! What a publisher may post over HTTP: one message or an array of them, under the same rules as a client's.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use sonic_rs::LazyValue;

use super::request::{Fields, UNREADABLE, malformed, parse_message, present};
use super::{ClientId, ErrorCode, Outgoing, Refusal, json};

/// Who a message is from when its publisher does not say.
pub const PUBLISHER: &str = "publisher";

/// One published message.
#[derive(Debug, PartialEq)]
pub struct Publication<'a> {
    /// Who it is from.
    pub from: Cow<'a, str>,
    /// The message.
    pub message: Outgoing<'a>,
}

/// What one request publishes; each message is accepted or refused by itself.
#[derive(Debug, PartialEq)]
pub enum Publications<'a> {
    /// A single message.
    One(Box<Result<Publication<'a>, Refusal<'a>>>),
    /// An array.
    Many(Vec<Result<Publication<'a>, Refusal<'a>>>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PublicationFields<'a> {
    #[serde(borrow, default)]
    from: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    msg_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    to_client_id: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    payload_json: Option<LazyValue<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    payload: Option<LazyValue<'a>>,
    #[serde(default)]
    ttl_ms: Option<u64>,
}

/// Reads a request's body. `payload_bytes_max` caps each payload, `messages_max` the array.
///
/// # Errors
/// When the body as a whole cannot be read; nothing is published then.
pub fn parse_publications(
    body: &str,
    payload_bytes_max: usize,
    messages_max: usize,
) -> Result<Publications<'_>, Refusal<'_>> {
    if json::is_too_deep(body) {
        return Err(malformed("nested too deep"));
    }
    if !body.trim_ascii_start().starts_with('[') {
        return Ok(Publications::One(Box::new(parse_publication(body, payload_bytes_max))));
    }
    let Ok(items) = sonic_rs::from_str::<Items<'_>>(body) else { return Err(malformed("not a JSON array")) };
    if items.0.len() > messages_max {
        let reason = "more messages than one request may have";
        return Err(Refusal { code: ErrorCode::TooLarge, reason, msg_id: None });
    }
    let parse_item = |item| parse_item(&item, payload_bytes_max);
    Ok(Publications::Many(items.0.into_iter().map(parse_item).collect()))
}

fn parse_item<'a>(item: &LazyValue<'a>, payload_bytes_max: usize) -> Result<Publication<'a>, Refusal<'a>> {
    match item.as_raw_cow() {
        Cow::Borrowed(text) => parse_publication(text, payload_bytes_max),
        Cow::Owned(_) => Err(malformed(UNREADABLE)),
    }
}

fn parse_publication(text: &str, payload_bytes_max: usize) -> Result<Publication<'_>, Refusal<'_>> {
    let Ok(fields) = sonic_rs::from_str::<PublicationFields<'_>>(text) else {
        return Err(malformed(UNREADABLE));
    };
    if json::has_lone_surrogate(text) {
        return Err(Refusal { msg_id: fields.msg_id, ..malformed("lone surrogate in a string") });
    }
    let from = fields.from.unwrap_or(Cow::Borrowed(PUBLISHER));
    if ClientId::check(&from).is_err() {
        let reason = "from is not 1 to 128 bytes without control characters";
        return Err(Refusal { code: ErrorCode::Malformed, reason, msg_id: fields.msg_id });
    }
    let message = Fields {
        kind: Cow::Borrowed("message"),
        msg_id: fields.msg_id,
        to: fields.to_client_id,
        payload_json: fields.payload_json.map(|value| value.as_raw_cow()),
        payload: fields.payload.map(|value| value.as_raw_cow()),
        ack: None,
        ttl_ms: fields.ttl_ms,
        offset: None,
    };
    Ok(Publication { from, message: parse_message(message, payload_bytes_max)? })
}

/// The values of an array, up to one more than any request may have.
struct Items<'a>(Vec<LazyValue<'a>>);

/// A guard for memory alone: the request's own limit is lower and names itself.
const ITEMS_MAX: usize = 100_000;

impl<'de> Deserialize<'de> for Items<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemsVisitor;
        impl<'de> Visitor<'de> for ItemsVisitor {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of messages")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Items<'de>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    if items.len() >= ITEMS_MAX {
                        return Err(de::Error::custom("too many items"));
                    }
                    items.push(item);
                }
                Ok(Items(items))
            }
        }
        deserializer.deserialize_seq(ItemsVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::PayloadField;

    fn one(text: &str) -> Result<Publication<'_>, Refusal<'_>> {
        match parse_publications(text, 100, 3) {
            Ok(Publications::One(result)) => *result,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_message_is_read_as_a_clients_would_be() {
        let publication =
            one(r#" {"toClientId":"b","payload":{"a":1},"from":"shop","msgId":"m","ttlMs":9,"x":0}"#).unwrap();
        assert_eq!((&*publication.from, &*publication.message.to), ("shop", "b"));
        assert_eq!(publication.message.payload, r#"{"a":1}"#);
        assert_eq!(publication.message.msg_id.as_deref(), Some("m"));
        assert_eq!(publication.message.ttl_ms, Some(9));
        assert_eq!(one(r#"{"toClientId":"b","payload":null}"#).unwrap().message.payload, "null");
        let publication = one(r#"{"toClientId":"b","payloadJson":"x"}"#).unwrap();
        assert_eq!((&*publication.from, publication.message.field), (PUBLISHER, PayloadField::PayloadJson));
    }

    #[test]
    fn an_array_is_judged_item_by_item() {
        let text = r#"[{"toClientId":"b","payload":1}, 7, {"toClientId":"","msgId":"m","payload":1}]"#;
        let Ok(Publications::Many(items)) = parse_publications(text, 100, 3) else { panic!("refused") };
        assert!(items[0].is_ok());
        assert_eq!(items[1].as_ref().unwrap_err().code, ErrorCode::Malformed);
        assert_eq!(items[2].as_ref().unwrap_err().msg_id.as_deref(), Some("m"));
        assert_eq!(parse_publications("[]", 100, 3), Ok(Publications::Many(Vec::new())));
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_code() {
        for text in [
            "",
            "nonsense",
            "null",
            "{}",
            r#"{"toClientId":"b"}"#,
            r#"{"toClientId":"b","payload":"\ud800"}"#,
            r#"{"toClientId":"b","payload":1,"from":""}"#,
            r#"{"toClientId":"b","payload":1,"from":7}"#,
            r#"{"toClientId":"b","payload":1,"ttlMs":-1}"#,
            r#"{"toClientId":"b","payload":1} x"#,
        ] {
            assert_eq!(one(text).expect_err(text).code, ErrorCode::Malformed, "{text}");
        }
        let large = format!(r#"{{"toClientId":"b","payload":"{}"}}"#, "x".repeat(100));
        assert_eq!(one(&large).unwrap_err().code, ErrorCode::TooLarge);
        for text in ["[1,2,3,4]".to_owned(), format!("[{}0]", "0,".repeat(ITEMS_MAX))] {
            let refusal = parse_publications(&text, 100, 3).unwrap_err();
            assert!(matches!(refusal.code, ErrorCode::TooLarge | ErrorCode::Malformed));
        }
        for text in ["[1".to_owned(), "[] x".to_owned(), "[".repeat(100_000)] {
            assert_eq!(parse_publications(&text, 100, 3).unwrap_err().code, ErrorCode::Malformed);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in r#"[\\"{}\[\]:,a-du0-9 ]{0,80}|.{0,60}"#) {
            let _ = parse_publications(&text, 100, 3);
        }
    }
}
