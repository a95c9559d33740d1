//! What the store keeps for the session's client: given to it, and read from it again. It answers at once, or by mail in
//! the order of the questions.
//!
//! Invariant: while the session is behind, the store is its only source: what is new goes there, and comes from there.

use std::collections::VecDeque;
use std::task::Poll;

use crate::bus::Holder;
use crate::shard::answers::Answers;
use crate::shard::origin::Origin;
use crate::store::request::StoreAnswer;
use crate::store::{BufferFull, Kept, Room, Store};

use super::{Delivery, READS, Session, SessionLimits};

/// Bytes read from the store at a time.
const PAGE_BYTES: usize = 64 * 1024;

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

/// Something the store was asked and has not answered. Answers come in the order of the questions.
pub(super) enum Pending {
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

pub(super) struct PendingAppend {
    pub message: Kept,
    // The sender's name for it, as it stands in JSON.
    pub msg_id: Box<str>,
    // Who is told; more than one if it was sent again meanwhile.
    pub askers: Vec<Origin>,
    // The store has answered: another node holds the client.
    pub is_barred: bool,
}

impl Session {
    /// True when the store holds messages that the outbox has not read yet.
    pub fn is_behind(&self) -> bool {
        self.delivery.as_ref().is_some_and(|delivery| delivery.is_behind)
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

    /// Gives the store what the recipient has left unacknowledged for `ack_wait`, and tells the senders.
    pub fn spill_overdue(&mut self, store: &mut impl Store, limits: SessionLimits, now_ms: u64, answers: &mut Answers) {
        self.spill(store, limits, now_ms.saturating_sub(limits.ack_wait_ms), now_ms, answers);
    }

    /// The client is gone: the store gets all that it has not acknowledged, and the senders are told.
    pub fn spill_all(&mut self, store: &mut impl Store, limits: SessionLimits, now_ms: u64, answers: &mut Answers) {
        self.spill(store, limits, u64::MAX, now_ms, answers);
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

    /// Reads on when the outbox is emptied far enough for a page.
    pub fn read_on_if_room(&mut self, store: &mut impl Store, limits: SessionLimits, now_ms: u64) -> bool {
        let has_room = self
            .delivery
            .as_ref()
            .is_some_and(|delivery| delivery.is_behind && delivery.outbox.has_room_for_a_page(limits.outbox));
        self.flags & READS != 0 && has_room && self.read_on(store, limits.outbox.bytes / 2, now_ms)
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
            if kept.offset <= delivery.paged_offset {
                // Asked for by an earlier login, and its client has got further elsewhere.
                continue;
            }
            delivery.paged_offset = kept.offset;
            self.last_offset = self.last_offset.max(kept.offset);
            delivery.recent.insert(kept.identity);
            delivery.outbox.push_stored(&kept);
        }
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

    /// Gives the client back to the store, which has all that it must have.
    pub fn release(self, store: &mut impl Store, now_ms: u64) {
        store.release(&self.id, self.last_offset, now_ms);
    }
}
