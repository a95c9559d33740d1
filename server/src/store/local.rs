//! The store of a node that runs alone: replay buffers in memory, one set per shard. They survive connections, not the
//! process. Bounded per recipient, per sender and as a whole; a message leaves by acknowledgement or by age.

use std::collections::VecDeque;
use std::task::Poll;

use hashbrown::{HashMap, HashTable};
use xxhash_rust::xxh3::{Xxh3Builder, xxh3_64};

use super::{Appended, BufferFull, Claimed, Kept, Room, Store};
use crate::protocol::ClientId;
use crate::shard::offset::{self, next_offset};
use crate::shard::slab::{Key, Round, Slab};

/// What a message costs beside its bytes.
const MESSAGE_OVERHEAD_BYTES: usize = 128;
/// What a buffer costs beside its messages.
const BUFFER_OVERHEAD_BYTES: usize = 256;

/// The bounds of one shard's store.
#[derive(Debug, Clone, Copy)]
pub struct StoreLimits {
    /// Bytes kept for one recipient.
    pub recipient_bytes: usize,
    /// Messages kept for one recipient.
    pub recipient_messages: usize,
    /// Bytes kept of one sender.
    pub sender_bytes: usize,
    /// Bytes kept in all.
    pub total_bytes: usize,
    /// How long the mark of a loss is remembered after the last message is gone, in milliseconds.
    pub memory_ms: u64,
}

struct Buffer {
    client: ClientId,
    messages: VecDeque<Kept>,
    bytes: usize,
    last_offset: u64,
    lost_offset: u64,
    forget_ms: u64,
    is_claimed: bool,
}

impl Buffer {
    /// True when nothing need be remembered of it: no message, no loss, and no offset that could be given twice.
    fn is_over(&self, now_ms: u64) -> bool {
        self.messages.is_empty()
            && !self.is_claimed
            && self.forget_ms <= now_ms
            && self.last_offset < offset::at(now_ms)
    }
}

/// One shard's replay buffers.
pub struct LocalStore {
    limits: StoreLimits,
    by_client: HashTable<u32>,
    buffers: Slab<Buffer>,
    by_sender: HashMap<u64, usize, Xxh3Builder>,
    bytes: usize,
    messages: usize,
    swept: Round,
}

impl LocalStore {
    /// An empty store.
    pub fn new(limits: StoreLimits) -> Self {
        Self {
            limits,
            by_client: HashTable::new(),
            buffers: Slab::default(),
            by_sender: HashMap::default(),
            bytes: 0,
            messages: 0,
            swept: Round::default(),
        }
    }

    /// Bytes kept, what they cost beside included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages kept.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Messages kept for one client.
    pub fn messages_of(&self, client: &str) -> usize {
        self.find(client).and_then(|key| self.buffers.get(key)).map_or(0, |buffer| buffer.messages.len())
    }

    /// Looks at up to `buffers_max` buffers, taking turns, drops what is too old and returns how many messages that were.
    pub fn expire(&mut self, now_ms: u64, buffers_max: usize) -> u64 {
        let mut expired = 0;
        for _ in 0..buffers_max.min(self.buffers.slots()) {
            let index = self.swept.step(self.buffers.slots());
            let Some((key, buffer)) = self.buffers.at_mut(index) else { continue };
            let (mut freed, mut dropped) = (0, Vec::new());
            buffer.messages.retain(|message| {
                let keep = message.expires_ms > now_ms;
                if !keep {
                    buffer.lost_offset = buffer.lost_offset.max(message.offset);
                    freed += cost(message);
                    dropped.push((message.sender, cost(message)));
                }
                keep
            });
            buffer.bytes -= freed;
            if !dropped.is_empty() {
                buffer.forget_ms = now_ms.saturating_add(self.limits.memory_ms);
            }
            let is_over = buffer.is_over(now_ms);
            expired += dropped.len() as u64;
            for (sender, bytes) in dropped {
                self.forget_message(sender, bytes);
            }
            if is_over {
                self.drop_buffer(key);
            }
        }
        expired
    }

    fn find(&self, client: &str) -> Option<Key> {
        let hash = xxh3_64(client.as_bytes());
        let index = *self
            .by_client
            .find(hash, |index| self.buffers.at(*index).is_some_and(|(_, buffer)| buffer.client.as_str() == client))?;
        self.buffers.at(index).map(|(key, _)| key)
    }

    fn find_or_make(&mut self, client: &str) -> Option<Key> {
        if let Some(key) = self.find(client) {
            return Some(key);
        }
        let buffer = Buffer {
            client: ClientId::try_from(client).ok()?,
            messages: VecDeque::new(),
            bytes: 0,
            last_offset: 0,
            lost_offset: 0,
            forget_ms: 0,
            is_claimed: false,
        };
        let key = self.buffers.insert(buffer);
        self.bytes += BUFFER_OVERHEAD_BYTES;
        let buffers = &self.buffers;
        self.by_client.insert_unique(xxh3_64(client.as_bytes()), key.index, |index| {
            buffers.at(*index).map_or(0, |(_, buffer)| xxh3_64(buffer.client.as_str().as_bytes()))
        });
        Some(key)
    }

    fn drop_buffer(&mut self, key: Key) {
        let Some(buffer) = self.buffers.remove(key) else { return };
        self.bytes -= BUFFER_OVERHEAD_BYTES;
        let hash = xxh3_64(buffer.client.as_str().as_bytes());
        if let Ok(found) = self.by_client.find_entry(hash, |index| *index == key.index) {
            found.remove();
        }
        for message in &buffer.messages {
            self.forget_message(message.sender, cost(message));
        }
    }

    fn forget_message(&mut self, sender: u64, bytes: usize) {
        self.bytes -= bytes;
        self.messages -= 1;
        if let Some(kept) = self.by_sender.get_mut(&sender) {
            *kept = kept.saturating_sub(bytes);
            if *kept == 0 {
                self.by_sender.remove(&sender);
            }
        }
    }

    fn drop_if_over(&mut self, key: Key, now_ms: u64) {
        let is_over = self.buffers.get(key).is_some_and(|buffer| buffer.is_over(now_ms));
        if is_over {
            self.drop_buffer(key);
        }
    }
}

fn cost(message: &Kept) -> usize {
    message.body.len() + MESSAGE_OVERHEAD_BYTES
}

impl Store for LocalStore {
    fn claim(&mut self, client: &ClientId) -> Poll<Claimed> {
        let Some(buffer) = self.find(client.as_str()).and_then(|key| self.buffers.get_mut(key)) else {
            return Poll::Ready(Claimed::default());
        };
        buffer.is_claimed = true;
        Poll::Ready(Claimed {
            last_offset: buffer.last_offset,
            lost_offset: buffer.lost_offset,
            has_messages: !buffer.messages.is_empty(),
        })
    }

    fn release(&mut self, client: &ClientId, last_offset: u64, now_ms: u64) {
        // An offset that the clock has passed is never given again: nothing need be remembered of it.
        let key = match self.find(client.as_str()) {
            None if last_offset < offset::at(now_ms) => return,
            None => self.find_or_make(client.as_str()),
            found => found,
        };
        let Some(key) = key else { return };
        if let Some(buffer) = self.buffers.get_mut(key) {
            buffer.is_claimed = false;
            buffer.last_offset = buffer.last_offset.max(last_offset);
        }
        self.drop_if_over(key, now_ms);
    }

    fn append_all(&mut self, client: &ClientId, messages: Vec<Kept>, now_ms: u64) -> Poll<()> {
        for message in &messages {
            let _ = self.append(client, message, Room::Owed, now_ms);
        }
        Poll::Ready(())
    }

    fn append(&mut self, client: &ClientId, message: &Kept, room: Room, now_ms: u64) -> Poll<Appended> {
        let (client, mut message) = (client.as_str(), message.clone());
        let bytes = cost(&message);
        if room == Room::IfFree && self.bytes.saturating_add(bytes) > self.limits.total_bytes {
            return Poll::Ready(Appended::Refused(BufferFull::Node));
        }
        let of_sender = self.by_sender.get(&message.sender).copied().unwrap_or(0);
        if room == Room::IfFree && of_sender.saturating_add(bytes) > self.limits.sender_bytes {
            return Poll::Ready(Appended::Refused(BufferFull::Sender));
        }
        let Some(key) = self.find_or_make(client) else {
            return Poll::Ready(Appended::Refused(BufferFull::Recipient));
        };
        let Some(buffer) = self.buffers.get_mut(key) else {
            return Poll::Ready(Appended::Refused(BufferFull::Recipient));
        };
        if room == Room::IfFree {
            if buffer.messages.iter().rev().any(|kept| kept.identity == message.identity) {
                return Poll::Ready(Appended::Repeated);
            }
            if buffer.messages.len() >= self.limits.recipient_messages
                || buffer.bytes.saturating_add(bytes) > self.limits.recipient_bytes
            {
                self.drop_if_over(key, now_ms);
                return Poll::Ready(Appended::Refused(BufferFull::Recipient));
            }
        }
        if message.offset == 0 {
            message.offset = next_offset(buffer.last_offset, now_ms);
        }
        debug_assert!(buffer.messages.back().is_none_or(|last| last.offset < message.offset), "appended out of order");
        buffer.last_offset = buffer.last_offset.max(message.offset);
        buffer.bytes += bytes;
        *self.by_sender.entry(message.sender).or_insert(0) += bytes;
        buffer.messages.push_back(message);
        self.bytes += bytes;
        self.messages += 1;
        Poll::Ready(Appended::Kept)
    }

    fn page(&mut self, client: &ClientId, offset: u64, bytes_max: usize) -> Poll<Vec<Kept>> {
        let Some(buffer) = self.find(client.as_str()).and_then(|key| self.buffers.get(key)) else {
            return Poll::Ready(Vec::new());
        };
        let first = buffer.messages.partition_point(|message| message.offset <= offset);
        let mut bytes = 0;
        let page = buffer.messages.range(first..).take_while(|message| {
            let fits = bytes < bytes_max;
            bytes += cost(message);
            fits
        });
        Poll::Ready(page.cloned().collect())
    }

    fn trim(&mut self, client: &ClientId, offset: u64) {
        let Some(key) = self.find(client.as_str()) else { return };
        while let Some(buffer) = self.buffers.get_mut(key)
            && buffer.messages.front().is_some_and(|message| message.offset <= offset)
            && let Some(message) = buffer.messages.pop_front()
        {
            buffer.bytes -= cost(&message);
            self.forget_message(message.sender, cost(&message));
        }
    }

    fn remove(&mut self, client: &ClientId, offset: u64) {
        let Some(key) = self.find(client.as_str()) else { return };
        let Some(buffer) = self.buffers.get_mut(key) else { return };
        let Ok(at) = buffer.messages.binary_search_by_key(&offset, |message| message.offset) else { return };
        if let Some(message) = buffer.messages.remove(at) {
            buffer.bytes -= cost(&message);
            self.forget_message(message.sender, cost(&message));
        }
    }
}
