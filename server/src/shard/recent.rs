//! The identities of a session's latest messages, so that one sent again is not delivered again.

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How many messages back a repeat is recognised at least; up to twice as many are.
pub const RECENT_MIN: usize = 224;

/// A message's identity: a hash of who sent it, itself a hash, and under which name.
pub fn identity(sender: u64, msg_id: &str) -> u64 {
    xxh3_64_with_seed(msg_id.as_bytes(), sender)
}

/// The latest identities, in two halves: when the younger one is full the older one is forgotten as a whole, so that no
/// identity is ever removed by itself.
#[derive(Default)]
pub struct Recent {
    younger: HashTable<u64>,
    older: HashTable<u64>,
}

impl Recent {
    /// Notes `identity`; false when it is among the latest already.
    pub fn insert(&mut self, identity: u64) -> bool {
        // The identity is a hash already.
        let is_known = |half: &HashTable<u64>| half.find(identity, |known| *known == identity).is_some();
        if is_known(&self.younger) || is_known(&self.older) {
            return false;
        }
        if self.younger.len() == RECENT_MIN {
            std::mem::swap(&mut self.younger, &mut self.older);
            self.younger.clear();
        }
        self.younger.insert_unique(identity, identity, |known| *known);
        true
    }

    /// Forgets `identity`: its message was refused after all.
    pub fn remove(&mut self, identity: u64) {
        if let Ok(found) = self.younger.find_entry(identity, |known| *known == identity) {
            found.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_recognised_within_the_window_and_forgotten_behind_it() {
        let mut recent = Recent::default();
        for value in 0..RECENT_MIN as u64 {
            assert!(recent.insert(value));
        }
        for value in 0..RECENT_MIN as u64 {
            assert!(!recent.insert(value));
        }
        for value in 0..2 * RECENT_MIN as u64 {
            recent.insert(1_000_000 + value);
        }
        assert!(recent.insert(0));
        recent.remove(0);
        assert!(recent.insert(0));
        assert!(recent.younger.len() <= RECENT_MIN && recent.older.len() <= RECENT_MIN);
    }

    #[test]
    fn an_identity_is_the_pair_of_sender_and_name() {
        assert_ne!(identity(1, "m"), identity(2, "m"));
        assert_ne!(identity(1, "m"), identity(1, "n"));
        assert_eq!(identity(1, "m"), identity(1, "m"));
    }
}
