//! Every threshold of the balancer with its default: the tables `[score]`, `[weights]`, `[triggers]`, `[scaling]` of the
//! file. Shares are from 0 to 1, lengths of time in milliseconds. What the numbers do is told where they are used.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// All rules of the pure core.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rules {
    /// How a node's load becomes one number.
    pub score: ScoreRules,
    /// How scores become weights.
    pub policy: PolicyRules,
    /// When weights are computed anew.
    pub triggers: TriggerRules,
    /// When more nodes or fewer are recommended.
    pub scaling: ScalingRules,
}

/// How much each metric counts in a score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScoreRules {
    /// Part of the processors' use.
    pub cpu: f64,
    /// Part of the memory's use.
    pub mem: f64,
    /// Part of the latency, relative to the largest of all nodes.
    pub latency: f64,
    /// Part of the age of what is read from Kafka, relative to the largest.
    pub kafka_lag: f64,
    /// Part of the connections, relative to the largest.
    pub connections: f64,
    /// The largest latency, lag and number of connections are taken as at least this: small differences are no load.
    pub relative_floor: f64,
    /// Added to a score before it is inverted, so that an idle node does not draw everything.
    pub epsilon: f64,
}

impl Default for ScoreRules {
    fn default() -> Self {
        Self {
            cpu: 0.4,
            mem: 0.4,
            latency: 0.1,
            kafka_lag: 0.05,
            connections: 0.05,
            relative_floor: 10.0,
            epsilon: 0.1,
        }
    }
}

/// Which of the two ways from scores to weights is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PolicyKind {
    /// The current weight times a correction: remembers that a node is small, and converges.
    #[default]
    Feedback,
    /// The correction alone, afresh each time: the original system's rule.
    Proportional,
}

impl PolicyKind {
    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Feedback => "feedback",
            Self::Proportional => "proportional",
        }
    }
}

/// How scores become weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyRules {
    /// Which way is taken; the file's key `policy` says so.
    #[serde(skip)]
    pub kind: PolicyKind,
    /// Exponent of the correction in `feedback`.
    pub kappa: f64,
    /// After so long a new measurement counts as much as all before it, in `feedback`.
    pub smoothing_half_life_ms: u64,
    /// The same for the slower average that has to agree before a small imbalance is believed, in `feedback`.
    pub confirm_half_life_ms: u64,
    /// A node whose load differs from the mean by less keeps its weight, in `feedback`.
    pub dead_band: f64,
    /// The most keys that one update may move, a leaving node's apart, in `feedback`.
    pub moved_share_max: f64,
    /// An update must lower peak/mean by at least this times the share of keys it moves; 0 publishes every update.
    pub movement_cost: f64,
    /// Over how long a node that joins a running cluster rises to an average weight; 0 gives it all at once.
    pub slow_start_ms: u64,
    /// In how many steps it does so.
    pub slow_start_steps: u32,
}

impl Default for PolicyRules {
    fn default() -> Self {
        Self {
            kind: PolicyKind::Feedback,
            kappa: 0.7,
            smoothing_half_life_ms: 10_000,
            confirm_half_life_ms: 120_000,
            dead_band: 0.05,
            moved_share_max: 0.10,
            movement_cost: 0.25,
            slow_start_ms: 180_000,
            slow_start_steps: 4,
        }
    }
}

/// When weights are computed anew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TriggerRules {
    /// For so long after an update only a join, a leave or an overload leads to another.
    pub cooldown_ms: u64,
    /// With each rebalance in a row, after the first, that has not done half of what it promised the cooldown is twice as
    /// long; so many times at most, in `feedback`.
    pub broken_doublings_max: u32,
    /// After so long without an update one is made if the fleet is not converged.
    pub periodic_ms: u64,
    /// A node above is overloaded.
    pub overload_cpu: f64,
    /// A node above is overloaded.
    pub overload_mem: f64,
    /// An overloaded node with at least this share of the average weight is relieved at once.
    pub overload_weight: f64,
    /// Between two updates that do not wait for the cooldown because of overload; doubles with each in a row.
    pub overload_interval_ms: u64,
    /// Difference of the largest and the smallest cpu, or mem, that is too much.
    pub spread: f64,
    /// Latency is a reason where it is above so many times the average…
    pub latency_factor: f64,
    /// … and above so many ms.
    pub latency_ms: f64,
    /// A peak so far above the mean load is too much, in `feedback`.
    pub imbalance: f64,
    /// Nothing is done while every node's cpu and mem are below.
    pub idle: f64,
    /// Weights that differ by no more than this share of the average count as converged, in `proportional`.
    pub converged_weights: f64,
    /// Loads that differ by no more than this count as converged, in `proportional`.
    pub converged_load: f64,
    /// Unequal weights are left alone while loads differ by less and all are healthy, in `proportional`.
    pub working_spread: f64,
    /// Loads that differ by less count as balanced, in `proportional`.
    pub equalise_load: f64,
    /// Weights that differ by more than this share of the average are then made equal, in `proportional`.
    pub equalise_weights: f64,
}

impl Default for TriggerRules {
    fn default() -> Self {
        Self {
            cooldown_ms: 120_000,
            broken_doublings_max: 4,
            periodic_ms: 600_000,
            overload_cpu: 0.80,
            overload_mem: 0.85,
            overload_weight: 0.80,
            overload_interval_ms: 20_000,
            spread: 0.40,
            latency_factor: 2.0,
            latency_ms: 500.0,
            imbalance: 0.065,
            idle: 0.40,
            converged_weights: 0.20,
            converged_load: 0.20,
            working_spread: 0.35,
            equalise_load: 0.15,
            equalise_weights: 0.15,
        }
    }
}

/// When more nodes or fewer are recommended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScalingRules {
    /// Average cpu above is critical.
    pub out_average_cpu: f64,
    /// Average mem above is critical.
    pub out_average_mem: f64,
    /// Any node's cpu above is critical.
    pub out_any_cpu: f64,
    /// Any node's mem above is critical.
    pub out_any_mem: f64,
    /// Latency or lag above so many ms is high pressure…
    pub out_latency_ms: f64,
    /// … while the average of cpu or mem is above this.
    pub out_latency_load: f64,
    /// One of the four pressures that together are moderate: average cpu above.
    pub moderate_cpu: f64,
    /// The second: average mem above.
    pub moderate_mem: f64,
    /// The third: average latency above so many ms.
    pub moderate_latency_ms: f64,
    /// The fourth: average lag above so many ms.
    pub moderate_lag_ms: f64,
    /// The most nodes to ask for at once.
    pub out_nodes_max: u32,
    /// A scale-out is repeated no sooner, unless it has become more urgent.
    pub out_interval_ms: u64,
    /// Load that rises within so long after a scale-out asks for one more node.
    pub out_recent_ms: u64,
    /// Average cpu must be below for a scale-in.
    pub in_cpu: f64,
    /// Average mem must be below for a scale-in.
    pub in_mem: f64,
    /// Every node's latency and lag must be below so many ms.
    pub in_latency_ms: f64,
    /// Average cpu with one node fewer must stay below.
    pub in_projected_cpu: f64,
    /// Average mem with one node fewer must stay below.
    pub in_projected_mem: f64,
    /// A scale-in comes no sooner after any signal.
    pub in_interval_ms: u64,
    /// There is no scale-in below so many nodes.
    pub nodes_min: u32,
}

impl Default for ScalingRules {
    fn default() -> Self {
        Self {
            out_average_cpu: 0.70,
            out_average_mem: 0.75,
            out_any_cpu: 0.85,
            out_any_mem: 0.90,
            out_latency_ms: 500.0,
            out_latency_load: 0.50,
            moderate_cpu: 0.60,
            moderate_mem: 0.65,
            moderate_latency_ms: 250.0,
            moderate_lag_ms: 250.0,
            out_nodes_max: 5,
            out_interval_ms: 10_000,
            out_recent_ms: 300_000,
            in_cpu: 0.20,
            in_mem: 0.25,
            in_latency_ms: 250.0,
            in_projected_cpu: 0.50,
            in_projected_mem: 0.55,
            in_interval_ms: 300_000,
            nodes_min: 2,
        }
    }
}
