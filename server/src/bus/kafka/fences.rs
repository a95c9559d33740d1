//! Fences that were read and not yet echoed: which shards have placed all that was ahead of them. Pure.

use std::collections::BTreeMap;

use crate::bus::record::{Address, RecordRef};

/// A fence under way through the shards.
#[derive(Debug)]
struct Fence {
    id: u64,
    origin: Address,
    has_passed: Vec<bool>,
}

/// A fence that every shard has passed.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed {
    /// Where it stood.
    pub at: RecordRef,
    /// The origin's name for it.
    pub id: u64,
    /// Who waits for its echo.
    pub origin: Address,
}

/// The fences of this node's topic that are under way. Bounded by what may be unfinished in its partitions.
#[derive(Debug)]
pub struct Fences {
    shards: usize,
    under_way: BTreeMap<RecordRef, Fence>,
}

impl Fences {
    /// For a node of so many shards, at least one.
    pub fn new(shards: usize) -> Self {
        Self { shards, under_way: BTreeMap::new() }
    }

    /// A fence was read; every shard is about to be given it.
    pub fn begin(&mut self, at: RecordRef, id: u64, origin: Address) {
        self.under_way.insert(at, Fence { id, origin, has_passed: vec![false; self.shards] });
    }

    /// A shard has passed a fence. Says so when it was the last; twice is once, and one that is not under way is none.
    pub fn pass(&mut self, at: RecordRef, shard: u16) -> Option<Passed> {
        let fence = self.under_way.get_mut(&at)?;
        *fence.has_passed.get_mut(usize::from(shard))? = true;
        if !fence.has_passed.iter().all(|has_passed| *has_passed) {
            return None;
        }
        self.under_way.remove(&at).map(|Fence { id, origin, .. }| Passed { at, id, origin })
    }

    /// Reading ends, or begins anew: whatever was under way will be read again.
    pub fn clear(&mut self) {
        self.under_way.clear();
    }

    /// How many are under way.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::NodeId;

    #[test]
    fn a_fence_is_passed_when_every_shard_has_passed_it() {
        let origin = Address { node: NodeId::new("a").unwrap(), incarnation: 1, shard: 2 };
        let (first, second) = (RecordRef { partition: 1, offset: 5 }, RecordRef { partition: 1, offset: 6 });
        let mut fences = Fences::new(2);
        fences.begin(first, 7, origin.clone());
        fences.begin(second, 8, origin.clone());
        assert_eq!(fences.pass(first, 1), None);
        assert_eq!(fences.pass(first, 1), None);
        assert_eq!(fences.pass(second, 0), None);
        assert_eq!(fences.pass(first, 2), None, "there is no such shard");
        assert_eq!(fences.pass(first, 0), Some(Passed { at: first, id: 7, origin }));
        assert_eq!(fences.pass(first, 0), None);
        assert_eq!(fences.under_way(), 1);
        fences.clear();
        assert_eq!(fences.pass(second, 1), None);
    }
}
