//! When weights are computed anew. Joins and leaves are `decide`'s own affair: they need no trigger and wait for nothing.

use ring::NodeId;

use crate::heartbeats::Load;
use crate::policy::WEIGHT_AVERAGE;
use crate::rules::{PolicyKind, PolicyRules, TriggerRules};

/// A node as the triggers see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen<'a> {
    /// Which node.
    pub node: &'a NodeId,
    /// Its weight now.
    pub weight: u16,
    /// What it has just reported; none where nothing is known.
    pub load: Option<Load>,
    /// By how much its load differs from the mean, over the last seconds.
    pub deviation: Option<f64>,
    /// The same over the last minutes.
    pub slow_deviation: Option<f64>,
}

/// How long ago things happened, in ms; none for never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ages {
    /// The last ring.
    pub update_ms: Option<u64>,
    /// The last ring that did not wait because of overload.
    pub overload_ms: Option<u64>,
    /// How many such there were in a row.
    pub reliefs: u32,
    /// How many rebalances in a row have not done what they promised, in `feedback`.
    pub broken: u32,
}

/// Why weights are computed anew.
#[derive(Debug, Clone, PartialEq)]
pub enum Cause {
    /// A node has too much to do and a weight that can be lowered: at once.
    Extreme {
        /// The overloaded nodes.
        overloaded: Vec<NodeId>,
    },
    /// A node has too much to do.
    Overloaded {
        /// The overloaded nodes.
        overloaded: Vec<NodeId>,
    },
    /// The largest and the smallest cpu, or mem, are too far apart.
    Spread {
        /// By how much.
        spread: f64,
    },
    /// One node is much slower than the others.
    Latency {
        /// Which.
        node: NodeId,
    },
    /// The peak is too far above the mean.
    Imbalance {
        /// By how much.
        peak: f64,
    },
    /// Much time has passed and the fleet is not even yet.
    Periodic,
    /// The load is even under unequal weights: the weights need not be unequal any more.
    Equalise,
}

/// How long an update waits for the next, unless a node is overloaded: twice as long with each in a row that has not done
/// half of what it promised, for the load does not go where the keys go. The first is forgiven: a node that is more than
/// full does not show how much it has been relieved. `proportional` promises nothing.
fn cooldown_ms(broken: u32, kind: PolicyKind, rules: &TriggerRules) -> u64 {
    let doublings =
        if kind == PolicyKind::Feedback { broken.saturating_sub(1).min(rules.broken_doublings_max) } else { 0 };
    rules.cooldown_ms.saturating_mul(1_u64.checked_shl(doublings).unwrap_or(u64::MAX))
}

/// How long an overloaded node waits for its next relief after so many in a row: each time twice as long, up to the
/// cooldown. A fleet that is full altogether stays overloaded whatever is moved, and clients take minutes to follow: at
/// a constant pace it would be chased around the ring.
fn relief_wait_ms(reliefs: u32, cooldown_ms: u64, rules: &TriggerRules) -> u64 {
    let doubled =
        rules.overload_interval_ms.saturating_mul(1_u64.checked_shl(reliefs.saturating_sub(1)).unwrap_or(u64::MAX));
    doubled.min(cooldown_ms.max(rules.overload_interval_ms))
}

/// Reliefs are in a row until there was none for so long.
pub fn relief_memory_ms(broken: u32, kind: PolicyKind, rules: &TriggerRules) -> u64 {
    cooldown_ms(broken, kind, rules).max(rules.overload_interval_ms).saturating_mul(2)
}

/// Returns why weights should be computed anew, or `None`.
pub fn cause(seen: &[Seen<'_>], ages: Ages, policy: &PolicyRules, rules: &TriggerRules) -> Option<Cause> {
    let view = View { seen, rules };
    let overloaded = view.overloaded();
    let has_weight_to_lose = |node: &NodeId| {
        let weight = seen.iter().find(|seen| seen.node == node).map_or(0, |seen| seen.weight);
        f64::from(weight) >= rules.overload_weight * f64::from(WEIGHT_AVERAGE)
    };
    let cooldown_ms = cooldown_ms(ages.broken, policy.kind, rules);
    let relief_wait_ms = relief_wait_ms(ages.reliefs, cooldown_ms, rules);
    let may_repeat = ages.overload_ms.is_none_or(|age_ms| age_ms >= relief_wait_ms);
    if may_repeat && overloaded.iter().any(has_weight_to_lose) {
        return Some(Cause::Extreme { overloaded });
    }
    if ages.update_ms.is_some_and(|age_ms| age_ms < cooldown_ms) || view.is_idle() {
        return None;
    }
    let spread = view.spread();
    if policy.kind == PolicyKind::Proportional {
        let weights = view.weight_spread();
        if spread < rules.equalise_load && weights > rules.equalise_weights && overloaded.is_empty() {
            return Some(Cause::Equalise);
        }
        let is_converged = weights <= rules.converged_weights && spread <= rules.converged_load;
        let is_working = weights > rules.converged_weights && spread < rules.working_spread && overloaded.is_empty();
        if is_converged || is_working {
            return None;
        }
    }
    if spread > rules.spread {
        return Some(Cause::Spread { spread });
    }
    if !overloaded.is_empty() {
        return Some(Cause::Overloaded { overloaded });
    }
    if let Some(node) = view.slow_node() {
        return Some(Cause::Latency { node });
    }
    if policy.kind == PolicyKind::Feedback
        && let Some(peak) = view.confirmed_peak(policy.dead_band)
    {
        return Some(Cause::Imbalance { peak });
    }
    let is_due = ages.update_ms.is_none_or(|age_ms| age_ms >= rules.periodic_ms);
    let is_uneven = policy.kind == PolicyKind::Proportional || view.is_outside(policy.dead_band);
    (is_due && is_uneven).then_some(Cause::Periodic)
}

/// Returns how far apart the largest and the smallest cpu, and mem, are.
pub fn spreads(seen: &[Seen<'_>]) -> (f64, f64) {
    let spread = |metric: fn(&Load) -> f64| {
        let values = seen.iter().filter_map(|seen| seen.load.as_ref()).map(metric);
        let (min, max) = values.fold((f64::INFINITY, 0.0), |(min, max), value| (value.min(min), value.max(max)));
        (max - min).max(0.0)
    };
    (spread(|load| load.cpu), spread(|load| load.mem))
}

/// Returns the nodes whose cpu or mem is above its limit.
pub fn overloaded(seen: &[Seen<'_>], rules: &TriggerRules) -> Vec<NodeId> {
    View { seen, rules }.overloaded()
}

/// Returns a node that is much slower than the others.
pub fn slow_node(seen: &[Seen<'_>], rules: &TriggerRules) -> Option<NodeId> {
    View { seen, rules }.slow_node()
}

struct View<'a> {
    seen: &'a [Seen<'a>],
    rules: &'a TriggerRules,
}

impl View<'_> {
    fn loads(&self) -> impl Iterator<Item = (&NodeId, &Load)> {
        self.seen.iter().filter_map(|seen| seen.load.as_ref().map(|load| (seen.node, load)))
    }

    fn overloaded(&self) -> Vec<NodeId> {
        let is_over = |load: &Load| load.cpu > self.rules.overload_cpu || load.mem > self.rules.overload_mem;
        self.loads().filter(|(_, load)| is_over(load)).map(|(node, _)| node.clone()).collect()
    }

    /// Nothing is known of anyone, or nobody has much to do.
    fn is_idle(&self) -> bool {
        self.loads().all(|(_, load)| load.cpu < self.rules.idle && load.mem < self.rules.idle)
    }

    fn spread(&self) -> f64 {
        let (cpu, mem) = spreads(self.seen);
        cpu.max(mem)
    }

    /// How far apart the largest and the smallest weight are, as a share of the average.
    fn weight_spread(&self) -> f64 {
        let weights = || self.seen.iter().map(|seen| seen.weight);
        let spread = weights().max().unwrap_or(0) - weights().min().unwrap_or(0);
        f64::from(spread) / f64::from(WEIGHT_AVERAGE)
    }

    fn slow_node(&self) -> Option<NodeId> {
        let count = self.loads().count();
        #[allow(clippy::cast_precision_loss, reason = "a few thousand nodes")]
        let average = self.loads().map(|(_, load)| load.latency_ms).sum::<f64>() / count.max(1) as f64;
        let limit = (self.rules.latency_factor * average).max(self.rules.latency_ms);
        self.loads().find(|(_, load)| load.latency_ms > limit).map(|(node, _)| node.clone())
    }

    /// The peak above the mean, where the slow average agrees that this node is above the dead-band: one noisy
    /// measurement is no imbalance.
    fn confirmed_peak(&self, dead_band: f64) -> Option<f64> {
        let confirmed = self.seen.iter().filter(|seen| seen.slow_deviation.is_some_and(|slow| slow > dead_band));
        let peak = confirmed.filter_map(|seen| seen.deviation).fold(0.0, f64::max);
        (peak > self.rules.imbalance).then_some(peak)
    }

    fn is_outside(&self, dead_band: f64) -> bool {
        self.seen.iter().filter_map(|seen| seen.slow_deviation).any(|slow| slow.abs() > dead_band)
    }
}

#[cfg(test)]
mod tests;
