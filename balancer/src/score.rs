//! One number for how loaded a node is, and the correction that follows from it.
//!
//! Latency, lag and connections count relative to the largest in the cluster: they tell nodes apart, not how full the
//! cluster is.

use crate::heartbeats::Load;
use crate::rules::ScoreRules;

/// How loaded a node is, and how much of that is use of its processors and memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// The whole: 0 for idle, 1 for full in every respect, by the default parts.
    pub total: f64,
    /// The part of cpu and mem, the only ones that say how full the node is.
    pub used: f64,
}

/// Scores nodes beside each other. `None` is a node of which nothing is known; it does not count in the largest.
pub fn scores(loads: &[Option<Load>], rules: &ScoreRules) -> Vec<Option<Score>> {
    let largest = |metric: fn(&Load) -> f64| {
        loads.iter().flatten().map(metric).fold(rules.relative_floor.max(f64::MIN_POSITIVE), f64::max)
    };
    let latency_max = largest(|load| load.latency_ms);
    let lag_max = largest(|load| load.lag_ms);
    let connections_max = largest(|load| load.connections);
    let score = |load: Load| {
        let used = rules.cpu * load.cpu + rules.mem * load.mem;
        let total = used
            + rules.latency * load.latency_ms / latency_max
            + rules.kafka_lag * load.lag_ms / lag_max
            + rules.connections * load.connections / connections_max;
        Score { total, used }
    };
    loads.iter().map(|load| load.map(score)).collect()
}

impl Score {
    /// Returns what a node should own for its score, relative to other nodes' corrections.
    pub fn correction(self, rules: &ScoreRules) -> f64 {
        1.0 / (self.total + rules.epsilon)
    }
}

/// Returns by how much each node's load differs from the mean, as a share of the mean use of cpu and mem.
///
/// The relative metrics count only by their differences: a latency that all share is no load, and would make a real
/// difference look small.
pub fn deviations(scores: &[Option<Score>], rules: &ScoreRules) -> Vec<Option<f64>> {
    let known = || scores.iter().flatten();
    let count = known().count();
    if count == 0 {
        return vec![None; scores.len()];
    }
    #[allow(clippy::cast_precision_loss, reason = "a few thousand nodes")]
    let mean = |part: fn(&Score) -> f64| known().map(part).sum::<f64>() / count as f64;
    let mean_total = mean(|score| score.total);
    // Against an idle fleet, where the smallest difference would be a large share.
    let mean_used = mean(|score| score.used).max(rules.epsilon).max(f64::MIN_POSITIVE);
    scores.iter().map(|score| score.map(|score| (score.total - mean_total) / mean_used)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(cpu: f64, mem: f64, latency_ms: f64, lag_ms: f64, connections: f64) -> Option<Load> {
        Some(Load { cpu, mem, latency_ms, lag_ms, connections, mps: 0.0 })
    }

    fn totals(loads: &[Option<Load>]) -> Vec<Option<f64>> {
        let rounded = |score: Score| (score.total * 1e6).round() / 1e6;
        scores(loads, &ScoreRules::default()).into_iter().map(|score| score.map(rounded)).collect()
    }

    #[test]
    fn each_metric_counts_by_its_part() {
        for (loads, expected) in [
            ([load(1.0, 0.0, 0.0, 0.0, 0.0), None], [Some(0.4), None]),
            ([load(0.0, 1.0, 0.0, 0.0, 0.0), None], [Some(0.4), None]),
            ([load(0.0, 0.0, 200.0, 0.0, 0.0), load(0.0, 0.0, 100.0, 0.0, 0.0)], [Some(0.1), Some(0.05)]),
            ([load(0.0, 0.0, 0.0, 40.0, 0.0), load(0.0, 0.0, 0.0, 10.0, 0.0)], [Some(0.05), Some(0.0125)]),
            ([load(0.0, 0.0, 0.0, 0.0, 900.0), load(0.0, 0.0, 0.0, 0.0, 90.0)], [Some(0.05), Some(0.005)]),
            ([load(1.0, 1.0, 500.0, 500.0, 500.0), None], [Some(1.0), None]),
        ] {
            assert_eq!(totals(&loads), expected);
        }
    }

    #[test]
    fn the_largest_is_taken_as_at_least_ten() {
        for (latency_ms, expected) in [(5.0, 0.05), (10.0, 0.1), (11.0, 0.1)] {
            assert_eq!(totals(&[load(0.0, 0.0, latency_ms, 0.0, 0.0)]), [Some(expected)], "{latency_ms}");
        }
    }

    #[test]
    fn the_correction_falls_with_the_score_and_an_idle_node_does_not_draw_everything() {
        let rules = ScoreRules::default();
        let correction = |total| Score { total, used: total }.correction(&rules);
        assert!((correction(0.0) - 10.0).abs() < 1e-9);
        assert!((correction(0.9) - 1.0).abs() < 1e-9);
        assert!(correction(0.5) > correction(0.6));
    }

    #[test]
    fn deviations_are_shares_of_the_mean_use_and_ignore_what_all_share() {
        let rules = ScoreRules::default();
        for latency_ms in [0.0, 1000.0] {
            let loads = [load(0.5, 0.5, latency_ms, 0.0, 0.0), load(0.7, 0.7, latency_ms, 0.0, 0.0), None];
            let deviations = deviations(&scores(&loads, &rules), &rules);
            assert!((deviations[0].unwrap() + 1.0 / 6.0).abs() < 1e-9, "{deviations:?}");
            assert!((deviations[1].unwrap() - 1.0 / 6.0).abs() < 1e-9, "{deviations:?}");
            assert_eq!(deviations[2], None);
        }
        assert_eq!(super::deviations(&[None], &rules), [None]);
    }
}
