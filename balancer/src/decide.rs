//! The whole decision: what the nodes report goes in, at most one new ring and one scale signal come out.
//!
//! Pure: no I/O, no clock. What comes out counts as published: a caller that cannot publish starts from the ring that
//! is published, with [`State::adopt`].

mod promise;
mod starting;

use std::sync::Arc;

use ring::control::{RingUpdate, WHOLE_MAX};
use ring::{NodeId, NodeWeights, Ring, RingVersion, Weight};

use crate::heartbeats::{Load, Reports};
use crate::policy::{self, Candidate, WEIGHT_AVERAGE, WEIGHT_MIN};
use crate::rules::{PolicyKind, PolicyRules, Rules};
use crate::scaling::{Recommendation, Scaling};
use crate::score::{self, Score};
use crate::smoothing::Smoothing;
use crate::triggers::{self, Ages, Cause, Seen};
use promise::Promises;
use starting::Start;

pub use starting::Starting;

/// The plan stays so far below the limit of movement: the ring deals slots out to within a per cent.
const MOVED_SHARE_MARGIN: f64 = 0.96;
/// Nodes that a reason names; the update must fit its limit with the largest ring.
const REASON_NODES_MAX: usize = 50;
/// Attempts to stay below the limit of movement on the real ring.
const ATTEMPTS_MAX: usize = 3;

/// What the balancer remembers between decisions.
#[derive(Debug, Clone, Default)]
pub struct State {
    ring: Option<Arc<Ring>>,
    smoothing: Smoothing,
    starting: Starting,
    scaling: Scaling,
    updated_ms: Option<u64>,
    overload_ms: Option<u64>,
    // Updates because of overload that followed on each other.
    reliefs: u32,
    promises: Promises,
    // Invariant: never goes back, whatever `now` the caller gives.
    now_ms: u64,
}

/// What a decision is made from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The nodes that are alive.
    pub reports: &'a Reports,
    /// The newest version that is known from elsewhere; the next is above it.
    pub version_floor: RingVersion,
    /// Seed of a cluster's first ring.
    pub seed: u64,
}

/// What was decided.
#[derive(Debug, Clone, Default)]
pub struct Decision {
    /// A new ring, if there should be one.
    pub change: Option<Change>,
    /// More nodes or fewer, if there should be.
    pub scale: Option<Recommendation>,
    /// Every node's score, in order of name.
    pub scores: Vec<(NodeId, f64)>,
    /// A node has too much to do, or the fleet is far from even.
    pub extreme: Option<Extreme>,
}

/// A new ring and its grounds.
#[derive(Debug, Clone)]
pub struct Change {
    /// What is published.
    pub update: RingUpdate,
    /// The same, built.
    pub ring: Arc<Ring>,
    /// Nodes that were not in the last ring.
    pub joined: Vec<NodeId>,
    /// Nodes that are not in this one.
    pub removed: Vec<NodeId>,
    /// Why weights were computed anew, where no node has come or gone.
    pub cause: Option<Cause>,
    /// Share of all keys that move, 0 to 1; 0 for a first ring.
    pub moved_share: f64,
    /// Peak over mean load, before and as expected after; none where nothing is known of the load.
    pub peak: Option<(f64, f64)>,
}

/// The fleet's extremes, for the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Extreme {
    /// Difference of the largest and the smallest cpu.
    pub cpu_imbalance: f64,
    /// Difference of the largest and the smallest mem.
    pub mem_imbalance: f64,
    /// Nodes above their limits.
    pub overloaded: Vec<NodeId>,
    /// A node much slower than the others.
    pub latency_spike: Option<NodeId>,
}

impl State {
    /// Takes a ring over that was decided elsewhere, with what whoever decided it knew of slow starts, unless it is older
    /// than the one that is known.
    pub fn adopt(&mut self, ring: Arc<Ring>, mut starting: Starting, now_ms: u64) {
        if self.ring.as_ref().is_some_and(|known| known.version() >= ring.version()) {
            return;
        }
        starting.retain(|node, start| {
            // Whoever wrote it may have had a clock that was ahead.
            start.joined_ms = start.joined_ms.min(now_ms);
            ring.weights().weight(node).is_some()
        });
        self.starting = starting;
        self.smoothing.follow(&ring);
        self.promises.make(None);
        self.ring = Some(ring);
        self.updated_ms = Some(now_ms);
    }

    /// Returns the last ring.
    pub fn ring(&self) -> Option<&Arc<Ring>> {
        self.ring.as_ref()
    }

    /// Returns which nodes are in their slow start.
    pub fn starting(&self) -> &Starting {
        &self.starting
    }

    /// Makes the first scale-in wait: what an earlier leader has signalled is not known.
    pub fn hold_scale_in(&mut self, now_ms: u64) {
        self.scaling.hold_in(now_ms);
    }

    /// Takes reports in without deciding anything.
    pub fn observe(&mut self, reports: &Reports, rules: &PolicyRules, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        self.smoothing.observe(reports, rules, self.now_ms);
    }
}

/// Decides. Time that steps back is taken to stand still.
pub fn decide(state: &mut State, rules: &Rules, inputs: &Inputs<'_>, now_ms: u64) -> Decision {
    state.observe(inputs.reports, &rules.policy, now_ms.min(WHOLE_MAX));
    if inputs.reports.is_empty() {
        // No ring is better than an empty one: the nodes keep what they have.
        return Decision::default();
    }
    let round = Round::new(state, rules, inputs);
    let (change, mut decision) = (round.change(state), round.decision());
    if let Some(change) = &change {
        state.ring = Some(Arc::clone(&change.ring));
        state.updated_ms = Some(state.now_ms);
        // A first ring has looked at the load already: the same load is no reason for a second.
        let was_first = change.removed.is_empty() && change.joined.len() == round.nodes.len();
        if matches!(change.cause, Some(Cause::Extreme { .. })) || (was_first && decision.extreme.is_some()) {
            let memory_ms = triggers::relief_memory_ms(state.promises.broken(), rules.policy.kind, &rules.triggers);
            let is_next = state.overload_ms.is_some_and(|at_ms| state.now_ms - at_ms < memory_ms);
            state.reliefs = if is_next { state.reliefs.saturating_add(1) } else { 1 };
            state.overload_ms = Some(state.now_ms);
        }
        state.smoothing.follow(&change.ring);
        state.promises.make(change.peak.filter(|_| change.cause.is_some()));
    }
    let now_ms = state.now_ms;
    decision.scale = state.scaling.recommend(&round.loads, &rules.scaling, now_ms);
    decision.change = change;
    decision
}

/// One decision under way; every list is in order of the nodes' names.
struct Round<'a> {
    rules: &'a Rules,
    inputs: &'a Inputs<'a>,
    now_ms: u64,
    nodes: Vec<&'a NodeId>,
    // What was just reported.
    loads: Vec<Option<Load>>,
    // Weights in the last ring; none for nodes that join.
    weights: Vec<Option<Weight>>,
    scores: Vec<Option<Score>>,
    deviations: Vec<Option<f64>>,
    slow_deviations: Vec<Option<f64>>,
}

impl<'a> Round<'a> {
    fn new(state: &State, rules: &'a Rules, inputs: &'a Inputs<'a>) -> Self {
        let nodes: Vec<&NodeId> = inputs.reports.iter().map(|report| &report.node).collect();
        let loads: Vec<Option<Load>> = inputs.reports.iter().map(|report| report.load).collect();
        let ring = state.ring.as_deref();
        let weights: Vec<Option<Weight>> = nodes.iter().map(|node| ring?.weights().weight(node)).collect();
        let per_weight = |loads: Vec<Option<Load>>| match rules.policy.kind {
            PolicyKind::Proportional => loads,
            PolicyKind::Feedback => {
                loads.into_iter().zip(&weights).map(|(load, weight)| Some(even(load?, *weight))).collect()
            }
        };
        let quick = match rules.policy.kind {
            PolicyKind::Proportional => loads.clone(),
            PolicyKind::Feedback => nodes.iter().map(|node| state.smoothing.quick(node)).collect(),
        };
        let slow = nodes.iter().map(|node| state.smoothing.slow(node)).collect();
        let scores = score::scores(&per_weight(quick), &rules.score);
        let slow_scores = score::scores(&per_weight(slow), &rules.score);
        let deviations = score::deviations(&scores, &rules.score);
        let slow_deviations = score::deviations(&slow_scores, &rules.score);
        Self { rules, inputs, now_ms: state.now_ms, nodes, loads, weights, scores, deviations, slow_deviations }
    }

    fn decision(&self) -> Decision {
        let scores = self.nodes.iter().zip(&self.scores);
        let scores = scores.filter_map(|(node, score)| score.map(|score| ((*node).clone(), score.total))).collect();
        Decision { scores, extreme: self.extreme(), ..Decision::default() }
    }

    fn extreme(&self) -> Option<Extreme> {
        let seen = self.seen();
        let (cpu_imbalance, mem_imbalance) = triggers::spreads(&seen);
        let overloaded = triggers::overloaded(&seen, &self.rules.triggers);
        let latency_spike = triggers::slow_node(&seen, &self.rules.triggers);
        let is_uneven = cpu_imbalance.max(mem_imbalance) > self.rules.triggers.spread;
        let is_extreme = is_uneven || !overloaded.is_empty() || latency_spike.is_some();
        is_extreme.then_some(Extreme { cpu_imbalance, mem_imbalance, overloaded, latency_spike })
    }

    fn seen(&self) -> Vec<Seen<'_>> {
        let seen = |index: usize| Seen {
            node: self.nodes[index],
            weight: self.weights[index].map_or(0, Weight::get),
            load: self.loads[index],
            deviation: self.deviations[index],
            slow_deviation: self.slow_deviations[index],
        };
        (0..self.nodes.len()).map(seen).collect()
    }

    fn change(&self, state: &mut State) -> Option<Change> {
        let Some(ring) = state.ring.clone() else { return self.first_ring() };
        let joined: Vec<NodeId> = self.nodes_where(|index| self.weights[index].is_none());
        let removed: Vec<NodeId> = ring
            .weights()
            .iter()
            .map(|(node, _)| node)
            .filter(|node| self.inputs.reports.report(node).is_none())
            .cloned()
            .collect();
        state.starting.retain(|node, _| self.inputs.reports.report(node).is_some());
        if !joined.is_empty() || !removed.is_empty() {
            return self.changed_fleet(state, &ring, joined, removed);
        }
        self.slow_start(state, &ring).or_else(|| self.rebalanced(state, &ring))
    }

    fn nodes_where(&self, is_one: impl Fn(usize) -> bool) -> Vec<NodeId> {
        (0..self.nodes.len()).filter(|index| is_one(*index)).map(|index| self.nodes[index].clone()).collect()
    }

    fn first_ring(&self) -> Option<Change> {
        let candidates = self.candidates(|_| f64::from(WEIGHT_AVERAGE), |_| f64::INFINITY, &self.deviations);
        let weights = match self.rules.policy.kind {
            PolicyKind::Proportional => policy::proportional(&candidates),
            PolicyKind::Feedback => policy::first(&candidates, &self.rules.policy),
        };
        let joined: Vec<NodeId> = self.nodes_where(|_| true);
        self.announce(None, &weights, joined, Vec::new(), None)
    }

    /// Nodes have come or gone: the others keep their shares of what is left.
    fn changed_fleet(
        &self,
        state: &mut State,
        ring: &Ring,
        joined: Vec<NodeId>,
        removed: Vec<NodeId>,
    ) -> Option<Change> {
        let policy = &self.rules.policy;
        if policy.slow_start_ms > 0 {
            let start = Start { joined_ms: state.now_ms, steps: 1 };
            state.starting.extend(joined.iter().map(|node| (node.clone(), start)));
        }
        let total = f64::from(policy::total(self.nodes.len()));
        #[allow(clippy::cast_precision_loss, reason = "a few thousand nodes")]
        let room = policy.moved_share_max * MOVED_SHARE_MARGIN * total / joined.len().max(1) as f64;
        let newcomer = if policy.slow_start_ms > 0 {
            let cap = self.cap(state, joined.first());
            if policy.kind == PolicyKind::Feedback { cap.min(room.max(f64::from(WEIGHT_MIN))) } else { cap }
        } else {
            f64::from(WEIGHT_AVERAGE)
        };
        let kept: f64 = self.weights.iter().flatten().map(|weight| f64::from(weight.get())).sum();
        #[allow(clippy::cast_precision_loss, reason = "a few thousand nodes")]
        let rest = (total - newcomer * joined.len() as f64).max(0.0);
        let scale = if kept > 0.0 { rest / kept } else { 1.0 };
        let weight = |index: usize| self.weights[index].map_or(newcomer, |weight| f64::from(weight.get()) * scale);
        let cap = |index: usize| self.cap(state, Some(self.nodes[index]));
        let candidates = self.candidates(weight, cap, &self.deviations);
        let weights = match policy.kind {
            PolicyKind::Proportional if self.scores.iter().any(Option::is_some) => policy::proportional(&candidates),
            // Without usable metrics all are equal; feedback remembers better than that.
            PolicyKind::Proportional => policy::apportion(&vec![1.0; candidates.len()]),
            PolicyKind::Feedback => {
                policy::apportion(&candidates.iter().map(|candidate| candidate.weight).collect::<Vec<_>>())
            }
        };
        self.announce(Some(ring), &weights, joined, removed, None)
    }

    fn rebalanced(&self, state: &mut State, ring: &Ring) -> Option<Change> {
        let age = |at_ms: Option<u64>| at_ms.map(|at_ms| state.now_ms.saturating_sub(at_ms));
        let (update_ms, overload_ms) = (age(state.updated_ms), age(state.overload_ms));
        if update_ms.is_some_and(|age_ms| age_ms >= self.rules.triggers.cooldown_ms)
            && let Some(peak) = self.peak()
        {
            state.promises.judge(peak);
        }
        let ages = Ages { update_ms, overload_ms, reliefs: state.reliefs, broken: state.promises.broken() };
        let cause = triggers::cause(&self.seen(), ages, &self.rules.policy, &self.rules.triggers)?;
        let mut moved_share_max = self.rules.policy.moved_share_max * MOVED_SHARE_MARGIN;
        for _ in 0..ATTEMPTS_MAX {
            let weights = self.reweighed(state, &cause, moved_share_max);
            let is_same = self.weights.iter().zip(&weights).all(|(old, new)| old.map(Weight::get) == Some(*new));
            if is_same || !self.is_worth_it(self.planned_share(&weights), self.peaks(&weights)) {
                return None;
            }
            let change = self.announce(Some(ring), &weights, Vec::new(), Vec::new(), Some(cause.clone()))?;
            let limit = self.rules.policy.moved_share_max;
            if self.rules.policy.kind == PolicyKind::Proportional || change.moved_share <= limit {
                return self.is_worth_it(change.moved_share, change.peak).then_some(change);
            }
            // From what was planned, which may be less than was allowed: a ring may move more keys than its plan.
            moved_share_max = self.planned_share(&weights) * MOVED_SHARE_MARGIN * limit / change.moved_share;
        }
        None
    }

    fn reweighed(&self, state: &State, cause: &Cause, moved_share_max: f64) -> Vec<u16> {
        let policy = &self.rules.policy;
        let current = |index: usize| self.weights[index].map_or(0.0, |weight| f64::from(weight.get()));
        let cap = |index: usize| self.cap(state, Some(self.nodes[index]));
        match (policy.kind, cause) {
            (_, Cause::Equalise) => policy::apportion(&vec![1.0; self.nodes.len()]),
            (PolicyKind::Proportional, _) => policy::proportional(&self.candidates(current, cap, &self.deviations)),
            (PolicyKind::Feedback, Cause::Periodic) => {
                // Nothing has changed for long: the slow average is the better measurement.
                let candidates = self.candidates(current, cap, &self.slow_deviations);
                policy::feedback(&candidates, policy, moved_share_max)
            }
            (PolicyKind::Feedback, _) => {
                policy::feedback(&self.candidates(current, cap, &self.deviations), policy, moved_share_max)
            }
        }
    }

    fn candidates(
        &self,
        weight: impl Fn(usize) -> f64,
        cap: impl Fn(usize) -> f64,
        deviations: &[Option<f64>],
    ) -> Vec<Candidate> {
        let candidate = |index: usize| Candidate {
            weight: weight(index),
            correction: self.scores[index].map(|score| score.correction(&self.rules.score)),
            deviation: deviations[index],
            cap: cap(index),
        };
        (0..self.nodes.len()).map(candidate).collect()
    }

    /// Whether the expected gain is worth the keys that move; `proportional` does not ask.
    fn is_worth_it(&self, moved_share: f64, peak: Option<(f64, f64)>) -> bool {
        let cost = self.rules.policy.movement_cost;
        let asks = self.rules.policy.kind == PolicyKind::Feedback && cost > 0.0;
        !asks || peak.is_none_or(|(before, after)| before - after >= cost * moved_share)
    }

    /// The share of keys that has to move at least, before there is a ring to measure it on.
    fn planned_share(&self, weights: &[u16]) -> f64 {
        let gain = |(old, new): (&Option<Weight>, &u16)| f64::from(new.saturating_sub(old.map_or(0, Weight::get)));
        self.weights.iter().zip(weights).map(gain).sum::<f64>() / f64::from(policy::total(weights.len()))
    }

    fn announce(
        &self,
        old: Option<&Ring>,
        weights: &[u16],
        joined: Vec<NodeId>,
        removed: Vec<NodeId>,
        cause: Option<Cause>,
    ) -> Option<Change> {
        let newest = [old.map(Ring::version), Some(self.inputs.version_floor), self.inputs.reports.ring_version_max()];
        let version = newest.into_iter().flatten().max().unwrap_or(RingVersion::FIRST).next()?;
        let entries = self.nodes.iter().zip(weights);
        let entries = entries.map(|(node, weight)| Some(((*node).clone(), Weight::new(u64::from(*weight)).ok()?)));
        let node_weights = NodeWeights::new(entries.collect::<Option<Vec<_>>>()?).ok()?;
        let seed = old.map_or(self.inputs.seed, Ring::seed);
        let reason = reason(&joined, &removed, cause.as_ref());
        let update = RingUpdate::new(version, node_weights, seed, reason, self.now_ms);
        let ring = Arc::new(Ring::from_update(&update));
        let moved_share = old.and_then(|old| ring::diff(old, &ring).ok()).map_or(0.0, |diff| diff.moved_share());
        let peak = self.peaks(weights);
        Some(Change { update, ring, joined, removed, cause, moved_share, peak })
    }

    /// Peak over mean load, as it will be when every client has followed the last ring.
    fn peak(&self) -> Option<f64> {
        let loads: Vec<f64> = self.deviations.iter().flatten().map(|deviation| (1.0 + deviation).max(0.0)).collect();
        peak_over_mean(&loads)
    }

    /// Peak over mean load now, and as expected once the keys have moved.
    fn peaks(&self, weights: &[u16]) -> Option<(f64, f64)> {
        let loads = self.deviations.iter().zip(&self.weights).zip(weights);
        let (before, after): (Vec<f64>, Vec<f64>) = loads
            .filter_map(|((deviation, old), new)| {
                let load = (1.0 + (*deviation)?).max(0.0);
                Some((load, load * f64::from(*new) / f64::from((*old)?.get())))
            })
            .unzip();
        Some((peak_over_mean(&before)?, peak_over_mean(&after)?))
    }
}

fn peak_over_mean(loads: &[f64]) -> Option<f64> {
    #[allow(clippy::cast_precision_loss, reason = "a few thousand nodes")]
    let mean = loads.iter().sum::<f64>() / loads.len() as f64;
    (mean > 0.0).then(|| loads.iter().copied().fold(0.0, f64::max) / mean)
}

/// Connections beside what the node's weight lets expect: a big node has more of them, and is not loaded for that.
fn even(load: Load, weight: Option<Weight>) -> Load {
    let weight = weight.map_or(f64::from(WEIGHT_AVERAGE), |weight| f64::from(weight.get()));
    Load { connections: load.connections * f64::from(WEIGHT_AVERAGE) / weight, ..load }
}

fn reason(joined: &[NodeId], removed: &[NodeId], cause: Option<&Cause>) -> String {
    let part = |word: &str, nodes: &[NodeId]| (!nodes.is_empty()).then(|| format!("{word}: {}", list(nodes)));
    let parts: Vec<String> =
        [part("nodes-joined", joined), part("nodes-removed", removed)].into_iter().flatten().collect();
    match cause {
        _ if !parts.is_empty() => parts.join("; "),
        Some(Cause::Equalise) => "weights-equalised".to_owned(),
        _ => "weights-rebalanced".to_owned(),
    }
}

/// Names for people; of very many nodes the first.
fn list(nodes: &[NodeId]) -> String {
    let names: Vec<&str> = nodes.iter().take(REASON_NODES_MAX).map(NodeId::as_str).collect();
    let more = nodes.len() - names.len();
    if more == 0 { names.join(", ") } else { format!("{} and {more} more", names.join(", ")) }
}

#[cfg(test)]
mod tests;
