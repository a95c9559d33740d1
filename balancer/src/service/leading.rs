//! What only the leader does: it takes the lease and holds it, decides, publishes under its token, and forgets what is
//! long over.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ring::RingVersion;
use tracing::{debug, error, info, warn};

use super::Service;
use super::round::Round;
use crate::decide::{Change, Inputs, decide};
use crate::publisher::{Outgoing, RING_TOPIC, SCALE_TOPIC};
use crate::scaling::Direction;
use crate::store::{Lease, Published};
use crate::view::{Counters, shares};

/// How often nodes that are long gone are forgotten.
const TIDY_INTERVAL: Duration = Duration::from_secs(60);

impl Service {
    pub(super) fn lead(&mut self) -> redis::RedisResult<()> {
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

    pub(super) fn step_down(&mut self, reason: &str) {
        warn!(token = self.token, reason, "leading no more");
        self.token = 0;
        self.leader = String::new();
        if let Some(forwarder) = &self.forwarder {
            forwarder.rest();
        }
    }

    fn announce_last(&mut self) {
        if let Some((_, json)) = &self.last_update {
            self.publisher.send(Outgoing { topic: RING_TOPIC, key: "ring".to_owned(), payload: json.clone() });
        }
    }

    pub(super) fn decide(&mut self, round: &Round) {
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
        if let Ok(Published::Ours) = self.store.publish(self.token, update, json, &self.state.starting().encode()) {
            warn!(version = %update.version.version, "redis had lost the ring: written again");
            self.seen_ring = Some(json.clone());
            self.announce_last();
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
        match self.store.publish(self.token, &change.update, &json, &self.state.starting().encode()) {
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
        self.shares = shares(&change.ring);
        self.count(change);
        true
    }

    /// Forgets what is long over: nodes that are gone, drains of nodes that have come back.
    pub(super) fn tidy(&mut self, round: &Round) {
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
}
