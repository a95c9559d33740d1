//! Slow start: a node that joins a running cluster starts low and rises in steps, for its caches are cold and its load
//! says nothing yet. Where each node is in it stands beside the ring, so that the next leader goes on from there.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use ring::control::{RING_UPDATE_BYTES_MAX, WHOLE_MAX};
use ring::{NodeId, Ring, Weight, nesting};
use serde::{Deserialize, Serialize};

use super::{Change, MOVED_SHARE_MARGIN, Round, State, list};
use crate::policy::{self, WEIGHT_AVERAGE};
use crate::rules::{PolicyKind, PolicyRules};

/// The deepest nesting of what is kept of it.
const KEPT_DEPTH_MAX: usize = 4;

/// Nodes that joined a running cluster and have not had all their steps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Starting(BTreeMap<NodeId, Start>);

/// Where a node is in its slow start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Start {
    /// When it joined, in ms since 1970.
    pub joined_ms: u64,
    /// The steps it has been given, the first included.
    pub steps: u32,
}

impl Starting {
    /// Writes it as JSON, for the leader that comes next.
    pub fn encode(&self) -> Vec<u8> {
        sonic_rs::to_vec(self).unwrap_or_default()
    }

    /// Reads what a leader has left; none where it cannot be read, and then every node counts as long there.
    pub fn decode(json: &[u8]) -> Option<Self> {
        let is_sane = json.len() <= RING_UPDATE_BYTES_MAX && nesting::depth(json) <= KEPT_DEPTH_MAX;
        let starting: Self = is_sane.then(|| sonic_rs::from_slice(json).ok()).flatten()?;
        starting.values().all(|start| start.steps > 0 && start.joined_ms <= WHOLE_MAX).then_some(starting)
    }
}

impl Deref for Starting {
    type Target = BTreeMap<NodeId, Start>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Starting {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Round<'_> {
    /// Lets nodes that joined lately have a step more, unless they show that they are loaded enough.
    pub(super) fn slow_start(&self, state: &mut State, ring: &Ring) -> Option<Change> {
        let policy = &self.rules.policy;
        let now_ms = state.now_ms;
        let mut risen: Vec<NodeId> = Vec::new();
        for (node, start) in state.starting.iter_mut() {
            let steps = steps_due(now_ms.saturating_sub(start.joined_ms), policy);
            if steps > start.steps {
                start.steps = steps;
                risen.push(node.clone());
            }
        }
        if risen.is_empty() {
            return None;
        }
        let caps: Vec<f64> = self.nodes.iter().map(|node| self.cap(state, Some(node))).collect();
        state.starting.retain(|_, start| start.steps < policy.slow_start_steps);
        let current = |index: usize| self.weights[index].map_or(0.0, |weight| f64::from(weight.get()));
        let weights = if policy.kind == PolicyKind::Proportional {
            policy::proportional(&self.candidates(current, |index| caps[index], &self.deviations))
        } else {
            let has_enough = |index: usize| self.deviations[index].is_some_and(|load| load >= -policy.dead_band);
            let mut weights: Vec<f64> = (0..self.nodes.len()).map(current).collect();
            let gain = |index: usize| (caps[index].min(f64::from(WEIGHT_AVERAGE)) - current(index)).max(0.0);
            let gains: Vec<(usize, f64)> = (0..self.nodes.len())
                .filter(|index| risen.contains(self.nodes[*index]) && !has_enough(*index))
                .map(|index| (index, gain(index)))
                .collect();
            let gained: f64 = gains.iter().map(|(_, gain)| gain).sum();
            let total = f64::from(policy::total(self.nodes.len()));
            let gained_max = policy.moved_share_max * MOVED_SHARE_MARGIN * total;
            let pace = if gained > gained_max { gained_max / gained } else { 1.0 };
            let rising: f64 = gains.iter().map(|(index, _)| weights[*index]).sum();
            let others = total - rising;
            let scale = if others > 0.0 { (others - gained * pace).max(0.0) / others } else { 1.0 };
            for weight in &mut weights {
                *weight *= scale;
            }
            for (index, gain) in gains {
                weights[index] = current(index) + gain * pace;
            }
            policy::apportion(&weights)
        };
        let is_same = self.weights.iter().zip(&weights).all(|(old, new)| old.map(Weight::get) == Some(*new));
        if is_same {
            return None;
        }
        let mut change = self.announce(Some(ring), &weights, Vec::new(), Vec::new(), None)?;
        change.update.reason = format!("slow-start: {}", list(&risen));
        Some(change)
    }

    /// The most a node may have yet.
    pub(super) fn cap(&self, state: &State, node: Option<&NodeId>) -> f64 {
        let policy = &self.rules.policy;
        match node.and_then(|node| state.starting.get(node)) {
            Some(start) if start.steps < policy.slow_start_steps => {
                f64::from(WEIGHT_AVERAGE) * f64::from(start.steps) / f64::from(policy.slow_start_steps.max(1))
            }
            _ => f64::INFINITY,
        }
    }
}

/// The steps of its slow start that a node has been given after `age_ms`.
fn steps_due(age_ms: u64, policy: &PolicyRules) -> u32 {
    let steps = u64::from(policy.slow_start_steps.max(1));
    let done = age_ms.saturating_mul(steps - 1) / policy.slow_start_ms.max(1);
    u32::try_from((1 + done).min(steps)).unwrap_or(u32::MAX)
}
