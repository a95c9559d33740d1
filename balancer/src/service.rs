//! The loop: look at Redis, judge who is alive, decide as the leader or follow, publish, show. All of it on one thread;
//! Kafka and Prometheus have theirs and are never waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ring::control::{Heartbeat, RingUpdate};
use ring::{NodeId, Ring, RingVersion};
use tracing::{debug, error, info, warn};

use crate::decide::{Change, Decision, Inputs, State, decide};
use crate::heartbeats::{Refusal, Report, Reports};
use crate::presence::{Alive, Presence, PresenceRules};
use crate::prometheus::Answers;
use crate::publisher::{Outgoing, Publisher, RING_TOPIC, SCALE_TOPIC};
use crate::rules::Rules;
use crate::scaling::Direction;
use crate::store::{Lease, Look, Published, Store};
use crate::triggers::Cause;
use crate::view::{Counters, HISTORY_MAX, NodeView, Rebalance, Snapshot, View, shares};

/// How often nodes that are long gone are forgotten.
const TIDY_INTERVAL: Duration = Duration::from_secs(60);
/// Redis counts as having been away after so long without an answer.
const GAP: Duration = Duration::from_secs(2);
/// Slices of the pause between two looks, so that the end is noticed.
const STOP_POLL: Duration = Duration::from_millis(20);
/// The same extreme is not logged again sooner.
const EXTREME_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How the loop behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This balancer.
    pub name: NodeId,
    /// The rules of the core.
    pub rules: Rules,
    /// Seed of a cluster's first ring.
    pub seed: u64,
    /// Between two looks.
    pub poll: Duration,
    /// How long a silent leader stays the leader.
    pub lease: Duration,
    /// Silence after which a node is gone.
    pub heartbeat_timeout: Duration,
    /// More than this share at once is held.
    pub vanished_share_max: f64,
}

/// The loop with everything it holds.
pub struct Service {
    settings: Settings,
    store: Store,
    publisher: Publisher,
    answers: Option<Arc<Answers>>,
    view: Arc<View>,
    state: State,
    presence: Presence,
    presence_rules: PresenceRules,
    started: Instant,
    // Redis' clock at the first look; from there on time is counted here, so that it never steps.
    epoch_ms: Option<u64>,
    // Our lease's token; 0 while we do not lead.
    token: u64,
    leader: String,
    renewed: Instant,
    // The ring as it stands in Redis, so that it is read only when it has changed.
    seen_ring: Option<Vec<u8>>,
    // The last update, as it is announced again after a take-over or a loss.
    last_update: Option<(RingUpdate, Vec<u8>)>,
    version_floor: RingVersion,
    shares: Vec<f64>,
    history: std::collections::VecDeque<Rebalance>,
    complained: BTreeSet<NodeId>,
    tidied: Instant,
    extreme_logged: Option<Instant>,
    is_redis_away: bool,
    is_mass: bool,
}

/// One look, read.
struct Round {
    look: Look,
    alive: Alive,
    heartbeats: BTreeMap<NodeId, Heartbeat>,
    reports: Reports,
}

impl Service {
    /// Puts the loop together; nothing is asked yet.
    pub fn new(
        settings: Settings,
        store: Store,
        publisher: Publisher,
        answers: Option<Arc<Answers>>,
        view: Arc<View>,
    ) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let presence_rules = PresenceRules {
            heartbeat_timeout_ms: millis(settings.heartbeat_timeout),
            vanished_share_max: settings.vanished_share_max,
            gap_ms: millis(GAP.max(settings.poll * 3)),
        };
        let now = Instant::now();
        Self {
            settings,
            store,
            publisher,
            answers,
            view,
            state: State::default(),
            presence: Presence::default(),
            presence_rules,
            started: now,
            epoch_ms: None,
            token: 0,
            leader: String::new(),
            renewed: now,
            seen_ring: None,
            last_update: None,
            version_floor: RingVersion::FIRST,
            shares: Vec::new(),
            history: std::collections::VecDeque::new(),
            complained: BTreeSet::new(),
            tidied: now,
            extreme_logged: None,
            is_redis_away: false,
            is_mass: false,
        }
    }

    /// Runs until `is_stopping` comes true, then gives the lease back.
    pub fn run(mut self, is_stopping: &AtomicBool) {
        while !is_stopping.load(Ordering::Relaxed) {
            let begun = Instant::now();
            self.turn();
            while begun.elapsed() < self.settings.poll && !is_stopping.load(Ordering::Relaxed) {
                std::thread::sleep(STOP_POLL.min(self.settings.poll));
            }
        }
        if self.token > 0 {
            match self.store.resign(&self.settings.name, self.token) {
                Ok(()) => info!(token = self.token, "lease given back"),
                Err(error) => debug!(%error, "lease not given back: it ends by itself"),
            }
        }
    }

    fn turn(&mut self) {
        let look = match self.store.look() {
            Ok(look) => look,
            Err(error) => return self.on_redis_error(&error),
        };
        if std::mem::take(&mut self.is_redis_away) {
            info!("redis answers again");
        }
        let since_start_ms = self.since_start_ms();
        self.epoch_ms.get_or_insert(look.redis_ms.saturating_sub(since_start_ms));
        self.follow_ring(&look);
        if let Err(error) = self.lead() {
            return self.on_redis_error(&error);
        }
        let round = self.read(look);
        if self.token > 0 {
            self.decide(&round);
            self.tidy(&round);
        } else {
            let now_ms = self.now_ms();
            self.state.observe(&round.reports, &self.settings.rules.policy, now_ms);
            self.show(&round, &[]);
        }
    }

    fn on_redis_error(&mut self, error: &redis::RedisError) {
        Counters::add(&self.view.counters.redis_errors);
        if !std::mem::replace(&mut self.is_redis_away, true) {
            warn!(%error, "redis does not answer: the nodes keep their ring");
        }
        if self.token > 0 && self.renewed.elapsed() >= self.settings.lease {
            self.step_down("the lease has run out while redis was away");
        }
    }

    /// Takes over the ring that stands in Redis, whoever wrote it.
    fn follow_ring(&mut self, look: &Look) {
        if look.ring == self.seen_ring {
            return;
        }
        self.seen_ring.clone_from(&look.ring);
        let Some(json) = &look.ring else { return };
        let update = match RingUpdate::decode(json) {
            Ok(update) => update,
            Err(error) => {
                Counters::add(&self.view.counters.strange_rings);
                error!(%error, "the ring in redis cannot be read: going by the last one");
                return;
            }
        };
        let version = update.version.version;
        self.version_floor = self.version_floor.max(version);
        if self.state.ring().is_some_and(|ring| ring.version() >= version) {
            return;
        }
        let ring = Arc::new(Ring::from_update(&update));
        let moved_share = self.state.ring().and_then(|old| ring::diff(old, &ring).ok()).map(|diff| diff.moved_share());
        info!(%version, nodes = update.node_weights.len(), reason = update.reason, "ring taken over");
        self.state.adopt(Arc::clone(&ring), self.now_ms());
        self.remember(Rebalance {
            ts: update.ts,
            version: version.get(),
            nodes: update.node_weights.len(),
            reason: update.reason.clone(),
            cause: None,
            moved_share,
            peak_before: None,
            peak_after: None,
        });
        self.serve_ring(&ring);
        self.last_update = Some((update, json.clone()));
    }

    fn serve_ring(&mut self, ring: &Arc<Ring>) {
        self.shares = shares(ring);
        if let Err(error) = self.view.ring.publish(Arc::clone(ring)) {
            debug!(%error, "a ring that is served already");
        }
    }

    fn remember(&mut self, rebalance: Rebalance) {
        self.history.push_front(rebalance);
        self.history.truncate(HISTORY_MAX);
    }

    fn lead(&mut self) -> redis::RedisResult<()> {
        let asked = Instant::now();
        match self.store.lead(&self.settings.name, self.token, self.settings.lease)? {
            Lease::Ours(token) => {
                // Counted from before the question: the lease began no sooner.
                self.renewed = asked;
                if token != self.token {
                    self.token = token;
                    self.take_over();
                }
                self.leader = self.settings.name.to_string();
            }
            Lease::Theirs(leader) => {
                if self.token > 0 {
                    self.step_down("another balancer leads");
                }
                if self.leader != leader {
                    info!(leader, "following");
                }
                self.leader = leader;
            }
        }
        Ok(())
    }

    fn take_over(&mut self) {
        Counters::add(&self.view.counters.take_overs);
        info!(token = self.token, "leading");
        self.state.hold_scale_in(self.now_ms());
        // The leader before us may have ended between Redis and Kafka. Nodes ignore what they know.
        self.announce_last();
    }

    /// Time as it was on Redis' clock at the first look, and as it has passed here since.
    fn now_ms(&self) -> u64 {
        self.epoch_ms.unwrap_or(0).saturating_add(self.since_start_ms())
    }

    fn since_start_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn step_down(&mut self, reason: &str) {
        warn!(token = self.token, reason, "leading no more");
        self.token = 0;
        self.leader = String::new();
    }

    fn announce_last(&mut self) {
        if let Some((_, json)) = &self.last_update {
            self.publisher.send(Outgoing { topic: RING_TOPIC, key: "ring".to_owned(), payload: json.clone() });
        }
    }

    fn read(&mut self, look: Look) -> Round {
        let now_ms = self.since_start_ms();
        let ring = self.state.ring().cloned();
        let in_ring = ring.iter().flat_map(|ring| ring.weights().iter().map(|(node, _)| node));
        let alive = self.presence.judge(&self.presence_rules, &look.beats, in_ring, look.redis_ms, now_ms);
        if alive.is_mass && !self.is_mass {
            Counters::add(&self.view.counters.mass_holds);
            error!(silent = ?alive.held, "many nodes have vanished at once: the ring is held for a second timeout");
        }
        self.is_mass = alive.is_mass;
        let mut heartbeats = BTreeMap::new();
        let mut reports = Reports::default();
        for node in alive.beating.iter().chain(&alive.held) {
            let heartbeat = self.heartbeat(node, look.bodies.get(node));
            let is_draining = look.draining.get(node).is_some_and(|meant| {
                let now = heartbeat.as_ref().and_then(|heartbeat| heartbeat.incarnation);
                meant.is_none() || now.is_none() || *meant == now
            });
            if !is_draining {
                let mut report = heartbeat
                    .as_ref()
                    .map_or_else(|| Report { node: node.clone(), load: None, ring_version: None }, Report::from);
                if let (Some(answers), Some(load)) = (&self.answers, &mut report.load) {
                    answers.overlay(node, load);
                }
                if let Err(refusal) = reports.insert(report) {
                    self.complain(node, &refusal);
                }
            }
            heartbeats.extend(heartbeat.map(|heartbeat| (node.clone(), heartbeat)));
        }
        self.complained.retain(|node| look.beats.contains_key(node));
        Round { look, alive, heartbeats, reports }
    }

    /// Reads what a node says. One that beats and cannot be understood is alive, and its load is not known.
    fn heartbeat(&mut self, node: &NodeId, body: Option<&Vec<u8>>) -> Option<Heartbeat> {
        let body = body?;
        match Heartbeat::decode(body) {
            Ok(heartbeat) if heartbeat.node_id == *node => {
                self.complained.remove(node);
                Some(heartbeat)
            }
            Ok(_) => {
                self.complain(node, &Refusal::Duplicate);
                None
            }
            Err(error) => {
                self.complain(node, &Refusal::Unreadable(error));
                None
            }
        }
    }

    /// Counts every time, logs once until it is well again.
    fn complain(&mut self, node: &NodeId, refusal: &Refusal) {
        self.view.counters.count_refused(refusal.cause());
        if self.complained.insert(node.clone()) {
            warn!(%node, %refusal, "heartbeat refused: its load is not known");
        }
    }

    fn decide(&mut self, round: &Round) {
        self.repair_ring(round);
        let before = self.state.clone();
        let version_floor = self.version_floor.max(self.publisher.progress().newest());
        let inputs = Inputs { reports: &round.reports, version_floor, seed: self.settings.seed };
        let (begun, now_ms) = (Instant::now(), self.now_ms());
        let decision = decide(&mut self.state, &self.settings.rules, &inputs, now_ms);
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.view.counters.decision_micros.fetch_add(micros, Ordering::Relaxed);
        Counters::add(&self.view.counters.decisions);
        self.log(&decision);
        if let Some(change) = &decision.change
            && !self.publish(change)
        {
            self.state = before;
            return self.show(round, &decision.scores);
        }
        if let Some(scale) = &decision.scale {
            let counter = match scale.direction {
                Direction::Out => &self.view.counters.scale_out,
                Direction::In => &self.view.counters.scale_in,
            };
            Counters::add(counter);
            info!(action = scale.direction.as_str(), reason = scale.signal.reason, "scaling recommended");
            if let Ok(payload) = scale.signal.encode() {
                self.publisher.send(Outgoing { topic: SCALE_TOPIC, key: "scale".to_owned(), payload });
            }
        }
        self.show(round, &decision.scores);
    }

    /// Redis has lost the ring, or has an older one: it gets ours back before anything is decided.
    fn repair_ring(&mut self, round: &Round) {
        if round.look.ring.is_some() {
            return;
        }
        let Some((update, json)) = &self.last_update else { return };
        match self.store.publish(self.token, update, json) {
            Ok(Published::Ours) => {
                warn!(version = %update.version.version, "redis had lost the ring: written again");
                self.seen_ring = Some(json.clone());
                self.announce_last();
            }
            Ok(_) | Err(_) => debug!("redis had lost the ring, and does not take it yet"),
        }
    }

    /// Writes the ring to Redis under our token, then hands it to Kafka; false where it did not come about.
    fn publish(&mut self, change: &Change) -> bool {
        let json = match change.update.encode() {
            Ok(json) => json,
            Err(error) => {
                error!(%error, "a ring cannot be written as a message");
                return false;
            }
        };
        match self.store.publish(self.token, &change.update, &json) {
            Ok(Published::Ours) => {}
            Ok(Published::Fenced) => {
                Counters::add(&self.view.counters.fenced);
                self.step_down("a newer leader has fenced us off");
                return false;
            }
            Ok(Published::Stale(version)) => {
                warn!(version, "redis has a newer ring: going by that");
                let version = version.parse().ok().and_then(|version| RingVersion::new(version).ok());
                self.version_floor = self.version_floor.max(version.unwrap_or(RingVersion::FIRST));
                return false;
            }
            Err(error) => {
                self.on_redis_error(&error);
                return false;
            }
        }
        self.publisher.send(Outgoing { topic: RING_TOPIC, key: "ring".to_owned(), payload: json.clone() });
        self.seen_ring = Some(json.clone());
        self.last_update = Some((change.update.clone(), json));
        self.version_floor = self.version_floor.max(change.update.version.version);
        self.serve_ring(&change.ring);
        self.count(change);
        true
    }

    fn count(&mut self, change: &Change) {
        let (update, counters) = (&change.update, &self.view.counters);
        Counters::add(&counters.recalculations);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share, 0 to 1")]
        counters.moved_millionths.fetch_add((change.moved_share * 1e6) as u64, Ordering::Relaxed);
        if !change.joined.is_empty() || !change.removed.is_empty() {
            info!(joined = ?change.joined, removed = ?change.removed, "topology changed");
        }
        let version = update.version.version;
        debug!(weights = ?update.node_weights, "node weights calculated");
        info!(
            %version,
            nodes = update.node_weights.len(),
            weights = shown(update),
            reason = update.reason,
            moved_share = change.moved_share,
            "ring recomputed"
        );
        self.remember(Rebalance {
            ts: update.ts,
            version: version.get(),
            nodes: update.node_weights.len(),
            reason: update.reason.clone(),
            cause: change.cause.as_ref().map(told),
            moved_share: Some(change.moved_share),
            peak_before: change.peak.map(|peak| peak.0),
            peak_after: change.peak.map(|peak| peak.1),
        });
    }

    fn log(&mut self, decision: &Decision) {
        debug!(scores = ?decision.scores, "load scores");
        let Some(extreme) = &decision.extreme else {
            self.extreme_logged = None;
            return;
        };
        if self.extreme_logged.is_none_or(|at| at.elapsed() >= EXTREME_LOG_INTERVAL) {
            self.extreme_logged = Some(Instant::now());
            warn!(
                cpu_imbalance = extreme.cpu_imbalance,
                mem_imbalance = extreme.mem_imbalance,
                overloaded = ?extreme.overloaded,
                latency_spike = ?extreme.latency_spike,
                "extreme load detected"
            );
        }
    }

    /// Forgets what is long over: nodes that are gone, drains of nodes that have come back.
    fn tidy(&mut self, round: &Round) {
        for (node, meant) in &round.look.draining {
            let is_silent = !round.alive.beating.contains(node) && !round.alive.held.contains(node);
            let now = round.heartbeats.get(node).and_then(|heartbeat| heartbeat.incarnation);
            let is_another = meant.is_some() && now.is_some() && *meant != now;
            if (is_silent || is_another) && self.store.undrain(node).is_ok() {
                info!(%node, "drain is over");
            }
        }
        if self.tidied.elapsed() >= TIDY_INTERVAL {
            self.tidied = Instant::now();
            if let Err(error) = self.store.tidy(round.look.redis_ms) {
                debug!(%error, "nodes that are long gone stay in redis");
            }
        }
    }

    fn show(&self, round: &Round, scores: &[(NodeId, f64)]) {
        let ring = self.state.ring();
        let empty = BTreeSet::new();
        let in_ring: BTreeSet<&NodeId> =
            ring.map_or(empty, |ring| ring.weights().iter().map(|(node, _)| node).collect());
        let names: BTreeSet<&NodeId> =
            in_ring.iter().copied().chain(&round.alive.beating).chain(&round.alive.held).collect();
        let node = |node: &NodeId| {
            let heartbeat = round.heartbeats.get(node);
            let load = round.reports.report(node).and_then(|report| report.load);
            let load = load.or_else(|| heartbeat.map(Into::into));
            let index = ring.and_then(|ring| ring.weights().index(node));
            let state = if round.look.draining.contains_key(node) {
                "draining"
            } else if round.alive.held.contains(node) {
                "held"
            } else if round.alive.beating.binary_search(node).is_err() {
                "gone"
            } else if index.is_none() {
                "joining"
            } else {
                "up"
            };
            NodeView {
                node_id: node.clone(),
                state,
                weight: ring.and_then(|ring| ring.weights().weight(node)).map(ring::Weight::get),
                share: index.and_then(|index| self.shares.get(index.get()).copied()),
                score: scores.binary_search_by(|(name, _)| name.cmp(node)).ok().map(|index| scores[index].1),
                cpu: load.map(|load| load.cpu),
                mem: load.map(|load| load.mem),
                active_conn: load.map(|load| load.connections),
                mps: load.map(|load| load.mps),
                p95_latency_ms: load.map(|load| load.latency_ms),
                kafka_topic_lag_latency_ms: load.map(|load| load.lag_ms),
                heartbeat_age_ms: round.look.beats.get(node).map(|beat| round.look.redis_ms.saturating_sub(*beat)),
                ring_version: heartbeat.and_then(|heartbeat| heartbeat.ring_version).map(RingVersion::get),
                url: heartbeat.and_then(|heartbeat| heartbeat.url.clone()),
                zone: heartbeat.and_then(|heartbeat| heartbeat.zone.clone()),
                incarnation: heartbeat.and_then(|heartbeat| heartbeat.incarnation),
            }
        };
        self.view.show(Snapshot {
            looked: Some(Instant::now()),
            redis_ms: round.look.redis_ms,
            is_leader: self.token > 0,
            leader: self.leader.clone(),
            nodes: names.into_iter().map(node).collect(),
            history: self.history.clone(),
        });
    }
}

/// Weights for the log; of very many nodes the first.
fn shown(update: &RingUpdate) -> String {
    const NODES_MAX: usize = 20;
    let weights = update.node_weights.iter().take(NODES_MAX).map(|(node, weight)| format!("{node}={weight}"));
    let mut text = weights.collect::<Vec<_>>().join(" ");
    if update.node_weights.len() > NODES_MAX {
        text.push_str(" …");
    }
    text
}

/// A cause in words.
fn told(cause: &Cause) -> String {
    let names = |nodes: &[NodeId]| nodes.iter().take(5).map(NodeId::as_str).collect::<Vec<_>>().join(", ");
    match cause {
        Cause::Extreme { overloaded } => format!("overloaded, at once: {}", names(overloaded)),
        Cause::Overloaded { overloaded } => format!("overloaded: {}", names(overloaded)),
        Cause::Spread { spread } => format!("loads differ by {:.0} %", spread * 100.0),
        Cause::Latency { node } => format!("slow: {node}"),
        Cause::Imbalance { peak } => format!("peak {:.0} % above the mean", peak * 100.0),
        Cause::Periodic => "not even yet".to_owned(),
        Cause::Equalise => "load is even".to_owned(),
    }
}
