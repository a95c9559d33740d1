//! What changes hands between two rings, by slot, so that no client id needs to be hashed again.

use crate::{NodeId, NodeIndex, Ring, SLOTS, SeedChanged};

/// Compares two rings of one seed.
///
/// # Errors
/// When the seeds differ: then a slot of one ring holds other keys than the same slot of the other.
pub fn diff<'a>(old: &'a Ring, new: &'a Ring) -> Result<RingDiff<'a>, SeedChanged> {
    if old.seed() != new.seed() {
        return Err(SeedChanged { old: old.seed(), new: new.seed() });
    }
    let new_index_of_old = old.weights().iter().map(|(node, _)| new.weights().index(node)).collect();
    Ok(RingDiff { old, new, new_index_of_old })
}

/// The slots whose owner differs between two rings; owners are compared by name.
#[derive(Debug, Clone)]
pub struct RingDiff<'a> {
    old: &'a Ring,
    new: &'a Ring,
    // By the old ring's index: the same node's index in the new ring, if it is still there.
    new_index_of_old: Box<[Option<NodeIndex>]>,
}

/// One slot that changed hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotMove<'a> {
    /// The slot, below [`SLOTS`]; see [`crate::slot_of`].
    pub slot: usize,
    /// Who owned it.
    pub from: &'a NodeId,
    /// Who owns it now.
    pub to: &'a NodeId,
}

impl<'a> RingDiff<'a> {
    /// Iterates over the slots that changed hands, ascending.
    pub fn moves(&self) -> impl Iterator<Item = SlotMove<'a>> + '_ {
        self.changed().map(|(slot, from, to)| SlotMove {
            slot,
            from: self.old.weights().node(from),
            to: self.new.weights().node(to),
        })
    }

    /// Returns the number of slots that changed hands.
    pub fn moved_slots(&self) -> usize {
        self.changed().count()
    }

    /// Returns the share of all keys that move, 0 to 1.
    #[allow(clippy::cast_precision_loss, reason = "slots are far below 2^53")]
    pub fn moved_share(&self) -> f64 {
        self.moved_slots() as f64 / SLOTS as f64
    }

    fn changed(&self) -> impl Iterator<Item = (usize, NodeIndex, NodeIndex)> + '_ {
        let owners = self.old.slot_owners().zip(self.new.slot_owners());
        owners
            .enumerate()
            .filter(|&(_, (from, to))| self.new_index_of_old[from.get()] != Some(to))
            .map(|(slot, (from, to))| (slot, from, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RingVersion, Weight};

    fn ring(seed: u64, names: &[&str]) -> Ring {
        let nodes = names.iter().map(|name| (NodeId::new(name).unwrap(), Weight::MIN));
        Ring::build(RingVersion::FIRST, seed, nodes).unwrap()
    }

    #[test]
    fn nothing_moves_between_equal_rings() {
        let (old, new) = (ring(0, &["a", "b"]), ring(0, &["b", "a"]));
        let diff = diff(&old, &new).unwrap();
        assert_eq!((diff.moved_slots(), diff.moves().next()), (0, None));
    }

    #[test]
    fn moves_name_both_owners_although_indexes_shift() {
        let (old, new) = (ring(0, &["b", "c"]), ring(0, &["a", "b", "c"]));
        let diff = diff(&old, &new).unwrap();
        for SlotMove { slot, from, to } in diff.moves() {
            assert_eq!(from, old.owner_of_slot(slot));
            assert_eq!(to, new.owner_of_slot(slot));
            assert_ne!(from, to);
        }
        let unchanged = (0..SLOTS).filter(|&slot| old.owner_of_slot(slot) == new.owner_of_slot(slot)).count();
        assert_eq!(unchanged + diff.moved_slots(), SLOTS);
        assert!((0.32..0.36).contains(&diff.moved_share()), "{}", diff.moved_share());
    }

    #[test]
    fn another_seed_cannot_be_compared_by_slot() {
        assert_eq!(diff(&ring(1, &["a"]), &ring(2, &["a"])).err(), Some(SeedChanged { old: 1, new: 2 }));
    }
}
