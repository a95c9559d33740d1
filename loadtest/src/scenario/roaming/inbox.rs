//! What a client remembers of what it received: its position, and the names of the latest messages, by which it knows
//! a repeat. As `client.js` does it. Pure.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Names of messages that are remembered.
const SEEN_MAX: usize = 1024;

/// What a message is to its recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    New,
    /// Its name is known, so it is dropped.
    Repeat,
    /// Its name is not known, but its offset is one that was handled: dropped as well, and the server's mistake.
    Stale,
}

/// One client's receiving side.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// The last offset that was handled: where the next connection resumes.
    position: u64,
    is_ack_due: bool,
    /// Hashes of `(from, msgId)`: the oldest is overwritten by the next.
    seen: Vec<u64>,
    oldest: usize,
}

impl Inbox {
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// A new connection begins after `offset`. If `recovered`, everything after our position follows.
    pub(super) fn welcome(&mut self, offset: u64, recovered: bool) {
        if !recovered || offset > self.position {
            self.position = offset;
        } else if self.position > offset {
            self.is_ack_due = true;
        }
    }

    /// A message arrived. Whatever it is, it is to be acknowledged.
    pub(super) fn receive(&mut self, from: &str, msg_id: &str, offset: u64) -> Arrival {
        let name = xxh3_64_with_seed(msg_id.as_bytes(), xxh3_64(from.as_bytes()));
        let is_known = self.seen.contains(&name);
        let is_handled = offset <= self.position;
        if !is_known {
            self.remember(name);
        }
        self.position = self.position.max(offset);
        self.is_ack_due = true;
        match (is_known, is_handled) {
            (true, _) => Arrival::Repeat,
            (false, true) => Arrival::Stale,
            (false, false) => Arrival::New,
        }
    }

    /// The offset to acknowledge, once.
    pub(super) fn take_ack(&mut self) -> Option<u64> {
        std::mem::take(&mut self.is_ack_due).then_some(self.position)
    }

    fn remember(&mut self, name: u64) {
        if self.seen.len() < SEEN_MAX {
            self.seen.push(name);
        } else {
            self.seen[self.oldest] = name;
            self.oldest = (self.oldest + 1) % SEEN_MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_known_by_their_name_and_acknowledged_all_the_same() {
        let mut inbox = Inbox::default();
        assert_eq!(inbox.receive("a", "1", 10), Arrival::New);
        assert_eq!(inbox.receive("a", "2", 20), Arrival::New);
        assert_eq!(inbox.take_ack(), Some(20));
        assert_eq!(inbox.take_ack(), None);
        assert_eq!(inbox.receive("a", "1", 30), Arrival::Repeat, "sent again under a new offset");
        assert_eq!(inbox.receive("a", "2", 20), Arrival::Repeat, "delivered again");
        assert_eq!(inbox.take_ack(), Some(30));
        assert_eq!(inbox.receive("b", "1", 40), Arrival::New, "names are the sender's own");
        assert_eq!(inbox.receive("a", "3", 40), Arrival::Stale);
    }

    #[test]
    fn a_welcome_sets_the_position_or_asks_for_an_ack() {
        let mut inbox = Inbox::default();
        inbox.welcome(100, true);
        assert_eq!(inbox.position(), 100, "a new client begins where the node begins");
        inbox.receive("a", "1", 110);
        inbox.take_ack();
        inbox.welcome(105, true);
        assert_eq!((inbox.position(), inbox.take_ack()), (110, Some(110)), "the node missed an ack");
        inbox.welcome(90, false);
        assert_eq!(inbox.position(), 90, "even if it is lower");
    }

    #[test]
    fn the_oldest_names_are_forgotten() {
        let mut inbox = Inbox::default();
        for number in 0..=SEEN_MAX {
            assert_eq!(inbox.receive("a", &number.to_string(), number as u64 + 1), Arrival::New);
        }
        assert_eq!(inbox.receive("a", "1", 5000), Arrival::Repeat);
        assert_eq!(inbox.receive("a", "0", 5001), Arrival::New);
        assert_eq!(inbox.seen.len(), SEEN_MAX);
    }
}
