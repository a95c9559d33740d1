//! The rules of the store in plain words: what a request does to one client's session and replay buffer, with no server
//! behind it. The scripts for Redis are compared with it, and the simulation of several nodes runs on it. It never
//! forgets a client by itself.
//!
//! Every request may arrive twice in a row: the second time changes nothing and is answered alike.

use std::collections::{BTreeMap, HashMap};

use ring::NodeId;

use super::bounds::{
    BufferLimits, EXPIRED_PER_APPEND_MAX, NUMBER_MAX, OFFSETS_RESERVED_MIN, REPEAT_WINDOW, UNRELEASED_MAX, cost,
};
use super::request::{Author, ClaimKind, StoreAnswer, StoreRequest};
use super::{BufferFull, Kept, Room};
use crate::bus::Holder;
use crate::protocol::ClientId;
use crate::shard::offset::next_offset;

/// Sessions and replay buffers of all clients.
pub struct ModelStore {
    limits: BufferLimits,
    clients: HashMap<ClientId, Client>,
    expired: u64,
}

#[derive(Default)]
struct Client {
    holder: Option<Holder>,
    /// Who held it before and has not released it yet, latest last.
    unreleased: Vec<Holder>,
    /// The highest generation so far: a release does not lower it.
    generation: u64,
    /// What the claim that stands had asked for.
    asked: Asked,
    /// Up to where the holder may issue offsets; 0 when nobody holds.
    ceiling: u64,
    /// Offsets up to here may have been given away by others than the holder.
    last_offset: u64,
    /// The highest offset ever kept.
    kept_offset: u64,
    /// The highest offset dropped by age.
    lost_offset: u64,
    /// Up to here the holder has acknowledged, by its own word.
    trimmed_offset: u64,
    messages: BTreeMap<u64, Kept>,
    bytes: usize,
}

#[derive(Default, Clone, Copy)]
struct Asked {
    generation: u64,
    ceiling: u64,
    is_known: bool,
}

/// One life of one node, asking.
#[derive(Clone, Copy)]
struct Caller<'a> {
    node: &'a NodeId,
    incarnation: u64,
}

impl Caller<'_> {
    fn is(self, holder: &Holder) -> bool {
        holder.node == *self.node && holder.incarnation == self.incarnation
    }

    /// True for a life of the same node that this one has replaced, too.
    fn is_or_succeeds(self, holder: &Holder) -> bool {
        holder.node == *self.node && holder.incarnation <= self.incarnation
    }
}

impl ModelStore {
    /// An empty store.
    pub fn new(limits: BufferLimits) -> Self {
        Self { limits, clients: HashMap::new(), expired: 0 }
    }

    /// Does what `request` of this life of `node` asks for.
    pub fn apply(&mut self, node: &NodeId, incarnation: u64, request: &StoreRequest, now_ms: u64) -> StoreAnswer {
        let caller = Caller { node, incarnation };
        let is_known = self.clients.get(request.client()).is_some_and(Client::is_known);
        let creates =
            matches!(request, StoreRequest::Claim { .. } | StoreRequest::Release { .. } | StoreRequest::Append { .. });
        if !is_known && !creates {
            return if matches!(request, StoreRequest::Page { .. }) {
                StoreAnswer::Page(Vec::new())
            } else {
                StoreAnswer::Done
            };
        }
        let client = self.clients.entry(request.client().clone()).or_default();
        match request {
            StoreRequest::Claim { generation, kind, ceiling, .. } => {
                client.claim(caller, *generation, *kind, *ceiling, is_known)
            }
            StoreRequest::Release { generation, last_offset, .. } => {
                client.release(caller, *generation, *last_offset);
                StoreAnswer::Done
            }
            StoreRequest::Append { author, messages, room, .. } => {
                if let Some(holder) = client.bars(caller, author) {
                    return StoreAnswer::Elsewhere(holder);
                }
                self.expired += client.expire_front(now_ms);
                client.append(caller, author, messages, *room, self.limits, now_ms)
            }
            StoreRequest::Page { after, bytes_max, .. } => {
                let (page, expired) = client.page(*after, *bytes_max, now_ms);
                self.expired += expired;
                StoreAnswer::Page(page)
            }
            StoreRequest::Trim { generation, offset, .. } => {
                if client.is_held_by(caller, *generation) {
                    client.trimmed_offset = client.trimmed_offset.max(*offset);
                    while let Some(entry) = client.messages.first_entry()
                        && *entry.key() <= *offset
                    {
                        client.bytes -= cost(entry.get());
                        entry.remove();
                    }
                }
                StoreAnswer::Done
            }
            StoreRequest::Remove { generation, offset, .. } => {
                if client.is_held_by(caller, *generation) {
                    client.drop_message(*offset);
                }
                StoreAnswer::Done
            }
        }
    }

    /// Drops every message that is too old and returns how many those were.
    pub fn sweep(&mut self, now_ms: u64) -> u64 {
        let expired = self.clients.values_mut().map(|client| client.expire_all(now_ms)).sum();
        self.expired += expired;
        expired
    }

    /// Drops what is too old of one client's, and returns how many messages that were.
    pub fn sweep_one(&mut self, client: &ClientId, now_ms: u64) -> u64 {
        let expired = self.clients.get_mut(client).map_or(0, |client| client.expire_all(now_ms));
        self.expired += expired;
        expired
    }

    /// How many messages were dropped by age, in all.
    pub fn expired(&self) -> u64 {
        self.expired
    }

    /// What is kept for `client`, oldest first.
    pub fn kept(&self, client: &ClientId) -> impl Iterator<Item = &Kept> {
        self.clients.get(client).into_iter().flat_map(|client| client.messages.values())
    }

    /// Who holds `client`.
    pub fn holder(&self, client: &ClientId) -> Option<&Holder> {
        self.clients.get(client).and_then(|client| client.holder.as_ref())
    }
}

impl Client {
    fn is_known(&self) -> bool {
        self.generation > 0 || self.last_offset > 0
    }

    fn claim(
        &mut self,
        caller: Caller<'_>,
        generation: u64,
        kind: ClaimKind,
        ceiling: u64,
        is_known: bool,
    ) -> StoreAnswer {
        let is_mine = self.holder.as_ref().is_some_and(|holder| caller.is(holder));
        let is_asked_again = is_mine && self.asked.generation == generation;
        match kind {
            ClaimKind::Fresh if is_asked_again => {}
            ClaimKind::Again if is_asked_again || (is_mine && self.generation == generation) => {
                if self.asked.ceiling != ceiling {
                    // A renewal: the take-over is long over.
                    self.unreleased.clear();
                    self.asked = Asked { generation, ceiling, is_known: true };
                }
            }
            ClaimKind::Again if self.holder.is_some() && self.generation >= generation => {
                let holder = self.holder.clone();
                return holder.map_or(StoreAnswer::Done, StoreAnswer::Elsewhere);
            }
            ClaimKind::Fresh | ClaimKind::Again => {
                if let Some(holder) = self.holder.take() {
                    // Whoever held it may have issued all that it had reserved.
                    self.last_offset = self.last_offset.max(self.ceiling);
                    if !is_mine {
                        self.unreleased.push(holder);
                        if self.unreleased.len() > UNRELEASED_MAX {
                            self.unreleased.remove(0);
                        }
                    }
                }
                self.generation = generation.max(self.generation + 1).min(NUMBER_MAX);
                self.asked = Asked { generation, ceiling, is_known };
                self.trimmed_offset = 0;
                self.holder = Some(Holder {
                    node: caller.node.clone(),
                    incarnation: caller.incarnation,
                    generation: self.generation,
                });
            }
        }
        self.ceiling =
            self.ceiling.max(ceiling).max(self.last_offset.saturating_add(OFFSETS_RESERVED_MIN)).min(NUMBER_MAX);
        StoreAnswer::Claimed {
            generation: self.generation,
            unreleased: self.unreleased.iter().filter(|holder| !caller.is(holder)).cloned().collect(),
            last_offset: self.last_offset,
            lost_offset: self.lost_offset,
            is_known: self.asked.is_known,
            has_messages: !self.messages.is_empty(),
        }
    }

    fn release(&mut self, caller: Caller<'_>, generation: u64, last_offset: u64) {
        self.unreleased.retain(|previous| !(caller.is(previous) && previous.generation <= generation));
        if self.is_held_by(caller, generation) {
            self.holder = None;
            self.ceiling = 0;
            self.unreleased.clear();
        }
        if self.holder.is_none() {
            self.generation = self.generation.max(generation);
            self.last_offset = self.last_offset.max(last_offset);
        }
    }

    /// True when this login holds the client, under the generation it has or the one it had asked for.
    fn is_held_by(&self, caller: Caller<'_>, generation: u64) -> bool {
        self.holder.as_ref().is_some_and(|holder| caller.is(holder))
            && (self.generation == generation || self.asked.generation == generation)
    }

    /// Who stands against an append by `author`.
    fn bars(&self, caller: Caller<'_>, author: &Author) -> Option<Holder> {
        let holder = self.holder.as_ref()?;
        let may = match author {
            Author::Holder { generation } => {
                (caller.is(holder) && (self.generation <= *generation || self.asked.generation == *generation))
                    || self.unreleased.iter().any(|held| caller.is(held) && held.generation >= *generation)
            }
            Author::Other { past } => {
                caller.is_or_succeeds(holder)
                    || past.as_ref().is_some_and(|(node, life)| holder.node == *node && holder.incarnation == *life)
            }
            Author::Anyone => true,
        };
        (!may).then(|| holder.clone())
    }

    fn append(
        &mut self,
        caller: Caller<'_>,
        author: &Author,
        messages: &[Kept],
        room: Room,
        limits: BufferLimits,
        now_ms: u64,
    ) -> StoreAnswer {
        let is_mine = self.holder.as_ref().is_some_and(|holder| caller.is(holder));
        let window = self.messages.values().rev().take(REPEAT_WINDOW + messages.len());
        let mut seen: HashMap<u64, u64> = HashMap::new();
        for message in window {
            seen.entry(message.identity).or_insert(message.offset);
        }
        let mut kept_offset = self.kept_offset;
        // Invariant: kept_offset <= last_offset.
        let mut last_offset = self.last_offset.max(if is_mine { 0 } else { self.ceiling });
        let mut answer = self.kept_offset;
        let mut new: Vec<Kept> = Vec::new();
        // Of a login that others have followed meanwhile, to whom it was not known any more: they may be past its offsets.
        let is_late =
            self.holder.is_none() && matches!(author, Author::Holder { generation } if *generation < self.generation);
        for message in messages {
            let is_given = message.offset != 0 && !is_late;
            let is_below = is_given && message.offset <= kept_offset;
            if is_below {
                // Another message may stand there: one that was given too low a place before.
                let is_here = self.messages.get(&message.offset).is_some_and(|kept| kept.identity == message.identity);
                let is_over = matches!(author, Author::Holder { generation } if self.is_held_by(caller, *generation))
                    && message.offset <= self.trimmed_offset;
                if is_here || is_over {
                    answer = message.offset;
                    continue;
                }
            }
            if (!is_given || is_below || room == Room::IfFree)
                && let Some(offset) = seen.get(&message.identity)
            {
                answer = *offset;
                continue;
            }
            // One that was given too late gets its place behind what came before it.
            let offset =
                if is_given && !is_below { message.offset } else { next_offset(last_offset.max(kept_offset), now_ms) };
            answer = offset;
            // All offsets that there are have been given away.
            if offset > NUMBER_MAX || offset <= kept_offset {
                return StoreAnswer::Refused(BufferFull::Recipient);
            }
            kept_offset = offset;
            last_offset = last_offset.max(offset);
            seen.insert(message.identity, offset);
            new.push(Kept { offset, ..message.clone() });
        }
        let bytes: usize = new.iter().map(cost).sum();
        if room == Room::IfFree
            && !new.is_empty()
            && (self.messages.len() + new.len() > limits.recipient_messages
                || self.bytes + bytes > limits.recipient_bytes)
        {
            return StoreAnswer::Refused(BufferFull::Recipient);
        }
        self.kept_offset = kept_offset;
        self.last_offset = self.last_offset.max(kept_offset);
        self.bytes += bytes;
        self.messages.extend(new.into_iter().map(|kept| (kept.offset, kept)));
        StoreAnswer::Appended { last_offset: answer }
    }

    fn page(&mut self, after: u64, bytes_max: usize, now_ms: u64) -> (Vec<Kept>, u64) {
        let (mut page, mut expired, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (offset, message) in self.messages.range(after.saturating_add(1)..) {
            if message.expires_ms <= now_ms {
                expired.push(*offset);
                continue;
            }
            if !page.is_empty() && bytes >= bytes_max {
                break;
            }
            bytes += cost(message);
            page.push(message.clone());
        }
        (page, self.drop_expired(&expired))
    }

    fn expire_front(&mut self, now_ms: u64) -> u64 {
        let front = self.messages.values().take(EXPIRED_PER_APPEND_MAX);
        let expired: Vec<u64> =
            front.take_while(|message| message.expires_ms <= now_ms).map(|message| message.offset).collect();
        self.drop_expired(&expired)
    }

    fn expire_all(&mut self, now_ms: u64) -> u64 {
        let expired: Vec<u64> =
            self.messages.values().filter(|message| message.expires_ms <= now_ms).map(|kept| kept.offset).collect();
        self.drop_expired(&expired)
    }

    fn drop_expired(&mut self, offsets: &[u64]) -> u64 {
        for offset in offsets {
            self.drop_message(*offset);
            self.lost_offset = self.lost_offset.max(*offset);
        }
        offsets.len() as u64
    }

    fn drop_message(&mut self, offset: u64) {
        if let Some(message) = self.messages.remove(&offset) {
            self.bytes -= cost(&message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    struct Bench {
        store: ModelStore,
        client: ClientId,
        nodes: [NodeId; 2],
    }

    impl Bench {
        fn new() -> Self {
            Self {
                store: ModelStore::new(BufferLimits { recipient_bytes: 10_000, recipient_messages: 4 }),
                client: ClientId::try_from("b").unwrap(),
                nodes: [NodeId::new("n0").unwrap(), NodeId::new("n1").unwrap()],
            }
        }

        /// Applies it twice, and insists on the same answer.
        fn ask(&mut self, node: usize, request: &StoreRequest) -> StoreAnswer {
            let first = self.store.apply(&self.nodes[node], 7, request, NOW);
            assert_eq!(self.store.apply(&self.nodes[node], 7, request, NOW), first, "{request:?}");
            first
        }

        fn claim(&mut self, node: usize, generation: u64, kind: ClaimKind, ceiling: u64) -> StoreAnswer {
            let client = self.client.clone();
            self.ask(node, &StoreRequest::Claim { client, generation, kind, ceiling })
        }

        fn append(&mut self, node: usize, author: Author, room: Room, messages: &[(u64, u64)]) -> StoreAnswer {
            let messages = messages
                .iter()
                .map(|(offset, identity)| Kept {
                    offset: *offset,
                    identity: *identity,
                    sender: 1,
                    ts_ms: NOW,
                    expires_ms: NOW + 1000,
                    body: (*b"{").into(),
                })
                .collect();
            let client = self.client.clone();
            self.ask(node, &StoreRequest::Append { client, author, messages, room })
        }

        fn offsets(&self) -> Vec<u64> {
            self.store.kept(&self.client).map(|kept| kept.offset).collect()
        }
    }

    fn claimed(answer: StoreAnswer) -> (u64, Vec<Holder>, u64, bool) {
        match answer {
            StoreAnswer::Claimed { generation, unreleased, last_offset, is_known, .. } => {
                (generation, unreleased, last_offset, is_known)
            }
            other => panic!("not claimed: {other:?}"),
        }
    }

    #[test]
    fn a_new_login_wins_above_all_that_the_old_one_had_reserved() {
        let mut bench = Bench::new();
        assert_eq!(claimed(bench.claim(0, 5, ClaimKind::Fresh, 100_000)), (5, vec![], 0, false));
        let previous = Holder { node: bench.nodes[0].clone(), incarnation: 7, generation: 5 };
        assert_eq!(claimed(bench.claim(1, 3, ClaimKind::Fresh, 110_000)), (6, vec![previous], 100_000, true));
        let holder = Holder { node: bench.nodes[1].clone(), incarnation: 7, generation: 6 };
        assert_eq!(bench.claim(0, 5, ClaimKind::Again, 200_000), StoreAnswer::Elsewhere(holder));
        // A renewal raises nothing, and the take-over is over.
        assert_eq!(claimed(bench.claim(1, 6, ClaimKind::Again, 120_000)), (6, vec![], 100_000, true));
    }

    #[test]
    fn a_release_leaves_the_true_last_offset() {
        let mut bench = Bench::new();
        bench.claim(0, 5, ClaimKind::Fresh, 1000);
        let client = bench.client.clone();
        bench.ask(0, &StoreRequest::Release { client, generation: 5, last_offset: 40 });
        assert_eq!(claimed(bench.claim(1, 5, ClaimKind::Fresh, 1100)), (6, vec![], 40, true));
    }

    #[test]
    fn an_append_is_barred_by_a_live_holder_elsewhere_and_kept_once() {
        let mut bench = Bench::new();
        bench.claim(0, 5, ClaimKind::Fresh, 1000);
        let other = Author::Other { past: None };
        assert!(matches!(bench.append(1, other.clone(), Room::IfFree, &[(0, 1)]), StoreAnswer::Elsewhere(_)));
        let past = Author::Other { past: Some((bench.nodes[0].clone(), 7)) };
        let offset = NOW << 12;
        assert_eq!(
            bench.append(1, past, Room::IfFree, &[(0, 1), (0, 2)]),
            StoreAnswer::Appended { last_offset: offset + 1 }
        );
        assert_eq!(
            bench.append(0, Author::Holder { generation: 5 }, Room::Owed, &[(offset + 1, 2), (offset + 3, 3)]),
            StoreAnswer::Appended { last_offset: offset + 3 }
        );
        // One that comes too late gets the next place.
        assert_eq!(
            bench.append(0, Author::Holder { generation: 5 }, Room::Owed, &[(offset + 2, 4)]),
            StoreAnswer::Appended { last_offset: offset + 4 }
        );
        // So does one whose place the store has given to another meanwhile.
        let holder = Author::Holder { generation: 5 };
        assert_eq!(
            bench.append(0, holder, Room::Owed, &[(offset + 4, 5)]),
            StoreAnswer::Appended { last_offset: offset + 5 }
        );
        assert_eq!(
            bench.append(0, other, Room::IfFree, &[(0, 6), (0, 7)]),
            StoreAnswer::Refused(BufferFull::Recipient)
        );
        assert_eq!(bench.offsets(), [offset, offset + 1, offset + 3, offset + 4, offset + 5]);
    }
}
