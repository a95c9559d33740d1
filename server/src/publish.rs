//! Publishers wait for what becomes of their messages: which answer goes where, on the shard that has the message.

use std::time::Duration;

use crossbeam::channel::Sender;
use hashbrown::HashMap;
use xxhash_rust::xxh3::Xxh3Builder;

use crate::protocol::{AckStatus, ErrorCode};

/// Messages whose publishers may wait on one shard.
pub const WAITING_MAX: usize = 65_536;
/// A publisher that has waited for so long has gone. A message that it sent again is answered to its second wait alone,
/// so that the first would stay here for ever.
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
    reply: Sender<Published>,
    index: usize,
    since_ms: u64,
}

/// The publishers that wait.
#[derive(Default)]
pub struct PublishAnswers {
    next: u64,
    waiting: HashMap<u64, Waiting, Xxh3Builder>,
    purged_ms: u64,
}

impl PublishAnswers {
    /// Notes who waits for a message; none when too many wait already.
    pub fn expect(&mut self, reply: Sender<Published>, index: usize, now_ms: u64) -> Option<u64> {
        if now_ms.saturating_sub(self.purged_ms) >= PURGE_INTERVAL_MS {
            self.purged_ms = now_ms;
            let forget_ms = u64::try_from(FORGET_AFTER.as_millis()).unwrap_or(u64::MAX);
            self.waiting.retain(|_, waiting| now_ms.saturating_sub(waiting.since_ms) < forget_ms);
        }
        if self.waiting.len() >= WAITING_MAX {
            return None;
        }
        self.next += 1;
        self.waiting.insert(self.next, Waiting { reply, index, since_ms: now_ms });
        Some(self.next)
    }

    /// Tells who waits. A publisher that has gone is not told.
    pub fn answer(&mut self, number: u64, outcome: Result<AckStatus, (ErrorCode, &'static str)>) {
        if let Some(waiting) = self.waiting.remove(&number) {
            let _ = waiting.reply.try_send(Published { index: waiting.index, outcome });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_told_once() {
        let (reply, answers) = crossbeam::channel::bounded(2);
        let mut waiting = PublishAnswers::default();
        let number = waiting.expect(reply, 7, 0).unwrap();
        waiting.answer(number + 1, Ok(AckStatus::Sent));
        assert!(answers.try_recv().is_err());
        waiting.answer(number, Ok(AckStatus::Held));
        waiting.answer(number, Ok(AckStatus::Sent));
        assert_eq!(answers.try_recv(), Ok(Published { index: 7, outcome: Ok(AckStatus::Held) }));
        assert!(answers.try_recv().is_err());
    }

    #[test]
    fn those_that_wait_are_limited_and_the_gone_make_room() {
        let (reply, _answers) = crossbeam::channel::bounded(1);
        let mut waiting = PublishAnswers::default();
        for _ in 0..WAITING_MAX {
            assert!(waiting.expect(reply.clone(), 0, 1000).is_some());
        }
        assert_eq!(waiting.expect(reply.clone(), 0, 59_999), None);
        assert!(waiting.expect(reply, 0, 61_000).is_some());
        assert_eq!(waiting.waiting.len(), 1);
    }
}
