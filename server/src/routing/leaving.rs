//! A session comes to its end: its client has left, or is another node's. A session never leaves with messages in hand:
//! the store gets them first.

use crate::bus::Holder;
use crate::shard::Disconnect;
use crate::shard::slab::Key;
use crate::store::request::{Author, StoreRequest, Ticket};
use crate::store::{AnyStore, Room};

use super::claim::Standing;
use super::dispatcher::Dispatcher;

impl Dispatcher {
    /// The connection of a session is gone: what is not acknowledged is kept, then the session is given back.
    pub fn log_out(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.is_detached() {
            return;
        }
        session.detach();
        if self.store.is_local() {
            let now_ms = self.now.wall_ms;
            session.spill_all(&mut self.store, self.rules.session, now_ms, &mut self.answers);
            self.unlist(key);
            if let Some(session) = self.sessions.remove(key) {
                session.release(&mut self.store, now_ms);
            }
            self.counters.sessions.set(self.sessions.len() as u64);
            return;
        }
        self.settle_detached(key);
    }

    /// Brings a session without a connection one step closer to its end.
    pub(super) fn settle_detached(&mut self, key: Key) {
        self.act_for(key);
        let (now_ms, limits) = (self.now.wall_ms, self.rules.session);
        let Some(standing) = self.claim(key).map(|claim| claim.standing) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        if standing == Standing::Lost {
            if !session.is_waiting_for_store() {
                self.nudge_holder(key);
                self.end(key, false);
            }
            return;
        }
        if !session.is_detached() || !matches!(standing, Standing::Held | Standing::Starting) {
            return;
        }
        let (waiting_messages, _) = session.outbox_size();
        if waiting_messages > 0 || session.is_behind() {
            session.fall_behind(&mut self.store, limits, now_ms, &mut self.answers);
            session.spill_all(&mut self.store, limits, now_ms, &mut self.answers);
        }
        if session.is_waiting_for_store() {
            return;
        }
        self.end(key, true);
    }

    /// Ends a session of which the store has everything; `is_ours` if it is to be given back.
    fn end(&mut self, key: Key, is_ours: bool) {
        self.act_for(key);
        self.unlist(key);
        self.parting.retain(|parting| *parting != key);
        let rare = self.claim_mut(key).and_then(|claim| claim.rare.take());
        let Some(session) = self.sessions.remove(key) else { return };
        self.counters.sessions.set(self.sessions.len() as u64);
        let (client, hash) = (session.id().clone(), session.hash());
        if is_ours {
            session.release(&mut self.store, self.now.wall_ms);
        }
        let rare = rare.map(|rare| *rare).unwrap_or_default();
        if let Some((origin, generation, _)) = &rare.superseded {
            let holder = Holder { node: origin.node.clone(), incarnation: origin.incarnation, generation: *generation };
            self.learn(client.as_str(), &holder);
        }
        // There may be another session of the client here, which they have to wait for, too.
        for (origin, generation, at) in rare.claimed.into_iter().chain(rare.superseded) {
            self.on_claimed(client.as_str(), hash, &origin, generation, at);
        }
        self.go_on_with(client.as_str(), hash);
    }

    /// The session is over: the store gets what is left of it, whoever holds the client.
    pub(super) fn lose(&mut self, key: Key, holder: Holder) {
        self.counters.claims_lost.add(1);
        let Some(session) = self.sessions.get_mut(key) else { return };
        if !session.is_detached() {
            self.out.closes.push((session.connection(), Disconnect::Replaced));
            session.detach();
        }
        let client = session.id().clone();
        self.learn(client.as_str(), &holder);
        if let Some(claim) = self.claim_mut(key) {
            claim.standing = Standing::Lost;
            claim.rare_mut().holder = Some(holder);
        }
        self.keep_rest(key);
        self.settle_detached(key);
    }

    /// Gives the store all that is left here of a session whose client another node has held meanwhile.
    pub(super) fn keep_rest(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let messages = session.take_rest();
        let client = session.id().clone();
        if messages.is_empty() {
            return;
        }
        let request = StoreRequest::Append { client, author: Author::Anyone, messages, room: Room::Owed };
        if let AnyStore::Remote(remote) = &mut self.store {
            remote.ask(Ticket::session(key), request);
        }
    }

    /// Tells the holder of a client that something was kept for it past what it knows.
    fn nudge_holder(&mut self, key: Key) {
        let holder = self.claim_mut(key).and_then(|claim| claim.rare_mut().holder.take());
        let (Some(session), Some(holder)) = (self.sessions.get(key), holder) else { return };
        let (client, hash) = (session.id().clone(), session.hash());
        self.nudge(client.as_str(), hash, holder.node);
    }
}
