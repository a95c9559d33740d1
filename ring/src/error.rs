//! What can be wrong with names, weights, versions and messages, grouped by what the caller does next.

use crate::{NODE_ID_BYTES_MAX, NODES_MAX, NodeId, RingVersion};

/// The text is no node name; refuse the configuration or the message it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNodeId {
    /// Empty, or longer than [`NODE_ID_BYTES_MAX`].
    #[error("node id is {bytes} bytes, must be 1 to {NODE_ID_BYTES_MAX}")]
    Length {
        /// Length of the refused text.
        bytes: usize,
    },
    /// A byte that could not stand unescaped in a Kafka topic name.
    #[error("node id has byte {byte:#04x} at {at}, allowed are A-Z a-z 0-9 . _ -")]
    Byte {
        /// The refused byte.
        byte: u8,
        /// Where it stands.
        at: usize,
    },
}

/// The number is no weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("weight is {value}, must be 1 to 65535")]
pub struct InvalidWeight {
    /// The refused number.
    pub value: u64,
}

/// The number is no ring version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ring version is {value}, limit {}", RingVersion::MAX)]
pub struct InvalidVersion {
    /// The refused number.
    pub value: u64,
}

/// No ring can be built from this map; keep the ring you have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWeights {
    /// A ring needs at least one node.
    #[error("no nodes: a ring needs at least one")]
    Empty,
    /// Two weights for one name: nobody can say which was meant.
    #[error("node {node} is named twice")]
    DuplicateNode {
        /// The name that came twice.
        node: NodeId,
    },
    /// More nodes than [`NODES_MAX`].
    #[error("more than {NODES_MAX} nodes")]
    TooManyNodes,
}

/// The offered ring is not newer than the one in place, which stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ring version {offered} is not newer than {current}")]
pub struct StaleRing {
    /// The version in place.
    pub current: RingVersion,
    /// The version refused.
    pub offered: RingVersion,
}

/// Two rings hash keys under different seeds, so their slots hold different keys and cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("rings have seeds {old} and {new}: every key must be hashed again")]
pub struct SeedChanged {
    /// Seed of the old ring.
    pub old: u64,
    /// Seed of the new ring.
    pub new: u64,
}

/// A control message cannot be used; count it by [`ControlError::cause`] and go on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ControlError {
    /// Longer than this type of message may be.
    #[error("message is {bytes} bytes, limit {limit}")]
    TooLarge {
        /// Length of the message.
        bytes: usize,
        /// The limit of its type.
        limit: usize,
    },
    /// Nested deeper than any control message is.
    #[error("message nests deeper than {limit} levels")]
    TooDeep {
        /// The limit, [`crate::control::DEPTH_MAX`].
        limit: usize,
    },
    /// Not JSON, or a field is missing or of the wrong type.
    #[error("malformed message: {reason}")]
    Malformed {
        /// What the parser said, in one line.
        reason: String,
    },
    /// Well-formed, but a number that cannot be true.
    #[error("{field} is {value}, must be 0 to {max}")]
    OutOfRange {
        /// The field's name on the wire.
        field: &'static str,
        /// What it held.
        value: f64,
        /// The largest value allowed.
        max: f64,
    },
}

impl ControlError {
    /// Returns a stable word for the metric's `cause` label.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::TooDeep { .. } => "too_deep",
            Self::Malformed { .. } => "malformed",
            Self::OutOfRange { .. } => "out_of_range",
        }
    }
}
