//! The settings of a run, complete and checked: from here on nothing is optional by accident.
//!
//! Resolves host names; opens nothing.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    args::{Args, DriverChoice, Pairs, Scenario, Share, Span},
    fault::Fault,
    payload::{ECHO_BYTES_MIN, ECHO_CONNECTIONS_MAX, MESSAGE_BYTES_MIN},
    schedule::Rate,
    targets::{Pacing, Target},
};

const CONNECTIONS_MAX: u32 = 16_000_000;
const _: () = assert!(CONNECTIONS_MAX < ECHO_CONNECTIONS_MAX);
const DEPTH_MAX: u32 = 4096;
const PROCESSES_MAX: u32 = 256;
const THREADS_MAX: u32 = 256;
const IN_FLIGHT_MAX: u32 = 4096;
/// The largest frame that `/ws/echo` returns.
pub(crate) const PAYLOAD_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// Connections per source address beyond which `connect` spends most of its time looking for a free port.
pub(crate) const CONNECTIONS_PER_SOURCE: u32 = 10_000;
const LOOPBACK_SOURCES_MAX: u32 = 250 * 250;
/// How long the kernel keeps a port after the connection on it was closed by this end.
const TIME_WAIT: Duration = Duration::from_secs(60);
/// The shortest that clients may stay connected: much below, the run would be of nothing but handshakes.
const STAY_MIN: Duration = Duration::from_millis(50);
/// Where a balancer is asked.
const RESOLVE_PATH: &str = "/api/v1/resolve";

/// How messages, or in a storm connections, are paced.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Load {
    /// So many per second in total, by the clock.
    Open { per_second: f64 },
    /// So many in flight per connection, each answered by the next.
    Closed { depth: u32 },
    /// Nothing is sent.
    Silent,
}

impl Load {
    pub(crate) fn pacing(self) -> Pacing {
        match self {
            Self::Open { .. } => Pacing::OpenLoop,
            Self::Closed { .. } | Self::Silent => Pacing::ClosedLoop,
        }
    }

    /// The schedule's rate, if there is a schedule.
    pub(crate) fn rate(self) -> Option<Rate> {
        self.rate_per_second().and_then(Rate::new)
    }

    pub(crate) fn rate_per_second(self) -> Option<f64> {
        match self {
            Self::Open { per_second } => Some(per_second),
            Self::Closed { .. } | Self::Silent => None,
        }
    }
}

/// What a server does for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ServerKind {
    /// It holds the client's connection.
    Node,
    /// It tells, before each connection, which node that is.
    Balancer,
}

/// One server, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Server {
    pub(crate) kind: ServerKind,
    pub(crate) addr: SocketAddr,
    /// As written, for the `Host` header.
    pub(crate) authority: String,
    pub(crate) path: String,
}

impl Server {
    /// For people.
    pub(crate) fn url(&self) -> String {
        match self.kind {
            ServerKind::Node => format!("ws://{}{}", self.authority, self.path),
            ServerKind::Balancer => format!("http://{}", self.authority),
        }
    }
}

/// Which server a connection goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Placement {
    /// Neighbours, and so the two clients of a pair, to different servers.
    InTurn,
    /// Both clients of a pair to one server.
    ByPairs,
    /// The pairs in every combination of two servers equally often.
    Mixed,
}

impl Placement {
    /// The server, of `servers`, for connection `index` of the run.
    pub(crate) fn server_of(self, index: u32, servers: usize) -> usize {
        let (index, pair, place) = (index as usize, index as usize / 2, index as usize % 2);
        match self {
            Self::InTurn => index % servers,
            Self::ByPairs => pair % servers,
            Self::Mixed => (pair + place * (pair / servers)) % servers,
        }
    }
}

/// How clients leave their connections during a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unrest {
    /// They do not.
    None,
    /// They are cut off.
    Cuts { interval: Duration },
    /// They move to the next server.
    Hops { interval: Duration },
}

impl Unrest {
    /// How long a connection lives, on average.
    pub(crate) fn interval(self) -> Option<Duration> {
        match self {
            Self::None => None,
            Self::Cuts { interval } | Self::Hops { interval } => Some(interval),
        }
    }
}

/// What a storm does with a connection once it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AfterHandshake {
    Close,
    Hold,
}

/// A complete, checked run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) scenario: Scenario,
    /// Nodes, or one balancer.
    pub(crate) servers: Vec<Server>,
    pub(crate) placement: Placement,
    pub(crate) unrest: Unrest,
    /// From 0 to 1: clients that acknowledge nothing for a while.
    pub(crate) silent_share: f64,
    pub(crate) faults: Vec<Fault>,
    /// Virtual clients; in a storm the connections to make before it ends early.
    pub(crate) connections: u32,
    pub(crate) load: Load,
    pub(crate) payload_bytes: u32,
    pub(crate) duration: Duration,
    pub(crate) warm_up: Duration,
    pub(crate) drain: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) in_flight: u32,
    pub(crate) after_handshake: AfterHandshake,
    pub(crate) sender_acks: bool,
    pub(crate) receiver_acks: bool,
    pub(crate) processes: u32,
    pub(crate) threads: u32,
    pub(crate) cpus: Vec<u32>,
    pub(crate) driver: DriverChoice,
    /// Empty: the system chooses.
    pub(crate) sources: Vec<IpAddr>,
    pub(crate) seed: u64,
    pub(crate) targets: Vec<Target>,
    pub(crate) server_pid: Option<u32>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) html: Option<PathBuf>,
    pub(crate) quiet: bool,
}

impl Config {
    /// Workers over all processes.
    pub(crate) fn workers(&self) -> u32 {
        self.processes * self.threads
    }

    /// True if clients outlive their connections: they come back, resume, and send again what was not confirmed.
    pub(crate) fn is_roaming(&self) -> bool {
        self.scenario.is_restless() || !self.faults.is_empty()
    }

    /// True if a balancer says where clients belong, so that the nodes are not known beforehand.
    pub(crate) fn is_balanced(&self) -> bool {
        self.servers.iter().any(|server| server.kind == ServerKind::Balancer)
    }
}

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

/// Ports in use at once: clients that leave connections behind leave a port with each for a while.
fn ports(connections: u32, unrest: Unrest) -> u32 {
    let per_client = unrest.interval().map_or(1, |interval| {
        let left_behind = TIME_WAIT.as_millis() / interval.as_millis().max(1);
        1 + u32::try_from(left_behind).unwrap_or(u32::MAX)
    });
    connections.saturating_mul(per_client)
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

/// The nodes, or the balancer that names them.
fn servers(args: &Args, scenario: Scenario) -> Result<Vec<Server>> {
    let Some(balancer) = &args.balancer else {
        let servers = args.url.iter().flatten().map(|url| parse_url(url, scenario)).collect::<Result<Vec<_>>>()?;
        ensure!(!servers.is_empty(), "--url is empty: write ws://HOST:PORT");
        return Ok(servers);
    };
    ensure!(args.url.is_none(), "--url and --balancer exclude each other: nodes, or who names them");
    ensure!(args.pairs.is_none(), "--pairs and --balancer exclude each other: a balancer says where clients belong");
    Ok(vec![parse_balancer(balancer)?])
}

fn parse_balancer(url: &str) -> Result<Server> {
    let rest =
        url.strip_prefix("http://").with_context(|| format!("--balancer {url:?} does not start with http://"))?;
    let authority = rest.trim_end_matches('/');
    ensure!(
        !authority.contains(['/', '?', '#', ' ', '@']),
        "--balancer {url:?}: write http://HOST:PORT, the path is always the same"
    );
    let addr = address("--balancer", url, authority)?;
    let (authority, path) = (authority.to_owned(), RESOLVE_PATH.to_owned());
    Ok(Server { kind: ServerKind::Balancer, addr, authority, path })
}

/// The address of `authority`, of which `url` was given for `flag`.
fn address(flag: &str, url: &str, authority: &str) -> Result<SocketAddr> {
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    ensure!(has_port, "{flag} {url:?} has no port: write HOST:PORT");
    let resolved: Vec<SocketAddr> =
        authority.to_socket_addrs().with_context(|| format!("{flag} {url:?}: cannot resolve the host"))?.collect();
    // A name such as localhost often has both: the servers here listen on IPv4 first.
    let addr = resolved.iter().find(|addr| addr.is_ipv4()).or(resolved.first());
    addr.copied().with_context(|| format!("{flag} {url:?}: the host has no address"))
}

pub(crate) fn parse_url(url: &str, scenario: Scenario) -> Result<Server> {
    let Some(rest) = url.strip_prefix("ws://") else {
        ensure!(!url.starts_with("wss://"), "--url {url:?}: TLS is not supported, write ws://");
        bail!("--url {url:?} does not start with ws://");
    };
    let (authority, path) = match rest.find('/') {
        Some(at) => (&rest[..at], &rest[at..]),
        None => (rest, ""),
    };
    ensure!(!path.contains(['?', '#', ' ']), "--url {url:?}: the path may not hold a query");
    let addr = address("--url", url, authority)?;
    let path = match (path.trim_end_matches('/'), scenario) {
        ("", Scenario::Echo) => "/ws/echo",
        ("", _) => "/ws/connect",
        (path, _) => path,
    };
    Ok(Server { kind: ServerKind::Node, addr, authority: authority.to_owned(), path: path.to_owned() })
}

/// The addresses to connect from: those given, or towards loopback as many of 127.0.0.0/8 as the connections need.
fn sources(given: Option<Vec<IpAddr>>, servers: &[Server], connections: u32, is_held: bool) -> Vec<IpAddr> {
    if let Some(given) = given {
        return given;
    }
    if !servers.iter().all(|server| matches!(server.addr.ip(), IpAddr::V4(ip) if ip.is_loopback())) {
        return Vec::new();
    }
    if !is_held {
        // A storm's connections end with a reset, which frees the port at once.
        return Vec::new();
    }
    let count = connections.div_ceil(CONNECTIONS_PER_SOURCE).clamp(1, LOOPBACK_SOURCES_MAX);
    let octet = |part: u32| u8::try_from(part % 250 + 1).unwrap_or(1);
    (0..count).map(|index| IpAddr::V4(Ipv4Addr::new(127, 1, octet(index / 250), octet(index)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(line: &str) -> Result<Config> {
        use clap::Parser as _;
        let args = Args::try_parse_from(["rtc-loadtest"].into_iter().chain(line.split_whitespace()))?;
        with_defaults(args)?.try_into()
    }

    #[test]
    fn defaults_are_complete_for_every_scenario() {
        for (line, load) in [
            ("echo", Load::Closed { depth: 1 }),
            ("p2p", Load::Open { per_second: 1000.0 }),
            ("idle", Load::Silent),
            ("storm", Load::Silent),
            ("resume", Load::Open { per_second: 1000.0 }),
            ("churn", Load::Open { per_second: 1000.0 }),
            ("capacity", Load::Open { per_second: 1000.0 }),
        ] {
            let config = config(line).unwrap();
            assert_eq!(config.load, load, "{line}");
            assert_eq!(config.servers[0].addr, "127.0.0.1:8080".parse().unwrap());
        }
    }

    #[test]
    fn bad_values_name_themselves() {
        for (line, named) in [
            ("echo --connections 0", "--connections 0"),
            ("echo --depth 5000", "--depth 5000"),
            ("echo --rate 0", "--rate 0"),
            ("echo --payload 8", "--payload 8"),
            ("p2p --payload 100", "--payload 100"),
            ("p2p --connections 3", "--connections 3"),
            ("p2p --connections 2 --threads 2", "--connections 2"),
            ("idle --rate 5", "--rate means nothing to idle"),
            ("idle --depth 5", "--depth means nothing to idle"),
            ("echo --hold", "--hold means nothing to echo"),
            ("echo --url http://x:1", "http://x:1"),
            ("echo --url ws://127.0.0.1", "no port"),
            ("echo --url wss://127.0.0.1:1", "TLS"),
            ("echo --duration 10", "10"),
            ("echo --duration 1ms", "--duration"),
            ("echo --target p98<1ms", "p98"),
            ("echo --rate 5 --depth 5", "--depth"),
            ("resume --depth 5", "--depth means nothing to resume"),
            ("resume --hop-interval 5s", "--hop-interval means nothing to resume"),
            ("resume --cut-interval 1ms", "--cut-interval"),
            ("resume --sender-acks=false", "--sender-acks"),
            ("churn --connections 3", "--connections 3"),
            ("churn --silent-share 2", "\"2\""),
            ("p2p --silent-share 2%", "--silent-share means nothing to p2p"),
            ("echo --pairs local", "--pairs means nothing to echo"),
            ("echo --balancer http://127.0.0.1:1", "--balancer means nothing to echo"),
            ("p2p --balancer http://127.0.0.1:1 --pairs local", "--pairs and --balancer"),
            ("p2p --balancer ws://127.0.0.1:1", "does not start with http://"),
            ("p2p --balancer http://127.0.0.1", "no port"),
            ("p2p --balancer http://127.0.0.1:1/x", "http://HOST:PORT"),
            ("capacity --depth 5", "--depth means nothing to capacity"),
            ("walk", "walk"),
            ("--connections 5", "scenario"),
        ] {
            let error = format!("{:#}", config(line).expect_err(line));
            assert!(error.contains(named), "{line}: {error}");
        }
    }

    #[test]
    fn a_fault_that_would_show_nothing_is_refused() {
        use clap::Parser as _;
        for (line, named) in [
            (&["p2p", "--fault", "at=1s kill=7"][..], "--sender-acks and --receiver-acks"),
            (&["p2p", "--depth", "1", "--sender-acks", "--receiver-acks", "--fault", "at=1s kill=7"], "--rate"),
            (&["resume", "--duration", "5s", "--fault", "at=5s kill=7"], "after the end"),
            (&["idle", "--fault", "at=1s kill=7"], "--fault means nothing to idle"),
            (&["churn", "--fault", "at=1s kill=0"], "at=1s kill=0"),
        ] {
            let args = Args::try_parse_from([&["rtc-loadtest"], line].concat()).map_err(anyhow::Error::from);
            let config = args.and_then(with_defaults).and_then(Config::try_from);
            let error = format!("{:#}", config.expect_err(named));
            assert!(error.contains(named), "{line:?}: {error}");
        }
    }

    #[test]
    fn pairs_are_placed_as_asked() {
        let crossing = |placement: Placement, servers: usize| {
            let pairs = 0..u32::try_from(servers * servers).unwrap();
            let crosses =
                |pair: &u32| placement.server_of(2 * pair, servers) != placement.server_of(2 * pair + 1, servers);
            pairs.filter(crosses).count()
        };
        for servers in 2..6 {
            assert_eq!(crossing(Placement::InTurn, servers), servers * servers);
            assert_eq!(crossing(Placement::ByPairs, servers), 0);
            assert_eq!(crossing(Placement::Mixed, servers), servers * (servers - 1));
        }
        assert_eq!(Placement::Mixed.server_of(7, 1), 0);
    }

    #[test]
    fn what_print_config_shows_reads_back_as_the_same_run() {
        use clap::Parser as _;
        let line = ["rtc-loadtest", "p2p", "--rate", "500", "--target", "p99<10ms", "--seed", "7", "--cpus", "1"];
        let args = with_defaults(Args::try_parse_from(line).unwrap()).unwrap();
        let text = toml::to_string(&args).unwrap();
        let again: Args = toml::from_str(&text).unwrap();
        assert_eq!(Config::try_from(again).unwrap(), Config::try_from(args).unwrap());
    }

    #[test]
    fn loopback_sources_grow_with_the_connections() {
        assert_eq!(config("idle --connections 10000").unwrap().sources.len(), 1);
        let many = config("idle --connections 3000000").unwrap().sources;
        assert_eq!(many.len(), 300);
        assert_eq!(many.iter().collect::<std::collections::BTreeSet<_>>().len(), 300);
        assert_eq!(config("resume --connections 1000").unwrap().sources.len(), 4, "with the ports left behind");
    }
}
