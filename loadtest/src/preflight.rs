//! Before a run: does this machine have the descriptors, ports and memory for it, and if not, which limit binds and
//! what cures it.
//!
//! [`Limits::read`] looks at the machine, [`check`] is pure.

use std::{fs, net::UdpSocket};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    args::Scenario,
    config::{AfterHandshake, Config, Unrest},
};

/// Descriptors beside the connections: standard streams, rings, timers, files.
const DESCRIPTORS_SPARE: u64 = 64;
/// Memory of one connection here: its tasks and, where it is hot, a read buffer; and what the kernel keeps for its
/// socket.
const HOT_CONNECTION_BYTES: u64 = 24 * 1024;
const COLD_CONNECTION_BYTES: u64 = 6 * 1024;
/// What a roaming client remembers: names of received messages, and messages that are not confirmed.
const REMEMBERED_BYTES: u64 = 24 * 1024;

/// What this machine allows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Limits {
    /// Per process, `RLIMIT_NOFILE`'s hard limit.
    descriptors: u64,
    /// Of the whole machine, that are still free.
    descriptors_free: u64,
    /// Ephemeral ports per pair of addresses.
    ports: u64,
    /// `MemAvailable`; `None` where the kernel does not tell.
    memory_bytes: Option<u64>,
    /// The CPUs this process may run on.
    cpus: Vec<u32>,
}

/// What a run will use at its height.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Needs {
    descriptors_per_process: u64,
    descriptors: u64,
    sockets: u64,
    descriptors_per_socket: u64,
    memory_bytes: u64,
}

/// Raises the soft descriptor limit as far as it goes and refuses a run that cannot work here.
///
/// # Errors
/// The limit that binds, with its cure.
pub(crate) fn prepare(config: &Config) -> Result<()> {
    let limits = Limits::read().context("cannot read this machine's limits")?;
    let needs = Needs::of(config);
    check(config, needs, &limits)?;
    for source in &config.sources {
        UdpSocket::bind((*source, 0))
            .with_context(|| format!("{source} is no address of this machine: see --source-addresses"))?;
    }
    for fault in &config.faults {
        fault.check().with_context(|| format!("--fault '{fault}': cannot signal this process"))?;
    }
    let raised = Rlimit { current: Some(limits.descriptors), maximum: Some(limits.descriptors) };
    let current = getrlimit(Resource::Nofile).current;
    if current.is_some_and(|current| current < needs.descriptors_per_process) {
        setrlimit(Resource::Nofile, raised).context("cannot raise the limit of open files")?;
    }
    Ok(())
}

impl Limits {
    fn read() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let numbers =
            |text: &str| -> Vec<u64> { text.split_whitespace().filter_map(|word| word.parse().ok()).collect() };
        let (first_port, last_port) = match numbers(&read("/proc/sys/net/ipv4/ip_local_port_range")?)[..] {
            [first, last] => (first, last),
            _ => (32_768, 60_999),
        };
        let descriptors_free = match numbers(&read("/proc/sys/fs/file-nr")?)[..] {
            [used, _, all] => all.saturating_sub(used),
            _ => u64::MAX,
        };
        let cpus = rustix::thread::sched_getaffinity(None)?;
        Ok(Self {
            descriptors: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
            descriptors_free,
            ports: (last_port + 1).saturating_sub(first_port),
            memory_bytes: read("/proc/meminfo").ok().and_then(|text| parse_available_bytes(&text)),
            cpus: (0..u32::try_from(rustix::thread::CpuSet::MAX_CPU)?)
                .filter(|cpu| cpus.is_set(*cpu as usize))
                .collect(),
        })
    }
}

fn parse_available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

impl Needs {
    fn of(config: &Config) -> Self {
        // A connection being opened has a second descriptor, by which it can be interrupted.
        let opening = u64::from(config.in_flight) * u64::from(config.threads);
        let held = match (config.scenario, config.after_handshake) {
            (Scenario::Storm, AfterHandshake::Close) => opening * u64::from(config.processes),
            _ => u64::from(config.connections),
        };
        // A roaming client can cut its connection by a second descriptor. One that leaves has, for a moment, the
        // connection it leaves as well.
        let descriptors_per_socket = match (config.is_roaming(), config.unrest) {
            (false, _) => 1,
            (true, Unrest::None) => 2,
            (true, Unrest::Cuts { .. } | Unrest::Hops { .. }) => 4,
        };
        let held_descriptors = held.div_ceil(u64::from(config.processes)) * descriptors_per_socket;
        let per_process = held_descriptors + opening + DESCRIPTORS_SPARE;
        let connection_bytes = match config.scenario {
            Scenario::Resume | Scenario::Churn => {
                2 * (HOT_CONNECTION_BYTES + 4 * u64::from(config.payload_bytes)) + REMEMBERED_BYTES
            }
            Scenario::Echo | Scenario::P2p | Scenario::Capacity => {
                HOT_CONNECTION_BYTES + 4 * u64::from(config.payload_bytes)
            }
            Scenario::Idle | Scenario::Storm => COLD_CONNECTION_BYTES,
        };
        Self {
            descriptors_per_process: per_process,
            descriptors: per_process * u64::from(config.processes),
            sockets: held,
            descriptors_per_socket,
            memory_bytes: held * connection_bytes,
        }
    }
}

fn check(config: &Config, needs: Needs, limits: &Limits) -> Result<()> {
    let Needs { descriptors_per_process, descriptors, sockets, descriptors_per_socket, memory_bytes } = needs;
    let unpinnable = config.cpus.iter().find(|cpu| !limits.cpus.contains(cpu));
    if let Some(cpu) = unpinnable {
        anyhow::bail!("--cpus {cpu}: this process may run on {:?} only", limits.cpus);
    }
    let held_descriptors = sockets.div_ceil(u64::from(config.processes)) * descriptors_per_socket;
    let room = limits.descriptors.saturating_sub(descriptors_per_process - held_descriptors) / descriptors_per_socket;
    ensure!(
        descriptors_per_process <= limits.descriptors,
        "{sockets} connections need {descriptors_per_process} open files in each of {} processes, the hard limit is {}: \
         use --processes {} or raise the limit (ulimit -Hn)",
        config.processes,
        limits.descriptors,
        sockets.div_ceil(room.max(1)),
    );
    ensure!(
        descriptors <= limits.descriptors_free,
        "the run needs {descriptors} open files, this machine has {} left: raise sysctl fs.file-max",
        limits.descriptors_free
    );
    let mut servers: Vec<_> = config.servers.iter().map(|server| server.addr).collect();
    servers.sort_unstable();
    servers.dedup();
    let sources = config.sources.len().max(1) as u64;
    let ports = limits.ports.saturating_mul(sources).saturating_mul(servers.len() as u64);
    // Which nodes a balancer will name, and so how many ports there are, is not known.
    ensure!(
        config.is_balanced() || sockets <= ports,
        "{sockets} connections from {sources} source addresses to {} servers have {ports} ports between them: give {} \
         --source-addresses or widen sysctl net.ipv4.ip_local_port_range",
        servers.len(),
        sockets.div_ceil((limits.ports * servers.len() as u64).max(1)),
    );
    if let Some(available) = limits.memory_bytes {
        ensure!(
            memory_bytes <= available,
            "{sockets} connections need about {} MiB of memory, {} MiB are available: lower --connections",
            memory_bytes >> 20,
            available >> 20
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{args::Args, config::with_defaults};

    fn limits() -> Limits {
        Limits {
            descriptors: 20_000,
            descriptors_free: 1_000_000,
            ports: 28_232,
            memory_bytes: Some(8 << 30),
            cpus: vec![0, 1],
        }
    }

    /// What speaks against the run, or an empty text.
    fn shortage(line: &str, limits: &Limits) -> String {
        let args = Args::try_parse_from(["rtc-loadtest"].into_iter().chain(line.split_whitespace())).unwrap();
        let config = Config::try_from(with_defaults(args).unwrap()).unwrap();
        check(&config, Needs::of(&config), limits).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn the_limit_that_binds_is_named_with_its_cure() {
        for (line, limits, named) in [
            ("idle --connections 19800", limits(), ""),
            ("idle --connections 20000", limits(), "use --processes 2"),
            ("idle --connections 100000", limits(), "use --processes 6"),
            ("idle --connections 100000 --processes 6", limits(), ""),
            ("idle --connections 20000 --processes 2", Limits { descriptors_free: 100, ..limits() }, "fs.file-max"),
            ("idle --connections 5000", Limits { ports: 1000, ..limits() }, "give 5 --source-addresses"),
            ("idle --connections 5000 --source-addresses 10.0.0.1,10.0.0.2", Limits { ports: 2500, ..limits() }, ""),
            ("echo --connections 10000", Limits { memory_bytes: Some(100 << 20), ..limits() }, "100 MiB are available"),
            ("echo --connections 10000", Limits { memory_bytes: None, ..limits() }, ""),
            ("echo --cpus 7", limits(), "--cpus 7"),
            ("resume --connections 4900", limits(), ""),
            ("resume --connections 5000", limits(), "use --processes 2"),
            ("storm", limits(), ""),
            ("storm --hold --connections 50000", limits(), "use --processes 3"),
        ] {
            let shortage = shortage(line, &limits);
            assert!(shortage.contains(named) && shortage.is_empty() == named.is_empty(), "{line}: {shortage}");
        }
    }

    #[test]
    fn the_suggested_number_of_processes_suffices() {
        for connections in [20_000u32, 39_800, 150_000] {
            let line = format!("idle --connections {connections}");
            let advice = shortage(&line, &limits());
            let processes = advice.split("--processes ").nth(1).unwrap().split(' ').next().unwrap();
            assert_eq!(shortage(&format!("{line} --processes {processes}"), &limits()), "");
        }
    }

    #[test]
    fn this_machine_has_limits() {
        let limits = Limits::read().unwrap();
        assert!(limits.descriptors > 0 && limits.ports > 0 && !limits.cpus.is_empty());
        assert_eq!(parse_available_bytes("MemTotal: 9 kB\nMemAvailable:   7 kB\n"), Some(7 * 1024));
    }
}
