//! From a sender to a recipient, and the answer back: on this shard, or by mail to another.

use std::borrow::Cow;

use crate::protocol::{Envelope, ErrorCode, Outgoing, Replies, Welcome, escape, escape_found};
use crate::routing::with_arrival;
use crate::routing::{Arrival, Outcome};

use super::connection::Purpose;
use super::disconnect::Disconnect;
use super::handover::{Answer, Mail, Posted};
use super::input::UNCONFIRMED_MAX;
use super::origin::{Origin, Sender};
use super::recent::identity;
use super::session::{Inbound, Session, Start};
use super::slab::Key;
use super::state::State;

/// A session that sends: its id at hand for as long as its input is acted on.
#[derive(Clone, Copy)]
pub(super) struct SenderId<'a> {
    pub session: Key,
    pub id: &'a str,
    /// The id as it stands in JSON.
    pub escaped_id: &'a str,
}

impl State {
    /// A client's hash: it names the node by the ring, and the home shard.
    pub(super) fn hash_of(&mut self, client: &str) -> u64 {
        self.dispatch.hash_of(client)
    }

    /// A client's message; what must be said at once goes to `replies`.
    pub(super) fn send(&mut self, from: SenderId<'_>, replies: &mut Vec<u8>, message: &Outgoing<'_>) {
        let key = from.session;
        self.counters.messages_in.add(1);
        let hash = self.hash_of(&message.to);
        let Some(session) = self.dispatch.session_mut(key) else { return };
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
        let login = self.dispatch.came_with(key);
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
                trail: Vec::new(),
                login,
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
            expires_ms: self.dispatch.expiry(self.clock.wall_ms, message.ttl_ms),
        };
        let outcome = self.dispatch.deliver(&Arrival {
            inbound,
            msg_id,
            from: from.id,
            to: &message.to,
            hash,
            hops: 0,
            trail: &[],
            login,
        });
        if let Some(outcome) = outcome
            && (wants_ack || outcome.is_err())
        {
            if let Some(session) = self.dispatch.session_mut(key).filter(|_| wants_ack) {
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

    /// A message that another shard, or a publisher, sent to a client whose home is here.
    pub(super) fn on_message(&mut self, posted: &Posted) {
        let expires_ms = self.dispatch.expiry(posted.ts_ms, posted.ttl_ms);
        let outcome = with_arrival(posted, expires_ms, |arrival| self.dispatch.deliver(arrival));
        match outcome {
            None => {}
            Some(Ok(_)) if !posted.wants_ack => {}
            Some(outcome) => self.answer(posted.origin, &escape(&posted.msg_id), outcome),
        }
    }

    /// The frames that a session's write carried are out.
    pub(super) fn on_session_written(&mut self, key: Key) {
        let latency = &self.counters.delivery_latency;
        self.dispatch.with_session(key, |session, store, limits, answers, now_ms| {
            session.on_written(store, now_ms, answers, |ms| latency.record(ms));
            session.read_on_if_room(store, limits, now_ms);
        });
        self.settle_dispatch();
    }

    /// Does what the dispatcher has left to do on this shard: tells senders, welcomes, wakes, closes.
    pub(super) fn settle_dispatch(&mut self) {
        loop {
            let out = &mut self.dispatch.out;
            let (wakes, welcomes) = (std::mem::take(&mut out.wakes), std::mem::take(&mut out.welcomes));
            let (closes, asked_twice) = (std::mem::take(&mut out.closes), std::mem::take(&mut out.asked_twice));
            let refusals = std::mem::take(&mut out.refusals);
            let nothing = wakes.is_empty()
                && welcomes.is_empty()
                && closes.is_empty()
                && asked_twice.is_empty()
                && refusals.is_empty()
                && self.dispatch.answers.is_empty();
            if nothing {
                return;
            }
            for (session, start) in welcomes {
                self.welcome(session, start);
            }
            for slot in wakes {
                if let Some((key, _)) = self.connections.at(slot) {
                    self.wake(key);
                }
            }
            for (slot, reason) in closes {
                if let Some((key, connection)) = self.connections.at(slot) {
                    let has_moved = matches!(connection.purpose, Purpose::Session(session)
                        if self.dispatch.sessions().get(session).is_some_and(Session::is_advised));
                    let is_move = reason == Disconnect::Replaced && has_moved;
                    self.close(key, if is_move { Disconnect::Moved } else { reason });
                }
            }
            for origin in asked_twice {
                if let Sender::Session(shard, key) = origin.sender() {
                    self.count_off(shard, key);
                }
            }
            for (origin, msg_id, code, reason) in refusals {
                self.answer(origin, &msg_id, Err((code, reason)));
            }
            self.send_answers();
        }
    }

    fn welcome(&mut self, session: Key, start: Start) {
        let Some(connection) = self.connection_of(session) else { return };
        let mut frame = Vec::new();
        self.write_welcome(&mut frame, session, start);
        self.reply(connection, |replies| replies.extend_from_slice(&frame));
    }

    pub(super) fn write_welcome(&mut self, out: &mut Vec<u8>, session: Key, start: Start) {
        let ring_version = self.dispatch.ring_version();
        let Some(session) = self.dispatch.sessions().get(session) else { return };
        let welcome = Welcome {
            node_id: self.settings.node_id.as_str(),
            client_id: session.id().as_str(),
            ring_version,
            offset: start.offset,
            recovered: start.recovered,
            ping_interval_ms: u64::try_from(self.settings.ping_interval.as_millis()).unwrap_or(u64::MAX),
        };
        Replies::welcome(out, &welcome);
    }

    /// Sends the answers that have gathered.
    fn send_answers(&mut self) {
        if self.dispatch.answers.is_empty() {
            return;
        }
        let mut answers = std::mem::take(&mut self.dispatch.answers);
        for (origin, msg_id, status) in answers.iter() {
            self.answer(origin, msg_id, Ok(status));
        }
        answers.clear();
        if self.dispatch.answers.is_empty() {
            self.dispatch.answers = answers;
        }
    }

    /// Tells a sender what became of its message.
    fn answer(&mut self, origin: Origin, escaped_msg_id: &str, outcome: Outcome) {
        match origin.sender() {
            Sender::Nobody => {}
            Sender::Record(at) => self.dispatch.out.finished.push(at),
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
        if let Some(session) = self.dispatch.session_mut(key) {
            session.count_ack();
        }
    }

    /// What became of a message that a session here sent.
    pub(super) fn on_answer(&mut self, key: Key, escaped_msg_id: &str, outcome: Outcome) {
        let Some(session) = self.dispatch.session_mut(key) else {
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
