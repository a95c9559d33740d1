//! Messages that go on to another node, and what is told about whereabouts on the way. Kafka is somebody else's: a
//! parcel is left behind, and its ticket comes back when it is kept.

use ring::NodeId;

use crate::bus::record::node_mark;
use crate::bus::{Address, Holder, Lane, Parcel, Record};
use crate::protocol::escape;
use crate::shard::origin::Origin;
use crate::shard::slab::Key;

use super::delivery::{UNCONFIRMED, UNCONFIRMED_MS};
use super::dispatcher::Dispatcher;
use super::waiting::{Held, Placing, pair};

/// Nodes that may send a message on; then it is kept where it is.
pub(super) const HOPS_MAX: u8 = 3;
/// Marks a message or fence carries.
const TRAIL_MAX: usize = 8;
/// Another node is told once in so long where a recipient is.
const MOVED_AGAIN_MS: u64 = 1_000;
/// Notices remembered for that.
const MOVED_MAX: usize = 100_000;

/// A parcel on its way.
pub(super) struct Produced {
    origin: Origin,
    msg_id: Box<str>,
    placing: Option<Placing>,
}

impl Dispatcher {
    /// The node that a message for a client without a session here goes to; none if it is this one, or unknown. What
    /// came from another node goes on only to where the client is known to have gone: each step leads to a newer login,
    /// and never in a circle. What the topic of a silent node held, `forwarded` from there, does not go back: whatever was
    /// known of the client, somebody else has read that topic.
    pub(super) fn target(
        &mut self,
        client: &str,
        hash: u64,
        is_sent_on: bool,
        forwarded: Option<u64>,
    ) -> Option<NodeId> {
        if self.paths.hint(client).is_some_and(|holder| self.is_silent(&holder.node, forwarded)) {
            self.paths.forget(client);
        }
        let ring = self.ring.load().filter(|_| !is_sent_on).map(|ring| &**ring);
        self.paths.target(client, hash, ring, &self.me.node, self.now.steady_ms)
    }

    /// True for a node without a heartbeat, if its topic is where a message was forwarded from.
    pub(super) fn is_silent(&self, node: &NodeId, forwarded: Option<u64>) -> bool {
        forwarded == Some(node_mark(node)) && self.live_nodes.as_ref().is_some_and(|live| !live.contains(node))
    }

    /// Sends a message to another node.
    pub(super) fn relay(&mut self, node: &NodeId, held: Held) {
        let Held { mut posted, placing, sent_by, is_ahead, .. } = held;
        let hash = posted.hash;
        if let Some(sender) = &sent_by {
            self.tell_moved(sender, &posted.to, hash);
        }
        let origin = if posted.wants_ack { posted.origin } else { Origin::NOBODY };
        posted.hops = posted.hops.saturating_add(1);
        if posted.trail.len() < TRAIL_MAX {
            posted.trail.push(self.mark);
        }
        let source = self.source(posted.sender, &posted.trail);
        if sent_by.is_some() {
            self.crossings.note_sent_on(posted.sender, hash, source, self.now.steady_ms);
        }
        let pair = pair(source, hash);
        posted.origin = Origin::NOBODY;
        posted.wants_ack = false;
        let produced = Produced { origin, msg_id: posted.msg_id.clone(), placing };
        let key = self.produced.insert(produced);
        if !origin.is_record() && origin != Origin::NOBODY {
            self.unconfirmed.push_back((self.now.steady_ms, key));
        }
        self.counters.delivered_relayed.add(1);
        if is_ahead {
            // Whatever else comes waits for the fence.
            let _ = self.way(source, hash, Some(node));
            self.paths.note_ahead(pair, node, self.now.steady_ms);
            self.let_fences_follow(pair);
        } else {
            self.paths.note(pair, node, sent_by.is_some(), self.now.steady_ms);
        }
        self.out.parcels.push_back(Box::new(Parcel {
            to: node.clone(),
            lane: Lane::Partition(self.paths.lane_of(hash)),
            origin: self.me.clone(),
            record: Record::Message(posted),
            ticket: Some(key.to_u64()),
        }));
    }

    /// The bus has kept a parcel.
    pub fn on_produced(&mut self, ticket: u64) {
        let Some(produced) = self.produced.remove(Key::from_u64(ticket)) else { return };
        let status = self.rules.session.kept_status;
        self.tell(produced.origin, &escape(&produced.msg_id), Some(Ok(status)));
        self.place(produced.placing);
    }

    /// A sender does not wait for the bus for ever.
    pub(super) fn tick_relayed(&mut self) {
        let now_ms = self.now.steady_ms;
        while let Some((since_ms, key)) = self.unconfirmed.front().copied() {
            if now_ms.saturating_sub(since_ms) < UNCONFIRMED_MS && self.produced.get(key).is_some() {
                break;
            }
            self.unconfirmed.pop_front();
            if let Some(produced) = self.produced.get_mut(key) {
                let (origin, msg_id) =
                    (std::mem::replace(&mut produced.origin, Origin::NOBODY), produced.msg_id.clone());
                self.counters.unconfirmed.add(1);
                self.tell(origin, &escape(&msg_id), Some(Err(UNCONFIRMED)));
            }
        }
    }

    /// Where a recipient's session was last heard of.
    pub(super) fn learn(&mut self, client: &str, holder: &Holder) {
        self.paths.learn(client, holder, self.now.steady_ms);
    }

    /// Tells whoever sent a message here where its recipient is.
    fn tell_moved(&mut self, sender: &Address, client: &str, hash: u64) {
        let Some(holder) = self.paths.hint(client).filter(|holder| holder.node != sender.node).cloned() else { return };
        if sender.node == self.me.node {
            return;
        }
        let now_ms = self.now.steady_ms;
        let whom = ring::hash_key(sender.node.as_str().as_bytes(), u64::from(sender.shard) ^ holder.generation);
        if self.moved.len() >= MOVED_MAX {
            self.moved.retain(|_, told_ms| now_ms.saturating_sub(*told_ms) < MOVED_AGAIN_MS);
        }
        let told_ms = self.moved.entry((hash, whom)).or_insert(0);
        if *told_ms != 0 && now_ms.saturating_sub(*told_ms) < MOVED_AGAIN_MS {
            return;
        }
        *told_ms = now_ms.max(1);
        self.out.parcels.push_back(Box::new(Parcel {
            to: sender.node.clone(),
            lane: Lane::Control,
            origin: self.me.clone(),
            record: Record::Moved { client: client.into(), holder },
            ticket: None,
        }));
    }

    /// Tells the node that has a client that something was kept for it past what that knows.
    pub(super) fn nudge(&mut self, client: &str, hash: u64, node: NodeId) {
        self.out.parcels.push_back(Box::new(Parcel {
            to: node,
            lane: Lane::Partition(self.paths.lane_of(hash)),
            origin: self.me.clone(),
            record: Record::Nudge { client: client.into() },
            ticket: None,
        }));
    }
}
