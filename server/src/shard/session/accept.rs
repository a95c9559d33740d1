//! A message for the session's client: into the outbox, or into the store behind what waits there already.
//!
//! Invariant: a message that came before is not accepted a second time, as long as its name is remembered.

use std::task::Poll;

use crate::protocol::{AckStatus, Envelope};
use crate::shard::answers::Answers;
use crate::shard::offset::next_offset;
use crate::shard::origin::Origin;
use crate::shard::outbox::Entry;
use crate::store::{Appended, BufferFull, Kept, Room, Store};

use super::keeping::{Pending, PendingAppend};
use super::{Delivery, Right, Session, SessionLimits};

/// More than an envelope adds to its payload with ids of ordinary length.
const FRAME_OVERHEAD_BYTES: usize = 256;

/// A message for this session's client, with what is known of its sender.
#[derive(Debug, Clone, Copy)]
pub struct Inbound<'a> {
    /// What is delivered.
    pub envelope: Envelope<'a>,
    /// Who is to be told.
    pub origin: Origin,
    /// True when the sender waits for an ack.
    pub wants_ack: bool,
    /// Hash of the sender's id.
    pub sender: u64,
    /// Hash of the sender's id and the message's name.
    pub identity: u64,
    /// When it stops being worth delivering, in milliseconds since 1970.
    pub expires_ms: u64,
}

impl Inbound<'_> {
    /// The message as a store keeps it.
    pub fn keep(&self, offset: u64) -> Kept {
        let mut body = Vec::new();
        self.envelope.write_body(&mut body);
        Kept {
            offset,
            identity: self.identity,
            sender: self.sender,
            ts_ms: self.envelope.ts_ms,
            expires_ms: self.expires_ms,
            body: body.into(),
        }
    }
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It is in the outbox: its sender is answered when the recipient acks, or after `ack_wait`.
    Queued,
    /// The store keeps it: its sender can be answered now.
    Kept,
    /// It came before, and what became of it is known.
    Repeated(AckStatus),
    /// It came before and is still under way; whoever asked last is answered, once. `was_awaited` is true if the same
    /// sender waited already.
    Pending {
        /// Whether this asks for the same answer a second time.
        was_awaited: bool,
    },
    /// It is not accepted.
    Refused(BufferFull),
    /// There is no room here, and the store cannot be asked: not accepted, unless it can wait.
    NoRoom,
}

impl Session {
    /// Takes a message for this client.
    pub fn accept(
        &mut self,
        inbound: &Inbound<'_>,
        store: &mut impl Store,
        limits: SessionLimits,
        right: Right,
        now_ms: u64,
        answers: &mut Answers,
    ) -> Accepted {
        let offset = next_offset(self.last_offset, now_ms.min(right.clock_until_ms));
        let receiver_acks = self.receiver_acks;
        let delivery = self.delivery_mut(now_ms);
        if !delivery.recent.insert(inbound.identity) {
            return delivery.repeat(inbound, receiver_acks, limits.kept_status, answers);
        }
        if !delivery.is_behind {
            // The envelope's own bytes: generous, and known before it is written.
            let frame_bytes = inbound.envelope.payload.len() + FRAME_OVERHEAD_BYTES;
            if delivery.outbox.is_empty() {
                delivery.moved_ms = now_ms;
            }
            if offset <= right.ceiling && delivery.outbox.has_room(frame_bytes, limits.outbox) {
                let mut entry = Entry::new(offset, inbound.identity, inbound.envelope.ts_ms, inbound.expires_ms);
                entry.origin = inbound.origin;
                entry.wants_ack = inbound.wants_ack;
                delivery.outbox.push(&inbound.envelope, entry);
                self.last_offset = offset;
                return Accepted::Queued;
            }
            if !right.is_claimed {
                delivery.recent.remove(inbound.identity);
                return Accepted::NoRoom;
            }
            self.fall_behind(store, limits, now_ms, answers);
        }
        if !right.is_claimed {
            self.delivery_mut(now_ms).recent.remove(inbound.identity);
            return Accepted::NoRoom;
        }
        self.append(inbound, store, now_ms)
    }

    fn append(&mut self, inbound: &Inbound<'_>, store: &mut impl Store, now_ms: u64) -> Accepted {
        let offset = next_offset(self.last_offset, now_ms);
        // A record was accepted when the bus took it.
        let room = if inbound.origin.is_record() { Room::Owed } else { Room::IfFree };
        let kept = inbound.keep(offset);
        match store.append(&self.id, &kept, room, now_ms) {
            Poll::Ready(Appended::Kept) => {
                self.last_offset = offset;
                Accepted::Kept
            }
            Poll::Ready(Appended::Repeated) => Accepted::Kept,
            Poll::Ready(Appended::Refused(cause)) => {
                self.delivery_mut(now_ms).recent.remove(inbound.identity);
                Accepted::Refused(cause)
            }
            // The answer comes by mail, and the ack with it.
            Poll::Pending => {
                self.last_offset = offset;
                let askers = if inbound.wants_ack { vec![inbound.origin] } else { Vec::new() };
                let msg_id = inbound.envelope.msg_id.into();
                let pending = PendingAppend { message: kept, msg_id, askers, is_barred: false };
                self.delivery_mut(now_ms).pending.push_back(Pending::Append(Box::new(pending)));
                Accepted::Queued
            }
        }
    }
}

impl Delivery {
    /// What the sender of a message that came before is told.
    fn repeat(
        &mut self,
        inbound: &Inbound<'_>,
        receiver_acks: bool,
        kept_status: AckStatus,
        answers: &mut Answers,
    ) -> Accepted {
        if let Some((entry, is_confirmed)) = self.outbox.find(inbound.identity) {
            if is_confirmed {
                return Accepted::Repeated(kept_status);
            }
            if entry.wants_ack && entry.origin.is_record() {
                // The bus keeps it until the first of its records is finished.
                return Accepted::Repeated(kept_status);
            }
            if inbound.origin.is_record() {
                // The bus keeps it too: whoever waited need not wait any longer.
                if entry.wants_ack {
                    answers.push(entry.origin, inbound.envelope.msg_id, kept_status);
                }
                entry.origin = inbound.origin;
                entry.wants_ack = true;
                return Accepted::Pending { was_awaited: false };
            }
            let was_awaited = entry.wants_ack && entry.origin == inbound.origin;
            if inbound.wants_ack {
                entry.origin = inbound.origin;
                entry.wants_ack = true;
            }
            return Accepted::Pending { was_awaited };
        }
        for pending in &mut self.pending {
            if let Pending::Append(append) = pending
                && append.message.identity == inbound.identity
            {
                let was_awaited = append.askers.contains(&inbound.origin);
                if inbound.wants_ack && !was_awaited {
                    append.askers.push(inbound.origin);
                }
                return Accepted::Pending { was_awaited };
            }
        }
        Accepted::Repeated(match (self.is_behind, receiver_acks) {
            (true, _) => kept_status,
            (false, true) => AckStatus::Delivered,
            (false, false) => AckStatus::Sent,
        })
    }
}
