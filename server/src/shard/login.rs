//! A client comes and goes: the session it gets, the one it replaces, what is kept when it leaves.

use websocket::{Decoder, Role};

use crate::routing::Login;

use super::connection::{Active, Purpose};
use super::disconnect::Disconnect;
use super::handover::Handover;
use super::input::{Patience, end_with};
use super::session::Newcomer;
use super::slab::Key;
use super::state::State;

impl State {
    /// Logs a client in on a connection whose belongings are `active`, out of the table.
    pub(super) fn log_in(&mut self, key: Key, active: &mut Active, handover: Handover) {
        let Handover { login, client_id, hash, mut surplus, .. } = handover;
        login.write_response(&mut active.replies);
        // Newest login wins: what the older one has not acknowledged is kept first, then found again by this one.
        if let Some(older) = self.dispatch.find_session(hash, client_id.as_str())
            && let Some(connection) = self.connection_of(older)
        {
            self.close(connection, Disconnect::Replaced);
        }
        let newcomer = Newcomer { id: client_id, hash, connection: key, wishes: login.wishes };
        let session = match self.dispatch.log_in(newcomer) {
            Login::Welcome(session, start) => {
                self.write_welcome(&mut active.replies, session, start);
                session
            }
            Login::Waits(session) => session,
        };
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
        // Another connection may carry it by now.
        if self.dispatch.sessions().get(session_key).is_some_and(|session| session.connection() == key.index) {
            self.dispatch.log_out(session_key);
        }
        self.settle_dispatch();
    }
}
