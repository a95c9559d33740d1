//! From a sender to a recipient, and the answer back: on this shard, or by mail to another.

use std::borrow::Cow;
use std::task::Poll;

use ring::NodeId;

use crate::protocol::{AckStatus, Envelope, ErrorCode, Outgoing, Replies, escape, escape_found};
use crate::routing::{Route, route};
use crate::store::{Appended, BufferFull, Room, Store};

use super::handover::{Answer, Mail, Posted};
use super::input::UNCONFIRMED_MAX;
use super::origin::{Origin, Sender};
use super::recent::identity;
use super::session::{Accepted, Inbound};
use super::slab::Key;
use super::state::State;

/// Nodes that may send a message on; then it is kept where it is.
const HOPS_MAX: u8 = 3;

/// What a sender is told of its message: accepted how, or refused why.
type Outcome = Result<AckStatus, (ErrorCode, &'static str)>;

/// A session that sends: its id at hand for as long as its input is acted on.
#[derive(Clone, Copy)]
pub(super) struct SenderId<'a> {
    pub session: Key,
    pub id: &'a str,
    /// The id as it stands in JSON.
    pub escaped_id: &'a str,
}

/// A message as its recipient's home shard gets it.
struct Arrival<'a> {
    inbound: Inbound<'a>,
    // Plain text, as against the envelope's.
    msg_id: &'a str,
    from: &'a str,
    to: &'a str,
    hash: u64,
    // How many nodes it has been sent on by.
    hops: u8,
}

impl State {
    /// A client's hash: it names the node by the ring, and the home shard.
    pub(super) fn hash_of(&mut self, client: &str) -> u64 {
        match self.ring.load() {
            Some(ring) => ring.hash(client.as_bytes()),
            None => ring::hash_key(client.as_bytes(), 0),
        }
    }

    /// A client's message; what must be said at once goes to `replies`.
    pub(super) fn send(&mut self, from: SenderId<'_>, replies: &mut Vec<u8>, message: &Outgoing<'_>) {
        let key = from.session;
        self.counters.messages_in.add(1);
        let hash = self.hash_of(&message.to);
        let Some(session) = self.sessions.get_mut(key) else { return };
        let wants_ack = session.wants_acks() || message.wants_ack;
        let origin = if wants_ack { Origin::session(self.index, key) } else { Origin::NOBODY };
        if wants_ack {
            if session.unconfirmed() >= UNCONFIRMED_MAX {
                self.counters.dropped_overloaded.add(1);
                let reason = "256 messages wait for their ack already: slow down";
                let msg_id = message.msg_id.as_ref().map(escape_found);
                return Replies::error(replies, ErrorCode::Overloaded, reason, msg_id.as_deref());
            }
            session.expect_ack();
        }
        let sender = session.hash();
        let assigned;
        let msg_id = if let Some(msg_id) = &message.msg_id {
            msg_id
        } else {
            self.names += 1;
            let (started_ms, index, number) = (self.clock.started_ms, self.index, self.names);
            assigned = Cow::Owned(format!("n-{started_ms:x}-{index:x}-{number:x}"));
            &assigned
        };
        let home = self.home_of(hash);
        if home != self.index {
            let posted = Posted {
                msg_id: (**msg_id).into(),
                from: from.id.into(),
                sender,
                to: (*message.to).into(),
                hash,
                field: message.field,
                payload: (*message.payload).into(),
                origin,
                wants_ack,
                ts_ms: self.clock.wall_ms,
                ttl_ms: message.ttl_ms,
                hops: 0,
            };
            return self.post(home, Mail::Message(Box::new(posted)));
        }
        let escaped_msg_id = escape_found(msg_id);
        let inbound = Inbound {
            envelope: Envelope {
                msg_id: &escaped_msg_id,
                from: from.escaped_id,
                to: &escape_found(&message.to),
                field: message.field,
                payload: &message.payload,
                ts_ms: self.clock.wall_ms,
            },
            origin,
            wants_ack,
            sender,
            identity: identity(sender, msg_id),
            expires_ms: self.expiry(self.clock.wall_ms, message.ttl_ms),
        };
        let outcome = self.deliver(&Arrival { inbound, msg_id, from: from.id, to: &message.to, hash, hops: 0 });
        if let Some(outcome) = outcome
            && (wants_ack || outcome.is_err())
        {
            if let Some(session) = self.sessions.get_mut(key).filter(|_| wants_ack) {
                session.count_ack();
            }
            match outcome {
                Ok(status) => {
                    self.counters.acks_sent.add(1);
                    Replies::ack(replies, &escaped_msg_id, status);
                }
                Err((code, reason)) => Replies::error(replies, code, reason, Some(&*escaped_msg_id)),
            }
        }
    }

    fn expiry(&self, ts_ms: u64, ttl_ms: Option<u64>) -> u64 {
        let ttl_ms = ttl_ms.unwrap_or(u64::MAX).min(self.settings.message_ttl_ms);
        ts_ms.saturating_add(ttl_ms)
    }

    /// A message that another shard, or a publisher, sent to a client whose home is here.
    pub(super) fn on_message(&mut self, posted: &Posted) {
        let escaped_msg_id = escape(&posted.msg_id);
        let inbound = Inbound {
            envelope: Envelope {
                msg_id: &escaped_msg_id,
                from: &escape(&posted.from),
                to: &escape(&posted.to),
                field: posted.field,
                payload: &posted.payload,
                ts_ms: posted.ts_ms,
            },
            origin: posted.origin,
            wants_ack: posted.wants_ack,
            sender: posted.sender,
            identity: identity(posted.sender, &posted.msg_id),
            expires_ms: self.expiry(posted.ts_ms, posted.ttl_ms),
        };
        let outcome = self.deliver(&Arrival {
            inbound,
            msg_id: &posted.msg_id,
            from: &posted.from,
            to: &posted.to,
            hash: posted.hash,
            hops: posted.hops,
        });
        if let Some(outcome) = outcome {
            match outcome {
                Ok(_) if !posted.wants_ack => {}
                outcome => self.answer(posted.origin, &escaped_msg_id, outcome),
            }
        }
    }

    /// Delivers to the session, or keeps for later; none while the answer is still open.
    fn deliver(&mut self, arrival: &Arrival<'_>) -> Option<Outcome> {
        let inbound = &arrival.inbound;
        let to = arrival.to;
        let accepted = if let Some(key) = self.find_session(arrival.hash, to) {
            let session = self.sessions.get_mut(key)?;
            let accepted = session.accept(inbound, &mut self.store, self.settings.session, &mut self.answers);
            if accepted == Accepted::Queued
                && let Some(connection) = self.connection_of(key)
            {
                self.wake(connection);
            }
            accepted
        } else if self.elsewhere(arrival).is_some() {
            self.counters.dropped_unreachable.add(1);
            return Some(Err((ErrorCode::Overloaded, "the recipient's node cannot be reached: try again")));
        } else {
            match self.store.append(to, inbound.keep(0), Room::IfFree, self.clock.wall_ms) {
                Poll::Ready(Appended::Kept) => Accepted::Kept,
                Poll::Ready(Appended::Repeated) => Accepted::Repeated(AckStatus::Held),
                Poll::Ready(Appended::Refused(cause)) => Accepted::Refused(cause),
                Poll::Pending => Accepted::Queued,
            }
        };
        match accepted {
            Accepted::Queued => {
                self.counters.delivered_queued.add(1);
                None
            }
            Accepted::Kept => {
                self.counters.delivered_kept.add(1);
                Some(Ok(AckStatus::Held))
            }
            Accepted::Repeated(status) => {
                self.counters.delivered_repeat.add(1);
                Some(Ok(status))
            }
            Accepted::Pending { was_awaited } => {
                self.counters.delivered_repeat.add(1);
                if was_awaited && let Sender::Session(shard, key) = inbound.origin.sender() {
                    self.count_off(shard, key);
                }
                None
            }
            Accepted::Refused(cause) => {
                let (counter, reason) = match cause {
                    BufferFull::Recipient => {
                        (&self.counters.dropped_buffer_recipient, "the recipient's replay buffer is full")
                    }
                    BufferFull::Sender => (&self.counters.dropped_buffer_sender, "too much of yours is undelivered"),
                    BufferFull::Node => (&self.counters.dropped_buffer_node, "this node's replay buffers are full"),
                };
                counter.add(1);
                Some(Err((ErrorCode::BufferFull, reason)))
            }
        }
    }

    /// The other node that a recipient without a session here belongs to; none where this node keeps the message.
    fn elsewhere(&mut self, arrival: &Arrival<'_>) -> Option<NodeId> {
        match route(self.ring.load().map(|ring| &**ring), &self.settings.node_id, arrival.hash) {
            Route::Here => self.counters.resolved.add(1),
            Route::Node(node) if arrival.hops < HOPS_MAX => {
                self.counters.resolved.add(1);
                return Some(node);
            }
            Route::Node(_) => self.counters.unresolved_hops.add(1),
            Route::Unknown => self.counters.unresolved_no_ring.add(1),
        }
        None
    }

    /// The frames that a session's write carried are out.
    pub(super) fn on_session_written(&mut self, key: Key) {
        let (now_ms, limits) = (self.clock.wall_ms, self.settings.session);
        if let Some(session) = self.sessions.get_mut(key) {
            session.on_written(&mut self.store, now_ms, &mut self.answers);
            session.read_on_if_room(&mut self.store, limits, now_ms);
        }
        self.send_answers();
    }

    /// Sends the answers that have gathered.
    pub(super) fn send_answers(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let mut answers = std::mem::take(&mut self.answers);
        for (origin, msg_id, status) in answers.iter() {
            self.answer(origin, msg_id, Ok(status));
        }
        answers.clear();
        self.answers = answers;
    }

    /// Tells a sender what became of its message.
    fn answer(&mut self, origin: Origin, escaped_msg_id: &str, outcome: Outcome) {
        match origin.sender() {
            Sender::Nobody => {}
            Sender::Publisher(number) => self.publishers.answer(number, outcome),
            Sender::Session(shard, key) if shard == self.index => self.on_answer(key, escaped_msg_id, outcome),
            Sender::Session(shard, key) => {
                let answer = Answer { key, escaped_msg_id: escaped_msg_id.into(), outcome };
                self.post(shard, Mail::Answer(Box::new(answer)));
            }
        }
    }

    /// One answer fewer is on its way to a session: it asked twice and is answered once.
    pub(super) fn count_off(&mut self, shard: usize, key: Key) {
        if shard != self.index {
            return self.post(shard, Mail::AskedTwice(key));
        }
        if let Some(session) = self.sessions.get_mut(key) {
            session.count_ack();
        }
    }

    /// What became of a message that a session here sent.
    pub(super) fn on_answer(&mut self, key: Key, escaped_msg_id: &str, outcome: Outcome) {
        let Some(session) = self.sessions.get_mut(key) else {
            self.counters.acks_unclaimed.add(1);
            return;
        };
        session.count_ack();
        let Some(connection) = self.connection_of(key) else { return };
        self.counters.acks_sent.add(1);
        self.reply(connection, |replies| match outcome {
            Ok(status) => Replies::ack(replies, escaped_msg_id, status),
            Err((code, reason)) => Replies::error(replies, code, reason, Some(escaped_msg_id)),
        });
    }

    /// Appends to what the node says for itself on a connection.
    pub(super) fn reply(&mut self, key: Key, write: impl FnOnce(&mut Vec<u8>)) {
        self.wake(key);
        let Some(connection) = self.connections.get_mut(key) else { return };
        if let Some(active) = connection.active.as_deref_mut() {
            if active.replies.capacity() == 0 {
                active.replies = self.pool.take();
            }
            write(&mut active.replies);
        }
    }
}
