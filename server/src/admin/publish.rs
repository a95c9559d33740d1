//! Messages from outside: parsed under a client's rules, posted to their recipients' home shards in the order given, and
//! answered with what became of each.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use crate::protocol::{AckStatus, ErrorCode, Publication, Publications, Refusal, parse_publications};
use crate::publish::Published;
use crate::shard::handover::{Order, Posted};
use crate::shard::origin::Origin;

use super::Office;
use super::idempotency::{Found, Ticket};
use rim::http::{Problem, Request, Response};

/// Messages in one request.
const MESSAGES_MAX: usize = 1000;
/// Requests that publish at once: the rest of the port's connections stay free for health checks.
const PUBLISHERS_MAX: usize = 64;
/// How long a full mailbox is tried before its messages are refused.
const MAILBOX_TIMEOUT: Duration = Duration::from_secs(1);

type Outcome = Result<AckStatus, (ErrorCode, &'static str)>;

/// One message of a request, on its way.
struct Item {
    msg_id: Option<String>,
    // None until it is known.
    outcome: Option<Outcome>,
}

/// Publishes what the body holds.
pub(super) fn publish(office: &Office, request: &Request) -> Result<Response, Problem> {
    let _place = PublisherPlace::take(&office.publishers)
        .ok_or_else(|| Problem::new(503, "publishers", "too many requests publish at once"))?;
    let body = std::str::from_utf8(&request.body).map_err(|_| Problem::new(400, "malformed", "body is not UTF-8"))?;
    let publications =
        parse_publications(body, office.settings.message_bytes_max, MESSAGES_MAX).map_err(|refusal| whole(&refusal))?;
    let Some(key) = &request.idempotency_key else { return Ok(deliver(office, publications, None).response) };
    let found = remembered(office).begin(key, &request.body, Instant::now())?;
    match found {
        Found::Answered(response) => Ok(response.with_header("Idempotency-Replayed", "true")),
        Found::New(ticket) => {
            let delivered = deliver(office, publications, Some(&ticket));
            // What was refused may be tried again: the accepted ones among it keep their names and are not repeated.
            let answer = delivered.is_accepted.then(|| delivered.response.clone());
            remembered(office).finish(&ticket, answer);
            Ok(delivered.response)
        }
    }
}

fn remembered(office: &Office) -> std::sync::MutexGuard<'_, super::Remembered> {
    office.remembered.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A body that cannot be read as a whole.
fn whole(refusal: &Refusal<'_>) -> Problem {
    match refusal.code {
        ErrorCode::TooLarge => {
            Problem::new(413, "too_large", format!("{}: limit {MESSAGES_MAX} messages", refusal.reason))
        }
        code => Problem::new(400, code.as_str(), refusal.reason),
    }
}

struct Delivered {
    response: Response,
    is_accepted: bool,
}

fn deliver(office: &Office, publications: Publications<'_>, ticket: Option<&Ticket>) -> Delivered {
    match publications {
        Publications::One(publication) => {
            let mut items = deliver_all(office, vec![*publication], ticket);
            let item = items.pop().unwrap_or(Item { msg_id: None, outcome: None });
            let status = status_of(item.outcome());
            let response = Response::json(status, &ItemView::of(&item));
            let response = if status == 503 { response.with_header("Retry-After", "1") } else { response };
            Delivered { response, is_accepted: status == 200 }
        }
        Publications::Many(publications) => {
            #[derive(Serialize)]
            struct Results<'a> {
                results: Vec<ItemView<'a>>,
            }
            let items = deliver_all(office, publications, ticket);
            let response = Response::json(200, &Results { results: items.iter().map(ItemView::of).collect() });
            Delivered { response, is_accepted: items.iter().all(|item| item.outcome().is_ok()) }
        }
    }
}

fn deliver_all(
    office: &Office,
    publications: Vec<Result<Publication<'_>, Refusal<'_>>>,
    ticket: Option<&Ticket>,
) -> Vec<Item> {
    let (reply, answers) = bounded(publications.len());
    let mailbox_deadline = Instant::now() + MAILBOX_TIMEOUT;
    let mut items: Vec<Item> = Vec::with_capacity(publications.len());
    for (index, publication) in publications.into_iter().enumerate() {
        let item = match publication {
            Ok(publication) => post(office, publication, index, ticket, &reply, mailbox_deadline),
            Err(refusal) => {
                office.tally.count_refusal(match refusal.code {
                    ErrorCode::TooLarge => "message_too_large",
                    _ => "message_malformed",
                });
                let msg_id = refusal.msg_id.map(std::borrow::Cow::into_owned);
                Item { msg_id, outcome: Some(Err((refusal.code, refusal.reason))) }
            }
        };
        items.push(item);
    }
    drop(reply);
    wait(&mut items, &answers, Instant::now() + office.settings.publish_wait);
    let unconfirmed = items.iter().filter(|item| item.outcome.is_none()).count();
    for _ in 0..unconfirmed {
        office.tally.count_refusal("unconfirmed");
    }
    items
}

/// Sends a message to its recipient's home shard.
fn post(
    office: &Office,
    publication: Publication<'_>,
    index: usize,
    ticket: Option<&Ticket>,
    reply: &Sender<Published>,
    deadline: Instant,
) -> Item {
    let Publication { from, message } = publication;
    let msg_id = match (message.msg_id, ticket) {
        (Some(msg_id), _) => msg_id.into_owned(),
        (None, Some(ticket)) => ticket.msg_id(index),
        (None, None) => new_msg_id(),
    };
    let hash = office.node.hash_of(&message.to);
    let posted = Posted {
        msg_id: msg_id.as_str().into(),
        from: (*from).into(),
        sender: office.node.hash_of(&from),
        to: (*message.to).into(),
        hash,
        field: message.field,
        payload: (*message.payload).into(),
        // These three are the shard's to set, when it takes the message.
        origin: Origin::NOBODY,
        wants_ack: true,
        ts_ms: 0,
        ttl_ms: message.ttl_ms,
        hops: 0,
        trail: Vec::new(),
        login: 0,
    };
    let order = Order::Publish { posted: Box::new(posted), reply: reply.clone(), index };
    let outcome = office.node.order(office.node.home_of(hash), order, deadline).err().map(|_| {
        office.tally.count_refusal("mailbox_full");
        Err((ErrorCode::Overloaded, "the recipient's shard takes no more for now"))
    });
    Item { msg_id: Some(msg_id), outcome }
}

/// Gathers the answers until all are there or `deadline` has passed.
fn wait(items: &mut [Item], answers: &Receiver<Published>, deadline: Instant) {
    let mut open = items.iter().filter(|item| item.outcome.is_none()).count();
    while open > 0 {
        let Ok(answer) = answers.recv_deadline(deadline) else { return };
        if let Some(item) = items.get_mut(answer.index).filter(|item| item.outcome.is_none()) {
            item.outcome = Some(answer.outcome);
            open -= 1;
        }
    }
}

/// A name that no other message has: the process's own random number, and a count.
fn new_msg_id() -> String {
    static PREFIX: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let prefix = PREFIX.get_or_init(|| {
        let mut random = [0; 8];
        if getrandom::fill(&mut random).is_ok() {
            return u64::from_ne_bytes(random);
        }
        // Without randomness: when this process began, and which it is.
        let began = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        xxh3_64(format!("{}-{}", began.as_nanos(), std::process::id()).as_bytes())
    });
    format!("p-{prefix:016x}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

impl Item {
    fn outcome(&self) -> Outcome {
        let unconfirmed = (ErrorCode::Unconfirmed, "no confirmation in time: publish it again under the same msgId");
        self.outcome.unwrap_or(Err(unconfirmed))
    }
}

fn status_of(outcome: Outcome) -> u16 {
    match outcome {
        Ok(_) => 200,
        Err((code, _)) => match code {
            ErrorCode::Malformed => 400,
            ErrorCode::TooLarge => 413,
            ErrorCode::RateLimited => 429,
            ErrorCode::Overloaded | ErrorCode::BufferFull => 503,
            ErrorCode::Unconfirmed => 504,
        },
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ItemView<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    msg_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorView>,
}

#[derive(Serialize)]
struct ErrorView {
    code: &'static str,
    reason: &'static str,
}

impl<'a> ItemView<'a> {
    fn of(item: &'a Item) -> Self {
        let (status, error) = match item.outcome() {
            Ok(status) => (Some(status.as_str()), None),
            Err((code, reason)) => (None, Some(ErrorView { code: code.as_str(), reason })),
        };
        Self { msg_id: item.msg_id.as_deref(), status, error }
    }
}

/// One of a limited number of places, given back when it goes.
struct PublisherPlace<'a>(&'a AtomicUsize);

impl<'a> PublisherPlace<'a> {
    fn take(count: &'a AtomicUsize) -> Option<Self> {
        let taken =
            count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| (open < PUBLISHERS_MAX).then_some(open + 1));
        taken.ok().map(|_| Self(count))
    }
}

impl Drop for PublisherPlace<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
