//! Messages for a client without a session here, and with no node to go to: the store is asked to keep them, and tells
//! if it knows of a session elsewhere.
//!
//! Invariant: of one queue, one question is open at a time; those it is about stay at the head until the answer.

use ring::NodeId;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::protocol::{ClientId, escape};
use crate::shard::slab::Key;
use crate::store::request::{Author, StoreAnswer, StoreRequest, Ticket};
use crate::store::{AnyStore, Room};

use super::arrival::{forwarded_from, with_arrival};
use super::dispatcher::{Dispatcher, Now, RETIRED_MS};
use super::relay::HOPS_MAX;
use super::waiting::{Why, cost};

/// Messages given to the store at a time for a recipient without a session here.
const BATCH_MESSAGES_MAX: usize = 64;
/// Bytes of them.
const BATCH_BYTES_MAX: usize = 512 * 1024;
/// How long the store is left alone after it has refused what it must keep; twice as long after each further time …
const REST_MS_MIN: u64 = 100;
/// … up to this.
const REST_MS_MAX: u64 = 10_000;

impl Dispatcher {
    /// Asks the store to keep the first messages of a queue, unless it knows of a session elsewhere.
    pub(super) fn look(&mut self, key: Key, client: &str) -> bool {
        let Ok(client) = ClientId::try_from(client) else { return false };
        let Now { wall_ms, steady_ms } = self.now;
        if self.waiting.get(key).is_some_and(|queue| steady_ms < queue.rests_until_ms) {
            return self.wait(key, Why::Room);
        }
        if self.ring.load().is_none() {
            self.counters.unresolved_no_ring.add(1);
        }
        let Some(queue) = self.waiting.get_mut(key) else { return false };
        let author = Author::Other { past: queue.past.clone() };
        let mut messages = Vec::new();
        let (mut bytes, mut owed) = (0, None);
        // What waits for a fence does not go with what is ahead of it.
        let is_ahead = queue.items.front().is_some_and(|held| held.is_ahead);
        // Nor what goes on to a holder with what goes no further.
        let is_last_stop = queue.items.front().is_some_and(|held| held.posted.hops >= HOPS_MAX);
        // Nor what waits for its sender's next coming.
        let login = queue.items.front().map_or(0, |held| held.posted.login);
        for held in queue.items.iter().take(BATCH_MESSAGES_MAX.min(queue.batch_max)) {
            let is_owed = held.posted.origin.is_record();
            if *owed.get_or_insert(is_owed) != is_owed
                || bytes > BATCH_BYTES_MAX
                || held.is_ahead != is_ahead
                || held.posted.login > login
                || (held.posted.hops >= HOPS_MAX) != is_last_stop
                || (held.expires_ms <= wall_ms && !messages.is_empty())
            {
                break;
            }
            bytes += cost(&held.posted);
            messages.push(with_arrival(&held.posted, held.expires_ms, |arrival| arrival.inbound.keep(0)));
        }
        queue.why = Why::Store(messages.len());
        let room = if owed == Some(true) { Room::Owed } else { Room::IfFree };
        if let AnyStore::Remote(remote) = &mut self.store {
            remote.ask(Ticket::waiting(key), StoreRequest::Append { client, author, messages, room });
        }
        false
    }

    /// The store has answered about the first messages of a queue.
    pub(super) fn on_looked(&mut self, key: Key, answer: StoreAnswer) {
        let Some(queue) = self.waiting.get_mut(key) else { return };
        let Why::Store(count) = queue.why else { return };
        queue.why = Why::Room;
        let past = queue.past.take();
        let (client, hash) = (queue.client.clone(), queue.hash);
        let refusals = queue.refusals + 1;
        // Whatever else it answers, it is not refusing any more.
        queue.refusals = 0;
        match answer {
            StoreAnswer::Appended { .. } => {
                queue.batch_max = usize::MAX;
                if let Some((node, _)) = past.filter(|(node, _)| *node != self.me.node) {
                    // It has the client, unless it is more than silent.
                    self.nudge(&client, hash, node);
                }
                for _ in 0..count {
                    let Some(held) = self.waiting.pop(key) else { break };
                    self.counters.delivered_kept.add(1);
                    self.tell(
                        held.posted.origin,
                        &escape(&held.posted.msg_id),
                        Some(Ok(self.rules.session.kept_status)),
                    );
                    self.place(held.placing);
                }
            }
            StoreAnswer::Refused(_) if count > 1 => queue.batch_max = 1,
            StoreAnswer::Refused(_) if self.is_first_sent_on(key) => {
                // Accepted long ago: it waits here, uncommitted, with all that is behind it, and the store is asked again.
                self.counters.owed_refused.add(1);
                let rests_until_ms = self.now.steady_ms + rest_ms(hash, refusals);
                if let Some(queue) = self.waiting.get_mut(key) {
                    (queue.refusals, queue.rests_until_ms) = (refusals, rests_until_ms);
                }
                return;
            }
            StoreAnswer::Refused(cause) => {
                if let Some(held) = self.waiting.pop(key) {
                    let refusal = self.refusal(cause);
                    self.tell(held.posted.origin, &escape(&held.posted.msg_id), Some(Err(refusal)));
                    self.place(held.placing);
                }
            }
            StoreAnswer::Elsewhere(holder) if holder.node == self.me.node || self.is_past(&holder.node, key) => {
                // An earlier life of this node, whose topic this one reads; or a node whose topic was drained.
                if let Some(queue) = self.waiting.get_mut(key) {
                    queue.past = Some((holder.node, holder.incarnation));
                }
            }
            StoreAnswer::Elsewhere(holder) if self.is_sent_on_too_often(key) => {
                self.counters.unresolved_hops.add(1);
                if let Some(queue) = self.waiting.get_mut(key) {
                    queue.past = Some((holder.node, holder.incarnation));
                }
            }
            StoreAnswer::Elsewhere(holder) => {
                self.learn(&client, &holder);
            }
            StoreAnswer::Claimed { .. } | StoreAnswer::Page(_) | StoreAnswer::Done => {}
        }
        self.go_on(key);
    }

    /// True for a node whose topic was drained, at least up to the first message of a queue.
    fn is_past(&mut self, node: &NodeId, key: Key) -> bool {
        let first = self.waiting.get(key).and_then(|queue| queue.items.front());
        let forwarded = first.and_then(|held| forwarded_from(&held.posted.trail, held.sent_by.as_ref()));
        self.is_silent(node, forwarded) || self.is_retired(node)
    }

    /// True for a node that is gone for good: neither the ring nor any heartbeat has known it for long. One that is only
    /// silent is out of the ring within seconds, and its session may have what was sent there last.
    fn is_retired(&mut self, node: &NodeId) -> bool {
        let is_live = self.live_nodes.as_ref().is_none_or(|live| live.contains(node));
        let has_slots = self.ring.load().is_none_or(|ring| ring.weights().index(node).is_some());
        let lost_ms = self.lost_nodes.get(node).copied().unwrap_or(self.started_ms);
        !is_live && !has_slots && self.now.wall_ms.saturating_sub(lost_ms) >= RETIRED_MS
    }
}

/// How long to leave the store alone after so many refusals in a row: doubled each time, and up to a half less, by the
/// recipient and the attempt, so that many that were refused at once do not come back at once.
fn rest_ms(hash: u64, refusals: u32) -> u64 {
    let longest = REST_MS_MIN.saturating_mul(1 << refusals.saturating_sub(1).min(32)).min(REST_MS_MAX);
    let jitter = xxh3_64_with_seed(&hash.to_le_bytes(), u64::from(refusals)) % (longest / 2 + 1);
    longest - jitter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_left_alone_for_longer_each_time_and_not_by_all_for_as_long() {
        for hash in 0..100 {
            for refusals in 1..200 {
                let longest = (100.0 * 2f64.powi(refusals - 1)).min(10_000.0);
                #[allow(clippy::cast_precision_loss, reason = "some seconds")]
                let rest = rest_ms(hash, refusals.unsigned_abs()) as f64;
                assert!((longest / 2.0..=longest).contains(&rest), "{rest} after {refusals}");
            }
        }
        let rests: std::collections::BTreeSet<u64> = (0..100).map(|hash| rest_ms(hash, 20)).collect();
        assert!(rests.len() > 50, "{rests:?}");
    }
}
