//! Clients whose owner by the ring is another node are advised to go there, so many a second, and closed when they have
//! had their time. Who moves keeps its messages: the other node takes its session over.

use std::time::Duration;

use crate::protocol::{ReconnectAdvice, Replies};

use super::clock::TICK;
use super::disconnect::Disconnect;
use super::slab::Key;
use super::state::State;

/// How long an advised client may take to move before its connection here is closed.
const GRACE: Duration = Duration::from_secs(10);

impl State {
    /// One tick's share of moves; closes whom nobody has heard of since its advice.
    pub(super) fn relocate(&mut self) {
        let share = f64::from(self.settings.moves_per_second) * TICK.as_secs_f64();
        self.move_allowance = (self.move_allowance + share).min(f64::from(self.settings.moves_per_second).max(1.0));
        while let Some((advised_at, key)) = self.moving.front().copied() {
            if self.clock.tick.since(advised_at) < GRACE {
                break;
            }
            self.moving.pop_front();
            if self.session_on(key).is_some_and(|session| self.dispatch.owner_elsewhere(session).is_some()) {
                self.close(key, Disconnect::Moved);
            }
        }
    }

    /// Advises a client to move, if it should and there is room for one more.
    pub(super) fn relocate_session(&mut self, connection: Key, session: Key) {
        if self.move_allowance < 1.0 || self.drain.is_some() {
            return;
        }
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
        self.move_allowance -= 1.0;
        self.counters.advised_moves.add(1);
        self.moving.push_back((self.clock.tick, connection));
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
            super::connection::Purpose::Session(session) => Some(session),
            _ => None,
        }
    }
}
