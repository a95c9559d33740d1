//! When more nodes or fewer are recommended, and how many. A recommendation only: whoever runs the nodes decides.

use ring::control::ScaleSignal;

use crate::heartbeats::Load;
use crate::rules::ScalingRules;

/// A rise of average cpu or mem that counts as one, after a scale-out.
const RISE_MIN: f64 = 0.02;
/// An average above asks for one node more than its urgency.
const BRIM: f64 = 0.90;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Four mild pressures at once.
    Moderate,
    /// Work is waiting.
    High,
    /// There is no room left.
    Critical,
}

impl Urgency {
    /// Returns the nodes to add for it alone.
    fn nodes(self) -> u32 {
        match self {
            Self::Moderate => 1,
            Self::High => 2,
            Self::Critical => 3,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Moderate => "moderate",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// In which direction a signal went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// More nodes.
    Out,
    /// Fewer.
    In,
}

impl Direction {
    /// Returns the word it is counted under.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Out => "scale_out",
            Self::In => "scale_in",
        }
    }
}

/// What earlier signals have said.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Scaling {
    last_ms: Option<u64>,
    last_out: Option<LastOut>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct LastOut {
    at_ms: u64,
    urgency: Urgency,
    cpu: f64,
    mem: f64,
}

/// A recommendation.
#[derive(Debug, Clone, PartialEq)]
pub struct Recommendation {
    /// More or fewer.
    pub direction: Direction,
    /// What is published.
    pub signal: ScaleSignal,
}

impl Scaling {
    /// Makes a scale-in wait as after a signal: what an earlier leader has signalled is not known.
    pub fn hold_in(&mut self, now_ms: u64) {
        self.last_ms = Some(now_ms);
    }

    /// Returns what the fleet's load recommends, and remembers it.
    pub fn recommend(&mut self, loads: &[Option<Load>], rules: &ScalingRules, now_ms: u64) -> Option<Recommendation> {
        let fleet = Fleet::of(loads)?;
        if let Some(urgency) = fleet.pressure(rules) {
            return self.out(&fleet, urgency, rules, now_ms);
        }
        let is_rested = self.last_ms.is_none_or(|last_ms| now_ms.saturating_sub(last_ms) >= rules.in_interval_ms);
        if !(is_rested && fleet.can_shrink(rules)) {
            return None;
        }
        self.last_ms = Some(now_ms);
        Some(fleet.recommendation(Direction::In, fleet.nodes - 1, "", now_ms))
    }

    fn out(&mut self, fleet: &Fleet, urgency: Urgency, rules: &ScalingRules, now_ms: u64) -> Option<Recommendation> {
        let last = self.last_out.map(|last| (last, now_ms.saturating_sub(last.at_ms)));
        if last.is_some_and(|(last, age_ms)| age_ms < rules.out_interval_ms && urgency <= last.urgency) {
            return None;
        }
        let has_risen = last.is_some_and(|(last, age_ms)| {
            age_ms <= rules.out_recent_ms
                && (fleet.cpu.average > last.cpu + RISE_MIN || fleet.mem.average > last.mem + RISE_MIN)
        });
        let is_brimful = fleet.cpu.average > BRIM || fleet.mem.average > BRIM;
        let more = urgency.nodes() + u32::from(has_risen) + u32::from(is_brimful);
        let more = more.min(rules.out_nodes_max);
        self.last_out = Some(LastOut { at_ms: now_ms, urgency, cpu: fleet.cpu.average, mem: fleet.mem.average });
        self.last_ms = Some(now_ms);
        Some(fleet.recommendation(Direction::Out, fleet.nodes + u64::from(more), urgency.as_str(), now_ms))
    }
}

#[derive(Debug, Clone, Copy)]
struct Metric {
    average: f64,
    max: f64,
}

/// The whole fleet's load.
#[derive(Debug)]
struct Fleet {
    nodes: u64,
    // Of all nodes something is known.
    is_known: bool,
    cpu: Metric,
    mem: Metric,
    latency: Metric,
    lag: Metric,
}

impl Fleet {
    fn of(loads: &[Option<Load>]) -> Option<Self> {
        let known = loads.iter().flatten().count();
        if known == 0 {
            return None;
        }
        let metric = |metric: fn(&Load) -> f64| {
            let values = || loads.iter().flatten().map(metric);
            #[allow(clippy::cast_precision_loss, reason = "a few thousand nodes")]
            Metric { average: values().sum::<f64>() / known as f64, max: values().fold(0.0, f64::max) }
        };
        Some(Self {
            nodes: loads.len() as u64,
            is_known: known == loads.len(),
            cpu: metric(|load| load.cpu),
            mem: metric(|load| load.mem),
            latency: metric(|load| load.latency_ms),
            lag: metric(|load| load.lag_ms),
        })
    }

    fn pressure(&self, rules: &ScalingRules) -> Option<Urgency> {
        let is_full = self.cpu.average > rules.out_average_cpu || self.mem.average > rules.out_average_mem;
        let has_full_node = self.cpu.max > rules.out_any_cpu || self.mem.max > rules.out_any_mem;
        if is_full || has_full_node {
            return Some(Urgency::Critical);
        }
        let is_late = self.latency.average > rules.out_latency_ms || self.lag.average > rules.out_latency_ms;
        if is_late && self.cpu.average.max(self.mem.average) > rules.out_latency_load {
            return Some(Urgency::High);
        }
        let is_pressed = self.cpu.average > rules.moderate_cpu
            && self.mem.average > rules.moderate_mem
            && self.latency.average > rules.moderate_latency_ms
            && self.lag.average > rules.moderate_lag_ms;
        is_pressed.then_some(Urgency::Moderate)
    }

    fn can_shrink(&self, rules: &ScalingRules) -> bool {
        if !self.is_known || self.nodes <= u64::from(rules.nodes_min).max(1) {
            return false;
        }
        #[allow(clippy::cast_precision_loss, reason = "a few thousand nodes")]
        let growth = self.nodes as f64 / (self.nodes - 1) as f64;
        self.cpu.average < rules.in_cpu
            && self.mem.average < rules.in_mem
            && self.latency.max < rules.in_latency_ms
            && self.lag.max < rules.in_latency_ms
            && self.cpu.average * growth < rules.in_projected_cpu
            && self.mem.average * growth < rules.in_projected_mem
    }

    fn recommendation(&self, direction: Direction, target: u64, urgency: &str, now_ms: u64) -> Recommendation {
        let (word, sign) = match direction {
            Direction::Out => ("SCALE_OUT", '+'),
            Direction::In => ("SCALE_IN", '-'),
        };
        let Self { nodes, cpu, mem, latency, lag, .. } = self;
        let by = target.abs_diff(*nodes);
        let urgency = if urgency.is_empty() { String::new() } else { format!(", urgency={urgency}") };
        let reason = format!(
            "{word} recommended: nodes={nodes}->{target} ({sign}{by}), cpu={:.1}% (max {:.1}%), mem={:.1}% (max {:.1}%), \
             latency={:.0}ms, lag={:.0}ms{urgency}",
            cpu.average * 100.0,
            cpu.max * 100.0,
            mem.average * 100.0,
            mem.max * 100.0,
            latency.average,
            lag.average,
        );
        let signal = ScaleSignal { reason, ts: now_ms, current_nodes: Some(*nodes), target_nodes: Some(target) };
        Recommendation { direction, signal }
    }
}

#[cfg(test)]
mod tests;
