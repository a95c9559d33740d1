//! The core of a shard: its clients' sessions, and all that is known of the messages for clients whose home it is. Pure.
//!
//! This is the state, what is left behind for whoever drives it, and its clock. What happens to it is told by the other
//! modules: a message finds its recipient's session here (`delivery`), or goes to the node where a hint or the ring says
//! it is (`relay`), or is kept in the store (`look_up`). Whatever must wait first waits in one queue per source and
//! recipient (`queues`), so that nothing overtakes anything (`fences`). `login` is where a session's life begins.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use hashbrown::{HashMap, HashTable};
use ring::{NodeId, Ring, RingReader};
use xxhash_rust::xxh3::Xxh3Builder;

use crate::bus::record::node_mark;
use crate::bus::{Address, Parcel, RecordRef};
use crate::metrics::Counters;
use crate::protocol::{AckStatus, ErrorCode};
use crate::shard::answers::Answers;
use crate::shard::origin::Origin;
use crate::shard::session::{Session, Start};
use crate::shard::slab::{Key, Slab};
use crate::shard::{Disconnect, SessionLimits};
use crate::store::request::{StoreAnswer, StoreRequest, Ticket, Whom};
use crate::store::{AnyStore, BufferFull};

use super::claim::{Claim, Renewals};
use super::crossings::Crossings;
use super::fences::PassingFence;
use super::paths::Paths;
use super::relay::Produced;
use super::waiting::{Placing, Waiting};

/// Requests that may wait to be sent to the store before reading pauses.
const REQUESTS_MAX: usize = 16_384;
/// Parcels that may wait to be taken by the bus before reading pauses.
const PARCELS_MAX: usize = 8_192;
/// A node that neither the ring nor any heartbeat has known for so long is gone for good.
pub(super) const RETIRED_MS: u64 = 60_000;

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
    /// How far ahead of the clock a claim reserves offsets; it is renewed twice in that time, unless none was needed.
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

/// The core of a shard.
pub struct Dispatcher {
    /// Who this is on the bus.
    pub me: Address,
    // In trails.
    pub(super) mark: u64,
    /// The time of this turn.
    pub now: Now,
    /// What must be said, asked and sent.
    pub out: Output,
    /// Good news for senders.
    pub answers: Answers,
    /// Nodes with a heartbeat, once they are known.
    pub(super) live_nodes: Option<Arc<HashSet<NodeId>>>,
    // When those that are not among them any more had their last, as far as that is not long ago.
    pub(super) lost_nodes: HashMap<NodeId, u64, Xxh3Builder>,
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
    pub(super) renewals: Renewals,
    pub(super) generation: u64,
    pub(super) waiting: Waiting,
    pub(super) paths: Paths,
    pub(super) crossings: Crossings,
    pub(super) produced: Slab<Produced>,
    // Parcels with a sender that waits, oldest first.
    pub(super) unconfirmed: VecDeque<(u64, Key)>,
    pub(super) arrivals: u64,
    // Records whose place is not settled.
    pub(super) unplaced: BTreeSet<Placing>,
    // Those of them that had been here before, by pair and number.
    pub(super) returned: BTreeSet<(u64, u64)>,
    // Fences that wait for them.
    pub(super) fences: Vec<PassingFence>,
    // Who was told of which login when: see `relay`.
    pub(super) moved: HashMap<(u64, u64), u64, Xxh3Builder>,
    pub(super) refused: Vec<(Origin, Box<str>, BufferFull)>,
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
            lost_nodes: HashMap::default(),
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
            renewals: Renewals::default(),
            generation: 0,
            waiting: Waiting::default(),
            paths: Paths::new(rules.lanes),
            crossings: Crossings::default(),
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

    /// These nodes have a heartbeat. What was known of clients on one that has it no more holds no longer: they come back
    /// elsewhere, and nobody is left there to tell.
    pub fn note_live(&mut self, live: HashSet<NodeId>) {
        let now_ms = self.now.wall_ms;
        self.lost_nodes.retain(|node, lost_ms| !live.contains(node) && now_ms.saturating_sub(*lost_ms) < RETIRED_MS);
        let before = self.live_nodes.take().unwrap_or_default();
        let lost = self.lost_nodes.len();
        self.lost_nodes.extend(before.iter().filter(|node| !live.contains(*node)).map(|node| (node.clone(), now_ms)));
        if self.lost_nodes.len() > lost {
            self.paths.forget_nodes(|node| !live.contains(node));
        }
        self.live_nodes = Some(Arc::new(live));
    }

    /// The ring that messages go by.
    pub fn ring(&mut self) -> Option<&Arc<Ring>> {
        self.ring.load()
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

    /// The store has answered.
    pub fn on_store(&mut self, ticket: Ticket, answer: StoreAnswer) {
        match ticket.whom() {
            Whom::Nobody => {}
            Whom::Waiting(key) => self.on_looked(key, answer),
            Whom::Claim(key) => self.on_claim_answer(key, answer),
            Whom::Session(key) => self.on_session_answer(key, answer),
        }
    }

    /// What time alone brings about. To be called some times a second.
    pub fn tick(&mut self) {
        if self.store.is_local() {
            return;
        }
        self.tick_logins();
        self.tick_claims();
        self.tick_fences();
        self.tick_crossings();
        self.tick_relayed();
        self.tick_queues();
    }

    /// Messages that wait for something before they can go on, and the bytes they take.
    pub fn waiting_size(&self) -> (usize, usize) {
        (self.waiting.len(), self.waiting.bytes())
    }
}
