//! Fences that were read and not yet echoed. Pure.

use std::collections::BTreeMap;

use crate::bus::record::{Address, RecordRef};

/// A fence that its shard has passed.
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
#[derive(Debug, Default)]
pub struct Fences {
    under_way: BTreeMap<RecordRef, (u64, Address)>,
}

impl Fences {
    /// A fence was read; its recipient's home shard is about to be given it.
    pub fn begin(&mut self, at: RecordRef, id: u64, origin: Address) {
        self.under_way.insert(at, (id, origin));
    }

    /// Its shard has passed a fence. Nothing if it is not under way.
    pub fn pass(&mut self, at: RecordRef) -> Option<Passed> {
        self.under_way.remove(&at).map(|(id, origin)| Passed { at, id, origin })
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
    fn a_fence_passes_once_and_only_while_it_is_under_way() {
        let at = RecordRef { partition: 1, offset: 7 };
        let origin = Address { node: NodeId::new("a").unwrap(), incarnation: 1, shard: 0 };
        let mut fences = Fences::default();
        assert_eq!(fences.pass(at), None);
        fences.begin(at, 3, origin.clone());
        assert_eq!(fences.under_way(), 1);
        assert_eq!(fences.pass(at), Some(Passed { at, id: 3, origin: origin.clone() }));
        assert_eq!(fences.pass(at), None);
        fences.begin(at, 3, origin);
        fences.clear();
        assert_eq!(fences.pass(at), None);
    }
}
