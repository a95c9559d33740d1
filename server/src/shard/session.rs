//! A client's state without its socket: its stream of offsets, its outbox, who is owed an ack. Pure: messages, acks and
//! the time in; what to tell the senders out. It does not know whether its socket can be written, nor other clients.
//!
//! Here: who it is, which connection carries it, and how its delivery begins, pauses and rests. In `accept` a message
//! comes in, in `acks` the client gets it, and what it does not get in time is the store's, in `keeping`.

mod accept;
mod acks;
mod keeping;

use std::collections::VecDeque;

use crate::protocol::{AckStatus, ClientId};
use crate::store::{Claimed, Store};

use super::answers::Answers;
use super::offset;
use super::outbox::{Outbox, OutboxLimits};
use super::recent::Recent;
use super::slab::Key;

pub use accept::{Accepted, Inbound};
use keeping::Pending;
pub use keeping::StoreNews;

/// What a session is held to.
#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    /// What its outbox may hold.
    pub outbox: OutboxLimits,
    /// How long a recipient may leave a message unacknowledged before the store gets it, in milliseconds.
    pub ack_wait_ms: u64,
    /// What a sender is told of a message that the store has.
    pub kept_status: AckStatus,
}

/// By what right a session gives offsets and uses the store.
#[derive(Debug, Clone, Copy)]
pub struct Right {
    /// The highest offset it may give.
    pub ceiling: u64,
    /// Its offsets follow the clock up to this moment, in milliseconds since 1970, and each other beyond.
    pub clock_until_ms: u64,
    /// False while its client is not claimed: nothing can be given to the store.
    pub is_claimed: bool,
}

impl Right {
    /// That of a node which runs alone.
    pub const UNBOUNDED: Self = Self { ceiling: u64::MAX, clock_until_ms: u64::MAX, is_claimed: true };
    /// That of nobody.
    pub const NONE: Self = Self { ceiling: 0, clock_until_ms: 0, is_claimed: false };
}

/// What a client asked for when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wishes {
    /// It wants an ack for every message it sends.
    pub acks: bool,
    /// It acknowledges what it receives.
    pub receiver_acks: bool,
    /// The last offset it has, if it has been here before; 0 for none.
    pub resume_offset: Option<u64>,
}

/// A client that logs in.
#[derive(Debug)]
pub struct Newcomer {
    /// Its id.
    pub id: ClientId,
    /// Hash of its id.
    pub hash: u64,
    /// The connection that carries it.
    pub connection: Key,
    /// What it asked for.
    pub wishes: Wishes,
}

/// How a login begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The position after which delivery continues.
    pub offset: u64,
    /// False when something after the client's position is gone.
    pub recovered: bool,
}

/// A logged-in client.
pub struct Session {
    id: ClientId,
    hash: u64,
    last_offset: u64,
    // The slot of the connection that carries it, or `DETACHED`.
    connection: u32,
    // Confirmations this client still waits for, as a sender.
    unconfirmed: u16,
    receiver_acks: bool,
    flags: u8,
    /// What is under way to it. A session that has been quiet for a while owns none.
    delivery: Option<Box<Delivery>>,
}

/// No connection carries the session: it stays until the store has what its client has not acknowledged.
const DETACHED: u32 = u32::MAX;
/// It wants an ack for every message it sends.
const WANTS_ACKS: u8 = 1;
/// Messages may be written.
const BEGUN: u8 = 2;
/// Its client has been welcomed.
const WELCOMED: u8 = 4;
/// Its client has been advised to move.
const ADVISED: u8 = 8;
/// Its client may have come from another node just now.
const CAME: u8 = 16;
/// What waits in the store may be read: from where this login begins, not from where an earlier one had come to.
const READS: u8 = 32;

#[derive(Default)]
struct Delivery {
    outbox: Outbox,
    recent: Recent,
    // While true the store is the only source: new messages go there, behind what waits there.
    is_behind: bool,
    // The last offset read from the store.
    paged_offset: u64,
    pending: VecDeque<Pending>,
    // When the outbox last got shorter or was empty, in milliseconds since 1970.
    moved_ms: u64,
}

impl Session {
    /// Logs a client in on what the store knows of it. Positions from before `started_ms`, when this process began,
    /// are not known to it.
    pub fn new(who: Newcomer, claimed: Claimed, store: &mut impl Store, started_ms: u64, now_ms: u64) -> (Self, Start) {
        let Newcomer { id, hash, connection, wishes } = who;
        let position = wishes.resume_offset.unwrap_or(0);
        let last_offset = claimed.last_offset.max(offset::at(now_ms));
        // A position this process cannot vouch for: from before it started, or from the future.
        let is_known = position == 0 || (position >= offset::at(started_ms) && position <= last_offset);
        let recovered = is_known && claimed.lost_offset <= position;
        let known_position = if is_known { position } else { 0 };
        if known_position > 0 {
            store.trim(&id, known_position);
        }
        let mut session = Self {
            id,
            hash,
            connection: connection.index,
            last_offset,
            unconfirmed: 0,
            receiver_acks: wishes.receiver_acks || wishes.resume_offset.is_some(),
            flags: READS | BEGUN | WELCOMED | if wishes.acks { WANTS_ACKS } else { 0 },
            delivery: None,
        };
        let mut start = Start { offset: if known_position > 0 { known_position } else { last_offset }, recovered };
        if claimed.has_messages {
            let delivery = session.delivery_mut(now_ms);
            delivery.is_behind = true;
            delivery.paged_offset = known_position;
            session.read_on(store, usize::MAX, now_ms);
            if known_position == 0
                && let Some(first) = session.delivery.as_ref().and_then(|delivery| delivery.outbox.oldest())
            {
                start.offset = first.offset - 1;
            }
        }
        (session, start)
    }

    /// A client that logs in while nothing is known of it yet: until [`Session::begin`] it gets nothing.
    pub fn unknown(who: Newcomer) -> Self {
        let Newcomer { id, hash, connection, wishes } = who;
        let mut session = Self {
            id,
            hash,
            connection: connection.index,
            last_offset: 0,
            unconfirmed: 0,
            receiver_acks: false,
            flags: 0,
            delivery: None,
        };
        session.attach(connection, wishes);
        session
    }

    /// Another connection carries it from now on; it gets nothing before [`Session::begin`].
    pub fn attach(&mut self, connection: Key, wishes: Wishes) {
        self.connection = connection.index;
        self.receiver_acks = wishes.receiver_acks || wishes.resume_offset.is_some();
        self.flags = if wishes.acks { WANTS_ACKS } else { 0 };
        self.unconfirmed = 0;
        if let Some(delivery) = self.delivery.as_deref_mut() {
            delivery.outbox.rewind();
        }
    }

    /// Its connection is gone.
    pub fn detach(&mut self) {
        self.connection = DETACHED;
        self.flags &= ADVISED;
    }

    /// True while no connection carries it.
    pub fn is_detached(&self) -> bool {
        self.connection == DETACHED
    }

    /// Its client has been advised to move.
    pub fn mark_advised(&mut self) {
        self.flags |= ADVISED;
    }

    /// Its client may be advised anew.
    pub fn clear_advised(&mut self) {
        self.flags &= !ADVISED;
    }

    /// True once its client has been advised to move.
    pub fn is_advised(&self) -> bool {
        self.flags & ADVISED != 0
    }

    /// Whether its client may have come from another node just now: what it sent there may still be on its way.
    pub fn note_coming(&mut self, has_come: bool) {
        self.flags = self.flags & !CAME | if has_come { CAME } else { 0 };
    }

    /// True while its client may have messages under way from another node.
    pub fn has_come(&self) -> bool {
        self.flags & CAME != 0
    }

    /// True once its client has been welcomed.
    pub fn is_welcomed(&self) -> bool {
        self.flags & WELCOMED != 0
    }

    /// Begins to deliver after `position`, on what the store knows: offsets up to `last_offset` may be given away. With
    /// `has_messages` the store is read first; without, delivery is live.
    #[expect(clippy::too_many_arguments, reason = "what the login found, and the shard's parts as everywhere here")]
    pub fn begin(
        &mut self,
        position: u64,
        last_offset: u64,
        has_messages: bool,
        store: &mut impl Store,
        limits: SessionLimits,
        now_ms: u64,
        answers: &mut Answers,
    ) {
        self.flags |= READS;
        self.last_offset = self.last_offset.max(last_offset);
        if position > 0 {
            store.trim(&self.id, position);
            if let Some(delivery) = self.delivery.as_deref_mut() {
                delivery.outbox.mark_all_written();
            }
            // The client has it: its position says so.
            self.finish(store, now_ms, AckStatus::Delivered, answers, |outbox| outbox.pop_acked(position));
            if let Some(delivery) = self.delivery.as_deref_mut() {
                delivery.outbox.rewind();
            }
        }
        if !has_messages {
            return;
        }
        let delivery = self.delivery_mut(now_ms);
        if delivery.outbox.is_empty() && !delivery.is_behind {
            delivery.is_behind = true;
            delivery.paged_offset = position;
        } else {
            // What the outbox still has is ahead of what the store has, or is in it.
            self.fall_behind(store, limits, now_ms, answers);
            // An earlier login may have been behind already, and its client got further on another node.
            let delivery = self.delivery_mut(now_ms);
            delivery.paged_offset = delivery.paged_offset.max(position);
        }
    }

    /// The client is welcomed before anything is known of it; messages follow with [`Session::welcome`].
    pub fn welcome_early(&mut self) {
        self.flags |= WELCOMED | CAME;
    }

    /// The client is welcomed: from now on messages may be written. Returns the position it starts after.
    pub fn welcome(&mut self, position: u64) -> u64 {
        self.flags |= WELCOMED | BEGUN;
        if position > 0 {
            return position;
        }
        match self.delivery.as_ref().and_then(|delivery| delivery.outbox.oldest()) {
            Some(first) => first.offset - 1,
            None => self.last_offset,
        }
    }

    /// The client's id.
    pub fn id(&self) -> &ClientId {
        &self.id
    }

    /// Hash of the client's id.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The slot of the connection that carries it.
    pub fn connection(&self) -> u32 {
        self.connection
    }

    /// The last offset this client was given.
    pub fn last_offset(&self) -> u64 {
        self.last_offset
    }

    /// The position up to which it has acknowledged, or been written, everything: where another connection should go on.
    pub fn settled_offset(&self) -> u64 {
        match &self.delivery {
            Some(delivery) => match delivery.outbox.oldest() {
                Some(oldest) => oldest.offset - 1,
                None if delivery.is_behind => delivery.paged_offset,
                None => self.last_offset,
            },
            None => self.last_offset,
        }
    }

    /// True when it wants an ack for every message it sends.
    pub fn wants_acks(&self) -> bool {
        self.flags & WANTS_ACKS != 0
    }

    /// True when it acknowledges what it receives.
    pub fn receiver_acks(&self) -> bool {
        self.receiver_acks
    }

    /// How many of its own messages wait for their ack.
    pub fn unconfirmed(&self) -> u16 {
        self.unconfirmed
    }

    /// One of its messages waits for its ack from now on.
    pub fn expect_ack(&mut self) {
        self.unconfirmed = self.unconfirmed.saturating_add(1);
    }

    /// One of its messages got its ack.
    pub fn count_ack(&mut self) {
        self.unconfirmed = self.unconfirmed.saturating_sub(1);
    }

    /// Messages and bytes that wait in the outbox.
    pub fn outbox_size(&self) -> (usize, usize) {
        self.delivery.as_ref().map_or((0, 0), |delivery| (delivery.outbox.len(), delivery.outbox.bytes()))
    }

    /// True when there is something to write.
    pub fn has_unsent(&self) -> bool {
        self.flags & BEGUN != 0 && self.delivery.as_ref().is_some_and(|delivery| delivery.outbox.has_unsent())
    }

    fn delivery_mut(&mut self, now_ms: u64) -> &mut Delivery {
        self.delivery.get_or_insert_with(|| Box::new(Delivery { moved_ms: now_ms, ..Delivery::default() }))
    }

    /// True when the outbox is at its limit, or behind the store, and has not moved for `limit_ms`.
    pub fn is_stuck(&self, limits: SessionLimits, limit_ms: u64, now_ms: u64) -> bool {
        self.delivery.as_ref().is_some_and(|delivery| {
            // One that has not begun cannot move.
            let is_full =
                self.flags & BEGUN != 0 && (delivery.is_behind || !delivery.outbox.has_room(0, limits.outbox));
            is_full && !delivery.outbox.is_empty() && now_ms.saturating_sub(delivery.moved_ms) >= limit_ms
        })
    }

    /// Frees what a quiet session need not keep: an empty outbox and names nobody has repeated for `quiet_ms`.
    pub fn rest(&mut self, quiet_ms: u64, now_ms: u64) {
        let is_settled = self.delivery.as_ref().is_some_and(|delivery| delivery.is_settled());
        if is_settled && self.rests_in(quiet_ms, now_ms) == Some(0) {
            self.delivery = None;
        }
    }

    /// After how many milliseconds time alone changes something here: 0 while anything is under way, none once it rests.
    pub fn rests_in(&self, quiet_ms: u64, now_ms: u64) -> Option<u64> {
        let delivery = self.delivery.as_deref()?;
        let quiet_at = delivery.moved_ms.saturating_add(quiet_ms);
        Some(if delivery.is_settled() { quiet_at.saturating_sub(now_ms) } else { 0 })
    }
}

impl Delivery {
    /// True when nothing is under way: what is left are names.
    fn is_settled(&self) -> bool {
        self.outbox.is_empty() && self.pending.is_empty() && !self.is_behind
    }
}

#[cfg(test)]
mod tests;
