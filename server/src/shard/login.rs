//! A client comes and goes: the session it gets, the one it replaces, what is kept when it leaves.

use std::task::Poll;

use websocket::{Decoder, Role};

use crate::protocol::{Replies, Welcome};
use crate::store::{Claimed, Store};

use super::connection::{Active, Purpose};
use super::disconnect::Disconnect;
use super::handover::Handover;
use super::input::{Patience, end_with};
use super::session::{Newcomer, Session};
use super::slab::Key;
use super::state::State;

impl State {
    /// Logs a client in on a connection whose belongings are `active`, out of the table.
    pub(super) fn log_in(&mut self, key: Key, active: &mut Active, handover: Handover) {
        let Handover { login, client_id, hash, mut surplus, .. } = handover;
        login.write_response(&mut active.replies);
        // Newest login wins: what the older one has not acknowledged is kept first, then found again by this one.
        if let Some(older) = self.find_session(hash, client_id.as_str())
            && let Some(connection) = self.connection_of(older)
        {
            self.close(connection, Disconnect::Replaced);
        }
        let now_ms = self.clock.wall_ms;
        let claimed = match self.store.claim(&client_id) {
            Poll::Ready(claimed) => claimed,
            // The claim follows; until then the session knows of nothing that waits.
            Poll::Pending => Claimed::default(),
        };
        let started_ms = self.clock.started_ms;
        let newcomer = Newcomer { id: client_id, hash, connection: key, wishes: login.wishes };
        let (session, start) = Session::new(newcomer, claimed, &mut self.store, started_ms, now_ms);
        let ring_version = self.ring.load().map_or(0, |ring| ring.version().get());
        Replies::welcome(
            &mut active.replies,
            &Welcome {
                node_id: self.settings.node_id.as_str(),
                client_id: session.id().as_str(),
                ring_version,
                offset: start.offset,
                recovered: start.recovered,
                ping_interval_ms: u64::try_from(self.settings.ping_interval.as_millis()).unwrap_or(u64::MAX),
            },
        );
        let session = self.sessions.insert(session);
        let sessions = &self.sessions;
        let hash_of = |index: &u32| sessions.at(*index).map_or(0, |(_, session)| session.hash());
        self.by_client.insert_unique(hash, session.index, hash_of);
        self.counters.logins.add(1);
        self.counters.sessions.set(self.sessions.len() as u64);
        self.set_purpose(key, Purpose::Session(session));
        active.decoder = Decoder::new(Role::Server, self.settings.message_bytes_max.saturating_mul(2));
        // Many clients log in and then say nothing for long: the task stays only if there is more to do.
        active.must_park = true;
        if !surplus.is_empty()
            && let Err(reason) = self.take_frames(session, active, &mut surplus, 0, Patience::Spent)
        {
            self.log_out(key);
            end_with(active, reason);
        }
    }

    /// Takes the session off a connection, if it carries one: what is not acknowledged is kept.
    pub(super) fn log_out(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Purpose::Session(session_key) = connection.purpose else { return };
        let Some(session) = self.sessions.remove(session_key) else { return };
        if let Ok(found) = self.by_client.find_entry(session.hash(), |index| *index == session_key.index) {
            found.remove();
        }
        self.counters.sessions.set(self.sessions.len() as u64);
        session.leave(&mut self.store, self.clock.wall_ms, &mut self.answers);
        self.send_answers();
    }
}
