use super::*;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

struct Case {
    nodes: Vec<NodeId>,
    weights: Vec<u16>,
    loads: Vec<Option<Load>>,
    deviations: Vec<f64>,
    slow: Vec<f64>,
    ages: Ages,
    kind: PolicyKind,
}

/// Three healthy nodes at half load and equal weights, long after the last update.
fn calm() -> Case {
    let load = Some(Load { cpu: 0.5, mem: 0.5, latency_ms: 20.0, ..Load::default() });
    Case {
        nodes: NAMES[..3].iter().map(|name| NodeId::new(name).unwrap()).collect(),
        weights: vec![100; 3],
        loads: vec![load; 3],
        deviations: vec![0.0; 3],
        slow: vec![0.0; 3],
        ages: Ages { update_ms: Some(300_000), overload_ms: None, reliefs: 0, broken: 0 },
        kind: PolicyKind::Feedback,
    }
}

impl Case {
    fn cpu(mut self, cpu: [f64; 3]) -> Self {
        for (load, cpu) in self.loads.iter_mut().flatten().zip(cpu) {
            load.cpu = cpu;
        }
        self
    }

    fn mem(mut self, mem: [f64; 3]) -> Self {
        for (load, mem) in self.loads.iter_mut().flatten().zip(mem) {
            load.mem = mem;
        }
        self
    }

    fn latency(mut self, latency_ms: [f64; 3]) -> Self {
        for (load, latency_ms) in self.loads.iter_mut().flatten().zip(latency_ms) {
            load.latency_ms = latency_ms;
        }
        self
    }

    fn weights(self, weights: [u16; 3]) -> Self {
        Self { weights: weights.into(), ..self }
    }

    fn deviations(self, quick: [f64; 3], slow: [f64; 3]) -> Self {
        Self { deviations: quick.into(), slow: slow.into(), ..self }
    }

    fn age(mut self, update_ms: u64) -> Self {
        self.ages.update_ms = Some(update_ms);
        self
    }

    fn overload_age(self, overload_ms: u64) -> Self {
        self.reliefs(1, overload_ms)
    }

    fn reliefs(mut self, reliefs: u32, overload_ms: u64) -> Self {
        (self.ages.reliefs, self.ages.overload_ms) = (reliefs, Some(overload_ms));
        self
    }

    fn broken(mut self, broken: u32) -> Self {
        self.ages.broken = broken;
        self
    }

    fn proportional(self) -> Self {
        Self { kind: PolicyKind::Proportional, ..self }
    }

    fn cause(&self) -> &'static str {
        let seen: Vec<Seen<'_>> = (0..self.nodes.len())
            .map(|index| Seen {
                node: &self.nodes[index],
                weight: self.weights[index],
                load: self.loads[index],
                deviation: self.loads[index].map(|_| self.deviations[index]),
                slow_deviation: self.loads[index].map(|_| self.slow[index]),
            })
            .collect();
        let policy = PolicyRules { kind: self.kind, ..PolicyRules::default() };
        match cause(&seen, self.ages, &policy, &TriggerRules::default()) {
            None => "none",
            Some(Cause::Extreme { .. }) => "extreme",
            Some(Cause::Overloaded { .. }) => "overloaded",
            Some(Cause::Spread { .. }) => "spread",
            Some(Cause::Latency { .. }) => "latency",
            Some(Cause::Imbalance { .. }) => "imbalance",
            Some(Cause::Periodic) => "periodic",
            Some(Cause::Equalise) => "equalise",
        }
    }
}

#[track_caller]
fn check(table: &[(Case, &str)]) {
    for (row, (case, expected)) in table.iter().enumerate() {
        assert_eq!(case.cause(), *expected, "row {row}");
    }
}

#[test]
fn nothing_happens_in_a_calm_fleet() {
    check(&[(calm(), "none"), (calm().age(10_000_000), "none"), (calm().proportional(), "none")]);
}

#[test]
fn an_overloaded_node_with_weight_to_lose_is_relieved_at_once() {
    check(&[
        (calm().age(0).cpu([0.80, 0.5, 0.5]), "none"),
        (calm().age(0).cpu([0.801, 0.5, 0.5]), "extreme"),
        (calm().age(0).mem([0.85, 0.5, 0.5]), "none"),
        (calm().age(0).mem([0.851, 0.5, 0.5]), "extreme"),
        // Its weight from 80 % of the average up.
        (calm().age(0).cpu([0.9, 0.6, 0.6]).weights([80, 110, 110]), "extreme"),
        (calm().age(0).cpu([0.9, 0.6, 0.6]).weights([79, 110, 111]), "none"),
        // Not again before what was decided can have had an effect.
        (calm().age(0).cpu([0.9, 0.5, 0.5]).overload_age(19_999), "none"),
        (calm().age(0).cpu([0.9, 0.5, 0.5]).overload_age(20_000), "extreme"),
        // Twice as long each time, up to the cooldown.
        (calm().age(0).cpu([0.9, 0.5, 0.5]).reliefs(2, 39_999), "none"),
        (calm().age(0).cpu([0.9, 0.5, 0.5]).reliefs(2, 40_000), "extreme"),
        (calm().age(0).cpu([0.9, 0.5, 0.5]).reliefs(3, 79_999), "none"),
        (calm().age(0).cpu([0.9, 0.5, 0.5]).reliefs(3, 80_000), "extreme"),
        (calm().age(0).cpu([0.9, 0.5, 0.5]).reliefs(4, 119_999), "none"),
        (calm().age(0).cpu([0.9, 0.5, 0.5]).reliefs(u32::MAX, 120_000), "extreme"),
        (calm().age(0).cpu([0.9, 0.5, 0.5]).proportional(), "extreme"),
    ]);
}

#[test]
fn within_the_cooldown_only_extremes_count() {
    check(&[
        (calm().age(119_999).cpu([0.79, 0.3, 0.5]), "none"),
        (calm().age(120_000).cpu([0.79, 0.3, 0.5]), "spread"),
        (calm().age(119_999).deviations([0.5, -0.2, -0.3], [0.5, -0.2, -0.3]), "none"),
        (calm().age(120_000).deviations([0.5, -0.2, -0.3], [0.5, -0.2, -0.3]), "imbalance"),
    ]);
}

#[test]
fn after_broken_promises_the_cooldown_is_longer() {
    let uneven = |broken, age| calm().deviations([0.5, -0.2, -0.3], [0.5, -0.2, -0.3]).broken(broken).age(age);
    check(&[
        // The first is forgiven.
        (uneven(1, 119_999), "none"),
        (uneven(1, 120_000), "imbalance"),
        (uneven(2, 239_999), "none"),
        (uneven(2, 240_000), "imbalance"),
        (uneven(3, 479_999), "none"),
        (uneven(3, 480_000), "imbalance"),
        // Four doublings are the most.
        (uneven(u32::MAX, 1_919_999), "none"),
        (uneven(u32::MAX, 1_920_000), "imbalance"),
        // The first relief of an overloaded node waits for nothing, and those that follow double up to the cooldown.
        (calm().age(0).cpu([0.9, 0.5, 0.5]).broken(9), "extreme"),
        (calm().age(0).cpu([0.9, 0.5, 0.5]).broken(2).reliefs(9, 239_999), "none"),
        (calm().age(0).cpu([0.9, 0.5, 0.5]).broken(2).reliefs(9, 240_000), "extreme"),
        (calm().proportional().cpu([0.79, 0.3, 0.5]).broken(9).age(120_000), "spread"),
    ]);
}

#[test]
fn a_spread_of_cpu_or_mem_is_too_much_from_40_per_cent() {
    check(&[
        (calm().cpu([0.75, 0.35, 0.5]), "none"),
        (calm().cpu([0.751, 0.35, 0.5]), "spread"),
        (calm().mem([0.75, 0.35, 0.5]), "none"),
        (calm().mem([0.751, 0.35, 0.5]), "spread"),
    ]);
}

#[test]
fn an_overloaded_node_without_weight_to_lose_waits_for_the_cooldown() {
    check(&[
        (calm().cpu([0.81, 0.5, 0.5]).weights([79, 110, 111]), "overloaded"),
        (calm().cpu([0.80, 0.5, 0.5]).weights([79, 110, 111]), "none"),
        (calm().age(119_999).cpu([0.81, 0.5, 0.5]).weights([79, 110, 111]), "none"),
    ]);
}

#[test]
fn latency_counts_above_twice_the_average_and_half_a_second() {
    check(&[
        (calm().latency([500.0, 20.0, 20.0]), "none"),
        (calm().latency([501.0, 20.0, 20.0]), "latency"),
        // Twice the average: 1000 of (1000 + 2 × 250) / 3.
        (calm().latency([1000.0, 250.0, 250.0]), "none"),
        (calm().latency([1000.0, 249.0, 249.0]), "latency"),
        (calm().latency([900.0, 900.0, 900.0]), "none"),
    ]);
}

#[test]
fn an_idle_fleet_is_left_alone() {
    check(&[
        (calm().cpu([0.399, 0.0, 0.0]).mem([0.399, 0.0, 0.0]).latency([900.0, 0.0, 0.0]), "none"),
        (calm().cpu([0.40, 0.0, 0.0]).mem([0.399, 0.0, 0.0]).latency([900.0, 0.0, 0.0]), "latency"),
        (calm().cpu([0.399, 0.0, 0.0]).mem([0.40, 0.0, 0.0]).latency([900.0, 0.0, 0.0]), "latency"),
    ]);
    let unknown = Case { loads: vec![None; 3], ..calm().age(10_000_000) };
    check(&[(unknown, "none")]);
}

#[test]
fn feedback_acts_on_a_peak_that_the_slow_average_confirms() {
    let peak = |quick: f64, slow: f64| calm().deviations([quick, -quick, 0.0], [slow, -slow, 0.0]);
    check(&[
        (peak(0.065, 0.06), "none"),
        (peak(0.066, 0.06), "imbalance"),
        (peak(0.066, 0.05), "none"),
        (peak(0.066, 0.051), "imbalance"),
        // One noisy measurement.
        (peak(0.30, 0.01), "none"),
        // Only who is above the mean suffers.
        (calm().deviations([-0.2, 0.04, 0.04], [-0.2, 0.04, 0.04]), "none"),
        (peak(0.2, 0.2).proportional(), "none"),
    ]);
}

#[test]
fn every_ten_minutes_a_fleet_that_is_not_even_is_improved() {
    let uneven = |slow: f64| calm().deviations([0.0; 3], [slow, -slow, 0.0]);
    check(&[
        (uneven(0.051).age(599_999), "none"),
        (uneven(0.051).age(600_000), "periodic"),
        (uneven(-0.051).age(600_000), "periodic"),
        (uneven(0.05).age(600_000), "none"),
        (calm().proportional().cpu([0.75, 0.38, 0.5]).age(600_000), "periodic"),
        (calm().proportional().cpu([0.75, 0.38, 0.5]).age(599_999), "none"),
    ]);
}

#[test]
fn proportional_leaves_a_converged_fleet_alone() {
    let at = |weights, cpu| calm().proportional().age(600_000).weights(weights).cpu(cpu);
    check(&[(at([100, 100, 100], [0.60, 0.41, 0.5]), "none"), (at([100, 100, 100], [0.61, 0.40, 0.5]), "periodic")]);
}

#[test]
fn proportional_leaves_unequal_weights_that_work() {
    let at = |weights, cpu| calm().proportional().age(600_000).weights(weights).cpu(cpu);
    check(&[
        (at([120, 99, 81], [0.70, 0.36, 0.5]), "none"),
        (at([120, 99, 81], [0.70, 0.35, 0.5]), "periodic"),
        // As equal as these are, they do not count as unequal.
        (at([110, 100, 90], [0.70, 0.36, 0.5]), "periodic"),
    ]);
}

#[test]
fn proportional_makes_weights_equal_once_the_load_is() {
    let at = |weights, cpu| calm().proportional().weights(weights).cpu(cpu);
    check(&[
        (at([108, 100, 92], [0.60, 0.46, 0.5]), "equalise"),
        (at([107, 101, 92], [0.60, 0.46, 0.5]), "none"),
        (at([120, 100, 80], [0.60, 0.46, 0.5]), "equalise"),
        (at([120, 100, 80], [0.60, 0.44, 0.5]), "none"),
        (at([120, 100, 80], [0.60, 0.46, 0.5]).age(119_999), "none"),
    ]);
    // In feedback that is the goal.
    check(&[(calm().weights([120, 100, 80]).age(10_000_000), "none")]);
}
