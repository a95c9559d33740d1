//! The key hash, the slot and home shard taken from it, and the permutation in which a node visits the slots.
//!
//! **Nothing here may change.** Every node, balancer and tool computes the owner of a client id by itself; two versions
//! of this file in one fleet would send messages for one client to two homes, silently. A different hash, slot count,
//! constant or order of steps is a new ring and needs a new wire name. Integers only, so that no compiler flag and no
//! machine can round differently.

use std::num::NonZeroUsize;

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

/// log2 of [`SLOTS`].
const SLOT_BITS: u32 = 18;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;

/// Slots in a ring's table, whatever the number of nodes.
pub const SLOTS: usize = 1 << SLOT_BITS;

/// Half the bits of a slot, so that `x ^= x >> XORSHIFT` undoes itself and carries the well-mixed upper half of a
/// product into its lower half, which multiplication alone never mixes.
const XORSHIFT: u32 = SLOT_BITS / 2;

/// Returns the hash that places a key (a client id): XXH3, 64 bits.
#[inline]
pub fn hash_key(key: &[u8], seed: u64) -> u64 {
    xxh3_64_with_seed(key, seed)
}

/// Returns the slot of a hash: its top 18 bits.
#[inline]
pub const fn slot_of(hash: u64) -> usize {
    (hash >> (u64::BITS - SLOT_BITS)) as usize
}

/// Returns the home shard of a hash, below `shards`.
///
/// Taken from the low 32 bits by multiply-shift; the slot comes from the top 18, so the shards of a node fill evenly
/// whichever slots it owns. Only the node itself depends on this one.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the product shifted by 32 is below `shards`, a usize")]
pub const fn shard_of(hash: u64, shards: NonZeroUsize) -> usize {
    let low = (hash & 0xffff_ffff) as u128;
    ((low * shards.get() as u128) >> 32) as usize
}

/// The order in which one node visits all slots: a bijection of `0..SLOTS`, rank → slot.
///
/// Two rounds of add, multiply by an odd number, xorshift, modulo 2^18. The four parameters are cut from the 128-bit XXH3
/// of the node's name under the ring's seed: bits 0–17 and 64–81 are added, bits 32–49 and 96–113 (with the lowest set, so
/// that the product can be undone) multiply. Each node has multipliers of its own: with common ones the orders of two
/// nodes would be shifts of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permutation {
    rounds: [Round; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Round {
    add: u32,
    // Invariant: odd, and multiply * inverse == 1 modulo 2^18.
    multiply: u32,
    inverse: u32,
}

impl Permutation {
    /// Returns the permutation of the node called `name` under `seed`.
    pub fn new(name: &str, seed: u64) -> Self {
        let hash = xxh3_128_with_seed(name.as_bytes(), seed);
        Self { rounds: [Round::new(bits(hash, 0), bits(hash, 32)), Round::new(bits(hash, 64), bits(hash, 96))] }
    }

    /// Returns the slot visited at `rank`, both below [`SLOTS`].
    #[inline]
    pub fn slot(&self, rank: u32) -> u32 {
        self.rounds[1].forward(self.rounds[0].forward(rank))
    }

    /// Returns the rank at which `slot` is visited: the inverse of [`Permutation::slot`].
    #[inline]
    pub fn rank(&self, slot: u32) -> u32 {
        self.rounds[0].backward(self.rounds[1].backward(slot))
    }
}

impl Round {
    fn new(add: u32, multiply: u32) -> Self {
        let multiply = multiply | 1;
        Self { add, multiply, inverse: inverse_of(multiply) }
    }

    #[inline]
    fn forward(self, value: u32) -> u32 {
        let product = value.wrapping_add(self.add).wrapping_mul(self.multiply) & SLOT_MASK;
        product ^ (product >> XORSHIFT)
    }

    #[inline]
    fn backward(self, value: u32) -> u32 {
        let product = value ^ (value >> XORSHIFT);
        product.wrapping_mul(self.inverse).wrapping_sub(self.add) & SLOT_MASK
    }
}

/// Returns 18 bits of `hash`, from bit `from` on.
fn bits(hash: u128, from: u32) -> u32 {
    u32::try_from((hash >> from) & u128::from(SLOT_MASK)).expect("18 bits fit")
}

/// Returns the inverse of an odd number modulo 2^32, and so modulo 2^18, by Newton's iteration.
fn inverse_of(odd: u32) -> u32 {
    debug_assert!(odd % 2 == 1);
    // An odd number is its own inverse modulo 8; every step doubles the bits that are right: 3, 6, 12, 24, 48.
    (0..4).fold(odd, |inverse, _| inverse.wrapping_mul(2_u32.wrapping_sub(odd.wrapping_mul(inverse))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_hash_is_xxh3() {
        // Published vectors of XXH3_64bits: the empty input under seed 0.
        assert_eq!(hash_key(b"", 0), 0x2d06_8005_38d3_94c2);
    }

    #[test]
    fn slot_is_the_top_bits() {
        assert_eq!(slot_of(0), 0);
        assert_eq!(slot_of(u64::MAX), SLOTS - 1);
        assert_eq!(slot_of(1 << 46), 1);
        assert_eq!(slot_of((1 << 46) - 1), 0);
    }

    #[test]
    fn shard_is_below_the_count_and_ignores_the_slot_bits() {
        for shards in [1, 2, 3, 7, 64, 1000, usize::MAX] {
            let shards = NonZeroUsize::new(shards).unwrap();
            assert_eq!(shard_of(0, shards), 0);
            assert!(shard_of(u64::MAX, shards) < shards.get());
            assert_eq!(shard_of(0x1234_5678, shards), shard_of(0xffff_ffff_1234_5678, shards));
        }
    }

    #[test]
    fn shards_of_one_slot_fill_evenly() {
        let shards = NonZeroUsize::new(8).unwrap();
        let mut counts = [0_u32; 8];
        for key in 0..200_000_u32 {
            let hash = hash_key(&key.to_le_bytes(), 0);
            if slot_of(hash) < SLOTS / 8 {
                counts[shard_of(hash, shards)] += 1;
            }
        }
        assert!(counts.iter().all(|&count| (2800..3450).contains(&count)), "{counts:?}");
    }

    #[test]
    fn permutation_is_a_bijection() {
        for (name, seed) in [("a", 0), ("node-17", 0), ("node-17", 1), ("", u64::MAX)] {
            let permutation = Permutation::new(name, seed);
            let mut seen = vec![false; SLOTS];
            for rank in 0..1 << SLOT_BITS {
                let slot = permutation.slot(rank);
                assert!(!std::mem::replace(&mut seen[slot as usize], true), "slot {slot} twice");
                assert_eq!(permutation.rank(slot), rank);
            }
        }
    }
}
