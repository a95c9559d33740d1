//! Clients whose owner by the ring is another node are advised to go there, so many a second, and closed when they have
//! had their time. Who moves keeps its messages: the other node takes its session over. An advice that the ring has made
//! void is forgotten; nobody is advised while what a lost node has left behind may still be under way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ring::{NodeId, Ring};

use crate::protocol::{ReconnectAdvice, Replies};

use super::clock::{TICK, Tick};
use super::connection::Purpose;
use super::disconnect::Disconnect;
use super::slab::{Key, Round};
use super::state::State;

/// Over how long all clients are looked at for where they belong: how late one is advised where there is room.
const ROUND: Duration = Duration::from_secs(2);
/// How long an advised client may take to move before its connection here is closed.
const GRACE: Duration = Duration::from_secs(10);
/// Nobody is advised for so long after the ring has lost a node: what a client has sent may wait in that node's topic to be
/// forwarded, and what it sent through another node now would overtake that.
const LOSS_PAUSE: Duration = Duration::from_secs(20);

/// What a shard remembers of moves.
#[derive(Default)]
pub(super) struct Moves {
    allowance: f64,
    looked_at: Round,
    // Connections whose clients were advised to move, oldest first, and where to.
    advised: VecDeque<(Tick, Key, NodeId)>,
    ring: Option<Arc<Ring>>,
    lost_at: Option<Tick>,
}

impl Moves {
    /// Notes whether a new ring has lost nodes of the one before.
    fn follow(&mut self, ring: Option<&Arc<Ring>>, now: Tick) {
        let Some(ring) = ring.filter(|ring| self.ring.as_ref().is_none_or(|known| !Arc::ptr_eq(known, ring))) else {
            return;
        };
        let before = self.ring.replace(Arc::clone(ring));
        let is_lost = |node: &NodeId| ring.weights().index(node).is_none();
        if before.is_some_and(|before| before.weights().iter().any(|(node, _)| is_lost(node))) {
            self.lost_at = Some(now);
        }
    }

    fn is_paused(&self, now: Tick) -> bool {
        self.lost_at.is_some_and(|at| now.since(at) < LOSS_PAUSE)
    }
}

impl State {
    /// One tick's share of moves; closes whom nobody has heard of since its advice.
    pub(super) fn relocate(&mut self) {
        let now = self.clock.tick;
        self.moves.follow(self.dispatch.ring(), now);
        let share = f64::from(self.settings.moves_per_second) * TICK.as_secs_f64();
        self.moves.allowance = (self.moves.allowance + share).min(f64::from(self.settings.moves_per_second).max(1.0));
        while self.moves.advised.front().is_some_and(|(at, ..)| now.since(*at) >= GRACE)
            && let Some((_, key, to)) = self.moves.advised.pop_front()
        {
            let Some(session) = self.session_on(key) else { continue };
            if self.dispatch.owner_elsewhere(session).as_ref() == Some(&to) {
                self.close(key, Disconnect::Moved);
            } else if let Some(held) = self.dispatch.session_mut(session) {
                // The ring has changed since, perhaps because that node is dead: where it belongs now is told anew.
                held.clear_advised();
            }
        }
        self.advise_some();
    }

    /// One tick's share of a round over all clients, as far as there is room to advise them.
    fn advise_some(&mut self) {
        if self.drain.is_some() || self.moves.is_paused(self.clock.tick) || self.dispatch.ring().is_none() {
            return;
        }
        let ticks = usize::try_from(ROUND.as_millis() / TICK.as_millis()).unwrap_or(1).max(1);
        let slots = self.connections.slots();
        for _ in 0..slots.div_ceil(ticks) {
            if self.moves.allowance < 1.0 {
                // The next tick goes on here.
                return;
            }
            let index = self.moves.looked_at.step(slots);
            if let Some((key, connection)) = self.connections.at(index)
                && let Purpose::Session(session) = connection.purpose
            {
                self.advise_move(key, session);
            }
        }
    }

    /// Advises a client to move, if it should.
    fn advise_move(&mut self, connection: Key, session: Key) {
        let Some(links) = &self.links else { return };
        let Some(owner) = self.dispatch.owner_elsewhere(session) else { return };
        let membership = links.membership.load();
        let Some(url) = membership.member(&owner).and_then(|member| member.url.as_deref()) else { return };
        let Some(held) = self.dispatch.session_mut(session).filter(|held| held.is_welcomed() && !held.is_advised())
        else {
            return;
        };
        held.mark_advised();
        let resume_offset = held.settled_offset();
        self.moves.allowance -= 1.0;
        self.counters.advised_moves.add(1);
        self.moves.advised.push_back((self.clock.tick, connection, owner.clone()));
        self.reply(connection, |replies| {
            let advice =
                ReconnectAdvice { reason: "rebalance", node_id: owner.as_str(), url, after_ms: 0, resume_offset };
            Replies::reconnect(replies, &advice);
        });
    }

    /// Where a client is sent instead of being taken here: to its owner, if this node is told to redirect.
    pub(super) fn elsewhere(&mut self, hash: u64) -> Option<Box<str>> {
        if !self.settings.redirects {
            return None;
        }
        let owner = self.dispatch.owner_of(hash)?;
        let membership = self.links.as_ref()?.membership.load();
        membership.member(&owner)?.url.clone()
    }

    fn session_on(&self, connection: Key) -> Option<Key> {
        match self.connections.get(connection)?.purpose {
            Purpose::Session(session) => Some(session),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use ring::{NodeWeights, RingVersion, Weight};

    use super::*;

    fn ring(version: u64, nodes: &[&str]) -> Arc<Ring> {
        let weight = |name: &&str| (NodeId::new(name).unwrap(), Weight::new(100).unwrap());
        let weights = NodeWeights::new(nodes.iter().map(weight)).unwrap();
        Arc::new(Ring::from_weights(RingVersion::new(version).unwrap(), 0, weights))
    }

    #[test]
    fn moves_pause_when_the_ring_has_lost_a_node_and_for_nothing_else() {
        let (mut moves, start) = (Moves::default(), Tick::default());
        let mut is_paused_after = |ring: &Arc<Ring>, seconds: u32| {
            let now = start.after(Duration::from_secs(seconds.into()));
            moves.follow(Some(ring), now);
            moves.is_paused(now)
        };
        let (two, three) = (ring(2, &["a", "b"]), ring(1, &["a", "b", "c"]));
        assert!(!is_paused_after(&three, 0));
        assert!(is_paused_after(&two, 1));
        assert!(is_paused_after(&two, 20));
        assert!(!is_paused_after(&two, 21));
        assert!(!is_paused_after(&ring(3, &["a", "b", "d"]), 22));
        assert!(is_paused_after(&ring(4, &["a", "b", "c"]), 23));
    }
}
