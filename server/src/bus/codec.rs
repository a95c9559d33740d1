//! Parcels as Kafka records and back: key, value and headers. Pure.
//!
//! A message's value is the envelope of the client protocol without an offset, so that any tool that knows that one can
//! read and write it; what nodes need beside it stands in headers. Notices are small JSON objects. Decoding trusts nobody:
//! whoever can write to the topic may have written anything.

use std::borrow::Cow;
use std::fmt::Write as _;

use ring::{NodeId, hash_key};
use serde::Deserialize;
use sonic_rs::LazyValue;
use thiserror::Error;

use crate::protocol::{self, ClientId, Envelope, InvalidClientId, MSG_ID_BYTES_MAX, PayloadField};
use crate::shard::handover::Posted;
use crate::shard::origin::Origin;

use super::record::{Address, Holder, Parcel, Record};

/// How many nodes a message has passed, in decimal digits. Absent: none.
pub const HOPS_HEADER: &str = "rtc-hops";
/// The marks of the nodes that a message has passed, each 16 hexadecimal digits, back to back. Absent: none.
pub const TRAIL_HEADER: &str = "rtc-trail";
/// Marks that are read of a trail; more are poison.
const TRAIL_MAX: usize = 16;
/// Who sent the record: `node/incarnation/shard`. Absent: somebody who waits for nothing.
pub const ORIGIN_HEADER: &str = "rtc-origin";
/// What the record is, in the word that stands under `type` in its value. Absent: a message.
pub const KIND_HEADER: &str = "rtc-kind";
/// What a record's value may have beyond the payload of its message: names, ids, escapes, numbers.
pub const ENVELOPE_BYTES_MAX: usize = 4096;

const MESSAGE: &str = "message";
const FENCE: &str = "fence";
const FENCED: &str = "fenced";
const CLAIMED: &str = "claimed";
const RELEASED: &str = "released";
const MOVED: &str = "moved";
const NUDGE: &str = "nudge";

/// A record's own words beside its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headers {
    /// Which of the kinds.
    pub kind: &'static str,
    /// `node/incarnation/shard`.
    pub origin: String,
    /// Nodes passed, for messages that have passed any.
    pub hops: Option<u8>,
    /// Their marks.
    pub trail: Option<String>,
}

/// What is read of a record before anything is believed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Raw<'a> {
    /// The value; none for a tombstone.
    pub value: Option<&'a [u8]>,
    /// The header of that name, if there is one.
    pub kind: Option<&'a [u8]>,
    /// The header of that name, if there is one.
    pub origin: Option<&'a [u8]>,
    /// The header of that name, if there is one.
    pub hops: Option<&'a [u8]>,
    /// The header of that name, if there is one.
    pub trail: Option<&'a [u8]>,
    /// When Kafka took it, in milliseconds since 1970.
    pub taken_ms: u64,
}

/// What a decoder needs to know of its node.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// The node: it stands in for an origin that does not name itself, as incarnation 0, which waits for nothing.
    pub node: NodeId,
    /// The most bytes a value may have.
    pub value_bytes_max: usize,
}

/// Why a record cannot be used; it goes to the dead letters with this.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Poison {
    /// No value at all.
    #[error("record has no value")]
    Empty,
    /// Longer than any record of ours.
    #[error("value is {bytes} bytes, limit {limit}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Not JSON of this protocol.
    #[error("malformed value: {0}")]
    Malformed(&'static str),
    /// It names a client that cannot be.
    #[error("{field}: {reason}")]
    ClientId {
        /// Where it stands.
        field: &'static str,
        /// What is wrong.
        reason: InvalidClientId,
    },
    /// A header that cannot be read.
    #[error("header {0} cannot be read")]
    Header(&'static str),
    /// A kind that this version does not know.
    #[error("unknown kind")]
    UnknownKind,
}

impl Poison {
    /// A stable word for the metric's `cause` label.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::TooLarge { .. } => "too_large",
            Self::Malformed(_) => "malformed",
            Self::ClientId { .. } => "client_id",
            Self::Header(_) => "header",
            Self::UnknownKind => "unknown_kind",
        }
    }
}

/// The client a record is about, which is its key; empty for fences, which are about a partition.
pub fn key_of(record: &Record) -> &str {
    match record {
        Record::Message(posted) => &posted.to,
        Record::Claimed { client, .. }
        | Record::Released { client, .. }
        | Record::Moved { client, .. }
        | Record::Nudge { client } => client,
        Record::Fence { .. } | Record::Fenced { .. } => "",
    }
}

/// Appends `parcel`'s value to `value` and tells its headers.
pub fn encode(parcel: &Parcel, value: &mut Vec<u8>) -> Headers {
    let kind = write_record(&parcel.record, value);
    let hops = match &parcel.record {
        Record::Message(posted) if posted.hops > 0 => Some(posted.hops),
        _ => None,
    };
    let trail = match &parcel.record {
        Record::Message(posted) if !posted.trail.is_empty() => {
            let mut digits = String::with_capacity(16 * posted.trail.len());
            for mark in &posted.trail {
                // Writing to a `String` cannot fail.
                let _ = write!(digits, "{mark:016x}");
            }
            Some(digits)
        }
        _ => None,
    };
    let Address { node, incarnation, shard } = &parcel.origin;
    Headers { kind, origin: format!("{node}/{incarnation}/{shard}"), hops, trail }
}

fn write_record(record: &Record, value: &mut Vec<u8>) -> &'static str {
    let kind = match record {
        Record::Message(posted) => {
            write_message(posted, value);
            return MESSAGE;
        }
        Record::Fence { id, hash, pair, trail } => {
            let kind = begin_notice(value, FENCE, None);
            write_field(value, b",\"id\":", *id);
            write_field(value, b",\"hash\":", *hash);
            write_field(value, b",\"pair\":", *pair);
            value.extend_from_slice(b",\"trail\":[");
            for (index, mark) in trail.iter().enumerate() {
                if index > 0 {
                    value.push(b',');
                }
                protocol::write_number(value, *mark);
            }
            value.push(b']');
            kind
        }
        Record::Fenced { id, shard, incarnation } => {
            let kind = begin_notice(value, FENCED, None);
            write_field(value, b",\"id\":", *id);
            write_field(value, b",\"shard\":", u64::from(*shard));
            write_field(value, b",\"incarnation\":", *incarnation);
            kind
        }
        Record::Claimed { client, generation } => {
            let kind = begin_notice(value, CLAIMED, Some(client));
            write_field(value, b",\"generation\":", *generation);
            kind
        }
        Record::Released { client, generation } => {
            let kind = begin_notice(value, RELEASED, Some(client));
            write_field(value, b",\"generation\":", *generation);
            kind
        }
        Record::Moved { client, holder } => {
            let kind = begin_notice(value, MOVED, Some(client));
            value.extend_from_slice(b",\"nodeId\":");
            protocol::write_string(value, holder.node.as_str());
            write_field(value, b",\"incarnation\":", holder.incarnation);
            write_field(value, b",\"generation\":", holder.generation);
            kind
        }
        Record::Nudge { client } => begin_notice(value, NUDGE, Some(client)),
    };
    value.push(b'}');
    kind
}

fn begin_notice(value: &mut Vec<u8>, kind: &'static str, client: Option<&str>) -> &'static str {
    value.extend_from_slice(b"{\"type\":");
    protocol::write_string(value, kind);
    if let Some(client) = client {
        value.extend_from_slice(b",\"clientId\":");
        protocol::write_string(value, client);
    }
    kind
}

fn write_message(posted: &Posted, value: &mut Vec<u8>) {
    let envelope = Envelope {
        msg_id: &protocol::escape(&posted.msg_id),
        from: &protocol::escape(&posted.from),
        to: &protocol::escape(&posted.to),
        field: posted.field,
        payload: &posted.payload,
        ts_ms: posted.ts_ms,
    };
    envelope.write_body(value);
    write_field(value, b",\"ts\":", posted.ts_ms);
    if let Some(ttl_ms) = posted.ttl_ms {
        write_field(value, b",\"ttlMs\":", ttl_ms);
    }
    value.push(b'}');
}

fn write_field(value: &mut Vec<u8>, key: &[u8], number: u64) {
    value.extend_from_slice(key);
    protocol::write_number(value, number);
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MessageFields<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    msg_id: Cow<'a, str>,
    #[serde(borrow)]
    from: Cow<'a, str>,
    #[serde(borrow)]
    to_client_id: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    payload_json: Option<LazyValue<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    payload: Option<LazyValue<'a>>,
    #[serde(default)]
    ts: Option<u64>,
    #[serde(default)]
    ttl_ms: Option<u64>,
}

/// A value that is there, `null` included: a payload may be that.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<LazyValue<'de>>, D::Error> {
    LazyValue::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NoticeFields<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    client_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    node_id: Option<Cow<'a, str>>,
    id: Option<u64>,
    hash: Option<u64>,
    pair: Option<u64>,
    #[serde(default)]
    trail: Vec<u64>,
    shard: Option<u16>,
    incarnation: Option<u64>,
    generation: Option<u64>,
}

impl Decoder {
    /// Reads a record. `seed` is that of the ring by which clients are hashed now.
    ///
    /// # Errors
    /// When it cannot be used, ever: the same bytes will not be better the next time.
    pub fn decode(&self, raw: &Raw<'_>, seed: u64) -> Result<(Address, Record), Poison> {
        let value = raw.value.ok_or(Poison::Empty)?;
        if value.len() > self.value_bytes_max {
            return Err(Poison::TooLarge { bytes: value.len(), limit: self.value_bytes_max });
        }
        let value = std::str::from_utf8(value).map_err(|_| Poison::Malformed("not UTF-8"))?;
        // The parser recurses: depth is the only thing in a text that could overflow its stack.
        if protocol::is_too_deep(value) {
            return Err(Poison::Malformed("nested too deep"));
        }
        let origin = match raw.origin {
            Some(origin) => parse_origin(origin).ok_or(Poison::Header(ORIGIN_HEADER))?,
            None => Address { node: self.node.clone(), incarnation: 0, shard: 0 },
        };
        let record = match raw.kind {
            None | Some(b"message") => {
                let hops = match raw.hops {
                    Some(hops) => parse_number(hops).ok_or(Poison::Header(HOPS_HEADER))?,
                    None => 0,
                };
                let trail = match raw.trail {
                    Some(trail) => parse_trail(trail).ok_or(Poison::Header(TRAIL_HEADER))?,
                    None => Vec::new(),
                };
                let message = parse_message(value, raw.taken_ms, hops, seed)?;
                Record::Message(Box::new(Posted { trail, ..message }))
            }
            Some(kind) => parse_notice(kind, value)?,
        };
        Ok((origin, record))
    }
}

fn parse_message(value: &str, taken_ms: u64, hops: u8, seed: u64) -> Result<Posted, Poison> {
    let fields: MessageFields<'_> = sonic_rs::from_str(value)
        .map_err(|_| Poison::Malformed("not a message with msgId, from, toClientId and payload"))?;
    if fields.kind != MESSAGE {
        return Err(Poison::Malformed("its type is not message"));
    }
    if protocol::has_lone_surrogate(value) {
        return Err(Poison::Malformed("lone surrogate in a string"));
    }
    if fields.msg_id.is_empty() || fields.msg_id.len() > MSG_ID_BYTES_MAX {
        return Err(Poison::Malformed("msgId is not 1 to 128 bytes"));
    }
    check_client(&fields.from, "from")?;
    check_client(&fields.to_client_id, "toClientId")?;
    let (field, payload) = match (fields.payload_json, fields.payload) {
        (Some(text), None) if text.as_raw_str().starts_with('"') => (PayloadField::PayloadJson, text),
        (Some(_), None) => return Err(Poison::Malformed("payloadJson is not a string")),
        (None, Some(payload)) => (PayloadField::Payload, payload),
        (None, None) => return Err(Poison::Malformed("payload is missing")),
        (Some(_), Some(_)) => return Err(Poison::Malformed("both payload and payloadJson")),
    };
    Ok(Posted {
        sender: hash_key(fields.from.as_bytes(), seed),
        hash: hash_key(fields.to_client_id.as_bytes(), seed),
        msg_id: fields.msg_id.into(),
        from: fields.from.into(),
        to: fields.to_client_id.into(),
        field,
        payload: payload.as_raw_str().into(),
        origin: Origin::NOBODY,
        wants_ack: false,
        ts_ms: fields.ts.unwrap_or(taken_ms),
        ttl_ms: fields.ttl_ms,
        hops,
        trail: Vec::new(),
        login: 0,
    })
}

fn parse_notice(kind: &[u8], value: &str) -> Result<Record, Poison> {
    const MISSING: Poison = Poison::Malformed("a field of the notice is missing");
    let fields: NoticeFields<'_> =
        sonic_rs::from_str(value).map_err(|_| Poison::Malformed("not a notice with the fields of its kind"))?;
    if fields.kind.as_bytes() != kind {
        return Err(Poison::Malformed("its type is not the header's kind"));
    }
    let client = || -> Result<Box<str>, Poison> {
        let client = fields.client_id.as_deref().ok_or(MISSING)?;
        check_client(client, "clientId")?;
        Ok(client.into())
    };
    let generation = fields.generation.ok_or(MISSING);
    Ok(match &*fields.kind {
        FENCE => {
            if fields.trail.len() > TRAIL_MAX {
                return Err(Poison::Malformed("its trail is too long"));
            }
            Record::Fence {
                id: fields.id.ok_or(MISSING)?,
                hash: fields.hash.ok_or(MISSING)?,
                pair: fields.pair.ok_or(MISSING)?,
                trail: fields.trail,
            }
        }
        FENCED => Record::Fenced {
            id: fields.id.ok_or(MISSING)?,
            shard: fields.shard.ok_or(MISSING)?,
            incarnation: fields.incarnation.ok_or(MISSING)?,
        },
        CLAIMED => Record::Claimed { client: client()?, generation: generation? },
        RELEASED => Record::Released { client: client()?, generation: generation? },
        MOVED => Record::Moved {
            client: client()?,
            holder: Holder {
                node: NodeId::new(fields.node_id.as_deref().ok_or(MISSING)?)
                    .map_err(|_| Poison::Malformed("nodeId is no node id"))?,
                incarnation: fields.incarnation.ok_or(MISSING)?,
                generation: generation?,
            },
        },
        NUDGE => Record::Nudge { client: client()? },
        _ => return Err(Poison::UnknownKind),
    })
}

fn parse_trail(header: &[u8]) -> Option<Vec<u64>> {
    let text = std::str::from_utf8(header).ok()?;
    let is_trail = text.len().is_multiple_of(16)
        && text.len() <= 16 * TRAIL_MAX
        && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let marks = (0..text.len() / 16).map(|index| u64::from_str_radix(text.get(16 * index..16 * (index + 1))?, 16).ok());
    if is_trail { marks.collect() } else { None }
}

fn check_client(id: &str, field: &'static str) -> Result<(), Poison> {
    ClientId::check(id).map_err(|reason| Poison::ClientId { field, reason })
}

fn parse_origin(header: &[u8]) -> Option<Address> {
    let mut parts = std::str::from_utf8(header).ok()?.split('/');
    let address = Address {
        node: NodeId::new(parts.next()?).ok()?,
        incarnation: parse_number(parts.next()?.as_bytes())?,
        shard: parse_number(parts.next()?.as_bytes())?,
    };
    parts.next().is_none().then_some(address)
}

/// Decimal digits and nothing else; `FromStr` would take a sign.
fn parse_number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    let is_plain = digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_plain)?.parse().ok()
}

#[cfg(test)]
mod tests;
