//! Messages that cannot go on yet: one queue per source and recipient, in the order of their arrival, so that no sender
//! waits behind another. It does not know what they wait for beyond a name for it.

use std::collections::VecDeque;

use hashbrown::hash_map::Entry;
use hashbrown::{HashMap, HashTable};
use xxhash_rust::xxh3::{Xxh3Builder, xxh3_64};

use crate::bus::Address;
use crate::shard::handover::Posted;
use crate::shard::slab::{Key, Slab};

/// A record whose place in order is not settled yet: a hash of the shard that sent it, its pair, and
/// its number among this shard's arrivals.
pub(super) type Placing = (u64, u64, u64);

/// What a queue waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The echo of a fence.
    Fence(u64),
    /// The store's answer about so many messages at the head.
    Store(usize),
    /// The recipient's login here, or the end of its session.
    Login,
    /// Room in the recipient's outbox, while nothing can be given to the store.
    Room,
    /// What the same sender gave other nodes, and they have sent here.
    Others,
}

/// A message in a queue.
#[derive(Debug)]
pub(super) struct Held {
    pub posted: Box<Posted>,
    pub placing: Option<Placing>,
    /// It came to its queue as the so-manieth arrival.
    pub number: u64,
    /// Which node sent it here; none if it was accepted here.
    pub sent_by: Option<Address>,
    /// Since when it waits, in milliseconds of the steady clock.
    pub since_ms: u64,
    /// When it stops being worth delivering, in milliseconds since 1970.
    pub expires_ms: u64,
    /// True when it comes from ahead of the fence that others wait for.
    pub is_ahead: bool,
}

/// The queue of one source's messages for one recipient.
#[derive(Debug)]
pub(super) struct Queue {
    pub client: Box<str>,
    pub hash: u64,
    /// Hash of the sender and the node that accepted its messages.
    pub source: u64,
    /// Hash of the sender.
    pub sender: u64,
    pub items: VecDeque<Box<Held>>,
    pub bytes: usize,
    pub why: Why,
    /// The holder that does not count when the store is asked again.
    pub past: Option<(ring::NodeId, u64)>,
    /// Messages asked about at a time.
    pub batch_max: usize,
    /// How often in a row the store has refused what it must keep.
    pub refusals: u32,
    /// Until then the store is not asked again, in milliseconds of the steady clock.
    pub rests_until_ms: u64,
}

/// All queues of a shard.
#[derive(Default)]
pub(super) struct Waiting {
    queues: Slab<Queue>,
    by_pair: HashTable<u32>,
    // How many there are by sender and recipient, whatever node accepted the messages.
    by_sender: HashMap<u64, u32, Xxh3Builder>,
    bytes: usize,
}

/// Hash of a source and a recipient, by their own hashes.
pub(super) fn pair(source: u64, recipient: u64) -> u64 {
    xxh3_64(&(u128::from(source) << 64 | u128::from(recipient)).to_le_bytes())
}

/// What a message costs beside its payload.
const MESSAGE_OVERHEAD_BYTES: usize = 300;

pub(super) fn cost(posted: &Posted) -> usize {
    posted.payload.len() + MESSAGE_OVERHEAD_BYTES
}

impl Waiting {
    pub fn len(&self) -> usize {
        self.queues.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn find(&self, client: &str, hash: u64, source: u64) -> Option<Key> {
        if self.queues.is_empty() {
            return None;
        }
        let is_it = |index: &u32| {
            self.queues.at(*index).is_some_and(|(_, queue)| queue.source == source && *queue.client == *client)
        };
        let index = *self.by_pair.find(pair(source, hash), is_it)?;
        self.queues.at(index).map(|(key, _)| key)
    }

    pub fn find_or_make(&mut self, client: &str, hash: u64, source: u64, sender: u64, why: Why) -> Key {
        if let Some(key) = self.find(client, hash, source) {
            return key;
        }
        let queue = Queue {
            client: client.into(),
            hash,
            source,
            sender,
            items: VecDeque::new(),
            bytes: 0,
            why,
            past: None,
            batch_max: usize::MAX,
            refusals: 0,
            rests_until_ms: 0,
        };
        let key = self.queues.insert(queue);
        *self.by_sender.entry(pair(sender, hash)).or_insert(0) += 1;
        let queues = &self.queues;
        self.by_pair.insert_unique(pair(source, hash), key.index, |index| {
            queues.at(*index).map_or(0, |(_, queue)| pair(queue.source, queue.hash))
        });
        key
    }

    /// Queues of one sender's messages for one recipient.
    pub fn queues_of(&self, sender: u64, hash: u64) -> u32 {
        if self.queues.is_empty() {
            return 0;
        }
        self.by_sender.get(&pair(sender, hash)).copied().unwrap_or(0)
    }

    /// All queues of one recipient.
    pub fn of_client(&self, client: &str, hash: u64) -> Vec<Key> {
        if self.queues.is_empty() {
            return Vec::new();
        }
        self.keys(|queue| queue.hash == hash && *queue.client == *client)
    }

    pub fn get(&self, key: Key) -> Option<&Queue> {
        self.queues.get(key)
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut Queue> {
        self.queues.get_mut(key)
    }

    pub fn push(&mut self, key: Key, item: Box<Held>) {
        let bytes = cost(&item.posted);
        if let Some(queue) = self.queues.get_mut(key) {
            queue.items.push_back(item);
            queue.bytes += bytes;
            self.bytes += bytes;
        }
    }

    /// Puts a message behind those that are ahead of a fence, and before all that wait for it.
    pub fn push_ahead(&mut self, key: Key, item: Box<Held>) {
        let bytes = cost(&item.posted);
        if let Some(queue) = self.queues.get_mut(key) {
            // The store's answer is for those at the head, by their number.
            let asked = if let Why::Store(count) = queue.why { count } else { 0 };
            let ahead = queue.items.iter().take_while(|held| held.is_ahead).count();
            queue.items.insert(ahead.max(asked).min(queue.items.len()), item);
            queue.bytes += bytes;
            self.bytes += bytes;
        }
    }

    pub fn push_front(&mut self, key: Key, item: Box<Held>) {
        let bytes = cost(&item.posted);
        if let Some(queue) = self.queues.get_mut(key) {
            queue.items.push_front(item);
            queue.bytes += bytes;
            self.bytes += bytes;
        }
    }

    pub fn pop(&mut self, key: Key) -> Option<Box<Held>> {
        let queue = self.queues.get_mut(key)?;
        let item = queue.items.pop_front()?;
        queue.bytes -= cost(&item.posted);
        self.bytes -= cost(&item.posted);
        Some(item)
    }

    /// Takes out the items, from `first` on, for which `is_out` says so.
    pub fn extract(&mut self, key: Key, first: usize, mut is_out: impl FnMut(&Held) -> bool) -> Vec<Held> {
        let Some(queue) = self.queues.get_mut(key) else { return Vec::new() };
        let mut out = Vec::new();
        let mut at = first;
        while at < queue.items.len() {
            if queue.items.get(at).is_some_and(|held| is_out(held))
                && let Some(item) = queue.items.remove(at)
            {
                queue.bytes -= cost(&item.posted);
                self.bytes -= cost(&item.posted);
                out.push(*item);
            } else {
                at += 1;
            }
        }
        out
    }

    /// Drops a queue that is empty; tells its sender and recipient then.
    pub fn drop_empty(&mut self, key: Key) -> Option<(u64, u64)> {
        let queue = self.queues.get(key).filter(|queue| queue.items.is_empty())?;
        let (sender, hash) = (queue.sender, queue.hash);
        if let Ok(found) = self.by_pair.find_entry(pair(queue.source, hash), |index| *index == key.index) {
            found.remove();
        }
        if let Entry::Occupied(mut count) = self.by_sender.entry(pair(sender, hash)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        self.queues.remove(key);
        Some((sender, hash))
    }

    /// The queues for which `is_it` says so.
    pub fn keys(&self, is_it: impl Fn(&Queue) -> bool) -> Vec<Key> {
        let all = (0..self.queues.slots()).filter_map(|index| self.queues.at(u32::try_from(index).ok()?));
        all.filter(|(_, queue)| is_it(queue)).map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::PayloadField;
    use crate::shard::origin::Origin;

    fn held(msg_id: &str) -> Held {
        let posted = Posted {
            msg_id: msg_id.into(),
            from: "a".into(),
            sender: 1,
            to: "b".into(),
            hash: 2,
            field: PayloadField::Payload,
            payload: "1".into(),
            origin: Origin::NOBODY,
            wants_ack: false,
            ts_ms: 0,
            ttl_ms: None,
            hops: 0,
            trail: Vec::new(),
            login: 0,
        };
        let posted = Box::new(posted);
        Held { posted, placing: None, number: 0, sent_by: None, since_ms: 0, expires_ms: 0, is_ahead: false }
    }

    fn ahead(msg_id: &str) -> Held {
        Held { is_ahead: true, ..held(msg_id) }
    }

    fn names(waiting: &mut Waiting, key: Key) -> Vec<String> {
        std::iter::from_fn(|| waiting.pop(key)).map(|held| held.posted.msg_id.to_string()).collect()
    }

    #[test]
    fn what_is_ahead_of_a_fence_goes_before_what_waits_for_it() {
        let mut waiting = Waiting::default();
        let key = waiting.find_or_make("b", 2, 1, 1, Why::Fence(7));
        waiting.push(key, Box::new(held("waits")));
        waiting.push_ahead(key, Box::new(ahead("first")));
        waiting.push_ahead(key, Box::new(ahead("second")));
        assert_eq!(names(&mut waiting, key), ["first", "second", "waits"]);
        assert_eq!(waiting.bytes(), 0);
    }

    #[test]
    fn nothing_goes_before_what_the_store_was_asked_about() {
        let mut waiting = Waiting::default();
        let key = waiting.find_or_make("b", 2, 1, 1, Why::Store(2));
        for name in ["asked", "asked too", "waits"] {
            waiting.push(key, Box::new(held(name)));
        }
        waiting.push_ahead(key, Box::new(ahead("ahead")));
        assert_eq!(names(&mut waiting, key), ["asked", "asked too", "ahead", "waits"]);
    }

    #[test]
    fn sources_do_not_share_a_queue_and_an_empty_one_goes() {
        let mut waiting = Waiting::default();
        let one = waiting.find_or_make("b", 2, 1, 1, Why::Login);
        let other = waiting.find_or_make("b", 2, 3, 1, Why::Login);
        assert_ne!(one, other);
        assert_eq!(waiting.of_client("b", 2).len(), 2);
        waiting.push(one, Box::new(held("m")));
        waiting.drop_empty(one);
        waiting.drop_empty(other);
        assert_eq!((waiting.find("b", 2, 1), waiting.find("b", 2, 3)), (Some(one), None));
    }

    #[test]
    fn a_senders_queues_are_counted_whatever_node_accepted_the_messages() {
        let mut waiting = Waiting::default();
        let one = waiting.find_or_make("b", 2, 1, 7, Why::Login);
        let other = waiting.find_or_make("b", 2, 3, 7, Why::Others);
        waiting.find_or_make("b", 2, 4, 8, Why::Login);
        assert_eq!((waiting.queues_of(7, 2), waiting.queues_of(8, 2), waiting.queues_of(7, 3)), (2, 1, 0));
        assert_eq!((waiting.drop_empty(one), waiting.drop_empty(one)), (Some((7, 2)), None));
        assert_eq!(waiting.queues_of(7, 2), 1);
        waiting.push(other, Box::new(held("m")));
        assert_eq!(waiting.drop_empty(other), None);
    }

    #[test]
    fn what_is_extracted_is_counted_no_more() {
        let mut waiting = Waiting::default();
        let key = waiting.find_or_make("b", 2, 1, 1, Why::Store(1));
        waiting.push(key, Box::new(held("asked")));
        waiting.push(key, Box::new(held("waits")));
        assert_eq!(waiting.extract(key, 1, |_| true).len(), 1);
        assert_eq!(names(&mut waiting, key), ["asked"]);
        assert_eq!(waiting.bytes(), 0);
    }
}
