use proptest::prelude::*;

use super::*;

fn candidate(weight: f64, correction: f64, deviation: f64) -> Candidate {
    Candidate { weight, correction: Some(correction), deviation: Some(deviation), cap: f64::INFINITY }
}

fn unknown(weight: f64) -> Candidate {
    Candidate { weight, correction: None, deviation: None, cap: f64::INFINITY }
}

/// A fleet whose nodes deviate so from the mean; the correction is that of a score of 0.5 × (1 + deviation).
fn fleet(nodes: &[(f64, f64)]) -> Vec<Candidate> {
    nodes.iter().map(|(weight, deviation)| candidate(*weight, 1.0 / (0.6 + 0.5 * deviation), *deviation)).collect()
}

fn rules() -> PolicyRules {
    PolicyRules::default()
}

#[track_caller]
fn check_sound(weights: &[u16]) {
    assert_eq!(weights.iter().copied().map(u32::from).sum::<u32>(), total(weights.len()), "{weights:?}");
    assert!(weights.iter().all(|weight| *weight >= WEIGHT_MIN), "{weights:?}");
}

#[test]
fn quotas_are_rounded_by_largest_remainder_to_an_exact_total() {
    for (quotas, expected) in [
        (&[1.0, 1.0, 1.0][..], &[100, 100, 100][..]),
        (&[1.0, 2.0], &[67, 133]),
        (&[1.0, 1.0, 2.0], &[75, 75, 150]),
        (&[1.0, 3.0, 3.0], &[43, 129, 128]),
        (&[5.0], &[100]),
        (&[], &[]),
        // 10 is the least there is, and what it takes comes from the others.
        (&[0.0, 1.0, 1.0], &[10, 145, 145]),
        (&[1e-9, 1.0], &[10, 190]),
        (&[49.0, 951.0], &[10, 190]),
        (&[50.0, 950.0], &[10, 190]),
        (&[55.0, 945.0], &[11, 189]),
        // What is no number above 0 counts as none.
        (&[f64::NAN, 1.0, f64::INFINITY, -3.0], &[10, 370, 10, 10]),
        (&[f64::NAN, f64::NAN], &[100, 100]),
        (&[0.0, 0.0, 0.0], &[100, 100, 100]),
        (&[1e308, 1e308, 1e308], &[100, 100, 100]),
        (&[5e-324, 5e-324], &[100, 100]),
    ] {
        assert_eq!(apportion(quotas), expected, "{quotas:?}");
    }
}

#[test]
fn no_weight_leaves_its_sixteen_bits_in_the_largest_ring() {
    let mut quotas = vec![1.0; NODES_MAX];
    quotas[7] = 1e12;
    let weights = apportion(&quotas);
    check_sound(&weights);
    assert_eq!(weights[7], WEIGHT_MAX);
}

#[test]
fn proportional_takes_the_correction_alone() {
    let weights = proportional(&[candidate(300.0, 1.0, 0.3), candidate(10.0, 3.0, -0.3)]);
    assert_eq!(weights, [50, 150]);
}

#[test]
fn who_is_not_known_keeps_its_weight_and_the_others_share_the_rest() {
    assert_eq!(proportional(&[unknown(40.0), candidate(130.0, 1.0, 0.0), candidate(130.0, 3.0, 0.0)]), [40, 65, 195]);
    let mut nodes = fleet(&[(100.0, 0.3), (100.0, -0.3)]);
    nodes.push(unknown(140.0));
    nodes.push(unknown(60.0));
    let weights = feedback(&nodes, &rules(), 1.0);
    assert_eq!(weights[2..], [140, 60]);
    assert!(weights[0] < 100 && weights[1] > 100, "{weights:?}");
    assert_eq!(proportional(&[unknown(120.0), unknown(80.0)]), [120, 80]);
}

#[test]
fn a_cap_holds_and_what_is_above_goes_to_the_others() {
    let capped = Candidate { cap: 25.0, ..candidate(25.0, 5.0, -0.9) };
    assert_eq!(proportional(&[capped, candidate(100.0, 1.0, 0.1), candidate(100.0, 1.0, 0.1)])[0], 25);
    let weights = feedback(&[capped, candidate(140.0, 1.0, 0.3), candidate(135.0, 1.0, 0.3)], &rules(), 1.0);
    assert_eq!(weights[0], 25);
}

#[test]
fn from_equal_weights_and_with_kappa_1_both_policies_agree() {
    let nodes = fleet(&[(100.0, 0.5), (100.0, 0.2), (100.0, -0.1), (100.0, -0.6)]);
    let rules = PolicyRules { kappa: 1.0, dead_band: 0.0, ..rules() };
    assert_eq!(feedback(&nodes, &rules, 1.0), proportional(&nodes));
    assert_eq!(first(&nodes, &rules), proportional(&nodes));
}

#[test]
fn feedback_remembers_that_a_node_is_small() {
    // Even under uneven weights: that is the goal, and nothing moves.
    let nodes = fleet(&[(50.0, 0.0), (100.0, 0.0), (150.0, 0.0)]);
    assert_eq!(feedback(&nodes, &rules(), 1.0), [50, 100, 150]);
    assert_eq!(proportional(&nodes), [100, 100, 100]);
}

#[test]
fn inside_the_dead_band_a_weight_stays_to_within_one_unit() {
    let others = [0.049, -0.049, 0.02, 0.0, -0.02, 0.04, -0.04, 0.01];
    let mut nodes: Vec<(f64, f64)> = others.iter().map(|deviation| (100.0, *deviation)).collect();
    nodes.extend([(100.0, 0.4), (100.0, -0.4)]);
    let weights = feedback(&fleet(&nodes), &rules(), 0.1);
    check_sound(&weights);
    assert!(weights[..8].iter().all(|weight| (99..=101).contains(weight)), "{weights:?}");
    assert!(weights[8] < 95 && weights[9] > 105, "{weights:?}");
    // On either side of the band.
    for (deviation, moves) in [(0.05, false), (0.051, true), (-0.05, false), (-0.051, true)] {
        let step = step(&fleet(&[(100.0, deviation)])[0], 100.0 * (1.0 - deviation), &rules());
        assert_eq!(step != 0.0, moves, "{deviation}");
    }
}

#[test]
fn one_loaded_node_sheds_no_more_than_the_dead_band_can_take() {
    // 12 % over, all the others inside the band: each takes one unit at most.
    let weights = feedback(&fleet(&[(100.0, 0.12), (100.0, -0.04), (100.0, -0.04), (100.0, -0.04)]), &rules(), 1.0);
    assert_eq!(weights, [97, 101, 101, 101]);
}

#[test]
fn an_update_moves_no_more_than_its_limit() {
    let nodes = fleet(&[(100.0, 0.9), (100.0, 0.9), (100.0, -0.9), (100.0, -0.9)]);
    let gained = |limit: f64| {
        let weights = feedback(&nodes, &rules(), limit);
        check_sound(&weights);
        weights.iter().map(|weight| u32::from(weight.saturating_sub(100))).sum::<u32>()
    };
    assert!(gained(1.0) > 60);
    assert_eq!(gained(0.10), 40);
    assert_eq!(gained(0.05), 20);
}

/// Anything that an `f64` can be, and much of what loads are.
fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![4 => 0.0..2.0, 2 => -1.0..1.0, 1 => 0.0..1e6, 1 => any::<f64>()]
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let cap = prop_oneof![3 => Just(f64::INFINITY), 1 => 10.0..100.0];
    (10.0..400.0, proptest::option::of(any_number()), proptest::option::of(any_number()), cap)
        .prop_map(|(weight, correction, deviation, cap)| Candidate { weight, correction, deviation, cap })
}

/// Inputs of the property below: a million with `RTC_BALANCER_INPUTS=1000000 cargo test --release -p rtc-balancer
/// weights_are_sound_whatever_comes_in`.
fn inputs() -> u32 {
    std::env::var("RTC_BALANCER_INPUTS").ok().and_then(|count| count.parse().ok()).unwrap_or(2_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: inputs(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn weights_are_sound_whatever_comes_in(
        nodes in proptest::collection::vec(any_candidate(), 1..40),
        kappa in 0.0..2.0,
        moved in 0.0..1.0,
    ) {
        let rules = PolicyRules { kappa, ..rules() };
        check_sound(&proportional(&nodes));
        check_sound(&first(&nodes, &rules));
        check_sound(&feedback(&nodes, &rules, moved));
        let quotas: Vec<f64> = nodes.iter().map(|node| node.correction.unwrap_or(f64::NAN)).collect();
        check_sound(&apportion(&quotas));
    }
}
