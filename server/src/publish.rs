//! Publishers wait for what becomes of their messages: which answer goes where, on the shard that has the message.

use crossbeam::channel::Sender;
use hashbrown::HashMap;
use xxhash_rust::xxh3::Xxh3Builder;

use crate::protocol::{AckStatus, ErrorCode};

/// Publishers that may wait on one shard.
pub const WAITING_MAX: usize = 65_536;

/// What became of one published message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Which of the publisher's messages.
    pub index: usize,
    /// Accepted, or why not.
    pub outcome: Result<AckStatus, (ErrorCode, &'static str)>,
}

/// The publishers that wait.
#[derive(Default)]
pub struct PublishAnswers {
    next: u64,
    waiting: HashMap<u64, (Sender<Published>, usize), Xxh3Builder>,
}

impl PublishAnswers {
    /// Notes who waits for a message; none when too many wait already.
    pub fn expect(&mut self, reply: Sender<Published>, index: usize) -> Option<u64> {
        if self.waiting.len() >= WAITING_MAX {
            return None;
        }
        self.next += 1;
        self.waiting.insert(self.next, (reply, index));
        Some(self.next)
    }

    /// Tells who waits. A publisher that has gone is not told.
    pub fn answer(&mut self, number: u64, outcome: Result<AckStatus, (ErrorCode, &'static str)>) {
        if let Some((reply, index)) = self.waiting.remove(&number) {
            let _ = reply.try_send(Published { index, outcome });
        }
    }
}
