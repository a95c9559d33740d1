//! How far the client has got: what was written to it, and what it has acknowledged. Its senders are answered, and the
//! store drops what is done with.
//!
//! Invariant: nothing counts as done before it was written, nor, with a client that acknowledges, before its ack.

use crate::protocol::AckStatus;
use crate::shard::answers::Answers;
use crate::shard::outbox::{Done, Outbox};
use crate::store::Store;

use super::Session;

impl Session {
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

    pub(super) fn finish(
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
}
