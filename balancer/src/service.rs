//! The loop: look at Redis, judge who is alive, decide as the leader or follow, publish, show. All of it on one thread;
//! Kafka and Prometheus have theirs and are never waited for.
//!
//! | file | what it owns |
//! |---|---|
//! | `round` | one look, read: who is alive and what each says |
//! | `leading` | what only the leader does: the lease, deciding, publishing |
//! | `account` | what is told of it: log lines, counters, history, the snapshot |

mod account;
mod leading;
mod round;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ring::control::RingUpdate;
use ring::{NodeId, Ring, RingVersion};
use tracing::{debug, error, info, warn};

use crate::decide::{Starting, State};
use crate::forwarder::Forwarder;
use crate::forwarder::watch::Sight;
use crate::presence::{Alive, Presence, PresenceRules};
use crate::prometheus::Answers;
use crate::publisher::Publisher;
use crate::rules::Rules;
use crate::store::{Look, Store};
use crate::view::{Counters, Rebalance, Snapshot, View, shares};

/// Redis counts as having been away after so long without an answer.
const GAP: Duration = Duration::from_secs(2);
/// Slices of the pause between two looks, so that the end is noticed.
const STOP_POLL: Duration = Duration::from_millis(20);

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
    forwarder: Option<Forwarder>,
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
    history: VecDeque<Rebalance>,
    complained: BTreeSet<NodeId>,
    tidied: Instant,
    extreme_logged: Option<Instant>,
    is_redis_away: bool,
    is_mass: bool,
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
            forwarder: None,
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
            history: VecDeque::new(),
            complained: BTreeSet::new(),
            tidied: now,
            extreme_logged: None,
            is_redis_away: false,
            is_mass: false,
        }
    }

    /// Has the topics of dead nodes forwarded while this balancer leads.
    #[must_use]
    pub fn with_forwarder(mut self, forwarder: Forwarder) -> Self {
        self.forwarder = Some(forwarder);
        self
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
        // Before the lease: its readings are by right of it.
        self.forwarder = None;
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
            self.forward(&round.alive);
        } else {
            let now_ms = self.now_ms();
            self.state.observe(&round.reports, &self.settings.rules.policy, now_ms);
            self.show(&round, &[]);
        }
    }

    /// The forwarder goes by the published ring; what it has not heard for a while it does not believe.
    fn forward(&self, alive: &Alive) {
        let Some(forwarder) = &self.forwarder else { return };
        match self.state.ring().filter(|_| self.token > 0) {
            Some(ring) => {
                let alive = alive.beating.iter().chain(&alive.held).cloned().collect();
                forwarder.see(Sight { alive, ring: Arc::clone(ring) });
            }
            None => forwarder.rest(),
        }
    }

    fn on_redis_error(&mut self, error: &redis::RedisError) {
        Counters::add(&self.view.counters.redis_errors);
        if !std::mem::replace(&mut self.is_redis_away, true) {
            warn!(%error, "redis does not answer: the nodes keep their ring");
        }
        if self.token > 0 && self.renewed.elapsed() >= self.settings.lease {
            self.step_down("the lease has run out while redis was away");
            let shown = self.view.snapshot();
            self.view.show(Snapshot { is_leader: false, leader: String::new(), ..(*shown).clone() });
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
        let starting = look.starting.as_deref().and_then(Starting::decode).unwrap_or_default();
        self.state.adopt(Arc::clone(&ring), starting, self.now_ms());
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
        self.shares = shares(&ring);
        self.last_update = Some((update, json.clone()));
    }

    /// Time as it was on Redis' clock at the first look, and as it has passed here since.
    fn now_ms(&self) -> u64 {
        self.epoch_ms.unwrap_or(0).saturating_add(self.since_start_ms())
    }

    fn since_start_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
