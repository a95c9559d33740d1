//! What a request on the listen port asks for: a session, the echo, the page, or nothing this node has. Pure.

use std::borrow::Cow;

use websocket::handshake::{KEY_BYTES, Request, Upgrade, encode_response, encode_switching_protocols};
use websocket::{QueryError, RequestError, UpgradeError};

use crate::metrics::{Counter, Counters};
use crate::page;
use crate::protocol::{ClientId, SUBPROTOCOL};

use super::session::Wishes;

/// What a login may say of itself, each once: whoever let a request in by one value must not see another one used.
const PARAMETERS: [&str; 4] = ["clientId", "resumeOffset", "acks", "recvAck"];
/// How long a refused client should wait, in seconds, for the Retry-After header.
const RETRY_AFTER: &str = "2";

/// What the opening part of a connection is judged by.
#[derive(Debug, Clone, Default)]
pub struct OpeningRules {
    /// True when `/ws/echo` is served.
    pub has_echo: bool,
    /// Origins that may connect beside the node's own host, such as `https://app.example.com`; `*` for any.
    pub allowed_origins: Vec<String>,
}

/// A login: who, and how to answer.
#[derive(Debug)]
pub struct Login {
    /// The id it names; none asks the node to assign one.
    pub client_id: Option<ClientId>,
    /// What it asked for.
    pub wishes: Wishes,
    has_subprotocol: bool,
    key: [u8; KEY_BYTES],
}

impl Login {
    /// Appends the 101 that completes the handshake.
    pub fn write_response(&self, out: &mut Vec<u8>) {
        let key = std::str::from_utf8(&self.key).unwrap_or_default();
        encode_switching_protocols(out, key, self.has_subprotocol.then_some(SUBPROTOCOL));
    }
}

/// What a request asks for.
#[derive(Debug)]
pub enum Opening {
    /// A session.
    Login(Box<Login>),
    /// The echo; its 101 is written.
    Echo,
    /// It has been answered and the connection ends.
    Answered,
}

/// Why a whole, readable request cannot have what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not HTTP.
    Request(RequestError),
    /// Longer than a request may be.
    TooLong(usize),
    /// Not an upgrade.
    Upgrade(UpgradeError),
    /// Nothing under this path.
    UnknownPath,
    /// The query cannot be read.
    Query(QueryError),
    /// A parameter has a value it cannot have.
    Parameter(&'static str),
    /// A page of another site.
    Origin,
    /// The node is being drained.
    Draining,
    /// The node has all the connections it may have.
    ConnectionLimit,
    /// Connections come faster than this node takes them.
    AcceptRate,
    /// The client's home shard has no room for more.
    Mailbox,
}

impl Refusal {
    /// Appends the response.
    pub fn write_response(self, out: &mut Vec<u8>) {
        let (status, headers, reason): (u16, &[(&str, &str)], Cow<'static, str>) = match self {
            Self::Request(error) => (error.status(), &[], error.to_string().into()),
            Self::TooLong(limit) => (431, &[], format!("request is longer than {limit} bytes").into()),
            Self::Upgrade(error) => (error.status(), error.headers(), error.to_string().into()),
            Self::UnknownPath => (404, &[], "nothing here: connect to /ws/connect?clientId=<id>".into()),
            Self::Query(error) => (400, &[], error.to_string().into()),
            Self::Parameter(reason) => (400, &[], reason.into()),
            Self::Origin => (403, &[], "origin is not allowed: add it to allowed_origins".into()),
            Self::Draining => (503, &[("Retry-After", RETRY_AFTER)], "draining".into()),
            Self::ConnectionLimit => (503, &[("Retry-After", RETRY_AFTER)], "connection limit reached".into()),
            Self::AcceptRate => (503, &[("Retry-After", RETRY_AFTER)], "too many connections at once".into()),
            Self::Mailbox => (503, &[("Retry-After", RETRY_AFTER)], "overloaded".into()),
        };
        let mut all = vec![("Content-Type", "text/plain; charset=utf-8")];
        all.extend_from_slice(headers);
        let body = format!("{reason}\n");
        encode_response(out, status, &all, body.as_bytes());
    }

    /// Where it is counted.
    pub fn counter(self, counters: &Counters) -> &Counter {
        match self {
            Self::Request(_) => &counters.refused_request,
            Self::TooLong(_) => &counters.refused_too_long,
            Self::Upgrade(_) => &counters.refused_upgrade,
            Self::UnknownPath => &counters.refused_unknown_path,
            Self::Query(_) | Self::Parameter(_) => &counters.refused_client_id,
            Self::Origin => &counters.refused_origin,
            Self::Draining => &counters.refused_draining,
            Self::ConnectionLimit => &counters.refused_limit,
            Self::AcceptRate => &counters.refused_rate,
            Self::Mailbox => &counters.refused_mailbox,
        }
    }
}

/// Judges `request`; what can be answered at once is appended to `out`.
///
/// # Errors
/// Says why it is refused; nothing is appended then.
pub fn open(request: &Request<'_>, rules: &OpeningRules, out: &mut Vec<u8>) -> Result<Opening, Refusal> {
    match request.path() {
        "/ws/connect" => {
            let upgrade = request.upgrade().map_err(Refusal::Upgrade)?;
            check_origin(request, rules)?;
            login(request, &upgrade).map(|login| Opening::Login(Box::new(login)))
        }
        "/ws/echo" if rules.has_echo => {
            let upgrade = request.upgrade().map_err(Refusal::Upgrade)?;
            check_origin(request, rules)?;
            encode_switching_protocols(out, upgrade.key(), None);
            Ok(Opening::Echo)
        }
        path => match page::file(path) {
            Some(file) if matches!(request.method(), "GET" | "HEAD") => {
                let body = if request.method() == "GET" { file.body } else { "" };
                encode_response(out, 200, &file.headers(), body.as_bytes());
                Ok(Opening::Answered)
            }
            _ => Err(Refusal::UnknownPath),
        },
    }
}

fn login(request: &Request<'_>, upgrade: &Upgrade<'_>) -> Result<Login, Refusal> {
    let mut client_id = None;
    let mut wishes = Wishes::default();
    let mut seen = [false; PARAMETERS.len()];
    for pair in request.query_pairs() {
        let (name, value) = pair.map_err(Refusal::Query)?;
        let position = PARAMETERS.iter().position(|parameter| *parameter == name);
        if position.and_then(|position| seen.get_mut(position)).is_some_and(|seen| std::mem::replace(seen, true)) {
            return Err(Refusal::Parameter("a parameter is there twice"));
        }
        match &*name {
            "clientId" => {
                let id = ClientId::try_from(&*value)
                    .map_err(|_| Refusal::Parameter("clientId is not 1 to 128 bytes without control characters"))?;
                client_id = Some(id);
            }
            "resumeOffset" => {
                let offset = value.parse().map_err(|_| Refusal::Parameter("resumeOffset is not a whole number"))?;
                wishes.resume_offset = Some(offset);
            }
            "acks" => wishes.acks = flag(&value).ok_or(Refusal::Parameter("acks is neither 0 nor 1"))?,
            "recvAck" => wishes.receiver_acks = flag(&value).ok_or(Refusal::Parameter("recvAck is neither 0 nor 1"))?,
            _ => {}
        }
    }
    let has_subprotocol = upgrade.subprotocols().any(|offered| offered == SUBPROTOCOL);
    let mut key = [0; KEY_BYTES];
    key.copy_from_slice(upgrade.key().as_bytes().get(..KEY_BYTES).unwrap_or(&[b'A'; KEY_BYTES]));
    Ok(Login { client_id, wishes, has_subprotocol, key })
}

fn flag(value: &str) -> Option<bool> {
    match value {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// A browser names the site whose script connects: another site's must not use this user's network position.
fn check_origin(request: &Request<'_>, rules: &OpeningRules) -> Result<(), Refusal> {
    let Some(origin) = request.origin() else { return Ok(()) };
    let is_own = origin
        .split_once("://")
        .is_some_and(|(_, authority)| request.host().is_some_and(|host| authority.eq_ignore_ascii_case(host)));
    let is_allowed =
        || rules.allowed_origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin));
    if is_own || is_allowed() { Ok(()) } else { Err(Refusal::Origin) }
}
