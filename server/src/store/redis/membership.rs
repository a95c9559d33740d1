//! The thread that tells the others that this node is alive, and hears who else is; it keeps leases, too. It has a
//! connection of its own, so that a busy store delays no heartbeat. The rules of who is alive are in
//! `routing/membership.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam::channel::{self, Receiver, RecvTimeoutError};
use redis::{RedisError, Value};
use ring::control::{Heartbeat, MESSAGE_BYTES_MAX, RING_UPDATE_BYTES_MAX};
use ring::{NODES_MAX, NodeId, RingVersion};
use tracing::{info, warn};

use super::backoff::Backoff;
use super::counters::StoreCounters;
use super::keys;
use super::lease::{Lease, LeaseKeeper, lease};
use super::link::{Address, BadUrl, Link};
use super::thread::StartError;
use crate::load::Load;
use crate::routing::membership::{Member, Observer, SILENCE_MS_MAX, SharedMembership};

/// How often a node says that it is alive.
pub const BEAT_INTERVAL: Duration = Duration::from_secs(2);
/// How long the heartbeat itself is kept: a little longer than it counts.
const BEAT_KEPT_S: u64 = SILENCE_MS_MAX / 1000 + 4;
/// How long a silent node's name is remembered.
const SILENT_KEPT_MS: u64 = 24 * 60 * 60 * 1000;
/// How long a reply may take: a heartbeat that waits longer is late anyway.
const REPLY_LIMIT: Duration = Duration::from_secs(2);
/// The longest the thread sleeps: how late a lease is given back that nobody wants any more.
const STEP: Duration = Duration::from_secs(1);
/// How often an id that may still be in use is asked for again.
const CLAIM_INTERVAL: Duration = Duration::from_millis(250);
/// Leases that one node may want.
const LEASES_MAX: usize = 1024;

const START: &str = include_str!("scripts/start.lua");
const BEAT: &str = include_str!("scripts/beat.lua");
const LEAVE: &str = include_str!("scripts/leave.lua");

/// What a heartbeat says beside what this thread knows itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Open connections.
    pub active_conn: u64,
    /// How busy the machine is.
    pub load: Load,
    /// Messages per second.
    pub mps: f64,
    /// 95th percentile of delivery latency, in milliseconds.
    pub p95_latency_ms: f64,
    /// Age of what is read from this node's topic, in milliseconds.
    pub kafka_topic_lag_latency_ms: f64,
    /// The ring this node follows.
    pub ring_version: Option<RingVersion>,
}

/// What the rest of the node must hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// This node's id is its own: heartbeats go out.
    Joined,
    /// Another process has this node's id: this one must end.
    IdInUse,
    /// The others may have taken this node for dead: what it holds may have been taken over.
    Silent {
        /// How long they heard nothing, in milliseconds.
        silent_ms: u64,
    },
    /// The last ring, as JSON: read once, at the first connection.
    Ring(Vec<u8>),
}

/// Who this node is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its id.
    pub node: NodeId,
    /// Which life of it: microseconds since 1970 when it began.
    pub incarnation: u64,
    /// Where clients reach it.
    pub url: Option<String>,
    /// Its availability zone.
    pub zone: Option<String>,
}

/// A life's number: microseconds since 1970.
pub fn new_incarnation() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX).min(crate::store::bounds::NUMBER_MAX)
}

/// Whether a node may begin.
#[derive(Debug)]
pub enum Claimed {
    /// Under this number: the one it proposed, or a higher one if it had to be.
    Yes {
        /// The number of this life.
        incarnation: u64,
    },
    /// Another process has the id, and is alive.
    InUse,
    /// Nobody can tell: the store is away.
    Unknown(RedisError),
}

/// Takes a node's id, waiting for as long as a dead holder would still count as alive.
///
/// # Errors
/// When the URL names no Redis.
pub fn claim_node_id(url: &str, node: &NodeId, proposed: u64) -> Result<Claimed, BadUrl> {
    let mut address = Address::parse(url)?;
    let mut claim = IdClaim::default();
    let mut attempt = || -> Result<Claimed, RedisError> {
        let mut link = address.connect(REPLY_LIMIT)?;
        loop {
            match claim.ask(&mut link, node, proposed)? {
                Asked::Yes(incarnation) => return Ok(Claimed::Yes { incarnation }),
                Asked::InUse => return Ok(Claimed::InUse),
                Asked::Wait => std::thread::sleep(CLAIM_INTERVAL),
            }
        }
    };
    Ok(attempt().unwrap_or_else(Claimed::Unknown))
}

enum Asked {
    Yes(u64),
    Wait,
    InUse,
}

/// Tells a dead holder of an id, whose last heartbeat grows old, from a live one, which is heard of again.
#[derive(Default)]
struct IdClaim {
    heard: Option<i64>,
}

impl IdClaim {
    fn ask(&mut self, link: &mut Link, node: &NodeId, proposed: u64) -> Result<Asked, RedisError> {
        let (life, proposed) = (keys::life(node), proposed.to_string());
        let silence = SILENCE_MS_MAX.to_string();
        let args = ["EVAL", START, "2", keys::HEARTBEATS, &life, node.as_str(), &proposed, &silence];
        match link.ask(&args)? {
            Value::Array(items) => match items.as_slice() {
                [Value::Int(1), Value::Int(incarnation)] => Ok(Asked::Yes(u64::try_from(*incarnation).unwrap_or(0))),
                [Value::Int(0), Value::Int(heard)] => {
                    let is_alive = self.heard.is_some_and(|before| before != *heard);
                    self.heard = Some(*heard);
                    Ok(if is_alive { Asked::InUse } else { Asked::Wait })
                }
                _ => Err(foreign_reply()),
            },
            _ => Err(foreign_reply()),
        }
    }
}

/// The running thread; ends with this value, in good order.
pub struct Members {
    membership: SharedMembership,
    // While this is there the thread goes on.
    leases: Option<channel::Sender<LeaseKeeper>>,
    owner: String,
    is_joined: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Members {
    /// Starts it. `figures` is asked at each heartbeat; `events` hears what the node must know; both run on this thread
    /// and must not wait.
    ///
    /// # Errors
    /// When the URL names no Redis, or no thread can be started.
    pub fn start(
        url: &str,
        identity: Identity,
        counters: Arc<StoreCounters>,
        figures: impl FnMut() -> Figures + Send + 'static,
        events: impl FnMut(Event) + Send + 'static,
    ) -> Result<Self, StartError> {
        let (leases, wanted) = channel::bounded(LEASES_MAX);
        let membership = SharedMembership::new();
        let is_joined = Arc::new(AtomicBool::new(false));
        let owner = format!("{}/{}", identity.node, identity.incarnation);
        let keeper = Keeper {
            address: Address::parse(url)?,
            link: None,
            identity,
            counters,
            figures: Box::new(figures),
            events: Box::new(events),
            membership: membership.clone(),
            observer: Observer::default(),
            claim: IdClaim::default(),
            claim_at: Instant::now(),
            beat_at: Instant::now(),
            answered_ms: None,
            has_ring: false,
            is_out: false,
            wanted,
            leases: Vec::new(),
            is_joined: Arc::clone(&is_joined),
            backoff: Backoff::default(),
        };
        let thread = std::thread::Builder::new().name("membership".into()).spawn(move || keeper.run())?;
        Ok(Self { membership, leases: Some(leases), owner, is_joined, thread: Some(thread) })
    }

    /// Who is alive.
    pub fn membership(&self) -> SharedMembership {
        self.membership.clone()
    }

    /// True once the node's id is its own.
    pub fn is_joined(&self) -> bool {
        self.is_joined.load(Ordering::Relaxed)
    }

    /// Wants the lease on `key`, for as long as the value lives. `None` when this node wants too many.
    pub fn lease(&self, key: String) -> Option<Lease> {
        let (lease, keeper) = lease(key, self.owner.clone());
        self.leases.as_ref()?.try_send(keeper).ok().map(|()| lease)
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        self.leases = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Keeper {
    address: Address,
    link: Option<Link>,
    identity: Identity,
    counters: Arc<StoreCounters>,
    figures: Box<dyn FnMut() -> Figures + Send>,
    events: Box<dyn FnMut(Event) + Send>,
    membership: SharedMembership,
    observer: Observer,
    claim: IdClaim,
    claim_at: Instant,
    beat_at: Instant,
    // The server's time in its last answer to a heartbeat.
    answered_ms: Option<u64>,
    has_ring: bool,
    // Another process has the id: this one must say nothing more.
    is_out: bool,
    wanted: Receiver<LeaseKeeper>,
    leases: Vec<LeaseKeeper>,
    is_joined: Arc<AtomicBool>,
    backoff: Backoff,
}

impl Keeper {
    fn run(mut self) {
        loop {
            let wait = match self.step() {
                Ok(()) => self.rest(),
                Err(err) => {
                    self.link = None;
                    if self.backoff.should_log(Instant::now()) {
                        warn!(redis = self.address.shown(), %err, "heartbeat failed, trying again");
                    }
                    self.backoff.fail(Instant::now())
                }
            };
            match self.wanted.recv_timeout(wait) {
                Ok(lease) if self.leases.len() < LEASES_MAX => self.leases.push(lease),
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                // The other end is gone: this must end.
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.leave();
    }

    /// How long there is nothing to do.
    fn rest(&self) -> Duration {
        let next = match self.is_joined.load(Ordering::Relaxed) {
            _ if self.is_out => return STEP,
            true => self.beat_at,
            false => self.claim_at,
        };
        let next = self.leases.iter().map(LeaseKeeper::ask_at).fold(next, Instant::min);
        next.saturating_duration_since(Instant::now()).min(STEP)
    }

    fn step(&mut self) -> Result<(), RedisError> {
        let link = match &mut self.link {
            Some(link) => link,
            None => self.link.insert(self.address.connect(REPLY_LIMIT)?),
        };
        if !self.has_ring {
            let end = RING_UPDATE_BYTES_MAX.to_string();
            // One byte more than is allowed: whoever decodes it sees that it is too long.
            let update = link.ask(&["GETRANGE", keys::RING_VERSION, "0", &end]);
            self.has_ring = true;
            match update {
                Ok(Value::BulkString(bytes)) if !bytes.is_empty() => (self.events)(Event::Ring(bytes)),
                Ok(_) => {}
                Err(err) if err.code().is_some() => self.counters.malformed_members.add(1),
                Err(err) => {
                    self.has_ring = false;
                    return Err(err);
                }
            }
        }
        let now = Instant::now();
        if !self.is_joined.load(Ordering::Relaxed) && !self.is_out && now >= self.claim_at {
            self.claim_at = now + CLAIM_INTERVAL;
            match self.claim.ask(link, &self.identity.node, self.identity.incarnation)? {
                Asked::Yes(incarnation) => {
                    self.is_joined.store(true, Ordering::Relaxed);
                    if incarnation != self.identity.incarnation {
                        // An earlier life's clock was ahead. Its number only orders lives of one node: keep this one.
                        warn!(node = %self.identity.node, "an earlier life of this node has a later number");
                    }
                    info!(node = %self.identity.node, incarnation = self.identity.incarnation, "node joined");
                    (self.events)(Event::Joined);
                }
                Asked::InUse => self.out(),
                Asked::Wait => {}
            }
        }
        if now >= self.beat_at && self.is_joined.load(Ordering::Relaxed) {
            self.beat()?;
        }
        self.keep_leases()?;
        self.backoff.succeed();
        Ok(())
    }

    fn out(&mut self) {
        self.is_out = true;
        self.is_joined.store(false, Ordering::Relaxed);
        (self.events)(Event::IdInUse);
    }

    fn beat(&mut self) -> Result<(), RedisError> {
        let now = Instant::now();
        // From the plan, not from now: a late one does not shift all that follow. Unless it is later than the next.
        self.beat_at = (self.beat_at + BEAT_INTERVAL).max(now);
        let heartbeat = self.heartbeat();
        let json = match heartbeat.encode() {
            Ok(json) => String::from_utf8(json).unwrap_or_default(),
            Err(err) => {
                // Figures out of their range must not make a live node look dead.
                warn!(%err, "heartbeat without figures");
                let plain = Heartbeat { mps: 0.0, p95_latency_ms: 0.0, kafka_topic_lag_latency_ms: 0.0, ..heartbeat };
                plain.encode().ok().and_then(|json| String::from_utf8(json).ok()).unwrap_or_default()
            }
        };
        let Identity { node, incarnation, .. } = &self.identity;
        let reply = {
            let Some(link) = &mut self.link else { return Ok(()) };
            link.ask(&[
                "EVAL",
                BEAT,
                "3",
                keys::HEARTBEATS,
                &keys::life(node),
                &keys::node(node),
                node.as_str(),
                &incarnation.to_string(),
                &json,
                &BEAT_KEPT_S.to_string(),
                &SILENCE_MS_MAX.to_string(),
                &NODES_MAX.to_string(),
                &MESSAGE_BYTES_MAX.to_string(),
                &SILENT_KEPT_MS.to_string(),
            ])?
        };
        let Value::Array(items) = reply else { return Err(foreign_reply()) };
        let mut items = items.into_iter();
        let mut number = || match items.next() {
            Some(Value::Int(number)) => u64::try_from(number).ok(),
            _ => None,
        };
        if number() == Some(0) {
            warn!(node = %node, "another process has this node's id");
            self.out();
            return Ok(());
        }
        let (Some(server_ms), Some(heard_ms), Some(malformed)) = (number(), number(), number()) else {
            return Err(foreign_reply());
        };
        self.counters.beats.add(1);
        self.counters.malformed_members.add(malformed);
        let (members, refused) = decode(items);
        self.counters.malformed_members.add(refused);
        let membership = self.observer.observe(members, server_ms);
        self.counters.nodes.set(membership.len() as u64);
        let known = self.membership.load();
        if *known != *membership {
            // Each ring makes all nodes tell another version: that is no news of who is there.
            if !known.has_same_lives(membership) {
                info!(nodes = membership.len(), "membership changed");
            }
            self.membership.publish(membership.clone());
        }
        // From the last that was answered, too: one whose answer was lost may have been taken only just now.
        let heard_ms = if heard_ms == 0 { server_ms } else { heard_ms };
        let silent_ms = server_ms.saturating_sub(self.answered_ms.unwrap_or(heard_ms).min(heard_ms));
        self.answered_ms = Some(server_ms);
        if silent_ms > SILENCE_MS_MAX {
            self.counters.beats_late.add(1);
            warn!(silent_ms, "this node was silent so long that others may have taken it for dead");
            (self.events)(Event::Silent { silent_ms });
        }
        Ok(())
    }

    fn heartbeat(&mut self) -> Heartbeat {
        let figures = (self.figures)();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Heartbeat {
            node_id: self.identity.node.clone(),
            active_conn: figures.active_conn,
            mps: figures.mps,
            p95_latency_ms: figures.p95_latency_ms,
            kafka_topic_lag_latency_ms: figures.kafka_topic_lag_latency_ms,
            cpu: figures.load.cpu,
            mem: figures.load.mem,
            timestamp_ms: u64::try_from(since.as_millis()).unwrap_or(0),
            incarnation: Some(self.identity.incarnation),
            url: self.identity.url.clone(),
            zone: self.identity.zone.clone(),
            ring_version: figures.ring_version,
        }
    }

    fn keep_leases(&mut self) -> Result<(), RedisError> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let mut result = Ok(());
        self.leases.retain_mut(|lease| {
            if result.is_err() {
                return true;
            }
            match lease.keep(link) {
                Ok(is_wanted) => is_wanted,
                Err(err) => {
                    result = Err(err);
                    true
                }
            }
        });
        result
    }

    /// Gives back what others would otherwise wait for. If that fails they wait.
    fn leave(mut self) {
        let Some(link) = &mut self.link else { return };
        for lease in self.leases.drain(..).chain(self.wanted.try_iter()) {
            let _ = lease.end(link);
        }
        if self.is_joined.load(Ordering::Relaxed) {
            let Identity { node, incarnation, .. } = &self.identity;
            let _ = link.ask(&[
                "EVAL",
                LEAVE,
                "3",
                keys::HEARTBEATS,
                &keys::life(node),
                &keys::node(node),
                node.as_str(),
                &incarnation.to_string(),
            ]);
        }
    }
}

/// The live nodes, and how many values were refused.
fn decode(mut items: impl Iterator<Item = Value>) -> (Vec<(NodeId, Member)>, u64) {
    let (mut members, mut refused) = (Vec::new(), 0);
    while let (Some(name), Some(json)) = (items.next(), items.next()) {
        match member(&name, &json) {
            Some(member) => members.push(member),
            None => refused += 1,
        }
    }
    (members, refused)
}

fn member(name: &Value, json: &Value) -> Option<(NodeId, Member)> {
    let (Value::BulkString(name), Value::BulkString(json)) = (name, json) else { return None };
    let node = NodeId::new(std::str::from_utf8(name).ok()?).ok()?;
    let heartbeat = Heartbeat::decode(json).ok().filter(|heartbeat| heartbeat.node_id == node)?;
    let member = Member {
        incarnation: heartbeat.incarnation?,
        url: heartbeat.url.map(String::into_boxed_str),
        zone: heartbeat.zone.map(String::into_boxed_str),
        ring_version: heartbeat.ring_version,
    };
    Some((node, member))
}

fn foreign_reply() -> RedisError {
    RedisError::from((redis::ErrorKind::UnexpectedReturnType, "a reply that no script of ours gives"))
}
