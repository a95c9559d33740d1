//! What becomes of a message for a client whose home is here: its session takes it, or it waits, or it goes to another
//! node, or the store keeps it; and what its sender is told.
//!
//! Invariant: a message has one outcome, which its sender is told now or once later; a record is finished once.

use std::task::Poll;

use crate::bus::Address;
use crate::protocol::{ClientId, ErrorCode};
use crate::shard::origin::{Origin, Sender};
use crate::shard::session::{Accepted, Inbound, Session};
use crate::shard::slab::Key;
use crate::store::{AnyStore, Appended, BufferFull, Room, Store};

use super::arrival::{Arrival, forwarded_from};
use super::claim::Claim;
use super::dispatcher::{Dispatcher, Outcome};
use super::relay::HOPS_MAX;
use super::waiting::{Held, Why};

/// A sender hears by then what became of its message, or that nobody knows yet.
pub(super) const UNCONFIRMED_MS: u64 = 30_000;
pub(super) const UNCONFIRMED: (ErrorCode, &str) =
    (ErrorCode::Unconfirmed, "no confirmation in time: send it again under its msgId");

impl Dispatcher {
    /// A message for a client whose home is here. What becomes of it, unless that is still open.
    pub fn deliver(&mut self, arrival: &Arrival<'_>) -> Option<Outcome> {
        self.deliver_from(arrival, None)
    }

    pub(super) fn deliver_from(&mut self, arrival: &Arrival<'_>, sent_by: Option<&Address>) -> Option<Outcome> {
        let to = arrival.to;
        // What has been here before is ahead of any fence that was written since.
        let is_ahead = arrival.trail.contains(&self.mark);
        let sender = arrival.inbound.sender;
        let source = self.source(sender, arrival.trail);
        if let Some(queue) = self.waiting.find(to, arrival.hash, source) {
            if is_ahead {
                let outcome = self.hold_in(queue, arrival, sent_by, true);
                self.go_on(queue);
                return outcome;
            }
            return self.hold(queue, arrival, sent_by);
        }
        let others = match sent_by {
            None => self.crossing(sender, to, arrival.hash, arrival.login, 0),
            Some(_) => self.others_first(sender, arrival.hash, u64::MAX, 0),
        };
        if let Some(why) = others {
            let queue = self.waiting.find_or_make(to, arrival.hash, source, sender, why);
            return self.hold_in(queue, arrival, sent_by, is_ahead);
        }
        if let Some(key) = self.find_session(arrival.hash, to) {
            if let Some(why) = self.obstacle(key, source, arrival.hash, is_ahead) {
                let queue = self.waiting.find_or_make(to, arrival.hash, source, sender, why);
                return self.hold_in(queue, arrival, sent_by, is_ahead);
            }
            let accepted = self.accept(key, &arrival.inbound);
            if accepted == Accepted::NoRoom && arrival.inbound.origin.is_record() {
                let queue = self.waiting.find_or_make(to, arrival.hash, source, sender, Why::Room);
                return self.hold_in(queue, arrival, sent_by, is_ahead);
            }
            return self.outcome_of(accepted, &arrival.inbound);
        }
        if let AnyStore::Local(store) = &mut self.store {
            let accepted = match ClientId::try_from(to) {
                Ok(client) => match store.append(&client, &arrival.inbound.keep(0), Room::IfFree, self.now.wall_ms) {
                    Poll::Ready(Appended::Kept) => Accepted::Kept,
                    Poll::Ready(Appended::Repeated) => Accepted::Repeated(self.rules.session.kept_status),
                    Poll::Ready(Appended::Refused(cause)) => Accepted::Refused(cause),
                    Poll::Pending => Accepted::Queued,
                },
                Err(_) => Accepted::Refused(BufferFull::Recipient),
            };
            self.counters.resolved.add(1);
            return self.outcome_of(accepted, &arrival.inbound);
        }
        let target = self.target(to, arrival.hash, sent_by.is_some(), forwarded_from(arrival.trail, sent_by));
        if let Some(node) = target.filter(|_| arrival.hops < HOPS_MAX)
            && (is_ahead || self.way(source, arrival.hash, Some(&node)).is_none())
        {
            self.counters.resolved.add(1);
            let held = Held { is_ahead, ..self.held(arrival, sent_by) };
            self.relay(&node, held);
            return None;
        }
        let queue = self.waiting.find_or_make(to, arrival.hash, source, sender, Why::Room);
        let outcome = self.hold_in(queue, arrival, sent_by, is_ahead);
        self.go_on(queue);
        outcome
    }

    /// What keeps a message from a session that is here, if anything.
    pub(super) fn obstacle(&mut self, key: Key, source: u64, hash: u64, is_ahead: bool) -> Option<Why> {
        if self.store.is_local() {
            return None;
        }
        // One that leaves takes nothing new: it would never be done with giving the store what it has.
        let is_leaving = self.sessions.get(key).is_some_and(Session::is_detached);
        if is_leaving || !self.claim(key).is_some_and(Claim::takes_messages) {
            return Some(Why::Login);
        }
        if is_ahead {
            return None;
        }
        self.way(source, hash, None)
    }

    pub(super) fn accept(&mut self, key: Key, inbound: &Inbound<'_>) -> Accepted {
        let right = self.right(key);
        self.act_for(key);
        let Some(session) = self.sessions.get_mut(key) else { return Accepted::NoRoom };
        let accepted =
            session.accept(inbound, &mut self.store, self.rules.session, right, self.now.wall_ms, &mut self.answers);
        if accepted == Accepted::Queued && !session.is_detached() {
            self.out.wakes.push(session.connection());
        }
        accepted
    }

    pub(super) fn outcome_of(&mut self, accepted: Accepted, inbound: &Inbound<'_>) -> Option<Outcome> {
        match accepted {
            Accepted::Queued => {
                self.counters.delivered_queued.add(1);
                None
            }
            Accepted::Kept => {
                self.counters.delivered_kept.add(1);
                Some(Ok(self.rules.session.kept_status))
            }
            Accepted::Repeated(status) => {
                self.counters.delivered_repeat.add(1);
                Some(Ok(status))
            }
            Accepted::Pending { was_awaited } => {
                self.counters.delivered_repeat.add(1);
                if was_awaited {
                    self.out.asked_twice.push(inbound.origin);
                }
                None
            }
            Accepted::Refused(cause) => Some(Err(self.refusal(cause))),
            Accepted::NoRoom => {
                self.counters.dropped_overloaded.add(1);
                Some(Err((ErrorCode::Overloaded, "the recipient is behind and its store away: try again")))
            }
        }
    }

    pub(super) fn refusal(&self, cause: BufferFull) -> (ErrorCode, &'static str) {
        let (counter, reason) = match cause {
            BufferFull::Recipient => (&self.counters.dropped_buffer_recipient, "the recipient's replay buffer is full"),
            BufferFull::Sender => (&self.counters.dropped_buffer_sender, "too much of yours is undelivered"),
            BufferFull::Node => (&self.counters.dropped_buffer_node, "this node's replay buffers are full"),
        };
        counter.add(1);
        (ErrorCode::BufferFull, reason)
    }

    /// Tells a sender, and finishes a record.
    pub(super) fn tell(&mut self, origin: Origin, escaped_msg_id: &str, outcome: Option<Outcome>) {
        let Some(outcome) = outcome else { return };
        if let Sender::Record(at) = origin.sender() {
            self.out.finished.push(at);
            return;
        }
        if origin == Origin::NOBODY {
            return;
        }
        match outcome {
            Ok(status) => self.answers.push(origin, escaped_msg_id, status),
            Err((code, reason)) => self.out.refusals.push((origin, escaped_msg_id.into(), code, reason)),
        }
    }

    /// Tells those whose messages the store refused after all.
    pub(super) fn tell_refused(&mut self, refused: Vec<(Origin, Box<str>, BufferFull)>) {
        for (origin, msg_id, cause) in refused {
            let refusal = self.refusal(cause);
            self.tell(origin, &msg_id, Some(Err(refusal)));
        }
    }

    pub(super) fn take_refused(&mut self) -> Vec<(Origin, Box<str>, BufferFull)> {
        std::mem::take(&mut self.refused)
    }
}
