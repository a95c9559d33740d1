//! Several nodes of the pure core in virtual time, over a model Kafka and a model Redis: nodes crash, restart and pause,
//! lose Kafka or Redis, have wrong clocks and get new rings at different times; clients hop between them, fall silent,
//! send and send again. Whatever happens, every accepted message arrives, in order, at the right client only.
//!
//! A failure prints its seed: `RTC_SIMULATION_SEED=17 cargo test -p rtc-server simulation -- --nocapture` runs that one
//! and tells its story; `RTC_SIMULATION_SEEDS=20000` runs more than the usual number, beginning with
//! `RTC_SIMULATION_FIRST`.
//!
//! In a second world nodes hear of each other's silence, and a balancer acts on it: there order is not judged across the
//! moment at which a topic changes hands. In a quieter world two nodes only pause: there order also holds between
//! messages that a sender gave to both.
//!
//! Here is the world and how it goes round: `trouble`, what goes wrong; `node`, what drives a core; `client`, who talks;
//! `judge`, what must be true; `story` and `dice`, how it is told and what it depends on.

mod balancer;
mod client;
mod dice;
mod judge;
mod node;
mod story;
mod trouble;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use ring::{NodeId, Ring, RingVersion, SharedRing, Weight};

use self::balancer::Balancer;
use self::dice::Dice;
use self::story::tell;
use super::membership::Observer;
use super::{Dispatcher, Rules};
use crate::bus::Parcel;
use crate::protocol::{AckStatus, ClientId};
use crate::shard::slab::Key;
use crate::shard::{OutboxLimits, SessionLimits};
use crate::store::bounds::BufferLimits;
use crate::store::model::ModelStore;
use crate::store::request::{StoreAnswer, StoreRequest, Ticket};

const SEEDS: u64 = 1_200;
const SEEDS_OF_SILENCE: u64 = 800;
const SEEDS_OF_PAUSES: u64 = 500;
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

fn node_id(index: usize) -> NodeId {
    NodeId::new(&format!("n{index}")).unwrap()
}

fn client_id(index: usize) -> ClientId {
    ClientId::try_from(format!("c{index}").as_str()).unwrap()
}

/// The nodes' weights change with every version.
const WEIGHTS: [[u64; NODES]; 4] = [[100, 100, 100], [100, 300, 10], [10, 100, 300], [300, 10, 100]];

/// A ring's version, and which nodes are in it.
type RingName = (u64, [bool; NODES]);

/// The ring of this name. All stories share them: filling their tables would be most of a story's cost.
fn ring((version, members): RingName) -> Arc<Ring> {
    static BUILT: LazyLock<Mutex<HashMap<RingName, Arc<Ring>>>> = LazyLock::new(Mutex::default);
    let mut known = BUILT.lock().unwrap();
    let build = || {
        let weights = WEIGHTS[usize::try_from(version - 1).unwrap() % WEIGHTS.len()];
        let nodes = (0..NODES).filter(|index| members[*index]);
        let nodes = nodes.map(|index| (node_id(index), Weight::new(weights[index]).unwrap()));
        Arc::new(Ring::build(RingVersion::new(version).unwrap(), 0, nodes).unwrap())
    };
    Arc::clone(known.entry((version, members)).or_insert_with(build))
}

/// What goes wrong in a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Everything there is, while nobody hears who is alive.
    Anything,
    /// The same, with nodes that are taken for dead and are not, and a balancer that acts on it.
    Silence,
    /// Two nodes pause, and clients hop between them and fall silent.
    Pauses,
}

impl Kind {
    /// How many of the nodes have clients, and trouble.
    fn nodes(self) -> usize {
        if self == Self::Pauses { 2 } else { NODES }
    }

    fn first_ring(self) -> RingName {
        (1, std::array::from_fn(|index| index < self.nodes()))
    }

    /// Nodes hear of each other's silence, and a balancer acts on it.
    fn has_balancer(self) -> bool {
        self == Self::Silence
    }
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
    // When it last told that it is alive, and who else it thinks is.
    beat_at: u64,
    observer: Observer,
    // Until when it may read its topic; it has let go of it once in this life.
    lease_until: u64,
    is_reading: bool,
    has_let_go: bool,
    // Somebody else has read it since.
    was_forwarded: bool,
}

struct Message {
    first_sent: u64,
    accepted: Option<u64>,
    // Accepted over the connection it was first sent on, with no error before.
    is_clean: bool,
    is_under_way: bool,
    // It lost its place behind earlier ones of its sender when the node would not take it.
    was_refused: bool,
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
    kind: Kind,
    dice: Dice,
    now: u64,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    store: ModelStore,
    next_slot: u32,
    deliveries: u64,
    tells: bool,
    seed: u64,
    newest_ring: RingName,
    balancer: Balancer,
    crashes: Vec<u64>,
    // When a topic was taken over by the forwarder, and when by its node again.
    handovers: Vec<u64>,
}

impl World {
    fn new(kind: Kind, seed: u64, tells: bool) -> Self {
        let limits = BufferLimits { recipient_bytes: 1_000_000, recipient_messages: 2_000 };
        let mut world = Self {
            kind,
            dice: Dice::new(seed),
            now: 0,
            nodes: Vec::new(),
            clients: Vec::new(),
            store: ModelStore::new(limits),
            next_slot: 1,
            deliveries: 0,
            tells,
            seed,
            newest_ring: kind.first_ring(),
            balancer: Balancer::default(),
            crashes: Vec::new(),
            handovers: Vec::new(),
        };
        for _ in 0..NODES {
            let shared = SharedRing::new();
            shared.publish(ring(kind.first_ring())).unwrap();
            world.nodes.push(Node {
                dispatcher: None,
                ring: shared,
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
                beat_at: 0,
                observer: Observer::default(),
                lease_until: 0,
                is_reading: false,
                has_let_go: false,
                was_forwarded: false,
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

    fn step(&mut self, is_troubled: bool) {
        self.now += STEP_MS;
        if self.kind.has_balancer() {
            self.step_balancer(is_troubled);
        }
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
}

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn whatever_happens_accepted_messages_arrive_in_order() {
    run_seeds(Kind::Anything, SEEDS);
}

#[test]
fn whoever_is_taken_for_dead_accepted_messages_arrive() {
    run_seeds(Kind::Silence, SEEDS_OF_SILENCE);
}

#[test]
fn what_a_client_that_moves_sends_arrives_in_order() {
    run_seeds(Kind::Pauses, SEEDS_OF_PAUSES);
}

fn run_seeds(kind: Kind, usual: u64) {
    if let Some(seed) = number_of("RTC_SIMULATION_SEED") {
        World::new(kind, seed, true).run();
        return;
    }
    let first = number_of("RTC_SIMULATION_FIRST").unwrap_or(0);
    let seeds = first..first + number_of("RTC_SIMULATION_SEEDS").unwrap_or(usual);
    let next = AtomicU64::new(first);
    let run = || {
        let (mut messages, mut repeats, mut failed) = (0, 0, Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !seeds.contains(&seed) {
                return (messages, repeats, failed);
            }
            let mut world = World::new(kind, seed, false);
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
    println!("{kind:?}, seeds {seeds:?}: {messages} messages, {repeats} repeats that a client drops");
    assert!(failed.is_empty(), "{kind:?}, seeds that failed: {failed:?}");
    assert!(messages > 0, "nothing was simulated");
}
