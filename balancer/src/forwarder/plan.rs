//! What to do with one record of a dead node's topic, from its bytes and the ring. Pure.
//!
//! Only what decides where a record goes is read here; of the rest its reader is the judge, who buries what is no use.

use std::borrow::Cow;

use ring::{NodeId, Ring, nesting};
use serde::Deserialize;
use thiserror::Error;

/// How many nodes a message has passed, in decimal digits.
pub const HOPS_HEADER: &str = "rtc-hops";
/// The marks of the nodes that a message has passed, each 16 hexadecimal digits, back to back.
pub const TRAIL_HEADER: &str = "rtc-trail";
/// Who sent the record: `node/incarnation/shard`.
pub const ORIGIN_HEADER: &str = "rtc-origin";
/// What the record is. Absent: a message.
pub const KIND_HEADER: &str = "rtc-kind";

/// Nodes take a longer trail for poison.
const TRAIL_MAX: usize = 16;
const MARK_DIGITS: usize = 16;
/// The longest value that is copied: far beyond any message limit, and what memory is sized for.
pub const VALUE_BYTES_MAX: usize = 16 << 20;
/// How deep a value may nest, as nodes have it.
const DEPTH_MAX: usize = 128;
const CLIENT_ID_BYTES_MAX: usize = 128;

const MISSING: Poison = Poison::Malformed("a field is missing");

/// What is read of a record before anything is believed.
#[derive(Debug, Clone, Default)]
pub struct Raw<'a> {
    /// The value; none for a tombstone.
    pub value: Option<&'a [u8]>,
    /// All headers, in order.
    pub headers: Vec<(&'a [u8], Option<&'a [u8]>)>,
}

/// A header as it is written.
pub type OwnHeader = (String, Option<Vec<u8>>);

/// What becomes of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// It goes to this node's topic, key and value as they are, under these headers.
    Copy {
        /// What it is, for the counter.
        kind: Kind,
        /// The node that owns its recipient.
        to: NodeId,
        /// Its headers, with the dead node among the nodes passed.
        headers: Vec<OwnHeader>,
    },
    /// A fence whose way leads back to who wrote it: its echo goes there, in the same partition and so behind what was
    /// copied from ahead of it. Were it copied, its writer would follow it into the dead node's topic once more, where
    /// it stands already, and wait for itself.
    Echo {
        /// The node that wrote the fence.
        to: NodeId,
        /// The echo.
        value: Vec<u8>,
    },
    /// The dead node has nothing more of this client: its claimant is told once all ahead of the claim is confirmed.
    Release {
        /// The claimant.
        to: NodeId,
        /// The client.
        client: String,
        /// The login that claims.
        generation: u64,
    },
    /// It was for the memory of a process that is gone.
    Drop(Kind),
    /// Nobody can use it.
    Bury(Poison),
}

/// The kinds of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the records")]
pub enum Kind {
    Message,
    Fence,
    Fenced,
    Claimed,
    Released,
    Moved,
    Nudge,
}

impl Kind {
    /// All of them, in order.
    pub const ALL: [Self; 7] =
        [Self::Message, Self::Fence, Self::Fenced, Self::Claimed, Self::Released, Self::Moved, Self::Nudge];

    /// The word in the header, and in the metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Fence => "fence",
            Self::Fenced => "fenced",
            Self::Claimed => "claimed",
            Self::Released => "released",
            Self::Moved => "moved",
            Self::Nudge => "nudge",
        }
    }

    fn parse(word: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str().as_bytes() == word)
    }
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
    /// Kafka does not take it where it should go.
    #[error("value is {bytes} bytes, more than the topic of its recipient's node takes")]
    Refused {
        /// Its length.
        bytes: usize,
    },
    /// Not JSON of this protocol.
    #[error("malformed value: {0}")]
    Malformed(&'static str),
    /// It names a client that cannot be.
    #[error("{0} is not 1 to 128 bytes without control characters")]
    ClientId(&'static str),
    /// A header that cannot be read.
    #[error("header {0} cannot be read")]
    Header(&'static str),
    /// A kind that this version does not know.
    #[error("unknown kind")]
    UnknownKind,
}

impl Poison {
    /// Every word there is.
    pub const CAUSES: [&'static str; 6] = ["empty", "too_large", "malformed", "client_id", "header", "unknown_kind"];

    /// A stable word for the header, as the nodes write it.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::TooLarge { .. } | Self::Refused { .. } => "too_large",
            Self::Malformed(_) => "malformed",
            Self::ClientId(_) => "client_id",
            Self::Header(_) => "header",
            Self::UnknownKind => "unknown_kind",
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    to_client_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    client_id: Option<Cow<'a, str>>,
    #[serde(default)]
    id: Option<u64>,
    #[serde(default)]
    hash: Option<u64>,
    #[serde(default)]
    generation: Option<u64>,
}

/// Plans for a record of `dead`'s topic by a ring in which that node is no more.
pub fn plan(raw: &Raw<'_>, dead: &NodeId, ring: &Ring) -> Plan {
    try_plan(raw, dead, ring).unwrap_or_else(Plan::Bury)
}

fn try_plan(raw: &Raw<'_>, dead: &NodeId, ring: &Ring) -> Result<Plan, Poison> {
    let value = raw.value.ok_or(Poison::Empty)?;
    if value.len() > VALUE_BYTES_MAX {
        return Err(Poison::TooLarge { bytes: value.len(), limit: VALUE_BYTES_MAX });
    }
    let kind = match raw.header(KIND_HEADER) {
        None => Kind::Message,
        Some(word) => Kind::parse(word).ok_or(Poison::UnknownKind)?,
    };
    if matches!(kind, Kind::Fenced | Kind::Released | Kind::Moved | Kind::Nudge) {
        return Ok(Plan::Drop(kind));
    }
    let text = std::str::from_utf8(value).map_err(|_| Poison::Malformed("not UTF-8"))?;
    // The parser recurses: depth is the only thing in a text that could overflow its stack.
    if nesting::depth(value) > DEPTH_MAX {
        return Err(Poison::Malformed("nested too deep"));
    }
    let fields: Fields<'_> =
        sonic_rs::from_str(text).map_err(|_| Poison::Malformed("not a record with the fields of its kind"))?;
    if fields.kind != kind.as_str() {
        return Err(Poison::Malformed("its type is not the header's kind"));
    }
    match kind {
        Kind::Message => {
            let to = fields.to_client_id.ok_or(MISSING)?;
            check_client(&to, "toClientId")?;
            let headers = raw.passed_on(dead)?;
            Ok(Plan::Copy { kind, to: ring.owner(to.as_bytes()).clone(), headers })
        }
        Kind::Fence => {
            let owner = ring.weights().node(ring.owner_of_hash(fields.hash.ok_or(MISSING)?));
            if let Some(origin) = raw.header(ORIGIN_HEADER) {
                let origin = Origin::parse(origin).ok_or(Poison::Header(ORIGIN_HEADER))?;
                if origin.node == *owner {
                    let value = fenced(fields.id.ok_or(MISSING)?, &origin);
                    return Ok(Plan::Echo { to: origin.node, value });
                }
            }
            // A fence counts its way in its value, and this was no node's decision.
            Ok(Plan::Copy { kind, to: owner.clone(), headers: raw.copied(|_| true) })
        }
        _ => {
            let (client, generation) = (fields.client_id.ok_or(MISSING)?, fields.generation.ok_or(MISSING)?);
            check_client(&client, "clientId")?;
            // Nobody waits for an answer to a claim that names no claimant, nor does the dead node for its own.
            let Some(origin) = raw.header(ORIGIN_HEADER) else { return Ok(Plan::Drop(kind)) };
            let Origin { node: to, .. } = Origin::parse(origin).ok_or(Poison::Header(ORIGIN_HEADER))?;
            if to == *dead {
                return Ok(Plan::Drop(kind));
            }
            Ok(Plan::Release { to, client: client.into_owned(), generation })
        }
    }
}

/// The value of a `released` notice, as nodes write it.
pub fn released(client: &str, generation: u64) -> Vec<u8> {
    // A string of a validated client id cannot fail to be written.
    let client = sonic_rs::to_string(client).unwrap_or_default();
    format!("{{\"type\":\"released\",\"clientId\":{client},\"generation\":{generation}}}").into_bytes()
}

/// The value of a fence's echo, as nodes write it.
fn fenced(id: u64, origin: &Origin) -> Vec<u8> {
    let Origin { incarnation, shard, .. } = origin;
    format!("{{\"type\":\"fenced\",\"id\":{id},\"shard\":{shard},\"incarnation\":{incarnation}}}").into_bytes()
}

/// The headers of a notice in the name of `dead`: of no life of it, so that nobody answers.
pub fn notice_headers(kind: Kind, dead: &NodeId) -> Vec<OwnHeader> {
    let origin = format!("{dead}/0/0").into_bytes();
    vec![(KIND_HEADER.to_owned(), Some(kind.as_str().as_bytes().to_vec())), (ORIGIN_HEADER.to_owned(), Some(origin))]
}

/// A node's mark in a trail: a hash of its name.
pub fn node_mark(node: &NodeId) -> u64 {
    xxhash_rust::xxh3::xxh3_64(node.as_str().as_bytes())
}

impl Raw<'_> {
    /// The last header of this name, as the nodes read it; empty where it has no value.
    fn header(&self, name: &str) -> Option<&[u8]> {
        let found = self.headers.iter().rev().find(|(key, _)| *key == name.as_bytes());
        found.map(|(_, value)| value.unwrap_or_default())
    }

    /// The headers that are kept. Names that are no text are left out: no reader of ours can ask for one.
    pub fn copied(&self, keeps: impl Fn(&str) -> bool) -> Vec<OwnHeader> {
        let named = self.headers.iter().filter_map(|(key, value)| Some((std::str::from_utf8(key).ok()?, value)));
        named.filter(|(key, _)| keeps(key)).map(|(key, value)| (key.to_owned(), value.map(<[u8]>::to_vec))).collect()
    }

    /// The headers of a message that has passed one node more.
    fn passed_on(&self, dead: &NodeId) -> Result<Vec<OwnHeader>, Poison> {
        let hops: u8 = match self.header(HOPS_HEADER) {
            Some(hops) => parse_number(hops).ok_or(Poison::Header(HOPS_HEADER))?,
            None => 0,
        };
        let trail = self.header(TRAIL_HEADER).unwrap_or_default();
        let is_trail = trail.len().is_multiple_of(MARK_DIGITS)
            && trail.len() <= MARK_DIGITS * TRAIL_MAX
            && trail.iter().all(u8::is_ascii_hexdigit);
        if !is_trail {
            return Err(Poison::Header(TRAIL_HEADER));
        }
        let mut trail = trail.to_vec();
        // One that is full is of a message with so many hops that it is not sent on any more.
        if trail.len() < MARK_DIGITS * TRAIL_MAX {
            trail.extend_from_slice(format!("{:016x}", node_mark(dead)).as_bytes());
        }
        let mut headers = self.copied(|name| name != HOPS_HEADER && name != TRAIL_HEADER);
        headers.push((TRAIL_HEADER.to_owned(), Some(trail)));
        headers.push((HOPS_HEADER.to_owned(), Some(hops.saturating_add(1).to_string().into_bytes())));
        Ok(headers)
    }
}

fn check_client(id: &str, field: &'static str) -> Result<(), Poison> {
    let is_client = (1..=CLIENT_ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control);
    if is_client { Ok(()) } else { Err(Poison::ClientId(field)) }
}

/// Who sent a record: a shard of one life of a node.
#[derive(Debug)]
struct Origin {
    node: NodeId,
    incarnation: u64,
    shard: u16,
}

impl Origin {
    fn parse(header: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(header).ok()?.split('/');
        let node = NodeId::new(parts.next()?).ok()?;
        let (incarnation, shard) = (parse_number(parts.next()?.as_bytes())?, parse_number(parts.next()?.as_bytes())?);
        parts.next().is_none().then_some(Self { node, incarnation, shard })
    }
}

/// Decimal digits and nothing else; `FromStr` would take a sign.
fn parse_number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    let is_plain = digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_plain)?.parse().ok()
}

#[cfg(test)]
mod tests;
