//! The port: look-ups for clients and tools, health and numbers for operators, the page. A few threads, each with one
//! request at a time; none waits for Redis or Kafka but a drain.

mod drain;

use std::collections::VecDeque;
use std::io::Cursor;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ring::{NodeId, NodeWeights, Ring, VersionHash};
use serde::Serialize;
use tiny_http::{Header, Method, Request, Response, Server};
use tracing::warn;

use crate::metrics;
use crate::page;
use crate::prometheus::Answers;
use crate::publisher::Publisher;
use crate::store::Store;
use crate::view::{NodeView, Rebalance, Snapshot, View};

/// Requests that are answered at once.
const THREADS: usize = 4;
/// The longest client id, as on the nodes.
const CLIENT_ID_BYTES_MAX: usize = 128;
/// Nodes that are tried for one look-up: when the owner and so many others have no address, there is little to hope for.
const OWNERS_TRIED_MAX: usize = 16;
/// How often the ring is asked for before the page has one.
const RETRY_AFTER: &str = "1";

pub use drain::DRAIN_WINDOW_MS_MAX;

type Answer = Response<Cursor<Vec<u8>>>;

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

/// Why a request does not get what it asks for.
struct Problem {
    status: u16,
    code: &'static str,
    reason: String,
}

impl Problem {
    fn new(status: u16, code: &'static str, reason: impl Into<String>) -> Self {
        Self { status, code, reason: reason.into() }
    }
}

/// Serves on `listener` from threads of its own and returns where.
///
/// # Errors
/// When the listener or a thread cannot be had.
pub fn start(listener: std::net::TcpListener, office: Office) -> anyhow::Result<SocketAddr> {
    let addr = listener.local_addr()?;
    let server = Server::from_listener(listener, None).map_err(|error| anyhow::anyhow!("{error}"))?;
    let (server, office) = (Arc::new(server), Arc::new(office));
    for number in 0..THREADS {
        let (server, office) = (Arc::clone(&server), Arc::clone(&office));
        std::thread::Builder::new().name(format!("http-{number}")).spawn(move || {
            loop {
                match server.recv() {
                    Ok(request) => serve(&office, request),
                    Err(error) => {
                        warn!(%error, "a connection cannot be accepted");
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        })?;
    }
    Ok(addr)
}

#[derive(Serialize)]
struct Failure<'a> {
    error: FailureBody<'a>,
}

#[derive(Serialize)]
struct FailureBody<'a> {
    code: &'a str,
    reason: &'a str,
}

fn serve(office: &Office, mut request: Request) {
    let answer = route(office, &mut request).unwrap_or_else(|Problem { status, code, reason }| {
        let answer = json(status, &Failure { error: FailureBody { code, reason: &reason } });
        if status == 503 { answer.with_header(header("Retry-After", RETRY_AFTER)) } else { answer }
    });
    // A client that has gone needs no answer.
    let _ = request.respond(answer);
}

fn route(office: &Office, request: &mut Request) -> Result<Answer, Problem> {
    let url = request.url().to_owned();
    let (path, query) = url.split_once('?').unwrap_or((&url, ""));
    let is_read = matches!(request.method(), Method::Get | Method::Head);
    let drained = path.strip_prefix("/api/v1/nodes/").and_then(|rest| rest.strip_suffix("/drain"));
    if let Some(node) = drained {
        if *request.method() != Method::Post {
            return Err(Problem::new(405, "method", "drain with POST"));
        }
        return drain::order(office, request, node);
    }
    let snapshot = office.view.snapshot();
    match path {
        _ if !is_read => Err(Problem::new(405, "method", "only GET here")),
        "/livez" => Ok(text(200, "text/plain; charset=utf-8", "ok\n")),
        "/readyz" => readyz(office, &snapshot),
        "/healthz" => Ok(healthz(office, &snapshot)),
        "/metrics" => {
            let failures = office.answers.as_ref().map_or(0, |answers| answers.failures());
            let body = metrics::text(&office.view, office.publisher.progress(), failures);
            Ok(text(200, "application/openmetrics-text; version=1.0.0; charset=utf-8", &body))
        }
        "/api/v1/resolve" => resolve(office, &snapshot, query),
        "/api/v1/connect" => connect(office, &snapshot, query),
        "/api/v1/nodes" => Ok(nodes(office, &snapshot)),
        "/api/v1/ring" => Ok(ring_view(office, &snapshot)),
        _ => page::file(path)
            .map(|file| {
                let answer = text(200, file.content_type, file.body);
                file.headers().into_iter().fold(answer, |answer, (name, value)| answer.with_header(header(name, value)))
            })
            .ok_or_else(|| Problem::new(404, "not_found", "there is nothing here")),
    }
}

fn readyz(office: &Office, snapshot: &Snapshot) -> Result<Answer, Problem> {
    if !snapshot.is_fresh() {
        return Err(Problem::new(503, "redis", "redis does not answer"));
    }
    if office.view.ring.load().is_none() {
        return Err(Problem::new(503, "no_ring", "there is no ring yet: no node has reported"));
    }
    Ok(text(200, "text/plain; charset=utf-8", "ready\n"))
}

fn healthz(office: &Office, snapshot: &Snapshot) -> Answer {
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
    json(
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

fn nodes(office: &Office, snapshot: &Snapshot) -> Answer {
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
    json(
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

fn ring_view(office: &Office, snapshot: &Snapshot) -> Answer {
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
    json(
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
    let client = parameter(query, "clientId").ok_or_else(|| Problem::new(400, "client_id", "clientId is missing"))?;
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

fn resolve(office: &Office, snapshot: &Snapshot, query: &str) -> Result<Answer, Problem> {
    Ok(json(200, &home(office, snapshot, query)?))
}

fn connect(office: &Office, snapshot: &Snapshot, query: &str) -> Result<Answer, Problem> {
    let home = home(office, snapshot, query)?;
    let separator = if home.ws_url.contains('?') { '&' } else { '?' };
    let location = format!("{}{separator}{query}", home.ws_url);
    let location = Header::from_bytes("Location", location)
        .map_err(|()| Problem::new(400, "client_id", "the query cannot stand in a header"))?;
    Ok(text(307, "text/plain; charset=utf-8", "").with_header(location))
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

/// The value of one parameter, decoded.
fn parameter(query: &str, name: &str) -> Option<String> {
    let raw = query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })?;
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                bytes.push(u8::try_from(high * 16 + low).ok()?);
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

fn json(status: u16, value: &impl Serialize) -> Answer {
    let mut body = sonic_rs::to_string(value).unwrap_or_else(|_| "{}".to_owned());
    body.push('\n');
    text(status, "application/json", &body)
}

fn text(status: u16, content_type: &str, body: &str) -> Answer {
    Response::from_string(body)
        .with_status_code(status)
        .with_header(header("Content-Type", content_type))
        .with_header(header("Cache-Control", "no-store"))
}

fn header(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value).expect("names and values here are plain ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_as_on_the_nodes() {
        for (query, expected) in [
            ("clientId=alice", Some("alice")),
            ("a=b&clientId=a%20b%2Fc&x", Some("a b/c")),
            ("clientId=a+b", Some("a b")),
            ("clientId=%C3%A9", Some("é")),
            ("clientId", Some("")),
            ("clientId=%zz", None),
            ("clientId=%f", None),
            ("clientId=%ff", None),
            ("clientid=x", None),
            ("", None),
        ] {
            assert_eq!(parameter(query, "clientId").as_deref(), expected, "{query}");
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
