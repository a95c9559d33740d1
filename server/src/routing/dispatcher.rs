//! The core of a shard: its clients' sessions, and what becomes of each message for a client whose home it is. Pure.
//!
//! A message finds its recipient's session here, or goes to the node where a hint or the ring says it is, or is kept in
//! the store. Whatever must wait first waits in one queue per recipient, so that nothing overtakes anything.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::task::Poll;

use hashbrown::{HashMap, HashTable};
use ring::{NodeId, Ring, RingReader};
use xxhash_rust::xxh3::Xxh3Builder;

use crate::bus::record::node_mark;
use crate::bus::{Address, Holder, Lane, Parcel, Record, RecordRef};
use crate::metrics::Counters;
use crate::protocol::{AckStatus, ClientId, Envelope, ErrorCode, escape};
use crate::shard::answers::Answers;
use crate::shard::handover::Posted;
use crate::shard::origin::{Origin, Sender};
use crate::shard::recent::identity;
use crate::shard::session::{Accepted, Inbound, Right, Session, Start};
use crate::shard::slab::{Key, Round, Slab};
use crate::shard::{Disconnect, SessionLimits};
use crate::store::request::{Author, StoreAnswer, StoreRequest, Ticket, Whom};
use crate::store::{AnyStore, Appended, BufferFull, Room, Store};

use super::login::Claim;
use super::paths::{Passage, Paths};
use super::waiting::{Held, Placing, Waiting, Why, cost, pair};

/// Nodes that may send a message on; then it is kept where it is.
pub(super) const HOPS_MAX: u8 = 3;
/// Marks a message or fence carries.
const TRAIL_MAX: usize = 8;
/// Messages of senders here that may wait for one recipient.
const HELD_MESSAGES_MAX: usize = 1024;
/// Bytes of them.
const HELD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes that may wait in all of a shard's queues before its senders are refused.
const HELD_TOTAL_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Messages given to the store at a time for a recipient without a session here.
const BATCH_MESSAGES_MAX: usize = 64;
/// Bytes of them.
const BATCH_BYTES_MAX: usize = 512 * 1024;
/// A sender hears by then what became of its message, or that nobody knows yet.
pub(super) const UNCONFIRMED_MS: u64 = 30_000;
/// Another node is told once in so long where a recipient is.
const MOVED_AGAIN_MS: u64 = 1_000;
/// Notices remembered for that.
const MOVED_MAX: usize = 100_000;
/// Requests that may wait to be sent to the store before reading pauses.
const REQUESTS_MAX: usize = 16_384;
/// Parcels that may wait to be taken by the bus before reading pauses.
const PARCELS_MAX: usize = 8_192;

/// The time: the wall's, for stamps, and a steady one for waits; both in milliseconds, neither ever steps back.
#[derive(Debug, Clone, Copy, Default)]
pub struct Now {
    /// Milliseconds since 1970.
    pub wall_ms: u64,
    /// Milliseconds since some moment.
    pub steady_ms: u64,
}

/// What a dispatcher is held to.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// What a session is held to.
    pub session: SessionLimits,
    /// Age limit of messages that name no shorter one, in milliseconds.
    pub message_ttl_ms: u64,
    /// How long a login waits for the store before it goes on without.
    pub claim_wait_ms: u64,
    /// How long it waits for the former holder.
    pub takeover_wait_ms: u64,
    /// How far ahead of the clock a claim reserves offsets; it is renewed twice in that time.
    pub ceiling_ms: u64,
    /// Partitions for clients in each node's topic.
    pub lanes: u16,
}

/// What a sender is told of its message: accepted how, or refused why.
pub type Outcome = Result<AckStatus, (ErrorCode, &'static str)>;

/// What is left behind for whoever drives the dispatcher.
#[derive(Default)]
pub struct Output {
    /// For other nodes, in order.
    pub parcels: VecDeque<Box<Parcel>>,
    /// Records that are done with.
    pub finished: Vec<RecordRef>,
    /// Fences whose partition is placed up to them.
    pub passed: Vec<RecordRef>,
    /// Connections, by slot, that have something to write.
    pub wakes: Vec<u32>,
    /// Sessions whose clients are to be welcomed.
    pub welcomes: Vec<(Key, Start)>,
    /// Connections, by slot, that are to be closed.
    pub closes: Vec<(u32, Disconnect)>,
    /// Senders that asked for the same answer twice, and get it once.
    pub asked_twice: Vec<Origin>,
    /// Messages that are not accepted after all: who is told, its name as it stands in JSON, and why.
    pub refusals: Vec<(Origin, Box<str>, ErrorCode, &'static str)>,
}

/// A message as its recipient's home shard gets it.
pub struct Arrival<'a> {
    /// As the recipient's session takes it.
    pub inbound: Inbound<'a>,
    /// The sender's name for it: plain text, as against the envelope's.
    pub msg_id: &'a str,
    /// Who sent it, likewise.
    pub from: &'a str,
    /// Who is to get it, likewise.
    pub to: &'a str,
    /// Hash of who is to get it.
    pub hash: u64,
    /// How many nodes it has been sent on by.
    pub hops: u8,
    /// Their marks.
    pub trail: &'a [u64],
}

/// A fence of another shard that has been read here and not passed yet.
pub(super) struct PassingFence {
    pub placing: Placing,
    pub at: RecordRef,
    /// Hash of the recipient.
    pub hash: u64,
    pub trail: Vec<u64>,
    // A fence of this shard's own, behind what was sent on from ahead of it; known once all of that is placed, and
    // again when what has come back was sent on, too.
    pub further: Option<u64>,
    pub is_further_known: bool,
    // Where that fence went.
    pub followed_to: Option<u16>,
    // What has come back here before this arrival is ahead of it.
    pub returned_before: u64,
}

/// A parcel on its way.
pub(super) struct Produced {
    origin: Origin,
    msg_id: Box<str>,
    placing: Option<Placing>,
}

/// The core of a shard.
pub struct Dispatcher {
    /// Who this is on the bus.
    pub me: Address,
    // In trails.
    mark: u64,
    /// The time of this turn.
    pub now: Now,
    /// What must be said, asked and sent.
    pub out: Output,
    /// Good news for senders.
    pub answers: Answers,
    /// Nodes with a heartbeat, once they are known.
    pub live_nodes: Option<Arc<HashSet<NodeId>>>,
    pub(super) rules: Rules,
    pub(super) started_ms: u64,
    pub(super) counters: Arc<Counters>,
    pub(super) ring: RingReader,
    pub(super) store: AnyStore,
    pub(super) sessions: Slab<Session>,
    pub(super) by_client: HashTable<u32>,
    // By the session's slot; empty on a node that runs alone.
    pub(super) claims: Vec<Claim>,
    // Sessions of earlier logins that have yet to end, beside a newer one of the same client.
    pub(super) parting: Vec<Key>,
    // Sessions whose login is under way.
    pub(super) opening: Vec<Key>,
    pub(super) renewed: Round,
    pub(super) generation: u64,
    pub(super) waiting: Waiting,
    pub(super) paths: Paths,
    pub(super) produced: Slab<Produced>,
    // Parcels with a sender that waits, oldest first.
    pub(super) unconfirmed: VecDeque<(u64, Key)>,
    pub(super) arrivals: u64,
    // Records whose place is not settled.
    pub(super) unplaced: BTreeSet<Placing>,
    // Those of them that had been here before, by pair and number.
    returned: BTreeSet<(u64, u64)>,
    // Fences that wait for them.
    pub(super) fences: Vec<PassingFence>,
    moved: HashMap<(u64, u64), u64, Xxh3Builder>,
    refused: Vec<(Origin, Box<str>, BufferFull)>,
}

impl Dispatcher {
    /// A shard without clients.
    pub fn new(
        me: Address,
        rules: Rules,
        store: AnyStore,
        ring: RingReader,
        counters: Arc<Counters>,
        now: Now,
    ) -> Self {
        Self {
            mark: node_mark(&me.node),
            me,
            now,
            out: Output::default(),
            answers: Answers::default(),
            live_nodes: None,
            rules,
            started_ms: now.wall_ms,
            counters,
            ring,
            store,
            sessions: Slab::default(),
            by_client: HashTable::new(),
            claims: Vec::new(),
            parting: Vec::new(),
            opening: Vec::new(),
            renewed: Round::default(),
            generation: 0,
            waiting: Waiting::default(),
            paths: Paths::new(rules.lanes),
            produced: Slab::default(),
            unconfirmed: VecDeque::new(),
            arrivals: 0,
            unplaced: BTreeSet::new(),
            returned: BTreeSet::new(),
            fences: Vec::new(),
            moved: HashMap::default(),
            refused: Vec::new(),
        }
    }

    /// A client's hash: it names the node by the ring, and the home shard.
    pub fn hash_of(&mut self, client: &str) -> u64 {
        match self.ring.load() {
            Some(ring) => ring.hash(client.as_bytes()),
            None => ring::hash_key(client.as_bytes(), 0),
        }
    }

    /// Version of the ring; 0 without one.
    pub fn ring_version(&mut self) -> u64 {
        self.ring.load().map_or(0, |ring| ring.version().get())
    }

    /// The ring that messages go by.
    pub fn ring(&mut self) -> Option<&Arc<Ring>> {
        self.ring.load()
    }

    /// The sessions.
    pub fn sessions(&self) -> &Slab<Session> {
        &self.sessions
    }

    /// One session.
    pub fn session_mut(&mut self, key: Key) -> Option<&mut Session> {
        self.sessions.get_mut(key)
    }

    /// The store of a node that runs alone.
    pub fn local_store(&mut self) -> Option<&mut crate::store::LocalStore> {
        match &mut self.store {
            AnyStore::Local(store) => Some(store),
            AnyStore::Remote(_) => None,
        }
    }

    /// What is to be asked of a store that is elsewhere, in order.
    pub fn requests(&mut self) -> Option<&mut VecDeque<(Ticket, StoreRequest)>> {
        match &mut self.store {
            AnyStore::Local(_) => None,
            AnyStore::Remote(remote) => Some(&mut remote.requests),
        }
    }

    /// True when so much waits to be sent that nothing more should be taken in.
    pub fn is_congested(&self) -> bool {
        let requests = match &self.store {
            AnyStore::Local(_) => 0,
            AnyStore::Remote(remote) => remote.requests.len(),
        };
        requests >= REQUESTS_MAX || self.out.parcels.len() >= PARCELS_MAX
    }

    /// True when nothing is on its way to the store or to the bus, and no session is left.
    pub fn is_settled(&self) -> bool {
        self.store.is_local()
            || (self.sessions.is_empty()
                && self.produced.is_empty()
                && self.out.parcels.is_empty()
                && self.out.finished.is_empty()
                && !self.is_asking())
    }

    fn is_asking(&self) -> bool {
        matches!(&self.store, AnyStore::Remote(remote) if !remote.requests.is_empty())
    }

    /// The session of a client that is logged in here.
    pub fn find_session(&self, hash: u64, client: &str) -> Option<Key> {
        let is_it = |index: &u32| self.sessions.at(*index).is_some_and(|(_, session)| session.id().as_str() == client);
        let index = *self.by_client.find(hash, is_it)?;
        self.sessions.at(index).map(|(key, _)| key)
    }

    /// The other node that owns a session's client by the ring.
    pub fn owner_elsewhere(&mut self, key: Key) -> Option<NodeId> {
        let hash = self.sessions.get(key)?.hash();
        self.owner_of(hash)
    }

    /// The other node that owns clients with this hash by the ring.
    pub fn owner_of(&mut self, hash: u64) -> Option<NodeId> {
        let ring = self.ring.load()?;
        let owner = ring.weights().node(ring.owner_of_hash(hash));
        (*owner != self.me.node).then(|| owner.clone())
    }

    /// When a message that was accepted then stops being worth delivering.
    pub fn expiry(&self, ts_ms: u64, ttl_ms: Option<u64>) -> u64 {
        let ttl_ms = ttl_ms.unwrap_or(u64::MAX).min(self.rules.message_ttl_ms);
        ts_ms.saturating_add(ttl_ms)
    }

    /// A message for a client whose home is here. What becomes of it, unless that is still open.
    pub fn deliver(&mut self, arrival: &Arrival<'_>) -> Option<Outcome> {
        self.deliver_from(arrival, None)
    }

    pub(super) fn deliver_from(&mut self, arrival: &Arrival<'_>, sent_by: Option<&Address>) -> Option<Outcome> {
        let to = arrival.to;
        // What has been here before is ahead of any fence that was written since.
        let is_ahead = arrival.trail.contains(&self.mark);
        let source = self.source(arrival.inbound.sender, arrival.trail);
        if let Some(queue) = self.waiting.find(to, arrival.hash, source) {
            if is_ahead {
                let outcome = self.hold_in(queue, arrival, sent_by, true);
                self.go_on(queue);
                return outcome;
            }
            return self.hold(queue, arrival, sent_by);
        }
        if let Some(key) = self.find_session(arrival.hash, to) {
            if let Some(why) = self.obstacle(key, source, arrival.hash, is_ahead) {
                let queue = self.waiting.find_or_make(to, arrival.hash, source, why);
                return self.hold_in(queue, arrival, sent_by, is_ahead);
            }
            let accepted = self.accept(key, &arrival.inbound);
            if accepted == Accepted::NoRoom && arrival.inbound.origin.is_record() {
                let queue = self.waiting.find_or_make(to, arrival.hash, source, Why::Room);
                return self.hold_in(queue, arrival, sent_by, is_ahead);
            }
            return self.outcome_of(accepted, &arrival.inbound);
        }
        if let AnyStore::Local(store) = &mut self.store {
            let accepted = match ClientId::try_from(to) {
                Ok(client) => match store.append(&client, &arrival.inbound.keep(0), Room::IfFree, self.now.wall_ms) {
                    Poll::Ready(Appended::Kept) => Accepted::Kept,
                    Poll::Ready(Appended::Repeated) => Accepted::Repeated(self.rules.session.kept_status),
                    Poll::Ready(Appended::Refused(cause)) => Accepted::Refused(cause),
                    Poll::Pending => Accepted::Queued,
                },
                Err(_) => Accepted::Refused(BufferFull::Recipient),
            };
            self.counters.resolved.add(1);
            return self.outcome_of(accepted, &arrival.inbound);
        }
        let target = self.target(to, arrival.hash, sent_by.is_some());
        if let Some(node) = target.filter(|_| arrival.hops < HOPS_MAX)
            && (is_ahead || self.way(source, arrival.hash, Some(&node)).is_none())
        {
            self.counters.resolved.add(1);
            let held = Held { is_ahead, ..self.held(arrival, sent_by) };
            self.relay(&node, held);
            return None;
        }
        let queue = self.waiting.find_or_make(to, arrival.hash, source, Why::Room);
        let outcome = self.hold_in(queue, arrival, sent_by, is_ahead);
        self.go_on(queue);
        outcome
    }

    /// What a message shares with those that it must not overtake, its recipient aside: its sender, and the node that
    /// accepted it. Were it the sender alone, what one node has sent on could wait for what it has accepted itself,
    /// and that for the former elsewhere: for ever.
    fn source(&self, sender: u64, trail: &[u64]) -> u64 {
        sender ^ trail.first().copied().unwrap_or(self.mark)
    }

    /// What keeps a message from a session that is here, if anything.
    fn obstacle(&mut self, key: Key, source: u64, hash: u64, is_ahead: bool) -> Option<Why> {
        if self.store.is_local() {
            return None;
        }
        // One that leaves takes nothing new: it would never be done with giving the store what it has.
        let is_leaving = self.sessions.get(key).is_some_and(Session::is_detached);
        if is_leaving || !self.claim(key).is_some_and(Claim::takes_messages) {
            return Some(Why::Login);
        }
        if is_ahead {
            return None;
        }
        self.way(source, hash, None)
    }

    /// What a message has to wait for before it may take the path to `target`.
    fn way(&mut self, source: u64, hash: u64, target: Option<&NodeId>) -> Option<Why> {
        let pair = pair(source, hash);
        match self.paths.passage(pair, target, self.now.steady_ms) {
            Passage::Free => None,
            Passage::Wait(id) => Some(Why::Fence(id)),
            Passage::Fence { id, node } => {
                self.write_fence(id, node, hash, pair);
                self.follow_replaced();
                Some(Why::Fence(id))
            }
        }
    }

    /// Whoever waits for a fence whose place a later one has taken waits for that.
    fn follow_replaced(&mut self) {
        for (earlier, later) in self.paths.take_replaced() {
            for fence in self.fences.iter_mut().filter(|fence| fence.further == Some(earlier)) {
                fence.further = Some(later);
            }
        }
    }

    fn write_fence(&mut self, id: u64, node: u16, hash: u64, pair: u64) {
        self.counters.fences.add(1);
        let Some(to) = self.paths.node(node).cloned() else { return };
        let trail = self.paths.trail(id).iter().copied().chain([self.mark]).collect();
        self.out.parcels.push_back(Box::new(Parcel {
            to,
            lane: Lane::Partition(self.paths.lane_of(hash)),
            origin: self.me.clone(),
            record: Record::Fence { id, hash, pair, trail },
            ticket: None,
        }));
    }

    /// By what right the session acts.
    pub fn right(&self, key: Key) -> Right {
        if self.store.is_local() {
            return Right::UNBOUNDED;
        }
        self.claim(key).map_or(Right { ceiling: 0, is_claimed: false }, Claim::right)
    }

    /// From here on what the session asks of the store is asked in its name.
    pub(super) fn act_for(&mut self, key: Key) {
        if !self.store.is_local() {
            let generation = self.claim(key).map_or(0, |claim| claim.generation);
            self.store.act_for(Ticket::session(key), generation);
        }
    }

    fn accept(&mut self, key: Key, inbound: &Inbound<'_>) -> Accepted {
        let right = self.right(key);
        self.act_for(key);
        let Some(session) = self.sessions.get_mut(key) else { return Accepted::NoRoom };
        let accepted =
            session.accept(inbound, &mut self.store, self.rules.session, right, self.now.wall_ms, &mut self.answers);
        if accepted == Accepted::Queued && !session.is_detached() {
            self.out.wakes.push(session.connection());
        }
        accepted
    }

    fn outcome_of(&mut self, accepted: Accepted, inbound: &Inbound<'_>) -> Option<Outcome> {
        match accepted {
            Accepted::Queued => {
                self.counters.delivered_queued.add(1);
                None
            }
            Accepted::Kept => {
                self.counters.delivered_kept.add(1);
                Some(Ok(self.rules.session.kept_status))
            }
            Accepted::Repeated(status) => {
                self.counters.delivered_repeat.add(1);
                Some(Ok(status))
            }
            Accepted::Pending { was_awaited } => {
                self.counters.delivered_repeat.add(1);
                if was_awaited {
                    self.out.asked_twice.push(inbound.origin);
                }
                None
            }
            Accepted::Refused(cause) => Some(Err(self.refusal(cause))),
            Accepted::NoRoom => {
                self.counters.dropped_overloaded.add(1);
                Some(Err((ErrorCode::Overloaded, "the recipient is behind and its store away: try again")))
            }
        }
    }

    pub(super) fn refusal(&self, cause: BufferFull) -> (ErrorCode, &'static str) {
        let (counter, reason) = match cause {
            BufferFull::Recipient => (&self.counters.dropped_buffer_recipient, "the recipient's replay buffer is full"),
            BufferFull::Sender => (&self.counters.dropped_buffer_sender, "too much of yours is undelivered"),
            BufferFull::Node => (&self.counters.dropped_buffer_node, "this node's replay buffers are full"),
        };
        counter.add(1);
        (ErrorCode::BufferFull, reason)
    }

    /// Puts a message behind those that wait for the same recipient.
    fn hold(&mut self, queue: Key, arrival: &Arrival<'_>, sent_by: Option<&Address>) -> Option<Outcome> {
        self.hold_in(queue, arrival, sent_by, false)
    }

    fn hold_in(
        &mut self,
        queue: Key,
        arrival: &Arrival<'_>,
        sent_by: Option<&Address>,
        is_ahead: bool,
    ) -> Option<Outcome> {
        let inbound = &arrival.inbound;
        let is_record = inbound.origin.is_record();
        let (messages, held_bytes) = self.waiting.get(queue).map_or((0, 0), |queue| (queue.items.len(), queue.bytes));
        let bytes = inbound.envelope.payload.len();
        // Records are bounded where they are read.
        if !is_record
            && (messages >= HELD_MESSAGES_MAX
                || held_bytes.saturating_add(bytes) > HELD_BYTES_MAX
                || self.waiting.bytes().saturating_add(bytes) > HELD_TOTAL_BYTES_MAX)
        {
            self.counters.dropped_overloaded.add(1);
            return Some(Err((ErrorCode::Overloaded, "too much waits for this recipient already: try again")));
        }
        let held = Held { is_ahead, ..self.held(arrival, sent_by) };
        if is_ahead {
            self.waiting.push_ahead(queue, Box::new(held));
        } else {
            self.waiting.push(queue, Box::new(held));
        }
        None
    }

    fn held(&mut self, arrival: &Arrival<'_>, sent_by: Option<&Address>) -> Held {
        Held {
            posted: Box::new(arrival.to_posted()),
            placing: sent_by.filter(|_| arrival.inbound.origin.is_record()).map(|sender| {
                let source = self.source(arrival.inbound.sender, arrival.trail);
                let placing = self.next_placing(sender, pair(source, arrival.hash));
                self.unplaced.insert(placing);
                if arrival.trail.contains(&self.mark) {
                    let (_, pair, number) = placing;
                    self.returned.insert((pair, number));
                }
                placing
            }),
            sent_by: sent_by.cloned(),
            since_ms: self.now.steady_ms,
            expires_ms: arrival.inbound.expires_ms,
            is_ahead: false,
        }
    }

    /// The place of what comes now among what a shard has sent of a pair.
    pub(super) fn next_placing(&mut self, sent_by: &Address, pair: u64) -> Placing {
        self.arrivals += 1;
        let life = sent_by.incarnation.wrapping_mul(0x1_0001) ^ u64::from(sent_by.shard);
        (ring::hash_key(sent_by.node.as_str().as_bytes(), life), pair, self.arrivals)
    }

    /// A record is where it belongs: fences behind it may pass.
    pub(super) fn place(&mut self, placing: Option<Placing>) {
        let Some(placing) = placing else { return };
        self.unplaced.remove(&placing);
        let (_, pair, number) = placing;
        self.returned.remove(&(pair, number));
        self.pass_fences();
    }

    /// Fences pass when what was ahead of them is placed; where that was sent on to another node, when it is placed
    /// there, and so on; where it came back from there, when it is placed here, or wherever it was sent on to then.
    /// What has come back waits for no fence, so no two fences wait for each other.
    pub(super) fn pass_fences(&mut self) {
        if self.fences.is_empty() {
            return;
        }
        for mut fence in std::mem::take(&mut self.fences) {
            let (sender, pair, arrival) = fence.placing;
            let is_waiting = self.unplaced.range((sender, pair, 0)..(sender, pair, arrival)).next().is_some()
                || self.returned.range((pair, 0)..(pair, fence.returned_before)).next().is_some();
            if !is_waiting && fence.further.is_none() && !fence.is_further_known {
                self.fence_further(&mut fence);
            }
            if is_waiting || fence.further.is_some() {
                self.fences.push(fence);
            } else {
                self.out.passed.push(fence.at);
            }
        }
        self.follow_replaced();
    }

    /// Writes a fence behind what was sent on of a pair's records, unless the fence has come by that node: what was
    /// sent back there stands ahead of the echo, and whoever passes the echo on there waits for it.
    fn fence_further(&mut self, fence: &mut PassingFence) {
        let (_, pair, _) = fence.placing;
        let (latest, next) = self.paths.latest(pair);
        let is_new_to_it =
            |node: &u16| self.paths.node(*node).is_some_and(|node| !fence.trail.contains(&node_mark(node)));
        let (latest, next) = (latest.filter(is_new_to_it), next.filter(is_new_to_it));
        let latest = latest.filter(|node| fence.followed_to != Some(*node));
        fence.is_further_known = latest.is_none() || next.is_none();
        let Some(node) = latest.or(next) else { return };
        let (id, is_new) = self.paths.fence_behind(pair, node, &fence.trail, self.now.steady_ms);
        if is_new {
            self.write_fence(id, node, fence.hash, pair);
        }
        fence.further = Some(id);
        fence.followed_to = Some(node);
    }

    /// Tries again with what waits for one recipient.
    pub(super) fn go_on(&mut self, queue: Key) {
        while self.advance(queue) {}
        self.waiting.drop_empty(queue);
    }

    /// Takes the first of a queue one step further; false when it has to wait, or there is none.
    fn advance(&mut self, key: Key) -> bool {
        let Some(queue) = self.waiting.get(key) else { return false };
        if matches!(queue.why, Why::Store(_)) {
            return false;
        }
        let (client, hash, source) = (queue.client.clone(), queue.hash, queue.source);
        let Some(first) = queue.items.front() else { return false };
        let is_ahead = first.is_ahead;
        if first.expires_ms <= self.now.wall_ms {
            if let Some(held) = self.waiting.pop(key) {
                self.expire(&held);
            }
            return true;
        }
        let session = self.find_session(hash, &client);
        let target = if let Some(session) = session {
            if let Some(why) = self.obstacle(session, source, hash, is_ahead) {
                return self.wait(key, why);
            }
            None
        } else {
            let target = self.target(&client, hash, self.is_first_sent_on(key));
            // Sent on too often it is kept here, and its order is no longer waited for.
            let is_last_stop = self.is_sent_on_too_often(key);
            let target = target.filter(|_| !is_last_stop);
            if !is_ahead
                && !is_last_stop
                && let Some(why) = self.way(source, hash, target.as_ref())
            {
                return self.wait(key, why);
            }
            target
        };
        match (session, target) {
            (Some(session), _) => {
                let Some(held) = self.waiting.pop(key) else { return false };
                let accepted = with_arrival(&held.posted, held.expires_ms, |arrival| {
                    let accepted = self.accept(session, &arrival.inbound);
                    if accepted != Accepted::NoRoom || !arrival.inbound.origin.is_record() {
                        let outcome = self.outcome_of(accepted, &arrival.inbound);
                        self.tell(arrival.inbound.origin, arrival.inbound.envelope.msg_id, outcome);
                        return true;
                    }
                    false
                });
                if accepted {
                    self.place(held.placing);
                    return true;
                }
                self.waiting.push_front(key, held);
                self.wait(key, Why::Room)
            }
            (None, Some(node)) => {
                let Some(held) = self.waiting.pop(key) else { return false };
                self.counters.resolved.add(1);
                self.relay(&node, *held);
                true
            }
            (None, None) => self.look(key, &client),
        }
    }

    fn wait(&mut self, key: Key, why: Why) -> bool {
        if let Some(queue) = self.waiting.get_mut(key) {
            queue.why = why;
        }
        false
    }

    /// The node that a message for a client without a session here goes to; none if it is this one, or unknown. What
    /// came from another node goes on only to where the client is known to have gone: each step leads to a newer login,
    /// and never in a circle.
    fn target(&mut self, client: &str, hash: u64, is_sent_on: bool) -> Option<NodeId> {
        let ring = self.ring.load().filter(|_| !is_sent_on).map(|ring| &**ring);
        self.paths.target(client, hash, ring, &self.me.node, self.now.steady_ms)
    }

    fn is_first_sent_on(&self, key: Key) -> bool {
        let first = self.waiting.get(key).and_then(|queue| queue.items.front());
        first.is_some_and(|held| held.sent_by.is_some())
    }

    fn is_sent_on_too_often(&self, key: Key) -> bool {
        let first = self.waiting.get(key).and_then(|queue| queue.items.front());
        first.is_some_and(|held| held.posted.hops >= HOPS_MAX)
    }

    /// Asks the store to keep the first messages of a queue, unless it knows of a session elsewhere.
    fn look(&mut self, key: Key, client: &str) -> bool {
        let anyone = self.is_sent_on_too_often(key);
        let Ok(client) = ClientId::try_from(client) else { return false };
        let wall_ms = self.now.wall_ms;
        if self.ring.load().is_none() {
            self.counters.unresolved_no_ring.add(1);
        }
        let Some(queue) = self.waiting.get_mut(key) else { return false };
        let author = if anyone {
            self.counters.unresolved_hops.add(1);
            Author::Anyone
        } else {
            Author::Other { past: queue.past.clone() }
        };
        let mut messages = Vec::new();
        let (mut bytes, mut owed) = (0, None);
        // What waits for a fence does not go with what is ahead of it.
        let is_ahead = queue.items.front().is_some_and(|held| held.is_ahead);
        for held in queue.items.iter().take(BATCH_MESSAGES_MAX.min(queue.batch_max)) {
            let is_owed = held.posted.origin.is_record();
            if *owed.get_or_insert(is_owed) != is_owed
                || bytes > BATCH_BYTES_MAX
                || held.is_ahead != is_ahead
                || (held.posted.hops >= HOPS_MAX) != anyone
                || (held.expires_ms <= wall_ms && !messages.is_empty())
            {
                break;
            }
            bytes += cost(&held.posted);
            messages.push(with_arrival(&held.posted, held.expires_ms, |arrival| arrival.inbound.keep(0)));
        }
        queue.why = Why::Store(messages.len());
        let room = if owed == Some(true) { Room::Owed } else { Room::IfFree };
        if let AnyStore::Remote(remote) = &mut self.store {
            remote.ask(Ticket::waiting(key), StoreRequest::Append { client, author, messages, room });
        }
        false
    }

    /// The store has answered about the first messages of a queue.
    pub(super) fn on_looked(&mut self, key: Key, answer: StoreAnswer) {
        let Some(queue) = self.waiting.get_mut(key) else { return };
        let Why::Store(count) = queue.why else { return };
        queue.why = Why::Room;
        queue.past = None;
        let (client, hash) = (queue.client.clone(), queue.hash);
        match answer {
            StoreAnswer::Appended { .. } => {
                queue.batch_max = usize::MAX;
                for index in 0..count {
                    let Some(held) = self.waiting.pop(key) else { break };
                    if index == 0 && held.posted.hops >= HOPS_MAX {
                        self.nudge(&client, hash);
                    }
                    self.counters.delivered_kept.add(1);
                    self.tell(
                        held.posted.origin,
                        &escape(&held.posted.msg_id),
                        Some(Ok(self.rules.session.kept_status)),
                    );
                    self.place(held.placing);
                }
            }
            StoreAnswer::Refused(_) if count > 1 => queue.batch_max = 1,
            StoreAnswer::Refused(_) if self.is_first_sent_on(key) => {
                // Accepted long ago: it waits here, uncommitted, and the store is asked again with the next tick.
                self.counters.owed_refused.add(1);
                return;
            }
            StoreAnswer::Refused(cause) => {
                if let Some(held) = self.waiting.pop(key) {
                    let refusal = self.refusal(cause);
                    self.tell(held.posted.origin, &escape(&held.posted.msg_id), Some(Err(refusal)));
                    self.place(held.placing);
                }
            }
            StoreAnswer::Elsewhere(holder) if holder.node == self.me.node || self.is_retired(&holder.node) => {
                // An earlier life of this node, whose topic this one reads; or a node whose topic was drained.
                if let Some(queue) = self.waiting.get_mut(key) {
                    queue.past = Some((holder.node, holder.incarnation));
                }
            }
            StoreAnswer::Elsewhere(holder) => {
                self.learn(&client, &holder);
            }
            StoreAnswer::Claimed { .. } | StoreAnswer::Page(_) | StoreAnswer::Done => {}
        }
        self.go_on(key);
    }

    /// True for a node that is gone for good: neither the ring nor any heartbeat knows it.
    fn is_retired(&mut self, node: &NodeId) -> bool {
        let is_live = self.live_nodes.as_ref().is_none_or(|live| live.contains(node));
        let has_slots = self.ring.load().is_none_or(|ring| ring.weights().index(node).is_some());
        !is_live && !has_slots
    }

    fn nudge(&mut self, client: &str, hash: u64) {
        let Some(holder) = self.paths.hint(client).cloned() else { return };
        self.out.parcels.push_back(Box::new(Parcel {
            to: holder.node,
            lane: Lane::Partition(self.paths.lane_of(hash)),
            origin: self.me.clone(),
            record: Record::Nudge { client: client.into() },
            ticket: None,
        }));
    }

    /// Sends a message to another node.
    fn relay(&mut self, node: &NodeId, held: Held) {
        let Held { mut posted, placing, sent_by, is_ahead, .. } = held;
        let hash = posted.hash;
        if let Some(sender) = &sent_by {
            self.tell_moved(sender, &posted.to, hash);
        }
        let origin = if posted.wants_ack { posted.origin } else { Origin::NOBODY };
        posted.hops = posted.hops.saturating_add(1);
        if posted.trail.len() < TRAIL_MAX {
            posted.trail.push(self.mark);
        }
        let source = self.source(posted.sender, &posted.trail);
        let pair = pair(source, hash);
        posted.origin = Origin::NOBODY;
        posted.wants_ack = false;
        let produced = Produced { origin, msg_id: posted.msg_id.clone(), placing };
        let key = self.produced.insert(produced);
        if !origin.is_record() && origin != Origin::NOBODY {
            self.unconfirmed.push_back((self.now.steady_ms, key));
        }
        self.counters.delivered_relayed.add(1);
        if is_ahead {
            // Whatever else comes waits for the fence.
            let _ = self.way(source, hash, Some(node));
            self.paths.note_ahead(pair, node, self.now.steady_ms);
            // So do fences that this has come back ahead of: they follow it.
            for fence in self.fences.iter_mut().filter(|fence| fence.placing.1 == pair) {
                fence.is_further_known = false;
                fence.followed_to = None;
            }
        } else {
            self.paths.note(pair, node, sent_by.is_some(), self.now.steady_ms);
        }
        self.out.parcels.push_back(Box::new(Parcel {
            to: node.clone(),
            lane: Lane::Partition(self.paths.lane_of(hash)),
            origin: self.me.clone(),
            record: Record::Message(posted),
            ticket: Some(key.to_u64()),
        }));
    }

    /// Tells whoever sent a message here where its recipient is.
    fn tell_moved(&mut self, sender: &Address, client: &str, hash: u64) {
        let Some(holder) = self.paths.hint(client).filter(|holder| holder.node != sender.node).cloned() else { return };
        if sender.node == self.me.node {
            return;
        }
        let now_ms = self.now.steady_ms;
        let whom = ring::hash_key(sender.node.as_str().as_bytes(), u64::from(sender.shard) ^ holder.generation);
        if self.moved.len() >= MOVED_MAX {
            self.moved.retain(|_, told_ms| now_ms.saturating_sub(*told_ms) < MOVED_AGAIN_MS);
        }
        let told_ms = self.moved.entry((hash, whom)).or_insert(0);
        if *told_ms != 0 && now_ms.saturating_sub(*told_ms) < MOVED_AGAIN_MS {
            return;
        }
        *told_ms = now_ms.max(1);
        self.out.parcels.push_back(Box::new(Parcel {
            to: sender.node.clone(),
            lane: Lane::Control,
            origin: self.me.clone(),
            record: Record::Moved { client: client.into(), holder },
            ticket: None,
        }));
    }

    /// The bus has kept a parcel.
    pub fn on_produced(&mut self, ticket: u64) {
        let Some(produced) = self.produced.remove(Key::from_u64(ticket)) else { return };
        let status = self.rules.session.kept_status;
        self.tell(produced.origin, &escape(&produced.msg_id), Some(Ok(status)));
        self.place(produced.placing);
    }

    fn expire(&mut self, held: &Held) {
        self.counters.expired.add(1);
        let outcome = Err((ErrorCode::Unconfirmed, "it reached its age limit on the way"));
        self.tell(held.posted.origin, &escape(&held.posted.msg_id), Some(outcome));
        self.place(held.placing);
    }

    /// Tells a sender, and finishes a record.
    pub(super) fn tell(&mut self, origin: Origin, escaped_msg_id: &str, outcome: Option<Outcome>) {
        let Some(outcome) = outcome else { return };
        if let Sender::Record(at) = origin.sender() {
            self.out.finished.push(at);
            return;
        }
        if origin == Origin::NOBODY {
            return;
        }
        match outcome {
            Ok(status) => self.answers.push(origin, escaped_msg_id, status),
            Err((code, reason)) => self.out.refusals.push((origin, escaped_msg_id.into(), code, reason)),
        }
    }

    /// The store has answered.
    pub fn on_store(&mut self, ticket: Ticket, answer: StoreAnswer) {
        match ticket.whom() {
            Whom::Nobody => {}
            Whom::Waiting(key) => self.on_looked(key, answer),
            Whom::Claim(key) => self.on_claim_answer(key, answer),
            Whom::Session(key) => self.on_session_answer(key, answer),
        }
    }

    /// Lets a session do something that may concern the store and its senders.
    pub fn with_session<R>(
        &mut self,
        key: Key,
        work: impl FnOnce(&mut Session, &mut AnyStore, SessionLimits, &mut Answers, u64) -> R,
    ) -> Option<R> {
        self.act_for(key);
        let session = self.sessions.get_mut(key)?;
        Some(work(session, &mut self.store, self.rules.session, &mut self.answers, self.now.wall_ms))
    }

    /// Tells those whose messages the store refused after all.
    pub(super) fn tell_refused(&mut self, refused: Vec<(Origin, Box<str>, BufferFull)>) {
        for (origin, msg_id, cause) in refused {
            let refusal = self.refusal(cause);
            self.tell(origin, &msg_id, Some(Err(refusal)));
        }
    }

    pub(super) fn take_refused(&mut self) -> Vec<(Origin, Box<str>, BufferFull)> {
        std::mem::take(&mut self.refused)
    }

    /// A fence has come back, or is given up.
    pub(super) fn on_echo(&mut self, id: u64) {
        for fence in self.fences.iter_mut().filter(|fence| fence.further == Some(id)) {
            fence.further = None;
            fence.returned_before = self.arrivals + 1;
        }
        self.pass_fences();
        for key in self.waiting.keys(|queue| queue.why == Why::Fence(id)) {
            self.go_on(key);
        }
    }

    /// What time alone brings about. To be called some times a second.
    pub fn tick(&mut self) {
        if self.store.is_local() {
            return;
        }
        let now_ms = self.now.steady_ms;
        self.tick_logins();
        for id in self.paths.overdue(now_ms) {
            self.counters.fences_given_up.add(1);
            self.paths.on_fenced(id);
            self.on_echo(id);
        }
        while let Some((since_ms, key)) = self.unconfirmed.front().copied() {
            if now_ms.saturating_sub(since_ms) < UNCONFIRMED_MS && self.produced.get(key).is_some() {
                break;
            }
            self.unconfirmed.pop_front();
            if let Some(produced) = self.produced.get_mut(key) {
                let (origin, msg_id) =
                    (std::mem::replace(&mut produced.origin, Origin::NOBODY), produced.msg_id.clone());
                self.counters.unconfirmed.add(1);
                self.tell(origin, &escape(&msg_id), Some(Err(UNCONFIRMED)));
            }
        }
        for key in self.waiting.keys(|_| true) {
            self.tick_queue(key);
        }
    }

    fn tick_queue(&mut self, key: Key) {
        let now_ms = self.now.steady_ms;
        let first = match self.waiting.get(key).map(|queue| queue.why) {
            Some(Why::Store(count)) => count,
            _ => 0,
        };
        let overdue = self.waiting.extract(key, first, |held| {
            !held.posted.origin.is_record() && now_ms.saturating_sub(held.since_ms) >= UNCONFIRMED_MS
        });
        for held in overdue {
            self.counters.unconfirmed.add(1);
            self.tell(held.posted.origin, &escape(&held.posted.msg_id), Some(Err(UNCONFIRMED)));
        }
        self.go_on(key);
    }

    /// Messages that wait for something before they can go on, and the bytes they take.
    pub fn waiting_size(&self) -> (usize, usize) {
        (self.waiting.len(), self.waiting.bytes())
    }

    /// Where a recipient's session was last heard of.
    pub(super) fn learn(&mut self, client: &str, holder: &Holder) {
        self.paths.learn(client, holder, self.now.steady_ms);
    }
}

const UNCONFIRMED: (ErrorCode, &str) =
    (ErrorCode::Unconfirmed, "no confirmation in time: send it again under its msgId");

impl Arrival<'_> {
    fn to_posted(&self) -> Posted {
        let Inbound { envelope, origin, wants_ack, sender, expires_ms, .. } = self.inbound;
        Posted {
            msg_id: self.msg_id.into(),
            from: self.from.into(),
            sender,
            to: self.to.into(),
            hash: self.hash,
            field: envelope.field,
            payload: envelope.payload.into(),
            origin,
            wants_ack,
            ts_ms: envelope.ts_ms,
            ttl_ms: Some(expires_ms.saturating_sub(envelope.ts_ms)),
            hops: self.hops,
            trail: self.trail.to_vec(),
        }
    }
}

/// Shows a posted message as an arrival.
pub fn with_arrival<R>(posted: &Posted, expires_ms: u64, work: impl FnOnce(&Arrival<'_>) -> R) -> R {
    let inbound = Inbound {
        envelope: Envelope {
            msg_id: &escape(&posted.msg_id),
            from: &escape(&posted.from),
            to: &escape(&posted.to),
            field: posted.field,
            payload: &posted.payload,
            ts_ms: posted.ts_ms,
        },
        origin: posted.origin,
        wants_ack: posted.wants_ack,
        sender: posted.sender,
        identity: identity(posted.sender, &posted.msg_id),
        expires_ms,
    };
    work(&Arrival {
        inbound,
        msg_id: &posted.msg_id,
        from: &posted.from,
        to: &posted.to,
        hash: posted.hash,
        hops: posted.hops,
        trail: &posted.trail,
    })
}
