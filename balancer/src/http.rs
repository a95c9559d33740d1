//! The port: look-ups for clients and tools, health and numbers for operators, the page. No request waits for Redis or Kafka
//! but a drain.

mod drain;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rim::http::{self, Limits, Problem, Request, Response, Tally};
use ring::{NodeId, NodeWeights, Ring, VersionHash};
use serde::Serialize;
use websocket::handshake::query_pairs;

use crate::metrics;
use crate::page;
use crate::prometheus::Answers;
use crate::publisher::Publisher;
use crate::store::Store;
use crate::view::{NodeView, Rebalance, Snapshot, View};

/// Look-ups are many and short; a drain's body is small.
const LIMITS: Limits = Limits { connections_max: 512, keep_alive_max: 128, body_bytes_max: 4096 };
/// The longest client id, as on the nodes.
const CLIENT_ID_BYTES_MAX: usize = 128;
/// Nodes that are tried for one look-up: when the owner and so many others have no address, there is little to hope for.
const OWNERS_TRIED_MAX: usize = 16;

pub use drain::DRAIN_WINDOW_MS_MAX;

/// What every request may need.
pub struct Office {
    /// This balancer.
    pub name: NodeId,
    /// What is shown.
    pub view: Arc<View>,
    /// The way to Kafka.
    pub publisher: Publisher,
    /// What Prometheus says, if it is asked.
    pub answers: Option<Arc<Answers>>,
    /// Redis, for drains only.
    pub store: Mutex<Store>,
    /// The window of a drain that names none.
    pub drain_window: Duration,
    /// The disconnects per second of a drain that names no number.
    pub drain_disconnects_max: u64,
}

/// Serves on `listener` from threads of its own and returns where.
///
/// # Errors
/// When the thread that accepts cannot be had.
pub fn start(listener: TcpListener, office: Office) -> io::Result<SocketAddr> {
    let tally = Arc::new(Tally::default());
    let counted = Arc::clone(&tally);
    http::start(listener, LIMITS, tally, move |request| route(&office, &counted, request))
}

fn route(office: &Office, tally: &Tally, request: &Request) -> Result<Response, Problem> {
    let drained = request.path.strip_prefix("/api/v1/nodes/").and_then(|rest| rest.strip_suffix("/drain"));
    if let Some(node) = drained {
        if request.method != "POST" {
            return Err(Problem::wrong_method("POST"));
        }
        return drain::order(office, request, node);
    }
    let snapshot = office.view.snapshot();
    match &*request.path {
        _ if !matches!(&*request.method, "GET" | "HEAD") => Err(Problem::wrong_method("GET, HEAD")),
        "/livez" => Ok(Response::text(200, "text/plain; charset=utf-8", "ok\n")),
        "/readyz" => readyz(office, &snapshot),
        "/healthz" => Ok(healthz(office, &snapshot)),
        "/metrics" => {
            let failures = office.answers.as_ref().map_or(0, |answers| answers.failures());
            let body = metrics::text(&office.view, office.publisher.progress(), failures, &tally.refused());
            Ok(Response::text(200, "application/openmetrics-text; version=1.0.0; charset=utf-8", body))
        }
        "/api/v1/resolve" => resolve(office, &snapshot, &request.query),
        "/api/v1/connect" => connect(office, &snapshot, &request.query),
        "/api/v1/nodes" => Ok(nodes(office, &snapshot)),
        "/api/v1/ring" => Ok(ring_view(office, &snapshot)),
        path => page::file(path).map(|file| Response::file(&file)).ok_or_else(|| {
            let paths = "/livez /readyz /healthz /metrics /api/v1/resolve /api/v1/connect /api/v1/nodes /api/v1/ring";
            let drain = "POST /api/v1/nodes/<id>/drain";
            Problem::new(404, "not_found", format!("nothing here; there is the page at /, GET {paths}, {drain}"))
        }),
    }
}

fn readyz(office: &Office, snapshot: &Snapshot) -> Result<Response, Problem> {
    if !snapshot.is_fresh() {
        return Err(Problem::new(503, "redis", "redis does not answer"));
    }
    if office.view.ring.load().is_none() {
        return Err(Problem::new(503, "no_ring", "there is no ring yet: no node has reported"));
    }
    Ok(Response::text(200, "text/plain; charset=utf-8", "ready\n"))
}

fn healthz(office: &Office, snapshot: &Snapshot) -> Response {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Health<'a> {
        status: &'a str,
        node_id: &'a str,
        is_leader: bool,
        leader: &'a str,
        redis: bool,
        nodes: usize,
        silent_nodes: usize,
        ring_version: Option<u64>,
    }
    let ring = office.view.ring.load();
    let is_well = snapshot.is_fresh() && ring.is_some();
    Response::json(
        200,
        &Health {
            status: if is_well { "ok" } else { "degraded" },
            node_id: office.name.as_str(),
            is_leader: snapshot.is_leader,
            leader: &snapshot.leader,
            redis: snapshot.is_fresh(),
            nodes: snapshot.nodes.len(),
            silent_nodes: snapshot.nodes.iter().filter(|node| matches!(node.state, "held" | "gone")).count(),
            ring_version: ring.map(|ring| ring.version().get()),
        },
    )
}

fn nodes(office: &Office, snapshot: &Snapshot) -> Response {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    #[allow(clippy::struct_field_names, reason = "the name on the wire")]
    struct Nodes<'a> {
        ts: u64,
        node_id: &'a str,
        is_leader: bool,
        leader: &'a str,
        is_fresh: bool,
        nodes: &'a [NodeView],
    }
    Response::json(
        200,
        &Nodes {
            ts: snapshot.redis_ms,
            node_id: office.name.as_str(),
            is_leader: snapshot.is_leader,
            leader: &snapshot.leader,
            is_fresh: snapshot.is_fresh(),
            nodes: &snapshot.nodes,
        },
    )
}

fn ring_view(office: &Office, snapshot: &Snapshot) -> Response {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct RingView<'a> {
        is_initialized: bool,
        version: Option<u64>,
        version_hash: Option<VersionHash>,
        seed: Option<u64>,
        weights: Option<&'a NodeWeights>,
        rebalances: &'a VecDeque<Rebalance>,
    }
    let ring = office.view.ring.load();
    let ring = ring.as_deref();
    Response::json(
        200,
        &RingView {
            is_initialized: ring.is_some(),
            version: ring.map(|ring| ring.version().get()),
            version_hash: ring.map(Ring::version_hash),
            seed: ring.map(Ring::seed),
            weights: ring.map(Ring::weights),
            rebalances: &snapshot.history,
        },
    )
}

/// A client's node.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Home {
    node_id: NodeId,
    ws_url: String,
    ring_version: u64,
}

/// Finds the owner of a client, or who comes after it while it is silent.
fn home(office: &Office, snapshot: &Snapshot, query: &str) -> Result<Home, Problem> {
    let client = client_id(query)?;
    if client.is_empty() || client.len() > CLIENT_ID_BYTES_MAX || client.chars().any(char::is_control) {
        let reason = format!("clientId must be 1 to {CLIENT_ID_BYTES_MAX} bytes without control characters");
        return Err(Problem::new(400, "client_id", reason));
    }
    let ring = office.view.ring.load().ok_or_else(|| Problem::new(503, "no_ring", "there is no ring yet"))?;
    let first = |state: &str| {
        let is_it = |view: &&NodeView| view.state == state && view.url.is_some();
        ring.owners(client.as_bytes()).take(OWNERS_TRIED_MAX).find_map(|node| snapshot.node(node).filter(is_it))
    };
    // Where all are held it is their beats that are missing, as when Redis was away: the nodes are where they were.
    let view = first("up").or_else(|| first("held"));
    let view = view.ok_or_else(|| Problem::new(503, "no_node", "no node that is up has told its address"))?;
    let url = view.url.clone().unwrap_or_default();
    Ok(Home { node_id: view.node_id.clone(), ws_url: with_path(&url), ring_version: ring.version().get() })
}

fn resolve(office: &Office, snapshot: &Snapshot, query: &str) -> Result<Response, Problem> {
    Ok(Response::json(200, &home(office, snapshot, query)?))
}

fn connect(office: &Office, snapshot: &Snapshot, query: &str) -> Result<Response, Problem> {
    let home = home(office, snapshot, query)?;
    let separator = if home.ws_url.contains('?') { '&' } else { '?' };
    let location = format!("{}{separator}{query}", home.ws_url);
    // A request line may have bytes beyond ASCII, a node's address anything: neither may begin a header of its own.
    if !location.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Problem::new(400, "client_id", "the query cannot stand in a header"));
    }
    Ok(Response::text(307, "text/plain; charset=utf-8", "").with_header("Location", location))
}

/// Nodes tell where they are reached; where on them is part of the protocol.
fn with_path(url: &str) -> String {
    let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    match after_scheme.split_once('/') {
        None => format!("{url}/ws/connect"),
        Some((_, "")) => format!("{url}ws/connect"),
        Some(_) => url.to_owned(),
    }
}

/// The client that a query asks for, decoded as on the nodes.
fn client_id(query: &str) -> Result<Cow<'_, str>, Problem> {
    let mut found = None;
    for pair in query_pairs(query) {
        let (name, value) = pair.map_err(|error| Problem::new(400, "client_id", error.to_string()))?;
        // Whoever asks here and whoever connects there must mean the same one.
        if name == "clientId" && found.replace(value).is_some() {
            return Err(Problem::new(400, "client_id", "clientId is there twice"));
        }
    }
    found.ok_or_else(|| Problem::new(400, "client_id", "clientId is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_ids_are_decoded_as_on_the_nodes_and_must_come_once() {
        for (query, expected) in [
            ("clientId=alice", Some("alice")),
            ("a=b&clientId=a%20b%2Fc&x", Some("a b/c")),
            ("clientId=a+b", Some("a b")),
            ("clientId=%C3%A9", Some("é")),
            ("client%49d=a", Some("a")),
            ("clientId", Some("")),
            ("clientId=%zz", None),
            ("clientId=%f", None),
            ("clientId=%ff", None),
            ("clientid=x", None),
            ("clientId=a&clientId=a", None),
            ("clientId=a&client%49d=b", None),
            ("", None),
        ] {
            assert_eq!(client_id(query).ok().as_deref(), expected, "{query}");
        }
    }

    #[test]
    fn an_address_gets_the_protocols_path_unless_it_has_one() {
        for (url, expected) in [
            ("ws://n1:8080", "ws://n1:8080/ws/connect"),
            ("ws://n1:8080/", "ws://n1:8080/ws/connect"),
            ("wss://example.com/rtc/ws/connect", "wss://example.com/rtc/ws/connect"),
        ] {
            assert_eq!(with_path(url), expected);
        }
    }
}
