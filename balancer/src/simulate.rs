//! A closed-loop model of a fleet under the real core and the real ring: what a set of rules would do to nodes of
//! unequal capacity. A fluid model: no single client, but shares of the offered load that move when weights do.
//!
//! | file | what it owns |
//! |---|---|
//! | `fleet` | what is simulated: the built-in fleets and those from TOML |
//! | `world` | its nodes: the ring they follow, the load on its way, what they report |
//! | `noise` | seeded randomness |
//! | `text`, `html` | what is shown of the results |

mod fleet;
pub mod html;
mod noise;
pub mod text;
mod world;

use std::sync::Arc;

use ring::RingVersion;

use crate::decide::{Inputs, Starting, State, decide};
use crate::rules::{PolicyKind, Rules};

pub use fleet::{Fleet, FleetError, built_in};
use world::World;

/// The seeds that each fleet is simulated with; the worst is what counts.
pub const SEEDS: std::ops::RangeInclusive<u64> = 1..=20;
/// Peak over mean below which a fleet counts as even.
pub const EVEN_PEAK: f64 = 1.10;
/// A node above counts as too full.
pub const FULL: f64 = 0.80;

/// What one run has shown.
#[derive(Debug, Clone)]
pub struct Run {
    /// By which policy.
    pub policy: PolicyKind,
    /// With which seed.
    pub seed: u64,
    /// From when on the peak stayed below [`EVEN_PEAK`] × mean, in s; none where it did not.
    pub even_after_s: Option<f64>,
    /// The largest peak over mean in the second half.
    pub late_peak: f64,
    /// Rings after the first.
    pub updates: usize,
    /// Rings in the second half.
    pub late_updates: usize,
    /// Sum of the shares of keys moved.
    pub moved_share: f64,
    /// The largest share moved by one update.
    pub moved_share_max: f64,
    /// Node-seconds over [`FULL`].
    pub full_node_seconds: f64,
    /// Time in s and peak over mean, one per step.
    pub peaks: Vec<(f64, f64)>,
    /// Each node's use at every step, node by node.
    pub uses: Vec<Vec<f64>>,
}

/// One fleet under several policies, each with every seed.
#[derive(Debug, Clone)]
pub struct Trial {
    /// What was simulated.
    pub fleet: Fleet,
    /// How each policy did.
    pub policies: Vec<Tried>,
}

/// How one policy did.
#[derive(Debug, Clone)]
pub struct Tried {
    /// Which.
    pub policy: PolicyKind,
    /// The worst of all seeds, measure by measure.
    pub worst: Worst,
    /// The run with the highest late peak.
    pub curve: Run,
}

/// The worst of many runs, measure by measure; see [`Run`].
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the fields are those of Run")]
pub struct Worst {
    pub even_after_s: Option<f64>,
    pub late_peak: f64,
    pub updates: usize,
    pub late_updates: usize,
    pub moved_share: f64,
    pub moved_share_max: f64,
    pub full_node_seconds: f64,
}

impl Trial {
    /// Runs a fleet under each policy with every seed.
    pub fn run(fleet: Fleet, rules: &Rules, policies: &[PolicyKind]) -> Self {
        let policies = policies.iter().map(|policy| Tried::run(&fleet, rules, *policy)).collect();
        Self { fleet, policies }
    }
}

impl Tried {
    fn run(fleet: &Fleet, rules: &Rules, policy: PolicyKind) -> Self {
        let first = run(fleet, rules, policy, *SEEDS.start());
        let mut worst = Worst {
            even_after_s: first.even_after_s,
            late_peak: first.late_peak,
            updates: first.updates,
            late_updates: first.late_updates,
            moved_share: first.moved_share,
            moved_share_max: first.moved_share_max,
            full_node_seconds: first.full_node_seconds,
        };
        let mut curve = first;
        for seed in SEEDS.skip(1) {
            let run = run(fleet, rules, policy, seed);
            worst.even_after_s = worst.even_after_s.zip(run.even_after_s).map(|(one, other)| one.max(other));
            worst.late_peak = worst.late_peak.max(run.late_peak);
            worst.updates = worst.updates.max(run.updates);
            worst.late_updates = worst.late_updates.max(run.late_updates);
            worst.moved_share = worst.moved_share.max(run.moved_share);
            worst.moved_share_max = worst.moved_share_max.max(run.moved_share_max);
            worst.full_node_seconds = worst.full_node_seconds.max(run.full_node_seconds);
            if run.late_peak > curve.late_peak {
                curve = run;
            }
        }
        Self { policy, worst, curve }
    }
}

/// Runs one fleet under one policy.
pub fn run(fleet: &Fleet, rules: &Rules, policy: PolicyKind, seed: u64) -> Run {
    let mut rules = rules.clone();
    rules.policy.kind = policy;
    let mut world = World::new(fleet, seed);
    let mut state = State::default();
    let mut result = Run {
        policy,
        seed,
        even_after_s: Some(0.0),
        late_peak: 0.0,
        updates: 0,
        late_updates: 0,
        moved_share: 0.0,
        moved_share_max: 0.0,
        full_node_seconds: 0.0,
        peaks: Vec::new(),
        uses: vec![Vec::new(); fleet.capacities.len()],
    };
    state.adopt(Arc::clone(&world.ring), Starting::default(), 0);
    let mut now_ms = 0;
    while now_ms < fleet.duration_ms {
        let (uses, reports) = world.step(now_ms);
        result.record(fleet, &uses, now_ms);
        if now_ms.is_multiple_of(fleet.decision_ms) {
            let inputs = Inputs { reports: &reports, version_floor: RingVersion::FIRST, seed: 0 };
            if let Some(change) = decide(&mut state, &rules, &inputs, now_ms).change {
                result.record_change(fleet, change.moved_share, now_ms);
                world.move_to(change.ring, now_ms);
            }
        } else {
            state.observe(&reports, &rules.policy, now_ms);
        }
        now_ms += fleet.heartbeat_ms;
    }
    result
}

impl Run {
    fn record(&mut self, fleet: &Fleet, uses: &[f64], now_ms: u64) {
        let (at_s, step_s) = (seconds(now_ms), seconds(fleet.heartbeat_ms));
        let peak = uses.iter().copied().fold(0.0, f64::max);
        #[allow(clippy::cast_precision_loss, reason = "few nodes")]
        let mean = uses.iter().sum::<f64>() / uses.len() as f64;
        let peak_over_mean = peak / mean;
        if peak_over_mean >= EVEN_PEAK {
            let is_last = now_ms + fleet.heartbeat_ms >= fleet.duration_ms;
            self.even_after_s = (!is_last).then_some(at_s + step_s);
        }
        if now_ms * 2 >= fleet.duration_ms {
            self.late_peak = self.late_peak.max(peak_over_mean);
        }
        #[allow(clippy::cast_precision_loss, reason = "few nodes")]
        let full = uses.iter().filter(|share| **share > FULL).count() as f64;
        self.full_node_seconds += full * step_s;
        self.peaks.push((at_s, peak_over_mean));
        for (history, share) in self.uses.iter_mut().zip(uses) {
            history.push(*share);
        }
    }

    fn record_change(&mut self, fleet: &Fleet, moved_share: f64, now_ms: u64) {
        self.updates += 1;
        self.late_updates += usize::from(now_ms * 2 >= fleet.duration_ms);
        self.moved_share += moved_share;
        self.moved_share_max = self.moved_share_max.max(moved_share);
    }
}

/// Thousandths of a second as seconds.
fn seconds(ms: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a few hours")]
    let seconds = ms as f64 / 1000.0;
    seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers that the rules promise, on a fleet simulated as the command does it.
    #[test]
    fn a_steady_fleet_is_left_alone() {
        let steady = built_in().remove(0);
        for policy in [PolicyKind::Feedback, PolicyKind::Proportional] {
            for heartbeat_ms in [steady.heartbeat_ms, steady.decision_ms] {
                let fleet = Fleet { heartbeat_ms, ..steady.clone() };
                assert_eq!(run(&fleet, &Rules::default(), policy, 1).updates, 0, "{policy:?} {heartbeat_ms}");
            }
        }
    }

    #[test]
    fn a_mixed_fleet_becomes_even_and_stays_so() {
        let mixed = built_in().remove(1);
        // Nodes that report every two seconds, and nodes that report only once a decision.
        for heartbeat_ms in [mixed.heartbeat_ms, mixed.decision_ms] {
            let fleet = Fleet { heartbeat_ms, ..mixed.clone() };
            let tried = Tried::run(&fleet, &Rules::default(), PolicyKind::Feedback);
            let worst = tried.worst;
            assert!(worst.even_after_s.is_some_and(|seconds| seconds <= 480.0), "{worst:?}");
            assert!(worst.late_peak <= 1.06 && worst.updates <= 10, "{worst:?}");
            assert!(worst.moved_share <= 0.25 && worst.moved_share_max <= 0.10, "{worst:?}");
            let other = run(&fleet, &Rules::default(), PolicyKind::Proportional, 1);
            assert!(worst.full_node_seconds * 10.0 <= other.full_node_seconds, "{worst:?}");
        }
    }

    /// Every node near or beyond what it may have: there is little to gain, and it must not be chased.
    #[test]
    fn a_full_fleet_is_not_chased_around_the_ring() {
        for (offered, seed) in [(0.75, 1), (0.75, 2), (0.9, 1), (0.9, 2)] {
            let full = Fleet { offered, ..built_in().remove(1) };
            let run = run(&full, &Rules::default(), PolicyKind::Feedback, seed);
            let (late_peak, moved_share) = (run.late_peak, run.moved_share);
            assert!(late_peak <= 1.06 && moved_share <= 0.35, "{offered} {seed}: {late_peak} {moved_share}");
        }
    }

    /// What has been asked for and has not arrived is not asked for again.
    #[test]
    fn clients_that_follow_slowly_are_waited_for() {
        let slow = Fleet { drain_ms: 600_000, ..built_in().remove(1) };
        for seed in 1..=4 {
            let run = run(&slow, &Rules::default(), PolicyKind::Feedback, seed);
            let Run { late_peak, updates, moved_share, .. } = run;
            assert!(run.even_after_s.is_some_and(|seconds| seconds <= 720.0), "{seed}: {:?}", run.even_after_s);
            assert!(late_peak <= 1.06 && updates <= 10 && moved_share <= 0.25, "{seed}: {late_peak} {moved_share}");
        }
    }

    #[test]
    fn each_harder_model_differs_from_the_kind_one_and_repeats() {
        let kind = built_in().remove(2);
        let peaks = |fleet: &Fleet| run(fleet, &Rules::default(), PolicyKind::Feedback, 3).peaks;
        for harder in [
            Fleet { tail: Some(2.0), ..kind.clone() },
            Fleet { flat: 0.5, ..kind.clone() },
            Fleet { noise_memory_ms: 60_000, ..kind.clone() },
        ] {
            assert_ne!(peaks(&harder), peaks(&kind), "{harder:?}");
            assert_eq!(peaks(&harder), peaks(&harder), "{harder:?}");
        }
        // Clients that differ still bring the whole load between them: only its split is another.
        let uneven = Fleet { tail: Some(2.0), ..kind.clone() };
        let world = |fleet| World::new(fleet, 3).step(0).0;
        let whole = |uses: Vec<f64>| uses.iter().zip(&kind.capacities).map(|(share, capacity)| share * capacity).sum();
        let (kind_load, uneven_load): (f64, f64) = (whole(world(&kind)), whole(world(&uneven)));
        assert!((kind_load - uneven_load).abs() < 1e-9, "{kind_load} {uneven_load}");
    }

    #[test]
    fn a_seed_repeats_its_run() {
        let trio = built_in().remove(2);
        let once = |seed| run(&trio, &Rules::default(), PolicyKind::Feedback, seed).peaks;
        assert_eq!(once(3), once(3));
        assert_ne!(once(3), once(4));
    }
}
