//! What the nodes have reported, smoothed over time, and told as it will be once every client has followed the ring.
//!
//! Clients take minutes to follow. A balancer that went by what it measures meanwhile would ask again for what it has
//! asked for already. How far they have come is read off the connections: a node's share of them lies between what it
//! had and what it is to have, and its load is taken to grow or shrink as they still will.

use std::collections::BTreeMap;

use ring::{NodeId, Ring, RingVersion};

use crate::heartbeats::{Load, Reports};
use crate::rules::PolicyRules;

/// From here on a node is full, and does not show how far beyond it is: it gets no credit for clients that still leave.
const FULL: f64 = 0.98;

/// What the nodes have reported lately, as exponential averages by time.
#[derive(Debug, Clone, Default)]
pub struct Smoothing {
    by_node: BTreeMap<NodeId, Averages>,
    // The ring that the averages are told for.
    followed: Option<(RingVersion, BTreeMap<NodeId, f64>)>,
}

/// A node's averages.
#[derive(Debug, Clone, Copy)]
struct Averages {
    quick: Load,
    slow: Load,
    at_ms: u64,
    // The share of the keys whose clients it has, as far as known.
    held: f64,
}

impl Smoothing {
    /// Takes a round of reports in. A node that has not reported is forgotten; one whose load is unknown keeps its past.
    pub fn observe(&mut self, reports: &Reports, rules: &PolicyRules, now_ms: u64) {
        self.by_node.retain(|node, _| reports.report(node).is_some());
        let known = || reports.iter().filter_map(|report| Some((&report.node, report.load?)));
        let connections: f64 = known().map(|(_, load)| load.connections).sum();
        let given_to_known: f64 = known().filter_map(|(node, _)| self.given(node)).sum();
        for (node, load) in known() {
            let given = self.given(node);
            let Some(averages) = self.by_node.get_mut(node) else {
                // What comes from elsewhere is taken as it is: of its past nothing is known.
                let held = given.unwrap_or(0.0);
                self.by_node.insert(node.clone(), Averages { quick: load, slow: load, at_ms: now_ms, held });
                continue;
            };
            if let Some(given) = given {
                let there = if connections > 0.0 { load.connections / connections * given_to_known } else { given };
                averages.held = there.clamp(averages.held.min(given), averages.held.max(given));
            }
            let load = expected(load, given, averages.held);
            let passed_ms = now_ms.saturating_sub(averages.at_ms);
            let mix = |half_life_ms| {
                let kept = kept_share(passed_ms, half_life_ms);
                move |old: f64, new: f64| old * kept + new * (1.0 - kept)
            };
            averages.quick = averages.quick.zip(load, mix(rules.smoothing_half_life_ms));
            averages.slow = averages.slow.zip(load, mix(rules.confirm_half_life_ms));
            averages.at_ms = averages.at_ms.max(now_ms);
        }
    }

    /// The share of the keys that the ring gives a node.
    fn given(&self, node: &NodeId) -> Option<f64> {
        self.followed.as_ref().and_then(|(_, shares)| shares.get(node)).copied()
    }

    /// Tells everything for another ring from here on: what nodes are to have changes at once, what they have does not.
    /// The slow averages begin anew from the quick ones, for what was expected of the last ring may have been wrong.
    pub fn follow(&mut self, ring: &Ring) {
        if self.followed.as_ref().is_some_and(|(version, _)| *version == ring.version()) {
            return;
        }
        #[allow(clippy::cast_precision_loss, reason = "at most 2^28")]
        let total = ring.weights().total() as f64;
        let share = |(node, weight): (&NodeId, ring::Weight)| (node.clone(), f64::from(weight.get()) / total);
        let shares: BTreeMap<NodeId, f64> = ring.weights().iter().map(share).collect();
        let before = self.followed.replace((ring.version(), shares));
        for (node, averages) in &mut self.by_node {
            let shares = self.followed.as_ref().map(|(_, shares)| shares);
            let Some(given) = shares.and_then(|shares| shares.get(node)).copied() else { continue };
            match before.as_ref().and_then(|(_, shares)| shares.get(node)) {
                Some(last) => {
                    let ratio = given / last;
                    averages.quick = averages.quick.zip(averages.quick, |figure, _| figure * ratio);
                }
                None => averages.held = given,
            }
            averages.slow = averages.quick;
        }
    }

    /// Returns what `node` has reported within the quick half-life, more or less.
    pub fn quick(&self, node: &NodeId) -> Option<Load> {
        self.by_node.get(node).map(|averages| averages.quick)
    }

    /// Returns the same over the slow half-life.
    pub fn slow(&self, node: &NodeId) -> Option<Load> {
        self.by_node.get(node).map(|averages| averages.slow)
    }
}

/// A load as it will be when the node that has `held` of the keys has what it is given.
fn expected(load: Load, given: Option<f64>, held: f64) -> Load {
    let ratio = given.filter(|_| held > 0.0).map_or(1.0, |given| given / held);
    let ratio = if load.cpu.max(load.mem) >= FULL { ratio.max(1.0) } else { ratio };
    load.zip(load, |figure, _| figure * ratio)
}

/// What of an average is left after `passed_ms`; without a half-life there is no memory.
#[allow(clippy::cast_precision_loss, reason = "ms since 1970 are exact, and a ratio needs no more")]
fn kept_share(passed_ms: u64, half_life_ms: u64) -> f64 {
    if half_life_ms == 0 { 0.0 } else { (-(passed_ms as f64) / half_life_ms as f64).exp2() }
}

#[cfg(test)]
mod tests {
    use ring::Weight;

    use super::*;
    use crate::heartbeats::Report;

    fn report(node: &str, cpu: f64) -> Report {
        let load = Some(Load { cpu, ..Load::default() });
        Report { node: NodeId::new(node).unwrap(), load, ring_version: None }
    }

    fn rules(quick_ms: u64, slow_ms: u64) -> PolicyRules {
        PolicyRules { smoothing_half_life_ms: quick_ms, confirm_half_life_ms: slow_ms, ..PolicyRules::default() }
    }

    fn ring(version: u64, weights: &[(&str, u64)]) -> Ring {
        let nodes = weights.iter().map(|(node, weight)| (NodeId::new(node).unwrap(), Weight::new(*weight).unwrap()));
        Ring::build(RingVersion::new(version).unwrap(), 0, nodes).unwrap()
    }

    #[test]
    fn after_a_half_life_old_and_new_count_alike() {
        let node = NodeId::new("a").unwrap();
        let mut smoothing = Smoothing::default();
        let rounded = |load: Load| (load.cpu * 1000.0).round() / 1000.0;
        let mut observe = |cpu, now_ms| {
            smoothing.observe(&[report("a", cpu)].into_iter().collect(), &rules(10_000, 40_000), now_ms);
            (rounded(smoothing.quick(&node).unwrap()), rounded(smoothing.slow(&node).unwrap()))
        };
        assert_eq!(observe(0.8, 5_000), (0.8, 0.8));
        assert_eq!(observe(0.4, 15_000), (0.6, 0.736));
        // Time that stands still or steps back adds nothing.
        assert_eq!(observe(0.0, 15_000), (0.6, 0.736));
        assert_eq!(observe(0.0, 1_000), (0.6, 0.736));
        assert_eq!(observe(0.6, 25_000), (0.6, 0.715));
        smoothing.follow(&ring(1, &[("a", 100)]));
        assert_eq!(rounded(smoothing.slow(&node).unwrap()), 0.6);
    }

    #[test]
    fn a_node_that_is_gone_is_forgotten_and_one_without_metrics_is_not() {
        let node = NodeId::new("a").unwrap();
        let mut smoothing = Smoothing::default();
        let rules = rules(10_000, 10_000);
        smoothing.observe(&[report("a", 0.8)].into_iter().collect(), &rules, 0);
        smoothing.observe(&[Report { load: None, ..report("a", 0.0) }].into_iter().collect(), &rules, 60_000);
        assert_eq!(smoothing.quick(&node).unwrap().cpu, 0.8);
        smoothing.observe(&Reports::default(), &rules, 62_000);
        assert_eq!(smoothing.quick(&node), None);
    }

    /// What two nodes' cpu is expected to become: each had half the keys and is to have 40 and 60 of 100.
    #[track_caller]
    fn check(connections: [f64; 2], cpu: [f64; 2], expected: [f64; 2]) {
        let mut smoothing = Smoothing::default();
        let reports = |cpu: [f64; 2], connections: [f64; 2]| -> Reports {
            let load =
                |index: usize| Some(Load { cpu: cpu[index], connections: connections[index], ..Load::default() });
            let report = |(index, node)| Report { load: load(index), ..report(node, 0.0) };
            ["a", "b"].into_iter().enumerate().map(report).collect()
        };
        smoothing.follow(&ring(1, &[("a", 100), ("b", 100)]));
        smoothing.observe(&reports(cpu, [500.0, 500.0]), &rules(0, 0), 0);
        smoothing.follow(&ring(2, &[("a", 80), ("b", 120)]));
        smoothing.observe(&reports(cpu, connections), &rules(0, 0), 1_000);
        for (node, expected) in ["a", "b"].into_iter().zip(expected) {
            let cpu = smoothing.quick(&NodeId::new(node).unwrap()).unwrap().cpu;
            assert!((cpu - expected).abs() < 1e-9, "{node}: {cpu} for {expected}, {connections:?}");
        }
    }

    #[test]
    fn a_load_is_told_as_it_will_be_when_all_clients_have_moved() {
        // None has moved, half of them, all of them.
        check([500.0, 500.0], [0.6, 0.6], [0.48, 0.72]);
        check([450.0, 550.0], [0.54, 0.66], [0.48, 0.72]);
        check([400.0, 600.0], [0.48, 0.72], [0.48, 0.72]);
        // Beyond either end nothing is read off the connections: clients are not spread over the keys to the last one.
        check([530.0, 470.0], [0.6, 0.6], [0.48, 0.72]);
        check([350.0, 650.0], [0.48, 0.72], [0.48, 0.72]);
        // Who tells of no connections is taken to have what it is given.
        check([0.0, 0.0], [0.6, 0.6], [0.6, 0.6]);
    }

    #[test]
    fn a_full_node_gets_no_credit_for_clients_that_still_leave() {
        check([500.0, 500.0], [0.979, 0.6], [0.7832, 0.72]);
        check([500.0, 500.0], [0.98, 0.6], [0.98, 0.72]);
    }

    #[test]
    fn what_is_expected_follows_a_new_ring_at_once() {
        let mut smoothing = Smoothing::default();
        smoothing.follow(&ring(1, &[("a", 100), ("b", 100)]));
        smoothing.observe(&[report("a", 0.6), report("b", 0.6)].into_iter().collect(), &rules(10_000, 10_000), 0);
        for version in [2, 2] {
            // The same ring again changes nothing.
            smoothing.follow(&ring(version, &[("a", 50), ("b", 150)]));
            let cpu = |node: &str| smoothing.quick(&NodeId::new(node).unwrap()).unwrap().cpu;
            assert!((cpu("a") - 0.3).abs() < 1e-9 && (cpu("b") - 0.9).abs() < 1e-9);
        }
    }
}
