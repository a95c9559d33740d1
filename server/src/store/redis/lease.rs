//! Leases by the rules of [`rim::lease`], kept by the membership's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use redis::{RedisError, Value};
use rim::lease::{ASK_INTERVAL, GIVE_BACK, HELD_TIME, LEASE_TIME, RENEW_INTERVAL, TAKE, counter_key};

use super::link::Link;

#[derive(Debug, Clone, Copy)]
struct Held {
    token: u64,
    until: Instant,
}

#[derive(Debug)]
struct State {
    key: String,
    owner: String,
    held: ArcSwapOption<Held>,
    is_wanted: AtomicBool,
}

/// A lease that is wanted, whether held or not yet; given back when this is dropped.
#[derive(Debug)]
pub struct Lease {
    state: Arc<State>,
}

impl Lease {
    /// The fencing token; `None` while the lease is not held, or its time is up.
    pub fn token(&self) -> Option<u64> {
        let held = self.state.held.load();
        held.as_ref().filter(|held| Instant::now() < held.until).map(|held| held.token)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.state.held.store(None);
        self.state.is_wanted.store(false, Ordering::Release);
    }
}

/// The keeper's side of a lease.
#[derive(Debug)]
pub struct LeaseKeeper {
    state: Arc<State>,
    ask_at: Instant,
}

/// A lease on `key` for `owner`, which must name one life of one process, and what keeps it.
pub fn lease(key: String, owner: String) -> (Lease, LeaseKeeper) {
    let state = Arc::new(State { key, owner, held: ArcSwapOption::empty(), is_wanted: AtomicBool::new(true) });
    (Lease { state: Arc::clone(&state) }, LeaseKeeper { state, ask_at: Instant::now() })
}

impl LeaseKeeper {
    /// When there is something to ask.
    pub fn ask_at(&self) -> Instant {
        self.ask_at
    }

    /// Asks for the lease when it is time, or gives it back. Returns false when nobody wants it any more.
    ///
    /// # Errors
    /// When the connection is lost: a lease that is held stays held until its time is up.
    pub fn keep(&mut self, link: &mut Link) -> Result<bool, RedisError> {
        let State { key, owner, held, is_wanted } = &*self.state;
        if !is_wanted.load(Ordering::Acquire) {
            link.ask(&["EVAL", GIVE_BACK, "1", key, owner])?;
            return Ok(false);
        }
        // From before the question: the server's count begins later.
        let now = Instant::now();
        if now < self.ask_at {
            return Ok(true);
        }
        let counter = counter_key(key);
        let reply = link.ask(&["EVAL", TAKE, "2", key, &counter, owner, &LEASE_TIME.as_millis().to_string()])?;
        let token = match &reply {
            Value::Array(items) => match items.as_slice() {
                [Value::Int(1), Value::Int(token)] => u64::try_from(*token).ok(),
                _ => None,
            },
            _ => None,
        };
        if let Some(token) = token {
            held.store(Some(Arc::new(Held { token, until: now + HELD_TIME })));
            self.ask_at = now + RENEW_INTERVAL;
        } else {
            held.store(None);
            self.ask_at = now + ASK_INTERVAL;
        }
        // It may have been dropped meanwhile.
        if !is_wanted.load(Ordering::Acquire) {
            held.store(None);
        }
        Ok(true)
    }

    /// Gives the lease back, wanted or not.
    pub fn end(self, link: &mut Link) -> Result<(), RedisError> {
        self.state.held.store(None);
        link.ask(&["EVAL", GIVE_BACK, "1", &self.state.key, &self.state.owner]).map(|_| ())
    }
}
