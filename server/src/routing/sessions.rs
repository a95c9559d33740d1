//! A shard's sessions: which client's is where, by what right it acts, and what follows when one has got further.

use crate::shard::SessionLimits;
use crate::shard::answers::Answers;
use crate::shard::session::{Right, Session, StoreNews};
use crate::shard::slab::{Key, Slab};
use crate::store::AnyStore;
use crate::store::request::{StoreAnswer, Ticket};

use super::claim::{Claim, Standing};
use super::dispatcher::Dispatcher;

impl Dispatcher {
    /// The sessions.
    pub fn sessions(&self) -> &Slab<Session> {
        &self.sessions
    }

    /// One session.
    pub fn session_mut(&mut self, key: Key) -> Option<&mut Session> {
        self.sessions.get_mut(key)
    }

    /// The session of a client that is logged in here.
    pub fn find_session(&self, hash: u64, client: &str) -> Option<Key> {
        let is_it = |index: &u32| self.sessions.at(*index).is_some_and(|(_, session)| session.id().as_str() == client);
        let index = *self.by_client.find(hash, is_it)?;
        self.sessions.at(index).map(|(key, _)| key)
    }

    pub(super) fn list(&mut self, key: Key, hash: u64) {
        let sessions = &self.sessions;
        let hash_of = |index: &u32| sessions.at(*index).map_or(0, |(_, session)| session.hash());
        self.by_client.insert_unique(hash, key.index, hash_of);
    }

    /// Messages find the session no longer.
    pub(super) fn unlist(&mut self, key: Key) {
        let Some(hash) = self.sessions.get(key).map(Session::hash) else { return };
        if let Ok(found) = self.by_client.find_entry(hash, |index| *index == key.index) {
            found.remove();
        }
    }

    /// By what right the session acts.
    pub fn right(&self, key: Key) -> Right {
        if self.store.is_local() {
            return Right::UNBOUNDED;
        }
        self.claim(key).map_or(Right::NONE, |claim| claim.right(&self.rules))
    }

    /// From here on what the session asks of the store is asked in its name.
    pub(super) fn act_for(&mut self, key: Key) {
        if !self.store.is_local() {
            let generation = self.claim(key).map_or(0, |claim| claim.generation);
            self.store.act_for(Ticket::session(key), generation);
        }
    }

    /// Lets a session do something that may concern the store and its senders.
    pub fn with_session<R>(
        &mut self,
        key: Key,
        work: impl FnOnce(&mut Session, &mut AnyStore, SessionLimits, &mut Answers, u64) -> R,
    ) -> Option<R> {
        self.act_for(key);
        let session = self.sessions.get_mut(key)?;
        Some(work(session, &mut self.store, self.rules.session, &mut self.answers, self.now.wall_ms))
    }

    /// The store has answered something that a session asked about its messages.
    pub(super) fn on_session_answer(&mut self, key: Key, answer: StoreAnswer) {
        let mut refused = self.take_refused();
        let news = self.with_session(key, |session, store, limits, answers, now_ms| {
            session.on_store(answer, store, limits, now_ms, answers, &mut refused)
        });
        self.tell_refused(refused);
        match news {
            Some(StoreNews::Unexpected) => self.counters.unexpected_answers.add(1),
            Some(StoreNews::Lost(holder)) => match self.claim(key).map(|claim| claim.standing) {
                Some(Standing::Held | Standing::Starting) => return self.lose(key, holder),
                // What an earlier login left here; this one has yet to be judged.
                _ => self.keep_rest(key),
            },
            _ => {}
        }
        self.on_session_moved(key);
    }

    /// A session may have got further: welcome, write, or end it.
    pub(super) fn on_session_moved(&mut self, key: Key) {
        let Some(session) = self.sessions.get(key) else { return };
        if !session.is_waiting_for_store() {
            self.answer_claimed(key);
        }
        let Some(session) = self.sessions.get(key) else { return };
        if session.is_detached() {
            return self.settle_detached(key);
        }
        if session.has_unsent() {
            self.out.wakes.push(session.connection());
        }
        let last_offset = session.last_offset();
        let is_used_up = self.claim(key).is_some_and(|claim| {
            claim.standing == Standing::Held && last_offset >= claim.ceiling.max(claim.asked_ceiling)
        });
        if is_used_up {
            self.ask_for_claim(key);
        }
        let is_starting = self.claim(key).is_some_and(|claim| claim.standing == Standing::Starting);
        if is_starting && !self.sessions.get(key).is_some_and(Session::is_paging) {
            self.welcome(key);
        }
    }

    /// Somebody else has read this node's topic for a while, and kept what it held, and any word of that, past the
    /// sessions here. To be called before anything is delivered that this node reads itself again.
    pub fn look_everywhere(&mut self) {
        for index in 0..self.sessions.slots() {
            let Some((key, _)) = u32::try_from(index).ok().and_then(|index| self.sessions.at(index)) else { continue };
            if self.claim(key).is_some_and(Claim::takes_messages) {
                self.look_again(key);
            }
        }
    }

    /// Something may have been kept in the store for a live session: it is read before anything else.
    pub(super) fn look_again(&mut self, key: Key) {
        self.with_session(key, |session, store, limits, answers, now_ms| {
            session.fall_behind(store, limits, now_ms, answers);
            if !session.is_detached() {
                session.read_on_if_room(store, limits, now_ms);
            }
        });
    }
}
