//! Leaving gently: advice first, so that clients open their next connection before this one is closed, then the
//! closing, spread evenly over a window.

use std::time::Duration;

use crate::protocol::{ReconnectAdvice, Replies};

use super::clock::Tick;
use super::connection::Purpose;
use super::disconnect::Disconnect;
use super::slab::Key;
use super::state::State;

/// How long after its advised moment a connection is closed, if its client has not gone by itself.
const GRACE: Duration = Duration::from_secs(1);
/// Connections advised in one tick at most.
const ADVICE_PER_TICK: usize = 2_000;

/// A drain under way, this shard's share of it.
pub(super) struct Drain {
    began_at: Tick,
    window_ms: u64,
    // Which of how many shards: their slots lie between each other's, so that the first of each do not fall on one moment.
    shard: usize,
    shards: usize,
    connections: Vec<Key>,
    advised: usize,
    closed: usize,
}

impl Drain {
    /// When connection number `index` is advised to have moved, counted from the beginning.
    fn slot(&self, index: usize) -> Duration {
        let place = index * self.shards + self.shard;
        let places = self.connections.len().max(1) * self.shards;
        let slot_ms = u128::from(self.window_ms) * place as u128 / places as u128;
        Duration::from_millis(u64::try_from(slot_ms).unwrap_or(u64::MAX))
    }
}

impl State {
    /// Begins a drain; one that has begun goes on as it is.
    pub(super) fn begin_drain(&mut self, window_ms: u64) {
        if self.drain.is_none() {
            let connections = self.connections.keys();
            self.drain = Some(Drain {
                began_at: self.clock.tick,
                window_ms,
                shard: self.index,
                shards: self.shards.get(),
                connections,
                advised: 0,
                closed: 0,
            });
        }
    }

    /// Takes a drain one tick further.
    pub(super) fn drain_on(&mut self) {
        let Some(mut drain) = self.drain.take() else { return };
        let passed = self.clock.tick.since(drain.began_at);
        for _ in 0..ADVICE_PER_TICK {
            let Some(key) = drain.connections.get(drain.advised).copied() else { break };
            let slot = drain.slot(drain.advised);
            self.advise(key, slot.saturating_sub(passed));
            drain.advised += 1;
        }
        while drain.closed < drain.advised
            && passed >= drain.slot(drain.closed) + GRACE
            && let Some(key) = drain.connections.get(drain.closed).copied()
        {
            drain.closed += 1;
            if self.connections.get(key).is_some() {
                self.close(key, Disconnect::Drain);
            }
        }
        self.drain = Some(drain);
    }

    fn advise(&mut self, key: Key, after: Duration) {
        let Some(connection) = self.connections.get(key) else { return };
        let Purpose::Session(session) = connection.purpose else { return };
        let Some(session) = self.dispatch.sessions().get(session) else { return };
        let resume_offset = session.settled_offset();
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        self.reply(key, |replies| {
            let advice = ReconnectAdvice { reason: "drain", node_id: "", url: "", after_ms, resume_offset };
            Replies::reconnect(replies, &advice);
        });
    }

    /// Closes everything.
    pub(super) fn stop(&mut self) {
        self.is_stopping = true;
        for key in self.connections.keys() {
            self.close(key, Disconnect::Shutdown);
        }
    }
}
