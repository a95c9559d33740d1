//! Drops, and counts, what is too old in the replay buffers of clients that nobody asks about. Any node does it for all:
//! a sorted set tells whose messages are due.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{RedisError, Value};
use tracing::debug;

use super::backoff::Backoff;
use super::codec::{self, Outcome};
use super::keys;
use super::link::{Address, Link, Trouble};
use super::pack::Pack;
use super::scripts::Caller;
use super::thread::{REPLY_LIMIT, Shared, load_scripts};
use crate::protocol::ClientId;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Clients visited at a look.
const CLIENTS_PER_LOOK: usize = 128;
/// A client is visited at most this often, so that many messages with ages of their own do not each cost a visit …
const REVISIT_MS_MIN: u64 = 2_000;
/// … and at least this often, whatever was noted about it.
const REVISIT_MS_MAX: u64 = 600_000;

/// The thread that sweeps.
pub(super) struct Sweeper {
    address: Address,
    link: Option<Link>,
    caller: Caller,
    shared: Arc<Shared>,
    backoff: Backoff,
}

impl Sweeper {
    pub(super) fn new(address: Address, caller: Caller, shared: Arc<Shared>) -> Self {
        Self { address, link: None, caller, shared, backoff: Backoff::default() }
    }

    pub(super) fn run(mut self) {
        while !self.shared.is_stopping() {
            let wait = match self.look() {
                // There may be more.
                Ok(visited) if visited >= CLIENTS_PER_LOOK => Duration::ZERO,
                Ok(_) => INTERVAL,
                Err(err) => {
                    // The store's own thread says so in the log.
                    debug!(%err, "sweep failed");
                    self.link = None;
                    self.backoff.fail(Instant::now()).max(INTERVAL)
                }
            };
            let until = Instant::now() + wait;
            while Instant::now() < until && !self.shared.is_stopping() {
                // Whoever ends it wakes it.
                std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
            }
        }
    }

    fn look(&mut self) -> Result<usize, RedisError> {
        let link = if let Some(link) = &mut self.link {
            link
        } else {
            let mut link = self.address.connect(REPLY_LIMIT)?;
            self.caller.set_hashes(load_scripts(&mut link)?);
            self.backoff.succeed();
            self.link.insert(link)
        };
        let now_ms = server_time_ms(link)?;
        let limit = CLIENTS_PER_LOOK.to_string();
        let due = link.ask(&["ZRANGEBYSCORE", keys::DUE, "-inf", &now_ms.to_string(), "LIMIT", "0", &limit]);
        let due = match due {
            Ok(due) => members(due),
            Err(err) if Trouble::of(&err) == Trouble::Refused => {
                // Somebody else's value stands there: nothing of ours can be lost with it.
                self.shared.counters.malformed_swept.add(1);
                link.ask(&["UNLINK", keys::DUE])?;
                return Ok(0);
            }
            Err(err) => return Err(err),
        };
        let visited = due.len();
        let mut clients = Vec::with_capacity(due.len());
        for member in due {
            if let Some(client) = std::str::from_utf8(&member).ok().and_then(keys::decode) {
                clients.push(client);
                continue;
            }
            self.shared.counters.malformed_swept.add(1);
            let mut pack = Pack::default();
            pack.begin(3);
            pack.text("ZREM");
            pack.text(keys::DUE);
            pack.arg(&member);
            link.send(&pack)?;
            link.receive()?;
        }
        let first = sweep(link, &self.caller, &self.shared, &clients, false)?;
        let (some, none): (Vec<_>, Vec<_>) = clients.into_iter().zip(first).partition(|(_, next)| *next > 0);
        // Forgotten first and looked at once more: an append in between has noted itself before, or is seen now.
        let none: Vec<ClientId> = none.into_iter().map(|(client, _)| client).collect();
        let second = sweep(link, &self.caller, &self.shared, &none, true)?;
        let again = none.into_iter().zip(second).filter(|(_, next)| *next > 0);
        let mut pack = Pack::default();
        for (client, next) in some.into_iter().chain(again) {
            pack.begin(4);
            pack.text("ZADD");
            pack.text(keys::DUE);
            pack.number(next.clamp(now_ms + REVISIT_MS_MIN, now_ms + REVISIT_MS_MAX));
            pack.text(&keys::encode(client.as_str()));
        }
        if !pack.is_empty() {
            link.send(&pack)?;
            for _ in 0..pack.len() {
                link.receive()?;
            }
        }
        Ok(visited)
    }
}

/// Sweeps each client's buffer and returns when its next message expires, 0 for none.
fn sweep(
    link: &mut Link,
    caller: &Caller,
    shared: &Shared,
    clients: &[ClientId],
    forgets: bool,
) -> Result<Vec<u64>, RedisError> {
    if clients.is_empty() {
        return Ok(Vec::new());
    }
    let mut pack = Pack::default();
    for client in clients {
        if forgets {
            pack.command(&["ZREM", keys::DUE, &keys::encode(client.as_str())]);
        }
        caller.write_sweep(client, &mut pack);
    }
    link.send(&pack)?;
    let mut nexts = Vec::with_capacity(clients.len());
    for _ in clients {
        if forgets {
            link.receive()?;
        }
        let next = match codec::reply(link.receive()?) {
            Ok(reply) => {
                shared.counters.expired_swept.add(reply.expired);
                shared.counters.malformed_swept.add(reply.malformed);
                if let Outcome::Swept(next) = reply.outcome { next } else { 0 }
            }
            Err(codec::ForeignReply) => 0,
        };
        nexts.push(next);
    }
    Ok(nexts)
}

/// The server's clock, in milliseconds since 1970.
pub(super) fn server_time_ms(link: &mut Link) -> Result<u64, RedisError> {
    let number = |value: Option<&Value>| match value {
        Some(Value::BulkString(digits)) => std::str::from_utf8(digits).ok()?.parse::<u64>().ok(),
        Some(Value::Int(number)) => u64::try_from(*number).ok(),
        _ => None,
    };
    let time = match link.ask(&["TIME"])? {
        Value::Array(items) => number(items.first()).zip(number(items.get(1))),
        _ => None,
    };
    time.map(|(seconds, micros)| seconds.saturating_mul(1000) + micros / 1000)
        .ok_or_else(|| RedisError::from((redis::ErrorKind::UnexpectedReturnType, "no time")))
}

fn members(value: Value) -> Vec<Vec<u8>> {
    let Value::Array(items) = value else { return Vec::new() };
    items.into_iter().filter_map(|item| if let Value::BulkString(bytes) = item { Some(bytes) } else { None }).collect()
}
