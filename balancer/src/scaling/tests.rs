use super::*;

fn rules() -> ScalingRules {
    ScalingRules::default()
}

fn load(cpu: f64, mem: f64, latency_ms: f64, lag_ms: f64) -> Option<Load> {
    Some(Load { cpu, mem, latency_ms, lag_ms, ..Load::default() })
}

/// Nodes there should be, by a fleet that signals for the first time.
fn target(loads: &[Option<Load>]) -> Option<u64> {
    Scaling::default().recommend(loads, &rules(), 1_000_000)?.signal.target_nodes
}

fn equal(nodes: usize, cpu: f64, mem: f64, latency_ms: f64, lag_ms: f64) -> Option<u64> {
    target(&vec![load(cpu, mem, latency_ms, lag_ms); nodes])
}

#[test]
fn a_fleet_that_is_full_asks_for_three_more() {
    for (cpu, mem, expected) in [
        (0.70, 0.5, None),
        (0.701, 0.5, Some(6)),
        (0.5, 0.75, None),
        (0.5, 0.751, Some(6)),
        (0.90, 0.5, Some(6)),
        (0.901, 0.5, Some(7)),
    ] {
        assert_eq!(equal(3, cpu, mem, 10.0, 10.0), expected, "{cpu} {mem}");
    }
}

#[test]
fn one_full_node_is_critical_too() {
    let with = |cpu, mem| target(&[load(cpu, mem, 0.0, 0.0), load(0.3, 0.3, 0.0, 0.0), load(0.3, 0.3, 0.0, 0.0)]);
    assert_eq!(with(0.85, 0.3), None);
    assert_eq!(with(0.851, 0.3), Some(6));
    assert_eq!(with(0.3, 0.90), None);
    assert_eq!(with(0.3, 0.901), Some(6));
}

#[test]
fn work_that_waits_asks_for_two_where_there_is_load() {
    for (cpu, latency_ms, lag_ms, expected) in [
        (0.51, 501.0, 0.0, Some(5)),
        (0.51, 0.0, 501.0, Some(5)),
        (0.51, 500.0, 500.0, None),
        (0.50, 501.0, 501.0, None),
    ] {
        assert_eq!(equal(3, cpu, 0.3, latency_ms, lag_ms), expected, "{cpu} {latency_ms} {lag_ms}");
    }
}

#[test]
fn four_moderate_pressures_together_ask_for_one() {
    assert_eq!(equal(3, 0.61, 0.66, 251.0, 251.0), Some(4));
    for (cpu, mem, latency_ms, lag_ms) in
        [(0.60, 0.66, 251.0, 251.0), (0.61, 0.65, 251.0, 251.0), (0.61, 0.66, 250.0, 251.0), (0.61, 0.66, 251.0, 250.0)]
    {
        assert_eq!(equal(3, cpu, mem, latency_ms, lag_ms), None);
    }
}

#[test]
fn an_idle_fleet_gives_one_node_back_but_never_the_second() {
    for (nodes, cpu, mem, latency_ms, lag_ms, expected) in [
        (4, 0.199, 0.249, 249.0, 249.0, Some(3)),
        (4, 0.20, 0.249, 10.0, 10.0, None),
        (4, 0.199, 0.25, 10.0, 10.0, None),
        (4, 0.1, 0.1, 250.0, 10.0, None),
        (4, 0.1, 0.1, 10.0, 250.0, None),
        (3, 0.1, 0.1, 10.0, 10.0, Some(2)),
        (2, 0.1, 0.1, 10.0, 10.0, None),
        (1, 0.0, 0.0, 0.0, 0.0, None),
    ] {
        assert_eq!(equal(nodes, cpu, mem, latency_ms, lag_ms), expected, "{nodes} {cpu} {mem}");
    }
}

#[test]
fn a_scale_in_looks_at_the_load_of_the_nodes_that_stay() {
    let rules = ScalingRules { in_cpu: 0.9, in_mem: 0.9, ..rules() };
    let shrinks = |cpu, mem| {
        Scaling::default()
            .recommend(&vec![load(cpu, mem, 0.0, 0.0); 5], &rules, 0)
            .is_some_and(|r| r.direction == Direction::In)
    };
    // × 5/4: below 50 % and 55 %.
    assert!(shrinks(0.39, 0.43) && !shrinks(0.40, 0.43) && !shrinks(0.39, 0.44));
}

#[test]
fn unknown_load_is_never_idle() {
    let idle = load(0.1, 0.1, 0.0, 0.0);
    assert_eq!(target(&[idle, idle, idle]), Some(2));
    assert_eq!(target(&[idle, idle, None]), None);
    assert_eq!(target(&[None, None, None]), None);
}

#[test]
fn an_in_waits_five_minutes_after_any_signal_and_an_out_does_not() {
    let (full, idle) = (vec![load(0.75, 0.5, 0.0, 0.0); 4], vec![load(0.1, 0.1, 0.0, 0.0); 4]);
    let mut scaling = Scaling::default();
    let mut direction =
        |loads: &[Option<Load>], now_ms| scaling.recommend(loads, &rules(), now_ms).map(|signal| signal.direction);
    assert_eq!(direction(&full, 0), Some(Direction::Out));
    assert_eq!(direction(&full, 9_999), None);
    assert_eq!(direction(&full, 10_000), Some(Direction::Out));
    assert_eq!(direction(&idle, 309_999), None);
    assert_eq!(direction(&idle, 310_000), Some(Direction::In));
    assert_eq!(direction(&idle, 609_999), None);
    assert_eq!(direction(&idle, 610_000), Some(Direction::In));
    assert_eq!(direction(&full, 610_001), Some(Direction::Out));
}

#[test]
fn load_that_rises_in_spite_of_a_scale_out_asks_for_one_more() {
    let more = |first: f64, second: f64, later_ms| {
        let mut scaling = Scaling::default();
        scaling.recommend(&vec![load(first, 0.5, 0.0, 0.0); 3], &rules(), 0);
        scaling
            .recommend(&vec![load(second, 0.5, 0.0, 0.0); 3], &rules(), later_ms)
            .map(|r| r.signal.target_nodes.unwrap() - 3)
    };
    assert_eq!(more(0.75, 0.76, 60_000), Some(3));
    assert_eq!(more(0.75, 0.78, 60_000), Some(4));
    assert_eq!(more(0.75, 0.78, 300_000), Some(4));
    assert_eq!(more(0.75, 0.78, 300_001), Some(3));
    assert_eq!(more(0.75, 0.95, 60_000), Some(5));
    assert_eq!(more(0.93, 0.99, 60_000), Some(5));
}

#[test]
fn more_urgency_does_not_wait() {
    let mut scaling = Scaling::default();
    assert!(scaling.recommend(&vec![load(0.55, 0.5, 600.0, 0.0); 3], &rules(), 0).is_some());
    assert!(scaling.recommend(&vec![load(0.75, 0.5, 600.0, 0.0); 3], &rules(), 1).is_some());
    assert!(scaling.recommend(&vec![load(0.75, 0.5, 600.0, 0.0); 3], &rules(), 2).is_none());
}

#[test]
fn the_reason_reads_as_tools_expect() {
    let out = Scaling::default().recommend(&vec![load(0.91, 0.5, 12.0, 3.0); 3], &rules(), 7).unwrap();
    assert!(
        out.signal.reason.starts_with("SCALE_OUT recommended: nodes=3->7 (+4), cpu=91.0%"),
        "{}",
        out.signal.reason
    );
    assert_eq!((out.signal.current_nodes, out.signal.ts), (Some(3), 7));
    let shrink = Scaling::default().recommend(&vec![load(0.1, 0.1, 0.0, 0.0); 3], &rules(), 7).unwrap();
    assert!(
        shrink.signal.reason.starts_with("SCALE_IN recommended: nodes=3->2 (-1), cpu=10.0%"),
        "{}",
        shrink.signal.reason
    );
    out.signal.encode().unwrap();
}
