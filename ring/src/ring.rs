//! Who owns a key: one hash, one load, whatever the number of nodes.
//!
//! A [`Ring`] is immutable; a changed fleet is a new ring with a higher version. How the table comes about is `table`'s.

use std::{cmp::Reverse, collections::BinaryHeap, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    InvalidVersion, InvalidWeights, NodeId, NodeIndex, NodeWeights, SLOTS, Weight,
    control::{RingUpdate, whole_number},
    hash::{hash_key, slot_of},
    table::{self, Contender},
};

/// A table from slot to node, filled in proportion to the nodes' weights.
pub struct Ring {
    // Invariant: every entry is an index into `weights`.
    table: Box<[u16; SLOTS]>,
    weights: NodeWeights,
    seed: u64,
    version: RingVersion,
}

impl Ring {
    /// Builds a ring from nodes in any order; takes milliseconds, so never on a shard's thread.
    ///
    /// # Errors
    /// When there is no node, one is named twice, or there are more than [`crate::NODES_MAX`].
    pub fn build(
        version: RingVersion,
        seed: u64,
        nodes: impl IntoIterator<Item = (NodeId, Weight)>,
    ) -> Result<Self, InvalidWeights> {
        Ok(Self::from_weights(version, seed, NodeWeights::new(nodes)?))
    }

    /// Builds a ring from a map that was checked already.
    pub fn from_weights(version: RingVersion, seed: u64, weights: NodeWeights) -> Self {
        Self { table: table::deal(&weights, seed), weights, seed, version }
    }

    /// Builds the ring a balancer announced.
    pub fn from_update(update: &RingUpdate) -> Self {
        Self::from_weights(update.version.version, update.seed, update.node_weights.clone())
    }

    /// Returns the node that owns `key` (a client id).
    #[inline]
    pub fn owner(&self, key: &[u8]) -> &NodeId {
        self.weights.node(self.owner_of_hash(self.hash(key)))
    }

    /// Returns the hash of `key` under this ring's seed, for callers that also need the home shard from it.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        hash_key(key, self.seed)
    }

    /// Returns the index of the node that owns a key with this hash.
    #[inline]
    pub fn owner_of_hash(&self, hash: u64) -> NodeIndex {
        NodeIndex(self.table[slot_of(hash)])
    }

    /// Returns the node that owns `slot`.
    ///
    /// # Panics
    /// When `slot` is not below [`SLOTS`].
    pub fn owner_of_slot(&self, slot: usize) -> &NodeId {
        self.weights.node(NodeIndex(self.table[slot]))
    }

    /// Iterates over the owners of all slots, from slot 0 on.
    pub fn slot_owners(&self) -> impl ExactSizeIterator<Item = NodeIndex> + '_ {
        self.table.iter().map(|&index| NodeIndex(index))
    }

    /// Iterates over all nodes in order of preference for `key`: its owner, then the others as they would arrive at its
    /// slot. Each node comes once. Costs a step per node at the start, so it is for fail-over, not for every message.
    #[allow(clippy::missing_panics_doc, reason = "a slot has 18 bits")]
    pub fn owners(&self, key: &[u8]) -> Owners<'_> {
        let slot = slot_of(self.hash(key));
        let owner = NodeIndex(self.table[slot]);
        let rank_slot = u32::try_from(slot).expect("a slot has 18 bits");
        let others = (0_u16..).map(NodeIndex).zip(self.weights.iter()).filter(|&(index, _)| index != owner);
        let arrivals = others
            .map(|(index, (node, weight))| {
                Reverse((Contender::new(node, weight, self.seed).arrival_at(rank_slot), index))
            })
            .collect();
        Owners { weights: &self.weights, owner: Some(owner), arrivals }
    }

    /// Returns the version this ring was announced under.
    pub fn version(&self) -> RingVersion {
        self.version
    }

    /// Returns the seed of the key hash and of the nodes' permutations.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns the nodes and their weights.
    pub fn weights(&self) -> &NodeWeights {
        &self.weights
    }

    /// Returns a digest of everything the table depends on: names, weights and seed.
    pub fn version_hash(&self) -> VersionHash {
        VersionHash::of(&self.weights, self.seed)
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table: _, weights, seed, version } = self;
        f.debug_struct("Ring")
            .field("version", version)
            .field("seed", seed)
            .field("weights", weights)
            .finish_non_exhaustive()
    }
}

/// The nodes in order of preference for one key; see [`Ring::owners`].
#[derive(Debug, Clone)]
pub struct Owners<'a> {
    weights: &'a NodeWeights,
    owner: Option<NodeIndex>,
    // The settled owner is not among them.
    arrivals: BinaryHeap<Reverse<(u64, NodeIndex)>>,
}

impl<'a> Iterator for Owners<'a> {
    type Item = &'a NodeId;

    fn next(&mut self) -> Option<&'a NodeId> {
        let index = match self.owner.take() {
            Some(owner) => owner,
            None => self.arrivals.pop()?.0.1,
        };
        Some(self.weights.node(index))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.arrivals.len() + usize::from(self.owner.is_some());
        (left, Some(left))
    }
}

impl ExactSizeIterator for Owners<'_> {}

/// The version of a ring, 0 to 2^53 − 1 so that every JSON reader keeps it exact; only ever moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct RingVersion(u64);

impl RingVersion {
    /// The version of a node's ring of one, older than any balancer's.
    pub const FIRST: Self = Self(0);
    /// The last version there can be.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// Checks a number.
    ///
    /// # Errors
    /// When it is above [`RingVersion::MAX`].
    pub fn new(value: u64) -> Result<Self, InvalidVersion> {
        if value > Self::MAX.0 { Err(InvalidVersion { value }) } else { Ok(Self(value)) }
    }

    /// Returns the version as a number.
    pub fn get(self) -> u64 {
        self.0
    }

    /// Returns the version after this one, or `None` after the last.
    pub fn next(self) -> Option<Self> {
        Self::new(self.0 + 1).ok()
    }
}

impl fmt::Display for RingVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for RingVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(whole_number(deserializer)?).map_err(de::Error::custom)
    }
}

/// A digest of a ring's names, weights and seed: two rings of one version and another digest mean two balancers.
///
/// Written as 16 hexadecimal digits (a 64-bit number would be rounded by many JSON readers). Whatever text or whole
/// number another program puts there is kept as text and compares unequal to ours.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VersionHash(Arc<str>);

impl VersionHash {
    /// Returns the digest of what a ring is built from.
    pub fn of(weights: &NodeWeights, seed: u64) -> Self {
        let mut bytes = Vec::new();
        for (node, weight) in weights.iter() {
            // A zero byte is in no name, so no two maps give the same bytes.
            bytes.extend_from_slice(node.as_str().as_bytes());
            bytes.push(0);
            bytes.extend_from_slice(&weight.get().to_le_bytes());
        }
        Self(format!("{:016x}", xxh3_64_with_seed(&bytes, seed)).into())
    }

    /// Returns the digest as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VersionHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for VersionHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for VersionHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrNumber;
        impl de::Visitor<'_> for TextOrNumber {
            type Value = VersionHash;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a digest as text or whole number")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<VersionHash, E> {
                Ok(VersionHash(text.into()))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<VersionHash, E> {
                Ok(VersionHash(value.to_string().into()))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<VersionHash, E> {
                Ok(VersionHash(value.to_string().into()))
            }
        }
        deserializer.deserialize_any(TextOrNumber)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(seed: u64, nodes: &[(&str, u64)]) -> Ring {
        let nodes = nodes.iter().map(|&(name, weight)| (NodeId::new(name).unwrap(), Weight::new(weight).unwrap()));
        Ring::build(RingVersion::FIRST, seed, nodes).unwrap()
    }

    #[test]
    fn ring_of_one_owns_everything() {
        let ring = ring(0, &[("only", 7)]);
        assert!(ring.slot_owners().all(|index| index.get() == 0));
        assert_eq!(ring.owner(b"anyone").as_str(), "only");
    }

    #[test]
    fn owners_start_with_the_owner_and_name_each_node_once() {
        let ring = ring(3, &[("a", 1), ("b", 50), ("c", 300), ("d", 2), ("e", 65_535)]);
        for key in 0..500_u32 {
            let key = key.to_be_bytes();
            let owners = ring.owners(&key);
            assert_eq!(owners.len(), 5);
            let owners: Vec<_> = owners.collect();
            assert_eq!(owners[0], ring.owner(&key));
            let mut names = owners.clone();
            names.sort_unstable();
            assert!(names.iter().copied().eq(ring.weights().iter().map(|(node, _)| node)));
        }
    }

    #[test]
    fn second_choice_is_the_owner_once_the_first_is_gone() {
        let all = [("a", 100), ("b", 100), ("c", 100), ("d", 100), ("e", 100)];
        let full = ring(0, &all);
        let keys = || (0..1000_u32).map(u32::to_be_bytes);
        let mut agreeing = 0;
        for gone in ["a", "b", "c", "d", "e"] {
            let rest: Vec<_> = all.iter().copied().filter(|&(name, _)| name != gone).collect();
            let without = ring(0, &rest);
            let moved = keys().filter(|key| full.owner(key).as_str() == gone);
            agreeing += moved.filter(|key| full.owners(key).nth(1) == Some(without.owner(key))).count();
        }
        // Settling may have moved a slot or two.
        assert!((980..=1000).contains(&agreeing), "{agreeing}");
    }

    #[test]
    fn version_hash_covers_names_weights_and_seed() {
        let digest = |seed, nodes: &[(&str, u64)]| ring(seed, nodes).version_hash();
        let plain = digest(0, &[("a", 1), ("b", 2)]);
        assert_eq!(plain, digest(0, &[("b", 2), ("a", 1)]));
        assert_eq!(plain.as_str().len(), 16);
        for other in [
            digest(0, &[("a", 2), ("b", 1)]),
            digest(0, &[("a", 1), ("c", 2)]),
            digest(0, &[("ab", 1), ("b", 2)]),
            digest(1, &[("a", 1), ("b", 2)]),
        ] {
            assert_ne!(plain, other);
        }
    }

    #[test]
    fn version_stays_exact_in_json() {
        assert!(RingVersion::new((1 << 53) - 1).is_ok());
        assert!(RingVersion::new(1 << 53).is_err());
        assert_eq!(RingVersion::FIRST.next(), RingVersion::new(1).ok());
        assert_eq!(RingVersion::MAX.next(), None);
    }
}
