//! What is said, checked: values out of range, flags that mean nothing to the scenario, and what would show nothing are
//! refused by name.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::servers::{ports, servers, sources};
use super::{AfterHandshake, Config, Load, Placement, Unrest};
use crate::{
    args::{Args, DriverChoice, Pairs, Scenario, Share, Span},
    fault::Fault,
    payload::{ECHO_BYTES_MIN, ECHO_CONNECTIONS_MAX, MESSAGE_BYTES_MIN},
    schedule::Rate,
    targets::Pacing,
};

pub(super) const CONNECTIONS_MAX: u32 = 16_000_000;
const _: () = assert!(CONNECTIONS_MAX < ECHO_CONNECTIONS_MAX);
const DEPTH_MAX: u32 = 4096;
const PROCESSES_MAX: u32 = 256;
const THREADS_MAX: u32 = 256;
const IN_FLIGHT_MAX: u32 = 4096;
/// The largest frame that `/ws/echo` returns.
const PAYLOAD_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// The shortest that clients may stay connected: much below, the run would be of nothing but handshakes.
const STAY_MIN: Duration = Duration::from_millis(50);

impl TryFrom<Args> for Config {
    type Error = anyhow::Error;

    /// Checks `args`, which [`with_defaults`] has completed.
    fn try_from(args: Args) -> Result<Self> {
        let scenario = args.scenario.context("no scenario")?;
        refuse_foreign_flags(&args, scenario)?;
        let servers = servers(&args, scenario)?;
        let connections = within("--connections", args.connections, 1, CONNECTIONS_MAX)?;
        ensure!(
            !scenario.has_pairs() || connections.is_multiple_of(2),
            "--connections {connections} is odd: the clients of {} talk in pairs",
            scenario.name()
        );
        let load = load(&args)?;
        let payload_bytes = payload(&args, scenario)?;
        let processes = within("--processes", args.processes, 1, PROCESSES_MAX)?;
        let threads = within("--threads", args.threads, 1, THREADS_MAX)?;
        let workers = processes * threads;
        let least = if scenario.has_pairs() { 2 * workers } else { workers };
        ensure!(
            connections >= least,
            "--connections {connections} is too few for {workers} threads in all, which need {least}"
        );
        let duration = Duration::from(args.duration.context("no --duration")?);
        ensure!(duration >= Duration::from_millis(100), "--duration is under 100ms: nothing could be measured");
        let warm_up = args.warm_up.context("no --warm-up")?;
        let is_held = scenario != Scenario::Storm || args.hold == Some(true);
        let unrest = unrest(&args)?;
        let faults = faults(&args, load, duration)?;
        let sources = sources(args.source_addresses, &servers, ports(connections, unrest), is_held);
        let seed = match args.seed {
            Some(seed) => seed,
            None => getrandom::u64().context("no randomness for the run's identity")?,
        };
        Ok(Self {
            scenario,
            servers,
            placement: match args.pairs {
                Some(Pairs::Cross) | None => Placement::InTurn,
                Some(Pairs::Local) => Placement::ByPairs,
                Some(Pairs::Mixed) => Placement::Mixed,
            },
            unrest,
            silent_share: args.silent_share.map_or(0.0, Share::fraction),
            faults,
            connections,
            load,
            payload_bytes,
            duration,
            warm_up: warm_up.into(),
            drain: args.drain.context("no --drain")?.into(),
            connect_timeout: args.connect_timeout.context("no --connect-timeout")?.into(),
            in_flight: within("--in-flight", args.in_flight, 1, IN_FLIGHT_MAX)?,
            after_handshake: if args.hold == Some(true) { AfterHandshake::Hold } else { AfterHandshake::Close },
            sender_acks: args.sender_acks.unwrap_or(false),
            receiver_acks: args.receiver_acks.unwrap_or(false),
            processes,
            threads,
            cpus: args.cpus.unwrap_or_default(),
            driver: args.driver.unwrap_or(DriverChoice::Auto),
            sources,
            seed,
            targets: args.target.unwrap_or_default(),
            server_pid: args.server_pid,
            json: args.json,
            html: args.html,
            quiet: args.quiet.unwrap_or(false),
        })
    }
}

/// A flag the scenario would ignore is a misunderstanding: say so instead.
fn refuse_foreign_flags(args: &Args, scenario: Scenario) -> Result<()> {
    let has_pairs = scenario.has_pairs();
    let talks = has_pairs || scenario == Scenario::Echo;
    for (flag, is_given, applies) in [
        ("--depth", args.depth.is_some(), matches!(scenario, Scenario::Echo | Scenario::P2p)),
        ("--rate", args.rate.is_some(), talks || scenario == Scenario::Storm),
        ("--payload", args.payload.is_some(), talks),
        ("--sender-acks", args.sender_acks == Some(true), has_pairs),
        ("--receiver-acks", args.receiver_acks == Some(true), has_pairs),
        ("--pairs", args.pairs.is_some(), has_pairs),
        ("--balancer", args.balancer.is_some(), scenario != Scenario::Echo),
        ("--cut-interval", args.cut_interval.is_some(), scenario == Scenario::Resume),
        ("--hop-interval", args.hop_interval.is_some(), scenario == Scenario::Churn),
        ("--silent-share", args.silent_share.is_some(), scenario == Scenario::Churn),
        (
            "--fault",
            args.fault.as_ref().is_some_and(|faults| !faults.is_empty()),
            has_pairs && scenario != Scenario::Capacity,
        ),
        ("--hold", args.hold == Some(true), scenario == Scenario::Storm),
    ] {
        ensure!(applies || !is_given, "{flag} means nothing to {}", scenario.name());
    }
    Ok(())
}

fn within(flag: &str, value: Option<u32>, min: u32, max: u32) -> Result<u32> {
    let value = value.with_context(|| format!("no {flag}"))?;
    ensure!((min..=max).contains(&value), "{flag} {value} is out of range: {min} to {max}");
    Ok(value)
}

fn load(args: &Args) -> Result<Load> {
    match (args.rate, args.depth) {
        (Some(rate), None) => {
            ensure!(Rate::new(rate).is_some(), "--rate {rate} is out of range: 0.001 to {}", Rate::PER_SECOND_MAX);
            Ok(Load::Open { per_second: rate })
        }
        (None, Some(_)) => Ok(Load::Closed { depth: within("--depth", args.depth, 1, DEPTH_MAX)? }),
        (None, None) => Ok(Load::Silent),
        (Some(_), Some(_)) => {
            bail!("--rate and --depth exclude each other: an open loop or a closed one")
        }
    }
}

fn payload(args: &Args, scenario: Scenario) -> Result<u32> {
    let min = match scenario {
        Scenario::Echo => ECHO_BYTES_MIN,
        Scenario::P2p | Scenario::Resume | Scenario::Churn | Scenario::Capacity => MESSAGE_BYTES_MIN,
        Scenario::Idle | Scenario::Storm => return Ok(0),
    };
    within("--payload", args.payload, u32::try_from(min)?, PAYLOAD_BYTES_MAX)
}

fn unrest(args: &Args) -> Result<Unrest> {
    let stay = |flag: &str, span: Span| {
        let interval = Duration::from(span);
        ensure!(interval >= STAY_MIN, "{flag} is under {}ms", STAY_MIN.as_millis());
        Ok(interval)
    };
    Ok(match (args.cut_interval, args.hop_interval) {
        (Some(span), _) => Unrest::Cuts { interval: stay("--cut-interval", span)? },
        (None, Some(span)) => Unrest::Hops { interval: stay("--hop-interval", span)? },
        (None, None) => Unrest::None,
    })
}

fn faults(args: &Args, load: Load, duration: Duration) -> Result<Vec<Fault>> {
    let faults = args.fault.clone().unwrap_or_default();
    let has_acks = args.sender_acks == Some(true) && args.receiver_acks == Some(true);
    let scenario = args.scenario.context("no scenario")?;
    ensure!(
        has_acks || !scenario.is_restless(),
        "{} is about messages that were accepted and acknowledged: leave --sender-acks and --receiver-acks on",
        scenario.name()
    );
    ensure!(
        has_acks || faults.is_empty(),
        "--fault needs --sender-acks and --receiver-acks: without them no message is promised to survive one"
    );
    ensure!(
        faults.is_empty() || load.pacing() == Pacing::OpenLoop,
        "--fault needs --rate: a closed loop would wait out the fault"
    );
    for fault in &faults {
        ensure!(fault.at < duration, "--fault '{fault}' is after the end: --duration is {}", Span::from(duration));
    }
    Ok(faults)
}
