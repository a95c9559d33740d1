//! A client comes, and its delivery begins. On a node that runs alone all of that is done at once; else the store and
//! the former holder are asked, and neither can keep a client waiting for ever.
//!
//! Invariant: nothing is delivered to a client before it is claimed and its former holders have released it, or were
//! given up.

use std::task::Poll;

use crate::shard::session::{Newcomer, Session, Start};
use crate::shard::slab::Key;
use crate::store::{Claimed, Store};

use super::claim::{Claim, Standing};
use super::dispatcher::Dispatcher;

/// What became of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Login {
    /// It can be welcomed now.
    Welcome(Key, Start),
    /// It will be welcomed later.
    Waits(Key),
}

impl Dispatcher {
    /// A client logs in. The connection of an older login of it on this shard is closed before.
    pub fn log_in(&mut self, who: Newcomer) -> Login {
        self.counters.logins.add(1);
        if self.store.is_local() {
            return self.log_in_alone(who);
        }
        let (hash, wishes) = (who.hash, who.wishes);
        let older = self.find_session(hash, who.id.as_str());
        let key = match older {
            Some(older) if self.may_be_attached(older) => {
                if let Some(session) = self.sessions.get_mut(older) {
                    session.attach(who.connection, wishes);
                }
                older
            }
            older => {
                if let Some(older) = older {
                    self.unlist(older);
                    self.parting.push(older);
                }
                let key = self.sessions.insert(Session::unknown(who));
                self.list(key, hash);
                let slots = self.sessions.slots();
                self.claims.resize_with(slots, Claim::default);
                if let Some(claim) = self.claims.get_mut(key.index as usize) {
                    *claim = Claim::default();
                }
                key
            }
        };
        self.counters.sessions.set(self.sessions.len() as u64);
        let now = self.now;
        self.generation = self.generation.saturating_add(1).max(now.wall_ms << 10);
        let generation = self.generation;
        if let Some(claim) = self.claim_mut(key) {
            claim.standing = Standing::Asked;
            claim.generation = generation;
            claim.since_ms = now.steady_ms;
            let rare = claim.rare_mut();
            rare.wishes = wishes;
            rare.tries = 0;
        }
        self.ask_for_claim(key);
        self.opening.push(key);
        Login::Waits(key)
    }

    /// An older login's session goes on with a new connection, unless another node waits for its end.
    fn may_be_attached(&self, key: Key) -> bool {
        self.claim(key).is_some_and(|claim| {
            let is_superseded = claim.rare.as_ref().is_some_and(|rare| rare.superseded.is_some());
            claim.standing != Standing::Lost && !is_superseded
        })
    }

    fn log_in_alone(&mut self, who: Newcomer) -> Login {
        let now_ms = self.now.wall_ms;
        let hash = who.hash;
        let claimed = match self.store.claim(&who.id) {
            Poll::Ready(claimed) => claimed,
            Poll::Pending => Claimed::default(),
        };
        let (session, start) = Session::new(who, claimed, &mut self.store, self.started_ms, now_ms);
        let key = self.sessions.insert(session);
        self.list(key, hash);
        self.counters.sessions.set(self.sessions.len() as u64);
        Login::Welcome(key, start)
    }

    /// Nothing stands in the way any more: delivery begins, after what waits in the store.
    pub(super) fn begin(&mut self, key: Key, was_taken_over: bool, is_whole: bool) {
        let now_ms = self.now.steady_ms;
        let Some(claim) = self.claim_mut(key) else { return };
        claim.standing = Standing::Starting;
        claim.since_ms = now_ms;
        let rare = claim.rare_mut();
        let found = rare.found;
        rare.found.is_known &= is_whole;
        let position = rare.wishes.resume_offset.unwrap_or(0);
        let is_detached = self.sessions.get(key).is_some_and(Session::is_detached);
        self.with_session(key, |session, store, limits, answers, now_ms| {
            let is_known = found.is_known && position <= found.last_offset.max(session.last_offset());
            let position = if is_known { position } else { 0 };
            let has_messages = found.has_messages || was_taken_over;
            session.begin(position, found.last_offset, has_messages, store, limits, now_ms, answers);
            if !is_detached {
                session.read_on_if_room(store, limits, now_ms);
            }
        });
        self.on_session_moved(key);
        if let Some(session) = self.sessions.get(key) {
            let (client, hash) = (session.id().clone(), session.hash());
            self.go_on_with(client.as_str(), hash);
        }
    }

    pub(super) fn welcome(&mut self, key: Key) {
        let Some(claim) = self.claim_mut(key) else { return };
        claim.standing = Standing::Held;
        let rare = claim.rare_mut();
        let (found, wishes) = (rare.found, rare.wishes);
        self.drop_rare(key);
        let position = wishes.resume_offset.unwrap_or(0);
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.is_welcomed() {
            // Before the store answered.
            session.welcome(position);
            self.out.wakes.push(session.connection());
            return;
        }
        let is_known = position == 0 || (found.is_known && position <= found.last_offset.max(session.last_offset()));
        let start = Start {
            offset: session.welcome(if is_known { position } else { 0 }),
            recovered: is_known && found.lost_offset <= position,
        };
        self.out.wakes.push(session.connection());
        self.out.welcomes.push((key, start));
    }

    /// The former holder takes its time: the client is welcomed, so that it does not give up, and may send; it gets
    /// nothing before the session is released. What it is owed is kept, wherever it is.
    fn welcome_early(&mut self, key: Key) {
        let Some(rare) = self.claim(key).and_then(|claim| claim.rare.as_deref()) else { return };
        let (found, position) = (rare.found, rare.wishes.resume_offset.unwrap_or(0));
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.is_detached() || session.is_welcomed() {
            return;
        }
        session.welcome_early();
        let is_known = position == 0 || (found.is_known && position <= found.last_offset.max(session.last_offset()));
        let offset = if is_known { position } else { 0 };
        self.out.wakes.push(session.connection());
        self.out.welcomes.push((key, Start { offset, recovered: is_known && found.lost_offset <= position }));
    }

    /// The store did not answer in time.
    fn go_on_unclaimed(&mut self, key: Key) {
        self.counters.unclaimed.add(1);
        let Some(claim) = self.claim_mut(key) else { return };
        claim.standing = Standing::Unclaimed;
        let position = claim.rare_mut().wishes.resume_offset.unwrap_or(0);
        let Some(session) = self.sessions.get_mut(key).filter(|session| !session.is_detached()) else { return };
        session.welcome_early();
        let start = Start { offset: position, recovered: false };
        self.out.wakes.push(session.connection());
        self.out.welcomes.push((key, start));
    }

    /// Neither the store nor a former holder keeps a client waiting for ever.
    pub(super) fn tick_logins(&mut self) {
        let now_ms = self.now.steady_ms;
        for key in std::mem::take(&mut self.opening) {
            let Some(claim) = self.claim(key) else { continue };
            let waited_ms = now_ms.saturating_sub(claim.since_ms);
            match claim.standing {
                Standing::Asked if waited_ms >= self.rules.claim_wait_ms => self.go_on_unclaimed(key),
                Standing::TakingOver if waited_ms >= self.rules.takeover_wait_ms => {
                    self.counters.takeovers_given_up.add(1);
                    self.shut_out_former(key);
                    self.begin(key, true, false);
                }
                Standing::TakingOver if waited_ms >= self.rules.claim_wait_ms => {
                    self.welcome_early(key);
                    self.opening.push(key);
                }
                Standing::Asked | Standing::TakingOver => self.opening.push(key),
                _ => {}
            }
        }
    }
}
