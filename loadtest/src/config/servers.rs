//! Whom clients connect to, and from which addresses.
//!
//! Resolves host names; opens nothing.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::Unrest;
use crate::args::{Args, Scenario};

/// Connections per source address beyond which `connect` spends most of its time looking for a free port.
const CONNECTIONS_PER_SOURCE: u32 = 10_000;
const LOOPBACK_SOURCES_MAX: u32 = 250 * 250;
/// How long the kernel keeps a port after the connection on it was closed by this end.
const TIME_WAIT: Duration = Duration::from_secs(60);
/// Where a balancer is asked.
const RESOLVE_PATH: &str = "/api/v1/resolve";

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

/// The nodes, or the balancer that names them.
pub(super) fn servers(args: &Args, scenario: Scenario) -> Result<Vec<Server>> {
    let Some(balancer) = &args.balancer else {
        let servers = args.url.iter().flatten().map(|url| parse_url(url, scenario)).collect::<Result<Vec<_>>>()?;
        ensure!(!servers.is_empty(), "--url is empty: write ws://HOST:PORT");
        return Ok(servers);
    };
    ensure!(args.url.is_none(), "--url and --balancer exclude each other: nodes, or who names them");
    ensure!(args.pairs.is_none(), "--pairs and --balancer exclude each other: a balancer says where clients belong");
    Ok(vec![parse_balancer(balancer)?])
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

/// Ports in use at once: clients that leave connections behind leave a port with each for a while.
pub(super) fn ports(connections: u32, unrest: Unrest) -> u32 {
    let per_client = unrest.interval().map_or(1, |interval| {
        let left_behind = TIME_WAIT.as_millis() / interval.as_millis().max(1);
        1 + u32::try_from(left_behind).unwrap_or(u32::MAX)
    });
    connections.saturating_mul(per_client)
}

/// The addresses to connect from: those given, or towards loopback as many of 127.0.0.0/8 as the connections need.
pub(super) fn sources(given: Option<Vec<IpAddr>>, servers: &[Server], connections: u32, is_held: bool) -> Vec<IpAddr> {
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
