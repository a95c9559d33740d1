//! What one node of several has beside its shards: the bus over Kafka, the store over Redis, heartbeats, the ring as it
//! is announced. Starts and stops them together; each works in its own threads and waits for its own server.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ring::control::{DrainRequest, RingUpdate};
use ring::{NodeId, Ring, SharedRing};
use thiserror::Error;

use crate::bus::control::{Control, Follower};
use crate::bus::kafka::counters::ControlCounters;
use crate::bus::kafka::{
    Config as KafkaConfig, Kafka, KafkaBus, Lease as ReadingLease, Setup, StartError as KafkaError,
};
use crate::drain::{Pace, WINDOW_MAX};
use crate::metrics::{Counters, Page};
use crate::routing::membership::SharedMembership;
use crate::shard::handover::Mail;
use crate::shard::mailbox;
use crate::store::bounds::BufferLimits;
use crate::store::redis::{
    BadUrl, Claimed, Event, Figures, Identity, Lease, Members, RedisStore, StartError as RedisError, StoreCounters,
    StoreHandle, StoreSettings, claim_node_id, new_incarnation,
};
use crate::vitals::Vitals;

/// Requests that may wait for Redis.
const STORE_QUEUE_REQUESTS: usize = 100_000;
/// Bytes of them.
const STORE_QUEUE_BYTES: usize = 256 * 1024 * 1024;
/// How long the end waits for what is on its way to Redis and to Kafka.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// How a node joins others.
#[derive(Debug, Clone)]
pub struct ClusterSettings {
    /// How Kafka is spoken to.
    pub kafka: KafkaConfig,
    /// Which Redis.
    pub redis: String,
    /// Where clients reach this node.
    pub url: Option<String>,
    /// Its availability zone.
    pub zone: Option<String>,
    /// The bounds of one recipient's replay buffer.
    pub buffer: BufferLimits,
    /// How long a client is remembered after it was last heard of.
    pub memory: Duration,
}

/// Why a node does not join.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The address of Redis.
    #[error("redis: {0}")]
    Url(#[from] BadUrl),
    /// Another process has the id.
    #[error(
        "node id {0} is in use by another process that is alive: give this one another --node-id, or stop that one"
    )]
    InUse(NodeId),
    /// The store's threads.
    #[error("redis: {0}")]
    Store(#[from] RedisError),
    /// The bus.
    #[error("{0}")]
    Bus(#[from] KafkaError),
}

/// Which life of a node this is.
///
/// # Errors
/// When another process has its id. With Redis away nobody can tell: then it is found out later.
pub fn begin_life(redis: &str, node: &NodeId) -> Result<u64, JoinError> {
    let proposed = new_incarnation();
    match claim_node_id(redis, node, proposed)? {
        Claimed::Yes { incarnation } => Ok(incarnation),
        Claimed::InUse => Err(JoinError::InUse(node.clone())),
        Claimed::Unknown(error) => {
            tracing::warn!(%error, "redis does not answer: the node starts, and joins when it does");
            Ok(proposed)
        }
    }
}

/// What the shards and the admin port need of the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Links {
    /// Which life of this node this is.
    pub incarnation: u64,
    /// The way to other nodes.
    pub bus: KafkaBus,
    /// The way to the store.
    pub store: StoreHandle,
    /// Who is alive.
    pub membership: SharedMembership,
    control: Arc<ControlCounters>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    is_joined: AtomicBool,
    is_id_in_use: AtomicBool,
    rings_refused: std::sync::atomic::AtomicU64,
}

impl Links {
    /// What keeps this node from serving as it should, in words; none when all is there.
    pub fn missing(&self) -> Option<&'static str> {
        if self.state.is_id_in_use.load(Ordering::Relaxed) {
            return Some("another process has this node's id");
        }
        match (self.store.is_up(), self.bus.is_up(), self.state.is_joined.load(Ordering::Relaxed)) {
            (false, false, _) => Some("redis and kafka do not answer"),
            (false, true, _) => Some("redis does not answer"),
            (true, false, _) => Some("kafka does not answer"),
            (true, true, false) => Some("this node's id is not its own yet"),
            (true, true, true) => None,
        }
    }

    /// What Redis promises less than it should.
    pub fn weakness(&self) -> Option<Arc<String>> {
        self.store.weakness()
    }

    /// Adds what is counted here to a page of metrics.
    pub fn add_to(&self, page: &mut Page) {
        self.store.counters().add_to(page);
        self.bus.counters().add_to(page);
        self.control.write_to(page);
        let refused = self.state.rings_refused.load(Ordering::Relaxed);
        let help = "Announced rings that were not newer, or could not be used.";
        page.add("rtc_socket_ring_refused_total", "", crate::metrics::Kind::Counter, help, refused);
    }
}

/// The running parts; whoever holds them ends them.
pub struct Cluster {
    links: Links,
    kafka: Kafka,
    store: RedisStore,
    // Held for what they do.
    _members: Arc<Members>,
    _follower: Follower,
}

struct Reading(Lease);

impl ReadingLease for Reading {
    fn token(&self) -> Option<u64> {
        self.0.token()
    }
}

impl Cluster {
    /// Starts all of it; waits for no server.
    ///
    /// # Errors
    /// When a setting cannot be used, or a thread cannot be had.
    ///
    /// # Panics
    /// Never: the first lease that a node wants always fits.
    #[expect(clippy::too_many_arguments, reason = "what a node is made of, named once")]
    pub fn start(
        settings: ClusterSettings,
        node: &NodeId,
        incarnation: u64,
        mailboxes: &[mailbox::Sender<Mail>],
        ring: &SharedRing,
        shards: Vec<Arc<Counters>>,
        vitals: Arc<Vitals>,
        on_drain: impl Fn(Pace) + Send + 'static,
    ) -> Result<Self, JoinError> {
        let counters = Arc::new(StoreCounters::default());
        let store_settings = StoreSettings {
            url: settings.redis.clone(),
            node: node.clone(),
            incarnation,
            limits: settings.buffer,
            memory: settings.memory,
            queue_requests: STORE_QUEUE_REQUESTS,
            queue_bytes: STORE_QUEUE_BYTES,
        };
        let store = RedisStore::start(&store_settings, mailboxes.to_vec(), Arc::clone(&counters))?;
        let state = Arc::new(State::default());
        let identity = Identity { node: node.clone(), incarnation, url: settings.url, zone: settings.zone };
        let lag: Arc<std::sync::OnceLock<KafkaBus>> = Arc::default();
        let figures = figures(ring.clone(), shards, vitals, Arc::clone(&lag));
        let on_event = {
            let (state, ring) = (Arc::clone(&state), ring.clone());
            move |event| on_event(&state, &ring, event)
        };
        let members = Arc::new(Members::start(&settings.redis, identity, counters, figures, on_event)?);
        let lease = members.lease(rim::lease::topic_key(node.as_str())).expect("the first lease of a node fits");
        let setup = Setup {
            config: settings.kafka.clone(),
            node: node.clone(),
            incarnation,
            mailboxes: mailboxes.to_vec(),
            ring: ring.clone(),
            lease: Arc::new(Reading(lease)),
        };
        let kafka = Kafka::start(setup)?;
        let bus = kafka.bus().clone();
        let _ = lag.set(bus.clone());
        let on_control = {
            let (state, ring, node) = (Arc::clone(&state), ring.clone(), node.clone());
            move |control| match control {
                Control::Ring(update) => adopt(&state, &ring, &update),
                Control::Drain(request) if request.node_id == node => {
                    if request.incarnation.is_some_and(|meant| meant != incarnation) {
                        // It stands last in the topic, and this node reads it when it starts anew.
                        tracing::info!(reason = request.reason, "an earlier life of this node was asked to drain");
                        return;
                    }
                    let pace = pace(&request);
                    let (window, disconnects_max) = (pace.window, pace.disconnects_max);
                    tracing::info!(reason = request.reason, ?window, disconnects_max, "asked to drain");
                    on_drain(pace);
                }
                Control::Drain(_) => {}
            }
        };
        let follower = Follower::start(&settings.kafka, node, bus.clone(), on_control)?;
        let (control, membership) = (Arc::clone(follower.counters()), members.membership());
        let links = Links { incarnation, bus, store: store.handle(), membership, control, state };
        Ok(Self { links, kafka, store, _members: members, _follower: follower })
    }

    /// What others need of it.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Waits a moment for Kafka, for what can only be known then.
    ///
    /// # Errors
    /// When this node's topic does not fit its message limit.
    pub fn check(&self, patience: Duration) -> Result<(), JoinError> {
        self.kafka.wait(patience)?;
        Ok(())
    }

    /// Ends it, once the shards have ended: what is on its way still goes.
    pub fn stop(self) {
        let unconfirmed = self.kafka.stop(END_PATIENCE);
        let is_empty = self.store.stop(END_PATIENCE);
        if unconfirmed > 0 || !is_empty {
            tracing::warn!(unconfirmed, "left with something on its way: it was not confirmed to anyone");
        }
    }
}

/// How quickly the balancer wants the node to drain.
fn pace(request: &DrainRequest) -> Pace {
    let now_ms = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    let window = Duration::from_millis(request.deadline.saturating_sub(now_ms)).min(WINDOW_MAX);
    Pace { window, disconnects_max: NonZeroU64::new(request.max_disconnects) }
}

fn on_event(state: &State, ring: &SharedRing, event: Event) {
    match event {
        Event::Joined => state.is_joined.store(true, Ordering::Relaxed),
        Event::IdInUse => {
            state.is_id_in_use.store(true, Ordering::Relaxed);
            tracing::error!("another process has this node's id: stop one of them, or give it another --node-id");
        }
        // Nobody appends past a node that may be alive, so that nothing was taken from this one.
        Event::Silent { silent_ms } => tracing::warn!(silent_ms, "the others have not heard of this node for a while"),
        Event::Ring(bytes) => match RingUpdate::decode(&bytes) {
            Ok(update) => adopt(state, ring, &update),
            Err(error) => {
                state.rings_refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "the ring in redis cannot be used");
            }
        },
    }
}

/// Takes a ring that is newer than the current one.
fn adopt(state: &State, ring: &SharedRing, update: &RingUpdate) {
    let is_newer = ring.load().is_none_or(|current| update.version.version > current.version());
    let built = is_newer.then(|| Ring::from_update(update));
    match built.map(|built| ring.publish(Arc::new(built))) {
        Some(Ok(())) => {
            let (version, nodes) = (update.version.version.get(), update.node_weights.len());
            tracing::info!(version, nodes, reason = update.reason, "ring updated");
        }
        Some(Err(_)) | None => _ = state.rings_refused.fetch_add(1, Ordering::Relaxed),
    }
}

/// What this node says of itself at each heartbeat.
fn figures(
    ring: SharedRing,
    shards: Vec<Arc<Counters>>,
    vitals: Arc<Vitals>,
    bus: Arc<std::sync::OnceLock<KafkaBus>>,
) -> impl FnMut() -> Figures + Send + 'static {
    let sum = move |of: fn(&Counters) -> u64| shards.iter().map(|shard| of(shard)).sum::<u64>();
    let mut before: Option<(Instant, u64)> = None;
    move || {
        let (now, messages) = (Instant::now(), sum(|shard| shard.messages_in.value()));
        let mps = match before.replace((now, messages)) {
            #[allow(clippy::cast_precision_loss, reason = "a rate for people and for a balancer")]
            Some((then, earlier)) => messages.saturating_sub(earlier) as f64 / (now - then).as_secs_f64().max(0.001),
            None => 0.0,
        };
        let lag = bus.get().map_or(Duration::ZERO, KafkaBus::lag);
        Figures {
            active_conn: sum(|shard| shard.connections.value()),
            load: vitals.load(),
            mps,
            p95_latency_ms: vitals.p95_latency_ms(),
            kafka_topic_lag_latency_ms: lag.as_secs_f64() * 1000.0,
            ring_version: ring.load().map(|ring| ring.version()),
        }
    }
}
