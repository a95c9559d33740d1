//! The order of what one sender gives different nodes for one recipient. A client that has come from another node may
//! have left messages there that stand in this node's topic, confirmed and not read yet. So the first that it sends from
//! here to a recipient writes a mark behind them, into this node's own topic, and waits until that is read.
//!
//! What it had not heard to be accepted a client sends again, ahead of anything new, so nothing else need be waited for.

use hashbrown::HashMap;
use xxhash_rust::xxh3::Xxh3Builder;

use crate::bus::{Address, Lane, Parcel, Record};
use crate::shard::slab::Key;

use super::claim::Claim;
use super::dispatcher::Dispatcher;
use super::waiting::{Queue, Why, pair};

/// What is remembered in each half of a memory. A pair whose mark was forgotten is marked again.
const REMEMBERED_MAX: usize = 200_000;
/// How long it is remembered at least. A client that came longer ago has had its claim renewed, and is not asked about;
/// and a path is forgotten that has not been used for so long.
const MEMORY_MS: u64 = 60_000;
/// Of one sender's messages for one recipient, nodes that had them sent on from here; of more the oldest is forgotten.
const SENT_ON_MAX: usize = 8;
/// Marks that may be on their way. Beyond that messages go on without, and count as fences that were given up.
const MARKS_MAX: usize = 100_000;

struct Mark {
    pair: u64,
    // The sender's login for which it was written.
    login: u64,
    since_ms: u64,
}

/// What is forgotten some time after it was last noted.
struct Memory<T> {
    younger: HashMap<u64, T, Xxh3Builder>,
    older: HashMap<u64, T, Xxh3Builder>,
    turned_ms: u64,
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self { younger: HashMap::default(), older: HashMap::default(), turned_ms: 0 }
    }
}

impl<T> Memory<T> {
    fn get(&self, key: u64) -> Option<&T> {
        self.younger.get(&key).or_else(|| self.older.get(&key))
    }

    fn note(&mut self, key: u64, value: T, now_ms: u64) {
        if now_ms.saturating_sub(self.turned_ms) >= MEMORY_MS || self.younger.len() >= REMEMBERED_MAX {
            std::mem::swap(&mut self.younger, &mut self.older);
            self.younger.clear();
            self.turned_ms = now_ms;
        }
        self.younger.insert(key, value);
    }
}

/// One shard's marks.
#[derive(Default)]
pub(super) struct Crossings {
    // By pair: the newest login of its sender whose mark was read.
    read: Memory<u64>,
    // By sender and recipient: sources whose messages were sent on from here though another node had accepted them.
    sent_on: Memory<Vec<u64>>,
    marks: HashMap<u64, Mark, Xxh3Builder>,
    by_pair: HashMap<u64, u64, Xxh3Builder>,
}

/// What the next message of a pair has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crossing {
    Go,
    Wait(u64),
    Mark,
    /// No mark can be written any more: go, without one.
    Full,
}

impl Crossings {
    fn next(&self, pair: u64, login: u64) -> Crossing {
        if self.read.get(pair).is_some_and(|read| *read >= login) {
            return Crossing::Go;
        }
        let under_way =
            self.by_pair.get(&pair).filter(|id| self.marks.get(*id).is_some_and(|mark| mark.login >= login));
        match under_way {
            Some(id) => Crossing::Wait(*id),
            None if self.marks.len() >= MARKS_MAX => Crossing::Full,
            None => Crossing::Mark,
        }
    }

    fn add(&mut self, id: u64, pair: u64, login: u64, now_ms: u64) {
        self.marks.insert(id, Mark { pair, login, since_ms: now_ms });
        if let Some(earlier) = self.by_pair.insert(pair, id) {
            self.marks.remove(&earlier);
        }
    }

    /// A mark has been read, or is given up. False if nobody waits for it.
    pub fn on_read(&mut self, id: u64, now_ms: u64) -> bool {
        let Some(Mark { pair, login, .. }) = self.marks.remove(&id) else { return false };
        self.by_pair.remove(&pair);
        self.read.note(pair, login, now_ms);
        true
    }

    /// A message of `sender` that came from elsewhere is sent on.
    pub fn note_sent_on(&mut self, sender: u64, hash: u64, source: u64, now_ms: u64) {
        let key = pair(sender, hash);
        // The usual case, and every message sent on comes by: noted lately, nothing to do.
        if self.sent_on.younger.get(&key).is_some_and(|sources| sources.last() == Some(&source)) {
            return;
        }
        let mut sources = self.sent_on.get(key).cloned().unwrap_or_default();
        sources.retain(|known| *known != source);
        if sources.len() >= SENT_ON_MAX {
            sources.remove(0);
        }
        sources.push(source);
        self.sent_on.note(key, sources, now_ms);
    }

    fn overdue(&self, wait_ms: u64, now_ms: u64) -> Vec<u64> {
        let is_overdue = |mark: &Mark| now_ms.saturating_sub(mark.since_ms) >= wait_ms;
        self.marks.iter().filter(|(_, mark)| is_overdue(mark)).map(|(id, _)| *id).collect()
    }
}

impl Dispatcher {
    /// The login of a session's client, if it may have come from another node just now; else 0.
    pub fn came_with(&self, key: Key) -> u64 {
        match self.sessions.get(key) {
            Some(session) if session.has_come() => self.claim(key).map_or(0, |claim: &Claim| claim.generation),
            _ => 0,
        }
    }

    /// What keeps a message that was accepted here, of a sender that came with `login`, behind those that the sender
    /// gave other nodes. `own_queues` of the sender's for this recipient do not count.
    ///
    /// Only what was accepted here waits for what came from elsewhere, never the other way round: so no two wait for
    /// each other.
    pub(super) fn crossing(&mut self, sender: u64, to: &str, hash: u64, login: u64, own_queues: u32) -> Option<Why> {
        if login != 0 {
            let pair = pair(self.source(sender, &[]), hash);
            match self.crossings.next(pair, login) {
                Crossing::Go => {}
                Crossing::Full => self.counters.fences_given_up.add(1),
                Crossing::Wait(id) => return Some(Why::Fence(id)),
                Crossing::Mark => {
                    let id = self.paths.name_fence();
                    self.crossings.add(id, pair, login, self.now.steady_ms);
                    self.counters.fences.add(1);
                    self.out.parcels.push_back(Box::new(Parcel {
                        to: self.me.node.clone(),
                        lane: Lane::Partition(self.paths.lane_of(hash)),
                        origin: self.me.clone(),
                        record: Record::Fence { id, hash, pair, trail: vec![self.mark] },
                        ticket: None,
                    }));
                    return Some(Why::Fence(id));
                }
            }
        }
        if self.waiting.queues_of(sender, hash) > own_queues {
            return Some(Why::Others);
        }
        if login == 0 {
            return None;
        }
        // Some of it may have been sent on from here, and be on its way back.
        let is_here = self.find_session(hash, to).is_some();
        let target = if is_here { None } else { self.target(to, hash, false, None) };
        let sources = self.crossings.sent_on.get(pair(sender, hash))?.clone();
        sources.into_iter().find_map(|source| self.way(source, hash, target.as_ref()))
    }

    /// The same for a message that another node has sent: it waits behind the sender's other queues that came before it,
    /// as `number`, and wait for the store, a login or room. Not behind those that wait for a fence: that may stand
    /// behind this very message elsewhere.
    pub(super) fn others_first(&self, sender: u64, hash: u64, number: u64, own_queues: u32) -> Option<Why> {
        if self.waiting.queues_of(sender, hash) <= own_queues {
            return None;
        }
        let is_first = |queue: &Queue| {
            queue.sender == sender
                && queue.hash == hash
                && matches!(queue.why, Why::Store(_) | Why::Login | Why::Room)
                && queue.items.front().is_some_and(|held| held.sent_by.is_some() && held.number < number)
        };
        (!self.waiting.keys(is_first).is_empty()).then_some(Why::Others)
    }

    /// A mark of this node's own has been read: all that stood before it has been, too.
    pub(super) fn on_mark(&mut self, sent_by: &Address, id: u64) {
        let is_mine = sent_by.incarnation == self.me.incarnation && sent_by.shard == self.me.shard;
        if is_mine && self.crossings.on_read(id, self.now.steady_ms) {
            self.on_echo(id);
        }
    }

    /// A mark is not waited for longer than a former holder is.
    pub(super) fn tick_crossings(&mut self) {
        let now_ms = self.now.steady_ms;
        for id in self.crossings.overdue(self.rules.takeover_wait_ms, now_ms) {
            self.counters.fences_given_up.add(1);
            self.crossings.on_read(id, now_ms);
            self.on_echo(id);
        }
    }

    /// Those that waited for a sender's other queues may be next.
    pub(super) fn go_on_after(&mut self, sender: u64, hash: u64) {
        if self.waiting.queues_of(sender, hash) == 0 {
            return;
        }
        let waits = |queue: &Queue| queue.why == Why::Others && queue.sender == sender && queue.hash == hash;
        for key in self.waiting.keys(waits) {
            self.go_on(key);
        }
    }

    /// A client is claimed: it may have come from another node. Or its claim is renewed: it came long ago.
    pub(super) fn note_coming(&mut self, key: Key, has_come: bool) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.note_coming(has_come);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_serves_one_login_and_those_before_it() {
        let mut crossings = Crossings::default();
        assert_eq!(crossings.next(7, 10), Crossing::Mark);
        crossings.add(1, 7, 10, 0);
        assert_eq!((crossings.next(7, 10), crossings.next(7, 9)), (Crossing::Wait(1), Crossing::Wait(1)));
        assert_eq!((crossings.next(7, 11), crossings.next(8, 10)), (Crossing::Mark, Crossing::Mark));
        crossings.add(2, 7, 11, 0);
        assert!(!crossings.on_read(1, 0), "a later one has taken its place");
        assert!(crossings.on_read(2, 0) && !crossings.on_read(2, 0));
        assert_eq!((crossings.next(7, 11), crossings.next(7, 12)), (Crossing::Go, Crossing::Mark));
    }

    #[test]
    fn what_was_read_is_forgotten_in_time_and_what_is_overdue_is_told() {
        let mut crossings = Crossings::default();
        for (id, pair) in [(1, 7), (2, 8), (3, 9)] {
            crossings.add(id, pair, 1, 5);
        }
        assert!(crossings.overdue(10, 14).is_empty());
        assert_eq!(crossings.overdue(10, 15).len(), 3);
        crossings.on_read(1, MEMORY_MS);
        crossings.on_read(2, 2 * MEMORY_MS);
        assert_eq!((crossings.next(7, 1), crossings.next(8, 1)), (Crossing::Go, Crossing::Go));
        crossings.on_read(3, 3 * MEMORY_MS);
        assert_eq!((crossings.next(7, 1), crossings.next(8, 1)), (Crossing::Mark, Crossing::Go));
    }

    #[test]
    fn of_what_was_sent_on_the_latest_sources_are_known_for_a_while() {
        let mut crossings = Crossings::default();
        let known = |crossings: &Crossings| crossings.sent_on.get(pair(7, 1)).cloned();
        for source in (0..=SENT_ON_MAX as u64).chain([3]) {
            crossings.note_sent_on(7, 1, source, 5);
        }
        assert_eq!(known(&crossings), Some(vec![1, 2, 4, 5, 6, 7, 8, 3]));
        crossings.note_sent_on(8, 1, 9, MEMORY_MS + 5);
        assert!(known(&crossings).is_some());
        crossings.note_sent_on(8, 1, 10, 2 * MEMORY_MS + 5);
        assert_eq!(known(&crossings), None);
    }
}
