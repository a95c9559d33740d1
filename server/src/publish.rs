//! Publishers wait for what becomes of their messages: which answer goes where, on the shard that has the message.
//! A message that is published again while the first time is still open is answered once, and whoever waits is told.

use std::time::Duration;

use crossbeam::channel::Sender;
use hashbrown::HashMap;
use xxhash_rust::xxh3::Xxh3Builder;

use crate::protocol::{AckStatus, ErrorCode};

/// Answers that publishers may wait for on one shard.
pub const WAITING_MAX: usize = 65_536;
/// A publisher that has waited for so long has gone, and is forgotten.
pub const FORGET_AFTER: Duration = Duration::from_secs(60);
/// How often those that have gone are looked for.
const PURGE_INTERVAL_MS: u64 = 1_000;

/// What became of one published message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Which of the publisher's messages.
    pub index: usize,
    /// Accepted, or why not.
    pub outcome: Result<AckStatus, (ErrorCode, &'static str)>,
}

struct Waiting {
    message: u64,
    since_ms: u64,
    // Who waits, the latest last, each with its own number for the message.
    replies: Vec<(Sender<Published>, usize)>,
}

/// The publishers that wait.
// Invariant: `by_message` names the one entry of `waiting` for each message in it, and `replies` counts theirs.
#[derive(Default)]
pub struct PublishAnswers {
    next: u64,
    waiting: HashMap<u64, Waiting, Xxh3Builder>,
    by_message: HashMap<u64, u64, Xxh3Builder>,
    replies: usize,
    purged_ms: u64,
}

impl PublishAnswers {
    /// Notes who waits for a message, a hash of its sender, recipient and name; returns the number its answer goes by.
    /// None when too many wait already.
    pub fn expect(&mut self, reply: Sender<Published>, index: usize, message: u64, now_ms: u64) -> Option<u64> {
        if now_ms.saturating_sub(self.purged_ms) >= PURGE_INTERVAL_MS {
            self.purge(now_ms);
        }
        if self.replies >= WAITING_MAX {
            return None;
        }
        self.next += 1;
        // The answer comes to the latest number alone: those of the earlier ones wait for it too.
        let mut replies = match self.by_message.insert(message, self.next) {
            Some(earlier) => self.waiting.remove(&earlier).map(|waiting| waiting.replies).unwrap_or_default(),
            None => Vec::new(),
        };
        replies.push((reply, index));
        self.replies += 1;
        self.waiting.insert(self.next, Waiting { message, since_ms: now_ms, replies });
        Some(self.next)
    }

    /// Tells who waits. A publisher that has gone is not told.
    pub fn answer(&mut self, number: u64, outcome: Result<AckStatus, (ErrorCode, &'static str)>) {
        let Some(waiting) = self.waiting.remove(&number) else { return };
        self.by_message.remove(&waiting.message);
        self.replies -= waiting.replies.len();
        for (reply, index) in waiting.replies {
            let _ = reply.try_send(Published { index, outcome });
        }
    }

    fn purge(&mut self, now_ms: u64) {
        self.purged_ms = now_ms;
        let forget_ms = u64::try_from(FORGET_AFTER.as_millis()).unwrap_or(u64::MAX);
        self.waiting.retain(|_, waiting| {
            let stays = now_ms.saturating_sub(waiting.since_ms) < forget_ms;
            if !stays {
                self.by_message.remove(&waiting.message);
                self.replies -= waiting.replies.len();
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_told_once() {
        let (reply, answers) = crossbeam::channel::bounded(2);
        let mut waiting = PublishAnswers::default();
        let number = waiting.expect(reply, 7, 1, 0).unwrap();
        waiting.answer(number + 1, Ok(AckStatus::Sent));
        assert!(answers.try_recv().is_err());
        waiting.answer(number, Ok(AckStatus::Held));
        waiting.answer(number, Ok(AckStatus::Sent));
        assert_eq!(answers.try_recv(), Ok(Published { index: 7, outcome: Ok(AckStatus::Held) }));
        assert!(answers.try_recv().is_err());
    }

    #[test]
    fn a_message_published_again_is_answered_to_all_who_wait() {
        let (reply, answers) = crossbeam::channel::bounded(3);
        let mut waiting = PublishAnswers::default();
        let first = waiting.expect(reply.clone(), 0, 1, 0).unwrap();
        let other = waiting.expect(reply.clone(), 1, 2, 0).unwrap();
        let again = waiting.expect(reply, 2, 1, 0).unwrap();
        waiting.answer(first, Ok(AckStatus::Sent));
        waiting.answer(again, Ok(AckStatus::Delivered));
        waiting.answer(other, Ok(AckStatus::Held));
        let told: Vec<_> = answers.try_iter().map(|published| (published.index, published.outcome)).collect();
        assert_eq!(told, [(0, Ok(AckStatus::Delivered)), (2, Ok(AckStatus::Delivered)), (1, Ok(AckStatus::Held))]);
        assert!(waiting.waiting.is_empty() && waiting.by_message.is_empty() && waiting.replies == 0);
    }

    #[test]
    fn those_that_wait_are_limited_and_the_gone_make_room() {
        let (reply, _answers) = crossbeam::channel::bounded(1);
        let mut waiting = PublishAnswers::default();
        for message in 0..WAITING_MAX as u64 {
            assert!(waiting.expect(reply.clone(), 0, message % 1000, 1000).is_some());
        }
        assert_eq!(waiting.expect(reply.clone(), 0, 0, 59_999), None);
        assert!(waiting.expect(reply, 0, 0, 61_000).is_some());
        assert_eq!((waiting.waiting.len(), waiting.by_message.len(), waiting.replies), (1, 1, 1));
    }
}
