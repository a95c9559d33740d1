//! What is not said: the file's word, else the scenario's default. Flags and environment go before both.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};

use super::check::CONNECTIONS_MAX;
use crate::{
    args::{Args, DriverChoice, Pairs, Scenario, Span},
    targets::Target,
};

/// Adds the file named by `--config`, if any, below the flags and the environment.
///
/// # Errors
/// A file that is missing, is not TOML, or holds an unknown key or a bad value.
pub(crate) fn with_file(args: Args) -> Result<Args> {
    let Some(path) = &args.config else {
        return Ok(args);
    };
    let file = read_file(path)?;
    Ok(args.or(file))
}

fn read_file(path: &Path) -> Result<Args> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read --config {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in {}", path.display()))
}

/// The same settings with every default filled in; what `--print-config` shows.
///
/// # Errors
/// No scenario.
pub(crate) fn with_defaults(args: Args) -> Result<Args> {
    let scenario = args
        .scenario
        .context("no scenario: name one of echo, p2p, idle, storm, resume, churn, capacity (see --help)")?;
    let hold = args.hold.unwrap_or(false);
    let second = |seconds| Some(Span::from(Duration::from_secs(seconds)));
    let (connections, rate, depth, payload, warm_up) = match scenario {
        Scenario::Echo => (100, None, Some(1), Some(16), 1),
        Scenario::P2p | Scenario::Resume | Scenario::Churn | Scenario::Capacity => {
            (100, Some(1000.0), None, Some(200), 1)
        }
        Scenario::Idle => (100, None, None, None, 0),
        Scenario::Storm => (if hold { 1000 } else { CONNECTIONS_MAX }, None, None, None, 0),
    };
    let is_roaming = scenario.is_restless() || args.fault.as_ref().is_some_and(|faults| !faults.is_empty());
    let defaults = Args {
        url: args.balancer.is_none().then(|| vec!["ws://127.0.0.1:8080".to_owned()]),
        connections: Some(connections),
        rate,
        depth,
        payload,
        duration: second(10),
        warm_up: second(warm_up),
        // As long as a client waits for the answer to a message.
        drain: second(if is_roaming { 30 } else { 5 }),
        connect_timeout: second(10),
        in_flight: Some(64),
        hold: Some(hold),
        pairs: (scenario.has_pairs() && args.balancer.is_none()).then_some(Pairs::Cross),
        cut_interval: if scenario == Scenario::Resume { second(2) } else { None },
        hop_interval: if scenario == Scenario::Churn { second(5) } else { None },
        silent_share: if scenario == Scenario::Churn { "0%".parse().ok() } else { None },
        sender_acks: Some(scenario.is_restless()),
        receiver_acks: Some(scenario.is_restless()),
        processes: Some(1),
        threads: Some(1),
        driver: Some(DriverChoice::Auto),
        quiet: Some(false),
        target: (scenario == Scenario::Capacity).then(|| vec![capacity_target()]),
        ..Args::default()
    };
    Ok(args.or(defaults))
}

/// What a rate has to meet to hold, where nothing else is said.
fn capacity_target() -> Target {
    "p99<100ms".parse().expect("a constant target")
}
