//! What waits for one recipient on this node: frames in order of offset, first unsent, then written but not
//! acknowledged. One run of bytes, so that all that is due leaves in one copy and one write.
//! It does not decide what happens at its limit: its session does.

use std::collections::VecDeque;

use crate::protocol::Envelope;
use crate::store::Kept;

use super::origin::Origin;

/// Bytes the outbox may keep allocated while it is empty.
const SPARE_BYTES_MAX: usize = 16 * 1024;

/// What an outbox may hold.
#[derive(Debug, Clone, Copy)]
pub struct OutboxLimits {
    /// Bytes of frames.
    pub bytes: usize,
    /// Messages.
    pub messages: usize,
}

/// One message in the outbox.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its place in the recipient's stream.
    pub offset: u64,
    /// Hash of who sent it under which name.
    pub identity: u64,
    /// When it was accepted, in milliseconds since 1970.
    pub ts_ms: u64,
    /// When it stops being worth delivering, in milliseconds since 1970.
    pub expires_ms: u64,
    /// Who sent it, and is owed an answer if `wants_ack`.
    pub origin: Origin,
    /// True while the sender waits for its ack.
    pub wants_ack: bool,
    is_acked: bool,
    // It came just now, and has not been written before: no replay.
    is_live: bool,
    frame_bytes: u32,
}

/// Frames for one recipient.
// Invariants: written <= sent <= entries.len(); confirmed <= stored <= entries.len(); the frames of `entries` are
// `frames[start..]`, back to back, and those of `entries[sent..]` begin at `sent_at`.
#[derive(Default)]
pub struct Outbox {
    frames: Vec<u8>,
    start: usize,
    entries: VecDeque<Entry>,
    // Entries that were copied into a write.
    sent: usize,
    sent_at: usize,
    // Entries whose write has completed.
    written: usize,
    // Entries that the store was given too.
    stored: usize,
    // Entries of which the store has said that it has them.
    confirmed: usize,
    // Entries that left between the one and the other.
    left_unconfirmed: usize,
}

impl Outbox {
    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many messages it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many bytes of frames it holds.
    pub fn bytes(&self) -> usize {
        self.frames.len() - self.start
    }

    /// True when there is something to write.
    pub fn has_unsent(&self) -> bool {
        self.sent < self.entries.len()
    }

    /// True when a frame of some `frame_bytes` fits.
    pub fn has_room(&self, frame_bytes: usize, limits: OutboxLimits) -> bool {
        self.entries.len() < limits.messages && self.bytes().saturating_add(frame_bytes) <= limits.bytes
    }

    /// True when it is so far emptied that reading on from the store is worth a page.
    pub fn has_room_for_a_page(&self, limits: OutboxLimits) -> bool {
        self.entries.len() <= limits.messages / 2 && self.bytes() <= limits.bytes / 2
    }

    /// Appends a message that arrived just now.
    pub fn push(&mut self, envelope: &Envelope<'_>, mut entry: Entry) {
        let before = self.frames.len();
        envelope.write_frame(&mut self.frames, entry.offset);
        entry.frame_bytes = frame_bytes(self.frames.len() - before);
        entry.is_live = true;
        self.entries.push_back(entry);
    }

    /// Appends a message read from the store, which holds it still.
    pub fn push_stored(&mut self, kept: &Kept) {
        debug_assert!(self.stored == self.entries.len(), "the store holds a prefix of the outbox");
        let before = self.frames.len();
        kept.write_frame(&mut self.frames);
        let frame_bytes = frame_bytes(self.frames.len() - before);
        self.entries
            .push_back(Entry { frame_bytes, ..Entry::new(kept.offset, kept.identity, kept.ts_ms, kept.expires_ms) });
        self.stored += 1;
        self.confirmed += usize::from(self.confirmed + 1 == self.stored);
    }

    /// Copies unsent frames to `out`, whole ones, until it holds `bytes_max` or more.
    pub fn take_unsent(&mut self, out: &mut Vec<u8>, bytes_max: usize) {
        if self.sent == self.entries.len() {
            return;
        }
        let mut end = self.sent_at;
        let mut room = bytes_max.saturating_sub(out.len());
        while room > 0
            && let Some(entry) = self.entries.get(self.sent)
        {
            let frame_bytes = entry.frame_bytes as usize;
            end += frame_bytes;
            room = room.saturating_sub(frame_bytes);
            self.sent += 1;
        }
        out.extend_from_slice(self.frames.get(self.sent_at..end).unwrap_or_default());
        self.sent_at = end;
    }

    /// All that was taken has been written; `delivered` hears when each of it that is no replay was accepted.
    pub fn mark_written(&mut self, mut delivered: impl FnMut(u64)) {
        for entry in self.entries.iter().take(self.sent).skip(self.written).filter(|entry| entry.is_live) {
            delivered(entry.ts_ms);
        }
        self.written = self.sent;
    }

    /// Removes the oldest message that is written and, unless `acks_needed` is false, acknowledged.
    pub fn pop_done(&mut self, acks_needed: bool) -> Option<Done> {
        let entry = self.entries.front().copied()?;
        if self.written == 0 || (acks_needed && !entry.is_acked) {
            return None;
        }
        Some(self.pop_front(entry))
    }

    /// Removes the oldest written message whose offset is not above `offset`.
    pub fn pop_acked(&mut self, offset: u64) -> Option<Done> {
        let entry = self.entries.front().copied()?;
        if self.written == 0 || entry.offset > offset {
            return None;
        }
        Some(self.pop_front(entry))
    }

    fn pop_front(&mut self, entry: Entry) -> Done {
        self.entries.pop_front();
        let frame = self.start..self.start + entry.frame_bytes as usize;
        self.start = frame.end;
        self.written -= 1;
        self.sent -= 1;
        let was_stored = self.stored > 0;
        let was_confirmed = self.confirmed > 0;
        self.stored -= usize::from(was_stored);
        self.confirmed -= usize::from(was_confirmed);
        self.left_unconfirmed += usize::from(was_stored && !was_confirmed);
        Done { entry, was_stored, frame }
    }

    /// The name of a popped message as it stands in its frame, JSON escapes and all.
    /// Good until the next [`Outbox::tidy`].
    pub fn msg_id(&self, done: &Done) -> &str {
        msg_id(self.frames.get(done.frame.clone()).unwrap_or_default())
    }

    /// Marks one written message as acknowledged, wherever it stands. Returns it as it was, whoever waited for it
    /// included; nobody waits any more then.
    pub fn ack_message(&mut self, escaped_msg_id: &str) -> Option<(Entry, bool)> {
        let mut at = self.start;
        for (index, entry) in self.entries.iter_mut().take(self.written).enumerate() {
            let end = at + entry.frame_bytes as usize;
            if !entry.is_acked && msg_id(self.frames.get(at..end).unwrap_or_default()) == escaped_msg_id {
                let was = *entry;
                entry.is_acked = true;
                entry.wants_ack = false;
                return Some((was, index < self.stored));
            }
            at = end;
        }
        None
    }

    /// Frees the room of what was popped. Call after a run of pops.
    pub fn tidy(&mut self) {
        if self.entries.is_empty() {
            self.frames.clear();
            if self.frames.capacity() > SPARE_BYTES_MAX {
                self.frames = Vec::new();
                self.entries = VecDeque::new();
            }
            self.start = 0;
            self.sent_at = 0;
        } else if self.start > self.frames.len() / 2 {
            self.frames.drain(..self.start);
            self.sent_at -= self.start;
            self.start = 0;
        }
    }

    /// The entry of an unfinished message by its identity, and whether the store has confirmed it.
    pub fn find(&mut self, identity: u64) -> Option<(&mut Entry, bool)> {
        let confirmed = self.confirmed;
        let (index, entry) = self.entries.iter_mut().enumerate().find(|(_, entry)| entry.identity == identity)?;
        Some((entry, index < confirmed))
    }

    /// The oldest message.
    pub fn oldest(&self) -> Option<&Entry> {
        self.entries.front()
    }

    /// Gives the messages that the store does not have yet, and that are older than `accepted_before`, to `give`, oldest
    /// first: from here on they count as stored. Returns how many that were, those that need not be kept any more included.
    pub fn spill(&mut self, accepted_before: u64, mut give: impl FnMut(Kept)) -> usize {
        let mut at = self.frames_bytes_of(self.stored);
        let first = self.stored;
        for entry in self.entries.iter().skip(first) {
            if entry.ts_ms >= accepted_before {
                break;
            }
            let end = at + entry.frame_bytes as usize;
            let frame = self.frames.get(at..end).unwrap_or_default();
            at = end;
            self.stored += 1;
            if !entry.is_acked {
                give(Kept::from_frame(frame, entry));
            }
        }
        self.stored - first
    }

    /// The store has the next `count` of those it was given; `tell` gets those of them whose senders wait.
    pub fn confirm(&mut self, count: usize, mut tell: impl FnMut(Origin, &str)) {
        let left = count.min(self.left_unconfirmed);
        self.left_unconfirmed -= left;
        let count = (count - left).min(self.stored - self.confirmed);
        let mut at = self.frames_bytes_of(self.confirmed);
        for entry in self.entries.iter_mut().skip(self.confirmed).take(count) {
            let end = at + entry.frame_bytes as usize;
            if entry.wants_ack {
                entry.wants_ack = false;
                tell(entry.origin, msg_id(self.frames.get(at..end).unwrap_or_default()));
            }
            at = end;
        }
        self.confirmed += count;
    }

    /// Where the frame of entry `index` begins.
    fn frames_bytes_of(&self, index: usize) -> usize {
        self.start + self.entries.iter().take(index).map(|entry| entry.frame_bytes as usize).sum::<usize>()
    }

    /// All that is here goes out again, over another connection.
    pub fn rewind(&mut self) {
        self.entries.iter_mut().take(self.sent).for_each(|entry| entry.is_live = false);
        self.sent = 0;
        self.written = 0;
        self.sent_at = self.start;
    }

    /// All of it reached the client over an earlier connection, or need not: what is acknowledged may be removed.
    pub fn mark_all_written(&mut self) {
        self.sent = self.entries.len();
        self.written = self.sent;
        self.sent_at = self.frames.len();
    }

    /// Takes out all that the store has not confirmed, with its name and who waits for it.
    pub fn take_unconfirmed(&mut self) -> Vec<(Kept, Box<str>, Vec<Origin>)> {
        let mut at = self.frames_bytes_of(self.confirmed);
        let mut taken = Vec::new();
        for entry in self.entries.iter().skip(self.confirmed) {
            let end = at + entry.frame_bytes as usize;
            let frame = self.frames.get(at..end).unwrap_or_default();
            at = end;
            if !entry.is_acked {
                let askers = if entry.wants_ack { vec![entry.origin] } else { Vec::new() };
                taken.push((Kept::from_frame(frame, entry), msg_id(frame).into(), askers));
            }
        }
        *self = Self::default();
        taken
    }
}

/// A message that left the outbox for good.
#[derive(Debug)]
pub struct Done {
    /// What was known of it.
    pub entry: Entry,
    /// True when the store holds it and must drop it now.
    pub was_stored: bool,
    frame: std::ops::Range<usize>,
}

impl Entry {
    /// A message nobody waits for.
    pub fn new(offset: u64, identity: u64, ts_ms: u64, expires_ms: u64) -> Self {
        Self {
            offset,
            identity,
            ts_ms,
            expires_ms,
            origin: Origin::NOBODY,
            wants_ack: false,
            is_acked: false,
            is_live: false,
            frame_bytes: 0,
        }
    }
}

fn frame_bytes(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("the message limit is far below 4 GiB")
}

fn msg_id(frame: &[u8]) -> &str {
    Envelope::msg_id_of_frame(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::PayloadField;

    fn push(outbox: &mut Outbox, ts_ms: u64) {
        let envelope = Envelope { msg_id: "m", from: "a", to: "b", field: PayloadField::Payload, payload: "1", ts_ms };
        outbox.push(&envelope, Entry::new(ts_ms, ts_ms, ts_ms, ts_ms + 1000));
    }

    /// Takes up to `bytes_max`, and returns how many bytes that were.
    fn take(outbox: &mut Outbox, bytes_max: usize) -> usize {
        let mut out = Vec::new();
        outbox.take_unsent(&mut out, bytes_max);
        out.len()
    }

    fn timed(outbox: &mut Outbox) -> Vec<u64> {
        let mut heard = Vec::new();
        outbox.mark_written(|ts_ms| heard.push(ts_ms));
        heard
    }

    #[test]
    fn what_goes_out_again_over_another_connection_is_a_replay_and_the_rest_is_not() {
        let mut outbox = Outbox::default();
        for ts_ms in [1, 2, 3] {
            push(&mut outbox, ts_ms);
        }
        let one_frame = take(&mut outbox, 1);
        assert_eq!(timed(&mut outbox), [1]);
        // The connection ends in the middle of the second write.
        assert_eq!(take(&mut outbox, 1), one_frame);
        outbox.rewind();
        assert_eq!(timed(&mut outbox), [0; 0], "nothing has been written to the new one");
        assert_eq!(take(&mut outbox, usize::MAX), 3 * one_frame, "all goes out again");
        assert_eq!(timed(&mut outbox), [3], "only what had never been on its way before counts");
    }
}
