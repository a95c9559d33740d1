//! The one request that changes something: a node is to leave the ring, and to send its clients elsewhere at a pace that
//! the others can take.

use std::sync::PoisonError;

use ring::control::{DrainRequest, WHOLE_MAX};
use ring::{NodeId, nesting};
use serde::Deserialize;
use tracing::info;

use super::{Office, Problem, Request, Response};
use crate::publisher::{DRAIN_TOPIC, Outgoing};
use crate::view::NodeView;

/// The deepest nesting of a drain's body.
const BODY_DEPTH_MAX: usize = 4;
/// The longest window of a drain, in ms: no node takes a longer one.
pub const DRAIN_WINDOW_MS_MAX: u64 = 60 * 60 * 1000;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Body {
    window_ms: Option<u64>,
    max_disconnects: Option<u64>,
    reason: Option<String>,
}

/// Has a node leave the ring and send its clients elsewhere.
pub(super) fn order(office: &Office, request: &Request, node: &str) -> Result<Response, Problem> {
    let is_json = request.content_type.as_ref().is_some_and(|media_type| media_type.starts_with("application/json"));
    // Keeps forms of other sites' pages out: they cannot send this type.
    if !is_json {
        return Err(Problem::new(415, "content_type", "send Content-Type: application/json"));
    }
    let body = &*request.body;
    if nesting::depth(body) > BODY_DEPTH_MAX {
        return Err(Problem::new(413, "body", format!("the body is nested over {BODY_DEPTH_MAX} levels")));
    }
    let body: Body = if body.trim_ascii().is_empty() {
        Body::default()
    } else {
        sonic_rs::from_slice(body).map_err(|_| {
            Problem::new(400, "body", "give {\"windowMs\":…,\"maxDisconnects\":…,\"reason\":…}, each optional")
        })?
    };
    let node = NodeId::new(node).map_err(|error| Problem::new(400, "node_id", error.to_string()))?;
    let snapshot = office.view.snapshot();
    let view = snapshot.node(&node).ok_or_else(|| Problem::new(404, "node", "no such node"))?;
    let is_other = |other: &&NodeView| other.node_id != node && other.state == "up";
    if !snapshot.nodes.iter().any(|other| is_other(&other)) {
        return Err(Problem::new(409, "last_node", "no other node is up: its clients would have nowhere to go"));
    }
    let window_ms =
        body.window_ms.unwrap_or_else(|| u64::try_from(office.drain_window.as_millis()).unwrap_or(u64::MAX));
    let reason = body.reason.unwrap_or_else(|| "asked for by an operator".to_owned());
    if window_ms > DRAIN_WINDOW_MS_MAX {
        return Err(Problem::new(400, "body", format!("windowMs must be 0 to {DRAIN_WINDOW_MS_MAX}")));
    }
    let drain = DrainRequest {
        node_id: node.clone(),
        deadline: snapshot.redis_ms.saturating_add(window_ms).min(WHOLE_MAX),
        max_disconnects: body.max_disconnects.unwrap_or(office.drain_disconnects_max),
        reason,
        ts: snapshot.redis_ms,
        incarnation: view.incarnation,
    };
    let payload = drain.encode().map_err(|error| Problem::new(400, "body", error.to_string()))?;
    let kept = office.store.lock().unwrap_or_else(PoisonError::into_inner).drain(&node, view.incarnation);
    kept.map_err(|error| Problem::new(503, "redis", error.to_string()))?;
    if !office.publisher.send(Outgoing { topic: DRAIN_TOPIC, key: node.to_string(), payload }) {
        return Err(Problem::new(503, "kafka", "too many control messages wait already"));
    }
    let (deadline, disconnects_max) = (drain.deadline, drain.max_disconnects);
    info!(%node, deadline, disconnects_max, reason = drain.reason, "drain asked for");
    Ok(Response::json(202, &drain))
}
