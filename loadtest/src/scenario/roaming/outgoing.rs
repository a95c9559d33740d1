//! What a client has sent and the server has not confirmed: kept, and sent again under the same name, in order.
//!
//! Pure: decides what is to be written next, and writes nothing.

use std::{collections::BTreeMap, time::Duration};

use super::backoff::jitter;
use crate::{
    clock::{Nanos, nanos},
    payload::Random,
};

/// Messages on their way at once; the server stops reading at 256.
const IN_FLIGHT_MAX: usize = 200;
/// Messages a client keeps in all; what is due beyond that is a missed slot.
pub(super) const KEPT_MAX: usize = 16 * 1024;
/// From writing, on one connection, to the server's answer.
const CONFIRM_WITHIN: Duration = Duration::from_secs(30);

/// Why a message has to be sent again although the connection lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setback {
    /// The server refused it for now.
    Refused,
    /// Nobody knows yet: it may have been accepted.
    Unknown,
}

/// A message that is not confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Letter {
    pub(super) due: Nanos,
    /// How long after that the client took it.
    pub(super) late: u32,
    pub(super) setback: Option<Setback>,
    /// `None` until it is written for the first time.
    written_at: Option<Nanos>,
}

/// A message to be written now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Writing {
    pub(super) sequence: u64,
    pub(super) due: Nanos,
    pub(super) late: u32,
    pub(super) is_repeated: bool,
    /// Later ones may have been accepted before it: it gives up its place in the order.
    pub(super) is_displaced: bool,
}

/// One client's sending side. Invariant: a sequence is in at most one of the two maps.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    waiting: BTreeMap<u64, Letter>,
    in_flight: BTreeMap<u64, Letter>,
    /// Nothing is written before this, after the server has said that it is too much.
    held_until: Nanos,
    setbacks_in_a_row: u32,
    newest_written: Option<u64>,
    newest_confirmed: Option<u64>,
}

impl Outgoing {
    /// Messages that are not confirmed.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.in_flight.len()
    }

    /// Takes a new message.
    pub(super) fn take(&mut self, sequence: u64, due: Nanos, late: u32) {
        self.waiting.insert(sequence, Letter { due, late, setback: None, written_at: None });
    }

    /// The message to write next, which is on its way from now on.
    pub(super) fn next(&mut self, now: Nanos) -> Option<Writing> {
        if now < self.held_until || self.in_flight.len() >= IN_FLIGHT_MAX {
            return None;
        }
        let (sequence, mut letter) = self.waiting.pop_first()?;
        let is_repeated = letter.written_at.is_some();
        let newest_before = if letter.setback.is_some() { self.newest_written } else { self.newest_confirmed };
        let is_displaced = is_repeated && newest_before.is_some_and(|newest| newest > sequence);
        letter.written_at = Some(now);
        self.in_flight.insert(sequence, letter);
        self.newest_written = self.newest_written.max(Some(sequence));
        let Letter { due, late, .. } = letter;
        Some(Writing { sequence, due, late, is_repeated, is_displaced })
    }

    /// On a new connection: nobody will answer on the old one, so everything goes out again, in its first order.
    pub(super) fn begin_again(&mut self) {
        self.waiting.append(&mut self.in_flight);
        self.held_until = 0;
    }

    /// The server confirmed `sequence`. `None` if it was settled before.
    pub(super) fn confirm(&mut self, sequence: u64) -> Option<Letter> {
        let letter = self.settle(sequence)?;
        self.newest_confirmed = self.newest_confirmed.max(Some(sequence));
        self.setbacks_in_a_row = 0;
        Some(letter)
    }

    /// The server refused `sequence` for good. `None` if it was settled before.
    pub(super) fn refuse(&mut self, sequence: u64) -> Option<Letter> {
        self.settle(sequence)
    }

    /// `sequence` is to be sent again after a while; until then nothing is. Returns when.
    pub(super) fn set_back(&mut self, sequence: u64, setback: Setback, now: Nanos, random: &mut Random) -> Nanos {
        if let Some(letter) = self.in_flight.remove(&sequence) {
            self.waiting.insert(sequence, Letter { setback: Some(setback), ..letter });
            // A whole window may be refused at once: that is one setback.
            if now >= self.held_until {
                self.held_until = now + jitter(self.setbacks_in_a_row, random);
                self.setbacks_in_a_row += 1;
            }
        }
        self.held_until
    }

    /// Takes back what has been on its way too long on a connection that lives. Returns how many.
    pub(super) fn take_back_unanswered(&mut self, now: Nanos) -> u64 {
        let limit = nanos(CONFIRM_WITHIN);
        let is_overdue = |letter: &Letter| letter.written_at.is_some_and(|at| now.saturating_sub(at) > limit);
        let overdue: Vec<_> =
            self.in_flight.iter().filter(|(_, letter)| is_overdue(letter)).map(|(sequence, _)| *sequence).collect();
        for sequence in &overdue {
            if let Some(letter) = self.in_flight.remove(sequence) {
                self.waiting.insert(*sequence, Letter { setback: Some(Setback::Unknown), ..letter });
            }
        }
        overdue.len() as u64
    }

    /// What is not confirmed.
    pub(super) fn letters(&self) -> impl Iterator<Item = (u64, Letter)> + '_ {
        self.in_flight.iter().chain(&self.waiting).map(|(sequence, letter)| (*sequence, *letter))
    }

    fn settle(&mut self, sequence: u64) -> Option<Letter> {
        self.in_flight.remove(&sequence).or_else(|| self.waiting.remove(&sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn outgoing(count: u64) -> Outgoing {
        let mut outgoing = Outgoing::default();
        for sequence in 0..count {
            outgoing.take(sequence, 0, 0);
        }
        outgoing
    }

    /// Everything that may be written at `now`.
    fn write(outgoing: &mut Outgoing, now: Nanos) -> Vec<Writing> {
        std::iter::from_fn(|| outgoing.next(now)).collect()
    }

    fn sequences(writings: &[Writing]) -> Vec<u64> {
        writings.iter().map(|writing| writing.sequence).collect()
    }

    #[test]
    fn a_new_connection_sends_everything_unanswered_again_in_order_before_anything_new() {
        let mut outgoing = outgoing(4);
        assert!(write(&mut outgoing, 1).iter().all(|writing| !writing.is_repeated));
        assert!(outgoing.confirm(0).is_some());
        outgoing.take(4, 0, 0);
        outgoing.begin_again();
        let again = write(&mut outgoing, 2);
        assert_eq!(sequences(&again), [1, 2, 3, 4]);
        assert_eq!(again.iter().filter(|writing| writing.is_repeated).count(), 3);
        assert!(again.iter().all(|writing| !writing.is_displaced));
        assert!(outgoing.confirm(0).is_none(), "answered again");
    }

    #[test]
    fn a_message_behind_a_confirmed_one_has_lost_its_place() {
        let mut outgoing = outgoing(3);
        write(&mut outgoing, 1);
        outgoing.confirm(1);
        outgoing.begin_again();
        let again = write(&mut outgoing, 2);
        let displaced: Vec<_> = again.iter().map(|writing| (writing.sequence, writing.is_displaced)).collect();
        assert_eq!(displaced, [(0, true), (2, false)]);
    }

    #[test]
    fn no_more_than_a_window_is_on_its_way() {
        let mut outgoing = outgoing(IN_FLIGHT_MAX as u64 + 5);
        assert_eq!(write(&mut outgoing, 1).len(), IN_FLIGHT_MAX);
        outgoing.confirm(0);
        assert_eq!(sequences(&write(&mut outgoing, 1)), [IN_FLIGHT_MAX as u64]);
    }

    #[test]
    fn what_was_refused_is_sent_again_in_order_after_a_while() {
        let mut random = Random::new(3);
        let mut outgoing = outgoing(4);
        write(&mut outgoing, SECOND);
        let until = outgoing.set_back(2, Setback::Refused, SECOND, &mut random);
        assert_eq!(outgoing.set_back(1, Setback::Refused, SECOND, &mut random), until, "one setback");
        assert!(until <= SECOND + SECOND / 4, "{until}");
        outgoing.take(4, 0, 0);
        assert_eq!(write(&mut outgoing, until - 1), []);
        let again = write(&mut outgoing, until);
        assert_eq!(sequences(&again), [1, 2, 4]);
        assert!(again[0].is_displaced && again[1].is_displaced && !again[2].is_displaced);
    }

    #[test]
    fn what_is_not_answered_in_time_is_sent_again() {
        let mut outgoing = outgoing(2);
        write(&mut outgoing, SECOND);
        assert_eq!(outgoing.take_back_unanswered(31 * SECOND), 0);
        outgoing.confirm(0);
        assert_eq!(outgoing.take_back_unanswered(32 * SECOND), 1);
        assert_eq!(sequences(&write(&mut outgoing, 32 * SECOND)), [1]);
        assert_eq!(outgoing.len(), 1);
        assert_eq!(outgoing.letters().next().map(|(_, letter)| letter.setback), Some(Some(Setback::Unknown)));
    }
}
