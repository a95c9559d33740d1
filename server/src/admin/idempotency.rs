//! Requests that were answered already: who sends the same again under the same `Idempotency-Key` gets the same answer,
//! and nothing is published twice. Bounded in number, bytes and time; the oldest makes room.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use xxhash_rust::xxh3::{Xxh3Builder, xxh3_64, xxh3_128};

use rim::http::{Problem, Response};

/// How long an answer is remembered.
const REMEMBER: Duration = Duration::from_secs(5 * 60);
/// How many answers.
const KEYS_MAX: usize = 10_000;
/// How many bytes of answers.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// The longest key, in bytes.
pub(super) const KEY_BYTES_MAX: usize = 255;

/// A key and what was sent under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    key: u128,
    body: u64,
    since: Instant,
}

/// The requests of the last minutes.
// Invariant: `order` has each entry of `answers` once, oldest first, and entries that are gone already.
#[derive(Default)]
pub(super) struct Remembered {
    answers: HashMap<u128, Entry, Xxh3Builder>,
    order: VecDeque<(u128, Instant)>,
    bytes: usize,
}

struct Entry {
    body: u64,
    since: Instant,
    // None while the first request is still at work.
    answer: Option<Response>,
}

/// What a request with a key finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It is the first: do it, then call [`Remembered::finish`].
    New(Ticket),
    /// It was answered.
    Answered(Response),
}

impl Ticket {
    /// A name for the request's message number `index`: the same again when it is tried again.
    pub fn msg_id(&self, index: usize) -> String {
        format!("i-{:032x}-{index}", self.key)
    }
}

impl Remembered {
    /// Looks `key` up.
    pub fn begin(&mut self, key: &str, body: &[u8], now: Instant) -> Result<Found, Problem> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            let reason = format!("idempotency-key is {} bytes, give 1 to {KEY_BYTES_MAX}", key.len());
            return Err(Problem::new(400, "idempotency_key", reason));
        }
        self.forget_old(now);
        let ticket = Ticket { key: xxh3_128(key.as_bytes()), body: xxh3_64(body), since: now };
        match self.answers.get(&ticket.key) {
            None => {
                while self.answers.len() >= KEYS_MAX || self.bytes > BYTES_MAX {
                    self.forget_oldest();
                }
                self.answers.insert(ticket.key, Entry { body: ticket.body, since: now, answer: None });
                self.order.push_back((ticket.key, now));
                Ok(Found::New(ticket))
            }
            Some(entry) if entry.body != ticket.body => {
                Err(Problem::new(422, "idempotency_key_reused", "this idempotency-key came with another body before"))
            }
            Some(Entry { answer: Some(answer), .. }) => Ok(Found::Answered(answer.clone())),
            Some(Entry { answer: None, .. }) => {
                Err(Problem::new(409, "idempotency_key_busy", "the first request with this idempotency-key is at work"))
            }
        }
    }

    /// Remembers the answer, or, without one, forgets the request so that it may be tried again.
    pub fn finish(&mut self, ticket: &Ticket, answer: Option<Response>) {
        let Some(entry) = self.answers.get_mut(&ticket.key).filter(|entry| entry.since == ticket.since) else { return };
        match answer {
            Some(answer) => {
                self.bytes += answer.body.len();
                entry.answer = Some(answer);
            }
            None => _ = self.answers.remove(&ticket.key),
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(_, since)| now.saturating_duration_since(*since) >= REMEMBER) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((key, since)) = self.order.pop_front() else { return };
        // A key that was freed may be in use again, by a later request with its own place in the order.
        if self.answers.get(&key).is_some_and(|entry| entry.since == since)
            && let Some(entry) = self.answers.remove(&key)
        {
            self.bytes -= entry.answer.map_or(0, |answer| answer.body.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Response {
        Response::json(200, &"done")
    }

    fn begin_new(remembered: &mut Remembered, key: &str, now: Instant) -> Ticket {
        match remembered.begin(key, b"body", now) {
            Ok(Found::New(ticket)) => ticket,
            other => panic!("{key}: {other:?}"),
        }
    }

    #[test]
    fn the_same_request_gets_the_same_answer_for_five_minutes() {
        let (mut remembered, now) = (Remembered::default(), Instant::now());
        let ticket = begin_new(&mut remembered, "k", now);
        assert_eq!(remembered.begin("k", b"body", now).unwrap_err().status, 409);
        remembered.finish(&ticket, Some(answer()));
        assert_eq!(remembered.begin("k", b"body", now), Ok(Found::Answered(answer())));
        assert_eq!(remembered.begin("k", b"other", now).unwrap_err().status, 422);
        let later = begin_new(&mut remembered, "k", now + REMEMBER);
        assert_eq!(later.msg_id(3), ticket.msg_id(3));
        assert_eq!(remembered.bytes, 0);
    }

    #[test]
    fn a_request_that_failed_may_be_tried_again() {
        let (mut remembered, now) = (Remembered::default(), Instant::now());
        let ticket = begin_new(&mut remembered, "k", now);
        remembered.finish(&ticket, None);
        begin_new(&mut remembered, "k", now + Duration::from_secs(1));
        // The first one's place in the order ends; the second one's entry does not.
        remembered.forget_old(now + REMEMBER);
        assert_eq!(remembered.answers.len(), 1);
    }

    #[test]
    fn the_oldest_makes_room() {
        let (mut remembered, now) = (Remembered::default(), Instant::now());
        for number in 0..=KEYS_MAX {
            let ticket = begin_new(&mut remembered, &number.to_string(), now);
            remembered.finish(&ticket, Some(answer()));
        }
        assert_eq!(remembered.answers.len(), KEYS_MAX);
        assert_eq!(remembered.bytes, KEYS_MAX * answer().body.len());
        assert!(matches!(remembered.begin("0", b"body", now), Ok(Found::New(_))));
        for key in [String::new(), "k".repeat(KEY_BYTES_MAX + 1)] {
            assert_eq!(remembered.begin(&key, b"body", now).unwrap_err().status, 400);
        }
    }
}
