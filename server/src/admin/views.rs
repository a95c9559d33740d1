//! What the port shows: read from counters and from the shards' answers, written as JSON or as Prometheus' text.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::drain::Phase;
use crate::metrics::{Kind, Latencies, Page};
use crate::protocol::ClientId;
use crate::shard::Driver;
use crate::shard::handover::ClientView;

use super::{Office, process};
use rim::http::Response;

/// The process runs. Depends on nothing.
pub(super) fn live() -> Response {
    #[derive(Serialize)]
    struct Live {
        live: bool,
    }
    Response::json(200, &Live { live: true })
}

/// Whether new connections should come here.
pub(super) fn ready(office: &Office) -> Response {
    #[derive(Serialize)]
    #[allow(clippy::struct_field_names, reason = "the names of the wire")]
    struct Ready<'a> {
        #[serde(rename = "ready")]
        is_ready: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        warning: Option<&'a str>,
    }
    let missing = office.node.links().and_then(crate::cluster::Links::missing);
    let weakness = office.node.links().and_then(crate::cluster::Links::weakness);
    let warning = weakness.as_deref().map(String::as_str);
    match phase(office) {
        Phase::Serving => {
            let status = if missing.is_some() { 503 } else { 200 };
            Response::json(status, &Ready { is_ready: missing.is_none(), reason: missing, warning })
        }
        phase => Response::json(503, &Ready { is_ready: false, reason: Some(phase.as_str()), warning }),
    }
}

/// A summary for people.
pub(super) fn health(office: &Office) -> Response {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Health<'a> {
        status: &'a str,
        node_id: &'a str,
        version: &'a str,
        listen: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        url: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        zone: Option<&'a str>,
        uptime_ms: u64,
        shards: usize,
        io: &'a str,
        connections: u64,
        sessions: u64,
    }
    let node = &office.node;
    let health = Health {
        status: phase(office).as_str(),
        node_id: node.node_id().as_str(),
        version: env!("CARGO_PKG_VERSION"),
        listen: node.listen().to_string(),
        url: office.settings.advertise_url.as_deref(),
        zone: office.settings.zone.as_deref(),
        uptime_ms: u64::try_from(node.uptime().as_millis()).unwrap_or(u64::MAX),
        shards: node.shards().get(),
        io: match node.driver() {
            Driver::Ring => "ring",
            Driver::Direct => "direct",
        },
        connections: node.connections(),
        sessions: node.sessions(),
    };
    Response::json(200, &health)
}

/// The ring this node goes by.
pub(super) fn ring(office: &Office) -> Response {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct RingView<'a> {
        is_initialized: bool,
        version: u64,
        version_hash: String,
        seed: u64,
        weights: BTreeMap<&'a str, u16>,
    }
    let Some(ring) = office.node.ring().load() else {
        let weights = BTreeMap::new();
        let version_hash = String::new();
        return Response::json(200, &RingView { is_initialized: false, version: 0, version_hash, seed: 0, weights });
    };
    let view = RingView {
        is_initialized: true,
        version: ring.version().get(),
        version_hash: ring.version_hash().as_str().to_owned(),
        seed: ring.seed(),
        weights: ring.weights().iter().map(|(node, weight)| (node.as_str(), weight.get())).collect(),
    };
    Response::json(200, &view)
}

/// What this node holds of a client; none when that is nothing.
pub(super) fn client(office: &Office, id: &ClientId, view: &ClientView) -> Option<Response> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Known<'a> {
        client_id: &'a str,
        node_id: &'a str,
        shard: usize,
        connected: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        last_offset: Option<u64>,
        receiver_acks: bool,
        outbox: Outbox,
        kept: Kept,
    }
    #[derive(Serialize)]
    struct Outbox {
        messages: usize,
        bytes: usize,
    }
    #[derive(Serialize)]
    struct Kept {
        messages: usize,
    }
    if !view.is_connected && view.kept_messages == 0 {
        return None;
    }
    let node = &office.node;
    let client = Known {
        client_id: id.as_str(),
        node_id: node.node_id().as_str(),
        shard: node.home_of(node.hash_of(id.as_str())),
        connected: view.is_connected,
        last_offset: view.is_connected.then_some(view.last_offset),
        receiver_acks: view.receiver_acks,
        outbox: Outbox { messages: view.outbox_messages, bytes: view.outbox_bytes },
        kept: Kept { messages: view.kept_messages },
    };
    Some(Response::json(200, &client))
}

/// How far a drain is.
pub(super) fn drain(office: &Office, status: u16) -> Response {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct DrainView<'a> {
        phase: &'a str,
        draining: bool,
        connections: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        connections_at_start: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        window_ms: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        max_disconnects: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        elapsed_ms: Option<u64>,
    }
    let begun = office.node.drain_state().begun();
    let connections = office.node.connections();
    let phase = office.node.drain_state().phase(connections);
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let view = DrainView {
        phase: phase.as_str(),
        draining: phase != Phase::Serving,
        connections,
        connections_at_start: begun.map(|begun| begun.connections),
        window_ms: begun.map(|begun| millis(begun.window)),
        max_disconnects: begun.and_then(|begun| begun.disconnects_max).map(std::num::NonZero::get),
        elapsed_ms: begun.map(|begun| millis(begun.at.elapsed())),
    };
    Response::json(status, &view)
}

/// All that is counted.
pub(super) fn metrics(office: &Office) -> Response {
    let node = &office.node;
    let mut page = Page::default();
    page.add_counters(node.counters());
    page.add_histogram(
        "rtc_socket_delivery_latency_seconds",
        "Time from a message's acceptance, here or at another node by its clock, until it was written to its recipient's \
         socket. Without replays: what a store gave back, or what was written before.",
        &Latencies::of(node.counters()),
    );
    if let Some(links) = node.links() {
        links.add_to(&mut page);
    }
    let load = node.vitals().load();
    let help = "Share of the processors in use, as in the heartbeat.";
    page.add("rtc_socket_cpu_ratio", "", Kind::Gauge, help, load.cpu);
    let help = "Share of the memory in use, as in the heartbeat.";
    page.add("rtc_socket_memory_ratio", "", Kind::Gauge, help, load.mem);
    let version = node.ring().load().map_or(0, |ring| ring.version().get());
    // The alphabet of node ids needs no escapes.
    let node_label = format!("node_id=\"{}\"", node.node_id());
    page.add("rtc_socket_ring_version", &node_label, Kind::Gauge, "Version of the ring this node has.", version);
    let is_draining = u8::from(phase(office) != Phase::Serving);
    page.add("rtc_socket_draining", "", Kind::Gauge, "1 while the node takes no new connections.", is_draining);
    let help = "Answers of the admin port, by status.";
    for (status, count) in office.tally.responses() {
        page.add("rtc_admin_responses_total", &format!("status=\"{status}\""), Kind::Counter, help, count);
    }
    let help = "Requests, and published messages, that the admin port refused, by cause.";
    for (cause, count) in office.tally.refused() {
        page.add("rtc_admin_refused_total", &format!("cause=\"{cause}\""), Kind::Counter, help, count);
    }
    let build = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    page.add("rtc_build_info", &build, Kind::Gauge, "Always 1; the labels tell the build.", 1);
    process::add_to(&mut page, office.started);
    Response::text(200, "text/plain; version=0.0.4; charset=utf-8", page.into_text())
}

fn phase(office: &Office) -> Phase {
    office.node.drain_state().phase(office.node.connections())
}
