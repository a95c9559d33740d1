//! The account of every message: what was sent, and whether it arrived once, whole, in order and at the right client.
//!
//! One [`Stream`] per (sender, recipient). Sequences are numbers from 0; a healthy stream costs one range whatever its
//! length. Knows nothing of sockets, JSON or time.

use serde::{Deserialize, Serialize};

/// How many separate ranges a [`SequenceSet`] remembers. A stream with more holes than this has failed long before.
const RANGES_MAX: usize = 1024;

/// A set of sequences, kept as sorted ranges: exact while it has at most [`RANGES_MAX`] of them.
///
/// Past that its oldest hole is closed, and its length added to `forgotten`: those sequences count as never seen, and
/// one that still arrives counts as a repeat.
#[derive(Debug, Default, Clone)]
pub(crate) struct SequenceSet {
    // Invariant: sorted, none empty, none touching: a.end < b.start.
    ranges: Vec<(u64, u64)>,
    forgotten: u64,
}

/// What [`SequenceSet::insert`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Insert {
    /// Above everything seen before.
    Newest,
    /// New, but a later one came first.
    Behind,
    /// Seen before.
    Repeat,
}

impl SequenceSet {
    /// Adds `sequence` and says whether it was new.
    pub(crate) fn insert(&mut self, sequence: u64) -> Insert {
        match self.ranges.last_mut() {
            Some(last) if last.1 == sequence => {
                last.1 += 1;
                Insert::Newest
            }
            Some(last) if sequence < last.1 => self.insert_behind(sequence),
            _ => {
                self.ranges.push((sequence, sequence.saturating_add(1)));
                self.close_oldest_hole();
                Insert::Newest
            }
        }
    }

    fn insert_behind(&mut self, sequence: u64) -> Insert {
        // The first range that ends above `sequence`; it exists because the last one does.
        let at = self.ranges.partition_point(|range| range.1 <= sequence);
        if self.ranges[at].0 <= sequence {
            return Insert::Repeat;
        }
        let touches_left = at > 0 && self.ranges[at - 1].1 == sequence;
        let touches_right = self.ranges[at].0 == sequence + 1;
        match (touches_left, touches_right) {
            (true, true) => {
                self.ranges[at - 1].1 = self.ranges[at].1;
                self.ranges.remove(at);
            }
            (true, false) => self.ranges[at - 1].1 += 1,
            (false, true) => self.ranges[at].0 = sequence,
            (false, false) => {
                self.ranges.insert(at, (sequence, sequence + 1));
                self.close_oldest_hole();
            }
        }
        Insert::Behind
    }

    fn close_oldest_hole(&mut self) {
        if self.ranges.len() > RANGES_MAX {
            self.forgotten += self.ranges[1].0 - self.ranges[0].1;
            self.ranges[0].1 = self.ranges[1].1;
            self.ranges.remove(1);
        }
    }

    /// How many sequences were inserted, repeats apart.
    pub(crate) fn len(&self) -> u64 {
        self.ranges.iter().map(|range| range.1 - range.0).sum::<u64>() - self.forgotten
    }

    pub(crate) fn contains(&self, sequence: u64) -> bool {
        let at = self.ranges.partition_point(|range| range.1 <= sequence);
        self.ranges.get(at).is_some_and(|range| range.0 <= sequence)
    }

    /// The highest sequence inserted.
    pub(crate) fn newest(&self) -> Option<u64> {
        self.ranges.last().map(|range| range.1 - 1)
    }

    /// How many are in `self` and not in `other`.
    fn missing_from(&self, other: &Self, end: u64) -> u64 {
        let in_either = end - self.missing_from_both(other, end).min(end);
        in_either.saturating_sub(other.len())
    }

    /// How many of `0..end` are in neither `self` nor `other`.
    fn missing_from_both(&self, other: &Self, end: u64) -> u64 {
        if other.ranges.is_empty() {
            return end.saturating_sub(self.len());
        }
        let mut all: Vec<_> = self.ranges.iter().chain(&other.ranges).copied().collect();
        all.sort_unstable();
        let (mut covered, mut reach) = (0, 0);
        for (start, stop) in all {
            let stop = stop.min(end);
            let start = start.max(reach);
            if start < stop {
                covered += stop - start;
                reach = stop;
            }
        }
        (end - covered.min(end)).saturating_add(self.forgotten).saturating_add(other.forgotten).min(end)
    }
}

/// What became of the messages of one sender to one recipient.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    sent: u64,
    received: SequenceSet,
    /// Sequences the server refused with an error: they are owed by nobody.
    refused: SequenceSet,
    /// Sequences the server confirmed to the sender.
    accepted: SequenceSet,
    /// Sequences that were sent again after later ones: their place in the order is given up.
    displaced: SequenceSet,
    duplicated: u64,
    reordered: u64,
    arrived_displaced: u64,
}

impl Stream {
    /// The sequence of the next message, which is counted as sent.
    pub(crate) fn send(&mut self) -> u64 {
        let sequence = self.sent;
        self.sent += 1;
        sequence
    }

    /// Counts a message that arrived whole at the right client. `None` if no such message was ever sent.
    pub(crate) fn receive(&mut self, sequence: u64) -> Option<Insert> {
        if sequence >= self.sent {
            return None;
        }
        let insert = self.received.insert(sequence);
        match insert {
            Insert::Newest => {}
            Insert::Behind if self.displaced.contains(sequence) => self.arrived_displaced += 1,
            Insert::Behind => self.reordered += 1,
            Insert::Repeat => self.duplicated += 1,
        }
        Some(insert)
    }

    /// The server confirmed `sequence`. `None` if it was never sent.
    pub(crate) fn accept(&mut self, sequence: u64) -> Option<Insert> {
        (sequence < self.sent).then(|| self.accepted.insert(sequence))
    }

    /// The server refused `sequence`. `None` if it was never sent.
    pub(crate) fn refuse(&mut self, sequence: u64) -> Option<Insert> {
        (sequence < self.sent).then(|| self.refused.insert(sequence))
    }

    /// `sequence` is sent again after later ones that the server may have accepted before it.
    pub(crate) fn displace(&mut self, sequence: u64) {
        if sequence < self.sent {
            self.displaced.insert(sequence);
        }
    }

    /// The highest sequence the server confirmed.
    pub(crate) fn newest_accepted(&self) -> Option<u64> {
        self.accepted.newest()
    }

    /// Arrivals after a later one.
    pub(crate) fn reordered(&self) -> u64 {
        self.reordered
    }

    /// The highest sequence that arrived.
    pub(crate) fn newest_received(&self) -> Option<u64> {
        self.received.newest()
    }

    pub(crate) fn is_accepted(&self, sequence: u64) -> bool {
        self.accepted.contains(sequence)
    }

    /// How many messages were confirmed and are not here.
    pub(crate) fn owed(&self) -> u64 {
        self.accepted.missing_from(&self.received, self.sent)
    }

    /// How many messages are neither here nor refused.
    pub(crate) fn outstanding(&self) -> u64 {
        self.received.missing_from_both(&self.refused, self.sent)
    }

    /// How many messages are neither confirmed nor refused.
    pub(crate) fn unconfirmed(&self) -> u64 {
        self.accepted.missing_from_both(&self.refused, self.sent)
    }

    /// Adds this stream to the account of the run, in which what is still due under `promise` is lost.
    pub(crate) fn close_into(&self, ledger: &mut Ledger, acks: Acks, promise: Promise) {
        ledger.sent += self.sent;
        ledger.received += self.received.len();
        ledger.lost += match promise {
            Promise::Sent => self.outstanding(),
            Promise::Accepted => self.owed(),
        };
        ledger.duplicated += self.duplicated;
        ledger.reordered += self.reordered;
        ledger.displaced += self.arrived_displaced;
        ledger.refused += self.refused.len();
        if acks == Acks::Requested {
            ledger.accepted += self.accepted.len();
            ledger.unconfirmed += self.unconfirmed();
        }
    }
}

/// Whether senders asked the server to confirm their messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acks {
    Requested,
    None,
}

/// Which messages the server owes to their recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    /// All that were sent and not refused: nothing happens on the way that could excuse a loss.
    Sent,
    /// Those which the server confirmed to their sender.
    Accepted,
}

/// The account of a run: sums over all its streams.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    pub(crate) sent: u64,
    /// Distinct messages that arrived.
    pub(crate) received: u64,
    /// Sent, not refused, and never arrived; where connections break, confirmed and never arrived.
    pub(crate) lost: u64,
    /// Arrivals of a message that had arrived before.
    pub(crate) duplicated: u64,
    /// Arrivals of a message after a later one of its stream.
    pub(crate) reordered: u64,
    /// Arrivals after a later one of messages that had been sent again after it: no fault of the server.
    pub(crate) displaced: u64,
    /// Arrivals that failed their checksum or were never sent.
    pub(crate) corrupt: u64,
    /// Arrivals at a client they were not sent to.
    pub(crate) misdelivered: u64,
    /// Messages the server refused with an error.
    pub(crate) refused: u64,
    /// Messages the server confirmed to their sender.
    pub(crate) accepted: u64,
    /// Messages neither confirmed nor refused, where confirmation was asked for.
    pub(crate) unconfirmed: u64,
}

impl Ledger {
    /// Adds another worker's account.
    pub(crate) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.received += other.received;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.displaced += other.displaced;
        self.corrupt += other.corrupt;
        self.misdelivered += other.misdelivered;
        self.refused += other.refused;
        self.accepted += other.accepted;
        self.unconfirmed += other.unconfirmed;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Send,
        Receive(u64),
        Refuse(u64),
        Accept(u64),
        Displace(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Send),
            3 => (0..60u64).prop_map(Step::Receive),
            1 => (0..60u64).prop_map(Step::Refuse),
            1 => (0..60u64).prop_map(Step::Accept),
            1 => (0..60u64).prop_map(Step::Displace),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// The stream agrees with an account that simply remembers every sequence.
        #[test]
        fn a_stream_agrees_with_remembering_everything(steps in steps()) {
            let mut stream = Stream::default();
            let (mut sent, mut duplicated, mut reordered, mut late) = (0u64, 0u64, 0u64, 0u64);
            let (mut received, mut refused, mut accepted) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            let mut displaced = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Send => {
                        prop_assert_eq!(stream.send(), sent);
                        sent += 1;
                    }
                    Step::Receive(sequence) => {
                        let known = stream.receive(sequence);
                        prop_assert_eq!(known.is_some(), sequence < sent);
                        if sequence < sent {
                            let behind = received.last().is_some_and(|last| *last > sequence);
                            if !received.insert(sequence) {
                                duplicated += 1;
                            } else if behind {
                                *if displaced.contains(&sequence) { &mut late } else { &mut reordered } += 1;
                            }
                        }
                    }
                    Step::Refuse(sequence) => {
                        if stream.refuse(sequence).is_some() {
                            refused.insert(sequence);
                        }
                    }
                    Step::Accept(sequence) => {
                        if stream.accept(sequence).is_some() {
                            accepted.insert(sequence);
                        }
                    }
                    Step::Displace(sequence) => {
                        stream.displace(sequence);
                        if sequence < sent {
                            displaced.insert(sequence);
                        }
                    }
                }
            }
            let owed = |by: &BTreeSet<u64>| (0..sent).filter(|s| !by.contains(s) && !refused.contains(s)).count() as u64;
            let mut ledger = Ledger::default();
            stream.close_into(&mut ledger, Acks::Requested, Promise::Sent);
            prop_assert_eq!(&ledger, &Ledger {
                sent,
                received: received.len() as u64,
                lost: owed(&received),
                duplicated,
                reordered,
                displaced: late,
                corrupt: 0,
                misdelivered: 0,
                refused: refused.len() as u64,
                accepted: accepted.len() as u64,
                unconfirmed: owed(&accepted),
            });
            let mut of_accepted = Ledger::default();
            stream.close_into(&mut of_accepted, Acks::Requested, Promise::Accepted);
            prop_assert_eq!(of_accepted, Ledger { lost: accepted.difference(&received).count() as u64, ..ledger });
            prop_assert_eq!(stream.newest_received(), received.last().copied());
            prop_assert_eq!(stream.newest_accepted(), accepted.last().copied());
        }
    }

    #[test]
    fn a_healthy_stream_costs_one_range() {
        let mut set = SequenceSet::default();
        for sequence in 0..1_000_000 {
            assert_eq!(set.insert(sequence), Insert::Newest);
        }
        assert_eq!(set.ranges.len(), 1);
    }

    #[test]
    fn more_holes_than_the_limit_stay_counted_as_lost() {
        let mut stream = Stream::default();
        let holes = 3 * RANGES_MAX as u64;
        for _ in 0..2 * holes {
            stream.send();
        }
        for hole in 0..holes {
            stream.receive(2 * hole + 1);
        }
        assert!(stream.received.ranges.len() <= RANGES_MAX);
        assert_eq!(stream.outstanding(), holes);
        // Too late to be told from a repeat.
        assert_eq!(stream.receive(2), Some(Insert::Repeat));
        assert_eq!(stream.outstanding(), holes);
    }
}
