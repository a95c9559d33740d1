//! Which request gets what.

use std::borrow::Cow;
use std::num::NonZeroU64;
use std::time::Duration;

use serde::Deserialize;
use websocket::handshake::percent_decode;

use crate::drain::{Pace, WINDOW_MAX};
use crate::protocol::ClientId;

use super::{Office, publish, views};
use rim::http::{Problem, Request, Response};

/// Everything there is, for who asks for something else.
const PATHS: &str = "GET /livez /readyz /healthz /metrics /api/v1/ring /api/v1/clients/<id> /drain/status, \
                     POST /api/v1/publish /drain";
const CLIENTS: &str = "/api/v1/clients/";

/// Answers a request.
pub(super) fn answer(office: &Office, request: &Request) -> Result<Response, Problem> {
    let path = request.path.as_str();
    match path {
        "/livez" => is_get(request).map(|()| views::live()),
        "/readyz" => is_get(request).map(|()| views::ready(office)),
        "/healthz" => is_get(request).map(|()| views::health(office)),
        "/metrics" => is_get(request).map(|()| views::metrics(office)),
        "/api/v1/ring" => is_get(request).map(|()| views::ring(office)),
        "/drain/status" => is_get(request).map(|()| views::drain(office, 200)),
        "/drain" => is_json_post(request).and_then(|()| drain(office, request)),
        "/api/v1/publish" => is_json_post(request).and_then(|()| publish::publish(office, request)),
        _ => match path.strip_prefix(CLIENTS) {
            Some(id) => is_get(request).and_then(|()| client(office, id)),
            None => Err(Problem::new(404, "unknown_path", format!("nothing here; there is {PATHS}"))),
        },
    }
}

fn is_get(request: &Request) -> Result<(), Problem> {
    match request.method.as_str() {
        "GET" | "HEAD" => Ok(()),
        _ => Err(Problem::wrong_method("GET, HEAD")),
    }
}

/// A page of another site can make a browser post a form, but not JSON without asking first: nobody answers that.
fn is_json_post(request: &Request) -> Result<(), Problem> {
    if request.method != "POST" {
        return Err(Problem::wrong_method("POST"));
    }
    let media_type = request.content_type.as_deref().and_then(|value| value.split(';').next()).unwrap_or_default();
    if !media_type.trim_ascii().eq_ignore_ascii_case("application/json") {
        return Err(Problem::new(415, "media_type", "send Content-Type: application/json"));
    }
    let is_foreign = request.origin.as_deref().is_some_and(|origin| {
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        !authority.zip(request.host.as_deref()).is_some_and(|(origin, host)| origin.eq_ignore_ascii_case(host))
    });
    if is_foreign {
        return Err(Problem::new(403, "origin", "pages of other sites may not post here"));
    }
    Ok(())
}

fn client(office: &Office, raw_id: &str) -> Result<Response, Problem> {
    let bad = |reason: String| Problem::new(400, "client_id", reason);
    // In a path, unlike in a query, a plus is a plus.
    let escaped: Cow<'_, str> = if raw_id.contains('+') { raw_id.replace('+', "%2B").into() } else { raw_id.into() };
    let id = percent_decode(&escaped).map_err(|error| bad(error.to_string()))?;
    let id = ClientId::try_from(&*id).map_err(|error| bad(error.to_string()))?;
    let view = office.node.look(&id);
    let view = view.ok_or_else(|| Problem::new(503, "overloaded", "the client's shard does not answer in time"))?;
    views::client(office, &id, &view)
        .ok_or_else(|| Problem::new(404, "unknown_client", "this node holds nothing of this client"))
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct DrainOrder {
    window_ms: Option<u64>,
    max_disconnects: Option<u64>,
}

fn drain(office: &Office, request: &Request) -> Result<Response, Problem> {
    let order: DrainOrder = if request.body.trim_ascii().is_empty() {
        DrainOrder::default()
    } else {
        // A body this short cannot nest deep enough to harm the parser.
        const BODY_BYTES_MAX: usize = 256;
        let body = request.body.get(..request.body.len().min(BODY_BYTES_MAX)).unwrap_or_default();
        sonic_rs::from_slice(body).map_err(|_| {
            Problem::new(400, "malformed", "send {\"windowMs\":30000,\"maxDisconnects\":200}, either or none")
        })?
    };
    let window = order.window_ms.map_or(office.settings.drain_window, Duration::from_millis);
    if window > WINDOW_MAX {
        let reason = format!("windowMs is {}, limit {}", window.as_millis(), WINDOW_MAX.as_millis());
        return Err(Problem::new(400, "malformed", reason));
    }
    let disconnects_max = order.max_disconnects.and_then(NonZeroU64::new);
    if office.node.drain(Pace { window, disconnects_max }) {
        tracing::info!(?window, disconnects_max, by = "request", "draining");
    }
    Ok(views::drain(office, 202))
}
