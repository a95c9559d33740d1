//! The port: look-ups for clients and tools, health and numbers for operators, the page. A small HTTP/1.1 server of its own
//! on plain threads, one for each connection, because what small servers there are bound neither their connections nor
//! their requests: one that only promised a long body ended the process. No request waits for Redis or Kafka but a drain.

mod connection;
mod drain;

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ring::{NodeId, NodeWeights, Ring, VersionHash};
use serde::Serialize;
use tracing::warn;
use websocket::handshake::query_pairs;

use crate::metrics;
use crate::page;
use crate::prometheus::Answers;
use crate::publisher::Publisher;
use crate::store::Store;
use crate::view::{NodeView, Rebalance, Snapshot, View};

use connection::{Answer, Connection, Problem, Request};

/// Connections that are served at once.
const CONNECTIONS_MAX: usize = 512;
/// While more are open than this, each is closed after its answer: idle ones must not keep a look-up out.
const KEEP_ALIVE_CONNECTIONS_MAX: usize = 128;
/// Connections without a place that are refused in peace at once; more of them may miss the answer.
const LINGERING_MAX: usize = 16;
/// How long accepting rests when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
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

/// What the connections' threads share.
struct Desk {
    office: Office,
    connections: AtomicUsize,
    lingering: AtomicUsize,
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

impl Desk {
    fn count_refusal(&self, cause: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(cause).or_insert(0) += 1;
    }
}

/// One of a limited number of connections, given back when it goes.
struct Place(Arc<Desk>);

impl Place {
    fn take(desk: &Arc<Desk>) -> Option<Self> {
        let one_more = |open: usize| (open < CONNECTIONS_MAX).then_some(open + 1);
        let taken = desk.connections.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        taken.ok().map(|_| Self(Arc::clone(desk)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves on `listener` from threads of its own and returns where.
///
/// # Errors
/// When the listener or the thread cannot be had.
pub fn start(listener: TcpListener, office: Office) -> io::Result<SocketAddr> {
    let addr = listener.local_addr()?;
    let desk = Arc::new(Desk {
        office,
        connections: AtomicUsize::new(0),
        lingering: AtomicUsize::new(0),
        refused: Mutex::default(),
    });
    std::thread::Builder::new().name("http".to_owned()).spawn(move || accept(&listener, &desk))?;
    Ok(addr)
}

fn accept(listener: &TcpListener, desk: &Arc<Desk>) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => admit(stream, desk),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                desk.count_refusal("descriptors");
                warn!(%error, "a connection cannot be accepted: raise the limit of open files (ulimit -n, LimitNOFILE=)");
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// Gives a connection a thread, or tells it that there is none left.
fn admit(stream: TcpStream, desk: &Arc<Desk>) {
    let connection = Connection::new(stream);
    let Some(place) = Place::take(desk) else {
        desk.count_refusal("connections");
        let problem = Problem::new(503, "connections", "too many connections on this port");
        return turn_away(connection, problem.into_answer(), desk);
    };
    let spawned = std::thread::Builder::new().name("http-conn".to_owned()).spawn(move || serve(connection, &place));
    if spawned.is_err() {
        desk.count_refusal("threads");
    }
}

/// Tells a connection that there is no room for it, without waiting: this thread takes all connections.
fn turn_away(connection: Connection, answer: Answer, desk: &Arc<Desk>) {
    if desk.lingering.fetch_add(1, Ordering::AcqRel) >= LINGERING_MAX {
        desk.lingering.fetch_sub(1, Ordering::AcqRel);
        return connection.turn_away(&answer);
    }
    let refusing = Arc::clone(desk);
    let spawned = std::thread::Builder::new().name("http-refuse".to_owned()).spawn(move || {
        connection.refuse(&answer);
        refusing.lingering.fetch_sub(1, Ordering::AcqRel);
    });
    if spawned.is_err() {
        desk.lingering.fetch_sub(1, Ordering::AcqRel);
    }
}

fn serve(mut connection: Connection, Place(desk): &Place) {
    loop {
        let request = match connection.next_request() {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(problem) => {
                desk.count_refusal(problem.code);
                return connection.refuse(&problem.into_answer());
            }
        };
        let answer = route(desk, &request).unwrap_or_else(|problem| {
            desk.count_refusal(problem.code);
            problem.into_answer()
        });
        let stays = request.keeps_alive && desk.connections.load(Ordering::Relaxed) <= KEEP_ALIVE_CONNECTIONS_MAX;
        if !connection.answer(&request, &answer, stays) || !stays {
            return;
        }
    }
}

fn route(desk: &Desk, request: &Request) -> Result<Answer, Problem> {
    let office = &desk.office;
    let drained = request.path.strip_prefix("/api/v1/nodes/").and_then(|rest| rest.strip_suffix("/drain"));
    if let Some(node) = drained {
        if request.method != "POST" {
            return Err(Problem::new(405, "method", "drain with POST"));
        }
        return drain::order(office, request, node);
    }
    let snapshot = office.view.snapshot();
    match &*request.path {
        _ if !matches!(&*request.method, "GET" | "HEAD") => Err(Problem::new(405, "method", "only GET here")),
        "/livez" => Ok(Answer::text(200, "text/plain; charset=utf-8", "ok\n")),
        "/readyz" => readyz(office, &snapshot),
        "/healthz" => Ok(healthz(office, &snapshot)),
        "/metrics" => {
            let failures = office.answers.as_ref().map_or(0, |answers| answers.failures());
            let refused = desk.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let body = metrics::text(&office.view, office.publisher.progress(), failures, &refused);
            Ok(Answer::text(200, "application/openmetrics-text; version=1.0.0; charset=utf-8", body))
        }
        "/api/v1/resolve" => resolve(office, &snapshot, &request.query),
        "/api/v1/connect" => connect(office, &snapshot, &request.query),
        "/api/v1/nodes" => Ok(nodes(office, &snapshot)),
        "/api/v1/ring" => Ok(ring_view(office, &snapshot)),
        path => page::file(path)
            .map(|file| Answer {
                status: 200,
                headers: file.headers().into_iter().map(|(name, value)| (name, value.into())).collect(),
                body: file.body.into(),
            })
            .ok_or_else(|| {
                let paths =
                    "/livez /readyz /healthz /metrics /api/v1/resolve /api/v1/connect /api/v1/nodes /api/v1/ring";
                let drain = "POST /api/v1/nodes/<id>/drain";
                Problem::new(404, "not_found", format!("nothing here; there is the page at /, GET {paths}, {drain}"))
            }),
    }
}

fn readyz(office: &Office, snapshot: &Snapshot) -> Result<Answer, Problem> {
    if !snapshot.is_fresh() {
        return Err(Problem::new(503, "redis", "redis does not answer"));
    }
    if office.view.ring.load().is_none() {
        return Err(Problem::new(503, "no_ring", "there is no ring yet: no node has reported"));
    }
    Ok(Answer::text(200, "text/plain; charset=utf-8", "ready\n"))
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
    Answer::json(
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
    Answer::json(
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
    Answer::json(
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
    let is_up = |view: &&NodeView| view.state == "up" && view.url.is_some();
    let mut owners = ring.owners(client.as_bytes()).take(OWNERS_TRIED_MAX);
    let view = owners.find_map(|node| snapshot.node(node).filter(is_up));
    let view = view.ok_or_else(|| Problem::new(503, "no_node", "no node that is up has told its address"))?;
    let url = view.url.clone().unwrap_or_default();
    Ok(Home { node_id: view.node_id.clone(), ws_url: with_path(&url), ring_version: ring.version().get() })
}

fn resolve(office: &Office, snapshot: &Snapshot, query: &str) -> Result<Answer, Problem> {
    Ok(Answer::json(200, &home(office, snapshot, query)?))
}

fn connect(office: &Office, snapshot: &Snapshot, query: &str) -> Result<Answer, Problem> {
    let home = home(office, snapshot, query)?;
    let separator = if home.ws_url.contains('?') { '&' } else { '?' };
    let location = format!("{}{separator}{query}", home.ws_url);
    // A request line may have bytes beyond ASCII, a node's address anything: neither may begin a header of its own.
    if !location.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Problem::new(400, "client_id", "the query cannot stand in a header"));
    }
    Ok(Answer::text(307, "text/plain; charset=utf-8", "").with_header("Location", location))
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
