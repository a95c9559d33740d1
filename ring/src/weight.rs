//! How much of the keys a node should own, and the validated map of nodes to weights that a ring is built from.

use std::{fmt, num::NonZeroU16, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{InvalidWeight, InvalidWeights, NodeId, NodeIndex, control::whole_number};

/// Most nodes in a ring: at 4096 equal nodes each owns 64 slots, the last count at which one slot is still a fine step.
pub const NODES_MAX: usize = 4096;

/// A node's share of the keys relative to the other nodes' weights: 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Weight(NonZeroU16);

impl Weight {
    /// The smallest weight.
    pub const MIN: Self = Self(NonZeroU16::MIN);
    /// The largest weight.
    pub const MAX: Self = Self(NonZeroU16::MAX);

    /// Checks a number.
    ///
    /// # Errors
    /// When it is 0 or above 65535.
    pub fn new(value: u64) -> Result<Self, InvalidWeight> {
        u16::try_from(value).ok().and_then(NonZeroU16::new).map(Self).ok_or(InvalidWeight { value })
    }

    /// Returns the weight as a number.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Weight {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.get())
    }
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(whole_number(deserializer)?).map_err(de::Error::custom)
    }
}

/// The nodes of a ring and their weights: at least one, at most [`NODES_MAX`], sorted by name, each named once.
///
/// Cloning copies a pointer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeWeights {
    // Invariant: not empty, strictly ascending, len <= NODES_MAX; as many weights, in the same order.
    // Apart, because look-ups index the names alone.
    names: Arc<[NodeId]>,
    weights: Arc<[Weight]>,
}

impl NodeWeights {
    /// Takes nodes in any order.
    ///
    /// # Errors
    /// When there is none, one is named twice, or there are more than [`NODES_MAX`].
    pub fn new(nodes: impl IntoIterator<Item = (NodeId, Weight)>) -> Result<Self, InvalidWeights> {
        let mut entries: Vec<_> = nodes.into_iter().take(NODES_MAX + 1).collect();
        if entries.is_empty() {
            return Err(InvalidWeights::Empty);
        }
        if entries.len() > NODES_MAX {
            return Err(InvalidWeights::TooManyNodes);
        }
        entries.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        if let Some(twins) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(InvalidWeights::DuplicateNode { node: twins[0].0.clone() });
        }
        let (names, weights): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
        Ok(Self { names: names.into(), weights: weights.into() })
    }

    /// Iterates over nodes and weights in order of name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&NodeId, Weight)> + Clone {
        self.names.iter().zip(self.weights.iter().copied())
    }

    /// Returns the number of nodes, 1 to [`NODES_MAX`].
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Returns the weight of `node`, if it is one of these.
    pub fn weight(&self, node: &NodeId) -> Option<Weight> {
        self.index(node).map(|index| self.weights[index.get()])
    }

    /// Returns the place of `node` in order of name, if it is one of these.
    #[allow(clippy::missing_panics_doc, reason = "indexes are below NODES_MAX")]
    pub fn index(&self, node: &NodeId) -> Option<NodeIndex> {
        let index = self.names.binary_search(node).ok()?;
        Some(NodeIndex(u16::try_from(index).expect("NODES_MAX fits u16")))
    }

    /// Returns the name at `index`.
    ///
    /// # Panics
    /// When the index comes from a larger ring.
    #[inline]
    pub fn node(&self, index: NodeIndex) -> &NodeId {
        &self.names[index.get()]
    }

    /// Returns the sum of all weights.
    pub fn total(&self) -> u64 {
        self.weights.iter().map(|weight| u64::from(weight.get())).sum()
    }
}

impl Serialize for NodeWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for NodeWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor;
        impl<'de> de::Visitor<'de> for MapVisitor {
            type Value = NodeWeights;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of node ids to weights")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<NodeWeights, A::Error> {
                // Collected as a list, not a map: a name given twice must be an error, not a last word.
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    if entries.len() == NODES_MAX {
                        return Err(de::Error::custom(InvalidWeights::TooManyNodes));
                    }
                    entries.push(entry);
                }
                NodeWeights::new(entries).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_map(MapVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[&str]) -> Result<NodeWeights, InvalidWeights> {
        NodeWeights::new(names.iter().map(|name| (NodeId::new(name).unwrap(), Weight::MIN)))
    }

    #[test]
    fn zero_and_seventeen_bits_are_no_weights() {
        for (value, expected) in [(0, false), (1, true), (65_535, true), (65_536, false), (u64::MAX, false)] {
            assert_eq!(Weight::new(value).is_ok(), expected, "{value}");
        }
    }

    #[test]
    fn order_of_insertion_is_forgotten() {
        assert_eq!(nodes(&["b", "a", "c"]), nodes(&["c", "b", "a"]));
        assert_eq!(nodes(&["b", "a"]).unwrap().iter().next().unwrap().0.as_str(), "a");
    }

    #[test]
    fn empty_twice_named_and_oversized_maps_are_refused() {
        assert_eq!(nodes(&[]), Err(InvalidWeights::Empty));
        assert_eq!(nodes(&["a", "b", "a"]), Err(InvalidWeights::DuplicateNode { node: NodeId::new("a").unwrap() }));
        let many =
            |count: usize| NodeWeights::new((0..count).map(|n| (NodeId::new(&format!("n{n}")).unwrap(), Weight::MAX)));
        assert_eq!(many(NODES_MAX).unwrap().len(), NODES_MAX);
        assert_eq!(many(NODES_MAX + 1), Err(InvalidWeights::TooManyNodes));
    }
}
