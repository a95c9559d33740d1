//! The account that is given of the loop's work: log lines, counters, the history of rings, and the snapshot that the
//! port serves. Decides nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ring::control::RingUpdate;
use ring::{NodeId, RingVersion};
use tracing::{debug, info, warn};

use super::Service;
use super::round::Round;
use crate::decide::{Change, Decision};
use crate::triggers::Cause;
use crate::view::{Counters, HISTORY_MAX, NodeView, Rebalance, Snapshot};

/// The same extreme is not logged again sooner.
const EXTREME_LOG_INTERVAL: Duration = Duration::from_secs(60);

impl Service {
    pub(super) fn remember(&mut self, rebalance: Rebalance) {
        self.history.push_front(rebalance);
        self.history.truncate(HISTORY_MAX);
    }

    pub(super) fn count(&mut self, change: &Change) {
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

    pub(super) fn log(&mut self, decision: &Decision) {
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

    pub(super) fn show(&self, round: &Round, scores: &[(NodeId, f64)]) {
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
        // After its nodes: whoever looks a client up by it finds its owner's address.
        if let Some(ring) = ring
            && self.view.ring.load().is_none_or(|served| served.version() < ring.version())
            && let Err(error) = self.view.ring.publish(Arc::clone(ring))
        {
            debug!(%error, "a ring that is served already");
        }
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
