//! What cannot go on yet is put into its queue, and tried again when what it waits for has come.
//!
//! Invariant: of one source's messages for one recipient, none goes on before another that stands ahead of it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::bus::Address;
use crate::protocol::{ErrorCode, escape};
use crate::shard::session::{Accepted, Inbound};
use crate::shard::slab::Key;

use super::arrival::{Arrival, forwarded_from, with_arrival};
use super::delivery::{UNCONFIRMED, UNCONFIRMED_MS};
use super::dispatcher::{Dispatcher, Outcome};
use super::relay::HOPS_MAX;
use super::waiting::{Held, Waiting, Why};

/// Messages of senders here that may wait for one recipient.
const HELD_MESSAGES_MAX: usize = 1024;
/// Bytes of them.
const HELD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes that may wait in all of a shard's queues before its senders are refused.
const HELD_TOTAL_BYTES_MAX: usize = 64 * 1024 * 1024;

impl Dispatcher {
    /// Puts a message behind those that wait for the same recipient.
    pub(super) fn hold(&mut self, queue: Key, arrival: &Arrival<'_>, sent_by: Option<&Address>) -> Option<Outcome> {
        self.hold_in(queue, arrival, sent_by, false)
    }

    pub(super) fn hold_in(
        &mut self,
        queue: Key,
        arrival: &Arrival<'_>,
        sent_by: Option<&Address>,
        is_ahead: bool,
    ) -> Option<Outcome> {
        let inbound = &arrival.inbound;
        let is_record = inbound.origin.is_record();
        if !is_record && self.takes_place(queue, arrival) {
            return None;
        }
        let (messages, held_bytes) = self.waiting.get(queue).map_or((0, 0), |queue| (queue.items.len(), queue.bytes));
        let bytes = inbound.envelope.payload.len();
        // Records are bounded where they are read.
        if !is_record
            && (messages >= HELD_MESSAGES_MAX
                || held_bytes.saturating_add(bytes) > HELD_BYTES_MAX
                || self.waiting.bytes().saturating_add(bytes) > HELD_TOTAL_BYTES_MAX)
        {
            self.counters.dropped_overloaded.add(1);
            return Some(Err((ErrorCode::Overloaded, "too much waits for this recipient already: try again")));
        }
        let held = Held { is_ahead, ..self.held(arrival, sent_by) };
        if is_ahead {
            self.waiting.push_ahead(queue, Box::new(held));
        } else {
            self.waiting.push(queue, Box::new(held));
        }
        None
    }

    /// A message that waits here already, sent again, keeps its place: it would lose it to what its sender sent after it
    /// when the first attempt is given up. Whoever asked last is answered. False if it does not wait here.
    fn takes_place(&mut self, queue: Key, arrival: &Arrival<'_>) -> bool {
        let Inbound { sender, origin, wants_ack, .. } = arrival.inbound;
        let Some(queue) = self.waiting.get_mut(queue) else { return false };
        let is_it = |held: &&mut Box<Held>| {
            let posted = &held.posted;
            !posted.origin.is_record() && posted.sender == sender && *posted.msg_id == *arrival.msg_id
        };
        let Some(held) = queue.items.iter_mut().find(is_it) else { return false };
        self.counters.delivered_repeat.add(1);
        if wants_ack {
            if held.posted.wants_ack {
                self.out.asked_twice.push(held.posted.origin);
            }
            (held.posted.origin, held.posted.wants_ack) = (origin, true);
        }
        held.since_ms = self.now.steady_ms;
        true
    }

    pub(super) fn held(&mut self, arrival: &Arrival<'_>, sent_by: Option<&Address>) -> Held {
        self.arrivals += 1;
        let number = self.arrivals;
        Held {
            posted: Box::new(arrival.to_posted()),
            placing: sent_by
                .filter(|_| arrival.inbound.origin.is_record())
                .map(|sender| self.await_placing(sender, arrival)),
            number,
            sent_by: sent_by.cloned(),
            since_ms: self.now.steady_ms,
            expires_ms: arrival.inbound.expires_ms,
            is_ahead: false,
        }
    }

    /// Tries again with what waits for one recipient.
    pub(super) fn go_on(&mut self, queue: Key) {
        while self.advance(queue) {}
        if let Some((sender, hash)) = self.waiting.drop_empty(queue) {
            self.go_on_after(sender, hash);
        }
    }

    /// Tries again with all that waits for one client, in the order in which it came: a sender may have given parts of
    /// it to different nodes.
    pub(super) fn go_on_with(&mut self, client: &str, hash: u64) {
        let queues = self.waiting.of_client(client, hash);
        let first = |waiting: &Waiting, at: usize| {
            let queue = queues.get(at).and_then(|key| waiting.get(*key));
            queue.and_then(|queue| queue.items.front()).map(|held| Reverse((held.number, at)))
        };
        let mut order: BinaryHeap<_> = (0..queues.len()).filter_map(|at| first(&self.waiting, at)).collect();
        while let Some(Reverse((_, at))) = order.pop() {
            if queues.get(at).is_some_and(|key| self.advance(*key)) {
                order.extend(first(&self.waiting, at));
            }
        }
        for queue in queues {
            self.go_on(queue);
        }
    }

    /// Takes the first of a queue one step further; false when it has to wait, or there is none.
    fn advance(&mut self, key: Key) -> bool {
        let Some(queue) = self.waiting.get(key) else { return false };
        if matches!(queue.why, Why::Store(_)) {
            return false;
        }
        let (client, hash, source) = (queue.client.clone(), queue.hash, queue.source);
        let Some(first) = queue.items.front() else { return false };
        let is_ahead = first.is_ahead;
        if first.expires_ms <= self.now.wall_ms {
            if let Some(held) = self.waiting.pop(key) {
                self.expire(&held);
            }
            return true;
        }
        let (sender, number, login) = (queue.sender, first.number, first.posted.login);
        let others = match first.sent_by {
            None => self.crossing(sender, &client, hash, login, 1),
            Some(_) => self.others_first(sender, hash, number, 1),
        };
        if let Some(why) = others {
            return self.wait(key, why);
        }
        let session = self.find_session(hash, &client);
        let target = if let Some(session) = session {
            if let Some(why) = self.obstacle(session, source, hash, is_ahead) {
                return self.wait(key, why);
            }
            None
        } else {
            let first = self.waiting.get(key).and_then(|queue| queue.items.front());
            let forwarded = first.and_then(|held| forwarded_from(&held.posted.trail, held.sent_by.as_ref()));
            let target = self.target(&client, hash, self.is_first_sent_on(key), forwarded);
            // Sent on too often it is kept here, and its order is no longer waited for.
            let is_last_stop = self.is_sent_on_too_often(key);
            let target = target.filter(|_| !is_last_stop);
            if !is_ahead
                && !is_last_stop
                && let Some(why) = self.way(source, hash, target.as_ref())
            {
                return self.wait(key, why);
            }
            target
        };
        match (session, target) {
            (Some(session), _) => {
                let Some(held) = self.waiting.pop(key) else { return false };
                let accepted = with_arrival(&held.posted, held.expires_ms, |arrival| {
                    let accepted = self.accept(session, &arrival.inbound);
                    if accepted != Accepted::NoRoom || !arrival.inbound.origin.is_record() {
                        let outcome = self.outcome_of(accepted, &arrival.inbound);
                        self.tell(arrival.inbound.origin, arrival.inbound.envelope.msg_id, outcome);
                        return true;
                    }
                    false
                });
                if accepted {
                    self.place(held.placing);
                    return true;
                }
                self.waiting.push_front(key, held);
                self.wait(key, Why::Room)
            }
            (None, Some(node)) => {
                let Some(held) = self.waiting.pop(key) else { return false };
                self.counters.resolved.add(1);
                self.relay(&node, *held);
                true
            }
            (None, None) => self.look(key, &client),
        }
    }

    pub(super) fn wait(&mut self, key: Key, why: Why) -> bool {
        if let Some(queue) = self.waiting.get_mut(key) {
            queue.why = why;
        }
        false
    }

    pub(super) fn is_first_sent_on(&self, key: Key) -> bool {
        let first = self.waiting.get(key).and_then(|queue| queue.items.front());
        first.is_some_and(|held| held.sent_by.is_some())
    }

    pub(super) fn is_sent_on_too_often(&self, key: Key) -> bool {
        let first = self.waiting.get(key).and_then(|queue| queue.items.front());
        first.is_some_and(|held| held.posted.hops >= HOPS_MAX)
    }

    fn expire(&mut self, held: &Held) {
        self.counters.expired.add(1);
        let outcome = Err((ErrorCode::Unconfirmed, "it reached its age limit on the way"));
        self.tell(held.posted.origin, &escape(&held.posted.msg_id), Some(outcome));
        self.place(held.placing);
    }

    /// A sender does not wait in a queue for ever; and what can go on by now goes on.
    pub(super) fn tick_queues(&mut self) {
        for key in self.waiting.keys(|_| true) {
            self.tick_queue(key);
        }
    }

    fn tick_queue(&mut self, key: Key) {
        let now_ms = self.now.steady_ms;
        let first = match self.waiting.get(key).map(|queue| queue.why) {
            Some(Why::Store(count)) => count,
            _ => 0,
        };
        let overdue = self.waiting.extract(key, first, |held| {
            !held.posted.origin.is_record() && now_ms.saturating_sub(held.since_ms) >= UNCONFIRMED_MS
        });
        for held in overdue {
            self.counters.unconfirmed.add(1);
            self.tell(held.posted.origin, &escape(&held.posted.msg_id), Some(Err(UNCONFIRMED)));
        }
        self.go_on(key);
    }
}
