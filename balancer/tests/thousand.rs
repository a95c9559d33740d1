//! What a decision costs with a thousand nodes, the ring included:
//! `cargo test --release -p rtc-balancer --test thousand -- --nocapture` shows it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::{Duration, Instant};

use ring::{NodeId, RingVersion};
use rtc_balancer::decide::{Decision, Inputs, State, decide};
use rtc_balancer::heartbeats::{Load, Report, Reports};
use rtc_balancer::rules::Rules;

const NODES: u32 = 1000;
const ROUNDS: u64 = 20;
/// Held to in release builds; a debug build only has to get there.
const LIMIT: Duration = Duration::from_millis(30);

/// A fleet whose nodes' loads differ, by round.
fn reports(nodes: u32, round: u64) -> Reports {
    let report = |number: u32| {
        let cpu = 0.4 + 0.35 * f64::from((number * 7 + u32::try_from(round).unwrap() * 13) % 100) / 100.0;
        let load = Some(Load { cpu, mem: cpu, latency_ms: 20.0, connections: 1000.0, ..Load::default() });
        Report { node: NodeId::new(&format!("node-{number:04}")).unwrap(), load, ring_version: None }
    };
    (0..nodes).map(report).collect()
}

fn timed(state: &mut State, rules: &Rules, reports: &Reports, now_ms: u64) -> (Duration, Decision) {
    let inputs = Inputs { reports, version_floor: RingVersion::FIRST, seed: 0 };
    let begun = Instant::now();
    let decision = decide(state, rules, &inputs, now_ms);
    (begun.elapsed(), decision)
}

#[test]
fn a_decision_of_a_thousand_nodes_is_quick() {
    let mut rules = Rules::default();
    rules.policy.smoothing_half_life_ms = 0;
    rules.policy.confirm_half_life_ms = 0;
    // These loads do not follow the weights: no rebalance keeps its promise, and none is to wait for that.
    rules.triggers.broken_doublings_max = 0;
    let mut state = State::default();
    let (first, decision) = timed(&mut state, &rules, &reports(NODES, 0), 0);
    assert!(decision.change.is_some());
    let (mut rebalances, mut quiet) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let reports = reports(NODES, round);
        let (took, decision) = timed(&mut state, &rules, &reports, round * 200_000);
        assert!(decision.change.is_some_and(|change| change.moved_share <= 0.10), "round {round}");
        rebalances.push(took);
        quiet.push(timed(&mut state, &rules, &reports, round * 200_000 + 1000).0);
    }
    let (leave, decision) = timed(&mut state, &rules, &reports(NODES - 1, 1), (ROUNDS + 1) * 200_000);
    assert!(decision.change.is_some());
    rebalances.sort_unstable();
    quiet.sort_unstable();
    let worst = rebalances.iter().copied().chain([first, leave]).max().unwrap();
    println!(
        "{NODES} nodes: first ring {first:.1?}, rebalance median {:.1?} worst {:.1?}, leave {leave:.1?}, no change {:.1?}",
        rebalances[rebalances.len() / 2],
        rebalances.last().unwrap(),
        quiet[quiet.len() / 2],
    );
    assert!(cfg!(debug_assertions) || worst <= LIMIT, "{worst:?}");
}
