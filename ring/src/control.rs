//! The control messages between balancer and nodes, as JSON: what is announced, asked and reported.
//!
//! Decoding trusts nobody: length and nesting are checked before the parser runs, fields before anyone uses them. Does
//! not know Kafka or Redis, which carry these messages, nor what to do about them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de, de::DeserializeOwned};

use crate::{ControlError, NODE_ID_BYTES_MAX, NODES_MAX, NodeId, NodeWeights, RingVersion, VersionHash, nesting};

/// Longest `RingUpdate`, in bytes.
pub const RING_UPDATE_BYTES_MAX: usize = 512 * 1024;
/// Longest of the other messages, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Deepest nesting: sonic-rs recurses, so a message of nothing but `[` would overflow the stack.
pub const DEPTH_MAX: usize = 16;
/// Largest whole number that every JSON reader keeps exact.
pub const WHOLE_MAX: u64 = (1 << 53) - 1;

/// The largest ring fits: name, quotes, colon, weight and comma per node, and something for the rest.
const _: () = assert!(NODES_MAX * (NODE_ID_BYTES_MAX + 9) + MESSAGE_BYTES_MAX <= RING_UPDATE_BYTES_MAX);

/// Announces a new ring, on `rtc.control.ring`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RingUpdate {
    /// Which ring this is.
    pub version: VersionStamp,
    /// Its nodes and their weights.
    pub node_weights: NodeWeights,
    /// Seed of the key hash; 0 where it is absent.
    #[serde(default, deserialize_with = "whole_number")]
    pub seed: u64,
    /// Why it was made, for people.
    pub reason: String,
    /// When it was sent, in ms since 1970.
    #[serde(deserialize_with = "whole_number")]
    pub ts: u64,
}

/// Identifies one ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionStamp {
    /// Only ever moves forward.
    pub version: RingVersion,
    /// When it was decided, in ms since 1970.
    #[serde(deserialize_with = "whole_number")]
    pub issued_at: u64,
    /// Digest of names, weights and seed.
    pub version_hash: VersionHash,
}

/// Recommends more nodes or fewer, on `rtc.control.scale`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleSignal {
    /// The recommendation and its grounds, for people and for tools that match the text.
    pub reason: String,
    /// When it was sent, in ms since 1970.
    #[serde(deserialize_with = "whole_number")]
    pub ts: u64,
    /// Nodes there are, where the sender says so.
    #[serde(default, deserialize_with = "optional_whole_number", skip_serializing_if = "Option::is_none")]
    pub current_nodes: Option<u64>,
    /// Nodes there should be, where the sender says so.
    #[serde(default, deserialize_with = "optional_whole_number", skip_serializing_if = "Option::is_none")]
    pub target_nodes: Option<u64>,
}

/// Asks one node to send its clients elsewhere, on `rtc.control.drain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainRequest {
    /// The node to drain.
    pub node_id: NodeId,
    /// By when it should be empty, in ms since 1970.
    #[serde(deserialize_with = "whole_number")]
    pub deadline: u64,
    /// Most disconnects per second; the deadline gives way to it. 0 leaves it to the deadline.
    #[serde(deserialize_with = "whole_number")]
    pub max_disconnects: u64,
    /// Why, for people.
    pub reason: String,
    /// When it was sent, in ms since 1970.
    #[serde(deserialize_with = "whole_number")]
    pub ts: u64,
    /// Which life of the node is meant, where the sender says so: a node that was started since is not.
    #[serde(default, deserialize_with = "optional_whole_number", skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
}

/// What a node says about itself every two seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// Who speaks.
    pub node_id: NodeId,
    /// Open connections.
    #[serde(deserialize_with = "whole_number")]
    pub active_conn: u64,
    /// Messages per second.
    #[serde(deserialize_with = "number")]
    pub mps: f64,
    /// 95th percentile of delivery latency, in ms.
    #[serde(rename = "p95LatencyMs", deserialize_with = "number")]
    pub p95_latency_ms: f64,
    /// Age of what is read from the node's Kafka topic, in ms.
    #[serde(deserialize_with = "number")]
    pub kafka_topic_lag_latency_ms: f64,
    /// Share of its processors in use, 0 to 1.
    #[serde(deserialize_with = "number")]
    pub cpu: f64,
    /// Share of its memory in use, 0 to 1.
    #[serde(deserialize_with = "number")]
    pub mem: f64,
    /// When it was measured, in ms since 1970 by the node's clock.
    #[serde(deserialize_with = "whole_number")]
    pub timestamp_ms: u64,
    /// Which life of the node this is.
    #[serde(default, deserialize_with = "optional_whole_number", skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
    /// Where clients reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Its availability zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The ring it follows, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring_version: Option<RingVersion>,
}

impl RingUpdate {
    /// Returns an update whose `versionHash` is right.
    pub fn new(version: RingVersion, node_weights: NodeWeights, seed: u64, reason: String, now_ms: u64) -> Self {
        let version_hash = VersionHash::of(&node_weights, seed);
        let version = VersionStamp { version, issued_at: now_ms, version_hash };
        Self { version, node_weights, seed, reason, ts: now_ms }
    }

    /// Returns whether `versionHash` is the digest of what the update carries. Not so in updates by hand or by another
    /// program: worth a warning, not a refusal.
    pub fn has_right_hash(&self) -> bool {
        self.version.version_hash == VersionHash::of(&self.node_weights, self.seed)
    }
}

/// A message that has a wire form and bounds; this list is closed.
trait Message: Serialize + DeserializeOwned {
    const BYTES_MAX: usize = MESSAGE_BYTES_MAX;

    /// Checks what the types alone do not.
    fn check(&self) -> Result<(), ControlError>;
}

impl Message for RingUpdate {
    const BYTES_MAX: usize = RING_UPDATE_BYTES_MAX;

    fn check(&self) -> Result<(), ControlError> {
        whole_in_range("issuedAt", self.version.issued_at)?;
        whole_in_range("ts", self.ts)
    }
}

impl Message for ScaleSignal {
    fn check(&self) -> Result<(), ControlError> {
        whole_in_range("currentNodes", self.current_nodes.unwrap_or(0))?;
        whole_in_range("targetNodes", self.target_nodes.unwrap_or(0))?;
        whole_in_range("ts", self.ts)
    }
}

impl Message for DrainRequest {
    fn check(&self) -> Result<(), ControlError> {
        whole_in_range("deadline", self.deadline)?;
        whole_in_range("maxDisconnects", self.max_disconnects)?;
        whole_in_range("incarnation", self.incarnation.unwrap_or(0))?;
        whole_in_range("ts", self.ts)
    }
}

impl Message for Heartbeat {
    fn check(&self) -> Result<(), ControlError> {
        whole_in_range("activeConn", self.active_conn)?;
        whole_in_range("timestampMs", self.timestamp_ms)?;
        in_range("mps", self.mps, LOAD_MAX)?;
        in_range("p95LatencyMs", self.p95_latency_ms, LOAD_MAX)?;
        in_range("kafkaTopicLagLatencyMs", self.kafka_topic_lag_latency_ms, LOAD_MAX)?;
        in_range("cpu", self.cpu, 1.0)?;
        in_range("mem", self.mem, 1.0)
    }
}

/// No node sends more messages a second, and no latency in ms is longer (31 years): beyond it a figure is a mistake.
const LOAD_MAX: f64 = 1e12;

macro_rules! wire_form {
    ($($message:ty),+) => { $(
        impl $message {
            /// Writes the message as JSON.
            ///
            /// # Errors
            /// When a number is out of its range or the text too long: the reader would refuse it.
            pub fn encode(&self) -> Result<Vec<u8>, ControlError> {
                encode(self)
            }

            /// Reads a message from JSON; fields it does not know are ignored.
            ///
            /// # Errors
            /// When it is too long, too deep, no JSON, lacks a field, or has one of the wrong type or out of its range.
            pub fn decode(bytes: &[u8]) -> Result<Self, ControlError> {
                decode(bytes)
            }
        }
    )+ };
}

wire_form!(RingUpdate, ScaleSignal, DrainRequest, Heartbeat);

fn encode<M: Message>(message: &M) -> Result<Vec<u8>, ControlError> {
    message.check()?;
    let bytes = sonic_rs::to_vec(message).map_err(malformed)?;
    check_length::<M>(bytes.len())?;
    Ok(bytes)
}

fn decode<M: Message>(bytes: &[u8]) -> Result<M, ControlError> {
    check_length::<M>(bytes.len())?;
    if nesting::depth(bytes) > DEPTH_MAX {
        return Err(ControlError::TooDeep { limit: DEPTH_MAX });
    }
    let message: M = sonic_rs::from_slice(bytes).map_err(malformed)?;
    message.check()?;
    Ok(message)
}

fn check_length<M: Message>(bytes: usize) -> Result<(), ControlError> {
    if bytes > M::BYTES_MAX { Err(ControlError::TooLarge { bytes, limit: M::BYTES_MAX }) } else { Ok(()) }
}

fn in_range(field: &'static str, value: f64, max: f64) -> Result<(), ControlError> {
    // False for NaN as well.
    if (0.0..=max).contains(&value) { Ok(()) } else { Err(ControlError::OutOfRange { field, value, max }) }
}

#[allow(clippy::cast_precision_loss, reason = "only for the text of the error")]
fn whole_in_range(field: &'static str, value: u64) -> Result<(), ControlError> {
    if value <= WHOLE_MAX {
        return Ok(());
    }
    Err(ControlError::OutOfRange { field, value: value as f64, max: WHOLE_MAX as f64 })
}

/// The parser's message without the excerpt of the input, which may be long and is not ours to log.
#[allow(clippy::needless_pass_by_value, reason = "the shape of `map_err`")]
fn malformed(error: sonic_rs::Error) -> ControlError {
    let text = error.to_string();
    let reason = text.lines().next().unwrap_or_default().chars().take(REASON_CHARS_MAX).collect();
    ControlError::Malformed { reason }
}

/// Longest reason kept from the parser.
const REASON_CHARS_MAX: usize = 200;

/// Reads a number; some writers print a whole one without, some with a fraction.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    struct NumberVisitor;
    #[allow(clippy::cast_precision_loss, reason = "a measurement beyond 2^53 is out of range anyway")]
    impl de::Visitor<'_> for NumberVisitor {
        type Value = f64;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number")
        }
        fn visit_f64<E: de::Error>(self, value: f64) -> Result<f64, E> {
            Ok(value)
        }
        fn visit_u64<E: de::Error>(self, value: u64) -> Result<f64, E> {
            Ok(value as f64)
        }
        fn visit_i64<E: de::Error>(self, value: i64) -> Result<f64, E> {
            Ok(value as f64)
        }
    }
    deserializer.deserialize_any(NumberVisitor)
}

/// Reads a whole number that is not negative, also when written as `100.0` or `1e2`.
pub(crate) fn whole_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Whole::deserialize(deserializer).map(|whole| whole.0)
}

fn optional_whole_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<Whole>::deserialize(deserializer)?.map(|whole| whole.0))
}

struct Whole(u64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WholeVisitor;
        impl de::Visitor<'_> for WholeVisitor {
            type Value = Whole;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, not negative")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Whole, E> {
                Ok(Whole(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Whole, E> {
                u64::try_from(value).map(Whole).map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
            }
            #[allow(clippy::cast_precision_loss, reason = "2^53 is exact")]
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "checked to be whole and in range"
            )]
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Whole, E> {
                if (0.0..=WHOLE_MAX as f64).contains(&value) && value.fract() == 0.0 {
                    return Ok(Whole(value as u64));
                }
                Err(E::invalid_value(de::Unexpected::Float(value), &self))
            }
        }
        deserializer.deserialize_any(WholeVisitor)
    }
}

#[cfg(test)]
mod tests;
