//! The identities of a session's latest messages, so that one sent again is not delivered again.

use std::collections::VecDeque;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How many messages back a repeat is recognised.
pub const RECENT_MAX: usize = 256;

/// A message's identity: a hash of who sent it, itself a hash, and under which name.
pub fn identity(sender: u64, msg_id: &str) -> u64 {
    xxh3_64_with_seed(msg_id.as_bytes(), sender)
}

/// The last [`RECENT_MAX`] identities.
// Invariant: `order` and `table` hold the same identities, each once.
#[derive(Default)]
pub struct Recent {
    order: VecDeque<u64>,
    table: HashTable<u64>,
}

impl Recent {
    /// Notes `identity`; false when it is among the latest already.
    pub fn insert(&mut self, identity: u64) -> bool {
        // The identity is a hash already.
        if self.table.find(identity, |known| *known == identity).is_some() {
            return false;
        }
        if self.order.len() == RECENT_MAX
            && let Some(oldest) = self.order.pop_front()
            && let Ok(found) = self.table.find_entry(oldest, |known| *known == oldest)
        {
            found.remove();
        }
        self.order.push_back(identity);
        self.table.insert_unique(identity, identity, |known| *known);
        true
    }

    /// Forgets `identity`: its message was refused after all.
    pub fn remove_latest(&mut self, identity: u64) {
        if self.order.back() == Some(&identity) {
            self.order.pop_back();
            if let Ok(found) = self.table.find_entry(identity, |known| *known == identity) {
                found.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_recognised_within_the_window_and_forgotten_behind_it() {
        let mut recent = Recent::default();
        for value in 0..RECENT_MAX as u64 {
            assert!(recent.insert(value));
        }
        assert!(!recent.insert(0));
        assert!(recent.insert(1_000_000));
        assert!(recent.insert(0));
        assert!(!recent.insert(1_000_000));
        recent.remove_latest(0);
        assert!(recent.insert(0));
        assert_eq!(recent.order.len(), recent.table.len());
    }

    #[test]
    fn an_identity_is_the_pair_of_sender_and_name() {
        assert_ne!(identity(1, "m"), identity(2, "m"));
        assert_ne!(identity(1, "m"), identity(1, "n"));
        assert_eq!(identity(1, "m"), identity(1, "m"));
    }
}
