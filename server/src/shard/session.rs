//! A client's state without its socket: its stream of offsets, its outbox, who is owed an ack. Pure: messages, acks and
//! the time in; what to tell the senders out. It does not know whether its socket can be written, nor other clients.

use std::collections::VecDeque;
use std::task::Poll;

use crate::bus::Holder;
use crate::protocol::{AckStatus, ClientId, Envelope};
use crate::store::request::StoreAnswer;
use crate::store::{Appended, BufferFull, Claimed, Kept, Room, Store};

use super::answers::Answers;
use super::offset::{self, next_offset};
use super::origin::Origin;
use super::outbox::{Done, Entry, Outbox, OutboxLimits};
use super::recent::Recent;
use super::slab::Key;

/// Bytes read from the store at a time.
const PAGE_BYTES: usize = 64 * 1024;

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
    /// False while its client is not claimed: nothing can be given to the store.
    pub is_claimed: bool,
}

impl Right {
    /// That of a node which runs alone.
    pub const UNBOUNDED: Self = Self { ceiling: u64::MAX, is_claimed: true };
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

/// What the store's answer means for the session.
#[derive(Debug, PartialEq, Eq)]
pub enum StoreNews {
    /// It goes on; there may be something to write.
    GoesOn,
    /// The client is held elsewhere: what is left of this session is to be taken at once, by [`Session::take_rest`].
    Lost(Holder),
    /// It cannot be what was asked.
    Unexpected,
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

/// Something the store was asked and has not answered. Answers come in the order of the questions.
enum Pending {
    /// It was given the next so many entries of the outbox; the offset of the last.
    Spill(usize, u64),
    /// It was given a new message.
    Append(Box<PendingAppend>),
    /// It was asked to read on.
    Page,
    /// It was given all that was left of the session, whoever holds the client: names, and who waits.
    Rest(Vec<(Box<str>, Vec<Origin>)>),
    /// Something that concerns nothing any more.
    Stale,
}

struct PendingAppend {
    message: Kept,
    // The sender's name for it, as it stands in JSON.
    msg_id: Box<str>,
    // Who is told; more than one if it was sent again meanwhile.
    askers: Vec<Origin>,
    // The store has answered: another node holds the client.
    is_barred: bool,
}

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
            flags: BEGUN | WELCOMED | if wishes.acks { WANTS_ACKS } else { 0 },
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
        }
    }

    /// The client is welcomed before anything is known of it; messages follow with [`Session::welcome`].
    pub fn welcome_early(&mut self) {
        self.flags |= WELCOMED;
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

    /// True when the store holds messages that the outbox has not read yet.
    pub fn is_behind(&self) -> bool {
        self.delivery.as_ref().is_some_and(|delivery| delivery.is_behind)
    }

    fn delivery_mut(&mut self, now_ms: u64) -> &mut Delivery {
        self.delivery.get_or_insert_with(|| Box::new(Delivery { moved_ms: now_ms, ..Delivery::default() }))
    }

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
        let offset = next_offset(self.last_offset, now_ms.min(offset::moment(right.ceiling)));
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

    /// From here on the store takes what comes, behind what the outbox holds, and is the only source.
    pub fn fall_behind(&mut self, store: &mut impl Store, limits: SessionLimits, now_ms: u64, answers: &mut Answers) {
        if self.is_behind() {
            return;
        }
        let last_offset = self.last_offset;
        self.spill(store, limits, u64::MAX, now_ms, answers);
        let delivery = self.delivery_mut(now_ms);
        delivery.is_behind = true;
        delivery.paged_offset = last_offset;
    }

    /// Gives the store what was accepted before `accepted_before` and is not acknowledged; tells the senders who wait.
    fn spill(
        &mut self,
        store: &mut impl Store,
        limits: SessionLimits,
        accepted_before: u64,
        now_ms: u64,
        answers: &mut Answers,
    ) {
        let Some(delivery) = self.delivery.as_deref_mut() else { return };
        let mut messages = Vec::new();
        let count = delivery.outbox.spill(accepted_before, |kept| messages.push(kept));
        if count == 0 {
            return;
        }
        let last_offset = messages.last().map_or(0, |kept| kept.offset);
        if messages.is_empty() || store.append_all(&self.id, messages, now_ms).is_ready() {
            let status = limits.kept_status;
            delivery.outbox.confirm(count, |origin, msg_id| answers.push(origin, msg_id, status));
        } else {
            delivery.pending.push_back(Pending::Spill(count, last_offset));
        }
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

    /// The store has answered the oldest question that is open.
    pub fn on_store(
        &mut self,
        answer: StoreAnswer,
        store: &mut impl Store,
        limits: SessionLimits,
        now_ms: u64,
        answers: &mut Answers,
        refused: &mut Vec<(Origin, Box<str>, BufferFull)>,
    ) -> StoreNews {
        let status = limits.kept_status;
        let Some(delivery) = self.delivery.as_deref_mut() else { return StoreNews::Unexpected };
        if let Some(Pending::Stale) = delivery.pending.front() {
            delivery.pending.pop_front();
            return StoreNews::GoesOn;
        }
        if let StoreAnswer::Elsewhere(holder) = answer {
            match delivery.pending.front_mut() {
                // It is part of what is left here.
                Some(Pending::Append(append)) => append.is_barred = true,
                _ => _ = delivery.pending.pop_front(),
            }
            return StoreNews::Lost(holder);
        }
        match (delivery.pending.pop_front(), answer) {
            (Some(Pending::Spill(count, given)), StoreAnswer::Appended { last_offset }) => {
                delivery.outbox.confirm(count, |origin, msg_id| answers.push(origin, msg_id, status));
                if last_offset > given {
                    // Something stands in between that this session has not seen.
                    self.fall_behind(store, limits, now_ms, answers);
                }
            }
            (Some(Pending::Append(append)), StoreAnswer::Appended { last_offset }) => {
                self.last_offset = self.last_offset.max(last_offset);
                for asker in append.askers {
                    answers.push(asker, &append.msg_id, status);
                }
            }
            (Some(Pending::Append(append)), StoreAnswer::Refused(_))
                if append.askers.iter().any(|asker| asker.is_record()) =>
            {
                // Accepted long ago: the store is asked again, behind what it was given since.
                let _ = store.append(&self.id, &append.message, Room::Owed, now_ms);
                delivery.pending.push_back(Pending::Append(append));
            }
            (Some(Pending::Append(append)), StoreAnswer::Refused(cause)) => {
                delivery.recent.remove(append.message.identity);
                refused.extend(append.askers.into_iter().map(|asker| (asker, append.msg_id.clone(), cause)));
            }
            (Some(Pending::Page), StoreAnswer::Page(page)) => {
                self.take_page(page);
            }
            (Some(Pending::Rest(rest)), StoreAnswer::Appended { .. }) => {
                for (msg_id, askers) in rest {
                    for asker in askers {
                        answers.push(asker, &msg_id, status);
                    }
                }
            }
            _ => return StoreNews::Unexpected,
        }
        if !self.is_detached() {
            self.read_on_if_room(store, limits, now_ms);
        }
        StoreNews::GoesOn
    }

    /// True while the store owes it an answer.
    pub fn is_waiting_for_store(&self) -> bool {
        self.delivery.as_ref().is_some_and(|delivery| !delivery.pending.is_empty())
    }

    /// True while it waits for the store to read on.
    pub fn is_paging(&self) -> bool {
        self.delivery
            .as_ref()
            .is_some_and(|delivery| delivery.pending.iter().any(|pending| matches!(pending, Pending::Page)))
    }

    /// Takes out, in order, all that neither its client nor the store has confirmed. The store is to be given it behind
    /// all that it keeps, whoever holds the client; its answer is expected if there is anything.
    pub fn take_rest(&mut self) -> Vec<Kept> {
        let Some(delivery) = self.delivery.take() else { return Vec::new() };
        let Delivery { mut outbox, pending, .. } = *delivery;
        let (mut messages, mut rest) = (Vec::new(), Vec::new());
        let mut add = |kept: Kept, msg_id: Box<str>, askers: Vec<Origin>| {
            messages.push(Kept { offset: 0, ..kept });
            rest.push((msg_id, askers));
        };
        for (kept, msg_id, askers) in outbox.take_unconfirmed() {
            add(kept, msg_id, askers);
        }
        let mut open = VecDeque::new();
        for pending in pending {
            match pending {
                Pending::Append(append) => {
                    add(append.message, append.msg_id, append.askers);
                    if !append.is_barred {
                        open.push_back(Pending::Stale);
                    }
                }
                Pending::Rest(_) => open.push_back(pending),
                Pending::Spill(..) | Pending::Page | Pending::Stale => open.push_back(Pending::Stale),
            }
        }
        if !messages.is_empty() {
            open.push_back(Pending::Rest(rest));
        }
        if !open.is_empty() {
            self.delivery = Some(Box::new(Delivery { pending: open, ..Delivery::default() }));
        }
        messages
    }

    /// Moves messages from the store to the outbox while it has room; returns whether there is something to write.
    pub fn read_on(&mut self, store: &mut impl Store, page_bytes: usize, now_ms: u64) -> bool {
        let is_paging = self.is_paging();
        let Some(delivery) = self.delivery.as_deref_mut() else { return false };
        if !delivery.is_behind || is_paging {
            return false;
        }
        if delivery.outbox.is_empty() {
            delivery.moved_ms = now_ms;
        }
        match store.page(&self.id, delivery.paged_offset, page_bytes.min(PAGE_BYTES)) {
            Poll::Ready(page) => self.take_page(page),
            Poll::Pending => delivery.pending.push_back(Pending::Page),
        }
        self.has_unsent()
    }

    fn take_page(&mut self, page: Vec<Kept>) {
        let Some(delivery) = self.delivery.as_deref_mut() else { return };
        // Live again when the store has no more and was given none since it was asked.
        let is_given_more = delivery.pending.iter().any(|pending| matches!(pending, Pending::Append(_)));
        delivery.is_behind = !page.is_empty() || is_given_more;
        for kept in page {
            delivery.paged_offset = kept.offset;
            self.last_offset = self.last_offset.max(kept.offset);
            delivery.recent.insert(kept.identity);
            delivery.outbox.push_stored(&kept);
        }
    }

    /// Reads on when the outbox is emptied far enough for a page.
    pub fn read_on_if_room(&mut self, store: &mut impl Store, limits: SessionLimits, now_ms: u64) -> bool {
        let has_room = self
            .delivery
            .as_ref()
            .is_some_and(|delivery| delivery.is_behind && delivery.outbox.has_room_for_a_page(limits.outbox));
        has_room && self.read_on(store, limits.outbox.bytes / 2, now_ms)
    }

    /// Copies what is due to `out`.
    pub fn take_unsent(&mut self, out: &mut Vec<u8>, bytes_max: usize) {
        if let Some(delivery) = self.delivery.as_deref_mut() {
            delivery.outbox.take_unsent(out, bytes_max);
        }
    }

    /// All that was taken has been written. `answers` gets what senders learn of it, `delivered` how many milliseconds
    /// each message that is no replay was on its way.
    pub fn on_written(
        &mut self,
        store: &mut impl Store,
        now_ms: u64,
        answers: &mut Answers,
        mut delivered: impl FnMut(u64),
    ) {
        let receiver_acks = self.receiver_acks;
        if let Some(delivery) = self.delivery.as_deref_mut() {
            // Another node's clock may be ahead.
            delivery.outbox.mark_written(|accepted_ms| delivered(now_ms.saturating_sub(accepted_ms)));
            if !receiver_acks {
                self.finish(store, now_ms, AckStatus::Sent, answers, |outbox| outbox.pop_done(false));
            }
        }
    }

    /// The client has everything up to `offset`.
    pub fn on_ack_offset(&mut self, offset: u64, store: &mut impl Store, now_ms: u64, answers: &mut Answers) {
        self.receiver_acks = true;
        self.finish(store, now_ms, AckStatus::Delivered, answers, |outbox| outbox.pop_acked(offset));
    }

    /// The client has this one message. Of two with the same name from different senders the older is meant.
    pub fn on_ack_message(&mut self, escaped_msg_id: &str, store: &mut impl Store, now_ms: u64, answers: &mut Answers) {
        self.receiver_acks = true;
        let Some(delivery) = self.delivery.as_deref_mut() else { return };
        let Some((entry, is_stored)) = delivery.outbox.ack_message(escaped_msg_id) else { return };
        if entry.wants_ack {
            answers.push(entry.origin, escaped_msg_id, AckStatus::Delivered);
        }
        if is_stored {
            store.remove(&self.id, entry.offset);
        }
        self.finish(store, now_ms, AckStatus::Delivered, answers, |outbox| outbox.pop_done(true));
    }

    fn finish(
        &mut self,
        store: &mut impl Store,
        now_ms: u64,
        status: AckStatus,
        answers: &mut Answers,
        mut pop: impl FnMut(&mut Outbox) -> Option<Done>,
    ) {
        let Some(delivery) = self.delivery.as_deref_mut() else { return };
        let mut trim_offset = 0;
        let mut has_moved = false;
        while let Some(done) = pop(&mut delivery.outbox) {
            has_moved = true;
            if done.entry.wants_ack {
                answers.push(done.entry.origin, delivery.outbox.msg_id(&done), status);
            }
            if done.was_stored {
                trim_offset = done.entry.offset;
            }
        }
        if has_moved {
            delivery.moved_ms = now_ms;
            delivery.outbox.tidy();
        }
        if trim_offset > 0 {
            store.trim(&self.id, trim_offset);
        }
    }

    /// Gives the store what the recipient has left unacknowledged for `ack_wait`, and tells the senders.
    pub fn spill_overdue(&mut self, store: &mut impl Store, limits: SessionLimits, now_ms: u64, answers: &mut Answers) {
        self.spill(store, limits, now_ms.saturating_sub(limits.ack_wait_ms), now_ms, answers);
    }

    /// The client is gone: the store gets all that it has not acknowledged, and the senders are told.
    pub fn spill_all(&mut self, store: &mut impl Store, limits: SessionLimits, now_ms: u64, answers: &mut Answers) {
        self.spill(store, limits, u64::MAX, now_ms, answers);
    }

    /// Gives the client back to the store, which has all that it must have.
    pub fn release(self, store: &mut impl Store, now_ms: u64) {
        store.release(&self.id, self.last_offset, now_ms);
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
        let is_quiet = self.delivery.as_ref().is_some_and(|delivery| {
            let is_settled = delivery.pending.is_empty() && !delivery.is_behind;
            delivery.outbox.is_empty() && is_settled && now_ms.saturating_sub(delivery.moved_ms) >= quiet_ms
        });
        if is_quiet {
            self.delivery = None;
        }
    }
}

/// More than an envelope adds to its payload with ids of ordinary length.
const FRAME_OVERHEAD_BYTES: usize = 256;

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

#[cfg(test)]
mod tests;
