//! What a node is called, and the small number that stands for it inside one ring.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::InvalidNodeId;

/// Longest node id, in bytes: leaves room for a prefix in a Kafka topic name (249).
pub const NODE_ID_BYTES_MAX: usize = 64;

/// The name of a node: 1 to 64 bytes of `A-Z a-z 0-9 . _ -`; cloning copies a pointer.
///
/// The alphabet is that of Kafka topic names, since the name is part of one. Ordered by bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Checks `name` and keeps a copy.
    ///
    /// # Errors
    /// When it is empty, too long, or has a byte outside the alphabet.
    pub fn new(name: &str) -> Result<Self, InvalidNodeId> {
        if name.is_empty() || name.len() > NODE_ID_BYTES_MAX {
            return Err(InvalidNodeId::Length { bytes: name.len() });
        }
        let is_foreign = |byte: &u8| !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        match name.bytes().enumerate().find(|(_, byte)| is_foreign(byte)) {
            Some((at, byte)) => Err(InvalidNodeId::Byte { byte, at }),
            None => Ok(Self(name.into())),
        }
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = InvalidNodeId;
    fn from_str(name: &str) -> Result<Self, InvalidNodeId> {
        Self::new(name)
    }
}

impl AsRef<str> for NodeId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl de::Visitor<'_> for NameVisitor {
            type Value = NodeId;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a node id")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<NodeId, E> {
                NodeId::new(name).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(NameVisitor)
    }
}

/// The place of a node among a ring's nodes, sorted by name; means nothing outside that ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeIndex(pub(crate) u16);

impl NodeIndex {
    /// Returns the index as a number, below the ring's number of nodes.
    #[inline]
    pub fn get(self) -> usize {
        usize::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outside_the_alphabet_are_refused() {
        let length = |bytes| Some(InvalidNodeId::Length { bytes });
        let byte = |byte, at| Some(InvalidNodeId::Byte { byte, at });
        for (name, expected) in [
            ("a", None),
            ("Node_1.eu-west", None),
            (&"x".repeat(64), None),
            (&"x".repeat(65), length(65)),
            ("", length(0)),
            ("a b", byte(b' ', 1)),
            ("a/b", byte(b'/', 1)),
            ("{a}", byte(b'{', 0)),
            ("nöde", byte(0xc3, 1)),
            ("a\0", byte(0, 1)),
        ] {
            assert_eq!(NodeId::new(name).err(), expected, "{name:?}");
        }
    }
}
