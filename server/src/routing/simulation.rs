//! Several nodes of the pure core in virtual time, over a model Kafka and a model Redis: nodes crash, restart and pause,
//! lose Kafka or Redis, have wrong clocks and get new rings at different times; clients hop between them, fall silent,
//! send and send again. Whatever happens, every accepted message arrives, in order, at the right client only.
//!
//! A failure prints its seed: `RTC_SIMULATION_SEED=17 cargo test -p rtc-server simulation -- --nocapture` runs that one
//! and tells its story; `RTC_SIMULATION_SEEDS=20000` runs more than the usual number, beginning with
//! `RTC_SIMULATION_FIRST`.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use ring::{NodeId, Ring, RingVersion, SharedRing, Weight};
use sonic_rs::JsonValueTrait;
use websocket::{Decoder, Event, Role};

use super::{Arrival, Dispatcher, Now, Rules};
use crate::bus::{Address, Arrived, Lane, Parcel, Record, RecordRef};
use crate::metrics::Counters;
use crate::protocol::{AckStatus, ClientId, Envelope, PayloadField};
use crate::shard::origin::{Origin, Sender};
use crate::shard::recent::identity;
use crate::shard::session::{Inbound, Newcomer, Wishes};
use crate::shard::slab::Key;
use crate::shard::{OutboxLimits, SessionLimits};
use crate::store::bounds::BufferLimits;
use crate::store::model::ModelStore;
use crate::store::request::{StoreAnswer, StoreRequest, Ticket};
use crate::store::{AnyStore, RemoteStore};

const SEEDS: u64 = 2_000;
const NODES: usize = 3;
const CLIENTS: usize = 6;
const LANES: u16 = 3;
const STEP_MS: u64 = 20;
const STARTED_MS: u64 = 1_800_000_000_000;
/// Messages and faults happen for so long; then everything heals.
const TROUBLE_MS: u64 = 40_000;
/// By then nothing may be under way any more.
const PEACE_MS: u64 = 200_000;
const UNFINISHED_MAX: usize = 200;

pub(super) const RULES: Rules = Rules {
    session: SessionLimits {
        outbox: OutboxLimits { bytes: 6_000, messages: 12 },
        ack_wait_ms: 1_000,
        kept_status: AckStatus::Stored,
    },
    message_ttl_ms: 3_600_000,
    claim_wait_ms: 2_000,
    takeover_wait_ms: 20_000,
    ceiling_ms: 60_000,
    lanes: LANES,
};

/// A small generator of its own: the same seed, the same story, whatever becomes of other crates.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        // Steele, Lea, Flood: splitmix64 (2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn up_to(&mut self, bound: u64) -> u64 {
        self.next() % (bound + 1)
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.next().is_multiple_of(bound)
    }
}

fn node_id(index: usize) -> NodeId {
    NodeId::new(&format!("n{index}")).unwrap()
}

fn client_id(index: usize) -> ClientId {
    ClientId::try_from(format!("c{index}").as_str()).unwrap()
}

/// Rings of the nodes with changing weights, newest last: filling their tables is most of a story's cost.
fn rings() -> &'static [Arc<Ring>] {
    static RINGS: OnceLock<Vec<Arc<Ring>>> = OnceLock::new();
    RINGS.get_or_init(|| {
        let weights = [[100, 100, 100], [100, 300, 10], [10, 100, 300], [300, 10, 100], [100, 100, 100]];
        let ring = |(index, weights): (usize, &[u64; 3])| {
            let nodes =
                weights.iter().enumerate().map(|(index, weight)| (node_id(index), Weight::new(*weight).unwrap()));
            Arc::new(Ring::build(RingVersion::new(index as u64 + 1).unwrap(), 0, nodes).unwrap())
        };
        weights.iter().enumerate().map(ring).collect()
    })
}

/// One partition of a topic, and how far its node has read it.
#[derive(Default)]
struct Partition {
    records: Vec<Parcel>,
    committed: usize,
    next: usize,
    unfinished: BTreeSet<usize>,
}

struct Node {
    dispatcher: Option<Dispatcher>,
    ring: SharedRing,
    incarnation: u64,
    started_ms: u64,
    paused_until: u64,
    restart_at: Option<u64>,
    skew_ms: i64,
    wall_ms: u64,
    store_away_until: u64,
    bus_away_until: u64,
    requests: VecDeque<(Ticket, StoreRequest)>,
    answered: VecDeque<(u64, Ticket, StoreRequest, StoreAnswer)>,
    producing: VecDeque<Box<Parcel>>,
    produced: VecDeque<(u64, u64)>,
    hangups: Vec<(u64, Key, u32)>,
    topic: Vec<Partition>,
    next_tick: u64,
}

struct Message {
    first_sent: u64,
    accepted: Option<u64>,
    // Accepted over the connection it was first sent on, with no error before.
    is_clean: bool,
    is_under_way: bool,
    // The life of the node that it was given to; `None` after a second one.
    given_to: Option<(usize, u64)>,
    retry_at: u64,
    delivered: Option<u64>,
    delivered_at: u64,
}

struct Connection {
    node: usize,
    incarnation: u64,
    session: Key,
    // Names the connection to its node.
    slot: u32,
    is_welcomed: bool,
    opened_at: u64,
    stalled_since: Option<u64>,
    in_flight: Vec<u8>,
}

struct Client {
    id: ClientId,
    connection: Option<Connection>,
    connect_at: u64,
    position: u64,
    has_unacked: bool,
    silent_until: u64,
    // By recipient and number.
    sent: BTreeMap<(usize, u64), Message>,
    // First deliveries to this client, in order, by sender.
    received: HashMap<usize, Vec<u64>>,
    repeats: u64,
}

struct World {
    dice: Dice,
    now: u64,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    store: ModelStore,
    next_slot: u32,
    deliveries: u64,
    tells: bool,
    seed: u64,
    newest_ring: usize,
    crashes: Vec<u64>,
}

macro_rules! tell {
    ($world:expr, $($arg:tt)*) => {
        if $world.tells {
            println!("{:>7} {}", $world.now, format_args!($($arg)*));
        }
    };
}

impl World {
    fn new(seed: u64, tells: bool) -> Self {
        let limits = BufferLimits { recipient_bytes: 1_000_000, recipient_messages: 2_000 };
        let mut world = Self {
            dice: Dice(seed.wrapping_mul(0x2545_f491_4f6c_dd1d)),
            now: 0,
            nodes: Vec::new(),
            clients: Vec::new(),
            store: ModelStore::new(limits),
            next_slot: 1,
            deliveries: 0,
            tells,
            seed,
            newest_ring: 0,
            crashes: Vec::new(),
        };
        for _ in 0..NODES {
            let ring = SharedRing::new();
            ring.publish(Arc::clone(&rings()[0])).unwrap();
            world.nodes.push(Node {
                dispatcher: None,
                ring,
                incarnation: 0,
                started_ms: 0,
                paused_until: 0,
                restart_at: Some(0),
                skew_ms: 0,
                wall_ms: STARTED_MS,
                store_away_until: 0,
                bus_away_until: 0,
                requests: VecDeque::new(),
                answered: VecDeque::new(),
                producing: VecDeque::new(),
                produced: VecDeque::new(),
                hangups: Vec::new(),
                topic: (0..=LANES).map(|_| Partition::default()).collect(),
                next_tick: 0,
            });
        }
        for index in 0..CLIENTS {
            let connect_at = world.dice.up_to(2_000);
            world.clients.push(Client {
                id: client_id(index),
                connection: None,
                connect_at,
                position: 0,
                has_unacked: false,
                silent_until: 0,
                sent: BTreeMap::new(),
                received: HashMap::new(),
                repeats: 0,
            });
        }
        world
    }

    fn run(&mut self) {
        while self.now < TROUBLE_MS {
            self.trouble();
            self.step(true);
        }
        self.heal();
        while self.now < TROUBLE_MS + PEACE_MS && !self.is_quiet() {
            self.step(false);
        }
        self.judge();
    }

    fn trouble(&mut self) {
        let at = self.dice.below(NODES);
        let now = self.now;
        if self.dice.one_in(400) {
            match self.dice.below(8) {
                0 => self.crash(at),
                1 => {
                    let until = now + 200 + self.dice.up_to(11_000);
                    self.nodes[at].paused_until = until;
                    tell!(self, "n{at} paused until {until}");
                }
                2 => {
                    let until = now + self.dice.up_to(8_000);
                    self.lose_store(at, until);
                }
                3 => {
                    let until = now + self.dice.up_to(8_000);
                    self.nodes[at].bus_away_until = until;
                    tell!(self, "n{at} without Kafka until {until}");
                }
                4 => {
                    let until = now + self.dice.up_to(6_000);
                    for node in 0..NODES {
                        self.lose_store(node, until);
                    }
                }
                5 => {
                    let until = now + self.dice.up_to(6_000);
                    for node in &mut self.nodes {
                        node.bus_away_until = until;
                    }
                    tell!(self, "Kafka away until {until}");
                }
                6 => {
                    let skew = i64::try_from(self.dice.up_to(10_000)).unwrap() - 5_000;
                    self.nodes[at].skew_ms = skew;
                    tell!(self, "n{at} clock off by {skew}");
                }
                _ => {
                    self.newest_ring = (self.newest_ring + 1).min(rings().len() - 1);
                    tell!(self, "ring {}", self.newest_ring + 1);
                }
            }
        }
        // Rings reach nodes at different times.
        if self.dice.one_in(40) {
            let _ = self.nodes[at].ring.publish(Arc::clone(&rings()[self.newest_ring]));
        }
        let client = self.dice.below(CLIENTS);
        if self.dice.one_in(150) {
            self.clients[client].silent_until = now + self.dice.up_to(4_000);
        }
        if self.dice.one_in(120) {
            self.cut(client);
        }
        if self.dice.one_in(4) {
            let to = self.dice.below(CLIENTS);
            let number = self.clients[client].sent.range((to, 0)..(to + 1, 0)).count() as u64;
            let message = Message {
                first_sent: 0,
                accepted: None,
                is_clean: false,
                is_under_way: false,
                given_to: None,
                retry_at: now,
                delivered: None,
                delivered_at: 0,
            };
            self.clients[client].sent.insert((to, number), message);
        }
    }

    fn heal(&mut self) {
        tell!(self, "all heals");
        for index in 0..NODES {
            let now = self.now;
            let node = &mut self.nodes[index];
            node.paused_until = 0;
            node.store_away_until = 0;
            node.bus_away_until = 0;
            node.skew_ms = 0;
            if node.dispatcher.is_none() {
                node.restart_at = Some(now);
            }
            let _ = node.ring.publish(Arc::clone(&rings()[self.newest_ring]));
        }
    }

    fn lose_store(&mut self, at: usize, until: u64) {
        tell!(self, "n{at} without Redis until {until}");
        let node = &mut self.nodes[at];
        node.store_away_until = until;
        // What was answered and not heard is asked again.
        while let Some((_, ticket, request, _)) = node.answered.pop_back() {
            node.requests.push_front((ticket, request));
        }
    }

    fn crash(&mut self, at: usize) {
        tell!(self, "n{at} crashes");
        self.crashes.push(self.now);
        let requests = self.dice.below(3);
        for _ in 0..requests {
            self.execute_one(at);
        }
        if self.dice.one_in(2) {
            self.produce_one(at);
        }
        let restart_at = self.now + 100 + self.dice.up_to(9_000);
        let node = &mut self.nodes[at];
        node.dispatcher = None;
        node.restart_at = Some(restart_at);
        node.requests.clear();
        node.answered.clear();
        node.producing.clear();
        node.produced.clear();
        node.hangups.clear();
        node.paused_until = 0;
        for partition in &mut node.topic {
            partition.next = partition.committed;
            partition.unfinished.clear();
        }
        for client in 0..CLIENTS {
            if self.clients[client].connection.as_ref().is_some_and(|connection| connection.node == at) {
                self.drop_connection(client);
            }
        }
    }

    /// A client's connection ends; its node hears of it later, if at all.
    fn cut(&mut self, client: usize) {
        let later = self.now + self.dice.up_to(3_000);
        if let Some(connection) = &self.clients[client].connection {
            let node = &mut self.nodes[connection.node];
            if node.incarnation == connection.incarnation {
                node.hangups.push((later, connection.session, connection.slot));
            }
        }
        self.drop_connection(client);
    }

    fn drop_connection(&mut self, client: usize) {
        let wait = self.dice.up_to(1_500);
        let now = self.now;
        let client = &mut self.clients[client];
        client.connection = None;
        client.connect_at = now + wait;
        client.has_unacked = false;
        for message in client.sent.values_mut().filter(|message| message.is_under_way) {
            message.is_under_way = false;
            message.is_clean = false;
            message.retry_at = now;
        }
    }

    fn step(&mut self, is_troubled: bool) {
        self.now += STEP_MS;
        for at in 0..NODES {
            self.step_node(at);
        }
        for client in 0..CLIENTS {
            self.step_client(client, is_troubled);
        }
        for at in 0..NODES {
            self.settle(at);
        }
    }

    fn is_paused(&self, at: usize) -> bool {
        self.nodes[at].paused_until > self.now
    }

    fn step_node(&mut self, at: usize) {
        let now = self.now;
        if self.nodes[at].dispatcher.is_none() && self.nodes[at].restart_at.is_some_and(|time| time <= now) {
            self.start(at);
        }
        if self.nodes[at].dispatcher.is_none() || self.is_paused(at) {
            return;
        }
        let node = &mut self.nodes[at];
        let wall = (STARTED_MS + now).saturating_add_signed(node.skew_ms);
        node.wall_ms = node.wall_ms.max(wall);
        let time = Now { wall_ms: node.wall_ms, steady_ms: now - node.started_ms };
        let Some(dispatcher) = &mut node.dispatcher else { return };
        dispatcher.now = time;
        // The store answers, in order.
        while node.store_away_until <= now && node.answered.front().is_some_and(|(due, ..)| *due <= now) {
            let Some((_, ticket, _, answer)) = node.answered.pop_front() else { break };
            dispatcher.on_store(ticket, answer);
        }
        while node.produced.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, ticket)) = node.produced.pop_front() else { break };
            dispatcher.on_produced(ticket);
        }
        if node.bus_away_until <= now {
            self.read_topic(at);
        }
        let node = &mut self.nodes[at];
        let Some(dispatcher) = &mut node.dispatcher else { return };
        let due: Vec<_> = node.hangups.iter().filter(|(due, ..)| *due <= now).copied().collect();
        node.hangups.retain(|(due, ..)| *due > now);
        for (_, session, slot) in due {
            if dispatcher.sessions().get(session).is_some_and(|session| session.connection() == slot) {
                dispatcher.log_out(session);
            }
        }
        if node.next_tick <= now {
            node.next_tick = now + 500;
            dispatcher.tick();
            // What a shard's sweep does.
            let sessions: Vec<Key> = (0..dispatcher.sessions().slots())
                .filter_map(|index| dispatcher.sessions().at(u32::try_from(index).unwrap()))
                .map(|(key, _)| key)
                .collect();
            for key in sessions {
                let right = dispatcher.right(key);
                dispatcher.with_session(key, |session, store, limits, answers, now_ms| {
                    if right.is_claimed && !session.is_detached() {
                        session.spill_overdue(store, limits, now_ms, answers);
                        session.read_on_if_room(store, limits, now_ms);
                    }
                });
            }
        }
    }

    fn start(&mut self, at: usize) {
        let now = self.now;
        let node = &mut self.nodes[at];
        node.restart_at = None;
        node.incarnation = now + 1;
        node.started_ms = now;
        node.next_tick = now;
        let me = Address { node: node_id(at), incarnation: node.incarnation, shard: 0 };
        let time = Now { wall_ms: node.wall_ms, steady_ms: 0 };
        let store = AnyStore::Remote(RemoteStore::default());
        let counters = Arc::new(Counters::default());
        node.dispatcher = Some(Dispatcher::new(me, RULES, store, node.ring.reader(), counters, time));
        tell!(self, "n{at} starts");
    }

    fn read_topic(&mut self, at: usize) {
        for lane in 0..=usize::from(LANES) {
            for _ in 0..4 {
                let node = &mut self.nodes[at];
                let partition = &mut node.topic[lane];
                if lane != 0 && partition.unfinished.len() >= UNFINISHED_MAX {
                    break;
                }
                let Some(parcel) = partition.records.get(partition.next) else { break };
                let offset = partition.next;
                partition.next += 1;
                partition.unfinished.insert(offset);
                let reference = RecordRef { partition: u16::try_from(lane).unwrap(), offset: offset as u64 };
                let (origin, record) = (parcel.origin.clone(), parcel.record.clone());
                if self.tells {
                    println!("{:>7} n{at} reads {lane}/{offset} from {}: {}", self.now, origin.node, name(&record));
                }
                if let Some(dispatcher) = &mut self.nodes[at].dispatcher {
                    dispatcher.on_record(Arrived { at: reference, origin, record });
                }
            }
        }
    }

    fn execute_one(&mut self, at: usize) {
        let delay = self.dice.up_to(30);
        let now = self.now;
        let Some((ticket, request)) = self.nodes[at].requests.pop_front() else { return };
        let incarnation = self.nodes[at].incarnation;
        let answer = self.store.apply(&node_id(at), incarnation, &request, STARTED_MS + now);
        tell!(self, "n{at} store {} -> {}", brief(&request), outcome(&answer));
        self.nodes[at].answered.push_back((now + delay, ticket, request, answer));
    }

    fn produce_one(&mut self, at: usize) {
        let delay = self.dice.up_to(30);
        let Some(parcel) = self.nodes[at].producing.pop_front() else { return };
        if let Some(ticket) = parcel.ticket {
            self.nodes[at].produced.push_back((self.now + delay, ticket));
        }
        let lane = match parcel.lane {
            Lane::Control => 0,
            Lane::Partition(lane) => usize::from(lane),
            Lane::Client(_) => unreachable!("the core names partitions"),
        };
        let to = (0..NODES).find(|index| node_id(*index) == parcel.to).expect("a node of this world");
        self.nodes[to].topic[lane].records.push(*parcel);
    }

    /// Takes what a node has left to do, and lets the store and the bus work.
    fn settle(&mut self, at: usize) {
        if self.is_paused(at) {
            return;
        }
        loop {
            let Some(dispatcher) = &mut self.nodes[at].dispatcher else { return };
            let out = std::mem::take(&mut dispatcher.out);
            let mut answers = std::mem::take(&mut dispatcher.answers);
            let requests: Vec<_> = dispatcher.requests().unwrap().drain(..).collect();
            let is_nothing = out.parcels.is_empty()
                && out.finished.is_empty()
                && out.passed.is_empty()
                && out.welcomes.is_empty()
                && out.closes.is_empty()
                && out.refusals.is_empty()
                && answers.is_empty()
                && requests.is_empty();
            if is_nothing {
                break;
            }
            self.nodes[at].requests.extend(requests);
            self.nodes[at].producing.extend(out.parcels);
            let told: Vec<(Origin, String, bool)> = answers
                .iter()
                .map(|(origin, msg_id, _)| (origin, msg_id.to_owned(), true))
                .chain(out.refusals.iter().map(|(origin, msg_id, ..)| (*origin, msg_id.to_string(), false)))
                .collect();
            answers.clear();
            for (origin, msg_id, is_good) in told {
                match origin.sender() {
                    Sender::Record(record) => self.finish(at, record),
                    Sender::Session(_, key) => self.hear(at, key, &msg_id, is_good),
                    Sender::Nobody | Sender::Publisher(_) => {}
                }
            }
            for record in out.finished {
                self.finish(at, record);
            }
            for record in out.passed {
                let lane = usize::from(record.partition);
                let parcel = &self.nodes[at].topic[lane].records[usize::try_from(record.offset).unwrap()];
                let Record::Fence { id, .. } = parcel.record else { panic!("only fences pass") };
                let origin = parcel.origin.clone();
                let (shard, incarnation) = (origin.shard, origin.incarnation);
                let echo = Parcel {
                    to: origin.node,
                    // Behind whatever was sent back from ahead of it.
                    lane: Lane::Partition(record.partition),
                    origin: Address { node: node_id(at), incarnation: 0, shard: 0 },
                    record: Record::Fenced { id, shard, incarnation },
                    ticket: None,
                };
                self.nodes[at].producing.push_back(Box::new(echo));
                self.finish(at, record);
            }
            for (session, start) in out.welcomes {
                let tells = self.tells;
                let incarnation = self.nodes[at].incarnation;
                let now = self.now;
                for client in &mut self.clients {
                    if let Some(connection) = &mut client.connection
                        && connection.node == at
                        && connection.incarnation == incarnation
                        && connection.session == session
                    {
                        connection.is_welcomed = true;
                        if tells {
                            println!("{now:>7} n{at} welcomes {} at {start:?}", client.id.as_str());
                        }
                    }
                }
            }
            for (slot, reason) in out.closes {
                let index = self.clients.iter().position(|client| {
                    client
                        .connection
                        .as_ref()
                        .is_some_and(|connection| connection.node == at && connection.slot == slot)
                });
                if let Some(index) = index {
                    tell!(self, "n{at} closes c{index}: {reason:?}");
                    self.drop_connection(index);
                }
            }
        }
        let away = self.nodes[at].store_away_until > self.now;
        for _ in 0..8 {
            if !away {
                self.execute_one(at);
            }
            if self.nodes[at].bus_away_until <= self.now {
                self.produce_one(at);
            }
        }
    }

    fn finish(&mut self, at: usize, record: RecordRef) {
        let partition = &mut self.nodes[at].topic[usize::from(record.partition)];
        let offset = usize::try_from(record.offset).unwrap();
        let was_unfinished = partition.unfinished.remove(&offset);
        assert!(was_unfinished, "seed {}: record {record:?} of n{at} was finished twice", self.seed);
        partition.committed = partition.unfinished.first().copied().unwrap_or(partition.next);
    }

    /// A sender hears what became of its message.
    fn hear(&mut self, at: usize, session: Key, msg_id: &str, is_good: bool) {
        let now = self.now;
        let incarnation = self.nodes[at].incarnation;
        if let Some(dispatcher) = &mut self.nodes[at].dispatcher
            && let Some(session) = dispatcher.session_mut(session)
        {
            session.count_ack();
        }
        let later = now + 200 + self.dice.up_to(800);
        let (sender, to, number) = parse_name(msg_id);
        let client = &mut self.clients[sender];
        let is_here = client.connection.as_ref().is_some_and(|connection| {
            connection.node == at && connection.incarnation == incarnation && connection.session == session
        });
        let Some(message) = client.sent.get_mut(&(to, number)).filter(|_| is_here) else { return };
        message.is_under_way = false;
        if is_good {
            message.accepted.get_or_insert(now);
        } else {
            message.is_clean = false;
            message.retry_at = later;
        }
        tell!(self, "{msg_id} {}", if is_good { "accepted" } else { "refused" });
    }

    fn step_client(&mut self, index: usize, is_troubled: bool) {
        let now = self.now;
        if self.clients[index].connection.is_none() {
            if self.clients[index].connect_at <= now {
                self.connect(index);
            }
            return;
        }
        let Some(connection) = &mut self.clients[index].connection else { return };
        let (at, session) = (connection.node, connection.session);
        if self.nodes[at].paused_until > now {
            let since = *connection.stalled_since.get_or_insert(now);
            // The client's own patience: a ping that is not answered.
            if now - since > 3_000 && self.dice.one_in(20) {
                tell!(self, "c{index} gives n{at} up");
                self.cut(index);
            }
            return;
        }
        connection.stalled_since = None;
        if !connection.is_welcomed {
            if now - connection.opened_at > 25_000 {
                self.cut(index);
            }
            return;
        }
        self.read_and_ack(index, at, session, is_troubled);
        if self.clients[index].connection.is_some() {
            self.send_due(index, at, session);
        }
    }

    fn connect(&mut self, index: usize) {
        let at = self.dice.below(NODES);
        let now = self.now;
        if self.nodes[at].dispatcher.is_none() || self.is_paused(at) {
            self.clients[index].connect_at = now + 300;
            return;
        }
        self.next_slot += 1;
        let slot = self.next_slot;
        let client = &self.clients[index];
        let id = client.id.clone();
        let wishes = Wishes { acks: true, receiver_acks: true, resume_offset: Some(client.position) };
        let node = &mut self.nodes[at];
        let Some(dispatcher) = &mut node.dispatcher else { return };
        let hash = dispatcher.hash_of(id.as_str());
        if let Some(older) = dispatcher.find_session(hash, id.as_str()) {
            dispatcher.log_out(older);
        }
        let newcomer = Newcomer { id, hash, connection: Key { index: slot, life: 0 }, wishes };
        let super::Login::Waits(session) = dispatcher.log_in(newcomer) else { panic!("not a node that runs alone") };
        tell!(self, "c{index} connects to n{at} from {}", self.clients[index].position);
        self.clients[index].connection = Some(Connection {
            node: at,
            incarnation: self.nodes[at].incarnation,
            session,
            slot,
            is_welcomed: false,
            opened_at: now,
            stalled_since: None,
            in_flight: Vec::new(),
        });
    }

    fn read_and_ack(&mut self, index: usize, at: usize, session: Key, is_troubled: bool) {
        let mut bytes = Vec::new();
        let is_cut = is_troubled && self.dice.one_in(300);
        let Some(dispatcher) = &mut self.nodes[at].dispatcher else { return };
        let Some(there) = dispatcher.session_mut(session) else { return };
        if there.has_unsent() {
            there.take_unsent(&mut bytes, 2_000);
        }
        if !is_cut {
            dispatcher.with_session(session, |session, store, limits, answers, now_ms| {
                session.on_written(store, now_ms, answers, |_| ());
                session.read_on_if_room(store, limits, now_ms);
            });
        }
        if let Some(connection) = &mut self.clients[index].connection {
            connection.in_flight = bytes;
        }
        self.client_reads(index);
        if is_cut {
            return self.cut(index);
        }
        let must_ack =
            self.clients[index].has_unacked && self.clients[index].silent_until <= self.now && self.dice.one_in(3);
        if must_ack {
            let position = self.clients[index].position;
            self.clients[index].has_unacked = false;
            let Some(dispatcher) = &mut self.nodes[at].dispatcher else { return };
            dispatcher.with_session(session, |session, store, limits, answers, now_ms| {
                session.on_ack_offset(position, store, now_ms, answers);
                session.read_on_if_room(store, limits, now_ms);
            });
        }
    }

    fn client_reads(&mut self, index: usize) {
        let mut decoder = Decoder::new(Role::Client, 100_000);
        let Some(connection) = &mut self.clients[index].connection else { return };
        let mut bytes = std::mem::take(&mut connection.in_flight);
        let mut start = 0;
        while start < bytes.len() {
            let frame = decoder.decode(&mut bytes[start..]).unwrap();
            start += frame.consumed;
            let Some(Event::Text(text)) = frame.event else { break };
            let value: sonic_rs::Value = sonic_rs::from_str(text).unwrap();
            let offset = value["offset"].as_u64().unwrap();
            let msg_id = value["msgId"].as_str().unwrap();
            let (sender, to, number) = parse_name(msg_id);
            let seed = self.seed;
            assert_eq!(to, index, "seed {seed}: {msg_id} came to c{index}");
            let client = &mut self.clients[index];
            assert!(offset > client.position, "seed {seed}: c{index} got offset {offset} after {}", client.position);
            client.position = offset;
            client.has_unacked = true;
            let received = client.received.entry(sender).or_default();
            if received.contains(&number) {
                client.repeats += 1;
                tell!(self, "c{index} gets {msg_id} again");
                continue;
            }
            received.push(number);
            self.deliveries += 1;
            let order = self.deliveries;
            tell!(self, "c{index} gets {msg_id} at {offset}");
            let now = self.now;
            if let Some(message) = self.clients[sender].sent.get_mut(&(to, number)) {
                message.delivered = Some(order);
                message.delivered_at = now;
            }
        }
    }

    fn send_due(&mut self, index: usize, at: usize, session: Key) {
        let now = self.now;
        let due: Vec<(usize, u64)> = self.clients[index]
            .sent
            .iter()
            .filter(|(_, message)| message.accepted.is_none() && !message.is_under_way && message.retry_at <= now)
            .map(|(key, _)| *key)
            .take(8)
            .collect();
        for (to, number) in due {
            let msg_id = format!("c{index}-c{to}-{number}");
            let Some(message) = self.clients[index].sent.get_mut(&(to, number)) else { continue };
            let given_to = (at, self.nodes[at].incarnation);
            message.is_clean = message.first_sent == 0;
            if message.first_sent == 0 {
                message.first_sent = now;
                message.given_to = Some(given_to);
            } else if message.given_to != Some(given_to) {
                message.given_to = None;
            }
            message.is_under_way = true;
            tell!(self, "c{index} sends {msg_id} at n{at}");
            let node = &mut self.nodes[at];
            let wall_ms = node.wall_ms;
            let Some(dispatcher) = &mut node.dispatcher else { return };
            let (from, recipient) = (client_id(index), client_id(to));
            let sender = dispatcher.hash_of(from.as_str());
            let hash = dispatcher.hash_of(recipient.as_str());
            if let Some(session) = dispatcher.session_mut(session) {
                session.expect_ack();
            }
            let inbound = Inbound {
                envelope: Envelope {
                    msg_id: &msg_id,
                    from: from.as_str(),
                    to: recipient.as_str(),
                    field: PayloadField::Payload,
                    payload: "\"some text to give it a length\"",
                    ts_ms: wall_ms,
                },
                origin: Origin::session(0, session),
                wants_ack: true,
                sender,
                identity: identity(sender, &msg_id),
                expires_ms: dispatcher.expiry(wall_ms, None),
            };
            let outcome = dispatcher.deliver(&Arrival {
                inbound,
                msg_id: &msg_id,
                from: from.as_str(),
                to: recipient.as_str(),
                hash,
                hops: 0,
                trail: &[],
            });
            if let Some(outcome) = outcome {
                self.hear(at, session, &msg_id, outcome.is_ok());
            }
        }
    }

    fn is_quiet(&self) -> bool {
        let all_accepted = self.clients.iter().all(|client| {
            client.sent.values().all(|message| message.accepted.is_some() && message.delivered.is_some())
        });
        all_accepted
            && self.clients.iter().all(|client| self.store.kept(&client.id).next().is_none())
            && self.nodes.iter().all(|node| {
                node.requests.is_empty()
                    && node.producing.is_empty()
                    && node.topic.iter().all(|partition| partition.committed == partition.records.len())
                    && node.dispatcher.as_ref().is_some_and(|dispatcher| dispatcher.waiting_size() == (0, 0))
            })
    }

    fn judge(&self) {
        let seed = self.seed;
        for (index, client) in self.clients.iter().enumerate() {
            for ((to, number), message) in &client.sent {
                assert!(
                    message.accepted.is_none() || message.delivered.is_some(),
                    "seed {seed}: c{index}-c{to}-{number} was accepted and never delivered"
                );
                assert!(message.accepted.is_some(), "seed {seed}: c{index}-c{to}-{number} was never accepted");
            }
        }
        for (at, node) in self.nodes.iter().enumerate() {
            for (lane, partition) in node.topic.iter().enumerate() {
                assert_eq!(
                    partition.committed,
                    partition.records.len(),
                    "seed {seed}: n{at} partition {lane} is not done"
                );
            }
            let waiting = node.dispatcher.as_ref().map(Dispatcher::waiting_size);
            assert_eq!(waiting, Some((0, 0)), "seed {seed}: messages wait on n{at} for ever");
        }
        for client in &self.clients {
            assert_eq!(self.store.kept(&client.id).count(), 0, "seed {seed}: {} has not got all", client.id.as_str());
        }
        self.judge_order();
    }

    /// Of what one sender gave one node: what was accepted before another was sent, or ahead of it over the same
    /// connection, arrives before it. Unless a node crashed meanwhile: with it goes what it remembered of the way that
    /// earlier messages took.
    fn judge_order(&self) {
        let seed = self.seed;
        for (index, client) in self.clients.iter().enumerate() {
            for to in 0..CLIENTS {
                let messages: Vec<_> = client.sent.range((to, 0)..(to + 1, 0)).collect();
                for (at, ((_, first), earlier)) in messages.iter().enumerate() {
                    for ((_, second), later) in &messages[at + 1..] {
                        let last = earlier.delivered_at.max(later.delivered_at);
                        let had_crash = self.crashes.iter().any(|crash| (earlier.first_sent..=last).contains(crash));
                        let must_precede = !had_crash
                            && earlier.given_to.is_some()
                            && earlier.given_to == later.given_to
                            && (earlier.is_clean
                                || earlier.accepted.is_some_and(|accepted| accepted < later.first_sent));
                        assert!(
                            !must_precede || earlier.delivered < later.delivered,
                            "seed {seed}: c{index}-c{to}-{second} overtook c{index}-c{to}-{first}"
                        );
                    }
                }
            }
        }
    }
}

fn parse_name(msg_id: &str) -> (usize, usize, u64) {
    let mut parts = msg_id.split('-');
    let mut index = || parts.next().and_then(|part| part.trim_start_matches('c').parse().ok()).unwrap();
    let (sender, to) = (index(), index());
    (sender, to, index() as u64)
}

fn name(record: &Record) -> String {
    match record {
        Record::Message(posted) => format!("{} (hops {})", posted.msg_id, posted.hops),
        other => format!("{other:?}"),
    }
}

fn brief(request: &StoreRequest) -> String {
    match request {
        StoreRequest::Append { client, author, messages, room } => {
            let names: Vec<String> =
                messages.iter().map(|kept| format!("{}@{}", body_name(&kept.body), kept.offset)).collect();
            format!("append to {} by {author:?} {room:?} {names:?}", client.as_str())
        }
        other => format!("{other:?}"),
    }
}

fn outcome(answer: &StoreAnswer) -> String {
    match answer {
        StoreAnswer::Page(page) => {
            let names: Vec<String> =
                page.iter().map(|kept| format!("{}@{}", body_name(&kept.body), kept.offset)).collect();
            format!("page {names:?}")
        }
        other => format!("{other:?}"),
    }
}

fn body_name(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.split('"').nth(7).unwrap_or_default().to_owned()
}

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn whatever_happens_accepted_messages_arrive_in_order() {
    if let Some(seed) = number_of("RTC_SIMULATION_SEED") {
        World::new(seed, true).run();
        return;
    }
    let first = number_of("RTC_SIMULATION_FIRST").unwrap_or(0);
    let seeds = first..first + number_of("RTC_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(first);
    let run = || {
        let (mut messages, mut repeats, mut failed) = (0, 0, Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !seeds.contains(&seed) {
                return (messages, repeats, failed);
            }
            let mut world = World::new(seed, false);
            // One seed that fails says less than all of them together.
            if std::panic::catch_unwind(AssertUnwindSafe(|| world.run())).is_err() {
                failed.push(seed);
            }
            messages += world.clients.iter().map(|client| client.sent.len()).sum::<usize>();
            repeats += world.clients.iter().map(|client| client.repeats).sum::<u64>();
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut messages, mut repeats, mut failed) = (0, 0, Vec::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        for worker in workers {
            let (some, more, seeds) = worker.join().unwrap();
            messages += some;
            repeats += more;
            failed.extend(seeds);
        }
    });
    failed.sort_unstable();
    println!("seeds {seeds:?}: {messages} messages, {repeats} repeats that a client drops");
    assert!(failed.is_empty(), "seeds that failed: {failed:?}");
    assert!(messages > 0, "nothing was simulated");
}
